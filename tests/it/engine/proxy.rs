//! The proxy with a real engine. The engine's socket is `DOCKER_HOST`, else `/var/run/docker.sock`; without
//! an engine these tests fail, unless `KFP_CREDS_TEST_NO_DOCKER=1` allows it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::proxy_fixture::{ProxyFixture, Scratch, call};

const IMAGE: &str = "kfp-creds-test-proxy:busybox";

/// The engine's socket, with the test image loaded.
fn engine() -> Option<PathBuf> {
    static ENGINE: OnceLock<Option<PathBuf>> = OnceLock::new();
    ENGINE
        .get_or_init(|| {
            if std::env::var("KFP_CREDS_TEST_NO_DOCKER").is_ok_and(|value| value == "1") {
                eprintln!("KFP_CREDS_TEST_NO_DOCKER=1: not run against an engine");
                return None;
            }
            let host = std::env::var("DOCKER_HOST").unwrap_or_default();
            let socket = host.strip_prefix("unix://").unwrap_or("/var/run/docker.sock");
            let reached = std::os::unix::net::UnixStream::connect(socket);
            assert!(reached.is_ok(), "no engine at {socket}; start one or set KFP_CREDS_TEST_NO_DOCKER=1");
            load_image(Path::new(socket));
            Some(socket.into())
        })
        .clone()
}

