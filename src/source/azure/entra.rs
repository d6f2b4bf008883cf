//! Tokens of a principal of its own: the client-credentials grant at the token endpoint of a directory.
//!
//! <https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow>

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use crate::failure::Reason;
use crate::quote;
use crate::secret::Secret;
use crate::source::azure::certificate::Certificate;
use crate::source::azure::refusals::{OUT_OF_TIME, ProofKind, Requested};
use crate::source::azure::{AzureRequest, AzureSettings, is_name};
use crate::source::expiry::life;
use crate::source::http::client::Upstream;
use crate::source::http::fault::Fault;
use crate::source::http::request::{Answer, Call};
use crate::source::http::secure_url::confidential;
use crate::source::stamp::Stamp;
use crate::source::subject::{FileToken, Format, SubjectToken};
use crate::source::variables::Variables;
use crate::source::{Reloaded, SourceError, jwt};
use crate::token::{AzureToken, Deadline, MintId, RenderedReply};

/// RFC 7523 section 2.2.
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

const AUTHORITY: &str = "https://login.microsoftonline.com";

#[derive(Debug)]
pub(super) struct Entra {
    pub(super) tenant: String,
    pub(super) client_id: String,
    /// The token endpoint, which is the audience of assertions too.
    url: String,
    proof: Proof,
    seen: Mutex<Vec<Option<Stamp>>>,
}

/// The principal's proof of identity.
#[derive(Debug)]
enum Proof {
    Secret(Secret<String>),
    Certificate(Certificate),
    Federated(SubjectToken),
}

/// A proof in the form in which it is sent.
struct Sent {
    secret: Secret<String>,
    /// The claims of an assertion that another issuer made.
    claims: Option<Value>,
}

impl Entra {
    /// The principal that the variables of Microsoft's libraries describe.
    pub(super) fn of_environment(
        settings: &AzureSettings,
        variables: &Variables,
    ) -> Result<Self, SourceError> {
        let path = |name: &str| variables.text(name).map(PathBuf::from);
        let proof = if let Some(secret) = variables.secret("AZURE_CLIENT_SECRET") {
            Proof::Secret(secret)
        } else if let Some(path) = path("AZURE_CLIENT_CERTIFICATE_PATH") {
            let chain = variables.text("AZURE_CLIENT_SEND_CERTIFICATE_CHAIN");
            let chain = chain.is_some_and(|said| said == "1" || said.eq_ignore_ascii_case("true"));
            Proof::Certificate(Certificate::open(path, chain)?)
        } else if let Some(path) = path("AZURE_FEDERATED_TOKEN_FILE") {
            Proof::Federated(SubjectToken::File(FileToken { path, format: Format::Text }))
        } else {
            return Err(SourceError::absent(Reason::advice(
                "none of AZURE_CLIENT_SECRET, AZURE_CLIENT_CERTIFICATE_PATH and AZURE_FEDERATED_TOKEN_FILE is set; set \
                 one, or name other credentials",
            )));
        };
        // The proof belongs to one principal. Tenants are not compared, because a directory has several names.
        let own = settings.client_id.as_deref().zip(variables.text("AZURE_CLIENT_ID"));
        if own.is_some_and(|(own, said)| !own.eq_ignore_ascii_case(said)) {
            return Err(SourceError::refused(Reason::advice(
                "azure.client_id and AZURE_CLIENT_ID name different principals; remove one of them",
            )));
        }
        Self::new(settings, variables, proof)
    }

    /// A principal that trusts another issuer's tokens.
    pub(super) fn federated(
        settings: &AzureSettings,
        variables: &Variables,
        token: SubjectToken,
    ) -> Result<Self, SourceError> {
        Self::new(settings, variables, Proof::Federated(token))
    }

    fn new(settings: &AzureSettings, variables: &Variables, proof: Proof) -> Result<Self, SourceError> {
        let told = |own: &Option<String>, name: &str| {
            own.clone().or_else(|| variables.text(name).map(str::to_owned))
        };
        let missing = |what: &str, key: &str, name: &str| {
            SourceError::refused(Reason::advice(format!(
                "the {what} is not known; set azure.{key} or {name}"
            )))
        };
        let tenant = told(&settings.tenant, "AZURE_TENANT_ID");
        let tenant = tenant.ok_or_else(|| missing("directory", "tenant", "AZURE_TENANT_ID"))?;
        let client_id = told(&settings.client_id, "AZURE_CLIENT_ID");
        let client_id = client_id.ok_or_else(|| missing("principal", "client_id", "AZURE_CLIENT_ID"))?;
        for (value, what) in [(&tenant, "tenant"), (&client_id, "client id")] {
            if !is_name(value) {
                return Err(SourceError::refused(format!(
                    "{} is not a {what} of Azure, which is a UUID (or a domain, for a tenant)",
                    quote::object(value)
                )));
            }
        }
        let authority = told(&settings.authority, "AZURE_AUTHORITY_HOST").unwrap_or_else(|| AUTHORITY.into());
        let authority = if authority.contains("://") { authority } else { format!("https://{authority}") };
        if confidential(&authority, "").is_err() || authority.contains(['?', '#']) {
            return Err(SourceError::refused(
                "azure.authority or AZURE_AUTHORITY_HOST is not an https address",
            ));
        }
        let url = format!("{}/{tenant}/oauth2/v2.0/token", authority.trim_end_matches('/'));
        let entra = Self { tenant, client_id, url, proof, seen: Mutex::default() };
        entra.reload();
        Ok(entra)
    }

