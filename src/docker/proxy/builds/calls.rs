//! Relays calls through a tunnel: an HTTP/2 server for the side that calls, an HTTP/2 client for the side
//! that answers.

use std::convert::Infallible;
use std::error::Error;
use std::io::{self, Cursor};

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::UnixStream;

use super::answer::{Decide, GuardReport, JudgedBody, Reading, decide, refused, status};
use super::context::Context;
use super::control;
use super::message::Unread;
use super::upload::Upload;
use crate::config::proxies::ClientProxies;
use crate::docker::proxy::engine_client::Opened;
use crate::guard::GuardRules;
use crate::process::Together;

/// Flow-control windows of one answer and of all together; a context comes in one stream.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// A file's packet is 32 KiB and some bytes.
const FRAME: u32 = 64 << 10;
/// gRPC's own bound; the patterns of a `.dockerignore` are sent as headers.
const HEADERS: u32 = 16 << 20;

pub(super) type Body = Either<Incoming, Either<Full<Bytes>, JudgedBody>>;

/// The kind of a tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::docker::proxy) enum BuildTunnel {
    /// The engine calls the client.
    Session,
    /// The client calls the engine.
    Control,
}

/// How calls are judged.
#[derive(Clone)]
pub(super) struct Judge {
    pub(super) tunnel: BuildTunnel,
    pub(super) rules: GuardRules,
    pub(super) proxies: ClientProxies,
    pub(super) decide: Decide,
}

/// A connection that is not yet registered with the runtime that will serve it.
#[derive(Debug)]
pub(super) struct End {
    stream: std::os::unix::net::UnixStream,
    early: Bytes,
}

impl End {
    pub(super) fn of(opened: Opened) -> io::Result<Self> {
        Ok(Self { stream: opened.stream.into_std()?, early: opened.early })
    }

    fn open(self) -> io::Result<TokioIo<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>> {
        let (reader, writer) = UnixStream::from_std(self.stream)?.into_split();
        // Bytes that arrived in one read with the head belong to the stream.
        Ok(TokioIo::new(tokio::io::join(Cursor::new(self.early).chain(reader), writer)))
    }
}

/// The reason reported when a tunnel ended although both its ends were open.
pub(super) const BROKEN: &str = "a task panicked; please report this";

/// Relays calls from `caller` to `answerer` until one of them closes or a call breaks. Then both are dropped,
/// so that the build ends with an error.
pub(super) async fn carry(caller: End, answerer: End, judge: Judge) -> Result<(), Box<dyn Error>> {
    let tasks = Together::default();
    let (client, connection) = hyper::client::conn::http2::Builder::new(tasks.clone())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(HEADERS)
        // Every cancelled call resets a stream, and a long connection can have any number of cancelled calls.
        .max_local_error_reset_streams(None)
        .max_pending_accept_reset_streams(usize::MAX)
        .handshake(answerer.open()?)
        .await?;
    let service = service_fn(move |request| call(request, client.clone(), judge.clone()));
    let serving = hyper::server::conn::http2::Builder::new(tasks.clone())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADERS)
        .max_concurrent_streams(None)
        .max_local_error_reset_streams(None)
        .max_pending_accept_reset_streams(usize::MAX)
        .auto_date_header(false)
        .serve_connection(caller.open()?, service);
    tokio::select! {
        ended = connection => Ok(ended?),
        ended = serving => Ok(ended?),
        () = tasks.broken() => Err(BROKEN.into()),
    }
}

async fn call(
    request: Request<Incoming>,
    mut client: SendRequest<Either<Incoming, Full<Bytes>>>,
    judge: Judge,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_string();
    if judge.tunnel == BuildTunnel::Control {
        return Ok(match permitted_request(request, &path, &judge).await {
            Ok(request) => streamed_reply(client.send_request(request).await),
            Err(end) => empty_reply(end),
        });
    }
    let directory = request.headers().get("dir-name").and_then(|name| name.to_str().ok()).map(str::to_string);
    let reading = match method(&path) {
        Some(Method::Passes) => None,
        Some(Method::Context) => Some((
            context_name(directory.as_deref()),
            Reading::Context(Box::new(Context::new(judge.rules.clone()))),
        )),
        Some(Method::Upload) => {
            Some((context_name(None), Reading::Upload(Box::new(Upload::new(judge.rules.clone())))))
        }
        None => {
            match (judge.decide)(&format!("build: {path}"), GuardReport::Unread("a call of an unknown kind"))
            {
                Ok(()) => None,
                Err(why) => return Ok(empty_reply(refused(&why))),
            }
        }
    };
    let reply = client.send_request(request.map(Either::Left)).await;
    let (who, reading, reply) = match (reading, reply) {
        (Some((who, reading)), Ok(reply)) => (who, reading, reply),
        (_, reply) => return Ok(streamed_reply(reply)),
    };
    let encoding = reply.headers().get("grpc-encoding").map(HeaderValue::as_bytes);
    if !matches!(encoding, None | Some(b"identity"))
        && let Err(why) = (judge.decide)(&who, GuardReport::Unread("a compressed stream"))
    {
        return Ok(empty_reply(refused(&why)));
    }
    Ok(reply.map(|body| Either::Right(Either::Right(JudgedBody::new(body, who, reading, judge.decide)))))
}

