//! `run` and its command: exit code, signals, and what is left.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::raw::{Container, Running, until};
use crate::support::session::{
    Folder, PROGRAM, Session, engine_socket, networks_left, program, python, raw, task_image,
};

fn code(command: &[&str]) -> (i32, String) {
    let mut run = Running::run(&[], command);
    let code = run.wait(Duration::from_secs(30));
    (code, run.err())
}

/// Asserts that the network in the session's output is gone.
fn nothing_left(said: &str) {
    let line = said.lines().find(|l| l.contains("ready  ")).unwrap_or_else(|| panic!("{said}"));
    let network = line.split("network ").last().unwrap().split(' ').next().unwrap();
    if network != "kfp-creds" {
        assert_eq!(networks_left(&format!("name=^{network}$")), [""; 0], "{said}");
    }
    // An engine that miscounts refuses to remove the network; everything else must be gone.
    assert!(!said.contains("stays") || said.contains("but lists none"), "{said}");
}

#[test]
fn the_commands_exit_code_is_passed_on() {
    for (command, want) in [
        (&["sh", "-c", "exit 7"][..], 7),
        (&["true"], 0),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&["/nowhere/to/be/found"], 127),
        (&["/etc/passwd"], 126),
    ] {
        let (code, said) = code(command);
        assert_eq!(code, want, "{command:?}: {said}");
        assert!(!said.contains("use `kfp-creds serve`"), "{said}");
        nothing_left(&said);
    }
    let out = Command::new(PROGRAM).args(["run", "--no-such-flag"]).output().unwrap();
    assert_eq!(out.status.code(), Some(125));
    let folder = Folder::new("run");
    let out = program(&folder.0)
        .args(["run", "--offline", "--", "true"])
        .env("DOCKER_HOST", "unix:///nowhere.sock")
        .output();
    let out = out.unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!((out.status.code(), said.lines().count()), (Some(125), 1), "{said}");
}

#[test]
fn the_command_is_given_one_engine_and_no_other() {
    let folder = Folder::new("run");
    let script = "echo \"$DOCKER_HOST ${DOCKER_TLS_VERIFY-no} ${DOCKER_CERT_PATH-no} ${DOCKER_CONTEXT-no}\"";
    let out = program(&folder.0)
        .args(["run", "--offline", "--", "sh", "-c", script])
        .env("DOCKER_HOST", format!("unix://{}", engine_socket().display()))
        .envs([("DOCKER_CONTEXT", "another"), ("DOCKER_CERT_PATH", "/certs"), ("DOCKER_TLS_VERIFY", "1")])
        .output()
        .unwrap();
    let (seen, said) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(seen.starts_with("unix:///") && seen.ends_with(".sock no no no\n"), "{seen}{said}");
    assert!(!seen.contains("docker.sock"), "{seen}");
}

