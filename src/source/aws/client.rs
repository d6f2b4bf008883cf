//! The source of sessions: the host's keys, and a session of its own for every container.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::failure::Reason;
use crate::quote;
use crate::secret::Secret;
use crate::source::aws::denial::KeyFailure;
use crate::source::aws::endpoint::is_region;
use crate::source::aws::host::Host;
use crate::source::aws::keys::{CallerIdentity, Keys};
use crate::source::aws::lookup::{KeySource, Lookup};
use crate::source::aws::offline::{self, AwsOffline};
use crate::source::aws::session::{self, LONGEST_CHAINED};
use crate::source::aws::sts::{Assume, Sts};
use crate::source::aws::{AwsCredentials, AwsRequest, AwsSettings, AwsSource, Deny, iam};
use crate::source::command::{HelperCommand, environment};
use crate::source::http::client::Upstream;
use crate::source::http::secure_url::confidential;
use crate::source::signer::Signer;
use crate::source::stamp::Stamp;
use crate::source::subject::SubjectToken;
use crate::source::variables::Variables;
use crate::source::{Pending, Reloaded, SourceError};
use crate::token::AwsSession;

/// The minimum remaining life of the host's keys for a request: the request may take as long as a whole mint, and
/// clocks differ a little.
const BASE_FLOOR: Duration = Duration::from_secs(120);
/// The minimum remaining life of the host's own session when a container gets it: with less, clients renew it at
/// every request.
const OWN_FLOOR: Duration = Duration::from_secs(900);

/// AWS's sessions on this host.
#[derive(Debug)]
pub struct Aws {
    access: Access,
    upstream: Arc<Upstream>,
    /// The address of IAM, if the config sets it.
    iam: Option<String>,
    told: AtomicBool,
}

#[derive(Debug)]
enum Access {
    Host(Host),
    WebIdentity(WebIdentity),
    Offline(AwsOffline),
}

/// Another issuer's token, with which a role is assumed directly.
#[derive(Debug)]
struct WebIdentity {
    token: SubjectToken,
    sts: Option<String>,
    region: Option<String>,
    seen: Mutex<Vec<Option<Stamp>>>,
}

impl Aws {
    /// `home` has `~/.aws`. `signer` is for [`AwsCredentials::Offline`], which makes one if there is none. Sends
    /// nothing. Fails if the settings are not usable as they are, such as a profile that does not exist.
    pub fn open(
        settings: &AwsSettings,
        variables: &Variables,
        home: Option<&Path>,
        upstream: Arc<Upstream>,
        signer: Option<Arc<Signer>>,
    ) -> Result<Self, SourceError> {
        if settings.region.as_ref().is_some_and(|region| !is_region(region)) {
            return Err(SourceError::refused("aws.region is not the name of a region"));
        }
        if let Some(base) = &settings.sts {
            confidential(base, "sts").map_err(|_| SourceError::refused("aws.sts is not an https address"))?;
        }
        if let Some(base) = &settings.iam {
            confidential(base, "iam").map_err(|_| SourceError::refused("aws.iam is not an https address"))?;
        }
        let place = match &settings.credentials {
            AwsCredentials::Default => KeySource::Default,
            AwsCredentials::Environment => KeySource::Variables,
            AwsCredentials::Profile(name) => KeySource::Profile(name.clone()),
            AwsCredentials::Machine => KeySource::Machine,
            AwsCredentials::Command { program, arguments, pass, timeout } => {
                KeySource::Command(HelperCommand {
                    program: program.clone(),
                    arguments: arguments.clone(),
                    environment: environment(pass, variables),
                    timeout: *timeout,
                })
            }
            AwsCredentials::WebIdentity { .. } | AwsCredentials::Offline => KeySource::Variables,
        };
        let lookup = Lookup::new(place, variables, home, settings.sts.clone(), settings.region.clone());
        let access = match &settings.credentials {
            AwsCredentials::Offline => {
                let signer = signer.map_or_else(|| Signer::new().map(Arc::new), Ok)?;
                Access::Offline(AwsOffline::new(signer)?)
            }
            AwsCredentials::WebIdentity { token_from, audience } => {
                let token = SubjectToken::named(token_from, audience, variables)?;
                let seen = Mutex::new(stamps(&token.files()));
                Access::WebIdentity(WebIdentity {
                    token,
                    sts: lookup.sts()?,
                    region: lookup.region(None),
                    seen,
                })
            }
            _ => Access::Host(Host::open(lookup, upstream.clone())?),
        };
        Ok(Self { access, upstream, iam: settings.iam.clone(), told: AtomicBool::new(false) })
    }

