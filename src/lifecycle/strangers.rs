//! Containers that clients connected, bypassing the proxy, to a network of containers with an identity.
//!
//! The proxy has not judged them: they may have `NET_RAW`, with which they could take a neighbour's address.
//! From the engine's event until they are gone, the server answers no container of that network (503).

use std::collections::HashMap;
use std::sync::Arc;

use super::{AttachedContainer, Lifecycle, LifecycleState};
use crate::docker::EngineError;
use crate::docker::proxy::could_forge;
use crate::docker::segment::Segment;
use crate::record::metrics::Cause;
use crate::workload::ContainerId;

/// The strangers on each network, by its id.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    networks: HashMap<String, HashMap<ContainerId, StrangerEntry>>,
    number: u64,
}

#[derive(Debug)]
struct StrangerEntry {
    /// Differs each time the container is added: an answer about an earlier visit does not count.
    number: u64,
    /// Whether a notice has named it.
    noticed: bool,
}

impl Strangers {
    /// False if the container was one already.
    fn add(&mut self, container: &ContainerId, network: &str) -> bool {
        let there = self.networks.entry(network.into()).or_default();
        if there.contains_key(container) {
            return false;
        }
        self.number += 1;
        there.insert(container.clone(), StrangerEntry { number: self.number, noticed: false });
        true
    }

    fn number(&self, container: &ContainerId, network: &str) -> Option<u64> {
        Some(self.networks.get(network)?.get(container)?.number)
    }

    /// Whether no notice has named the stranger yet; one does from now on.
    fn is_news(&mut self, container: &ContainerId, network: &str) -> bool {
        let stranger = self.networks.get_mut(network).and_then(|there| there.get_mut(container));
        stranger.is_some_and(|stranger| !std::mem::replace(&mut stranger.noticed, true))
    }

    /// Whether the container was one there.
    fn remove(&mut self, container: &ContainerId, network: &str) -> bool {
        let Some(there) = self.networks.get_mut(network) else { return false };
        let removed = there.remove(container).is_some();
        if there.is_empty() {
            self.networks.remove(network);
        }
        removed
    }

    pub(super) fn are_on(&self, network: &str) -> bool {
        self.networks.contains_key(network)
    }

    /// The networks on which the container is one; with `network`, at most that one.
    fn networks_of(&self, container: &ContainerId, network: Option<&str>) -> Vec<String> {
        let on = self.networks.iter().filter(|(_, there)| there.contains_key(container)).map(|(on, _)| on);
        on.filter(|on| network.is_none_or(|network| network == *on)).cloned().collect()
    }

    /// Those on the network, with their numbers.
    fn on(&self, network: &str) -> Vec<(ContainerId, u64)> {
        let there = self.networks.get(network).into_iter().flatten();
        there.map(|(container, stranger)| (container.clone(), stranger.number)).collect()
    }
}

impl Lifecycle {
    /// The id of a network of ours that an event names: Podman's look-up of the id may have failed.
    pub(super) fn id_of(&self, network: String) -> String {
        let second = self.state().second.as_ref().map(|second| second.network.clone());
        let segment = self.segment.as_ref().map(Segment::network);
        let mut ours = second.iter().chain(segment);
        ours.find(|ours| ours.name == network).map_or(network, |ours| ours.id.clone())
    }

    /// Handles the event that a container was connected to a network.
    pub(super) fn connected(self: Arc<Self>, container: ContainerId, network: String) {
        if self.suspend(&container, &network) {
            let tasks = self.tasks.clone();
            tasks.spawn("stranger", async move { self.look_at_stranger(&container, &network).await });
        }
    }

    /// Suspends the leases of `network` if the container is a stranger there. Awaits nothing, so that only
    /// the engine's own delay precedes the suspension.
    pub(super) fn suspend(&self, container: &ContainerId, network: &str) -> bool {
        let mut state = self.state();
        let ours = state.second.as_ref().is_some_and(|second| second.network.id == network)
            || self.segment.as_ref().is_some_and(|segment| segment.network().id == network);
        if !ours || state.is_leased(container) || self.known.has(container.as_str()) {
            return false;
        }
        let LifecycleState { writer, containers, strangers, .. } = &mut *state;
        if !strangers.add(container, network) {
            return false;
        }
        let on_network = containers.values().filter(|attached| attached.network == network);
        on_network.filter_map(|attached| attached.lease.as_ref()).for_each(|lease| writer.doubt(lease));
        true
    }

