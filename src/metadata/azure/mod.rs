//! Azure: the form of App Service (`/msi/token`) and the instance metadata service (`/metadata/…`).
//!
//! Errors below `/metadata/` are never a 404 or a 410: clients repeat those for up to 76 s.

use std::time::UNIX_EPOCH;

use hyper::header::HeaderName;
use hyper::{Method, StatusCode};

use super::guards;
use super::json::{JsonValue, object};
use super::reply::{Body, Reply};
use super::service::Service;
use super::target::{PathTarget, parameters};
use super::view::{AzureView, View};
use super::{AzureAsk, Entered, RequestHead, Step, TokenFailure};
use crate::secret::same;
use crate::token::{AzureToken, Now};

const METADATA: HeaderName = HeaderName::from_static("metadata");
const IDENTITY_HEADER: HeaderName = HeaderName::from_static("x-identity-header");

const JSON: &str = "application/json; charset=utf-8";

const INVALID: &str = "invalid_request";
const UNAUTHORIZED: &str = "unauthorized";
const UNAVAILABLE: &str = "temporarily_unavailable";

/// The oldest version of the interface that clients request.
const OLDEST: &str = "2018-02-01";

const ABSENT: &str = "Identity not found: this container has no identity on Azure; [identity.NAME.azure] in the config of kfp-creds gives it one.";

/// What is wrong with a request: status, code, and one line for a person.
#[derive(Debug)]
struct ErrorReply(StatusCode, &'static str, &'static str);

pub(super) fn step(head: &RequestHead<'_>, view: &View, target: &PathTarget<'_>, service: Service) -> Step {
    let Some(azure) = &view.azure else { return Step::Reply(absent(service)) };
    if let Some(refused) = refusal(head, view, target, service) {
        return Step::Reply(refused);
    }
    let answer = match service {
        Service::AppService => app_service(head, azure, target),
        _ => imds(head, view, azure, target),
    };
    answer.unwrap_or_else(|ErrorReply(status, code, why)| {
        Step::Reply(Reply { wrong: Some(why), ..error(service, status, code, why) })
    })
}

pub(super) fn guard(
    head: &RequestHead<'_>,
    view: &View,
    target: &PathTarget<'_>,
    service: Service,
) -> Option<Reply> {
    if view.azure.is_none() { Some(absent(service)) } else { refusal(head, view, target, service) }
}

/// As on a machine without an identity.
fn absent(service: Service) -> Reply {
    Reply { probe: true, ..error(service, StatusCode::BAD_REQUEST, INVALID, ABSENT) }
}

fn refusal(head: &RequestHead<'_>, view: &View, target: &PathTarget<'_>, service: Service) -> Option<Reply> {
    if !matches!(*head.method, Method::GET | Method::HEAD) {
        let refused = error(service, StatusCode::METHOD_NOT_ALLOWED, INVALID, "Method not allowed");
        return Some(Reply { allow: Some("GET, HEAD"), close: true, ..refused });
    }
    let sentence = guards::foreign(head, target, view)?;
    Some(Reply { close: true, ..error(service, StatusCode::FORBIDDEN, INVALID, sentence) })
}

fn app_service(
    head: &RequestHead<'_>,
    azure: &AzureView,
    target: &PathTarget<'_>,
) -> Result<Step, ErrorReply> {
    let service = Service::AppService;
    let given = guards::only(head, &IDENTITY_HEADER);
    let known = given.is_some_and(|given| {
        let own = azure.secret.as_ref().is_some_and(|own| own.is(given));
        match head.entered {
            Entered::Address => own,
            Entered::Secret(entered) => same(entered, given) | own,
            // Clients do not use this form without a value; that there is one keeps other parties out.
            Entered::Open => !given.is_empty(),
        }
    });
    if !known {
        let why =
            "X-IDENTITY-HEADER is not the value of IDENTITY_HEADER in the environment of this container.";
        return Err(ErrorReply(StatusCode::UNAUTHORIZED, UNAUTHORIZED, why));
    }
    if !is_at(target, &["msi", "token"]) {
        return Err(no_such_path());
    }
    token(service, azure, target)
}

fn imds(
    head: &RequestHead<'_>,
    view: &View,
    azure: &AzureView,
    target: &PathTarget<'_>,
) -> Result<Step, ErrorReply> {
    let service = Service::AzureImds;
    if !guards::only(head, &METADATA).is_some_and(|said| said.eq_ignore_ascii_case("true")) {
        // The word of the real service: the first request of clients is to get it.
        let why = "Required metadata header not specified";
        let expected = error(service, StatusCode::BAD_REQUEST, INVALID, why);
        return Ok(Step::Reply(Reply { probe: true, ..expected }));
    }
    if is_at(target, &["metadata", "identity", "oauth2", "token"]) {
        return token(service, azure, target);
    }
    let body = if is_at(target, &["metadata", "identity", "info"]) {
        version(target)?;
        object(&[("tenantId", JsonValue::Text(azure.tenant.as_deref().unwrap_or_default()))])
    } else if is_at(target, &["metadata", "instance"]) {
        version(target)?;
        instance(azure, &view.instance_name)
    } else {
        return Err(no_such_path());
    };
    Ok(Step::Reply(Reply::bare(StatusCode::OK, JSON, Body::plain(body))))
}

