//! Docker clients for Node that read streams without `Upgrade: tcp`, through a session and directly at the
//! engine.

use std::process::Command;

use serde_json::Value;

use crate::support::session::{Folder, Session, engine_socket, nobody, raw, task_image};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn clients() -> String {
    std::env::var("KFP_CREDS_NODE_CLIENTS")
        .expect("KFP_CREDS_NODE_CLIENTS is not set: scripts/setup --all writes .work/env, which sets it")
}

/// The results of the calls, by name. `network` is for containers that get no identity.
fn calls(socket: &std::path::Path, network: Option<&str>) -> Value {
    let ran = Command::new("node")
        .arg(format!("{ROOT}/tests/node/docker_clients.mjs"))
        .arg(task_image())
        .args(network)
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .env("KFP_CREDS_NODE_CLIENTS", clients())
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

/// The calls with which editors start a dev container and run commands in it.
#[test]
fn a_dev_container_has_the_identity_of_its_session() {
    let (folder, session) = (Folder::new("dev-container"), Session::offline("", &["--all"]));
    let config = serde_json::json!({"image": task_image(), "updateRemoteUserUID": false});
    std::fs::create_dir(folder.0.join(".devcontainer")).unwrap();
    std::fs::write(folder.0.join(".devcontainer/devcontainer.json"), config.to_string()).unwrap();
    std::fs::write(folder.0.join("input.txt"), "of the workspace").unwrap();
    let devcontainer = |action: &str, arguments: &[&str]| {
        let ran = Command::new("node")
            .arg(format!("{}/node_modules/@devcontainers/cli/devcontainer.js", clients()))
            .arg(action)
            .arg("--workspace-folder")
            .arg(&folder.0)
            .args(arguments)
            .env("DOCKER_HOST", format!("unix://{}", session.socket.display()))
            .env("HOME", &folder.0)
            .envs(nobody())
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(ran.status.success(), "devcontainer {action}: {out}{err}{}", session.said());
        out.into_owned()
    };
    let up: Value = serde_json::from_str(devcontainer("up", &["--skip-post-create"]).trim()).unwrap();
    let id = up["containerId"].as_str().unwrap();
    let script = "import google.auth; print(open('input.txt').read(), google.auth.default()[1])";
    let told = devcontainer("exec", &["python3", "-c", script]);
    assert_eq!(told.trim(), "of the workspace offline-project");
    raw(&["rm", "-f", id]);
}

/// The output of a gitlab-ci-local job, whether it passed, and the reported exit code.
fn job(socket: &std::path::Path, project: &Folder, name: &str, more: &[&str]) -> Value {
    let program = std::env::var("KFP_CREDS_GITLAB_CI_LOCAL")
        .expect("KFP_CREDS_GITLAB_CI_LOCAL is not set: scripts/setup --all writes .work/env, which sets it");
    let ran = Command::new("node")
        .args([&program, "--helper-image", &task_image(), name])
        .args(more)
        .current_dir(&project.0)
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .env("HOME", &project.0)
        .env("NO_COLOR", "1")
        .envs(nobody())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    let said: Vec<_> = out.lines().filter_map(|line| line.strip_prefix(&format!("{name} > "))).collect();
    let code = err.lines().find_map(|line| line.rsplit_once(" FAIL ")).map(|(_, code)| code.trim());
    assert!(!said.is_empty(), "{out}\n{err}");
    serde_json::json!([said, ran.status.success(), code])
}

#[test]
fn jobs_of_gitlab_ci_local_have_an_identity() {
    let (project, session) = (Folder::new("gitlab-ci"), Session::offline("", &["--all"]));
    let jobs = format!(
        "default:\n  image: {}\nvariables:\n  OWN: \"1\"\n\
         good:\n  script:\n    - echo \"$OWN of $CI_JOB_NAME\"\n    - cat input.txt\n\
         bad:\n  script:\n    - echo before\n    - exit 3\n    - echo after\n\
         identity:\n  script:\n    - python3 -c 'import google.auth; print(google.auth.default()[1])'\n",
        task_image()
    );
    std::fs::write(project.0.join(".gitlab-ci.yml"), jobs).unwrap();
    std::fs::write(project.0.join("input.txt"), "of the project\n").unwrap();
    let git = |arguments: &[&str]| {
        let person = ["-c", "user.name=a", "-c", "user.email=a@example.com"];
        let mut git = Command::new("git");
        let ran = git.current_dir(&project.0).args(person).args(arguments).output().unwrap();
        assert!(ran.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    };
    git(&["init", "--quiet"]);
    git(&["add", "--all"]);
    git(&["commit", "--quiet", "--message", "jobs"]);
    let socket = engine_socket();
    let bare = ["good", "bad"].map(|name| job(&socket, &project, name, &["--network", "none"]));
    let expected = [
        serde_json::json!([["1 of good", "of the project"], true, null]),
        serde_json::json!([["before"], false, "3"]),
    ];
    assert_eq!(bare, expected);
    assert_eq!(["good", "bad"].map(|name| job(&session.socket, &project, name, &[])), bare);
    let identity = job(&session.socket, &project, "identity", &[]);
    assert_eq!(identity, serde_json::json!([["offline-project"], true, null]), "{}", session.said());
}
