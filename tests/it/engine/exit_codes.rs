//! The end of a container is reported once, with its exit code, although engines since 23.0 send `disconnect`
//! before `die`.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::delayed_engine::DelayedEngine;
use crate::support::raw::{Container, until};
use crate::support::session::{Folder, Session, engine_socket, raw, task_image};

fn audited(engine: Option<&DelayedEngine>, folder: &Folder, config: &str) -> Session {
    let file = folder.0.join("audit.jsonl");
    let file = file.display().to_string();
    let host =
        format!("unix://{}", engine.map_or_else(engine_socket, |between| between.socket.clone()).display());
    Session::start(
        config,
        &["--offline", "--all"],
        &[("DOCKER_HOST", &host), ("KFP_CREDS_AUDIT_FILE", &file)],
    )
}

fn cuts(folder: &Path) -> Vec<Value> {
    let log = std::fs::read_to_string(folder.join("audit.jsonl")).unwrap_or_default();
    let all = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|line| line["event"] == "cut-off").collect()
}

/// The reports of a container's ends, on the terminal and in the audit log: the exit codes, in order.
fn told(session: &Session, folder: &Folder, container: &str) -> (Vec<String>, Vec<Value>) {
    let said = session.said();
    let lines = said.lines().filter(|line| line.contains("ended  ") && line.contains(&container[..12]));
    let code =
        |line: &str| line.split("exit code ").nth(1).map(|rest| rest.trim_end_matches(')').to_string());
    let code = |line: &str| code(line.split(';').next().unwrap()).unwrap_or_default();
    let cuts = cuts(&folder.0).into_iter().filter(|cut| cut["container"] == container);
    (lines.map(code).collect(), cuts.map(|cut| cut["exit_code"].clone()).collect())
}

fn told_once(session: &Session, folder: &Folder, container: &str, code: i64) {
    let done = || told(session, folder, container).0.len() == 1 && cuts(&folder.0).len() == 1;
    // Without an event, the session finds an end within ten seconds.
    until("its end is reported", Duration::from_secs(15), done);
    std::thread::sleep(Duration::from_millis(1500)); // it is not reported again
    assert_eq!(
        told(session, folder, container),
        (vec![code.to_string()], vec![code.into()]),
        "{}",
        session.said()
    );
}

#[test]
fn every_end_is_printed_once_with_its_exit_code() {
    for config in ["", super::attacks::STRICT] {
        let folder = Folder::new("codes");
        let session = audited(None, &folder, config);
        let image = task_image();
        let mut ended = vec![];
        for (script, code) in [("true", 0), ("exit 7", 7), ("exit 200", 200)] {
            let container = Container::of(&session, &[&image, "sh", "-c", script]);
            session.docker(&["start", "-a", &container.0]);
            ended.push((container, code));
        }
        let stopped = Container::of(&session, &[&image, "sleep", "60"]);
        session.ok(&["start", &stopped.0]);
        session.ok(&["stop", "-t", "0", &stopped.0]);
        ended.push((stopped, 137));
        until("all ends are reported", Duration::from_secs(8), || cuts(&folder.0).len() == ended.len());
        for (container, code) in &ended {
            let want = (vec![code.to_string()], vec![Value::from(*code)]);
            assert_eq!(told(&session, &folder, &container.0), want, "{}", session.said());
        }
        // The engine removes this container as soon as it ends.
        session.docker(&["run", "--rm", &image, "sh", "-c", "exit 5"]);
        until("it is reported", Duration::from_secs(8), || cuts(&folder.0).len() == ended.len() + 1);
        assert_eq!(cuts(&folder.0).last().unwrap()["exit_code"], 5, "{}", session.said());
        let (_, said) = session.end();
        assert!(said.contains(&format!("{n} attached, {n} ended", n = ended.len() + 1)), "{said}");
    }
}

#[test]
fn a_missing_die_event_is_replaced_by_an_inspect() {
    let (folder, at) = (Folder::new("codes"), Folder::new("between"));
    let between = DelayedEngine::start(&at.0, &engine_socket());
    let session = audited(Some(&between), &folder, "");
    let container = Container::of(&session, &[&task_image(), "sh", "-c", "sleep 1; exit 9"]);
    between.hold("die", &container.0, Duration::from_secs(600));
    session.ok(&["start", &container.0]);
    until("it ends", Duration::from_secs(10), || container.inspect("{{.State.Running}}") == "false");
    told_once(&session, &folder, &container.0, 9);
}

/// The container is removed first, and what the session talks to last.
struct EndsUnseen {
    container: Container,
    session: Session,
    folder: Folder,
    _between: DelayedEngine,
    _at: Folder,
}

