//! Sources that `[credentials]` of the config sets up, besides credential files.

use std::path::PathBuf;
use std::time::Duration;

/// At least one of the two.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Provided {
    pub exec: Option<Exec>,
    pub federation: Option<Federation>,
}

/// A command that brings tokens, or, with a federation, the token that is exchanged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Exec {
    /// A bare name is looked for in `PATH`; everything else is absolute.
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// Names of variables that it sees besides those of every command.
    pub pass: Vec<String>,
    /// From 1 s to 120 s.
    pub timeout: Duration,
}

/// A token of somebody else's issuer, exchanged for a principal of a pool.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Federation {
    /// `projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER`.
    pub provider: String,
    /// Impersonated with what the exchange brings.
    pub service_account: Option<String>,
    pub from: TokenFrom,
    /// The audience that the token is asked for, where it can be; by default what Google expects unless the
    /// provider says otherwise: `https://iam.googleapis.com/` and the provider.
    pub token_audience: Option<String>,
    /// Of RFC 8693 section 3; a JWT by default.
    pub token_type: Option<String>,
    /// The field of a JSON object that holds it; without, it stands alone. GitHub's is known.
    pub field: Option<String>,
    /// `NAME: VALUE` for a URL. `$VARIABLE` in the value stands for a variable of the environment.
    pub headers: Vec<String>,
    /// The URL is asked by POST, as Azure DevOps wants it.
    pub post: bool,
}

/// Where the subject token comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TokenFrom {
    /// GitHub Actions, with `permissions: id-token: write`.
    Github,
    /// A job of Azure Pipelines to which `System.AccessToken` was given.
    AzureDevops,
    Variable(String),
    File(PathBuf),
    /// By GET, or by POST where the federation says so.
    Url(String),
    /// The exec provider.
    Command,
}
