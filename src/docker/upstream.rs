//! Connections to an engine, local or remote: one connector, for our own calls and for those that the proxy
//! forwards.
//!
//! Every connection is a byte stream in both directions whose write half can be closed alone: that is how the
//! end of a container's stdin is passed on.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::endpoint::{Endpoint, Ssh, TlsFiles};
use crate::failure::Reason;

/// How long connecting to another machine may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);

/// The connector to one engine; clones share it.
#[derive(Clone)]
pub struct EngineConnector {
    endpoint: Arc<Endpoint>,
    tls: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for EngineConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upstream({})", self.endpoint)
    }
}

impl From<PathBuf> for EngineConnector {
    /// A unix socket.
    fn from(socket: PathBuf) -> Self {
        Self { endpoint: Arc::new(Endpoint::Unix(socket)), tls: None }
    }
}

impl From<&Path> for EngineConnector {
    fn from(socket: &Path) -> Self {
        socket.to_owned().into()
    }
}

impl EngineConnector {
    /// Loads the TLS files. The error is one line.
    pub fn new(endpoint: Endpoint) -> Result<Self, String> {
        if !endpoint.is_sound() {
            return Err("the engine's address holds what no address can".into());
        }
        let tls = match &endpoint {
            Endpoint::Tcp { tls: Some(files), .. } => Some(Arc::new(tls_config(files)?)),
            Endpoint::Unix(_) | Endpoint::Tcp { .. } | Endpoint::Ssh(_) => None,
        };
        Ok(Self { endpoint: Arc::new(endpoint), tls })
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub async fn connect(&self) -> io::Result<EngineStream> {
        let connecting = async {
            match &*self.endpoint {
                Endpoint::Unix(path) => UnixStream::connect(path).await.map(EngineStream::Unix),
                Endpoint::Tcp { host, port, .. } => self.tcp(host, *port).await,
                Endpoint::Ssh(ssh) => dial(ssh).map(|stream| EngineStream::Ssh(Box::new(stream))),
            }
        };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no connection in 20 s");
        timeout(CONNECT_WITHIN, connecting).await.map_err(late)?
    }

    async fn tcp(&self, host: &str, port: u16) -> io::Result<EngineStream> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        // Event streams and waits are silent for hours, and network devices drop silent connections.
        let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
        let Some(config) = &self.tls else { return Ok(EngineStream::Tcp(stream)) };
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(config.clone()).connect(name, stream).await?;
        Ok(EngineStream::Tls(Box::new(stream)))
    }

    /// The reason why no engine answers there, and what to do.
    pub(super) async fn why(&self, error: Option<&io::Error>) -> Reason {
        match &*self.endpoint {
            Endpoint::Unix(path) => unix_failure(path, error),
            Endpoint::Tcp { tls, .. } => tcp_failure(tls.is_some(), error).into(),
            Endpoint::Ssh(ssh) => ssh_failure(ssh).await,
        }
    }
}

impl tower_service::Service<Uri> for EngineConnector {
    type Response = TokioIo<EngineStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.connect().await.map(TokioIo::new) })
    }
}

fn tls_config(files: &TlsFiles) -> Result<ClientConfig, String> {
    let unread =
        |path: &PathBuf| format!("{}: cannot be read as PEM, or is not there", crate::quote::path(path));
    let certificates = |path: &PathBuf| {
        let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        all.ok().filter(|all| !all.is_empty()).ok_or_else(|| unread(path))
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&files.ca)?);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &files.own else { return Ok(builder.with_no_client_auth()) };
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|_| format!("{} (a key with a passphrase is not taken)", unread(key)))?;
    let pair = builder.with_client_auth_cert(certificates(certificate)?, private);
    pair.map_err(|_| {
        format!("{} and {}: do not belong together", crate::quote::path(certificate), crate::quote::path(key))
    })
}

/// Runs `docker system dial-stdio` once on the remote machine.
fn dial(ssh: &Ssh) -> io::Result<Dialled> {
    let mut child =
        command(ssh).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let stdout = stdout.ok_or_else(|| io::Error::other("ssh has no output"))?;
    Ok(Dialled { stdin, stdout, _child: child })
}

fn command(ssh: &Ssh) -> Command {
    let mut command = Command::new("ssh");
    // Many connections would prompt at once; keys or an agent need no prompt.
    command.args(["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15"]);
    if let Some(user) = &ssh.user {
        command.args(["-l", user]);
    }
    if let Some(port) = ssh.port {
        command.args(["-p", &port.to_string()]);
    }
    command.args(["--", &ssh.host, "docker"]);
    if let Some(socket) = &ssh.socket {
        command.args(["--host", &format!("unix://{socket}")]);
    }
    command.args(["system", "dial-stdio"]);
    // In a process group of its own: an interrupt at the terminal would break the connection to the engine
    // while the session ends.
    command.process_group(0).kill_on_drop(true);
    command
}

