//! How a command ends: outcomes and failures, for which `main.rs` chooses the exit codes.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// A successful end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    Done,
    /// `scan` found a key.
    Found,
    /// The child of `run` ended with this code; 128 + the signal's number if a signal ended it.
    Child(u8),
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Self {
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        Self::Child(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
    }
}

/// A failure, by its cause. The text is for the terminal: lines of lower-case fragments that say what to do
/// next, without secrets.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A file that the command line names does not exist.
    #[error("{0}")]
    NoInput(String),
    /// No credential, or one that cannot mint.
    #[error("{0}")]
    NoCredential(String),
    /// The engine cannot be reached, is not supported, or went away.
    #[error("{0}")]
    Engine(String),
    /// A bug in this program.
    #[error("{0}; this is a bug, please report it")]
    Bug(String),
    /// The engine, the kernel or a policy refuses.
    #[error("{0}")]
    NotPermitted(String),
    /// The config file, a variable or a flag has an invalid value; one line for each.
    #[error("{0}")]
    Config(String),
    /// The command of `run` exists and cannot be executed.
    #[error("{0}")]
    CannotExecute(String),
    /// The command of `run` does not exist.
    #[error("{0}")]
    NotFound(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_128_and_its_number() {
        assert_eq!(Ended::from(ExitStatus::from_raw(3 << 8)), Ended::Child(3));
        assert_eq!(Ended::from(ExitStatus::from_raw(9)), Ended::Child(137));
    }
}
