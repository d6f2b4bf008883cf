//! A command's response: the format of executable-sourced credentials (AIP-4117), version 1, plus two
//! additions that the exec provider accepts (`docs/reference/providers.md`): an access token, and the account's name.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;

use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::command::Ran;
use crate::source::google::token_types::{ACCESS_TOKEN, ID_TOKEN, JWT, SAML2};
use crate::source::http::fault;
use crate::source::jwt;

/// Shortest bare token: a word of an error message is shorter.
const SHORTEST_BARE: usize = 20;

#[derive(Deserialize)]
struct ResponseJson {
    version: Option<u64>,
    success: Option<bool>,
    token_type: Option<String>,
    id_token: Option<Secret<String>>,
    saml_response: Option<Secret<String>>,
    access_token: Option<Secret<String>>,
    expiration_time: Option<f64>,
    expires_in: Option<Value>,
    account: Option<String>,
    code: Option<Value>,
}

/// What a returned token can be used for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::source) enum Good {
    /// Directly, as an access token for Google's APIs.
    Access,
    /// As an ID token to hand out, or as a subject token to exchange.
    Identity,
    /// Only as a subject token to exchange.
    Subject,
    /// Printed alone, so its use follows from the request.
    Bare,
}

/// A successful response.
#[derive(Debug)]
pub(in crate::source) struct SubjectAnswer {
    pub(in crate::source) good: Good,
    pub(in crate::source) token: Secret<String>,
    pub(in crate::source) expires: Option<SystemTime>,
    /// `expires_in` as written, which may be any JSON. AIP-4117 does not define it, and in an output file
    /// read later its start is unknown; so only the caller that ran the command itself may use it.
    pub(in crate::source) life: Option<Value>,
    pub(in crate::source) account: Option<String>,
}

