//! Forwards requests to the engine: one connection per request, no time-out.
//!
//! A connection per request costs tens of microseconds on a unix socket. In return, a client that disconnects
//! also closes its stream at the engine.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, copy};
use tokio::net::UnixStream;
use tokio::net::unix::ReadHalf;
use tokio::sync::mpsc;

use crate::docker::upstream::{EngineConnector, EngineStream};
use crate::process::Tasks;

/// Largest body held in memory: kfp puts a component's source and inputs into its create request.
pub(super) const BODY_BOUND: usize = 32 << 20;

/// A body that a peer sends, or one made here, whole or streamed.
pub(super) type Body = Either<Incoming, Either<Full<Bytes>, UnsyncBoxBody<Bytes, hyper::Error>>>;
pub(super) type Reply = Response<Body>;

/// The reason why a request is answered here instead of by the engine. `why` is a lower-case fragment for the
/// client.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) why: String,
    /// The guard found a key.
    pub(super) by_guard: bool,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into(), by_guard: false }
    }

    pub(super) fn malformed(why: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, why)
    }

    pub(super) fn forbidden(why: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, why)
    }

    pub(super) fn reply(&self) -> Reply {
        let body = serde_json::json!({ "message": format!("kfp-creds: {}", self.why) });
        json_reply(self.status, body.to_string())
    }
}

