//! JSON Web Tokens (RFC 7519): signed for upstream and offline use; parsed if they come from their issuer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

/// Base64url without padding (RFC 7515 section 2).
pub(super) fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// `header.claims`, the input of the signature.
pub(super) fn signing_input(header: &Value, claims: &Value) -> String {
    format!("{}.{}", encode(header.to_string()), encode(claims.to_string()))
}

/// The claims of a token *without* checking its signature. Only for tokens that came over TLS from the
/// endpoint that signed them, where OpenID Connect Core 3.1.3.7 (6) accepts TLS instead of the check.
pub(super) fn unverified_claims(token: &str) -> Option<Value> {
    let mut parts = token.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?).ok()
}

/// The `exp` claim as a wall-clock time.
pub(super) fn expiry(claims: &Value) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(claims.get("exp")?.as_u64()?))
}

/// Seconds since the epoch, for `iat` and `exp`.
pub(super) fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_no_jwt_has_no_claims() {
        let token = format!("{}.c2ln", signing_input(&Value::Null, &serde_json::json!({"exp": 12})));
        assert_eq!(expiry(&unverified_claims(&token).unwrap()).map(seconds), Some(12));
        for bad in ["", "a.b", "a.b.c", "a.b.c.d", &token.replace('.', "")] {
            assert!(unverified_claims(bad).is_none(), "{bad}");
        }
        assert!(expiry(&serde_json::json!({"exp": u64::MAX})).is_none());
    }
}
