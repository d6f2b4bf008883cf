//! Signals as terminals, shells and `nohup` send them: an interrupt for the command alone, and signals that
//! were ignored before the program started. With real interpreters at a real terminal.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::raw::{Container, Running, python, until};
use crate::support::session::{Folder, PROGRAM, program, task_image};

/// A program that `scripts/setup --all` installs for these tests.
fn notebook(name: &str) -> String {
    let fallback = Path::new(env!("CARGO_MANIFEST_DIR")).join(".work/venv-notebooks/bin");
    let folder = std::env::var("KFP_CREDS_TEST_NOTEBOOKS").unwrap_or_else(|_| fallback.display().to_string());
    format!("{folder}/{name}")
}

/// Runs `typed.py` with `run --offline --all -- COMMAND`; `steps` has what to wait for, and what to type
/// then.
fn typed(steps: serde_json::Value, command: &[&str]) -> (Option<i32>, String) {
    let folder = Folder::new("typed");
    let mut terminal = python("typed.py");
    let usual = program(&folder.0);
    terminal.env_clear().envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
    terminal
        .env("TERM", "dumb")
        .env("GCE_METADATA_HOST", "127.0.0.1:9")
        .env("GCE_METADATA_IP", "127.0.0.1:9");
    terminal.arg(steps.to_string()).args([PROGRAM, "run", "--offline", "--all", "--"]).args(command);
    let out = terminal.current_dir(&folder.0).stdin(Stdio::null()).output().unwrap();
    (out.status.code(), text(&out))
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// The input creates a container; its output differs from the terminal's echo of the input.
fn creates() -> String {
    format!(
        "import subprocess; subprocess.run(['docker', 'run', '--rm', '{}', 'sh', '-c', 'echo crea''ted'])\n",
        task_image()
    )
}

/// More than the time that a command has to end after a signal.
const LONGER_THAN_THE_GRACE: f64 = 11.5;

fn goes_on(prompt: &str, command: &[&str]) {
    let steps = serde_json::json!([
        [prompt, "import time; kept = 41\n"],
        [prompt, "print('sleep' + 'ing'); time.sleep(60)\n"],
        ["sleeping\r\n", ""],
        [0.3, "\u{3}"],
        ["KeyboardInterrupt", ""],
        [LONGER_THAN_THE_GRACE, creates()],
        ["created\r\n", "print('kept', kept + 1)\n"],
        ["kept 42", "exit()\n"],
    ]);
    let (code, said) = typed(steps, command);
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("ending:") && !said.contains("is killed"), "{said}");
    assert!(said.contains("1 attached, 1 ended"), "{said}");
}

#[test]
fn an_interrupt_in_ipython_ends_the_statement_and_nothing_else() {
    goes_on("In [", &[&notebook("ipython"), "--simple-prompt", "--no-banner", "--no-confirm-exit"]);
}

#[test]
fn an_interrupt_in_pythons_prompt_ends_only_the_statement() {
    goes_on(">>> ", &["python3", "-q", "-i"]);
}

#[test]
fn jupyter_lab_asks_whether_to_end_and_goes_on() {
    let lab = notebook("jupyter");
    let folder = Folder::new("lab");
    let root = format!("--ServerApp.root_dir={}", folder.0.display());
    let command =
        [&lab, "lab", "--no-browser", "--allow-root", "--ServerApp.port=0", "--ServerApp.token=x", &root];
    let steps = serde_json::json!([
        ["is running at", ""],
        [1.0, "\u{3}"],
        ["Shut down this Jupyter server (y/[n])?", "n\n"],
        ["resuming operation", ""],
        [LONGER_THAN_THE_GRACE, "\u{3}"],
        ["Shut down this Jupyter server (y/[n])?", "y\n"],
    ]);
    let (code, said) = typed(steps, &command);
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("ending:") && !said.contains("is killed"), "{said}");
}

