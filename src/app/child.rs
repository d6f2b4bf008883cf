//! The command under `run`: starts it with our socket as its engine, passes signals on once, and waits for
//! it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, getpgrp, kill_process};
use rustix::termios::tcgetpgrp;
use tokio::process::{Child, Command};
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::ready::UNSET;

/// The time from the first signal to SIGKILL.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// A signal that asks the session to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum EndSignal {
    Hangup,
    Interrupt,
    Quit,
    Terminate,
}

/// The signals of this process, from creation on: none is lost and none kills us. Signals that were ignored
/// when we were started stay ignored, here and in the command: `nohup` and the background jobs of a shell
/// without job control rely on that.
#[derive(Debug)]
pub(super) struct Signals {
    hangup: Option<unix::Signal>,
    interrupt: Option<unix::Signal>,
    quit: Option<unix::Signal>,
    terminate: Option<unix::Signal>,
    input: Option<oneshot::Receiver<()>>,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        let ignored = std::fs::read_to_string("/proc/self/status").map_or(0, |status| ignored(&status));
        let listen = |kind: SignalKind| match ignored >> (kind.as_raw_value() - 1) & 1 {
            0 => unix::signal(kind).map(Some),
            _ => Ok(None),
        };
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            quit: listen(SignalKind::quit())?,
            terminate: listen(SignalKind::terminate())?,
            input: None,
        })
    }

    /// Also ends, once, at the end of stdin, when the process that held the other end has closed it or has
    /// died. The content of stdin is ignored.
    pub(super) fn with_input(mut self) -> io::Result<Self> {
        let (done, ended) = oneshot::channel();
        let read = move || {
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            let _ = done.send(());
        };
        std::thread::Builder::new().name("stdin".into()).spawn(read)?;
        self.input = Some(ended);
        Ok(self)
    }

    pub(super) async fn next(&mut self) -> EndSignal {
        tokio::select! {
            () = received(&mut self.hangup) => EndSignal::Hangup,
            () = received(&mut self.interrupt) => EndSignal::Interrupt,
            () = received(&mut self.quit) => EndSignal::Quit,
            () = received(&mut self.terminate) => EndSignal::Terminate,
            () = ended(&mut self.input) => EndSignal::Hangup,
        }
    }
}

/// The mask of ignored signals in proc_pid_status(5): bit 0 is signal 1.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

async fn received(signal: &mut Option<unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

async fn ended(input: &mut Option<oneshot::Receiver<()>>) {
    match input {
        Some(reading) => {
            let _ = reading.await;
            *input = None;
        }
        None => std::future::pending().await,
    }
}

/// Counts Ctrl-C at a terminal. The terminal sent it to the command as well, which may go on: an interpreter
/// only ends a statement.
#[derive(Debug, Default)]
pub(super) struct Interrupts(Vec<Instant>);

impl Interrupts {
    /// Three within this time end the session.
    pub(super) const WITHIN: Duration = Duration::from_secs(2);

    /// Whether this one, at `now`, is for the command alone.
    pub(super) fn are_the_commands(&mut self, now: Instant) -> bool {
        self.0.retain(|before| now.duration_since(*before) < Self::WITHIN);
        self.0.push(now);
        self.0.len() < 3
    }
}

/// The child stays in our process group, so that the terminal's Ctrl-C reaches it without us.
pub(super) fn start(
    command: &[OsString],
    socket: &Path,
    extra: &[(String, String)],
    unset: &[&str],
) -> io::Result<Child> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut child = Command::new(program);
    child.args(arguments).env("DOCKER_HOST", format!("unix://{}", socket.to_string_lossy()));
    for variable in UNSET.iter().chain(unset) {
        child.env_remove(variable);
    }
    child.envs(extra.iter().map(|(name, value)| (name, value)));
    child.spawn()
}

/// Passes our signal on to the child, unless the terminal has sent it already: the terminal signals the whole
/// group in its foreground, wherever our input comes from. To signal us alone from elsewhere, use SIGTERM:
/// other signals look the same as the terminal's.
pub(super) fn pass_on(child: &Child, asked: EndSignal) {
    if asked != EndSignal::Terminate && in_foreground() {
        return;
    }
    let signal = match asked {
        EndSignal::Hangup => Signal::HUP,
        EndSignal::Interrupt => Signal::INT,
        EndSignal::Quit => Signal::QUIT,
        EndSignal::Terminate => Signal::TERM,
    };
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::debug!(%error, "the command had ended already");
    }
}

/// Whether the terminal's Ctrl-C reaches us and the command.
pub(super) fn in_foreground() -> bool {
    let group = File::open("/dev/tty").ok().and_then(|terminal| tcgetpgrp(terminal).ok());
    group == Some(getpgrp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Ended;

    #[test]
    fn the_mask_of_ignored_signals_is_read() {
        let status = "Name:\tkfp-creds\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001003\nSigCgt:\t00000000000000ff\n";
        assert_eq!(ignored(status), 0x1003, "SIGHUP, SIGINT and SIGPIPE");
        assert_eq!(ignored("Name:\tx\nSigIgn:\tnothing\n"), 0);
    }

    #[test]
    fn the_third_interrupt_within_two_seconds_is_ours() {
        let (mut interrupts, begin) = (Interrupts::default(), Instant::now());
        let at = [0, 900, 2000, 2800, 2850, 6000];
        let own = at.map(|ms| interrupts.are_the_commands(begin + Duration::from_millis(ms)));
        assert_eq!(own, [true, true, true, false, false, true]);
    }

    #[tokio::test]
    async fn codes_are_a_shells_and_the_environment_is_ours() {
        let socket = Path::new("/tmp/x.sock");
        let run = async |script: &str| {
            let command = ["sh", "-c", script].map(OsString::from);
            let mut child = start(&command, socket, &[("EXTRA".into(), "1".into())], &["HOME"]).unwrap();
            Ended::from(child.wait().await.unwrap())
        };
        assert_eq!(run("exit 7").await, Ended::Child(7));
        assert_eq!(run("kill -TERM $$").await, Ended::Child(143));
        let wired =
            "test \"$DOCKER_HOST$EXTRA\" = unix:///tmp/x.sock1 && test -z \"$DOCKER_TLS_VERIFY$HOME\"";
        assert_eq!(run(wired).await, Ended::Child(0));
    }
}
