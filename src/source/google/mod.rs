//! Google credentials on the host: the lookup order and the supported kinds.
//!
//! Application Default Credentials, in this order (the first that exists counts):
//!
//! 1. the file named by `GOOGLE_APPLICATION_CREDENTIALS`. If the variable is set the file must exist and be
//!    valid: a broken configured credential is an error, never a reason to use another identity;
//! 2. `application_default_credentials.json` in `$CLOUDSDK_CONFIG`, else in `~/.config/gcloud`;
//! 3. the machine's metadata server (`metadata_server`), if the operator's `GCE_METADATA_HOST` or the
//!    firmware's product name indicates one. Nothing is probed over the network, and `NO_GCE_CHECK=true`
//!    skips this step.
//!
//! If there are none, gcloud's active account is used, if gcloud is installed and has one (`gcloud`). A
//! message announces either of the last two; `credentials` can also select them.
//!
//! | `type` in the file | |
//! |---|---|
//! | `service_account` | JWT-bearer exchange, or what the key signs itself (`service_account`); its `token_uri` counts unless [`Endpoints`] name one |
//! | `authorized_user` | refresh-token grant (`authorized_user`) |
//! | `external_account_authorized_user` | refresh-token grant at the Security Token Service (`external_account_authorized_user`) |
//! | `impersonated_service_account` | IAM Credentials on top of any of these (`impersonated`) |
//! | `external_account` | token exchange at the Security Token Service (`external_account`); with an impersonation URL `impersonated` on top |
//! | `gdch_service_account` | refused: its tokens need an audience, which a metadata request does not have |
//! | anything else | refused: unknown |
//!
//! On top of each, in this order: impersonation of another service account (`iam`), the user it acts for by
//! domain-wide delegation (`service_account`), and the narrowing of the token (`downscope`).
//!
//! The e-mail comes from, in this order: the file (`client_email`, `account`), the ID token of a refresh, the
//! metadata server, gcloud's configuration. The project: the file (`project_id`), the metadata server,
//! gcloud's configuration. So [`Source::principal`](crate::source::Source::principal) knows more after the
//! first mint.

pub mod endpoints;
pub mod metadata_server;

pub(crate) mod downscope;
pub(crate) mod names;

mod authorized_user;
mod configured;
mod exec;
mod external_account;
mod external_account_authorized_user;
mod file;
mod gcloud;
mod iam;
mod impersonated;
mod pem;
mod search;
mod service_account;
mod token_types;

use std::sync::Arc;
use std::time::Duration;

use crate::failure::Reason;
use crate::source::flight::{BaseToken, Outcome};
use crate::source::google::exec::Provider;
use crate::source::google::external_account::ExternalAccount;
use crate::source::google::gcloud::Gcloud;
pub use configured::{Exec, Federation, Provided, TokenFrom};
pub use endpoints::Endpoints;
pub use gcloud::adc;
pub use search::{Google, SearchPaths};

use crate::source::google::authorized_user::AuthorizedUser;
use crate::source::google::external_account_authorized_user::ExternalAccountAuthorizedUser;
use crate::source::google::iam::Iam;
use crate::source::google::impersonated::Impersonated;
use crate::source::google::metadata_server::MetadataServer;
use crate::source::google::service_account::ServiceAccount;
use crate::source::http::client::Upstream;
use crate::source::{AccessRequest, Pending, SourceError};
use crate::token::{AccessToken, CLOUD_PLATFORM, IdentityToken, Scopes};

/// Longest delay of a request whose answer is only for messages and names: nothing depends on it.
const INTRODUCTION: Duration = Duration::from_secs(2);

/// Base tokens are requested for an hour, whatever the lifetime of the identity's own tokens.
const BASE_LIFE: u64 = 3600;

/// A credential from a file or from the config.
#[derive(Debug)]
struct Credential {
    kind: CredentialKind,
    token_uri: String,
    project: Option<String>,
    quota_project: Option<String>,
    universe: Option<String>,
    base: BaseToken,
}

#[derive(Debug)]
enum CredentialKind {
    ServiceAccount(Box<ServiceAccount>),
    AuthorizedUser(AuthorizedUser),
    ExternalAccountAuthorizedUser(ExternalAccountAuthorizedUser),
    ExternalAccount(Box<ExternalAccount>),
    Exec(Provider),
    Impersonated(Box<Impersonated>),
    MetadataServer(MetadataServer),
    Gcloud(Gcloud),
}

impl Credential {
    /// A credential that does not come from a file.
    fn unfiled(kind: CredentialKind) -> Self {
        Self {
            kind,
            token_uri: String::new(),
            project: None,
            quota_project: None,
            universe: None,
            base: BaseToken::default(),
        }
    }

