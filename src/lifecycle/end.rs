//! The end of a session: who still runs, and the cutting off of everybody.

use std::sync::Arc;

use super::exit::{Untold, good_tokens};
use super::{Lifecycle, State, Tenant};
use crate::docker::EngineError;
use crate::docker::members::Member;
use crate::mint::Mint;
use crate::record::metrics::Cause;
use crate::token::{Deadline, Now};
use crate::workload::{ContainerId, Grant, Task};

/// What a session did, for its last line.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Containers.
    pub attached: u64,
    /// Leases: a container that was started twice counts twice.
    pub cut_off: u64,
    /// Ends of tokens that still live; one that two containers hold counts once.
    pub outstanding: Vec<Deadline>,
}

impl Lifecycle {
    /// Containers of this session that the engine says are running, with what they are. What the events
    /// said is not enough for an end: a start may not have been seen yet.
    pub async fn running(&self) -> Result<Vec<(ContainerId, Arc<Task>)>, EngineError> {
        let members = self.engine.containers_of(&self.network.session).await?;
        let state = self.state();
        let running = members.iter().filter(|member| member.running);
        let row = |member: &Member| {
            let id = ContainerId::parse(&member.id)?;
            let tenant = state.tenants.get(&id).map(|tenant: &Tenant| &tenant.grant.task);
            let task = tenant.or_else(|| state.joined.get(&id))?.clone();
            Some((id, task))
        };
        Ok(running.filter_map(row).collect())
    }

    /// Cuts everything off, and admits nothing from now on. What is outstanding goes into the summary.
    pub fn cut_off_all(&self) -> Summary {
        let mut state = self.state();
        let untold: Vec<Untold> =
            state.tenants.values_mut().filter_map(|tenant| tenant.untold.take()).collect();
        untold.iter().for_each(|untold| self.tell(untold, Cause::Ended, None));
        state.closed = true;
        let leases = state.writer.cut_off_all();
        state.cut_off += leases.len() as u64;
        let now = Now::read();
        for lease in &leases {
            state.remember(lease);
        }
        for tenant in state.tenants.values_mut() {
            let Some(lease) = tenant.lease.take() else { continue };
            let alive = good_tokens(&tenant.held, Some(&lease), now);
            self.recorder.cut_off(&tenant.grant, Cause::Session, None, &alive);
        }
        self.mint.forget_all();
        state.summary()
    }

    /// What was made at the start of the session, and nobody came for, does not stay in memory either.
    pub(super) fn forget_unused(&self) {
        self.state().forget_unused(&self.mint);
    }
}

impl State {
    /// Overwrites what the mint keeps and no live lease can ask for. Under the lock of the leases: one that is
    /// admitted before this counts, and one that is admitted after it has its token made anew.
    pub(super) fn forget_unused(&self, mint: &Mint) {
        let leased = self.tenants.values().filter(|tenant| tenant.lease.is_some());
        let live: Vec<Grant> = leased.map(|tenant| tenant.grant.clone()).collect();
        mint.forget_all_but(&live);
    }
}
