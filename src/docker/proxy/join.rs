//! Containers that join the network of a leased one (`network_mode: service:NAME` of Docker Compose). They
//! share its address and thus its identity, so a rule of the operator must allow it, and both must have the
//! same identity.

use std::collections::HashMap;

use serde_json::Value;
use tokio::sync::oneshot;

use super::engine_client::Refusal;
use super::question::{Joined, Neighbour};
use super::state::Proxy;
use super::{LeasedAs, LifecycleRequest, Rules};
use crate::policy::Decision;
use crate::workload::{ContainerId, Identity, Task};

impl Proxy {
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
        let Some(container) = self.locate(reference).await? else { return Ok(None) };
        let leased = self.leased_as(&container).await.filter(|leased| leased.identity.name == identity.name);
        let shared = self.settings.wiring.relay;
        Ok(leased.map(|LeasedAs { relay, secret, .. }| Joined {
            container,
            relay: relay.unwrap_or(shared),
            secret,
        }))
    }

    async fn leased_as(&self, container: &ContainerId) -> Option<LeasedAs> {
        let (answer, answered) = oneshot::channel();
        let ask = LifecycleRequest::LeasedAs { container: container.clone(), answer };
        self.settings.ask.send(ask).await.ok()?;
        answered.await.ok().flatten()
    }

    /// The engine has created the container: registers it with the lease. If the lease has ended, the create
    /// fails and the container is removed.
    pub(super) async fn joined(
        &self,
        container: &ContainerId,
        with: &ContainerId,
        task: &std::sync::Arc<Task>,
        identity: &Identity,
    ) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let ask = LifecycleRequest::Joined {
            container: container.clone(),
            with: with.clone(),
            task: task.clone(),
            answer,
        };
        if self.settings.ask.send(ask).await.is_err() || !answered.await.unwrap_or_default() {
            return Err(format!("{with}, whose network it joins, has no identity any more"));
        }
        let name = &identity.name;
        let why = format!("it shares the network and the lease of {with}, as {name}");
        self.settings.recorder.passed(container, task, &why);
        self.settings.console.notice(format!("{task} ({container}): {why}, which ends with that container"));
        Ok(())
    }
}
