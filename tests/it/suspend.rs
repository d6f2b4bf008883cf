//! A laptop that slept for an hour: the wall clock is an hour ahead, and the monotonic one did not move. With
//! every kind of credential, the next request gets a new token, made from the *current* proof.
//!
//! A preloaded C library moves the program's own clock: it adds the number in a file to the time of day.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::leaks::{ACCOUNT, Local};
use crate::sources_host::FakeMachine;
use crate::support::fake_google::{FakeGoogle, rsa_key};
use crate::support::federation::{AUDIENCE, AWS4, Federation, JWT, Trust};
use crate::support::issuer::Issuer;
use crate::support::session::{Folder, program};

const HOUR: i64 = 3600;
const USER: &str = "dev@example.com";
const MIDDLE: &str = "middle@sa-project.iam.gserviceaccount.com";
const RUNNER: &str = "runner@my-project.iam.gserviceaccount.com";
const AWS: (&str, &str) = ("AKIDEXAMPLE", "canary-aws-secret-key");

/// `CLOCK_AHEAD` names a file with two numbers of seconds, for the time of day and for the monotonic clock. The
/// library reads them again at every call.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static const char *ahead;
__attribute__((constructor)) static void open_it(void) {
    const char *name = getenv("CLOCK_AHEAD");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    void *mapped = file < 0 ? MAP_FAILED : mmap(0, 32, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED) ahead = mapped;
}
int clock_gettime(clockid_t clock, struct timespec *at) {
    int outcome = syscall(SYS_clock_gettime, clock, at);
    if (outcome == 0 && clock == CLOCK_REALTIME && ahead) at->tv_sec += atoll(ahead);
    if (outcome == 0 && clock == CLOCK_MONOTONIC && ahead) at->tv_sec += atoll(ahead + 16);
    return outcome;
}
"#;

/// The library, built once per test process; the next process replaces it. A machine that links Rust programs
/// can compile C.
pub(crate) fn library() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let place = |name: &str| Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let own = |end: &str| place(&format!("clock-{}.{end}", std::process::id()));
        fs::write(own("c"), CLOCK).unwrap();
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([own("so"), own("c")])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        fs::remove_file(own("c")).unwrap();
        fs::rename(own("so"), place("clock.so")).unwrap();
        place("clock.so")
    })
}

/// One kind of credential, valid before and after the sleep.
struct Kind {
    name: &'static str,
    config: String,
    variables: Vec<(&'static str, String)>,
    /// How often the upstream or command that this kind needs for each token was asked.
    asked: Box<dyn Fn(&Fixture) -> usize>,
    /// The principal of the token after the sleep, if the fake knows it.
    then: Option<String>,
}

struct Fixture {
    fake: Federation,
    machine: FakeMachine,
    folder: Folder,
    issuer: Issuer,
}

/// Moves the clocks of a program with the [`library`]. The file is written in place, because it is mapped; blanks
/// after a number are ignored.
pub(crate) fn set_clocks(file: &Path, wall: i64, monotonic: i64) {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(file).unwrap();
    file.write_all_at(format!("{wall:<15}\n{monotonic:<15}\n").as_bytes(), 0).unwrap();
}

impl Fixture {
    fn new() -> Self {
        let (fake, issuer) = (Federation::start(), Issuer::es256("https://tokens.example"));
        fake.trust(AUDIENCE, &issuer, &[]);
        for subject in ["before", "after"] {
            fake.google.allow(&principal(subject), RUNNER);
        }
        for (caller, target) in [(USER, MIDDLE), (MIDDLE, RUNNER), (USER, RUNNER)] {
            fake.google.allow(caller, target);
        }
        let fixture = Self { fake, machine: FakeMachine::start(), folder: Folder::new("suspend"), issuer };
        fixture.ahead(0);
        fixture.prove("before");
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.0.join(name)
    }

    fn google(&self) -> &FakeGoogle {
        &self.fake.google
    }

    fn ahead(&self, seconds: i64) {
        set_clocks(&self.path("ahead"), seconds, 0);
    }

    /// The current subject token for every source. It lives for five minutes from now on.
    fn prove(&self, subject: &str) {
        let token = self.issuer.token(subject, &format!("https:{AUDIENCE}"), 300, &json!({}));
        fs::write(self.path("token"), &token).unwrap();
        self.fake.url_token(&token);
    }

    /// Moves every clock except the monotonic one ahead by an hour.
    fn sleep(&self) {
        self.ahead(HOUR);
        self.google().clock_off_by(HOUR, true);
        self.fake.clock_off_by(HOUR);
        self.prove("after");
    }

