//! Service-account keys, and what they sign (`assertion` has the rest). The only file that names `yup_oauth2`, and its types stay here.
//!
//! yup-oauth2 does the JWT-bearer exchange (RFC 7523). It logs requests and answers with their secrets
//! through the `log` crate, caches per scope set without single flight, and has no time-outs; so it gets a
//! storage that stores nothing, our client, our time-outs, and no bridge from `log` (`observe`).
//! It also drops the status of an answer and reads bodies without a bound: what it cannot read counts as
//! transient, and the time-out is the bound.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::OnceCell;
use yup_oauth2::authenticator::Authenticator;
use yup_oauth2::error::{AuthErrorCode, TokenStorageError};
use yup_oauth2::storage::{TokenInfo, TokenStorage};
use yup_oauth2::{CustomHyperClientBuilder, ServiceAccountAuthenticator, ServiceAccountKey};

use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::assertion::Redeemed;
use crate::source::google::life;
use crate::source::jwt;
use crate::source::upstream::{Denial, Fault, Upstream};
use crate::token::{AccessToken, Deadline, Now, Scopes};

/// Codes of Google's own that do not pass: of the account or its project, and of the organisation's policies.
const FOR_GOOD: [&str; 6] = [
    "admin_policy_enforced",
    "deleted_client",
    "disabled_client",
    "org_internal",
    "policy_enforced",
    "restricted_client",
];

type Connector = hyper_rustls::HttpsConnector<crate::source::proxied::Road>;

/// A service-account key, ready to sign.
pub(super) struct Key {
    email: String,
    key_id: Option<String>,
    token_uri: String,
    exchanges: bool,
    pem: Secret<String>,
    signer: RsaKeyPair,
    /// Made on first use and kept, because yup copies the key into it. It holds on to the client of that time,
    /// with its connections, so it goes with them.
    exchanger: Mutex<Arc<OnceCell<Authenticator<Connector>>>>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", self.email)
    }
}

