//! AWS as the source: a signed `GetCallerIdentity` request, which the Security Token Service forwards to AWS
//! to learn the signer.
//!
//! Keys come from the environment, a profile or a container's agent ([`Lookup`]), else from the machine's metadata
//! service (IMDS) at the addresses in the credential file, with a session token (version 2) if the file names an
//! address for that.

use std::time::SystemTime;

use serde_json::json;
use url::Url;

use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::aws::Keys;
use crate::source::aws::lookup::Lookup;
use crate::source::aws::machine::Imds;
use crate::source::aws::sigv4::{Unsigned, escaped, host, stamp};
use crate::source::http::client::Upstream;
use crate::source::variables::Variables;

#[derive(Debug)]
pub(crate) struct AwsSubject {
    pub(crate) region_url: Option<String>,
    pub(crate) url: Option<String>,
    pub(crate) session_token_url: Option<String>,
    /// Contains `{region}`.
    pub(crate) verification_url: String,
    pub(crate) variables: Variables,
    pub(crate) lookup: Lookup,
}

impl AwsSubject {
    pub(crate) async fn token(
        &self,
        upstream: &Upstream,
        audience: &str,
    ) -> Result<Secret<String>, SourceError> {
        let mut imds = Imds::new(upstream, self.session_token_url.as_deref());
        let region =
            match self.variables.text("AWS_REGION").or_else(|| self.variables.text("AWS_DEFAULT_REGION")) {
                Some(region) => region.to_owned(),
                None => self.region(&mut imds).await?,
            };
        if region.is_empty()
            || !region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return Err(SourceError::refused("what AWS calls this machine's region is not the name of one"));
        }
        let keys = match self.lookup.near(upstream).await? {
            Some(keys) => keys,
            None => self.keys_of_machine(&mut imds).await?,
        };
        let url = self.verification_url.replace("{region}", &region);
        let unfit =
            || SourceError::refused("the regional_cred_verification_url of the credential file is no URL");
        signed(&url, &region, audience, &keys, upstream.skew().now()).ok_or_else(unfit)
    }

    /// `us-east-1d` is a zone of `us-east-1`.
    async fn region(&self, imds: &mut Imds<'_>) -> Result<String, SourceError> {
        let url = self.region_url.as_deref().ok_or_else(|| {
            SourceError::refused("no AWS region: set AWS_REGION, or region_url in the credential file")
        })?;
        let zone = imds.text(url).await?;
        let mut region = zone.expose().clone();
        region.pop();
        Ok(region)
    }

    async fn keys_of_machine(&self, imds: &mut Imds<'_>) -> Result<Keys, SourceError> {
        let url = self.url.as_deref().ok_or_else(|| {
            SourceError::refused(
                "no AWS keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or url in the credential file",
            )
        })?;
        imds.keys(url).await
    }
}

/// The signed request, serialised as the Security Token Service expects: JSON, percent-encoded.
fn signed(url: &str, region: &str, audience: &str, keys: &Keys, now: SystemTime) -> Option<Secret<String>> {
    let parsed = Url::parse(url).ok()?;
    let host = host(&parsed)?;
    let stamp = stamp(now);
    // Sorted by name, as signing requires.
    let mut headers = vec![("host", host.as_str()), ("x-amz-date", &stamp)];
    headers
        .extend(keys.session_token.as_ref().map(|token| ("x-amz-security-token", token.expose().as_str())));
    // Signing this header too makes the request valid for this provider only.
    headers.push(("x-goog-cloud-target-resource", audience));
    let request =
        Unsigned { method: "POST", service: "sts", region, url: &parsed, headers: &headers, body: b"" };
    let authorization = request.authorization(&stamp, keys);
    let mut all = vec![json!({"key": "Authorization", "value": authorization.expose()})];
    all.extend(headers.iter().map(|(key, value)| json!({"key": key, "value": value})));
    let request = Secret::new(json!({"url": url, "method": "POST", "headers": all}).to_string());
    Some(Secret::new(escaped(request.expose(), false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_token_is_escaped_json_for_one_provider() {
        let secret = |text: &str| Some(Secret::new(text.to_owned()));
        let keys = Keys::new(secret("AKIDEXAMPLE"), secret("a-secret"), None, "the test").unwrap();
        let url = "https://sts.eu-west-1.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15";
        let token = signed(url, "eu-west-1", "//iam.googleapis.com/p", &keys, SystemTime::now()).unwrap();
        assert!(token.expose().bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b)));
        assert!(signed("no url", "r", "a", &keys, SystemTime::now()).is_none());
    }
}
