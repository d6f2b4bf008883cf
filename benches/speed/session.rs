//! The program under measurement, started with nothing of the developer's in reach.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::Outcome;
use crate::engine;
use crate::process::{Running, end, on_core};

/// A folder of its own, removed with it.
#[derive(Debug)]
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Outcome<Self> {
        let nanos = std::time::UNIX_EPOCH.elapsed()?.as_nanos();
        let path = std::env::temp_dir().join(format!("kc-bench-{nanos}"));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn clean(mut command: Command, folder: &Folder) -> Command {
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", &folder.0)
        .env("CLOUDSDK_CONFIG", &folder.0)
        .env("DOCKER_HOST", format!("unix://{}", engine::socket().display()))
        .current_dir(&folder.0)
        .stdin(Stdio::null());
    command
}

/// `serve --listen` on core 0 with `arguments`.
pub(crate) fn listener(program: &Path, folder: &Folder, arguments: &[&str]) -> Outcome<Running> {
    let mut command = clean(on_core(0, program), folder);
    command.args(["serve", "--quiet", "--listen", "127.0.0.1:0", "--open"]).args(arguments);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().ok_or("no stdout")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let at = line.trim().strip_prefix("export GCE_METADATA_HOST=").and_then(|at| at.parse().ok());
    match at {
        Some(at) => Ok(Running { child, at }),
        None => {
            end(&mut child);
            Err(format!("{} did not start: {line:?}", program.display()).into())
        }
    }
}

/// Milliseconds of `run -- true`: a whole session without a container, and its end.
pub(crate) fn whole_run(program: &Path) -> Outcome<f64> {
    let folder = Folder::new()?;
    let mut command = clean(Command::new(program), &folder);
    command.args(["run", "--offline", "--quiet", "--all", "--", "true"]).stderr(Stdio::piped());
    let began = Instant::now();
    let ran = command.output()?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    match ran.status.success() {
        true => Ok(took),
        false => Err(format!("the run failed: {}", String::from_utf8_lossy(&ran.stderr)).into()),
    }
}

/// A whole session: network, relay, proxy.
#[derive(Debug)]
pub(crate) struct Session {
    child: Child,
    /// The proxy's socket.
    pub(crate) socket: PathBuf,
    /// From the start of the process to its `ready` line, in milliseconds.
    pub(crate) ready: f64,
    _folder: Folder,
}

impl Session {
    pub(crate) fn start(program: &Path) -> Outcome<Self> {
        Self::with(program, &[])
    }

    /// With variables of ours.
    pub(crate) fn with(program: &Path, variables: &[(&str, &str)]) -> Outcome<Self> {
        Self::of(program, Folder::new()?, &["--offline"], variables)
    }

    /// With a config and variables of ours.
    pub(crate) fn configured(program: &Path, config: &str, variables: &[(&str, &str)]) -> Outcome<Self> {
        let folder = Folder::new()?;
        std::fs::write(folder.0.join("kfp-creds.toml"), config)?;
        Self::of(program, folder, &["--config", "kfp-creds.toml"], variables)
    }

    fn of(program: &Path, folder: Folder, flags: &[&str], variables: &[(&str, &str)]) -> Outcome<Self> {
        let mut command = clean(Command::new(program), &folder);
        command.envs(variables.iter().copied());
        command.args(["serve", "--all"]).args(flags).stdout(Stdio::piped()).stderr(Stdio::piped());
        let began = Instant::now();
        let mut child = command.spawn()?;
        let mut stderr = BufReader::new(child.stderr.take().ok_or("no stderr")?);
        let mut said = String::new();
        while !said.contains("kfp-creds: ready ") {
            if stderr.read_line(&mut said)? == 0 {
                end(&mut child);
                return Err(format!("the session did not start: {said}").into());
            }
        }
        let ready = began.elapsed().as_secs_f64() * 1e3;
        // Whoever stops reading would stop the session.
        std::thread::spawn(move || stderr.lines().count());
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
        let socket = line.trim().strip_prefix("export DOCKER_HOST=unix://").map(PathBuf::from);
        let Some(socket) = socket else {
            end(&mut child);
            return Err("the session printed no socket".into());
        };
        Ok(Self { child, socket, ready, _folder: folder })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The name of the session's relay container.
    pub(crate) fn relay(&self) -> String {
        // The printed name is a link to that of the session.
        let own = std::fs::canonicalize(&self.socket).unwrap_or_else(|_| self.socket.clone());
        let id = own.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        format!("kfp-creds-relay-{id}")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}
