//! The engine's events as they come, and a look at everything after a gap.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;

use super::{Lifecycle, State};
use crate::docker::events::ContainerEvent;
use crate::record::metrics::Cause;
use crate::workload::ContainerId;

impl Lifecycle {
    /// Follows the engine's events until the session stops; after a break it looks for what was missed.
    pub async fn follow_events(self: Arc<Self>) {
        loop {
            // Before the look: what happens between it and the subscription is told by the subscription.
            let since = SystemTime::now();
            self.resync().await;
            let mut events = Box::pin(self.engine.container_events(since));
            loop {
                let event = tokio::select! {
                    () = self.tasks.stop().cancelled() => return,
                    event = events.next() => event,
                };
                match event {
                    Some(Ok(event)) => self.clone().on(event),
                    Some(Err(error)) => {
                        tracing::debug!(%error, "lost the engine's events; reconnecting");
                        break;
                    }
                    None => break,
                }
            }
            self.doubt_all();
            tokio::select! {
                () = self.tasks.stop().cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
    }

    async fn look_again(&self, container: &ContainerId) {
        let network = self.state().tenants.get(container).map(|tenant| tenant.network.clone());
        let Some(network) = network else { return };
        if self.engine.look(container.as_str(), &network).await.is_ok_and(|seen| seen.running) {
            self.readmit(container);
            self.confirm(container).await;
        }
    }

    /// From the break on an end may go unseen, and the address be another's: every caller is looked at anew.
    fn doubt_all(&self) {
        let mut state = self.state();
        let State { writer, tenants, .. } = &mut *state;
        tenants.values().filter_map(|tenant| tenant.lease.as_ref()).for_each(|lease| writer.doubt(lease));
    }

    fn on(self: Arc<Self>, event: ContainerEvent) {
        match event {
            ContainerEvent::Started(container) => {
                self.readmit(&container);
                let this = self.clone();
                self.tasks.spawn("confirm", async move { this.confirm(&container).await });
            }
            ContainerEvent::Died(container, code) => {
                self.cut_off(&container, Cause::Ended, code);
                // Events can come late: if it runs, this was the end of an earlier run.
                let this = self.clone();
                self.tasks.spawn("look", async move { this.look_again(&container).await });
            }
            ContainerEvent::Destroyed(container) => self.forget(&container),
            // One that was not seen running has nothing to lose: this may be the echo of its last run.
            ContainerEvent::Disconnected(container, network)
                if self.is_on(&container, &network) && self.confirmed(&container) =>
            {
                self.cut_off(&container, Cause::Ended, None);
            }
            ContainerEvent::Disconnected(..) => {}
        }
    }
}
