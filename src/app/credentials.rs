//! The host's side of a session: the source, the mint and their properties. It needs no engine.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::clouds::{Clouds, WITHIN, one};
use super::{broken, no_credential, proxies};
use crate::cloud::Cloud;
use crate::config::{Config, Environment, SourceChoice};
use crate::console::Console;
use crate::failure::{Failure, Reason};
use crate::metadata::View;
use crate::mint::{Mint, MintFailure, Sources};
use crate::process::Tasks;
use crate::record::{Recorder, Who};
use crate::server::jwks;
use crate::server::views::{AwsFacts, AzureFacts, Views};
use crate::source::aws::AwsCredentials;
use crate::source::azure::AzureCredentials;
use crate::source::google::{Google, SearchPaths, metadata_server};
use crate::source::http::client::{Limits, Upstream};
use crate::source::offline::Offline;
use crate::source::{Absent, Reloaded, Source};
use crate::token::Now;
use crate::workload::Identity;

/// How often the credential file and the clocks are checked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// If the wall clock gains more than this on the monotonic one between two checks, the machine slept.
const SLEPT: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub(super) struct Credentials {
    pub(super) source: Arc<dyn Source>,
    pub(super) mint: Arc<Mint>,
    /// Whether an identity that a container can get has Google; without, no credential of Google is looked for.
    pub(super) has_google: bool,
    /// The sources of AWS and Azure.
    pub(super) clouds: Clouds,
    /// The URL of the offline source's public keys.
    keys: Option<String>,
}

impl Credentials {
    pub(super) async fn open(
        config: &Config,
        env: &Environment,
        tasks: &Tasks,
        console: &Console,
        recorder: Recorder,
    ) -> Result<Self, Failure> {
        let (mut keys, mut offline) = (None, None);
        let has_google = config.policy.identities().any(|identity| identity.google);
        let source: Arc<dyn Source> = match &config.source {
            SourceChoice::Offline => {
                let project = config.project.as_deref().unwrap_or(OFFLINE_PROJECT);
                let email = config.email.clone();
                let email = email.unwrap_or_else(|| OFFLINE_EMAIL.into());
                let made = Arc::new(Offline::new(project, email).map_err(no_credential)?);
                keys = Some(serve_keys(&made, tasks)?);
                offline = Some(made.clone());
                made
            }
            _ if !has_google => Arc::new(Absent),
            SourceChoice::Adc { .. }
            | SourceChoice::Metadata
            | SourceChoice::Gcloud
            | SourceChoice::Provided(_) => {
                let google = google(config, env)?;
                google.notice().into_iter().for_each(|text| console.notice(text));
                google.introduce().await;
                Arc::new(google)
            }
        };
        if offline.is_none() && needs_key(config) {
            let made = Arc::new(Offline::new(OFFLINE_PROJECT, OFFLINE_EMAIL).map_err(no_credential)?);
            keys = Some(serve_keys(&made, tasks)?);
            offline = Some(made);
        }
        let clouds = Clouds::open(config, env, offline.as_ref())?;
        let (aws, azure) = (clouds.aws.clone(), clouds.azure.clone());
        let sources = Sources { google: source.clone(), aws, azure };
        let mint = Mint::of_clouds(sources, tasks.clone(), recorder);
        tasks.spawn("source", watch(mint.clone(), tasks.clone(), console.clone()));
        Ok(Self { source, mint, has_google, clouds, keys })
    }

    /// Mints for the default identity, so that a broken login is reported at once. A failure that may be
    /// temporary is only reported and does not stop the session.
    pub(super) async fn first_mint(&self, config: &Config, console: &Console) -> Result<(), Failure> {
        let Some(identity) = first_identity(config) else { return Ok(()) };
        for (cloud, _) in self.clouds.kinds() {
            let outcome = one(&self.mint, &identity, cloud, WITHIN).await;
            report(outcome.unwrap_or(Ok(Duration::ZERO)).map(drop), cloud, console)?;
        }
        if self.source.per_container() || !identity.google {
            return Ok(());
        }
        let request = self.mint.request(&identity, None, None);
        let outcome = self.mint.access(&request, Some(Who::Session(&identity)), WITHIN).await;
        report(outcome.map(drop), Cloud::Google, console)
    }

