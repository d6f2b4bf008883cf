//! Which Google tokens a caller may have (scopes, audience, rate), and their records in audit log and
//! metrics.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::repeats::{ServedToken, TokenReply};
use super::{Caller, Server};
use crate::cloud::Cloud;
use crate::failure::Reason;
use crate::metadata::{self, AccessAsk, IdentityAsk, Reply, Service, TokenFailure};
use crate::mint::{Fresh, MintFailure};
use crate::record::{For, Requestor};
use crate::source::IdentityRequest;
use crate::token::{AccessToken, CLOUD_PLATFORM, HandedOut, Issued, Now, Scopes, TokenKind};
use crate::workload::Identity;

pub(super) const SLOW: &str = "the token is still being minted: ask again";

/// Why a caller gets no token.
#[derive(Debug)]
pub(super) struct TokenRefusal(pub(super) TokenFailure, pub(super) Reason);

impl Server {
    pub(super) async fn answer_token(
        &self,
        caller: &Caller,
        ask: &AccessAsk,
        now: Now,
        deadline: Instant,
    ) -> TokenReply {
        match self.try_access(caller, ask, now, deadline).await {
            Ok(answer) => answer,
            Err(no) => self.refuse(caller, None, &no).into(),
        }
    }

    pub(super) async fn answer_identity(
        &self,
        caller: &Caller,
        ask: &IdentityAsk,
        now: Now,
        deadline: Instant,
    ) -> Reply {
        match self.try_identity(caller, ask, now, deadline).await {
            Ok(reply) => reply,
            Err(no) => self.refuse(caller, Some(&ask.audience), &no),
        }
    }

    async fn try_access(
        &self,
        caller: &Caller,
        ask: &AccessAsk,
        now: Now,
        deadline: Instant,
    ) -> Result<TokenReply, TokenRefusal> {
        let (identity, container) = caller.granted().ok_or_else(relay_has_no_identity)?;
        self.rates
            .admit(identity, now.mono)
            .map_err(|left| TokenRefusal(TokenFailure::TooMany, rate_exceeded(identity, left)))?;
        let scopes = match &ask.scopes {
            Some(asked) if ask.enforced => exact_scopes(identity, asked),
            asked => effective_scopes(identity, asked.as_ref()),
        };
        let scopes = scopes.map_err(|why| TokenRefusal(TokenFailure::AccessRefused, why.into()))?;
        let mut request = self.mint.request(identity, container, Some(scopes));
        request.service_account.clone_from(&ask.account.service_account);
        // Saves an upstream call whose token would be refused; the check of the token below decides.
        if ask.enforced && !self.mint.narrows(&request) {
            return Err(TokenRefusal(TokenFailure::AccessRefused, self.unnarrowed(&request.scopes).into()));
        }
        let (token, calm, now) = match self.mint.cached(&request, requestor(caller), now) {
            Some(Fresh { token, calm }) => (token, Some(calm), now),
            None => {
                let made = self.mint.access(&request, requestor(caller), time_left(deadline)).await;
                (self.minted(Cloud::Google, caller, made)?, None, Now::read())
            }
        };
        if ask.enforced && token.scopes != request.scopes {
            return Err(TokenRefusal(TokenFailure::AccessRefused, self.unnarrowed(&request.scopes).into()));
        }
        let reply = self.give_access(caller, ask, &request.scopes, &token, now);
        let given = || ServedToken::Access(ask.clone(), request.scopes, Arc::downgrade(&token));
        Ok(TokenReply { reply, again: calm.map(|calm| (given(), calm)) })
    }

    pub(super) fn give_access(
        &self,
        caller: &Caller,
        ask: &AccessAsk,
        scopes: &Scopes,
        token: &AccessToken,
        now: Now,
    ) -> Reply {
        self.hand_out(caller, &ask.account.email, For::Scopes(scopes), &token.about());
        metadata::access_reply(ask, token, now)
    }

    /// The reason for a refusal: the credential yields tokens, but with scopes that are fixed elsewhere.
    fn unnarrowed(&self, scopes: &Scopes) -> String {
        format!(
            "the credential of this host ({}) gives no token of exactly {scopes}; name a service account, with \
             --impersonate or as service_account of an identity, or ask without enforce_scopes",
            self.mint.principal().kind,
        )
    }