    /// The host's identity at AWS, for probes: one request that needs no permission. `None` if the host has no keys
    /// of its own; then another issuer's token is fetched, but not exchanged.
    pub async fn caller(&self) -> Result<Option<CallerIdentity>, SourceError> {
        self.in_time(self.who()).await
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, SourceError>>) -> Result<T, SourceError> {
        let patience = match &self.access {
            Access::Host(host) => host.patience(),
            Access::WebIdentity(_) | Access::Offline(_) => Duration::ZERO,
        };
        let limit = self.upstream.limits().mint + patience;
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            Err(SourceError::transient(format!("AWS did not answer within {} s", limit.as_secs_f32())))
        })
    }

    async fn who(&self) -> Result<Option<CallerIdentity>, SourceError> {
        match &self.access {
            Access::Offline(_) => {
                let arn = format!("arn:aws:iam::{}:user/offline", offline::ACCOUNT);
                Ok(Some(CallerIdentity { account: offline::ACCOUNT.into(), arn }))
            }
            Access::WebIdentity(web) => web.token.token(&self.upstream).await.map(|_| None),
            Access::Host(host) => {
                let keys = host.keys(BASE_FLOOR).await.map_err(present)?;
                self.identify(host, &keys).await.map(Some)
            }
        }
    }

    /// The secret access key of an offline session, by its session token, for verifiers; `None` if this source is not
    /// offline. The token has to be verified before.
    pub fn offline_secret(&self, session_token: &str) -> Option<Secret<String>> {
        match &self.access {
            Access::Offline(offline) => Some(offline.secret(session_token)),
            Access::Host(_) | Access::WebIdentity(_) => None,
        }
    }

    async fn minted(&self, ask: &AwsRequest) -> Result<AwsSession, SourceError> {
        session::check(ask)?;
        match (&self.access, &ask.identity.role) {
            (Access::Offline(offline), _) => offline.session(ask),
            (Access::Host(host), Some(role)) => self.assumed(host, role, ask).await,
            (Access::Host(host), None) if ask.identity.own_session => own(host).await,
            (Access::WebIdentity(web), Some(role)) => self.exchanged(web, role, ask).await,
            (Access::WebIdentity(_) | Access::Host(_), None) => Err(SourceError::refused(Reason::advice(
                "this identity has no role of AWS; set role in [identity.NAME.aws]",
            ))),
        }
    }

    async fn assumed(&self, host: &Host, role: &str, ask: &AwsRequest) -> Result<AwsSession, SourceError> {
        let keys = host.keys(BASE_FLOOR).await.map_err(present)?;
        match self.assume(host, &keys, role, ask).await {
            Err(refusal) if refusal.keys_are_over => {
                // The login was renewed meanwhile, or ended early: use the keys that exist now.
                host.forget(&keys);
                let again = host.keys(BASE_FLOOR).await.map_err(present)?;
                if again.is_same(&keys) {
                    return Err(refusal.error);
                }
                self.assume(host, &again, role, ask).await.map_err(SourceError::from)
            }
            outcome => outcome.map_err(SourceError::from),
        }
    }

    async fn denied(&self, ask: &Deny) -> Result<(), SourceError> {
        let host = match &self.access {
            Access::Host(host) => host,
            Access::Offline(_) => {
                return Err(SourceError::refused(
                    "the sessions were made offline, and AWS does not accept them anyway",
                ));
            }
            Access::WebIdentity(_) => {
                return Err(SourceError::refused(Reason::advice(
                    "another issuer's token signs nothing for IAM; put the policy on the role yourself",
                )));
            }
        };
        let base = self.iam.clone().map_or_else(|| host.lookup().iam(), |base| Ok(Some(base)))?;
        let keys = host.keys(BASE_FLOOR).await.map_err(present)?;
        match self.denied_by(host, &keys, base.as_deref(), ask).await {
            Err(refusal) if refusal.keys_are_over => {
                host.forget(&keys);
                let again = host.keys(BASE_FLOOR).await.map_err(present)?;
                if again.is_same(&keys) {
                    return Err(refusal.error);
                }
                Ok(self.denied_by(host, &again, base.as_deref(), ask).await?)
            }
            outcome => Ok(outcome?),
        }
    }

    /// IAM accepts only the role's name, and looks it up in the caller's account: if the role is in another account,
    /// the policy would be put on a different role of the same name.
    async fn denied_by(
        &self,
        host: &Host,
        keys: &Keys,
        base: Option<&str>,
        ask: &Deny,
    ) -> Result<(), KeyFailure> {
        // The host's identity may be unknown because its keys have expired.
        let asked = self.identify(host, keys).await;
        let own = asked.map_err(|error| KeyFailure { keys_are_over: true, error })?.account;
        let account = ask.role.split(':').nth(4).unwrap_or_default();
        if own != account {
            return Err(SourceError::refused(Reason::advice(format!(
                "the role {} is of another account than the host's ({}); put the policy on it with credentials of its own \
                 account",
                quote::name(&ask.role),
                quote::name(&own)
            )))
            .into());
        }
        iam::deny(&self.upstream, base, keys, ask).await
    }

    async fn assume(
        &self,
        host: &Host,
        keys: &Keys,
        role: &str,
        ask: &AwsRequest,
    ) -> Result<AwsSession, KeyFailure> {
        let identity = &*ask.identity;
        let mut life = identity.lifetime;
        if life > LONGEST_CHAINED && self.is_role(host, keys).await? {
            life = LONGEST_CHAINED;
            if !self.told.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "AWS sessions end after 1 h: the host's own keys belong to a role, and AWS limits the sessions that a role can assume"
                );
            }
        }
        let wanted = Assume {
            role,
            session_name: &ask.session_name,
            duration: Some(life),
            policy: identity.policy.as_deref(),
            policy_arns: &identity.policy_arns,
            tags: &ask.tags,
            source_identity: identity.source_identity.as_deref(),
            external_id: identity.external_id.as_deref(),
        };
        let (base, region) = (host.lookup().sts()?, host.region());
        let session = self.sts(base.as_deref(), region.as_deref()).assume(keys, &wanted).await?;
        handed(&session).map_err(KeyFailure::from)
    }

    /// Whether the host's keys belong to an assumed role. AWS is asked once for each set of keys, and only if nothing
    /// else shows it.
    async fn is_role(&self, host: &Host, keys: &Keys) -> Result<bool, SourceError> {
        if keys.session_token.is_none() {
            return Ok(false);
        }
        if let Some(known) = keys.of_role.get() {
            return Ok(*known);
        }
        let is_role = self.identify(host, keys).await?.is_role();
        Ok(*keys.of_role.get_or_init(|| is_role))
    }

    async fn identify(&self, host: &Host, keys: &Keys) -> Result<CallerIdentity, SourceError> {
        if let Some(known) = keys.identity.get() {
            return Ok(known.clone());
        }
        let (base, region) = (host.lookup().sts()?, host.region());
        let found = self.sts(base.as_deref(), region.as_deref()).caller(keys).await?;
        Ok(keys.identity.get_or_init(|| found).clone())
    }

    async fn exchanged(
        &self,
        web: &WebIdentity,
        role: &str,
        ask: &AwsRequest,
    ) -> Result<AwsSession, SourceError> {
        let identity = &*ask.identity;
        for (given, key) in [
            (!ask.tags.is_empty(), "tags"),
            (identity.source_identity.is_some(), "source_identity"),
            (identity.external_id.is_some(), "external_id"),
        ] {
            if given {
                return Err(SourceError::refused(Reason::advice(format!(
                    "AWS accepts no {key} with another issuer's token; remove it from [identity.NAME.aws]"
                ))));
            }
        }
        let token = web.token.token(&self.upstream).await?;
        let wanted = Assume {
            role,
            session_name: &ask.session_name,
            duration: Some(identity.lifetime),
            policy: identity.policy.as_deref(),
            policy_arns: &identity.policy_arns,
            ..Assume::default()
        };
        let sts = self.sts(web.sts.as_deref(), web.region.as_deref());
        handed(&sts.assume_with(&token, &wanted).await?)
    }

    fn sts<'a>(&'a self, base: Option<&'a str>, region: Option<&'a str>) -> Sts<'a> {
        Sts { upstream: &self.upstream, base, region }
    }
}

