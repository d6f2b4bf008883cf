//! Commands that return credentials, run with limits on time and output.
//!
//! stdout is a secret from its first byte. stderr is inherited, so that the command can talk to the user at
//! the terminal; kfp-creds does not read it, so nothing of it can reach a container. [`HelperCommand::hear`] is for
//! programs whose stderr tells one failure from another: it is read, and just as secret.

use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::quote;
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::variables::Variables;

/// No credential is near this size.
const LARGEST_OUTPUT: usize = 64 << 10;

/// How long output may still arrive after the command exits: a child of it may hold stdout open.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Environment variables that every command gets (user, directories, network settings). None is secret.
const ALWAYS: [&str; 22] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "TMPDIR",
    "TZ",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "XDG_CONFIG_HOME",
    "XDG_CACHE_HOME",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
    "XDG_RUNTIME_DIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// The environment of a command that the config names: what every command gets, and the variables in `pass`.
pub(super) fn environment(pass: &[String], variables: &Variables) -> Vec<(String, String)> {
    let names = ALWAYS.into_iter().chain(pass.iter().map(String::as_str));
    names.filter_map(|name| Some((name.to_owned(), variables.text(name)?.to_owned()))).collect()
}

/// A command that can be run repeatedly.
#[derive(Clone)]
pub(super) struct HelperCommand {
    /// A path, or a name to look up in the `PATH` of [`Self::environment`].
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    /// The command's whole environment. Values may be secrets.
    pub(super) environment: Vec<(String, String)>,
    pub(super) timeout: Duration,
}

/// Prints the program only: an argument may be a secret.
impl fmt::Debug for HelperCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HelperCommand({})", quote::path(&self.program))
    }
}

/// The output of a command, and whether it succeeded.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) output: Secret<Vec<u8>>,
    /// The beginning of its stderr, where that was read.
    pub(super) said: Secret<Vec<u8>>,
    pub(super) success: bool,
}

impl HelperCommand {
    /// Runs the command with `input` on stdin and `more` added to its environment. Kills it and its process
    /// group when the timeout passes or the caller drops the future.
    pub(super) async fn run(&self, input: &str, more: &[(&str, &str)]) -> Result<Ran, SourceError> {
        self.carry_out(input, more, Stdio::inherit()).await
    }

    /// The same without input, and with the beginning of stderr, which the terminal does not show then.
    pub(super) async fn hear(&self) -> Result<Ran, SourceError> {
        self.carry_out("", &[], Stdio::piped()).await
    }

    async fn carry_out(&self, input: &str, more: &[(&str, &str)], stderr: Stdio) -> Result<Ran, SourceError> {
        let name = quote::path(&self.program);
        let mut child = self.start(more, stderr).map_err(|error| match error.kind() {
            ErrorKind::NotFound => SourceError::refused(format!("the command {name} is not there")),
            ErrorKind::PermissionDenied => {
                SourceError::refused(format!("the command {name} may not be executed"))
            }
            _ => SourceError::transient(format!("the command {name} did not start: {error}")),
        })?;
        let mut group = Group::of(&child);
        // The buffer never grows, so that no copy of its beginning is left in memory.
        let mut output = Zeroizing::new(Vec::with_capacity(LARGEST_OUTPUT + 1));
        let mut said = Zeroizing::new(Vec::with_capacity(LARGEST_OUTPUT));
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let ended = timeout(self.timeout, async {
            let listen = listen(&mut child, stdout, &mut output);
            let work = async { tokio::join!(feed(stdin, input), listen).1 };
            beside(work, drain(stderr, &mut said)).await
        });
        let success = match ended.await {
            Err(_) => {
                let limit = self.timeout.as_secs_f32();
                return Err(SourceError::transient(format!(
                    "the command {name} was ended after {limit} s without an answer"
                )));
            }
            Ok(Err(error)) => {
                return Err(SourceError::transient(format!("the command {name} broke off: {error}")));
            }
            Ok(Ok(success)) => success,
        };
        group.over();
        if output.len() > LARGEST_OUTPUT {
            return Err(SourceError::refused(format!("the command {name} wrote more than an answer")));
        }
        let (output, said) = (std::mem::take(&mut *output), std::mem::take(&mut *said));
        Ok(Ran { output: Secret::new(output), said: Secret::new(said), success })
    }

    fn start(&self, more: &[(&str, &str)], stderr: Stdio) -> std::io::Result<Child> {
        tokio::process::Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .envs(more.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }
}

/// The process group of a command; killed on drop unless the command has exited.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }

    /// Stops tracking the group: its id may be reused from now on.
    fn over(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0
            && let Err(error) = kill_process_group(group, Signal::KILL)
        {
            tracing::debug!(%error, "a credential command had ended already");
        }
    }
}

/// Write errors are ignored: a command need not read its stdin.
async fn feed(stdin: Option<ChildStdin>, input: &str) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(input.as_bytes()).await;
        let _ = stdin.shutdown().await;
    }
}

