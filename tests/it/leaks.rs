//! Nothing that the program writes contains a secret: with every source, through every failure, at trace
//! level with directives that try to override the log's own. Here without an engine; `engine::leaks` uses
//! one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::canary::Canaries;
use crate::support::fake_google::{Failure, FakeGoogle, rsa_key};
use crate::support::session::{Folder, program};

/// Every target at trace level, and targets of dependencies that are more specific than those that the
/// program sets.
pub(crate) const LOUD: &str = "trace,hyper::proto=trace,hyper_util=trace,h2=trace,h2::codec::framed_write=trace,\
    h2::hpack=trace,bollard=trace,bollard::docker=trace,bollard::uri=trace,rustls=trace,rustls::client=trace,\
    yup_oauth2=trace,yup_oauth2::service_account=trace,kfp_creds=trace";

const KEY_ACCOUNT: &str = "loader@sa-project.iam.gserviceaccount.com";
const PERSON: &str = "somebody@example.com";
const RUNNER: &str = "runner@sa-project.iam.gserviceaccount.com";
pub(crate) const ACCOUNT: &str = "/computeMetadata/v1/instance/service-accounts/default";

/// The config file that sends every upstream call to `google`, and the credential file beside it.
pub(crate) fn files(folder: &Path, google: &FakeGoogle, credential: &str) -> (String, String) {
    let (config, file) = (folder.join("test.toml"), folder.join("credential.json"));
    let (token, iam) = (google.token_uri(), google.url());
    let sts = google.endpoints().sts.unwrap();
    let text = format!("[endpoints]\ntoken = \"{token}\"\niam_credentials = \"{iam}\"\nsts = \"{sts}\"\n");
    std::fs::write(&config, text).unwrap();
    std::fs::write(&file, credential).unwrap();
    (config.display().to_string(), file.display().to_string())
}

/// The secrets that the fake has used so far, and those of the credential file.
pub(crate) fn secrets_of(google: &FakeGoogle, credential: &str) -> Canaries {
    let mut canaries = Canaries::default();
    for (what, secret) in google.secrets() {
        canaries.add(what, &secret);
    }
    let file: Value = serde_json::from_str(credential).unwrap_or_default();
    for key in ["private_key", "client_secret", "refresh_token"] {
        if let Some(secret) = file[key].as_str() {
            canaries.add(key, secret);
        }
    }
    assert!(canaries.len() > 8, "the fake has hardly any secret");
    canaries
}

/// The line before the encoded key; assembled here, so that the tree contains no such line.
fn begin(label: &str) -> String {
    format!("-----BEGIN {label}-----")
}

/// A `serve --listen` and everything that it writes.
pub(crate) struct Local {
    pub(crate) child: Child,
    pub(crate) at: SocketAddr,
    pub(crate) capability: String,
    stdout: BufReader<std::process::ChildStdout>,
    printed: String,
    stderr: Option<std::thread::JoinHandle<String>>,
}

impl Local {
    pub(crate) fn start(mut command: Command, arguments: &[&str]) -> Self {
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(arguments);
        let mut child = loud(&mut command);
        let mut err = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = err.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut printed = String::new();
        for _ in 0..3 {
            stdout.read_line(&mut printed).unwrap();
        }
        let Some(place) =
            printed.lines().next().and_then(|line| line.strip_prefix("export GCE_METADATA_HOST="))
        else {
            panic!("it did not start: {printed} {}", stderr.join().unwrap());
        };
        let (at, capability) = place.split_once('/').unwrap_or((place, ""));
        let (at, capability) = (at.parse().unwrap(), capability.to_string());
        Self { child, at, capability, stdout, printed, stderr: Some(stderr) }
    }

    /// Sends the request; returns status line with headers, and the body.
    pub(crate) fn send(&self, request: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        let reply = String::from_utf8_lossy(&reply).into_owned();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
        (head.into(), body.into())
    }

    pub(crate) fn get(&self, path: &str) -> (String, String) {
        let (capability, at) = (&self.capability, self.at);
        self.send(&format!(
            "GET /{capability}{path} HTTP/1.1\r\nHost: {at}\r\nMetadata-Flavor: Google\r\nConnection: close\r\n\r\n"
        ))
    }

