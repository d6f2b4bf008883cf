//! Builds by BuildKit on the wire: a client that serves HTTP/2 in `POST /session`, and an engine that calls it there.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::proxy_fixture::{ProxyFixture, Scratch};

const CONTEXT: &str = "/moby.filesync.v1.FileSync/DiffCopy";

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/buildkit").join(name)).unwrap()
}

/// The recorded context, with a key that opens nothing in place of the 1 704 `@` of `key.pem`.
fn with_key(recorded: &[u8]) -> Vec<u8> {
    let mut key =
        format!("AWS_SECRET_ACCESS_KEY={}{}\n", "Zq3xUtnFEMI7K7MDENGb", "PxRfiCYz8h2kP0aQ1Lm9").into_bytes();
    key.resize(1_704, b'#');
    // In the archive, a gRPC message ends inside the key.
    let mut key = key.into_iter();
    let mut bytes = recorded.to_vec();
    for run in bytes.chunk_by_mut(|a, b| a == b).filter(|run| run.len() >= 16 && run[0] == b'@') {
        run.fill_with(|| key.next().unwrap());
    }
    assert_eq!(key.len(), 0);
    bytes
}

/// Reads up to and including the empty line, byte by byte: HTTP/2 follows.
fn head(stream: &mut UnixStream) -> String {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn turned(stream: UnixStream) -> TokioIo<tokio::net::UnixStream> {
    stream.set_nonblocking(true).unwrap();
    TokioIo::new(tokio::net::UnixStream::from_std(stream).unwrap())
}

/// What the client answers to each call.
#[derive(Clone, Default)]
struct Client {
    answer: Vec<u8>,
    encoding: Option<&'static str>,
}

async fn answer(
    request: Request<Incoming>,
    client: Client,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    assert_eq!(request.headers()["te"], "trailers");
    let pieces = client.answer.chunks(16_384).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))));
    let mut end = HeaderMap::new();
    end.insert("grpc-status", HeaderValue::from(0));
    let frames: Vec<_> = pieces.chain([Ok(Frame::trailers(end))]).collect();
    let mut reply = Response::new(StreamBody::new(stream::iter(frames)));
    if let Some(encoding) = client.encoding {
        reply.headers_mut().insert("grpc-encoding", HeaderValue::from_static(encoding));
    }
    Ok(reply)
}

/// What the engine received: the head of `POST /session`, and the bytes and trailers of its call.
struct Got {
    head: String,
    bytes: Vec<u8>,
    end: HeaderMap,
}

impl Got {
    fn shared_key(&self) -> Vec<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .filter(|(name, _)| name.eq_ignore_ascii_case("x-docker-expose-session-sharedkey"))
            .map(|(_, key)| key)
            .collect()
    }

    fn message(&self) -> &str {
        self.end.get("grpc-message").map_or("", |message| message.to_str().unwrap())
    }
}

/// One build: its session, and one call that the engine makes in it.
fn build(proxy: &ProxyFixture, engine: &UnixListener, shared: &str, path: &str, client: Client) -> Got {
    build_at(&proxy.socket, engine, shared, path, client)
}

