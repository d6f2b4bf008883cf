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

/// Runs `kfp-creds health`: exit code and stderr.
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
    // With one of these variables, a client would not ask the server.
    let unset: Vec<&str> =
        served.ready["unset"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for name in ["GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_AUTH_ACCESS_TOKEN", "METADATA_SERVER_DETECTION"]
    {
        assert!(unset.contains(&name), "{name}: {unset:?}");
    }
    // There is no engine, so these are null.
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
    assert_eq!(held.ended(Duration::from_millis(300)), None, "input on stdin is ignored");
    drop((held.stdin.take(), free.stdin.take()));
    assert_eq!(held.ended(Duration::from_secs(5)).and_then(|status| status.code()), Some(0));
    assert_eq!(free.ended(Duration::from_millis(300)), None, "the end of stdin is ignored");
}

#[test]
fn health_succeeds_only_for_a_running_metadata_server() {
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
    assert!(code == Some(69) && said.contains("is not a metadata server"), "{code:?} {said}");
    answering.join().unwrap();
    assert_eq!(health(&[]), (Some(69), "kfp-creds: no session runs\n".into()));
    assert_eq!(health(&["--session", "team"]).0, Some(69));
}

#[test]
fn a_service_manager_is_notified_of_readiness_and_stop() {
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

fn said(arguments: &[&str], folder: &Folder) -> String {
    let out = program(&folder.0).args(arguments).output().unwrap();
    assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn completions_and_manual_are_valid() {
    let folder = Folder::new("shells");
    let script = folder.0.join("completions");
    std::fs::write(&script, said(&["completions", "bash"], &folder)).unwrap();
    let typed = "source \"$0\" && COMP_WORDS=(kfp-creds ser) COMP_CWORD=1 && _kfp__creds kfp-creds ser && echo ${COMPREPLY[@]}";
    let out = Command::new("bash").args(["-c", typed]).arg(&script).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "serve\n", "{out:?}");
    assert!(said(&["man"], &folder).contains(".TH kfp-creds 1"));
    let pages = folder.0.join("man");
    std::fs::create_dir(&pages).unwrap();
    assert_eq!(said(&["man", pages.to_str().unwrap()], &folder), "");
    assert!(std::fs::read_to_string(pages.join("kfp-creds-run.1")).unwrap().contains("processes"));
}

#[test]
fn config_show_names_who_set_each_key_and_shows_no_secret() {
    let folder = Folder::new("shown");
    let secret = format!("ya29.{}", "a1B2c3D4e5F6g7H8".repeat(4));
    let text = format!(
        "project = \"p\"\nzone = \"us-central1-a\"\n[attributes]\nx = \"{secret}\"\n\
         [[rule]]\nimage = \"a/*\"\nidentity = \"none\"\n"
    );
    std::fs::write(folder.0.join("kfp-creds.toml"), text).unwrap();
    let mut command = program(&folder.0);
    command.args(["config", "show", "--offline"]).env("KFP_CREDS_PROJECT", "q");
    let out = command.output().unwrap();
    let shown = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let line = |key: &str| {
        let line = shown.lines().find(|line| line.split(' ').next() == Some(key));
        line.unwrap_or_else(|| panic!("no {key}: {shown}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("project"), "project \"q\" KFP_CREDS_PROJECT");
    assert_eq!(line("credentials"), "credentials \"offline\" --offline");
    assert!(
        line("zone").starts_with("zone \"us-central1-a\" ") && line("zone").ends_with("kfp-creds.toml:2:1")
    );
    assert!(line("rule[1].image").contains("\"a/*\""), "{shown}");
    assert!(line("attributes.x").contains("not shown") && !shown.contains(&secret), "{shown}");
    assert!(said(&["config", "show"], &Folder::new("unset")).starts_with("nothing is set"));
}

/// docker itself, if it is installed, with the program as its plugin.
#[test]
fn docker_runs_the_program_as_a_plugin() {
    let folder = Folder::new("plugin");
    let plugins = folder.0.join(".docker/cli-plugins");
    std::fs::create_dir_all(&plugins).unwrap();
    let plugin = plugins.join("docker-creds");
    std::os::unix::fs::symlink(crate::support::session::PROGRAM, &plugin).unwrap();
    let usual = program(&folder.0);
    let docker = |arguments: &[&str]| {
        let mut command = Command::new("docker");
        command.env_clear().envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("DOCKER_CONFIG", folder.0.join(".docker")).current_dir(&folder.0);
        command.args(arguments).output().unwrap()
    };
    let out = docker(&["creds", "config", "show"]);
    assert_eq!(
        (out.status.code(), &*String::from_utf8_lossy(&out.stdout)),
        (Some(0), "nothing is set: every key has its default (docs/reference/config.md)\n"),
        "{out:?}"
    );
    assert!(String::from_utf8_lossy(&docker(&["--help"]).stdout).contains("creds*"));
    let out = docker(&["creds", "run", "--no-such-flag"]);
    assert_eq!(out.status.code(), Some(125), "{out:?}");
}
