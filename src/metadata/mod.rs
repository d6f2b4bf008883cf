//! The GCE metadata protocol as a pure step: a request head and what its caller may see go in, a reply or
//! the need for a token comes out. No I/O, no clock, no cache; the listener and the mint are elsewhere.
//!
//! The paths stand in `tree`, the bytes in `render`, the headers in `reply`; `docs/METADATA.md` lists
//! every key and `tests/golden/metadata/` says the bytes. Statuses and bodies follow Google's documentation
//! and recorded replies; where neither speaks, the comment says why we chose what we chose.

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

/// No wait is longer, whatever its caller names: it is answered with what is so, and asks again.
pub const LONGEST_WAIT: Duration = Duration::from_secs(3600);

const HTML: &str = "text/html; charset=UTF-8";

/// A request without its body, which the protocol never reads.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    pub method: &'a Method,
    /// Path and query as received; the absolute form `http://host/path` is understood as well.
    pub target: &'a str,
    /// The Host header (or `:authority`) as received; `None` for HTTP/1.0 without one.
    pub host: Option<&'a str>,
    pub headers: &'a HeaderMap,
}

/// What a request comes to.
#[derive(Debug)]
pub enum Step {
    Reply(Reply),
    /// An access token is needed: [`access_reply`] or [`failure_reply`] ends it.
    Access(AccessAsk),
    /// An ID token is needed: [`identity_reply`] or [`failure_reply`] ends it.
    Identity(IdentityAsk),
    Wait(Wait),
}

/// A request for an access token.
#[derive(Clone, Debug)]
pub struct AccessAsk {
    pub account: Account,
    /// What was asked for, in normal form; `None` when nothing was. What is given is decided elsewhere.
    pub scopes: Option<Scopes>,
    /// `enforce_scopes`: a token of exactly these scopes or none. False where no scopes were asked for.
    pub enforced: bool,
    pub form: Form,
}

/// A request for an ID token.
#[derive(Clone, Debug)]
pub struct IdentityAsk {
    pub account: Account,
    /// Never empty.
    pub audience: String,
    /// `format=full`: details of the instance are wanted. Only Google can sign those.
    pub full: bool,
    pub licenses: bool,
}

/// The caller wants to hear of a change: send `then` after `limit`, unless the view changes before and the same
/// request comes to a reply with another ETag.
#[derive(Debug)]
pub struct Wait {
    /// `None`: until the caller leaves or the session ends.
    pub limit: Option<Duration>,
    pub then: Reply,
}

/// Why there is no token, or no answer at all. On `identity` only those that come out as 404 may be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// Permanent: 403, which no client retries and most show with its body.
    AccessRefused,
    /// Permanent: 404, the only error beside 400 on `identity` that gcloud survives.
    IdentityRefused,
    /// The audience is not on the identity's list: 404, for the same reason.
    NotAllowedAudience,
    /// `format=full` for an identity that is strict: 400, the other error that gcloud survives.
    NotFull,
    /// May work in a moment: 503, which every client that retries at all does retry.
    Transient,
    /// May work in a moment, but it was an ID token: 404, because gcloud dies of a 503.
    IdentityTransient,
    /// Nobody is known at the caller's address (yet): 503.
    UnknownCaller,
    /// Rate limited: 429.
    TooMany,
}

/// Answers a request, or says what is needed to answer it.
pub fn step(head: &RequestHead<'_>, view: &View) -> Step {
    let asked = Asked::read(head, view);
    match refusal(&asked) {
        Some(reply) => Step::Reply(reply),
        None => answer(&asked),
    }
}

/// The refusal that the guards have for this request, if any; [`step`] asks them itself.
pub fn guard(head: &RequestHead<'_>, view: &View) -> Option<Reply> {
    refusal(&Asked::read(head, view))
}

/// `{"access_token":…,"expires_in":…,"token_type":"Bearer"}`; `expires_in` is what is left at `now`,
/// floored.
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

/// A request with its target taken apart and looked up.
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

    /// For error pages: never the query, which may hold what is nobody's business in a log.
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

/// The guards, in this order; the first that objects decides, and its refusal ends the connection.
const GUARDS: [Guard; 4] = [method, forwarded, host, flavor];

fn refusal(asked: &Asked<'_>) -> Option<Reply> {
    GUARDS.iter().find_map(|guard| guard(asked))
}

/// Reading is all there is. google-auth sends a POST for tokens, with its certificate chain in the body, where a
/// workload has an agent identity: it gets a token that is not bound to the certificate. Guest attributes could be written on the real server, so these methods get as
/// far as the refusal that their directory has for everybody.
fn method(asked: &Asked<'_>) -> Option<Reply> {
    let method = asked.head.method;
    let closed = || asked.spot.is_some_and(|spot| matches!(spot.node(), Node::Closed));
    let token = || asked.spot.is_some_and(|spot| matches!(spot.node(), Node::Token | Node::Identity));
    let known = matches!(*method, Method::GET | Method::HEAD)
        || (*method == Method::POST && token())
        || (matches!(*method, Method::PUT | Method::DELETE) && closed());
    (!known).then(|| Reply { close: true, ..sentence(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed") })
}

/// Headers that only proxies and browsers send: the request was made on behalf of somebody else.
/// `Via` and `X-Real-IP` are let through as on the real server.
fn forwarded(asked: &Asked<'_>) -> Option<Reply> {
    // One walk over the few headers that clients send, which is cheaper than five searches.
    let mut browser = false;
    for name in asked.head.headers.keys() {
        if *name == X_FORWARDED_FOR || *name == FORWARDED {
            return Some(asked.refuse("The request was forwarded."));
        }
        // Node's own `fetch` sends Sec-Fetch-Mode, and that alone; browsers say from which site they come as well.
        let fetched = name.as_str().strip_prefix("sec-fetch-").is_some_and(|which| which != "mode");
        browser |= *name == ORIGIN || *name == REFERER || fetched;
    }
    browser.then(|| asked.refuse("The request comes from a browser."))
}

/// Against DNS rebinding: a foreign name that was made to point here is refused. A request that names no
/// host at all (HTTP/1.0) cannot come from a browser and passes.
fn host(asked: &Asked<'_>) -> Option<Reply> {
    let (named, authority) = (asked.head.host, asked.target.and_then(|target| target.authority));
    let headers = asked.head.headers.get_all(HOST).iter().map(|value| value.to_str().unwrap_or_default());
    // On HTTP/1 the name is that of the header.
    let others = authority.into_iter().chain(headers).filter(|other| Some(*other) != named);
    let known = named.into_iter().chain(others).all(|host| allowed(host, asked.view));
    (!known).then(|| asked.refuse("The Host header names another server."))
}

/// Without case, port and trailing dot: rebinding is about names.
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

/// The header that a page, a link or a simple redirect cannot set. `/` needs none, because Go's probe sends
/// none. The older `X-Google-Metadata-Request: True` is still documented as accepted.
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

/// A wait is ignored here: gcloud survives no 400 but the one for a missing audience.
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

/// At once without `wait_for_change`, and where the caller's ETag is not the current one.
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

/// To the form with a slash, on the host that the caller named (with its port), with the query.
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
