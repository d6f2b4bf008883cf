//! Google's credentials on the host: where they are looked for, which kinds are understood.
//!
//! Application Default Credentials, in this order (the first that exists counts):
//!
//! 1. the file that `GOOGLE_APPLICATION_CREDENTIALS` names. When the variable is set the file must be
//!    there and good: a broken configured credential is an error, never a reason to be somebody else;
//! 2. `application_default_credentials.json` in `$CLOUDSDK_CONFIG`, else in `~/.config/gcloud`;
//! 3. the metadata server of the machine (`machine`), where the operator's `GCE_METADATA_HOST` or the name that
//!    the firmware has for the machine says that there is one. Nothing is probed over the network, and
//!    `NO_GCE_CHECK=true` leaves it out.
//!
//! Where there are none, gcloud's active account is used, if gcloud is there and has one (`gcloud`). Both of
//! the last are said in a line of their own, and can be chosen with `credentials`.
//!
//! | `type` in the file | |
//! |---|---|
//! | `service_account` | JWT-bearer exchange (`yup`), or what the key signs itself (`assertion`); its `token_uri` counts unless [`Endpoints`] name one |
//! | `authorized_user` | refresh-token grant (`user`) |
//! | `external_account_authorized_user` | refresh-token grant at the Security Token Service (`workforce`) |
//! | `impersonated_service_account` | IAM Credentials on top of any of these (`impersonated`) |
//! | `external_account` | token exchange at the Security Token Service (`external`); with an impersonation URL `impersonated` on top |
//! | `gdch_service_account` | refused: its tokens have an audience, for which a metadata server is not asked |
//! | anything else | refused: unknown |
//!
//! On top of each: another service account by impersonation (`impersonate`), whom it stands in for by
//! domain-wide delegation (`assertion`), and the narrowing of the token (`boundary`), in this order.
//!
//! E-mail, in this order: the file (`client_email`, `account`), the ID token of a refresh, the metadata server,
//! gcloud's configuration. Project: the file (`project_id`), the metadata server, gcloud's configuration. So
//! [`Source::principal`] knows more after the first mint.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ring::digest::Digest;

use crate::provided::Provided;
use crate::source::boundary;
use crate::source::credential::{Credential, Kind};
use crate::source::disable::disable;
pub use crate::source::endpoints::Endpoints;
pub(super) use crate::source::endpoints::UNIVERSE;
use crate::source::exec::Provider;
use crate::source::file::{self, read};
pub use crate::source::gcloud::adc;
use crate::source::gcloud::{self, Defaults, Program};
use crate::source::impersonate::{Iam, remaining};
use crate::source::jwt;
use crate::source::machine::{self, Machine};
use crate::source::stamp::Stamp;
use crate::source::upstream::{Answer, Upstream};
use crate::source::variables::Variables;
use crate::source::{AccessRequest, IdentityRequest, Pending, Principal, Reloaded, Source, SourceError};
use crate::token::{AccessToken, Deadline, IdentityToken};

/// The longest life that Google gives an access token (12 h, by organisation policy). Whatever an answer
/// claims beyond it is not believed; it also keeps clock arithmetic in range.
pub(super) const LONGEST_LIFE: Duration = Duration::from_secs(43_200);

/// A metadata server is on the same machine, and nothing depends on the answers.
const INTRODUCTION: Duration = Duration::from_secs(2);

/// Lifetime of an ID token at Google.
const ID_TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// Where credentials are looked for: values that `main` took from the environment.
#[derive(Clone, Debug, Default)]
pub struct Where {
    pub google_application_credentials: Option<PathBuf>,
    pub cloudsdk_config: Option<PathBuf>,
    pub home: Option<PathBuf>,
    /// Where this machine's metadata server is, if it has one: see [`machine::detect`].
    pub metadata: Option<String>,
    /// The program.
    pub gcloud: Option<PathBuf>,
    /// All of the environment: credential files may name programs, and AWS keys stand there.
    pub variables: Variables,
    /// The account to impersonate, last, and before it those that stand between it and the credential.
    pub chain: Vec<String>,
}

