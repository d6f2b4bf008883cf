//! The one HTTP client towards Google: bounded in time, in tries and in bytes.
//!
//! No text made here holds a body: an answer is reduced to its status and the error code that it
//! carries, in the forms of RFC 6749 section 5.2 and of google.rpc.Status.

use std::error::Error;
use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt, Limited};
use hyper::header::DATE;
use hyper::{Method, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use crate::secret::Secret;
use crate::source::SourceError;
pub(super) use crate::source::call::{Answer, Call};
use crate::source::clock::{Skew, apart, http_date};
use crate::source::proxied::{Proxies, Road};
use crate::token::Now;

/// A token answer is a few KiB; what is larger than this is not one.
const LARGEST_ANSWER: usize = 1 << 20;

/// Idle connections are closed by Google after some minutes; ours go earlier, so that none is found dead.
const IDLE: Duration = Duration::from_secs(60);
const IDLE_PER_HOST: usize = 4;

/// How long and how often is tried.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// One call, from connect to the last byte.
    pub call: Duration,
    /// Everything that one mint needs, retries and base token included.
    pub mint: Duration,
    /// Calls per exchange; more than one only where trying again can help.
    pub tries: u32,
    /// The pause before the second call; it grows fourfold and is jittered.
    pub pause: Duration,
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

pub(super) type Client = legacy::Client<HttpsConnector<Road>, String>;

/// A pooled client for `https`, and for `http` because endpoints are configurable (decision 18).
#[derive(Debug)]
pub struct Upstream {
    roots: Arc<RootCertStore>,
    proxies: Proxies,
    connector: HttpsConnector<Road>,
    client: RwLock<Client>,
    limits: Limits,
    skew: Skew,
}

/// A certificate chain, the leaf first, and the leaf's key: what TLS shows of a client.
pub(super) type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Upstream {
    /// Connects directly. Trusts the system's roots and `extra` ones (private endpoints, tests).
    pub fn new(limits: Limits, extra: Vec<CertificateDer<'static>>) -> Result<Arc<Self>, SourceError> {
        Self::through(&Proxies::default(), limits, extra)
    }

    /// Like [`Self::new`], with the proxies of the host.
    pub fn through(
        proxies: &Proxies,
        limits: Limits,
        extra: Vec<CertificateDer<'static>>,
    ) -> Result<Arc<Self>, SourceError> {
        let mut roots = RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        if native.certs.is_empty() {
            tracing::warn!("no certificate authorities found on this machine; https endpoints will fail");
        }
        roots.add_parsable_certificates(native.certs.into_iter().chain(extra));
        Self::build(Arc::new(roots), proxies, (limits, Skew::default()), None)
    }

    /// The same, with a client certificate for servers that ask for one.
    pub(super) fn showing(&self, shown: Shown) -> Result<Arc<Self>, SourceError> {
        Self::build(self.roots.clone(), &self.proxies, (self.limits, self.skew.clone()), Some(shown))
    }

    fn build(
        roots: Arc<RootCertStore>,
        proxies: &Proxies,
        (limits, skew): (Limits, Skew),
        shown: Option<Shown>,
    ) -> Result<Arc<Self>, SourceError> {
        // The provider is passed explicitly: a process-wide default would be set by whoever comes first.
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
            .wrap_connector(Road::new(http, proxies)?);
        let client = RwLock::new(client(&connector));
        Ok(Arc::new(Self { roots, proxies: proxies.clone(), connector, client, limits, skew }))
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// The client of now, with its connections: who holds on to it lets go at [`Self::reconnect`].
    pub(super) fn client(&self) -> Client {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets pooled connections: after a sleep they look open and swallow the first request.
    pub(super) fn reconnect(&self) {
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = client(&self.connector);
    }

    /// Sends `call`, again where that can help.
    pub(super) async fn send(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        self.persist(|| async {
            match tokio::time::timeout(self.limits.call, self.once(call)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(Fault::silent(call.url, self.limits.call)),
            }
        })
        .await
    }

    /// Repeats `attempt` while its fault is transient and tries are left.
    pub(super) async fn persist<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let mut pause = self.limits.pause;
        for _ in 1..self.limits.tries {
            match attempt().await {
                Err(fault) if fault.passes() => {
                    tracing::debug!(%fault, "trying again");
                    tokio::time::sleep(jittered(pause)).await;
                    pause *= 4;
                }
                settled => return settled,
            }
        }
        attempt().await
    }

    /// By how many seconds this machine's clock is ahead of the server's, from the Date of any answer of it,
    /// good or bad; to the second, as the header is.
    pub(super) async fn clock(&self, url: &str) -> Result<Option<i64>, Fault> {
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
    pub(super) fn skew(&self) -> &Skew {
        &self.skew
    }

    pub(super) async fn once(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        let request = call.request()?;
        let client = self.client();
        // Lifetimes count from before the request went out, so that they are never too long.
        let sent = Now::read();
        let response = client.request(request).await.map_err(|error| Fault::lost(call.url, &error))?;
        let (head, body) = response.into_parts();
        let date = head.headers.get(DATE).and_then(|date| http_date(date.to_str().ok()?));
        // What is asked by GET is on this machine, or of the job's own system: its clock proves nothing.
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
            // Google's endpoints answer in JSON, and never by a redirect.
            denial.foreign &= call.method == Method::POST || call.bearer.is_some();
            return Err(Fault::Denied(denial));
        }
        let flavored = head.headers.get("metadata-flavor").is_some_and(|flavor| flavor == "Google");
        Ok(Answer { host: host(call.url), body, date, sent, flavored })
    }
}

fn client(connector: &HttpsConnector<Road>) -> Client {
    legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .build(connector.clone())
}

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("cannot reach {host}: {why}")]
    Unreachable { host: String, why: String },
    /// TLS does not trust who answers; somebody on the way may be gone later, but not in a moment.
    #[error("cannot reach {host}: {why}")]
    Untrusted { host: String, why: String },
    #[error("{host} cannot be asked: {why}")]
    Unfit { host: String, why: String },
    #[error(transparent)]
    Denied(Denial),
}

