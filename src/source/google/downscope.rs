//! Credential Access Boundaries: the Security Token Service narrows a token down to some buckets.
//!
//! <https://cloud.google.com/iam/docs/downscoping-short-lived-credentials>: a token exchange (RFC 8693) of an
//! access token for an access token, with the rules in `options`. Only Cloud Storage enforces them.
//!
//! The input is the token that would otherwise be handed out: the service account's if one is impersonated,
//! else the federated one. Google documents boundaries for tokens of users and of service accounts only; a
//! pool principal without a service account is passed on, and the service may refuse it.

use serde_json::{Value, json};

use crate::source::SourceError;
use crate::source::expiry::life;
use crate::source::google::token_types::{ACCESS_TOKEN, TOKEN_EXCHANGE};
use crate::source::http::client::Upstream;
use crate::source::http::fault::Fault;
use crate::source::http::request::Call;
use crate::token::{AccessToken, Boundary, BoundaryRule, Deadline, Now};

/// Narrows `token` down. The result never outlives `token`.
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
    // Without `expires_in`, the narrowed token lives as long as the original.
    let claimed = narrowed.life.unwrap_or_else(|| token.expires.remaining(Now::read()));
    let own = Deadline::after(answer.sent, life(claimed)?);
    let expires = if own.wall() < token.expires.wall() { own } else { token.expires };
    Ok(AccessToken::new(narrowed.token, expires, token.scopes))
}

/// The rules in the service's JSON format.
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
