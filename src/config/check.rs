//! Validates values: turns the merged table into [`Config`] and reports all problems at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::boundary::boundary;
use super::clouds;
use super::endpoint::Endpoint;
use super::find::FoundConfig;
use super::forms::{
    account, address, chain, hostname, is_name, label, lifetime, log, pinned, place, pool, project,
    service_account, universe,
};
use super::layers::{Layers, accepted, judged, judged_as};
use super::mounts::{SourceBase, mounts};
use super::provider::provided;
use super::rules::{choose, compiled, named, rules};
use super::seeing::{audit, metrics};
use super::{
    AttachMode, Config, Environment, Gcs, Instance, Overrides, Pool, Problems, RelaySource, SourceChoice,
    guarding,
};
use crate::console;
use crate::guard::host_root::HostRoot;
use crate::policy::Policy;
use crate::quote;
use crate::source::google::Endpoints;
use crate::token::{CLOUD_PLATFORM, Scopes};
use crate::workload::Identity;

const POOL: Pool = Pool { network: Ipv4Addr::new(169, 254, 168, 0), prefix: 22 };
/// Link-local, and distinct from the addresses that clouds and cluster networks use.
const CELLS: Pool = Pool { network: Ipv4Addr::new(169, 254, 64, 0), prefix: 19 };
const ZONE: &str = "us-central1-a";
/// Google's limits on the size and name of a custom metadata value.
const LONGEST_VALUE: usize = 256 << 10;
const LONGEST_NAME: usize = 128;
const LONGEST_DESCRIPTION: usize = 2048;

pub(super) fn resolve(
    mut layers: Layers,
    base: &Path,
    env: &Environment,
    flags: &Overrides,
    located: Option<FoundConfig>,
) -> Result<Config, Problems> {
    layers.verdict()?;
    let config = settings(&mut layers, base, env, flags, located);
    layers.verdict().map(|()| config)
}

fn settings(
    say: &mut Layers,
    base: &Path,
    env: &Environment,
    flags: &Overrides,
    located: Option<FoundConfig>,
) -> Config {
    let stamp = located.as_ref().and_then(|located| located.stamp);
    let (file, policies) = located.map(|located| (located.path, located.policies)).unzip();
    let policies = policies.unwrap_or_default();
    let mut delegates = judged_as(say, "impersonate", chain).unwrap_or_default();
    let impersonate = delegates.pop();
    let subject = judged(say, "subject", account);
    let beside = file.as_deref().and_then(Path::parent).unwrap_or(&env.cwd).to_owned();
    let source = source(say, (base, &beside), env);
    let offline = source == SourceChoice::Offline;
    let at = clouds::CloudContext { beside: &beside, env, policies: &policies, offline };
    let (aws, azure) = (clouds::aws(say, at), clouds::azure(say, at));
    let hosts = clouds::Hosts { aws: aws.as_ref(), azure: azure.as_ref() };
    let identities = identities(say, (impersonate.as_deref(), subject.as_deref()), at, hosts);
    let policy = policy(say, &identities);
    let key_guard = guarding::guard(guarding::rules(say, &beside, env), &source, env);
    let host_root = HostRoot::new(judged_as(say, "host_root", host_root));
    let (mounts, unverified) =
        mounts(say, &flags.mounts, SourceBase { beside: &beside, env, host: &host_root }, &key_guard);
    Config {
        audit: audit(say, &beside, env),
        metrics: metrics(say),
        mounts,
        unverified,
        source,
        impersonate,
        delegates,
        project: judged(say, "project", project),
        numeric_project: numeric(say),
        email: judged(say, "email", account),
        quota_project: judged(say, "quota_project", project),
        zone: zone(say),
        instance: instance(say),
        instance_attributes: attributes(say, "attributes"),
        project_attributes: attributes(say, "project_attributes"),
        endpoints: endpoints(say),
        aws,
        azure,
        policy,
        policies: policies.into_values().map(|policy| policy.path).collect(),
        compiled: compiled(say, &beside, env),
        clear_entrypoint: say.flag("clear_entrypoint").unwrap_or(true),
        identities,
        keep: say.flag("keep").unwrap_or_default(),
        guard: key_guard,
        gcs: gcs(say),
        pool: judged_as(say, "network.pool", pool).unwrap_or(POOL),
        attach: attach(say),
        cells: cells(say),
        host_loopback: say.flag("network.host_loopback").unwrap_or_default(),
        client_proxies: super::proxies::ProxyEntries::read(env),
        engine: judged(say, "engine", |text| Endpoint::parse(text).map(drop)),
        plain_tcp: say.flag("plain_tcp").unwrap_or_default(),
        host_root,
        relay: relay(say, &beside),
        form: form(flags),
        log: judged(say, "log", log).unwrap_or_else(|| "warn".into()),
        file,
        stamp,
        flags: flags.clone(),
    }
}

