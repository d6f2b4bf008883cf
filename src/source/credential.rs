//! The kinds of credentials, each with its own way to tokens.

use std::sync::Arc;
use std::time::Duration;

use crate::source::exec::Provider;
use crate::source::external::Federated;
use crate::source::flight::{Kept, Outcome};
use crate::source::gcloud::Program;
use crate::source::google::Endpoints;
use crate::source::impersonate::Iam;
use crate::source::impersonated::Impersonated;
use crate::source::machine::Machine;
use crate::source::upstream::Upstream;
use crate::source::user::Login;
use crate::source::workforce::Workforce;
use crate::source::yup::Key;
use crate::source::{AccessRequest, Pending, SourceError};
use crate::token::{AccessToken, CLOUD_PLATFORM, IdentityToken, Scopes};

/// Base tokens are asked for an hour, whatever the identity's own tokens live.
const BASE_LIFE: u64 = 3600;

/// A credential, of a file or of what is set up.
#[derive(Debug)]
pub(super) struct Credential {
    pub(super) kind: Kind,
    pub(super) token_uri: String,
    pub(super) project: Option<String>,
    pub(super) quota_project: Option<String>,
    pub(super) universe: Option<String>,
    base: Kept,
}

#[derive(Debug)]
pub(super) enum Kind {
    Key(Box<Key>),
    Login(Login),
    Workforce(Workforce),
    Federated(Box<Federated>),
    Provided(Provider),
    Impersonated(Box<Impersonated>),
    Machine(Machine),
    Gcloud(Program),
}

impl Credential {
    /// One that comes from no file.
    pub(super) fn unfiled(kind: Kind) -> Self {
        Self {
            kind,
            token_uri: String::new(),
            project: None,
            quota_project: None,
            universe: None,
            base: Kept::default(),
        }
    }

