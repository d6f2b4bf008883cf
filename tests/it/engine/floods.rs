//! One container attacks the relay that all share: whatever it sends, another is served in time and the
//! tunnel stays open.

use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::attacks::{Made, STRICT, unused};
use crate::support::session::{Session, raw, task_image};

pub(super) const ATTACKER: &str = include_str!("../../python/attacker.py");

/// Longest time in milliseconds that another container may wait for an answer under attack: the most
/// impatient client (Node) gives up after 3 s. The test prints the real time, which is a few milliseconds
/// without an attack.
pub(super) const IN_TIME: f64 = 3000.0;

/// The JSON that a mode of the attacker prints.
pub(super) fn facts(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    serde_json::from_str(text.trim()).unwrap_or_else(|e| panic!("{e}: {text}{errors}"))
}

/// Runs the attacker in its own container, to its end.
pub(super) fn attack(session: &Session, arguments: &[&str]) -> Value {
    let image = task_image();
    let command = [&["run", "--rm", &image, "python3", "-c", ATTACKER], arguments].concat();
    facts(&session.docker(&command))
}

/// Runs `attacks` one after the other in one container, while a victim asks in another.
fn under(session: &Session, attacks: &[&[&str]]) -> (Vec<Value>, Value) {
    let image = task_image();
    let made = Made("container", unused("victim"));
    let seconds = (4 * attacks.len() + 3).to_string();
    let victim = ["create", "--name", &made.1, &image, "python3", "-c", ATTACKER, "victim", &seconds];
    let victim = session.ok(&victim);
    // Only now: the victim's create may have made the second network with its relay.
    let relay = relay(session);
    let socket = session.socket.clone();
    let started = victim.clone();
    let watching =
        std::thread::spawn(move || crate::support::session::docker_at(&socket, &["start", "-a", &started]));
    std::thread::sleep(Duration::from_millis(700));
    let done: Vec<Value> = attacks.iter().map(|arguments| attack(session, arguments)).collect();
    let served = facts(&watching.join().unwrap());
    eprintln!("attacks {done:?}\nthe other container {served}");
    assert_eq!(served["failed"], serde_json::json!([]), "{}", session.said());
    assert!(served["asked"].as_u64().unwrap() > 100, "{served}");
    assert!(served["max"].as_f64().unwrap() < IN_TIME, "{served}");
    // A second one may have come, because a container of another test ran on the default bridge.
    let now = self::relay(session);
    let replaced = relay.lines().any(|id| !now.lines().any(|one| one == id));
    assert!(!replaced, "the relay was replaced:\n{}", session.said());
    assert!(!session.said().contains("the relay died"), "{}", session.said());
    (done, served)
}

pub(crate) fn relay(session: &Session) -> String {
    let name = session.socket.file_stem().unwrap().to_string_lossy().into_owned();
    raw(&["ps", "-q", "--no-trunc", "--filter", &format!("name=kfp-creds-relay-{name}")])
}

#[test]
fn ten_thousand_connections_of_one_container_delay_no_other() {
    connections("");
}

#[test]
fn ten_thousand_connections_delay_no_other_in_isolation() {
    connections(STRICT);
}

fn connections(config: &str) {
    let session = Session::offline(config, &["--all"]);
    let (done, _) = under(&session, &[&["connections", "10000", "6"]]);
    // The attacker opens far more connections than its share, and the relay ends them again and again.
    assert!(done[0]["opened"].as_u64().unwrap() > 9_000, "{}", done[0]);
    assert!(
        done[0]["ended_by_relay"].as_u64().unwrap() > done[0]["opened"].as_u64().unwrap() / 2,
        "{}",
        done[0]
    );
}

#[test]
fn hanging_up_before_the_answer_does_not_end_the_tunnel() {
    hanging_up("");
}

#[test]
fn hanging_up_does_not_end_the_tunnel_in_isolation() {
    hanging_up(STRICT);
}

fn hanging_up(config: &str) {
    let session = Session::offline(config, &["--all"]);
    // Each hang-up resets a stream, and HTTP/2 ends connections that see too many resets in a row (20 of
    // streams that were not accepted yet) or in all (1024).
    under(&session, &[&["resets", "6000", "1"], &["resets", "6000", "100"]]);
}

#[test]
fn slow_endless_and_huge_requests_cost_their_sender_only() {
    slow_and_huge("");
}

#[test]
fn slow_and_huge_requests_cost_only_their_sender_isolated() {
    slow_and_huge(STRICT);
}

fn slow_and_huge(config: &str) {
    let session = Session::offline(config, &["--all"]);
    let attacks: &[&[&str]] = &[&["loris", "400", "3"], &["waits", "400", "2"], &["heads"], &["bodies"]];
    let (done, _) = under(&session, attacks);
    assert_eq!(done[0]["kept"], 128, "{}", done[0]);
    assert_eq!(done[0]["refused"], 272, "{}", done[0]);
    assert!(done[2]["200"].as_u64().unwrap() > 0 && done[2]["431"].as_u64().unwrap() > 0, "{}", done[2]);
    assert!(done[3]["sent"].as_u64().unwrap() < 32 << 20, "{}", done[3]);
    let started = Instant::now();
    session.end();
    assert!(started.elapsed() < Duration::from_secs(10), "an end that waits for its attackers");
}