    /// One line for each cloud besides Google, at the start.
    pub(super) fn tell_clouds(&self, console: &Console) {
        for (cloud, kind) in self.clouds.kinds() {
            console.notice(format!("{cloud} by {kind}"));
        }
    }

    /// Variables for programs that verify the offline source's signatures.
    pub(super) fn extra_environment(&self) -> Vec<(String, String)> {
        self.keys.iter().map(|url| ("KFP_CREDS_JWKS_URL".into(), url.clone())).collect()
    }

    /// `at` is the server's address, in addition to the well-known names.
    pub(super) fn views(&self, config: &Config, at: Option<String>) -> Views {
        let stand_in = View::default();
        let told = config.instance.clone();
        let base = View {
            numeric_project_id: config.numeric_project.unwrap_or(stand_in.numeric_project_id),
            universe: config.endpoints.universe.clone().unwrap_or(stand_in.universe),
            zone: config.zone.clone(),
            hostname: told.hostname.unwrap_or_default(),
            machine_type: told.machine_type.unwrap_or(stand_in.machine_type),
            description: told.description.unwrap_or_default(),
            tags: told.tags,
            attributes: config.instance_attributes.clone(),
            project_attributes: config.project_attributes.clone(),
            hosts: at.into_iter().collect(),
            accounts: vec![],
            ..View::default()
        };
        Views {
            base,
            project: config.project.clone(),
            email: config.email.clone(),
            cells: config.cells.is_some(),
            loopback: None,
            aws: config.aws.as_ref().map(|aws| AwsFacts { region: aws.region.clone() }),
            azure: config.azure.as_ref().map(|azure| AzureFacts {
                tenant: azure.tenant.clone(),
                client_id: azure.client_id.clone(),
                location: None,
            }),
        }
    }

    pub(super) fn project(&self, config: &Config) -> String {
        self.views(config, None).project(&self.source.principal()).into()
    }

    pub(super) fn quota_project(&self, config: &Config) -> Option<String> {
        config.quota_project.clone().or_else(|| self.source.principal().quota_project)
    }

    /// The account of the default identity, for the first line.
    pub(super) fn account(&self, config: &Config) -> String {
        let identity = first_identity(config).and_then(|identity| identity.service_account.clone());
        identity.unwrap_or_else(|| self.own_account(config))
    }

    /// The account of this machine's credential.
    pub(super) fn own_account(&self, config: &Config) -> String {
        let own = config.email.clone().or_else(|| self.source.principal().email);
        own.unwrap_or_else(|| "an account whose e-mail is not known".into())
    }
}

/// Deliberately not a service account's: client libraries look those up at Google and send the token along.
const OFFLINE_EMAIL: &str = "offline@kfp-creds.invalid";
/// The default project of the offline source.
const OFFLINE_PROJECT: &str = "offline-project";

/// Whether something is signed by a key of the session although Google's tokens are not.
fn needs_key(config: &Config) -> bool {
    let aws = config.aws.as_ref().is_some_and(|aws| aws.credentials == AwsCredentials::Offline);
    let azure = config.azure.as_ref().is_some_and(|azure| azure.credentials == AzureCredentials::Offline);
    aws || azure
}

/// A refusal ends the start; anything else may pass.
fn report(outcome: Result<(), MintFailure>, cloud: Cloud, console: &Console) -> Result<(), Failure> {
    let of = if cloud == Cloud::Google { String::new() } else { format!("{cloud}: ") };
    match outcome {
        Ok(()) => {}
        Err(MintFailure::Refused(why)) if cloud == Cloud::Google => return Err(Failure::NoCredential(why)),
        Err(MintFailure::Refused(why)) => {
            let text = format!("{cloud}: {why}");
            return Err(Failure::NoCredential(Reason::new(text, why.remedy)));
        }
        Err(MintFailure::Transient(why)) => {
            console.notice(format!("{of}no token yet: {why}; containers get 503 until one is minted"));
        }
        Err(MintFailure::Slow) => console.notice(format!(
            "{of}no token yet: the upstream is slow; containers get 503 until one is minted"
        )),
    }
    Ok(())
}

