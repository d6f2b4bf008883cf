//! Sources that the config's `[credentials]` defines, other than credential files.

use std::path::PathBuf;
use std::time::Duration;

/// At least one of the two fields is set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Provided {
    pub exec: Option<Exec>,
    pub federation: Option<Federation>,
}

/// A command that returns tokens or, with a federation, the subject token for the exchange.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Exec {
    /// Absolute, unless it is a bare name, which is looked up in `PATH`.
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// Environment variables passed to the command, besides those that every command gets.
    pub pass: Vec<String>,
    /// From 1 s to 120 s.
    pub timeout: Duration,
}

/// A token of another issuer, exchanged for a token of a principal in a workload identity pool.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Federation {
    /// `projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER`.
    pub provider: String,
    /// The account that the exchanged token impersonates.
    pub service_account: Option<String>,
    pub from: TokenFrom,
    /// The audience to request for the subject token, if the source supports one. Defaults to what Google
    /// expects of an unchanged provider: `https://iam.googleapis.com/` followed by the provider.
    pub token_audience: Option<String>,
    /// A token type of RFC 8693 section 3; a JWT by default.
    pub token_type: Option<String>,
    /// The JSON field that holds the token; unset if the token stands alone. GitHub's is built in.
    pub field: Option<String>,
    /// `NAME: VALUE` headers for a URL. `$VARIABLE` in a value is replaced from the environment.
    pub headers: Vec<String>,
    /// Sends POST to the URL, as Azure DevOps requires.
    pub post: bool,
}

/// Where the subject token comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TokenFrom {
    /// GitHub Actions, with `permissions: id-token: write`.
    Github,
    /// An Azure Pipelines job that was given `System.AccessToken`.
    AzureDevops,
    Variable(String),
    File(PathBuf),
    /// Requested by GET, or by POST if [`Federation::post`] is set.
    Url(String),
    /// The exec provider.
    Command,
}
