//! The host's side of a session: the source, the mint and their properties. It needs no engine.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::clouds::{Clouds, Trial, WITHIN, one};
use super::{broken, no_credential, proxies};
use crate::cloud::Cloud;
use crate::config::{Config, Environment, SourceChoice};
use crate::console::Console;
use crate::failure::{Failure, Reason};
use crate::metadata::View;
use crate::mint::{Mint, MintFailure, Sources};
use crate::process::Tasks;
use crate::record::{Recorder, Requestor};
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
    /// Whether any identity that a container can get has Google; if not, no Google credential is looked for.
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
            let Trial::Done(outcome) = one(&self.mint, &identity, cloud, WITHIN).await else { continue };
            match (outcome.map(drop), &identity.aws) {
                // Only a container has a pipeline and a component for the tags, which the role may require.
                (Err(MintFailure::Refused(why)), Some(aws)) if cloud == Cloud::Aws && aws.tags => {
                    console.notice(format!("{cloud}: a first session without tags was refused: {why}"));
                }
                (outcome, _) => report(outcome, cloud, console)?,
            }
        }
        if self.source.per_container() || !identity.google {
            return Ok(());
        }
        let request = self.mint.request(&identity, None, None);
        let outcome = self.mint.access(&request, Some(Requestor::Session(&identity)), WITHIN).await;
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
            pool: Some(config.pool),
            cells: config.cells.is_some(),
            loopback: None,
            aws: config.aws.as_ref().map(|aws| AwsFacts { region: aws.region.clone() }),
            azure: config
                .azure
                .as_ref()
                .map(|azure| AzureFacts { tenant: azure.tenant.clone(), client_id: azure.client_id.clone() }),
        }
    }

    pub(super) fn project(&self, config: &Config) -> String {
        self.views(config, None).project(&self.source.principal()).into()
    }

    pub(super) fn quota_project(&self, config: &Config) -> Option<String> {
        config.quota_project.clone().or_else(|| self.source.principal().quota_project)
    }

    /// The project for a person; empty if no identity has Google.
    pub(super) fn shown_project(&self, config: &Config) -> String {
        if self.has_google { self.project(config) } else { String::new() }
    }

    /// The kind of this machine's credential for Google; without Google, those for the other clouds.
    pub(super) fn kind(&self) -> String {
        if self.has_google {
            return self.source.principal().kind.into();
        }
        let kinds = self.clouds.kinds().into_iter().map(|(cloud, kind)| format!("{cloud} by {kind}"));
        kinds.collect::<Vec<_>>().join(", ")
    }

    /// The account of the default identity, for the first line; without Google, what it has elsewhere.
    pub(super) fn account(&self, config: &Config) -> String {
        let identity = first_identity(config);
        match &identity {
            Some(identity) if !identity.google => elsewhere(identity),
            Some(identity) => identity.service_account.clone().unwrap_or_else(|| self.own_account(config)),
            None => self.own_account(config),
        }
    }

    /// The account of Google's source, as [`Self::account`] if the default identity is from it.
    pub(super) fn source_account(&self, config: &Config) -> String {
        match first_identity(config) {
            Some(identity) if self.has_google && !identity.google => self.own_account(config),
            _ => self.account(config),
        }
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

/// `AWS: the role …; Azure: …`
fn elsewhere(identity: &Identity) -> String {
    let aws = identity.aws.iter().map(|aws| format!("{}: {aws}", Cloud::Aws));
    let azure = identity.azure.iter().map(|azure| format!("{}: {azure}", Cloud::Azure));
    let all: Vec<String> = aws.chain(azure).collect();
    if all.is_empty() { "no cloud".into() } else { all.join("; ") }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::{AwsIdentity, AzureIdentity};
    use crate::console::OutputForm;
    use crate::source::aws::{AwsRequest, AwsSource};
    use crate::source::{Pending, SourceError};
    use crate::token::AwsSession;

    /// As a role whose trust policy has conditions.
    #[derive(Debug)]
    struct Refusing;

    impl AwsSource for Refusing {
        fn kind(&self) -> String {
            "refusing".into()
        }

        fn session<'a>(&'a self, _: &'a AwsRequest) -> Pending<'a, Result<AwsSession, SourceError>> {
            Box::pin(async { Err(SourceError::refused("AccessDenied")) })
        }
    }

    fn of(identity: Identity) -> (Credentials, Config) {
        let mut config = crate::config::resolve(&Default::default(), &Default::default()).unwrap();
        config.policy.default = Some(Arc::new(identity));
        let clouds = Clouds { aws: Some(Arc::new(Refusing)), azure: None };
        let source: Arc<dyn Source> = Arc::new(Absent);
        let sources = Sources { google: source.clone(), aws: clouds.aws.clone(), azure: None };
        let mint = Mint::of_clouds(sources, Tasks::new(), Recorder::default());
        (Credentials { source, mint, has_google: false, clouds, keys: None }, config)
    }

    #[tokio::test]
    async fn a_refused_first_session_without_its_tags_ends_nothing() {
        let console = Console::new(OutputForm::Quiet, std::io::sink());
        for (tags, starts) in [(true, true), (false, false)] {
            let aws = Some(Arc::new(AwsIdentity { tags, ..AwsIdentity::default() }));
            let (credentials, config) = of(Identity { google: false, aws, ..Identity::default() });
            assert_eq!(credentials.first_mint(&config, &console).await.is_ok(), starts, "{tags}");
        }
    }

    #[test]
    fn a_session_without_google_does_not_speak_of_it() {
        let (credentials, config) = of(Identity {
            google: false,
            aws: Some(Arc::new(AwsIdentity { role: Some("arn:x".into()), ..AwsIdentity::default() })),
            azure: Some(Arc::new(AzureIdentity::default())),
            ..Identity::default()
        });
        assert_eq!(credentials.kind(), "AWS by refusing");
        assert_eq!(credentials.shown_project(&config), "");
        assert_eq!(
            credentials.account(&config),
            "AWS: the role arn:x, 3600 s; Azure: your own principal, any resource"
        );
    }

    #[tokio::test]
    async fn without_a_named_resource_no_token_of_azure_is_tried() {
        let azure = |resources: &[&str]| {
            let resources = resources.iter().map(ToString::to_string).collect();
            Arc::new(Identity {
                azure: Some(Arc::new(AzureIdentity { client_id: None, resources })),
                ..Identity::default()
            })
        };
        let (credentials, _) = of(Identity::default());
        let tried = async |identity| one(&credentials.mint, &identity, Cloud::Azure, WITHIN).await;
        assert!(matches!(tried(azure(&[])).await, Trial::Untried));
        assert!(matches!(tried(azure(&["https://storage.azure.com"])).await, Trial::Done(Err(_))));
        assert!(matches!(tried(Arc::default()).await, Trial::Absent));
    }
}
