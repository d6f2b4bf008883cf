//! What a service-account key signs, other than the exchange that yup-oauth2 does.
//!
//! * ID tokens: the JWT-bearer grant (RFC 7523) with `target_audience`.
//! * Domain-wide delegation: the same grant with `sub`, the user that the account acts for.
//! * Self-signed access tokens (<https://google.aip.dev/auth/4111>): the JWT is the token, and no server is
//!   called. Universes other than googleapis.com accept nothing else, because they do not exchange
//!   assertions. In googleapis.com they are used if the scope is an *audience*, the URL of one service
//!   (`https://pubsub.googleapis.com/`), for which there is no exchange either. Their expiry is the one we
//!   sign, by Google's clock if an earlier answer showed it; otherwise a wrong local clock yields a token
//!   that is refused.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::secret::Secret;
use crate::source::expiry::id_token_expiry;
use crate::source::google::service_account::ServiceAccount;
use crate::source::http::client::Upstream;
use crate::source::http::fault::Fault;
use crate::source::http::request::Call;
use crate::source::jwt;
use crate::source::{AccessRequest, SourceError};
use crate::token::{AccessToken, Deadline, IdentityToken, MintId, Now, Scopes};

pub(crate) const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// Longest lifetime of an assertion or a self-signed token that Google accepts, in seconds.
pub(crate) const ASSERTION_LIFE: u64 = 3600;

/// The token endpoint's answer to an assertion with `target_audience`.
#[derive(Deserialize)]
struct IdTokenResponse {
    id_token: Secret<String>,
}

impl ServiceAccount {
    /// An access token for exactly the scopes of `ask`, or for the audience given instead of scopes.
    pub(crate) async fn request_token(
        &self,
        upstream: &Arc<Upstream>,
        ask: &AccessRequest,
    ) -> Result<AccessToken, SourceError> {
        match (&ask.subject, audience(&ask.scopes)?) {
            (Some(_), _) if !self.exchanges() => Err(SourceError::refused(
                "domain-wide delegation (subject) exists in the universe googleapis.com only; leave it out",
            )),
            (Some(_), Some(_)) => Err(SourceError::refused(
                "a token for an audience cannot stand in for a subject; name scopes, or leave the subject out",
            )),
            (Some(subject), None) => self.stand_in(upstream, subject, &ask.scopes).await,
            (None, Some(audience)) => self.self_signed(upstream, ("aud", audience), ask),
            (None, None) if !self.exchanges() => {
                self.self_signed(upstream, ("scope", &ask.scopes.to_string()), ask)
            }
            (None, None) => self.exchange(upstream, &ask.scopes).await,
        }
    }

    fn self_signed(
        &self,
        upstream: &Upstream,
        (claim, value): (&str, &str),
        ask: &AccessRequest,
    ) -> Result<AccessToken, SourceError> {
        let life = ask.lifetime.clamp(1, ASSERTION_LIFE);
        let (now, signed) = (Now::read(), upstream.skew().now());
        let issued = jwt::seconds(signed);
        let mut claims =
            json!({"iss": self.email(), "sub": self.email(), "iat": issued, "exp": issued + life});
        claims[claim] = json!(value);
        // Claims have whole seconds: cut the fraction off.
        let cut = Duration::from_nanos(u64::from(
            signed.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().subsec_nanos(),
        ));
        let expires = Deadline::after(now, Duration::from_secs(life) - cut);
        Ok(AccessToken::new(self.sign(&claims)?, expires, ask.scopes.clone()))
    }

    /// A token of `subject`, a user of a domain that allows the account to act for its users.
    async fn stand_in(
        &self,
        upstream: &Upstream,
        subject: &str,
        scopes: &Scopes,
    ) -> Result<AccessToken, SourceError> {
        let claims = |now| delegation(self.email(), self.token_uri(), subject, scopes, now);
        self.assert(upstream, claims, scopes).await.map_err(|fault| self.undelegated(fault, subject))
    }

    /// An exchange without yup, which would sign by this machine's clock.
    pub(crate) async fn exchange_by_their_clock(
        &self,
        upstream: &Upstream,
        scopes: &Scopes,
    ) -> Result<AccessToken, SourceError> {
        let claims = |now| {
            let issued = jwt::seconds(now);
            json!({
                "iss": self.email(), "aud": self.token_uri(), "scope": scopes.to_string(),
                "iat": issued, "exp": issued + ASSERTION_LIFE,
            })
        };
        self.assert(upstream, claims, scopes).await.map_err(|why| match why {
            Redeemed::Fault(fault) => self.refused(fault),
            Redeemed::Useless(error) => error,
        })
    }

    async fn assert(
        &self,
        upstream: &Upstream,
        claims: impl Fn(SystemTime) -> Value,
        scopes: &Scopes,
    ) -> Result<AccessToken, Redeemed> {
        let attempt = || async {
            let assertion = self.sign(&claims(upstream.skew().now()))?;
            redeem(upstream, self.token_uri(), &assertion, scopes).await
        };
        signed_by_the_clock(upstream, attempt).await
    }

    fn undelegated(&self, fault: Redeemed, subject: &str) -> SourceError {
        match fault {
            Redeemed::Fault(fault) => delegation_refused(self.email(), subject, fault),
            Redeemed::Useless(error) => error,
        }
    }

