//! Containers that join the network of a leased container: they share its address, so they use its lease,
//! which ends with it.

use std::sync::Arc;

use super::{Lifecycle, LifecycleState};
use crate::docker::proxy::{Attachment, LeasedAs, RelayAt};
use crate::workload::{ContainerId, Grant, Task};

impl Lifecycle {
    pub(super) fn leased_as(&self, container: &ContainerId) -> Option<LeasedAs> {
        let state = self.state();
        let tenant = state.tenants.get(container).filter(|tenant| !tenant.barred)?;
        let at = |address, container_credentials| RelayAt { address, container_credentials };
        let relay = match &tenant.place {
            Attachment::Shared => state.second.as_ref()?.relay,
            Attachment::Linked(linked) => {
                at(linked.segment().relay(), linked.segment().container_credentials())
            }
            Attachment::Cell(cell) => at(cell.relay, false),
            // Only that container's own environment holds its path.
            Attachment::Loopback(_) => return None,
        };
        let Grant { identity, secret, .. } = &tenant.grant;
        Some(LeasedAs { identity: identity.clone(), relay, secret: secret.clone() })
    }

    /// False if the container `with` is gone or the session has ended.
    pub(super) fn join(&self, container: ContainerId, with: &ContainerId, task: Arc<Task>) -> bool {
        let mut state = self.state();
        if state.closed || !state.tenants.contains_key(with) {
            return false;
        }
        state.joined.insert(container, task);
        true
    }
}

impl LifecycleState {
    /// Whether access to the container gives access to a lease.
    pub(super) fn is_leased(&self, container: &ContainerId) -> bool {
        self.tenants.contains_key(container) || self.joined.contains_key(container)
    }
}
