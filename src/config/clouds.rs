//! `[aws]` and `[azure]`, and their parts of an identity. A cloud whose table is missing is absent for every
//! container.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Environment;
use super::find::PolicyFile;
use super::forms::{address, is_name, place, printable, span};
use super::layers::{Layers, accepted, judged, judged_as};
use super::provider::{exec, seconds, token_from};
use crate::cloud::sts::{self, LONGEST_POLICY, MOST_POLICIES};
use crate::cloud::{AwsIdentity, AzureIdentity};
use crate::quote;
use crate::source::aws::{AwsCredentials, AwsSettings};
use crate::source::azure::{AzureCredentials, AzureSettings, resource};
use crate::source::google::{Exec, TokenFrom};

/// The audience that AWS and Microsoft Entra document for tokens of GitHub.
const AWS_AUDIENCE: &str = "sts.amazonaws.com";
const AZURE_AUDIENCE: &str = "api://AzureADTokenExchange";
const TIMEOUT: Duration = Duration::from_secs(20);

/// Where relative paths start, and whether everything is signed by a key made at start.
#[derive(Clone, Copy)]
pub(super) struct CloudContext<'a> {
    pub(super) beside: &'a Path,
    pub(super) env: &'a Environment,
    pub(super) policies: &'a BTreeMap<String, PolicyFile>,
    pub(super) offline: bool,
}

pub(super) fn aws(say: &mut Layers, at: CloudContext<'_>) -> Option<AwsSettings> {
    let region = judged(say, "aws.region", place);
    let sts = judged_as(say, "endpoints.aws_sts", address);
    let iam = judged_as(say, "endpoints.aws_iam", address);
    let word = judged_as(say, "aws.credentials", |text| match text {
        "default" => Ok(AwsCredentials::Default),
        "environment" => Ok(AwsCredentials::Environment),
        "machine" => Ok(AwsCredentials::Machine),
        "offline" => Ok(AwsCredentials::Offline),
        _ => Err("has to be \"default\", \"environment\", \"machine\" or \"offline\"".into()),
    });
    let profile = judged(say, "aws.profile", profile).map(AwsCredentials::Profile);
    let command = command(say, "aws", at).map(|exec| AwsCredentials::Command {
        program: exec.program,
        arguments: exec.arguments,
        pass: exec.pass,
        timeout: exec.timeout,
    });
    let audience = say.text("aws.token_audience");
    let web = subject(say, "aws.token_from", at).map(|token_from| AwsCredentials::WebIdentity {
        token_from,
        audience: audience.unwrap_or_else(|| AWS_AUDIENCE.into()),
    });
    if !say.has_cloud("aws") {
        return None;
    }
    let all = [word, profile, command, web].into_iter().flatten();
    let credentials = one(say, "aws", "credentials, profile, exec or token_from", all)?;
    let credentials = if at.offline { AwsCredentials::Offline } else { credentials };
    Some(AwsSettings { credentials, region, sts, iam })
}

pub(super) fn azure(say: &mut Layers, at: CloudContext<'_>) -> Option<AzureSettings> {
    let tenant = judged(say, "azure.tenant", directory);
    let client_id = judged(say, "azure.client_id", client);
    let authority = judged_as(say, "endpoints.azure_authority", address);
    let word = judged_as(say, "azure.credentials", |text| match text {
        "az" => Ok(AzureCredentials::Az),
        "environment" => Ok(AzureCredentials::Environment),
        "machine" => Ok(AzureCredentials::Machine),
        "offline" => Ok(AzureCredentials::Offline),
        _ => Err("has to be \"az\", \"environment\", \"machine\" or \"offline\"".into()),
    });
    let command = command(say, "azure", at).map(|exec| AzureCredentials::Command {
        program: exec.program,
        arguments: exec.arguments,
        pass: exec.pass,
        timeout: exec.timeout,
    });
    let audience = say.text("azure.token_audience");
    let federated = subject(say, "azure.token_from", at).map(|token_from| AzureCredentials::Federated {
        token_from,
        audience: audience.unwrap_or_else(|| AZURE_AUDIENCE.into()),
    });
    if !say.has_cloud("azure") {
        return None;
    }
    if federated.is_some() && (tenant.is_none() || client_id.is_none()) {
        say.problem("azure.token_from", "needs tenant and client_id, for which the token is exchanged");
    }
    let all = [word, command, federated].into_iter().flatten();
    let credentials = one(say, "azure", "credentials, exec or token_from", all)?;
    let credentials = if at.offline { AzureCredentials::Offline } else { credentials };
    let settings = AzureSettings { credentials, tenant, client_id, authority };
    if settings.client_id.is_some() && has_one_principal(&settings) {
        say.problem("azure.client_id", ONE_PRINCIPAL);
    }
    Some(settings)
}

