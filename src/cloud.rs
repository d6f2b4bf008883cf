//! The settings of an identity on AWS and Azure, shared by the modules that grant and those that mint.

use std::fmt;
use std::time::Duration;

/// A cloud whose metadata service is served.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Cloud {
    Google,
    Aws,
    Azure,
}

impl Cloud {
    pub const ALL: [Self; 3] = [Self::Google, Self::Aws, Self::Azure];

    /// The name in the config, the audit log and the metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Google => "google",
            Self::Aws => "aws",
            Self::Azure => "azure",
        }
    }

    /// The cloud whose metadata service has this path. Only the first segment decides, without decoding. Additional
    /// slashes before it are allowed for AWS alone.
    pub fn of_path(path: &str) -> Self {
        match Self::first_segment(path) {
            "latest" | "v2" => Self::Aws,
            "metadata" | "msi" => Self::Azure,
            "" if Self::first_segment(path.trim_start_matches('/')) == "latest" => Self::Aws,
            _ => Self::Google,
        }
    }

    /// `latest` of `/latest/meta-data?x`.
    pub fn first_segment(path: &str) -> &str {
        let inner = path.strip_prefix('/').unwrap_or(path);
        inner.split(['/', '?']).next().unwrap_or(inner)
    }
}

/// The name for people.
impl fmt::Display for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Google => "Google Cloud",
            Self::Aws => "AWS",
            Self::Azure => "Azure",
        })
    }
}

/// The limits of `AssumeRole` (STS API reference).
pub mod sts {
    use std::ops::RangeInclusive;

    /// Longest session policy, in characters.
    pub const LONGEST_POLICY: usize = 2048;
    /// Most ARNs of managed policies.
    pub const MOST_POLICIES: usize = 10;
    /// The range of a session's lifetime, in seconds.
    pub const LIFETIMES: RangeInclusive<u64> = 900..=43_200;
}

/// The nil UUID, for clients that expect an id where there is none.
pub const NIL_UUID: &str = "00000000-0000-0000-0000-000000000000";

/// `[identity.NAME.aws]`: the sessions that containers of an identity get. Without a role they get the host's own
/// session, if that is temporary and `own_session` allows it; long-lived keys are never handed out.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct AwsIdentity {
    /// The ARN of the role that every container assumes, in a session of its own.
    pub role: Option<String>,
    /// The host's own temporary session may be handed to containers.
    pub own_session: bool,
    /// A session policy (JSON) that narrows the role; at most 2048 characters.
    pub policy: Option<String>,
    /// ARNs of managed policies that narrow the role; at most 10.
    pub policy_arns: Vec<String>,
    /// `DurationSeconds` of `AssumeRole`: 900 s to 12 h.
    pub lifetime: Duration,
    /// The session is tagged with pipeline and component; needs `sts:TagSession`.
    pub tags: bool,
    /// `SourceIdentity` of the session: the person, in CloudTrail; needs `sts:SetSourceIdentity`.
    pub source_identity: Option<String>,
    /// `ExternalId`, for roles of another company's account.
    pub external_id: Option<String>,
    /// The operator may deny a container's session at IAM, by a policy on the role.
    pub kill_switch: bool,
}

impl Default for AwsIdentity {
    fn default() -> Self {
        Self {
            role: None,
            own_session: false,
            policy: None,
            policy_arns: vec![],
            lifetime: Duration::from_secs(3600),
            tags: false,
            source_identity: None,
            external_id: None,
            kill_switch: false,
        }
    }
}

impl AwsIdentity {
    /// `loader` of `arn:aws:iam::123456789012:role/team/loader`, which clients see as the instance's role.
    pub fn role_name(&self) -> &str {
        let role = self.role.as_deref().and_then(|arn| arn.rsplit('/').next());
        role.filter(|name| !name.is_empty()).unwrap_or("kfp-creds")
    }

    /// `123456789012` of the role's ARN.
    pub fn account(&self) -> Option<&str> {
        self.role.as_deref()?.split(':').nth(4).filter(|id| !id.is_empty())
    }
}

/// `[identity.NAME.azure]`: the tokens that containers of an identity get.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct AzureIdentity {
    /// The principal's client id; `None` means that of `[azure]`.
    pub client_id: Option<String>,
    /// The resources that tokens may be requested for, such as `https://storage.azure.com`; empty means any.
    pub resources: Vec<String>,
}

impl AzureIdentity {
    /// Whether tokens for `resource` may be requested. One slash at the end makes no difference: az sends it.
    pub fn allows(&self, resource: &str) -> bool {
        let asked = without_slash(resource);
        self.resources.is_empty() || self.resources.iter().any(|own| without_slash(own) == asked)
    }
}

/// The name of a resource of Azure without the one slash that it may end in.
pub fn without_slash(resource: &str) -> &str {
    resource.strip_suffix('/').unwrap_or(resource)
}

/// `role loader for 3600 s, narrowed by a policy`
impl fmt::Display for AwsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(role) = &self.role else { return f.write_str("your own session") };
        write!(f, "the role {role}, {} s", self.lifetime.as_secs())?;
        if self.policy.is_some() {
            f.write_str(", narrowed by a session policy")?;
        }
        if !self.policy_arns.is_empty() {
            write!(f, ", narrowed by {}", self.policy_arns.join(" "))?;
        }
        if self.tags {
            f.write_str(", tagged")?;
        }
        if let Some(person) = &self.source_identity {
            write!(f, ", source identity {person}")?;
        }
        if self.kill_switch { f.write_str(", kill switch") } else { Ok(()) }
    }
}

/// `your own principal, resources https://storage.azure.com`
impl fmt::Display for AzureIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.client_id {
            Some(client) => write!(f, "the principal {client}")?,
            None => f.write_str("your own principal")?,
        }
        match self.resources.is_empty() {
            true => f.write_str(", any resource"),
            false => write!(f, ", resources {}", self.resources.join(" ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_segment_of_a_path_names_the_cloud() {
        for path in ["/latest/meta-data/", "/latest", "//latest/", "///latest/", "/v2/credentials/x", "/v2?x"]
        {
            assert_eq!(Cloud::of_path(path), Cloud::Aws, "{path}");
        }
        for path in ["/metadata/instance?api-version=1", "/msi/token", "/metadata"] {
            assert_eq!(Cloud::of_path(path), Cloud::Azure, "{path}");
        }
        for path in [
            "/",
            "",
            "/computeMetadata/v1/",
            "/Latest/",
            "//v2/x",
            "//msi/token",
            "//metadata/x",
            "/latestx",
            "/%6catest/",
        ] {
            assert_eq!(Cloud::of_path(path), Cloud::Google, "{path}");
        }
    }

    #[test]
    fn a_role_has_a_name_and_an_account() {
        let of = |arn: &str| AwsIdentity { role: Some(arn.into()), ..AwsIdentity::default() };
        let role = of("arn:aws:iam::123456789012:role/team/loader");
        assert_eq!((role.role_name(), role.account()), ("loader", Some("123456789012")));
        assert_eq!(AwsIdentity::default().role_name(), "kfp-creds");
        assert_eq!(AwsIdentity::default().account(), None);
    }

    #[test]
    fn a_resource_is_the_same_with_a_slash_at_its_end() {
        let storage = AzureIdentity { resources: vec!["https://storage.azure.com".into()], client_id: None };
        assert!(storage.allows("https://storage.azure.com/") && storage.allows("https://storage.azure.com"));
        assert!(!storage.allows("https://storage.azure.com//") && !storage.allows("https://vault.azure.net"));
        assert!(AzureIdentity::default().allows("https://vault.azure.net"));
    }
}
