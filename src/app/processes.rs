//! The metadata server on loopback, for processes of this machine: `serve --listen`, and `run --processes`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::broken;
use super::credentials::Credentials;
use super::page::capability;
use super::runtime_dir::private_folder;
use crate::cloud::Cloud;
use crate::config::{Config, Environment};
use crate::console::Console;
use crate::docker::proxy::{SHADOWS, WINNING};
use crate::failure::Failure;
use crate::process::{Tasks, listen};
use crate::record::Recorder;
use crate::registry;
use crate::server::{LoopbackCallers, Server};
use crate::workload::Identity;

/// Where the listener is, for variables that except it from proxies.
const LOOPBACK: &str = "127.0.0.1";

/// Serves the default identity at `at` until the tasks stop. Unless `open`, every path begins with a
/// capability that only the variables contain, because every user of the machine can reach a loopback port.
/// Returns the address, and the variables that lead clients there.
pub(super) fn serve(
    at: SocketAddr,
    open: bool,
    credentials: &Credentials,
    config: &Config,
    (tasks, console, recorder): (&Tasks, &Console, &Recorder),
) -> Result<(SocketAddr, Vec<(String, String)>), Failure> {
    let identity = config.policy.default.clone().ok_or_else(|| {
        Failure::Config("the default identity is none: name one in kfp-creds.toml to serve it".into())
    })?;
    let listener = listen(at).map_err(|e| broken(&format!("listen on {at}"), e))?;
    let at = listener.local_addr().map_err(|e| broken("listen", e))?;
    let capability = if open { None } else { Some(capability()?) };
    let (_writer, reader, _questions) = registry::new();
    let server = Server::new(
        reader,
        credentials.mint.clone(),
        credentials.views(config, Some(at.to_string())),
        console.clone(),
        recorder.clone(),
    );
    credentials.mint.serves_local(&identity);
    // The only place that exposes the capability: the variables go to stdout or to the command of `run`.
    let secret = capability.as_ref().map(|capability| capability.expose().clone());
    let place = secret.as_ref().map_or_else(|| at.to_string(), |secret| format!("{at}/{secret}"));
    let entrance = LoopbackCallers::Local { identity: identity.clone(), capability };
    tasks.spawn("listener", server.serve_listener(listener, entrance, tasks.stop().clone(), tasks.clone()));
    Ok((at, variables(config, &identity, &place, secret.as_deref())))
}

/// The variables that lead clients of each cloud of the identity to `place`, `ADDRESS/SECRET` or `ADDRESS`.
fn variables(
    config: &Config,
    identity: &Identity,
    place: &str,
    secret: Option<&str>,
) -> Vec<(String, String)> {
    let mut all = vec![];
    if identity.google {
        let names = ["GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"];
        all.extend(names.map(|name| (name, place.to_owned())));
    }
    if identity.has(Cloud::Aws) {
        // JavaScript drops the path of an AWS_EC2_METADATA_SERVICE_ENDPOINT; without a path there is no secret that
        // would keep others from causing a request of the first form.
        all.push(match secret {
            Some(_) => ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("http://{place}/v2/credentials")),
            // Version 2 of AWS's command line appends `latest/…`; for others a doubled slash counts as one.
            None => ("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{place}/")),
        });
        // object_store ignores the line above.
        all.push(("AWS_METADATA_ENDPOINT", format!("http://{place}")));
        let region = config.aws.as_ref().and_then(|aws| aws.region.as_ref());
        for name in region.iter().flat_map(|_| ["AWS_REGION", "AWS_DEFAULT_REGION"]) {
            all.extend(region.map(|region| (name, region.clone())));
        }
    }
    if identity.has(Cloud::Azure) {
        all.push(("IDENTITY_ENDPOINT", format!("http://{place}/msi/token")));
        // Clients need the pair; without a capability any value will do.
        all.push(("IDENTITY_HEADER", secret.unwrap_or("kfp-creds").to_owned()));
    }
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Fits the variables of [`serve`] to the environment in which clients will see them: a region that the person set
/// stays, and no proxy is between a client and us. Clients of Google except their server themselves.
pub(super) fn fit(variables: &mut Vec<(String, String)>, env: &Environment) {
    const REGION: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];
    // Mixing a set and a configured value would give one program two regions.
    if REGION.iter().any(|name| env.variable(name).is_some()) {
        variables.retain(|(name, _)| !REGION.contains(&name.as_str()));
    }
    let others = ["AWS_METADATA_ENDPOINT", "IDENTITY_ENDPOINT"];
    if !variables.iter().any(|(name, _)| others.contains(&name.as_str())) {
        return;
    }
    // Some clients read the lower-case spelling first, so both spellings get the same value.
    for (name, other) in [("NO_PROXY", "no_proxy"), ("no_proxy", "NO_PROXY")] {
        let had = env.variable(name).or_else(|| env.variable(other)).unwrap_or_default();
        let entries = had.split(',').map(str::trim).filter(|entry| !matches!(*entry, "" | LOOPBACK));
        let all: Vec<&str> = entries.chain([LOOPBACK]).collect();
        variables.push((name.to_owned(), all.join(",")));
    }
}

