//! The HTTP client for Google and other issuers of tokens: with limits on time, tries and bytes.
//!
//! No text made here contains a body: an answer is reduced to its status and its error code, in the formats
//! of RFC 6749 section 5.2 and google.rpc.Status.

use std::future::Future;
use std::sync::{Arc, Once, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt, Limited};
use hyper::Method;
use hyper::header::DATE;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::clock::{Skew, apart, http_date};
use crate::source::http::fault::{Denial, Fault, host};
use crate::source::http::proxy::{Proxies, ProxyConnector};
use crate::source::http::request::{Answer, Call};
use crate::token::Now;

/// A token answer is a few KiB; anything larger than this is not one.
const LARGEST_ANSWER: usize = 1 << 20;

/// Google closes idle connections after some minutes; ours are closed earlier, so that no dead one is reused.
const IDLE: Duration = Duration::from_secs(60);
const IDLE_PER_HOST: usize = 4;

/// Limits on the time and number of tries.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// One call, from connecting to the last byte.
    pub call: Duration,
    /// One whole mint, including retries and the base token.
    pub mint: Duration,
    /// Calls per exchange; only faults that may pass are retried.
    pub tries: u32,
    /// The pause before the second call; each further one is four times longer, all with jitter.
    pub pause: Duration,
}

impl Limits {
    /// The longest pause between two calls that a server may ask for.
    fn patience(&self) -> Duration {
        self.mint / 5
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(10),
            mint: Duration::from_secs(25),
            tries: 3,
            pause: Duration::from_millis(250),
        }
    }
}

pub(crate) type Client = legacy::Client<HttpsConnector<ProxyConnector>, String>;

/// A pooled client for `https`, and for `http` because endpoints are configurable (decision 18).
#[derive(Debug)]
pub struct Upstream {
    roots: Arc<RootCertStore>,
    proxies: Proxies,
    connector: HttpsConnector<ProxyConnector>,
    client: RwLock<Client>,
    limits: Limits,
    skew: Skew,
}

/// A client certificate for TLS: the chain, leaf first, and the leaf's key.
pub(crate) type ClientCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Upstream {
    /// Connects directly. Trusts the system's roots and those in `extra` (private endpoints, tests).
    pub fn new(limits: Limits, extra: Vec<CertificateDer<'static>>) -> Result<Arc<Self>, SourceError> {
        Self::through(&Proxies::default(), limits, extra)
    }

    /// Like [`Self::new`], but through the host's proxies.
    pub fn through(
        proxies: &Proxies,
        limits: Limits,
        extra: Vec<CertificateDer<'static>>,
    ) -> Result<Arc<Self>, SourceError> {
        let native = rustls_native_certs::load_native_certs().certs;
        let (mut roots, told) = authorities(native, authorities_are_named());
        if let Some(told) = told {
            // A session makes more than one client.
            static TOLD: Once = Once::new();
            TOLD.call_once(|| tracing::warn!("{told}"));
        }
        roots.add_parsable_certificates(extra);
        Self::build(Arc::new(roots), proxies, (limits, Skew::default()), None)
    }

    /// The same client with a client certificate, for servers that request one.
    pub(crate) fn showing(&self, shown: ClientCertificate) -> Result<Arc<Self>, SourceError> {
        Self::build(self.roots.clone(), &self.proxies, (self.limits, self.skew.clone()), Some(shown))
    }

    fn build(
        roots: Arc<RootCertStore>,
        proxies: &Proxies,
        (limits, skew): (Limits, Skew),
        shown: Option<ClientCertificate>,
    ) -> Result<Arc<Self>, SourceError> {
        // The provider is passed explicitly: a process-wide default could be set by any library first.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| SourceError::refused(format!("cannot set TLS up: {error}")))?
            .with_root_certificates(roots.clone());
        let unfit = |_| {
            SourceError::refused(
                "the client certificate and its key do not belong together, or are of a kind that TLS does not take",
            )
        };
        let tls = match shown {
            None => tls.with_no_client_auth(),
            Some((chain, key)) => tls.with_client_auth_cert(chain, key).map_err(unfit)?,
        };
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(limits.call / 2));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(ProxyConnector::new(http, proxies)?);
        let client = RwLock::new(client(&connector));
        Ok(Arc::new(Self { roots, proxies: proxies.clone(), connector, client, limits, skew }))
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// The current client and its connections. Do not keep it: [`Self::reconnect`] replaces it.
    pub(crate) fn client(&self) -> Client {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Drops pooled connections: after a sleep they look open but lose the first request.
    pub(crate) fn reconnect(&self) {
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = client(&self.connector);
    }

    /// Sends `call`, with retries if they can help.
    pub(crate) async fn send(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        self.persist(|| async {
            match tokio::time::timeout(self.limits.call, self.once(call)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(Fault::silent(call.url, self.limits.call)),
            }
        })
        .await
    }

    /// Repeats `attempt` while its fault is transient and tries are left.
    pub(crate) async fn persist<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let mut pause = self.limits.pause;
        for _ in 1..self.limits.tries {
            match attempt().await {
                // If the server asks for a longer pause, this call fails, and callers learn the pause; a later request tries again.
                Err(fault) if fault.pause().is_some_and(|asked| asked > self.limits.patience()) => {
                    return Err(fault);
                }
                Err(fault) if fault.passes() => {
                    tracing::debug!(%fault, "trying again");
                    let asked = fault.pause().unwrap_or_default();
                    tokio::time::sleep(jittered(pause).max(asked)).await;
                    pause *= 4;
                }
                settled => return settled,
            }
        }
        attempt().await
    }

    /// Seconds by which this machine's clock is ahead of the server's, from the Date header of any answer,
    /// successful or not; in whole seconds, like the header.
    pub(crate) async fn clock(&self, url: &str) -> Result<Option<i64>, Fault> {
        let request = Call::form(url, &[]).request()?;
        let client = self.client();
        let asked = tokio::time::timeout(self.limits.call, client.request(request)).await;
        let answer = asked.map_err(|_| Fault::silent(url, self.limits.call))?;
        let answer = answer.map_err(|error| Fault::lost(url, &error))?;
        let (here, date) = (SystemTime::now(), answer.headers().get(DATE));
        let Some(there) = date.and_then(|date| http_date(date.to_str().ok()?)) else { return Ok(None) };
        self.skew.note(here, there);
        Ok(Some(apart(here, there)))
    }

    /// The upstream's clock, as far as it is known.
    pub(crate) fn skew(&self) -> &Skew {
        &self.skew
    }

    pub(crate) async fn once(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        let request = call.request()?;
        let client = self.client();
        // Lifetimes count from before the request is sent, so that they are never too long.
        let sent = Now::read();
        let response = client.request(request).await.map_err(|error| Fault::lost(call.url, &error))?;
        let (head, body) = response.into_parts();
        let date = head.headers.get(DATE).and_then(|date| http_date(date.to_str().ok()?));
        // GET requests also go to this machine and to the job's own system, whose clocks are not Google's.
        if let Some(date) = date.filter(|_| call.method == Method::POST) {
            self.skew.note(sent.wall, date);
        }
        let body = Limited::new(body, LARGEST_ANSWER).collect().await.map_err(|error| {
            let large = error.is::<http_body_util::LengthLimitError>();
            Fault::unreachable(
                call.url,
                if large { "its answer is larger than 1 MiB" } else { "its answer broke off" },
            )
        })?;
        let body = Secret::new(body.to_bytes().to_vec());
        if !head.status.is_success() {
            let mut denial = Denial::read(call.url, head.status.as_u16(), body.expose());
            // Google's endpoints answer in JSON and never redirect.
            denial.foreign &= call.method == Method::POST || call.bearer.is_some();
            if !call.codes.is_empty() {
                denial.read_xml(body.expose(), call.codes);
            }
            denial.heed(&head.headers);
            return Err(Fault::Denied(denial));
        }
        let flavored = head.headers.get("metadata-flavor").is_some_and(|flavor| flavor == "Google");
        Ok(Answer { host: host(call.url), body, date, sent, flavored })
    }
}