/// Tokens from the credentials that a person has on the host.
#[derive(Debug)]
pub struct Google {
    upstream: Arc<Upstream>,
    endpoints: Endpoints,
    variables: Variables,
    /// `None` where the credential is not in a file.
    path: Option<PathBuf>,
    gcloud: Defaults,
    chain: Vec<String>,
    live: RwLock<Live>,
}

/// The credential in use, and the file it came from.
#[derive(Debug)]
struct Live {
    credential: Arc<Credential>,
    stamp: Option<Stamp>,
    digest: Digest,
    /// A state of the file that could not be read once: it may have been half written.
    doubted: Option<Option<Stamp>>,
}

impl Google {
    /// Looks for a credential, in the order of the module's text. `Absent` when there is none at all.
    pub fn find(place: &Where, endpoints: Endpoints, upstream: Arc<Upstream>) -> Result<Self, SourceError> {
        let directory = gcloud::directory(place.cloudsdk_config.as_deref(), place.home.as_deref());
        let named = place.google_application_credentials.clone().filter(|path| !path.as_os_str().is_empty());
        let usual = directory.as_ref().map(|path| path.join(gcloud::ADC));
        let path = match (named, usual) {
            (Some(named), _) => file::named(named).map_err(SourceError::refused)?,
            (None, Some(usual)) if usual.exists() => usual,
            (None, usual) => return Self::unfiled(place, endpoints, upstream, usual.as_deref()),
        };
        // The stamp comes first: a write in between makes the next look find a difference.
        let stamp = Stamp::of(&path);
        let (credential, digest) = read(&path, &endpoints, &place.variables).map_err(SourceError::refused)?;
        let gcloud = Defaults::read(directory.as_deref(), &place.variables);
        let live = Live { credential: Arc::new(credential), stamp, digest, doubted: None };
        let variables = place.variables.clone();
        let chain = place.chain.clone();
        Ok(Self { upstream, endpoints, variables, path: Some(path), gcloud, chain, live: RwLock::new(live) })
    }

    fn unfiled(
        place: &Where,
        endpoints: Endpoints,
        upstream: Arc<Upstream>,
        usual: Option<&Path>,
    ) -> Result<Self, SourceError> {
        if place.metadata.is_some() {
            return Self::machine(place, endpoints, upstream);
        }
        match Self::gcloud(place, endpoints, upstream) {
            Err(SourceError::Absent(_)) => Err(file::absent(usual)),
            settled => settled,
        }
    }

    /// The metadata server of this machine, whatever else there is; where the operator names none, at the
    /// address that all have.
    pub fn machine(
        place: &Where,
        endpoints: Endpoints,
        upstream: Arc<Upstream>,
    ) -> Result<Self, SourceError> {
        let machine = Machine::new(place.metadata.as_deref().unwrap_or(machine::ADDRESS))?;
        Ok(Self::of(Kind::Machine(machine), endpoints, upstream, place))
    }

    /// gcloud's active account, whatever else there is. `Absent` without the program or without an account.
    pub fn gcloud(place: &Where, endpoints: Endpoints, upstream: Arc<Upstream>) -> Result<Self, SourceError> {
        let directory = gcloud::directory(place.cloudsdk_config.as_deref(), place.home.as_deref());
        let path = place.gcloud.clone().ok_or_else(|| {
            SourceError::absent("gcloud is not on the PATH; install it, or name another source")
        })?;
        let program = Program::new(path, directory, place.variables.clone());
        if program.defaults().account.is_none() {
            return Err(SourceError::absent("gcloud has no active account; run `gcloud auth login`"));
        }
        Ok(Self::of(Kind::Gcloud(program), endpoints, upstream, place))
    }

    /// What the config sets up itself: a token of somebody else's issuer that is exchanged (`federation`), a
    /// command that brings tokens (`exec`), or one that brings what is exchanged (both).
    pub fn provided(
        place: &Where,
        endpoints: Endpoints,
        upstream: Arc<Upstream>,
        provided: &Provided,
    ) -> Result<Self, SourceError> {
        let command = provided.exec.as_ref().map(|exec| exec.command(&place.variables));
        let kind = match (&provided.federation, command) {
            (Some(federation), command) => federation.kind(command, &endpoints, &place.variables)?,
            (None, Some(command)) => Kind::Provided(Provider::new(command)),
            (None, None) => return Err(SourceError::refused("the config names no provider of credentials")),
        };
        Ok(Self::of(kind, endpoints, upstream, place))
    }

