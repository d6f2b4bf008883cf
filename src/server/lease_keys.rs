//! A key for each lease, by which the server recognises the IMDSv2 tokens of its container. All keys are
//! derived from one random key of the session, so that a view that is made again has the same key.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ring::hmac::{HMAC_SHA256, Key, sign};
use ring::rand::{SecureRandom, SystemRandom};

use crate::secret::Secret;

#[derive(Debug)]
pub(super) struct LeaseKeys(Option<Secret<[u8; 32]>>);

impl LeaseKeys {
    /// There are no keys if the system has no randomness.
    pub(super) fn random() -> Self {
        let mut bytes = [0; 32];
        let filled = SystemRandom::new().fill(&mut bytes);
        Self(filled.is_ok().then(|| Secret::new(bytes)))
    }

    /// The key of the lease of this epoch at this address.
    pub(super) fn of(&self, epoch: u64, address: Ipv4Addr) -> Option<Arc<Secret<[u8; 32]>>> {
        let own = Key::new(HMAC_SHA256, self.0.as_ref()?.expose());
        let lease = [&epoch.to_be_bytes()[..], &address.octets()].concat();
        let mut key = [0; 32];
        key.copy_from_slice(sign(&own, &lease).as_ref());
        Some(Arc::new(Secret::new(key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_lease_has_another_key() {
        let (keys, others) = (LeaseKeys::random(), LeaseKeys::random());
        let at = Ipv4Addr::new(169, 254, 168, 2);
        let key = |keys: &LeaseKeys, epoch, at| *keys.of(epoch, at).unwrap().expose();
        assert_eq!(key(&keys, 1, at), key(&keys, 1, at));
        assert_ne!(key(&keys, 1, at), key(&keys, 2, at));
        assert_ne!(key(&keys, 1, at), key(&keys, 1, Ipv4Addr::LOCALHOST));
        assert_ne!(key(&keys, 1, at), key(&others, 1, at));
        assert!(LeaseKeys(None).of(1, at).is_none());
    }
}
