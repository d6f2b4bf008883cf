//! Pool addresses. A released address goes to the end of the queue, so a dead container's address is the last
//! to be used again.

use std::collections::{HashSet, VecDeque};
use std::net::Ipv4Addr;

#[derive(Debug)]
pub struct Addresses {
    free: VecDeque<Ipv4Addr>,
    held: HashSet<Ipv4Addr>,
}

impl Addresses {
    /// `all` in the order of their first use.
    pub fn new(all: impl Iterator<Item = Ipv4Addr>) -> Self {
        Self { free: all.collect(), held: HashSet::new() }
    }

    /// The address that was free for longest; `None` when every one is held.
    pub fn take(&mut self) -> Option<Ipv4Addr> {
        let address = self.free.pop_front()?;
        self.held.insert(address);
        Some(address)
    }

    /// Releases an address that [`Self::take`] returned; ignores any other.
    pub fn give_back(&mut self, address: Ipv4Addr) {
        if self.held.remove(&address) {
            self.free.push_back(address);
        }
    }

    /// How many addresses are held.
    pub fn held(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_address_is_reused_last() {
        let all = (1..=4).map(|last| Ipv4Addr::new(10, 0, 0, last));
        let mut addresses = Addresses::new(all.clone());
        let first = addresses.take().unwrap();
        addresses.give_back(first);
        addresses.give_back(first);
        let order: Vec<_> = std::iter::from_fn(|| addresses.take()).collect();
        assert_eq!(order, all.clone().skip(1).chain([first]).collect::<Vec<_>>());
        assert_eq!((addresses.take(), addresses.held()), (None, 4));
    }
}
