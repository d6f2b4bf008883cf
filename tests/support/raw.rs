//! Containers that the engine itself creates, the network in a session's output, and `kfp-creds run` as a
//! process.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::session::{Folder, Session, docker_at, engine_socket, program, raw};

/// The path of every client's request for a token.
pub(crate) const TOKEN: &str = "computeMetadata/v1/instance/service-accounts/default/token";

/// A shell script that asks the server at `$1`, else the one that the environment names; prints the body,
/// then `HTTP <status> <seconds>`.
pub(crate) fn ask() -> String {
    format!(
        "curl -s --noproxy '*' -m 8 -w '\\nHTTP %{{http_code}} %{{time_total}}\\n' -H Metadata-Flavor:Google \
         \"http://${{1:-$GCE_METADATA_HOST}}/{TOKEN}\""
    )
}

/// The parts of [`ask`]'s output: body, status, seconds.
pub(crate) fn answer(printed: &str) -> (String, u16, f64) {
    let (body, last) = printed.trim().rsplit_once("HTTP ").unwrap_or_else(|| panic!("no answer: {printed}"));
    let (status, seconds) = last.split_once(' ').unwrap();
    (body.trim().to_string(), status.parse().unwrap(), seconds.trim().parse().unwrap())
}

/// The claims of the token in [`ask`]'s output.
pub(crate) fn token(printed: &str) -> serde_json::Value {
    let (body, status, _) = answer(printed);
    assert_eq!(status, 200, "{printed}");
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    super::session::claims(body["access_token"].as_str().unwrap())
}

/// A container that the engine itself removes at the end of the test.
#[derive(Debug)]
pub(crate) struct Container(pub(crate) String);

impl Container {
    /// `docker create` at the engine itself.
    pub(crate) fn raw(arguments: &[&str]) -> Self {
        Self(raw(&[&["create"], arguments].concat()))
    }

    /// `docker create` through a session.
    pub(crate) fn of(session: &Session, arguments: &[&str]) -> Self {
        Self(session.ok(&[&["create"], arguments].concat()))
    }

    pub(crate) fn short(&self) -> &str {
        &self.0[..12]
    }

    /// Starts it at the engine itself, and returns its output until it ended.
    pub(crate) fn run_raw(&self) -> String {
        raw(&["start", "-a", &self.0])
    }

    /// The output of a shell command inside, run by the engine itself.
    pub(crate) fn exec(&self, script: &str) -> String {
        raw(&["exec", &self.0, "sh", "-c", script])
    }

    /// Requests a token from inside: body, status (0 without an answer), seconds.
    pub(crate) fn asks(&self) -> (String, u16, f64) {
        answer(&self.exec(&format!("{} || true", ask())))
    }

    pub(crate) fn inspect(&self, format: &str) -> String {
        raw(&["inspect", "-f", format, &self.0])
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        docker_at(&engine_socket(), &["rm", "-f", &self.0]);
    }
}

/// A network of this test without a way out of the machine.
#[derive(Debug)]
pub(crate) struct Internal(pub(crate) String);

impl Internal {
    pub(crate) fn new() -> Self {
        let nanos = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let name = format!("kct-{}-{}", std::process::id(), nanos % 1_000_000);
        raw(&["network", "create", "--internal", &name]);
        Self(name)
    }
}

impl Drop for Internal {
    fn drop(&mut self) {
        docker_at(&engine_socket(), &["network", "rm", &self.0]);
    }
}

/// A config that puts every container on the second network.
pub(crate) const SECOND: &str = "[network]\nattach = \"second\"\n";

/// Name of the session's network and address of its relay, from its ready line.
pub(crate) fn network(session: &Session) -> (String, String) {
    let line = session.wait_for("ready  ", Duration::from_secs(5));
    let said = line.split("network ").last().unwrap().trim_end_matches(')');
    let (name, relay) = said.split_once(' ').unwrap();
    (name.into(), relay.into())
}

/// The address that the session leased to a container.
pub(crate) fn address(session: &Session, container: &Container) -> String {
    let attached = |line: &&str| line.contains("attached  ") && line.contains(container.short());
    until("attached", Duration::from_secs(5), || session.said().lines().any(|line| attached(&line)));
    let said = session.said();
    let line = said.lines().rev().find(attached).unwrap();
    line.split(" at ").last().unwrap().split(' ').next().unwrap().to_string()
}

/// Waits until `done` returns true.
pub(crate) fn until(what: &str, within: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + within;
    while !done() {
        assert!(Instant::now() < end, "{what}: not within {within:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process in its own process group, whose output is kept.
pub(crate) struct Running {
    child: Child,
    out: Arc<Mutex<String>>,
    err: Arc<Mutex<String>>,
    _folder: Option<Folder>,
}

impl Running {
    pub(crate) fn spawn(command: &mut Command, folder: Option<Folder>) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
        let out = collect(child.stdout.take().unwrap());
        let err = collect(child.stderr.take().unwrap());
        Self { child, out, err, _folder: folder }
    }

    /// `kfp-creds run --offline FLAGS -- COMMAND`, with an empty stdin.
    pub(crate) fn run(flags: &[&str], command: &[&str]) -> Self {
        let folder = Folder::new("run");
        let mut process = program(&folder.0);
        process.args(["run", "--offline"]).args(flags).arg("--").args(command).stdin(Stdio::null());
        Self::spawn(&mut process, Some(folder))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stdin(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().unwrap()
    }

    pub(crate) fn out(&self) -> String {
        self.out.lock().unwrap().clone()
    }

    pub(crate) fn err(&self) -> String {
        self.err.lock().unwrap().clone()
    }

    /// Sends the signal `NAME` to the process alone.
    pub(crate) fn signal(&self, name: &str) {
        kill(name, &self.child.id().to_string());
    }

    /// The exit code; fails if the process does not end in time.
    pub(crate) fn wait(&mut self, within: Duration) -> i32 {
        let end = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                std::thread::sleep(Duration::from_millis(50));
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < end, "did not end within {within:?}:\n{}\n{}", self.out(), self.err());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal("-TERM");
            let end = Instant::now() + Duration::from_secs(15);
            while Instant::now() < end && self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn kill(name: &str, whom: &str) {
    assert!(Command::new("kill").args([name, "--", whom]).status().unwrap().success());
}

fn collect(mut from: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let kept = text.clone();
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut piece) {
            kept.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    });
    text
}

/// A script of `tests/python`, with the settings that keep Google's libraries off the host's network.
pub(crate) fn python(script: &str) -> Command {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    let mut command = Command::new(super::session::python());
    command.arg(place).env("NO_GCE_CHECK", "true").env("GCE_METADATA_HOST", "127.0.0.1:9");
    command.env("GCE_METADATA_IP", "127.0.0.1:9").env("KFP_CREDS_TASK_IMAGE", super::session::task_image());
    command
}
