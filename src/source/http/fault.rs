//! Why a call failed: there was no answer, or the answer is reduced to its status and codes.
//!
//! No text made here contains a body.

use std::error::Error;
use std::time::{Duration, SystemTime};

use hyper::Uri;
use hyper::header::{DATE, HeaderMap, RETRY_AFTER};
use hyper_util::client::legacy;
use serde_json::Value;

use crate::failure::Reason;
use crate::quote;
use crate::source::SourceError;
use crate::source::clock::http_date;
use crate::source::xml::Document;

/// A server that asks for a longer pause is asked again after this one.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("cannot reach {host}: {why}")]
    Unreachable { host: String, why: String },
    /// TLS does not trust the server. An interceptor may be gone later, but not in a moment.
    #[error("cannot reach {host}: {why}")]
    Untrusted { host: String, why: String },
    #[error("{host} cannot be asked: {why}")]
    Unfit { host: String, why: String },
    #[error(transparent)]
    Denied(Denial),
}

impl Fault {
    pub(crate) fn unreachable(url: &str, why: impl Into<String>) -> Self {
        Self::Unreachable { host: host(url), why: why.into() }
    }

    pub(crate) fn unfit(url: &str, why: impl Into<String>) -> Self {
        Self::Unfit { host: host(url), why: why.into() }
    }

    pub(crate) fn silent(url: &str, after: Duration) -> Self {
        Self::unreachable(url, format!("no answer within {} s", after.as_secs_f32()))
    }

    /// Reports the innermost cause, which a user can act on (`connection refused`, `UnknownIssuer`). These
    /// errors come from the transport and hold nothing of the request.
    pub(crate) fn lost(url: &str, error: &legacy::Error) -> Self {
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

    /// The pause that the server asked for.
    pub(crate) fn pause(&self) -> Option<Duration> {
        match self {
            Self::Denied(denial) => denial.pause,
            Self::Unreachable { .. } | Self::Untrusted { .. } | Self::Unfit { .. } => None,
        }
    }

    /// A transient error with this text, and with the pause that the server asked for.
    pub(crate) fn transient(&self, text: impl Into<Reason>) -> SourceError {
        SourceError::Transient(text.into().after(self.pause()))
    }

    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Untrusted { .. } => true,
            Self::Unfit { .. } => false,
            Self::Denied(denial) => denial.is_transient(),
        }
    }

    /// Whether a retry in a moment may succeed.
    pub(crate) fn passes(&self) -> bool {
        self.is_transient() && !matches!(self, Self::Untrusted { .. })
    }

    /// RFC 6749 section 5.2: the grant itself is refused, or (some servers) it is not valid yet.
    pub(crate) fn is_invalid_grant(&self) -> bool {
        matches!(self, Self::Denied(denial) if denial.is("invalid_grant"))
    }
}

/// Finds the TLS error. The transport nests it in I/O errors, and `source` of an I/O error skips the error
/// that it wraps.
fn is_distrust(error: &(dyn Error + 'static)) -> bool {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return matches!(tls, rustls::Error::InvalidCertificate(_));
    }
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    inner.is_some_and(|inner| is_distrust(inner))
}

/// The fault as an error, for callers that know no better remedy.
impl From<Fault> for SourceError {
    fn from(fault: Fault) -> Self {
        if fault.is_transient() {
            fault.transient(fault.to_string())
        } else {
            Self::refused(fault.to_string())
        }
    }
}

/// A non-2xx answer: its status and the codes in it.
#[derive(Debug, thiserror::Error)]
#[error("{host} answered {status}{}{}{}{}", .code.as_ref().map(|code| format!(" {code}")).unwrap_or_default(), .entra.map(|number| format!(" AADSTS{number}")).unwrap_or_default(), .pause.map(|pause| format!(", and asks to wait for {} s", pause.as_secs())).unwrap_or_default(), self.hint())]
pub(crate) struct Denial {
    pub(crate) host: String,
    pub(crate) status: u16,
    /// `error` of OAuth (`invalid_grant`), `error.status` of google.rpc (`PERMISSION_DENIED`).
    pub(crate) code: Option<String>,
    /// `error_subtype` of OAuth (`invalid_rapt`), `error.details[].reason` of google.rpc (`SERVICE_DISABLED`).
    pub(crate) reason: Option<String>,
    /// The number of Microsoft Entra's error (7000215 of `AADSTS7000215`), which says more than its code.
    pub(crate) entra: Option<u32>,
    /// `Retry-After`, of an answer that may pass.
    pub(crate) pause: Option<Duration>,
    /// The answer does not come from the called API but from a proxy, a firewall or the network's login page.
    pub(crate) foreign: bool,
}

