//! Sessions of AWS: temporary credentials for containers, made with the host's own.
//!
//! `client` is the source. `host` keeps the host's keys, and `lookup` finds them: in variables, in a profile
//! (`profile`, `ini`, `sso`, `process`), at a container's agent or at the machine (`machine`). `sts` exchanges them,
//! signed by `sigv4` and sent by `query`; `denial` says what a refusal means. `iam` denies sessions. `session` names sessions and holds AWS's limits; `offline`
//! makes sessions without AWS. Google's federation uses `lookup`, `machine` and `sigv4` too.

mod client;
mod denial;
mod endpoint;
mod host;
mod iam;
mod ini;
mod keys;
mod offline;
mod process;
mod profile;
#[cfg(test)]
mod profile_tests;
mod query;
mod session;
mod sso;
mod sts;

pub(in crate::source) mod lookup;
pub(in crate::source) mod machine;
pub(in crate::source) mod sigv4;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::cloud::AwsIdentity;
use crate::source::{Pending, Reloaded, SourceError};
use crate::token::AwsSession;
use crate::workload::ContainerId;

pub use client::Aws;
pub use keys::CallerIdentity;
pub(in crate::source) use keys::Keys;
pub use session::{session_name, tag_value};

/// `[aws]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AwsSettings {
    pub credentials: AwsCredentials,
    /// `AWS_REGION` of containers, and the region whose STS is asked.
    pub region: Option<String>,
    /// Replaces `https://sts.REGION.amazonaws.com`; a base URL.
    pub sts: Option<String>,
    /// Replaces `https://iam.amazonaws.com`; a base URL, used only to deny sessions.
    pub iam: Option<String>,
}

/// Where the host's own credentials for AWS come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AwsCredentials {
    /// In the order of AWS's own tools: variables, the profile `default`, a container's agent, the machine's
    /// metadata service.
    Default,
    /// `AWS_ACCESS_KEY_ID` and the related variables.
    Environment,
    /// A profile of `~/.aws/config` and `~/.aws/credentials`.
    Profile(String),
    /// The machine's own metadata service, or the agent of the container that this program runs in.
    Machine,
    /// A command that prints credentials in the form of `credential_process`.
    Command { program: PathBuf, arguments: Vec<String>, pass: Vec<String>, timeout: Duration },
    /// Another issuer's token, exchanged by `AssumeRoleWithWebIdentity`. The text is that of `token_from`.
    WebIdentity { token_from: String, audience: String },
    /// Credentials made here, which AWS does not accept.
    Offline,
}

/// A request for a session. Every container has its own session, so the cache key is the whole request.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct AwsRequest {
    pub identity: Arc<AwsIdentity>,
    /// `RoleSessionName`: 2 to 64 of letters, digits and `_+=,.@-`. CloudTrail shows it.
    pub session_name: String,
    /// Session tags, if the identity has them.
    pub tags: Vec<(String, String)>,
    /// `None` for programs on this machine.
    pub holder: Option<ContainerId>,
}

/// Sessions of one role to which an operator denies everything.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Deny {
    /// The ARN.
    pub role: String,
    /// `aws:userid` of each, sorted.
    pub user_ids: Vec<String>,
}

/// Makes sessions of AWS on the host.
pub trait AwsSource: Debug + Send + Sync {
    /// The kind of the host's credentials, for messages: `profile dev`, `environment`, `offline`.
    fn kind(&self) -> String;

    /// One exchange, uncached. Errors name the next step and never hold a secret.
    fn session<'a>(&'a self, ask: &'a AwsRequest) -> Pending<'a, Result<AwsSession, SourceError>>;

    /// Puts a policy on the role that denies these sessions everything. All of them or none.
    fn deny<'a>(&'a self, _ask: &'a Deny) -> Pending<'a, Result<(), SourceError>> {
        Box::pin(async { Err(SourceError::refused("this source cannot deny sessions")) })
    }

    /// As [`crate::source::Source::reload`].
    fn reload(&self) -> Reloaded {
        Reloaded::Same
    }

    /// Drops pooled connections, after the machine has slept.
    fn reconnect(&self) {}
}
