//! The Docker API over TCP, for clients that cannot open the socket of the session: TLS 1.3 with a client
//! certificate. A client that does not show one never reaches the HTTP parser: bytes are taken from a
//! connection only after its handshake, and go through a socket pair to the same code as those of the socket.

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

/// Everybody on the machine can connect to a loopback port. These bound what that costs.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
const HANDSHAKES: usize = 64;
/// Refused connections that are reported: one in this time.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// A client that left without a word, or has closed both directions of a silent stream, is noticed after a
/// minute or two.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 4);

/// Serves until the session's tasks are stopped.
pub async fn serve_tls(listener: TcpListener, config: Arc<ServerConfig>, proxy: Arc<Proxy>) {
    let tasks = proxy.settings.tasks.clone();
    let entrance =
        Arc::new(TlsEntrance { proxy, acceptor: TlsAcceptor::from(config), said: Mutex::default() });
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let next = || async {
        // Never closed, so there is always a permit to wait for.
        let permit = handshakes.clone().acquire_owned().await.ok();
        listener.accept().await.map(|(stream, from)| (stream, from, permit))
    };
    let attend = |(stream, from, permit)| {
        tasks.spawn("TLS connection", entrance.clone().attend(stream, from, permit));
    };
    accept_each(tasks.stop(), next, attend).await;
}

struct TlsEntrance {
    proxy: Arc<Proxy>,
    acceptor: TlsAcceptor,
    /// When a refused connection was last reported.
    said: Mutex<Option<Instant>>,
}

impl TlsEntrance {
    async fn attend(
        self: Arc<Self>,
        stream: TcpStream,
        from: SocketAddr,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let tasks = &self.proxy.settings.tasks;
        let shaken = tokio::select! {
            shaken = timeout(HANDSHAKE_WITHIN, shake(&self.acceptor, stream)) => shaken,
            () = tasks.stop().cancelled() => return,
        };
        drop(permit);
        match shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Err(error) => self.refused(from, &error),
            Ok((client, watch)) => {
                let Ok((near, far)) = UnixStream::pair() else { return };
                tasks.spawn("proxy connection", connection(self.proxy.clone(), far));
                tokio::select! {
                    () = carry(client, watch, near) => {}
                    // Replies that are under way are finished first.
                    () = async { tasks.stop().cancelled().await; sleep(GRACE * 2).await } => {}
                }
            }
        }
    }

    fn refused(&self, from: SocketAddr, error: &io::Error) {
        tracing::debug!(%error, %from, "a TLS handshake failed");
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|last| last.elapsed() >= SAY_EVERY) {
            *said = Some(Instant::now());
            let what = format!("a TLS connection from {}", from.ip());
            self.proxy.settings.console.say(Line::Refused { what: &what, why: why(error) });
        }
    }
}

/// The connection after its handshake, and a second handle of it that tells when the client has left.
async fn shake(acceptor: &TlsAcceptor, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, TcpStream)> {
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

/// Copies both ways until both ends are done, as [`splice`](super::engine_client::splice) does: the end of one
/// direction is passed on while the other one continues.
async fn carry(client: TlsStream<TcpStream>, watch: TcpStream, mut near: UnixStream) {
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

/// Why a client was refused, and what it has to do.
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
