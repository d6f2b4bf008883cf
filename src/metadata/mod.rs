//! The GCE metadata protocol as a pure function: a request head and the caller's view go in, a reply or the
//! need for a token comes out. No I/O, no clock, no cache; the listener and the mint are elsewhere.
//!
//! `tree` declares the paths, `render` makes the bodies, `reply` the headers; `docs/METADATA.md` lists every
//! key, `tests/golden/metadata/` holds the expected bytes. Statuses and bodies follow Google's documentation
//! and recorded replies; where neither decides, a comment gives our reason.

mod render;
mod reply;
mod target;
mod tree;
mod view;

use std::sync::Arc;
use std::time::Duration;

use hyper::header::{FORWARDED, HOST, HeaderName, ORIGIN, REFERER};
use hyper::{HeaderMap, Method, StatusCode};

use crate::secret::Secret;
use crate::token::{AccessToken, IdentityToken, Now, Scopes};

pub use render::Form;
use render::page;
pub use reply::{Body, Reply, headers};
use target::{Query, Target};
use tree::{Node, Spot};
pub use view::{Account, View};

const METADATA_FLAVOR: HeaderName = HeaderName::from_static("metadata-flavor");
const OLDER_FLAVOR: HeaderName = HeaderName::from_static("x-google-metadata-request");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The longest wait, whatever the caller requests: then it gets the current value and may ask again.
pub const LONGEST_WAIT: Duration = Duration::from_secs(3600);

const HTML: &str = "text/html; charset=UTF-8";

/// A request without its body, which the protocol never reads.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    pub method: &'a Method,
    /// Path and query as received; the absolute form `http://host/path` is accepted as well.
    pub target: &'a str,
    /// The Host header (or `:authority`) as received; `None` for HTTP/1.0 without one.
    pub host: Option<&'a str>,
    pub headers: &'a HeaderMap,
}

/// The result of a step.
#[derive(Debug)]
pub enum Step {
    Reply(Reply),
    /// An access token is needed; finish with [`access_reply`] or [`failure_reply`].
    Access(AccessAsk),
    /// An ID token is needed; finish with [`identity_reply`] or [`failure_reply`].
    Identity(IdentityAsk),
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
    pub form: Form,
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

/// The caller waits for a change: send `then` after `limit`, unless the view changes before and the same
/// request results in a reply with another ETag.
#[derive(Debug)]
pub struct Wait {
    /// `None`: until the caller disconnects or the session ends.
    pub limit: Option<Duration>,
    pub then: Reply,
}

/// Why there is no token, or no answer at all. For `identity` use only those that result in 404 or 400.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
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

/// Answers a request, or returns what is needed to answer it.
pub fn step(head: &RequestHead<'_>, view: &View) -> Step {
    let asked = Asked::read(head, view);
    match refusal(&asked) {
        Some(reply) => Step::Reply(reply),
        None => answer(&asked),
    }
}

/// The guards' refusal of this request, if any; [`step`] calls the guards itself.
pub fn guard(head: &RequestHead<'_>, view: &View) -> Option<Reply> {
    refusal(&Asked::read(head, view))
}

/// `{"access_token":…,"expires_in":…,"token_type":"Bearer"}`; `expires_in`: seconds left at `now`, floored.
pub fn access_reply(ask: &AccessAsk, token: &AccessToken, now: Now) -> Reply {
    let left = token.expires.remaining(now).as_secs();
    let render = |value: &str| render::token(value, left, ask.form);
    let body = match ask.form {
        Form::Json => token.shown(left, render),
        Form::Text => Arc::new(Secret::new(render(token.value.expose()))),
    };
    ok(ask.form.content_type(), None, Body::token(body))
}

/// The bare JWT. The type has no charset: Ruby takes only `application/text` or `text/html`.
pub fn identity_reply(token: &IdentityToken) -> Reply {
    ok(
        Form::Text.content_type(),
        None,
        Body::token(Arc::new(Secret::new(token.value.expose().as_bytes().to_vec()))),
    )
}

/// `why` is one line for a person; it becomes the body, the only text that clients show from inside a
/// container. Statuses follow decision 15 of `docs/ARCHITECTURE.md`.
pub fn failure_reply(kind: Failure, why: &str) -> Reply {
    let status = match kind {
        Failure::AccessRefused => StatusCode::FORBIDDEN,
        Failure::NotFull => StatusCode::BAD_REQUEST,
        Failure::IdentityRefused | Failure::NotAllowedAudience | Failure::IdentityTransient => {
            StatusCode::NOT_FOUND
        }
        Failure::Transient | Failure::UnknownCaller => StatusCode::SERVICE_UNAVAILABLE,
        Failure::TooMany => StatusCode::TOO_MANY_REQUESTS,
    };
    let line = why.replace(char::is_control, " ");
    Reply { status, ..ok("text/plain; charset=utf-8", None, Body::plain(line)) }
}

/// A request with its target parsed and looked up.
struct Asked<'a> {
    head: &'a RequestHead<'a>,
    view: &'a View,
    target: Option<Target<'a>>,
    spot: Option<Spot<'a>>,
}

