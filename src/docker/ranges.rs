//! How ranges of addresses are divided: between the relay, containers and the engine's own allocator.

use std::net::Ipv4Addr;

use super::network::{CONTAINER_CREDENTIALS, MAGIC};
use super::podman::Range;
use crate::config::Pool;

/// Link-local addresses that clouds use for services of their own; never leased to a container.
pub(super) const TAKEN: [Ipv4Addr; 5] = [
    MAGIC,
    Ipv4Addr::new(169, 254, 169, 253),
    Ipv4Addr::new(169, 254, 169, 123),
    CONTAINER_CREDENTIALS,
    Ipv4Addr::new(169, 254, 170, 23),
];

/// Ranges for sessions that cannot have the shared one: from the benchmarking range of RFC 2544, which is not
/// routed.
const SPARE: [u8; 2] = [198, 18];
const SPARE_PREFIX: u8 = 24;

/// The pools of sessions that cannot have the shared one, in order.
pub fn spare_pools() -> impl Iterator<Item = Pool> {
    (0..=255).map(|third| Pool { network: Ipv4Addr::new(SPARE[0], SPARE[1], third, 0), prefix: SPARE_PREFIX })
}

/// The relay's address on the network of a container with this address; `None` if it is in no spare pool.
pub fn spare_relay(address: Ipv4Addr) -> Option<Ipv4Addr> {
    let spare = address.octets().starts_with(&SPARE);
    spare.then(|| Pool { network: address, prefix: SPARE_PREFIX }.relay())
}

/// Division of the range: the last quarter belongs to the engine's own allocator (a container connected by
/// hand gets an address there). The rest can be leased, except the relay's address and those in `TAKEN`.
impl Pool {
    pub(super) fn base(self) -> u32 {
        u32::from(self.network) & self.mask()
    }

    fn mask(self) -> u32 {
        u32::MAX << (32 - self.prefix)
    }

    fn quarter(self) -> u32 {
        1 << (30 - self.prefix)
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == self.base()
    }

    /// The magic address if it is in the range, otherwise the last address that could be leased.
    pub fn relay(self) -> Ipv4Addr {
        if self.contains(MAGIC) { MAGIC } else { Ipv4Addr::from(self.base() + 3 * self.quarter() - 1) }
    }

    /// The addresses that can be leased to containers, in order.
    pub fn leasable(self) -> impl Iterator<Item = Ipv4Addr> {
        let relay = self.relay();
        (self.base() + 1..self.base() + 3 * self.quarter())
            .map(Ipv4Addr::from)
            .filter(move |address| *address != relay && !TAKEN.contains(address))
    }

    /// Whether the two ranges overlap.
    pub(super) fn meets(self, other: Self) -> bool {
        other.contains(Ipv4Addr::from(self.base())) || self.contains(other.network)
    }

    /// Whether `subnet` (`a.b.c.d/n`) is this range.
    pub fn is(self, subnet: &str) -> bool {
        self.subnet() == subnet
    }

    pub(super) fn subnet(self) -> String {
        format!("{}/{}", Ipv4Addr::from(self.base()), self.prefix)
    }

    pub(super) fn engine_slice(self) -> String {
        format!("{}/{}", Ipv4Addr::from(self.base() + 3 * self.quarter()), self.prefix + 2)
    }

    /// The addresses that Podman may allocate by itself: the same as Docker's. With `full`, nothing may be
    /// left to allocate; Podman cannot reserve single addresses, so its range is then only the relay's, which
    /// is in use.
    pub(super) fn podman_range(self, full: bool) -> Range {
        let last = self.base() + 4 * self.quarter() - 2;
        let own = match full {
            true => (self.relay(), self.relay()),
            false => (Ipv4Addr::from(self.base() + 3 * self.quarter()), Ipv4Addr::from(last)),
        };
        Range { subnet: self.subnet(), own }
    }

    /// The engine reserves a gateway even if the bridge gets no address: at the end of the engine's own
    /// quarter.
    pub(super) fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base() + 4 * self.quarter() - 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_pool_is_divided_as_documented() {
        let pool = Pool { network: Ipv4Addr::new(169, 254, 168, 0), prefix: 22 };
        assert_eq!(pool.relay(), MAGIC);
        assert_eq!(pool.subnet(), "169.254.168.0/22");
        assert_eq!(pool.engine_slice(), "169.254.171.0/24");
        assert_eq!(pool.gateway(), Ipv4Addr::new(169, 254, 171, 254));
        let podman = pool.podman_range(false);
        assert_eq!(podman.own, (Ipv4Addr::new(169, 254, 171, 0), Ipv4Addr::new(169, 254, 171, 254)));
        let all: Vec<_> = pool.leasable().collect();
        assert_eq!(all.len(), 3 * 256 - 1 - TAKEN.len());
        assert_eq!(all[0], Ipv4Addr::new(169, 254, 168, 1));
        assert!(all.iter().all(|address| !TAKEN.contains(address) && address.octets()[2] != 171));
    }

    #[test]
    fn the_relay_of_a_spare_pool_follows_from_a_container_s_address() {
        let pool = spare_pools().nth(7).unwrap();
        assert_eq!(spare_relay(pool.leasable().next().unwrap()), Some(pool.relay()));
        assert_eq!(spare_relay(Ipv4Addr::new(169, 254, 168, 1)), None);
    }

    #[test]
    fn a_small_pool_has_addresses_for_relay_engine_and_leases() {
        let pool = Pool { network: Ipv4Addr::new(10, 9, 8, 16), prefix: 28 };
        assert_eq!(pool.relay(), Ipv4Addr::new(10, 9, 8, 27));
        assert_eq!(pool.engine_slice(), "10.9.8.28/30");
        assert_eq!(pool.gateway(), Ipv4Addr::new(10, 9, 8, 30));
        assert_eq!(pool.leasable().count(), 10);
    }
}