    /// A program that records each run and prints `answer`, with this run's `$NUMBER` and `$END`.
    fn command(&self, name: &str, answer: &str) -> String {
        let (path, runs, ahead) = (self.path(name), self.path("runs"), self.path("ahead"));
        // A process that sees the moved clock itself has the library in `LD_PRELOAD`.
        let text = format!(
            "#!/bin/sh\necho run >> {runs}\nNUMBER=$(wc -l < {runs})\nNOW=$(date +%s)\n\
             [ -n \"$LD_PRELOAD\" ] || NOW=$(( NOW + $(head -n 1 {ahead}) ))\nEND=$(( NOW + 1800 ))\n\
             cat <<END_OF_IT\n{answer}\nEND_OF_IT\n",
            runs = runs.display(),
            ahead = ahead.display(),
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.path("runs")).unwrap_or_default().lines().count()
    }

    /// The config that names this credential file.
    fn file(&self, text: &str) -> String {
        let path = self.path("credential.json");
        fs::write(&path, text).unwrap();
        let token = self.google().token_uri();
        format!("credentials_file = {path:?}\n[endpoints]\ntoken = \"{token}\"\n")
    }

    fn external(&self, source: &Value, more: &Value) -> String {
        let mut file = json!({
            "type": "external_account", "audience": AUDIENCE, "subject_token_type": JWT,
            "token_url": format!("{}/v1/token", self.fake.url()), "credential_source": source,
        });
        for (name, value) in more.as_object().unwrap() {
            file[name] = value.clone();
        }
        self.file(&file.to_string())
    }

    fn impersonating(&self, account: &str) -> Value {
        let base = self.google().url();
        json!(format!("{base}/v1/projects/-/serviceAccounts/{account}:generateAccessToken"))
    }