    pub(super) fn kind(&self) -> &'static str {
        match self.proof {
            Proof::Secret(_) => "client secret",
            Proof::Certificate(_) => "certificate",
            Proof::Federated(_) => "federated token",
        }
    }

    /// Whether a file that is read for each token changed since the last check.
    pub(super) fn reload(&self) -> Reloaded {
        let files = match &self.proof {
            Proof::Secret(_) => vec![],
            Proof::Certificate(certificate) => vec![certificate.path().clone()],
            Proof::Federated(token) => token.files(),
        };
        let now: Vec<_> = files.iter().map(|file| Stamp::of(file)).collect();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *seen != now;
        *seen = now;
        if changed { Reloaded::Supplied } else { Reloaded::Same }
    }

    pub(super) async fn token(
        &self,
        upstream: &Arc<Upstream>,
        ask: &AzureRequest,
    ) -> Result<AzureToken, SourceError> {
        let client_id = self.whose(ask)?;
        let ahead = upstream.skew().ahead();
        let sent = self.prove(upstream, client_id).await?;
        let answer = match self.exchange(upstream, ask, client_id, &sent).await {
            // The file was replaced meanwhile, or our signature used a clock that this answer showed to be wrong.
            Err(Fault::Denied(denial)) if self.may_be_renewed(&denial, upstream.skew().moved_from(ahead)) => {
                let again = self.prove(upstream, client_id).await?;
                if again.secret.expose() == sent.secret.expose() {
                    return Err(self.refused(Fault::Denied(denial), ask, client_id, &sent));
                }
                let answer = self.exchange(upstream, ask, client_id, &again).await;
                answer.map_err(|fault| self.refused(fault, ask, client_id, &again))?
            }
            outcome => outcome.map_err(|fault| self.refused(fault, ask, client_id, &sent))?,
        };
        let granted = answer.granted()?;
        let claimed = granted.life.ok_or_else(|| {
            SourceError::transient(format!("{} gave no token with an expiry; try again", answer.host))
        })?;
        Ok(AzureToken {
            value: granted.token,
            expires: Deadline::after(answer.sent, life(claimed)?),
            resource: ask.resource.clone(),
            client_id: Some(client_id.to_owned()),
            id: MintId::random(),
            shown: RenderedReply::default(),
        })
    }

    /// The principal of a request. A secret belongs to one principal; a certificate or another issuer's token can be
    /// registered with several.
    fn whose<'a>(&'a self, ask: &'a AzureRequest) -> Result<&'a str, SourceError> {
        match (&self.proof, ask.client_id.as_deref()) {
            (_, None) => Ok(&self.client_id),
            (Proof::Secret(_), Some(other)) if other != self.client_id => {
                Err(SourceError::refused(Reason::advice(format!(
                    "the client secret belongs to {}, not to {other}; leave client_id out of the identity, or use a \
                     certificate or a federated token, which several principals can have",
                    self.client_id
                ))))
            }
            (_, Some(other)) => Ok(other),
        }
    }

    async fn prove(&self, upstream: &Arc<Upstream>, client_id: &str) -> Result<Sent, SourceError> {
        Ok(match &self.proof {
            Proof::Secret(secret) => Sent { secret: Secret::new(secret.expose().clone()), claims: None },
            Proof::Certificate(certificate) => {
                let secret = certificate.assertion(client_id, &self.url, upstream.skew().now())?;
                Sent { secret, claims: None }
            }
            Proof::Federated(token) => {
                let secret = token.token(upstream).await?;
                let claims = jwt::unverified_claims(secret.expose());
                Sent { secret, claims }
            }
        })
    }

    fn may_be_renewed(&self, denial: &crate::source::http::fault::Denial, clock_moved: bool) -> bool {
        match &self.proof {
            Proof::Secret(_) => false,
            Proof::Certificate(_) => denial.entra == Some(OUT_OF_TIME) && clock_moved,
            Proof::Federated(token) => !denial.is_transient() && token.may_change(),
        }
    }

    async fn exchange(
        &self,
        upstream: &Arc<Upstream>,
        ask: &AzureRequest,
        client_id: &str,
        sent: &Sent,
    ) -> Result<Answer, Fault> {
        let scope = format!("{}/.default", ask.resource);
        let mut fields =
            vec![("grant_type", "client_credentials"), ("client_id", client_id), ("scope", scope.as_str())];
        let secret = sent.secret.expose().as_str();
        match &self.proof {
            Proof::Secret(_) => fields.push(("client_secret", secret)),
            Proof::Certificate(_) | Proof::Federated(_) => {
                fields.extend([("client_assertion_type", JWT_BEARER), ("client_assertion", secret)]);
            }
        }
        upstream.send(&Call::form(&self.url, &fields)).await
    }

    fn refused(&self, fault: Fault, ask: &AzureRequest, client_id: &str, sent: &Sent) -> SourceError {
        let by = match &self.proof {
            Proof::Secret(_) => ProofKind::Secret,
            Proof::Certificate(certificate) => ProofKind::Certificate(certificate.place()),
            Proof::Federated(token) => {
                ProofKind::Federated { place: token.place(), claims: sent.claims.as_ref() }
            }
        };
        Requested { client_id, tenant: &self.tenant, resource: &ask.resource, by }.refused(fault)
    }
}
