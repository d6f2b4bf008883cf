//! Link-local addresses of containers, which the proxy writes into their create requests (`LinkLocalIPs` of
//! the Engine API): a container has its address from its first instruction on, keeps it over a restart, and
//! needs no second network. The relay is on the same bridge and has 169.254.169.254.
//!
//! The engine gives no such address by itself and does not check for duplicates, so only this module hands
//! them out, and the proxy refuses those that clients request.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::addresses::Addresses;
use super::network::{MAGIC, Network};
use crate::config::Pool;

/// The bridge on which a session's containers have link-local addresses; clones share it.
#[derive(Clone, Debug)]
pub struct Segment(Arc<SegmentState>);

#[derive(Debug)]
struct SegmentState {
    network: Network,
    range: Pool,
    container_credentials: bool,
    addresses: Mutex<Addresses>,
}

/// One link-local address; free again when dropped.
#[derive(Debug)]
pub struct SegmentAddress {
    segment: Segment,
    pub address: Ipv4Addr,
}

impl Segment {
    /// `network` is a bridge of ours or the default one. With `container_credentials` the relay has AWS's
    /// address of container credentials, too.
    pub fn new(network: Network, range: Pool, container_credentials: bool) -> Self {
        let addresses = Mutex::new(Addresses::new(range.leasable()));
        Self(Arc::new(SegmentState { network, range, container_credentials, addresses }))
    }

    /// An address that no container has; the longest unused one.
    pub fn take(&self) -> Option<SegmentAddress> {
        let address = self.addresses().take()?;
        Some(SegmentAddress { segment: self.clone(), address })
    }

    fn addresses(&self) -> MutexGuard<'_, Addresses> {
        self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn network(&self) -> &Network {
        &self.0.network
    }

    pub fn range(&self) -> Pool {
        self.0.range
    }

    /// The relay's address.
    pub fn relay(&self) -> Ipv4Addr {
        MAGIC
    }

    pub fn container_credentials(&self) -> bool {
        self.0.container_credentials
    }

    /// Whether it is the default bridge, where other containers can be as well.
    pub fn is_default_bridge(&self) -> bool {
        !self.0.network.routed
    }

    /// How a create request refers to the network: by name, as the engine does before the container starts.
    pub fn reference(&self) -> &str {
        &self.0.network.name
    }
}

impl SegmentAddress {
    pub fn segment(&self) -> &Segment {
        &self.segment
    }
}

impl Drop for SegmentAddress {
    fn drop(&mut self) {
        self.segment.addresses().give_back(self.address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_free_again_when_its_holder_is_gone() {
        let network = Network {
            id: "n".into(),
            name: "n".into(),
            session: "s".into(),
            subnet: String::new(),
            keeps_credentials_address: false,
            routed: true,
        };
        let range = Pool { network: Ipv4Addr::new(169, 254, 172, 0), prefix: 28 };
        let segment = Segment::new(network, range, false);
        let all: Vec<_> = std::iter::from_fn(|| segment.take()).collect();
        assert!(all.len() > 3 && all.iter().all(|one| range.contains(one.address)));
        let first = all[0].address;
        assert!(segment.take().is_none());
        drop(all);
        assert_eq!(segment.take().unwrap().address, first);
    }
}