pub(super) fn json_reply(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(full(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

pub(super) fn full(bytes: Bytes) -> Body {
    Either::Right(Either::Left(Full::new(bytes)))
}

/// Reads the whole body, up to [`BODY_BOUND`].
pub(super) async fn collect(body: Incoming) -> Result<Bytes, Refusal> {
    let too_large =
        || Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {BODY_BOUND} bytes"));
    // If the declared length is too large, nothing is read.
    if hyper::body::Body::size_hint(&body).lower() > BODY_BOUND as u64 {
        return Err(too_large());
    }
    match Limited::new(body, BODY_BOUND).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(_) => Err(Refusal::malformed("the body ended early")),
    }
}

/// The client's end of a request that may become a raw stream.
#[derive(Debug)]
pub(super) enum RawClient {
    /// The client asked for an upgrade to this protocol; hyper releases its connection after the 101.
    Upgrade(OnUpgrade, HeaderValue),
    /// The client sent no `Upgrade` and expects `200` followed by the stream, as the engine answers such
    /// clients (dockerode, curl).
    Bare(Handover),
}

/// Passes an engine's raw stream from a handler to the task that owns the client's connection. Needed because
/// hyper's server releases a connection only after a 101.
#[derive(Clone, Debug)]
pub(super) struct Handover(pub(super) mpsc::Sender<RawStream>);

/// The head of the client's answer, and the engine's end of the stream.
#[derive(Debug)]
pub(super) struct RawStream {
    pub(super) head: Bytes,
    pub(super) engine: OnUpgrade,
}

/// Connects to the engine.
#[derive(Clone, Debug)]
pub(super) struct EngineClient {
    upstream: EngineConnector,
    tasks: Tasks,
}

impl EngineClient {
    pub(super) fn new(upstream: EngineConnector, tasks: Tasks) -> Self {
        Self { upstream, tasks }
    }

    /// One request and reply. Dropping the future or the reply's body closes the connection.
    pub(super) async fn exchange<B>(&self, request: Request<B>) -> Result<Response<Incoming>, Refusal>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = self.upstream.connect().await.map_err(|error| self.no_answer(error.to_string()))?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .preserve_header_case(true)
            .max_headers(MAX_HEADERS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.no_answer(error.to_string()))?;
        self.tasks.spawn("engine connection", async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to the engine broke");
            }
        });
        sender.send_request(request).await.map_err(|error| self.no_answer(error.to_string()))
    }

    fn no_answer(&self, error: String) -> Refusal {
        let at = self.upstream.endpoint();
        Refusal::new(StatusCode::BAD_GATEWAY, format!("no answer from the engine at {at}: {error}"))
    }

    /// Sends a request of the proxy itself.
    pub(super) async fn ask(&self, method: Method, path: &str) -> Result<Response<Incoming>, Refusal> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "docker")
            .header(header::CONTENT_LENGTH, 0)
            .body(full(Bytes::new()));
        self.exchange(request.map_err(|_| Refusal::malformed("a name that no path can hold"))?).await
    }

    /// Forwards the client's request in canonical form and returns the reply, streamed. `raw` is the client's
    /// end if the request may become a raw stream; the proxy then always asks the engine for an upgrade. The
    /// connection becomes a raw stream only after the engine's 101: after any other answer it stays HTTP, and
    /// the requests that follow are judged.
    pub(super) async fn forward<B>(
        &self,
        request: Request<B>,
        uri: Uri,
        raw: Option<RawClient>,
    ) -> Result<Reply, Refusal>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let protocol = raw.as_ref().map(|raw| match raw {
            RawClient::Upgrade(_, protocol) => protocol.clone(),
            RawClient::Bare(_) => HeaderValue::from_static("tcp"),
        });
        let (reply, engine) = self.switch(request, uri, protocol).await?;
        match (engine, raw) {
            (Some(engine), Some(RawClient::Upgrade(client, _))) => self.splice_upgraded(client, engine),
            (Some(engine), Some(RawClient::Bare(client))) => {
                return Err(hand_over(&client, reply.headers(), engine).await);
            }
            _ => {}
        }
        Ok(reply)
    }

    /// Forwards a request unchanged, to its target in canonical form.
    pub(super) async fn pass(
        &self,
        parts: Parts,
        uri: Result<Uri, &'static str>,
        body: Body,
    ) -> Result<Reply, Refusal> {
        self.forward(Request::from_parts(parts, body), uri.map_err(Refusal::malformed)?, None).await
    }

    /// Like [`Self::forward`], but returns the engine's end to the caller if the engine switches to
    /// `protocol`.
    pub(super) async fn switch<B>(
        &self,
        mut request: Request<B>,
        uri: Uri,
        protocol: Option<HeaderValue>,
    ) -> Result<(Reply, Option<OnUpgrade>), Refusal>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_11;
        let head = request.method() == Method::HEAD;
        strip(request.headers_mut(), false);
        if !request.headers().contains_key(header::HOST) {
            request.headers_mut().insert(header::HOST, HeaderValue::from_static("docker"));
        }
        let asked = protocol.is_some();
        if let Some(protocol) = protocol {
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            request.headers_mut().insert(header::UPGRADE, protocol);
        }
        let mut reply = self.exchange(request).await?;
        if reply.status() != StatusCode::SWITCHING_PROTOCOLS {
            strip(reply.headers_mut(), head);
            return Ok((reply.map(Either::Left), None));
        }
        if !asked {
            return Err(Refusal::new(
                StatusCode::BAD_GATEWAY,
                "the engine switched protocols without being asked",
            ));
        }
        let engine = hyper::upgrade::on(&mut reply);
        // Connection and Upgrade belong to the 101, so the headers are not stripped.
        Ok((reply.map(|_| full(Bytes::new())), Some(engine)))
    }

    fn splice_upgraded(&self, client: OnUpgrade, engine: OnUpgrade) {
        let stop = self.tasks.stop().clone();
        self.tasks.spawn("raw stream", async move {
            let both = async {
                let Ok(client) = client.await else { return };
                let Ok(client) = client.downcast::<TokioIo<UnixStream>>() else { return };
                splice(client.io.into_inner(), &client.read_buf, engine).await;
            };
            tokio::select! {
                () = both => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

/// A connection after its upgrade: its stream, and the bytes already read from it.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) stream: UnixStream,
    pub(super) early: Bytes,
}

/// The connection after its upgrade; `None` if it is gone.
pub(super) async fn opened(upgraded: OnUpgrade) -> Option<Opened> {
    let parts = upgraded.await.ok()?.downcast::<TokioIo<UnixStream>>().ok()?;
    Some(Opened { stream: parts.io.into_inner(), early: parts.read_buf })
}

/// Like [`opened`], for the engine's end. A stream other than a unix socket is copied through a socket pair,
/// because the result may be used on another thread.
pub(super) async fn opened_engine(upgraded: OnUpgrade, tasks: &Tasks) -> Option<Opened> {
    let parts = upgraded.await.ok()?.downcast::<TokioIo<EngineStream>>().ok()?;
    let stream = match parts.io.into_inner() {
        EngineStream::Unix(stream) => stream,
        mut other => {
            let (near, mut far) = UnixStream::pair().ok()?;
            tasks.spawn("engine tunnel", async move {
                let _ = tokio::io::copy_bidirectional(&mut far, &mut other).await;
            });
            near
        }
    };
    Some(Opened { stream, early: parts.read_buf })
}

/// Passes the engine's stream to the task that owns the client's connection. Returns only if that task has
/// ended with the client; nobody reads the refusal then.
async fn hand_over(client: &Handover, headers: &HeaderMap, engine: OnUpgrade) -> Refusal {
    // To clients without an upgrade, engines send the type raw-stream, whatever the format of the frames.
    let mut head =
        b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: close\r\n"
            .to_vec();
    let hop_headers = [header::CONNECTION, header::UPGRADE, header::CONTENT_TYPE, header::TRANSFER_ENCODING];
    for (name, value) in headers {
        if !hop_headers.contains(name) && name != header::CONTENT_LENGTH {
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
    }
    head.extend_from_slice(b"\r\n");
    if client.0.send(RawStream { head: head.into(), engine }).await.is_ok() {
        // The owner of the connection drops this future together with hyper's connection.
        std::future::pending::<()>().await;
    }
    Refusal::new(StatusCode::BAD_GATEWAY, "the client left before its stream began")
}

/// Most headers in one request. [`HEAD_BOUND`] bounds the size of a head.
pub(super) const MAX_HEADERS: usize = 256;
/// `X-Registry-Auth` and `X-Registry-Config` can be many kilobytes; the engine's own bound is 1 MiB.
pub(super) const HEAD_BOUND: usize = 1 << 20;

/// Removes hop-by-hop headers. hyper writes lengths from the body it is given; only the reply to a HEAD has a
/// length without a body.
fn strip(headers: &mut HeaderMap, head: bool) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "http2-settings"] {
        headers.remove(name);
    }
    for name in [header::CONNECTION, header::TE, header::TRAILER, header::UPGRADE, header::EXPECT] {
        headers.remove(name);
    }
    if headers.remove(header::TRANSFER_ENCODING).is_some() && !head {
        headers.remove(header::CONTENT_LENGTH);
    }
}

/// Copies both ways until both directions are done. When one of them ends (a client closes stdin), the proxy
/// passes the end on and the other continues; when a peer has closed both, the copy ends. `read` are bytes
/// that arrived from the client in one read with the request's head; they belong to the stream.
pub(super) async fn splice(mut from_client: UnixStream, read: &[u8], engine: OnUpgrade) {
    let Ok(engine) = engine.await else { return };
    let Ok(engine) = engine.downcast::<TokioIo<EngineStream>>() else { return };
    let mut from_engine = engine.io.into_inner();
    let early = async {
        from_engine.write_all(read).await?;
        from_client.write_all(&engine.read_buf).await
    };
    if early.await.is_err() {
        return;
    }
    let (client_in, client_out) = from_client.split();
    let mut unix = match from_engine {
        EngineStream::Unix(unix) => unix,
        other => {
            let (engine_in, engine_out) = tokio::io::split(other);
            tokio::select! {
                () = one_way(client_in, engine_out) => {}
                // A stream over TLS or ssh ends in both directions at once.
                () = copy_to_end(engine_in, client_out) => {}
            }
            return;
        }
    };
    let (engine_in, engine_out) = unix.split();
    tokio::select! {
        () = one_way(client_in, engine_out) => {}
        () = one_way(engine_in, client_out) => {}
    }
}

async fn copy_to_end(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let _ = copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

/// Copies to the end of `from`, passes the end on, and returns when the peer of `from` has closed both
/// directions. A failed write is no reason to return: the other side may still have output to send, and the
/// copy of that direction ends both.
pub(super) async fn one_way(mut from: ReadHalf<'_>, mut to: impl AsyncWrite + Unpin) {
    let _ = copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
    // A half-closed peer still reads. No event reports the second close without also firing whenever the
    // socket is writable, so the state is polled.
    while let Ok(ready) = from.ready(Interest::READABLE | Interest::WRITABLE).await {
        if ready.is_write_closed() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