/// The terminal signals its whole foreground group, whatever stdin is; a second signal would interrupt the
/// command's own clean-up.
#[test]
fn a_command_at_a_terminal_gets_an_interrupt_once() {
    let folder = Folder::new("run");
    let mut terminal = crate::support::raw::python("at_a_terminal.py");
    let environment = program(&folder.0);
    terminal.env_clear().envs(environment.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let out = terminal.current_dir(&folder.0).args([PROGRAM, "run", "--offline", "--"]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(said.contains("told 1 time"), "{said}{}", String::from_utf8_lossy(&out.stderr));
}

const STARTS_ONE: &str = "docker run -d $IMAGE sleep 90; sleep 60";

fn with_image(script: &str) -> String {
    script.replace("$IMAGE", &task_image())
}

#[test]
fn a_command_that_ignores_signals_is_killed_after_the_grace() {
    let script = with_image(&format!("trap '' INT TERM; {STARTS_ONE}"));
    let mut run = Running::run(&["--all"], &["sh", "-c", &script]);
    until("a container", Duration::from_secs(20), || run.out().lines().count() == 1);
    let container = Container(run.out().trim().into());
    let asked = Instant::now();
    run.signal("-TERM");
    let code = run.wait(Duration::from_secs(25));
    let took = asked.elapsed().as_secs_f64();
    let said = run.err();
    assert_eq!(code, 137, "{said}");
    assert!((9.0..16.0).contains(&took), "{took} s: {said}");
    assert!(said.contains("did not end within 10 s and is killed"), "{said}");
    assert_eq!(container.inspect("{{.State.Running}}"), "false");
    nothing_left(&said);
    let _ =
        Command::new("kill").args(["-KILL", "--", &format!("-{}", run.pid())]).stderr(Stdio::null()).status();
}

#[test]
fn sigterm_ends_the_command_and_stops_its_containers() {
    let script = with_image(&format!(
        "trap 'docker run --rm $IMAGE true; echo \"late: $?\"; exit 9' TERM; {STARTS_ONE} & wait"
    ));
    let mut run = Running::run(&["--all"], &["sh", "-c", &script]);
    until("a container", Duration::from_secs(20), || run.out().lines().count() == 1);
    let container = Container(run.out().trim().into());
    run.signal("-TERM");
    let code = run.wait(Duration::from_secs(14));
    let (out, said) = (run.out(), run.err());
    assert_eq!(code, 9, "{said}");
    assert!(out.contains("late: 125"), "a create was not refused: {out}\n{said}");
    assert!(said.contains("takes no new containers"), "{said}");
    assert_eq!(container.inspect("{{.State.Running}}"), "false");
    nothing_left(&said);
    // It was disconnected from the removed network, so it can start.
    raw(&["start", &container.0]);
    let _ =
        Command::new("kill").args(["-KILL", "--", &format!("-{}", run.pid())]).stderr(Stdio::null()).status();
}

#[test]
fn kept_containers_run_on_without_identity() {
    let script = with_image("docker run -d $IMAGE sleep 90");
    let mut run = Running::run(&["--all", "--keep"], &["sh", "-c", &script]);
    assert_eq!(run.wait(Duration::from_secs(25)), 0);
    let container = Container(run.out().trim().into());
    assert_eq!(container.inspect("{{.State.Running}}"), "true");
    let said = run.err();
    assert!(said.contains(container.short()) && said.contains("keeps running, without identity"), "{said}");
    assert_ne!(container.asks().1, 200);
    // The next start does not sweep it as the remains of a dead run.
    drop(Session::offline("", &[]));
    assert_eq!(container.inspect("{{.State.Running}}"), "true");
}

#[test]
fn kept_containers_run_on_after_a_signal() {
    let script = with_image(&format!("trap 'exit 9' TERM; {STARTS_ONE} & wait"));
    let mut run = Running::run(&["--all", "--keep"], &["sh", "-c", &script]);
    until("a container", Duration::from_secs(20), || run.out().lines().count() == 1);
    let container = Container(run.out().trim().into());
    run.signal("-TERM");
    assert_eq!(run.wait(Duration::from_secs(20)), 9, "{}", run.err());
    assert!(run.err().contains("ending: no new containers, running ones are kept; press"), "{}", run.err());
    assert_eq!(container.inspect("{{.State.Running}}"), "true");
}

/// Ctrl-C at a terminal: the terminal signals the whole process group. After the first one, kfp still waits
/// for its iterations and starts more; the third ends the session.
#[test]
fn ctrl_c_in_a_parallel_for_leaves_nothing() {
    let folder = Folder::new("ctrl-c");
    let pipeline = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/pipelines/long.py");
    let line = format!(
        "{PROGRAM} run --offline -- {} {} 2>{}/err",
        python(),
        pipeline.display(),
        folder.0.display()
    );
    let mut terminal = Command::new("script");
    let usual = program(&folder.0);
    terminal.env_clear().envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
    terminal
        .env("KFP_CREDS_TASK_IMAGE", task_image())
        .env("GCE_METADATA_HOST", "127.0.0.1:9")
        .env("GCE_METADATA_IP", "127.0.0.1:9");
    terminal.args(["-qefc", &line, "/dev/null"]).stdin(Stdio::piped()).current_dir(&folder.0);
    let mut run = Running::spawn(&mut terminal, None);
    let mut keys = run.stdin();
    let err = || std::fs::read_to_string(folder.0.join("err")).unwrap_or_default();
    until("the first container runs", Duration::from_secs(40), || run.out().contains("\"started\": true"));
    let asked = Instant::now();
    for _ in 0..3 {
        std::io::Write::write_all(&mut keys, b"\x03").unwrap();
        std::thread::sleep(Duration::from_millis(400));
    }
    run.wait(Duration::from_secs(20));
    let (took, said) = (asked.elapsed().as_secs_f64(), err());
    eprintln!("ended {took:.1} s after the first Ctrl-C");
    assert!(took < 16.0, "{took} s: {said}");
    assert!(!run.out().contains("finished"), "{}", run.out());
    let attached = said.lines().filter(|l| l.contains("attached  ")).count();
    assert!(attached >= 1, "{said}");
    for line in said.lines().filter(|l| l.contains("attached  ")) {
        let id = line.rsplit_once('(').unwrap().1.trim_end_matches(')');
        assert_eq!(raw(&["ps", "-q", "--filter", &format!("id={id}")]), "", "{id} still runs\n{said}");
        let stopped = said.lines().filter(|line| line.contains("stopped ") && line.contains(id)).count();
        assert!(stopped <= 1, "told {stopped} times: {said}");
    }
    nothing_left(&said);
}
