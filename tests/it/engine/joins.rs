//! `network_mode: service:NAME`: two containers share one network, one identity and one lease if the
//! operator's rule allows it, and not otherwise.

use std::time::Duration;

use super::attacks::{Made, inspect, unused};
use crate::support::raw::{Container, address, ask, token, until};
use crate::support::session::{Folder, Session, engine_socket, program, raw, task_image};

/// As in VS Code's template with a database: the application joins the network of the database.
const RULES: &str = "[[rule]]\nlabels = { role = \"app\" }\nidentity = \"default\"\njoin = true\n[identity.other]\n[[rule]]\n\
                     labels = { role = \"stranger\" }\nidentity = \"other\"\njoin = true\n";

/// A session whose rules come from the operator: from a named file, not from a project's.
fn session(rules: &str, more: &str) -> Session {
    let named = [("KFP_CREDS_CONFIG", "kfp-creds.toml")];
    Session::start(&format!("{more}{rules}"), &["--offline", "--all"], &named)
}

fn joins(session: &Session, role: &str, with: &str, more: &[&str], command: &[&str]) -> (bool, String) {
    let (role, mode) = (format!("role={role}"), format!("container:{with}"));
    let image = task_image();
    let arguments = [&["run", "-d", "--label", &role, "--network", &mode], more, &[&image], command].concat();
    let out = session.docker(&arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    (out.status.success(), if out.status.success() { text(&out.stdout) } else { text(&out.stderr) })
}

fn shared(more: &str) {
    let session = session(RULES, more);
    let database = Container(session.ok(&["run", "-d", &task_image(), "sleep", "120"]));
    let at = address(&session, &database);
    let (made, application) = joins(&session, "app", &database.0, &[], &["sleep", "120"]);
    assert!(made, "{application}\n{}", session.said());
    let application = Container(application);
    // Both have the identity and the lease of the container with the address.
    let said = token(&application.exec(&ask()));
    assert_eq!(said["container"], database.0.as_str());
    assert_eq!(token(&database.exec(&ask()))["container"], database.0.as_str());
    assert!(session.said().contains("shares the network and the lease of"), "{}", session.said());
    assert_eq!(inspect(&application.0)["HostConfig"]["NetworkMode"], format!("container:{}", database.0));
    // The joined container is protected like a leased one.
    let privileged = session.docker(&["exec", "--privileged", &application.0, "true"]);
    assert!(!privileged.status.success());
    let (made, why) = joins(&session, "none", &application.0, &[], &["true"]);
    assert!(!made && why.contains("would share that container's identity"), "{why}");
    // The lease ends with the container that holds it.
    raw(&["kill", &database.0]);
    until("its end is reported", Duration::from_secs(5), || {
        session.said().lines().any(|line| line.contains("ended  ") && line.contains(database.short()))
    });
    assert_ne!(application.asks().1, 200, "{at}");
}

#[test]
fn two_containers_share_network_and_lease_if_a_rule_allows() {
    shared("");
}

#[test]
fn two_containers_share_a_network_and_a_lease_in_isolation() {
    shared(super::attacks::STRICT);
}

/// Without the key, with another identity, with capabilities, or by labels alone, the container is not
/// created.
#[test]
fn nobody_joins_a_leased_container_without_the_operators_rule() {
    let session = session(RULES, "");
    let database = Container(session.ok(&["run", "-d", &task_image(), "sleep", "120"]));
    let compose = ["--label", "com.docker.compose.project=p", "--label", "com.docker.compose.service=app"];
    for (role, more, why) in [
        ("none", &compose[..], "would share that container's identity"),
        ("stranger", &[], "would share that container's identity"),
        ("app", &["--privileged"], "it is privileged"),
        ("app", &["--cap-add", "NET_RAW"], "it keeps NET_RAW"),
        ("app", &["--cap-add", "NET_ADMIN"], "it keeps NET_ADMIN"),
        ("app", &["--pid", &format!("container:{}", database.0)], "would share that container's identity"),
        ("app", &["--pid", "host"], "sees the host's processes"),
    ] {
        let name = unused("joins");
        let _made = Made("container", name.clone());
        let (made, said) =
            joins(&session, role, &database.0, &[&["--name", &name], more].concat(), &["true"]);
        assert!(!made && said.contains(why), "{role} {more:?}: {said}");
        assert!(inspect(&name).is_null(), "{role} {more:?}");
    }
    // A rule in a project's file does not count as the operator's.
    let folder = Folder::new("project");
    std::fs::write(folder.0.join("kfp-creds.toml"), RULES).unwrap();
    let out = program(&folder.0)
        .args(["run", "--offline", "--", "true"])
        .env("DOCKER_HOST", format!("unix://{}", engine_socket().display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("join") && said.contains("trust"), "{said}");
}

/// At its end `run` stops both.
#[test]
fn joined_containers_are_stopped_at_the_end_of_a_run() {
    let folder = Folder::new("joined");
    let file = folder.0.join("own.toml");
    std::fs::write(&file, RULES).unwrap();
    let image = task_image();
    let script = format!(
        "db=$(docker run -d {image} sleep 120) && app=$(docker run -d --label role=app --network container:$db {image} sleep 120) && echo $db $app"
    );
    let out = program(&folder.0)
        .args(["run", "--offline", "--all", "--", "sh", "-c", &script])
        .env("KFP_CREDS_CONFIG", &file)
        .output()
        .unwrap();
    let (ids, said) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let made: Vec<Container> = ids.split_whitespace().map(|id| Container(id.into())).collect();
    assert_eq!(made.len(), 2, "{said}");
    for container in &made {
        assert_eq!(container.inspect("{{.State.Running}}"), "false", "{said}");
    }
}