/// The host's own session, as it is. Long-lived keys are never handed out.
async fn own(host: &Host) -> Result<AwsSession, SourceError> {
    let keys = host.keys(OWN_FLOOR).await.map_err(present)?;
    if keys.is_temporary() && keys.expires.is_none() {
        return Err(SourceError::refused(Reason::advice(
            "the host's AWS session has no known expiry, so it is not handed out; set AWS_CREDENTIAL_EXPIRATION, or role in \
             [identity.NAME.aws]",
        )));
    }
    keys.session().ok_or_else(|| {
        SourceError::refused(Reason::advice(
            "the host's AWS keys do not expire, and such keys are never handed out; set role in [identity.NAME.aws]",
        ))
    })
}

fn handed(keys: &Keys) -> Result<AwsSession, SourceError> {
    keys.session().ok_or_else(|| SourceError::transient("AWS gave no temporary session; try again"))
}

/// The config names this source, so a search ends here.
fn present(error: SourceError) -> SourceError {
    match error {
        SourceError::Absent(why) => SourceError::Refused(why),
        other => other,
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|file| Stamp::of(file)).collect()
}

impl AwsSource for Aws {
    fn kind(&self) -> String {
        match &self.access {
            Access::Host(host) => host.lookup().kind(),
            Access::WebIdentity(web) => format!("web identity from {}", quote::one_line(&web.token.place())),
            Access::Offline(_) => "offline".into(),
        }
    }

    fn session<'a>(&'a self, ask: &'a AwsRequest) -> Pending<'a, Result<AwsSession, SourceError>> {
        Box::pin(self.in_time(self.minted(ask)))
    }

    fn deny<'a>(&'a self, ask: &'a Deny) -> Pending<'a, Result<(), SourceError>> {
        Box::pin(self.in_time(self.denied(ask)))
    }

    fn reload(&self) -> Reloaded {
        match &self.access {
            Access::Host(host) => host.reload(),
            Access::WebIdentity(web) => {
                let now = stamps(&web.token.files());
                let mut seen = web.seen.lock().unwrap_or_else(PoisonError::into_inner);
                if *seen == now {
                    return Reloaded::Same;
                }
                *seen = now;
                Reloaded::Supplied
            }
            Access::Offline(_) => Reloaded::Same,
        }
    }

    fn reconnect(&self) {
        self.upstream.reconnect();
    }
}