    /// The credential's kind, for messages.
    fn word(&self) -> &'static str {
        match &self.kind {
            CredentialKind::ServiceAccount(_) => "service account key",
            CredentialKind::AuthorizedUser(_) => "user login",
            CredentialKind::ExternalAccountAuthorizedUser(_) => "workforce login",
            CredentialKind::ExternalAccount(federated) => federated.kind(),
            CredentialKind::Exec(_) => "command",
            CredentialKind::Impersonated(impersonated) => match &impersonated.source().kind {
                CredentialKind::ExternalAccount(federated) => federated.kind(),
                _ => "impersonated service account",
            },
            CredentialKind::MetadataServer(_) => "this machine's service account",
            CredentialKind::Gcloud(_) => "gcloud's account",
        }
    }

    /// Whether its own tokens have exactly the requested scopes.
    fn narrows(&self) -> bool {
        match &self.kind {
            CredentialKind::ServiceAccount(_)
            | CredentialKind::ExternalAccount(_)
            | CredentialKind::Impersonated(_) => true,
            CredentialKind::AuthorizedUser(_)
            | CredentialKind::ExternalAccountAuthorizedUser(_)
            | CredentialKind::Exec(_)
            | CredentialKind::MetadataServer(_)
            | CredentialKind::Gcloud(_) => false,
        }
    }

    fn email(&self) -> Option<String> {
        match &self.kind {
            CredentialKind::ServiceAccount(key) => Some(key.email().to_owned()),
            CredentialKind::AuthorizedUser(login) => login.email(),
            CredentialKind::ExternalAccountAuthorizedUser(_) | CredentialKind::ExternalAccount(_) => None,
            CredentialKind::Exec(provider) => provider.email(),
            CredentialKind::Impersonated(impersonated) => Some(impersonated.account().to_owned()),
            CredentialKind::MetadataServer(machine) => machine.known().email,
            CredentialKind::Gcloud(program) => program.defaults().account,
        }
    }

    fn project(&self) -> Option<String> {
        self.project.clone().or_else(|| match &self.kind {
            CredentialKind::MetadataServer(machine) => machine.known().project,
            CredentialKind::Gcloud(program) => program.defaults().project,
            CredentialKind::Impersonated(impersonated) => impersonated.source().project(),
            _ => None,
        })
    }

    fn universe(&self) -> Option<String> {
        self.universe.clone().or_else(|| match &self.kind {
            CredentialKind::MetadataServer(machine) => machine.known().universe,
            CredentialKind::Gcloud(program) => program.defaults().universe,
            CredentialKind::Impersonated(impersonated) => impersonated.source().universe(),
            _ => None,
        })
    }

    fn quota_project(&self) -> Option<String> {
        self.quota_project.clone().or_else(|| match &self.kind {
            CredentialKind::Gcloud(program) => program.defaults().quota_project,
            _ => None,
        })
    }

    /// The pool principal, for messages: its introspected name, else its provider.
    fn principal(&self) -> Option<String> {
        match &self.kind {
            CredentialKind::ExternalAccount(federated) => Some(federated.principal()),
            _ => None,
        }
    }

    /// The member to which a role has to be granted: an e-mail address, a principal, or the provider of one.
    fn grantee(&self) -> Option<String> {
        match &self.kind {
            CredentialKind::ExternalAccount(federated) => Some(federated.grantee()),
            _ => self.email(),
        }
    }

    /// Extra time for its command, beyond what upstream calls may take.
    fn patience(&self) -> Duration {
        match &self.kind {
            CredentialKind::ExternalAccount(federated) => federated.patience(),
            CredentialKind::Exec(provider) => provider.patience(),
            CredentialKind::Impersonated(impersonated) => impersonated.source().patience(),
            _ => Duration::ZERO,
        }
    }

    /// The client for calls with the credential's tokens.
    fn client(&self, plain: &Arc<Upstream>) -> Result<Arc<Upstream>, SourceError> {
        match &self.kind {
            CredentialKind::ExternalAccount(federated) => federated.client(plain),
            _ => Ok(plain.clone()),
        }
    }

    /// Whether a file that it reads for each token changed since the last check.
    fn supplied(&self) -> bool {
        match &self.kind {
            CredentialKind::ExternalAccount(federated) => federated.supplied(),
            CredentialKind::Impersonated(impersonated) => impersonated.source().supplied(),
            _ => false,
        }
    }

    /// Whether the account changed since the last check, which gcloud and commands can cause. If so, the old
    /// account's base token is dropped.
    fn switched(&self) -> bool {
        let switched = match &self.kind {
            CredentialKind::Gcloud(program) => program.switched(),
            CredentialKind::Exec(provider) => provider.switched(),
            _ => false,
        };
        if switched {
            self.base.clear();
        }
        switched
    }

    fn reconnect(&self) {
        match &self.kind {
            CredentialKind::ExternalAccount(federated) => federated.reconnect(),
            CredentialKind::Impersonated(impersonated) => impersonated.source().reconnect(),
            _ => {}
        }
    }

    /// The account to impersonate, unless it is the credential's own.
    fn other<'a>(&self, account: Option<&'a str>) -> Option<&'a str> {
        let own = match &self.kind {
            CredentialKind::AuthorizedUser(_)
            | CredentialKind::ExternalAccountAuthorizedUser(_)
            | CredentialKind::Exec(_) => None,
            _ => self.email(),
        };
        account.filter(|account| own.as_deref() != Some(*account))
    }

    /// Boxed because a credential may contain another one.
    fn request_token<'a>(
        self: &'a Arc<Self>,
        upstream: &'a Arc<Upstream>,
        ask: &'a AccessRequest,
    ) -> Pending<'a, Result<AccessToken, SourceError>> {
        Box::pin(async move {
            match &self.kind {
                CredentialKind::ServiceAccount(key) => key.request_token(upstream, ask).await,
                CredentialKind::Impersonated(impersonated) => impersonated.request_token(upstream, ask).await,
                _ if ask.subject.is_some() => Err(SourceError::refused(Reason::advice(
                    "only a service account can stand in for a subject; name it with --impersonate",
                ))),
                CredentialKind::AuthorizedUser(login) => login.request_token(upstream, &self.token_uri).await,
                CredentialKind::ExternalAccountAuthorizedUser(login) => login.request_token(upstream).await,
                CredentialKind::ExternalAccount(federated) => {
                    federated.request_token(upstream, &ask.scopes).await
                }
                CredentialKind::Exec(provider) => provider.request_token(ask).await,
                CredentialKind::MetadataServer(machine) => machine.request_token(upstream, ask).await,
                CredentialKind::Gcloud(program) => program.request_token().await,
            }
        })
    }

    /// An ID token of the credential's own account.
    async fn request_identity(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        endpoints: &Endpoints,
        audience: &str,
    ) -> Result<IdentityToken, SourceError> {
        match &self.kind {
            CredentialKind::ServiceAccount(key) if key.exchanges() => {
                key.request_identity(upstream, audience).await
            }
            // Without an exchange of assertions, IAM creates ID tokens, called with a self-signed token.
            CredentialKind::ServiceAccount(key) => {
                let endpoint = &endpoints.iam_credentials(endpoints.universe(self.universe.as_deref()));
                let (account, token_uri) = (key.email(), key.token_uri());
                let iam = Iam { upstream, endpoint, token_uri, base: self, account, delegates: &[] };
                iam.request_identity(audience).await
            }
            CredentialKind::Impersonated(impersonated) => {
                impersonated.request_identity(upstream, audience).await
            }
            CredentialKind::MetadataServer(machine) => machine.request_identity(upstream, audience).await,
            CredentialKind::Gcloud(program) => program.request_identity(audience).await,
            CredentialKind::Exec(provider) => provider.request_identity(audience).await,
            CredentialKind::ExternalAccount(_) => Err(SourceError::refused(Reason::advice(
                "a federated identity has no ID tokens of its own; name a service account, with --impersonate or where \
                 the federation is set up",
            ))),
            CredentialKind::AuthorizedUser(_) | CredentialKind::ExternalAccountAuthorizedUser(_) => {
                Err(SourceError::refused(Reason::advice(
                    "a user login cannot make ID tokens for an audience; name a service account with --impersonate",
                )))
            }
        }
    }

    /// The credential's own token, for calls to the IAM Credentials API.
    async fn base(self: &Arc<Self>, upstream: &Arc<Upstream>) -> Outcome<AccessToken> {
        let start = || {
            let (own, upstream) = (self.clone(), upstream.clone());
            let scopes = Scopes::parse(CLOUD_PLATFORM);
            let ask = AccessRequest { scopes, lifetime: BASE_LIFE, ..AccessRequest::default() };
            async move { own.request_token(&upstream, &ask).await }
        };
        self.base.token(start).await
    }

    fn forget_base(&self, token: &Arc<AccessToken>) {
        self.base.forget(token);
    }

    /// False also if unknown: serving another account's tokens would be the worse mistake.
    fn is_same_account(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (CredentialKind::ServiceAccount(own), CredentialKind::ServiceAccount(other)) => {
                own.email() == other.email()
            }
            (CredentialKind::AuthorizedUser(own), CredentialKind::AuthorizedUser(other)) => {
                own.email().is_some() && own.email() == other.email()
            }
            (
                CredentialKind::ExternalAccountAuthorizedUser(own),
                CredentialKind::ExternalAccountAuthorizedUser(other),
            ) => own.is_same(other),
            (CredentialKind::ExternalAccount(own), CredentialKind::ExternalAccount(other)) => {
                own.is_same(other)
            }
            (CredentialKind::Impersonated(own), CredentialKind::Impersonated(other)) => {
                own.account() == other.account()
            }
            _ => false,
        }
    }
}
