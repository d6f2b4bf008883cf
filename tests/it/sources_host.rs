//! Sources of the host itself, its metadata server and gcloud; and its way out through proxies and company
//! CAs.
//!
//! Every metadata server here is a fake on loopback that a test made. No real one is contacted.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kfp_creds::mint::Mint;
use kfp_creds::process::Tasks;
use kfp_creds::record::Recorder;
use kfp_creds::source::google::{Google, SearchPaths};
use kfp_creds::source::{Reloaded, Source, SourceError};
use serde_json::json;

use crate::leaks::{ACCOUNT, Local, failures, searched_with};
use crate::minting::{
    BIGQUERY, RUNNER, Scratch, USER, ask, claims, find, id_ask, left, refusal, transient, upstream,
};
use crate::support::canary::Canaries;
use crate::support::fake_google::{CANARY, FakeGoogle, openssl, rsa_key, sign};
use crate::support::listening::Listening;
use crate::support::session::{Folder, program};

const VM: &str = "123-compute@developer.gserviceaccount.com";

/// The metadata server of a virtual machine, which checks the requests.
pub(crate) struct FakeMachine {
    pub(crate) at: SocketAddr,
    state: Arc<Mutex<Machine>>,
}

#[derive(Default)]
struct Machine {
    asked: Vec<String>,
    /// Statuses to answer with before the usual answers.
    failures: Vec<u16>,
    plain: bool,
    /// The account's e-mail, if it is not the usual one; with `Some(None)` the server never answers the
    /// request for it.
    email: Option<Option<String>>,
    life: u64,
    number: u64,
}

impl FakeMachine {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(Machine { life: 3000, ..Machine::default() }));
        let kept = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = kept.clone();
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Self { at, state }
    }

    /// How many tokens were requested.
    pub(crate) fn asked(&self) -> usize {
        self.set(|state| state.asked.iter().filter(|target| target.contains("/token")).count())
    }

    fn place(&self) -> SearchPaths {
        SearchPaths { metadata: Some(self.at.to_string()), ..SearchPaths::default() }
    }

    fn set<T>(&self, change: impl FnOnce(&mut Machine) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }
}

fn serve(stream: TcpStream, state: &Mutex<Machine>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let lower = head.to_ascii_lowercase();
        let target = head.split(' ').nth(1).unwrap().to_string();
        if target.ends_with("/email") && state.lock().unwrap().email == Some(None) {
            state.lock().unwrap().asked.push(target);
            std::thread::sleep(Duration::from_secs(60));
            return;
        }
        let (status, body, flavor) = {
            let mut state = state.lock().unwrap();
            state.asked.push(target.clone());
            let well = head.starts_with("GET ")
                && lower.contains("\r\nmetadata-flavor: google\r\n")
                && lower.contains("\r\nx-kfp-creds-source: 1\r\n")
                && !lower.contains("authorization");
            let (status, body) = match state.failures.pop() {
                _ if !well => (400, "canary-not-well-asked".into()),
                Some(status) => (status, "canary-in-an-error-page".into()),
                None => value(&mut state, &target),
            };
            (status, body, if state.plain { "" } else { "Metadata-Flavor: Google\r\n" })
        };
        let length = body.len();
        let reply = format!("HTTP/1.1 {status} X\r\n{flavor}Content-Length: {length}\r\n\r\n{body}");
        if stream.write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}

fn value(state: &mut Machine, target: &str) -> (u16, String) {
    let key = target.strip_prefix("/computeMetadata/v1/").unwrap_or_default();
    let (path, query) = key.split_once('?').unwrap_or((key, ""));
    state.number += 1;
    let body = match path {
        "instance/service-accounts/default/email" => {
            state.email.clone().flatten().unwrap_or_else(|| VM.into())
        }
        "project/project-id" => "vm-project\n".into(),
        "universe/universe-domain" => "googleapis.com".into(),
        "instance/service-accounts/default/token" => json!({
            "access_token": format!("ya29.canary-machine-token-{}", state.number),
            "expires_in": state.life, "token_type": "Bearer",
        })
        .to_string(),
        "instance/service-accounts/default/identity" => {
            let audience = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "audience");
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            let claims = json!({"aud": audience.unwrap().1, "email": VM, "exp": now + 3600});
            sign(rsa_key(), &json!({"alg": "RS256"}), &claims)
        }
        _ => return (404, "canary-no-such-key".into()),
    };
    (200, body)
}