/// Variables that take precedence over those of [`serve`] in the clients of each cloud of the default identity;
/// without those that are `set`.
pub(super) fn winning(config: &Config, set: &[(String, String)]) -> Vec<&'static str> {
    let has = |cloud| config.policy.default.as_ref().is_some_and(|identity| identity.has(cloud));
    let mut all: Vec<&'static str> = WINNING.iter().copied().filter(|_| has(Cloud::Google)).collect();
    all.extend(SHADOWS.iter().filter(|shadow| has(shadow.cloud)).map(|shadow| shadow.name));
    for (cloud, with) in [
        (
            Cloud::Aws,
            &[
                "AWS_SECRET_ACCESS_KEY",
                "AWS_SESSION_TOKEN",
                "AWS_ROLE_ARN",
                "AWS_DEFAULT_PROFILE",
                "AWS_EC2_METADATA_DISABLED",
                "AWS_EC2_METADATA_SERVICE_ENDPOINT",
            ][..],
        ),
        (Cloud::Azure, &["MSI_SECRET", "IMDS_ENDPOINT", "AZURE_CLIENT_ID"]),
    ] {
        all.extend(with.iter().filter(|_| has(cloud)));
    }
    all.retain(|name| !set.iter().any(|(own, _)| own == name));
    all
}

/// An empty directory in place of those of gcloud, AWS and az, whose logins would take precedence over a metadata
/// server. It is removed with its content when this is dropped.
#[derive(Debug)]
pub(super) struct NoLogin(PathBuf);

impl NoLogin {
    /// Makes the directory beside the sockets, for the session `id`.
    pub(super) fn new(folder: &Path, id: &str) -> Result<Self, Failure> {
        let place = folder.join(format!("{id}.gcloud"));
        // Left by a killed session whose network and id were taken over, with files that gcloud wrote.
        let _ = std::fs::remove_dir_all(&place);
        private_folder(&place).map(Self)
    }