/// Which container gets which identity.
fn policy(say: &mut Layers, identities: &BTreeMap<String, Arc<Identity>>) -> Policy {
    let (default, unknown) = (say.text("default"), say.text("unknown"));
    Policy {
        rules: rules(say, identities),
        default: named(say, "default", default.as_deref().unwrap_or("default"), identities),
        choose: choose(say, "choose", identities),
        all: say.flag("all").unwrap_or_default(),
        unknown: named(say, "unknown", unknown.as_deref().unwrap_or("none"), identities),
    }
}

/// Without the mount the guard would skip everything as missing.
fn host_root(text: &str) -> Result<PathBuf, String> {
    match Path::new(text) {
        path if path.is_absolute() && path.is_dir() => Ok(path.into()),
        _ => Err("has to be a directory, by its absolute path: mount / of the engine's machine there".into()),
    }
}

fn relay(say: &mut Layers, beside: &Path) -> RelaySource {
    let folder = say.text("relay_folder").filter(|text| say.is_path("relay_folder", text));
    RelaySource { image: judged(say, "relay_image", pinned), folder: folder.map(|path| beside.join(path)) }
}

fn form(flags: &Overrides) -> console::OutputForm {
    match flags {
        Overrides { json: true, .. } => console::OutputForm::Json,
        Overrides { quiet: true, .. } => console::OutputForm::Quiet,
        _ => console::OutputForm::Text,
    }
}

fn source(say: &mut Layers, (base, beside): (&Path, &Path), env: &Environment) -> SourceChoice {
    let (word, file) = (say.text("credentials"), say.text("credentials_file"));
    if say.is_table("credentials") {
        if file.is_some() {
            say.problem("credentials_file", "credentials is a table; keep one of them");
        }
        if let Some(provided) = provided(say, beside, env) {
            return SourceChoice::Provided(Box::new(provided));
        }
    }
    match word.as_deref() {
        None | Some("adc") => {}
        Some(other @ ("offline" | "metadata" | "gcloud")) if file.is_some() => {
            say.problem("credentials_file", format_args!("{other} takes no credential file"));
        }
        Some("offline") => return SourceChoice::Offline,
        Some("metadata") => return SourceChoice::Metadata,
        Some("gcloud") => return SourceChoice::Gcloud,
        Some(other) => {
            let what = format_args!(
                "{} has to be \"adc\", \"metadata\", \"gcloud\" or \"offline\"",
                quote::value(other)
            );
            say.problem("credentials", what);
        }
    }
    let file = file.and_then(|file| match (file.strip_prefix("~/"), env.home()) {
        _ if !say.is_path("credentials_file", &file) => None,
        (None, _) if file.is_empty() => {
            say.problem("credentials_file", "is empty; leave it out to use what Google's libraries find");
            None
        }
        (Some(rest), Some(home)) => Some(home.join(rest)),
        _ => Some(base.join(file)),
    });
    SourceChoice::Adc { file }
}

fn attach(say: &mut Layers) -> AttachMode {
    let attach = judged_as(say, "network.attach", |text| {
        let known = AttachMode::NAMES.iter().find(|(name, _)| *name == text).map(|(_, attach)| *attach);
        known.ok_or_else(|| "has to be \"auto\", \"link-local\", \"own\" or \"second\"".into())
    });
    attach.unwrap_or_default()
}

