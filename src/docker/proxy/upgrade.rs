//! Requests that may become raw streams, and the protocol that each may be upgraded to.

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};

use super::engine_client::{EngineClient, Handover, RawClient, Refusal, Reply, collect, full};
use super::json;
use super::path::{ApiTarget, Route};

/// The client's end, if a request may become a raw stream.
pub(super) type Raw = Option<RawClient>;

/// Permits an upgrade only at endpoints where the engine's API has one, and only to the endpoint's protocol;
/// elsewhere the proxy drops the header, which HTTP allows. If it passed `Upgrade: h2c` on, the client could
/// reach every endpoint unjudged.
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

/// Forwards a request that may become a raw stream, without its body: the engine would read bytes after the
/// head as part of the stream. dockerode repeats its options as a body, which the engine ignores, so the
/// proxy drops it.
pub(super) async fn forward_raw(
    engine: &EngineClient,
    mut parts: Parts,
    target: ApiTarget,
    body: Incoming,
    raw: Raw,
) -> Result<Reply, Refusal> {
    let raw = raw.ok_or_else(needs_upgrade)?;
    let bytes = collect(body).await?;
    let attach = matches!(target.route(false), Route::Container { .. });
    let options = attach && json::parse(&bytes).is_ok_and(|value| value.is_object());
    if !bytes.is_empty() && !options {
        return Err(Refusal::malformed(
            "the body of a request for a raw stream is no JSON object; send what is for stdin after the 101",
        ));
    }
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    parts.headers.remove(header::TRANSFER_ENCODING);
    parts.headers.remove(header::CONTENT_TYPE);
    let uri = target.uri().map_err(Refusal::malformed)?;
    engine.forward(Request::from_parts(parts, full(Bytes::new())), uri, Some(raw)).await
}

pub(super) fn needs_upgrade() -> Refusal {
    Refusal::new(
        StatusCode::UPGRADE_REQUIRED,
        "this stream needs an `Upgrade` header, which the client did not send",
    )
}
