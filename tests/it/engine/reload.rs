//! The config file changes while a session runs: what applies at once, what waits, and what never applies.

use std::time::Duration;

use serde_json::Value;

use crate::support::raw::until;
use crate::support::session::{Session, program, raw, task_image};

const SOON: Duration = Duration::from_secs(10);

fn other(name: &str) -> String {
    format!("default = \"{name}\"\nall = true\n[identity.{name}]\n")
}

/// Rewrites the session's config.
fn rewrite(session: &Session, text: &str) {
    std::fs::write(session.folder.0.join("kfp-creds.toml"), text).unwrap();
}

fn started(session: &Session) -> String {
    session.ok(&["run", "-d", "--rm", &task_image(), "sleep", "120"])
}

/// The identity of a container, from `status`.
fn identity(session: &Session, container: &str) -> String {
    let name = session.socket.file_stem().unwrap().to_string_lossy().into_owned();
    let out = program(&session.folder.0).args(["status", "--json", "--session", &name]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    let all: Value =
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {said}{}", session.said()));
    let rows = all[0]["leases"].as_array().unwrap();
    let row = rows.iter().find(|row| row["container"] == container).unwrap_or_else(|| panic!("{all:#}"));
    format!("{} by {}", row["identity"].as_str().unwrap(), row["by"].as_str().unwrap())
}

#[test]
fn new_rules_apply_to_new_containers_and_broken_ones_do_not() {
    let session = Session::offline(&other("first"), &["--config", "kfp-creds.toml"]);
    let before = started(&session);
    rewrite(&session, &format!("{}[[rule]]\nimage = \"*\"\nidentity = \"second\"\n", other("second")));
    let line = session.wait_for("was read again", SOON);
    assert!(
        line.contains("1 rules, 2 identities") && line.contains("1 that run keep what they have"),
        "{line}"
    );
    let after = started(&session);
    assert_eq!(identity(&session, &before), "first by default", "a live lease is not touched");
    assert_eq!(identity(&session, &after), "second by rule 1");
    let name = session.socket.file_stem().unwrap().to_string_lossy().into_owned();
    let explained =
        program(&session.folder.0).args(["explain", &before, "--config", "kfp-creds.toml"]).output();
    let explained = String::from_utf8(explained.unwrap().stdout).unwrap();
    assert!(
        explained.contains("the rules changed: until it ends it has identity first (by default)"),
        "{explained}{name}"
    );

    rewrite(&session, "default = \"nobody\"\nnonsense = 1\n");
    let line = session.wait_for("what was read before stays", SOON);
    assert!(line.contains("unknown key `nonsense`"), "{line}");
    let still = started(&session);
    assert_eq!(identity(&session, &still), "second by rule 1");

    rewrite(&session, &format!("zone = \"europe-west1-b\"\n{}", other("third")));
    let line = session.wait_for("zone counts from the next session on", SOON);
    assert!(line.contains("was read again"), "{line}");
    let last = started(&session);
    assert_eq!(identity(&session, &last), "third by default");
    for container in [before, after, still, last] {
        session.ok(&["rm", "-f", &container]);
    }
}

#[test]
fn a_projects_file_applies_once_its_content_is_trusted() {
    let session = Session::offline(&other("first"), &[]);
    rewrite(&session, &other("second"));
    session.wait_for("the session reads it again once you trust it", SOON);
    std::thread::sleep(Duration::from_secs(3));
    let untrusted = started(&session);
    assert_eq!(identity(&session, &untrusted), "first by default");
    assert_eq!(session.said().matches("once you trust it").count(), 1, "said once:\n{}", session.said());
    let out = program(&session.folder.0).args(["config", "trust"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    session.wait_for("was read again", SOON);
    let trusted = started(&session);
    assert_eq!(identity(&session, &trusted), "second by default");
    session.ok(&["rm", "-f", &untrusted, &trusted]);
}

#[test]
fn a_file_that_a_container_could_write_is_not_read_again() {
    let session = Session::offline(&other("first"), &["--config", "kfp-creds.toml"]);
    let folder = session.folder.0.display().to_string();
    // The container that wrote the file is gone when the session notices the change.
    let script = "echo 'default = \"admin\"\nall = true\n[identity.admin]' >/x/kfp-creds.toml";
    session.ok(&["run", "--rm", "-v", &format!("{folder}:/x"), &task_image(), "sh", "-c", script]);
    let line = session.wait_for("is not read again: a container can write", SOON);
    assert!(line.contains(&folder) && line.contains("what was read before stays"), "{line}");
    let container = started(&session);
    assert_eq!(identity(&session, &container), "first by default");
    session.ok(&["rm", "-f", &container]);
    assert!(!session.said().contains("was read again"), "{}", session.said());
}

/// These containers and volumes were not created through the session; only the engine knows them.
#[test]
fn a_config_that_other_containers_can_write_is_not_reloaded() {
    let session = Session::offline(&other("first"), &["--config", "kfp-creds.toml"]);
    let folder = session.folder.0.display().to_string();
    let bind = format!("{folder}:/x");
    let beside = raw(&["create", "-v", &bind, &task_image(), "true"]);
    let refused = |times: usize| {
        until("it is not read again", SOON, || {
            session.said().matches("is not read again: a container can write").count() == times
        });
    };
    rewrite(&session, &other("second"));
    refused(1);
    raw(&["rm", &beside]);
    // No container has the volume mounted, but anyone who names it can write.
    let volume = format!("kc-config-{}", std::process::id());
    let device = format!("device={folder}");
    raw(&["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", &device, &volume]);
    rewrite(&session, &other("the-third"));
    refused(2);
    raw(&["volume", "rm", &volume]);
    assert!(!session.said().contains("was read again"), "{}", session.said());
    rewrite(&session, &other("fourth"));
    session.wait_for("was read again", SOON);
    let container = started(&session);
    assert_eq!(identity(&session, &container), "fourth by default");
    session.ok(&["rm", "-f", &container]);
}

#[test]
fn a_read_only_mount_of_the_config_allows_a_reload() {
    let session = Session::offline(&other("first"), &["--config", "kfp-creds.toml"]);
    let bind = format!("{}:/x:ro", session.folder.0.display());
    let container = session.ok(&["run", "-d", "--rm", "-v", &bind, &task_image(), "sleep", "60"]);
    rewrite(&session, &other("second"));
    session.wait_for("was read again", SOON);
    session.ok(&["rm", "-f", &container]);
}

/// A session policy limits a container's rights, so it needs the same protection as the file that names it.
#[test]
fn a_session_policy_that_a_container_can_write_is_not_read() {
    let narrowed = |name: &str| {
        format!(
            "{}[aws]\ncredentials = \"offline\"\n[identity.narrow.aws]\nrole = \"arn:aws:iam::123456789012:role/r\"\n\
             policy = \"policies/p.json\"\n",
            other(name)
        )
    };
    let session = Session::offline(&other("first"), &["--config", "kfp-creds.toml"]);
    let folder = session.folder.0.join("policies");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("p.json"), "{\"Statement\": []}").unwrap();
    let beside = raw(&["create", "-v", &format!("{}:/x", folder.display()), &task_image(), "true"]);
    rewrite(&session, &narrowed("second"));
    let line = session.wait_for("is not read again: a container can write", SOON);
    assert!(line.contains("policies"), "{line}");
    raw(&["rm", &beside]);
    rewrite(&session, &narrowed("third"));
    session.wait_for("was read again", SOON);
}
