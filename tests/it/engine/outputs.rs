//! Exit codes and output of auto-removed containers, for a client that asks too late.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::session::{Session, engine_socket, nobody, python, raw, repeated, task_image};

/// An internal network of this test, since a container without identity could otherwise reach the network.
struct Network(String);

impl Network {
    fn new(word: &str) -> Self {
        let name = format!("kfpct-outputs-{}-{word}", std::process::id());
        raw(&["network", "create", "--internal", &name]);
        Self(name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = crate::support::session::docker_at(&engine_socket(), &["network", "rm", &self.0]);
    }
}

/// Runs `tests/python/auto_removed.py`: counts of logs and codes.
fn auto_removed(socket: &Path, network: &Network, count: usize) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/auto_removed.py");
    let ran = Command::new(python())
        .arg(script)
        .args(["-n", &count.to_string(), "--image", &task_image(), "--network", &network.0])
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .envs(nobody())
        .output()
        .unwrap();
    serde_json::from_slice(&ran.stdout).unwrap_or_else(|_| panic!("{ran:?}"))
}

/// With `KFP_CREDS_TEST_DIRECT=1` it counts at the engine alone too, to show what the proxy repairs.
#[test]
fn neither_codes_nor_logs_of_auto_removed_tasks_are_lost() {
    let network = Network::new("logs");
    if std::env::var("KFP_CREDS_TEST_DIRECT").is_ok() {
        eprintln!("the engine alone: {}", auto_removed(&engine_socket(), &network, 100));
    }
    let (session, count) = (Session::offline("", &["--all"]), repeated(100));
    let seen = auto_removed(&session.socket, &network, count);
    assert_eq!(seen["codes"], json!({"right": count}), "{seen}");
    assert_eq!(seen["logs"], json!({"whole": count}), "{seen}");
}

/// `run --rm` fifty times with each command line: no code and no line is lost.
#[test]
fn both_command_lines_report_every_exit_code() {
    let (network, session) = (Network::new("cli"), Session::offline("", &["--all"]));
    let count = u32::try_from(repeated(50)).unwrap();
    for variable in ["KFP_CREDS_DOCKER_CLI_28", "KFP_CREDS_DOCKER_CLI_20"] {
        let program = std::env::var(variable)
            .unwrap_or_else(|_| panic!("{variable} is not set: run scripts/setup --all, and . .work/env"));
        let run = |number: u32| -> Output {
            let script = format!("echo {number}; exit {number}");
            Command::new(&program)
                .args(["-H", &format!("unix://{}", session.socket.display()), "run", "--rm", "--network"])
                .args([&network.0, &task_image(), "sh", "-c", &script])
                .output()
                .unwrap()
        };
        let wrong: Vec<(u32, Output)> = std::thread::scope(|scope| {
            let lanes: Vec<_> = (0..4)
                .map(|lane| {
                    scope.spawn(move || {
                        (1..=count).filter(|n| n % 4 == lane).map(|n| (n, run(n))).collect::<Vec<_>>()
                    })
                })
                .collect();
            let all = lanes.into_iter().flat_map(|lane| lane.join().unwrap());
            all.filter(|(n, out)| {
                out.status.code() != Some(i32::try_from(*n).unwrap())
                    || out.stdout != format!("{n}\n").as_bytes()
            })
            .collect()
        });
        assert!(wrong.is_empty(), "{program}: {} of {count}: {wrong:?}", wrong.len());
    }
}

/// The later exit code is the result, by whatever name a client waits.
#[test]
fn a_restart_is_another_run_with_a_code_of_its_own() {
    let (network, session) = (Network::new("again"), Session::offline("", &["--all"]));
    let name = format!("kfpct-again-{}", std::process::id());
    // Auto-removed, and ended only by its second run.
    let script = "[ -e /tmp/second ] && exit 5; touch /tmp/second; exec sleep 300";
    let run =
        ["run", "-d", "--rm", "--name", &name, "--network", &network.0, &task_image(), "sh", "-c", script];
    let id = session.ok(&run);
    session.ok(&["exec", &name, "sh", "-c", "until [ -e /tmp/second ]; do sleep 0.05; done"]);
    session.ok(&["restart", "-t", "0", &name]);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !raw(&["ps", "-aq", "--no-trunc", "--filter", &format!("id={id}")]).is_empty() {
        assert!(std::time::Instant::now() < end, "it was not removed");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    for reference in [&name, &id[..], &id[..12]] {
        assert_eq!(session.ok(&["wait", reference]), "5", "{reference}");
    }
}

/// A container that the engine restarts has the code of its last run, also after its removal.
#[test]
fn a_restart_by_policy_is_another_run_as_well() {
    let (network, session) = (Network::new("policy"), Session::offline("", &["--all"]));
    let script = "echo x >>/tmp/runs; exit $(wc -l </tmp/runs)";
    let policy = [
        "run",
        "-d",
        "--restart",
        "on-failure:2",
        "--network",
        &network.0,
        &task_image(),
        "sh",
        "-c",
        script,
    ];
    let id = session.ok(&policy);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while raw(&["inspect", "-f", "{{.RestartCount}} {{.State.Status}}", &id]) != "2 exited" {
        assert!(std::time::Instant::now() < end, "it did not run three times");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(session.ok(&["wait", &id]), "3");
    session.ok(&["rm", &id]);
    assert_eq!(session.ok(&["wait", &id]), "3");
}