#[tokio::test]
async fn the_machines_own_account_is_a_source() {
    let (machine, fake) = (FakeMachine::start(), FakeGoogle::start());
    let google = find(&machine.place(), fake.endpoints()).unwrap();
    assert!(google.notice().unwrap().contains(&machine.at.to_string()));
    assert_eq!(google.principal().email, None, "no request was sent yet");
    let token = google.access_token(&ask(None)).await.unwrap();
    assert!((2995..=3000).contains(&left(token.expires)));
    assert!(token.scopes.is_empty(), "the machine decides");
    let asked = machine.set(|state| state.asked[0].clone());
    assert!(
        asked.ends_with(&format!("token?scopes={}", BIGQUERY.replace(':', "%3A").replace('/', "%2F"))),
        "{asked}"
    );
    let principal = google.principal();
    assert_eq!((principal.kind, principal.email.as_deref()), ("this machine's service account", Some(VM)));
    assert_eq!(
        (principal.project.as_deref(), principal.universe.as_deref()),
        (Some("vm-project"), Some("googleapis.com"))
    );
    let id = google.identity_token(&id_ask(None)).await.unwrap();
    assert_eq!(claims(id.value.expose())["aud"], "https://service.example");
    assert!(left(id.expires) >= 3590);
    // The machine's own account by name needs no impersonation; another account is impersonated with the
    // machine's token.
    let before = fake.calls().len();
    google.access_token(&ask(Some(VM))).await.unwrap();
    assert_eq!(fake.calls().len(), before);
    fake.allow(VM, RUNNER);
    (1..99).for_each(|number| fake.adopt(&format!("ya29.canary-machine-token-{number}"), VM));
    let token = google.access_token(&ask(Some(RUNNER))).await.unwrap();
    assert_eq!(fake.minted(token.value.expose()).unwrap().email, RUNNER);
    assert_eq!(google.reload(), Reloaded::Same);
}

/// A machine that does not name its account, or whose account has no e-mail, as on GKE.
#[tokio::test]
async fn a_machine_without_an_email_still_gives_tokens() {
    for email in [None, Some("project.svc.id.goog".to_owned())] {
        let (machine, fake) = (FakeMachine::start(), FakeGoogle::start());
        machine.set(|state| state.email = Some(email.clone()));
        let google = find(&machine.place(), fake.endpoints()).unwrap();
        for _ in 0..3 {
            google.access_token(&ask(None)).await.unwrap();
        }
        let principal = google.principal();
        assert_eq!((principal.email, principal.project.as_deref()), (None, Some("vm-project")), "{email:?}");
        let names = machine.set(|state| state.asked.iter().filter(|of| of.ends_with("/email")).count());
        assert_eq!(names, 1, "{email:?}");
    }
}

/// The whole program on such a machine: containers see its project and its account.
#[test]
fn containers_see_project_and_account_of_the_machine() {
    let (machine, folder) = (FakeMachine::start(), Folder::new("machine"));
    let mut command = program(&folder.0);
    command.env_remove("NO_GCE_CHECK").env("GCE_METADATA_HOST", machine.at.to_string());
    let server = Local::start(command, &[]);
    let told = |key: &str| server.get(&format!("/computeMetadata/v1/{key}")).1;
    assert_eq!(told("project/project-id"), "vm-project");
    assert_eq!(told("instance/service-accounts/default/email"), VM);
    let (head, body) = server.get(&format!("{ACCOUNT}/token"));
    assert!(head.contains(" 200 ") && body.contains("ya29.canary-machine-token"), "{head}");
    let (stdout, stderr) = server.end();
    assert!(stderr.contains("this machine's own service account"), "{stderr}");
    assert!(!stdout.contains(CANARY) && !stderr.contains("ya29.canary"), "{stderr}");
}

