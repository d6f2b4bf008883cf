//! Containers in the network of a leased one: they have its address, so its lease is theirs, and ends with it.

use std::sync::Arc;

use super::{Lifecycle, State};
use crate::docker::proxy::{LeasedAs, Place};
use crate::workload::{ContainerId, Task};

impl Lifecycle {
    pub(super) fn leased_as(&self, container: &ContainerId) -> Option<LeasedAs> {
        let state = self.state();
        let tenant = state.tenants.get(container).filter(|tenant| !tenant.barred)?;
        let relay = match &tenant.place {
            Place::Shared => None,
            Place::Cell(cell) => Some(cell.relay),
            // Its path is in its own environment alone.
            Place::Loopback(_) => return None,
        };
        Some(LeasedAs { identity: tenant.grant.identity.clone(), relay })
    }

    /// False where the one that it joins is gone, or the session has ended.
    pub(super) fn join(&self, container: ContainerId, with: &ContainerId, task: Arc<Task>) -> bool {
        let mut state = self.state();
        if state.closed || !state.tenants.contains_key(with) {
            return false;
        }
        state.joined.insert(container, task);
        true
    }
}

impl State {
    /// Whether reaching into it would be reaching into a lease.
    pub(super) fn is_leased(&self, container: &ContainerId) -> bool {
        self.tenants.contains_key(container) || self.joined.contains_key(container)
    }
}
