//! The metadata protocols of Google, AWS and Azure as a pure function: a request head and the caller's view go
//! in, a reply or the need for a token comes out. No I/O, no clock, no cache; the listener and the mint are
//! elsewhere.
//!
//! The first segment of the path decides which protocol a request uses ([`Service`]); each cloud has a folder. For a
//! cloud that the identity does not have, the answers are those of a machine outside that cloud, because clients that
//! find half of a cloud rely on it and fail later. `guards` has the checks for all clouds, `reply` the headers;
//! `tests/golden/` holds the expected bytes.

mod aws;
mod azure;
mod google;
mod guards;
mod json;
mod reply;
mod service;
mod target;
mod view;

use std::time::Duration;

use hyper::{HeaderMap, Method};

use crate::token::{Now, Scopes};

pub use aws::session_reply as aws_session_reply;
pub use azure::token_reply as azure_token_reply;
pub use google::{LONGEST_WAIT, ResponseFormat, access_reply, identity_reply};
pub use reply::{Body, Reply, headers};
pub use service::Service;
use target::PathTarget;
pub use view::{Account, AwsView, AzureView, View};

/// A request without its body, which no protocol reads.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    pub method: &'a Method,
    /// Path and query as received; the absolute form `http://host/path` is accepted as well.
    pub target: &'a str,
    /// The Host header (or `:authority`) as received; `None` for HTTP/1.0 without one.
    pub host: Option<&'a str>,
    pub headers: &'a HeaderMap,
    pub entered: Entered<'a>,
    /// Tokens of IMDSv2 begin and end by this clock.
    pub now: Now,
}

/// How the caller was identified by the listener.
#[derive(Clone, Copy, Debug)]
pub enum Entered<'a> {
    /// By its address, which has a lease.
    Address,
    /// By this secret, which preceded the target and was removed from it: the container form of AWS has no second
    /// secret in its path, and Azure's header may contain this one.
    Secret(&'a str),
    /// Not at all: the operator opened the listener to every program on this machine.
    Open,
}

/// The result of a step.
#[derive(Debug)]
pub enum Step {
    Reply(Reply),
    /// An access token is needed; finish with [`access_reply`] or [`failure_reply`].
    Access(AccessAsk),
    /// An ID token is needed; finish with [`identity_reply`] or [`failure_reply`].
    Identity(IdentityAsk),
    /// A session of AWS is needed; finish with [`aws_session_reply`] or [`failure_reply`].
    AwsSession(AwsAsk),
    /// A token of Azure is needed; finish with [`azure_token_reply`] or [`failure_reply`].
    AzureToken(AzureAsk),
    Wait(Wait),
}

/// A request for an access token.
#[derive(Clone, Debug)]
pub struct AccessAsk {
    pub account: Account,
    /// The requested scopes, in normal form; `None` if none were requested. The server decides which are
    /// granted.
    pub scopes: Option<Scopes>,
    /// `enforce_scopes`: a token of exactly these scopes or none. False if none were requested.
    pub enforced: bool,
    pub form: ResponseFormat,
}

/// A request for an ID token.
#[derive(Clone, Debug)]
pub struct IdentityAsk {
    pub account: Account,
    /// Never empty.
    pub audience: String,
    /// `format=full`: the caller wants details of the instance, which only Google can sign.
    pub full: bool,
    pub licenses: bool,
}

/// A request for a session of AWS.
#[derive(Clone, Debug)]
pub struct AwsAsk {
    /// [`Service::AwsContainer`] or [`Service::AwsImds`].
    pub service: Service,
    /// As in [`AwsView`].
    pub role_arn: Option<String>,
    pub account: Option<String>,
}

/// A request for a token of Azure.
#[derive(Clone, Debug)]
pub struct AzureAsk {
    /// [`Service::AppService`] or [`Service::AzureImds`].
    pub service: Service,
    /// As requested, perhaps with a slash at its end; never empty. The server decides whether it is allowed.
    pub resource: String,
    /// As in [`AzureView`].
    pub client_id: Option<String>,
}

/// The caller waits for a change: send `then` after `limit`, unless the view changes before and the same
/// request results in a reply with another ETag.
#[derive(Debug)]
pub struct Wait {
    /// `None`: until the caller disconnects or the session ends.
    pub limit: Option<Duration>,
    pub then: Reply,
}

/// Why there is no token, or no answer at all. The statuses are those of Google's tree; those of the other
/// services are at [`failure_reply`]. For `identity` use only those that result in 404 or 400.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenFailure {
    /// Permanent: 403, which no client retries and most show with its body.
    AccessRefused,
    /// Permanent: 404, the only error beside 400 on `identity` that gcloud survives.
    IdentityRefused,
    /// The audience is not on the identity's list: 404, for the same reason.
    NotAllowedAudience,
    /// `format=full` for a strict identity: 400, the other error that gcloud survives.
    NotFull,
    /// May work in a moment: 503, which every client that retries at all does retry.
    Transient,
    /// May work in a moment, but concerns an ID token: 404, because gcloud fails on a 503.
    IdentityTransient,
    /// No container is known at the caller's address (yet): 503.
    UnknownCaller,
    /// Rate limited: 429.
    TooMany,
}

impl TokenFailure {
    /// Whether the same request may succeed in a moment.
    fn may_pass(self) -> bool {
        match self {
            Self::AccessRefused | Self::IdentityRefused | Self::NotAllowedAudience | Self::NotFull => false,
            Self::Transient | Self::IdentityTransient | Self::UnknownCaller | Self::TooMany => true,
        }
    }
}

/// Answers a request, or returns what is needed to answer it.
pub fn step(head: &RequestHead<'_>, view: &View) -> Step {
    let target = PathTarget::parse(head.target);
    match (Service::at(target.as_ref()), target) {
        (service @ (Service::AwsContainer | Service::AwsImds), Some(target)) => {
            aws::step(head, view, &target, service)
        }
        (service @ (Service::AppService | Service::AzureImds), Some(target)) => {
            azure::step(head, view, &target, service)
        }
        (_, target) => google::step(head, view, target),
    }
}

/// The guards' refusal of this request, if any; [`step`] calls the guards itself.
pub fn guard(head: &RequestHead<'_>, view: &View) -> Option<Reply> {
    let target = PathTarget::parse(head.target);
    match (Service::at(target.as_ref()), target) {
        (service @ (Service::AwsContainer | Service::AwsImds), Some(target)) => {
            aws::guard(head, view, &target, service)
        }
        (service @ (Service::AppService | Service::AzureImds), Some(target)) => {
            azure::guard(head, view, &target, service)
        }
        (_, target) => google::guard(head, view, target),
    }
}

/// `why` is one line for a person; it becomes the body, or a part of it, in the form whose text the clients of
/// this service show from inside a container. Statuses follow decision 15 of `docs/ARCHITECTURE.md` for Google;
/// for the others what may pass is a 503, and a refusal what their clients show and do not retry: 403 in the
/// container form of AWS and at App Service, 400 at Azure's IMDS, and at IMDSv2 a 200 with `Code` and `Message`.
pub fn failure_reply(service: Service, kind: TokenFailure, why: &str) -> Reply {
    let line = why.replace(char::is_control, " ");
    match service {
        Service::Google => google::failure_reply(kind, &line),
        Service::AwsContainer | Service::AwsImds => aws::failure_reply(service, kind, &line),
        Service::AppService | Service::AzureImds => azure::failure_reply(service, kind, &line),
    }
}
