//! The Docker API over TCP, for clients that cannot open the socket of the session: TLS 1.3 with a client
//! certificate. A client without one never reaches the HTTP parser: the proxy reads HTTP from a connection
//! only after its handshake, and passes it through a socket pair to the code that serves the socket.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::sockopt;
use rustls::{AlertDescription, Error, ServerConfig};
use tokio::io::{AsyncWriteExt, Interest, copy, split};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::engine_client::one_way;
use super::state::Proxy;
use super::{GRACE, connection};
use crate::console::Line;
use crate::process::accept_each;

/// Everybody on the machine can connect to a loopback port. These limits bound the cost.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
const HANDSHAKES: usize = 64;
/// At most one refused connection is reported in this time.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// With these, it takes a minute or two to notice a client that vanished, or that has closed both directions
/// of an idle stream.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 4);

/// Serves until the session's tasks are stopped.
pub async fn serve_tls(listener: TcpListener, config: Arc<ServerConfig>, proxy: Arc<Proxy>) {
    let tasks = proxy.settings.tasks.clone();
    let entrance =
        Arc::new(TlsEntrance { proxy, acceptor: TlsAcceptor::from(config), last_reported: Mutex::default() });
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let next = || async {
        // The semaphore is never closed, so this always returns a permit.
        let permit = handshakes.clone().acquire_owned().await.ok();
        listener.accept().await.map(|(stream, from)| (stream, from, permit))
    };
    let serve_client = |(stream, from, permit)| {
        tasks.spawn("TLS connection", entrance.clone().serve_client(stream, from, permit));
    };
    accept_each(tasks.stop(), next, serve_client).await;
}

struct TlsEntrance {
    proxy: Arc<Proxy>,
    acceptor: TlsAcceptor,
    /// When a refused connection was last reported.
    last_reported: Mutex<Option<Instant>>,
}

impl TlsEntrance {
    async fn serve_client(
        self: Arc<Self>,
        stream: TcpStream,
        from: SocketAddr,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let tasks = &self.proxy.settings.tasks;
        let outcome = tokio::select! {
            outcome = timeout(HANDSHAKE_WITHIN, handshake(&self.acceptor, stream)) => outcome,
            () = tasks.stop().cancelled() => return,
        };
        drop(permit);
        match outcome.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Err(error) => self.refused(from, &error),
            Ok((client, watch)) => {
                let Ok((near, far)) = UnixStream::pair() else { return };
                tasks.spawn("proxy connection", connection(self.proxy.clone(), far));
                tokio::select! {
                    () = copy_both_ways(client, watch, near) => {}
                    // Replies in progress are finished first.
                    () = async { tasks.stop().cancelled().await; sleep(GRACE * 2).await } => {}
                }
            }
        }
    }

    fn refused(&self, from: SocketAddr, error: &io::Error) {
        tracing::debug!(%error, %from, "a TLS handshake failed");
        let mut last_reported = self.last_reported.lock().unwrap_or_else(PoisonError::into_inner);
        if last_reported.is_none_or(|last| last.elapsed() >= REPORT_EVERY) {
            *last_reported = Some(Instant::now());
            let what = format!("a TLS connection from {}", from.ip());
            self.proxy.settings.console.say(Line::Refused { what: &what, why: why(error) });
        }
    }
}

/// The connection after its handshake, and a second handle, which shows when the client has left.
async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
) -> io::Result<(TlsStream<TcpStream>, TcpStream)> {
    stream.set_nodelay(true)?;
    let (idle, interval, count) = KEEPALIVE;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, idle)?;
    sockopt::set_tcp_keepintvl(&stream, interval)?;
    sockopt::set_tcp_keepcnt(&stream, count)?;
    let watch = std::os::fd::AsFd::as_fd(&stream).try_clone_to_owned()?;
    let watch = TcpStream::from_std(watch.into())?;
    Ok((acceptor.accept(stream).await?, watch))
}

/// Copies both ways until both directions are done, as [`splice`](super::engine_client::splice) does: when
/// one of them ends, the proxy passes the end on and the other one continues.
async fn copy_both_ways(client: TlsStream<TcpStream>, watch: TcpStream, mut near: UnixStream) {
    let (mut from_client, to_client) = split(client);
    let (from_proxy, mut to_proxy) = near.split();
    let requests = async {
        if copy(&mut from_client, &mut to_proxy).await.is_ok() {
            let _ = to_proxy.shutdown().await;
            // A client that has closed both directions answers the next packet with a reset.
            while watch
                .ready(Interest::READABLE | Interest::WRITABLE)
                .await
                .is_ok_and(|r| !r.is_write_closed())
            {
                sleep(Duration::from_secs(1)).await;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = one_way(from_proxy, to_client) => {}
    }
}

/// Why a client was refused, and what its user has to do.
fn why(error: &io::Error) -> &'static str {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        Some(Error::NoCertificatesPresented) => {
            "it showed no certificate; set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH to the directory of --tls"
        }
        Some(Error::InvalidCertificate(_)) => {
            "its certificate is not of this session; set DOCKER_CERT_PATH to the directory of --tls"
        }
        Some(Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown,
        )) => {
            "it does not know this session's ca.pem; in Python REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE win over it: \
             unset them"
        }
        Some(Error::PeerIncompatible(_)) => "it does not speak TLS 1.3",
        Some(Error::InvalidMessage(_)) => "it does not speak TLS; set DOCKER_TLS_VERIFY=1",
        Some(_) => "its handshake failed; -v says more",
        None if error.kind() == io::ErrorKind::TimedOut => "its handshake took longer than 10 s",
        None => "it left during the handshake",
    }
}
