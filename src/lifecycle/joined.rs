//! Containers that join the network of a leased container: they share its address, so they use its lease,
//! which ends with it.

use std::sync::Arc;

use super::{Lifecycle, LifecycleState};
use crate::docker::proxy::{Attachment, LeasedAs, RelayAt};
use crate::workload::{ContainerId, Grant, Task};

impl Lifecycle {
    pub(super) fn leased_as(&self, container: &ContainerId) -> Option<LeasedAs> {
        let state = self.state();
        let attached = state.containers.get(container).filter(|attached| !attached.barred)?;
        let relay_at = |address, container_credentials| RelayAt { address, container_credentials };
        let relay = match &attached.place {
            Attachment::Shared => state.second.as_ref()?.relay,
            Attachment::Linked(linked) => {
                relay_at(linked.segment().relay(), linked.segment().container_credentials())
            }
            Attachment::Cell(cell) => relay_at(cell.relay, false),
            // Only the container's own environment holds its path.
            Attachment::Loopback(_) => return None,
        };
        let Grant { identity, secret, .. } = &attached.grant;
        Some(LeasedAs { identity: identity.clone(), relay, secret: secret.clone() })
    }

    /// False if the container `with` is gone or the session has ended.
    pub(super) fn join(&self, container: ContainerId, with: &ContainerId, task: Arc<Task>) -> bool {
        let mut state = self.state();
        if state.closed || !state.containers.contains_key(with) {
            return false;
        }
        state.joined.insert(container, task);
        true
    }
}

impl LifecycleState {
    /// Whether access to the container gives access to a lease.
    pub(super) fn is_leased(&self, container: &ContainerId) -> bool {
        self.containers.contains_key(container) || self.joined.contains_key(container)
    }
}
