//! Handles the engine's events, and compares containers with the engine's state after a gap in the events and
//! every few seconds.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::{AttachedContainer, Lifecycle, LifecycleState};
use crate::docker::events::{ContainerEvent, Moment};
use crate::docker::{EngineError, Product};
use crate::registry::Lease;
use crate::workload::ContainerId;

/// The pause before the engine is asked again.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

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
            if self.tasks.stop().is_cancelled() {
                return;
            }
            self.doubt_all();
            tokio::select! {
                () = self.tasks.stop().cancelled() => return,
                () = tokio::time::sleep(AGAIN_AFTER) => {}
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
                    if let Some(nanos) = at.and_then(|at| u64::try_from(at).ok()) {
                        // The engine would repeat an event of that very time.
                        *since = SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos.saturating_add(1));
                    }
                    self.clone().on(event, at);
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
        if let Err(error) = self.check_networks().await {
            tracing::debug!(%error, "could not list who is on the networks");
            return false;
        }
        for (container, network) in self.known_networks(|_| true) {
            self.look_at(&container, &network).await;
        }
        true
    }

    /// Lists who is on the networks. From then on leases are confirmed again, unless the events broke off once
    /// more meanwhile.
    async fn check_networks(self: &Arc<Self>) -> Result<(), EngineError> {
        let breaks = self.state().breaks;
        self.look_for_strangers(true).await?;
        let mut state = self.state();
        if state.breaks == breaks {
            state.unchecked = false;
        }
        Ok(())
    }

    /// Lists the networks again and again until the engine answers; meanwhile no lease is confirmed.
    async fn recheck_networks(self: Arc<Self>) {
        let mut failed = false;
        while let Err(error) = self.check_networks().await {
            tracing::debug!(%error, "could not list who is on the networks");
            if !std::mem::replace(&mut failed, true) {
                self.doubt_all();
            }
            if !self.pause(AGAIN_AFTER).await {
                return;
            }
        }
        if failed {
            self.compare().await;
        }
    }

    /// Compares all known containers and the networks with the engine's lists: an engine drops events for a
    /// reader that it considers slow.
    pub(super) async fn compare(self: &Arc<Self>) {
        if let Err(error) = self.look_for_strangers(false).await {
            tracing::debug!(%error, "could not list who is on the networks");
        }
        // Taken before the list: a container that is attached afterwards cannot be missing from it.
        let known = self.known_networks(|attached| !attached.barred);
        if known.is_empty() {
            return;
        }
        let Ok(members) = self.engine.containers_of(&self.session).await else { return };
        for (container, network) in known {
            let member = members.iter().find(|member| member.id == container.as_str());
            if member.is_none_or(|member| self.differs(&container, member.running)) {
                self.look_at(&container, &network).await;
            }
        }
    }

    /// Whether the container's lease does not fit whether it is `running`.
    fn differs(&self, container: &ContainerId, running: bool) -> bool {
        let state = self.state();
        let Some(attached) = state.containers.get(container) else { return false };
        let suspended = state.unchecked || state.strangers.are_on(&attached.network);
        let confirmed = attached.lease.as_ref().is_some_and(Lease::confirmed);
        match running {
            true => !confirmed && !suspended,
            false => attached.lease.is_some() && attached.begun.is_some(),
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
            return; // an event has changed the lease: the inspection may show the run before
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
            Ok(seen) => {
                // A lease whose run was not seen yet may belong to a start that is under way.
                let pending = |attached: &mut AttachedContainer| {
                    attached.finished = seen.finished;
                    attached.lease.is_some() && attached.begun.is_none()
                };
                let pending = self.state().containers.get_mut(container).is_some_and(pending);
                if !pending {
                    self.ended_unseen(container, seen.exit_code);
                }
            }
            Err(error) if error.is_gone() => self.forget(container),
            Err(error) => tracing::debug!(%error, %container, "could not look at a container"),
        }
    }

    /// Whether an inspection has already shown the end of the run that began at the time `at`.
    fn has_ended_since(&self, container: &ContainerId, at: Moment) -> bool {
        let finished = self.state().containers.get(container).and_then(|attached| attached.finished);
        matches!((at, finished), (Some(at), Some(finished)) if at < finished)
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
        state.breaks += 1;
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

    /// Handles an event of the time `at`.
    pub(super) fn on(self: Arc<Self>, event: ContainerEvent, at: Moment) {
        match event {
            ContainerEvent::Started(container) if self.has_ended_since(&container, at) => {}
            ContainerEvent::Started(container) => {
                self.has_run(&container);
                self.readmit(&container);
                // Podman reports the connection of a running container, but not that of a container that
                // starts.
                if self.engine.product() == Product::Podman && !self.state().is_leased(&container) {
                    let this = self.clone();
                    self.tasks.spawn("strangers", this.recheck_networks());
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
