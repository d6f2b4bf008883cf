//! What lifecycle does regularly: it compares containers with the engine, and releases what is unused.

use std::sync::Arc;
use std::time::Duration;

use super::Lifecycle;
use crate::workload::ContainerId;

/// How long a container that was never started keeps its address.
pub(super) const UNSTARTED: Duration = Duration::from_secs(15 * 60);

/// How often containers are compared with the engine's list: the engine may have dropped an event.
const COMPARE_EVERY: Duration = Duration::from_secs(10);

/// How often unused addresses and unused cached tokens are released.
const TIDY_EVERY: Duration = Duration::from_secs(60);

impl Lifecycle {
    /// Releases what is unused, in a task of its own: the engine may be slow to answer.
    pub(super) async fn tidy(self: Arc<Self>) {
        while self.pause(TIDY_EVERY).await {
            self.forget_unused();
            self.give_back_unstarted().await;
        }
    }

    pub(super) async fn compare_regularly(self: Arc<Self>) {
        while self.pause(COMPARE_EVERY).await {
            self.compare().await;
        }
    }

    /// False once the session stops.
    pub(super) async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            () = self.tasks.stop().cancelled() => false,
            () = tokio::time::sleep(time) => true,
        }
    }

    pub(super) async fn give_back_unstarted(&self) {
        let idle: Vec<(ContainerId, String)> = {
            let state = self.state();
            let idle = state
                .containers
                .values()
                .filter(|attached| !attached.started && attached.created.elapsed() > UNSTARTED);
            idle.map(|attached| (attached.grant.container.clone(), attached.network.clone())).collect()
        };
        for (container, network) in idle {
            match self.engine.look(container.as_str(), &network).await {
                Ok(seen) if !seen.running => {}
                Err(error) if error.is_gone() => {
                    self.forget(&container);
                    continue;
                }
                // Unknown is not stopped: a running container must not be disconnected.
                Ok(_) | Err(_) => continue,
            }
            let started = self.state().containers.get(&container).is_none_or(|attached| attached.started);
            if started {
                continue;
            }
            if let Err(error) = self.detach(&network, &container).await {
                tracing::warn!(%error, %container, "a container that never started keeps its address");
                continue;
            }
            let minutes = UNSTARTED.as_secs() / 60;
            self.console.notice(format!(
                "{container} did not start within {minutes} min and has lost its identity; create it again"
            ));
            self.forget(&container);
        }
    }
}
