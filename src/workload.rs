//! Callers and what they may have: container, task, identity, grant.
//!
//! A caller is identified by the address that the *relay's socket* saw, never by a header, a name, or
//! a label that an image could carry (`docs/security/threats.md`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use wildmatch::WildMatch;

use crate::cloud::{AwsIdentity, AzureIdentity, Cloud};
use crate::quote;
use crate::secret::Secret;
use crate::token::{Boundary, CLOUD_PLATFORM, Scopes};

/// The 64 hex digits that the engine gave a container.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ContainerId(Arc<str>);

impl ContainerId {
    /// `None` unless `text` is exactly 64 lower-case hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 64 && text.bytes().all(hex)).then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, as the docker command line shows them.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// A create request's description of its container; rules match on it and messages name it. The container's
/// creator wrote all of it: hints for policy, not proof.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Task {
    /// True when the request looks like one of `kfp.local`'s (`docs/ARCHITECTURE.md`, "Which containers").
    pub kfp: bool,
    pub pipeline: Option<String>,
    /// The run's time stamp, `2026-11-23-06-04-22-567757`.
    pub run: Option<String>,
    /// The last directory of the output path: the task's name inside its pipeline.
    pub component: Option<String>,
    /// `--function_to_execute` of a lightweight component.
    pub function: Option<String>,
    /// The directories between pipeline and component, `for-loop-1-iteration-1`.
    pub iteration: Option<String>,
    /// `Image` of the request, as it was written.
    pub image: String,
    /// `?name=` of the request.
    pub name: Option<String>,
    /// Labels of the request (never those of the image).
    pub labels: BTreeMap<String, String>,
    /// `KFP_CREDS_IDENTITY` in the environment of the request: the identity that the container requests.
    pub requested: Option<String>,
    pub unknown: Unknown,
}

/// Properties that a kfp task has but its request does not show: for these, `None` does not mean that there
/// is none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Unknown {
    pub pipeline: bool,
    pub component: bool,
    pub function: bool,
    pub iteration: bool,
}

impl Unknown {
    /// For a kfp task whose request shows nothing of its place in a pipeline.
    pub const PLACE: Self = Self { pipeline: true, component: true, function: true, iteration: true };

    fn has(self, part: &Part) -> bool {
        match part {
            Part::Pipeline => self.pipeline,
            Part::Component => self.component,
            Part::Function => self.function,
            Part::Iteration => self.iteration,
            Part::Image | Part::ComposeProject | Part::ComposeService | Part::Label(_) => false,
        }
    }
}

/// `pipeline/component`, else the name, else the image.
impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.pipeline, &self.component) {
            (Some(pipeline), Some(component)) => write!(f, "{pipeline}/{component}"),
            _ => f.write_str(self.name.as_deref().unwrap_or(&self.image)),
        }
    }
}

/// The property that a pattern of a rule or a mount matches. The container's creator wrote all of them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Part {
    Pipeline,
    Component,
    Function,
    Iteration,
    /// As written in the request, with tag or digest.
    Image,
    ComposeProject,
    ComposeService,
    /// A label of the request.
    Label(String),
}

impl Part {
    pub fn of<'a>(&self, task: &'a Task) -> Option<&'a str> {
        let label = |name: &str| task.labels.get(name).map(String::as_str);
        match self {
            Self::Pipeline => task.pipeline.as_deref(),
            Self::Component => task.component.as_deref(),
            Self::Function => task.function.as_deref(),
            Self::Iteration => task.iteration.as_deref(),
            Self::Image => Some(&task.image),
            Self::ComposeProject => label("com.docker.compose.project"),
            Self::ComposeService => label("com.docker.compose.service"),
            Self::Label(name) => label(name),
        }
    }
}

/// Shown as the key in the config.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pipeline => "pipeline",
            Self::Component => "component",
            Self::Function => "function",
            Self::Iteration => "iteration",
            Self::Image => "image",
            Self::ComposeProject => "compose_project",
            Self::ComposeService => "compose_service",
            Self::Label(name) => return write!(f, "label {name}"),
        })
    }
}

/// One pattern: `*` is any text, `?` one character. A missing property matches nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    pub part: Part,
    pub glob: WildMatch,
}