    /// For messages.
    pub(super) fn word(&self) -> &'static str {
        match &self.kind {
            Kind::Key(_) => "service account key",
            Kind::Login(_) => "user login",
            Kind::Workforce(_) => "workforce login",
            Kind::Federated(federated) => federated.kind(),
            Kind::Provided(_) => "command",
            Kind::Impersonated(impersonated) => match &impersonated.source().kind {
                Kind::Federated(federated) => federated.kind(),
                _ => "impersonated service account",
            },
            Kind::Machine(_) => "this machine's service account",
            Kind::Gcloud(_) => "gcloud's account",
        }
    }

    /// Whether its own tokens have the scopes that are asked for.
    pub(super) fn narrows(&self) -> bool {
        match &self.kind {
            Kind::Key(_) | Kind::Federated(_) | Kind::Impersonated(_) => true,
            Kind::Login(_) | Kind::Workforce(_) | Kind::Provided(_) | Kind::Machine(_) | Kind::Gcloud(_) => {
                false
            }
        }
    }

    pub(super) fn email(&self) -> Option<String> {
        match &self.kind {
            Kind::Key(key) => Some(key.email().to_owned()),
            Kind::Login(login) => login.email(),
            Kind::Workforce(_) | Kind::Federated(_) => None,
            Kind::Provided(provider) => provider.email(),
            Kind::Impersonated(impersonated) => Some(impersonated.account().to_owned()),
            Kind::Machine(machine) => machine.known().email,
            Kind::Gcloud(program) => program.defaults().account,
        }
    }

    pub(super) fn project(&self) -> Option<String> {
        self.project.clone().or_else(|| match &self.kind {
            Kind::Machine(machine) => machine.known().project,
            Kind::Gcloud(program) => program.defaults().project,
            Kind::Impersonated(impersonated) => impersonated.source().project(),
            _ => None,
        })
    }

    pub(super) fn universe(&self) -> Option<String> {
        self.universe.clone().or_else(|| match &self.kind {
            Kind::Machine(machine) => machine.known().universe,
            Kind::Gcloud(program) => program.defaults().universe,
            Kind::Impersonated(impersonated) => impersonated.source().universe(),
            _ => None,
        })
    }

    pub(super) fn quota_project(&self) -> Option<String> {
        self.quota_project.clone().or_else(|| match &self.kind {
            Kind::Gcloud(program) => program.defaults().quota_project,
            _ => None,
        })
    }

    /// The principal of a pool, for messages: as it was introduced, else by its provider.
    pub(super) fn principal(&self) -> Option<String> {
        match &self.kind {
            Kind::Federated(federated) => Some(federated.principal()),
            _ => None,
        }
    }

    /// What a command of it may take, beyond what calls upstream may.
    pub(super) fn patience(&self) -> Duration {
        match &self.kind {
            Kind::Federated(federated) => federated.patience(),
            Kind::Provided(provider) => provider.patience(),
            Kind::Impersonated(impersonated) => impersonated.source().patience(),
            _ => Duration::ZERO,
        }
    }

    /// The client for calls with its tokens.
    pub(super) fn client(&self, plain: &Arc<Upstream>) -> Result<Arc<Upstream>, SourceError> {
        match &self.kind {
            Kind::Federated(federated) => federated.client(plain),
            _ => Ok(plain.clone()),
        }
    }

    /// Whether a file that it reads for each token changed since the last look.
    pub(super) fn supplied(&self) -> bool {
        match &self.kind {
            Kind::Federated(federated) => federated.supplied(),
            Kind::Impersonated(impersonated) => impersonated.source().supplied(),
            _ => false,
        }
    }

    /// Whether it is another account's since the last look, as gcloud's can be, and a command's. The base token was
    /// the old one's then.
    pub(super) fn switched(&self) -> bool {
        let switched = match &self.kind {
            Kind::Gcloud(program) => program.switched(),
            Kind::Provided(provider) => provider.switched(),
            _ => false,
        };
        if switched {
            self.base.clear();
        }
        switched
    }

    pub(super) fn reconnect(&self) {
        match &self.kind {
            Kind::Federated(federated) => federated.reconnect(),
            Kind::Impersonated(impersonated) => impersonated.source().reconnect(),
            _ => {}
        }
    }

    /// The account to impersonate, unless it is the credential's own.
    pub(super) fn other<'a>(&self, account: Option<&'a str>) -> Option<&'a str> {
        let own = match &self.kind {
            Kind::Login(_) | Kind::Workforce(_) | Kind::Provided(_) => None,
            _ => self.email(),
        };
        account.filter(|account| own.as_deref() != Some(*account))
    }

    /// Boxed, as a credential may be made of another one.
    pub(super) fn access<'a>(
        self: &'a Arc<Self>,
        upstream: &'a Arc<Upstream>,
        ask: &'a AccessRequest,
    ) -> Pending<'a, Result<AccessToken, SourceError>> {
        Box::pin(async move {
            match &self.kind {
                Kind::Key(key) => key.access(upstream, ask).await,
                Kind::Impersonated(impersonated) => impersonated.access(upstream, ask).await,
                _ if ask.subject.is_some() => Err(SourceError::refused(
                    "only a service account can stand in for a subject; name it with --impersonate",
                )),
                Kind::Login(login) => login.access(upstream, &self.token_uri).await,
                Kind::Workforce(login) => login.access(upstream).await,
                Kind::Federated(federated) => federated.access(upstream, &ask.scopes).await,
                Kind::Provided(provider) => provider.access(ask).await,
                Kind::Machine(machine) => machine.access(upstream, ask).await,
                Kind::Gcloud(program) => program.access().await,
            }
        })
    }

    /// An ID token of the credential's own account.
    pub(super) async fn identity(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        endpoints: &Endpoints,
        audience: &str,
    ) -> Result<IdentityToken, SourceError> {
        match &self.kind {
            Kind::Key(key) if key.exchanges() => key.identity(upstream, audience).await,
            // Where nothing is exchanged, IAM makes them, with a token that the key signed.
            Kind::Key(key) => {
                let endpoint = &endpoints.iam_credentials(endpoints.universe(self.universe.as_deref()));
                let (account, token_uri) = (key.email(), key.token_uri());
                let iam = Iam { upstream, endpoint, token_uri, base: self, account, delegates: &[] };
                iam.identity(audience).await
            }
            Kind::Impersonated(impersonated) => impersonated.identity(upstream, audience).await,
            Kind::Machine(machine) => machine.identity(upstream, audience).await,
            Kind::Gcloud(program) => program.identity(audience).await,
            Kind::Provided(provider) => provider.identity(audience).await,
            Kind::Federated(_) => Err(SourceError::refused(
                "a federated identity has no ID tokens of its own; name a service account, with --impersonate or where \
                 the federation is set up",
            )),
            Kind::Login(_) | Kind::Workforce(_) => Err(SourceError::refused(
                "a user login cannot make ID tokens for an audience; name a service account with --impersonate",
            )),
        }
    }

    /// The credential's own token, for calls to the IAM Credentials API.
    pub(super) async fn base(self: &Arc<Self>, upstream: &Arc<Upstream>) -> Outcome<AccessToken> {
        let start = || {
            let (own, upstream) = (self.clone(), upstream.clone());
            let scopes = Scopes::parse(CLOUD_PLATFORM);
            let ask = AccessRequest { scopes, lifetime: BASE_LIFE, ..AccessRequest::default() };
            async move { own.access(&upstream, &ask).await }
        };
        self.base.token(start).await
    }

    pub(super) fn forget_base(&self, token: &Arc<AccessToken>) {
        self.base.forget(token);
    }

    /// False also where it cannot be known: serving tokens of somebody else is the worse mistake.
    pub(super) fn is_same_account(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (Kind::Key(own), Kind::Key(other)) => own.email() == other.email(),
            (Kind::Login(own), Kind::Login(other)) => own.email().is_some() && own.email() == other.email(),
            (Kind::Workforce(own), Kind::Workforce(other)) => own.is_same(other),
            (Kind::Federated(own), Kind::Federated(other)) => own.is_same(other),
            (Kind::Impersonated(own), Kind::Impersonated(other)) => own.account() == other.account(),
            _ => false,
        }
    }
}
