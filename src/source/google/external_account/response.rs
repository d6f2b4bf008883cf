//! What a command says: the response format of executable-sourced credentials (AIP-4117), version 1, with two
//! things more that the exec provider understands (`docs/PROVIDERS.md`): an access token, and whose it is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;

use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::command::Ran;
use crate::source::http::fault;
use crate::source::jwt;

const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
/// A word of an error message is shorter.
const SHORTEST_BARE: usize = 20;
const SAML2: &str = "urn:ietf:params:oauth:token-type:saml2";

#[derive(Deserialize)]
struct Written {
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

/// What a token that came is good for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::source) enum Good {
    /// As it is, for Google's APIs.
    Access,
    /// To be handed out as an ID token, or to be exchanged.
    Identity,
    /// To be exchanged.
    Subject,
    /// The command printed it alone, so what it is follows from what was asked for.
    Bare,
}

/// A good response.
#[derive(Debug)]
pub(in crate::source) struct Brought {
    pub(in crate::source) good: Good,
    pub(in crate::source) token: Secret<String>,
    pub(in crate::source) expires: Option<SystemTime>,
    /// `expires_in` as it was written. AIP-4117 does not have it, and in a file that is read later it would count
    /// from nowhere: only who ran the command itself may go by it, and for all others it may be anything.
    pub(in crate::source) life: Option<Value>,
    pub(in crate::source) account: Option<String>,
}

/// Why a response brought nothing.
#[derive(Debug)]
pub(super) enum Nothing {
    /// Not what the format allows.
    Malformed(&'static str),
    /// The command says so itself; its code, where it looks like one.
    Failed(Option<String>),
    Expired,
}

/// Reads a response. Nothing of it but a code gets into an error: serde would quote what it stumbled over.
pub(super) fn read(bytes: &[u8], now: SystemTime) -> Result<Brought, Nothing> {
    let written: Written = serde_json::from_slice(bytes)
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
        Some(_) => return Err(Nothing::Malformed("its token_type is none that is known")),
    };
    let token = token.filter(|token| !token.expose().is_empty());
    let token = token.ok_or(Nothing::Malformed("it has no token of the kind that its token_type says"))?;
    let expires = written.expiration_time.map(seconds).transpose()?;
    if expires.is_some_and(|end| end <= now) {
        return Err(Nothing::Expired);
    }
    let account = written.account.filter(|account| !account.is_empty());
    Ok(Brought { good, token, expires, life: written.expires_in, account })
}

/// What a command that ran brought; `name` is for messages.
/// `bare_too`: it may be a token alone, as `gcloud auth print-access-token` and `vault read -field` print it.
pub(in crate::source) fn brought(ran: &Ran, name: &str, bare_too: bool) -> Result<Brought, SourceError> {
    let read = read(ran.output.expose(), SystemTime::now());
    let read = match read {
        Err(Nothing::Malformed(why)) if bare_too => bare(&ran.output).ok_or(Nothing::Malformed(why)),
        read => read,
    };
    let said = "what it says to that is on the terminal of kfp-creds";
    match read {
        Ok(brought) if ran.success => Ok(brought),
        Err(Nothing::Failed(Some(code))) => {
            Err(SourceError::refused(format!("the command {name} brought no token (code {code}); {said}")))
        }
        Err(Nothing::Failed(None)) => {
            Err(SourceError::refused(format!("the command {name} brought no token; {said}")))
        }
        // Before what it wrote: a command that broke down rarely ends its JSON.
        _ if !ran.success => Err(SourceError::refused(format!("the command {name} failed; {said}"))),
        Err(Nothing::Expired) => {
            Err(SourceError::refused(format!("the command {name} brought a token that has expired")))
        }
        Err(Nothing::Malformed(why)) => {
            Err(SourceError::refused(format!("the answer of the command {name} is not understood: {why}")))
        }
        Ok(_) => Err(SourceError::refused(format!("the command {name} failed; {said}"))),
    }
}

/// One word of the characters of tokens (RFC 6750 section 2.1); a JWT says itself when it ends.
fn bare(output: &Secret<Vec<u8>>) -> Option<Brought> {
    let text = std::str::from_utf8(output.expose()).ok()?.trim();
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
    if text.len() < SHORTEST_BARE || !text.bytes().all(fits) {
        return None;
    }
    let expires = jwt::unverified_claims(text).and_then(|claims| jwt::expiry(&claims));
    Some(Brought {
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

/// `expires_in` as a span, where it is a number of seconds, also as text.
pub(in crate::source) fn span(given: &Value) -> Option<Duration> {
    let number = given.as_f64().or_else(|| given.as_str()?.trim().parse().ok())?;
    Duration::try_from_secs_f64(number.trunc()).ok()
}

/// A number, or what looks like a code.
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
    fn the_forms_of_success() {
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
        // What executables of other makers write there breaks nothing.
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
    fn what_is_not_one() {
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
    fn only_codes_are_told_of_a_failure() {
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
