//! The server to compare with: hyper, one thread, and the bytes of a real answer with nothing behind them.

use std::convert::Infallible;
use std::io::Read as _;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::header::{
    CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, SERVER, X_FRAME_OPTIONS, X_XSS_PROTECTION,
};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::Outcome;

/// `bare ADDR`: serves what stdin holds, to whatever is asked, and prints where.
pub(crate) fn run(arguments: &[String]) -> Outcome<()> {
    let at = arguments.first().ok_or("bare: where?")?.clone();
    let mut body = Vec::new();
    std::io::stdin().read_to_end(&mut body)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { serve(TcpListener::bind(at).await?, body.into()).await })
}

async fn serve(listener: TcpListener, body: Bytes) -> Outcome<()> {
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let body = body.clone();
        tokio::spawn(async move {
            let service = service_fn(|_| std::future::ready(Ok::<_, Infallible>(answer(&body))));
            let served = hyper::server::conn::http1::Builder::new();
            let _ = served.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// The headers of our own token answers.
fn answer(body: &Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.clone()));
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("metadata-flavor"), HeaderValue::from_static("Google"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(SERVER, HeaderValue::from_static("Metadata Server for VM"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(X_XSS_PROTECTION, HeaderValue::from_static("0"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("SAMEORIGIN"));
    response
}