impl Denial {
    pub(crate) fn read(url: &str, status: u16, body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let error = &body["error"];
        let details = error["details"].as_array();
        let reason = details.and_then(|all| all.iter().find_map(|one| code(&one["reason"])));
        // VPC Service Controls report it as a violation: google.rpc.PreconditionFailure. The form of Cloud
        // Storage's JSON API comes last, because its `forbidden` says less.
        let violation = details.and_then(|all| {
            all.iter().find_map(|one| code(&one["violations"][0]["type"]).filter(|_| status == 403))
        });
        let violation = violation.map(|_| "SECURITY_POLICY_VIOLATED".to_owned());
        let reason = reason.or(violation).or_else(|| code(&error["errors"][0]["reason"]));
        Self {
            host: host(url),
            status,
            code: code(error).or_else(|| code(&error["status"])),
            reason: code(&body["error_subtype"]).or(reason),
            entra: entra(&body),
            pause: None,
            foreign: matches!(status, 300..=399 | 407 | 511) || status == 403 && !body.is_object(),
        }
    }

    /// Reads an error in AWS's format. Codes there look like any text (`AccessDenied`), so only codes that the caller
    /// knows are used. Emulators put the error one level deeper, as EC2 does.
    pub(crate) fn read_xml(&mut self, body: &[u8], known: &[&str]) {
        let Some(answer) = Document::read(body) else { return };
        let places = ["ErrorResponse/Error/Code", "ErrorResponse/Errors/Error/Code"];
        let Some(code) = places.iter().find_map(|place| answer.text(place)) else { return };
        self.foreign = false;
        self.code = known.iter().find(|one| **one == code.expose()).map(|one| (*one).to_owned());
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

    /// True for a foreign answer, request timeout, too many requests, and server errors. A loop (508) does
    /// not pass by itself.
    pub(crate) fn is_transient(&self) -> bool {
        self.foreign || matches!(self.status, 408 | 425 | 429 | 500..=507 | 509..=599) || self.is_throttled()
    }

    /// Whether AWS says by its code alone that it is busy: the status is 400 then.
    fn is_throttled(&self) -> bool {
        ["Throttling", "ThrottlingException", "RequestLimitExceeded"].iter().any(|code| self.is(code))
    }

    /// The pause in `Retry-After`: seconds, or a time by the server's clock, which `Date` shows.
    pub(crate) fn heed(&mut self, headers: &HeaderMap) {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let Some(asked) = text(RETRY_AFTER) else { return };
        let seconds = asked.parse::<u64>().ok().map(Duration::from_secs);
        let there = || text(DATE).and_then(http_date).unwrap_or_else(SystemTime::now);
        let until = || http_date(asked)?.duration_since(there()).ok();
        let pause = seconds.or_else(until).filter(|pause| !pause.is_zero());
        self.pause = pause.map(|pause| pause.min(LONGEST_PAUSE)).filter(|_| self.is_transient());
    }

    pub(crate) fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }
}

/// Accepts only text that looks like a code (words in one case, joined by `_`): a server may put anything
/// into its errors, including what we sent, and a client secret is as short as a code.
pub(crate) fn code(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    let of = |case: fn(&u8) -> bool| text.bytes().all(|b| b == b'_' || case(&b));
    let word = of(u8::is_ascii_lowercase) || of(u8::is_ascii_uppercase);
    (!text.is_empty() && text.len() <= 40 && word).then(|| text.to_owned())
}

/// The first of `error_codes`, else the number at the start of `error_description`: services in front of Entra
/// leave the list out. Digits only, because the rest of the description names users and quotes what was sent.
fn entra(body: &Value) -> Option<u32> {
    let listed = body["error_codes"][0].as_u64().and_then(|number| u32::try_from(number).ok());
    listed.or_else(|| entra_number(body["error_description"].as_str()?))
}

/// The number after the first `AADSTS` of a text. Entra's numbers have at most seven digits.
pub(crate) fn entra_number(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("AADSTS")?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..end).filter(|digits| (4..=8).contains(&digits.len()))?.parse().ok()
}

