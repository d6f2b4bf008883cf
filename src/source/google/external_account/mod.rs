//! Workload and workforce identity federation: another issuer's token, exchanged at Google's Security Token
//! Service (RFC 8693). Its credential files are `external_account` (AIP-4117); a CI job sets the same up in
//! the config ([`crate::source::google::configured::Federation`]).

mod ci;
mod file_format;
mod response;
mod subject;

pub(super) use file_format::{CredentialSource, ExternalAccountFields};
pub(super) use response::{Good, SubjectAnswer, brought, span};

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::failure::{Reason, Remedy};
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::google::INTRODUCTION;
use crate::source::google::external_account::subject::{Purpose, Subject};
use crate::source::google::token_types::{ACCESS_TOKEN, TOKEN_EXCHANGE};
use crate::source::http::client::Upstream;
use crate::source::http::fault::{Denial, Fault};
use crate::source::http::request::Call;
use crate::source::jwt;
use crate::source::stamp::Stamp;
use crate::token::{AccessToken, Scopes};

/// An identity in a pool, proven by another issuer's token.
pub(super) struct ExternalAccount {
    audience: String,
    subject_token_type: String,
    token_url: String,
    token_info_url: Option<String>,
    /// `client_id:client_secret`.
    client: Option<Secret<String>>,
    user_project: Option<String>,
    subject: Subject,
    /// The account to impersonate with the token; passed to commands.
    account: Option<String>,
    /// `principal://…`, once the introspection endpoint has returned it.
    name: Mutex<Option<String>>,
    seen: Mutex<Vec<Option<Stamp>>>,
}

impl fmt::Debug for ExternalAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExternalAccount({:?}, from {})", self.audience, self.subject.place())
    }
}

/// Introspection response (RFC 7662 section 2.2).
#[derive(Deserialize)]
struct Introduced {
    active: bool,
    username: Option<String>,
}

impl ExternalAccount {
    /// Records the current state of the files, so that only later changes count.
    fn looked(self) -> Self {
        self.supplied();
        self
    }