impl Key {
    /// `pem` is the file's `private_key`. A key that cannot sign is found here, not at the first request.
    pub(super) fn new(
        email: String,
        key_id: Option<String>,
        pem: Secret<String>,
        token_uri: String,
        exchanges: bool,
    ) -> Result<Self, &'static str> {
        let der = PrivateKeyDer::from_pem_slice(pem.expose().as_bytes())
            .map_err(|_| "its private_key is not a PEM private key")?;
        let signer = match &der {
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            _ => return Err("its private_key is not an RSA key"),
        }
        .map_err(|_| "its private_key is not an RSA key of 2048 bits or more")?;
        Ok(Self { email, key_id, token_uri, exchanges, pem, signer, exchanger: Mutex::default() })
    }

    pub(super) fn email(&self) -> &str {
        &self.email
    }

    /// One exchange, for exactly `scopes`: through yup, unless this machine's clock is known to be wrong.
    pub(super) async fn exchange(
        &self,
        upstream: &Upstream,
        scopes: &Scopes,
    ) -> Result<AccessToken, SourceError> {
        if upstream.skew().ahead() != 0 {
            return self.exchange_by_their_clock(upstream, scopes).await;
        }
        match self.exchange_through_yup(upstream, scopes).await {
            Err(Redeemed::Fault(fault)) => {
                // yup shows no Date; only a refusal is worth a question of its own.
                if fault.is_invalid_grant() {
                    let _ = upstream.clock(&self.token_uri).await;
                }
                match upstream.skew().ahead() {
                    0 => Err(self.refused(fault)),
                    _ => self.exchange_by_their_clock(upstream, scopes).await,
                }
            }
            Err(Redeemed::Useless(error)) => Err(error),
            Ok(token) => Ok(token),
        }
    }

    async fn exchange_through_yup(
        &self,
        upstream: &Upstream,
        scopes: &Scopes,
    ) -> Result<AccessToken, Redeemed> {
        let made = self.exchanger.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let exchanger = made.get_or_try_init(|| self.exchanger(upstream)).await?;
        let list: Vec<&str> = scopes.iter().collect();
        let limit = upstream.limits().call;
        let (token, left, sent) = upstream
            .persist(|| async {
                let sent = Now::read();
                let token = match tokio::time::timeout(limit, exchanger.token(&list)).await {
                    Ok(outcome) => outcome.map_err(|error| self.fault(error))?,
                    Err(_) => return Err(Fault::silent(&self.token_uri, limit)),
                };
                let left = token.expiration_time().map(|end| end - OffsetDateTime::now_utc());
                Ok((token, left, sent))
            })
            .await
            .map_err(Redeemed::Fault)?;
        let value =
            token.token().filter(|value| !value.is_empty()).map(|value| Secret::new(value.to_owned()));
        let (Some(value), Some(left)) = (value, left) else {
            return Err(
                SourceError::transient("the token endpoint gave no token with an expiry; try again").into()
            );
        };
        let expires = Deadline::after(sent, life(Duration::try_from(left).unwrap_or_default())?);
        Ok(AccessToken::new(value, expires, scopes.clone()))
    }

    /// The client that it was made with has been replaced.
    pub(super) fn reconnect(&self) {
        *self.exchanger.lock().unwrap_or_else(PoisonError::into_inner) = Arc::default();
    }

    /// Whether the token endpoint takes assertions of this key; else what it signs are the tokens.
    pub(super) fn exchanges(&self) -> bool {
        self.exchanges
    }

    pub(super) fn token_uri(&self) -> &str {
        &self.token_uri
    }

    /// A signed JWT of these claims.
    pub(super) fn sign(&self, claims: &Value) -> Result<Secret<String>, SourceError> {
        let mut header = json!({"alg": "RS256", "typ": "JWT"});
        if let Some(key_id) = &self.key_id {
            header["kid"] = json!(key_id);
        }
        let input = jwt::signing_input(&header, claims);
        let mut signature = vec![0; self.signer.public().modulus_len()];
        self.signer
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input.as_bytes(), &mut signature)
            .map_err(|_| SourceError::transient("signing with the service-account key failed; try again"))?;
        Ok(Secret::new(format!("{input}.{}", jwt::encode(signature))))
    }

    async fn exchanger(&self, upstream: &Upstream) -> Result<Authenticator<Connector>, SourceError> {
        let key = ServiceAccountKey {
            key_type: None,
            project_id: None,
            private_key_id: self.key_id.clone(),
            private_key: self.pem.expose().clone(),
            client_email: self.email.clone(),
            client_id: None,
            auth_uri: None,
            token_uri: self.token_uri.clone(),
            auth_provider_x509_cert_url: None,
            client_x509_cert_url: None,
        };
        ServiceAccountAuthenticator::with_client(key, CustomHyperClientBuilder::from(upstream.client()))
            .with_storage(Box::new(Nowhere))
            .build()
            .await
            .map_err(|_| SourceError::refused("this service-account key cannot sign; make a new one"))
    }

    fn fault(&self, error: yup_oauth2::Error) -> Fault {
        use yup_oauth2::error::SendError;
        match error {
            yup_oauth2::Error::HttpClientError(SendError::Hyper(error)) => {
                Fault::lost(&self.token_uri, &error)
            }
            yup_oauth2::Error::AuthError(error) => Fault::Denied(self.denial(&error.error)),
            // The others quote the answer.
            _ => Fault::unreachable(&self.token_uri, "its answer is not understood"),
        }
    }

    /// yup keeps the code but not the status. Codes of RFC 6749 sections 4.1.2.1 and 5.2 decide, and those of
    /// [`FOR_GOOD`]; one that is not listed is taken for a passing trouble, as a client gives up for good on the other reading.
    fn denial(&self, code: &AuthErrorCode) -> Denial {
        let status = match code {
            AuthErrorCode::Other(code) if FOR_GOOD.contains(&code.as_str()) => 403,
            AuthErrorCode::Other(_) => 503,
            AuthErrorCode::InvalidClient | AuthErrorCode::UnauthorizedClient => 401,
            AuthErrorCode::AccessDenied => 403,
            _ => 400,
        };
        Denial::known(&self.token_uri, status, code.as_str())
    }

    pub(super) fn refused(&self, fault: Fault) -> SourceError {
        match &fault {
            Fault::Denied(denial) if denial.is("invalid_grant") => SourceError::refused(format!(
                "the key of {} is not accepted (invalid_grant): it was deleted, the account is disabled, \
                 or this machine's clock is wrong",
                self.email
            )),
            Fault::Denied(denial) if denial.is("disabled_client") || denial.is("deleted_client") => {
                SourceError::refused(format!("{denial}: {} is disabled or deleted", self.email))
            }
            Fault::Denied(denial) if denial.is("admin_policy_enforced") => SourceError::refused(format!(
                "{denial}: a policy of the organisation keeps {} from tokens; ask its administrator",
                self.email
            )),
            _ => fault.into(),
        }
    }
}

/// Stores nothing: `mint` is the only cache, else what it forgets would live on here.
struct Nowhere;

impl TokenStorage for Nowhere {
    fn set<'s, 'l, 't, 'f>(
        &'s self,
        _scopes: &'l [&'t str],
        _token: TokenInfo,
    ) -> Pin<Box<dyn Future<Output = Result<(), TokenStorageError>> + Send + 'f>>
    where
        's: 'f,
        'l: 'f,
        't: 'f,
        Self: 'f,
    {
        Box::pin(std::future::ready(Ok(())))
    }

    fn get<'s, 'l, 't, 'f>(
        &'s self,
        _scopes: &'l [&'t str],
    ) -> Pin<Box<dyn Future<Output = Option<TokenInfo>> + Send + 'f>>
    where
        's: 'f,
        'l: 'f,
        't: 'f,
        Self: 'f,
    {
        Box::pin(std::future::ready(None))
    }
}
