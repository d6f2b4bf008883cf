//! Service-account keys and what they sign (see also `assertion`). The only file that uses `yup_oauth2`; its
//! types do not leave this module.
//!
//! yup-oauth2 does the JWT-bearer exchange (RFC 7523). It logs requests and answers with their secrets
//! through the `log` crate, caches per scope set without single flight, and has no timeouts; so it gets a
//! storage that stores nothing, our timeouts, and no bridge from `log` (`console`). It drops the status of an
//! answer and reads bodies without a limit, so its transport ends in our own client (`transport`).

pub(super) mod assertion;
mod transport;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::OnceCell;
use yup_oauth2::authenticator::Authenticator;
use yup_oauth2::error::TokenStorageError;
use yup_oauth2::storage::{TokenInfo, TokenStorage};
use yup_oauth2::{CustomHyperClientBuilder, ServiceAccountAuthenticator, ServiceAccountKey};

use crate::failure::{Reason, Remedy};
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::expiry::life;
use crate::source::google::pem;
use crate::source::google::service_account::assertion::Redeemed;
use crate::source::google::service_account::transport::{Carrier, Transport};
use crate::source::http::client::Upstream;
use crate::source::http::fault::Fault;
use crate::source::jwt;
use crate::token::{AccessToken, Deadline, Now, Scopes};

type Exchanger = Authenticator<Transport>;

/// A service-account key, ready to sign.
pub(crate) struct ServiceAccount {
    email: String,
    key_id: Option<String>,
    token_uri: String,
    exchanges: bool,
    pem: Secret<String>,
    signer: RsaKeyPair,
    /// Built on first use, because yup copies the key into it. Paired with the carrier of its requests.
    exchanger: OnceCell<(Exchanger, Arc<Carrier>)>,
}

impl fmt::Debug for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceAccount({:?})", self.email)
    }
}

impl ServiceAccount {
    /// `pem` is the file's `private_key`. Fails here, not at the first request, if the key cannot sign.
    pub(crate) fn new(
        email: String,
        key_id: Option<String>,
        pem: Secret<String>,
        token_uri: String,
        exchanges: bool,
    ) -> Result<Self, String> {
        let (der, pem) = pem::private_key(&pem).map_err(|why| format!("its private_key {why}"))?;
        let signer = match &der {
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            _ => return Err("its private_key is not an RSA key".into()),
        }
        .map_err(|error| match error.to_string().as_str() {
            "TooSmall" => {
                "its private_key has less than 2048 bits, with which nothing is signed here; make a new key"
            }
            _ => "its private_key is not an RSA key that can be read",
        })?;
        Ok(Self { email, key_id, token_uri, exchanges, pem, signer, exchanger: OnceCell::new() })
    }

    pub(crate) fn email(&self) -> &str {
        &self.email
    }

    /// Exchanges once, for exactly `scopes`: through yup, unless this machine's clock is known to be wrong,
    /// which the answer to yup's own attempt may have shown.
    pub(crate) async fn exchange(
        &self,
        upstream: &Arc<Upstream>,
        scopes: &Scopes,
    ) -> Result<AccessToken, SourceError> {
        if upstream.skew().ahead() != 0 {
            return self.exchange_by_their_clock(upstream, scopes).await;
        }
        match self.exchange_through_yup(upstream, scopes).await {
            Err(Redeemed::Fault(fault)) if fault.is_invalid_grant() && upstream.skew().ahead() != 0 => {
                self.exchange_by_their_clock(upstream, scopes).await
            }
            Err(Redeemed::Fault(fault)) => Err(self.refused(fault)),
            Err(Redeemed::Useless(error)) => Err(error),
            Ok(token) => Ok(token),
        }
    }

    async fn exchange_through_yup(
        &self,
        upstream: &Arc<Upstream>,
        scopes: &Scopes,
    ) -> Result<AccessToken, Redeemed> {
        let (exchanger, carrier) = self.exchanger.get_or_try_init(|| self.exchanger(upstream)).await?;
        let list: Vec<&str> = scopes.iter().collect();
        let limit = upstream.limits().call;
        let (token, left, sent) = upstream
            .persist(|| async {
                let sent = Now::read();
                let token = match tokio::time::timeout(limit, exchanger.token(&list)).await {
                    Ok(Ok(token)) => token,
                    Ok(Err(error)) => return self.failed(carrier, &error).map(Err),
                    Err(_) => return Err(Fault::silent(&self.token_uri, limit)),
                };
                let left = token.expiration_time().map(|end| end - OffsetDateTime::now_utc());
                Ok(Ok((token, left, sent)))
            })
            .await
            .map_err(Redeemed::Fault)??;
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

    /// Whether the token endpoint exchanges this key's assertions; otherwise it signs the tokens itself.
    pub(crate) fn exchanges(&self) -> bool {
        self.exchanges
    }

    pub(crate) fn token_uri(&self) -> &str {
        &self.token_uri
    }

    /// A signed JWT of these claims.
    pub(crate) fn sign(&self, claims: &Value) -> Result<Secret<String>, SourceError> {
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

    async fn exchanger(&self, upstream: &Arc<Upstream>) -> Result<(Exchanger, Arc<Carrier>), SourceError> {
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
        let carrier = Carrier::new(upstream.clone(), self.token_uri.clone());
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(Transport(carrier.clone()));
        ServiceAccountAuthenticator::with_client(key, CustomHyperClientBuilder::from(client))
            .with_storage(Box::new(Nowhere))
            .build()
            .await
            .map(|exchanger| (exchanger, carrier))
            .map_err(|_| {
                let text = "this service-account key cannot sign; make a new one";
                SourceError::refused(Reason::new(text, Remedy::ListKeys(self.email.clone())))
            })
    }

    /// Why an exchange failed: `Err` is a fault that may pass on retry, `Ok` a final error.
    fn failed(&self, carrier: &Carrier, error: &yup_oauth2::Error) -> Result<SourceError, Fault> {
        let known = match error {
            yup_oauth2::Error::AuthError(error) => carrier.fault(error.error.as_str()),
            _ => None,
        };
        match known {
            Some(Redeemed::Fault(fault)) => Err(fault),
            Some(Redeemed::Useless(error)) => Ok(error),
            // yup's own errors quote the input that failed to parse.
            None => Err(Fault::unreachable(&self.token_uri, "its answer is not understood")),
        }
    }

    pub(crate) fn refused(&self, fault: Fault) -> SourceError {
        match &fault {
            Fault::Denied(denial) if denial.is("invalid_grant") => SourceError::refused(Reason::new(
                format!(
                    "the key of {} is not accepted (invalid_grant): it was deleted, the account is disabled, \
                     or this machine's clock is wrong",
                    self.email
                ),
                Remedy::ListKeys(self.email.clone()),
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

/// Stores nothing: `mint` is the only cache; tokens that it forgets would otherwise remain here.
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
