//! The relay: the part that runs inside the container network. It forwards requests and answers, and adds the
//! caller's address to requests; it holds no secret and decides nothing.
//!
//! Its stdin and stdout are the tunnel, which carries HTTP/2 with the relay as the client. The caller's
//! address is taken from the relay's own socket. The relay limits what one container can do to the others:
//! head size, slow clients, and the number of connections and open requests per source address.

mod cells;
mod links;
pub mod program;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, unix::pipe};

use crate::cloud::Cloud;
use crate::linux;
use crate::process::{BACKLOG, Tasks, accept_each};
use crate::unparsable::Flavored;

/// The caller's address, set by the relay from its socket. A header of this name from a caller is dropped.
pub const CALLER: HeaderName = HeaderName::from_static("kfp-creds-caller");
/// The caller's `Host`, sent separately because HTTP/2 replaces it with its authority.
pub const HOST: HeaderName = HeaderName::from_static("kfp-creds-host");
/// On a request of the relay itself: the address at which it now listens.
pub const LISTENS: HeaderName = HeaderName::from_static("kfp-creds-listens");
/// In a reply: the relay closes the caller's connection after it.
pub const CLOSE: HeaderName = HeaderName::from_static("kfp-creds-close");

/// Both ends ping each other at this interval; a tunnel that does not answer in time is dead.
pub const PING_EVERY: Duration = Duration::from_secs(5);
/// How long after an unanswered ping the tunnel counts as dead.
pub const PING_WITHIN: Duration = Duration::from_secs(10);

/// Largest head accepted. Real clients send well under 2 KiB.
const HEAD_LIMIT: usize = 16 * 1024;
/// Longest time from the first byte of a connection, or the end of the last reply, to a complete head. Pooled
/// connections stay open this long as well: clients expect 60 s.
const HEAD_WITHIN: Duration = Duration::from_secs(75);
/// Most connections per source address. A container that uses more is broken or hostile.
const CONNECTIONS: usize = 128;
/// How long the relay waits for the host's answer to a request, unless it has `wait_for_change`.
const REPLY_WITHIN: Duration = Duration::from_secs(30);

type TunnelClient = SendRequest<Empty<Bytes>>;

/// Runs until stdin ends. `at`, and `more` if there is one, are the addresses to serve on, port 80; the relay
/// answers at no other address that it may have. The first request over the tunnel is the relay's own, through
/// its own listener, which proves that the whole path works. With `cells` the relay also serves the networks
/// that it is connected to later, one container on each.
pub async fn run(at: Ipv4Addr, more: Option<Ipv4Addr>, cells: bool) -> io::Result<()> {
    let own = if cells {
        cells::own_acceptor(at)?
    } else {
        Acceptor { listener: listen(at, None)?, network: None }
    };
    let second = more.map(|more| listen(more, None)).transpose()?;
    let second = second.map(|listener| Acceptor { listener, network: None });
    let tasks = Tasks::new();
    let stdin = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
    let stdout = pipe::Sender::from_owned_fd(io::stdout().as_fd().try_clone_to_owned()?)?;
    let tunnel = TokioIo::new(tokio::io::join(stdin, stdout));
    let (client, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WITHIN)
        .keep_alive_while_idle(true)
        // Every caller that disconnects early resets a stream. Counted over the whole life of the tunnel,
        // these resets would end it: the limits protect against a hostile peer, and the peer here is our own
        // host.
        .max_local_error_reset_streams(None)
        .max_pending_accept_reset_streams(usize::MAX)
        .handshake(tunnel)
        .await
        .map_err(io::Error::other)?;
    let serving = async {
        if cells {
            return cells::serve_each(own, at, client, tasks.clone()).await;
        }
        let callers = Callers::default();
        if let Some(second) = second {
            tasks.spawn("second listener", serve(second, client.clone(), callers.clone(), tasks.clone()));
        }
        serve(own, client, callers, tasks.clone()).await;
        Ok(())
    };
    tasks.spawn("probe", async move {
        if let Err(error) = probe(at).await {
            tracing::warn!(%error, "the probe through our own listener failed");
        }
    });
    tokio::select! {
        ended = serving => ended,
        // The session ends when stdin ends or fails.
        ended = connection => ended.map_err(io::Error::other),
    }
}

fn listen(at: Ipv4Addr, interface: Option<&str>) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    if let Some(name) = interface {
        linux::hear_only(&socket, name)?;
    }
    socket.bind((at, 80).into())?;
    socket.listen(BACKLOG)
}