#[tokio::test]
async fn a_missing_answer_of_the_machine_is_reported() {
    let (machine, fake) = (FakeMachine::start(), FakeGoogle::start());
    let google = find(&machine.place(), fake.endpoints()).unwrap();
    machine.set(|state| state.failures = vec![404]);
    let why = refusal(google.access_token(&ask(None)).await);
    assert!(why.contains("no service account"), "{why}");
    machine.set(|state| state.failures = vec![503, 500]);
    google.access_token(&ask(None)).await.unwrap();
    machine.set(|state| state.failures = vec![503; 3]);
    transient(google.access_token(&ask(None)).await);
    machine.set(|state| state.life = 0);
    transient(google.access_token(&ask(None)).await);
    machine.set(|state| (state.life, state.plain) = (3000, true));
    let why = refusal(google.access_token(&ask(None)).await);
    assert!(why.contains("not a metadata server"), "{why}");
    machine.set(|state| (state.plain, state.failures) = (false, vec![508]));
    let before = machine.set(|state| state.asked.len());
    let why = refusal(google.access_token(&ask(None)).await);
    assert!(why.contains("kfp-creds itself"), "{why}");
    assert_eq!(machine.set(|state| state.asked.len()) - before, 1, "a loop is not retried");
}

#[tokio::test]
async fn fifty_callers_ask_the_machine_once() {
    let (machine, fake) = (FakeMachine::start(), FakeGoogle::start());
    let mint = Mint::new(
        Arc::new(find(&machine.place(), fake.endpoints()).unwrap()),
        Tasks::new(),
        Recorder::default(),
    );
    let request = ask(None);
    let callers = (0..50).map(|_| mint.access(&request, None, Duration::from_secs(5)));
    assert!(futures_util::future::join_all(callers).await.iter().all(Result::is_ok));
    let tokens = machine.set(|state| state.asked.iter().filter(|target| target.contains("/token")).count());
    assert_eq!(tokens, 1);
}

#[test]
fn files_come_before_the_machine_and_the_machine_before_gcloud() {
    let (machine, fake, scratch) = (FakeMachine::start(), FakeGoogle::start(), Scratch::new());
    let gcloud = fake_gcloud(&scratch, 3600);
    let home = Some(scratch.0.join("home"));
    scratch.write("home/.config/gcloud/configurations/config_default", "[core]\naccount = g@example.com\n");
    let all = SearchPaths { home: home.clone(), gcloud: Some(gcloud), ..machine.place() };
    assert_eq!(find(&all, fake.endpoints()).unwrap().principal().kind, "this machine's service account");
    let without = SearchPaths { metadata: None, ..all.clone() };
    let google = find(&without, fake.endpoints()).unwrap();
    assert_eq!(google.principal().kind, "gcloud's account");
    assert!(google.notice().unwrap().contains("g@example.com"));
    scratch.write("home/.config/gcloud/application_default_credentials.json", &fake.user(USER));
    let google = find(&all, fake.endpoints()).unwrap();
    assert_eq!((google.principal().kind, google.notice()), ("user login", None));
    // A source chosen by name is used first; gcloud without an account or program is absent.
    assert_eq!(
        Google::machine(&all, fake.endpoints(), upstream()).unwrap().principal().kind,
        "this machine's service account"
    );
    assert_eq!(
        Google::gcloud(&all, fake.endpoints(), upstream()).unwrap().principal().kind,
        "gcloud's account"
    );
    for place in [SearchPaths { gcloud: None, ..all.clone() }, SearchPaths { home: None, ..all }] {
        let missing = Google::gcloud(&place, fake.endpoints(), upstream());
        assert!(matches!(missing, Err(SourceError::Absent(_))), "{missing:?}");
    }
}

