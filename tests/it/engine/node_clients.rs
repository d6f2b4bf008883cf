//! Docker clients for Node that read streams without `Upgrade: tcp`, through a session and at the engine itself.

use std::process::Command;

use serde_json::Value;

use crate::support::session::{Session, engine_socket, task_image};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What the calls gave, by name. `network` of a container that shall get no identity.
fn calls(socket: &std::path::Path, network: Option<&str>) -> Value {
    let clients = std::env::var("KFP_CREDS_NODE_CLIENTS")
        .expect("KFP_CREDS_NODE_CLIENTS is not set: scripts/setup --all writes .work/env, which sets it");
    let ran = Command::new("node")
        .arg(format!("{ROOT}/tests/node/docker_clients.mjs"))
        .arg(task_image())
        .args(network)
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .env("KFP_CREDS_NODE_CLIENTS", clients)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    serde_json::from_slice(&ran.stdout).unwrap()
}

fn assert_good(calls: &Value) {
    assert!(!calls.to_string().contains("failed: "), "{calls:#}");
    assert_eq!(calls["exec"], serde_json::json!([["out\n", "err\n"], 3]));
    assert_eq!(calls["attach, hijack false"], serde_json::json!([["one\ntwo\n", ""], 0]));
    assert_eq!(calls["run"][1], 4);
}

#[test]
fn dockerode_streams_as_at_the_engine() {
    let session = Session::offline("", &["--all"]);
    let bare = calls(&engine_socket(), Some("none"));
    assert_good(&bare);
    // Containers without a network pass without an identity; the others get one.
    assert_eq!(calls(&session.socket, Some("none")), bare);
    let mut attached = calls(&session.socket, None);
    let testcontainers = attached.as_object_mut().unwrap().remove("testcontainers").unwrap();
    assert_eq!(attached, bare);
    assert_eq!(testcontainers[1], 5, "{testcontainers}");
    assert!(testcontainers[0].as_str().unwrap().contains("inside"), "{testcontainers}");
}