    /// Stdout except the lines with the capability, and stderr.
    pub(crate) fn end(mut self) -> (String, String) {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-INT", &pid]).status().unwrap();
        self.child.wait().unwrap();
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        (rest, self.stderr.take().unwrap().join().unwrap())
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the program with every log at trace level and its output captured.
pub(crate) fn loud(command: &mut Command) -> Child {
    command.env("KFP_CREDS_LOG", LOUD).env("RUST_LOG", LOUD).env("RUST_BACKTRACE", "full");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs the program, sends every kind of request, good and bad, and searches all that it wrote. The client is
/// meant to have the bodies of good answers; the rest is searched.
fn searched(google: &FakeGoogle, credential: &str, arguments: &[&str], failures: Vec<Failure>) -> String {
    searched_with(google, credential, "", arguments, failures)
}

/// The same, with more in the config file.
pub(crate) fn searched_with(
    google: &FakeGoogle,
    credential: &str,
    more: &str,
    arguments: &[&str],
    failures: Vec<Failure>,
) -> String {
    let folder = Folder::new("leaks");
    let (config, file) = files(&folder.0, google, credential);
    let written = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, written + more).unwrap();
    let mut command = program(&folder.0);
    command.env("GOOGLE_APPLICATION_CREDENTIALS", &file);
    let server = Local::start(command, &[&["--config", &config], arguments].concat());
    let mut seen = String::new();
    let mut note = |path: &str| {
        let (head, body) = server.get(path);
        seen.push_str(&head);
        if !(head.contains(" 200 ") && (path.contains("/token") || path.contains("/identity"))) {
            seen.push_str(&body);
        }
        head
    };
    assert!(note(&format!("{ACCOUNT}/token")).contains(" 200 "));
    let audience = format!("{ACCOUNT}/identity?audience=https://service.example");
    assert!(note(&audience).contains(" 200 "));
    note("/computeMetadata/v1/?recursive=true");
    note(&format!("{ACCOUNT}/?recursive=true&alt=text"));
    // Scopes and audiences without a cached token, so that the failures happen.
    for (number, failure) in failures.into_iter().enumerate() {
        google.fail(failure.clone());
        google.fail(failure.clone());
        google.fail(failure);
        let head = note(&format!("{ACCOUNT}/identity?audience=https://{number}.example"));
        assert!(!head.contains(" 200 "), "failure {number} was not met: {head}");
        (0..3).for_each(|_| google.unfail());
    }
    // Every process of the user can read its command line and environment.
    for place in ["cmdline", "environ"] {
        match std::fs::read(format!("/proc/{}/{place}", server.child.id())) {
            Ok(bytes) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            // The program is not dumpable, so only root can read its environment.
            Err(error) => {
                assert_eq!((place, error.kind()), ("environ", std::io::ErrorKind::PermissionDenied))
            }
        }
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.child.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert!(core.split_whitespace().skip(4).take(2).eq(["0", "0"]), "{core}");
    let capability = server.capability.clone();
    let (stdout, stderr) = server.end();
    let mut canaries = secrets_of(google, credential);
    canaries.add("the path capability", &capability);
    assert!(canaries.len() > 8, "the fake has hardly any secret");
    assert!(stderr.contains("TRACE") || stderr.contains("DEBUG"), "the log is not on: {stderr}");
    canaries.assert_absent("stdout", &stdout);
    canaries.assert_absent("stderr", &stderr);
    canaries.assert_absent("replies, command line, environment", &seen);
    stderr
}

pub(crate) fn failures() -> Vec<Failure> {
    vec![
        Failure::html_503(),
        Failure::oauth(400, "invalid_grant", None),
        Failure::oauth(400, "invalid_grant", Some("invalid_rapt")),
        Failure::oauth(401, "invalid_client", None),
        Failure::oauth(400, "canary-in-a-description", None),
        Failure::rpc(403, "PERMISSION_DENIED", Some("IAM_PERMISSION_DENIED")),
        Failure::rpc(404, "NOT_FOUND", None),
        Failure::Answer {
            status: 200,
            content_type: "application/json",
            body: "{\"canary-in-a-message\":".into(),
        },
        Failure::Answer {
            status: 200,
            content_type: "application/json",
            body: r#"{"access_token":"canary-in-a-message","expires_in":"canary-in-a-description"}"#.into(),
        },
        Failure::CutShort,
        Failure::Huge(4 << 20),
    ]
}

#[test]
fn a_service_account_leaks_nothing() {
    let google = FakeGoogle::start();
    let file = google.service_account(KEY_ACCOUNT, rsa_key());
    searched(&google, &file, &[], failures());
    assert!(google.secrets().iter().any(|(_, secret)| secret.starts_with("eyJ")), "no assertion was seen");
}

#[test]
fn impersonation_by_a_person_leaks_nothing() {
    let google = FakeGoogle::start();
    let file = google.user(PERSON);
    google.allow(PERSON, RUNNER);
    google.rotate_refresh_tokens();
    searched(&google, &file, &["--impersonate", RUNNER], failures());
}

#[test]
fn a_login_leaks_nothing() {
    let google = FakeGoogle::start();
    let file = google.user(PERSON);
    let folder = Folder::new("leaks");
    let (config, credential) = files(&folder.0, &google, &file);
    let mut command = program(&folder.0);
    command.env("GOOGLE_APPLICATION_CREDENTIALS", &credential);
    let server = Local::start(command, &["--config", &config]);
    let (token, refused) =
        (server.get(&format!("{ACCOUNT}/token")), server.get(&format!("{ACCOUNT}/identity?audience=a")));
    assert!(token.0.contains(" 200 "));
    // A new login while it runs, one that Google does not accept any more, and files that cannot be parsed.
    let mut seen = token.0 + &refused.0 + &refused.1;
    for content in
        [google.user(PERSON), file.replace("1//", "1//x"), file[..file.len() / 2].into(), swapped(&file)]
    {
        std::fs::write(&credential, content).unwrap();
        std::thread::sleep(Duration::from_millis(1300));
        let (head, body) = server.get(&format!("{ACCOUNT}/token"));
        seen.push_str(&head);
        if !head.contains(" 200 ") {
            seen.push_str(&body);
        }
    }
    let (stdout, stderr) = server.end();
    let canaries = secrets_of(&google, &file);
    for (place, text) in [("stdout", stdout), ("stderr", stderr), ("replies", seen)] {
        canaries.assert_absent(place, &text);
    }
}

/// The network's login page, or a proxy that asks for a login, answers at the start of the session and not
/// later.
#[test]
fn a_foreign_answer_at_the_start_ends_no_session() {
    for status in [302, 403, 407] {
        let google = FakeGoogle::start();
        let folder = Folder::new("start");
        let (config, credential) = files(&folder.0, &google, &google.user(PERSON));
        let body = "<html>canary-in-an-error-page</html>".to_string();
        (0..3).for_each(|_| {
            google.fail(Failure::Answer { status, content_type: "text/html", body: body.clone() })
        });
        let mut command = program(&folder.0);
        command.env("GOOGLE_APPLICATION_CREDENTIALS", &credential);
        let server = Local::start(command, &["--config", &config]);
        // A request while the mint backs off is held and gets the token of the next attempt.
        let served = (0..3).any(|_| server.get(&format!("{ACCOUNT}/token")).0.contains(" 200 "));
        let (_, stderr) = server.end();
        assert!(served, "{status}: {stderr}");
        assert!(stderr.contains(&format!("no token yet: 127.0.0.1 answered {status} (")), "{stderr}");
        assert!(!stderr.contains("canary"), "{stderr}");
    }
}

/// Secrets in fields of another type: a parser would quote them in its error.
fn swapped(file: &str) -> String {
    let mut file: Value = serde_json::from_str(file).unwrap();
    let secrets = json!([file["refresh_token"], file["client_secret"], file["private_key"]]);
    file["type"] = secrets.clone();
    file["universe_domain"] = secrets;
    file.to_string()
}

#[test]
fn files_that_are_not_understood_are_not_quoted() {
    let google = FakeGoogle::start();
    let (key, login) = (google.service_account(KEY_ACCOUNT, rsa_key()), google.user(PERSON));
    let broken = |file: &str, from: &str, to: &str| {
        assert!(file.contains(from), "{from}");
        file.replace(from, to)
    };
    let secret = |file: &str, key: &str| serde_json::from_str::<Value>(file).unwrap()[key].to_string();
    let folder = Folder::new("leaks");
    for file in [
        swapped(&key),
        swapped(&login),
        login[..login.len() - 9].into(),
        broken(
            &login,
            "\"type\":\"authorized_user\"",
            &format!("\"type\":{}", secret(&login, "refresh_token")),
        ),
        broken(&key, "\"type\":\"service_account\"", &format!("\"type\":{}", secret(&key, "private_key"))),
        broken(&key, &begin("PRIVATE KEY"), &begin("CERTIFICATE")),
        broken(&key, "\\n", "\\nAA"),
        broken(&key, "http://127", &secret(&key, "private_key").trim_matches('"').replace("\\n", "")),
        broken(&key, "\"googleapis.com\"", &secret(&key, "private_key")),
        serde_json::from_str::<Value>(&key).unwrap()["private_key"].as_str().unwrap().into(),
    ] {
        let path = folder.0.join("credential.json");
        std::fs::write(&path, &file).unwrap();
        let mut command = program(&folder.0);
        command.env("GOOGLE_APPLICATION_CREDENTIALS", &path).args(["serve", "--listen", "127.0.0.1:0"]);
        let mut child = loud(&mut command);
        let ended = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            child.try_wait().unwrap().is_some()
        });
        if !ended {
            child.kill().unwrap();
        }
        let out = child.wait_with_output().unwrap();
        assert!(ended, "it started with a broken file: {}", everything(&out));
        let mut canaries = secrets_of(&google, &key);
        canaries.add("refresh token", secret(&login, "refresh_token").trim_matches('"'));
        canaries.assert_absent("what it said", &everything(&out));
    }
}

pub(crate) fn everything(out: &Output) -> String {
    [&out.stdout[..], &out.stderr].map(String::from_utf8_lossy).concat()
}

#[test]
fn offline_tokens_and_the_capability_leak_nowhere() {
    let folder = Folder::new("leaks");
    let server = Local::start(program(&folder.0), &["--offline"]);
    let capability = server.capability.clone();
    assert!(capability.len() >= 32, "{capability}");
    let mut canaries = Canaries::default();
    canaries.add("the path capability", &capability);
    let mut seen = String::new();
    let (head, body) = server.get(&format!("{ACCOUNT}/token"));
    let token: Value = serde_json::from_str(&body).unwrap();
    canaries.add("an offline token", token["access_token"].as_str().unwrap());
    seen.push_str(&head);
    let (head, body) = server.get(&format!("{ACCOUNT}/identity?audience=https://service.example"));
    canaries.add("an offline ID token", body.trim());
    seen.push_str(&head);
    // A client that follows the redirect to the directory keeps the secret path.
    let (head, _) = server.get("/computeMetadata/v1");
    assert!(head.contains(&format!("/{capability}/computeMetadata/v1/\r\n")), "{head}");
    // Without the secret path, nothing: not beside it, before it, with a part of it, or with another one of
    // the same length.
    let at = server.at;
    let other: String = capability.chars().map(|c| if c == 'a' { 'b' } else { 'a' }).collect();
    for path in [
        format!("{ACCOUNT}/token"),
        format!("/{}{ACCOUNT}/token", &capability[..capability.len() - 1]),
        format!("/{capability}x{ACCOUNT}/token"),
        format!("/{other}{ACCOUNT}/token"),
        format!("//{capability}{ACCOUNT}/token"),
        format!("/x/../{capability}{ACCOUNT}/token"),
        format!("/%{:02x}{}{ACCOUNT}/token", capability.as_bytes()[0], &capability[1..]),
        format!("{ACCOUNT}/token?{capability}"),
    ] {
        let (head, body) = server.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: {at}\r\nMetadata-Flavor: Google\r\nConnection: close\r\nReferer: /{capability}/\r\n\r\n"
        ));
        assert!(head.starts_with("HTTP/1.1 4") && !body.contains("token\":"), "{path}: {head}");
        seen.push_str(&(head + &body));
    }
    // With it, but from a web page: a rebound name, a foreign origin.
    for (host, header) in [
        ("evil.example", ""),
        ("169.254.169.254.nip.io", ""),
        ("", "Origin: http://evil.example\r\n"),
        ("", "Sec-Fetch-Site: cross-site\r\n"),
        ("", "X-Forwarded-For: 1.2.3.4\r\n"),
    ] {
        let host = if host.is_empty() { at.to_string() } else { host.into() };
        let (head, body) = server.send(&format!(
            "GET /{capability}{ACCOUNT}/token HTTP/1.1\r\nHost: {host}\r\nMetadata-Flavor: Google\r\n{header}Connection: close\r\n\r\n"
        ));
        assert!(head.starts_with("HTTP/1.1 403"), "{host} {header}: {head}");
        seen.push_str(&(head + &body));
    }
    let printed = server.printed.clone();
    assert_eq!(printed.matches(&capability).count(), 3, "{printed}");
    let (stdout, stderr) = server.end();
    for (place, text) in [("stdout", stdout), ("stderr", stderr), ("replies", seen)] {
        canaries.assert_absent(place, &text);
    }
}