/// The metadata server of the session is another session of ours, open or behind its secret path, or the
/// session itself.
#[test]
fn a_session_never_takes_kfp_creds_for_the_machine() {
    let (open, guarded) = (Listening::open(""), Listening::guarded(""));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for (place, own) in [(&open.place, false), (&guarded.place, false), (&free, true)] {
        let folder = Folder::new("loop");
        let mut command = program(&folder.0);
        command.env("GCE_METADATA_HOST", place).env("KFP_CREDS_CREDENTIALS", "metadata");
        if !own {
            let out = command.args(["serve", "--listen", "127.0.0.1:0", "--open"]).output().unwrap();
            let said = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(66), "{said}");
            assert!(said.contains("is kfp-creds itself"), "{said}");
            let secret = place.split_once('/').map_or("no secret at all", |(_, secret)| secret);
            assert!(!said.contains(secret), "{said}");
            continue;
        }
        // Its own listener does not exist yet when it starts; later the session recognises it.
        command.args(["serve", "--open", "--listen", place]);
        let mut child =
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut answer = String::new();
        for _ in 0..20 {
            let mut stream = TcpStream::connect(place).unwrap();
            let head = format!(
                "GET {ACCOUNT}/token HTTP/1.1\r\nHost: {place}\r\nMetadata-Flavor: Google\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            answer.clear();
            stream.read_to_string(&mut answer).unwrap();
            if answer.contains("itself") {
                break;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("kfp-creds itself"), "{answer}");
    }
}

/// A program that checks its arguments and records each call in `calls` beside it.
fn fake_gcloud(scratch: &Scratch, life: i64) -> std::path::PathBuf {
    let token = sign(
        rsa_key(),
        &json!({"alg": "RS256"}),
        &json!({"aud": "https://service.example", "exp": 4_000_000_000_u64}),
    );
    let text = format!(
        r#"#!/bin/sh
cd "$(dirname "$0")"
echo "$*" >> calls
[ "$CLOUDSDK_CORE_DISABLE_PROMPTS" = 1 ] || {{ echo "prompts are on" >&2; exit 2; }}
[ -e fail ] && {{ cat fail >&2; exit 1; }}
case "$*" in
"config config-helper --format=json --min-expiry=30m")
  [ -e garbage ] && {{ cat garbage; exit 0; }}
  printf '{{"configuration": {{"properties": {{"core": {{"account": "g@example.com"}}}}}}, "credential": {{"access_token": "ya29.canary-gcloud-token", "id_token": "canary-id", "token_expiry": "%s"}}}}' "$(date -u -d "@$(($(date +%s) + {life}))" +%Y-%m-%dT%H:%M:%SZ)" ;;
"auth print-identity-token --audiences=https://service.example") echo {token} ;;
*) echo "unknown: $*" >&2; exit 2 ;;
esac
"#
    );
    let path = scratch.write("bin/gcloud", &text);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn gclouds_account_is_a_source_with_a_known_expiry() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let config = "sdk/configurations/config_default";
    scratch.write(config, "[core]\naccount = g@example.com\nproject = g-project\n");
    let place = SearchPaths {
        cloudsdk_config: Some(scratch.0.join("sdk")),
        gcloud: Some(fake_gcloud(&scratch, 2000)),
        ..SearchPaths::default()
    };
    let google = Arc::new(Google::gcloud(&place, fake.endpoints(), upstream()).unwrap());
    let principal = google.principal();
    assert_eq!(
        (principal.email.as_deref(), principal.project.as_deref()),
        (Some("g@example.com"), Some("g-project"))
    );
    let token = google.access_token(&ask(None)).await.unwrap();
    assert_eq!(token.value.expose(), "ya29.canary-gcloud-token");
    assert!((1990..=2000).contains(&left(token.expires)), "{}", left(token.expires));
    let why = refusal(google.identity_token(&id_ask(None)).await);
    assert!(why.contains("--impersonate"), "{why}");

    // One run for fifty callers.
    let mint = Mint::new(google.clone(), Tasks::new(), Recorder::default());
    let calls = || fs::read_to_string(scratch.0.join("bin/calls")).unwrap().lines().count();
    let (before, request) = (calls(), ask(None));
    let callers = (0..50).map(|_| mint.access(&request, None, Duration::from_secs(20)));
    assert!(futures_util::future::join_all(callers).await.iter().all(Result::is_ok));
    assert_eq!(calls() - before, 1);

    // No token without an expiry, none that has expired; a login that ended is reported.
    for garbage in [
        "{}",
        r#"{"credential": {"access_token": "canary"}}"#,
        "canary",
        r#"{"credential": {"access_token": "canary", "token_expiry": "soon"}}"#,
        r#"{"credential": {"access_token": "canary", "token_expiry": "2001-01-01T00:00:00Z"}}"#,
    ] {
        scratch.write("bin/garbage", garbage);
        transient(google.access_token(&ask(None)).await);
    }
    scratch.write("bin/fail", "ERROR: canary Reauthentication failed. Please run: gcloud auth login");
    let why = refusal(google.access_token(&ask(None)).await);
    assert!(why.contains("`gcloud auth login`"), "{why}");
    for passing in [
        "ERROR: canary network",
        "ERROR: canary: a problem refreshing the auth tokens: HTTPSConnectionPool(host='oauth2.googleapis.com', \
         port=443): Max retries exceeded (Failed to resolve). Please run: $ gcloud auth login",
    ] {
        scratch.write("bin/fail", passing);
        transient(google.access_token(&ask(None)).await);
    }

    // Another active account is noticed.
    assert_eq!(google.reload(), Reloaded::Same);
    scratch.write(config, "[core]\naccount = robot@p.iam.gserviceaccount.com\n");
    assert_eq!(google.reload(), Reloaded::OtherAccount);
    assert_eq!(google.reload(), Reloaded::Same);
    fs::remove_file(scratch.0.join("bin/fail")).unwrap();
    let id = google.identity_token(&id_ask(None)).await.unwrap();
    assert_eq!(claims(id.value.expose())["aud"], "https://service.example");
}

