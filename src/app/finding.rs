//! What one look of `check` came to, and what mends it.

use super::mends;
use crate::failure::Failure;

/// What one look came to.
#[derive(Debug)]
pub(super) enum Finding {
    Good(String),
    /// It works, and may be in the way of something: what, and what mends it.
    Odd(String, String),
    /// It has to be mended: the failure, and the command that does it, where there is one.
    Bad(Failure, Option<String>),
}

impl From<String> for Finding {
    fn from(text: String) -> Self {
        Self::Good(text)
    }
}

impl Finding {
    /// With what mends such a failure in general.
    pub(super) fn failed(failure: Failure) -> Self {
        let mend = mends::failure(&failure);
        Self::Bad(failure, mend)
    }

    pub(super) fn bad(failure: impl Into<Failure>, mend: impl Into<String>) -> Self {
        Self::Bad(failure.into(), Some(mend.into()))
    }
}
