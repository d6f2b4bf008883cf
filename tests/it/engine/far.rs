//! Engines that are not on a unix socket of this machine: TCP with client certificates, and ssh.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::far_engine::{certificates, fake_ssh, serve};
use crate::support::raw::{Container, Running, ask, token, until};
use crate::support::session::{Folder, Session, engine_socket, program, raw, task_image};

/// Everything that a session does: tokens, streams whose stdin ends, exit codes, logs, exec, a restart, the
/// end.
fn works(session: Session, place: &str) {
    let image = task_image();
    let container = Container::of(&session, &[&image, "sh", "-c", &ask()]);
    assert_eq!(token(&session.ok(&["start", "-a", &container.0]))["container"], container.0);
    // The container sees the end of stdin, and its output still arrives.
    let mut cat = Command::new("docker")
        .args(["-H", &format!("unix://{}", session.socket.display()), "run", "--rm", "-i", &image])
        .args(["sh", "-c", "cat; echo the end; exit 6"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut cat.stdin.take().unwrap(), b"said\n").unwrap();
    let out = cat.wait_with_output().unwrap();
    assert_eq!(
        (out.status.code(), out.stdout.as_slice()),
        (Some(6), &b"said\nthe end\n"[..]),
        "{}",
        session.said()
    );
    let sleeper = Container::of(&session, &[&image, "sh", "-c", "echo up; exec sleep 60"]);
    session.ok(&["start", &sleeper.0]);
    assert_eq!(session.ok(&["exec", &sleeper.0, "sh", "-c", "echo inside"]), "inside");
    assert_eq!(session.ok(&["logs", &sleeper.0]), "up");
    session.ok(&["restart", "-t", "0", &sleeper.0]);
    until("tokens again", Duration::from_secs(10), || sleeper.asks().1 == 200);
    session.ok(&["rm", "-f", &sleeper.0]);
    until("all ends are reported", Duration::from_secs(10), || {
        session.said().matches("ended  ").count() == 4
    });
    let said = session.said();
    assert!(said.contains("exit code 6") && said.contains("exit code 137"), "{said}");
    let notices = said.lines().filter(|line| line.contains("are paths of that machine")).count();
    assert!(notices == 1 && said.contains(&format!("the engine is at {place}")), "{said}");
    let id = session.socket.file_stem().unwrap().to_string_lossy().into_owned();
    let (code, said) = session.end();
    assert_eq!(code, Some(0), "{said}");
    until("its relay ends", Duration::from_secs(5), || {
        raw(&["ps", "-aq", "--filter", &format!("name=kfp-creds-relay-{id}")]).is_empty()
    });
    assert_eq!(raw(&["network", "ls", "-q", "--filter", &format!("label=kfp-creds.session={id}")]), "");
}

/// Runs `run -- true` with this environment; returns the output.
fn refused(environment: &[(&str, &str)], config: &str) -> String {
    let folder = Folder::new("far");
    std::fs::write(folder.0.join("kfp-creds.toml"), config).unwrap();
    let mut command = program(&folder.0);
    command.args(["run", "--offline", "--", "true"]).envs(environment.iter().copied());
    let out = command.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(125) && said.trim().lines().count() == 1, "{:?} {said}", out.status);
    said
}

#[test]
fn an_engine_behind_tls_works_with_client_certificates() {
    let folder = Folder::new("tls");
    certificates(&folder.0);
    let port = serve(Some(&folder.0), engine_socket());
    let (host, certs) = (format!("tcp://127.0.0.1:{port}"), folder.0.display().to_string());
    let environment =
        [("DOCKER_HOST", host.as_str()), ("DOCKER_TLS_VERIFY", "1"), ("DOCKER_CERT_PATH", &certs)];
    works(Session::start("", &["--offline", "--all"], &environment), &host);

    // A session inside a session finds the engine behind the outer one, with its certificates.
    let session = Session::start("", &["--offline", "--all"], &environment);
    let outer = format!("unix://{}", session.socket.display());
    let inner = Session::start("", &["--offline", "--all"], &[("DOCKER_HOST", &outer)]);
    assert!(inner.said().contains(&format!("the engine is at {host}")), "{}", inner.said());
    drop(inner);
    drop(session);

    // Both sides have to prove who they are.
    let other = Folder::new("tls");
    certificates(&other.0);
    let others = other.0.display().to_string();
    let said = refused(&[environment[0], environment[1], ("DOCKER_CERT_PATH", &others)], "");
    assert!(said.contains("its certificate is not signed by ca.pem"), "{said}");
    std::fs::copy(folder.0.join("ca.pem"), other.0.join("ca.pem")).unwrap();
    let said = refused(&[environment[0], environment[1], ("DOCKER_CERT_PATH", &others)], "");
    assert!(said.contains("is cert.pem one that it knows?"), "{said}");
    std::fs::copy(folder.0.join("cert.pem"), other.0.join("cert.pem")).unwrap();
    let said = refused(&[environment[0], environment[1], ("DOCKER_CERT_PATH", &others)], "");
    assert!(said.contains("do not belong together"), "{said}");
    std::fs::write(other.0.join("ca.pem"), "no certificate").unwrap();
    let said = refused(&[environment[0], environment[1], ("DOCKER_CERT_PATH", &others)], "");
    assert!(said.contains("ca.pem: cannot be read as PEM"), "{said}");
}

