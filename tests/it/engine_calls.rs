//! Our own calls to an engine that does on demand what a real one does rarely.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kfp_creds::docker::Engine;

use crate::support::fake_engine::{Act, FakeEngine, json};
use crate::support::proxy_fixture::Scratch;
use crate::support::raw::{Running, until};
use crate::support::session::{Folder, program};

/// The container has exited before the engine reads the wait for its next exit.
#[tokio::test]
async fn a_container_that_ends_at_once_has_an_exit_code() {
    let scratch = Scratch::new();
    let ended = AtomicBool::new(false);
    let engine = FakeEngine::start(&scratch.0, move |seen| {
        let path = seen.line.split(' ').nth(1).unwrap();
        let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        if path.ends_with("/version") {
            let version =
                format!(r#"{{"Version":"20.10.24","ApiVersion":"1.41","Os":"linux","Arch":"{arch}"}}"#);
            json("200 OK", &version)
        } else if path.ends_with("/start") {
            ended.store(true, Ordering::SeqCst);
            vec![Act::Send(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())]
        } else if path.contains("/wait") && ended.load(Ordering::SeqCst) && !path.contains("next-exit") {
            json("200 OK", r#"{"StatusCode":7}"#)
        } else if path.contains("/wait") {
            vec![Act::Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec()), Act::Hold]
        } else {
            json("404 Not Found", r#"{"message":"no such path"}"#)
        }
    });
    let engine = Engine::connect(&engine.socket).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), engine.run_to_end("probe")).await;
    assert_eq!(ended.expect("it waits for another exit").unwrap(), 7);
}

/// Two signals end the program, whatever the engine does.
#[test]
fn a_hanging_engine_ends_in_a_time_out() {
    let (scratch, folder) = (Scratch::new(), Folder::new("hung"));
    let engine = FakeEngine::start(&scratch.0, |_| vec![Act::Hold]);
    let mut command = program(&folder.0);
    command.env("DOCKER_HOST", format!("unix://{}", engine.socket.display()));
    command.args(["run", "--offline", "--", "true"]);
    let mut run = Running::spawn(&mut command, Some(folder));
    until("the engine is asked", Duration::from_secs(10), || !engine.seen().is_empty());
    run.signal("-INT");
    until("it says what it waits for", Duration::from_secs(10), || {
        run.err().contains("send the signal again to leave that")
    });
    run.signal("-INT");
    assert_eq!(run.wait(Duration::from_secs(10)), 125, "{}", run.err());
    assert!(run.err().contains("stopped by a signal before the session was ready"), "{}", run.err());
}

