//! AWS sessions and Azure tokens: the same caches and flights as for Google's tokens, with different cache keys.

use std::collections::HashSet;
use std::future::ready;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::cache::{CacheResult, Fresh};
use super::{MadeSession, Mint, MintFailure, sessions};
use crate::cloud::{Cloud, without_slash};
use crate::record::{For, Requestor};
use crate::source::aws::{AwsRequest, Deny, session_name, tag_value};
use crate::source::azure::{AzurePrincipal, AzureRequest};
use crate::source::{Pending, Reloaded, SourceError};
use crate::token::{AwsSession, AzureToken, Now, TokenKind};
use crate::workload::{ContainerId, Grant, Identity, Task};

/// Most concurrent requests to Azure for one identity; a component uses a handful of resources.
const MOST_AT_ONCE: usize = 16;

/// The session of programs on this machine.
const LOCAL: &str = "kfp-local";

/// The owners whose sessions and tokens are kept although no lease can request them.
#[derive(Debug, Default)]
pub(super) struct Retained {
    /// The identity of programs on this machine; unset while none is served.
    local: OnceLock<Arc<Identity>>,
    arriving: Mutex<HashSet<ContainerId>>,
}

/// A container that is being attached. Its AWS session is requested before its lease begins; while this value exists,
/// the end of another lease does not drop that session.
#[derive(Debug)]
pub struct Arriving {
    mint: Arc<Mint>,
    container: ContainerId,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let mut arriving = self.mint.kept.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        arriving.remove(&self.container);
    }
}

impl Mint {
    /// Sets the identity of programs on this machine. Their AWS sessions and Azure tokens are kept, because no lease
    /// ends for them. Only the first call has an effect.
    pub fn serves_local(&self, identity: &Arc<Identity>) {
        let _ = self.kept.local.set(identity.clone());
    }

    /// Hold the returned value until the container's lease has begun.
    pub fn arriving(self: &Arc<Self>, container: &ContainerId) -> Arriving {
        let mut arriving = self.kept.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        arriving.insert(container.clone());
        drop(arriving);
        Arriving { mint: self.clone(), container: container.clone() }
    }

    /// The session request of `identity`, for `container` and its `task`. `None` if the identity has no access to
    /// AWS.
    pub fn aws_request(
        &self,
        identity: &Identity,
        container: Option<&ContainerId>,
        task: &Task,
    ) -> Option<AwsRequest> {
        let aws = identity.aws.clone()?;
        let component = task.component.as_deref().or(task.name.as_deref()).unwrap_or("task");
        let named = [("pipeline", &task.pipeline), ("component", &task.component)];
        let tags = named
            .iter()
            .filter(|_| aws.tags)
            .filter_map(|(name, value)| Some(((*name).to_owned(), tag_value(value.as_deref()?))));
        Some(AwsRequest {
            session_name: container.map_or_else(|| LOCAL.into(), |id| session_name(component, id)),
            tags: tags.collect(),
            holder: container.cloned(),
            identity: aws,
        })
    }

    /// The token request of `identity` for `resource`. `None` if the identity has no access to Azure.
    pub fn azure_request(
        &self,
        identity: &Identity,
        container: Option<&ContainerId>,
        resource: &str,
    ) -> Option<AzureRequest> {
        let azure = identity.azure.as_ref()?;
        let apart =
            identity.isolate || self.sources.azure.as_ref().is_some_and(|source| source.per_container());
        Some(AzureRequest {
            client_id: azure.client_id.clone(),
            resource: without_slash(resource).to_owned(),
            holder: container.filter(|_| apart).cloned(),
        })
    }

    /// The principal of Azure's source; empty without one.
    pub fn azure_principal(&self) -> AzurePrincipal {
        self.sources.azure.as_ref().map(|source| source.principal()).unwrap_or_default()
    }

