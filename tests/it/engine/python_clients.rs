//! Docker clients for Python with conventions of their own, through a session and at the engine itself.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::session::{Session, engine_socket, nobody, task_image};

/// What the clients gave, by name. `network` of containers that shall get no identity.
fn calls(socket: &std::path::Path, network: Option<&str>) -> Value {
    let python = std::env::var("KFP_CREDS_TEST_DOCKER_CLIENTS").expect(
        "KFP_CREDS_TEST_DOCKER_CLIENTS is not set: scripts/setup --all writes .work/env, which sets it",
    );
    let ran = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/docker_clients.py"))
        .arg(task_image())
        .args(network)
        .envs(nobody())
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    serde_json::from_slice(&ran.stdout).unwrap()
}

#[test]
fn testcontainers_and_python_on_whales_run_as_at_the_engine() {
    let session = Session::offline("", &["--all"]);
    let bare = calls(&engine_socket(), Some("none"));
    assert_eq!(bare["testcontainers"], json!([3, "1\n", ["begun\n", ""], "text"]), "{bare}");
    let streams = json!([["stderr", "err\n"], ["stdout", "out\n"]]);
    assert_eq!(bare["python-on-whales"], json!(["out", streams, 7, "inside", "running"]), "{bare}");
    // Containers without a network pass without an identity; the others get one.
    assert_eq!(calls(&session.socket, Some("none")), bare);
    assert_eq!(calls(&session.socket, None), bare);
    let said = session.said();
    assert_eq!(said.lines().filter(|line| line.contains(" as default  at ")).count(), 5, "{said}");
}