impl Fault {
    pub(super) fn unreachable(url: &str, why: impl Into<String>) -> Self {
        Self::Unreachable { host: host(url), why: why.into() }
    }

    pub(super) fn unfit(url: &str, why: impl Into<String>) -> Self {
        Self::Unfit { host: host(url), why: why.into() }
    }

    pub(super) fn silent(url: &str, after: Duration) -> Self {
        Self::unreachable(url, format!("no answer within {} s", after.as_secs_f32()))
    }

    /// The innermost cause is what a person can act on (`connection refused`, `UnknownIssuer`); these
    /// errors come from the transport and know nothing of what was sent.
    pub(super) fn lost(url: &str, error: &legacy::Error) -> Self {
        let mut why = error.to_string();
        let mut trusted = true;
        let mut cause = error.source();
        while let Some(inner) = cause {
            why = inner.to_string();
            trusted &= !is_distrust(inner);
            cause = inner.source();
        }
        let host = host(url);
        if trusted { Self::Unreachable { host, why } } else { Self::Untrusted { host, why } }
    }

    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Untrusted { .. } => true,
            Self::Unfit { .. } => false,
            Self::Denied(denial) => denial.is_transient(),
        }
    }

    /// Whether another call in a moment may bring more.
    pub(super) fn passes(&self) -> bool {
        self.is_transient() && !matches!(self, Self::Untrusted { .. })
    }

    /// RFC 6749 section 5.2: the grant itself is not accepted, which is also said of one that is not valid yet.
    pub(super) fn is_invalid_grant(&self) -> bool {
        matches!(self, Self::Denied(denial) if denial.is("invalid_grant"))
    }
}

/// The transport wraps what TLS says into errors of input and output, one in the other, and `source` of such a
/// one passes over what is in it.
fn is_distrust(error: &(dyn Error + 'static)) -> bool {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return matches!(tls, rustls::Error::InvalidCertificate(_));
    }
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    inner.is_some_and(|inner| is_distrust(inner))
}

/// The fault as it stands, for callers that know no better remedy.
impl From<Fault> for SourceError {
    fn from(fault: Fault) -> Self {
        if fault.is_transient() {
            Self::transient(fault.to_string())
        } else {
            Self::refused(fault.to_string())
        }
    }
}

/// An answer that is not 2xx: its status, and the codes in it.
#[derive(Debug, thiserror::Error)]
#[error("{host} answered {status}{}{}", .code.as_ref().map(|code| format!(" {code}")).unwrap_or_default(), self.hint())]
pub(super) struct Denial {
    pub(super) host: String,
    pub(super) status: u16,
    /// `error` of OAuth (`invalid_grant`), `error.status` of google.rpc (`PERMISSION_DENIED`).
    pub(super) code: Option<String>,
    /// `error_subtype` of OAuth (`invalid_rapt`), `error.details[].reason` of google.rpc (`SERVICE_DISABLED`).
    pub(super) reason: Option<String>,
    /// It is no answer of the API that was asked: a proxy, a firewall or the network's login page gave it.
    pub(super) foreign: bool,
}

