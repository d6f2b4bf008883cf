//! The command under `run`: started with our socket as its engine, told of signals once, and waited for.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, getpgrp, kill_process};
use rustix::termios::tcgetpgrp;
use tokio::process::{Child, Command};
use tokio::signal::unix::{self, SignalKind};

/// From the first signal to SIGKILL.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// A signal that asks the session to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Asked {
    Hangup,
    Interrupt,
    Quit,
    Terminate,
}

/// The signals of this process, from the moment of making on: none is lost and none kills us.
#[derive(Debug)]
pub(super) struct Signals {
    hangup: unix::Signal,
    interrupt: unix::Signal,
    quit: unix::Signal,
    terminate: unix::Signal,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            hangup: unix::signal(SignalKind::hangup())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
            quit: unix::signal(SignalKind::quit())?,
            terminate: unix::signal(SignalKind::terminate())?,
        })
    }

    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.hangup.recv() => Asked::Hangup,
            _ = self.interrupt.recv() => Asked::Interrupt,
            _ = self.quit.recv() => Asked::Quit,
            _ = self.terminate.recv() => Asked::Terminate,
        }
    }
}

/// The child stays in our process group, so that the terminal's Ctrl-C reaches it without us.
pub(super) fn start(command: &[OsString], socket: &Path, extra: &[(String, String)]) -> io::Result<Child> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut child = Command::new(program);
    child.args(arguments).env("DOCKER_HOST", format!("unix://{}", socket.display()));
    // With a unix DOCKER_HOST the first two make clients fail; the third is another engine's name.
    for variable in ["DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_CONTEXT"] {
        child.env_remove(variable);
    }
    child.envs(extra.iter().map(|(name, value)| (name, value)));
    child.spawn()
}

/// Tells the child what we were told, unless the terminal told it already: that signals the whole group in its
/// foreground, wherever our input comes from. Who signals us alone from elsewhere should use SIGTERM there, for
/// nothing tells the two apart.
pub(super) fn pass_on(child: &Child, asked: Asked) {
    if asked != Asked::Terminate && in_foreground() {
        return;
    }
    let signal = match asked {
        Asked::Hangup => Signal::HUP,
        Asked::Interrupt => Signal::INT,
        Asked::Quit => Signal::QUIT,
        Asked::Terminate => Signal::TERM,
    };
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::debug!(%error, "the command had ended already");
    }
}

fn in_foreground() -> bool {
    let group = File::open("/dev/tty").ok().and_then(|terminal| tcgetpgrp(terminal).ok());
    group == Some(getpgrp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Ended;

    #[tokio::test]
    async fn codes_are_a_shells_and_the_environment_is_ours() {
        let socket = Path::new("/tmp/x.sock");
        let run = async |script: &str| {
            let command = ["sh", "-c", script].map(OsString::from);
            let mut child = start(&command, socket, &[("EXTRA".into(), "1".into())]).unwrap();
            Ended::from(child.wait().await.unwrap())
        };
        assert_eq!(run("exit 7").await, Ended::Child(7));
        assert_eq!(run("kill -TERM $$").await, Ended::Child(143));
        let wired = "test \"$DOCKER_HOST$EXTRA\" = unix:///tmp/x.sock1 && test -z \"$DOCKER_TLS_VERIFY\"";
        assert_eq!(run(wired).await, Ended::Child(0));
    }
}
