//! The credential lookup, and the source built from the result.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use ring::digest::Digest;

use crate::failure::Reason;
use crate::source::google::configured::Provided;
use crate::source::google::downscope;
use crate::source::google::endpoints::Endpoints;
use crate::source::google::exec::Provider;
use crate::source::google::file::{self, read};
use crate::source::google::gcloud::{self, Defaults, Gcloud};
use crate::source::google::iam::Iam;
use crate::source::google::metadata_server::{self, MetadataServer};
use crate::source::google::{Credential, CredentialKind, INTRODUCTION};
use crate::source::http::client::Upstream;
use crate::source::stamp::Stamp;
use crate::source::variables::Variables;
use crate::source::{AccessRequest, IdentityRequest, Pending, Principal, Reloaded, Source, SourceError};
use crate::token::{AccessToken, IdentityToken};

/// Inputs of the lookup: values that `main` took from the environment.
#[derive(Clone, Debug, Default)]
pub struct SearchPaths {
    pub google_application_credentials: Option<PathBuf>,
    pub cloudsdk_config: Option<PathBuf>,
    pub home: Option<PathBuf>,
    /// The address of this machine's metadata server, if any: see [`metadata_server::detect`].
    pub metadata: Option<String>,
    /// The gcloud program.
    pub gcloud: Option<PathBuf>,
    /// The whole environment: credential files may name programs, and it may hold AWS keys.
    pub variables: Variables,
    /// The delegation chain of the impersonation; the account to impersonate comes last.
    pub chain: Vec<String>,
}

/// Tokens from the user's credentials on the host.
#[derive(Debug)]
pub struct Google {
    upstream: Arc<Upstream>,
    endpoints: Endpoints,
    variables: Variables,
    /// `None` if the credential is not in a file.
    path: Option<PathBuf>,
    gcloud: Defaults,
    chain: Vec<String>,
    live: RwLock<Live>,
}

/// The credential in use, and the file state it was read from.
#[derive(Debug)]
struct Live {
    credential: Arc<Credential>,
    stamp: Option<Stamp>,
    digest: Digest,
    /// The stamp of a file that failed to read once: it may have been half written.
    doubted: Option<Option<Stamp>>,
}

impl Google {
    /// Looks for a credential in the order that the module documents. `Absent` if there is none.
    pub fn find(
        place: &SearchPaths,
        endpoints: Endpoints,
        upstream: Arc<Upstream>,
    ) -> Result<Self, SourceError> {
        let directory = gcloud::directory(place.cloudsdk_config.as_deref(), place.home.as_deref());
        let named = place.google_application_credentials.clone().filter(|path| !path.as_os_str().is_empty());
        let usual = directory.as_ref().map(|path| path.join(gcloud::ADC));
        let path = match (named, usual) {
            (Some(named), _) => file::named(named).map_err(SourceError::refused)?,
            (None, Some(usual)) if usual.exists() => usual,
            (None, usual) => return Self::unfiled(place, endpoints, upstream, usual.as_deref()),
        };
        // Take the stamp first: a write between the two makes the next check find a difference.
        let stamp = Stamp::of(&path);
        let (credential, digest) = read(&path, &endpoints, &place.variables).map_err(SourceError::refused)?;
        let gcloud = Defaults::read(directory.as_deref(), &place.variables);
        let live = Live { credential: Arc::new(credential), stamp, digest, doubted: None };
        let variables = place.variables.clone();
        let chain = place.chain.clone();
        Ok(Self { upstream, endpoints, variables, path: Some(path), gcloud, chain, live: RwLock::new(live) })
    }

