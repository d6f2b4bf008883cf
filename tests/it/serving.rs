//! `serve` for programs, and `health`, without an engine.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::served::Served;
use crate::support::session::{Folder, program};

const LISTEN: [&str; 2] = ["--listen", "127.0.0.1:0"];

fn curl(url: &str) -> String {
    let out = Command::new("curl").args(["-sf", "-H", "Metadata-Flavor: Google", url]).output().unwrap();
    assert!(out.status.success(), "{url}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// Exit code and stderr of `kfp-creds health`.
fn health(arguments: &[&str]) -> (Option<i32>, String) {
    let folder = Folder::new("health");
    let mut command = program(&folder.0);
    command.env("XDG_RUNTIME_DIR", &folder.0).arg("health").args(arguments);
    let out = command.output().unwrap();
    assert!(out.stdout.is_empty(), "{out:?}");
    (out.status.code(), String::from_utf8(out.stderr).unwrap())
}

#[test]
fn the_ready_line_has_all_that_a_program_needs() {
    let folder = Folder::new("ready");
    let mut served = Served::start(&folder.0, &LISTEN);
    assert_eq!((&served.ready["ready"], &served.ready["pid"]), (&true.into(), &served.child.id().into()));
    let place = served.variable("GCE_METADATA_HOST");
    assert_eq!(
        [&served.variable("GCE_METADATA_IP"), &served.variable("GCE_METADATA_ROOT")],
        [&place, &place]
    );
    let url = format!("http://{place}/computeMetadata/v1/instance/service-accounts/default/token");
    let token: Value = serde_json::from_str(&curl(&url)).unwrap();
    assert!(token["access_token"].is_string());
    assert_eq!(served.text("jwks"), served.variable("KFP_CREDS_JWKS_URL"));
    assert!(curl(&served.text("jwks")).contains("\"keys\""));
    // There is no engine behind it.
    for name in ["socket", "page", "session", "name"] {
        assert_eq!(served.ready[name], Value::Null, "{name}");
    }
    served.signal("-TERM");
    assert_eq!(served.ended(Duration::from_secs(5)).and_then(|status| status.code()), Some(0));
}

#[test]
fn a_server_ends_with_its_stdin_if_that_is_asked_for() {
    let folder = Folder::new("stdin");
    let mut held = Served::start(&folder.0, &[&LISTEN[..], &["--stdin"]].concat());
    let mut free = Served::start(&folder.0, &LISTEN);
    held.stdin.as_mut().unwrap().write_all(b"q\nexit\n").unwrap();
    assert_eq!(held.ended(Duration::from_millis(300)), None, "what is written there means nothing");
    drop((held.stdin.take(), free.stdin.take()));
    assert_eq!(held.ended(Duration::from_secs(5)).and_then(|status| status.code()), Some(0));
    assert_eq!(free.ended(Duration::from_millis(300)), None, "stdin is nothing to it");
}

#[test]
fn health_tells_a_metadata_server_from_none() {
    let folder = Folder::new("health");
    let served = Served::start(&folder.0, &LISTEN);
    let place = served.variable("GCE_METADATA_HOST");
    let at = place.split('/').next().unwrap();
    assert_eq!(health(&["--listen", at]), (Some(0), String::new()));
    drop(served);
    let (code, said) = health(&["--listen", at]);
    assert!(code == Some(69) && said.contains(at), "{code:?} {said}");
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = other.local_addr().unwrap().to_string();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
    });
    let (code, said) = health(&["--listen", &at]);
    assert!(code == Some(69) && said.contains("no metadata server"), "{code:?} {said}");
    answering.join().unwrap();
    assert_eq!(health(&[]), (Some(69), "kfp-creds: no session runs\n".into()));
    assert_eq!(health(&["--name", "team"]).0, Some(69));
}

#[test]
fn a_service_manager_is_told_of_readiness_and_of_the_end() {
    let folder = Folder::new("notify");
    let path = folder.0.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let heard = || {
        let mut bytes = [0; 64];
        let many = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..many]).into_owned()
    };
    let mut command = program(&folder.0);
    command.args(["serve", "--json", "--offline"]).args(LISTEN).env("NOTIFY_SOCKET", &path);
    let served = Served::of(command).unwrap();
    assert_eq!(heard(), "READY=1");
    served.signal("-TERM");
    assert_eq!(heard(), "STOPPING=1");
}
