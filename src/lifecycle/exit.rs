//! The end of one run of a container: its lease ends at once; the end is reported once, with the exit code.
//!
//! Engine 20.10 sends `die`, with the exit code, and then `disconnect`; since 23.0 the disconnect comes first
//! and may be the only event. So a disconnect ends the lease, and the report waits for the die or for an
//! inspection.

use std::sync::Arc;
use std::time::Duration;

use super::{Lifecycle, LifecycleState, Tenant};
use crate::console::{Line, expiry};
use crate::docker::events::Moment;
use crate::docker::proxy::Attachment;
use crate::record::metrics::Cause;
use crate::registry::Lease;
use crate::token::{Deadline, HandedOut, Now};
use crate::workload::{ContainerId, Grant};

/// How long to wait for a die after its disconnect before inspecting the container.
const DIE_WITHIN: Duration = Duration::from_secs(1);
/// How long inspections may take at the end of the session.
const LOOK_WITHIN: Duration = Duration::from_secs(1);

/// The end of a lease that has not been reported yet.
#[derive(Debug)]
pub(super) struct Untold {
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
    /// Ends the lease: no new tokens, in-flight replies dropped, cached tokens that only it could use erased.
    /// Returns the tokens that the container may still hold, of this lease and earlier ones. The container
    /// keeps its address until it is destroyed, because it may be started again.
    pub(super) fn cut_off(
        &self,
        container: &ContainerId,
        cause: Cause,
        exit_code: Option<i64>,
    ) -> Vec<HandedOut> {
        // A cut-off by a person is reported even if there is no lease to end.
        let Some(untold) = self.end_lease(container, cause == Cause::ByHand) else { return vec![] };
        self.tell(&untold, cause, exit_code);
        untold.alive
    }

    /// `None` if the container has no lease, because it ended before, unless `without` is set.
    fn end_lease(&self, container: &ContainerId, without: bool) -> Option<Untold> {
        let mut state = self.state();
        let LifecycleState { writer, tenants, .. } = &mut *state;
        let tenant = tenants.get_mut(container)?;
        let lease = tenant.lease.take();
        if lease.is_none() && !without {
            return None;
        }
        if lease.is_some() {
            writer.cut_off(tenant.address, container);
        }
        tenant.held = good_tokens(&tenant.held, lease.as_ref(), Now::read());
        let epoch = lease.as_ref().map_or(0, Lease::epoch);
        let untold = Untold { epoch, grant: tenant.grant.clone(), alive: tenant.held.clone() };
        if let Some(lease) = lease {
            state.cut_off += 1;
            state.remember(&lease);
        }
        state.forget_unused(&self.mint);
        Some(untold)
    }

