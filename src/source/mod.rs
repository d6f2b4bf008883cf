//! Where tokens come from. [`Source`] is the one trait that rooms share.
//!
//! `google` has Google's credentials, a file for each kind; `offline` a key made at start; `http` the client for all of
//! them; `command` runs commands that bring something; `flight` makes one call for many callers; `expiry` how long
//! tokens live; `jwt`, `stamp` (whether a file changed) and `variables` are small tools.
//!
//! Adding a source: (1) a file in this room with a type that implements [`Source`]; (2) a variant in
//! `config::SourceChoice`, chosen in `config/check.rs`; (3) an arm in `Credentials::open` (`app/credentials.rs`); (4) cases
//! in `tests/it/minting.rs` against a fake at the wire that checks what it is sent.

pub mod google;
pub mod http;
pub mod offline;
pub mod storage;
pub mod variables;

pub(crate) mod flight;

mod command;
mod expiry;
mod jwt;
mod stamp;

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::token::{AccessToken, Boundary, IdentityToken, Scopes};
use crate::workload::ContainerId;

/// A boxed future: the trait has to be usable as `dyn Source`.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What an access token is wanted for. `scopes` is the effective set (decision 15), in normal form.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct AccessRequest {
    /// The service account to impersonate; `None` means the source's own account.
    pub service_account: Option<String>,
    pub scopes: Scopes,
    /// How long the token should live, in seconds; a source that cannot choose ignores it.
    pub lifetime: u64,
    /// Whom a service account stands in for (domain-wide delegation); other kinds refuse it.
    pub subject: Option<String>,
    /// What the token is narrowed down to.
    pub boundary: Option<Arc<Boundary>>,
    /// Set where tokens must not be shared: by `isolate = true`, or by [`Source::per_container`].
    pub holder: Option<ContainerId>,
}

/// What an identity token is wanted for.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct IdentityRequest {
    /// As in [`AccessRequest`].
    pub service_account: Option<String>,
    /// Never empty; the `aud` of the token.
    pub audience: String,
    /// As in [`AccessRequest`].
    pub holder: Option<ContainerId>,
}

/// Who the source is, as far as it is known without asking anybody.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Principal {
    /// `service account key`, `user login`, `offline`: for messages.
    pub kind: &'static str,
    /// Of the source's own account. A user login may not know its own before the first mint.
    pub email: Option<String>,
    pub project: Option<String>,
    pub quota_project: Option<String>,
    pub universe: Option<String>,
}

/// What a look at the source's files brought.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reloaded {
    /// Nothing changed.
    Same,
    /// The file changed and holds the same account: cached tokens stay good.
    Renewed,
    /// Another account: everything cached from the old one has to be dropped.
    OtherAccount,
    /// A file that is read for each token (a subject token, a certificate) changed: what failed may work now.
    Supplied,
    /// The file is broken now; the old credential stays in use. The text says what is wrong.
    Broken(String),
}

/// A place that mints tokens on the host.
pub trait Source: Debug + Send + Sync {
    /// Without waiting for anybody. Asked again after every call and every look at the files.
    fn principal(&self) -> Principal;

    /// True when tokens name the container, so that two containers can never share one.
    fn per_container(&self) -> bool {
        false
    }

    /// Whether a token for `ask` has exactly the scopes that are asked for. False where somebody else chose them,
    /// at a login or for a machine.
    fn narrows(&self, _ask: &AccessRequest) -> bool {
        true
    }

    /// One exchange, uncached: `mint` keeps tokens and sees to it that a request is made once.
    fn access_token<'a>(&'a self, ask: &'a AccessRequest) -> Pending<'a, Result<AccessToken, SourceError>>;

    /// An ID token for one audience (OpenID Connect Core 1.0 section 2), uncached as well.
    fn identity_token<'a>(
        &'a self,
        ask: &'a IdentityRequest,
    ) -> Pending<'a, Result<IdentityToken, SourceError>>;

    /// By how many seconds this machine's clock is ahead of the upstream's; `None` where there is nobody to
    /// compare with.
    fn clock(&self) -> Pending<'_, Result<Option<i64>, SourceError>> {
        Box::pin(async { Ok(None) })
    }

    /// Disables a service account at its provider: every token of it ends, for everybody.
    fn disable<'a>(&'a self, account: &'a str) -> Pending<'a, Result<(), SourceError>> {
        let why = format!("this source cannot disable {account}");
        Box::pin(async { Err(SourceError::refused(why)) })
    }

    /// Picks up a changed credential file. Called about once a second; cheap when nothing changed.
    fn reload(&self) -> Reloaded {
        Reloaded::Same
    }

    /// Drops pooled connections, after the machine slept.
    fn reconnect(&self) {}
}

/// Why there is no token. The text is one lower-case fragment that says what to do next; it goes to the
/// container and to the terminal, so it never holds a secret nor an upstream body.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// This source does not exist here; only this lets a search go on.
    #[error("{0}")]
    Absent(Arc<str>),
    /// A decision that will not change by trying again: denied, login expired, not possible for this kind.
    #[error("{0}")]
    Refused(Arc<str>),
    /// May work in a moment.
    #[error("{0}")]
    Transient(Arc<str>),
}

impl SourceError {
    pub fn absent(why: impl AsRef<str>) -> Self {
        Self::Absent(why.as_ref().into())
    }

    pub fn refused(why: impl AsRef<str>) -> Self {
        Self::Refused(why.as_ref().into())
    }

    pub fn transient(why: impl AsRef<str>) -> Self {
        Self::Transient(why.as_ref().into())
    }
}