#[test]
fn an_open_listener_keeps_its_guards_and_stays_on_loopback() {
    let folder = Folder::new("leaks");
    let server = Local::start(program(&folder.0), &["--offline", "--open"]);
    assert_eq!(server.capability, "");
    let (at, path) = (server.at, format!("{ACCOUNT}/token"));
    let ask = |target: &str, headers: &str| {
        server.send(&format!("GET {target} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n")).0
    };
    let good = format!("Host: {at}\r\nMetadata-Flavor: Google\r\n");
    assert!(ask(&path, &good).contains(" 200 "));
    for (target, headers) in [
        (path.clone(), format!("Host: {at}\r\n")),
        (path.clone(), "Host: evil.example\r\nMetadata-Flavor: Google\r\n".into()),
        (path.clone(), format!("Host: {at}.evil.example\r\nMetadata-Flavor: Google\r\n")),
        (path.clone(), format!("{good}Host: evil.example\r\n")),
        (path.clone(), format!("{good}Origin: http://{at}\r\n")),
        (path.clone(), format!("{good}Referer: http://{at}/\r\n")),
        (path.clone(), format!("{good}X-Forwarded-For: 127.0.0.1\r\n")),
        (format!("http://evil.example{path}"), good.clone()),
    ] {
        let head = ask(&target, &headers);
        assert!(head.starts_with("HTTP/1.1 4"), "{target} {headers}: {head}");
    }
    drop(server);
    for address in ["0.0.0.0:0", "192.0.2.1:80", "[::]:0"] {
        let out = program(&folder.0).args(["serve", "--offline", "--listen", address]).output().unwrap();
        assert_eq!(out.status.code(), Some(64), "{address}");
        assert!(String::from_utf8_lossy(&out.stderr).contains("loopback"), "{address}");
    }
}

