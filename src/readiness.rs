//! The addresses at which the relay listens, as reported over its tunnel. A container can start only after
//! the relay listens at the address that the container will use.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use tokio::sync::watch;

/// Clones share the list.
#[derive(Clone, Debug, Default)]
pub struct Listening(watch::Sender<HashSet<Ipv4Addr>>);

impl Listening {
    pub fn open(&self, at: Ipv4Addr) {
        self.0.send_if_modified(|listening| listening.insert(at));
    }

    pub fn close(&self, at: Ipv4Addr) {
        self.0.send_if_modified(|listening| listening.remove(&at));
    }

    /// Forgets all addresses when the relay is gone.
    pub fn close_all(&self) {
        self.0.send_if_modified(|listening| !std::mem::take(listening).is_empty());
    }

    /// Resolves once the relay listens at `at`.
    pub async fn wait(&self, at: Ipv4Addr) {
        // Fails only when every sender is gone, and this is one.
        let _ = self.0.subscribe().wait_for(|listening| listening.contains(&at)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_waiter_is_released_only_by_its_own_listener() {
        let (one, other) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let listening = Listening::default();
        let open = async |at| tokio::time::timeout(Duration::from_secs(1), listening.wait(at)).await.is_ok();
        listening.open(one);
        assert!(open(one).await && !open(other).await);
        let (waited, ()) = tokio::join!(open(other), async { listening.open(other) });
        assert!(waited);
        listening.close(one);
        assert!(!open(one).await && open(other).await);
        listening.close_all();
        assert!(!open(other).await);
    }
}
