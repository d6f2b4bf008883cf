//! Handles the engine's events, and compares containers with the engine's state after a gap in the events and
//! every few seconds.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::{AttachedContainer, Lifecycle, LifecycleState};
use crate::docker::Product;
use crate::docker::events::ContainerEvent;
use crate::registry::Lease;
use crate::workload::ContainerId;

impl Lifecycle {
    /// Follows the engine's events until the session stops; after a break, inspects all containers for missed
    /// changes.
    pub async fn follow_events(self: Arc<Self>) {
        let mut ends = self.exits.ends();
        // By the engine's clock once it has sent an event: this machine's may be ahead, and events would be lost.
        let mut since = SystemTime::now();
        loop {
            if self.resync().await {
                self.clone().follow(&mut since, &mut ends).await;
            }
            self.doubt_all();
            tokio::select! {
                () = self.tasks.stop().cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
    }

    /// Handles events from `since` on, until their stream ends or the session stops. The stream also reports
    /// what happened during the resync before it.
    async fn follow(
        self: Arc<Self>,
        since: &mut SystemTime,
        ends: &mut mpsc::UnboundedReceiver<ContainerId>,
    ) {
        let mut events = Box::pin(self.engine.container_events(*since));
        loop {
            let event = tokio::select! {
                () = self.tasks.stop().cancelled() => return,
                Some(container) = ends.recv() => {
                    self.clone().expect_die(container);
                    continue;
                }
                event = events.next() => event,
            };
            match event {
                Some(Ok((at, event))) => {
                    if let Some(at) = at.and_then(|at| u64::try_from(at).ok()) {
                        *since = SystemTime::UNIX_EPOCH + Duration::from_nanos(at);
                    }
                    self.clone().on(event);
                }
                Some(Err(error)) => {
                    return tracing::debug!(%error, "lost the engine's events; reconnecting");
                }
                None => return,
            }
        }
    }

    /// Compares all known containers with the engine's state, after a gap in the events. False if the engine
    /// does not say who is on the networks: then no lease is confirmed.
    pub(super) async fn resync(self: &Arc<Self>) -> bool {
        if let Err(error) = self.look_for_strangers().await {
            tracing::debug!(%error, "could not list who is on the networks");
            return false;
        }
        self.state().unchecked = false;
        for (container, network) in self.known_networks(|_| true) {
            self.look_at(&container, &network).await;
        }
        true
    }

    /// Compares all known containers, and the strangers, with the engine's list of this session's containers:
    /// an engine drops events for a reader that it considers slow.
    pub(super) async fn compare(self: &Arc<Self>) {
        let unchecked = self.state().unchecked;
        if unchecked && self.look_for_strangers().await.is_ok() {
            self.state().unchecked = false;
        }
        let strangers = self.state().strangers.all();
        for (container, network) in strangers {
            self.look_at_stranger(&container, &network).await;
        }
        // Taken before the list: a container that is attached afterwards cannot be missing from it.
        let known = self.known_networks(|attached| !attached.barred);
        if known.is_empty() {
            return;
        }
        let Ok(members) = self.engine.containers_of(&self.session).await else { return };
        for (container, network) in known {
            let member = members.iter().find(|member| member.id == container.as_str());
            let confirmed =
                |attached: &AttachedContainer| attached.lease.as_ref().is_some_and(Lease::confirmed);
            let confirmed = self.state().containers.get(&container).is_some_and(confirmed);
            if member.is_none_or(|member| member.running != confirmed) {
                self.look_at(&container, &network).await;
            }
        }
    }

    fn known_networks(&self, which: impl Fn(&AttachedContainer) -> bool) -> Vec<(ContainerId, String)> {
        let state = self.state();
        let found = state.containers.iter().filter(|(_, attached)| which(attached));
        found.map(|(container, attached)| (container.clone(), attached.network.clone())).collect()
    }

    pub(super) async fn look_at(self: &Arc<Self>, container: &ContainerId, network: &str) {
        let epoch = || self.leased(container).map(|(epoch, _)| epoch);
        let before = epoch();
        let seen = self.engine.look(container.as_str(), network).await;
        if epoch() != before {
            return; // events have told more than this inspection, which may be of the run before
        }
        match seen {
            Ok(seen) if seen.running => {
                let at_it = |attached: &AttachedContainer| attached.is_at_its_address(&seen);
                let at_its_address = self.state().containers.get(container).is_some_and(at_it);
                if at_its_address {
                    self.readmit(container);
                    self.confirm(container).await;
                }
            }
            Ok(seen) => self.ended_unseen(container, seen.exit_code),
            Err(error) if error.is_gone() => self.forget(container),
            Err(error) => tracing::debug!(%error, %container, "could not look at a container"),
        }
    }

    async fn look_again(&self, container: &ContainerId) {
        let network = self.state().containers.get(container).map(|attached| attached.network.clone());
        let Some(network) = network else { return };
        if self.engine.look(container.as_str(), &network).await.is_ok_and(|seen| seen.running) {
            self.readmit(container);
            self.confirm(container).await;
        }
    }

    /// Marks all leases unconfirmed. During a break in the events a container may end unseen and its address
    /// may go to another one, so the server answers a container only after another inspection.
    pub(super) fn doubt_all(&self) {
        let mut state = self.state();
        state.unchecked = true;
        let LifecycleState { writer, containers, .. } = &mut *state;
        containers
            .values()
            .filter_map(|attached| attached.lease.as_ref())
            .for_each(|lease| writer.doubt(lease));
    }

    /// Records that the container has run, even if it ended before it could be inspected.
    pub(super) fn has_run(&self, container: &ContainerId) {
        if let Some(attached) = self.state().containers.get_mut(container) {
            attached.started = true;
        }
    }

    pub(super) fn on(self: Arc<Self>, event: ContainerEvent) {
        match event {
            ContainerEvent::Started(container) => {
                self.has_run(&container);
                self.readmit(&container);
                // Podman reports the connection of a running container, but not that of a container that
                // starts.
                if self.engine.product() == Product::Podman && !self.state().is_leased(&container) {
                    let this = self.clone();
                    self.tasks.spawn("strangers", async move {
                        if let Err(error) = this.look_for_strangers().await {
                            tracing::debug!(%error, "could not list who is on the networks");
                            // The comparison every few seconds looks again.
                            this.doubt_all();
                        }
                    });
                }
                let this = self.clone();
                self.tasks.spawn("confirm", async move { this.confirm(&container).await });
            }
            ContainerEvent::Died { container, code, at } => {
                self.has_run(&container);
                if let Some(code) = code {
                    self.exits.died(&container, code);
                }
                self.died(&container, code, at);
                // Podman reports no disconnect when a container ends.
                self.stranger_ended(&container);
                // Events can come late: if the container runs, this event reported an earlier run.
                let this = self.clone();
                self.tasks.spawn("look", async move { this.look_again(&container).await });
            }
            ContainerEvent::Destroyed(container) => {
                self.stranger_gone(&container, None);
                self.forget(&container);
            }
            ContainerEvent::Connected { container, network } => {
                let network = self.id_of(network);
                self.connected(container, network);
            }
            ContainerEvent::Disconnected { container, network, at } => {
                let network = self.id_of(network);
                self.stranger_gone(&container, Some(&network));
                self.disconnected(&container, &network, at);
            }
        }
    }
}
