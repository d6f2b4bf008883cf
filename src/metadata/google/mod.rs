//! Google's tree: that of a virtual machine of Compute Engine.
//!
//! `tree` declares the paths, `render` makes the bodies; `docs/reference/metadata.md` lists every key. Statuses and bodies
//! follow Google's documentation and recorded replies; where neither decides, a comment gives our reason.

mod query;
mod render;
mod tree;

use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderName;
use hyper::{Method, StatusCode};

use super::guards;
use super::reply::{Body, METADATA_FLAVOR, Reply};
use super::target::PathTarget;
use super::view::{Account, View};
use super::{AccessAsk, IdentityAsk, RequestHead, Step, TokenFailure, Wait};
use crate::secret::Secret;
use crate::token::{AccessToken, IdentityToken, Now, Scopes};

use query::Query;
pub use render::ResponseFormat;
use render::page;
use tree::{Node, Spot};

const OLDER_FLAVOR: HeaderName = HeaderName::from_static("x-google-metadata-request");

/// The longest wait, whatever the caller requests: then it gets the current value and may ask again.
pub const LONGEST_WAIT: Duration = Duration::from_secs(3600);

const HTML: &str = "text/html; charset=UTF-8";

pub(super) fn step(head: &RequestHead<'_>, view: &View, target: Option<PathTarget<'_>>) -> Step {
    if !view.google {
        return Step::Reply(absent());
    }
    let asked = ParsedRequest::read(head, view, target);
    match refusal(&asked) {
        Some(reply) => Step::Reply(reply),
        None => answer(&asked),
    }
}

pub(super) fn guard(head: &RequestHead<'_>, view: &View, target: Option<PathTarget<'_>>) -> Option<Reply> {
    if !view.google { Some(absent()) } else { refusal(&ParsedRequest::read(head, view, target)) }
}

/// Hides Google everywhere, even at `/`: half a tree makes google-auth wait for 16 s.
fn absent() -> Reply {
    let why = "This container has no identity on Google Cloud.";
    Reply::bare(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", Body::plain(why))
}

/// `{"access_token":…,"expires_in":…,"token_type":"Bearer"}`; `expires_in`: seconds left at `now`, floored.
pub fn access_reply(ask: &AccessAsk, token: &AccessToken, now: Now) -> Reply {
    let left = token.expires.remaining(now).as_secs();
    let render = |value: &str| render::token(value, left, ask.form);
    let body = match ask.form {
        ResponseFormat::Json => token.shown(left, render),
        ResponseFormat::Text => Arc::new(Secret::new(render(token.value.expose()))),
    };
    ok(ask.form.content_type(), None, Body::token(body))
}

/// The bare JWT. The type has no charset: Ruby takes only `application/text` or `text/html`.
pub fn identity_reply(token: &IdentityToken) -> Reply {
    ok(
        ResponseFormat::Text.content_type(),
        None,
        Body::token(Arc::new(Secret::new(token.value.expose().as_bytes().to_vec()))),
    )
}

/// `why` is one line for a person; it becomes the body, the only text that clients show from inside a
/// container. Statuses follow decision 15 of `docs/ARCHITECTURE.md`.
pub(super) fn failure_reply(kind: TokenFailure, why: &str) -> Reply {
    let status = match kind {
        TokenFailure::AccessRefused => StatusCode::FORBIDDEN,
        TokenFailure::NotFull => StatusCode::BAD_REQUEST,
        TokenFailure::IdentityRefused
        | TokenFailure::NotAllowedAudience
        | TokenFailure::IdentityTransient => StatusCode::NOT_FOUND,
        TokenFailure::Transient | TokenFailure::UnknownCaller => StatusCode::SERVICE_UNAVAILABLE,
        TokenFailure::TooMany => StatusCode::TOO_MANY_REQUESTS,
    };
    Reply { status, ..ok("text/plain; charset=utf-8", None, Body::plain(why.to_owned())) }
}

/// A request with its target parsed and looked up.
struct ParsedRequest<'a> {
    head: &'a RequestHead<'a>,
    view: &'a View,
    target: Option<PathTarget<'a>>,
    spot: Option<Spot<'a>>,
}

impl<'a> ParsedRequest<'a> {
    fn read(head: &'a RequestHead<'a>, view: &'a View, target: Option<PathTarget<'a>>) -> Self {
        let spot = target.as_ref().and_then(|target| tree::find(target, view));
        Self { head, view, target, spot }
    }