impl Denial {
    pub(super) fn read(url: &str, status: u16, body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let error = &body["error"];
        let details = error["details"].as_array();
        let reason = details.and_then(|all| all.iter().find_map(|one| code(&one["reason"])));
        // As the JSON API of Cloud Storage says it.
        let reason = reason.or_else(|| code(&error["errors"][0]["reason"]));
        // VPC Service Controls say it in a violation: google.rpc.PreconditionFailure.
        let violation = details.and_then(|all| {
            all.iter().find_map(|one| code(&one["violations"][0]["type"]).filter(|_| status == 403))
        });
        let violation = violation.map(|_| "SECURITY_POLICY_VIOLATED".to_owned());
        Self {
            host: host(url),
            status,
            code: code(error).or_else(|| code(&error["status"])),
            reason: code(&body["error_subtype"]).or(reason).or(violation),
            foreign: matches!(status, 300..=399 | 407 | 511) || status == 403 && !body.is_object(),
        }
    }

    fn hint(&self) -> &'static str {
        match self.status {
            _ if !self.foreign => "",
            300..=399 => " (a redirect: a proxy or the login page of this network answers in its place)",
            407 => " (a proxy wants a login; HTTPS_PROXY can hold it)",
            511 => " (this network wants a login)",
            _ => " (not in the API's form: a proxy or firewall on the way answers in its place)",
        }
    }

    /// Somebody else's answer, request time-out, too many requests, and everything that is the server's own trouble. A loop (508)
    /// is none that passes.
    pub(super) fn is_transient(&self) -> bool {
        self.foreign || matches!(self.status, 408 | 425 | 429 | 500..=507 | 509..=599)
    }

    pub(super) fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }
}

/// Only what looks like a code passes (words of one case, joined by `_`): a server may put anything into its
/// errors, what we sent included, and a client's secret is as short as a code.
pub(super) fn code(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    let of = |case: fn(&u8) -> bool| text.bytes().all(|b| b == b'_' || case(&b));
    let word = of(u8::is_ascii_lowercase) || of(u8::is_ascii_uppercase);
    (!text.is_empty() && text.len() <= 40 && word).then(|| text.to_owned())
}

pub(super) fn host(url: &str) -> String {
    url.parse()
        .ok()
        .and_then(|uri: Uri| uri.host().map(str::to_owned))
        .unwrap_or_else(|| "the endpoint".into())
}

/// Between half and one and a half of `pause`, so that many clients do not come back together.
pub(crate) fn jittered(pause: Duration) -> Duration {
    let mut byte = [128];
    // Without randomness the plain pause is good enough.
    let _ = SystemRandom::new().fill(&mut byte);
    pause.mul_f64(0.5 + f64::from(byte[0]) / 255.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_leave_an_error_body() {
        let read =
            |status, body: &str| Denial::read("https://a.example/t", status, body.as_bytes()).to_string();
        assert_eq!(
            read(400, r#"{"error":"invalid_grant","error_description":"s3cret"}"#),
            "a.example answered 400 invalid_grant"
        );
        assert_eq!(
            read(403, r#"{"error":{"status":"PERMISSION_DENIED","message":"s3cret"}}"#),
            "a.example answered 403 PERMISSION_DENIED"
        );
        for body in [
            "<html>s3cret</html>",
            r#"{"error":"s3 cret"}"#,
            r#"{"error":["s3cret"]}"#,
            r#"{"error":"GOCSPX-sEcret"}"#,
            "",
            "[]",
        ] {
            assert_eq!(read(503, body), "a.example answered 503", "{body}");
        }
    }

    #[test]
    fn calls_and_mints_are_bounded_as_promised() {
        let limits = Limits::default();
        assert_eq!((limits.call.as_secs(), limits.mint.as_secs()), (10, 25));
    }

    #[test]
    fn transience_is_a_property_of_the_status() {
        for (status, transient) in [(400, false), (401, false), (403, false), (404, false), (301, true)]
            .into_iter()
            .chain([(408, true), (429, true), (500, true), (503, true), (599, true)])
        {
            assert_eq!(Denial::read("x", status, b"{}").is_transient(), transient, "{status}");
        }
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
