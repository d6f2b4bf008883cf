//! AWS as the source: a signed `GetCallerIdentity` request, which the Security Token Service forwards to AWS
//! to learn the signer. Signature Version 4 with HMAC-SHA256; no SDK.
//!
//! Keys come from the environment (`aws_keys`), else from the machine's metadata service (IMDS) at the
//! addresses in the credential file, with a session token (version 2) if the file names an address for that.

use std::time::SystemTime;

use hyper::Method;
use ring::digest::{SHA256, digest};
use ring::hmac;
use serde_json::json;
use time::OffsetDateTime;
use url::Url;

use crate::quote::hex;
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::google::external_account::subject::aws_keys::Keys;
use crate::source::http::client::Upstream;
use crate::source::http::fault::Fault;
use crate::source::http::request::{Answer, Call};
use crate::source::subject::{Format, short};
use crate::source::variables::Variables;

/// Requested lifetime of an IMDS session token, in seconds.
const SESSION: &str = "300";

#[derive(Debug)]
pub(crate) struct Aws {
    pub(crate) region_url: Option<String>,
    pub(crate) url: Option<String>,
    pub(crate) session_token_url: Option<String>,
    /// Contains `{region}`.
    pub(crate) verification_url: String,
    pub(crate) variables: Variables,
}

impl Aws {
    pub(crate) async fn token(
        &self,
        upstream: &Upstream,
        audience: &str,
    ) -> Result<Secret<String>, SourceError> {
        let mut session = None;
        let region =
            match self.variables.text("AWS_REGION").or_else(|| self.variables.text("AWS_DEFAULT_REGION")) {
                Some(region) => region.to_owned(),
                None => self.region(upstream, &mut session).await?,
            };
        if region.is_empty()
            || !region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return Err(SourceError::refused("what AWS calls this machine's region is not the name of one"));
        }
        let keys = match Keys::env(&self.variables, upstream).await? {
            Some(keys) => keys,
            None => self.keys_of_machine(upstream, &mut session).await?,
        };
        let url = self.verification_url.replace("{region}", &region);
        let unfit =
            || SourceError::refused("the regional_cred_verification_url of the credential file is no URL");
        signed(&url, &region, audience, &keys, upstream.skew().now()).ok_or_else(unfit)
    }

    /// `us-east-1d` is a zone of `us-east-1`.
    async fn region(
        &self,
        upstream: &Upstream,
        session: &mut Option<Secret<String>>,
    ) -> Result<String, SourceError> {
        let url = self.region_url.as_deref().ok_or_else(|| {
            SourceError::refused("no AWS region: set AWS_REGION, or region_url in the credential file")
        })?;
        let zone = self.ask(upstream, url, session).await?;
        let mut region = zone.expose().clone();
        region.pop();
        Ok(region)
    }

    async fn keys_of_machine(
        &self,
        upstream: &Upstream,
        session: &mut Option<Secret<String>>,
    ) -> Result<Keys, SourceError> {
        let url = self.url.as_deref().ok_or_else(|| {
            SourceError::refused(
                "no AWS keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or url in the credential file",
            )
        })?;
        let role = self.ask(upstream, url, session).await?;
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"+=,.@_-".contains(&b);
        if !role.expose().bytes().all(fits) {
            return Err(SourceError::refused("this machine has no AWS role, or one with an odd name"));
        }
        let url = format!("{}/{}", url.trim_end_matches('/'), role.expose());
        let answer = self.raw(upstream, &url, session).await?;
        Keys::answered(&answer)
    }

    async fn ask(
        &self,
        upstream: &Upstream,
        url: &str,
        session: &mut Option<Secret<String>>,
    ) -> Result<Secret<String>, SourceError> {
        let answer = self.raw(upstream, url, session).await?;
        let said = |why| SourceError::transient(format!("what {} answered {why}", short(url)));
        Format::Text.pick(answer.bytes()).map_err(said)
    }

    async fn raw(
        &self,
        upstream: &Upstream,
        url: &str,
        session: &mut Option<Secret<String>>,
    ) -> Result<Answer, SourceError> {
        if let (Some(place), None) = (&self.session_token_url, &session) {
            let seconds = Secret::new(SESSION.to_owned());
            let call =
                Call::bare(Method::PUT, place).named("x-aws-ec2-metadata-token-ttl-seconds", &seconds)?;
            let answer = upstream.send(&call).await.map_err(|fault| unanswered(place, fault))?;
            let said = |why| SourceError::transient(format!("the session token of {} {why}", short(place)));
            *session = Some(Format::Text.pick(answer.bytes()).map_err(said)?);
        }
        let mut call = Call::bare(Method::GET, url);
        if let Some(session) = session {
            call = call.named("x-aws-ec2-metadata-token", session)?;
        }
        upstream.send(&call).await.map_err(|fault| unanswered(url, fault))
    }
}