/// Reads the command's output until it exits. True if it succeeded.
async fn listen(
    child: &mut Child,
    stdout: Option<ChildStdout>,
    output: &mut Vec<u8>,
) -> std::io::Result<bool> {
    let Some(stdout) = stdout else { return Ok(false) };
    let mut stdout = stdout.take(LARGEST_OUTPUT as u64 + 1);
    let status = tokio::select! {
        biased;
        read = fill(&mut stdout, output) => {
            read?;
            if output.len() > LARGEST_OUTPUT {
                child.start_kill()?;
            }
            child.wait().await?
        }
        status = child.wait() => {
            let _ = timeout(LAST_WORDS, fill(&mut stdout, output)).await;
            status?
        }
    };
    Ok(status.success())
}

/// Runs `work` while `also` runs, which may last a moment longer.
async fn beside<T>(work: impl Future<Output = T>, also: impl Future<Output = ()>) -> T {
    let (mut work, mut also) = (std::pin::pin!(work), std::pin::pin!(also));
    tokio::select! {
        biased;
        done = &mut work => {
            let _ = timeout(LAST_WORDS, also).await;
            done
        }
        () = &mut also => work.await,
    }
}

/// Keeps the beginning of stderr and reads on to its end, so that the command never waits for a reader.
async fn drain(from: Option<ChildStderr>, into: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    if fill(&mut from, into).await.is_ok() {
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    }
}

/// Like `read_to_end`, but without growing the buffer.
async fn fill(from: &mut (impl AsyncReadExt + Unpin), into: &mut Vec<u8>) -> std::io::Result<()> {
    while into.len() < into.capacity() && from.read_buf(into).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn shell(script: &str, seconds: f64) -> HelperCommand {
        HelperCommand {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            environment: vec![("PATH".into(), "/usr/bin:/bin".into()), ("OWN".into(), "1".into())],
            timeout: Duration::from_secs_f64(seconds),
        }
    }

    #[tokio::test]
    async fn a_command_sees_only_the_environment_it_is_given() {
        let ran = shell("cat; printf ' %s %s' \"$OWN\" \"$MORE\"; env | wc -l", 9.0);
        let ran = ran.run("told", &[("MORE", "2")]).await.unwrap();
        let text = String::from_utf8_lossy(ran.output.expose()).into_owned();
        assert!(ran.success && text.starts_with("told 1 2"), "{text}");
        let known: u32 = text.trim_start_matches("told 1 2").trim().parse().unwrap();
        assert!(known <= 6, "PATH, OWN, MORE and what the shell itself sets: {known}");
        assert!(!shell("cat >/dev/null; exit 3", 9.0).run("", &[]).await.unwrap().success);
    }

    #[tokio::test]
    async fn stderr_is_read_separately_and_never_blocks() {
        let ran = shell("echo why >&2; printf out; exit 3", 9.0).hear().await.unwrap();
        assert_eq!((ran.output.expose().as_slice(), ran.success), (&b"out"[..], false));
        assert_eq!(ran.said.expose(), b"why\n");
        let much = "head -c 1000000 /dev/zero >&2; printf out";
        let ran = shell(much, 9.0).hear().await.unwrap();
        assert_eq!((ran.output.expose().as_slice(), ran.said.expose().len()), (&b"out"[..], LARGEST_OUTPUT));
        // A child that holds stderr open is not waited for.
        let began = Instant::now();
        let ran = shell("sleep 5 >/dev/null & echo why >&2", 9.0).hear().await.unwrap();
        assert!(ran.said.expose() == b"why\n" && began.elapsed() < Duration::from_secs(4));
        assert!(!format!("{ran:?}").contains("why"));
    }

    #[tokio::test]
    async fn a_commands_time_and_output_are_limited() {
        let began = Instant::now();
        let slow = shell("sleep 60 & sleep 60", 0.3).run("", &[]).await;
        assert!(matches!(slow, Err(SourceError::Transient(_))), "{slow:?}");
        let endless = shell("yes", 9.0).run("", &[]).await;
        assert!(matches!(endless, Err(SourceError::Refused(_))), "{endless:?}");
        // A child that holds stdout open is not waited for.
        let parted = shell("sleep 2 2>/dev/null & printf done", 9.0).run("", &[]).await.unwrap();
        assert_eq!((parted.output.expose().as_slice(), parted.success), (&b"done"[..], true));
        assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
        let gone = shell("", 9.0);
        let gone = HelperCommand { program: "/no/such/program".into(), ..gone }.run("", &[]).await;
        assert!(matches!(&gone, Err(SourceError::Refused(why)) if why.contains("not there")), "{gone:?}");
    }

    #[tokio::test]
    async fn a_timeout_kills_the_whole_process_group() {
        let marker = format!("{}.5", 100_000 + std::process::id());
        let alive = || {
            let found = std::process::Command::new("pgrep").args(["-f", &format!("sleep {marker}")]).output();
            found.unwrap().status.success()
        };
        let script = format!("sleep {marker} & sleep {marker}");
        let _ = shell(&script, 0.3).run("", &[]).await;
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if !alive() {
                return;
            }
        }
        panic!("what the command started is still there");
    }
}
