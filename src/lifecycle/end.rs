//! The end of a session: lists the containers that still run and cuts all of them off.

use std::sync::Arc;

use super::exit::{UnreportedEnd, good_tokens};
use super::{AttachedContainer, Lifecycle, LifecycleState};
use crate::docker::EngineError;
use crate::docker::members::Member;
use crate::mint::Mint;
use crate::record::metrics::Cause;
use crate::token::{Deadline, Now};
use crate::workload::{ContainerId, Grant, Task};

/// The session's totals, for its last line.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Number of containers.
    pub attached: u64,
    /// Number of leases: a container that was started twice counts twice.
    pub cut_off: u64,
    /// Expiries of tokens that are still valid; a token that two containers hold counts once.
    pub outstanding: Vec<Deadline>,
}

impl Lifecycle {
    /// Running containers of this session, according to the engine, with their tasks. The events alone do not
    /// suffice at the end: the event of a start may not have arrived yet.
    pub async fn running(&self) -> Result<Vec<(ContainerId, Arc<Task>)>, EngineError> {
        let members = self.engine.containers_of(&self.session).await?;
        let state = self.state();
        let running = members.iter().filter(|member| member.running);
        let row = |member: &Member| {
            let id = ContainerId::parse(&member.id)?;
            let own = state.containers.get(&id).map(|attached: &AttachedContainer| &attached.grant.task);
            let task = own.or_else(|| state.joined.get(&id))?.clone();
            Some((id, task))
        };
        Ok(running.filter_map(row).collect())
    }

    /// Cuts off every container and admits none from now on. The summary includes the outstanding tokens.
    pub fn cut_off_all(&self) -> Summary {
        let mut state = self.state();
        let unreported: Vec<UnreportedEnd> =
            state.containers.values_mut().filter_map(|attached| attached.unreported.take()).collect();
        unreported.iter().for_each(|unreported| self.report_end(unreported, Cause::Ended, None));
        state.closed = true;
        let leases = state.writer.cut_off_all();
        state.cut_off += leases.len() as u64;
        let now = Now::read();
        for lease in &leases {
            state.remember(lease);
        }
        for attached in state.containers.values_mut() {
            let Some(lease) = attached.lease.take() else { continue };
            let alive = good_tokens(&attached.held, Some(&lease), now);
            self.recorder.cut_off(&attached.grant, Cause::Session, None, &alive);
        }
        self.mint.forget_all();
        state.summary()
    }

    /// Erases tokens that were minted ahead at the start of the session and that no container requested.
    pub(super) fn forget_unused(&self) {
        self.state().forget_unused(&self.mint);
    }
}

impl LifecycleState {
    /// Erases cached tokens that no live lease can request. Runs under the lock of the leases: a lease
    /// admitted before this call keeps its tokens, and one admitted after it has its tokens minted again.
    pub(super) fn forget_unused(&self, mint: &Mint) {
        let leased = self.containers.values().filter(|attached| attached.lease.is_some());
        let live: Vec<Grant> = leased.map(|attached| attached.grant.clone()).collect();
        mint.forget_all_but(&live);
    }
}
