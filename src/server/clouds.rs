//! Sessions of AWS and tokens of Azure for callers, and what is recorded of them.

use tokio::time::Instant;

use super::tokens::{No, SLOW, left, nobody, too_many, who};
use super::{Caller, Server};
use crate::cloud::Cloud;
use crate::metadata::{self, AwsAsk, AzureAsk, Reply, TokenFailure};
use crate::mint::MintFailure;
use crate::record::For;
use crate::source::azure::resource;
use crate::token::{Now, TokenKind};
use crate::workload::Identity;

impl Server {
    pub(super) async fn aws_session(&self, caller: &Caller, ask: &AwsAsk, deadline: Instant) -> Reply {
        match self.try_aws_session(caller, ask, deadline).await {
            Ok(reply) => reply,
            Err(No(failure, why)) => {
                let reply = metadata::failure_reply(ask.service, failure, &why).after(why.pause);
                if let Some(who) = who(caller) {
                    let status = reply.counted().as_u16();
                    self.recorder.refused(who, status, TokenKind::AwsSession.word(), &why);
                }
                reply
            }
        }
    }

    pub(super) async fn azure_token(&self, caller: &Caller, ask: &AzureAsk, deadline: Instant) -> Reply {
        match self.try_azure_token(caller, ask, deadline).await {
            Ok(reply) => reply,
            Err(No(failure, why)) => {
                let reply = metadata::failure_reply(ask.service, failure, &why).after(why.pause);
                if let Some(who) = who(caller) {
                    let status = reply.counted().as_u16();
                    self.recorder.refused_resource(who, status, &ask.resource, &why);
                }
                reply
            }
        }
    }

    async fn try_aws_session(&self, caller: &Caller, ask: &AwsAsk, deadline: Instant) -> Result<Reply, No> {
        let (identity, container) = caller.granted().ok_or_else(nobody)?;
        self.rates.admit(identity).map_err(|left| No(TokenFailure::TooMany, too_many(identity, left)))?;
        let request = self.mint.aws_request(identity, container, caller.task());
        let request = request.ok_or_else(|| has_none(identity, Cloud::Aws))?;
        let session = match self.mint.cached_aws_session(&request, who(caller)) {
            Some(session) => session,
            None => {
                let made = self.mint.aws_session(&request, who(caller), left(deadline)).await;
                self.made(Cloud::Aws, caller, made)?
            }
        };
        let role = request.identity.role.as_deref();
        self.hand_out(caller, role.unwrap_or_default(), For::Role(role), &session.about());
        Ok(metadata::aws_session_reply(ask, &session, Now::read()))
    }

    async fn try_azure_token(&self, caller: &Caller, ask: &AzureAsk, deadline: Instant) -> Result<Reply, No> {
        let (identity, container) = caller.granted().ok_or_else(nobody)?;
        self.rates.admit(identity).map_err(|left| No(TokenFailure::TooMany, too_many(identity, left)))?;
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
        let token = match self.mint.cached_azure_token(&request, who(caller)) {
            Some(token) => token,
            None => {
                let made = self.mint.azure_token(&request, who(caller), left(deadline)).await;
                self.made(Cloud::Azure, caller, made)?
            }
        };
        let principal = token.client_id.as_deref().or(ask.client_id.as_deref()).unwrap_or_default();
        self.hand_out(caller, principal, For::Resource(&request.resource), &token.about());
        Ok(metadata::azure_token_reply(ask, &token, Now::read()))
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
