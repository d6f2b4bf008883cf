//! What `[credentials]` sets up besides files: the config says it, the source does it.

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

/// Metadata services of clouds at addresses that never leave the machine or its hypervisor: `http` is as good as
/// `https` there. With what is there.
pub const LINK_LOCAL: [(&str, &str); 7] = [
    ("169.254.169.254", "the metadata server of Google, AWS and Azure"),
    ("[fd00:ec2::254]", "the same of AWS, by IPv6"),
    ("169.254.170.2", "the credentials of an AWS ECS task"),
    ("169.254.170.23", "AWS EKS Pod Identity"),
    ("[fd00:ec2::23]", "the same, by IPv6"),
    ("100.100.100.200", "the metadata server of Alibaba Cloud"),
    ("metadata.google.internal", "Google's by its name, which only a Google machine's resolver has"),
];

/// Whether `host` is one of them. Azure App Service gives each app an address of 169.254.128.0/22.
pub fn is_link_local_service(host: &str) -> bool {
    let app_service = host.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| {
        let [a, b, c, _] = ip.octets();
        (a, b) == (169, 254) && (128..132).contains(&c)
    });
    app_service || LINK_LOCAL.iter().any(|(known, _)| *known == host)
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