    fn unfiled(
        place: &SearchPaths,
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

    /// This machine's metadata server, ignoring other credentials; at the well-known address if the operator
    /// names none.
    pub fn machine(
        place: &SearchPaths,
        endpoints: Endpoints,
        upstream: Arc<Upstream>,
    ) -> Result<Self, SourceError> {
        let machine = MetadataServer::new(place.metadata.as_deref().unwrap_or(metadata_server::ADDRESS))?;
        Ok(Self::of(CredentialKind::MetadataServer(machine), endpoints, upstream, place))
    }

    /// gcloud's active account, ignoring other credentials. `Absent` without the program or an account.
    pub fn gcloud(
        place: &SearchPaths,
        endpoints: Endpoints,
        upstream: Arc<Upstream>,
    ) -> Result<Self, SourceError> {
        let directory = gcloud::directory(place.cloudsdk_config.as_deref(), place.home.as_deref());
        let path = place.gcloud.clone().ok_or_else(|| {
            SourceError::absent("gcloud is not on the PATH; install it, or name another source")
        })?;
        let program = Gcloud::new(path, directory, place.variables.clone());
        if program.defaults().account.is_none() {
            return Err(SourceError::absent(Reason::advice(
                "gcloud has no active account; run `gcloud auth login`",
            )));
        }
        Ok(Self::of(CredentialKind::Gcloud(program), endpoints, upstream, place))
    }

    /// The source that the config defines: another issuer's token to exchange (`federation`), a command that
    /// returns tokens (`exec`), or a command that returns the token to exchange (both).
    pub fn provided(
        place: &SearchPaths,
        endpoints: Endpoints,
        upstream: Arc<Upstream>,
        provided: &Provided,
    ) -> Result<Self, SourceError> {
        let command = provided.exec.as_ref().map(|exec| exec.command(&place.variables));
        let kind = match (&provided.federation, command) {
            (Some(federation), command) => federation.kind(command, &endpoints, &place.variables)?,
            (None, Some(command)) => CredentialKind::Exec(Provider::new(command)),
            (None, None) => return Err(SourceError::refused("the config names no provider of credentials")),
        };
        Ok(Self::of(kind, endpoints, upstream, place))
    }

    fn of(kind: CredentialKind, endpoints: Endpoints, upstream: Arc<Upstream>, place: &SearchPaths) -> Self {
        let directory = gcloud::directory(place.cloudsdk_config.as_deref(), place.home.as_deref());
        let gcloud = Defaults::read(directory.as_deref(), &place.variables);
        let digest = ring::digest::digest(&ring::digest::SHA256, b"");
        let credential = Arc::new(Credential::unfiled(kind));
        let live = Live { credential, stamp: None, digest, doubted: None };
        let variables = Variables::default();
        let chain = place.chain.clone();
        Self { upstream, endpoints, variables, path: None, gcloud, chain, live: RwLock::new(live) }
    }

    /// The credential file in use, if any.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// A notice if the credential is not in a file, for a user who did not choose this source explicitly.
    pub fn notice(&self) -> Option<String> {
        match &self.credential().kind {
            CredentialKind::MetadataServer(machine) => {
                Some(format!("credentials: this machine's own service account, of {}", machine.place()))
            }
            CredentialKind::Gcloud(program) => Some(format!(
                "credentials: gcloud's active account, {} (there are no application default credentials)",
                program.defaults().account.unwrap_or_default()
            )),
            _ => None,
        }
    }

    /// Fetches the account's names from local sources, so that containers get the project from the start.
    /// Sources that sign by this machine's clock compare it with the server's first. Failures are ignored:
    /// the first token reports the problem.
    pub async fn introduce(&self) {
        match &self.credential().kind {
            CredentialKind::MetadataServer(machine) => {
                let _ = tokio::time::timeout(INTRODUCTION, machine.learn(&self.upstream)).await;
            }
            CredentialKind::ServiceAccount(key) if key.exchanges() => {
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

    async fn request_token(&self, ask: &AccessRequest) -> Result<AccessToken, SourceError> {
        let (base, upstream) = (&self.credential(), &self.upstream);
        let universe = self.universe(base);
        let token = match base.other(ask.service_account.as_deref()) {
            None => base.request_token(upstream, ask).await?,
            Some(account) => {
                let endpoint = &self.endpoints.iam_credentials(&universe);
                let token_uri = &self.endpoints.token(None, &universe);
                let delegates = self.delegates(account);
                Iam { upstream, endpoint, token_uri, base, account, delegates }.request_token(ask).await?
            }
        };
        match &ask.boundary {
            None => Ok(token),
            Some(boundary) => {
                downscope::narrow(upstream, &self.endpoints.sts(&universe), token, boundary).await
            }
        }
    }

    async fn request_identity(&self, ask: &IdentityRequest) -> Result<IdentityToken, SourceError> {
        let (base, upstream) = (&self.credential(), &self.upstream);
        match base.other(ask.service_account.as_deref()) {
            None => base.request_identity(upstream, &self.endpoints, &ask.audience).await,
            Some(account) => {
                let universe = self.universe(base);
                let endpoint = &self.endpoints.iam_credentials(&universe);
                let token_uri = &self.endpoints.token(None, &universe);
                let delegates = self.delegates(account);
                Iam { upstream, endpoint, token_uri, base, account, delegates }
                    .request_identity(&ask.audience)
                    .await
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
        Box::pin(self.in_time(self.request_token(ask)))
    }

    fn identity_token<'a>(
        &'a self,
        ask: &'a IdentityRequest,
    ) -> Pending<'a, Result<IdentityToken, SourceError>> {
        Box::pin(self.in_time(self.request_identity(ask)))
    }

    fn clock(&self) -> Pending<'_, Result<Option<i64>, SourceError>> {
        Box::pin(self.in_time(async {
            let credential = self.credential();
            let usual = self.endpoints.token(None, &self.universe(&credential));
            let place = match &credential.kind {
                CredentialKind::ServiceAccount(key) if key.exchanges() => key.token_uri(),
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
            Iam { upstream, endpoint, token_uri: "", base, account, delegates: &[] }.disable().await
        }))
    }

    /// One `stat` if nothing changed. [`Reloaded::OtherAccount`] also means "possibly another": the file of a
    /// user login need not name the user.
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
            // Writes are not atomic: report only a file that is still invalid at the next check.
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
            // The content is the same. Keep the old credential: it may hold a rotated refresh token.
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
