//! What fails, what client and person see, and what recovers: the rows of `docs/internals/failures.md`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::leaks::{ACCOUNT, files};
use crate::support::failures::{Happened, page, steady};
use crate::support::fake_aws::{self, FakeAws, REGION, Role};
use crate::support::fake_engine::{Act, FakeEngine, json};
use crate::support::fake_entra::{APP, FakeEntra, TENANT, Trust};
use crate::support::fake_google::{Failure, FakeGoogle, rsa_key};
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::proxy_fixture::Scratch;
use crate::support::session::{Folder, program};

pub(crate) const KEY: &str = "loader@sa-project.iam.gserviceaccount.com";
pub(crate) const USER: &str = "person@example.com";
pub(crate) const AGAIN: &str = "yes: a client that asks again gets its token once the fault is over";
pub(crate) const UNAFFECTED: &str = "not needed: tokens are served all the time";
const NEVER: &str = "no: fix the cause and start again";
const ENDED: &str = "no: the server has ended";
const CREDENTIALS: &str = "Credentials on this machine";
pub(crate) const MACHINE: &str = "This machine";
pub(crate) const CLIENTS: &str = "Clients and the session";
const NEW_LOGIN: &str = "yes: with a new login, within seconds and without a restart";

/// A `serve --listen`, with everything that it prints for the person.
pub(crate) struct Listener {
    pub(crate) child: Child,
    pub(crate) at: SocketAddr,
    capability: String,
    said: Arc<Mutex<String>>,
    varying: Vec<String>,
}

