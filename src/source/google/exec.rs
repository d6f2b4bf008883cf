//! The exec provider: an external command that returns tokens, for sources without built-in support.
//! `docs/reference/providers.md` documents the command's input and accepted answers, which include those of
//! executable-sourced credentials (AIP-4117).

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::failure::Reason;
use crate::quote;
use crate::source::command::{HelperCommand, environment};
use crate::source::expiry::life;
use crate::source::google::configured::Exec;
use crate::source::google::external_account::{Good, SubjectAnswer, brought, span};
use crate::source::variables::Variables;
use crate::source::{AccessRequest, SourceError, jwt};
use crate::token::{AccessToken, Deadline, IdentityToken, MintId, Now, Scopes};

/// gcloud renews a token that has less than 3 minutes and 45 seconds left.
const BARE_LIFE: Duration = Duration::from_secs(225);

impl Exec {
    pub(super) fn command(&self, variables: &Variables) -> HelperCommand {
        HelperCommand {
            program: self.program.clone(),
            arguments: self.arguments.clone(),
            environment: environment(&self.pass, variables),
            timeout: self.timeout,
        }
    }
}

/// A command that returns access and ID tokens itself.
#[derive(Debug)]
pub(super) struct Provider {
    command: HelperCommand,
    /// The account named by the last answer.
    account: Mutex<Option<String>>,
    /// The account at the last check.
    seen: Mutex<Option<String>>,
}

impl Provider {
    pub(super) fn new(command: HelperCommand) -> Self {
        Self { command, account: Mutex::default(), seen: Mutex::default() }
    }

    pub(super) fn email(&self) -> Option<String> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// True if the last answer names a different account than at the last check.
    pub(super) fn switched(&self) -> bool {
        let now = self.email();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *seen, now.clone());
        before.is_some() && before != now
    }

    pub(super) fn patience(&self) -> Duration {
        self.command.timeout
    }

    fn name(&self) -> String {
        quote::path(&self.command.program)
    }

    pub(super) async fn request_token(&self, ask: &AccessRequest) -> Result<AccessToken, SourceError> {
        let scopes: Vec<&str> = ask.scopes.iter().collect();
        let wanted = json!({
            "version": 1, "kind": "access_token", "scopes": scopes, "lifetime_seconds": ask.lifetime,
        });
        let (got, now) = self.run(&wanted).await?;
        let name = self.name();
        match got.good {
            Good::Access | Good::Bare => {}
            Good::Identity | Good::Subject => {
                return Err(SourceError::refused(format!(
                    "the command {name} returned a token to exchange; say in credentials.workload_identity_provider \
                     who exchanges it"
                )));
            }
        }
        let claimed = got.life.as_ref().and_then(span).filter(|life| !life.is_zero());
        let expires = match (got.expires, claimed) {
            (Some(end), _) => deadline(end, now)?,
            // A bare token has no stated lifetime: assume the least that a token printed by gcloud has left.
            (None, None) if got.good == Good::Bare => Deadline::after(now, BARE_LIFE),
            // Count from before the command ran: too short rather than too long.
            (None, Some(claimed)) => Deadline::after(now, life(claimed)?),
            (None, None) => {
                return Err(SourceError::refused(format!(
                    "the command {name} did not say how long its token lives (expiration_time, or expires_in as a number), and \
                     such a token is not used"
                )));
            }
        };
        // The command was told the wanted scopes, but its answer does not state the granted ones.
        Ok(AccessToken::new(got.token, expires, Scopes::default()))
    }

    /// Accepts a token for exactly this audience only: another token would be valid at some other service.
    pub(super) async fn request_identity(&self, audience: &str) -> Result<IdentityToken, SourceError> {
        let (got, now) = self.run(&json!({"version": 1, "kind": "id_token", "audience": audience})).await?;
        let name = self.name();
        let claims = jwt::unverified_claims(got.token.expose())
            .filter(|_| matches!(got.good, Good::Identity | Good::Bare));
        let claims = claims.ok_or_else(|| {
            SourceError::refused(Reason::advice(format!(
                "the command {name} returns no ID tokens; name a service account with --impersonate"
            )))
        })?;
        if !is_for(&claims["aud"], audience) {
            return Err(SourceError::refused(format!(
                "the command {name} returned an ID token for another audience"
            )));
        }
        let end = jwt::expiry(&claims).ok_or_else(|| {
            SourceError::refused(format!("the command {name} returned an ID token without an expiry"))
        })?;
        let end = got.expires.map_or(end, |said| said.min(end));
        Ok(IdentityToken { value: got.token, expires: deadline(end, now)?, id: MintId::random() })
    }

    async fn run(&self, wanted: &Value) -> Result<(SubjectAnswer, Now), SourceError> {
        let now = Now::read();
        let got = brought(&self.command.run(&wanted.to_string(), &[]).await?, &self.name(), true)?;
        if let Some(account) = &got.account {
            *self.account.lock().unwrap_or_else(PoisonError::into_inner) = Some(account.clone());
        }
        Ok((got, now))
    }
}

/// The command runs on this machine, so its expiry is compared with this machine's clock.
fn deadline(end: SystemTime, now: Now) -> Result<Deadline, SourceError> {
    Ok(Deadline::after(now, life(end.duration_since(now.wall).unwrap_or_default())?))
}

/// RFC 7519 section 4.1.3: one audience, or a list. A longer list makes the token valid elsewhere too.
fn is_for(aud: &Value, audience: &str) -> bool {
    aud == audience || aud.as_array().is_some_and(|all| all.len() == 1 && all[0] == audience)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_gets_only_listed_variables() {
        let variables: Variables = [("PATH", "/bin"), ("SECRET", "s"), ("VAULT_ADDR", "v"), ("EMPTY", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into_iter()
            .collect();
        let exec = Exec {
            program: "a".into(),
            arguments: vec![],
            pass: vec!["VAULT_ADDR".into(), "EMPTY".into(), "UNSET".into()],
            timeout: Duration::from_secs(1),
        };
        let names: Vec<_> = exec.command(&variables).environment.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["PATH", "VAULT_ADDR"]);
    }

    #[test]
    fn the_audience_must_be_a_single_one() {
        for (aud, fits) in [
            (json!("a"), true),
            (json!(["a"]), true),
            (json!(["a", "b"]), false),
            (json!("b"), false),
            (json!(null), false),
        ] {
            assert_eq!(is_for(&aud, "a"), fits, "{aud}");
        }
    }
}
