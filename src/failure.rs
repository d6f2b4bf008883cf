//! How a command ends: outcomes and failures, for which `main.rs` chooses the exit codes.

use std::fmt;
use std::ops::Deref;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

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

/// The remedy for a failure, if the failing code knows one; `check` shows the command.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Remedy {
    #[default]
    Unknown,
    /// The text of the failure names the next step itself.
    InText,
    /// The engine's authorization plugin has to allow it.
    AllowInPlugin,
    /// The engine's disk is full.
    FreeDisk,
    /// The engine has no addresses left for networks.
    FreeNetworks,
    /// The engine's firewall rules have to be made again.
    RestoreFirewall,
    /// A firewall drops packets between containers and the relay.
    OpenFirewall,
    /// This engine is not supported.
    UseAnotherEngine,
    /// The engine does not answer in time.
    WakeEngine,
    /// The engine does not let this user do it.
    GainRights,
    /// No engine runs.
    StartEngine,
    /// The docker context in use is unusable.
    LeaveContext,
    /// The caller needs a role on a service account.
    /// `to`, if known, is an e-mail address, a principal, or the provider of one.
    GrantRole { role: &'static str, account: String, to: Option<String> },
    /// This service account does not exist, or is not visible.
    InspectAccount(String),
    /// A provider of federated identities refuses; its resource name, as in audiences (`//iam.googleapis.com/…`).
    InspectProvider(String),
    /// The keys of this service account have to be compared with the one in use.
    ListKeys(String),
}

/// Why something failed: the text for a person, and the remedy. No code makes decisions by the text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reason {
    text: Arc<str>,
    pub remedy: Remedy,
    /// The pause that the other side asked for, before a retry.
    pub pause: Option<Duration>,
}

impl Reason {
    pub fn new(text: impl Into<Arc<str>>, remedy: Remedy) -> Self {
        Self { text: text.into(), remedy, pause: None }
    }

    /// The same with the pause that the other side asked for.
    pub fn after(self, pause: Option<Duration>) -> Self {
        Self { pause, ..self }
    }

    /// For texts that name the next step themselves, with its command or flag.
    pub fn advice(text: impl Into<Arc<str>>) -> Self {
        Self::new(text, Remedy::InText)
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Self::new(text, Remedy::Unknown)
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        Self::new(text, Remedy::Unknown)
    }
}

impl Deref for Reason {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
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
    NoCredential(Reason),
    /// The engine cannot be reached, is not supported, or went away.
    #[error("{0}")]
    Engine(Reason),
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