    async fn try_identity(
        &self,
        caller: &Caller,
        ask: &IdentityAsk,
        now: Now,
        deadline: Instant,
    ) -> Result<Reply, TokenRefusal> {
        let (identity, container) = caller.granted().ok_or_else(relay_has_no_identity)?;
        // Not a 429: here gcloud fails on any status but 404.
        self.rates
            .admit(identity, now.mono)
            .map_err(|left| TokenRefusal(TokenFailure::IdentityRefused, rate_exceeded(identity, left)))?;
        if !identity.audiences.is_empty() && !identity.audiences.contains(&ask.audience) {
            let name = &identity.name;
            let why = format!(
                "identity {name} (by {}) may not ask for this audience: add it to audiences in [identity.{name}]",
                caller.by()
            );
            return Err(TokenRefusal(TokenFailure::NotAllowedAudience, why.into()));
        }
        if ask.full {
            let name = &identity.name;
            if identity.strict {
                let why = format!(
                    "identity {name} is strict, and only Google can sign details of an instance: ask without format=full"
                );
                return Err(TokenRefusal(TokenFailure::NotFull, why.into()));
            }
            tracing::info!(identity = name, "format=full: the token has no details of an instance");
        }
        let request = IdentityRequest {
            service_account: ask.account.service_account.clone(),
            audience: ask.audience.clone(),
            holder: self.mint.holder(identity, container),
        };
        let token = self.mint.identity(&request, requestor(caller), time_left(deadline)).await.map_err(
            |failure| match failure {
                MintFailure::Refused(why) => TokenRefusal(TokenFailure::IdentityRefused, why),
                MintFailure::Transient(why) => {
                    self.refusals.tell_delay(Cloud::Google, &caller.name(), &why);
                    TokenRefusal(TokenFailure::IdentityTransient, why)
                }
                MintFailure::Slow => TokenRefusal(TokenFailure::IdentityTransient, SLOW.into()),
            },
        )?;
        self.refusals.delay_over(Cloud::Google);
        self.hand_out(caller, &ask.account.email, For::Audience(&ask.audience), &token.about());
        Ok(metadata::identity_reply(&token))
    }

    /// Adds the token to the lease, and records it if it is new to this caller. Skips a caller whose lease
    /// has ended meanwhile: the token is not sent to it.
    pub(super) fn hand_out(&self, caller: &Caller, account: &str, asked: For<'_>, token: &HandedOut) {
        if caller.still_valid()
            && let (Some(issued), Some(who)) = (self.issued(caller), requestor(caller))
            && issued.add(*token)
        {
            self.recorder.handed_out(who, account, asked, token);
        }
    }

    fn issued<'a>(&'a self, caller: &'a Caller) -> Option<&'a Issued> {
        match caller {
            Caller::Container(lease) => Some(lease.issued()),
            Caller::Local(_) => Some(&self.local),
            Caller::Relay => None,
        }
    }

    fn refuse(&self, caller: &Caller, audience: Option<&str>, no: &TokenRefusal) -> Reply {
        let TokenRefusal(failure, why) = no;
        let reply = metadata::failure_reply(Service::Google, *failure, why).after(why.pause);
        if let Some(who) = requestor(caller) {
            let status = reply.status.as_u16();
            match audience {
                Some(audience) => self.recorder.refused_audience(who, status, audience, why),
                None => self.recorder.refused(who, status, TokenKind::Access.word(), why),
            }
        }
        reply
    }

    /// Records the reply if the protocol's guards refused the request. The reply for a missing key is no such
    /// refusal, and neither is that to a client that probes which cloud it is in.
    pub(super) fn record_guard_refusal(&self, caller: &Caller, reply: Reply) -> Reply {
        let status = reply.status.as_u16();
        if matches!(status, 400 | 401 | 403 | 405)
            && !reply.probe
            && let Some(who) = requestor(caller)
        {
            let why = reply.wrong.unwrap_or("the request is not one that may be answered");
            self.recorder.refused(who, status, "metadata", why);
        }
        reply
    }
}

pub(super) fn relay_has_no_identity() -> TokenRefusal {
    TokenRefusal(TokenFailure::UnknownCaller, "the relay has no identity".into())
}

