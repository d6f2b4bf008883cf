//! What the proxy adds to the create of a container whose identity has AWS or Azure, and which settings of
//! the container would make these additions useless.
//!
//! AWS: container credentials by the relative URI, which every client follows, at the relay's second address;
//! if the relay has no second address, the metadata service (IMDS) at its only one. Azure: the interface of
//! App Service, which needs no special address. Container credentials and App Service need the secret of the
//! lease, which the server accepts only from the container's own address.

use super::environment::ContainerEnvironment;
use super::question::Question;
use crate::cloud::Cloud;
use crate::loopback::is_capability;

const RELATIVE: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
const FULL: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
/// IMDS at another address. The first ends in a slash, because version 2 of AWS's command line appends
/// `latest/…`; object_store, which reads the second, appends `/latest/…`.
const IMDS: [&str; 2] = ["AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_METADATA_ENDPOINT"];
const REGION: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];
const APP_SERVICE: [&str; 2] = ["IDENTITY_ENDPOINT", "IDENTITY_HEADER"];

/// Whether a session sets this value of a variable for AWS or Azure. `places` are the addresses at which the
/// container may have reached the metadata server; a path on loopback is recognised by its form.
pub(super) fn sets(name: &str, value: &str, places: &[String], region: Option<&str>) -> bool {
    let at = |rest: &str| {
        let place = value.strip_prefix("http://").and_then(|value| value.strip_suffix(rest));
        place.is_some_and(|place| places.iter().any(|own| own == place) || is_loopback_path(place))
    };
    match name {
        RELATIVE => value.strip_prefix("/v2/credentials/").is_some_and(is_capability),
        FULL => at("/v2/credentials"),
        "IDENTITY_ENDPOINT" => at("/msi/token"),
        "IDENTITY_HEADER" => is_capability(value),
        _ if name == IMDS[0] => at("/"),
        _ if name == IMDS[1] => at(""),
        _ => REGION.contains(&name) && region == Some(value),
    }
}

/// `127.0.0.1:PORT/SECRET`
pub(super) fn is_loopback_path(place: &str) -> bool {
    let port = place.strip_prefix("127.0.0.1:").and_then(|rest| rest.split_once('/'));
    port.is_some_and(|(port, secret)| port.parse::<u16>().is_ok() && is_capability(secret))
}

/// All variables that [`sets`] knows.
pub(super) fn all() -> impl Iterator<Item = &'static str> {
    ours().chain(REGION)
}

/// Variables that a session sets for AWS and Azure, with values that are useless in any other container.
pub(super) fn ours() -> impl Iterator<Item = &'static str> {
    [RELATIVE, FULL].into_iter().chain(IMDS).chain(APP_SERVICE)
}

/// A variable that keeps clients of a cloud from asking the metadata server: with any value, or only with the
/// value `only`.
#[derive(Clone, Copy, Debug)]
pub struct Shadow {
    pub cloud: Cloud,
    pub name: &'static str,
    pub only: Option<&'static str>,
}

const fn shadow(cloud: Cloud, name: &'static str) -> Shadow {
    Shadow { cloud, name, only: None }
}

/// In the order in which the clients look (boto3, AWS SDK for JavaScript and Go; `DefaultAzureCredential`).
pub const SHADOWS: [Shadow; 15] = [
    shadow(Cloud::Aws, "AWS_ACCESS_KEY_ID"),
    shadow(Cloud::Aws, "AWS_PROFILE"),
    shadow(Cloud::Aws, "AWS_WEB_IDENTITY_TOKEN_FILE"),
    shadow(Cloud::Aws, "AWS_SHARED_CREDENTIALS_FILE"),
    shadow(Cloud::Aws, "AWS_CONFIG_FILE"),
    shadow(Cloud::Aws, FULL),
    shadow(Cloud::Aws, RELATIVE),
    shadow(Cloud::Azure, "AZURE_CLIENT_SECRET"),
    shadow(Cloud::Azure, "AZURE_CLIENT_CERTIFICATE_PATH"),
    shadow(Cloud::Azure, "AZURE_FEDERATED_TOKEN_FILE"),
    shadow(Cloud::Azure, "AZURE_STORAGE_CONNECTION_STRING"),
    shadow(Cloud::Azure, "IDENTITY_SERVER_THUMBPRINT"),
    shadow(Cloud::Azure, "IDENTITY_ENDPOINT"),
    shadow(Cloud::Azure, "MSI_ENDPOINT"),
    Shadow { cloud: Cloud::Azure, name: "AZURE_TOKEN_CREDENTIALS", only: Some("dev") },
];

