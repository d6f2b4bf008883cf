//! What the proxy asks lifecycle about leases, and tells it about containers.
//!
//! A container that joins the network of a leased one (`network_mode: service:NAME` of Docker Compose) shares
//! its address and thus its identity, so a rule of the operator must allow it, and both must have the same
//! identity.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use hyper::StatusCode;
use serde_json::Value;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, RwLockWriteGuard, mpsc, oneshot};

use super::engine_client::Refusal;
use super::lookups::{Lookups, NETWORKS};
use super::question::{Joined, Neighbour};
use super::{Attachment, LeasedAs, LifecycleRequest, Rules};
use crate::cloud::Cloud;
use crate::docker::labels::SESSION_LABEL;
use crate::json::{fields, strings};
use crate::loopback;
use crate::policy::Decision;
use crate::secret::Secret;
use crate::workload::{By, ContainerId, Identity, Task};

/// How a new container will reach us, and the secret of its lease.
#[derive(Debug)]
pub(super) struct Reach {
    pub(super) place: Attachment,
    pub(super) secret: LeaseSecret,
}

/// The secret of a lease, which only the container's environment contains; `None` if its identity has neither
/// AWS nor Azure.
pub(super) type LeaseSecret = Option<Arc<Secret<String>>>;

/// The leases of this session, as lifecycle knows them. Clones share the lock.
#[derive(Clone, Debug)]
pub(super) struct Leases {
    requests: mpsc::Sender<LifecycleRequest>,
    lookups: Lookups,
    /// Read-locked for each new container from before the engine's create until it has its lease. Code that
    /// lets a request reach into a container because it is not leased waits for these locks first; afterwards
    /// no existing container can become leased.
    arriving: Arc<RwLock<()>>,
}

impl Leases {
    pub(super) fn new(requests: mpsc::Sender<LifecycleRequest>, lookups: Lookups) -> Self {
        Self { requests, lookups, arriving: Arc::default() }
    }

    /// Held from before the engine's create until the lease is in place.
    pub(super) async fn arrive(&self) -> OwnedRwLockReadGuard<()> {
        self.arriving.clone().read_owned().await
    }

    /// Held while the proxy decides what a request may reach into.
    pub(super) async fn none_arriving(&self) -> RwLockWriteGuard<'_, ()> {
        self.arriving.write().await
    }

    /// Sends a request and waits for its answer; `None` if the session has ended.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> LifecycleRequest) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer)).await.ok()?;
        answered.await.ok()
    }

    /// If lifecycle does not answer, the result is true, because callers permit access on false.
    pub(super) async fn is_leased(&self, container: &ContainerId) -> bool {
        let request = |answer| LifecycleRequest::IsLeased { container: container.clone(), answer };
        self.ask(request).await.unwrap_or(true)
    }

    /// Whether the container holds an identity of this session or belongs to another session.
    pub(super) async fn has_identity(&self, container: &ContainerId) -> Result<bool, Refusal> {
        if self.is_leased(container).await {
            return Ok(true);
        }
        let Some(found) = self.lookups.container(container.as_str()).await? else { return Ok(false) };
        if is_of_a_session(&found) {
            return Ok(true);
        }
        // The engine stores the id of the container whose network is joined.
        let joined =
            found["HostConfig"]["NetworkMode"].as_str().and_then(|mode| mode.strip_prefix("container:"));
        let Some(joined) = joined.and_then(ContainerId::parse) else { return Ok(false) };
        if self.is_leased(&joined).await {
            return Ok(true);
        }
        let found = self.lookups.container(joined.as_str()).await?;
        Ok(found.is_some_and(|found| is_of_a_session(&found)))
    }

    /// Tells lifecycle that a start or restart is about to reach the engine.
    pub(super) async fn starting(&self, container: &ContainerId) {
        self.ask(|answer| LifecycleRequest::Starting { container: container.clone(), answer }).await;
    }

    /// Has lifecycle connect a created container and admit its lease; returns the address on our network.
    pub(super) async fn attach(
        &self,
        container: &ContainerId,
        identity: &Arc<Identity>,
        by: By,
        task: &Arc<Task>,
        Reach { place, secret }: Reach,
    ) -> Result<Ipv4Addr, String> {
        let request = |answer| LifecycleRequest::Attach {
            container: container.clone(),
            identity: identity.clone(),
            by,
            task: task.clone(),
            place,
            secret,
            answer,
        };
        match self.ask(request).await {
            Some(outcome) => outcome.map_err(|why| why.to_string()),
            None => Err("the session has ended".into()),
        }
    }

    /// The leased container whose network `body` asks for, if this container may join it.
    pub(super) async fn joinable(
        &self,
        body: &Value,
        decision: &Decision,
        rules: &Rules,
        neighbours: &HashMap<String, Neighbour>,
    ) -> Result<Option<Joined>, Refusal> {
        let mode = body["HostConfig"]["NetworkMode"].as_str().unwrap_or_default();
        let Some(reference) = mode.strip_prefix("container:") else { return Ok(None) };
        let Decision::Attach(identity, by) = decision else { return Ok(None) };
        if neighbours.get(reference) != Some(&Neighbour::Leased) || !rules.policy.lets_join(*by) {
            return Ok(None);
        }
        let Some(container) = self.lookups.locate(reference).await? else { return Ok(None) };
        let request = |answer| LifecycleRequest::LeasedAs { container: container.clone(), answer };
        let leased = self.ask(request).await.flatten();
        let leased = leased.filter(|leased| leased.identity.name == identity.name);
        Ok(leased.map(|LeasedAs { relay, secret, .. }| Joined { container, relay, secret }))
    }

    /// Registers a created container with the lease that it shares. If the lease has ended, the create fails
    /// and the container is removed.
    pub(super) async fn join(
        &self,
        container: &ContainerId,
        with: &ContainerId,
        task: &Arc<Task>,
    ) -> Result<(), String> {
        let request = |answer| LifecycleRequest::Joined {
            container: container.clone(),
            with: with.clone(),
            task: task.clone(),
            answer,
        };
        match self.ask(request).await {
            Some(true) => Ok(()),
            Some(false) | None => Err(format!("{with}, whose network it joins, has no identity any more")),
        }
    }
}

/// A network of ours, or a link-local address, which our proxies let no client ask for, shows that the label is
/// not one of an image.
fn is_of_a_session(found: &Value) -> bool {
    let linked = |endpoint: &Value| strings(&endpoint["IPAMConfig"]["LinkLocalIPs"]).next().is_some();
    let mut networks = fields(&found["NetworkSettings"]["Networks"]);
    let with_us = networks.any(|(name, endpoint)| name.starts_with(NETWORKS) || linked(endpoint));
    with_us && found["Config"]["Labels"][SESSION_LABEL].is_string()
}

/// A new secret, or that of the container whose lease is shared.
pub(super) fn lease_secret(decision: &Decision, joins: Option<&Joined>) -> Result<LeaseSecret, Refusal> {
    let Decision::Attach(identity, _) = decision else { return Ok(None) };
    match joins {
        _ if !identity.has(Cloud::Aws) && !identity.has(Cloud::Azure) => Ok(None),
        Some(joined) => Ok(joined.secret.clone()),
        None => match loopback::capability() {
            Some(secret) => Ok(Some(Arc::new(secret))),
            None => {
                let why = "cannot make the secret of a lease (no random numbers)";
                Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why))
            }
        },
    }
}
