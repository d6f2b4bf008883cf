//! Requests that may turn into raw streams: which protocol each may be upgraded to.

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Request, StatusCode};

use super::engine_client::{Handover, RawClient, Refusal};
use super::path::Route;

/// The client's end, if a request may become a raw stream.
pub(super) type Raw = Option<RawClient>;

/// Permits an upgrade only where the engine's protocol has one, and only to its own protocol; elsewhere the
/// header is dropped, which HTTP allows. A passed `Upgrade: h2c` would open every endpoint unjudged.
pub(super) fn upgrade(request: &mut Request<Incoming>, route: &Route) -> Result<Raw, Refusal> {
    let (protocol, bare) = match route {
        Route::ExecStart => ("tcp", true),
        Route::Container { action, .. } if action == "attach" => ("tcp", true),
        Route::Container { action, .. } if action == "attach/ws" => ("websocket", false),
        Route::BuildSession | Route::BuildControl => ("h2c", false),
        _ => return Ok(None),
    };
    let asked: Vec<HeaderValue> = request.headers().get_all(header::UPGRADE).iter().cloned().collect();
    match asked.as_slice() {
        [] if bare => Ok(request.extensions_mut().remove::<Handover>().map(RawClient::Bare)),
        [] => Ok(None),
        [one] if one.as_bytes().eq_ignore_ascii_case(protocol.as_bytes()) => {
            Ok(Some(RawClient::Upgrade(hyper::upgrade::on(request), one.clone())))
        }
        _ => Err(Refusal::malformed(format!("only an upgrade to {protocol} is possible here"))),
    }
}

pub(super) fn needs_upgrade() -> Refusal {
    Refusal::new(
        StatusCode::UPGRADE_REQUIRED,
        "this stream needs an `Upgrade` header, which the client did not send",
    )
}
