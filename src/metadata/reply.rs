//! A reply and its exact headers, the same for every listener.

use std::fmt;
use std::sync::Arc;

use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{
    ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, LOCATION, SERVER, X_FRAME_OPTIONS,
};
use hyper::header::{HeaderName, HeaderValue, X_XSS_PROTECTION};

use crate::secret::Secret;

/// What goes back to the caller. A listener adds `Date`, leaves the body out for HEAD, and nothing else.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub content_type: &'static str,
    /// Sixteen hex digits, unquoted; absent on tokens and errors.
    pub etag: Option<String>,
    /// Absolute, with the caller's own Host.
    pub location: Option<String>,
    pub body: Body,
    /// The connection ends after this reply (`Connection: close`, which HTTP/2 has no word for).
    pub close: bool,
}

/// The bytes of a reply. Those of a token can neither be printed nor cloned, and are overwritten when the
/// last holder lets go of them.
pub struct Body(Content);

enum Content {
    Plain(Bytes),
    Token(Arc<Secret<Vec<u8>>>),
}

impl Body {
    pub(super) fn plain(bytes: impl Into<Bytes>) -> Self {
        Self(Content::Plain(bytes.into()))
    }

    pub(super) fn token(bytes: Vec<u8>) -> Self {
        Self(Content::Token(Arc::new(Secret::new(bytes))))
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

    /// True when the bytes hold a token: not to be logged, cached or kept.
    pub fn is_secret(&self) -> bool {
        matches!(self.0, Content::Token(_))
    }

    /// The bytes for the wire, without a copy. Those of a token are still overwritten on their last drop.
    pub fn into_bytes(self) -> Bytes {
        match self.0 {
            Content::Plain(bytes) => bytes,
            Content::Token(secret) => Bytes::from_owner(Exposed(secret)),
        }
    }
}

struct Exposed(Arc<Secret<Vec<u8>>>);

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

/// The headers of a reply, in the order in which the real server was recorded (`Date` is the listener's).
/// Every reply says `Metadata-Flavor: Google`: Node refuses those that do not.
pub fn headers(reply: &Reply) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let fixed = |name: HeaderName, value| Some((name, HeaderValue::from_static(value)));
    // What cannot be a header value is left out: a reply without it is better than none.
    let made = |name: HeaderName, value: &Option<String>| {
        value.as_deref().and_then(|value| HeaderValue::from_str(value).ok()).map(|value| (name, value))
    };
    let refused = reply.status == StatusCode::METHOD_NOT_ALLOWED;
    [
        fixed(super::METADATA_FLAVOR, "Google"),
        fixed(CONTENT_TYPE, reply.content_type),
        made(LOCATION, &reply.location),
        made(ETAG, &reply.etag),
        fixed(SERVER, "Metadata Server for VM"),
        Some((CONTENT_LENGTH, HeaderValue::from(reply.body.len()))),
        fixed(X_XSS_PROTECTION, "0"),
        fixed(X_FRAME_OPTIONS, "SAMEORIGIN"),
        refused.then(|| (ALLOW, HeaderValue::from_static("GET, HEAD"))),
        reply.close.then(|| (CONNECTION, HeaderValue::from_static("close"))),
    ]
    .into_iter()
    .flatten()
}
