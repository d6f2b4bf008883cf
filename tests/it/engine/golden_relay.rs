//! The golden cases on the wire, from inside a container: through caller, relay, tunnel and host.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::golden::Case;
use crate::support::session::{Session, task_image};
use crate::support::wire::{self, Answer, Placeholders};

const ASK: &str = include_str!("../../python/raw_requests.py");

/// Sends the requests in `given` from a container of the session; returns its id and its output.
fn from_a_container(session: &Session, given: &Value) -> (String, Value) {
    let container = session.ok(&["create", "-i", &task_image(), "python3", "-c", ASK]);
    let mut docker = Command::new("docker")
        .arg("-H")
        .arg(format!("unix://{}", session.socket.display()))
        .args(["start", "-ai", &container])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    docker.stdin.take().unwrap().write_all(given.to_string().as_bytes()).unwrap();
    let out = docker.wait_with_output().unwrap();
    assert!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stderr), session.said());
    session.ok(&["rm", &container]);
    (container, serde_json::from_slice(&out.stdout).unwrap())
}

fn bytes(answer: &Value) -> Vec<u8> {
    STANDARD.decode(answer["bytes"].as_str().unwrap()).unwrap()
}

#[test]
fn every_case_is_answered_through_the_relay() {
    for (name, more, times) in wire::SERVERS {
        let session = Session::offline(&wire::config(more), &["--all"]);
        answers_through_the_relay(&session, &wire::cases(name), times);
    }
}

fn answers_through_the_relay(session: &Session, cases: &[Case], times: usize) {
    // No request contains names or addresses; the container fills in ETag and Host.
    let requests: Vec<String> =
        cases.iter().flat_map(|case| vec![STANDARD.encode(&case.request); times]).collect();
    let given = json!({"requests": requests, "etag": wire::ETAG, "host": wire::HOST});
    let (container, said) = from_a_container(session, &given);
    let answers = said["answers"].as_array().unwrap();
    assert_eq!(answers.len(), requests.len());
    let placeholders = Placeholders {
        host: format!("{}:80", said["host"].as_str().unwrap()),
        name: container[..12].to_string(),
        number: u64::from_str_radix(&container[..15], 16).unwrap(),
        ip: answers[0]["ip"].as_str().unwrap().to_string(),
        etag: said["etag"].as_str().unwrap().to_string(),
    };
    let failed: Vec<String> = cases
        .iter()
        .zip(answers.chunks(times))
        .filter_map(|(case, answers)| {
            let answer = answers.last().unwrap();
            let after = Duration::from_secs_f64(answer["after"].as_f64().unwrap());
            placeholders.differences(case, &Answer { bytes: bytes(answer), after })
        })
        .collect();
    assert!(failed.is_empty(), "{} of {} cases differ\n\n{}", failed.len(), cases.len(), failed.join("\n"));
}

#[test]
fn unparsable_requests_are_refused_with_our_headers() {
    let session = Session::offline("", &["--all"]);
    let cases = wire::unparsable();
    let requests: Vec<String> = cases.iter().map(|(_, request, _)| STANDARD.encode(request)).collect();
    let (_, said) = from_a_container(&session, &json!({"requests": requests, "to_the_end": true}));
    let answers = said["answers"].as_array().unwrap();
    assert_eq!(answers.len(), cases.len());
    for ((what, _, status), answer) in cases.iter().zip(answers) {
        wire::assert_refused(what, &bytes(answer), *status);
    }
}
