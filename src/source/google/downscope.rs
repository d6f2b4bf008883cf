//! Credential Access Boundaries: a token that is narrowed down to some buckets, by the Security Token Service.
//!
//! <https://cloud.google.com/iam/docs/downscoping-short-lived-credentials>: a token exchange (RFC 8693) of an
//! access token for an access token, with the rules in `options`. Cloud Storage alone looks at them.
//!
//! What goes in is the token that would else be handed out: the service account's where one is impersonated, and the
//! federated one where none is. Google documents boundaries for tokens of people and of service accounts, so a
//! principal of a pool without a service account is let through here, and is the service's to refuse.

use serde_json::{Value, json};

use crate::source::SourceError;
use crate::source::expiry::life;
use crate::source::http::client::Upstream;
use crate::source::http::fault::Fault;
use crate::source::http::request::Call;
use crate::token::{AccessToken, Boundary, BoundaryRule, Deadline, Now};

const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

/// `token`, narrowed down. It never outlives the one that it was made of.
pub(super) async fn narrow(
    upstream: &Upstream,
    sts: &str,
    token: AccessToken,
    boundary: &Boundary,
) -> Result<AccessToken, SourceError> {
    let options = options(boundary).to_string();
    let fields = [
        ("grant_type", TOKEN_EXCHANGE),
        ("subject_token_type", ACCESS_TOKEN),
        ("requested_token_type", ACCESS_TOKEN),
        ("subject_token", token.value.expose()),
        ("options", &options),
    ];
    let answer = upstream.send(&Call::form(sts, &fields)).await.map_err(refused)?;
    let narrowed = answer.granted()?;
    // Without a word on it, it lives as long as the one that it was made of.
    let claimed = narrowed.life.unwrap_or_else(|| token.expires.remaining(Now::read()));
    let own = Deadline::after(answer.sent, life(claimed)?);
    let expires = if own.wall() < token.expires.wall() { own } else { token.expires };
    Ok(AccessToken::new(narrowed.token, expires, token.scopes))
}

/// The rules in the form that the service reads.
pub(crate) fn options(boundary: &Boundary) -> Value {
    let rule = |rule: &BoundaryRule| {
        let mut made = json!({
            "availableResource": format!("//storage.googleapis.com/projects/_/buckets/{}", rule.bucket),
            "availablePermissions": rule.permissions,
        });
        if let Some(condition) = &rule.condition {
            let mut written = json!({"expression": condition.expression});
            for (key, text) in [("title", &condition.title), ("description", &condition.description)] {
                if let Some(text) = text {
                    written[key] = json!(text);
                }
            }
            made["availabilityCondition"] = written;
        }
        made
    };
    let rules: Vec<Value> = boundary.0.iter().map(rule).collect();
    json!({"accessBoundary": {"accessBoundaryRules": rules}})
}

fn refused(fault: Fault) -> SourceError {
    match &fault {
        Fault::Denied(denial) if denial.is("invalid_request") => SourceError::refused(format!(
            "{denial}: the boundary is not accepted; look at its buckets, roles and conditions"
        )),
        _ => fault.into(),
    }
}