/// `left` is the time until the identity's next minute begins.
pub(super) fn rate_exceeded(identity: &Identity, left: Duration) -> Reason {
    let rate = identity.rate.unwrap_or_default();
    let why =
        format!("identity {} has used its {rate} requests of this minute: ask again later", identity.name);
    Reason::from(why).after(Some(left))
}

pub(super) fn time_left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

pub(super) fn requestor(caller: &Caller) -> Option<Requestor<'_>> {
    match caller {
        Caller::Container(lease) => Some(Requestor::Container(lease.grant())),
        Caller::Local(identity) => Some(Requestor::Local(identity)),
        Caller::Relay => None,
    }
}

/// Decision 15. Clients request narrow and differing scopes, which the real server ignores. So scopes outside
/// the identity are left out; if none is left, the token has all scopes of the identity.
fn effective_scopes(identity: &Identity, asked: Option<&Scopes>) -> Result<Scopes, String> {
    let own = &identity.scopes;
    let Some(asked) = asked.filter(|asked| !asked.is_empty() && !asked.contains(CLOUD_PLATFORM)) else {
        return Ok(own.clone());
    };
    if identity.strict
        && let Some(outside) = asked.iter().find(|scope| !own.contains(scope))
    {
        return Err(format!("identity {} is strict and does not have the scope {outside}", identity.name));
    }
    let common = asked.intersection(own);
    if common.is_empty() {
        tracing::debug!(identity = identity.name, %asked, "none of the scopes asked for; giving the identity's own");
        return Ok(own.clone());
    }
    Ok(common)
}

/// With `enforce_scopes` the caller relies on a token of exactly these scopes, so none is left out or
/// replaced.
fn exact_scopes(identity: &Identity, asked: &Scopes) -> Result<Scopes, String> {
    match asked.iter().find(|scope| !identity.scopes.allow(scope)) {
        None => Ok(asked.least()),
        Some(outside) => Err(format!(
            "identity {0} does not have the scope {outside}: add it to scopes in [identity.{0}], or ask without \
             enforce_scopes",
            identity.name
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(scopes: &str, strict: bool) -> Identity {
        Identity { name: "loader".into(), scopes: Scopes::parse(scopes), strict, ..Identity::default() }
    }

    #[test]
    fn scopes_are_narrowed_never_widened() {
        let own = identity("a b", false);
        let asked = |list: &str| effective_scopes(&own, Some(&Scopes::parse(list))).unwrap().to_string();
        assert_eq!(effective_scopes(&own, None).unwrap().to_string(), "a b");
        assert_eq!(asked("b c"), "b");
        assert_eq!(asked("c"), "a b");
        assert_eq!(asked(&format!("b,{CLOUD_PLATFORM}")), "a b");
        let strict = identity("a b", true);
        assert!(effective_scopes(&strict, Some(&Scopes::parse("a c"))).unwrap_err().contains("scope c"));
        assert_eq!(effective_scopes(&strict, Some(&Scopes::parse("a"))).unwrap().to_string(), "a");
    }

    #[test]
    fn enforced_scopes_are_given_exactly_or_refused() {
        let scope = |name: &str| format!("https://www.googleapis.com/auth/{name}");
        let (bigquery, drive) = (scope("bigquery"), scope("drive"));
        for strict in [false, true] {
            let whole = identity(CLOUD_PLATFORM, strict);
            let asked =
                |list: &str| exact_scopes(&whole, &Scopes::parse(list)).map(|given| given.to_string());
            assert_eq!(asked(&bigquery).unwrap(), bigquery);
            assert_eq!(asked(&format!("{bigquery},{CLOUD_PLATFORM}")).unwrap(), CLOUD_PLATFORM);
            let why = asked(&format!("{bigquery},{drive}")).unwrap_err();
            assert!(
                why.contains(&drive) && why.contains("[identity.loader]") && !why.contains('\n'),
                "{why}"
            );
            let own = identity(&format!("{bigquery} {drive}"), strict);
            let asked = |list: &str| exact_scopes(&own, &Scopes::parse(list)).map(|given| given.to_string());
            assert_eq!(asked(&drive).unwrap(), drive);
            assert!(asked(CLOUD_PLATFORM).unwrap_err().contains(CLOUD_PLATFORM));
            assert!(asked(&scope("bigquery.readonly")).is_err());
        }
    }
}