impl<'a> Asked<'a> {
    fn read(head: &'a RequestHead<'a>, view: &'a View) -> Self {
        let target = Target::parse(head.target);
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

type Guard = for<'a> fn(&Asked<'a>) -> Option<Reply>;

/// The guards, in this order; the first refusal decides and ends the connection.
const GUARDS: [Guard; 4] = [method, forwarded, host, flavor];

fn refusal(asked: &Asked<'_>) -> Option<Reply> {
    GUARDS.iter().find_map(|guard| guard(asked))
}

/// Only reading is allowed. Exceptions: google-auth requests tokens by POST, with its certificate chain in
/// the body, where a workload has an agent identity; it gets a token that is not bound to the certificate.
/// The real server's guest attributes can be written, so PUT and DELETE get that directory's usual refusal.
fn method(asked: &Asked<'_>) -> Option<Reply> {
    let method = asked.head.method;
    let closed = || asked.spot.is_some_and(|spot| matches!(spot.node(), Node::Closed));
    let token = || asked.spot.is_some_and(|spot| matches!(spot.node(), Node::Token | Node::Identity));
    let known = matches!(*method, Method::GET | Method::HEAD)
        || (*method == Method::POST && token())
        || (matches!(*method, Method::PUT | Method::DELETE) && closed());
    (!known).then(|| Reply { close: true, ..sentence(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed") })
}

/// Refuses headers that only proxies and browsers send: another party caused the request. `Via` and
/// `X-Real-IP` are allowed, as on the real server.
fn forwarded(asked: &Asked<'_>) -> Option<Reply> {
    // One pass over the few headers that clients send is cheaper than five searches.
    let mut browser = false;
    for name in asked.head.headers.keys() {
        if *name == X_FORWARDED_FOR || *name == FORWARDED {
            return Some(asked.refuse("The request was forwarded."));
        }
        // Node's own `fetch` sends only Sec-Fetch-Mode; browsers also send the site that they come from.
        let fetched = name.as_str().strip_prefix("sec-fetch-").is_some_and(|which| which != "mode");
        browser |= *name == ORIGIN || *name == REFERER || fetched;
    }
    browser.then(|| asked.refuse("The request comes from a browser."))
}

/// Prevents DNS rebinding: refuses a foreign name that was made to resolve to this server. A request without
/// any host (HTTP/1.0) cannot come from a browser and passes.
fn host(asked: &Asked<'_>) -> Option<Reply> {
    let (named, authority) = (asked.head.host, asked.target.and_then(|target| target.authority));
    let headers = asked.head.headers.get_all(HOST).iter().map(|value| value.to_str().unwrap_or_default());
    // On HTTP/1 `named` is the value of this header.
    let others = authority.into_iter().chain(headers).filter(|other| Some(*other) != named);
    let known = named.into_iter().chain(others).all(|host| allowed(host, asked.view));
    (!known).then(|| asked.refuse("The Host header names another server."))
}

/// Ignores case, port and trailing dot: rebinding needs another name.
fn allowed(host: &str, view: &View) -> bool {
    if View::NAMES.contains(&host) || view.hosts.iter().any(|own| own == host) {
        return true;
    }
    let Some(name) = hostname(host) else { return false };
    let is = |own: &str| own.eq_ignore_ascii_case(name);
    View::NAMES.into_iter().any(is) || view.hosts.iter().filter_map(|host| hostname(host)).any(is)
}

/// The name in `name`, `name.`, `name:80`, `[address]:80`; `None` for anything else.
fn hostname(host: &str) -> Option<&str> {
    let colon = if host.starts_with('[') { host.find("]:").map(|at| at + 1) } else { host.find(':') };
    let (name, port) = colon.map_or((host, ""), |at| (&host[..at], &host[at + 1..]));
    let name = name.strip_suffix('.').unwrap_or(name);
    (!name.is_empty() && port.bytes().all(|b| b.is_ascii_digit())).then_some(name)
}

/// Requires the header that a page, a link or a simple redirect cannot set. `/` needs none, because Go's
/// probe sends none. The older `X-Google-Metadata-Request: True` is still documented as accepted.
fn flavor(asked: &Asked<'_>) -> Option<Reply> {
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

fn answer(asked: &Asked<'_>) -> Step {
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
        return Step::Reply(ok(Form::Text.content_type(), None, Body::plain(render::listing(spot))));
    }
    let json = render::subtree(spot, Form::Json);
    let etag = render::etag(&json);
    if !query.recursive() {
        return Step::Reply(match query {
            _ if query.alt.is_some() => bad_request("Non-recursive directory listings do not support ?alt."),
            _ if query.waits() => bad_request("Invalid Request"),
            _ => ok(Form::Text.content_type(), Some(etag), Body::plain(render::listing(spot))),
        });
    }
    let form = Form::asked(query.alt.as_deref(), Form::Json);
    let body = if form == Form::Json { json } else { render::subtree(spot, form) };
    now_or_later(query, etag, |etag| ok(form.content_type(), Some(etag), Body::plain(body)))
}

fn leaf(asked: &Asked<'_>, spot: &Spot<'_>, query: &Query<'_>) -> Step {
    match (spot.node(), spot.account(), spot.value()) {
        (Node::Token, Some(account), _) => access(account, query),
        (Node::Identity, Some(account), _) => identity(account, query),
        (_, _, Some(value)) => {
            let default = value.default_form();
            let form = Form::asked(query.alt.as_deref(), default);
            let body = value.render(form);
            let etag =
                if form == default { render::etag(&body) } else { render::etag(&value.render(default)) };
            now_or_later(query, etag, |etag| ok(form.content_type(), Some(etag), Body::plain(body)))
        }
        _ => not_found(asked),
    }
}

fn access(account: &Account, query: &Query<'_>) -> Step {
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
        form: Form::asked(query.alt.as_deref(), Form::Json),
    })
}

/// Ignores a wait: the only 400 that gcloud survives is that for a missing audience.
fn identity(account: &Account, query: &Query<'_>) -> Step {
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
        Err(target::NotSeconds) => Step::Reply(bad_request("Invalid Request")),
        Ok(limit) if current && limit != Some(Duration::ZERO) => {
            Step::Wait(Wait { limit, then: reply(etag) })
        }
        Ok(_) => Step::Reply(reply(etag)),
    }
}

/// Redirects to the form with a slash, on the host that the caller named (with its port), with the query.
fn moved(asked: &Asked<'_>, target: &Target<'_>) -> Reply {
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

fn not_found(asked: &Asked<'_>) -> Step {
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
    Reply { status: StatusCode::OK, content_type, etag, location: None, body, close: false }
}

#[cfg(test)]
mod tests;