/// The interrupt ends the script, and the session stops its container at once.
#[test]
fn a_script_that_dies_of_an_interrupt_leaves_nothing() {
    let script = format!(
        "import subprocess, time; out = subprocess.run(['docker', 'run', '-d', '{}', 'sleep', '90'], \
         capture_output=True, text=True).stdout; print('container ' + out, flush=True); time.sleep(60)",
        task_image()
    );
    let begun = Instant::now();
    let (code, said) =
        typed(serde_json::json!([["container ", ""], [0.5, "\u{3}"]]), &["python3", "-c", &script]);
    assert_eq!(code, Some(130), "{said}");
    let container = said.lines().find_map(|line| line.trim().strip_prefix("container ")).unwrap();
    let container = Container(container.into());
    assert_eq!(container.inspect("{{.State.Running}}"), "false", "{said}");
    assert!(begun.elapsed() < Duration::from_secs(40), "{said}");
}

/// Three interrupts end the session, whatever the command does; that it continues after one is reported once.
#[test]
fn three_interrupts_within_two_seconds_end_the_session() {
    let script = format!("trap '' INT; docker run -d {} sleep 90; echo up; sleep 60", task_image());
    let steps = serde_json::json!([
        ["up\r\n", "\u{3}"],
        ["three times within 2 s to end the session", "\u{3}"],
        [2.5, "\u{3}"],
        [0.3, "\u{3}"],
        [0.3, "\u{3}"],
    ]);
    let (code, said) = typed(steps, &["sh", "-c", &script]);
    assert_eq!(code, Some(137), "{said}");
    assert_eq!(said.matches("the command continues after Ctrl-C").count(), 1, "{said}");
    assert!(said.contains("ending: no new containers") && said.contains("is killed"), "{said}");
    assert!(said.contains("stopped "), "{said}");
}

/// `nohup` and a shell's background jobs ignore signals before they start a program.
#[test]
fn signals_ignored_before_the_start_stay_ignored() {
    for (by, signal) in [("nohup \"$@\"", "-HUP"), ("\"$@\" & echo $! >&2; wait $!", "-INT")] {
        let folder = Folder::new("ignored");
        let mut shell = Command::new("sh");
        let usual = program(&folder.0);
        shell.env_clear().envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.args(["-c", &by.replace("nohup", "exec nohup"), "sh", PROGRAM, "run", "--offline", "--"]);
        shell.args(["sh", "-c", "sleep 4; echo FINISHED"]).stdin(Stdio::null()).current_dir(&folder.0);
        let mut run = Running::spawn(&mut shell, None);
        until("ready", Duration::from_secs(20), || run.err().contains("ready  "));
        let job = run.err().lines().next().and_then(|line| line.parse().ok()).unwrap_or_else(|| run.pid());
        let sent = Command::new("kill").args([signal, &job.to_string()]).status().unwrap();
        assert!(sent.success());
        assert_eq!(run.wait(Duration::from_secs(20)), 0, "{by}: {}", run.err());
        assert!(run.out().contains("FINISHED"), "{by}: {}{}", run.out(), run.err());
        assert!(!run.err().contains("ending:"), "{by}: {}", run.err());
    }
}

#[test]
fn a_server_under_nohup_ignores_sighup_and_ends_on_sigterm() {
    for listen in [&[][..], &["--listen", "127.0.0.1:0"]] {
        let folder = Folder::new("nohup");
        let mut shell = Command::new("nohup");
        let usual = program(&folder.0);
        shell.env_clear().envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.args([PROGRAM, "serve", "--offline"]).args(listen);
        shell.stdin(Stdio::null()).current_dir(&folder.0);
        let mut serve = Running::spawn(&mut shell, None);
        until("served", Duration::from_secs(20), || serve.err().contains("Ctrl-C ends"));
        serve.signal("-HUP");
        std::thread::sleep(Duration::from_secs(1));
        serve.signal("-TERM");
        let code = serve.wait(Duration::from_secs(15));
        assert_eq!(code, 0, "{}", serve.err());
        let still = serve.err();
        assert!(!still.contains("still ending"), "{still}");
    }
}
