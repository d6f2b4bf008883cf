//! AWS: the container form (`/v2/credentials/SECRET`) and the instance metadata service, version 2 alone.
//!
//! The container form has no header that another party could not cause: its path is the secret. IMDSv2 needs a
//! PUT and then a header. Version 1 needs neither, and does not exist here.

mod instance;
mod session_token;

use std::borrow::Cow;
use std::sync::Arc;

use hyper::header::HeaderName;
use hyper::{Method, StatusCode};

use super::guards;
use super::json::{JsonValue, object};
use super::reply::{AWS_TOKEN_TTL, Body, Reply};
use super::service::Service;
use super::target::PathTarget;
use super::view::{AwsView, View};
use super::{AwsAsk, Entered, RequestHead, Step, TokenFailure};
use crate::console::rfc3339;
use crate::secret::Secret;
use crate::token::{AwsSession, Now};
use instance::{ImdsNode, ImdsScene};

const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");

const JSON: &str = "application/json";
const TEXT: &str = "text/plain";

/// In every JSON reply, `Code` says which of these it is.
const REFUSED: &str = "AccessDenied";
const UNAVAILABLE: &str = "ServiceUnavailable";

const ABSENT: &str =
    "This container has no identity on AWS; [identity.NAME.aws] in the config of kfp-creds gives it one.";

const OPEN: &str = "This listener has no secret: set AWS_EC2_METADATA_SERVICE_ENDPOINT, not AWS_CONTAINER_CREDENTIALS_FULL_URI.";

pub(super) fn step(head: &RequestHead<'_>, view: &View, target: &PathTarget<'_>, service: Service) -> Step {
    let Some(aws) = &view.aws else { return Step::Reply(absent(service)) };
    let path = single_slashes(target.path, service);
    let target = &PathTarget { path: &path, ..*target };
    if let Some(refused) = refusal(head, view, target, service) {
        return Step::Reply(refused);
    }
    match service {
        Service::AwsContainer => container(head, aws, target),
        _ => imds(head, view, aws, target),
    }
}

pub(super) fn guard(
    head: &RequestHead<'_>,
    view: &View,
    target: &PathTarget<'_>,
    service: Service,
) -> Option<Reply> {
    let path = single_slashes(target.path, service);
    let target = &PathTarget { path: &path, ..*target };
    if view.aws.is_none() { Some(absent(service)) } else { refusal(head, view, target, service) }
}

/// At the instance metadata service doubled slashes count as one, as at the real one (ex_aws, pull request 496).
/// minio for Python causes them: it appends `/latest/…` to `AWS_EC2_METADATA_SERVICE_ENDPOINT`, which has to end in
/// a slash for version 2 of AWS's command line.
fn single_slashes(path: &str, service: Service) -> Cow<'_, str> {
    if service != Service::AwsImds || !path.contains("//") {
        return Cow::Borrowed(path);
    }
    let mut single = String::with_capacity(path.len());
    single.extend(path.chars().enumerate().filter_map(|(at, c)| {
        let doubled = c == '/' && path.as_bytes().get(at + 1) == Some(&b'/');
        (!doubled).then_some(c)
    }));
    Cow::Owned(single)
}

/// As where the instance metadata service is turned off. With a 404 the SDK for Rust speaks of a missing header.
fn absent(service: Service) -> Reply {
    Reply { probe: true, ..error(service, StatusCode::FORBIDDEN, REFUSED, ABSENT) }
}

fn refusal(head: &RequestHead<'_>, view: &View, target: &PathTarget<'_>, service: Service) -> Option<Reply> {
    let allow = if is_token_path(target) { "PUT" } else { "GET, HEAD" };
    let known = match *head.method {
        Method::PUT => is_token_path(target),
        Method::GET | Method::HEAD => !is_token_path(target),
        _ => false,
    };
    if !known {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        return Some(Reply {
            allow: Some(allow),
            close: true,
            ..error(service, status, "MethodNotAllowed", "Method not allowed")
        });
    }
    let sentence = guards::foreign(head, target, view)?;
    Some(Reply { close: true, ..error(service, StatusCode::FORBIDDEN, REFUSED, sentence) })
}

/// One exact path, as the real service has it.
fn is_token_path(target: &PathTarget<'_>) -> bool {
    target.path == "/latest/api/token"
}

fn container(head: &RequestHead<'_>, aws: &AwsView, target: &PathTarget<'_>) -> Step {
    let service = Service::AwsContainer;
    let segments: Option<Vec<_>> = target.segments().collect();
    let names: Vec<&str> = segments.iter().flatten().map(|name| &**name).collect();
    let allowed = match (&*names, head.entered, &aws.secret) {
        (["v2", "credentials"], Entered::Secret(_), _) => true,
        (["v2", "credentials", given], Entered::Address, Some(secret)) => secret.is(given),
        // Nothing here keeps another party from causing this request: there is no secret and no header.
        (["v2", "credentials", ..], Entered::Open, _) => {
            return Step::Reply(error(service, StatusCode::FORBIDDEN, REFUSED, OPEN));
        }
        (["v2", "credentials", ..], ..) => false,
        _ => {
            let status = StatusCode::NOT_FOUND;
            return Step::Reply(error(service, status, "NotFound", "There are no credentials at this path."));
        }
    };
    if allowed {
        return Step::AwsSession(ask(service, aws));
    }
    let why = "This path is not the one in AWS_CONTAINER_CREDENTIALS_RELATIVE_URI of this container.";
    Step::Reply(error(service, StatusCode::FORBIDDEN, REFUSED, why))
}

