//! `serve --json` as a program uses it: the ready line, a stdin that stays open, and the end.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::session::program;

/// A `serve --json` that is ready. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) child: Child,
    pub(crate) ready: Value,
    pub(crate) stdin: Option<ChildStdin>,
}

impl Served {
    /// `serve --json --offline` and `arguments`, in `folder`.
    pub(crate) fn start(folder: &Path, arguments: &[&str]) -> Self {
        let mut command = program(folder);
        command.args(["serve", "--json", "--offline"]).args(arguments);
        Self::of(command).unwrap_or_else(|(_, said)| panic!("it did not start: {said}"))
    }

    /// The exit status and output, if it never became ready.
    pub(crate) fn of(mut command: Command) -> Result<Self, (ExitStatus, String)> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut stderr = child.stderr.take().unwrap();
        if line.is_empty() {
            let mut said = String::new();
            stderr.read_to_string(&mut said).unwrap();
            return Err((child.wait().unwrap(), said));
        }
        // The rest of stderr is discarded, so that the program never waits for a reader.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        let ready = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let stdin = child.stdin.take();
        Ok(Self { child, ready, stdin })
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.ready[name].as_str().unwrap_or_else(|| panic!("no {name}: {}", self.ready)).into()
    }

    pub(crate) fn variable(&self, name: &str) -> String {
        self.ready["environment"][name].as_str().unwrap_or_else(|| panic!("no {name}: {}", self.ready)).into()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// The exit status, if the program ended within that time.
    pub(crate) fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + within;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
