//! AWS's checks of signed requests to its token service (Signature Version 4), written from its documentation
//! and independently of the program's signing code.

use std::collections::BTreeMap;

use ring::digest::{SHA256, digest};
use ring::hmac::{HMAC_SHA256, Key, sign};
use serde_json::Value;
use time::format_description::well_known::Iso8601;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Who signed the request that `token` contains, if it is valid and meant for `audience`.
pub(crate) fn caller(
    token: &str,
    audience: &str,
    (id, secret, session): (&str, &str, Option<&str>),
    (region, now): (&str, u64),
) -> Option<String> {
    let decoded = format!("t={token}");
    let decoded = url::form_urlencoded::parse(decoded.as_bytes()).next()?.1.into_owned();
    let request: Value = serde_json::from_str(&decoded).ok()?;
    let url = url::Url::parse(request["url"].as_str()?).ok()?;
    let mut headers = BTreeMap::new();
    for one in request["headers"].as_array()? {
        let known =
            headers.insert(one["key"].as_str()?.to_ascii_lowercase(), one["value"].as_str()?.to_owned());
        if known.is_some() {
            return None;
        }
    }
    let host = format!("sts.{region}.amazonaws.com");
    let whole =
        url.scheme() == "https" && url.host_str() == Some(&host) && headers.get("host") == Some(&host);
    let asked =
        url.query() == Some("Action=GetCallerIdentity&Version=2011-06-15") && request["method"] == "POST";
    let meant = headers.get("x-goog-cloud-target-resource").is_some_and(|resource| resource == audience);
    let same_session = headers.get("x-amz-security-token").map(String::as_str) == session;
    if !(whole && asked && meant && same_session) {
        return None;
    }
    let stamp = headers.get("x-amz-date")?;
    in_time(stamp, now)?;
    let mut must = vec!["host", "x-amz-date", "x-goog-cloud-target-resource"];
    must.extend(session.map(|_| "x-amz-security-token"));
    let query = "Action=GetCallerIdentity&Version=2011-06-15";
    Signed { headers: &headers, query, body: b"", must: &must }
        .is_signed_by((id, secret), stamp, region)
        .then(|| "arn:aws:sts::123456789012:assumed-role/runner/i-1".into())
}

/// AWS promises to accept a request within five minutes of its time.
pub(crate) fn in_time(stamp: &str, now: u64) -> Option<()> {
    let iso = format!(
        "{}-{}-{}T{}:{}:{}Z",
        &stamp[..4],
        &stamp[4..6],
        &stamp[6..8],
        &stamp[9..11],
        &stamp[11..13],
        &stamp[13..15]
    );
    let at = time::OffsetDateTime::parse(&iso, &Iso8601::DEFAULT).ok()?.unix_timestamp();
    ((at - i64::try_from(now).ok()?).abs() <= 300).then_some(())
}

/// A received request.
pub(crate) struct Signed<'a> {
    /// Names in lower case.
    pub(crate) headers: &'a BTreeMap<String, String>,
    /// The query string in canonical form.
    pub(crate) query: &'a str,
    pub(crate) body: &'a [u8],
    /// Headers that the signature must cover.
    pub(crate) must: &'a [&'a str],
}

impl Signed<'_> {
    /// The access key id in the signature of a POST to `/`.
    pub(crate) fn key_id(&self) -> Option<&str> {
        let (_, rest) = self.headers.get("authorization")?.split_once("Credential=")?;
        rest.split('/').next()
    }

    pub(crate) fn is_signed_by(&self, keys: (&str, &str), stamp: &str, region: &str) -> bool {
        self.is_signed_for("sts", keys, stamp, region)
    }

    pub(crate) fn is_signed_for(
        &self,
        service: &str,
        (id, secret): (&str, &str),
        stamp: &str,
        region: &str,
    ) -> bool {
        let day = &stamp[..8];
        let authorization = self.headers.get("authorization").map_or("", String::as_str);
        let Some(authorization) = authorization.strip_prefix("AWS4-HMAC-SHA256 ") else { return false };
        let parts: BTreeMap<&str, &str> =
            authorization.split(", ").filter_map(|part| part.split_once('=')).collect();
        let scope = format!("{day}/{region}/{service}/aws4_request");
        let part = |name: &str| parts.get(name).copied().unwrap_or_default();
        let names = part("SignedHeaders");
        let all = self.must.iter().all(|name| names.split(';').any(|signed| signed == *name));
        let mut canonical = format!("POST\n/\n{}\n", self.query);
        for name in names.split(';') {
            canonical += &format!("{name}:{}\n", self.headers.get(name).map_or("", String::as_str));
        }
        canonical += &format!("\n{names}\n{}", hex(digest(&SHA256, self.body).as_ref()));
        let input = format!(
            "AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}",
            hex(digest(&SHA256, canonical.as_bytes()).as_ref())
        );
        let mut key = format!("AWS4{secret}").into_bytes();
        for part in [day, region, service, "aws4_request"] {
            key = sign(&Key::new(HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
        }
        let expected = hex(sign(&Key::new(HMAC_SHA256, &key), input.as_bytes()).as_ref());
        all && part("Credential") == format!("{id}/{scope}") && part("Signature") == expected
    }
}
