//! The end of one run of a container: its lease ends at once; the end is reported once, with the exit code.
//!
//! Engine 20.10 sends `die`, with the exit code, and then `disconnect`; since 23.0 the disconnect comes first
//! and may be the only event. So a disconnect ends the lease, and the report waits for the die or for an
//! inspection.

use std::sync::Arc;
use std::time::Duration;

use super::{AttachedContainer, Lifecycle, LifecycleState};
use crate::console::{Line, expiry};
use crate::docker::events::Moment;
use crate::docker::proxy::Attachment;
use crate::record::metrics::Cause;
use crate::registry::Lease;
use crate::token::{Deadline, HandedOut, Now};
use crate::workload::{ContainerId, Grant};

/// How long to wait for the `die` after a disconnect before inspecting the container.
const DIE_WITHIN: Duration = Duration::from_secs(1);
/// How long inspections may take at the end of the session.
const LOOK_WITHIN: Duration = Duration::from_secs(1);

/// The end of a lease that has not been reported yet.
#[derive(Debug)]
pub(super) struct UnreportedEnd {
    /// The epoch of the lease that ended.
    epoch: u64,
    grant: Grant,
    alive: Vec<HandedOut>,
}

/// The unexpired tokens of ended leases and of the live one. A token that both handed out is listed once.
pub(super) fn good_tokens(held: &[HandedOut], lease: Option<&Lease>, now: Now) -> Vec<HandedOut> {
    let good = |token: &&HandedOut| !token.expires.is_over(now);
    let mut all: Vec<HandedOut> = held.iter().filter(good).copied().collect();
    for token in lease.iter().flat_map(|lease| lease.issued().alive(now)) {
        if all.iter().all(|known| known.id != token.id) {
            all.push(token);
        }
    }
    all
}

impl Lifecycle {
    /// Ends the lease: it gets no new tokens, replies in flight are dropped, and cached tokens that only it
    /// could use are erased. Returns the tokens that the container may still hold, of this lease and earlier
    /// ones. The container keeps its address until it is destroyed, because it may be started again.
    pub(super) fn cut_off(
        &self,
        container: &ContainerId,
        cause: Cause,
        exit_code: Option<i64>,
    ) -> Vec<HandedOut> {
        // A cut-off by a person is reported even if there is no lease to end.
        let Some(unreported) = self.end_lease(container, cause == Cause::ByHand) else { return vec![] };
        self.report_end(&unreported, cause, exit_code);
        unreported.alive
    }

    /// `None` if the container's lease has ended before, unless `even_without_lease` is set.
    fn end_lease(&self, container: &ContainerId, even_without_lease: bool) -> Option<UnreportedEnd> {
        let mut state = self.state();
        let LifecycleState { writer, containers, .. } = &mut *state;
        let attached = containers.get_mut(container)?;
        let lease = attached.lease.take();
        if lease.is_none() && !even_without_lease {
            return None;
        }
        if lease.is_some() {
            writer.cut_off(attached.address, container);
        }
        attached.held = good_tokens(&attached.held, lease.as_ref(), Now::read());
        let epoch = lease.as_ref().map_or(0, Lease::epoch);
        let unreported = UnreportedEnd { epoch, grant: attached.grant.clone(), alive: attached.held.clone() };
        if let Some(lease) = lease {
            state.cut_off += 1;
            state.remember(&lease);
        }
        state.forget_unused(&self.mint);
        Some(unreported)
    }

    pub(super) fn report_end(&self, unreported: &UnreportedEnd, cause: Cause, exit_code: Option<i64>) {
        let UnreportedEnd { grant, alive, .. } = unreported;
        self.recorder.cut_off(grant, cause, exit_code, alive);
        if cause == Cause::AddressTaken {
            return; // a notice has reported it: the container did not end, and no person cut it off
        }
        let (now, last) = (Now::read(), alive.iter().map(|token| token.expires).max_by_key(Deadline::wall));
        self.console.say(Line::CutOff {
            task: &grant.task.to_string(),
            container: grant.container.short(),
            by_hand: cause == Cause::ByHand,
            exit_code,
            outstanding: last.map(|end| expiry(end.wall(), end.remaining(now))),
        });
    }

    /// Takes the unreported end of a container; with an `epoch`, only the end of that epoch.
    fn take_unreported(&self, container: &ContainerId, epoch: Option<u64>) -> Option<UnreportedEnd> {
        let mut state = self.state();
        let unreported = &mut state.containers.get_mut(container)?.unreported;
        unreported.take_if(|unreported| epoch.is_none_or(|epoch| unreported.epoch == epoch))
    }

    /// Handles the engine's event that a container ended at the time `at`.
    pub(super) fn died(&self, container: &ContainerId, code: Option<i64>, at: Moment) {
        if let Some(unreported) = self.take_unreported(container, None) {
            self.report_end(&unreported, Cause::Ended, code);
            // The container may have started again: its new run gets no answer before an inspection sees it.
            self.doubt(container);
        } else if self.is_earlier(container, at) {
            self.doubt(container);
        } else {
            self.cut_off(container, Cause::Ended, code);
        }
    }

