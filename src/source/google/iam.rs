//! Tokens of another service account by the IAM Credentials API, on top of any base credential.
//!
//! `generateAccessToken` and `generateIdToken` of
//! <https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts>.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::failure::{Reason, Remedy};
use crate::quote;
use crate::secret::Secret;
use crate::source::expiry::{id_token_expiry, life, remaining};
use crate::source::google::Credential;
use crate::source::google::names::is_account_in_path;
use crate::source::google::service_account::assertion::{
    Redeemed, delegation, delegation_refused, redeem, signed_by_the_clock,
};
use crate::source::http::client::Upstream;
use crate::source::http::fault::{Denial, Fault};
use crate::source::http::request::{Answer, Call};
use crate::source::{AccessRequest, SourceError};
use crate::token::{AccessToken, Deadline, IdentityToken, MintId};

/// Longest lifetime, in seconds, that IAM grants without an organisation policy.
const LONGEST_WITHOUT_POLICY: u64 = 3600;

/// The parameters of calls to the IAM Credentials API.
#[derive(Clone, Copy, Debug)]
pub(super) struct Iam<'a> {
    pub(super) upstream: &'a Arc<Upstream>,
    pub(super) endpoint: &'a str,
    /// The endpoint that exchanges assertions, for domain-wide delegation.
    pub(super) token_uri: &'a str,
    pub(super) base: &'a Arc<Credential>,
    pub(super) account: &'a str,
    /// The chain from the base to `account`; each account may create tokens of the next.
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
    pub(super) async fn request_token(&self, ask: &AccessRequest) -> Result<AccessToken, SourceError> {
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

    /// Domain-wide delegation without a key: IAM signs the assertion as the account.
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

    pub(super) async fn request_identity(&self, audience: &str) -> Result<IdentityToken, SourceError> {
        let body = json!({ "audience": audience, "includeEmail": true });
        let answer = self.call("generateIdToken", body).await?;
        let value = answer.json::<GeneratedId>()?.token;
        let expires = id_token_expiry(value.expose(), answer.sent, answer.date)?;
        Ok(IdentityToken { value, expires, id: MintId::random() })
    }

    /// Calls with the base token. On a 401 upstream no longer accepts that token (withdrawn, or cut short by
    /// a policy); a new one is minted and tried once.
    async fn call(&self, method: &str, mut body: Value) -> Result<Answer, SourceError> {
        if !self.delegates.is_empty() {
            let name = |account: &String| format!("projects/-/serviceAccounts/{account}");
            body["delegates"] = self.delegates.iter().map(name).collect();
        }
        // Only access tokens are requested with a lifetime.
        let life = body["lifetime"].as_str().and_then(|life| life.trim_end_matches('s').parse::<u64>().ok());
        let long = life.is_some_and(|life| life > LONGEST_WITHOUT_POLICY);
        self.ask(method, &body).await?.map_err(|fault| self.refused(fault, long))
    }

    /// Disables a dedicated service account, which ends all its tokens at once:
    /// `projects.serviceAccounts.disable` of
    /// <https://cloud.google.com/iam/docs/reference/rest/v1/projects.serviceAccounts/disable>. There is no
    /// other way to end a service account's token; taking back a user's token would end this machine's login,
    /// so kfp-creds never does that (`docs/security/threats.md`).
    ///
    /// `endpoint` is that of the IAM API, not of the IAM Credentials API.
    pub(super) async fn disable(&self) -> Result<(), SourceError> {
        let account = self.account;
        match self.ask("disable", &json!({})).await? {
            Ok(_) => Ok(()),
            Err(Fault::Denied(denial)) if denial.status == 403 => Err(SourceError::refused(format!(
                "{denial}: {} may not disable {account}; grant it roles/iam.serviceAccountAdmin there, or disable it \
                 yourself: gcloud iam service-accounts disable {account}",
                self.base.email().as_deref().unwrap_or("the host's account"),
            ))),
            Err(Fault::Denied(denial)) if denial.status == 404 => Err(missing(&denial, account)),
            Err(fault) => Err(fault.into()),
        }
    }

    pub(super) async fn ask(&self, method: &str, body: &Value) -> Result<Result<Answer, Fault>, SourceError> {
        if !is_account_in_path(self.account) {
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

    /// The caller's identity, for messages.
    fn caller(&self) -> String {
        let known = self.base.principal().or_else(|| self.base.email());
        known.unwrap_or_else(|| "the host's account".into())
    }

    fn may_not_impersonate(&self, denial: &Denial) -> SourceError {
        let (account, caller) = (self.account, self.caller());
        let (role, text) = match self.base.principal() {
            Some(_) => (
                "roles/iam.workloadIdentityUser",
                format!(
                    "{denial}: {caller} may not impersonate {account}; grant it roles/iam.workloadIdentityUser there"
                ),
            ),
            None => (
                "roles/iam.serviceAccountTokenCreator",
                format!(
                    "{denial}: {caller} may not impersonate {account}; grant it roles/iam.serviceAccountTokenCreator there"
                ),
            ),
        };
        let to = self.base.grantee();
        SourceError::refused(Reason::new(text, Remedy::GrantRole { role, account: account.into(), to }))
    }

    /// Turns a fault into an error; `long`: the requested lifetime exceeds an hour.
    fn refused(&self, fault: Fault, long: bool) -> SourceError {
        let Fault::Denied(denial) = &fault else { return fault.into() };
        let account = self.account;
        match (denial.status, denial.reason.as_deref()) {
            (403, Some("SERVICE_DISABLED")) => SourceError::refused(Reason::advice(format!(
                "{denial}: the IAM Credentials API is off in the project that pays for the call; run `gcloud services enable iamcredentials.googleapis.com`"
            ))),
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
            (403, _) => self.may_not_impersonate(denial),
            (404, _) => missing(denial, account),
            _ => fault.into(),
        }
    }
}

fn missing(denial: &Denial, account: &str) -> SourceError {
    let text = format!("{denial}: there is no service account {account}");
    SourceError::refused(Reason::new(text, Remedy::InspectAccount(account.into())))
}