/// Why a response has no usable token.
#[derive(Debug)]
pub(super) enum Nothing {
    /// The response violates the format.
    Malformed(&'static str),
    /// The command reported a failure; holds its code, if it looks like one.
    Failed(Option<String>),
    Expired,
}

/// Parses a response. Errors contain at most a code: serde's messages would quote the input.
pub(super) fn read(bytes: &[u8], now: SystemTime) -> Result<SubjectAnswer, Nothing> {
    let written: ResponseJson = serde_json::from_slice(bytes)
        .map_err(|_| Nothing::Malformed("it is not the JSON that is expected"))?;
    match written.version {
        Some(1) => {}
        None => return Err(Nothing::Malformed("it has no version")),
        Some(_) => {
            return Err(Nothing::Malformed("its version is not 1; is kfp-creds older than the command?"));
        }
    }
    match written.success {
        Some(true) => {}
        Some(false) => return Err(Nothing::Failed(written.code.as_ref().and_then(code))),
        None => return Err(Nothing::Malformed("it does not say success")),
    }
    let (good, token) = match written.token_type.as_deref() {
        Some(ACCESS_TOKEN) => (Good::Access, written.access_token),
        Some(ID_TOKEN) => (Good::Identity, written.id_token),
        Some(JWT) => (Good::Subject, written.id_token),
        Some(SAML2) => (Good::Subject, written.saml_response),
        None => return Err(Nothing::Malformed("it has no token_type")),
        Some(_) => return Err(Nothing::Malformed("its token_type is unknown")),
    };
    let token = token.filter(|token| !token.expose().is_empty());
    let token = token.ok_or(Nothing::Malformed("it has no token of its token_type"))?;
    let expires = written.expiration_time.map(seconds).transpose()?;
    if expires.is_some_and(|end| end <= now) {
        return Err(Nothing::Expired);
    }
    let account = written.account.filter(|account| !account.is_empty());
    Ok(SubjectAnswer { good, token, expires, life: written.expires_in, account })
}

/// The token that a finished command returned; `name` is for messages.
/// `bare_too`: also accepts a bare token, as `gcloud auth print-access-token` or `vault read -field` print.
pub(in crate::source) fn brought(
    ran: &Ran,
    name: &str,
    bare_too: bool,
) -> Result<SubjectAnswer, SourceError> {
    let read = read(ran.output.expose(), SystemTime::now());
    let read = match read {
        Err(Nothing::Malformed(why)) if bare_too => bare(&ran.output).ok_or(Nothing::Malformed(why)),
        read => read,
    };
    let said = "its error output is on the terminal of kfp-creds";
    match read {
        Ok(brought) if ran.success => Ok(brought),
        Err(Nothing::Failed(Some(code))) => {
            Err(SourceError::refused(format!("the command {name} returned no token (code {code}); {said}")))
        }
        Err(Nothing::Failed(None)) => {
            Err(SourceError::refused(format!("the command {name} returned no token; {said}")))
        }
        // Checked before the output: a command that failed rarely writes complete JSON.
        _ if !ran.success => Err(SourceError::refused(format!("the command {name} failed; {said}"))),
        Err(Nothing::Expired) => {
            Err(SourceError::refused(format!("the command {name} returned a token that has expired")))
        }
        Err(Nothing::Malformed(why)) => {
            Err(SourceError::refused(format!("the answer of the command {name} is not understood: {why}")))
        }
        Ok(_) => Err(SourceError::refused(format!("the command {name} failed; {said}"))),
    }
}

/// A single word of token characters (RFC 6750 section 2.1). If it is a JWT, its own `exp` counts.
fn bare(output: &Secret<Vec<u8>>) -> Option<SubjectAnswer> {
    let text = std::str::from_utf8(output.expose()).ok()?.trim();
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
    if text.len() < SHORTEST_BARE || !text.bytes().all(fits) {
        return None;
    }
    let expires = jwt::unverified_claims(text).and_then(|claims| jwt::expiry(&claims));
    Some(SubjectAnswer {
        good: Good::Bare,
        token: Secret::new(text.to_owned()),
        expires,
        life: None,
        account: None,
    })
}

fn seconds(given: f64) -> Result<SystemTime, Nothing> {
    let since = Duration::try_from_secs_f64(given.trunc()).ok();
    let end = since.and_then(|since| UNIX_EPOCH.checked_add(since));
    end.ok_or(Nothing::Malformed("its expiration_time is not a time in seconds since 1970"))
}

/// `expires_in` as a duration, if it is a number of seconds, as JSON number or text.
pub(in crate::source) fn span(given: &Value) -> Option<Duration> {
    let number = given.as_f64().or_else(|| given.as_str()?.trim().parse().ok())?;
    Duration::try_from_secs_f64(number.trunc()).ok()
}

/// A number, or a text that looks like an error code.
fn code(value: &Value) -> Option<String> {
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
    number.filter(|number| *number < 100_000).map(|number| number.to_string()).or_else(|| fault::code(value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn every_form_of_success_is_read() {
        for (kind, field, good) in [
            (ID_TOKEN, "id_token", Good::Identity),
            (JWT, "id_token", Good::Subject),
            (SAML2, "saml_response", Good::Subject),
            (ACCESS_TOKEN, "access_token", Good::Access),
        ] {
            let text = json!({"version": 1, "success": true, "token_type": kind, field: "t", "expiration_time": 200})
                .to_string();
            let brought = read(text.as_bytes(), at(100)).unwrap();
            assert_eq!((brought.good, brought.token.expose().as_str()), (good, "t"));
            assert_eq!(brought.expires, Some(at(200)));
            assert!(matches!(read(text.as_bytes(), at(200)), Err(Nothing::Expired)));
        }
        // An `expires_in` in another form, as other vendors' executables write it, is not an error.
        for (written, life) in [
            (json!(60), Some(60)),
            (json!(60.9), Some(60)),
            (json!(0), Some(0)),
            (json!("3600"), Some(3600)),
            (json!("soon"), None),
            (json!(-5), None),
            (json!(1e300), None),
            (json!(null), None),
        ] {
            let text = json!({"version": 1, "success": true, "token_type": JWT, "id_token": "t", "expires_in": written});
            let brought = read(text.to_string().as_bytes(), at(100)).unwrap();
            assert_eq!(brought.life.as_ref().and_then(span), life.map(Duration::from_secs), "{written}");
        }
    }

    #[test]
    fn an_incomplete_answer_is_not_a_success() {
        let whole = json!({"version": 1, "success": true, "token_type": JWT, "id_token": "canary"});
        assert!(read(whole.to_string().as_bytes(), at(0)).is_ok());
        for (key, value) in [
            ("version", json!(null)),
            ("version", json!(2)),
            ("version", json!("1")),
            ("success", json!(null)),
            ("success", json!("true")),
            ("token_type", json!(null)),
            ("token_type", json!("canary")),
            ("token_type", json!(SAML2)),
            ("id_token", json!("")),
            ("id_token", json!(["canary"])),
            ("expiration_time", json!("soon")),
            ("expiration_time", json!(-5)),
            ("expiration_time", json!(1e300)),
        ] {
            let mut broken = whole.clone();
            broken[key] = value;
            let outcome = read(broken.to_string().as_bytes(), at(0));
            assert!(matches!(&outcome, Err(Nothing::Malformed(_))), "{key}: {outcome:?}");
        }
    }

    #[test]
    fn a_failure_is_reported_by_its_code_only() {
        for (given, told) in [
            (json!("401"), Some("401")),
            (json!(401), Some("401")),
            (json!("not_logged_in"), Some("not_logged_in")),
            (json!("ya29.canary"), None),
            (json!(null), None),
        ] {
            let text =
                json!({"version": 1, "success": false, "code": given, "message": "canary"}).to_string();
            match read(text.as_bytes(), at(0)) {
                Err(Nothing::Failed(code)) => assert_eq!(code.as_deref(), told),
                other => panic!("{other:?}"),
            }
        }
    }
}
