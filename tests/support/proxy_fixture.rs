//! The proxy on its own thread, with a fake `lifecycle`.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kfp_creds::console::{Console, OutputForm};
use kfp_creds::docker::proxy::{
    self, Clients, Closing, ExitCodes, Fetching, LifecycleRequest, LiveRules, Proxy, ProxySettings, RelayAt,
    Reserved, Rules, SecondNetwork, Wiring, Writable,
};
use kfp_creds::kfp::Reading;
use kfp_creds::policy::Policy;
use kfp_creds::process::Tasks;
use kfp_creds::token::Scopes;
use kfp_creds::workload::{ContainerId, Identity, Task};
use serde_json::Value;
use tokio::sync::mpsc;

const RELAY: RelayAt = RelayAt { address: Ipv4Addr::new(169, 254, 169, 254), container_credentials: false };

/// A directory that is removed with the test.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("kfpc-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Records the printed lines.
#[derive(Clone, Default)]
pub(crate) struct Heard(pub(crate) Arc<Mutex<Vec<u8>>>);

impl Write for Heard {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The answers of the fake `lifecycle`, and the requests that it got.
#[derive(Clone, Default)]
pub(crate) struct Lifecycle {
    /// `Some` makes every attach fail with this text.
    pub(crate) fails: Arc<Mutex<Option<String>>>,
    pub(crate) leased: Arc<Mutex<Vec<ContainerId>>>,
    pub(crate) starting: Arc<Mutex<Vec<ContainerId>>>,
}

pub(crate) struct ProxyFixture {
    pub(crate) socket: PathBuf,
    pub(crate) exits: ExitCodes,
    pub(crate) reserved: Reserved,
    pub(crate) closing: Closing,
    pub(crate) lifecycle: Lifecycle,
    heard: Heard,
    tasks: Tasks,
    served: Arc<Proxy>,
    thread: Option<std::thread::JoinHandle<()>>,
    _scratch: Option<Scratch>,
}

/// Labels and image are enough for these tests, and the image `plain` is not a task; kfp's own recogniser has
/// its own tests.
fn recognise(body: &Value, name: Option<&str>) -> Reading {
    let image = body["Image"].as_str().unwrap_or_default().to_string();
    Task { kfp: image != "plain", image, name: name.map(Into::into), ..Task::default() }.into()
}

impl ProxyFixture {
    pub(crate) fn new(upstream: &Path) -> Self {
        let scratch = Scratch::new();
        let mut proxy = Self::at(&scratch.0, upstream);
        proxy._scratch = Some(scratch);
        proxy
    }

    pub(crate) fn at(dir: &Path, upstream: &Path) -> Self {
        Self::fetching(dir, upstream, None)
    }

    /// The same, with a fetcher for the inputs of tasks.
    pub(crate) fn fetching(dir: &Path, upstream: &Path, fetching: Option<Fetching>) -> Self {
        let socket = dir.join("proxy.sock");
        let (ask, asked) = mpsc::channel(64);
        let heard = Heard::default();
        let (exits, reserved, closing) = (ExitCodes::default(), Reserved::default(), Closing::default());
        let (lifecycle, tasks) = (Lifecycle::default(), Tasks::new());
        let settings = Arc::new(ProxySettings {
            upstream: upstream.into(),
            product: kfp_creds::docker::Product::Docker,
            session: "0123abcd".into(),
            mode: "run",
            rules: rules(),
            writable: Writable::default(),
            recognise,
            client_proxies: Default::default(),
            evidence: Default::default(),
            console: Console::new(OutputForm::Text, heard.clone()),
            wiring: Wiring {
                at: RELAY,
                names: ["metadata.google.internal", "metadata", "metadata.goog"].map(Into::into).into(),
                project: Some("proj".into()),
                quota_project: None,
                aws_region: None,
            },
            reserved: reserved.clone(),
            exits: exits.clone(),
            closing: closing.clone(),
            socket: socket.clone(),
            guard: Arc::default(),
            host_root: Default::default(),
            clients: Clients::default(),
            created: Arc::default(),
            cells: None,
            segment: None,
            second: SecondNetwork::Open(RELAY),
            loopback: None,
            recorder: kfp_creds::record::Recorder::default(),
            fetching,
            ask,
            tasks: tasks.clone(),
        });
        let served = Arc::new(Proxy::new(settings));
        let serving = served.clone();
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (answers, tasks_of) = (lifecycle.clone(), tasks.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                tasks_of.spawn("lifecycle", answer(asked, answers));
                proxy::serve(listener, serving).await;
                tasks_of.finish(Duration::from_secs(2)).await;
            });
        });
        let thread = Some(thread);
        Self { socket, exits, reserved, closing, lifecycle, heard, tasks, served, thread, _scratch: None }
    }

    /// Serves the same proxy at another socket, until the fixture is dropped; returns its path.
    pub(crate) fn serve_also(&self) -> PathBuf {
        let socket = self.socket.with_file_name("another.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let served = self.served.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                proxy::serve(tokio::net::UnixListener::from_std(listener).unwrap(), served).await;
            });
        });
        socket
    }

    /// Serves the same proxy with TLS, as `serve --tls` does, until the fixture is dropped; returns the port.
    pub(crate) fn serve_tls(&self, config: Arc<rustls::ServerConfig>) -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = self.served.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                proxy::serve_tls(listener, config, served).await;
            });
        });
        port
    }

    /// Everything that was printed for the person at the terminal.
    pub(crate) fn said(&self) -> String {
        String::from_utf8(self.heard.0.lock().unwrap().clone()).unwrap()
    }
}

