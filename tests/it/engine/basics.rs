//! The one path through everything.

use std::time::Duration;

use crate::support::session::{Folder, Session, claims, networks_left, program, raw, task_image};

const TOKEN: &str = "curl -s -H Metadata-Flavor:Google \
    http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token";

#[test]
fn a_container_gets_a_token_with_its_first_instruction() {
    let session = Session::offline("", &["--all"]);
    let image = task_image();
    let container = session.ok(&["create", &image, "sh", "-c", TOKEN]);
    let answer = session.ok(&["start", "-a", &container]);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let claims = claims(answer["access_token"].as_str().unwrap());
    assert_eq!(claims["container"], container);
    assert_eq!(answer["token_type"], "Bearer");
    let said = session.wait_for("ended", Duration::from_secs(5));
    assert!(said.contains(&container[..12]) && said.contains("exit code 0"), "{said}");
    session.ok(&["rm", &container]);
    let (code, said) = session.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("session ended 1 attached, 1 ended, 1 token outstanding"), "{said}");
}

#[test]
fn nothing_is_left_after_a_session() {
    let session = Session::offline("", &["--all"]);
    let name = session.socket.file_stem().unwrap().to_string_lossy().into_owned();
    session.ok(&["run", "--rm", &task_image(), "true"]);
    let (socket, control) = (session.socket.clone(), session.socket.with_extension("ctl"));
    assert!(socket.exists() && control.exists());
    session.end();
    let label = format!("label=kfp-creds.session={name}");
    assert_eq!(raw(&["ps", "-aq", "--filter", &label]), "");
    assert_eq!(networks_left(&label), [""; 0]);
    // While the engine keeps the network, the socket stays, so that the next start finds that no session
    // answers there.
    assert!(
        !control.exists()
            && (!socket.exists() || !raw(&["network", "ls", "-q", "--filter", &label]).is_empty())
    );
}

#[test]
fn check_runs_every_step_and_leaves_nothing() {
    let folder = Folder::new("check");
    let out = program(&folder.0).args(["check", "--offline"]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let looks: Vec<&str> = text.lines().map(|line| &line[..15]).map(str::trim).collect();
    let all = [
        "config",
        "engine",
        "rights",
        "network",
        "images",
        "routes",
        "shell",
        "credential",
        "clock",
        "token",
        "project",
        "container",
    ];
    // A `fix` line may advise on other sessions and images of this engine, or on variables of the tests' shell.
    let found: Vec<&str> = looks.iter().filter_map(|look| look.split_whitespace().nth(1)).collect();
    let found: Vec<&str> = found.into_iter().filter(|look| *look != "fix").collect();
    assert_eq!(found, all, "{text}{}", String::from_utf8_lossy(&out.stderr));
    assert!(!text.contains("!!") && text.contains("ok  token"), "{text}");
    assert!(out.status.success() && text.contains("got a token at"), "{text}");
}

#[test]
fn check_names_what_is_missing_and_the_fix() {
    let folder = Folder::new("check");
    let out = program(&folder.0).arg("check").output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(66), "{text}");
    let line = text.lines().find(|line| line.starts_with("!!")).unwrap();
    assert!(line.contains("gcloud auth application-default login"), "{text}");
}
