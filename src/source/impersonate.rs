//! Tokens of another service account, by the IAM Credentials API, on top of either base credential.
//!
//! `generateAccessToken` and `generateIdToken` of
//! <https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts>.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::quote;
use crate::secret::Secret;
use crate::source::assertion::{Redeemed, delegation, delegation_refused, redeem, signed_by_the_clock};
use crate::source::clock::RECONCILED;
use crate::source::credential::Credential;
use crate::source::google::{id_token_expiry, life};
use crate::source::upstream::{Answer, Call, Fault, Upstream};
use crate::source::{AccessRequest, SourceError};
use crate::token::{AccessToken, Deadline, IdentityToken, MintId};

/// Seconds that IAM gives anybody who may impersonate.
const LONGEST_WITHOUT_POLICY: u64 = 3600;

/// What a call to the IAM Credentials API needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Iam<'a> {
    pub(super) upstream: &'a Arc<Upstream>,
    pub(super) endpoint: &'a str,
    /// Where assertions are exchanged, for domain-wide delegation.
    pub(super) token_uri: &'a str,
    pub(super) base: &'a Arc<Credential>,
    pub(super) account: &'a str,
    /// Accounts between the base and `account`, each of which may make tokens of the next.
    pub(super) delegates: &'a [String],
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GeneratedAccess {
    access_token: Secret<String>,
    expire_time: String,
}

#[derive(Debug, Deserialize)]
struct GeneratedId {
    token: Secret<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Signed {
    signed_jwt: Secret<String>,
}

impl Iam<'_> {
    pub(super) async fn access(&self, ask: &AccessRequest) -> Result<AccessToken, SourceError> {
        if let Some(subject) = &ask.subject {
            return self.stand_in(subject, ask).await;
        }
        let scopes: Vec<&str> = ask.scopes.iter().collect();
        let body = json!({ "scope": scopes, "lifetime": format!("{}s", ask.lifetime) });
        let answer = self.call("generateAccessToken", body).await?;
        let generated: GeneratedAccess = answer.json()?;
        let value = generated.access_token;
        if value.expose().is_empty() {
            return Err(SourceError::transient(format!("{} gave an empty token; try again", answer.host)));
        }
        let end = OffsetDateTime::parse(&generated.expire_time, &Rfc3339).map_err(|_| {
            SourceError::transient("the IAM Credentials API gave no readable expiry; try again")
        })?;
        let left = remaining(end.into(), answer.sent.wall, answer.date, Duration::from_secs(ask.lifetime));
        let expires = Deadline::after(answer.sent, life(left)?);
        Ok(AccessToken::new(value, expires, ask.scopes.clone()))
    }

    /// Domain-wide delegation without a key: IAM signs the assertion in the account's name.
    async fn stand_in(&self, subject: &str, ask: &AccessRequest) -> Result<AccessToken, SourceError> {
        let attempt = || async {
            let claims =
                delegation(self.account, self.token_uri, subject, &ask.scopes, self.upstream.skew().now());
            let answer = self.call("signJwt", json!({ "payload": claims.to_string() })).await?;
            let signed: Signed = answer.json()?;
            redeem(self.upstream, self.token_uri, &signed.signed_jwt, &ask.scopes).await
        };
        signed_by_the_clock(self.upstream, attempt).await.map_err(|why| match why {
            Redeemed::Fault(fault) => delegation_refused(self.account, subject, fault),
            Redeemed::Useless(error) => error,
        })
    }

    pub(super) async fn identity(&self, audience: &str) -> Result<IdentityToken, SourceError> {
        let body = json!({ "audience": audience, "includeEmail": true });
        let answer = self.call("generateIdToken", body).await?;
        let value = answer.json::<GeneratedId>()?.token;
        let expires = id_token_expiry(value.expose(), &answer)?;
        Ok(IdentityToken { value, expires, id: MintId::random() })
    }

    /// One call with the base token. A 401 means that upstream does not take that token any more (withdrawn,
    /// or cut short by a policy), so it is made anew, once.
    async fn call(&self, method: &str, mut body: Value) -> Result<Answer, SourceError> {
        if !self.delegates.is_empty() {
            let name = |account: &String| format!("projects/-/serviceAccounts/{account}");
            body["delegates"] = self.delegates.iter().map(name).collect();
        }
        // Only an access token is asked for with a lifetime.
        let life = body["lifetime"].as_str().and_then(|life| life.trim_end_matches('s').parse::<u64>().ok());
        let long = life.is_some_and(|life| life > LONGEST_WITHOUT_POLICY);
        self.ask(method, &body).await?.map_err(|fault| self.refused(fault, long))
    }

    pub(super) async fn ask(&self, method: &str, body: &Value) -> Result<Result<Answer, Fault>, SourceError> {
        if !is_account(self.account) {
            return Err(SourceError::refused("the service account to impersonate is not an e-mail address"));
        }
        let url = format!("{}/v1/projects/-/serviceAccounts/{}:{method}", self.endpoint, self.account);
        let mut again = true;
        let upstream = &self.base.client(self.upstream)?;
        let quota_project = self.base.quota_project();
        loop {
            let token = self.base.base(self.upstream).await?;
            let call = Call {
                bearer: Some(&token.value),
                quota_project: quota_project.as_deref(),
                ..Call::json(&url, body)
            };
            match upstream.send(&call).await {
                Err(Fault::Denied(denial)) if denial.status == 401 && again => {
                    self.base.forget_base(&token);
                    again = false;
                }
                outcome => return Ok(outcome),
            }
        }
    }

