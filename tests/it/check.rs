//! What `check` reports about an engine and a Google that fail on demand.

use std::path::Path;
use std::process::Command;

use crate::minting::{KEY_ACCOUNT, RUNNER, Scratch};
use crate::support::fake_engine::{Act, FakeEngine};
use crate::support::fake_google::{FakeGoogle, rsa_key};
use crate::support::session::{Folder, program};

/// An engine with one image, which has variables that keep clients from asking us. It refuses paths that
/// contain `failing`.
fn engine(folder: &Path, failing: &'static str) -> FakeEngine {
    FakeEngine::start(folder, move |seen| {
        let path = seen.line.split(' ').nth(1).unwrap();
        let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        let version = format!(r#"{{"Version":"20.10.24","ApiVersion":"1.41","Os":"linux","Arch":"{arch}"}}"#);
        let image = r#"{"Id":"sha256:1","ParentId":"","RepoTags":["shy:1"],"RepoDigests":[],"Created":1,"Size":1,
            "SharedSize":1,"Labels":{},"Containers":0}"#;
        let (status, body) = match path {
            _ if !failing.is_empty() && path.contains(failing) => {
                ("500 Internal Server Error", r#"{"message":"something of its own"}"#)
            }
            _ if path.ends_with("/version") => ("200 OK", version.as_str()),
            _ if path.contains("/images/json") => ("200 OK", &*format!("[{image}]")),
            _ if path.contains("/images/") => {
                ("200 OK", r#"{"Id":"sha256:1","Config":{"Env":["PATH=/bin","NO_GCE_CHECK=true"]}}"#)
            }
            _ if path.ends_with("/networks/create") => ("201 Created", r#"{"Id":"made","Warning":""}"#),
            _ if seen.is("DELETE") => ("200 OK", ""),
            _ if path.contains("/networks") => ("200 OK", "[]"),
            _ => ("404 Not Found", r#"{"message":"no such path"}"#),
        };
        let head = "Content-Type: application/json\r\nConnection: close\r\nContent-Length:";
        let reply = format!("HTTP/1.1 {status}\r\n{head} {}\r\n\r\n{body}", body.len());
        vec![Act::Send(reply.into_bytes())]
    })
}

/// Runs `check` with a service account key and these other identities: exit code and output.
fn check(google: &FakeGoogle, more: &str, change: impl FnOnce(&mut Command)) -> (Option<i32>, String) {
    check_at("", google, more, change)
}

fn check_at(
    failing: &'static str,
    google: &FakeGoogle,
    more: &str,
    change: impl FnOnce(&mut Command),
) -> (Option<i32>, String) {
    let (folder, scratch) = (Folder::new("check"), Scratch::new());
    let engine = engine(&folder.0, failing);
    let key = scratch.write("key.json", &google.service_account(KEY_ACCOUNT, rsa_key()));
    let (token, iam) = (google.token_uri(), google.url());
    let config = format!("[endpoints]\ntoken = \"{token}\"\niam_credentials = \"{iam}\"\n{more}");
    std::fs::write(folder.0.join("kfp-creds.toml"), config).unwrap();
    let mut command = program(&folder.0);
    command.env_remove("NO_GCE_CHECK").env("XDG_RUNTIME_DIR", &folder.0);
    command.env("DOCKER_HOST", format!("unix://{}", engine.socket.display()));
    command.args(["check", "--config", "kfp-creds.toml", "--credentials-file", key.to_str().unwrap()]);
    change(&mut command);
    let out = command.output().unwrap();
    (out.status.code(), String::from_utf8([out.stdout, out.stderr].concat()).unwrap())
}

/// The line of one step of `check`, and the line that says how to fix it.
fn look<'a>(text: &'a str, mark: &str, what: &str) -> [&'a str; 2] {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("{mark}  {what}")));
    [lines.next().unwrap_or_else(|| panic!("no {mark} {what}:\n{text}")), lines.next().unwrap_or_default()]
}

#[test]
fn check_finds_a_missing_role_and_an_overriding_image() {
    let more = format!("[identity.loader]\nservice_account = \"{RUNNER}\"\n");
    let google = FakeGoogle::start();
    google.allow("another@example.com", RUNNER);
    let (code, text) = check(&google, &more, |_| {});
    assert_eq!(code, Some(66), "{text}");
    let [found, fix] = look(&text, "!!", "token");
    assert!(found.contains(&format!("{KEY_ACCOUNT} may not impersonate {RUNNER}")), "{text}");
    let bind = format!(
        "gcloud iam service-accounts add-iam-policy-binding {RUNNER} --role=roles/iam.serviceAccountTokenCreator \
         --member='serviceAccount:{KEY_ACCOUNT}'"
    );
    assert!(fix.starts_with("    fix ") && fix.ends_with(&bind), "{text}");
    let [found, fix] = look(&text, "??", "images");
    assert!(
        found.ends_with("shy:1 sets NO_GCE_CHECK: its clients might not ask the metadata server"),
        "{text}"
    );
    assert!(fix.contains("ENV NO_GCE_CHECK= in its Dockerfile"), "{text}");
    look(&text, "ok", "network");
    assert!(text.contains("--  container   not tried: fix the above first\n"), "{text}");
}

#[test]
fn check_reports_an_error_of_the_engine() {
    for (failing, line) in [("/networks", "network"), ("/images/json", "images")] {
        let (code, text) = check_at(failing, &FakeGoogle::start(), "", |_| {});
        assert_eq!(code, Some(69), "{text}");
        let [found, fix] = look(&text, "!!", line);
        assert!(found.contains("something of its own"), "{text}");
        assert!(fix.starts_with("    fix ") && fix.contains("journalctl -u docker"), "{text}");
    }
}

#[test]
fn check_reports_a_wrong_clock() {
    let google = FakeGoogle::start();
    google.clock_off_by(700, true);
    let (code, text) = check(&google, "", |_| {});
    let [found, fix] = look(&text, "!!", "clock");
    assert!(code != Some(0) && found.contains("s behind Google's: what is signed here is refused"), "{text}");
    assert!(fix.contains("timedatectl set-ntp true"), "{text}");
}

#[test]
fn check_reports_a_missing_engine() {
    for host in ["unix:///no/such/engine.sock", "tcp://127.0.0.1:1", "nonsense"] {
        let (code, text) = check(&FakeGoogle::start(), "", |command| {
            command.env("DOCKER_HOST", host);
        });
        assert_eq!(code, Some(69), "{text}");
        let [_, fix] = look(&text, "!!", "engine");
        assert!(fix.contains("unset DOCKER_HOST"), "{host}\n{text}");
        look(&text, "ok", "token");
        look(&text, "--", "container");
    }
}
