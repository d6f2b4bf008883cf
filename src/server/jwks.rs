//! Serves the public keys of the offline source on loopback, for verifiers of its tokens.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::process::{Tasks, accept_each};

/// The only path that is served.
pub const PATH: &str = "/jwks.json";

/// Serves `keys` (a JWK Set, RFC 7517) until the session stops.
pub async fn serve(listener: TcpListener, keys: String, tasks: Tasks) {
    let keys = Bytes::from(keys);
    let serve = |(stream, _)| {
        let (keys, stop) = (keys.clone(), tasks.stop().clone());
        tasks.spawn("keys", async move {
            let service = service_fn(move |request| {
                let answer = answer(&request, &keys);
                async move { Ok::<_, Infallible>(answer) }
            });
            let serving =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = stop.cancelled() => {}
                _ = serving => {}
            }
        });
    };
    accept_each(tasks.stop(), || listener.accept(), serve).await;
}

fn answer<B>(request: &Request<B>, keys: &Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.uri().path() == PATH {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        *response.body_mut() = Full::new(keys.clone());
    } else {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    response
}