impl Drop for ProxyFixture {
    fn drop(&mut self) {
        self.tasks.stop().cancel();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

async fn answer(mut asked: mpsc::Receiver<LifecycleRequest>, lifecycle: Lifecycle) {
    while let Some(ask) = asked.recv().await {
        match ask {
            LifecycleRequest::Attach { container, answer, .. } => {
                let fails = lifecycle.fails.lock().unwrap().clone();
                let outcome = fails.map_or(Ok(Ipv4Addr::new(169, 254, 168, 2)), Err);
                if outcome.is_ok() {
                    lifecycle.leased.lock().unwrap().push(container);
                }
                let _ = answer.send(outcome.map_err(Into::into));
            }
            LifecycleRequest::Starting { container, answer } => {
                lifecycle.starting.lock().unwrap().push(container);
                let _ = answer.send(());
            }
            LifecycleRequest::IsLeased { container, answer } => {
                let _ = answer.send(lifecycle.leased.lock().unwrap().contains(&container));
            }
            LifecycleRequest::LeasedAs { answer, .. } => drop(answer.send(None)),
            LifecycleRequest::Joined { answer, .. } => drop(answer.send(false)),
        }
    }
}

/// Rules that give every container an identity.
fn rules() -> LiveRules {
    LiveRules::new(Rules {
        policy: Policy {
            rules: vec![],
            default: Some(Arc::new(identity())),
            choose: vec![],
            all: true,
            unknown: None,
        },
        identities: vec![],
        mounts: vec![],
        compiled: Arc::default(),
        clear_entrypoint: true,
    })
}

fn identity() -> Identity {
    Identity { scopes: Scopes::default(), ..Identity::default() }
}

/// Sends bytes and reads until the connection ends or nothing has come for 20 s.
pub(crate) fn raw(socket: &Path, request: impl AsRef<[u8]>) -> String {
    String::from_utf8_lossy(&raw_bytes(socket, request)).into_owned()
}

fn raw_bytes(socket: &Path, request: impl AsRef<[u8]>) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The peer may answer and close before it has read everything.
    let _ = stream.write_all(request.as_ref());
    let mut reply = vec![];
    let mut piece = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut piece) {
        reply.extend_from_slice(&piece[..read]);
    }
    reply
}

/// One request with `Connection: close`: status and body.
pub(crate) fn call(socket: &Path, line: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let reply = raw_bytes(
        socket,
        format!(
            "{line} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        ),
    );
    let end = reply.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(reply.len());
    let (head, body) = (String::from_utf8_lossy(&reply[..end]), reply.get(end + 4..).unwrap_or_default());
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked");
    let body = if chunked { joined(body) } else { body.to_vec() };
    let status = status.unwrap_or_else(|| panic!("no status for {line}: {head:?}"));
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// The data of the chunks that arrived.
fn joined(mut rest: &[u8]) -> Vec<u8> {
    let mut data = vec![];
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        let Some(chunk) = rest.get(end + 2..end + 2 + size).filter(|_| size > 0) else { break };
        data.extend_from_slice(chunk);
        rest = rest.get(end + 4 + size..).unwrap_or_default();
    }
    data
}
