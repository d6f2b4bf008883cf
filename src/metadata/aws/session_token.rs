//! Tokens of IMDSv2: an expiry and its HMAC under a key of the lease, so that nothing is kept of them and
//! another lease's token is worth nothing.

use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac::{HMAC_SHA256, Key, sign, verify};

/// In seconds.
pub(super) const TTL: RangeInclusive<u32> = 1..=21_600;

const EXPIRY: usize = 8;

/// A token that is valid for `ttl` seconds from `now`.
pub(super) fn make(key: &[u8; 32], ttl: u32, now: SystemTime) -> String {
    let end = seconds(now + Duration::from_secs(ttl.into())).to_be_bytes();
    let tag = sign(&Key::new(HMAC_SHA256, key), &end);
    URL_SAFE_NO_PAD.encode([&end[..], tag.as_ref()].concat())
}

pub(super) fn is_valid(key: &[u8; 32], token: &str, now: SystemTime) -> bool {
    let Ok(bytes) = URL_SAFE_NO_PAD.decode(token) else { return false };
    let Some((end, tag)) = bytes.split_first_chunk::<EXPIRY>() else { return false };
    let end_at = u64::from_be_bytes(*end);
    verify(&Key::new(HMAC_SHA256, key), end, tag).is_ok() && seconds(now) < end_at
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_valid_until_its_end_for_its_lease() {
        let (key, other) = ([7; 32], [8; 32]);
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let later = |seconds| now + Duration::from_secs(seconds);
        let token = make(&key, 60, now);
        assert!(is_valid(&key, &token, now) && is_valid(&key, &token, later(59)));
        assert!(!is_valid(&key, &token, later(60)) && !is_valid(&other, &token, now));
        assert_eq!(token.len(), 54);
    }

    #[test]
    fn a_changed_token_is_not_valid() {
        let (key, now) = ([7; 32], UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let token = make(&key, 60, now);
        let mut bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        bytes[EXPIRY - 1] ^= 0x80; // ends later, or sooner
        for bad in [&URL_SAFE_NO_PAD.encode(bytes), "", "AAAA", &token[..53], &format!("{token}="), "é"] {
            assert!(!is_valid(&key, bad, now), "{bad}");
        }
    }
}
