//! Signature Version 4 with HMAC-SHA256 (AWS's "Create a signed AWS API request").

use std::time::SystemTime;

use ring::digest::{SHA256, digest};
use ring::hmac;
use time::OffsetDateTime;
use url::Url;

use crate::quote::hex;
use crate::secret::Secret;
use crate::source::aws::keys::Keys;

/// A request before it is signed.
#[derive(Debug)]
pub(crate) struct Unsigned<'a> {
    pub(crate) method: &'a str,
    /// The service's name in the signature: `sts`, `iam`.
    pub(crate) service: &'a str,
    pub(crate) region: &'a str,
    pub(crate) url: &'a Url,
    /// Names in lower case, sorted; all of them are signed. Values may be secrets.
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) body: &'a [u8],
}

impl Unsigned<'_> {
    /// The value of the `Authorization` header. `stamp` is that of the header `x-amz-date`.
    pub(crate) fn authorization(&self, stamp: &str, keys: &Keys) -> Secret<String> {
        let day = stamp.get(..8).unwrap_or(stamp);
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let names = self.headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let canonical = self.canonical(&names);
        let digested = hex(digest(&SHA256, canonical.expose().as_bytes()).as_ref());
        let input = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digested}");
        let first = Secret::new(format!("AWS4{}", keys.secret.expose()));
        let mut key = Secret::new(first.expose().as_bytes().to_vec());
        for part in [day, self.region, self.service, "aws4_request"] {
            key = Secret::new(mac(&key, part).as_ref().to_vec());
        }
        let signature = hex(mac(&key, &input).as_ref());
        let id = keys.id.expose();
        Secret::new(format!(
            "AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}"
        ))
    }

    fn canonical(&self, names: &str) -> Secret<String> {
        let pairs = self.url.query_pairs();
        let mut query: Vec<(String, String)> =
            pairs.map(|(name, value)| (escaped(&name, false), escaped(&value, false))).collect();
        query.sort();
        let query = query.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
        let mut canonical =
            Secret::new(format!("{}\n{}\n{query}\n", self.method, escaped(self.url.path(), true)));
        for (name, value) in self.headers {
            canonical = Secret::new(format!("{}{name}:{}\n", canonical.expose(), value.trim()));
        }
        let body = hex(digest(&SHA256, self.body).as_ref());
        Secret::new(format!("{}\n{names}\n{body}", canonical.expose()))
    }
}

fn mac(key: &Secret<Vec<u8>>, input: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.expose()), input.as_bytes())
}

/// The time for the header `x-amz-date`: `20150830T123600Z`.
pub(crate) fn stamp(now: SystemTime) -> String {
    let at = OffsetDateTime::from(now);
    let (hour, minute, second) = at.to_hms();
    format!("{:04}{:02}{:02}T{hour:02}{minute:02}{second:02}Z", at.year(), u8::from(at.month()), at.day())
}

/// Host and port as in the `Host` header.
pub(crate) fn host(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// Percent-encodes as Signature Version 4 requires: all but the unreserved characters of RFC 3986.
pub(crate) fn escaped(text: &str, is_path: bool) -> String {
    let mut out = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        // A path is already escaped once.
        let plain =
            byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (is_path && b"/%".contains(&byte));
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
        let secret = ["wJalrXUtnFEMI/K7MDENG", "bPxRfiCYEXAMPLEKEY"].join("+");
        Keys::new(Some(Secret::new("AKIDEXAMPLE".into())), Some(Secret::new(secret)), None, "the test")
            .unwrap()
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
        let request = Unsigned {
            method: "GET",
            service: "iam",
            region: "us-east-1",
            url: &url,
            headers: &headers,
            body: b"",
        };
        assert_eq!(
            request.authorization(&stamp(now), &keys()).expose(),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, \
             Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
        );
    }

    /// `post-x-www-form-urlencoded` of AWS's published test suite.
    #[test]
    fn the_published_body_is_signed_as_published() {
        let url = Url::parse("https://example.amazonaws.com/").unwrap();
        let headers = [
            ("content-type", "application/x-www-form-urlencoded"),
            ("host", "example.amazonaws.com"),
            ("x-amz-date", "20150830T123600Z"),
        ];
        let request = Unsigned {
            method: "POST",
            service: "service",
            region: "us-east-1",
            url: &url,
            headers: &headers,
            body: b"Param1=value1",
        };
        let signed = request.authorization("20150830T123600Z", &keys());
        let signature = signed.expose().rsplit('=').next().unwrap().to_owned();
        assert_eq!(signature, "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a");
    }

    #[test]
    fn a_host_has_its_port_where_it_is_not_the_usual_one() {
        let of = |url: &str| host(&Url::parse(url).unwrap()).unwrap();
        assert_eq!(of("https://sts.amazonaws.com/"), "sts.amazonaws.com");
        assert_eq!(of("https://sts.amazonaws.com:443/"), "sts.amazonaws.com");
        assert_eq!(of("http://127.0.0.1:8080/x"), "127.0.0.1:8080");
    }
}
