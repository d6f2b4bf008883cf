//! Host credentials of both kinds, all the way: file, Google at the wire, session, container.

use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::fake_google::{CANARY, Failure, FakeGoogle, rsa_key};
use crate::support::session::{Folder, Session, claims, is_sometimes, program, task_image};

const LOGIN: &str = "run `gcloud auth application-default login` on the host";
const SERVICE: &str = "robot@sa-project.iam.gserviceaccount.com";
const TARGET: &str = "pipeline@target-project.iam.gserviceaccount.com";

/// A fake Google, and the credential file on this machine.
struct Place {
    google: FakeGoogle,
    folder: Folder,
}

impl Place {
    fn new() -> Self {
        Self { google: FakeGoogle::start(), folder: Folder::new("credential") }
    }

    fn file(&self) -> PathBuf {
        self.folder.0.join("application_default_credentials.json")
    }

    /// Writes as gcloud does: a new file replaces the old one.
    fn write(&self, content: &str) {
        let new = self.folder.0.join("new.json");
        std::fs::write(&new, content).unwrap();
        std::fs::rename(&new, self.file()).unwrap();
    }

    fn config(&self) -> String {
        let (token, iam) = (self.google.token_uri(), self.google.url());
        format!("[endpoints]\ntoken = \"{token}\"\niam_credentials = \"{iam}\"\n")
    }

    fn session(&self, flags: &[&str]) -> Session {
        let file = self.file();
        let fixed = ["--all", "--config", "kfp-creds.toml", "--credentials-file", file.to_str().unwrap()];
        Session::start(&self.config(), &[&fixed, flags].concat(), &[])
    }

    /// The e-mail that Google has for a token.
    fn owner(&self, answer: &str) -> String {
        let answer: Value = serde_json::from_str(answer).unwrap_or_else(|e| panic!("{e}: {answer}"));
        let token = answer["access_token"].as_str().unwrap();
        self.google.minted(token).unwrap_or_else(|| panic!("nobody minted {token}")).email
    }

    fn kinds(&self) -> Vec<String> {
        self.google.calls().into_iter().map(|call| call.kind).collect()
    }
}

/// A container that keeps running and sends requests.
struct Client<'a> {
    session: &'a Session,
    id: String,
}

impl<'a> Client<'a> {
    fn new(session: &'a Session) -> Self {
        Self { session, id: session.ok(&["run", "-d", &task_image(), "sleep", "300"]) }
    }

    /// Status and body of `path` below the default account.
    fn ask(&self, path: &str) -> (u16, String) {
        let url =
            format!("http://$GCE_METADATA_HOST/computeMetadata/v1/instance/service-accounts/default/{path}");
        self.say(&format!("curl -s -w '\\n%{{http_code}}' -H Metadata-Flavor:Google \"{url}\""))
    }

    fn say(&self, script: &str) -> (u16, String) {
        let answer = self.session.ok(&["exec", &self.id, "sh", "-c", script]);
        let (body, status) = answer.rsplit_once('\n').unwrap_or_else(|| panic!("{answer:?}"));
        (status.parse().unwrap(), body.to_string())
    }

    fn good(&self, path: &str) -> String {
        let (status, body) = self.ask(path);
        assert_eq!(status, 200, "{path}: {body}\n{}", self.session.said());
        body
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        self.session.docker(&["rm", "-f", &self.id]);
    }
}

/// Asserts that the terminal shows no secret of Google or of the file.
fn assert_discreet(place: &Place, said: &str) {
    assert!(!said.contains(CANARY), "{said}");
    for secret in place.google.canaries() {
        assert!(!said.contains(&secret), "{said}");
    }
}

