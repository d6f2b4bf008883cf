//! A reply and its exact headers, the same for every listener.

use std::fmt;
use std::sync::LazyLock;

use hyper::body::Bytes;
use hyper::header::{
    ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, LOCATION, SERVER, X_FRAME_OPTIONS,
};
use hyper::header::{HeaderName, HeaderValue, X_XSS_PROTECTION};
use hyper::{HeaderMap, StatusCode};

use crate::token::Rendered;

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

/// The headers of a reply, in the order in which the real server was recorded (`Date` is the listener's).
/// Every reply says `Metadata-Flavor: Google`: Node refuses those that do not.
pub fn headers(reply: &Reply) -> HeaderMap {
    let mut all = match (&reply.location, &reply.etag) {
        // Every token. To copy a map and replace in it costs half of filling one.
        (None, None) => COMMON.clone(),
        (location, etag) => filled(location.as_deref(), etag.as_deref()),
    };
    // Not by `insert`, which makes room for one more first.
    let mut say = |name: HeaderName, value| {
        if let Some(place) = all.get_mut(name) {
            *place = value;
        }
    };
    say(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    say(CONTENT_LENGTH, HeaderValue::from(reply.body.len()));
    if reply.status == StatusCode::METHOD_NOT_ALLOWED {
        all.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    if reply.close {
        all.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    all
}

static COMMON: LazyLock<HeaderMap> = LazyLock::new(|| filled(None, None));

/// All in their places, with a type and a length that are still to be said.
fn filled(location: Option<&str>, etag: Option<&str>) -> HeaderMap {
    // What cannot be a header value is left out: a reply without it is better than none.
    let made = |value: Option<&str>| value.and_then(|value| HeaderValue::from_str(value).ok());
    let fixed = |value| Some(HeaderValue::from_static(value));
    let places = [
        (super::METADATA_FLAVOR, fixed("Google")),
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