#[tokio::test]
async fn unsupported_settings_are_refused_in_one_line() {
    let own = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let docker = |api: &str, os: &str, arch: &str| {
        format!(r#"{{"Version":"1","ApiVersion":"{api}","Os":"{os}","Arch":"{arch}"}}"#)
    };
    let podman = format!(
        r#"{{"Version":"4.3.1","ApiVersion":"1.41","Os":"linux","Arch":"{own}","Components":[{{"Name":"Podman Engine","Version":"4.3.1"}}]}}"#
    );
    for (version, why) in [
        (
            podman,
            "is Podman 4.3.1: 5.0 is the oldest that works, because earlier ones lose exit codes; update Podman"
                .to_string(),
        ),
        (
            docker("1.44", "windows", own),
            format!("runs windows/{own} containers: switch it to Linux containers"),
        ),
        (
            docker("1.40", "linux", own),
            "speaks API 1.40: Docker Engine 20.10 (API 1.41) is the oldest that works".into(),
        ),
    ] {
        let scratch = Scratch::new();
        let engine = FakeEngine::start(&scratch.0, move |_| json("200 OK", &version));
        let said = Engine::connect(&engine.socket).await.unwrap_err().to_string();
        assert!(said.ends_with(&why) && !said.contains('\n'), "{said}");
    }
}

/// A user who may not open the socket gets advice about rights, not about starting the engine.
#[test]
fn missing_rights_differ_from_an_engine_that_does_not_run() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let (scratch, folder) = (Scratch::new(), Folder::new("rights"));
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let engine = FakeEngine::start(&scratch.0, |_| json("500 Oops", "{}"));
    let said = |command: &str, mode: u32| {
        open(&engine.socket, mode);
        [&scratch.0, &folder.0].into_iter().for_each(|path| open(path, 0o777));
        let mut process = program(&folder.0);
        process.env("DOCKER_HOST", format!("unix://{}", engine.socket.display()));
        process.env("XDG_RUNTIME_DIR", &folder.0).args([command, "--offline"]);
        if command == "run" {
            process.args(["--", "true"]);
        }
        if rustix::process::getuid().is_root() {
            process.uid(4242).gid(4242);
        }
        let out = process.output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
    };
    // The socket's group is root's or this user's own, so the message does not advise joining a group.
    for command in ["run", "check"] {
        let told = said(command, 0o600);
        assert!(told.contains("you may not use it"), "{told}");
        assert!(!told.contains("is the engine running") && !told.contains("systemctl"), "{told}");
    }
    if rustix::process::getuid().is_root() {
        std::os::unix::fs::chown(&engine.socket, None, Some(4)).unwrap();
        let group = std::fs::read_to_string("/etc/group").unwrap();
        let name = group.lines().find(|line| line.contains(":x:4:")).unwrap().split(':').next().unwrap();
        let told = said("run", 0o660);
        let fix = format!("sudo usermod -aG {name} $USER, then log in again");
        assert!(told.contains(&fix) && told.trim().lines().count() == 1, "{told}");
        // Once on its line and once at the end, and not again as the fix below the line.
        assert_eq!(said("check", 0o660).matches(&fix).count(), 2);
    }
    std::fs::remove_file(&engine.socket).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&engine.socket).unwrap());
    let told = said("run", 0o666);
    assert!(told.contains("nobody listens: is the engine running?"), "{told}");
}

/// Administrators of Docker Desktop can forbid `docker load`, and can isolate containers.
#[test]
fn restrictions_of_docker_desktop_are_named() {
    let (scratch, folder) = (Scratch::new(), Folder::new("desktop"));
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let engine = FakeEngine::start(&scratch.0, move |seen| {
        let path = seen.line.split(' ').nth(1).unwrap();
        let version = format!(
            r#"{{"Platform":{{"Name":"Docker Desktop 4.48.0 (1)"}},"Version":"28.5.1","ApiVersion":"1.51","Os":"linux","Arch":"{arch}"}}"#
        );
        match path {
            _ if path.ends_with("/version") => json("200 OK", &version),
            _ if path.ends_with("/info") => json("200 OK", r#"{"DefaultRuntime":"sysbox-runc"}"#),
            _ if path.contains("/networks/create") => json("201 Created", r#"{"Id":"net","Warning":""}"#),
            _ if path.contains("/images/load") => {
                json("403 Forbidden", r#"{"message":"not for you, 0xdeadbeef"}"#)
            }
            _ if path.contains("/images/json")
                || path.contains("/networks")
                || path.contains("/containers/json") =>
            {
                match seen.is("GET") {
                    true => json("200 OK", "[]"),
                    false => vec![Act::Send(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())],
                }
            }
            _ => json("404 Not Found", r#"{"message":"no such thing"}"#),
        }
    });
    let mut check = program(&folder.0);
    check.env("DOCKER_HOST", format!("unix://{}", engine.socket.display())).args(["check", "--offline"]);
    let out = check.env("XDG_RUNTIME_DIR", &folder.0).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("docker 28.5.1 (Docker Desktop)"), "{text}");
    assert!(text.contains("Enhanced Container Isolation is on"), "{text}");
    assert!(text.contains("blockDockerLoad") && !text.contains("0xdeadbeef"), "{text}");
}