/// gcloud inherits these variables, so we follow them too.
#[test]
fn gclouds_variables_name_the_account_and_the_project() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    scratch.write("sdk/active_config", "active");
    scratch
        .write("sdk/configurations/config_active", "[core]\naccount = a@example.com\nproject = a-project\n");
    let other = "[core]\naccount = b@example.com\nproject = b-project\nuniverse_domain = u.example\n\
                 [billing]\nquota_project = payer\n";
    scratch.write("sdk/configurations/config_other", other);
    let path = fake_gcloud(&scratch, 3600);
    let principal = |variables: &[(&str, &str)]| {
        let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let sdk = Some(scratch.0.join("sdk"));
        let place = SearchPaths {
            cloudsdk_config: sdk,
            gcloud: Some(path.clone()),
            variables,
            ..SearchPaths::default()
        };
        Google::gcloud(&place, fake.endpoints(), upstream()).unwrap().principal()
    };
    let named = |variables: &[(&str, &str)]| {
        let found = principal(variables);
        (found.email.unwrap_or_default(), found.project.unwrap_or_default())
    };
    let pair = |account: &str, project: &str| (account.to_owned(), project.to_owned());
    assert_eq!(named(&[]), pair("a@example.com", "a-project"));
    let config = ("CLOUDSDK_ACTIVE_CONFIG_NAME", "other");
    assert_eq!(named(&[config]), pair("b@example.com", "b-project"));
    assert_eq!(named(&[("CLOUDSDK_CORE_ACCOUNT", "c@example.com")]), pair("c@example.com", "a-project"));
    assert_eq!(named(&[config, ("CLOUDSDK_CORE_PROJECT", "c-project")]), pair("b@example.com", "c-project"));
    let found = principal(&[config]);
    assert_eq!(
        (found.universe.as_deref(), found.quota_project.as_deref()),
        (Some("u.example"), Some("payer"))
    );
    assert_eq!(principal(&[]).quota_project, None);
}