fn instance(azure: &AzureView, name: &str) -> Vec<u8> {
    let compute = [
        // Not known: a container is in no region.
        ("location", JsonValue::Text("")),
        ("name", JsonValue::Text(name)),
        ("subscriptionId", JsonValue::Text(&azure.subscription)),
        ("vmId", JsonValue::Text(&azure.vm_id)),
    ];
    object(&[("compute", JsonValue::Object(&compute))])
}

fn no_such_path() -> ErrorReply {
    ErrorReply(StatusCode::BAD_REQUEST, INVALID, "There is no such path.")
}

/// One slash at the end makes no difference: the SDK for JavaScript adds one.
fn is_at(target: &PathTarget<'_>, path: &[&str]) -> bool {
    target.segments().map(|name| name.unwrap_or_default()).eq(path.iter().copied())
}

fn version(target: &PathTarget<'_>) -> Result<(), ErrorReply> {
    let given = parameters(target.query).find(|(name, _)| name == "api-version").map(|(_, value)| value);
    // Dates of this form are ordered as text.
    let is_date = |text: &str| {
        text.len() == OLDEST.len()
            && text.bytes().zip(OLDEST.bytes()).all(|(own, like)| match like {
                b'-' => own == b'-',
                _ => own.is_ascii_digit(),
            })
    };
    if given.is_some_and(|given| is_date(&given) && *given >= *OLDEST) {
        return Ok(());
    }
    let why = "The parameter api-version has to be a date from 2018-02-01 on.";
    Err(ErrorReply(StatusCode::BAD_REQUEST, INVALID, why))
}

fn token(service: Service, azure: &AzureView, target: &PathTarget<'_>) -> Result<Step, ErrorReply> {
    version(target)?;
    let mut resource = None;
    for (name, value) in parameters(target.query) {
        let own = match &*name {
            "resource" => {
                resource.get_or_insert(value);
                true
            }
            "client_id" => azure.client_id.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(&value)),
            // Other names of the same principal, which nobody has told us.
            "object_id" | "principal_id" | "mi_res_id" | "msi_res_id" => false,
            _ => true,
        };
        if !own {
            let why = "Identity not found: this container has one identity on Azure, and it is not the requested one.";
            return Err(ErrorReply(StatusCode::BAD_REQUEST, INVALID, why));
        }
    }
    let Some(resource) = resource.filter(|resource| !matches!(&**resource, "" | "/")) else {
        let why = "The parameter resource is missing.";
        return Err(ErrorReply(StatusCode::BAD_REQUEST, INVALID, why));
    };
    let client_id = azure.client_id.clone();
    Ok(Step::AzureToken(AzureAsk { service, resource: resource.into_owned(), client_id }))
}

/// The token with both `expires_in` and `expires_on`, as strings: some clients read only the first, others only
/// the second.
pub fn token_reply(ask: &AzureAsk, token: &AzureToken, now: Now) -> Reply {
    let left = token.expires.remaining(now).as_secs();
    // Spellings of one resource share a token, and each caller gets its own back.
    let bytes = token.shown.or_render(left, &ask.resource, || token_body(ask, token, now, left));
    Reply::bare(StatusCode::OK, JSON, Body::token(bytes))
}

fn token_body(ask: &AzureAsk, token: &AzureToken, now: Now, left: u64) -> Vec<u8> {
    let epoch = now.wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (expires_in, expires_on, not_before) =
        (left.to_string(), (epoch + left).to_string(), epoch.to_string());
    let mut fields = vec![("access_token", JsonValue::Text(token.value.expose()))];
    let client_id = token.client_id.as_ref().or(ask.client_id.as_ref());
    fields.extend(client_id.map(|id| ("client_id", JsonValue::Text(id))));
    fields.extend([
        ("expires_in", JsonValue::Text(&expires_in)),
        ("expires_on", JsonValue::Text(&expires_on)),
        ("ext_expires_in", JsonValue::Text(&expires_in)),
        ("not_before", JsonValue::Text(&not_before)),
        ("resource", JsonValue::Text(&ask.resource)),
        ("token_type", JsonValue::Text("Bearer")),
    ]);
    object(&fields)
}

pub(super) fn failure_reply(service: Service, kind: TokenFailure, why: &str) -> Reply {
    match (kind.may_pass(), service) {
        (true, _) => error(service, StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, why),
        (false, Service::AppService) => error(service, StatusCode::FORBIDDEN, INVALID, why),
        (false, _) => error(service, StatusCode::BAD_REQUEST, INVALID, why),
    }
}

/// `why` is one line. Of App Service's errors the SDK for Python reads `statusCode` and `message`, that for
/// JavaScript also `error_description`.
fn error(service: Service, status: StatusCode, code: &str, why: &str) -> Reply {
    let both = [("error", JsonValue::Text(code)), ("error_description", JsonValue::Text(why))];
    let body = match service {
        Service::AppService => {
            let number = JsonValue::Number(status.as_u16().into());
            object(&[&[("statusCode", number), ("message", JsonValue::Text(why))], &both[..]].concat())
        }
        _ => object(&both),
    };
    Reply::bare(status, JSON, Body::plain(body))
}
