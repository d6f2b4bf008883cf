//! What a person sees and does from outside: the containers of a session, and cutting one off although it
//! runs. It stays cut off until it is destroyed: neither a start nor a gap in the events brings its lease back.

use std::sync::Arc;

use super::exit::good_tokens;
use super::{Lifecycle, State, Summary};
use crate::record::metrics::Cause;
use crate::registry::Lease;
use crate::token::{HandedOut, Now};
use crate::workload::{ContainerId, Grant, Identity};

/// A container that has an address of ours.
#[derive(Clone, Debug)]
pub struct Member {
    pub grant: Grant,
    pub address: std::net::Ipv4Addr,
    pub lease: Option<Lease>,
    pub barred: bool,
    /// What it holds of ended leases.
    pub held: Vec<HandedOut>,
}

impl Member {
    /// All tokens in its hands.
    pub fn tokens(&self, now: Now) -> Vec<HandedOut> {
        good_tokens(&self.held, self.lease.as_ref(), now)
    }
}

impl State {
    /// Keeps what the holder of an ended lease may still use.
    pub(super) fn remember(&mut self, lease: &Lease) {
        let now = Now::read();
        self.outstanding.retain(|_, end| !end.is_over(now));
        self.outstanding.extend(lease.issued().alive(now).into_iter().map(|token| (token.id, token.expires)));
    }

    pub(super) fn summary(&mut self) -> Summary {
        let now = Now::read();
        self.outstanding.retain(|_, end| !end.is_over(now));
        let outstanding = self.outstanding.values().copied().collect();
        Summary { attached: self.attached, cut_off: self.cut_off, outstanding }
    }
}

impl Lifecycle {
    /// What the session did so far.
    pub fn summary(&self) -> Summary {
        self.state().summary()
    }

    /// Every container that has an address of ours, in the order of the addresses.
    pub fn members(&self) -> Vec<Member> {
        let state = self.state();
        let row = |tenant: &super::Tenant| Member {
            grant: tenant.grant.clone(),
            address: tenant.address,
            lease: tenant.lease.clone(),
            barred: tenant.barred,
            held: tenant.held.clone(),
        };
        let mut members: Vec<Member> = state.tenants.values().map(row).collect();
        members.sort_by_key(|member| member.address);
        members
    }

    /// From now on `container` gets nothing, whether it runs or starts again; what it holds. `None` when it has
    /// no address of ours (any more), or was cut off by hand before.
    pub fn bar(&self, container: &ContainerId) -> Option<Vec<HandedOut>> {
        {
            let mut state = self.state();
            let tenant = state.tenants.get_mut(container)?;
            if std::mem::replace(&mut tenant.barred, true) {
                return None;
            }
        }
        Some(self.cut_off(container, Cause::ByHand, None))
    }

    /// Whom an identity is, as far as that is known.
    pub(super) fn account(&self, identity: &Arc<Identity>) -> String {
        let own = || self.mint.principal().email.clone();
        identity.service_account.clone().or_else(own).unwrap_or_default()
    }
}