/// The answer, streamed.
fn streamed_reply(reply: hyper::Result<Response<Incoming>>) -> Response<Body> {
    match reply {
        Ok(reply) => reply.map(Either::Left),
        // UNAVAILABLE, as gRPC reports a connection that ended.
        Err(_) => empty_reply(status(14, "the other side of the build has gone")),
    }
}

/// The client's request if it is permitted, otherwise the headers of the answer.
async fn permitted_request(
    request: Request<Incoming>,
    path: &str,
    judge: &Judge,
) -> Result<Request<Either<Incoming, Full<Bytes>>>, HeaderMap> {
    let refusal = |why: String| refused(&why);
    let unread = |why| (judge.decide)("build", GuardReport::Unread(why)).map_err(refusal);
    if path == control::SESSION {
        unread("a session inside the control tunnel")?;
    }
    let Some(field) = control::options(path) else { return Ok(request.map(Either::Left)) };
    let (parts, body) = request.into_parts();
    let Ok(body) = Limited::new(body, control::LONGEST).collect().await else {
        return Err(status(14, "the request broke off, or is longer than 16 MiB"));
    };
    let bytes = body.to_bytes();
    match control::judge(bytes.clone(), field, &judge.rules) {
        Ok(told) => decide(&judge.decide, "build", told).map_err(refusal)?,
        Err(Unread(why)) => unread(why)?,
    }
    let bytes = control::with_proxies(bytes, path, &judge.proxies);
    Ok(Request::from_parts(parts, Either::Right(Full::new(bytes))))
}

/// What the answer to an engine's request can add to an image: a context, an upload, or nothing.
enum Method {
    Context,
    Upload,
    Passes,
}

/// All calls that an engine makes to a client, per BuildKit's `session` packages. Those that pass add nothing
/// to an image: an export goes from the engine to the client, a secret or a socket is available to one
/// instruction only, and a registry login goes to the registry.
fn method(path: &str) -> Option<Method> {
    match path {
        "/moby.filesync.v1.FileSync/DiffCopy" | "/moby.filesync.v1.FileSync/TarStream" => {
            Some(Method::Context)
        }
        "/moby.upload.v1.Upload/Pull" => Some(Method::Upload),
        "/grpc.health.v1.Health/Check"
        | "/grpc.health.v1.Health/Watch"
        | "/moby.buildkit.secrets.v1.Secrets/GetSecret"
        | "/moby.exporter.v1.Exporter/FinalizeExport"
        | "/moby.exporter.v1.Exporter/FindExporters"
        | "/moby.filesync.v1.Auth/Credentials"
        | "/moby.filesync.v1.Auth/FetchToken"
        | "/moby.filesync.v1.Auth/GetTokenAuthority"
        | "/moby.filesync.v1.Auth/VerifyTokenAuthority"
        | "/moby.filesync.v1.FileSend/DiffCopy"
        | "/moby.sshforward.v1.SSH/CheckAgent"
        | "/moby.sshforward.v1.SSH/ForwardAgent" => Some(Method::Passes),
        _ => None,
    }
}

/// `context` and `dockerfile` are the client's names of the two directories that every build has.
fn context_name(directory: Option<&str>) -> String {
    match directory {
        None | Some("context") => "build context".into(),
        Some("dockerfile") => "build context (the Dockerfile's directory)".into(),
        Some(name) => format!("build context {name}"),
    }
}

/// A reply without a message.
fn empty_reply(headers: HeaderMap) -> Response<Body> {
    let mut reply = Response::new(Either::Right(Either::Left(Full::default())));
    *reply.headers_mut() = headers;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    reply
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use hyper_util::rt::TokioExecutor;

    use super::*;

    const CONTEXT: &[u8] =
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/buildkit/context.bin"));

    fn ends() -> (End, TokioIo<UnixStream>) {
        let (own, far) = UnixStream::pair().unwrap();
        let opened = Opened { stream: own, early: Bytes::new() };
        (End::of(opened).unwrap(), TokioIo::new(far))
    }

    /// The engine asks for a context, and the code that judges the context panics.
    #[tokio::test]
    async fn a_panic_ends_the_tunnel_with_an_error() {
        let ((caller, engine), (answerer, client)) = (ends(), ends());
        let decide: Decide = Arc::new(|_, _| panic!("on purpose"));
        let (rules, proxies) = (GuardRules::default(), ClientProxies::default());
        let judge = Judge { tunnel: BuildTunnel::Session, rules, proxies, decide };
        let answer = service_fn(|_: Request<Incoming>| async {
            // A compressed message, which needs a decision.
            let bytes = [CONTEXT, &[1, 0, 0, 0, 0]].concat();
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(bytes))))
        });
        let serve = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let asked = async {
            let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            let (mut call, connection) = builder.handshake::<_, Full<Bytes>>(engine).await.unwrap();
            let request = Request::builder()
                .uri("http://engine/moby.filesync.v1.FileSync/DiffCopy")
                .body(Full::default())
                .unwrap();
            let got = async {
                let whole = call.send_request(request).await?.into_body().collect().await?.to_bytes();
                Ok::<_, hyper::Error>(whole)
            };
            // The call ends by itself, as the connection does.
            let (got, _) = tokio::join!(got, connection);
            got
        };
        let all = async {
            tokio::join!(carry(caller, answerer, judge), serve.serve_connection(client, answer), asked)
        };
        let (carried, _, got) = tokio::time::timeout(Duration::from_secs(10), all).await.expect("it hangs");
        assert_eq!(carried.unwrap_err().to_string(), BROKEN);
        assert!(got.is_err(), "{got:?}");
    }
}
