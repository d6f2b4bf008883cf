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

/// Division of the range: one quarter belongs to the engine's own allocator (a container connected by hand gets
/// an address there), the last one or, if that contains the relay's address, the first one. The rest can be
/// leased, except the relay's address and those in `TAKEN`.
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

    /// The first address of the engine's quarter.
    fn engine_quarter(self) -> u32 {
        let last = self.base() + 3 * self.quarter();
        if self.contains(MAGIC) && u32::from(MAGIC) >= last { self.base() } else { last }
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
        let (relay, engine) = (self.relay(), self.engine_quarter());
        let engine = engine..engine + self.quarter();
        // The first and the last address of a range name the network and all its members.
        (self.base() + 1..self.base() + 4 * self.quarter() - 1)
            .filter(move |address| !engine.contains(address))
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
        format!("{}/{}", Ipv4Addr::from(self.engine_quarter()), self.prefix + 2)
    }

    /// The addresses that Podman may allocate by itself: the same as Docker's. With `full`, nothing may be
    /// left to allocate; Podman cannot reserve single addresses, so its range is then only the relay's, which
    /// is in use.
    pub(super) fn podman_range(self, full: bool) -> Range {
        let first = self.engine_quarter().max(self.base() + 1);
        let own = match full {
            true => (self.relay(), self.relay()),
            false => (Ipv4Addr::from(first), self.gateway()),
        };
        Range { subnet: self.subnet(), own }
    }

    /// The engine reserves a gateway even if the bridge gets no address: at the end of the engine's own
    /// quarter.
    pub(super) fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.engine_quarter() + self.quarter() - 2)
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
    fn the_engine_never_gets_the_relay_s_address() {
        for (third, fourth, prefix) in [
            (160, 0, 19),
            (168, 0, 21),
            (168, 0, 22),
            (168, 0, 23),
            (169, 0, 24),
            (169, 128, 25),
            (169, 192, 26),
            (169, 224, 27),
            (169, 240, 28),
        ] {
            let pool = Pool { network: Ipv4Addr::new(169, 254, third, fourth), prefix };
            let (address, prefix) = (pool.engine_slice(), pool.prefix + 2);
            let engine = Pool { network: address.split('/').next().unwrap().parse().unwrap(), prefix };
            let podman = pool.podman_range(false).own;
            assert_eq!(pool.relay(), MAGIC, "{pool:?}");
            assert!(!engine.contains(MAGIC) && pool.contains(engine.network), "{pool:?}: {engine:?}");
            assert!(engine.contains(pool.gateway()) && engine.contains(podman.0), "{pool:?}: {podman:?}");
            assert!(podman.0 <= podman.1 && engine.contains(podman.1), "{pool:?}: {podman:?}");
            let leased: Vec<_> = pool.leasable().collect();
            let size = 1_usize << (32 - pool.prefix);
            // Three quarters, without the relay, four addresses of clouds, and those of the network and of all members.
            assert!(
                leased.len() + 7 >= size * 3 / 4 && leased.len() < size * 3 / 4,
                "{pool:?}: {}",
                leased.len()
            );
            for address in leased {
                assert!(pool.contains(address) && !engine.contains(address) && address != MAGIC, "{address}");
                let place = u32::from(address) - pool.base();
                assert!(place != 0 && place as usize != size - 1, "{address}");
            }
        }
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
