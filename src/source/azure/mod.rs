//! Tokens of Microsoft Entra for containers, made with the host's own login.
//!
//! `kind` opens what the config chooses: `cli` (az, and commands that print as it does), `entra` (a principal with a
//! secret, a `certificate` or another issuer's token), `machine` (a managed identity), `offline`. `refusals` explains
//! Entra's errors, `resource` checks the names of resources.

mod certificate;
mod cli;
mod entra;
mod kind;
mod machine;
mod offline;
mod refusals;
mod resource;

use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use crate::source::{Pending, Reloaded, SourceError};
use crate::token::AzureToken;
use crate::workload::ContainerId;

pub use kind::Azure;
pub use resource::resource;

/// `[azure]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AzureSettings {
    pub credentials: AzureCredentials,
    /// The directory (tenant) that tokens are requested from: a UUID or a domain.
    pub tenant: Option<String>,
    /// The principal's client id, if the credentials do not name it.
    pub client_id: Option<String>,
    /// Replaces `https://login.microsoftonline.com`; a base URL.
    pub authority: Option<String>,
}

/// Where the host's own credentials for Azure come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AzureCredentials {
    /// `az account get-access-token`.
    Az,
    /// `AZURE_TENANT_ID`, `AZURE_CLIENT_ID` and a secret, a certificate or a federated token file.
    Environment,
    /// The managed identity of this machine.
    Machine,
    /// A command that prints tokens as `az account get-access-token` does. `{resource}` in an argument, and
    /// `AZURE_RESOURCE` in its environment, is the requested resource.
    Command { program: PathBuf, arguments: Vec<String>, pass: Vec<String>, timeout: Duration },
    /// Another issuer's token as client assertion. The text is that of `token_from`.
    Federated { token_from: String, audience: String },
    /// Tokens signed by a key made at start, which Azure does not accept.
    Offline,
}

/// A request for a token.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct AzureRequest {
    /// As in [`crate::cloud::AzureIdentity`].
    pub client_id: Option<String>,
    /// A resource such as `https://storage.azure.com`, without a slash at its end; never empty.
    pub resource: String,
    /// Set if containers must not share the token.
    pub holder: Option<ContainerId>,
}

/// Makes tokens of Azure on the host.
pub trait AzureSource: Debug + Send + Sync {
    /// The kind of the host's credentials, for messages: `az`, `client secret`, `offline`.
    fn kind(&self) -> String;

    /// The directory and the client id of the source's own principal, if known.
    fn principal(&self) -> AzurePrincipal;

    /// True if tokens name their container, so that two containers can never share one.
    fn per_container(&self) -> bool {
        false
    }

    /// One exchange, uncached. Errors name the next step and never hold a secret.
    fn token<'a>(&'a self, ask: &'a AzureRequest) -> Pending<'a, Result<AzureToken, SourceError>>;

    /// As [`crate::source::Source::reload`].
    fn reload(&self) -> Reloaded {
        Reloaded::Same
    }

    /// Drops pooled connections, after the machine has slept.
    fn reconnect(&self) {}
}

/// The source's own principal, as far as it is known without a request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AzurePrincipal {
    pub tenant: Option<String>,
    pub client_id: Option<String>,
}

/// Whether `text` can be a tenant (a UUID or a domain) or a client id (a UUID). Checked because it becomes part of
/// paths and of a command line, and is shown.
pub fn is_name(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    let begins = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    begins && text.len() <= 254 && text.bytes().all(fits) && !text.contains("..")
}