    /// Handles the event that the container left `network`, because it ended or was disconnected by hand.
    pub(super) fn disconnected(self: &Arc<Self>, container: &ContainerId, network: &str, at: Moment) {
        // An unconfirmed lease does not end: the event may be a late one of the previous run.
        let confirmed = |attached: &AttachedContainer| attached.lease.as_ref().is_some_and(Lease::confirmed);
        let ends = |attached: &AttachedContainer| attached.network == network && confirmed(attached);
        if !self.state().containers.get(container).is_some_and(ends) || self.is_earlier(container, at) {
            return;
        }
        let Some(unreported) = self.end_lease(container, false) else { return };
        let epoch = unreported.epoch;
        let older = match self.state().containers.get_mut(container) {
            Some(attached) => attached.unreported.replace(unreported),
            None => Some(unreported),
        };
        if let Some(older) = older {
            self.report_end(&older, Cause::Ended, None);
        }
        let (this, container) = (self.clone(), container.clone());
        self.tasks.spawn("exit code", async move {
            tokio::select! {
                () = this.tasks.stop().cancelled() => {}
                () = tokio::time::sleep(DIE_WITHIN) => this.inspect_and_report_end(&container, epoch).await,
            }
        });
    }

    /// Handles the engine's answer to the proxy's wait for `container`. If no event ends the lease in time,
    /// the event was lost.
    pub(super) fn expect_die(self: Arc<Self>, container: ContainerId) {
        let Some((epoch, network)) = self.leased(&container) else { return };
        self.tasks.clone().spawn("die", async move {
            tokio::select! {
                () = self.tasks.stop().cancelled() => return,
                () = tokio::time::sleep(DIE_WITHIN) => {}
            }
            let same = || self.leased(&container).is_some_and(|(now, _)| now == epoch);
            if !same() {
                return;
            }
            let seen = self.engine.look(container.as_str(), &network).await;
            // The container may have been started again meanwhile, and that run has another lease.
            if !same() {
                return;
            }
            match seen {
                Ok(seen) if !seen.running => {
                    let code = seen.exit_code.or_else(|| self.exits.code(&container));
                    self.has_run(&container);
                    self.ended_unseen(&container, code);
                }
                // The event of its removal was lost as well.
                Err(error) if error.is_gone() => self.forget(&container),
                Ok(_) | Err(_) => {}
            }
        });
    }

    /// The epoch of the container's lease, and its network.
    pub(super) fn leased(&self, container: &ContainerId) -> Option<(u64, String)> {
        let state = self.state();
        let attached = state.containers.get(container)?;
        Some((attached.lease.as_ref()?.epoch(), attached.network.clone()))
    }

    /// Whether `at` lies before the run to which the container's lease belongs.
    fn is_earlier(&self, container: &ContainerId, at: Moment) -> bool {
        let begun = self.state().containers.get(container).and_then(|attached| attached.begun);
        matches!((at, begun), (Some(at), Some(begun)) if at < begun)
    }

    fn doubt(&self, container: &ContainerId) {
        let mut state = self.state();
        let LifecycleState { writer, containers, .. } = &mut *state;
        if let Some(lease) = containers.get(container).and_then(|attached| attached.lease.as_ref()) {
            writer.doubt(lease);
        }
    }

    /// Reports the end if no `die` has come. The engine keeps a container locked from before its disconnect
    /// until its state shows how it ended, so a container that still runs was disconnected by hand.
    async fn inspect_and_report_end(&self, container: &ContainerId, epoch: u64) {
        let network = {
            let state = self.state();
            let of_epoch = |attached: &&AttachedContainer| {
                attached.unreported.as_ref().is_some_and(|unreported| unreported.epoch == epoch)
            };
            state.containers.get(container).filter(of_epoch).map(|attached| attached.network.clone())
        };
        let Some(network) = network else { return };
        let code = match self.engine.look(container.as_str(), &network).await {
            Ok(seen) => seen.exit_code,
            Err(_) => self.exits.code(container),
        };
        // The inspection shows the last run. If the container has a lease again, `epoch` may belong to an
        // earlier run.
        let again = self.state().containers.get(container).is_some_and(|attached| attached.lease.is_some());
        if let Some(unreported) = self.take_unreported(container, Some(epoch)) {
            self.report_end(&unreported, Cause::Ended, code.filter(|_| !again));
        }
    }

    /// Handles a container that does not run and whose end no event reported: events were lost for a while.
    pub(super) fn ended_unseen(&self, container: &ContainerId, code: Option<i64>) {
        if let Some(unreported) = self.take_unreported(container, None) {
            self.report_end(&unreported, Cause::Ended, code);
        } else if self.state().containers.get(container).is_some_and(|attached| attached.started) {
            self.cut_off(container, Cause::Ended, code);
        }
    }

    /// Handles a removed container: its address goes to the end of the queue.
    pub(super) fn forget(&self, container: &ContainerId) {
        let code = self.exits.code(container);
        if let Some(unreported) = self.take_unreported(container, None) {
            self.report_end(&unreported, Cause::Ended, code);
        }
        self.cut_off(container, Cause::Ended, code);
        let mut state = self.state();
        state.joined.remove(container);
        if let Some(AttachedContainer { address, place, .. }) = state.containers.remove(container) {
            // Dropping `place` gives back a link-local address or a network of the container's own.
            if let (Attachment::Shared, Some(second)) = (&place, &mut state.second) {
                second.addresses.give_back(address);
            }
            drop(place);
        }
    }

    /// Reports the ends that are still unreported, before the session ends.
    pub async fn report_ends(&self) {
        let unreported: Vec<(ContainerId, u64)> = {
            let state = self.state();
            let row = |(id, attached): (&ContainerId, &AttachedContainer)| {
                Some((id.clone(), attached.unreported.as_ref()?.epoch))
            };
            state.containers.iter().filter_map(row).collect()
        };
        let looks =
            unreported.iter().map(|(container, epoch)| self.inspect_and_report_end(container, *epoch));
        // If the engine hangs, `cut_off_all` reports the remaining ends without an exit code.
        let _ = tokio::time::timeout(LOOK_WITHIN, futures_util::future::join_all(looks)).await;
    }
}