    /// As [`Mint::cached`], for a session of AWS.
    pub fn cached_aws_session(
        &self,
        ask: &AwsRequest,
        who: Option<Requestor<'_>>,
        now: Now,
    ) -> Option<Fresh<AwsSession>> {
        let (fresh, renewal) = self.aws.fresh(ask, now, || self.aws_work(ask, who, true))?;
        self.launch(renewal);
        Some(fresh)
    }

    /// As [`Mint::access`], for a session of AWS. One that ends within 660 s is a transient failure.
    pub async fn aws_session(
        &self,
        ask: &AwsRequest,
        who: Option<Requestor<'_>>,
        wait: Duration,
    ) -> Result<Arc<AwsSession>, MintFailure> {
        self.serve(&self.aws, ask, wait, |renewal| self.aws_work(ask, who, renewal)).await
    }

    /// As [`Mint::cached`], for a token of Azure.
    pub fn cached_azure_token(
        &self,
        ask: &AzureRequest,
        who: Option<Requestor<'_>>,
        now: Now,
    ) -> Option<Fresh<AzureToken>> {
        let (fresh, renewal) = self.azure.fresh(ask, now, || self.azure_work(ask, who, true))?;
        self.launch(renewal);
        Some(fresh)
    }

    /// As [`Mint::access`], for a token of Azure.
    pub async fn azure_token(
        &self,
        ask: &AzureRequest,
        who: Option<Requestor<'_>>,
        wait: Duration,
    ) -> Result<Arc<AzureToken>, MintFailure> {
        self.serve(&self.azure, ask, wait, |renewal| self.azure_work(ask, who, renewal)).await
    }

    /// The sessions of AWS that were made for containers and have not expired.
    pub fn aws_sessions(&self) -> Vec<MadeSession> {
        self.sessions.alive(Now::read())
    }

    /// Denies everything to these sessions, at AWS. They stay in the cache: cut off their containers first.
    pub async fn deny_aws(&self, ask: &Deny) -> Result<(), SourceError> {
        match &self.sources.aws {
            Some(source) => source.deny(ask).await,
            None => Err(absent(Cloud::Aws)),
        }
    }

    /// Starts minting the first tokens of a container, for every cloud of its identity except Azure, whose resource is
    /// known only from the request.
    pub fn ahead_of(&self, grant: &Grant) {
        let who = Requestor::Container(grant);
        if grant.identity.google {
            self.ahead(&self.request(&grant.identity, Some(&grant.container), None), who);
        }
        if let Some(ask) = self.aws_request(&grant.identity, Some(&grant.container), &grant.task) {
            self.aws_ahead(&ask, who);
        }
    }

    /// As [`Mint::ahead`], for a session of AWS.
    pub fn aws_ahead(&self, ask: &AwsRequest, who: Requestor<'_>) {
        match self.aws.look(ask, Now::read(), |_| self.aws_work(ask, Some(who), true)) {
            CacheResult::Serve(_, renewal) => self.launch(renewal),
            CacheResult::Wait { in_flight, new, .. } => self.launch(new.then_some(in_flight)),
            CacheResult::Failed(..) => {}
        }
    }

    /// Lets the sources of AWS and Azure check their files, as [`Mint::reload`] does for Google's. Returns what
    /// changed, by cloud.
    pub fn reload_clouds(&self) -> Vec<(Cloud, Reloaded)> {
        let aws = self.sources.aws.as_ref().map(|source| (Cloud::Aws, source.reload()));
        let azure = self.sources.azure.as_ref().map(|source| (Cloud::Azure, source.reload()));
        let all: Vec<_> = aws.into_iter().chain(azure).collect();
        for (cloud, outcome) in &all {
            match (cloud, outcome) {
                (_, Reloaded::Same | Reloaded::Broken(_)) | (Cloud::Google, _) => {}
                (Cloud::Aws, Reloaded::OtherAccount) => self.aws.void_all(),
                (Cloud::Aws, Reloaded::Renewed | Reloaded::Supplied) => {
                    self.aws.forget_failures();
                    // Without a role the sessions are the login's own, and the login may now be another person's.
                    self.aws.void(|ask| ask.identity.role.is_none());
                }
                (Cloud::Azure, Reloaded::OtherAccount) => self.azure.void_all(),
                (Cloud::Azure, Reloaded::Renewed | Reloaded::Supplied) => self.azure.forget_failures(),
            }
            if !matches!(outcome, Reloaded::Same | Reloaded::Broken(_)) {
                self.generation.next();
            }
        }
        all
    }

