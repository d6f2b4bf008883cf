//! Addresses and epochs: what a container keeps when it starts again, and what it returns.

use std::time::Duration;

use crate::support::raw::{Container, address, answer, ask, token, until};
use crate::support::session::{Session, raw, task_image};

const POOL: &str = "[network]\nattach = \"second\"\npool = \"10.219.37.0/28\"\n";

#[test]
fn an_exhausted_pool_refuses_and_says_why() {
    let session = Session::offline(POOL, &["--all"]);
    let script = ask();
    let mut seen = vec![];
    for number in 0..33 {
        let container = Container::of(&session, &[&task_image(), "sh", "-c", &script]);
        seen.push(address(&session, &container));
        if number % 10 == 0 {
            assert_eq!(token(&session.ok(&["start", "-a", &container.0]))["container"], container.0);
        }
        session.ok(&["rm", &container.0]);
    }
    // There are ten addresses, and each is reused only after all the others.
    assert!((10..seen.len()).all(|n| seen[n] == seen[n - 10]), "{seen:?}");
    assert_eq!(seen[..10].iter().collect::<std::collections::HashSet<_>>().len(), 10);

    let mut held: Vec<_> = (0..10).map(|_| Container::of(&session, &[&task_image(), "true"])).collect();
    let none = session.docker(&["create", "--label", "kct=none", &task_image(), "true"]);
    let said = String::from_utf8_lossy(&none.stderr);
    assert!(!none.status.success());
    assert!(said.contains("no address left: 10 containers hold one; remove stopped containers"), "{said}");
    assert_eq!(raw(&["ps", "-aq", "--filter", "label=kct=none"]), "", "the refused container is still there");
    let first = held.remove(3);
    let freed = address(&session, &first);
    session.ok(&["rm", &first.0]);
    std::thread::sleep(Duration::from_millis(300));
    let next = Container::of(&session, &[&task_image(), "true"]);
    assert_eq!(address(&session, &next), freed);
}

/// The session sees the end a moment after `docker rm` was answered.
fn gone(session: &Session, container: &Container) {
    let cut = || session.said().lines().any(|l| l.contains("ended  ") && l.contains(container.short()));
    until("the end is seen", Duration::from_secs(3), cut);
}

#[test]
fn a_restarted_container_keeps_its_address_and_identity() {
    let session = Session::offline("", &["--all"]);
    // The container asks with its first instruction, at every start.
    let script = format!("{}; exec sleep 60", ask());
    let container = Container::of(&session, &[&task_image(), "sh", "-c", &script]);
    let at = address(&session, &container);
    let runs = |count: usize| {
        let tokens = || raw(&["logs", &container.0]).matches("HTTP ").count() >= count;
        until("it asked", Duration::from_secs(10), tokens);
        let logs = raw(&["logs", &container.0]);
        let answers: Vec<&str> = logs.split_inclusive("HTTP ").collect();
        assert_eq!(answers.len(), count + 1, "{logs}");
        assert_eq!(logs.matches("HTTP 200").count(), count, "{logs}\n{}", session.said());
    };
    session.ok(&["start", &container.0]);
    runs(1);
    session.ok(&["restart", "-t", "0", &container.0]);
    runs(2);
    session.ok(&["stop", "-t", "0", &container.0]);
    session.ok(&["start", &container.0]);
    runs(3);
    raw(&["restart", "-t", "0", &container.0]);
    runs(4);
    raw(&["stop", "-t", "0", &container.0]);
    raw(&["start", &container.0]);
    runs(5);
    assert_eq!(container.asks().1, 200);
    let networks = container.inspect("{{json .NetworkSettings.Networks}}");
    assert!(networks.contains(&format!("\"{at}\"")), "{at}: {networks}");

    session.ok(&["pause", &container.0]);
    session.ok(&["unpause", &container.0]);
    assert_eq!(container.asks().1, 200);
    session.ok(&["rm", "-f", &container.0]);
    gone(&session, &container);
    let said = session.said();
    let cut = said.lines().filter(|l| l.contains("ended  ") && l.contains(container.short())).count();
    assert_eq!(cut, 5, "one line for each of its runs:\n{said}");
}

#[test]
fn a_restart_policy_gives_a_new_epoch_each_time() {
    let session = Session::offline("", &["--all"]);
    let script = format!("{}; exit 3", ask());
    let policy = ["--restart", "on-failure:2", &task_image(), "sh", "-c", &script].map(String::from);
    let policy: Vec<&str> = policy.iter().map(String::as_str).collect();
    let container = Container::of(&session, &policy);
    session.ok(&["start", &container.0]);
    until("it ran three times", Duration::from_secs(15), || {
        raw(&["logs", &container.0]).matches("HTTP ").count() == 3
            && container.inspect("{{.State.Running}} {{.State.Restarting}}") == "false false"
    });
    let logs = raw(&["logs", &container.0]);
    assert_eq!(logs.matches("HTTP 200").count(), 3, "{logs}\n{}", session.said());
    assert_eq!(answer(logs.trim().rsplit_once('\n').map_or(&logs, |_| &logs)).1, 200);
}