#[test]
fn a_service_account_key_stays_on_the_host() {
    let place = Place::new();
    place.write(&place.google.service_account(SERVICE, rsa_key()));
    let session = place.session(&[]);
    let ready = session.wait_for("ready ", Duration::from_secs(10));
    assert!(ready.contains(&format!("{SERVICE}  project sa-project  (service account key;")), "{ready}");
    let client = Client::new(&session);
    assert_eq!(place.owner(&client.good("token")), SERVICE);
    assert_eq!(client.good("email"), SERVICE);
    let said = claims(&client.good("identity?audience=https://service.example"));
    assert_eq!((&said["aud"], &said["email"]), (&"https://service.example".into(), &SERVICE.into()));
    let inside = session.ok(&["exec", &client.id, "sh", "-c", "env; cat /proc/mounts"]);
    assert!(inside.contains("GOOGLE_CLOUD_PROJECT=sa-project"), "{inside}");
    assert!(!inside.contains("application_default_credentials"), "{inside}");
    // The first call requests no token: it compares clocks before anything is signed.
    let kinds = place.kinds();
    assert!(kinds[0].is_empty() && kinds[1..].iter().all(|kind| kind == "jwt-bearer"), "{kinds:?}");
    drop(client);
    assert_discreet(&place, &session.end().1);
}

#[test]
fn containers_get_tokens_of_the_users_login() {
    let place = Place::new();
    place.write(&place.google.user("alice@example.com"));
    let session = place.session(&["--project", "alices-project"]);
    let ready = session.wait_for("ready ", Duration::from_secs(10));
    assert!(ready.contains("alice@example.com  project alices-project  (user login;"), "{ready}");
    let client = Client::new(&session);
    assert_eq!(place.owner(&client.good("token")), "alice@example.com");
    assert_eq!(
        place.owner(&client.good("token?scopes=https://www.googleapis.com/auth/bigquery")),
        "alice@example.com"
    );
    assert_eq!(client.good("email"), "alice@example.com");
    let (status, why) = client.ask("identity?audience=https://service.example");
    assert_eq!(status, 404, "gcloud fails on any other status: {why}");
    assert!(why.contains("impersonate"), "it says what would help: {why}");
    let inside = session.ok(&["exec", &client.id, "env"]);
    assert!(inside.contains("GOOGLE_CLOUD_PROJECT=alices-project"), "{inside}");
    assert!(inside.contains("GOOGLE_CLOUD_QUOTA_PROJECT=user-quota-project"), "{inside}");
    assert_eq!(place.kinds().first().map(String::as_str), Some("refresh_token"));
    drop(client);
    assert_discreet(&place, &session.end().1);
}

fn impersonated(place: &Place, own: &str) {
    place.google.allow(own, TARGET);
    let session = place.session(&["--impersonate", TARGET]);
    let client = Client::new(&session);
    assert_eq!(place.owner(&client.good("token")), TARGET);
    assert_eq!(client.good("email"), TARGET);
    let said = claims(&client.good("identity?audience=https://service.example&format=full"));
    assert_eq!((&said["aud"], &said["email"]), (&"https://service.example".into(), &TARGET.into()));
    let kinds = place.kinds();
    assert!(
        kinds.contains(&"generateAccessToken".into()) && kinds.contains(&"generateIdToken".into()),
        "{kinds:?}"
    );
    drop(client);
    assert_discreet(place, &session.end().1);
}

#[test]
fn a_key_can_impersonate_an_account() {
    let place = Place::new();
    place.write(&place.google.service_account(SERVICE, rsa_key()));
    impersonated(&place, SERVICE);
}

#[test]
fn a_login_can_impersonate_an_account() {
    let place = Place::new();
    place.write(&place.google.user("alice@example.com"));
    impersonated(&place, "alice@example.com");
}

/// Runs `kfp-creds` with this config and file to its end.
fn ended(place: &Place, command: &[&str]) -> Output {
    std::fs::write(place.folder.0.join("kfp-creds.toml"), place.config()).unwrap();
    let (first, rest) = command.split_first().unwrap();
    program(&place.folder.0)
        .args([first, "--config", "kfp-creds.toml", "--credentials-file"])
        .arg(place.file())
        .args(rest)
        .output()
        .unwrap()
}

fn lines(out: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    text.lines().filter(|line| !is_sometimes(line)).map(String::from).collect()
}