const ONE_PRINCIPAL: &str = "az and a command give tokens of their own principal only; leave client_id out, or say \
     \"environment\" or \"machine\" as azure.credentials";

fn has_one_principal(azure: &AzureSettings) -> bool {
    matches!(azure.credentials, AzureCredentials::Az | AzureCredentials::Command { .. })
}

/// Requires exactly one way to get credentials: with a default, containers would get credentials that nobody chose.
fn one<T>(say: &mut Layers, table: &str, keys: &str, mut all: impl Iterator<Item = T>) -> Option<T> {
    let (first, second) = (all.next(), all.next());
    let named = ["credentials", "profile", "exec", "token_from"].map(|key| format!("{table}.{key}"));
    // A value with a mistake has been reported already.
    let said = named.iter().any(|path| say.is_set(path));
    match (first, second) {
        (Some(only), None) => Some(only),
        (None, _) if said => None,
        (None, _) => {
            say.problem(table, format_args!("has to say one of {keys}"));
            None
        }
        (Some(_), Some(_)) => {
            say.problem(table, format_args!("has more than one of {keys}; keep one"));
            None
        }
    }
}

fn command(say: &mut Layers, table: &str, at: CloudContext<'_>) -> Option<Exec> {
    let path = |key: &str| format!("{table}.{key}");
    let timeout = judged_as(say, &path("timeout"), seconds);
    let (words, pass) = (say.list(&path("exec")), say.list(&path("pass")).unwrap_or_default());
    if words.is_none() && (timeout.is_some() || !pass.is_empty()) {
        say.problem(table, "pass and timeout are for a command, and there is no exec");
    }
    exec(say, table, &words?, pass, timeout.unwrap_or(TIMEOUT), (at.beside, at.env))
}

/// The checked text of `token_from`, with an absolute path.
fn subject(say: &mut Layers, path: &str, at: CloudContext<'_>) -> Option<String> {
    let text = say.text(path)?;
    let base = if say.is_from_file(path) { at.beside } else { &at.env.cwd };
    let from = judged_as(say, path, |text| token_from(text, base, at.env))?;
    Some(match from {
        TokenFrom::File(file) => format!("file:{}", file.to_string_lossy()),
        _ => text,
    })
}

/// The settings of `[aws]` and `[azure]` that identities depend on.
#[derive(Clone, Copy)]
pub(super) struct Hosts<'a> {
    pub(super) aws: Option<&'a AwsSettings>,
    pub(super) azure: Option<&'a AzureSettings>,
}

pub(super) fn aws_identity(
    say: &mut Layers,
    table: &str,
    at: CloudContext<'_>,
    hosts: Hosts<'_>,
) -> Option<Arc<AwsIdentity>> {
    let path = |key: &str| format!("{table}.{key}");
    let usual = AwsIdentity::default();
    let lifetime = judged_as(say, &path("lifetime"), |text| span(text, sts::LIFETIMES, "900 s to 12 h"));
    let identity = AwsIdentity {
        role: judged(say, &path("role"), role),
        own_session: say.flag(&path("own_session")).unwrap_or_default(),
        policy: policy(say, &path("policy"), at),
        policy_arns: policy_arns(say, &path("policy_arns")),
        lifetime: lifetime.unwrap_or(usual.lifetime),
        tags: say.flag(&path("tags")).unwrap_or_default(),
        source_identity: judged(say, &path("source_identity"), |text| session_word(text, 64, "_+=,.@-")),
        external_id: judged(say, &path("external_id"), |text| session_word(text, 1224, "_+=,.@:/-")),
        kill_switch: say.flag(&path("kill_switch")).unwrap_or_default(),
    };
    if !say.is_table(table) {
        return None;
    }
    if !say.has_cloud("aws") {
        say.problem(table, "needs [aws], which says where your own credentials for AWS come from");
    }
    let narrowed = identity.policy.is_some() || !identity.policy_arns.is_empty();
    match &identity.role {
        Some(_) if identity.own_session => {
            say.problem(&path("own_session"), "role is given too; keep one of them");
        }
        None if !identity.own_session && !say.is_set(&path("role")) => say.problem(
            table,
            "has to name a role, or own_session = true, with which containers get your own temporary session",
        ),
        None if narrowed
            || identity.tags
            || identity.source_identity.is_some()
            || identity.external_id.is_some()
            || identity.kill_switch =>
        {
            say.problem(
                table,
                "policies, tags, source_identity, external_id and kill_switch are for a role, and there is none",
            );
        }
        _ => {}
    }
    if hosts.aws.is_some_and(|aws| matches!(aws.credentials, AwsCredentials::WebIdentity { .. })) {
        for (key, given) in [
            ("own_session", identity.own_session),
            ("tags", identity.tags),
            ("source_identity", identity.source_identity.is_some()),
            ("external_id", identity.external_id.is_some()),
            ("kill_switch", identity.kill_switch),
        ] {
            if given {
                say.problem(
                    &path(key),
                    "has no effect with aws.token_from, whose token is exchanged for a role",
                );
            }
        }
    }
    Some(Arc::new(identity))
}

