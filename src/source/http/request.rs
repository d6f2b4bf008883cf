//! A request to an upstream, and a successful answer to it.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request};
use serde::Deserialize;
use serde_json::Value;

use crate::process::OWN_SOURCE;
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::expiry::life;
use crate::source::http::fault::{Fault, host};
use crate::token::{AccessToken, Deadline, Now, Scopes};

/// The varying parts of a request.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) url: &'a str,
    pub(crate) content_type: &'static str,
    pub(crate) bearer: Option<&'a Secret<String>>,
    /// A client's `id:secret`, for RFC 6749 section 2.3.1.
    pub(crate) basic: Option<&'a Secret<String>>,
    /// Headers other than those with a field here.
    pub(crate) headers: &'a [(&'static str, &'static str)],
    /// Headers from a credential file or the config; their values may be secrets.
    pub(crate) named: HeaderMap,
    /// The project that pays for the call, sent as `x-goog-user-project`.
    pub(crate) quota_project: Option<&'a str>,
    /// The codes that an error of AWS (XML) may have; empty for other services. Only these leave such an answer.
    pub(crate) codes: &'static [&'static str],
    pub(crate) body: Secret<String>,
}

impl Call<'_> {
    /// A form as RFC 6749 requires.
    pub(crate) fn form<'a>(url: &'a str, fields: &[(&str, &str)]) -> Call<'a> {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        Call::new(Method::POST, url, "application/x-www-form-urlencoded", body)
    }

    pub(crate) fn json<'a>(url: &'a str, body: &Value) -> Call<'a> {
        Call::new(Method::POST, url, "application/json", body.to_string())
    }

    /// A GET to a metadata server, with the header it requires and the one by which we detect ourselves.
    pub(crate) fn metadata(url: &str) -> Call<'_> {
        let headers = &[("metadata-flavor", "Google"), (OWN_SOURCE, "1")];
        Call { headers, ..Call::new(Method::GET, url, "", String::new()) }
    }

    fn new<'a>(method: Method, url: &'a str, content_type: &'static str, body: String) -> Call<'a> {
        Call {
            method,
            url,
            content_type,
            bearer: None,
            basic: None,
            headers: &[],
            named: HeaderMap::new(),
            quota_project: None,
            codes: &[],
            body: Secret::new(body),
        }
    }

    /// A request without a body.
    pub(crate) fn bare(method: Method, url: &str) -> Call<'_> {
        Call::new(method, url, "", String::new())
    }

    pub(crate) fn named(mut self, name: &str, value: &Secret<String>) -> Result<Self, SourceError> {
        let unfit =
            || SourceError::refused(format!("a header for {} does not fit into a request", host(self.url)));
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unfit())?;
        let mut value = HeaderValue::from_str(value.expose()).map_err(|_| unfit())?;
        value.set_sensitive(true);
        self.named.insert(name, value);
        Ok(self)
    }

    pub(crate) fn request(&self) -> Result<Request<String>, Fault> {
        let unfit = |_| Fault::unfit(self.url, "this endpoint or credential does not fit into a request");
        let mut request = Request::builder().method(&self.method).uri(self.url);
        if !self.content_type.is_empty() {
            request = request.header(CONTENT_TYPE, self.content_type);
        }
        for (name, value) in self.headers {
            request = request.header(*name, *value);
        }
        for (name, value) in &self.named {
            request = request.header(name, value);
        }
        if let Some(project) = self.quota_project {
            request = request.header("x-goog-user-project", project);
        }
        let basic = |pair: &Secret<String>| format!("Basic {}", STANDARD.encode(pair.expose()));
        let bearer = self.bearer.map(|token| format!("Bearer {}", token.expose()));
        if let Some(header) = bearer.or_else(|| self.basic.map(basic)).map(Secret::new) {
            let mut value = HeaderValue::from_str(header.expose())
                .map_err(|_| Fault::unfit(self.url, "the credential does not fit into a header"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        request.body(self.body.expose().clone()).map_err(unfit)
    }
}

#[derive(Deserialize)]
struct WrittenToken {
    access_token: Option<Secret<String>>,
    token_type: Option<String>,
    expires_in: Option<Value>,
    id_token: Option<Secret<String>>,
    refresh_token: Option<Secret<String>>,
}

/// A token endpoint's token.
#[derive(Debug)]
pub(crate) struct TokenResponse {
    pub(crate) token: Secret<String>,
    /// The lifetime as the answer claims it.
    pub(crate) life: Option<Duration>,
    pub(crate) id_token: Option<Secret<String>>,
    pub(crate) refresh_token: Option<Secret<String>>,
}

impl TokenResponse {
    /// The access token; its lifetime counts from when the request was sent.
    pub(crate) fn into_access_token(
        self,
        answer: &Answer,
        scopes: Scopes,
    ) -> Result<AccessToken, SourceError> {
        let claimed = self.life.ok_or_else(|| {
            SourceError::transient(format!("{} gave no token with an expiry; try again", answer.host))
        })?;
        Ok(AccessToken::new(self.token, Deadline::after(answer.sent, life(claimed)?), scopes))
    }
}

/// A number of seconds, also as text: issuers and brokers write both. A negative number counts as expired.
pub(crate) fn seconds(given: &Value) -> Option<Duration> {
    let number = match given {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse::<f64>().ok().filter(|number| number.is_finite())?,
        _ => return None,
    };
    // A lifetime beyond what a clock can hold is as long as any.
    Some(Duration::try_from_secs_f64(number.trunc().clamp(0.0, 1e15)).unwrap_or_default())
}

/// A 2xx answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) host: String,
    pub(crate) body: Secret<Vec<u8>>,
    /// The time by the server's clock.
    pub(crate) date: Option<SystemTime>,
    /// When the request was sent.
    pub(crate) sent: Now,
    /// Whether the answer has a metadata server's header.
    pub(crate) flavored: bool,
}

impl Answer {
    pub(crate) fn bytes(&self) -> &Secret<Vec<u8>> {
        &self.body
    }

    /// The body without surrounding blanks, if it is UTF-8.
    pub(crate) fn text(&self) -> Option<&str> {
        std::str::from_utf8(self.body.expose()).ok().map(str::trim)
    }

    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, SourceError> {
        // serde's messages quote the input, which may be a token.
        serde_json::from_slice(self.body.expose()).map_err(|_| {
            let page = self.text().is_some_and(|text| text.starts_with('<'));
            let hint = if page { ", but a web page: does this network want a login?" } else { "" };
            SourceError::transient(format!("{} gave an answer that is not understood{hint}", self.host))
        })
    }

    /// The token in a token endpoint's successful answer (RFC 6749 section 5.1). An empty token is an error.
    pub(crate) fn granted(&self) -> Result<TokenResponse, SourceError> {
        let written: WrittenToken = self.json()?;
        if written.token_type.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
            return Err(SourceError::refused(format!(
                "{} gave a token of a kind that is not known",
                self.host
            )));
        }
        let token = written.access_token.filter(|token| !token.expose().is_empty());
        let token = token
            .ok_or_else(|| SourceError::transient(format!("{} gave an empty token; try again", self.host)))?;
        let life = match written.expires_in {
            None | Some(Value::Null) => None,
            Some(given) => Some(seconds(&given).ok_or_else(|| {
                SourceError::transient(format!("{} gave a token whose expires_in is not a number", self.host))
            })?),
        };
        Ok(TokenResponse { token, life, id_token: written.id_token, refresh_token: written.refresh_token })
    }
}