/// The machine's certificate authorities, else Mozilla's as of this build, because a container often has none. If the
/// user `named` a place, only that place counts, even if it has none. The text is a notice for the user.
fn authorities(native: Vec<CertificateDer<'static>>, named: bool) -> (RootCertStore, Option<&'static str>) {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(native);
    let told = match (added, named) {
        (1.., _) => None,
        (0, true) => {
            Some("no certificate authorities at SSL_CERT_FILE or SSL_CERT_DIR; https endpoints will fail")
        }
        (0, false) => {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            Some(
                "no certificate authorities on this machine: trusting Mozilla's as of this build; install \
                 ca-certificates, or set SSL_CERT_FILE",
            )
        }
    };
    (roots, told)
}

#[expect(clippy::disallowed_methods, reason = "rustls-native-certs reads these variables itself")]
fn authorities_are_named() -> bool {
    ["SSL_CERT_FILE", "SSL_CERT_DIR"].iter().any(|name| std::env::var_os(name).is_some())
}

fn client(connector: &HttpsConnector<ProxyConnector>) -> Client {
    legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .build(connector.clone())
}

/// Between half and one and a half times `pause`, so that many clients do not retry at the same time.
pub(crate) fn jittered(pause: Duration) -> Duration {
    let mut byte = [128];
    // If there is no randomness, the plain pause is good enough.
    let _ = SystemRandom::new().fill(&mut byte);
    pause.mul_f64(0.5 + f64::from(byte[0]) / 255.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mozillas_roots_are_the_fallback_and_announced() {
        let (roots, told) = authorities(vec![], false);
        assert!(roots.len() > 50 && told.is_some_and(|told| told.contains("Mozilla's")), "{told:?}");
        // What the user named is meant, also where it holds nothing or is broken.
        for native in [vec![], vec![CertificateDer::from(vec![0])]] {
            let (roots, told) = authorities(native, true);
            assert!(roots.is_empty() && told.is_some_and(|told| told.contains("SSL_CERT_FILE")), "{told:?}");
        }
    }

    #[test]
    fn calls_and_mints_end_within_their_time_limit() {
        let limits = Limits::default();
        assert_eq!((limits.call.as_secs(), limits.mint.as_secs()), (10, 25));
    }

    #[test]
    fn jitter_stays_in_its_bounds() {
        let pause = Duration::from_millis(1000);
        for _ in 0..200 {
            let some = jittered(pause);
            assert!((500..=1500).contains(&some.as_millis()), "{some:?}");
        }
    }
}