/// Connects once more for the exit code: ssh's own failures are 255, a missing docker is 127.
async fn ssh_failure(ssh: &Ssh) -> Reason {
    let port = ssh.port.map(|port| format!("-p {port} ")).unwrap_or_default();
    let user = ssh.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
    let host = format!("{port}{user}{}", ssh.host);
    let output = command(ssh).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output();
    let output = match timeout(CONNECT_WITHIN, output).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return "needs the program ssh, which is not in PATH".into();
        }
        Ok(Err(_)) | Err(_) => {
            return Reason::advice(format!("ssh does not connect; try: ssh {host} docker version"));
        }
    };
    tracing::debug!(said = %String::from_utf8_lossy(&output.stderr).trim_end(), "ssh");
    Reason::advice(match output.status.code() {
        Some(255) => format!(
            "ssh failed to connect or to log in (it has to work without a password); try: ssh {host} true"
        ),
        Some(127) => format!("has no docker command in the PATH of ssh; try: ssh {host} docker version"),
        _ => {
            format!("no engine answers there, or that user may not use it; try: ssh {host} docker version")
        }
    })
}

fn tcp_failure(tls: bool, error: Option<&io::Error>) -> &'static str {
    let refused = error.and_then(io::Error::get_ref).and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match (refused, error.map(io::Error::kind)) {
        (Some(rustls::Error::InvalidCertificate(_)), _) => {
            "its certificate is not signed by ca.pem, has expired, or is not for this name"
        }
        (Some(_), _) => "does not agree on TLS: is cert.pem one that it knows, and is this its TLS port?",
        (None, Some(io::ErrorKind::ConnectionRefused)) => "nobody listens: is the engine running?",
        (None, Some(io::ErrorKind::TimedOut)) => "does not answer: is it reachable from here?",
        _ if tls => "does not answer as an engine: is cert.pem one that it knows?",
        _ => "does not answer as an engine: does it want TLS (DOCKER_TLS_VERIFY, DOCKER_CERT_PATH)?",
    }
}

fn unix_failure(path: &Path, error: Option<&io::Error>) -> Reason {
    let why = match error.map(io::Error::kind) {
        Some(io::ErrorKind::PermissionDenied) => return Reason::advice(not_permitted(path)),
        Some(io::ErrorKind::NotFound) => {
            "no such socket: is the engine running? (sudo systemctl start docker)"
        }
        Some(io::ErrorKind::ConnectionRefused) => {
            "nobody listens: is the engine running? (sudo systemctl start docker)"
        }
        _ => "does not answer as an engine: does docker info work?",
    };
    why.into()
}

/// Advises to join the socket's group, if that group may use the socket.
fn not_permitted(path: &Path) -> String {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let group = std::fs::metadata(path).ok().filter(|about| about.permissions().mode() & 0o020 != 0);
    let group = group.map(|about| about.gid()).filter(|gid| *gid != 0).map(|gid| {
        let all = std::fs::read_to_string("/etc/group").unwrap_or_default();
        let named = all.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
        });
        named.unwrap_or_else(|| gid.to_string())
    });
    match group {
        Some(group) => {
            format!("you may not use it: sudo usermod -aG {group} $USER, then log in again")
        }
        None => "you may not use it: run this as its owner, or set DOCKER_HOST to an \
                 engine of yours"
            .into(),
    }
}

/// One connection to an engine.
#[derive(Debug)]
pub enum EngineStream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Ssh(Box<Dialled>),
}

/// An ssh process that copies between its stdin and stdout and the engine; it ends with the connection.
#[derive(Debug)]
pub struct Dialled {
    /// `None` once the write half is closed.
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    _child: Child,
}

impl Connection for EngineStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for EngineStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Ssh(stream) => Pin::new(&mut stream.stdout).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for EngineStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Ssh(stream) => match &mut stream.stdin {
                Some(stdin) => Pin::new(stdin).poll_write(cx, bytes),
                None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            },
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Ssh(stream) => match &mut stream.stdin {
                Some(stdin) => Pin::new(stdin).poll_flush(cx),
                None => Poll::Ready(Ok(())),
            },
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Ssh(stream) => {
                if let Some(stdin) = &mut stream.stdin {
                    ready!(Pin::new(stdin).poll_flush(cx))?;
                }
                // dial-stdio passes the end of the pipe on as the end of the write half.
                stream.stdin = None;
                Poll::Ready(Ok(()))
            }
        }
    }
}