/// The address range for networks of one container each, if that isolation is on.
fn cells(say: &mut Layers) -> Option<Pool> {
    let range = judged_as(say, "network.cells", pool).unwrap_or(CELLS);
    let each = judged_as(say, "isolation", |text| match text {
        "shared" => Ok(false),
        "network" => Ok(true),
        _ => Err("has to be \"shared\" or \"network\"".into()),
    });
    (each == Some(true)).then_some(range)
}

fn gcs(say: &mut Layers) -> Gcs {
    let usual = Gcs::default();
    let max_bytes = say.number("gcs.max_bytes").map(|most| u64::try_from(most).unwrap_or_default());
    if max_bytes == Some(0) {
        say.problem("gcs.max_bytes", "has to be 1 or more; gcs.fetch = false fetches nothing");
    }
    let fetch = say.flag("gcs.fetch").unwrap_or(usual.fetch);
    Gcs { fetch, max_bytes: max_bytes.unwrap_or(usual.max_bytes) }
}

fn numeric(say: &mut Layers) -> Option<u64> {
    let number = say.number("numeric_project")?;
    match u64::try_from(number) {
        Ok(number) if number > 0 => Some(number),
        _ => {
            say.problem("numeric_project", format_args!("{number} has to be 1 or more"));
            None
        }
    }
}

fn zone(say: &mut Layers) -> String {
    if say.text("zone").is_some() && say.text("region").is_some() {
        say.problem("region", "zone is given too; keep one of them");
    }
    let region = judged(say, "region", place).map(|region| format!("{region}-1"));
    judged(say, "zone", place).or(region).unwrap_or_else(|| ZONE.into())
}

fn instance(say: &mut Layers) -> Instance {
    let description = say.text("instance.description");
    if description.as_ref().is_some_and(|text| text.len() > LONGEST_DESCRIPTION) {
        say.problem("instance.description", "is longer than 2048 bytes");
    }
    let tags = say.list("instance.tags").unwrap_or_default();
    for tag in &tags {
        accepted(say, "instance.tags", tag, label);
    }
    Instance {
        hostname: judged(say, "instance.hostname", hostname),
        machine_type: judged(say, "instance.machine_type", label),
        description,
        tags,
    }
}

fn attributes(say: &mut Layers, table: &str) -> BTreeMap<String, String> {
    let all = say.texts(table);
    for (name, value) in &all {
        let path = format!("{table}.{name}");
        if !is_name(name, LONGEST_NAME) {
            say.problem(&path, "a name has letters, digits, - and _, at most 128");
        }
        if value.len() > LONGEST_VALUE {
            say.problem(&path, "the value is larger than 256 KiB");
        }
    }
    all
}

fn endpoints(say: &mut Layers) -> Endpoints {
    let base = |text: &str| {
        let text = address(text)?;
        let path = text.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
        if path { Err("has to be a base URL, without a path".into()) } else { Ok(text) }
    };
    Endpoints {
        token: judged_as(say, "endpoints.token", address),
        iam_credentials: judged_as(say, "endpoints.iam_credentials", base),
        iam: judged_as(say, "endpoints.iam", base),
        sts: judged_as(say, "endpoints.sts", address),
        storage: judged_as(say, "endpoints.storage", base),
        universe: judged(say, "endpoints.universe", universe),
    }
}

