//! A config's effects, for the user: `config check`, and the differences that a changed file makes.

use std::fmt::Write as _;
use std::sync::Arc;

use super::{AttachMode, Config, Gcs, RelaySource, SourceChoice};
use crate::guard::{GuardRules, Mode};
use crate::policy::Policy;
use crate::quote;
use crate::source::aws::{AwsCredentials, AwsSettings};
use crate::source::azure::{AzureCredentials, AzureSettings};
use crate::workload::Identity;

impl Config {
    /// Keys that differ in `new` and take effect only when a session starts.
    pub fn differs_beyond_rules(&self, new: &Self) -> Vec<&'static str> {
        let told = |config: &Self| {
            let Self { source, project, numeric_project, email, quota_project, zone, .. } = config;
            [
                ("credentials", format!("{source:?}")),
                ("project", format!("{project:?} {numeric_project:?} {quota_project:?}")),
                ("email", format!("{email:?}")),
                ("impersonate", format!("{:?}", config.delegates)),
                ("zone", zone.clone()),
                ("instance", format!("{:?}", config.instance)),
                ("attributes", format!("{:?} {:?}", config.instance_attributes, config.project_attributes)),
                ("endpoints", format!("{:?}", config.endpoints)),
                ("aws", format!("{:?}", config.aws)),
                ("azure", format!("{:?}", config.azure)),
                ("audit", format!("{:?}", config.audit)),
                ("metrics", format!("{:?}", config.metrics)),
                ("keep", config.keep.to_string()),
                ("guard", format!("{:?}", config.guard.rules)),
                ("gcs", format!("{:?}", config.gcs)),
                (
                    "network",
                    format!(
                        "{} {:?} {:?} {}",
                        config.pool, config.attach, config.cells, config.host_loopback
                    ),
                ),
                ("engine", format!("{:?} {} {:?}", config.engine, config.plain_tcp, config.host_root)),
                ("relay", format!("{:?}", config.relay)),
                ("log", config.log.clone()),
            ]
        };
        let both = told(self).into_iter().zip(told(new));
        both.filter(|((_, old), (_, new))| old != new).map(|((name, _), _)| name).collect()
    }

    /// What `config check` prints: one line per fact.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, what: String| {
            let _ = writeln!(text, "{name:<12}  {}", quote::one_line(&what));
        };
        line("file", self.file.as_ref().map_or_else(|| "none, defaults only".into(), |f| quote::path(f)));
        line("credentials", credentials(&self.source));
        line("project", self.project.clone().unwrap_or_else(|| "what the credential says".into()));
        for (name, value) in [
            ("delegates", (!self.delegates.is_empty()).then(|| self.delegates.join(", "))),
            ("number", self.numeric_project.map(|number| number.to_string())),
            ("quota", self.quota_project.clone()),
            ("e-mail", self.email.clone()),
            ("zone", Some(self.zone.clone())),
            ("token", self.endpoints.token.clone()),
            ("iam", self.endpoints.iam_credentials.clone()),
            ("iam admin", self.endpoints.iam.clone()),
            ("sts", self.endpoints.sts.clone()),
            ("storage", self.endpoints.storage.clone()),
            ("aws", self.aws.as_ref().map(aws)),
            ("azure", self.azure.as_ref().map(azure)),
            ("gcs", (self.gcs != Gcs::default()).then(|| fetching(self.gcs))),
            ("universe", self.endpoints.universe.clone()),
            ("engine", self.engine.as_deref().map(quote::name)),
            ("host root", self.host_root.at().map(quote::path)),
            ("relay", relay(&self.relay)),
            ("pool", self.cells.is_none().then(|| self.pool.to_string())),
            ("attach", (self.attach != AttachMode::Auto).then(|| self.attach.name().to_string())),
            ("cells", self.cells.map(|range| format!("{range}, one network for each container"))),
            ("guard", (self.guard.rules != GuardRules::default()).then(|| guarding(&self.guard.rules))),
            ("audit", self.audit.as_ref().map(|audit| quote::path(&audit.file))),
            ("unknown", unknown(&self.policy)),
            ("metrics", self.metrics.map(|at| at.to_string())),
        ] {
            if let Some(value) = value {
                line(name, value);
            }
        }
        for identity in self.identities.values() {
            line("identity", sentence(identity));
        }
        for (index, rule) in self.policy.rules.iter().enumerate() {
            let given = rule.patterns.iter().map(|pattern| pattern.to_string());
            let given = given.collect::<Vec<_>>().join(", ");
            let identity = rule.identity.as_ref().map_or("none", |identity| &identity.name);
            let identity = format!("{identity}{}", choices(&rule.choose));
            line(&format!("rule {}", index + 1), format!("{given}: {identity}"));
        }
        let who = if self.policy.all { "every other container" } else { "every other kfp task" };
        let identity = self.policy.default.as_ref().map_or("none", |identity| &identity.name);
        line("otherwise", format!("{who}: {identity}{}", choices(&self.policy.choose)));
        for what in &self.unverified {
            line("not verified", what.clone());
        }
        text
    }
}