    fn of(kind: Kind, endpoints: Endpoints, upstream: Arc<Upstream>, place: &Where) -> Self {
        let directory = gcloud::directory(place.cloudsdk_config.as_deref(), place.home.as_deref());
        let gcloud = Defaults::read(directory.as_deref(), &place.variables);
        let digest = ring::digest::digest(&ring::digest::SHA256, b"");
        let credential = Arc::new(Credential::unfiled(kind));
        let live = Live { credential, stamp: None, digest, doubted: None };
        let variables = Variables::default();
        let chain = place.chain.clone();
        Self { upstream, endpoints, variables, path: None, gcloud, chain, live: RwLock::new(live) }
    }

    /// The file in use, where there is one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What a person should know who did not choose this source: it is none that a file holds.
    pub fn notice(&self) -> Option<String> {
        match &self.credential().kind {
            Kind::Machine(machine) => {
                Some(format!("credentials: this machine's own service account, of {}", machine.place()))
            }
            Kind::Gcloud(program) => Some(format!(
                "credentials: gcloud's active account, {} (there are no application default credentials)",
                program.defaults().account.unwrap_or_default()
            )),
            _ => None,
        }
    }

    /// Learns who it is, where somebody near has to be asked: containers are told the project from the first on.
    /// Whoever signs by this machine's clock compares it first. A failure is none here: the first token says
    /// what is wrong.
    pub async fn introduce(&self) {
        match &self.credential().kind {
            Kind::Machine(machine) => {
                let _ = tokio::time::timeout(INTRODUCTION, machine.learn(&self.upstream)).await;
            }
            Kind::Key(key) if key.exchanges() => {
                let _ = tokio::time::timeout(INTRODUCTION, self.upstream.clock(key.token_uri())).await;
            }
            _ => {}
        }
    }

    fn credential(&self) -> Arc<Credential> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).credential.clone()
    }

    fn universe(&self, credential: &Credential) -> String {
        self.endpoints.universe(credential.universe().as_deref()).to_owned()
    }

    async fn access(&self, ask: &AccessRequest) -> Result<AccessToken, SourceError> {
        let (base, upstream) = (&self.credential(), &self.upstream);
        let universe = self.universe(base);
        let token = match base.other(ask.service_account.as_deref()) {
            None => base.access(upstream, ask).await?,
            Some(account) => {
                let endpoint = &self.endpoints.iam_credentials(&universe);
                let token_uri = &self.endpoints.token(None, &universe);
                let delegates = self.delegates(account);
                Iam { upstream, endpoint, token_uri, base, account, delegates }.access(ask).await?
            }
        };
        match &ask.boundary {
            None => Ok(token),
            Some(boundary) => {
                boundary::narrow(upstream, &self.endpoints.sts(&universe), token, boundary).await
            }
        }
    }

    async fn identity(&self, ask: &IdentityRequest) -> Result<IdentityToken, SourceError> {
        let (base, upstream) = (&self.credential(), &self.upstream);
        match base.other(ask.service_account.as_deref()) {
            None => base.identity(upstream, &self.endpoints, &ask.audience).await,
            Some(account) => {
                let universe = self.universe(base);
                let endpoint = &self.endpoints.iam_credentials(&universe);
                let token_uri = &self.endpoints.token(None, &universe);
                let delegates = self.delegates(account);
                Iam { upstream, endpoint, token_uri, base, account, delegates }.identity(&ask.audience).await
            }
        }
    }

    fn delegates(&self, account: &str) -> &[String] {
        self.chain.split_last().filter(|(last, _)| *last == account).map_or(&[], |(_, between)| between)
    }

    fn supplied(&self) -> Reloaded {
        if self.credential().supplied() { Reloaded::Supplied } else { Reloaded::Same }
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, SourceError>>) -> Result<T, SourceError> {
        let limit = self.upstream.limits().mint + self.credential().patience();
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            Err(SourceError::transient(format!("Google gave no token within {} s", limit.as_secs_f32())))
        })
    }
}