fn identities(
    say: &mut Layers,
    (impersonate, subject): (Option<&str>, Option<&str>),
    at: clouds::CloudContext<'_>,
    hosts: clouds::Hosts<'_>,
) -> BTreeMap<String, Arc<Identity>> {
    let mut all = BTreeMap::new();
    let names: BTreeSet<String> = say.names("identity").into_iter().chain(["default".into()]).collect();
    for name in names {
        let path = |key: &str| format!("identity.{name}.{key}");
        if name == "none" || !is_name(&name, 63) {
            let what = "a name has letters, digits, - and _, at most 63, and is not none";
            say.problem(&format!("identity.{name}"), what);
        }
        if name == "default" && say.text(&path("service_account")).is_some() {
            say.problem(&path("service_account"), "use impersonate instead, which flags can change");
        }
        let own = judged(say, &path("service_account"), service_account);
        let stands_in = match say.text(&path("subject")) {
            Some(nobody) if nobody.is_empty() => None,
            Some(_) => judged(say, &path("subject"), account),
            None => subject.map(String::from),
        };
        let kill_switch = say.flag(&path("kill_switch")).unwrap_or_default();
        if kill_switch && own.is_none() {
            let what =
                "needs a service_account of this identity's own: whoever else uses the account loses it";
            say.problem(&path("kill_switch"), what);
        }
        let lifetime = judged_as(say, &path("lifetime"), lifetime);
        let identity = Identity {
            others: others(say, &path("other_accounts"), own.as_deref()),
            service_account: own.or_else(|| impersonate.map(String::from)),
            scopes: scopes(say, &path("scopes")),
            audiences: audiences(say, &path("audiences")),
            lifetime: lifetime.unwrap_or(Duration::from_secs(3600)),
            isolate: say.flag(&path("isolate")).unwrap_or_default(),
            strict: say.flag(&path("strict")).unwrap_or_default(),
            kill_switch,
            rate: rate(say, &path("rate")),
            subject: stands_in,
            boundary: boundary(say, &path("boundary")),
            google: say.flag(&path("google")).unwrap_or(true),
            aws: clouds::aws_identity(say, &path("aws"), at, hosts),
            azure: clouds::azure_identity(say, &path("azure"), hosts),
            name: name.clone(),
        };
        all.insert(name, Arc::new(identity));
    }
    all
}

fn others(say: &mut Layers, path: &str, first: Option<&str>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for email in say.list(path).unwrap_or_default() {
        if first == Some(email.as_str()) || all.contains(&email) {
            say.problem(path, format_args!("{} is listed twice", quote::value(&email)));
        }
        if accepted(say, path, &email, service_account).is_some() {
            all.push(email);
        }
    }
    all
}

fn rate(say: &mut Layers, path: &str) -> Option<u32> {
    let given = say.number(path)?;
    let rate = u32::try_from(given).ok().filter(|rate| *rate > 0);
    if rate.is_none() {
        say.problem(path, format_args!("{given} has to be 1 or more"));
    }
    rate
}

fn scopes(say: &mut Layers, path: &str) -> Scopes {
    let Some(given) = say.list(path) else { return Scopes::parse(CLOUD_PLATFORM) };
    if given.is_empty() {
        say.problem(path, "has to hold at least one scope; leave it out for cloud-platform");
    }
    for scope in &given {
        // RFC 6749 section 3.3: a scope is printable ASCII without blank, quote and backslash. The comma is
        // excluded because it separates scopes in the metadata protocol.
        let token = scope.bytes().all(|b| b.is_ascii_graphic() && !b"\"\\,".contains(&b));
        let known = scope.starts_with("https://") || ["openid", "email", "profile"].contains(&scope.as_str());
        if !token || !known {
            let scope = quote::value(scope);
            say.problem(path, format_args!("{scope} has to be a whole scope, such as \"{CLOUD_PLATFORM}\""));
        }
    }
    given.iter().map(String::as_str).collect()
}

fn audiences(say: &mut Layers, path: &str) -> Vec<String> {
    let given = say.list(path).unwrap_or_default();
    for audience in &given {
        if audience.is_empty() || audience.chars().any(|c| c.is_control() || c.is_whitespace()) {
            say.problem(
                path,
                format_args!("{} has to be one audience, without blanks", quote::value(audience)),
            );
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::KEYS;

    /// So that a key is declared once: a row of `KEYS` that nobody reads, or a read without a row, fails here.
    #[test]
    fn every_key_is_read_and_nothing_else() {
        let text = "[credentials]\nworkload_identity_provider = \"projects/1/locations/global/workloadIdentityPools/a/\
                    providers/b\"\ntoken_from = \"https://a.example/\"\n[[rule]]\n[[mount]]\n[[identity.a.boundary]]\n";
        let (env, flags) = (Environment::default(), Overrides::default());
        let mut layers = Layers::default();
        layers.file(Path::new("/a/kfp-creds.toml"), text);
        assert_eq!(layers.verdict(), Ok(()));
        settings(&mut layers, Path::new("/a"), &env, &flags, None);
        let keys: BTreeSet<String> = KEYS.iter().map(|key| key.path.to_owned()).collect();
        assert_eq!(layers.read.take(), keys);
    }
}
