//! Tokens without Google: an ES256 key pair, generated at start, signs JWTs that name their container.
//!
//! For demos, tests and emulators (decision 20). Only verifiers that read [`Offline::jwks`] accept them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::secret::Secret;
use crate::source::google::downscope;
use crate::source::signer::Signer;
use crate::source::{AccessRequest, IdentityRequest, Pending, Principal, Source, SourceError, jwt};
use crate::token::{AccessToken, Boundary, Deadline, IdentityToken, MintId, Now};
use crate::workload::ContainerId;

pub use crate::source::signer::ISSUER;

/// The same as for Google's ID tokens.
const ID_TOKEN_LIFE: u64 = 3600;

/// The longest life that Google gives an access token; emulators should not see a longer one.
const LONGEST_LIFE: u64 = 43_200;

/// A session's signer, and the project and e-mail in its tokens.
pub struct Offline {
    project: String,
    email: String,
    signer: Arc<Signer>,
}

impl fmt::Debug for Offline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Offline({:?}, {:?})", self.project, self.email)
    }
}

impl Offline {
    /// Generates the key pair, in memory. Fails only if the system has no randomness.
    pub fn new(project: impl Into<String>, email: impl Into<String>) -> Result<Self, SourceError> {
        let signer = Arc::new(Signer::new()?);
        Ok(Self { project: project.into(), email: email.into(), signer })
    }

    /// The signer, for the offline sources of other clouds: verifiers then need one key set.
    pub fn signer(&self) -> Arc<Signer> {
        self.signer.clone()
    }

    /// The public key as a JSON Web Key Set (RFC 7517), for verifiers.
    pub fn jwks(&self) -> String {
        self.signer.jwks()
    }

    /// A JWT with the claims common to both kinds of token, plus `more`.
    fn token(
        &self,
        account: Option<&str>,
        holder: Option<&ContainerId>,
        life: u64,
        more: Map<String, Value>,
    ) -> Result<(Secret<String>, Deadline), SourceError> {
        let mut id = [0; 16];
        self.signer.random(&mut id)?;
        let now = Now::read();
        let issued = jwt::seconds(now.wall);
        let email = account.unwrap_or(&self.email);
        let mut claims = json!({
            "iss": ISSUER, "sub": email, "email": email, "email_verified": true,
            "iat": issued, "exp": issued + life, "jti": jwt::encode(id),
        });
        if let Some(claims) = claims.as_object_mut() {
            claims.extend(more);
            claims.extend(holder.map(|holder| ("container".to_owned(), json!(holder.as_str()))));
        }
        Ok((self.signer.token(&claims)?, Deadline::after(now, Duration::from_secs(life))))
    }
}

impl Source for Offline {
    fn principal(&self) -> Principal {
        Principal {
            kind: "offline",
            email: Some(self.email.clone()),
            project: Some(self.project.clone()),
            quota_project: None,
            universe: None,
        }
    }

    fn per_container(&self) -> bool {
        true
    }

    fn access_token<'a>(&'a self, ask: &'a AccessRequest) -> Pending<'a, Result<AccessToken, SourceError>> {
        Box::pin(async move {
            let mut more = Map::from_iter([("scope".to_owned(), json!(ask.scopes.to_string()))]);
            more.extend(ask.subject.as_ref().map(|subject| ("subject".to_owned(), json!(subject))));
            let options = |of: &Boundary| ("boundary".to_owned(), downscope::options(of));
            more.extend(ask.boundary.as_deref().map(options));
            let life = ask.lifetime.clamp(1, LONGEST_LIFE);
            let (value, expires) =
                self.token(ask.service_account.as_deref(), ask.holder.as_ref(), life, more)?;
            Ok(AccessToken::new(value, expires, ask.scopes.clone()))
        })
    }

    fn identity_token<'a>(
        &'a self,
        ask: &'a IdentityRequest,
    ) -> Pending<'a, Result<IdentityToken, SourceError>> {
        Box::pin(async move {
            let more = Map::from_iter([("aud".to_owned(), json!(ask.audience))]);
            let (value, expires) =
                self.token(ask.service_account.as_deref(), ask.holder.as_ref(), ID_TOKEN_LIFE, more)?;
            Ok(IdentityToken { value, expires, id: MintId::random() })
        })
    }
}