    /// The kind of pool, for messages.
    pub(super) fn kind(&self) -> &'static str {
        if is_workforce(&self.audience) { "workforce identity" } else { "workload identity" }
    }

    pub(super) fn principal(&self) -> String {
        self.name().unwrap_or_else(|| format!("the principal of {}", self.audience))
    }

    /// The principal, or the provider that it belongs to.
    pub(super) fn grantee(&self) -> String {
        self.name().unwrap_or_else(|| self.audience.clone())
    }

    /// The principal, if introspection has returned it.
    fn name(&self) -> Option<String> {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// True only if both are certainly the same principal.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let own = self.name();
        self.audience == other.audience && own.is_some() && own == other.name()
    }

    /// Extra time for a command, beyond what upstream calls may take.
    pub(super) fn patience(&self) -> Duration {
        match &self.subject {
            Subject::Executable(executable) => executable.timeout(),
            _ => Duration::ZERO,
        }
    }

    /// The client for calls with its tokens; it presents the client certificate, if there is one.
    pub(super) fn client(&self, plain: &Arc<Upstream>) -> Result<Arc<Upstream>, SourceError> {
        match &self.subject {
            Subject::Certificate(certificate) => certificate.client(plain),
            _ => Ok(plain.clone()),
        }
    }

    pub(super) fn reconnect(&self) {
        if let Subject::Certificate(certificate) = &self.subject {
            certificate.reconnect();
        }
    }

    /// Whether a file that exchanges read changed since the last check.
    pub(super) fn supplied(&self) -> bool {
        let now: Vec<_> = self.subject.files().iter().map(|file| Stamp::of(file)).collect();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *seen != now;
        *seen = now;
        changed
    }

    /// Exchanges once, for exactly `scopes`.
    pub(super) async fn request_token(
        &self,
        upstream: &Arc<Upstream>,
        scopes: &Scopes,
    ) -> Result<AccessToken, SourceError> {
        let client = self.client(upstream)?;
        let ahead = upstream.skew().ahead();
        let subject = self.subject(upstream, false).await?;
        let token = match self.exchange(&client, &subject, scopes).await {
            // The file was replaced meanwhile, or a token cached by a command is no longer accepted, or our
            // signature used a clock that this answer showed to be wrong.
            Err(Fault::Denied(denial))
                if denial.is("invalid_grant")
                    && (self.subject.may_change()
                        || self.subject.is_signed_here() && upstream.skew().moved_from(ahead)) =>
            {
                let again = self.subject(upstream, true).await?;
                if again.expose() == subject.expose() {
                    return Err(self.refused(Fault::Denied(denial), &subject));
                }
                self.exchange(&client, &again, scopes).await.map_err(|fault| self.refused(fault, &again))?
            }
            outcome => outcome.map_err(|fault| self.refused(fault, &subject))?,
        }?;
        self.introduce(&client, &token).await;
        Ok(token)
    }

    async fn subject(&self, upstream: &Upstream, afresh: bool) -> Result<Secret<String>, SourceError> {
        let purpose = Purpose {
            audience: &self.audience,
            token_type: &self.subject_token_type,
            account: self.account.as_deref(),
            afresh,
        };
        self.subject.token(upstream, &purpose).await
    }

    /// The outer error allows a retry with another subject token; the inner one is final.
    async fn exchange(
        &self,
        client: &Upstream,
        subject: &Secret<String>,
        scopes: &Scopes,
    ) -> Result<Result<AccessToken, SourceError>, Fault> {
        let scope = scopes.to_string();
        let mut fields = vec![
            ("grant_type", TOKEN_EXCHANGE),
            ("audience", &self.audience),
            ("scope", &scope),
            ("requested_token_type", ACCESS_TOKEN),
            ("subject_token", subject.expose()),
            ("subject_token_type", &self.subject_token_type),
        ];
        // A client's authentication already determines the project that pays.
        let project = self.user_project.as_ref().filter(|_| self.client.is_none());
        let options = project.map(|project| json!({"userProject": project}).to_string());
        fields.extend(options.as_deref().map(|options| ("options", options)));
        let call = Call { basic: self.client.as_ref(), ..Call::form(&self.token_url, &fields) };
        let answer = client.send(&call).await?;
        // RFC 8693 section 2.2.1. Google omits `expires_in` if the lifetime is that of the subject token.
        Ok(answer.granted().and_then(|granted| {
            if granted.life.is_none() {
                return Err(SourceError::refused(
                    "the security token service did not say how long its token lives, and such a token is not used",
                ));
            }
            granted.into_access_token(&answer, scopes.clone())
        }))
    }

    /// Introspects the token, if there is an endpoint. Only messages use the result; failures are ignored.
    async fn introduce(&self, client: &Upstream, token: &AccessToken) {
        let Some(url) = self.token_info_url.as_deref().filter(|_| self.name().is_none()) else { return };
        let fields = [("token", token.value.expose().as_str()), ("token_type_hint", ACCESS_TOKEN)];
        let call = Call { basic: self.client.as_ref(), ..Call::form(url, &fields) };
        let Ok(Ok(answer)) = tokio::time::timeout(INTRODUCTION, client.once(&call)).await else { return };
        let name =
            answer.json().ok().filter(|known: &Introduced| known.active).and_then(|known| known.username);
        let fits = |name: &String| name.len() < 1024 && name.bytes().all(|b| b.is_ascii_graphic());
        *self.name.lock().unwrap_or_else(PoisonError::into_inner) = name.filter(fits);
    }

    fn refused(&self, fault: Fault, subject: &Secret<String>) -> SourceError {
        let Fault::Denied(denial) = &fault else { return fault.into() };
        if denial.is_transient() {
            return fault.into();
        }
        let why = self.explain(denial, subject);
        SourceError::refused(Reason::new(format!("{denial}: {why}"), why.remedy))
    }

    /// Handles the codes of RFC 6749 section 5.2 and RFC 8693 section 2.2.2, as Google uses them.
    fn explain(&self, denial: &Denial, subject: &Secret<String>) -> Reason {
        let (audience, place) = (&self.audience, self.subject.place());
        let text = match denial.code.as_deref() {
            Some("invalid_grant" | "invalid_token") => match expired(subject) {
                Some(end) => {
                    return format!("the token from {place} expired at {end}; it has to be renewed there")
                        .into();
                }
                None => format!(
                    "the token from {place} is not accepted by {audience}: its issuer, audience or signature is not \
                     what the provider expects, or it has expired"
                ),
            },
            Some("unauthorized_client" | "access_denied") => {
                format!("the attribute condition of {audience} does not let the token from {place} in")
            }
            Some("invalid_target") => format!("there is no provider {audience}, or it is disabled"),
            Some("invalid_client") => return "its client_id and client_secret are not accepted".into(),
            _ => format!("the token from {place} was not exchanged for {audience}"),
        };
        Reason::new(text, Remedy::InspectProvider(audience.clone()))
    }
}

/// When a JWT expired by this machine's clock. Unverified: it explains a refusal and decides nothing.
fn expired(subject: &Secret<String>) -> Option<String> {
    let end = jwt::expiry(&jwt::unverified_claims(subject.expose())?)?;
    let over = end <= SystemTime::now();
    over.then(|| OffsetDateTime::from(end).format(&Rfc3339).ok()).flatten()
}

fn is_workforce(audience: &str) -> bool {
    audience.contains("/workforcePools/")
}