/// Loads an image with one static binary, made here.
fn load_image(socket: &Path) {
    if docker(socket, &["image", "inspect", IMAGE]).status.success() {
        return;
    }
    let scratch = Scratch::new();
    let root = scratch.0.join("root");
    for dir in ["bin", "tmp", "data"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    let copied = std::fs::copy("/bin/busybox", root.join("bin/busybox"));
    assert!(copied.is_ok(), "/bin/busybox is missing; install busybox-static");
    for applet in ["sh", "cat", "head", "sleep", "echo", "sha1sum", "true", "env", "printf", "tty", "seq"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let tar = scratch.0.join("image.tar");
    assert!(
        Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status().unwrap().success()
    );
    let imported = docker(
        socket,
        &["import", "-c", "ENV PATH=/bin", "-c", "CMD [\"true\"]", tar.to_str().unwrap(), IMAGE],
    );
    assert!(imported.status.success(), "{imported:?}");
}

fn command(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.env_remove("DOCKER_TLS_VERIFY").env_remove("DOCKER_CERT_PATH").env_remove("DOCKER_CONTEXT");
    command.env("DOCKER_HOST", format!("unix://{}", socket.display())).args(arguments);
    command
}

fn docker(socket: &Path, arguments: &[&str]) -> Output {
    command(socket, arguments).stdin(Stdio::null()).output().unwrap()
}

fn fed(socket: &Path, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = command(socket, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    output
}

/// A container name of this test, removed at its end.
struct Container(PathBuf, String);

impl Container {
    fn new(socket: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(socket.into(), format!("kfpct-{}-{number}", std::process::id()))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        docker(&self.0, &["rm", "-f", &self.1]);
    }
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_command_line_does_the_same_through_the_proxy() {
    let Some(engine) = engine() else { return };
    let proxy = ProxyFixture::new(&engine);
    let big: Vec<u8> = (0..20u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    let run = ["run", "--rm", "--network", "none"];
    let both = |arguments: &[&str], input: &[u8]| {
        let all: Vec<&str> = run.iter().chain(arguments).copied().collect();
        let (direct, proxied) = (fed(&engine, &all, input), fed(&proxy.socket, &all, input));
        assert_eq!(text(&direct), text(&proxied), "{arguments:?}");
        text(&proxied)
    };
    let plain = both(&[IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7"], b"");
    assert_eq!(plain, (Some(7), "out\n".into(), "err\n".into()));
    // 20 MB of stdin, which ends while output is still to come.
    let (code, sum, _) = both(&["-i", IMAGE, "sh", "-c", "sha1sum; echo after"], &big);
    assert!(code == Some(0) && sum.ends_with("  -\nafter\n"), "{sum}");
    // 20 MB out.
    let (_, echoed, _) = both(&["-i", IMAGE, "sh", "-c", "cat | sha1sum; seq 1 2000000"], &big[..1 << 20]);
    assert!(echoed.len() > 14_000_000);
    // A reader that stops early.
    assert_eq!(both(&["-i", IMAGE, "head", "-c", "4"], b"abcdefgh").1, "abcd");
    assert_eq!(both(&["--entrypoint", "/nope", IMAGE], b"").0, Some(127));
}

#[test]
fn a_terminal_works_through_the_proxy() {
    let Some(engine) = engine() else { return };
    let proxy = ProxyFixture::new(&engine);
    for socket in [&engine, &proxy.socket] {
        let line = format!(
            "docker -H unix://{} run --rm -it --network none {IMAGE} sh -c 'tty; read line; echo got $line; exit 5'",
            socket.display()
        );
        let mut child = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::sleep(Duration::from_secs(3));
        stdin.write_all(b"hello\n").unwrap();
        let output = child.wait_with_output().unwrap();
        let (code, out, _) = text(&output);
        assert!(out.contains("/dev/pts/0") && out.contains("got hello"), "{out}");
        assert_eq!(code, Some(5));
    }
}

#[test]
fn an_attached_container_ends_with_its_stdin() {
    let Some(engine) = engine() else { return };
    let proxy = ProxyFixture::new(&engine);
    let socket = &proxy.socket;
    let container = Container::new(&engine);
    let name = container.1.as_str();
    let loud = "echo ready; while read line; do echo heard $line; done; exit 4";
    let create = ["create", "-i", "--name", name, "--network", "none", IMAGE, "sh", "-c", loud];
    assert!(docker(socket, &create).status.success());
    let attached = std::thread::spawn({
        let (socket, name) = (socket.clone(), name.to_string());
        move || fed(&socket, &["start", "-ai", &name], &[])
    });
    // `start -ai` has an empty stdin, whose end ends the loop.
    assert_eq!(text(&attached.join().unwrap()), (Some(4), "ready\n".into(), String::new()));
}

#[test]
fn a_running_container_is_used_through_the_proxy() {
    let Some(engine) = engine() else { return };
    let proxy = ProxyFixture::new(&engine);
    let socket = &proxy.socket;
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let sleeper = Container::new(&engine);
    let name = sleeper.1.as_str();
    let slow = "echo one; sleep 2; echo two; sleep 600";
    assert!(
        docker(socket, &["run", "-d", "--name", name, "--network", "none", IMAGE, "sh", "-c", slow])
            .status
            .success()
    );
    let mut follow = command(socket, &["logs", "-f", name]).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(
        text(&docker(socket, &["exec", name, "sh", "-c", "echo x; exit 9"])),
        (Some(9), "x\n".into(), "".into())
    );
    let (code, sum, _) = text(&fed(socket, &["exec", "-i", name, "sha1sum"], &[b'q'; 3 << 20]));
    assert_eq!(
        (code, sum.as_str()),
        (Some(0), text(&fed(&engine, &["exec", "-i", name, "sha1sum"], &[b'q'; 3 << 20])).1.as_str())
    );
    assert!(docker(socket, &["exec", "-d", name, "true"]).status.success());
    let scratch = Scratch::new();
    let (there, back) = (scratch.0.join("there"), scratch.0.join("back"));
    std::fs::write(&there, vec![3; 5 << 20]).unwrap();
    assert!(docker(socket, &["cp", there.to_str().unwrap(), &format!("{name}:/data/f")]).status.success());
    assert!(docker(socket, &["cp", &format!("{name}:/data/f"), back.to_str().unwrap()]).status.success());
    assert_eq!(std::fs::read(back).unwrap(), vec![3; 5 << 20]);
    assert!(text(&docker(socket, &["stats", "--no-stream", name])).1.contains(name));
    assert!(text(&docker(socket, &["top", name])).1.contains("sleep"));
    let waiting = std::thread::spawn({
        let (socket, name) = (socket.clone(), name.to_string());
        move || docker(&socket, &["wait", &name])
    });
    std::thread::sleep(Duration::from_millis(500));
    assert!(docker(socket, &["kill", name]).status.success());
    assert_eq!(text(&waiting.join().unwrap()).1, "137\n");
    follow.wait().unwrap();
    let mut out = String::new();
    std::io::Read::read_to_string(&mut follow.stdout.take().unwrap(), &mut out).unwrap();
    assert_eq!(out, "one\ntwo\n");
    let until = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 1;
    let events = [
        "events",
        "--since",
        &since.to_string(),
        "--until",
        &until.to_string(),
        "--filter",
        &format!("container={name}"),
        "--format",
        "{{.Action}}",
    ];
    let proxied = text(&docker(socket, &events)).1;
    assert_eq!(proxied, text(&docker(&engine, &events)).1);
    assert!(proxied.contains("create\n") && proxied.contains("die\n"), "{proxied}");
}

fn create(socket: &Path, query: &str, mut body: Value) -> (u16, Value) {
    body["Image"] = IMAGE.into();
    let (status, body) = call(socket, &format!("POST /v1.41/containers/create{query}"), &body.to_string());
    (status, serde_json::from_str(&body).unwrap_or_default())
}

/// A network without a way out, so that these containers reach nothing.
fn internal_network(engine: &Path, suffix: &str) -> Network {
    let name = format!("kfpct-net-{}-{suffix}", std::process::id());
    assert!(docker(engine, &["network", "create", "--internal", &name]).status.success());
    Network(engine.into(), name)
}

struct Network(PathBuf, String);

impl Drop for Network {
    fn drop(&mut self) {
        docker(&self.0, &["network", "rm", &self.1]);
    }
}

#[test]
fn the_created_container_is_the_judged_one() {
    let Some(engine) = engine() else { return };
    let proxy = ProxyFixture::new(&engine);
    let network = internal_network(&engine, "a");
    let inspect = |id: &str| -> Value {
        serde_json::from_str(&call(&engine, &format!("GET /v1.41/containers/{id}/json"), "").1).unwrap()
    };
    let container = Container::new(&engine);
    let query = format!("?name={}", container.1);
    let (status, answer) = create(
        &proxy.socket,
        &query,
        json!({"hostconfig": {"networkmode": network.1}, "env": ["NO_PROXY=corp"], "Labels": {"kfp-creds.session": "x"}}),
    );
    assert_eq!(status, 201, "{answer}");
    let made = inspect(answer["Id"].as_str().unwrap());
    let env = made["Config"]["Env"].as_array().unwrap();
    assert!(env.contains(&json!("GCE_METADATA_HOST=169.254.169.254")), "{env:?}");
    assert!(
        env.iter()
            .any(|entry| entry.as_str().unwrap().starts_with("NO_PROXY=corp,metadata.google.internal,"))
    );
    assert_eq!(made["HostConfig"]["CapDrop"], json!(["NET_RAW"]));
    assert_eq!(made["HostConfig"]["NetworkMode"], network.1);
    assert_eq!(made["Config"]["Labels"]["kfp-creds.session"], "0123abcd");
    assert!(
        made["HostConfig"]["ExtraHosts"]
            .as_array()
            .unwrap()
            .contains(&json!("metadata.google.internal:169.254.169.254"))
    );
    // It has an identity now, so its namespaces and privileged execs are closed.
    let id = made["Id"].as_str().unwrap();
    for mode in
        [format!("container:{id}"), format!("container:{}", &id[..12]), format!("container:{}", container.1)]
    {
        let (status, answer) = create(&proxy.socket, "", json!({"HostConfig": {"NetworkMode": mode}}));
        assert_eq!(status, 403, "{answer}");
    }
    let exec = format!("POST /v1.41/containers/{}/exec", &id[..10]);
    assert_eq!(call(&proxy.socket, &exec, r#"{"Privileged":true,"Cmd":["true"]}"#).0, 403);

    for body in [
        json!({"HostConfig": {"Privileged": true, "NetworkMode": "none"}}),
        json!({"HostConfig": {"NetworkMode": "none"}}),
    ] {
        let (status, answer) = create(&proxy.socket, "", body);
        assert_eq!(status, 201, "{answer}");
        let id = answer["Id"].as_str().unwrap();
        let made = inspect(id);
        assert_eq!(made["Config"]["Env"], json!(["PATH=/bin"]));
        assert_eq!(made["HostConfig"]["CapDrop"], json!(null));
        assert_eq!(call(&engine, &format!("DELETE /v1.41/containers/{id}"), "").0, 204);
    }
    assert!(proxy.said().contains("it is privileged") && proxy.said().contains("it asked for no network"));
}

#[test]
fn a_chunked_create_is_judged_and_failure_leaves_nothing() {
    let Some(engine) = engine() else { return };
    let proxy = ProxyFixture::new(&engine);
    let network = internal_network(&engine, "b");
    let container = Container::new(&engine);
    let body = json!({"Image": IMAGE, "HostConfig": {"NetworkMode": network.1}}).to_string();
    let chunked = |name: &str| {
        let (one, two) = body.split_at(9);
        let request = format!(
            "POST /%63ontainers/create?name={name} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\n\r\n",
            one.len(),
            two.len()
        );
        crate::support::proxy_fixture::raw(&proxy.socket, request)
    };
    let reply = chunked(&container.1);
    assert!(reply.starts_with("HTTP/1.1 201 Created\r\n"), "{reply}");
    let made = call(&engine, &format!("GET /containers/{}/json", container.1), "").1;
    assert!(made.contains("GCE_METADATA_IP=169.254.169.254"), "{made}");
    *proxy.lifecycle.fails.lock().unwrap() = Some("the network is gone; start a new session".into());
    let second = Container::new(&engine);
    let reply = chunked(&second.1);
    assert!(reply.starts_with("HTTP/1.1 500") && reply.contains("the network is gone"), "{reply}");
    assert_eq!(call(&engine, &format!("GET /containers/{}/json", second.1), "").0, 404);
}

/// The calls of docker-py for kfp: create, start, logs to their end, wait. Returns the exit code, or the
/// status of the wait.
fn as_kfp_does(socket: &Path, code: u8) -> Result<i64, u16> {
    let body = json!({"Cmd": ["sh", "-c", format!("exit {code}")], "HostConfig": {"AutoRemove": true, "NetworkMode": "none"}});
    let (status, answer) = create(socket, "", body);
    assert_eq!(status, 201, "{answer}");
    let id = answer["Id"].as_str().unwrap();
    assert_eq!(call(socket, &format!("POST /v1.41/containers/{id}/start"), "").0, 204);
    let _ = call(socket, &format!("GET /v1.41/containers/{id}/logs?stdout=1&stderr=1&follow=1"), "");
    let (status, body) = call(socket, &format!("POST /v1.41/containers/{id}/wait"), "");
    match serde_json::from_str::<Value>(&body).unwrap_or_default()["StatusCode"].as_i64() {
        Some(found) if status == 200 => Ok(found),
        _ => Err(status),
    }
}

fn lost(socket: &Path, count: u32) -> Vec<Result<i64, u16>> {
    let next = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    let mut wrong = vec![];
                    while next.fetch_add(1, Ordering::Relaxed) < count {
                        let got = as_kfp_does(socket, 3);
                        wrong.extend((got != Ok(3)).then_some(got));
                    }
                    wrong
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

/// `KFP_CREDS_TEST_CONTAINERS` sets the number; with `KFP_CREDS_TEST_DIRECT=1` it counts at the engine alone
/// too, to show what the proxy repairs.
#[test]
fn no_exit_code_of_a_fast_container_is_lost() {
    let Some(engine) = engine() else { return };
    let proxy = ProxyFixture::new(&engine);
    let count =
        std::env::var("KFP_CREDS_TEST_CONTAINERS").ok().and_then(|count| count.parse().ok()).unwrap_or(40);
    if std::env::var("KFP_CREDS_TEST_DIRECT").is_ok() {
        let wrong = lost(&engine, count);
        eprintln!("the engine alone lost {} of {count}: {wrong:?}", wrong.len());
    }
    let wrong = lost(&proxy.socket, count);
    assert!(wrong.is_empty(), "{} of {count} lost: {wrong:?}", wrong.len());
    eprintln!("0 of {count} lost");
}
