//! Sessions of AWS and tokens of Azure for callers, and what is recorded of them.

use std::sync::Arc;

use tokio::time::Instant;

use super::repeats::{Given, TokenReply};
use super::tokens::{No, SLOW, left, nobody, too_many, who};
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
            Err(No(failure, why)) => {
                let reply = metadata::failure_reply(ask.service, failure, &why).after(why.pause);
                if let Some(who) = who(caller) {
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
            Err(No(failure, why)) => {
                let reply = metadata::failure_reply(ask.service, failure, &why).after(why.pause);
                if let Some(who) = who(caller) {
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
    ) -> Result<TokenReply, No> {
        let (identity, container) = caller.granted().ok_or_else(nobody)?;
        self.rates
            .admit(identity, now.mono)
            .map_err(|left| No(TokenFailure::TooMany, too_many(identity, left)))?;
        let request = self.mint.aws_request(identity, container, caller.task());
        let request = request.ok_or_else(|| has_none(identity, Cloud::Aws))?;
        let (session, calm, now) = match self.mint.cached_aws_session(&request, who(caller), now) {
            Some(Fresh { token, calm }) => (token, Some(calm), now),
            None => {
                let made = self.mint.aws_session(&request, who(caller), left(deadline)).await;
                (self.made(Cloud::Aws, caller, made)?, None, Now::read())
            }
        };
        let reply = self.give_aws(caller, ask, &session, now);
        let given = || Given::Aws(ask.clone(), Arc::downgrade(&session));
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
    ) -> Result<TokenReply, No> {
        let (identity, container) = caller.granted().ok_or_else(nobody)?;
        self.rates
            .admit(identity, now.mono)
            .map_err(|left| No(TokenFailure::TooMany, too_many(identity, left)))?;
        // What is no resource is a container's text, and goes no further.
        let resource = resource(&ask.resource).map_err(|why| No(TokenFailure::AccessRefused, why.into()))?;
        let request = self.mint.azure_request(identity, container, &resource);
        let request = request.ok_or_else(|| has_none(identity, Cloud::Azure))?;
        if !identity.azure.as_ref().is_some_and(|azure| azure.allows(&request.resource)) {
            let name = &identity.name;
            let why = format!(
                "identity {name} (by {}) may not ask for this resource: add it to resources in [identity.{name}.azure]",
                caller.by()
            );
            return Err(No(TokenFailure::AccessRefused, why.into()));
        }
        let (token, calm, now) = match self.mint.cached_azure_token(&request, who(caller), now) {
            Some(Fresh { token, calm }) => (token, Some(calm), now),
            None => {
                let made = self.mint.azure_token(&request, who(caller), left(deadline)).await;
                (self.made(Cloud::Azure, caller, made)?, None, Now::read())
            }
        };
        let reply = self.give_azure(caller, ask, &request.resource, &token, now);
        let given = || Given::Azure(ask.clone(), request.resource, Arc::downgrade(&token));
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

    /// What the mint made; a refusal is also shown on the terminal.
    fn made<T>(&self, cloud: Cloud, caller: &Caller, made: Result<T, MintFailure>) -> Result<T, No> {
        match made {
            Ok(token) => {
                self.refusals.over(cloud);
                Ok(token)
            }
            Err(MintFailure::Refused(why)) => {
                self.refusals.tell(cloud, &caller.name(), &why);
                Err(No(TokenFailure::AccessRefused, why))
            }
            Err(MintFailure::Transient(why)) => Err(No(TokenFailure::Transient, why)),
            Err(MintFailure::Slow) => Err(No(TokenFailure::Transient, SLOW.into())),
        }
    }
}

fn has_none(identity: &Identity, cloud: Cloud) -> No {
    No(TokenFailure::AccessRefused, format!("identity {} has nothing on {cloud}", identity.name).into())
}