pub(crate) fn host(url: &str) -> String {
    url.parse().ok().and_then(|uri: Uri| uri.host().map(quote::name)).unwrap_or_else(|| "the endpoint".into())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

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
    fn only_the_number_of_an_entra_error_is_read() {
        let read = |body: &str| Denial::read("https://a.example/t", 401, body.as_bytes());
        let known = r#"{"error":"invalid_client","error_description":"AADSTS7000215: s3cret","error_codes":[7000215]}"#;
        assert_eq!(read(known).to_string(), "a.example answered 401 invalid_client AADSTS7000215");
        for (body, number) in [
            (r#"{"error_description":"AADSTS90002: Tenant 's3cret' not found."}"#, Some(90002)),
            (r#"{"error_description":"first AADSTS50076, then AADSTS1"}"#, Some(50076)),
            (r#"{"error_codes":["s3cret"],"error_description":"AADSTS65001"}"#, Some(65001)),
            (r#"{"error_codes":[99999999999],"error_description":"AADSTS99999999999"}"#, None),
            (r#"{"error_description":"AADSTS: s3cret"}"#, None),
            (r#"{"error_description":12345}"#, None),
            ("[]", None),
        ] {
            assert_eq!(read(body).entra, number, "{body}");
        }
    }

    #[test]
    fn only_known_codes_of_aws_errors_are_reported() {
        let read = |status, code: &str| {
            let body = format!(
                "<ErrorResponse xmlns=\"https://a.example/\"><Error><Type>Sender</Type><Code>{code}</Code>\
                 <Message>s3cret</Message></Error><RequestId>1</RequestId></ErrorResponse>"
            );
            let mut denial = Denial::read("https://a.example/", status, body.as_bytes());
            denial.read_xml(body.as_bytes(), &["AccessDenied"]);
            denial
        };
        assert_eq!(read(403, "AccessDenied").to_string(), "a.example answered 403 AccessDenied");
        assert_eq!(read(403, "S3cret").to_string(), "a.example answered 403");
        assert!(!read(403, "S3cret").is_transient() && read(503, "AccessDenied").is_transient());
        let mut page = Denial::read("https://a.example/", 403, b"<html><b>Blocked</b></html>");
        page.read_xml(b"<html><b>Blocked</b></html>", &["AccessDenied"]);
        assert!(page.is_transient(), "a firewall's page is not AWS's answer");
        // moto's form of what a policy does not allow.
        let deeper = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<ErrorResponse><Errors><Error><Code>AccessDenied</Code>\
                      <Message>s3cret</Message><Type>Sender</Type></Error></Errors></ErrorResponse>";
        let mut denial = Denial::read("https://a.example/", 403, deeper.as_bytes());
        denial.read_xml(deeper.as_bytes(), &["AccessDenied"]);
        assert_eq!(denial.to_string(), "a.example answered 403 AccessDenied");
        assert!(!denial.is_transient(), "it would be asked again and again");
    }

    #[test]
    fn retry_after_is_read_in_both_forms_within_limits() {
        let heeded = |status, text: &'static str| {
            let mut denial = Denial::read("https://a.example/", status, b"{}");
            let date = "Mon, 30 Nov 2026 12:00:00 GMT";
            let headers = [(DATE, date), (RETRY_AFTER, text)];
            denial.heed(
                &headers.map(|(name, value)| (name, HeaderValue::from_static(value))).into_iter().collect(),
            );
            denial
        };
        let pause = |status, text| heeded(status, text).pause.map(|pause| pause.as_secs());
        assert_eq!(pause(429, "7"), Some(7));
        assert_eq!(pause(503, "Mon, 30 Nov 2026 12:00:30 GMT"), Some(30));
        assert_eq!(pause(503, "86400"), Some(300), "nobody is locked out for a day");
        for useless in ["", "0", "-1", "soon", "Mon, 30 Nov 2026 11:00:00 GMT"] {
            assert_eq!(pause(503, useless), None, "{useless}");
        }
        assert_eq!(pause(403, "7"), None, "a refusal stays one");
        assert_eq!(heeded(429, "7").to_string(), "a.example answered 429, and asks to wait for 7 s");
    }

    #[test]
    fn the_most_specific_of_many_reasons_counts() {
        let read = |error: Value| {
            let body = serde_json::json!({ "error": error }).to_string();
            Denial::read("https://a.example/t", 403, body.as_bytes()).reason.unwrap_or_default()
        };
        let old = serde_json::json!([{ "reason": "forbidden" }]);
        let violation = serde_json::json!({ "violations": [{ "type": "VPC_SERVICE_CONTROLS" }] });
        let detail = serde_json::json!({ "reason": "SERVICE_DISABLED" });
        for (details, wanted) in [
            (vec![], "forbidden"),
            (vec![violation.clone()], "SECURITY_POLICY_VIOLATED"),
            (vec![violation, detail], "SERVICE_DISABLED"),
        ] {
            assert_eq!(read(serde_json::json!({ "details": details, "errors": old })), wanted);
        }
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
}
