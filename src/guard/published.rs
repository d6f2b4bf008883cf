//! Published private keys: test keys in packages, recognised by the digest of the key itself.
//!
//! `scripts/published-keys` makes `published.txt` from packages as their registries serve them; the file
//! names them. A package's own checksums (`RECORD` of a wheel, `md5sums` of Debian) are no proof: they come
//! from the same archive as the file.

use std::sync::OnceLock;

use ring::digest::{SHA256, digest as hash};

const LIST: &str = include_str!("published.txt");

/// The first 8 bytes of the SHA-256 of what identifies a key: for a private key, its bytes without PEM.
pub(super) fn digest(material: &[u8]) -> u64 {
    hash(&SHA256, material).as_ref().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// The digest, if this key was published.
pub(super) fn known(material: &[u8]) -> Option<u64> {
    static KNOWN: OnceLock<Vec<u64>> = OnceLock::new();
    let known = KNOWN.get_or_init(|| {
        let digests = LIST.lines().filter_map(|line| u64::from_str_radix(line.get(..16)?, 16).ok());
        let mut known: Vec<u64> = digests.collect();
        known.sort_unstable();
        known
    });
    let digest = (!material.is_empty()).then(|| digest(material))?;
    known.binary_search(&digest).is_ok().then_some(digest)
}
