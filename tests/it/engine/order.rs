//! Events that come late or out of order: the engine reports the end of a container after its next run, or
//! another container, has begun.

use std::time::Duration;

use crate::support::delayed_engine::DelayedEngine;
use crate::support::raw::{Container, address, ask, token, until};
use crate::support::session::{Folder, Session, engine_socket, is_podman, raw, task_image};

const LATE: Duration = Duration::from_millis(2500);

fn session(between: &DelayedEngine, config: &str) -> Session {
    let engine = format!("unix://{}", between.socket.display());
    Session::start(config, &["--offline", "--all"], &[("DOCKER_HOST", &engine)])
}

fn sleeper(session: &Session) -> Container {
    let container = Container::of(session, &[&task_image(), "sleep", "120"]);
    session.ok(&["start", &container.0]);
    assert_eq!(container.asks().1, 200, "{}", session.said());
    container
}

#[test]
fn a_die_that_comes_after_the_next_start_ends_nobodys_lease() {
    for config in ["", super::attacks::STRICT] {
        let folder = Folder::new("between");
        let between = DelayedEngine::start(&folder.0, &engine_socket());
        let session = session(&between, config);
        let container = sleeper(&session);
        between.hold_beyond_start("die", &container.0, LATE);
        session.ok(&["restart", "-t", "0", &container.0]);
        let late = || between.place("die", &container.0) > between.place("start", &container.0);
        // A program that trusts the order of events considers the container dead from here on.
        until("the die comes after the start", Duration::from_secs(10), late);
        until("its lease serves it", Duration::from_secs(5), || container.asks().1 == 200);
        let told = container.exec(&ask());
        assert_eq!(token(&told)["container"], container.0);
    }
}

#[test]
fn a_late_die_event_ends_only_its_own_lease() {
    let folder = Folder::new("between");
    let between = DelayedEngine::start(&folder.0, &engine_socket());
    // Ten addresses: the eleventh container has to get a used one.
    let session = session(&between, "[network]\nattach = \"second\"\npool = \"10.219.39.0/28\"\n");
    let mut held: Vec<Container> =
        (0..9).map(|_| Container::of(&session, &[&task_image(), "true"])).collect();
    let first = sleeper(&session);
    let at = address(&session, &first);
    let gone = if is_podman() { "remove" } else { "destroy" };
    for action in ["die", gone] {
        between.hold(action, &first.0, 2 * LATE); // longer than the next start takes
    }
    raw(&["rm", "-f", &first.0]);
    // The engine has freed the address, but the session does not know yet: no container gets it.
    let refused = session.docker(&["create", &task_image(), "true"]);
    assert!(!refused.status.success(), "an address was leased twice");
    drop(held.remove(0));
    let mut second = None;
    until("an address is free", Duration::from_secs(5), || {
        let made = session.docker(&["create", &task_image(), "sleep", "60"]);
        let id = String::from_utf8(made.stdout).unwrap().trim().to_string();
        second = made.status.success().then_some(Container(id));
        second.is_some()
    });
    let second = second.unwrap();
    session.ok(&["start", &second.0]);
    assert_ne!(address(&session, &second), at);
    until("the die comes late", Duration::from_secs(15), || {
        between.place(gone, &first.0) > between.place("start", &second.0)
    });
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(token(&second.exec(&ask()))["container"], second.0);
    // Now its address is available.
    let third = sleeper(&session);
    assert_eq!(address(&session, &third), at);
}
