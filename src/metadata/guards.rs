//! The guards that all clouds have in common. Each returns a sentence, which becomes a refusal in the form of
//! the cloud.

use hyper::header::{FORWARDED, HOST, HeaderName, ORIGIN, REFERER};

use super::RequestHead;
use super::target::PathTarget;
use super::view::View;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Both guards.
pub(super) fn foreign(head: &RequestHead<'_>, target: &PathTarget<'_>, view: &View) -> Option<&'static str> {
    forwarded(head).or_else(|| host(head, Some(target), view))
}

/// Refuses headers that only proxies and browsers send: another party caused the request. `Via` and
/// `X-Real-IP` are allowed, as on the real server.
pub(super) fn forwarded(head: &RequestHead<'_>) -> Option<&'static str> {
    // One pass over the few headers that clients send is cheaper than five searches.
    let mut browser = false;
    for name in head.headers.keys() {
        if *name == X_FORWARDED_FOR || *name == FORWARDED {
            return Some("The request was forwarded.");
        }
        // Node's own `fetch` sends only Sec-Fetch-Mode; browsers also send the site that they come from.
        let fetched = name.as_str().strip_prefix("sec-fetch-").is_some_and(|which| which != "mode");
        browser |= *name == ORIGIN || *name == REFERER || fetched;
    }
    browser.then_some("The request comes from a browser.")
}

/// Prevents DNS rebinding: refuses a foreign name that was made to resolve to this server. A request without
/// any host (HTTP/1.0) cannot come from a browser and passes.
pub(super) fn host(
    head: &RequestHead<'_>,
    target: Option<&PathTarget<'_>>,
    view: &View,
) -> Option<&'static str> {
    let (named, authority) = (head.host, target.and_then(|target| target.authority));
    let headers = head.headers.get_all(HOST).iter().map(|value| value.to_str().unwrap_or_default());
    // On HTTP/1 `named` is the value of this header.
    let others = authority.into_iter().chain(headers).filter(|other| Some(*other) != named);
    let known = named.into_iter().chain(others).all(|host| allowed(host, view));
    (!known).then_some("The Host header names another server.")
}

/// The value of a header that is there exactly once.
pub(super) fn only<'a>(head: &RequestHead<'a>, name: &HeaderName) -> Option<&'a str> {
    let mut values = head.headers.get_all(name).iter();
    let first = values.next()?;
    values.next().is_none().then(|| first.to_str().ok()).flatten()
}

/// Ignores case, port and trailing dot: rebinding needs another name.
pub(super) fn allowed(host: &str, view: &View) -> bool {
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
