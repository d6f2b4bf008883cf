//! AWS's query protocol, which the Security Token Service and IAM share: a form, signed here, and an answer in XML.

use hyper::Method;
use url::Url;

use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::aws::denial;
use crate::source::aws::keys::Keys;
use crate::source::aws::sigv4::{Unsigned, host, stamp};
use crate::source::http::client::Upstream;
use crate::source::http::fault::Fault;
use crate::source::http::request::{Answer, Call};
use crate::source::xml::Document;

const FORM: &str = "application/x-www-form-urlencoded";

/// A service at one address.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueryService<'a> {
    pub(super) upstream: &'a Upstream,
    /// With a slash at its end.
    pub(super) url: &'a str,
    /// The name that requests are signed for: `sts`.
    pub(super) name: &'static str,
    /// The region that requests are signed for.
    pub(super) region: &'a str,
    /// The only codes that are reported from a refusal.
    pub(super) codes: &'static [&'static str],
}

impl QueryService<'_> {
    /// Sends a request that needs no signature.
    pub(super) async fn plain(&self, fields: &[(&str, &str)]) -> Result<Answer, Fault> {
        self.upstream.send(&self.call(fields)).await
    }

    /// Sends a signed request. Signs it again if the answer shows that the clock of the signature was wrong.
    pub(super) async fn signed(&self, keys: &Keys, fields: &[(&str, &str)]) -> Result<Answer, Fault> {
        let ahead = self.upstream.skew().ahead();
        match self.signed_now(keys, fields).await {
            Err(Fault::Denied(denial))
                if denial::may_be_the_clock(&denial) && self.upstream.skew().moved_from(ahead) =>
            {
                self.signed_now(keys, fields).await
            }
            outcome => outcome,
        }
    }

    fn call(&self, fields: &[(&str, &str)]) -> Call<'_> {
        // As AWS's own SDKs write it; moto checks a signature over what they would have sent.
        let body = Secret::new(Call::form(self.url, fields).body.expose().replace('*', "%2A"));
        let headers = &[("accept", "application/xml")];
        let bare = Call::bare(Method::POST, self.url);
        Call { body, headers, codes: self.codes, content_type: FORM, ..bare }
    }

    async fn signed_now(&self, keys: &Keys, fields: &[(&str, &str)]) -> Result<Answer, Fault> {
        let unfit = || Fault::unfit(self.url, "this endpoint or these keys do not fit into a request");
        let parsed = Url::parse(self.url).map_err(|_| unfit())?;
        let host = host(&parsed).ok_or_else(unfit)?;
        let stamp = Secret::new(stamp(self.upstream.skew().now()));
        let mut call = self.call(fields);
        // Sorted by name, as signing requires.
        let mut headers = vec![("content-type", FORM), ("host", &host), ("x-amz-date", stamp.expose())];
        let session = keys.session_token.as_ref().map(|token| ("x-amz-security-token", token));
        headers.extend(session.map(|(name, token)| (name, token.expose().as_str())));
        let request = Unsigned {
            method: "POST",
            service: self.name,
            region: self.region,
            url: &parsed,
            headers: &headers,
            body: call.body.expose().as_bytes(),
        };
        let authorization = request.authorization(stamp.expose(), keys);
        call = call.named("authorization", &authorization).map_err(|_| unfit())?;
        call = call.named("x-amz-date", &stamp).map_err(|_| unfit())?;
        if let Some((name, token)) = session {
            call = call.named(name, token).map_err(|_| unfit())?;
        }
        self.upstream.send(&call).await
    }
}

pub(super) fn read(answer: &Answer) -> Result<Document, SourceError> {
    Document::read(answer.bytes().expose()).ok_or_else(|| not_understood(answer))
}

pub(super) fn not_understood(answer: &Answer) -> SourceError {
    let page = answer.text().is_some_and(|text| text.to_ascii_lowercase().contains("<html"));
    let hint = if page { ", but a web page: does this network want a login?" } else { "" };
    SourceError::transient(format!("{} gave an answer that is not understood{hint}", answer.host))
}
