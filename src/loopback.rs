//! Paths on a loopback listener, for containers on this machine's network: each begins with its own secret
//! and leads to the lease of one container.
//!
//! Such a container has no address of its own. Its lease needs one nevertheless, because leases are keyed by
//! address; it comes from a range from which no caller can connect.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

use crate::secret::Secret;

/// 127.64.0.0/10.
const FIRST: u32 = 0x7f40_0000;
const MOST: u32 = 1 << 22;

type Digest = [u8; 32];

/// The unguessable first segment of a path; `None` if the system has no randomness.
pub fn capability() -> Option<Secret<String>> {
    let mut bytes = [0_u8; 24];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(Secret::new(URL_SAFE_NO_PAD.encode(bytes)))
}

/// Whether `text` has the form of a [`capability`].
pub fn is_capability(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// The paths of one session. Clones share them.
#[derive(Clone, Debug)]
pub struct Paths(Arc<PathsInner>);

#[derive(Debug)]
struct PathsInner {
    at: SocketAddrV4,
    state: Mutex<PathState>,
}

#[derive(Debug, Default)]
struct PathState {
    next: u32,
    /// Keyed by the digest of the secret, so that look-up times reveal nothing of its bytes.
    leads: HashMap<Digest, (Ipv4Addr, Arc<AtomicBool>)>,
}

/// One path; it becomes invalid when this is dropped.
#[derive(Debug)]
pub struct Path {
    paths: Paths,
    key: Digest,
    secret: Secret<String>,
    address: Ipv4Addr,
    asked: Arc<AtomicBool>,
}

impl Paths {
    /// Makes paths for the listener at `at`.
    pub fn new(at: SocketAddrV4) -> Self {
        Self(Arc::new(PathsInner { at, state: Mutex::default() }))
    }

    pub fn at(&self) -> SocketAddrV4 {
        self.0.at
    }

    fn state(&self) -> MutexGuard<'_, PathState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A path for one container; `None` if the system has no randomness or no address is left.
    pub fn take(&self) -> Option<Path> {
        let secret = capability()?;
        let (key, asked) = (digest_of(secret.expose()), Arc::new(AtomicBool::new(false)));
        let mut state = self.state();
        if state.leads.len() as u64 >= u64::from(MOST) {
            return None;
        }
        let address = loop {
            let address = Ipv4Addr::from(FIRST + state.next % MOST);
            state.next = state.next.wrapping_add(1);
            if !state.leads.values().any(|(taken, _)| *taken == address) {
                break address;
            }
        };
        state.leads.insert(key, (address, asked.clone()));
        drop(state);
        Some(Path { paths: self.clone(), key, secret, address, asked })
    }

    /// Splits `/SECRET/REST` into the lease's address, the secret and the rest, which begins with a slash or
    /// a question mark.
    pub fn find<'a>(&self, target: &'a str) -> Option<(Ipv4Addr, &'a str, &'a str)> {
        let behind = target.strip_prefix('/')?;
        let (secret, rest) = behind.split_at(behind.find(['/', '?']).unwrap_or(behind.len()));
        let state = self.state();
        let (address, asked) = state.leads.get(&digest_of(secret))?;
        asked.store(true, Ordering::Relaxed);
        Some((*address, secret, if rest.is_empty() { "/" } else { rest }))
    }
}

impl Path {
    /// The address by which its lease is known.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// `127.0.0.1:PORT/SECRET`; put it only into the environment of the container it is made for.
    pub fn place(&self) -> String {
        format!("{}/{}", self.paths.at(), self.secret.expose())
    }

    /// The first segment of the path, for the container that proves that the listener can be reached.
    pub fn segment(&self) -> &str {
        self.secret.expose()
    }

    /// Whether a request came to the listener with this path.
    pub fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.paths.state().leads.remove(&self.key);
    }
}

fn digest_of(secret: &str) -> Digest {
    let mut key = Digest::default();
    key.copy_from_slice(digest(&SHA256, secret.as_bytes()).as_ref());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_one_lease_and_nowhere_once_it_is_dropped() {
        let paths = Paths::new("127.0.0.1:4711".parse().unwrap());
        let (one, other) = (paths.take().unwrap(), paths.take().unwrap());
        assert_ne!(one.address(), other.address());
        assert!(one.address().is_loopback() && other.address().is_loopback());
        let secret = one.segment().to_string();
        assert_eq!(one.place(), format!("127.0.0.1:4711/{secret}"));
        assert!(!one.was_asked());
        let target = format!("/{secret}/computeMetadata/v1/?a=b");
        assert_eq!(paths.find(&target), Some((one.address(), secret.as_str(), "/computeMetadata/v1/?a=b")));
        assert_eq!(paths.find(&format!("/{secret}")), Some((one.address(), secret.as_str(), "/")));
        assert!(one.was_asked() && !other.was_asked());
        for bad in
            ["/", "", &format!("/{}/x", &secret[1..]), &format!("/{secret}x/"), &format!("//{secret}/")]
        {
            assert_eq!(paths.find(bad), None, "{bad}");
        }
        drop(one);
        assert_eq!(paths.find(&target), None);
        assert!(!format!("{paths:?} {other:?}").contains(other.segment()));
    }
}
