//! The result of one probe of `check`, and its fix.

use super::hints;
use crate::failure::Failure;

/// The result of one probe.
#[derive(Debug)]
pub(super) enum Finding {
    Good(String),
    /// It works, but may get in the way: the problem, and its fix.
    Odd(String, String),
    /// It has to be fixed: the failure, and the command that fixes it, if there is one.
    Bad(Failure, Option<String>),
}

impl From<String> for Finding {
    fn from(text: String) -> Self {
        Self::Good(text)
    }
}

impl Finding {
    /// A failure with the general hint for its kind.
    pub(super) fn failed(failure: Failure) -> Self {
        let fix = hints::failure(&failure);
        Self::Bad(failure, fix)
    }

    pub(super) fn bad(failure: impl Into<Failure>, fix: impl Into<String>) -> Self {
        Self::Bad(failure.into(), Some(fix.into()))
    }
}