pub(super) fn azure_identity(say: &mut Layers, table: &str, hosts: Hosts<'_>) -> Option<Arc<AzureIdentity>> {
    let path = |key: &str| format!("{table}.{key}");
    let client_id = judged(say, &path("client_id"), client);
    let given = say.list(&path("resources")).unwrap_or_default();
    let plain = |text: &str| {
        resource(text).map_err(|_| "has to be a resource, such as \"https://storage.azure.com\"".to_owned())
    };
    let resources = given.iter().filter_map(|text| accepted(say, &path("resources"), text, plain)).collect();
    if !say.is_table(table) {
        return None;
    }
    if !say.has_cloud("azure") {
        say.problem(table, "needs [azure], which says where your own credentials for Azure come from");
    }
    if client_id.is_some() && hosts.azure.is_some_and(has_one_principal) {
        say.problem(&path("client_id"), ONE_PRINCIPAL);
    }
    Some(Arc::new(AzureIdentity { client_id, resources }))
}

/// The policy of a file, without blanks, because its length counts.
fn policy(say: &mut Layers, path: &str, at: CloudContext<'_>) -> Option<String> {
    let text = say.text(path)?;
    if !say.is_path(path, &text) {
        return None;
    }
    let PolicyFile { path: file, content } = at.policies.get(&text)?;
    match content.as_ref().map_err(Clone::clone).and_then(|bytes| compact(bytes)) {
        Ok(policy) => Some(policy),
        Err(why) => {
            say.problem(path, format_args!("{} {why}", quote::path(file)));
            None
        }
    }
}

/// The error is a fragment about the file.
fn compact(bytes: &[u8]) -> Result<String, String> {
    let policy: serde_json::Value = serde_json::from_slice(bytes).map_err(|_| "is no JSON")?;
    if policy["Statement"].is_null() {
        return Err("has no Statement, so it is not an IAM policy".into());
    }
    let text = policy.to_string();
    match text.chars().count() <= LONGEST_POLICY {
        true => Ok(text),
        false => Err(format!("is longer than {LONGEST_POLICY} characters")),
    }
}

fn policy_arns(say: &mut Layers, path: &str) -> Vec<String> {
    let all = say.list(path).unwrap_or_default();
    if all.len() > MOST_POLICIES {
        say.problem(path, format_args!("at most {MOST_POLICIES} are allowed"));
    }
    for arn in &all {
        accepted(say, path, arn, |text| is_arn(text, "policy/", "arn:aws:iam::aws:policy/ReadOnlyAccess"));
    }
    all
}

fn role(text: &str) -> Result<(), String> {
    is_arn(text, "role/", "arn:aws:iam::123456789012:role/NAME")
}

/// `arn:PARTITION:iam::ACCOUNT:KIND/…` of IAM's user guide.
fn is_arn(text: &str, kind: &str, example: &str) -> Result<(), String> {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let partition = |text: &str| text == "aws" || text.starts_with("aws-");
    let owner = |text: &str| text == "aws" || (text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit()));
    let named = |text: &str| {
        let name = text.strip_prefix(kind).unwrap_or_default();
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"/+=,.@_-".contains(&b);
        !name.is_empty() && !name.ends_with('/') && name.len() <= 512 && name.bytes().all(fits)
    };
    match parts.as_slice() {
        ["arn", which, "iam", "", account, name] if partition(which) && owner(account) && named(name) => {
            Ok(())
        }
        _ => Err(format!("has to be an ARN, such as \"{example}\"")),
    }
}

/// `SourceIdentity` and `ExternalId` of STS.
fn session_word(text: &str, longest: usize, others: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
    match (2..=longest).contains(&text.len()) && text.chars().all(fits) {
        true => Ok(()),
        false => Err(format!("has to be 2 to {longest} letters, digits and characters of {others}")),
    }
}

fn profile(text: &str) -> Result<(), String> {
    match printable(text, 128) && !text.contains(['[', ']']) {
        true => Ok(()),
        false => Err("has to be the name of a profile".into()),
    }
}

fn directory(text: &str) -> Result<(), String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    match (1..=253).contains(&text.len()) && text.bytes().all(good) {
        true => Ok(()),
        false => Err("has to be the id or the domain of a directory (tenant)".into()),
    }
}

fn client(text: &str) -> Result<(), String> {
    match text.len() == 36 && is_name(text, 36) {
        true => Ok(()),
        false => Err("has to be a client id, such as \"01234567-89ab-cdef-0123-456789abcdef\"".into()),
    }
}