/// Settings of the container that keep clients of its identity's clouds from asking the metadata server.
pub(super) fn shadows(
    env: &ContainerEnvironment<'_>,
    question: &Question<'_>,
    targets: &[&str],
) -> Vec<String> {
    let has = |cloud| question.identity().is_some_and(|identity| identity.has(cloud));
    let mut found = vec![];
    for Shadow { cloud, name, only } in SHADOWS {
        match (env.filled(name).filter(|_| has(cloud)), only) {
            (Some(value), Some(only)) if value.eq_ignore_ascii_case(only) => {
                found.push(format!("{name} is {only}"))
            }
            (Some(_), None) => found.push(format!("{name} is set")),
            _ => {}
        }
    }
    found.extend(shadows_of_imds(env, question).filter(|_| has(Cloud::Aws)));
    // If the endpoint is set too, the user has set both, and `SHADOWS` has reported the endpoint.
    if has(Cloud::Azure) && env.filled(APP_SERVICE[0]).is_none() && env.filled(APP_SERVICE[1]).is_some() {
        found.push("IDENTITY_HEADER is set".into());
    }
    for (cloud, folder) in [(Cloud::Aws, ".aws"), (Cloud::Azure, ".azure")] {
        let ends = |path: &&&str| path.trim_end_matches('/').rsplit('/').next() == Some(folder);
        if let Some(target) = targets.iter().find(ends).filter(|_| has(cloud)) {
            found.push(format!("a directory of {cloud}'s tools is mounted at {target}"));
        }
    }
    found
}

/// Variables that turn off IMDS or send its clients elsewhere. They matter only if clients reach us by IMDS,
/// which object_store does on a loopback path, too.
fn shadows_of_imds(env: &ContainerEnvironment<'_>, question: &Question<'_>) -> impl Iterator<Item = String> {
    let (asked, imds): (&[&str], bool) = match (question.path, question.wiring.at.container_credentials) {
        (Some(_), _) => (&IMDS[1..], false),
        (None, true) => (&[], false),
        (None, false) => (&IMDS, true),
    };
    let disabled = env.filled("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value != "false");
    let elsewhere = asked.iter().copied().filter(|name| env.filled(name).is_some());
    let names = elsewhere.chain((imds && disabled).then_some("AWS_EC2_METADATA_DISABLED"));
    names.map(|name| format!("{name} is set")).collect::<Vec<_>>().into_iter()
}

/// Variables to set, each only if neither the request nor the image sets it.
pub(super) fn environment(
    env: &ContainerEnvironment<'_>,
    question: &Question<'_>,
) -> Vec<(&'static str, String)> {
    let (Some(identity), Some(secret)) = (question.identity(), question.secret) else { return vec![] };
    let (wiring, path) = (question.wiring, question.path);
    let at = path.map_or_else(|| wiring.at.address.to_string(), String::from);
    let mut out = vec![];
    let free = |names: &[&str]| names.iter().all(|name| env.filled(name).is_none());
    // If one of the two is set already, the proxy sets neither: clients differ in which of them they use.
    if identity.has(Cloud::Aws) && free(&[RELATIVE, FULL]) {
        if path.is_some() {
            // The path already contains a secret.
            out.push((FULL, format!("http://{at}/v2/credentials")));
            out.push((IMDS[1], format!("http://{at}")));
        } else if wiring.at.container_credentials {
            out.push((RELATIVE, format!("/v2/credentials/{secret}")));
        } else {
            out.push((IMDS[0], format!("http://{at}/")));
            out.push((IMDS[1], format!("http://{at}")));
        }
    }
    // Both or neither: some clients read the first, others the second, and all must use the same region.
    if let Some(region) = wiring.aws_region.as_ref().filter(|_| identity.has(Cloud::Aws) && free(&REGION)) {
        out.extend(REGION.map(|name| (name, region.clone())));
    }
    // Both or neither: with the first alone, Python's client finds no credentials.
    if identity.has(Cloud::Azure) && free(&APP_SERVICE) {
        out.push((APP_SERVICE[0], format!("http://{at}/msi/token")));
        out.push((APP_SERVICE[1], secret.to_owned()));
    }
    out.retain(|(name, _)| env.filled(name).is_none());
    out
}
