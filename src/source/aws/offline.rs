//! Sessions that AWS does not accept, for demos, tests and emulators: made-up keys whose session token is a JWT that
//! the session's signer signed (its key set is the offline source's).
//!
//! A verifier, such as a gateway in a test, reads the container from the token and gets the secret key from
//! [`AwsOffline::secret`], because Signature Version 4 is symmetric.

use std::fmt;
use std::sync::Arc;

use ring::hmac;
use serde_json::json;

use crate::secret::Secret;
use crate::source::aws::AwsRequest;
use crate::source::signer::{ISSUER, Signer};
use crate::source::{SourceError, jwt};
use crate::token::{AwsSession, Deadline, MintId, Now, RenderedReply};

/// The account of sessions without a role.
pub(super) const ACCOUNT: &str = "000000000000";
/// The digits of an access key id: base 32 (RFC 4648), as AWS's have.
const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Such ids begin with `ASIA` and have twenty characters.
const RANDOM_DIGITS: usize = 16;

/// A signer, and the key that secrets are made with.
pub(super) struct AwsOffline {
    signer: Arc<Signer>,
    key: hmac::Key,
}

impl fmt::Debug for AwsOffline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Offline(..)")
    }
}

impl AwsOffline {
    pub(super) fn new(signer: Arc<Signer>) -> Result<Self, SourceError> {
        let mut bytes = [0; 32];
        signer.random(&mut bytes)?;
        let key = Secret::new(bytes.to_vec());
        Ok(Self { signer, key: hmac::Key::new(hmac::HMAC_SHA256, key.expose()) })
    }

    pub(super) fn session(&self, ask: &AwsRequest) -> Result<AwsSession, SourceError> {
        let mut random = [0; RANDOM_DIGITS];
        self.signer.random(&mut random)?;
        let digits = random.iter().map(|byte| char::from(DIGITS[usize::from(byte % 32)]));
        let id = Secret::new(
            ["AS", "IA"].into_iter().map(String::from).chain(digits.map(String::from)).collect::<String>(),
        );
        let now = Now::read();
        let issued = jwt::seconds(now.wall);
        let account = ask.identity.account().unwrap_or(ACCOUNT);
        let mut claims = json!({
            "iss": ISSUER, "sub": ask.identity.role.as_deref().unwrap_or(account), "aud": "sts.amazonaws.com",
            "account": account, "session": ask.session_name, "key": id.expose(),
            "iat": issued, "exp": issued + ask.identity.lifetime.as_secs(),
        });
        if let Some(claims) = claims.as_object_mut() {
            claims.extend(ask.holder.iter().map(|holder| ("container".to_owned(), json!(holder.as_str()))));
        }
        let token = self.signer.token(&claims)?;
        Ok(AwsSession {
            secret_access_key: self.secret(token.expose()),
            access_key_id: id,
            session_token: token,
            expires: Deadline::after(now, ask.identity.lifetime),
            account: Some(account.to_owned()),
            user_id: None,
            id: MintId::random(),
            shown: RenderedReply::default(),
        })
    }

    /// The secret access key that belongs to a session token. Does not check whether the token is one of ours.
    pub(super) fn secret(&self, session_token: &str) -> Secret<String> {
        Secret::new(jwt::encode(hmac::sign(&self.key, session_token.as_bytes())))
    }
}