/// A container with `--rm` that ends with 9 and whose end and removal no event reports, as `hold` says.
fn ends_unseen(hold: fn(&DelayedEngine, &str, &str, Duration)) -> EndsUnseen {
    let (folder, at) = (Folder::new("codes"), Folder::new("between"));
    let between = DelayedEngine::start(&at.0, &engine_socket());
    let session = audited(Some(&between), &folder, "");
    let container = Container::of(&session, &["--rm", &task_image(), "sh", "-c", "sleep 1; exit 9"]);
    // Podman uses `remove` for `destroy`.
    for action in ["die", "disconnect", "disconnect", "destroy", "remove"] {
        hold(&between, action, &container.0, Duration::from_secs(600));
    }
    session.ok(&["start", &container.0]);
    EndsUnseen { session, folder, container, _between: between, _at: at }
}

/// Only the stream of events that the proxy follows for exit codes still works.
#[test]
fn an_end_and_a_removal_without_events_are_found() {
    let EndsUnseen { container, session, folder, .. } = &ends_unseen(DelayedEngine::hold_from_leases);
    told_once(session, folder, &container.0, 9);
}

/// An engine may drop events for a reader that it considers slow. Then the code is unknown, but the lease
/// ends.
#[test]
fn an_end_without_any_event_ends_the_lease() {
    let ending = ends_unseen(DelayedEngine::hold);
    until("the lease ends", Duration::from_secs(25), || cuts(&ending.folder.0).len() == 1);
}

#[test]
fn a_late_die_event_belongs_to_the_run_that_ended() {
    let (folder, at) = (Folder::new("codes"), Folder::new("between"));
    let between = DelayedEngine::start(&at.0, &engine_socket());
    let session = audited(Some(&between), &folder, "");
    // Each run ends on command, with its own exit code.
    let script = "n=$(cat /n 2>/dev/null || echo 0); echo $((n + 1)) >/n
        while [ ! -e /end-$n ]; do sleep 0.05; done; exit $((n + 20))";
    let container = Container::of(&session, &[&task_image(), "sh", "-c", script]);
    session.ok(&["start", &container.0]);
    between.hold_beyond_start("die", &container.0, Duration::from_millis(100));
    container.exec(": >/end-0");
    raw(&["wait", &container.0]);
    session.ok(&["start", &container.0]);
    until("tokens again", Duration::from_secs(5), || container.asks().1 == 200);
    container.exec(": >/end-1");
    raw(&["wait", &container.0]);
    until("both ends are reported", Duration::from_secs(8), || cuts(&folder.0).len() == 2);
    std::thread::sleep(Duration::from_millis(1500));
    let want = (vec!["20".to_string(), "21".into()], vec![Value::from(20), Value::from(21)]);
    assert_eq!(told(&session, &folder, &container.0), want, "{}", session.said());
}

/// It runs on without an identity, and its later end is not reported again.
#[test]
fn a_disconnected_container_ends_once_without_a_code() {
    let folder = Folder::new("codes");
    let session = audited(None, &folder, "");
    let container = Container::of(&session, &[&task_image(), "sleep", "60"]);
    session.ok(&["start", &container.0]);
    assert_eq!(container.asks().1, 200);
    let network = crate::support::raw::network(&session).0;
    raw(&["network", "disconnect", &network, &container.0]);
    until("it is reported", Duration::from_secs(5), || cuts(&folder.0).len() == 1);
    raw(&["kill", &container.0]);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(
        told(&session, &folder, &container.0),
        (vec![String::new()], vec![Value::Null]),
        "{}",
        session.said()
    );
}

#[test]
fn containers_that_end_with_the_session_print_once() {
    let folder = Folder::new("codes");
    let file = folder.0.join("audit.jsonl").display().to_string();
    let image = task_image();
    let script = format!(
        "docker run -d {image} sh -c 'exit 4'; docker run -d {image} sleep 60; docker wait $(docker ps -lq) & sleep 2"
    );
    let mut command = crate::support::session::program(&folder.0);
    command.env("KFP_CREDS_AUDIT_FILE", &file);
    let out = command.args(["run", "--offline", "--all", "--", "sh", "-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let ids = String::from_utf8_lossy(&out.stdout).into_owned();
    let containers: Vec<Container> =
        ids.lines().filter(|line| line.len() == 64).map(|id| Container(id.into())).collect();
    assert_eq!((containers.len(), cuts(&folder.0).len()), (2, 2), "{said}");
    assert!(said.contains("2 attached, 2 ended"), "{said}");
    let of = |container: &Container| {
        cuts(&folder.0).into_iter().find(|cut| cut["container"] == container.0.as_str()).unwrap()
    };
    assert_eq!(of(&containers[0])["exit_code"], 4, "{said}");
}