    /// An ID token of the account itself. yup has no such exchange, so the assertion is built here.
    pub(crate) async fn request_identity(
        &self,
        upstream: &Upstream,
        audience: &str,
    ) -> Result<IdentityToken, SourceError> {
        let attempt = || async {
            let issued = jwt::seconds(upstream.skew().now());
            let assertion = self.sign(&json!({
                "iss": self.email(),
                "sub": self.email(),
                "aud": self.token_uri(),
                "iat": issued,
                "exp": issued + ASSERTION_LIFE,
                "target_audience": audience,
            }))?;
            let fields = [("grant_type", JWT_BEARER), ("assertion", assertion.expose())];
            upstream.send(&Call::form(self.token_uri(), &fields)).await.map_err(Redeemed::Fault)
        };
        let answer = signed_by_the_clock(upstream, attempt).await.map_err(|why| match why {
            Redeemed::Fault(fault) => self.refused(fault),
            Redeemed::Useless(error) => error,
        })?;
        let value = answer.json::<IdTokenResponse>()?.id_token;
        let expires = id_token_expiry(value.expose(), answer.sent, answer.date)?;
        Ok(IdentityToken { value, expires, id: MintId::random() })
    }
}

/// Runs `attempt`, which signs by the upstream's clock as far as it is known. Retries once if the signature
/// was refused and the answer showed that the clock was wrong.
pub(crate) async fn signed_by_the_clock<T, F>(
    upstream: &Upstream,
    attempt: impl Fn() -> F,
) -> Result<T, Redeemed>
where
    F: Future<Output = Result<T, Redeemed>>,
{
    let ahead = upstream.skew().ahead();
    match attempt().await {
        Err(Redeemed::Fault(fault)) if fault.is_invalid_grant() && upstream.skew().moved_from(ahead) => {
            attempt().await
        }
        settled => settled,
    }
}

/// The claims with which `account` asks for a token of `subject`.
pub(crate) fn delegation(
    account: &str,
    token_uri: &str,
    subject: &str,
    scopes: &Scopes,
    now: SystemTime,
) -> Value {
    let issued = jwt::seconds(now);
    json!({
        "iss": account, "sub": subject, "aud": token_uri, "scope": scopes.to_string(),
        "iat": issued, "exp": issued + ASSERTION_LIFE,
    })
}

/// Why an assertion was not exchanged for a token.
#[derive(Debug)]
pub(crate) enum Redeemed {
    Fault(Fault),
    Useless(SourceError),
}

impl From<SourceError> for Redeemed {
    fn from(error: SourceError) -> Self {
        Self::Useless(error)
    }
}

/// Exchanges a signed assertion for an access token.
pub(crate) async fn redeem(
    upstream: &Upstream,
    token_uri: &str,
    assertion: &Secret<String>,
    scopes: &Scopes,
) -> Result<AccessToken, Redeemed> {
    let fields = [("grant_type", JWT_BEARER), ("assertion", assertion.expose())];
    let answer = upstream.send(&Call::form(token_uri, &fields)).await.map_err(Redeemed::Fault)?;
    Ok(answer.granted()?.into_access_token(&answer, scopes.clone())?)
}

pub(crate) fn delegation_refused(account: &str, subject: &str, fault: Fault) -> SourceError {
    match &fault {
        Fault::Denied(denial) if denial.is("unauthorized_client") || denial.is("access_denied") => {
            SourceError::refused(format!(
                "{denial}: {account} may not stand in for {subject} with these scopes; a Workspace administrator \
                 allows it under Security > API controls > Domain-wide delegation"
            ))
        }
        Fault::Denied(denial) if denial.is("invalid_grant") => SourceError::refused(format!(
            "{denial}: there is no {subject} in a domain that trusts {account}, the account is disabled, or this \
             machine's clock is wrong"
        )),
        _ => fault.into(),
    }
}

/// The audience given instead of scopes: the URL of one Google service, and no other scope with it.
/// `https://mail.google.com/` and similar are old scopes, not audiences.
fn audience(scopes: &Scopes) -> Result<Option<&str>, SourceError> {
    let is_audience = |scope: &&str| {
        let host = scope.strip_prefix("https://").and_then(|rest| rest.strip_suffix('/'));
        host.is_some_and(|host| {
            host != "www.googleapis.com" && host.ends_with(".googleapis.com") && !host.contains('/')
        })
    };
    let Some(found) = scopes.iter().find(is_audience) else { return Ok(None) };
    if scopes.iter().count() > 1 {
        return Err(SourceError::refused(format!(
            "{found} is an audience and has to be the only scope of its identity"
        )));
    }
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audience_is_a_service_and_stands_alone() {
        let of = |list: &str| audience(&Scopes::parse(list)).map(|found| found.map(String::from));
        assert_eq!(
            of("https://pubsub.googleapis.com/").unwrap().as_deref(),
            Some("https://pubsub.googleapis.com/")
        );
        for scope in [
            "https://www.googleapis.com/auth/bigquery",
            "https://mail.google.com/",
            "https://www.googleapis.com/",
            "https://pubsub.googleapis.com/x/",
            "openid",
        ] {
            assert_eq!(of(scope).unwrap(), None, "{scope}");
        }
        assert!(matches!(of("openid https://pubsub.googleapis.com/"), Err(SourceError::Refused(_))));
    }
}
