//! A session's own key pair, generated at start: it signs JSON Web Tokens (ES256) for whatever is offline.

use std::fmt;

use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use crate::secret::Secret;
use crate::source::{SourceError, jwt};

/// The `iss` of every offline token: a name that does not resolve, so that no verifier fetches keys from it.
pub const ISSUER: &str = "https://kfp-creds.offline";

/// The key pair. It is in memory only and ends with the program.
pub struct Signer {
    key: EcdsaKeyPair,
    key_id: String,
    random: SystemRandom,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({:?})", self.key_id)
    }
}

impl Signer {
    /// Generates the key pair. Fails only if the system has no randomness.
    pub fn new() -> Result<Self, SourceError> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            .map(|document| Secret::new(document.as_ref().to_vec()))
            .ok()
            .and_then(|document| {
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.expose(), &random).ok()
            })
            .ok_or_else(|| {
                SourceError::refused("cannot make the offline key: this system has no randomness")
            })?;
        let key_id = thumbprint(&key);
        Ok(Self { key, key_id, random })
    }

    /// The public key as a JSON Web Key Set (RFC 7517), for verifiers.
    pub fn jwks(&self) -> String {
        let (x, y) = coordinates(&self.key);
        json!({"keys": [{
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.key_id, "x": x, "y": y,
        }]})
        .to_string()
    }

    /// Fills `bytes` with randomness.
    pub(crate) fn random(&self, bytes: &mut [u8]) -> Result<(), SourceError> {
        self.random.fill(bytes).map_err(weak)
    }

    /// A JWT with these claims.
    pub(crate) fn token(&self, claims: &Value) -> Result<Secret<String>, SourceError> {
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": self.key_id});
        let input = jwt::signing_input(&header, claims);
        let signature = self.key.sign(&self.random, input.as_bytes()).map_err(weak)?;
        Ok(Secret::new(format!("{input}.{}", jwt::encode(signature))))
    }
}

fn weak(_: ring::error::Unspecified) -> SourceError {
    SourceError::transient("signing failed: no randomness; try again")
}

/// The two halves of the uncompressed point `04 || x || y` (SEC 1 section 2.3.3).
fn coordinates(key: &EcdsaKeyPair) -> (String, String) {
    let (x, y) = key.public_key().as_ref()[1..].split_at(32);
    (jwt::encode(x), jwt::encode(y))
}

/// RFC 7638: the hash of the required members in lexical order.
fn thumbprint(key: &EcdsaKeyPair) -> String {
    let (x, y) = coordinates(key);
    let members = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    jwt::encode(digest(&SHA256, members.as_bytes()))
}
