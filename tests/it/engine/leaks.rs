//! Neither the program's output nor what the engine keeps and shows contains a secret, with real containers
//! that get real answers. `crate::leaks` is the part without an engine.

use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::leaks::{LOUD, files, secrets_of};
use crate::support::canary::Canaries;
use crate::support::fake_google::{Failure, FakeGoogle, rsa_key};
use crate::support::proxy_fixture::{self, call};
use crate::support::session::{Folder, Session, docker_at, engine_socket, raw, task_image};

const KEY_ACCOUNT: &str = "loader@sa-project.iam.gserviceaccount.com";
const PERSON: &str = "somebody@example.com";
const RUNNER: &str = "runner@sa-project.iam.gserviceaccount.com";

/// Requests every token, prints status codes and the bodies of refusals, and stores no token.
const ASK: &str = r#"
    at=http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default
    for path in token "identity?audience=https://$(date +%s%N).example" '?recursive=true'; do
        code=$(curl -s -m 5 -o /tmp/answer -w '%{http_code}' -H Metadata-Flavor:Google "$at/$path")
        echo $code
        [ $code = 200 ] || cat /tmp/answer
    done
    rm /tmp/answer"#;

/// Sends the user's own secrets in requests that pass, fail and are refused.
fn with_secrets_of_the_user(session: &Session) -> Canaries {
    let mut canaries = Canaries::default();
    let auth = "canary-registry-login-of-the-user";
    let variable = "canary-variable-of-the-user";
    let key = "canary-key-in-a-body-of-the-user";
    for (what, secret) in [("X-Registry-Auth", auth), ("a variable", variable), ("a body", key)] {
        canaries.add(what, secret);
    }
    let mut replies = String::new();
    for line in [
        "POST /v1.41/images/create?fromImage=127.0.0.1:1/none/none&tag=x",
        "POST /v1.41/images/create?fromImage=kfp-creds-relay&tag=x",
        "POST //images/create?fromImage=x",
        "POST /v1.41/images/127.0.0.1:1/none/push?tag=x",
    ] {
        let request = format!(
            "{line} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nX-Registry-Auth: {auth}\r\nX-Registry-Config: {auth}\r\nContent-Length: 0\r\n\r\n"
        );
        replies += &proxy_fixture::raw(&session.socket, request);
    }
    let image = task_image();
    for body in [
        json!({"Image": image, "Env": [format!("PASSWORD={variable}")], "Cmd": [key]}).to_string(),
        json!({"Image": image, "Env": format!("PASSWORD={variable}")}).to_string(),
        json!({"Image": image, "Env": [variable], "HostConfig": {"NetworkMode": "kfp-creds"}, "Cmd": key})
            .to_string(),
        format!(r#"{{"{key}":1,"{key}":2}}"#),
        format!(r#"{{"Image":"{image}","Env":["PASSWORD={variable}""#),
        format!("{{\"Image\":\"{image}\"}} {key}"),
    ] {
        let (_, answer) = call(&session.socket, "POST /v1.41/containers/create", &body);
        let made: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
        if let Some(id) = made["Id"].as_str() {
            raw(&["rm", "-f", id]);
        }
        replies += &answer;
    }
    canaries.assert_absent("answers of the proxy", &replies);
    canaries
}

/// The container's output when Google answers, and when it fails.
fn asked_well_and_in_trouble(session: &Session, google: &FakeGoogle, container: &str) -> String {
    let mut shown = session.ok(&["start", "-a", container]);
    assert_eq!(shown, "200\n200\n200");
    // Three failures for each call, one of which is made ahead, so no failure of the run before is left.
    (0..9).for_each(|_| google.fail(Failure::html_503()));
    let refused = session.ok(&["start", "-a", container]);
    assert!(refused.contains("404\n"), "the failure was not met: {refused}");
    shown += &refused;
    (0..9).for_each(|_| google.unfail());
    shown
}

/// The engine's output about the container, our relay, its image and its network.
fn shown_by_the_engine(name: &str, container: &str) -> String {
    let mut shown = String::new();
    for line in [
        vec!["inspect", container],
        vec!["logs", container],
        vec!["diff", container],
        vec!["inspect", &format!("kfp-creds-relay-{name}")],
        vec!["logs", &format!("kfp-creds-relay-{name}")],
        vec!["top", &format!("kfp-creds-relay-{name}")],
        vec!["events", "--since", "60s", "--until", "0s", "--filter", &format!("container={container}")],
    ] {
        let out = docker_at(&engine_socket(), &line);
        shown += &(String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr));
    }
    let image = raw(&["inspect", "-f", "{{.Image}}", &format!("kfp-creds-relay-{name}")]);
    shown += &raw(&["image", "inspect", &image]);
    shown += &raw(&["history", "--no-trunc", &image]);
    let network = raw(&["network", "ls", "-q", "--filter", &format!("label=kfp-creds.session={name}")]);
    shown += &raw(&["network", "inspect", &network]);
    let copied = docker_at(&engine_socket(), &["cp", &format!("{container}:/etc/hosts"), "-"]);
    shown += &String::from_utf8_lossy(&copied.stdout);
    shown
}

/// Each text contains its planted value, so it really was searched.
fn were_searched(places: &[(&str, &String, &String)]) {
    for (place, text, planted) in places {
        let mut canary = Canaries::default();
        canary.add("planted", planted);
        assert!(!canary.found_in(text).is_empty(), "{place} was not searched: {text}");
    }
}

fn page_of(session: &Session) -> String {
    let page = Command::new("curl").args(["-s", session.page.as_deref().unwrap()]).output().unwrap();
    String::from_utf8(page.stdout).unwrap()
}

/// A session with this credential file, used by a container; searches all that was written.
fn session_leaks_nothing(google: &FakeGoogle, file: &str, arguments: &[&str]) {
    let folder = Folder::new("leaks");
    let (config, credential) = files(&folder.0, google, file);
    let audit = folder.0.join("audit.jsonl");
    let session = Session::start(
        "",
        &[&["--all", "--config", &config], arguments].concat(),
        &[
            ("GOOGLE_APPLICATION_CREDENTIALS", &credential),
            ("KFP_CREDS_AUDIT_FILE", audit.to_str().unwrap()),
            ("KFP_CREDS_LOG", LOUD),
            ("RUST_BACKTRACE", "full"),
        ],
    );
    let name = session.socket.file_stem().unwrap().to_string_lossy().into_owned();
    let planted = ["name", "label", "output"].map(|what| format!("canary-planted-{what}-{name}"));
    let [called, label, output] = &planted;
    let script = format!("echo {output} >&2; {}", ASK.trim());
    let made = [
        "create",
        "--name",
        called,
        "--label",
        &format!("planted={label}"),
        &task_image(),
        "sh",
        "-c",
        &script,
    ];
    let container = session.ok(&made);
    let shown =
        asked_well_and_in_trouble(&session, google, &container) + &shown_by_the_engine(&name, &container);
    let users = with_secrets_of_the_user(&session);
    let control = session.socket.with_extension("ctl");
    let [status, metrics] = ["GET /status", "GET /metrics"].map(|what| call(&control, what, "").1);
    let page = page_of(&session);
    session.ok(&["rm", "-f", &container]);
    session.wait_for("ended", Duration::from_secs(5));
    let (_, said) = session.end();
    let written = std::fs::read_to_string(&audit).unwrap();
    assert!(metrics.contains("kfp_creds_") && page.contains("<html"), "{metrics}{page}");
    were_searched(&[
        ("docker inspect", &shown, label),
        ("docker logs", &shown, output),
        ("what the session said", &said, called),
        ("the audit log", &written, called),
        ("the status", &status, called),
    ]);
    assert!(said.contains("TRACE ") || said.contains("DEBUG "), "the log is not on:\n{said}");
    let canaries = secrets_of(google, file);
    canaries.assert_absent("what the engine shows", &shown);
    for (place, text) in [
        ("what the session said", &said),
        ("the audit log", &written),
        ("the status", &status),
        ("the metrics", &metrics),
        ("the page", &page),
    ] {
        canaries.assert_absent(place, text);
        users.assert_absent(place, text);
    }
}

#[test]
fn a_session_with_a_key_leaks_nothing() {
    let google = FakeGoogle::start();
    let file = google.service_account(KEY_ACCOUNT, rsa_key());
    session_leaks_nothing(&google, &file, &[]);
}

#[test]
fn a_session_that_impersonates_leaks_nothing() {
    let google = FakeGoogle::start();
    let file = google.user(PERSON);
    google.allow(PERSON, RUNNER);
    session_leaks_nothing(&google, &file, &["--impersonate", RUNNER]);
}

#[test]
fn an_offline_session_leaks_nothing() {
    let session = Session::start("", &["--all", "--offline"], &[("KFP_CREDS_LOG", LOUD)]);
    // The test gets the token through the container's stdout, which is not the program's output.
    let print = "curl -s -H Metadata-Flavor:Google \
        http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token";
    let answer = session.ok(&["run", "--rm", &task_image(), "sh", "-c", print]);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let mut canaries = Canaries::default();
    canaries.add("an offline token", answer["access_token"].as_str().unwrap());
    let (_, said) = session.end();
    assert!(said.contains("attached"), "{said}");
    canaries.assert_absent("what the session said", &said);
}