fn unanswered(url: &str, fault: Fault) -> SourceError {
    let why = format!("AWS's metadata service gave no answer to {}: {fault}", short(url));
    if fault.is_transient() { SourceError::transient(why) } else { SourceError::refused(why) }
}

/// The signed request, serialised as the Security Token Service expects: JSON, percent-encoded.
fn signed(url: &str, region: &str, audience: &str, keys: &Keys, now: SystemTime) -> Option<Secret<String>> {
    let parsed = Url::parse(url).ok()?;
    let host = match parsed.port() {
        Some(port) => format!("{}:{port}", parsed.host_str()?),
        None => parsed.host_str()?.to_owned(),
    };
    let stamp = stamp(now);
    // Sorted by name, as signing requires.
    let mut headers = vec![("host", host.as_str()), ("x-amz-date", &stamp)];
    headers
        .extend(keys.session_token.as_ref().map(|token| ("x-amz-security-token", token.expose().as_str())));
    // Signing this header too makes the request valid for this provider only.
    headers.push(("x-goog-cloud-target-resource", audience));
    let authorization = authorization(("POST", "sts"), &parsed, region, &stamp, &headers, keys);
    let mut all = vec![json!({"key": "Authorization", "value": authorization})];
    all.extend(headers.iter().map(|(key, value)| json!({"key": key, "value": value})));
    let request = Secret::new(json!({"url": url, "method": "POST", "headers": all}).to_string());
    Some(Secret::new(escaped(request.expose(), false)))
}

/// `20150830T123600Z`
fn stamp(now: SystemTime) -> String {
    let at = OffsetDateTime::from(now);
    let (hour, minute, second) = at.to_hms();
    format!("{:04}{:02}{:02}T{hour:02}{minute:02}{second:02}Z", at.year(), u8::from(at.month()), at.day())
}

/// The value of the `Authorization` header of a request without a body.
fn authorization(
    (method, service): (&str, &str),
    url: &Url,
    region: &str,
    stamp: &str,
    headers: &[(&str, &str)],
    keys: &Keys,
) -> String {
    let (day, _) = stamp.split_at(8);
    let scope = format!("{day}/{region}/{service}/aws4_request");
    let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let mut query: Vec<(String, String)> =
        url.query_pairs().map(|(name, value)| (escaped(&name, false), escaped(&value, false))).collect();
    query.sort();
    let query = query.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
    let mut canonical = Secret::new(format!("{method}\n{}\n{query}\n", escaped(url.path(), true)));
    for (name, value) in headers {
        canonical = Secret::new(format!("{}{name}:{}\n", canonical.expose(), value.trim()));
    }
    let canonical =
        Secret::new(format!("{}\n{names}\n{}", canonical.expose(), hex(digest(&SHA256, b"").as_ref())));
    let digested = hex(digest(&SHA256, canonical.expose().as_bytes()).as_ref());
    let input = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digested}");
    let first = Secret::new(format!("AWS4{}", keys.secret.expose()));
    let mut key = Secret::new(first.expose().as_bytes().to_vec());
    for part in [day, region, service, "aws4_request"] {
        key = Secret::new(mac(&key, part).as_ref().to_vec());
    }
    let signature = hex(mac(&key, &input).as_ref());
    format!("AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}", keys.id)
}

fn mac(key: &Secret<Vec<u8>>, input: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.expose()), input.as_bytes())
}

/// Percent-encodes as Signature Version 4 requires: all but the unreserved characters of RFC 3986.
fn escaped(text: &str, path: bool) -> String {
    let mut out = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        // A path is already escaped once.
        let plain =
            byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (path && b"/%".contains(&byte));
        if plain {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn keys() -> Keys {
        Keys {
            id: "AKIDEXAMPLE".into(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into()),
            session_token: None,
        }
    }

    /// The worked example of AWS's documentation of Signature Version 4 (IAM, `ListUsers`).
    #[test]
    fn the_published_example_is_signed_as_published() {
        let now = UNIX_EPOCH + Duration::from_secs(1_440_938_160);
        assert_eq!(stamp(now), "20150830T123600Z");
        let url = Url::parse("https://iam.amazonaws.com/?Version=2010-05-08&Action=ListUsers").unwrap();
        let headers = [
            ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
            ("host", "iam.amazonaws.com"),
            ("x-amz-date", "20150830T123600Z"),
        ];
        let signed = authorization(("GET", "iam"), &url, "us-east-1", &stamp(now), &headers, &keys());
        assert_eq!(
            signed,
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, \
             Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
        );
    }

    #[test]
    fn a_subject_token_is_escaped_json_for_one_provider() {
        let url = "https://sts.eu-west-1.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15";
        let token = signed(url, "eu-west-1", "//iam.googleapis.com/p", &keys(), SystemTime::now()).unwrap();
        assert!(token.expose().bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b)));
        assert!(signed("no url", "r", "a", &keys(), SystemTime::now()).is_none());
    }
}