/// Tokens made with the old account's token are not used for the new account, including the one that
/// impersonates.
#[tokio::test]
async fn a_new_gcloud_account_does_not_impersonate_as_the_old_one() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let config = "sdk/configurations/config_default";
    scratch.write(config, "[core]\naccount = a@example.com\n");
    let path = fake_gcloud(&scratch, 3600);
    let tokens = |of: &str| {
        let end = "2999-01-01T00:00:00Z";
        let answer =
            json!({"credential": {"access_token": format!("ya29.canary-of-{of}"), "token_expiry": end}});
        scratch.write("bin/garbage", &answer.to_string());
        fake.adopt(&format!("ya29.canary-of-{of}"), &format!("{of}@example.com"));
    };
    let sdk = Some(scratch.0.join("sdk"));
    let place = SearchPaths { cloudsdk_config: sdk, gcloud: Some(path), ..SearchPaths::default() };
    let google = Google::gcloud(&place, fake.endpoints(), upstream()).unwrap();
    fake.allow("a@example.com", RUNNER);
    tokens("a");
    google.access_token(&ask(Some(RUNNER))).await.unwrap();
    tokens("b");
    scratch.write(config, "[core]\naccount = b@example.com\n");
    assert_eq!(google.reload(), Reloaded::OtherAccount);
    let why = refusal(google.access_token(&ask(Some(RUNNER))).await);
    assert!(why.contains("b@example.com may not impersonate"), "{why}");
}

#[test]
fn gcloud_is_found_on_the_path_named_and_leaks_nothing() {
    let scratch = Scratch::new();
    fake_gcloud(&scratch, 3000);
    let folder = Folder::new("gcloud");
    let sdk = scratch.0.join("sdk");
    scratch.write("sdk/configurations/config_default", "[core]\naccount = g@example.com\n");
    let mut command = program(&folder.0);
    let path = format!("{}:{}", scratch.0.join("bin").display(), std::env::var("PATH").unwrap());
    command.env("PATH", path).env("CLOUDSDK_CONFIG", &sdk);
    let server = Local::start(command, &[]);
    let (head, body) = server.get(&format!("{ACCOUNT}/token"));
    assert!(head.contains(" 200 ") && body.contains("canary-gcloud-token"), "{head}");
    scratch.write("bin/fail", "canary-in-a-message");
    let (head, body) = server.get(&format!("{ACCOUNT}/token?scopes={BIGQUERY}"));
    assert!(!body.contains("in-a-message"), "{head}{body}");
    let (_, stderr) = server.end();
    assert!(stderr.contains("gcloud's active account, g@example.com"), "{stderr}");
    assert!(!stderr.contains(CANARY), "{stderr}");
}

/// A company's CA, and a server with its certificate that passes everything on to `to`.
pub(crate) fn tls_front(scratch: &Scratch, to: SocketAddr) -> (std::path::PathBuf, SocketAddr) {
    let curve = ["genpkey", "-quiet", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let key = |name: &str| scratch.write(name, &openssl(&curve, ""));
    let (authority, own) = (key("ca.key"), key("tls.key"));
    let text = |path: &Path| path.to_str().unwrap().to_string();
    let root = openssl(
        &["req", "-x509", "-new", "-subj", "/CN=Company Root", "-days", "1", "-key", &text(&authority)],
        "",
    );
    let root = scratch.write("ca.pem", &root);
    let request = openssl(&["req", "-new", "-subj", "/CN=x", "-key", &text(&own)], "");
    let request = scratch.write("tls.csr", &request);
    let extensions = scratch.write("tls.ext", "subjectAltName=DNS:*.corp.example,DNS:localhost\n");
    let certificate = openssl(
        &[
            "x509",
            "-req",
            "-in",
            &text(&request),
            "-CA",
            &text(&root),
            "-CAkey",
            &text(&authority),
            "-CAcreateserial",
            "-days",
            "1",
            "-extfile",
            &text(&extensions),
        ],
        "",
    );
    (root, pass_on(&certificate, &own, to))
}

fn pass_on(certificate: &str, key: &Path, to: SocketAddr) -> SocketAddr {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], PrivateKeyDer::from_pem_file(key).unwrap())
            .unwrap();
    let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").unwrap());
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let config = config.clone();
            std::thread::spawn(move || {
                let mut session = rustls::ServerConnection::new(config).unwrap();
                let mut tls = rustls::Stream::new(&mut session, &mut stream);
                let mut behind = TcpStream::connect(to).unwrap();
                // HTTP/1 has one exchange after another.
                loop {
                    let Some(request) = message(&mut tls) else { return };
                    behind.write_all(&request).unwrap();
                    let Some(reply) = message(&mut behind) else { return };
                    if tls.write_all(&reply).is_err() {
                        return;
                    }
                }
            });
        }
    });
    at
}

