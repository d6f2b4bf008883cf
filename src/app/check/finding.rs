//! What one look of `check` came to, and what fixes it.

use super::hints;
use crate::failure::Failure;

/// What one look came to.
#[derive(Debug)]
pub(super) enum Finding {
    Good(String),
    /// It works, and may be in the way of something: what, and what fixes it.
    Odd(String, String),
    /// It has to be fixed: the failure, and the command that does it, where there is one.
    Bad(Failure, Option<String>),
}

impl From<String> for Finding {
    fn from(text: String) -> Self {
        Self::Good(text)
    }
}

impl Finding {
    /// With the general hint for such a failure.
    pub(super) fn failed(failure: Failure) -> Self {
        let fix = hints::failure(&failure);
        Self::Bad(failure, fix)
    }

    pub(super) fn bad(failure: impl Into<Failure>, fix: impl Into<String>) -> Self {
        Self::Bad(failure.into(), Some(fix.into()))
    }
}