    pub(super) fn clouds_woke(&self) {
        if let Some(aws) = &self.sources.aws {
            aws.reconnect();
        }
        if let Some(azure) = &self.sources.azure {
            azure.reconnect();
        }
        self.aws.forget_failures();
        self.azure.forget_failures();
    }

    /// The part of [`Mint::forget_all_but`] for AWS and Azure. What has no holder was the session's first trial, or
    /// belongs to programs on this machine, which keep it if there are any, or is shared by containers (Azure).
    pub(super) fn forget_clouds_but(&self, holders: &HashSet<&ContainerId>, identities: &[&Arc<Identity>]) {
        let arriving = self.kept.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        let local = self.kept.local.get();
        let gone = |holder: &ContainerId| !holders.contains(holder) && !arriving.contains(holder);
        self.aws.forget(|ask| match &ask.holder {
            Some(holder) => gone(holder),
            None => !local.is_some_and(|local| local.aws.as_ref() == Some(&ask.identity)),
        });
        self.azure.forget(|ask| {
            let can = |identity: &&Arc<Identity>| {
                let azure = identity.azure.as_deref();
                azure.is_some_and(|own| own.client_id == ask.client_id && own.allows(&ask.resource))
            };
            match &ask.holder {
                Some(holder) => gone(holder) || !identities.iter().any(can),
                None => !identities.iter().copied().chain(local).any(|identity| can(&identity)),
            }
        });
    }

    fn aws_work(
        &self,
        ask: &AwsRequest,
        who: Option<Requestor<'_>>,
        ahead: bool,
    ) -> Pending<'static, Result<AwsSession, SourceError>> {
        let (source, ask, log) = (self.sources.aws.clone(), ask.clone(), self.log.clone());
        let making = log.recorder.making(who, For::Role(ask.identity.role.as_deref()), None, ahead);
        let (sessions, holder) = (self.sessions.clone(), sessions::holder(who));
        Box::pin(async move {
            let source = source.ok_or_else(|| absent(Cloud::Aws))?;
            let session = log.of(TokenKind::AwsSession, making, source.session(&ask)).await?;
            sessions.made(holder, &ask, &session);
            Ok(session)
        })
    }

    fn azure_work(
        &self,
        ask: &AzureRequest,
        who: Option<Requestor<'_>>,
        ahead: bool,
    ) -> Pending<'static, Result<AzureToken, SourceError>> {
        let identity = name_of(who);
        let Some(turn) = self.under_way.enter(identity, MOST_AT_ONCE) else {
            let why =
                format!("{MOST_AT_ONCE} tokens of Azure are being made for this identity; ask again later");
            return Box::pin(ready(Err(SourceError::transient(why))));
        };
        let (source, ask, log) = (self.sources.azure.clone(), ask.clone(), self.log.clone());
        let making = log.recorder.making(who, For::Resource(&ask.resource), ask.client_id.as_deref(), ahead);
        Box::pin(async move {
            let source = source.ok_or_else(|| absent(Cloud::Azure))?;
            let made = log.of(TokenKind::AzureToken, making, source.token(&ask)).await;
            drop(turn);
            made
        })
    }
}

fn name_of(who: Option<Requestor<'_>>) -> &str {
    match who {
        Some(Requestor::Container(grant)) => &grant.identity.name,
        Some(Requestor::Local(identity) | Requestor::Session(identity)) => &identity.name,
        Some(Requestor::Unknown(_)) | None => "",
    }
}

fn absent(cloud: Cloud) -> SourceError {
    SourceError::refused(format!(
        "kfp-creds has no credentials for {cloud}: add [{}] to kfp-creds.toml",
        cloud.word()
    ))
}