#[test]
fn an_engine_on_plain_tcp_needs_the_operators_consent() {
    let port = serve(None, engine_socket());
    let host = format!("tcp://127.0.0.1:{port}");
    let said = refused(&[("DOCKER_HOST", &host)], "");
    assert!(said.contains("is TCP without TLS") && said.contains("plain_tcp = true"), "{said}");
    // A project's file may neither allow this nor name an engine before it is trusted.
    let said = refused(&[("DOCKER_HOST", &host)], "plain_tcp = true\n");
    assert!(said.contains("config trust"), "{said}");
    let said = refused(&[("DOCKER_HOST", &host)], "engine = \"ssh://elsewhere\"\n");
    assert!(said.contains("config trust"), "{said}");
    let environment = [("DOCKER_HOST", host.as_str()), ("KFP_CREDS_PLAIN_TCP", "true")];
    works(Session::start("", &["--offline", "--all"], &environment), &host);
    let said = refused(&[("DOCKER_HOST", "tcp://127.0.0.1:9"), ("KFP_CREDS_PLAIN_TCP", "true")], "");
    assert!(said.contains("nobody listens: is the engine running?"), "{said}");
}

fn path(bin: &std::path::Path) -> String {
    format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())
}

#[test]
fn an_engine_behind_ssh_works() {
    let folder = Folder::new("ssh");
    let bin = fake_ssh(&folder.0, &engine_socket(), &["-l", "me", "-p", "2222", "--", "build.example"]);
    let (host, place) = ("ssh://me@build.example:2222", path(&bin));
    works(Session::start("", &["--offline", "--all"], &[("DOCKER_HOST", host), ("PATH", &place)]), host);
    let calls = std::fs::read_to_string(folder.0.join("calls")).unwrap();
    assert!(calls.lines().count() > 10, "{calls}");

    for (host, why) in [
        (
            "ssh://elsewhere",
            "ssh failed to connect or to log in (it has to work without a password); try: ssh elsewhere true",
        ),
        ("ssh://-oProxyCommand=touch$IFS/x", "names begin with a letter or a digit"),
        ("ssh://me:word@build.example", "contains a password"),
    ] {
        let said = refused(&[("DOCKER_HOST", host), ("PATH", &place)], "");
        assert!(said.contains(why) && !said.contains("word@"), "{said}");
    }
    let nowhere = Folder::new("nothing");
    let said = refused(&[("DOCKER_HOST", host), ("PATH", &nowhere.0.display().to_string())], "");
    assert!(said.contains("needs the program ssh"), "{said}");
}

/// The terminal signals its whole foreground group, which does not include ssh.
#[test]
fn an_interrupt_leaves_ssh_open_until_the_end() {
    let folder = Folder::new("ssh");
    let bin = fake_ssh(&folder.0, &engine_socket(), &["--", "build"]);
    let script = format!("docker run -d {} sleep 90; exec sleep 60", task_image());
    let home = Folder::new("run");
    let mut command = program(&home.0);
    command.env("DOCKER_HOST", "ssh://build").env("PATH", path(&bin));
    command.args(["run", "--offline", "--all", "--", "sh", "-c", &script]).stdin(Stdio::null());
    let mut run = Running::spawn(&mut command, Some(home));
    until("a container", Duration::from_secs(30), || run.out().lines().count() == 1);
    let container = Container(run.out().trim().into());
    until("it runs", Duration::from_secs(10), || container.inspect("{{.State.Running}}") == "true");
    let group = format!("-{}", run.pid());
    assert!(Command::new("kill").args(["-INT", "--", &group]).status().unwrap().success());
    run.wait(Duration::from_secs(20));
    assert!(run.err().contains("ended  ") && !run.err().contains("stays"), "{}", run.err());
    assert_eq!(container.inspect("{{.State.Running}}"), "false", "{}", run.err());
}