fn imds(head: &RequestHead<'_>, view: &View, aws: &AwsView, target: &PathTarget<'_>) -> Step {
    let service = Service::AwsImds;
    if is_token_path(target) {
        return Step::Reply(new_token(head, aws));
    }
    let known = match (guards::only(head, &TOKEN), &aws.session_key) {
        (Some(token), Some(key)) => session_token::is_valid(key.expose(), token, head.now.wall),
        _ => false,
    };
    if !known {
        let why = "A token of IMDSv2 is needed, which PUT /latest/api/token gives; this one is missing, expired or not of this container.";
        let refused = error(service, StatusCode::UNAUTHORIZED, "Unauthorized", why);
        return Step::Reply(Reply { wrong: Some(why), ..refused });
    }
    let segments: Option<Vec<_>> = target.segments().collect();
    let names: Option<Vec<&str>> = segments.as_ref().map(|all| all.iter().map(|name| &**name).collect());
    let scene = ImdsScene { view, aws, now: head.now };
    let ok = |media, body: Vec<u8>| Step::Reply(Reply::bare(StatusCode::OK, media, Body::plain(body)));
    match names.and_then(|names| scene.find(&names)) {
        Some(ImdsNode::Text(text)) => ok(TEXT, text.into_owned().into_bytes()),
        // The real service calls JSON text as well.
        Some(ImdsNode::Json(body)) => ok(TEXT, body),
        Some(ImdsNode::Credentials) => Step::AwsSession(ask(service, aws)),
        None => Step::Reply(error(service, StatusCode::NOT_FOUND, "NotFound", "There is no such key.")),
    }
}

fn ask(service: Service, aws: &AwsView) -> AwsAsk {
    AwsAsk { service, role_arn: aws.role_arn.clone(), account: aws.account.clone() }
}

fn new_token(head: &RequestHead<'_>, aws: &AwsView) -> Reply {
    let service = Service::AwsImds;
    let asked = guards::only(head, &AWS_TOKEN_TTL).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let ttl = asked.and_then(|text| text.parse().ok()).filter(|ttl| session_token::TTL.contains(ttl));
    let Some(ttl) = ttl else {
        let why = "X-aws-ec2-metadata-token-ttl-seconds has to be a number from 1 to 21600.";
        return error(service, StatusCode::BAD_REQUEST, "BadRequest", why);
    };
    let Some(key) = &aws.session_key else {
        return failure_reply(service, TokenFailure::Transient, "this machine has no randomness");
    };
    let token = session_token::make(key.expose(), ttl, head.now.wall);
    let body = Body::token(Arc::new(Secret::new(token.into_bytes())));
    Reply { ttl: Some(ttl), ..Reply::bare(StatusCode::OK, TEXT, body) }
}

/// The credentials in the form of the service that was asked. `Expiration` is the real one.
pub fn session_reply(ask: &AwsAsk, session: &AwsSession, now: Now) -> Reply {
    // A session is of one container, whose role and account do not change while it lives.
    let form = if ask.service == Service::AwsImds { "imds" } else { "container" };
    let left = session.expires.remaining(now);
    let bytes = session.shown.or_render(left.as_secs(), form, || session_body(ask, session, now));
    Reply::bare(StatusCode::OK, JSON, Body::token(bytes))
}

fn session_body(ask: &AwsAsk, session: &AwsSession, now: Now) -> Vec<u8> {
    let (expires, updated) = (rfc3339(now.wall + session.expires.remaining(now)), rfc3339(now.wall));
    let mut fields = vec![];
    match (ask.service, &ask.role_arn) {
        (Service::AwsImds, _) => fields.extend([
            ("Code", JsonValue::Text("Success")),
            ("LastUpdated", JsonValue::Text(&updated)),
            ("Type", JsonValue::Text("AWS-HMAC")),
        ]),
        (_, Some(role)) => fields.push(("RoleArn", JsonValue::Text(role))),
        (_, None) => {}
    }
    fields.extend([
        ("AccessKeyId", JsonValue::Text(session.access_key_id.expose())),
        ("SecretAccessKey", JsonValue::Text(session.secret_access_key.expose())),
        ("Token", JsonValue::Text(session.session_token.expose())),
        ("Expiration", JsonValue::Text(&expires)),
    ]);
    let account = session.account.as_ref().or(ask.account.as_ref());
    fields.extend(account.map(|id| ("AccountId", JsonValue::Text(id))));
    object(&fields)
}

pub(super) fn failure_reply(service: Service, kind: TokenFailure, why: &str) -> Reply {
    match (kind.may_pass(), service) {
        (true, _) => error(service, StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, why),
        // Go and Rust show `Code` and `Message` of a 200, and nobody repeats the request.
        (false, Service::AwsImds) => {
            let body = object(&[("Code", JsonValue::Text(REFUSED)), ("Message", JsonValue::Text(why))]);
            Reply { refused: true, ..Reply::bare(StatusCode::OK, JSON, Body::plain(body)) }
        }
        (false, _) => error(service, StatusCode::FORBIDDEN, REFUSED, why),
    }
}

/// `why` is one line: JSON in the container form, whose body boto shows whole; text at the metadata service,
/// whose body object_store and minio show.
fn error(service: Service, status: StatusCode, code: &str, why: &str) -> Reply {
    match service {
        Service::AwsContainer => {
            let body = object(&[("Code", JsonValue::Text(code)), ("Message", JsonValue::Text(why))]);
            Reply::bare(status, JSON, Body::plain(body))
        }
        _ => Reply::bare(status, TEXT, Body::plain(why.to_owned())),
    }
}