#[test]
fn a_broken_login_is_reported_once_and_at_once() {
    let place = Place::new();
    let file = place.google.user("alice@example.com");
    // Google knows the client, but not this refresh token.
    place.write(&file.replace("1//canary-refresh-token", "1//canary-withdrawn-token"));
    let mark = place.folder.0.join("started");
    for (command, code) in [
        (&["run", "--", "touch", mark.to_str().unwrap()][..], 125),
        (&["serve"], 66),
        (&["serve", "--listen", "127.0.0.1:0"], 66),
    ] {
        let began = Instant::now();
        let out = ended(&place, command);
        let said = lines(&out);
        assert_eq!(out.status.code(), Some(code), "{command:?}: {said:?}");
        assert!(
            matches!(&said[..], [line] if line.contains("(invalid_grant)") && line.contains(LOGIN)),
            "{said:?}"
        );
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        assert_discreet(&place, &said.concat());
    }
    assert!(!mark.exists(), "the command was started without a credential");
    assert!(place.google.calls().iter().all(|call| call.status == 400), "{:?}", place.google.calls());
}

/// Asks until `wanted` accepts the answer.
fn until(client: &Client<'_>, path: &str, wanted: impl Fn(&(u16, String)) -> bool) -> (u16, String) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = client.ask(path);
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < end, "{path} stays {answer:?}\n{}", client.session.said());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_login_can_end_and_return_during_a_run() {
    let place = Place::new();
    place.google.expires_in(1);
    let first = place.google.user("alice@example.com");
    place.write(&first);
    let session = place.session(&[]);
    let client = Client::new(&session);
    assert_eq!(client.good("email"), "alice@example.com");
    // No project is configured, so the client has to name one, instead of sending Google our placeholder.
    assert_eq!(client.say("echo ${GOOGLE_CLOUD_PROJECT-none}; echo 200"), (200, "none".into()));

    // The organisation asks for a new login: the container gets the message, and the terminal shows it once.
    (0..200).for_each(|_| place.google.fail(Failure::oauth(400, "invalid_grant", Some("invalid_rapt"))));
    let (_, why) = until(&client, "token", |(status, _)| *status == 403);
    assert!(why.contains("(invalid_rapt)") && why.contains(LOGIN) && !why.contains('\n'), "{why}");
    let said = session.wait_for("refused ", Duration::from_secs(5));
    assert!(said.contains(&why) && said.contains(&client.id[..12]), "{said}");
    assert_eq!(client.ask("token").0, 403);
    assert_eq!(session.said().matches("invalid_rapt").count(), 1, "{}", session.said());

    // The session picks up a fresh login: a new refresh token of the same person, which Google accepts.
    (0..200).for_each(|_| place.google.unfail());
    place.google.expires_in(3599);
    place.write(&place.google.user("alice@example.com"));
    session.wait_for("the new login is in use", Duration::from_secs(5));
    let (_, token) = until(&client, "token", |(status, _)| *status == 200);
    assert_eq!(place.owner(&token), "alice@example.com");

    // The login of another person: the running container has that account from then on, and a request that
    // waits for the change is answered.
    let waits = "email?wait_for_change=true&timeout_sec=30";
    let (status, who) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.ask(waits));
        std::thread::sleep(Duration::from_millis(500));
        assert!(!waiting.is_finished(), "it did not wait");
        place.write(&place.google.user("bob@example.com"));
        waiting.join().unwrap()
    });
    // The first token shows whose login it is.
    assert!(status == 200 && who != "alice@example.com", "{status} {who}");
    let (_, token) = until(&client, "token", |(_, token)| place.owner(token) == "bob@example.com");
    assert!(token.contains("\"token_type\":\"Bearer\""), "{token}");
    session.wait_for("it may be another account", Duration::from_secs(5));
    assert_eq!(client.good("email"), "bob@example.com");
    assert!(client.good("?recursive=true").contains(r#""email":"bob@example.com""#));
    drop(client);
    assert_discreet(&place, &session.end().1);
}

#[test]
fn an_account_is_disabled_only_after_a_dry_run_and_consent() {
    let place = Place::new();
    place.write(&place.google.service_account(SERVICE, rsa_key()));
    place.google.allow(SERVICE, TARGET);
    let log = place.folder.0.join("audit.jsonl");
    let config = |kill: bool| {
        format!(
            "{}iam = \"{}\"\n[audit]\nfile = \"{}\"\n[identity.loader]\nservice_account = \"{TARGET}\"\n\
             kill_switch = {kill}\n[[rule]]\nimage = \"*\"\nidentity = \"loader\"\n",
            place.config(),
            place.google.url(),
            log.display()
        )
    };
    let file = place.file();
    let start = |kill: bool| {
        let flags = ["--config", "kfp-creds.toml", "--credentials-file", file.to_str().unwrap()];
        Session::start(&config(kill), &flags, &[])
    };
    let closed = start(false);
    let (code, text) = cut_off(&closed, &["--all", "--disable-account", TARGET, "--yes"]);
    assert!(code == Some(64) && text.contains("does not allow disabling it"), "{text}");

    let session = start(true);
    let client = Client::new(&session);
    assert_one_refusal_is_enough(&client.id);
    assert!(!place.google.is_disabled(TARGET));
    drop((closed, client));

    let client = Client::new(&session);
    let answer: Value = serde_json::from_str(&client.good("token")).unwrap();
    let token = answer["access_token"].as_str().unwrap();
    let other = Client::new(&session);
    let (code, text) = cut_off(&session, &[&client.id, "--disable-account", TARGET]);
    assert_eq!(code, Some(64), "{text}");
    for word in [
        "cut off",
        "every workload in the cloud",
        "identity loader; 1 containers",
        "service-accounts enable",
        "add --yes",
    ] {
        assert!(text.contains(word), "{word}\n{text}");
    }
    assert!(place.google.minted(token).is_some() && !place.google.is_disabled(TARGET));
    let (code, text) = cut_off(&session, &[&client.id, "--disable-account", SERVICE, "--yes"]);
    assert!(code == Some(64) && text.contains("no identity of this session has"), "{text}");

    let (code, text) = cut_off(&session, &[&client.id, "--disable-account", TARGET, "--yes"]);
    assert!(code == Some(77) && text.contains(&format!("{SERVICE} may not disable {TARGET}")), "{text}");
    assert!(!place.google.is_disabled(TARGET));
    place.google.allow_disabling(SERVICE, TARGET);
    let (code, text) = cut_off(&session, &[&client.id, "--disable-account", TARGET, "--yes"]);
    assert!(code == Some(0) && text.contains(&format!("disabled {TARGET}")), "{text}");
    let (said, done) = (text.find("every token of it").unwrap(), text.find("disabled pipeline").unwrap());
    assert!(said < done, "the consequences are printed before: {text}");
    assert!(place.google.is_disabled(TARGET) && place.google.minted(token).is_none());
    assert_eq!(other.ask("token").0, 403, "no cached token of a disabled account is served");
    session.wait_for("was disabled by hand", Duration::from_secs(1));
    drop((client, other));
    session.end();
    assert_disabled_once(&log, token);
}

/// Two sessions use the account, and either may be asked first: if one refuses, the consent of the other does
/// not help.
fn assert_one_refusal_is_enough(client: &str) {
    let folder = Folder::new("kill");
    let both = ["cut-off", client, "--disable-account", TARGET, "--yes"];
    let out = program(&folder.0).args(both).output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(64) && text.contains("does not allow disabling it"), "{text}");
}

/// `cut-off ARGUMENTS` of a session: exit code and output.
fn cut_off(session: &Session, arguments: &[&str]) -> (Option<i32>, String) {
    let name = session.socket.file_stem().unwrap().to_str().unwrap();
    let folder = Folder::new("kill");
    let out = program(&folder.0).arg("cut-off").args(arguments).args(["--session", name]).output().unwrap();
    (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

fn assert_disabled_once(log: &std::path::Path, token: &str) {
    let audit = std::fs::read_to_string(log).unwrap();
    let events: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let disabled: Vec<_> = events.iter().filter(|event| event["event"] == "disable").collect();
    let outcomes: Vec<_> = disabled.iter().map(|event| event["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["failed", "ok"]);
    assert_eq!(disabled[1]["account"], TARGET);
    assert!(!audit.contains(token));
}
