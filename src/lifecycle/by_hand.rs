//! Operator actions: listing the containers of a session, and cutting off a running container. It stays cut
//! off until it is destroyed: neither a start nor a gap in the events restores its lease.

use std::sync::Arc;

use super::exit::good_tokens;
use super::{AttachedContainer, Lifecycle, LifecycleState, Summary};
use crate::record::metrics::Cause;
use crate::registry::Lease;
use crate::token::{HandedOut, Now};
use crate::workload::{ContainerId, Grant, Identity};

/// A container that has an address of the session.
#[derive(Clone, Debug)]
pub struct JoinedMember {
    pub grant: Grant,
    pub address: std::net::Ipv4Addr,
    pub lease: Option<Lease>,
    pub barred: bool,
    /// Tokens that its ended leases handed out.
    pub held: Vec<HandedOut>,
}

impl JoinedMember {
    /// All unexpired tokens that the container may hold.
    pub fn tokens(&self, now: Now) -> Vec<HandedOut> {
        good_tokens(&self.held, self.lease.as_ref(), now)
    }
}

impl LifecycleState {
    /// Records the tokens of an ended lease that its container can still use.
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
    /// The session's totals so far.
    pub fn summary(&self) -> Summary {
        self.state().summary()
    }

    /// Every container that has an address of the session, ordered by address.
    pub fn members(&self) -> Vec<JoinedMember> {
        let state = self.state();
        let row = |attached: &AttachedContainer| JoinedMember {
            grant: attached.grant.clone(),
            address: attached.address,
            lease: attached.lease.clone(),
            barred: attached.barred,
            held: attached.held.clone(),
        };
        let mut members: Vec<JoinedMember> = state.containers.values().map(row).collect();
        members.sort_by_key(|member| member.address);
        members
    }

    /// Cuts off `container` for good, even if it starts again. Returns the tokens that it still holds; `None`
    /// if it has no address of the session (any more) or was cut off by hand before.
    pub fn cut_off_for_good(&self, container: &ContainerId) -> Option<Vec<HandedOut>> {
        {
            let mut state = self.state();
            let attached = state.containers.get_mut(container)?;
            if std::mem::replace(&mut attached.barred, true) {
                return None;
            }
        }
        Some(self.cut_off(container, Cause::ByHand, None))
    }

    /// The account of an identity: its Google account, else its AWS role or Azure principal; empty if
    /// unknown.
    pub(super) fn account(&self, identity: &Arc<Identity>) -> String {
        if !identity.google {
            let role = identity.aws.as_ref().and_then(|aws| aws.role.clone());
            let principal = || identity.azure.as_ref().and_then(|azure| azure.client_id.clone());
            return role.or_else(principal).unwrap_or_default();
        }
        let own = || self.mint.principal().email.clone();
        identity.service_account.clone().or_else(own).unwrap_or_default()
    }
}