/// A head, and as many bytes of body as it announces.
fn message(from: &mut impl Read) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut piece = [0; 8192];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length: "));
            if bytes.len() >= end + 4 + length.map_or(0, |length| length.trim().parse::<usize>().unwrap()) {
                return Some(bytes);
            }
        }
        match from.read(&mut piece) {
            Ok(count @ 1..) => bytes.extend_from_slice(&piece[..count]),
            _ => return None,
        }
    }
}

/// A proxy that asks for a login, and connects every name to `to`. It records the requested hosts.
pub(crate) fn proxy(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    use base64::Engine as _;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (at, seen) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let noted = seen.clone();
    let login = base64::engine::general_purpose::STANDARD.encode("worker:canary-proxy-password");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let (noted, login) = (noted.clone(), login.clone());
            std::thread::spawn(move || {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).unwrap();
                noted.lock().unwrap().push(head.lines().next().unwrap().to_string());
                if !head.contains(&format!("\r\nProxy-Authorization: Basic {login}\r\n")) {
                    let _ = stream.write_all(
                        b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
                    );
                    return;
                }
                stream.write_all(b"HTTP/1.1 200 Connected\r\nVia: 1.1 canary\r\n\r\n").unwrap();
                let mut there = TcpStream::connect(to).unwrap();
                let (mut back, mut here) = (there.try_clone().unwrap(), stream.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut back, &mut here));
                let _ = std::io::copy(&mut stream, &mut there);
            });
        }
    });
    (at, seen)
}

/// All upstreams are behind the proxy and have certificates of a company's CA: the names resolve nowhere
/// else.
#[test]
fn a_session_works_behind_a_proxy_and_a_companys_authority() {
    let (google, scratch, folder) = (FakeGoogle::start(), Scratch::new(), Folder::new("proxy"));
    google.allow(USER, RUNNER);
    let (root, front) = tls_front(&scratch, google.address());
    let (at, seen) = proxy(front);
    let config = folder.0.join("test.toml");
    let text = "[endpoints]\ntoken = \"https://oauth2.corp.example/token\"\niam_credentials = \"https://iam.corp.example:8443\"\n";
    fs::write(&config, text).unwrap();
    let file = google.user(USER);
    let start = |user: &str, root: &Path, none_for: &str| {
        let mut command = program(&folder.0);
        command.env("GOOGLE_APPLICATION_CREDENTIALS", scratch.write("user.json", &file));
        command
            .env("HTTPS_PROXY", format!("http://{user}@{at}"))
            .env("SSL_CERT_FILE", root)
            .env("NO_PROXY", none_for);
        Local::start(command, &["--config", config.to_str().unwrap(), "--impersonate", RUNNER])
    };
    let server = start("worker:canary-proxy-password", &root, "elsewhere.example");
    let (head, _) = server.get(&format!("{ACCOUNT}/token"));
    assert!(head.contains(" 200 "), "{head}");
    let (head, _) = server.get(&format!("{ACCOUNT}/identity?audience=https://service.example"));
    assert!(head.contains(" 200 "), "{head}");
    let noted = seen.lock().unwrap().clone();
    for line in ["CONNECT oauth2.corp.example:443 HTTP/1.1", "CONNECT iam.corp.example:8443 HTTP/1.1"] {
        assert!(noted.iter().any(|seen| seen == line), "{noted:?}");
    }
    let (stdout, stderr) = server.end();
    let mut canaries = Canaries::default();
    canaries.add("the proxy's password", "canary-proxy-password");
    for (what, secret) in google.secrets() {
        canaries.add(what, &secret);
    }
    canaries.assert_absent("stdout", &stdout);
    canaries.assert_absent("stderr", &stderr);

    // Without the password, without the CA, and past the proxy: each failure is reported.
    let other =
        scratch.write("other.pem", &fs::read_to_string(&root).unwrap().replace("CERTIFICATE", "NOTHING"));
    for (user, root, none_for, words) in [
        ("worker:wrong", &root, "", "asks for a user and a password (407)"),
        ("worker:canary-proxy-password", &other, "", "certificate"),
        ("worker:canary-proxy-password", &root, ".corp.example", "oauth2.corp.example"),
    ] {
        let before = seen.lock().unwrap().len();
        let server = start(user, root, none_for);
        let (_, stderr) = server.end();
        assert!(stderr.contains("no token yet") && stderr.contains(words), "{words}: {stderr}");
        assert_eq!(seen.lock().unwrap().len() == before, none_for == ".corp.example", "{none_for}");
        canaries.assert_absent("stderr", &stderr);
    }
    // The variables for all protocols may name a proxy of a kind that we do not support; they are ignored.
    let mut command = program(&folder.0);
    command.env("GOOGLE_APPLICATION_CREDENTIALS", scratch.write("user.json", &file));
    command.env("ALL_PROXY", "socks5h://127.0.0.1:1").env("all_proxy", "socks5h://127.0.0.1:1");
    Local::start(command, &[]).end();
    let mut command = program(&folder.0);
    command.env("GOOGLE_APPLICATION_CREDENTIALS", scratch.write("user.json", &file));
    command.env("HTTPS_PROXY", "socks5://canary:canary-proxy-password@127.0.0.1:1");
    let out = command.args(["serve", "--listen", "127.0.0.1:0"]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(66) && said.contains("HTTPS_PROXY"), "{said}");
    assert!(!said.contains("canary"), "{said}");
}