impl Listener {
    /// An error has the exit code and the output.
    pub(crate) fn start(
        mut command: Command,
        arguments: &[&str],
        folder: &Path,
    ) -> Result<Self, (i32, String)> {
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let (err, heard) = (BufReader::new(child.stderr.take().unwrap()), said.clone());
        let reading = std::thread::spawn(move || {
            for line in err.lines().map_while(Result::ok) {
                *heard.lock().unwrap() += &format!("{line}\n");
            }
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            reading.join().unwrap();
            let code = child.wait().unwrap().code().unwrap();
            let said = said.lock().unwrap().clone();
            return Err((code, steady(&said, &[&folder.display().to_string()])));
        }
        let mut server = Self::at_the_place(&line, child, folder);
        server.said = said;
        Ok(server)
    }

    /// `line` is the first that the program printed on stdout, and is for the first cloud. Nobody reads stderr.
    pub(crate) fn at_the_place(line: &str, child: Child, folder: &Path) -> Self {
        let place = line.split('=').nth(1).unwrap_or_else(|| panic!("no address: {line:?}")).trim();
        let mut parts = place.trim_start_matches("http://").split('/');
        let at = parts.next().unwrap().parse().unwrap();
        let capability = parts.next().unwrap_or_default().to_owned();
        let varying = vec![folder.display().to_string(), capability.clone()];
        Self { child, at, capability, said: Arc::default(), varying }
    }

    fn steady(&self, text: &str) -> String {
        steady(text, &self.varying.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// The lines printed since `before`, without those of every start.
    pub(crate) fn lines(&self, before: &str) -> String {
        std::thread::sleep(Duration::from_millis(100));
        let said = self.said();
        let lines =
            said.strip_prefix(before).unwrap().lines().filter(|line| !line.ends_with("; Ctrl-C ends it"));
        // A line of the log begins with the time, and may end with the seconds by which a clock is off.
        let timeless = |line: &str| match line.split_once(' ') {
            Some((time, rest)) if time.ends_with('Z') => {
                let (rest, seconds) = rest.split_once(" seconds=").unwrap_or((rest, ""));
                format!("{rest}{}", if seconds.is_empty() { "" } else { " seconds=…" })
            }
            _ => line.to_owned(),
        };
        self.steady(&lines.map(timeless).collect::<Vec<_>>().join("\n"))
    }

    /// The head and the body of an answer.
    pub(crate) fn answer(&self, path: &str, headers: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        stream.write_all(self.request(path, headers).as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    pub(crate) fn request(&self, path: &str, headers: &str) -> String {
        let (capability, at) = (&self.capability, self.at);
        format!("GET /{capability}{path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n{headers}\r\n")
    }

    /// Status and text.
    pub(crate) fn get(&self, path: &str, headers: &str) -> String {
        let (head, body) = self.answer(path, headers);
        let status = head.split(' ').nth(1).unwrap();
        let body = if status == "200" { "the token" } else { &body };
        self.steady(&format!("{status} {body}"))
    }

    pub(crate) fn token(&self, query: &str) -> String {
        self.get(&format!("{ACCOUNT}/token{query}"), "Metadata-Flavor: Google\r\n")
    }

    /// The token itself, and the seconds that it has left.
    pub(crate) fn fresh(&self) -> (String, u64) {
        let (head, body) = self.answer(&format!("{ACCOUNT}/token"), "Metadata-Flavor: Google\r\n");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}\n{body}");
        let reply: serde_json::Value = serde_json::from_str(&body).unwrap();
        (reply["access_token"].as_str().unwrap().to_owned(), reply["expires_in"].as_u64().unwrap())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn waits_for(within: Duration, mut what: impl FnMut() -> bool) {
    let end = Instant::now() + within;
    while !what() {
        assert!(Instant::now() < end, "it does not recover");
        std::thread::sleep(Duration::from_millis(200));
    }
}

pub(crate) struct Google {
    pub(crate) google: FakeGoogle,
    folder: Folder,
    pub(crate) server: Listener,
}

impl Google {
    /// The server has one token; `?scopes=` with another scope needs a new one from `google`.
    pub(crate) fn start(credential: impl Fn(&FakeGoogle) -> String) -> Self {
        let (google, folder) = (FakeGoogle::start(), Folder::new("failures"));
        let (config, file) = files(&folder.0, &google, &credential(&google));
        let mut command = program(&folder.0);
        command.env("GOOGLE_APPLICATION_CREDENTIALS", &file);
        let server = Listener::start(command, &["--config", &config], &folder.0);
        let server = server.unwrap_or_else(|(code, said)| panic!("{code}: {said}"));
        assert_eq!(server.token(""), "200 the token");
        Self { google, folder, server }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.0.join("credential.json")
    }
}

/// Asks for a token that the server does not have yet.
pub(crate) const OTHER: &str = "?scopes=https://www.googleapis.com/auth/bigquery&enforce_scopes=true";

pub(crate) fn key(google: &FakeGoogle) -> String {
    google.service_account(KEY, rsa_key())
}

/// Temporary failures: the same request gets its token later.
#[test]
fn requests_succeed_after_temporary_upstream_failures() {
    let trouble = |case: &'static str, failure: Failure, wait: Option<&str>| {
        let fixture = Google::start(key);
        let before = fixture.server.said();
        if let Some(seconds) = wait {
            fixture.google.asks_to_wait(seconds);
        }
        // One request is tried three times.
        (0..3).for_each(|_| fixture.google.fail(failure.clone()));
        let client = fixture.server.token(OTHER);
        let person = fixture.server.lines(&before);
        waits_for(Duration::from_secs(30), || fixture.server.token(OTHER).starts_with("200"));
        Happened { part: "Google", case, client, person, recovers: AGAIN }.is_on_the_page();
    };
    trouble("429 with Retry-After", Failure::oauth(429, "rate_limit_exceeded", None), Some("6"));
    trouble("500", Failure::oauth(500, "internal_failure", None), None);
    trouble("503 with a page of HTML", Failure::html_503(), None);
    trouble("half a body", Failure::CutShort, None);
    trouble("no answer", Failure::Hang, None);
    trouble("a body without end", Failure::Huge((1 << 20) + 1), None);
    let expired = r#"{"access_token":"canary","expires_in":0,"token_type":"Bearer"}"#.to_owned();
    let expired = Failure::Answer { status: 200, content_type: "application/json", body: expired };
    trouble("a token that has expired already", expired, None);
}

/// Failures that a person has to fix. The mint remembers a refusal for some seconds.
#[test]
fn upstream_refusals_need_a_new_login() {
    let refusal = |case: &'static str, failure: Failure| {
        let fixture = Google::start(|google| google.user(USER));
        let before = fixture.server.said();
        // Only the login of another account makes the server drop the tokens that it has.
        (0..2).for_each(|_| fixture.google.fail(failure.clone()));
        fs::write(fixture.file(), fixture.google.user("other@example.com")).unwrap();
        let mut client = String::new();
        waits_for(Duration::from_secs(20), || {
            client = fixture.server.token("");
            !client.starts_with("200")
        });
        let person = fixture.server.lines(&before);
        fixture.google.unfail();
        fs::write(fixture.file(), fixture.google.user(USER)).unwrap();
        waits_for(Duration::from_secs(30), || fixture.server.token("").starts_with("200"));
        Happened { part: "Google", case, client, person, recovers: NEW_LOGIN }.is_on_the_page();
    };
    refusal("400 invalid_grant", Failure::oauth(400, "invalid_grant", None));
    refusal("400 invalid_rapt", Failure::oauth(400, "invalid_grant", Some("invalid_rapt")));
    refusal("401", Failure::oauth(401, "invalid_client", None));
    refusal("403", Failure::oauth(403, "access_denied", None));
}

/// A port that nobody listens on, or a name that does not exist, from the start.
#[test]
fn an_unreachable_upstream_is_named_to_client_and_person() {
    let google = FakeGoogle::start();
    let proxy = FaultProxy::of(google.address());
    proxy.cause(Fault::Closed);
    let port = format!("{}/token", proxy.url());
    let cases = [
        ("no connection to Google", port.as_str()),
        ("the host name of Google is not found", "https://nowhere.invalid/token"),
    ];
    for (case, url) in cases {
        let (folder, sent) = (Folder::new("failures"), google.calls().len());
        let (config, file) = files(&folder.0, &google, &google.user(USER));
        fs::write(&config, format!("[endpoints]\ntoken = \"{url}\"\n")).unwrap();
        let mut command = program(&folder.0);
        command.env("GOOGLE_APPLICATION_CREDENTIALS", &file).env("RES_OPTIONS", "attempts:1 timeout:1");
        let mut server =
            Listener::start(command, &["--config", &config], &folder.0).map_err(|why| why.1).unwrap();
        // Of a machine with a DNS server, and of one without.
        server
            .varying
            .extend(["Name or service not known", "Temporary failure in name resolution"].map(Into::into));
        let client = answer(|| server.token(""));
        assert_eq!(answer(|| server.token("")), client);
        let person = server.lines("");
        let recovers = if url == port {
            proxy.stop();
            waits_for(Duration::from_secs(30), || server.token("").starts_with("200"));
            AGAIN
        } else {
            assert_eq!(google.calls().len(), sent, "nothing was sent elsewhere");
            "no: every request gets the same answer"
        };
        Happened { part: "Google", case, client, person, recovers }.is_on_the_page();
    }
}

#[test]
fn a_clock_ten_minutes_off_still_gets_tokens() {
    for (case, seconds) in [("the clock is 10 min slow", 600), ("the clock is 10 min fast", -600)] {
        let (google, folder) = (FakeGoogle::start(), Folder::new("failures"));
        google.clock_off_by(seconds, true);
        let (config, file) = files(&folder.0, &google, &key(&google));
        let mut command = program(&folder.0);
        command.env("GOOGLE_APPLICATION_CREDENTIALS", &file);
        let server =
            Listener::start(command, &["--config", &config], &folder.0).map_err(|why| why.1).unwrap();
        let client = server.token("");
        let person = server.lines("");
        Happened { part: MACHINE, case, client, person, recovers: UNAFFECTED }.is_on_the_page();
    }
}

/// Files that are not valid logins when the session starts.
#[test]
fn invalid_credential_files_prevent_the_start() {
    let google = FakeGoogle::start();
    let whole = google.user(USER);
    let cases: [(&'static str, Option<&str>); 4] = [
        ("the credential file is missing", None),
        ("the credential file cannot be read", Some("")),
        ("the credential file is truncated", Some(&whole[..whole.len() / 2])),
        ("the credential file is of another type", Some(r#"{"type": "something_else"}"#)),
    ];
    for (case, text) in cases {
        let folder = Folder::new("failures");
        let file = folder.0.join("credential.json");
        match text {
            // Nobody can read a folder as a file, not even root.
            Some("") => fs::create_dir(&file).unwrap(),
            Some(text) => fs::write(&file, text).unwrap(),
            None => {}
        }
        let mut command = program(&folder.0);
        command.env("GOOGLE_APPLICATION_CREDENTIALS", &file);
        let Err((code, person)) = Listener::start(command, &[], &folder.0) else {
            panic!("{case}: it started")
        };
        let client = format!("no session: exit code {code}");
        Happened { part: CREDENTIALS, case, client, person, recovers: NEVER }.is_on_the_page();
    }
}

#[test]
fn replaced_credential_files_are_read_again() {
    let part = CREDENTIALS;
    let fixture = Google::start(|google| google.user(USER));
    let before = fixture.server.said();
    fs::write(fixture.file(), "{ canary").unwrap();
    waits_for(Duration::from_secs(20), || fixture.server.said().len() > before.len());
    let (client, person) = (fixture.server.token(""), fixture.server.lines(&before));
    let case = "the credential file is replaced by a broken one";
    let before = fixture.server.said();
    fs::write(fixture.file(), fixture.google.user(USER)).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    assert!(fixture.server.token("").starts_with("200"));
    Happened {
        part,
        case,
        client,
        person,
        recovers: "yes: the old login stays in use until the file is valid",
    }
    .is_on_the_page();
    fs::write(fixture.file(), fixture.google.user("other@example.com")).unwrap();
    waits_for(Duration::from_secs(20), || fixture.server.said().len() > before.len());
    let (client, person) = (fixture.server.token(""), fixture.server.lines(&before));
    let case = "the credential file is replaced by that of another account";
    Happened {
        part,
        case,
        client,
        person,
        recovers: "yes: old tokens are dropped, and the next one is of the new account",
    }
    .is_on_the_page();
}

/// The answer once no attempt is under way.
pub(crate) fn answer(ask: impl Fn() -> String) -> String {
    let mut said = String::new();
    waits_for(Duration::from_secs(20), || {
        said = ask();
        !said.contains("still being minted")
    });
    said
}

const ROLE: &str = "[aws]\ncredentials = \"environment\"\nregion = \"REGION\"\n[identity.default]\ngoogle = false\n[identity.default.aws]\nrole = \"ROLE\"\n";

/// The start requests the first session: a refusal ends the program, a temporary failure does not.
#[test]
fn aws_refusals_prevent_the_start_and_outages_do_not() {
    let cases: [(&'static str, u16, &str, bool); 4] = [
        ("AWS does not know the keys", 403, "InvalidClientTokenId", false),
        ("the role's trust policy refuses", 403, "AccessDenied", false),
        ("429 from AWS", 429, "RequestLimitExceeded", true),
        ("503 from AWS", 503, "ServiceUnavailable", true),
    ];
    for (case, status, code, passes) in cases {
        let (aws, folder) = (FakeAws::start(), Folder::new("failures"));
        (0..12).for_each(|_| aws.instead(status, &fake_aws::refusal(code)));
        let started = with_aws(&aws, &aws.url(), &folder);
        refused_or_passed("AWS", case, started, passes, ask_aws);
    }
}

/// A server with a role of AWS, which finds AWS at `url`.
pub(crate) fn with_aws(aws: &FakeAws, url: &str, folder: &Folder) -> Result<Listener, (i32, String)> {
    let role = aws.role("loader", Role::default());
    let config = folder.0.join("test.toml");
    fs::write(&config, ROLE.replace("REGION", REGION).replace("ROLE", &role)).unwrap();
    let keys = aws.user();
    let mut command = program(&folder.0);
    command.env("AWS_ACCESS_KEY_ID", &keys.id).env("AWS_SECRET_ACCESS_KEY", &keys.secret);
    command.env("AWS_ENDPOINT_URL_STS", url).env("AWS_EC2_METADATA_DISABLED", "true");
    Listener::start(command, &["--config", config.to_str().unwrap()], &folder.0)
}

pub(crate) fn ask_aws(server: &Listener) -> String {
    server.get("/v2/credentials", "")
}

/// Writes the row of an upstream's fault at the start of the program; one that `passes` does not end the
/// program.
fn refused_or_passed(
    part: &'static str,
    case: &'static str,
    started: Result<Listener, (i32, String)>,
    passes: bool,
    ask: impl Fn(&Listener) -> String,
) {
    match started {
        Err((code, person)) => {
            assert!(!passes, "{case}: {person}");
            let client = format!("no session: exit code {code}");
            Happened { part, case, client, person, recovers: NEVER }.is_on_the_page();
        }
        Ok(server) => {
            let client = answer(|| ask(&server));
            let person = server.lines("");
            waits_for(Duration::from_secs(60), || ask(&server).starts_with("200"));
            assert!(passes, "{case}: {client}");
            Happened { part, case, client, person, recovers: AGAIN }.is_on_the_page();
        }
    }
}

#[test]
fn azure_refusals_prevent_the_start_and_outages_do_not() {
    let cases: [(&'static str, u16, &str, u32, bool); 4] = [
        ("the client secret has expired", 401, "invalid_client", 7_000_222, false),
        ("Conditional Access refuses", 400, "invalid_grant", 53_003, false),
        ("429 from Entra", 429, "temporarily_unavailable", 90_055, true),
        ("500 from Entra", 500, "server_error", 90_099, true),
    ];
    for (case, status, error, number, passes) in cases {
        let (entra, folder) = (FakeEntra::start(), Folder::new("failures"));
        (0..12).for_each(|_| entra.fail_as(status, error, number));
        let started = with_azure(&entra, &entra.url(), &folder);
        refused_or_passed("Azure", case, started, passes, ask_azure);
    }
}

/// A server with a principal of Entra, which finds Entra at `url`.
pub(crate) fn with_azure(entra: &FakeEntra, url: &str, folder: &Folder) -> Result<Listener, (i32, String)> {
    entra.trust(APP, Trust::Secret("canary-secret".into()));
    let config = folder.0.join("test.toml");
    let text = "[azure]\ncredentials = \"environment\"\n[identity.default]\ngoogle = false\n[identity.default.azure]\nresources = [\"https://storage.azure.com\"]\n";
    fs::write(&config, text).unwrap();
    let mut command = program(&folder.0);
    command.env("AZURE_TENANT_ID", TENANT).env("AZURE_CLIENT_ID", APP);
    command.env("AZURE_CLIENT_SECRET", "canary-secret").env("AZURE_AUTHORITY_HOST", url);
    Listener::start(command, &["--config", config.to_str().unwrap()], &folder.0)
}

pub(crate) fn ask_azure(server: &Listener) -> String {
    let header = format!("X-IDENTITY-HEADER: {}\r\n", server.capability);
    server.get("/msi/token?api-version=2019-08-01&resource=https://storage.azure.com", &header)
}

/// `run` with an engine that does not exist or does not work.
#[test]
fn an_engine_that_does_not_work_prevents_the_start() {
    let scratch = Scratch::new();
    let other = if cfg!(target_arch = "x86_64") { "riscv64" } else { "s390x" };
    let version = format!(r#"{{"Version":"28.5.2","ApiVersion":"1.51","Os":"linux","Arch":"{other}"}}"#);
    let foreign = FakeEngine::start(&scratch.0, move |_| json("200 OK", &version));
    let silent = scratch.0.join("silent.sock");
    drop(std::os::unix::net::UnixListener::bind(&silent).unwrap());
    let missing = scratch.0.join("missing.sock");
    let closed = scratch.0.join("closed.sock");
    let _listens = std::os::unix::net::UnixListener::bind(&closed).unwrap();
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(&closed, 0o000);
    open(&scratch.0, 0o777);
    for (case, socket) in [
        ("no permission to use the engine", &closed),
        ("the engine's socket does not exist", &missing),
        ("the engine does not run", &silent),
        ("the engine has another architecture", &foreign.socket),
    ] {
        let folder = Folder::new("failures");
        let mut command = program(&folder.0);
        command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
        command.env("XDG_RUNTIME_DIR", &folder.0);
        if socket == &closed && rustix::process::getuid().is_root() {
            // Root could use every socket, so another user runs the program.
            open(&folder.0, 0o777);
            command.uid(4242).gid(4242);
        }
        let out = command.args(["run", "--offline", "--", "true"]).output().unwrap();
        let client = format!("no session: exit code {}", out.status.code().unwrap());
        let person = String::from_utf8(out.stderr).unwrap();
        let person = steady(&person, &[&scratch.0.display().to_string()]);
        Happened { part: "Engine", case, client, person, recovers: NEVER }.is_on_the_page();
    }
}

/// An engine that ends the events, and with them the exit code of a container that it removes.
#[test]
fn an_unknown_exit_code_is_an_error_for_the_client() {
    const ID: &str = "00000000000000000000000000000000000000000000000000000000000000bb";
    let scratch = Scratch::new();
    let engine = FakeEngine::start(&scratch.0, |seen| {
        let event = |action: &str| {
            format!("{{\"Type\":\"container\",\"Action\":\"{action}\",\"Actor\":{{\"ID\":\"{ID}\"}}}}\n")
        };
        match seen.line.split(' ').nth(1).unwrap() {
            path if path.contains("/containers/create") => {
                json("201 Created", &format!(r#"{{"Id":"{ID}"}}"#))
            }
            path if path.starts_with("/events?") => {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n".to_owned();
                vec![Act::Send((head + &event("start") + &event("destroy")).into_bytes()), Act::Hold]
            }
            _ => json("404 Not Found", r#"{"message":"no such container"}"#),
        }
    });
    let proxy = crate::support::proxy_fixture::ProxyFixture::at(&scratch.0, &engine.socket);
    use crate::support::proxy_fixture::call;
    assert_eq!(call(&proxy.socket, "POST /containers/create", r#"{"Image":"i"}"#).0, 201);
    let before = proxy.said();
    let (status, body) = call(&proxy.socket, &format!("POST /containers/{ID}/wait"), "");
    let person = proxy.said().strip_prefix(&before).unwrap().to_owned();
    let client = format!("{status} {body}");
    let case = "the engine's events break off, and a container is removed meanwhile";
    Happened { part: "Engine", case, client, person, recovers: "no: run the task again" }.is_on_the_page();
}

/// Signals as a terminal, a service manager or a closed window sends them.
#[test]
fn signals_end_a_server_unless_it_ignores_them() {
    let part = CLIENTS;
    for (case, signal, before) in [
        ("Ctrl-C", "-INT", None),
        ("SIGTERM", "-TERM", None),
        ("SIGHUP", "-HUP", None),
        ("SIGHUP, which is ignored (nohup)", "-HUP", Some("nohup")),
    ] {
        let folder = Folder::new("failures");
        let server = Listener::start(under(before, &folder), &["--offline"], &folder.0);
        let mut server = server.unwrap_or_else(|(code, said)| panic!("{code}: {said}"));
        assert_eq!(server.token(""), "200 the token");
        let said = server.said();
        let pid = server.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        let end = Instant::now() + Duration::from_secs(if before.is_some() { 2 } else { 20 });
        let mut ended = None;
        while ended.is_none() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
            ended = server.child.try_wait().unwrap();
        }
        assert_eq!(ended.is_none(), before.is_some(), "{case}");
        let (client, recovers) = match ended {
            Some(status) => (format!("no answer: exit code {}", status.code().unwrap()), ENDED),
            None => (server.token(""), UNAFFECTED),
        };
        Happened { part, case, client, person: server.lines(&said), recovers }.is_on_the_page();
    }
}

/// `kfp-creds`, started by the program `name`.
pub(crate) fn under(name: Option<&str>, folder: &Folder) -> Command {
    let plain = program(&folder.0);
    let Some(name) = name else { return plain };
    let mut words = name.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg(plain.get_program()).env_clear().current_dir(&folder.0);
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// A test makes every row, and every case of a test has a row.
#[test]
fn the_failures_page_has_exactly_the_cases_of_the_tests() {
    let mut sources = String::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                sources += &fs::read_to_string(entry.path()).unwrap();
            }
        }
    }
    let text = fs::read_to_string(page()).unwrap();
    let rows: Vec<&str> =
        text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| case ")).collect();
    assert!(rows.len() > 20, "{}", rows.len());
    for row in rows {
        let case = row.split(" | ").next().unwrap().trim_start_matches("| ");
        assert!(sources.contains(&format!("\"{case}\"")), "no test makes the case {case:?}");
    }
}