    /// The variables that name it, for the clouds of the default identity.
    pub(super) fn variables(&self, config: &Config) -> Vec<(String, String)> {
        let has = |cloud| config.policy.default.as_ref().is_some_and(|identity| identity.has(cloud));
        let within = |name: &str| self.0.join(name).to_string_lossy().into_owned();
        let mut all = vec![];
        if has(Cloud::Google) {
            all.push(("CLOUDSDK_CONFIG", self.0.to_string_lossy().into_owned()));
        }
        if has(Cloud::Aws) {
            // Neither file exists: clients treat that as empty, and no profile was requested.
            all.push(("AWS_CONFIG_FILE", within("aws-config")));
            all.push(("AWS_SHARED_CREDENTIALS_FILE", within("aws-credentials")));
        }
        if has(Cloud::Azure) {
            all.push(("AZURE_CONFIG_DIR", within("azure")));
        }
        all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

impl Drop for NoLogin {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::{AwsIdentity, AzureIdentity};

    fn names(all: &[(String, String)]) -> Vec<&str> {
        all.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// A config whose default identity has all clouds, and a region.
    fn of_all_clouds() -> Config {
        let mut config = crate::config::resolve(&Default::default(), &Default::default()).unwrap();
        let (aws, azure) = (Some(std::sync::Arc::<AwsIdentity>::default()), AzureIdentity::default());
        let identity = Identity { aws, azure: Some(azure.into()), ..Identity::default() };
        config.policy.default = Some(identity.into());
        config
    }

    fn env(set: &[(&str, &str)]) -> Environment {
        let variables = set.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Environment { variables, cwd: "/".into() }
    }

    #[test]
    fn a_region_of_the_person_stays_alone() {
        let region = || {
            vec![
                ("AWS_REGION".to_string(), "eu-west-1".to_string()),
                ("AWS_DEFAULT_REGION".into(), "eu-west-1".into()),
            ]
        };
        for set in ["AWS_REGION", "AWS_DEFAULT_REGION"] {
            let mut variables = region();
            fit(&mut variables, &env(&[(set, "us-east-1")]));
            assert!(variables.is_empty(), "{variables:?}");
        }
        let mut variables = region();
        fit(&mut variables, &env(&[("AWS_REGION", "")]));
        assert_eq!(names(&variables), ["AWS_REGION", "AWS_DEFAULT_REGION"]);
    }

    #[test]
    fn no_proxy_covers_aws_and_azure_addresses() {
        let config = of_all_clouds();
        let identity = config.policy.default.clone().unwrap();
        let mut all = variables(&config, &identity, "127.0.0.1:81/s", Some("s"));
        fit(&mut all, &env(&[("no_proxy", "a.example, 127.0.0.1,b")]));
        let value = |name: &str| all.iter().find(|(own, _)| own == name).unwrap().1.as_str();
        assert_eq!(
            (value("NO_PROXY"), value("no_proxy")),
            ("a.example,b,127.0.0.1", "a.example,b,127.0.0.1")
        );
        let mut google = variables(&config, &Identity::default(), "127.0.0.1:81/s", Some("s"));
        fit(&mut google, &env(&[]));
        assert_eq!(names(&google), ["GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"]);
    }

    #[test]
    fn variables_that_would_take_precedence_are_unset() {
        let config = of_all_clouds();
        let identity = config.policy.default.clone().unwrap();
        let (full, imds) = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_EC2_METADATA_SERVICE_ENDPOINT");
        for (secret, set, unset) in [(Some("s"), full, imds), (None, imds, full)] {
            let all = variables(&config, &identity, "127.0.0.1:81", secret);
            let winning = winning(&config, &all);
            assert!(names(&all).contains(&set) && !winning.contains(&set), "{set}: {winning:?}");
            // Version 2 of AWS's command line appends its paths as they are.
            let imds = all.iter().find(|(name, _)| name == imds);
            assert!(imds.is_none_or(|(_, value)| value == "http://127.0.0.1:81/"), "{all:?}");
            for name in [unset, "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_EC2_METADATA_DISABLED"] {
                assert!(winning.contains(&name), "{name}: {winning:?}");
            }
            assert!(!names(&all).iter().any(|name| winning.contains(name)), "{winning:?}");
        }
    }

    #[test]
    fn the_directory_without_a_login_is_emptied_at_the_start() {
        let folder = std::env::temp_dir().join(format!("kc-no-login-{}", std::process::id()));
        let place = folder.join("0badcafe.gcloud");
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join("application_default_credentials.json"), "{}").unwrap();
        let made = NoLogin::new(&folder, "0badcafe").unwrap();
        let config = crate::config::resolve(&Default::default(), &Default::default()).unwrap();
        let variables = made.variables(&config);
        assert_eq!(variables, [("CLOUDSDK_CONFIG".into(), place.to_string_lossy().into_owned())]);
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
        drop(made);
        assert!(!place.exists());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