#[test]
fn sources_of_the_host_leak_nothing() {
    let google = FakeGoogle::start();
    google.rotate_refresh_tokens();
    google.allow("person", RUNNER);
    google.delegate(RUNNER, "person@workspace.example");
    let url = format!("{}/v1/projects/-/serviceAccounts/{RUNNER}:generateAccessToken", google.url());
    let file = || {
        let of: serde_json::Value = serde_json::from_str(&google.workforce("person")).unwrap();
        let file = json!({
            "type": "impersonated_service_account", "service_account_impersonation_url": url, "source_credentials": of,
        });
        file.to_string()
    };
    let more = "[[identity.default.boundary]]\nbucket = \"data\"\npermissions = [\"inRole:roles/storage.objectViewer\"]\n";
    searched_with(&google, &file(), more, &[], failures());
    let more = "[identity.default]\nsubject = \"person@workspace.example\"\n";
    let said = searched_with(&google, &file(), more, &[], failures());
    assert!(said.contains("refresh token was replaced"), "the rotation is reported: {said}");
    assert!(google.calls().iter().any(|call| call.kind == "signJwt"));
    assert!(google.calls().iter().any(|call| call.kind == "boundary"));
}

/// In a mount namespace in which every directory for CAs is empty.
#[test]
fn missing_cas_are_replaced_and_reported_once() {
    let folder = Folder::new("roots");
    let script = "for place in /etc/ssl /etc/pki /usr/share/ca-certificates /usr/local/ssl /usr/lib/ssl; do \
                  if [ -d $place ] && [ ! -L $place ]; then mount -t tmpfs none $place || exit 99; fi; done; exec \"$@\"";
    let said = |name: &str, value: &str| {
        let mut bare = program(&folder.0);
        bare.env("GCE_METADATA_HOST", "127.0.0.1:9").env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
        let mut apart = Command::new("unshare");
        let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
        apart.args(if root { &["-m"][..] } else { &["-r", "-m"] });
        apart.args(["sh", "-c", script, "sh"]).arg(bare.get_program()).arg("check").env_clear();
        apart.envs(bare.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let out = apart.env(name, value).current_dir(&folder.0).output().unwrap();
        assert_ne!(
            out.status.code(),
            Some(99),
            "no mount namespace: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let bare = said("UNRELATED", "1");
    assert_eq!(bare.matches("trusting Mozilla's").count(), 1, "{bare}");
    let named = said("SSL_CERT_FILE", "/dev/null");
    assert!(
        !named.contains("Mozilla") && named.contains("no certificate authorities at SSL_CERT_FILE"),
        "{named}"
    );
}