/// The source that the config chooses, for the choices that use Google's credentials.
pub fn google(config: &Config, env: &Environment) -> Result<Google, Failure> {
    let variable = |name| env.variable(name).map(PathBuf::from);
    let file = match &config.source {
        SourceChoice::Adc { file } => file.clone(),
        _ => None,
    };
    // The firmware names the kind of machine; reading it needs no request.
    let product = std::fs::read_to_string("/sys/class/dmi/id/product_name").ok();
    let (named, no_check) = (env.variable("GCE_METADATA_HOST"), env.variable("NO_GCE_CHECK"));
    // The config names the metadata server explicitly, so NO_GCE_CHECK does not apply.
    let no_check = no_check.filter(|_| config.source != SourceChoice::Metadata);
    let place = SearchPaths {
        google_application_credentials: file.or_else(|| variable("GOOGLE_APPLICATION_CREDENTIALS")),
        cloudsdk_config: variable("CLOUDSDK_CONFIG"),
        home: env.home(),
        metadata: metadata_server::detect(named, product.as_deref(), no_check),
        gcloud: env.variables.program("gcloud"),
        chain: config.delegates.iter().chain(&config.impersonate).cloned().collect(),
        variables: env.variables.clone(),
    };
    let endpoints = config.endpoints.clone();
    let upstream = Upstream::through(&proxies(env), Limits::default(), vec![]).map_err(no_credential)?;
    match &config.source {
        SourceChoice::Provided(provided) => Google::provided(&place, endpoints, upstream, provided),
        SourceChoice::Metadata => Google::machine(&place, endpoints, upstream),
        SourceChoice::Gcloud => Google::gcloud(&place, endpoints, upstream),
        SourceChoice::Adc { .. } | SourceChoice::Offline => Google::find(&place, endpoints, upstream),
    }
    .map_err(no_credential)
}

fn first_identity(config: &Config) -> Option<Arc<Identity>> {
    config.policy.default.clone().or_else(|| config.identities.values().next().cloned())
}

/// Takes up a new login, and drops connections that a sleep of the machine broke.
async fn watch(mint: Arc<Mint>, tasks: Tasks, console: Console) {
    let mut last = Now::read();
    loop {
        tokio::select! {
            () = tasks.stop().cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let now = Now::read();
        let wall = now.wall.duration_since(last.wall).unwrap_or_default();
        if wall > now.mono.duration_since(last.mono) + SLEPT {
            tracing::info!("the clock jumped ahead: dropping pooled connections");
            mint.woke();
        }
        last = now;
        for (cloud, outcome) in mint.reload_clouds() {
            say_reloaded(&console, cloud, outcome);
        }
        match mint.reload() {
            Reloaded::Same | Reloaded::Supplied => {}
            Reloaded::Renewed => console.notice("the credential file changed: the new login is in use"),
            Reloaded::OtherAccount => {
                console.notice(
                    "the credential file changed: the new login is in use; it may be another account, so \
                     earlier tokens were dropped",
                );
            }
            Reloaded::Broken(why) => {
                console
                    .notice(format!("the credential file is not usable ({why}); the old login stays in use"));
            }
        }
    }
}

fn say_reloaded(console: &Console, cloud: Cloud, outcome: Reloaded) {
    match outcome {
        Reloaded::Same | Reloaded::Supplied => {}
        Reloaded::Renewed | Reloaded::OtherAccount => {
            console.notice(format!("the credentials for {cloud} changed: the new ones are in use"));
        }
        Reloaded::Broken(why) => console
            .notice(format!("the credentials for {cloud} are not usable ({why}); the old ones stay in use")),
    }
}

/// Listens on a free port: public keys are not secret, and any program may verify a token.
fn serve_keys(offline: &Offline, tasks: &Tasks) -> Result<String, Failure> {
    let bound = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    });
    let listener = bound.map_err(|e| broken("serve the offline keys", e))?;
    let at = listener.local_addr().map_err(|e| broken("serve the offline keys", e))?;
    tasks.spawn("keys", jwks::serve(listener, offline.jwks(), tasks.clone()));
    Ok(format!("http://{at}{}", jwks::PATH))
}
