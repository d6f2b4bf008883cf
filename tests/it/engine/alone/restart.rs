//! The engine ends under a session, and comes back or not. With a separate engine.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::raw::{Running, TOKEN, until};
use crate::support::second_engine::{IMAGE, SecondEngine};
use crate::support::session::{Folder, Session, docker_at, program};

/// A command that requests a token. (The `wget` of a static busybox cannot resolve names.)
pub(super) fn asks() -> String {
    format!(
        "(printf 'GET /{TOKEN} HTTP/1.0\\r\\nHost: %s\\r\\nMetadata-Flavor: Google\\r\\n\\r\\n' $GCE_METADATA_HOST; \
         sleep 2) | nc -w 4 $GCE_METADATA_HOST 80"
    )
}

/// The same, and keeps running.
pub(super) fn stays() -> String {
    asks() + "; echo; exec sleep 120"
}

pub(super) fn tokens(engine: &SecondEngine, container: &str) -> usize {
    String::from_utf8_lossy(&engine.docker(&["logs", container]).stdout).matches("access_token").count()
}

#[test]
fn a_session_survives_the_restart_of_its_engine() {
    let mut engine = SecondEngine::start();
    let host = engine.host();
    let session = Session::start("", &["--offline", "--all"], &[("DOCKER_HOST", &host)]);
    let script = stays();
    let plain = session.ok(&["run", "-d", "--stop-timeout", "1", IMAGE, "sh", "-c", &script]);
    let auto = session.ok(&["run", "-d", "--rm", "--stop-timeout", "1", IMAGE, "sh", "-c", &script]);
    let always =
        session.ok(&["run", "-d", "--stop-timeout", "1", "--restart", "always", IMAGE, "sh", "-c", &script]);
    for container in [&plain, &auto, &always] {
        until("a token", Duration::from_secs(10), || tokens(&engine, container) == 1);
    }

    let began = Instant::now();
    engine.down();
    let down = began.elapsed();
    engine.up();
    let up = Instant::now();
    let new = loop {
        let out = session.docker(&["run", "-d", "--stop-timeout", "1", IMAGE, "sh", "-c", &script]);
        if out.status.success() {
            break String::from_utf8_lossy(&out.stdout).trim().to_string();
        }
        assert!(up.elapsed() < Duration::from_secs(30), "{out:?}\n{}", session.said());
        std::thread::sleep(Duration::from_millis(200));
    };
    until("the new container's token", Duration::from_secs(30) - up.elapsed(), || tokens(&engine, &new) == 1);
    eprintln!(
        "down after {:.1} s; tokens {:.1} s after the engine answered",
        down.as_secs_f64(),
        up.elapsed().as_secs_f64()
    );
    eprintln!("{}", session.wait_for("the relay died and was replaced", Duration::from_secs(1)));
    // The relay ended by itself: the engine did not have to kill it after a time-out.
    assert!(down < Duration::from_secs(9), "{down:?}");
    session.ok(&["start", &plain]);
    until("the old container has its identity again", Duration::from_secs(10), || {
        tokens(&engine, &plain) == 2
    });
    until("the container with a policy has its identity, too", Duration::from_secs(20), || {
        let asked = engine.ok(&["exec", &always, "sh", "-c", &asks()]);
        asked.contains("access_token")
    });
    let (code, said) = session.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.lines().any(|l| l.contains("ended  ") && l.contains(&auto[..12])), "{said}");
}

#[test]
fn without_its_engine_a_run_ends_with_125_and_the_next_sweeps() {
    let mut engine = SecondEngine::start();
    let folder = Folder::new("run");
    let mut command = program(&folder.0);
    let script = format!(
        "trap 'exit 0' TERM; docker run -d --stop-timeout 1 {IMAGE} sleep 100; docker create {IMAGE} true; sleep 100 & wait"
    );
    command.args(["run", "--offline", "--all", "--", "sh", "-c", &script]).stdin(Stdio::null());
    command.env("DOCKER_HOST", engine.host());
    let mut run = Running::spawn(&mut command, Some(folder));
    until("two containers", Duration::from_secs(20), || run.out().lines().count() == 2);
    engine.down();
    let gone = Instant::now();
    let code = run.wait(Duration::from_secs(60));
    let said = run.err();
    eprintln!("ended {:.1} s after the engine: {said}", gone.elapsed().as_secs_f64());
    assert_eq!(code, 125, "{said}");
    assert_eq!(
        said.lines().filter(|line| line.contains("the relay does not come back")).count(),
        1,
        "{said}"
    );
    let _ =
        Command::new("kill").args(["-KILL", "--", &format!("-{}", run.pid())]).stderr(Stdio::null()).status();

    engine.up();
    let host = engine.host();
    let session = Session::start("", &["--offline", "--all"], &[("DOCKER_HOST", &host)]);
    assert!(session.said().contains("swept session"), "{}", session.said());
    // A container that never ran was taken off the removed network, too.
    for container in run.out().lines() {
        engine.ok(&["start", container]);
    }
    let networks =
        docker_at(&engine.socket(), &["network", "ls", "-q", "--filter", "label=kfp-creds.session"]);
    assert_eq!(String::from_utf8_lossy(&networks.stdout).lines().count(), 1);
    let script = stays();
    let container = session.ok(&["run", "-d", "--stop-timeout", "1", IMAGE, "sh", "-c", &script]);
    until("a token", Duration::from_secs(10), || tokens(&engine, &container) == 1);
}
