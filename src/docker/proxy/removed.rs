//! The exit codes of containers that the engine has removed, and nothing else about them: a session may run
//! for weeks.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};

use crate::workload::ContainerId;

/// Beyond this number the oldest are forgotten. kfp asks within seconds; so many are remembered for clients
/// that ask later in a session of many thousand tasks.
const REMEMBERED: usize = 16_384;
/// How many entries the list grows by: doubling would leave up to half of the memory unused.
const GROWTH: usize = 256;

/// No event contained the code.
pub(super) const UNKNOWN: u32 = u32::MAX;
/// The container never ran, so it has no code.
pub(super) const NEVER_RAN: u32 = u32::MAX - 1;

/// Removed containers, the newest last.
#[derive(Debug, Default)]
pub(super) struct Removed {
    names: RandomState,
    all: VecDeque<RemovedContainer>,
}

/// 44 bytes. A name is stored as a hash, seeded per process, and in two halves, so that there is no padding.
#[derive(Clone, Copy, Debug)]
struct RemovedContainer {
    id: [u8; 32],
    name: [u32; 2],
    code: u32,
}

impl Removed {
    pub(super) fn push(&mut self, container: &ContainerId, name: Option<&str>, code: u32) {
        if self.all.len() >= REMEMBERED {
            self.all.pop_front();
        }
        if self.all.len() == self.all.capacity() {
            self.all.reserve_exact(GROWTH);
        }
        let name = name.map_or([0; 2], |name| self.hash(name));
        self.all.push_back(RemovedContainer { id: bytes(container), name, code });
    }

    /// The container's exit code, or [`UNKNOWN`] or [`NEVER_RAN`]; `None` if it is not remembered.
    pub(super) fn code(&mut self, container: &ContainerId) -> Option<&mut u32> {
        let id = bytes(container);
        self.all.iter_mut().rev().find(|one| one.id == id).map(|one| &mut one.code)
    }

    /// The newest container of that name.
    pub(super) fn named(&self, name: &str) -> Option<ContainerId> {
        let name = self.hash(name);
        self.all.iter().rev().find(|one| one.name == name).and_then(|one| id(&one.id))
    }

    /// The containers whose ids begin with `start`.
    pub(super) fn with_id_prefix<'a>(&'a self, start: &'a str) -> impl Iterator<Item = ContainerId> + 'a {
        self.all.iter().filter_map(|one| id(&one.id)).filter(move |id| id.as_str().starts_with(start))
    }

    fn hash(&self, name: &str) -> [u32; 2] {
        let hash = self.names.hash_one(name);
        [(hash >> 32) as u32, hash as u32]
    }
}

fn bytes(container: &ContainerId) -> [u8; 32] {
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or_default() as u8;
    let mut bytes = [0; 32];
    for (byte, two) in bytes.iter_mut().zip(container.as_str().as_bytes().chunks_exact(2)) {
        *byte = two.iter().fold(0, |value, half| value << 4 | digit(*half));
    }
    bytes
}

fn id(bytes: &[u8; 32]) -> Option<ContainerId> {
    use std::fmt::Write;
    let mut text = String::with_capacity(64);
    for byte in bytes {
        write!(text, "{byte:02x}").ok()?;
    }
    ContainerId::parse(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_removed_containers_are_kept_in_little_memory() {
        let container = |number: usize| ContainerId::parse(&format!("{number:064x}")).unwrap();
        let mut removed = Removed::default();
        for number in 0..REMEMBERED + 10 {
            removed.push(&container(number), Some(&format!("n{number}")), 1);
        }
        assert_eq!((removed.all.len(), size_of::<RemovedContainer>()), (REMEMBERED, 44));
        assert!(removed.all.capacity() <= REMEMBERED + GROWTH);
        assert_eq!(removed.code(&container(9)), None);
        assert_eq!(removed.code(&container(10)).copied(), Some(1));
        assert_eq!((removed.named("n9"), removed.named("n10")), (None, Some(container(10))));
        assert_eq!(removed.with_id_prefix(container(11).as_str()).collect::<Vec<_>>(), [container(11)]);
    }
}