    fn impersonated(&self, account: &str, source: &str, delegates: &[&str]) -> String {
        json!({
            "type": "impersonated_service_account", "delegates": delegates,
            "service_account_impersonation_url": self.impersonating(account),
            "source_credentials": serde_json::from_str::<Value>(source).unwrap(),
        })
        .to_string()
    }
}

fn principal(subject: &str) -> String {
    let pool = AUDIENCE.split("/providers/").next().unwrap();
    format!("principal:{pool}/subject/{subject}")
}

fn at_google(fixture: &Fixture) -> usize {
    fixture.google().calls().len()
}

fn at_sts(fixture: &Fixture) -> usize {
    fixture.fake.count("/v1/token")
}

/// Token and `expires_in`; the first reply already has to have both.
fn token(server: &Local, name: &str) -> (String, i64) {
    let (head, body) = server.get(&format!("{ACCOUNT}/token"));
    assert!(head.starts_with("HTTP/1.1 200"), "{name}: {head}\n{body}");
    let reply: Value = serde_json::from_str(&body).unwrap();
    (reply["access_token"].as_str().unwrap().into(), reply["expires_in"].as_i64().unwrap())
}

/// Each kind has a fixture of its own.
fn survives(make: impl Fn(&Fixture) -> Kind) {
    let fixture = Fixture::new();
    let kind = make(&fixture);
    let (name, config) = (kind.name, fixture.path("test.toml"));
    fs::write(&config, &kind.config).unwrap();
    let mut command = program(&fixture.folder.0);
    command.env("LD_PRELOAD", library()).env("CLOCK_AHEAD", fixture.path("ahead"));
    command.envs(kind.variables.iter().map(|(name, value)| (*name, value)));
    let server = Local::start(command, &["--config", config.to_str().unwrap()]);
    let (first, life) = token(&server, name);
    assert!((1..=HOUR).contains(&life), "{name}: {life}");
    let asked = (kind.asked)(&fixture);
    assert_eq!(token(&server, name).0, first, "{name}: it is kept while it is good");
    assert_eq!((kind.asked)(&fixture), asked, "{name}");

    fixture.sleep();
    let (second, life) = token(&server, name);
    assert!((1..=HOUR).contains(&life), "{name}: {life} s after the sleep");
    assert_ne!(second, first, "{name}: it ended while the machine slept");
    assert!((kind.asked)(&fixture) > asked, "{name}: made anew");
    if let Some(then) = kind.then {
        assert_eq!(
            fixture.google().minted(&second).unwrap().email,
            then,
            "{name}: made from the current proof"
        );
    }
}

fn federated(name: &'static str, config: String) -> Kind {
    Kind { name, config, variables: vec![], asked: Box::new(at_sts), then: Some(principal("after")) }
}

fn of_google(name: &'static str, config: String, then: &str) -> Kind {
    Kind { name, config, variables: vec![], asked: Box::new(at_google), then: Some(then.into()) }
}

#[test]
fn keys_and_logins_survive_a_suspend() {
    survives(|fixture| {
        let file = fixture.google().service_account(RUNNER, rsa_key());
        of_google("service_account", fixture.file(&file), RUNNER)
    });
    survives(|fixture| of_google("authorized_user", fixture.file(&fixture.google().user(USER)), USER));
    survives(|fixture| {
        let file = fixture.file(&fixture.google().workforce("person"));
        of_google("external_account_authorized_user", file, "person")
    });
}

#[test]
fn impersonation_chains_survive_a_suspend() {
    survives(|fixture| {
        let inner = fixture.impersonated(MIDDLE, &fixture.google().user(USER), &[]);
        of_google("nested", fixture.file(&fixture.impersonated(RUNNER, &inner, &[])), RUNNER)
    });
    survives(|fixture| {
        let by = format!("projects/-/serviceAccounts/{MIDDLE}");
        let file = fixture.impersonated(RUNNER, &fixture.google().user(USER), &[&by]);
        of_google("delegates", fixture.file(&file), RUNNER)
    });
}

#[test]
fn external_accounts_survive_a_suspend() {
    survives(|fixture| {
        let source = json!({"file": fixture.path("token")});
        federated("file", fixture.external(&source, &json!({})))
    });
    survives(|fixture| {
        let url = format!("{}/url/text", fixture.fake.url());
        let source = json!({"url": url, "headers": {"X-Wanted": "canary-header-value"}});
        federated("url", fixture.external(&source, &json!({})))
    });
    survives(|fixture| {
        let answer = format!(
            r#"{{"version":1,"success":true,"token_type":"{JWT}","id_token":"$(cat {})"}}"#,
            fixture.path("token").display()
        );
        let source = json!({"executable": {"command": fixture.command("bring", &answer)}});
        let variables = vec![("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1".into())];
        Kind { variables, ..federated("executable", fixture.external(&source, &json!({}))) }
    });
    survives(|fixture| {
        let trust =
            Trust::Aws { id: AWS.0.into(), secret: AWS.1.into(), session: None, region: "eu-west-1".into() };
        fixture.fake.provider(AUDIENCE, trust, &[]);
        let config = fixture.external(&fixture.fake.aws(), &json!({"subject_token_type": AWS4}));
        let variables =
            [("AWS_ACCESS_KEY_ID", AWS.0), ("AWS_SECRET_ACCESS_KEY", AWS.1), ("AWS_REGION", "eu-west-1")];
        let variables = variables.map(|(name, value)| (name, value.to_owned())).into();
        Kind { variables, then: None, ..federated("aws", config) }
    });
    survives(|fixture| {
        let source = json!({"file": fixture.path("token")});
        let more = json!({"service_account_impersonation_url": fixture.impersonating(RUNNER)});
        Kind {
            then: Some(RUNNER.into()),
            ..federated("file, impersonated", fixture.external(&source, &more))
        }
    });
}

#[test]
fn sources_of_the_host_survive_a_suspend() {
    survives(|fixture| {
        let answer = r#"{"version":1,"success":true,"token_type":"urn:ietf:params:oauth:token-type:access_token","access_token":"ya29.brought-$NUMBER","expiration_time":$END}"#;
        let config = format!("credentials = {{ exec = [\"{}\"] }}\n", fixture.command("bring", answer));
        Kind { name: "exec", config, variables: vec![], asked: Box::new(Fixture::runs), then: None }
    });
    survives(|fixture| {
        let variables =
            vec![("GCE_METADATA_HOST", fixture.machine.at.to_string()), ("NO_GCE_CHECK", "false".into())];
        let asked = Box::new(|fixture: &Fixture| fixture.machine.asked());
        Kind { name: "machine", config: "credentials = \"metadata\"\n".into(), variables, asked, then: None }
    });
    survives(|fixture| {
        let configuration = fixture.path("sdk/configurations/config_default");
        fs::create_dir_all(configuration.parent().unwrap()).unwrap();
        fs::write(configuration, "[core]\naccount = g@example.com\n").unwrap();
        let answer = r#"{"credential": {"access_token": "ya29.of-gcloud-$NUMBER", "token_expiry": "$(date -u -d "@$END" +%Y-%m-%dT%H:%M:%SZ)"}}"#;
        fixture.command("gcloud", answer);
        let path = format!("{}:{}", fixture.folder.0.display(), std::env::var("PATH").unwrap());
        let variables = vec![("PATH", path), ("CLOUDSDK_CONFIG", fixture.path("sdk").display().to_string())];
        Kind {
            name: "gcloud",
            config: "credentials = \"gcloud\"\n".into(),
            variables,
            asked: Box::new(Fixture::runs),
            then: None,
        }
    });
}