fn build_at(socket: &Path, engine: &UnixListener, shared: &str, path: &str, client: Client) -> Got {
    let mut client_end = UnixStream::connect(socket).unwrap();
    let line = "POST /v1.51/session HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n";
    client_end
        .write_all(format!("{line}X-Docker-Expose-Session-Uuid: u\r\n{shared}\r\n").as_bytes())
        .unwrap();
    let (mut engine_end, _) = engine.accept().unwrap();
    let asked = head(&mut engine_end);
    engine_end.write_all(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n").unwrap();
    assert!(head(&mut client_end).starts_with("HTTP/1.1 101"));
    let serving = async move {
        let service = service_fn(move |request| answer(request, client.clone()));
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(turned(client_end), service)
            .await;
    };
    let calling = async move {
        let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .handshake(turned(engine_end))
            .await
            .unwrap();
        let call = async {
            let request = Request::post(format!("http://localhost{path}"))
                .header("te", "trailers")
                .header("content-type", "application/grpc")
                .header("dir-name", "context")
                .body(Full::<Bytes>::default());
            let reply = sender.send_request(request.unwrap()).await.unwrap();
            let (parts, body) = reply.into_parts();
            let body = body.collect().await.unwrap();
            let end = body.trailers().cloned().unwrap_or(parts.headers);
            (body.to_bytes().to_vec(), end)
        };
        tokio::select! {
            got = call => got,
            ended = connection => panic!("the session ended: {ended:?}"),
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (bytes, end) = runtime.block_on(async {
        tokio::select! {
            got = calling => got,
            () = serving => panic!("the client's side ended"),
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("no end of the call"),
        }
    });
    Got { head: asked, bytes, end }
}

fn fixture() -> (Scratch, UnixListener, ProxyFixture) {
    let scratch = Scratch::new();
    let socket = scratch.0.join("engine.sock");
    let engine = UnixListener::bind(&socket).unwrap();
    let proxy = ProxyFixture::at(&scratch.0, &socket);
    (scratch, engine, proxy)
}

#[test]
fn a_recorded_context_passes_and_one_with_a_key_does_not() {
    let (_scratch, engine, proxy) = fixture();
    let send =
        |answer: Vec<u8>, path: &str| build(&proxy, &engine, "", path, Client { answer, encoding: None });
    for (path, name) in
        [(CONTEXT, "context.bin"), (CONTEXT, "dockerfile.bin"), ("/moby.upload.v1.Upload/Pull", "upload.bin")]
    {
        let got = send(golden(name), path);
        assert_eq!(got.end["grpc-status"], "0", "{name}: {}", got.message());
        assert_eq!(got.bytes.len(), golden(name).len(), "{name}");
    }
    assert!(!proxy.said().contains("build context"), "{}", proxy.said());
    for (path, name) in [(CONTEXT, "context.bin"), ("/moby.upload.v1.Upload/Pull", "upload.bin")] {
        let got = send(with_key(&golden(name)), path);
        assert_eq!(got.end["grpc-status"], "7", "{name}");
        for text in [got.message(), &proxy.said()] {
            assert!(text.contains("an AWS secret access key at key.pem; leave it out"), "{text}");
            assert!(!text.contains("Zq3xUtnF"), "{text}");
        }
        assert!(
            !got.bytes.windows(8).any(|part| part == b"Zq3xUtnF"),
            "{name}: a part of the key reached the engine"
        );
    }
    // A secret is for one instruction only and does not stay in the image.
    let secret = send(with_key(&golden("context.bin")), "/moby.buildkit.secrets.v1.Secrets/GetSecret");
    assert_eq!(secret.end["grpc-status"], "0");
    assert_eq!(secret.bytes.len(), golden("context.bin").len());
}

/// The engine keeps files under this key and does not ask for them again.
#[test]
fn the_build_key_changes_after_a_refusal() {
    let (_scratch, engine, proxy) = fixture();
    let shared = |header: &str, answer: Vec<u8>| {
        let got = build(&proxy, &engine, header, CONTEXT, Client { answer, encoding: None });
        let [key] = got.shared_key()[..] else { panic!("{:?}", got.shared_key()) };
        key.to_string()
    };
    let header = "X-Docker-Expose-Session-Sharedkey: ctx:1\r\n";
    let first = shared(header, golden("context.bin"));
    assert!(first.starts_with("ctx:1") && first.contains("0123abcd"), "{first}");
    assert_eq!(shared(header, golden("context.bin")), first, "a second build sends what has changed");
    let other = shared("X-Docker-Expose-Session-Sharedkey: ctx:2\r\n", golden("context.bin"));
    assert!(other.starts_with("ctx:2") && other[5..] == first[5..], "{other}");
    let none = shared("", golden("context.bin"));
    assert!(none.contains("0123abcd"), "{none}");
    let twice = shared(&format!("{header}{header}"), with_key(&golden("context.bin")));
    assert_eq!(twice, first);
    let after = shared(header, golden("context.bin"));
    assert!(after != first && after.starts_with("ctx:1") && after.contains("0123abcd"), "{after}");
}

/// Otherwise the engine would use the part of the refused context that it has, as if it had been judged.
#[test]
fn a_refusal_at_one_socket_changes_the_key_at_the_others() {
    let (_scratch, engine, proxy) = fixture();
    let another = proxy.serve_also();
    let shared = |socket: &Path, answer: Vec<u8>| {
        let got = build_at(socket, &engine, "", CONTEXT, Client { answer, encoding: None });
        let [key] = got.shared_key()[..] else { panic!("{:?}", got.shared_key()) };
        key.to_string()
    };
    let before = shared(&another, golden("context.bin"));
    assert_eq!(shared(&proxy.socket, with_key(&golden("context.bin"))), before);
    assert_ne!(shared(&another, golden("context.bin")), before);
}

#[test]
fn a_stream_that_cannot_be_parsed_ends_the_build() {
    let (_scratch, engine, proxy) = fixture();
    for (path, encoding, answer, why) in [
        ("/moby.new.v2.Files/Copy", None, golden("context.bin"), "a call of an unknown kind"),
        (CONTEXT, Some("gzip"), golden("context.bin"), "a compressed stream"),
        (CONTEXT, None, [&[1], &golden("context.bin")[1..]].concat(), "a compressed message"),
        (CONTEXT, None, vec![0, 0, 0, 0, 1, 0xff], "a message that is not protobuf"),
    ] {
        let got = build(&proxy, &engine, "", path, Client { answer, encoding });
        assert_eq!(got.end["grpc-status"], "7", "{why}");
        assert!(got.message().contains(why), "{}", got.message());
        // Only fsutil's packet with the reason.
        assert!(
            got.bytes.is_empty() || got.bytes[5..].starts_with(&[0x08, 4, 0x22]),
            "{why}: {:?}",
            got.bytes
        );
        assert!(proxy.said().contains(why), "{}", proxy.said());
    }
    let plain = Client { answer: golden("context.bin"), encoding: Some("identity") };
    assert_eq!(build(&proxy, &engine, "", CONTEXT, plain).end["grpc-status"], "0");
}
