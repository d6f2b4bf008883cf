//! Docker clients for Python with conventions of their own, through a session and directly at the engine.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::session::{Folder, Session, engine_socket, nobody, task_image};

/// The results of the clients, by name. `network` is for containers that get no identity.
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

/// What tasks of Airflow's `DockerOperator` return and log, and how they fail. `network` is for containers
/// that get no identity.
fn tasks(python: &str, socket: &std::path::Path, network: Option<&str>) -> Value {
    let home = Folder::new("airflow");
    let ran = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/airflow_operator.py"))
        .arg(task_image())
        .args(network)
        .envs(nobody())
        .env("AIRFLOW_HOME", &home.0)
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let last = String::from_utf8_lossy(&ran.stdout).lines().last().map(String::from).unwrap_or_default();
    serde_json::from_str(&last).unwrap()
}

#[test]
fn tasks_of_airflows_docker_operator_have_an_identity() {
    let Ok(python) = std::env::var("KFP_CREDS_TEST_AIRFLOW") else {
        let all = std::env::var("KFP_CREDS_TEST_CLIENTS").is_ok_and(|which| which == "all");
        assert!(
            !all,
            "KFP_CREDS_TEST_AIRFLOW is not set: scripts/setup --all --clients-all writes .work/env, which sets it"
        );
        eprintln!("NOT RUN: Airflow is not on this machine; scripts/setup --all --clients-all installs it");
        return;
    };
    let session = Session::offline("", &["--all"]);
    let bare = tasks(&python, &engine_socket(), Some("none"));
    let expected = json!({
        "good": ["out 2", ["out 1", "out 2"]],
        "all": [["out 1", "out 2"], ["out 1", "out 2"]],
        "streams": ["err", ["out", "err"]],
        "code-3": ["DockerContainerFailedException: Docker container failed: {'StatusCode': 3}", ["out before"]],
        "environment": ["out 1", ["out 1"]],
        "skipped": ["DockerContainerFailedSkipException: Docker container returned exit code [99]. Skipping.", []],
    });
    assert_eq!(bare, expected);
    assert_eq!(tasks(&python, &session.socket, Some("none")), bare);
    let mut attached = tasks(&python, &session.socket, None);
    let identity = attached.as_object_mut().unwrap().remove("identity").unwrap();
    assert_eq!(attached, bare);
    assert_eq!(identity, json!(["out offline-project", ["out offline-project"]]), "{}", session.said());
}