fn credentials(source: &SourceChoice) -> String {
    match source {
        SourceChoice::Offline => "offline: no cloud accepts these tokens".into(),
        SourceChoice::Provided(provided) => provided.summary(),
        SourceChoice::Metadata => "this machine's metadata server".into(),
        SourceChoice::Gcloud => "gcloud's active account".into(),
        SourceChoice::Adc { file: Some(file) } => quote::path(file),
        SourceChoice::Adc { file: None } => "adc, where Google's libraries look".into(),
    }
}

fn aws(settings: &AwsSettings) -> String {
    let from = match &settings.credentials {
        AwsCredentials::Default => "where the tools of AWS look".into(),
        AwsCredentials::Environment => "variables".into(),
        AwsCredentials::Profile(name) => format!("the profile {}", quote::name(name)),
        AwsCredentials::Machine => "this machine's role".into(),
        AwsCredentials::Command { program, .. } => format!("the command {}", quote::path(program)),
        AwsCredentials::WebIdentity { token_from, .. } => format!("a token from {}", quote::name(token_from)),
        AwsCredentials::Offline => "offline: AWS does not accept these credentials".into(),
    };
    let region = settings.region.as_ref().map(|region| format!(", region {region}"));
    let sts = settings.sts.as_ref().map(|url| format!(", STS at {}", quote::name(url)));
    format!("{from}{}{}", region.unwrap_or_default(), sts.unwrap_or_default())
}

fn azure(settings: &AzureSettings) -> String {
    let from = match &settings.credentials {
        AzureCredentials::Az => "the Azure command line".into(),
        AzureCredentials::Environment => "variables".into(),
        AzureCredentials::Machine => "this machine's managed identity".into(),
        AzureCredentials::Command { program, .. } => format!("the command {}", quote::path(program)),
        AzureCredentials::Federated { token_from, .. } => format!("a token from {}", quote::name(token_from)),
        AzureCredentials::Offline => "offline: Azure does not accept these tokens".into(),
    };
    let tenant = settings.tenant.as_ref().map(|tenant| format!(", tenant {tenant}"));
    let authority = settings.authority.as_ref().map(|url| format!(", at {}", quote::name(url)));
    format!("{from}{}{}", tenant.unwrap_or_default(), authority.unwrap_or_default())
}

fn relay(from: &RelaySource) -> Option<String> {
    let folder = || from.folder.as_deref().map(quote::path);
    from.image.as_deref().map(quote::name).or_else(folder)
}

fn unknown(policy: &Policy) -> Option<String> {
    policy.unknown.as_ref().map(|identity| format!("{}, where no rule can tell", identity.name))
}

fn fetching(gcs: Gcs) -> String {
    match gcs.fetch {
        true => format!("at most {} bytes are fetched for a task", gcs.max_bytes),
        false => "nothing is fetched from Cloud Storage".into(),
    }
}

fn guarding(rules: &GuardRules) -> String {
    let mode = match rules.mode {
        Mode::Deny => "deny",
        Mode::Warn => "warn",
        Mode::Off => "off",
    };
    let paths = rules.allow.iter().map(|path| quote::path(path));
    let names = rules.named.iter().map(|named| named.part.entry(&quote::name(&named.name)));
    let allowed: Vec<String> = paths.chain(names).collect();
    match allowed.is_empty() {
        true => mode.into(),
        false => format!("{mode}, except {}", allowed.join(" ")),
    }
}

fn choices(choose: &[Arc<Identity>]) -> String {
    let names: Vec<&str> = choose.iter().map(|identity| identity.name.as_str()).collect();
    if names.is_empty() { String::new() } else { format!(", or by choice {}", names.join(", ")) }
}

fn sentence(identity: &Identity) -> String {
    let account = identity.service_account.as_deref().unwrap_or("your own account");
    let account = if identity.google { account } else { "nothing of Google" };
    let mut text = format!("{}: {account}", identity.name);
    for other in &identity.others {
        let _ = write!(text, " and {other}");
    }
    let _ = write!(text, ", {} s", identity.lifetime.as_secs());
    let _ =
        write!(text, ", scopes {}", identity.scopes.iter().map(quote::name).collect::<Vec<_>>().join(" "));
    if !identity.audiences.is_empty() {
        let _ = write!(
            text,
            ", audiences {}",
            identity.audiences.iter().map(|one| quote::name(one)).collect::<Vec<_>>().join(" ")
        );
    }
    if let Some(subject) = &identity.subject {
        let _ = write!(text, ", standing in for {subject}");
    }
    if let Some(boundary) = &identity.boundary {
        let mut buckets: Vec<&str> = boundary.0.iter().map(|rule| rule.bucket.as_str()).collect();
        buckets.dedup();
        let _ = write!(
            text,
            ", Cloud Storage alone, in {} (its ID tokens are not limited by that)",
            buckets.join(" ")
        );
    }
    if let Some(rate) = identity.rate {
        let _ = write!(text, ", {rate} a minute");
    }
    if let Some(aws) = &identity.aws {
        let _ = write!(text, ", on AWS {aws}");
    }
    if let Some(azure) = &identity.azure {
        let _ = write!(text, ", on Azure {azure}");
    }
    let kill = identity.kill_switch;
    for (word, said) in [("isolate", identity.isolate), ("strict", identity.strict), ("kill switch", kill)] {
        if said {
            let _ = write!(text, ", {word}");
        }
    }
    text
}