/// The search itself finds each planted secret, and nothing if there is none.
#[test]
fn a_planted_leak_is_found_in_every_form() {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    let secret = "ya29.planted/+\"secret\\~token";
    let mut canaries = Canaries::default();
    canaries.add("token", secret);
    let quoted = json!({"a": secret}).to_string();
    let form = url::form_urlencoded::Serializer::new(String::new()).append_pair("t", secret).finish();
    let mut url = url::Url::parse("http://h/").unwrap();
    url.path_segments_mut().unwrap().push(secret);
    let mut planted = vec![
        format!("plain {secret} text"),
        quoted.clone(),
        quoted.replace('/', "\\/"),
        json!(quoted).to_string().replace("\\\\\\", "\\"),
        form,
        url.path().replace('~', "%7E").replace("%7E", "~").replace('+', "%2B"),
        format!("{:?}", secret.as_bytes()),
        secret.bytes().fold(String::new(), |text, byte| text + &format!("{byte:02x}")),
    ];
    for before in ["", "a", "ab", "abc", "Bearer "] {
        for after in ["", "z", "zz"] {
            planted.push(STANDARD.encode(format!("{before}{secret}{after}")));
            planted.push(URL_SAFE.encode(format!("{before}{secret}{after}")));
        }
    }
    for text in &planted {
        assert!(!canaries.found_in(text).is_empty(), "missed: {text}");
    }
    assert!(canaries.found_in("ya29. planted secret token eWEyOS4=").is_empty());
    // It finds long secrets that were truncated, JWTs by their parts, and keys by their lines.
    let mut canaries = Canaries::default();
    let (claims, signature) =
        ("eyJzdWIiOiIxMjM0NTY3ODkwIn0", "c2lnbmF0dXJlLW9mLWEtdG9rZW4tdGhhdC1pcy1sb25nLWVub3VnaA");
    canaries.add("jwt", &format!("eyJhbGciOiJSUzI1NiJ9.{claims}.{signature}"));
    canaries.add("key", rsa_key());
    for leak in
        [claims, &signature[..30], &signature[signature.len() - 26..], rsa_key().lines().nth(5).unwrap()]
    {
        assert!(!canaries.found_in(leak).is_empty(), "missed: {leak}");
    }
    assert!(canaries.found_in(&format!("eyJhbGciOiJSUzI1NiJ9 {}", begin("PRIVATE KEY"))).is_empty());
    let panic =
        std::panic::catch_unwind(|| panic!("{:?}", kfp_creds::secret::Secret::new(secret.to_string())));
    assert_eq!(panic.unwrap_err().downcast_ref::<String>().unwrap(), "Secret(..)");
}
