//! Other processes: their core, their CPU time, their memory, their end.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::Outcome;

/// `program` on one core, where the machine has several.
pub(crate) fn on_core(core: usize, program: &Path) -> Command {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    command
}

/// CPU seconds that a process has used, in user mode and in the kernel, to the nanosecond. Processes
/// under measurement have one thread that does the work, and it is the first.
pub(crate) fn cpu_seconds(pid: u32) -> Outcome<f64> {
    let mut nanos = 0_u64;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        nanos += text.split(' ').next().ok_or("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(nanos as f64 / 1e9)
}

/// Resident memory in MiB: all of it, and the part that no file backs.
pub(crate) fn memory(pid: u32) -> Outcome<(f64, f64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Outcome<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such field")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    };
    Ok((field("VmRSS:")?, field("RssAnon:")?))
}

/// A server of this bench that was started and is ended with this value.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) at: SocketAddr,
}

impl Running {
    /// The bare server with `body`, on core 0.
    pub(crate) fn bare(body: &str) -> Outcome<Self> {
        Self::ours("bare", body)
    }

    /// The upstream that answers at once, on core 0.
    pub(crate) fn upstream() -> Outcome<Self> {
        Self::ours("upstream", "")
    }

    fn ours(mode: &str, body: &str) -> Outcome<Self> {
        let mut command = on_core(0, &std::env::current_exe()?);
        command.args([mode, "127.0.0.1:0"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        child.stdin.take().ok_or("no stdin")?.write_all(body.as_bytes())?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
        Ok(Self { at: line.trim().parse()?, child })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Ends a child in good order: what it made, it takes away.
pub(crate) fn end(child: &mut Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid.filter(|_| matches!(child.try_wait(), Ok(None))) {
        let _ = kill_process(pid, Signal::TERM);
    }
    let _ = child.wait();
}

/// The stdout of a command that succeeded.
pub(crate) fn output(command: &mut Command) -> Outcome<String> {
    let out = command.stdin(Stdio::null()).output()?;
    if !out.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim()).into());
    }
    Ok(String::from_utf8(out.stdout)?.trim().to_string())
}

/// The numbers of a line that a client of ours printed.
pub(crate) fn numbers(line: &str) -> Outcome<Vec<f64>> {
    Ok(line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
}
