//! AWS sessions and Azure tokens for callers, and their records in audit log and metrics.

use std::sync::Arc;

use tokio::time::Instant;

use super::repeats::{ServedToken, TokenReply};
use super::tokens::{SLOW, TokenRefusal, rate_exceeded, relay_has_no_identity, requestor, time_left};
use super::{Caller, Server};
use crate::cloud::Cloud;
use crate::metadata::{self, AwsAsk, AzureAsk, Reply, TokenFailure};
use crate::mint::{Fresh, MintFailure};
use crate::record::For;
use crate::source::azure::resource;
use crate::token::{AwsSession, AzureToken, Now, TokenKind};
use crate::workload::Identity;

impl Server {
    pub(super) async fn aws_session(
        &self,
        caller: &Caller,
        ask: &AwsAsk,
        now: Now,
        deadline: Instant,
    ) -> TokenReply {
        match self.try_aws_session(caller, ask, now, deadline).await {
            Ok(answer) => answer,
            Err(TokenRefusal(failure, why)) => {
                let reply = metadata::failure_reply(ask.service, failure, &why).after(why.pause);
                if let Some(who) = requestor(caller) {
                    let status = reply.counted().as_u16();
                    self.recorder.refused(who, status, TokenKind::AwsSession.word(), &why);
                }
                reply.into()
            }
        }
    }

    pub(super) async fn azure_token(
        &self,
        caller: &Caller,
        ask: &AzureAsk,
        now: Now,
        deadline: Instant,
    ) -> TokenReply {
        match self.try_azure_token(caller, ask, now, deadline).await {
            Ok(answer) => answer,
            Err(TokenRefusal(failure, why)) => {
                let reply = metadata::failure_reply(ask.service, failure, &why).after(why.pause);
                if let Some(who) = requestor(caller) {
                    let status = reply.counted().as_u16();
                    self.recorder.refused_resource(who, status, &ask.resource, &why);
                }
                reply.into()
            }
        }
    }

    async fn try_aws_session(
        &self,
        caller: &Caller,
        ask: &AwsAsk,
        now: Now,
        deadline: Instant,
    ) -> Result<TokenReply, TokenRefusal> {
        let (identity, container) = caller.granted().ok_or_else(relay_has_no_identity)?;
        self.rates
            .admit(identity, now.mono)
            .map_err(|left| TokenRefusal(TokenFailure::TooMany, rate_exceeded(identity, left)))?;
        let request = self.mint.aws_request(identity, container, caller.task());
        let request = request.ok_or_else(|| not_on_cloud(identity, Cloud::Aws))?;
        let (session, calm, now) = match self.mint.cached_aws_session(&request, requestor(caller), now) {
            Some(Fresh { token, calm }) => (token, Some(calm), now),
            None => {
                let made = self.mint.aws_session(&request, requestor(caller), time_left(deadline)).await;
                (self.minted(Cloud::Aws, caller, made)?, None, Now::read())
            }
        };
        let reply = self.give_aws(caller, ask, &session, now);
        let given = || ServedToken::Aws(ask.clone(), Arc::downgrade(&session));
        Ok(TokenReply { reply, again: calm.map(|calm| (given(), calm)) })
    }

    pub(super) fn give_aws(&self, caller: &Caller, ask: &AwsAsk, session: &AwsSession, now: Now) -> Reply {
        let role = ask.role_arn.as_deref();
        self.hand_out(caller, role.unwrap_or_default(), For::Role(role), &session.about());
        metadata::aws_session_reply(ask, session, now)
    }

    async fn try_azure_token(
        &self,
        caller: &Caller,
        ask: &AzureAsk,
        now: Now,
        deadline: Instant,
    ) -> Result<TokenReply, TokenRefusal> {
        let (identity, container) = caller.granted().ok_or_else(relay_has_no_identity)?;
        self.rates
            .admit(identity, now.mono)
            .map_err(|left| TokenRefusal(TokenFailure::TooMany, rate_exceeded(identity, left)))?;
        // A text that is no resource goes no further: a container chose it.
        let resource =
            resource(&ask.resource).map_err(|why| TokenRefusal(TokenFailure::AccessRefused, why.into()))?;
        let request = self.mint.azure_request(identity, container, &resource);
        let request = request.ok_or_else(|| not_on_cloud(identity, Cloud::Azure))?;
        if !identity.azure.as_ref().is_some_and(|azure| azure.allows(&request.resource)) {
            let name = &identity.name;
            let why = format!(
                "identity {name} (by {}) may not ask for this resource: add it to resources in [identity.{name}.azure]",
                caller.by()
            );
            return Err(TokenRefusal(TokenFailure::AccessRefused, why.into()));
        }
        let (token, calm, now) = match self.mint.cached_azure_token(&request, requestor(caller), now) {
            Some(Fresh { token, calm }) => (token, Some(calm), now),
            None => {
                let made = self.mint.azure_token(&request, requestor(caller), time_left(deadline)).await;
                (self.minted(Cloud::Azure, caller, made)?, None, Now::read())
            }
        };
        let reply = self.give_azure(caller, ask, &request.resource, &token, now);
        let given = || ServedToken::Azure(ask.clone(), request.resource, Arc::downgrade(&token));
        Ok(TokenReply { reply, again: calm.map(|calm| (given(), calm)) })
    }

    pub(super) fn give_azure(
        &self,
        caller: &Caller,
        ask: &AzureAsk,
        resource: &str,
        token: &AzureToken,
        now: Now,
    ) -> Reply {
        let principal = token.client_id.as_deref().or(ask.client_id.as_deref()).unwrap_or_default();
        self.hand_out(caller, principal, For::Resource(resource), &token.about());
        metadata::azure_token_reply(ask, token, now)
    }

    /// The mint's result; also shows on the terminal if a caller gets no token.
    pub(super) fn minted<T>(
        &self,
        cloud: Cloud,
        caller: &Caller,
        made: Result<T, MintFailure>,
    ) -> Result<T, TokenRefusal> {
        match made {
            Ok(token) => {
                self.refusals.over(cloud);
                Ok(token)
            }
            Err(MintFailure::Refused(why)) => {
                self.refusals.tell(cloud, &caller.name(), &why);
                Err(TokenRefusal(TokenFailure::AccessRefused, why))
            }
            Err(MintFailure::Transient(why)) => {
                self.refusals.tell_delay(cloud, &caller.name(), &why);
                Err(TokenRefusal(TokenFailure::Transient, why))
            }
            Err(MintFailure::Slow) => Err(TokenRefusal(TokenFailure::Transient, SLOW.into())),
        }
    }
}

fn not_on_cloud(identity: &Identity, cloud: Cloud) -> TokenRefusal {
    TokenRefusal(
        TokenFailure::AccessRefused,
        format!("identity {} has nothing on {cloud}", identity.name).into(),
    )
}
