//! The addresses of this network namespace, as the kernel reports them (rtnetlink(7)): a relay is connected
//! to and disconnected from networks while it runs.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;

use rustix::io::Errno;
use tokio::net::UnixDatagram;

use crate::linux;

/// Message types and attributes from linux/netlink.h, linux/rtnetlink.h and linux/if_addr.h.
const DONE: u16 = 3;
const ERROR: u16 = 2;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;

/// An address on an interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Link {
    /// The index is never reused for another interface of this namespace.
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
}

impl Link {
    /// Whether `other` is on this interface's network.
    pub(super) fn holds(&self, other: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        other.to_bits() & mask == self.address.to_bits() & mask
    }
}

/// The current addresses, kept up to date.
#[derive(Debug)]
pub(super) struct Links {
    /// A netlink socket, used through the same send and receive calls.
    socket: UnixDatagram,
    all: HashMap<(u32, Ipv4Addr), Link>,
}

impl Links {
    pub(super) async fn open() -> io::Result<Self> {
        let socket = UnixDatagram::from_std(linux::addresses()?)?;
        let this = Self { socket, all: HashMap::new() };
        this.ask().await?;
        Ok(this)
    }

    /// Requests all addresses; the answers arrive like notifications.
    async fn ask(&self) -> io::Result<()> {
        let mut request = vec![];
        request.extend_from_slice(&24_u32.to_ne_bytes());
        request.extend_from_slice(&GET_ADDRESS.to_ne_bytes());
        request.extend_from_slice(&0x301_u16.to_ne_bytes()); // NLM_F_REQUEST | NLM_F_DUMP
        request.extend_from_slice(&[0; 8]); // sequence and port: this socket sends no other request
        request.extend_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0]); // ifaddrmsg: AF_INET
        self.socket.send(&request).await.map(drop)
    }

    /// Waits for the next change, then returns all addresses.
    pub(super) async fn changed(&mut self) -> io::Result<Vec<Link>> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match self.socket.recv(&mut buffer).await {
                Ok(length) => {
                    if apply(&buffer[..length], &mut self.all) {
                        return Ok(self.all.values().cloned().collect());
                    }
                }
                // Notifications were lost, so the known state may be wrong.
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                    self.all.clear();
                    self.ask().await?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Applies messages; returns whether an address changed.
fn apply(mut messages: &[u8], all: &mut HashMap<(u32, Ipv4Addr), Link>) -> bool {
    let mut changed = false;
    while let Some((kind, payload, rest)) = message(messages) {
        match (kind, link(payload)) {
            (NEW_ADDRESS, Some(link)) => {
                changed |= all.insert((link.index, link.address), link.clone()) != Some(link);
            }
            (DEL_ADDRESS, Some(link)) => changed |= all.remove(&(link.index, link.address)).is_some(),
            (DONE | ERROR, _) => changed = true,
            _ => {}
        }
        messages = rest;
    }
    changed
}

/// Type and payload of the first message (nlmsghdr: length, type, flags, sequence, port), and the bytes after
/// it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let payload = bytes.get(16..length)?;
    Some((kind, payload, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Parses an ifaddrmsg (family, prefix, flags, scope, index) and its attributes.
fn link(payload: &[u8]) -> Option<Link> {
    let (prefix, index) = (*payload.get(1)?, u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?));
    let (mut address, mut name) = (None, String::new());
    let mut attributes = payload.get(8..)?;
    while let Some(head) = attributes.get(..4) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let Some(value) = attributes.get(4..length) else { break };
        match u16::from_ne_bytes([head[2], head[3]]) {
            IFA_LOCAL => address = value.try_into().ok().map(Ipv4Addr::from_octets),
            IFA_LABEL => name = String::from_utf8_lossy(value).trim_end_matches('\0').into(),
            _ => {}
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Link { index, name, address: address?, prefix })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notification(kind: u16, index: u32, address: [u8; 4], label: &[u8]) -> Vec<u8> {
        let mut body = vec![2, 29, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        for (name, value) in [(1_u16, &address[..]), (IFA_LOCAL, &address), (IFA_LABEL, label)] {
            body.extend_from_slice(&u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            body.extend_from_slice(&name.to_ne_bytes());
            body.extend_from_slice(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut bytes = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&[0; 10]);
        [bytes, body].concat()
    }

    #[test]
    fn added_and_removed_links_are_followed() {
        let mut all = HashMap::new();
        let both = [
            notification(NEW_ADDRESS, 1, [127, 0, 0, 1], b"lo\0"),
            notification(NEW_ADDRESS, 7, [169, 254, 64, 5], b"eth1\0"),
        ]
        .concat();
        assert!(apply(&both, &mut all));
        assert!(!apply(&both, &mut all), "the same again is no change");
        let link = all[&(7, Ipv4Addr::new(169, 254, 64, 5))].clone();
        assert_eq!((link.name.as_str(), link.prefix), ("eth1", 29));
        assert!(link.holds(Ipv4Addr::new(169, 254, 64, 1)) && !link.holds(Ipv4Addr::new(169, 254, 64, 9)));
        // The same name and network on another interface: the removal of the old interface does not affect
        // it.
        assert!(apply(&notification(NEW_ADDRESS, 9, [169, 254, 64, 5], b"eth1\0"), &mut all));
        assert!(apply(&notification(DEL_ADDRESS, 7, [169, 254, 64, 5], b"eth1\0"), &mut all));
        assert_eq!(all.len(), 2);
        for cut in 0..both.len() {
            apply(&both[..cut], &mut all); // a short read must not panic
        }
    }

    #[tokio::test]
    async fn netlink_messages_are_parsed() {
        let mut links = Links::open().await.unwrap();
        let mut found = links.changed().await.unwrap();
        while !found.iter().any(|link| link.name == "lo") {
            found = links.changed().await.unwrap();
        }
        let lo = found.iter().find(|link| link.name == "lo").unwrap();
        assert_eq!((lo.index, lo.address, lo.prefix), (1, Ipv4Addr::LOCALHOST, 8));
    }
}