    /// Whose call it is, for messages.
    fn caller(&self) -> String {
        let known = self.base.principal().or_else(|| self.base.email());
        known.unwrap_or_else(|| "the host's account".into())
    }

    /// `long`: a life beyond an hour was asked for.
    fn refused(&self, fault: Fault, long: bool) -> SourceError {
        let Fault::Denied(denial) = &fault else { return fault.into() };
        let account = self.account;
        match (denial.status, denial.reason.as_deref()) {
            (403, Some("SERVICE_DISABLED")) => SourceError::refused(format!(
                "{denial}: the IAM Credentials API is off in the project that pays for the call; run `gcloud services enable iamcredentials.googleapis.com`"
            )),
            (403, Some("USER_PROJECT_DENIED")) => SourceError::refused(format!(
                "{denial} (USER_PROJECT_DENIED): {} may not charge the quota project{}; grant it \
                 roles/serviceusage.serviceUsageConsumer on that project, or name another one (gcloud auth \
                 application-default set-quota-project, quota_project_id in the credential file)",
                self.caller(),
                self.base
                    .quota_project()
                    .map(|project| format!(" {}", quote::name(&project)))
                    .unwrap_or_default(),
            )),
            (
                403,
                Some(
                    "SECURITY_POLICY_VIOLATED"
                    | "RESOURCES_NOT_IN_SAME_SERVICE_PERIMETER"
                    | "NO_MATCHING_ACCESS_LEVEL",
                ),
            ) => SourceError::refused(format!(
                "{denial} (SECURITY_POLICY_VIOLATED): a perimeter of VPC Service Controls keeps {} from {account}; its \
                     administrator can let this machine in by an access level or an ingress rule",
                self.caller(),
            )),
            (403, Some(reason @ ("CONSUMER_INVALID" | "BILLING_DISABLED" | "PROJECT_DELETED"))) => {
                SourceError::refused(format!(
                    "{denial} ({reason}): the project that pays for the call cannot be charged; look at the quota project"
                ))
            }
            (403, _) if denial.is_transient() => fault.into(),
            (400, _) if long => SourceError::refused(format!(
                "{denial}: {account} may not have tokens that live longer than an hour unless the organisation's policy \
                 constraints/iam.allowServiceAccountCredentialLifetimeExtension names it; shorten lifetime to 1h, or have it added"
            )),
            (403, _) if self.base.principal().is_some() => SourceError::refused(format!(
                "{denial}: {} may not impersonate {account}; grant it roles/iam.workloadIdentityUser there",
                self.base.principal().unwrap_or_default(),
            )),
            (403, _) => SourceError::refused(format!(
                "{denial}: {} may not impersonate {account}; grant it roles/iam.serviceAccountTokenCreator there",
                self.base.email().as_deref().unwrap_or("the host's account"),
            )),
            (404, _) => SourceError::refused(format!("{denial}: there is no service account {account}")),
            _ => fault.into(),
        }
    }
}

/// An e-mail address or a numeric id; it becomes part of a path.
pub(super) fn is_account(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'@' | b'.' | b'-' | b'_');
    !name.is_empty() && name.bytes().all(fits) && name.bytes().any(|b| b.is_ascii_alphanumeric())
}

/// How long a token lives that ends at `end` by the server's clock, when ours says `here` and the server's
/// said `there`. The two are reconciled up to [`RECONCILED`]; the answer never exceeds `asked`, so that neither a
/// forged expiry nor a clock that is behind can inflate it.
pub(super) fn remaining(
    end: SystemTime,
    here: SystemTime,
    there: Option<SystemTime>,
    asked: Duration,
) -> Duration {
    let apart = |there: SystemTime| there.duration_since(here).unwrap_or_else(|behind| behind.duration());
    let off = there.map(apart).unwrap_or_default();
    let clock = there.filter(|_| off <= RECONCILED).unwrap_or(here);
    end.duration_since(clock).unwrap_or_default().min(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    #[test]
    fn clocks_are_reconciled_and_nothing_is_inflated() {
        let left = |end, here, there: Option<u64>, asked| {
            remaining(at(end), at(here), there.map(at), Duration::from_secs(asked)).as_secs()
        };
        assert_eq!(left(4600, 1000, Some(1000), 3600), 3600, "clocks agree");
        assert_eq!(left(4600, 1590, Some(1000), 3600), 3600, "ours is ahead: the server's counts");
        assert_eq!(left(4600, 410, Some(1000), 3600), 3600, "ours is behind: the server's counts");
        assert_eq!(left(1300, 1305, Some(1000), 300), 300, "past by our clock, not by the server's");
        assert_eq!(left(4600, 410, None, 3600), 3600, "behind, no date: never more than was asked");
        assert_eq!(left(4600, 1590, None, 3600), 3010, "ahead, no date: what our clock leaves");
        assert_eq!(left(4600, 9000, Some(1000), 3600), 0, "hours apart: no token");
        assert_eq!(left(900, 1000, Some(1000), 3600), 0, "expired when it came");
        assert_eq!(left(90_000_000, 1000, Some(1000), 3600), 3600, "forged into the future");
        assert!(remaining(SystemTime::UNIX_EPOCH, at(0), None, HOUR).is_zero());
    }

    #[test]
    fn an_account_is_nothing_that_changes_a_path() {
        assert!(is_account("runner@my-project.iam.gserviceaccount.com") && is_account("1234567890"));
        for bad in ["", "..", ".", "a/b", "a:b", "a?b", "a%2fb", "a b", "ä@b"] {
            assert!(!is_account(bad), "{bad}");
        }
    }
}