/// A listener, and the network whose containers it serves; `None` serves every caller, if there is only one
/// network.
#[derive(Debug)]
struct Acceptor {
    listener: TcpListener,
    network: Option<links::Link>,
}

async fn serve(acceptor: Acceptor, client: TunnelClient, callers: Callers, tasks: Tasks) {
    let serve = |(stream, from): (TcpStream, SocketAddr)| {
        if !acceptor.serves(from.ip()) {
            return;
        }
        let Some(counted) = callers.admit(from.ip()) else {
            return; // dropping the stream resets it: the caller has too many connections open
        };
        // A TTL of one hop keeps an answer on its network; TCP_NODELAY sends small answers at once.
        let _ = (stream.set_ttl(1), stream.set_nodelay(true));
        let client = client.clone();
        tasks.spawn("connection", async move {
            let _counted = counted;
            serve_connection(stream, from, client).await;
        });
    };
    accept_each(tasks.stop(), || acceptor.listener.accept(), serve).await;
}

async fn serve_connection(stream: TcpStream, from: SocketAddr, client: TunnelClient) {
    let service = service_fn(|request| forward(request, from.ip(), client.clone()));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_LIMIT)
        .serve_connection(TokioIo::new(Flavored::new(stream)), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a caller's connection ended");
    }
}

/// Forwards one request to the host and returns its buffered answer. On an error the caller's connection is
/// closed without a byte sent; that is also what a request in flight sees of a cut-off.
async fn forward(
    request: Request<Incoming>,
    from: IpAddr,
    mut client: TunnelClient,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let waits = request.uri().query().is_some_and(|query| query.contains("wait_for_change"));
    let form = ErrorForm::of(request.uri().path());
    let Some(request) = translate(request, from) else {
        return Ok(unavailable(form, "the request target is not one this server has"));
    };
    let exchange = async {
        client.ready().await?;
        let (head, body) = client.send_request(request).await?.into_parts();
        Ok::<_, hyper::Error>((head, body.collect().await?.to_bytes()))
    };
    let answer = if waits { Ok(exchange.await) } else { tokio::time::timeout(REPLY_WITHIN, exchange).await };
    let Ok(answer) = answer else { return Ok(unavailable(form, "the host did not answer in time")) };
    let (mut head, body) = answer?;
    head.version = hyper::Version::HTTP_11;
    if head.headers.remove(CLOSE).is_some() {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(Response::from_parts(head, Full::new(body)))
}

/// The request as sent through the tunnel: same method, target and headers, without hop-by-hop headers, plus
/// the caller. Bodies are not forwarded, because no request of this protocol has one.
fn translate(request: Request<Incoming>, from: IpAddr) -> Option<Request<Empty<Bytes>>> {
    let (head, _) = request.into_parts();
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    let uri = Uri::builder().scheme("http").authority("host").path_and_query(target).build().ok()?;
    let mut headers = head.headers;
    // A host in the target overrides the Host header (RFC 9112, 3.2.2), so the server checks that host.
    let named = head.uri.authority().and_then(|named| HeaderValue::from_str(named.as_str()).ok());
    let host = headers.remove(header::HOST);
    let host = named.or(host);
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::CONTENT_LENGTH,
        header::UPGRADE,
        header::TE,
        header::EXPECT,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        CALLER,
        HOST,
        LISTENS,
    ] {
        headers.remove(name);
    }
    headers.insert(CALLER, HeaderValue::from_str(&from.to_string()).ok()?);
    if let Some(host) = host {
        headers.insert(HOST, host);
    }
    let mut request = Request::new(Empty::new());
    *request.method_mut() = head.method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Some(request)
}

/// The form of an error, by the path of the request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ErrorForm {
    /// The format of Google's server.
    Google,
    Text,
    /// The format of AWS's container credentials.
    Container,
    /// The formats of both Azure services in one: clients of either ignore the members of the other.
    Azure,
}

impl ErrorForm {
    fn of(path: &str) -> Self {
        match (Cloud::of_path(path), Cloud::first_segment(path)) {
            (Cloud::Google, _) => Self::Google,
            (Cloud::Aws, "v2") => Self::Container,
            (Cloud::Aws, _) => Self::Text,
            (Cloud::Azure, _) => Self::Azure,
        }
    }