impl Pattern {
    pub fn new(part: Part, glob: &str) -> Self {
        Self { part, glob: WildMatch::new(glob) }
    }

    pub fn fits(&self, task: &Task) -> bool {
        self.fit(task) == Fit::Yes
    }

    pub fn fit(&self, task: &Task) -> Fit {
        match self.part.of(task) {
            Some(value) if self.glob.matches(value) => Fit::Yes,
            None if task.unknown.has(&self.part) => Fit::Unknown,
            Some(_) | None => Fit::No,
        }
    }
}

/// Whether a pattern, or all patterns of a rule together, match. Ordered, so that the minimum is the result
/// for a rule.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Fit {
    No,
    /// Depends on a property that the request does not show.
    Unknown,
    Yes,
}

/// Shown as written in the config.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.part, quote::name(&self.glob.to_string()))
    }
}

/// A named entry of the config: what a container with this identity may have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    pub name: String,
    /// The service account to impersonate; `None` means the source's own account.
    pub service_account: Option<String>,
    /// Further service accounts, listed after the first one as a VM lists them.
    pub others: Vec<String>,
    /// All scopes of this identity; `cloud-platform` alone by default.
    pub scopes: Scopes,
    /// Audiences that ID tokens may be requested for; empty means any.
    pub audiences: Vec<String>,
    /// How long minted access tokens live, 3600 s by default.
    pub lifetime: Duration,
    /// Tokens are not shared between containers of this identity.
    pub isolate: bool,
    /// A scope outside `scopes` is a 403 instead of being left out.
    pub strict: bool,
    /// The user on whose behalf the service account acts, by domain-wide delegation.
    pub subject: Option<String>,
    /// Restricts access tokens; `None` allows all that the account may do.
    pub boundary: Option<Arc<Boundary>>,
    /// Limit of token requests per minute, for all containers of this identity together; `None` is no limit.
    pub rate: Option<u32>,
    /// The operator may disable its service accounts, because nothing else uses them.
    pub kill_switch: bool,
    /// Containers get tokens of Google.
    pub google: bool,
    /// What containers get on AWS; `None`: nothing.
    pub aws: Option<Arc<AwsIdentity>>,
    /// What containers get on Azure; `None`: nothing.
    pub azure: Option<Arc<AzureIdentity>>,
}

impl Identity {
    pub fn has(&self, cloud: Cloud) -> bool {
        match cloud {
            Cloud::Google => self.google,
            Cloud::Aws => self.aws.is_some(),
            Cloud::Azure => self.azure.is_some(),
        }
    }
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            name: "default".into(),
            service_account: None,
            others: vec![],
            scopes: Scopes::parse(CLOUD_PLATFORM),
            audiences: vec![],
            lifetime: Duration::from_secs(3600),
            isolate: false,
            strict: false,
            subject: None,
            boundary: None,
            rate: None,
            kill_switch: false,
            google: true,
            aws: None,
            azure: None,
        }
    }
}

/// The rule that gave a container its identity, for messages.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum By {
    /// No rule matched.
    #[default]
    Default,
    /// The number of the `[[rule]]`, from 1.
    Rule(usize),
    /// It is unknown whether the rule of this number matches; the config says which identity such a task
    /// gets.
    Unknown(usize),
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Rule(number) => write!(f, "rule {number}"),
            Self::Unknown(number) => write!(f, "unknown, for rule {number}"),
        }
    }
}

/// What one container may have.
#[derive(Clone, Debug)]
pub struct Grant {
    pub container: ContainerId,
    pub identity: Arc<Identity>,
    pub by: By,
    pub task: Arc<Task>,
    /// The secret in the container's environment with which clients of AWS and Azure authenticate; it is not accepted
    /// from another address. `None` if the identity has neither cloud.
    pub secret: Option<Arc<Secret<String>>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_full_ids_are_container_ids() {
        let full = "0123456789abcdef".repeat(4);
        assert_eq!(ContainerId::parse(&full).unwrap().short(), "0123456789ab");
        for bad in ["", "0123", &full[1..], &full.to_uppercase(), &format!("{full}0")] {
            assert!(ContainerId::parse(bad).is_none(), "{bad}");
        }
    }
}