    /// The path for error pages, without the query: that may be private, and error pages end up in logs.
    fn path(&self) -> &'a str {
        let raw = self.head.target;
        self.target.map_or_else(|| raw.split('?').next().unwrap_or(raw), |target| target.path)
    }

    fn refuse(&self, sentence: &str) -> Reply {
        let body = page(StatusCode::FORBIDDEN, self.path(), sentence);
        Reply { status: StatusCode::FORBIDDEN, close: true, ..ok(HTML, None, Body::plain(body)) }
    }
}

type HeaderGuard = for<'a> fn(&ParsedRequest<'a>) -> Option<Reply>;

/// The guards, in this order; the first refusal decides and ends the connection.
const GUARDS: [HeaderGuard; 4] = [method, forwarded, host, flavor];

fn refusal(asked: &ParsedRequest<'_>) -> Option<Reply> {
    GUARDS.iter().find_map(|guard| guard(asked))
}

/// Only reading is allowed. Exceptions: google-auth requests tokens by POST, with its certificate chain in
/// the body, where a workload has an agent identity; it gets a token that is not bound to the certificate.
/// The real server's guest attributes can be written, so PUT and DELETE get that directory's usual refusal.
fn method(asked: &ParsedRequest<'_>) -> Option<Reply> {
    let method = asked.head.method;
    let closed = || asked.spot.is_some_and(|spot| matches!(spot.node(), Node::Closed));
    let token = || asked.spot.is_some_and(|spot| matches!(spot.node(), Node::Token | Node::Identity));
    let known = matches!(*method, Method::GET | Method::HEAD)
        || (*method == Method::POST && token())
        || (matches!(*method, Method::PUT | Method::DELETE) && closed());
    (!known).then(|| Reply {
        allow: Some("GET, HEAD"),
        close: true,
        ..sentence(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed")
    })
}

fn forwarded(asked: &ParsedRequest<'_>) -> Option<Reply> {
    guards::forwarded(asked.head).map(|sentence| asked.refuse(sentence))
}

fn host(asked: &ParsedRequest<'_>) -> Option<Reply> {
    guards::host(asked.head, asked.target.as_ref(), asked.view).map(|sentence| asked.refuse(sentence))
}

/// Requires the header that a page, a link or a simple redirect cannot set. `/` needs none, because Go's
/// probe sends none. The older `X-Google-Metadata-Request: True` is still documented as accepted.
fn flavor(asked: &ParsedRequest<'_>) -> Option<Reply> {
    let said = |name: HeaderName, word: &str| {
        let mut values = asked.head.headers.get_all(name).iter();
        values.next().is_some_and(|value| value == word) && values.all(|value| value == word)
    };
    let exempt = asked.spot.is_some_and(|spot| spot.is_root());
    if exempt || said(METADATA_FLAVOR, "Google") {
        return None;
    }
    let older = !asked.head.headers.contains_key(METADATA_FLAVOR) && said(OLDER_FLAVOR, "True");
    (!older).then(|| asked.refuse("Missing Metadata-Flavor:Google header."))
}

fn answer(asked: &ParsedRequest<'_>) -> Step {
    let (Some(target), Some(spot)) = (asked.target, asked.spot) else { return not_found(asked) };
    match (spot.is_dir(), target.ends_in_slash()) {
        _ if matches!(spot.node(), Node::Closed) => {
            Step::Reply(sentence(StatusCode::FORBIDDEN, "Guest attributes endpoint access is disabled."))
        }
        (true, false) => Step::Reply(moved(asked, &target)),
        (true, true) => directory(&spot, &Query::parse(target.query)),
        (false, true) => not_found(asked),
        (false, false) => leaf(asked, &spot, &Query::parse(target.query)),
    }
}

fn directory(spot: &Spot<'_>, query: &Query<'_>) -> Step {
    if matches!(spot.node(), Node::Signpost(_)) {
        return Step::Reply(ok(
            ResponseFormat::Text.content_type(),
            None,
            Body::plain(render::listing(spot)),
        ));
    }
    let json = render::subtree(spot, ResponseFormat::Json);
    let etag = render::etag(&json);
    if !query.recursive() {
        return Step::Reply(match query {
            _ if query.alt.is_some() => bad_request("Non-recursive directory listings do not support ?alt."),
            _ if query.waits() => bad_request("Invalid Request"),
            _ => ok(ResponseFormat::Text.content_type(), Some(etag), Body::plain(render::listing(spot))),
        });
    }
    let form = ResponseFormat::asked(query.alt.as_deref(), ResponseFormat::Json);
    let body = if form == ResponseFormat::Json { json } else { render::subtree(spot, form) };
    now_or_later(query, etag, |etag| ok(form.content_type(), Some(etag), Body::plain(body)))
}

fn leaf(asked: &ParsedRequest<'_>, spot: &Spot<'_>, query: &Query<'_>) -> Step {
    match (spot.node(), spot.account(), spot.value()) {
        (Node::Token, Some(account), _) => token_step(account, query),
        (Node::Identity, Some(account), _) => identity_step(account, query),
        (_, _, Some(value)) => {
            let default = value.default_form();
            let form = ResponseFormat::asked(query.alt.as_deref(), default);
            let body = value.render(form);
            let etag =
                if form == default { render::etag(&body) } else { render::etag(&value.render(default)) };
            now_or_later(query, etag, |etag| ok(form.content_type(), Some(etag), Body::plain(body)))
        }
        _ => not_found(asked),
    }
}

fn token_step(account: &Account, query: &Query<'_>) -> Step {
    if query.waits() {
        return Step::Reply(bad_request("Invalid Request"));
    }
    if query.unenforced() {
        return Step::Reply(bad_request("enforce_scopes cannot be turned off."));
    }
    let scopes = query.scopes().map(Scopes::parse).filter(|scopes| !scopes.is_empty());
    Step::Access(AccessAsk {
        account: account.clone(),
        enforced: query.enforced() && scopes.is_some(),
        scopes,
        form: ResponseFormat::asked(query.alt.as_deref(), ResponseFormat::Json),
    })
}

/// Ignores a wait: the only 400 that gcloud survives is that for a missing audience.
fn identity_step(account: &Account, query: &Query<'_>) -> Step {
    match query.audience.as_deref() {
        None | Some("") => Step::Reply(bad_request("non-empty audience parameter required")),
        Some(audience) => Step::Identity(IdentityAsk {
            account: account.clone(),
            audience: audience.to_string(),
            full: query.full(),
            licenses: query.licenses(),
        }),
    }
}

/// Replies at once without `wait_for_change`, or if the caller's ETag is not the current one.
fn now_or_later(query: &Query<'_>, etag: String, reply: impl FnOnce(String) -> Reply) -> Step {
    let current = query.last_etag.as_deref().is_none_or(|last| last == etag);
    if !query.waits() {
        return Step::Reply(reply(etag));
    }
    match query.timeout() {
        Err(query::NotSeconds) => Step::Reply(bad_request("Invalid Request")),
        Ok(limit) if current && limit != Some(Duration::ZERO) => {
            Step::Wait(Wait { limit, then: reply(etag) })
        }
        Ok(_) => Step::Reply(reply(etag)),
    }
}

/// Redirects to the form with a slash, on the host that the caller named (with its port), with the query.
fn moved(asked: &ParsedRequest<'_>, target: &PathTarget<'_>) -> Reply {
    let host = target.authority.or(asked.head.host).unwrap_or(View::NAMES[0]);
    let path = target.path;
    let query = target.query.filter(|query| query.bytes().all(|b| b.is_ascii_graphic()));
    let location = match query {
        Some(query) => format!("http://{host}{path}/?{query}"),
        None => format!("http://{host}{path}/"),
    };
    Reply {
        status: StatusCode::MOVED_PERMANENTLY,
        location: Some(location),
        ..ok("text/html", None, Body::plain(format!("{path}/\n")))
    }
}

fn not_found(asked: &ParsedRequest<'_>) -> Step {
    let status = StatusCode::NOT_FOUND;
    let body = page(status, asked.path(), "There is no such key.");
    Step::Reply(Reply { status, ..ok(HTML, None, Body::plain(body)) })
}

fn bad_request(body: &'static str) -> Reply {
    sentence(StatusCode::BAD_REQUEST, body)
}

fn sentence(status: StatusCode, body: &'static str) -> Reply {
    Reply { status, ..ok(HTML, None, Body::plain(body)) }
}

fn ok(content_type: &'static str, etag: Option<String>, body: Body) -> Reply {
    Reply { etag, of_google: true, ..Reply::bare(StatusCode::OK, content_type, body) }
}

#[cfg(test)]
mod tests;
