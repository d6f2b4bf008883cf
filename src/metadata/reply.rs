//! A reply and its exact headers, the same for every listener.

use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{
    ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, LOCATION, RETRY_AFTER, SERVER, X_FRAME_OPTIONS,
};
use hyper::header::{HeaderName, HeaderValue, X_XSS_PROTECTION};
use hyper::{HeaderMap, StatusCode};

use crate::token::Rendered;

pub(super) const METADATA_FLAVOR: HeaderName = HeaderName::from_static("metadata-flavor");
pub(super) const AWS_TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");

/// The reply to the caller. A listener adds `Date`, leaves the body out for HEAD, and changes nothing else.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub content_type: &'static str,
    /// Sixteen hex digits, unquoted; absent on tokens and errors.
    pub etag: Option<String>,
    /// Absolute, with the caller's own Host.
    pub location: Option<String>,
    pub body: Body,
    /// The connection ends after this reply (`Connection: close`, a header that HTTP/2 lacks).
    pub close: bool,
    /// The methods that a 405 names.
    pub allow: Option<&'static str>,
    /// `Retry-After` in seconds, of a failure that may pass.
    pub retry_after: Option<u64>,
    /// With a token of IMDSv2: the seconds that it is valid; clients need the header.
    pub ttl: Option<u32>,
    /// Has the headers of Google's server. Clients that see them believe that they run at Google.
    pub of_google: bool,
    /// A refusal that goes out as a 200, because clients show the text of no other status.
    pub refused: bool,
    /// Clients send this request on every machine, to detect the cloud: a negative answer is not a refusal.
    pub probe: bool,
    /// What is wrong with the request, for the records; `None` if there is no reason besides the refusal.
    pub wrong: Option<&'static str>,
}

impl Reply {
    /// A reply without headers of Google's.
    pub(super) fn bare(status: StatusCode, content_type: &'static str, body: Body) -> Self {
        Self {
            status,
            content_type,
            etag: None,
            location: None,
            body,
            close: false,
            allow: None,
            retry_after: None,
            ttl: None,
            of_google: false,
            refused: false,
            probe: false,
            wrong: None,
        }
    }

    /// Sets the time after which the same request may succeed, if `self` is such a failure. Azure's libraries wait for
    /// that time; those of AWS and Google choose their own pause.
    pub fn after(self, pause: Option<Duration>) -> Self {
        let busy = matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
        let seconds = |pause: Duration| (pause.as_secs() + u64::from(pause.subsec_nanos() > 0)).max(1);
        Self { retry_after: pause.filter(|_| busy).map(seconds), ..self }
    }

    /// The status for metrics and audit log: 403 for a refusal that goes out as a 200.
    pub fn counted(&self) -> StatusCode {
        if self.refused { StatusCode::FORBIDDEN } else { self.status }
    }
}

/// The bytes of a reply. Those of a token can neither be printed nor cloned, and are overwritten when the
/// last reference is dropped.
pub struct Body(Content);

enum Content {
    Plain(Bytes),
    Token(Rendered),
}

impl Body {
    pub(super) fn plain(bytes: impl Into<Bytes>) -> Self {
        Self(Content::Plain(bytes.into()))
    }

    pub(super) fn token(bytes: Rendered) -> Self {
        Self(Content::Token(bytes))
    }

    pub fn len(&self) -> usize {
        match &self.0 {
            Content::Plain(bytes) => bytes.len(),
            Content::Token(secret) => secret.expose().len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the bytes hold a token: do not log, cache or keep them.
    pub fn is_secret(&self) -> bool {
        matches!(self.0, Content::Token(_))
    }

    /// The bytes for the wire, without a copy. Those of a token are still overwritten when last dropped.
    pub fn into_bytes(self) -> Bytes {
        match self.0 {
            Content::Plain(bytes) => bytes,
            Content::Token(secret) => Bytes::from_owner(Exposed(secret)),
        }
    }
}

struct Exposed(Rendered);

impl AsRef<[u8]> for Exposed {
    fn as_ref(&self) -> &[u8] {
        self.0.expose()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Content::Plain(bytes) => write!(f, "Body({bytes:?})"),
            Content::Token(secret) => write!(f, "Body({secret:?})"),
        }
    }
}

/// The headers of a reply (the listener adds `Date`). Every reply of Google's tree has `Metadata-Flavor: Google`
/// (Node refuses replies without it) and no other reply has it (decision 13).
pub fn headers(reply: &Reply) -> HeaderMap {
    let mut all = if reply.of_google { of_google(reply) } else { of_others(reply) };
    if let Some(methods) = reply.allow {
        all.insert(ALLOW, HeaderValue::from_static(methods));
    }
    if let Some(seconds) = reply.retry_after {
        all.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if reply.close {
        all.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    all
}

fn of_others(reply: &Reply) -> HeaderMap {
    let mut all = HeaderMap::with_capacity(4);
    all.insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    all.insert(CONTENT_LENGTH, HeaderValue::from(reply.body.len()));
    if let Some(seconds) = reply.ttl {
        all.insert(AWS_TOKEN_TTL, HeaderValue::from(seconds));
    }
    all
}

/// In the order recorded from the real server.
fn of_google(reply: &Reply) -> HeaderMap {
    let mut all = match (&reply.location, &reply.etag) {
        // The case of every token. Cloning a map and replacing values costs half of building one.
        (None, None) => COMMON.clone(),
        (location, etag) => filled(location.as_deref(), etag.as_deref()),
    };
    // One pass is cheaper than two look-ups, which hash a name, and `insert` also reserves room for another entry.
    for (name, place) in &mut all {
        if *name == CONTENT_TYPE {
            *place = HeaderValue::from_static(reply.content_type);
        } else if *name == CONTENT_LENGTH {
            *place = HeaderValue::from(reply.body.len());
        }
    }
    all
}

static COMMON: LazyLock<HeaderMap> = LazyLock::new(|| filled(None, None));

/// All headers in their order; type and length are placeholders.
fn filled(location: Option<&str>, etag: Option<&str>) -> HeaderMap {
    // Leave out an invalid header value: a reply without it is better than none.
    let made = |value: Option<&str>| value.and_then(|value| HeaderValue::from_str(value).ok());
    let fixed = |value| Some(HeaderValue::from_static(value));
    let places = [
        (METADATA_FLAVOR, fixed("Google")),
        (CONTENT_TYPE, fixed("")),
        (LOCATION, made(location)),
        (ETAG, made(etag)),
        (SERVER, fixed("Metadata Server for VM")),
        (CONTENT_LENGTH, fixed("")),
        (X_XSS_PROTECTION, fixed("0")),
        (X_FRAME_OPTIONS, fixed("SAMEORIGIN")),
    ];
    places.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}