    /// Ends the leases whose address the stranger has, and lifts the suspension if the stranger is harmless.
    /// Only strangers on the default bridge can be harmless, namely if they cannot forge addresses.
    pub(super) async fn look_at_stranger(self: &Arc<Self>, container: &ContainerId, network: &str) {
        let number = || self.state().strangers.number(container, network);
        let before = number();
        let seen = self.engine.look_at_foreign(container.as_str(), network).await;
        if before.is_none() || number() != before {
            return; // it left meanwhile; if it is back, there is another inspection
        }
        // Or it got its lease: another client started it while it was attached.
        let leased = self.state().is_leased(container);
        let seen = match seen {
            Ok(seen) if seen.running && seen.connected && !leased => seen,
            Ok(_) => return self.stranger_gone(container, Some(network)),
            Err(error) if error.is_gone() => return self.stranger_gone(container, Some(network)),
            Err(error) => {
                tracing::debug!(%error, %container, "could not look at a stranger");
                return;
            }
        };
        // On the second network the engine itself prevents two containers from running at one address.
        let segment = self.segment.as_ref().filter(|segment| segment.network().id == network);
        let same_address: Vec<ContainerId> = {
            let state = self.state();
            let same = state.containers.values().filter(|attached| {
                segment.is_some() && attached.network == network && seen.addresses.contains(&attached.address)
            });
            same.map(|attached| attached.grant.container.clone()).collect()
        };
        for holder in &same_address {
            let mark = |attached: &mut AttachedContainer| std::mem::replace(&mut attached.barred, true);
            let barred = self.state().containers.get_mut(holder).is_none_or(mark);
            if barred {
                continue;
            }
            self.console.notice(format!(
                "{container} has the address of {holder}, which loses its identity; create it again"
            ));
            self.cut_off(holder, Cause::AddressTaken, None);
        }
        let on_default = segment.is_some_and(Segment::is_default_bridge);
        if on_default && same_address.is_empty() && !could_forge(&seen.host) {
            return self.stranger_gone(container, Some(network));
        }
        let in_use = self.state().containers.values().any(|attached| attached.network == network);
        if !in_use || !self.state().strangers.is_news(container, network) {
            return;
        }
        self.console.notice(format!(
            "{container} was started on the network of containers with an identity, past kfp-creds, and could take \
             their addresses: they get no credentials until it is gone (docker rm -f {})",
            container.short()
        ));
    }

    /// Handles the event that a container ended. The event may be late, and the container may run again.
    pub(super) fn stranger_ended(self: &Arc<Self>, container: &ContainerId) {
        let networks = self.state().strangers.networks_of(container, None);
        for network in networks {
            let (this, container) = (self.clone(), container.clone());
            let looks = async move { this.look_at_stranger(&container, &network).await };
            self.tasks.spawn("stranger", looks);
        }
    }

    /// Handles the event that a container left a network, or all networks (`None`). On a network without
    /// strangers, each container is answered again once an inspection sees it running.
    pub(super) fn stranger_gone(self: &Arc<Self>, container: &ContainerId, network: Option<&str>) {
        let unsuspended: Vec<ContainerId> = {
            let mut state = self.state();
            let left = state.strangers.networks_of(container, network);
            for network in &left {
                state.strangers.remove(container, network);
            }
            let clear = |network: &String| left.contains(network) && !state.strangers.are_on(network);
            let on_clear = state.containers.values().filter(|attached| clear(&attached.network));
            on_clear.map(|attached| attached.grant.container.clone()).collect()
        };
        if unsuspended.is_empty() {
            return;
        }
        // One after the other: there may be hundreds, and each is a connection to the engine.
        let this = self.clone();
        self.tasks.spawn("confirm", async move {
            for container in unsuspended {
                this.confirm(&container).await;
            }
        });
    }

    /// Compares the strangers with the engine's lists. Fails if a network could not be listed. On the default
    /// bridge it adds strangers only after a `gap`: each container there would suspend all leases until an
    /// inspection showed it to be harmless.
    pub(super) async fn look_for_strangers(self: &Arc<Self>, gap: bool) -> Result<(), EngineError> {
        let second = self.state().second.as_ref().map(|second| second.network.clone());
        let segment = self.segment.as_ref().map(|segment| segment.network().clone());
        for network in second.into_iter().chain(segment) {
            // Taken before the list: a stranger that comes afterwards cannot be missing from it.
            let known = self.state().strangers.on(&network.id);
            let members = self.engine.containers_on(&network).await?;
            let running = members.iter().filter(|member| member.running);
            let there: Vec<ContainerId> =
                running.filter_map(|member| ContainerId::parse(&member.id)).collect();
            for (gone, number) in known {
                let same = self.state().strangers.number(&gone, &network.id) == Some(number);
                if same && !there.contains(&gone) {
                    self.stranger_gone(&gone, Some(&network.id));
                }
            }
            let is_here = |segment: &Segment| segment.network().id == network.id;
            let segment = self.segment.as_ref().filter(|segment| is_here(segment));
            let adds = gap || !segment.is_some_and(Segment::is_default_bridge);
            for container in there {
                // Known strangers are inspected again: an inspection may have failed.
                let is_known = self.state().strangers.number(&container, &network.id).is_some();
                if is_known || (adds && self.suspend(&container, &network.id)) {
                    self.look_at_stranger(&container, &network.id).await;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_clear_when_its_last_stranger_is_gone() {
        let [one, other] = ["a", "b"].map(|digit| ContainerId::parse(&digit.repeat(64)).unwrap());
        let mut strangers = Strangers::default();
        assert!(strangers.add(&one, "n") && !strangers.add(&one, "n"));
        assert!(strangers.add(&other, "n") && strangers.add(&one, "m"));
        assert_eq!(strangers.networks_of(&one, Some("n")), ["n"]);
        assert_eq!(strangers.networks_of(&one, None).len(), 2);
        assert!(strangers.remove(&one, "n") && strangers.are_on("n"));
        assert!(strangers.remove(&other, "n") && !strangers.are_on("n") && strangers.are_on("m"));
        assert!(!strangers.remove(&other, "n"));
    }
}