    pub(super) fn tell(&self, untold: &Untold, cause: Cause, exit_code: Option<i64>) {
        let Untold { grant, alive, .. } = untold;
        self.recorder.cut_off(grant, cause, exit_code, alive);
        if cause == Cause::AddressTaken {
            return; // a notice has told it: the container neither ended nor was cut off by a person
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
    fn take_untold(&self, container: &ContainerId, epoch: Option<u64>) -> Option<Untold> {
        let mut state = self.state();
        let untold = &mut state.tenants.get_mut(container)?.untold;
        untold.take_if(|untold| epoch.is_none_or(|epoch| untold.epoch == epoch))
    }

    /// Handles the engine's event that a container ended, `at` its time.
    pub(super) fn died(&self, container: &ContainerId, code: Option<i64>, at: Moment) {
        if let Some(untold) = self.take_untold(container, None) {
            self.tell(&untold, Cause::Ended, code);
            // The container has already started again: that run is not answered until it was seen running.
            self.doubt(container);
        } else if self.is_earlier(container, at) {
            self.doubt(container);
        } else {
            self.cut_off(container, Cause::Ended, code);
        }
    }

    /// Handles the event that the container left `network`, because it ended or was disconnected by hand.
    pub(super) fn disconnected(self: &Arc<Self>, container: &ContainerId, network: &str, at: Moment) {
        // A container that was not seen running keeps its lease: the event may be a late one of its last run.
        let confirmed = |tenant: &Tenant| tenant.lease.as_ref().is_some_and(Lease::confirmed);
        let ends = |tenant: &Tenant| tenant.network == network && confirmed(tenant);
        if !self.state().tenants.get(container).is_some_and(ends) || self.is_earlier(container, at) {
            return;
        }
        let Some(untold) = self.end_lease(container, false) else { return };
        let epoch = untold.epoch;
        let older = match self.state().tenants.get_mut(container) {
            Some(tenant) => tenant.untold.replace(untold),
            None => Some(untold),
        };
        if let Some(older) = older {
            self.tell(&older, Cause::Ended, None);
        }
        let (this, container) = (self.clone(), container.clone());
        self.tasks.spawn("exit code", async move {
            tokio::select! {
                () = this.tasks.stop().cancelled() => {}
                () = tokio::time::sleep(DIE_WITHIN) => this.look_how_it_ended(&container, epoch).await,
            }
        });
    }

    /// The engine has answered the proxy's wait for `container`. If no event ends its lease, that event was
    /// lost.
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
            // It may have been started again meanwhile: that run has another lease.
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
    fn leased(&self, container: &ContainerId) -> Option<(u64, String)> {
        let state = self.state();
        let tenant = state.tenants.get(container)?;
        Some((tenant.lease.as_ref()?.epoch(), tenant.network.clone()))
    }

    /// Whether `at` lies before the run to which the container's lease belongs.
    fn is_earlier(&self, container: &ContainerId, at: Moment) -> bool {
        let begun = self.state().tenants.get(container).and_then(|tenant| tenant.begun);
        matches!((at, begun), (Some(at), Some(begun)) if at < begun)
    }

    fn doubt(&self, container: &ContainerId) {
        let mut state = self.state();
        let LifecycleState { writer, tenants, .. } = &mut *state;
        if let Some(lease) = tenants.get(container).and_then(|tenant| tenant.lease.as_ref()) {
            writer.doubt(lease);
        }
    }

    /// Reports the end if no die has come. The engine keeps a container locked from before its disconnect
    /// until its state shows how it ended, so a container that still runs was disconnected by hand.
    async fn look_how_it_ended(&self, container: &ContainerId, epoch: u64) {
        let network = {
            let state = self.state();
            let of = |tenant: &&Tenant| tenant.untold.as_ref().is_some_and(|untold| untold.epoch == epoch);
            state.tenants.get(container).filter(of).map(|tenant| tenant.network.clone())
        };
        let Some(network) = network else { return };
        let code = match self.engine.look(container.as_str(), &network).await {
            Ok(seen) => seen.exit_code,
            Err(_) => self.exits.code(container),
        };
        // The inspection shows the last run. If the container has a lease again, `epoch` may be an earlier
        // run.
        let again = self.state().tenants.get(container).is_some_and(|tenant| tenant.lease.is_some());
        if let Some(untold) = self.take_untold(container, Some(epoch)) {
            self.tell(&untold, Cause::Ended, code.filter(|_| !again));
        }
    }

    /// Handles a container that does not run and whose end no event reported: events were lost for a while.
    pub(super) fn ended_unseen(&self, container: &ContainerId, code: Option<i64>) {
        if let Some(untold) = self.take_untold(container, None) {
            self.tell(&untold, Cause::Ended, code);
        } else if self.state().tenants.get(container).is_some_and(|tenant| tenant.started) {
            self.cut_off(container, Cause::Ended, code);
        }
    }

    /// Handles a removed container: its address goes to the end of the queue.
    pub(super) fn forget(&self, container: &ContainerId) {
        let code = self.exits.code(container);
        if let Some(untold) = self.take_untold(container, None) {
            self.tell(&untold, Cause::Ended, code);
        }
        self.cut_off(container, Cause::Ended, code);
        let mut state = self.state();
        state.joined.remove(container);
        if let Some(Tenant { address, place, .. }) = state.tenants.remove(container) {
            // A link-local address or a network of its own is given back by `place`.
            if let (Attachment::Shared, Some(second)) = (&place, &mut state.second) {
                second.addresses.give_back(address);
            }
            drop(place);
        }
    }

    /// Reports the ends that are still unreported, before the session ends.
    pub async fn tell_ends(&self) {
        let untold: Vec<(ContainerId, u64)> = {
            let state = self.state();
            let row =
                |(id, tenant): (&ContainerId, &Tenant)| Some((id.clone(), tenant.untold.as_ref()?.epoch));
            state.tenants.iter().filter_map(row).collect()
        };
        let looks = untold.iter().map(|(container, epoch)| self.look_how_it_ended(container, *epoch));
        // If the engine hangs, `cut_off_all` reports the remaining ends without an exit code.
        let _ = tokio::time::timeout(LOOK_WITHIN, futures_util::future::join_all(looks)).await;
    }
}
