//! Token sources. [`Source`] is the one trait that all modules share.
//!
//! `google`, `aws` and `azure` have the credentials of each cloud, one file per kind; `offline` signs with the key
//! of `signer`, made at start; `http` is the client for all; `subject` fetches what other issuers gave this
//! machine; `command` runs commands; `flight` shares a call among callers; `expiry` computes lifetimes; `clock`
//! tracks an upstream's clock for signatures; `stamp` detects changes of files; `document` reads JSON, `xml` AWS's answers; `jwt` and
//! `variables` are small helpers.
//!
//! CONTRIBUTING.md has the steps for a new source, under "Adding a source of credentials".

mod absent;
pub mod aws;
pub mod azure;
pub mod clock;
pub mod google;
pub mod http;
pub mod offline;
pub mod signer;
pub mod stamp;
pub mod storage;
pub mod variables;

pub(crate) mod flight;

mod command;
mod document;
mod expiry;
mod jwt;
mod subject;
mod xml;

pub use absent::Absent;

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::failure::Reason;
use crate::token::{AccessToken, Boundary, IdentityToken, Scopes};
use crate::workload::ContainerId;

/// A boxed future, because the trait is used as `dyn Source`.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A request for an access token. `scopes` is the effective set (decision 15), in normal form.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct AccessRequest {
    /// The service account to impersonate; `None` means the source's own account.
    pub service_account: Option<String>,
    pub scopes: Scopes,
    /// Wanted lifetime in seconds; a source that cannot choose it ignores this.
    pub lifetime: u64,
    /// The user that a service account acts for (domain-wide delegation); other kinds refuse it.
    pub subject: Option<String>,
    /// The boundary that narrows the token down.
    pub boundary: Option<Arc<Boundary>>,
    /// Set if containers must not share the token: because of `isolate = true` or [`Source::per_container`].
    pub holder: Option<ContainerId>,
}

/// A request for an ID token.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct IdentityRequest {
    /// As in [`AccessRequest`].
    pub service_account: Option<String>,
    /// The `aud` of the token; never empty.
    pub audience: String,
    /// As in [`AccessRequest`].
    pub holder: Option<ContainerId>,
}

/// The source's account, as far as it is known without a request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Principal {
    /// The kind of source for messages: `service account key`, `user login`, `offline`.
    pub kind: &'static str,
    /// The e-mail of the source's own account. A user login may not know it before the first mint.
    pub email: Option<String>,
    pub project: Option<String>,
    pub quota_project: Option<String>,
    pub universe: Option<String>,
}

/// The result of checking the source's files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reloaded {
    /// Nothing changed.
    Same,
    /// The file changed but holds the same account: cached tokens stay valid.
    Renewed,
    /// The account changed: everything cached from the old one must be dropped.
    OtherAccount,
    /// A file that is read for each token (a subject token, a certificate) changed: a retry may succeed.
    Supplied,
    /// The file is invalid now; the old credential stays in use. The text says what is wrong.
    Broken(String),
}

/// Mints tokens on the host.
pub trait Source: Debug + Send + Sync {
    /// Returns at once. Called again after every upstream call and every check of the files.
    fn principal(&self) -> Principal;

    /// True if tokens name their container, so that two containers can never share one.
    fn per_container(&self) -> bool {
        false
    }

    /// Whether a token for `ask` has exactly the requested scopes. False if the scopes were fixed elsewhere,
    /// at a login or for a machine.
    fn narrows(&self, _ask: &AccessRequest) -> bool {
        true
    }

    /// One exchange, uncached: `mint` caches tokens and prevents duplicate requests.
    fn access_token<'a>(&'a self, ask: &'a AccessRequest) -> Pending<'a, Result<AccessToken, SourceError>>;

    /// An ID token for one audience (OpenID Connect Core 1.0 section 2), also uncached.
    fn identity_token<'a>(
        &'a self,
        ask: &'a IdentityRequest,
    ) -> Pending<'a, Result<IdentityToken, SourceError>>;

    /// Seconds by which this machine's clock is ahead of the upstream's; `None` if there is no upstream clock
    /// to compare with.
    fn clock(&self) -> Pending<'_, Result<Option<i64>, SourceError>> {
        Box::pin(async { Ok(None) })
    }

    /// Disables a service account at its provider: all its tokens end, for all their users.
    fn disable<'a>(&'a self, account: &'a str) -> Pending<'a, Result<(), SourceError>> {
        let why = format!("this source cannot disable {account}");
        Box::pin(async { Err(SourceError::refused(why)) })
    }

    /// Loads a changed credential file. Called about once a second; cheap if nothing changed.
    fn reload(&self) -> Reloaded {
        Reloaded::Same
    }

    /// Drops pooled connections, after the machine has slept.
    fn reconnect(&self) {}
}

/// Why there is no token. The text is one lower-case fragment that names the next step; it goes to the
/// container and to the terminal, so it never holds a secret or an upstream body. Its [`Reason`] also says what
/// repairs it, for `check`.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// This source does not exist here; only on this error does a search continue.
    #[error("{0}")]
    Absent(Reason),
    /// Final, a retry will not help: denied, login expired, not possible for this kind.
    #[error("{0}")]
    Refused(Reason),
    /// A retry in a moment may work.
    #[error("{0}")]
    Transient(Reason),
}

impl SourceError {
    pub fn absent(why: impl Into<Reason>) -> Self {
        Self::Absent(why.into())
    }

    pub fn refused(why: impl Into<Reason>) -> Self {
        Self::Refused(why.into())
    }

    pub fn transient(why: impl Into<Reason>) -> Self {
        Self::Transient(why.into())
    }

    pub fn into_reason(self) -> Reason {
        match self {
            Self::Absent(why) | Self::Refused(why) | Self::Transient(why) => why,
        }
    }
}