    /// `why` has no character that JSON would escape.
    fn body(self, why: &'static str) -> (&'static str, Bytes) {
        match self {
            Self::Google | Self::Text => ("text/plain", Bytes::from_static(why.as_bytes())),
            Self::Container => {
                ("application/json", format!(r#"{{"Code":"ServiceUnavailable","Message":"{why}"}}"#).into())
            }
            // Python clients fail on a body that is not JSON before they look at the status.
            Self::Azure => {
                let error = r#""error":"temporarily_unavailable""#;
                let body =
                    format!(r#"{{"statusCode":503,"message":"{why}",{error},"error_description":"{why}"}}"#);
                ("application/json", body.into())
            }
        }
    }
}

/// 503 is the one status that every retrying client retries. Only replies on Google's paths look like
/// Google's.
fn unavailable(form: ErrorForm, why: &'static str) -> Response<Full<Bytes>> {
    let (media, body) = form.body(why);
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = hyper::StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    if form == ErrorForm::Google {
        headers.insert("metadata-flavor", HeaderValue::from_static("Google"));
        headers.insert(header::SERVER, HeaderValue::from_static("Metadata Server for VM"));
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

/// Asks the host for `/` as a container does. The host sees the relay's own address as the caller, which
/// proves that the network, the listener and the tunnel work. The source address is bound explicitly: for a
/// connection to an address of its own, the kernel chooses the first address of that range, maybe the relay's
/// other one.
async fn probe(at: Ipv4Addr) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((at, 0).into())?;
    let stream = socket.connect((at, 80).into()).await?;
    ask_on(stream, at, "/").await.map(drop)
}

/// Sends one request from inside a container; returns the status. The body, which may be a token, is not
/// read.
pub async fn ask(at: SocketAddrV4, path: &str) -> io::Result<u16> {
    ask_on(TcpStream::connect(at).await?, *at.ip(), path).await
}

async fn ask_on(mut stream: TcpStream, host: Ipv4Addr, path: &str) -> io::Result<u16> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nMetadata-Flavor: Google\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut line = [0_u8; 12];
    stream.read_exact(&mut line).await?;
    let status = std::str::from_utf8(&line[9..]).ok().and_then(|digits| digits.parse().ok());
    status.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Open connections per source address.
#[derive(Clone, Debug, Default)]
struct Callers(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Callers {
    fn admit(&self, from: IpAddr) -> Option<CountedConnection> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(from).or_default();
        (*count < CONNECTIONS).then(|| {
            *count += 1;
            CountedConnection { callers: self.clone(), from }
        })
    }
}

/// One counted connection of a caller; uncounted when dropped.
#[derive(Debug)]
struct CountedConnection {
    callers: Callers,
    from: IpAddr,
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        let mut open = self.callers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_format_of_the_requested_service() {
        let of = |path: &str| {
            let reply = unavailable(ErrorForm::of(path), "the host did not answer in time");
            let of_google = reply.headers().contains_key("metadata-flavor");
            let (head, body) = reply.into_parts();
            assert_eq!(head.status, 503);
            let body = text_of(body);
            let json = serde_json::from_str::<serde_json::Value>(&body).ok();
            assert_eq!(head.headers["content-type"] == "application/json", json.is_some(), "{path}");
            (of_google, json)
        };
        let why = serde_json::Value::from("the host did not answer in time");
        assert_eq!(of("/computeMetadata/v1/"), (true, None));
        assert_eq!(of("/latest/meta-data/"), (false, None));
        assert_eq!(of("//latest/meta-data/"), (false, None));
        let (_, json) = of("/v2/credentials/x");
        assert_eq!(json.unwrap()["Message"], why);
        for path in ["/msi/token", "/metadata/identity/oauth2/token"] {
            let json = of(path).1.unwrap();
            assert!(json["message"] == why && json["error_description"] == why, "{path}: {json}");
        }
    }

    fn text_of(body: Full<Bytes>) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bytes = runtime.block_on(body.collect()).unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn one_caller_cannot_use_up_the_connections_of_another() {
        let callers = Callers::default();
        let (greedy, modest) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut connections: Vec<_> = (0..CONNECTIONS).map(|_| callers.admit(greedy).unwrap()).collect();
        assert!(callers.admit(greedy).is_none());
        assert!(callers.admit(modest).is_some());
        connections.pop();
        assert!(callers.admit(greedy).is_some());
        drop(connections);
        assert!(callers.0.lock().unwrap().is_empty());
    }
}