impl Source for Google {
    fn principal(&self) -> Principal {
        let credential = self.credential();
        Principal {
            kind: credential.word(),
            email: credential.email().or_else(|| self.gcloud.account.clone()),
            project: credential.project().or_else(|| self.gcloud.project.clone()),
            quota_project: credential.quota_project(),
            universe: Some(self.universe(&credential)),
        }
    }

    fn narrows(&self, ask: &AccessRequest) -> bool {
        ask.service_account.is_some() || self.credential().narrows()
    }

    fn access_token<'a>(&'a self, ask: &'a AccessRequest) -> Pending<'a, Result<AccessToken, SourceError>> {
        Box::pin(self.in_time(self.access(ask)))
    }

    fn identity_token<'a>(
        &'a self,
        ask: &'a IdentityRequest,
    ) -> Pending<'a, Result<IdentityToken, SourceError>> {
        Box::pin(self.in_time(self.identity(ask)))
    }

    fn clock(&self) -> Pending<'_, Result<Option<i64>, SourceError>> {
        Box::pin(self.in_time(async {
            let credential = self.credential();
            let usual = self.endpoints.token(None, &self.universe(&credential));
            let place = match &credential.kind {
                Kind::Key(key) if key.exchanges() => key.token_uri(),
                _ => &usual,
            };
            Ok(self.upstream.clock(place).await?)
        }))
    }

    fn disable<'a>(&'a self, account: &'a str) -> Pending<'a, Result<(), SourceError>> {
        Box::pin(self.in_time(async move {
            let base = &self.credential();
            let endpoint = &self.endpoints.iam(&self.universe(base));
            let upstream = &self.upstream;
            disable(&Iam { upstream, endpoint, token_uri: "", base, account, delegates: &[] }).await
        }))
    }

    /// One `stat` when nothing changed. [`Reloaded::OtherAccount`] also stands for "perhaps another": the
    /// file of a user login need not say whose it is.
    fn reload(&self) -> Reloaded {
        let Some(path) = &self.path else {
            return if self.credential().switched() { Reloaded::OtherAccount } else { self.supplied() };
        };
        let stamp = Stamp::of(path);
        if self.live.read().unwrap_or_else(PoisonError::into_inner).stamp == stamp {
            return self.supplied();
        }
        let found = read(path, &self.endpoints, &self.variables);
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        let (credential, digest) = match found {
            Ok(found) => found,
            // Writers are not atomic: only what is still bad at the next look is said.
            Err(_) if live.doubted != Some(stamp) => {
                live.doubted = Some(stamp);
                return Reloaded::Same;
            }
            Err(why) => {
                live.stamp = stamp;
                return Reloaded::Broken(why);
            }
        };
        live.stamp = stamp;
        live.doubted = None;
        if live.digest.as_ref() == digest.as_ref() {
            // Only touched. The old credential may hold a rotated refresh token, so it stays.
            return Reloaded::Same;
        }
        let same = live.credential.is_same_account(&credential);
        live.credential = Arc::new(credential);
        live.digest = digest;
        if same { Reloaded::Renewed } else { Reloaded::OtherAccount }
    }

    fn reconnect(&self) {
        self.upstream.reconnect();
        self.credential().reconnect();
    }
}

/// A lifetime as an answer claimed it: not zero, not beyond what Google gives.
pub(super) fn life(claimed: Duration) -> Result<Duration, SourceError> {
    if claimed.is_zero() {
        return Err(SourceError::transient(
            "the token that came has already expired; check this machine's clock",
        ));
    }
    Ok(claimed.min(LONGEST_LIFE))
}

/// The end of an ID token, from its `exp`. Its signature is not checked: it came over TLS from its issuer.
pub(super) fn id_token_expiry(token: &str, answer: &Answer) -> Result<Deadline, SourceError> {
    let end = jwt::unverified_claims(token).and_then(|claims| jwt::expiry(&claims)).ok_or_else(|| {
        SourceError::transient("what came as an ID token has no readable expiry; try again")
    })?;
    let left = remaining(end, answer.sent.wall, answer.date, ID_TOKEN_LIFE);
    Ok(Deadline::after(answer.sent, life(left)?))
}
