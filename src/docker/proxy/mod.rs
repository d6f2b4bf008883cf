//! The Docker API on a socket of the session. The proxy passes every request to the engine, unbuffered and
//! without time-outs, except those that it judges:
//!
//! | request | what happens |
//! |---|---|
//! | `POST /containers/create` | parsed strictly, judged (`judge`), given its Cloud Storage inputs (`inputs`), created, recorded for its exit code (`exit_watch`), attached, answered |
//! | `POST /containers/X/wait` | the engine first; our record if it answers 404 (`exit_codes`) |
//! | `GET /containers/X/logs` | the engine first, then the missing output of an auto-removed container (`logs`) |
//! | exec, start, restart, rename | checked, because they could reach into a leased container (`dispatch`) |
//! | `docker cp`, builds, imports, loads, commits, volumes, swarm configs, secrets and services | scanned for keys (`upload`, `volumes`, `swarm`) |
//! | `GET /containers/X/json` | the engine first; our record of a container that it auto-removed (`logs`) |
//! | lists of containers and networks, `GET /containers/X/json` | without relays and without our networks (`reply_filter`) |
//! | attach, exec start | raw bytes, copied after the engine's 101; also for clients without `Upgrade` (`dispatch`, `engine_client`) |
//! | BuildKit's tunnels | only as an upgrade without a body; contexts in them are scanned for keys (`builds`) |
//! | `POST /networks/create` | refused if it uses a name or label of ours (`dispatch`) |
//! | `/libpod/…` | Podman's own API: always refused (`podman` lists where else Podman parses requests differently) |
//! | requests to the relay, its image or our network | refused, except inspecting (`reserved`) |
//! | `GET /kfp-creds/upstream` | answered with the engine behind this socket |
//!
//! A process that can open the socket can do what the engine can do. The socket is therefore 0600 in a 0700
//! directory; the rules here separate identities from each other; they do not protect the engine from its own
//! users.

mod builds;
mod capabilities;
mod clouds;
#[cfg(test)]
mod clouds_tests;
mod commit;
mod create;
mod dispatch;
mod engine_client;
mod entrypoint;
mod environment;
mod exit_codes;
mod exit_records;
mod exit_watch;
mod frames;
mod guard;
mod image_configs;
mod inputs;
mod json;
mod judge;
#[cfg(test)]
mod judge_tests;
mod leases;
mod logs;
mod lookups;
mod mount_sources;
mod notices;
mod outputs;
mod path;
mod places;
mod podman;
mod preview;
mod proxies;
mod question;
mod removed;
mod reply_filter;
mod reserved;
mod rules;
mod state;
mod swarm;
mod texts;
mod tls;
mod upgrade;
mod upload;
mod volumes;
mod wiring;
mod writable;

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use self::engine_client::{EngineClient, HEAD_BOUND, Handover, MAX_HEADERS, RawStream, Reply, splice};
use crate::config::endpoint::Endpoint;
use crate::config::proxies::ClientProxies;
use crate::console::{Console, Line};
use crate::docker::Product;
use crate::docker::cells::{Cell, Cells};
use crate::docker::segment::{Segment, SegmentAddress};
use crate::docker::upstream::EngineConnector;
use crate::failure::Reason;
use crate::guard::Guard;
use crate::guard::host_root::HostRoot;
use crate::kfp::{Evidence, Reading};
use crate::loopback;
use crate::process::{Tasks, accept_each};
use crate::record::Recorder;
use crate::secret::Secret;
use crate::workload::{By, ContainerId, Identity, Task};

pub use self::capabilities::could_forge;
pub use self::clouds::{SHADOWS, Shadow};
pub use self::exit_codes::ExitCodes;
pub use self::inputs::{Fetch, Fetched, Fetching};
pub use self::places::{SecondNetwork, SecondRequest};
pub use self::preview::{Networks, Preview, PreviewOutcome, preview};
pub use self::question::RelayAt;
pub use self::reserved::{Reserved, ReservedKind};
pub use self::rules::{LiveRules, Rules};
pub use self::state::Proxy;
pub use self::tls::serve_tls;
pub use self::volumes::wrong_with_volumes;
pub use self::wiring::{WINNING, only_value, overriding};
pub use self::writable::{Writable, writable_by_a_container};

/// Configuration and shared state of the proxy.
#[derive(Debug)]
pub struct ProxySettings {
    /// How to connect to the engine.
    pub upstream: EngineConnector,
    /// The engine's product: Docker and Podman parse some fields of a create differently.
    pub product: Product,
    /// Our own socket. A container that mounts the engine's socket gets this one instead.
    pub socket: PathBuf,
    pub guard: Arc<Guard>,
    /// Where this program finds the host paths that create requests name.
    pub host_root: HostRoot,
    /// Eight hex digits; the value of [`SESSION_LABEL`](crate::docker::labels::SESSION_LABEL) on every
    /// container that is attached.
    pub session: String,
    /// `run` or `serve`; the value of the label that tells a sweep how to treat the container.
    pub mode: &'static str,
    pub rules: LiveRules,
    pub writable: Writable,
    /// Recognises a task from a create body (canonical JSON) and `?name=`.
    pub recognise: fn(&Value, Option<&str>) -> Reading,
    /// What else the session knows that shows which task a create belongs to.
    pub evidence: Evidence,
    pub console: Console,
    pub wiring: Wiring,
    /// The `proxies` of the docker clients' own config, which clients look up by the engine's address.
    pub client_proxies: ClientProxies,
    pub reserved: Reserved,
    pub exits: ExitCodes,
    pub closing: Closing,
    pub clients: Clients,
    /// Set when the first container is created through the proxy, leased or not.
    pub created: Arc<AtomicBool>,
    /// If set, every container gets a network of its own, which has only the relay besides it.
    pub cells: Option<Cells>,
    /// If set, containers that name no network get a link-local address on this bridge.
    pub segment: Option<Segment>,
    /// The network for all other containers.
    pub second: SecondNetwork,
    /// If set, containers on the host's network can get identities.
    pub loopback: Option<loopback::Paths>,
    pub recorder: Recorder,
    /// Fetches the Cloud Storage objects that tasks name as inputs; `None` if that is switched off.
    pub fetching: Option<Fetching>,
    /// Requests to `lifecycle`.
    pub ask: mpsc::Sender<LifecycleRequest>,
    pub tasks: Tasks,
}

/// The values put into a container so that its client libraries find the relay.
#[derive(Clone, Debug)]
pub struct Wiring {
    /// Where the container's relay listens.
    pub at: RelayAt,
    /// Host names of the metadata server.
    pub names: Vec<String>,
    pub project: Option<String>,
    pub quota_project: Option<String>,
    pub aws_region: Option<String>,
}

/// Once set, the proxy answers creates and starts with 503, because the session is ending. Clones share the
/// flag.
#[derive(Clone, Debug, Default)]
pub struct Closing(Arc<AtomicBool>);

impl Closing {
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// The number of open client connections. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct Clients(Arc<AtomicUsize>);

impl Clients {
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn enter(&self) -> OpenConnection {
        self.0.fetch_add(1, Ordering::Relaxed);
        OpenConnection(self.clone())
    }
}

/// One open connection, counted until it is dropped.
#[derive(Debug)]
struct OpenConnection(Clients);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request of the proxy to `lifecycle`. If lifecycle drops `answer`, the proxy treats an `Attach` as
/// refused and `IsLeased` as true.
#[derive(Debug)]
pub enum LifecycleRequest {
    /// The engine has created the container: lifecycle connects it to the network and admits its lease. Only
    /// then does the proxy answer the create. On an error the proxy removes the container and sends the
    /// client the text.
    Attach {
        container: ContainerId,
        identity: Arc<Identity>,
        by: By,
        task: Arc<Task>,
        place: Attachment,
        /// The secret of the lease, which only the container's environment contains; for AWS and Azure.
        secret: Option<Arc<Secret<String>>>,
        answer: oneshot::Sender<Result<Ipv4Addr, Reason>>,
    },
    /// A start or restart is about to reach the engine.
    Starting { container: ContainerId, answer: oneshot::Sender<()> },
    /// Whether the container holds an identity, running or not.
    IsLeased { container: ContainerId, answer: oneshot::Sender<bool> },
    /// The identity under which the container is leased, and the relay's address on its own network, if it
    /// has one.
    LeasedAs { container: ContainerId, answer: oneshot::Sender<Option<LeasedAs>> },
    /// The engine has created the container in the network of a leased one. From here on lifecycle treats it
    /// as leased, too: it shares that container's lease, which ends with that container.
    Joined { container: ContainerId, with: ContainerId, task: Arc<Task>, answer: oneshot::Sender<bool> },
}

/// Where a container reaches us, as the proxy has set it in the create.
#[derive(Debug)]
pub enum Attachment {
    /// At the relay, on the second network, which containers share.
    Shared,
    /// At the relay, by a link-local address on a bridge.
    Linked(SegmentAddress),
    /// At the relay, on a network of its own.
    Cell(Cell),
    /// At a listener on the loopback of this machine; the container is on the host's network.
    Loopback(loopback::Path),
}

impl Attachment {
    /// The address of the metadata server for a container on the host's network: `127.0.0.1:PORT/SECRET`.
    fn path(&self) -> Option<String> {
        match self {
            Self::Loopback(path) => Some(path.place()),
            Self::Shared | Self::Linked(_) | Self::Cell(_) => None,
        }
    }

    fn linked(&self) -> Option<&SegmentAddress> {
        match self {
            Self::Linked(address) => Some(address),
            Self::Shared | Self::Cell(_) | Self::Loopback(_) => None,
        }
    }
}

/// What a container that joins another one's network shares with it.
#[derive(Clone, Debug)]
pub struct LeasedAs {
    pub identity: Arc<Identity>,
    pub relay: RelayAt,
    pub secret: Option<Arc<Secret<String>>>,
}

/// How long connections may finish a reply after the session stops.
const GRACE: Duration = Duration::from_secs(1);

/// Serves until the session's tasks are stopped.
pub async fn serve(listener: UnixListener, proxy: Arc<Proxy>) {
    let stop = proxy.settings.tasks.stop().clone();
    let serve =
        |(stream, _)| proxy.settings.tasks.spawn("proxy connection", connection(proxy.clone(), stream));
    accept_each(&stop, || listener.accept(), serve).await;
}

async fn connection(proxy: Arc<Proxy>, stream: UnixStream) {
    let _entered = proxy.settings.clients.enter();
    let stop = proxy.settings.tasks.stop().clone();
    let (sender, mut streams) = mpsc::channel(1);
    let handover = Handover(sender);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(handover.clone());
        handle(proxy.clone(), request)
    });
    // Half-close stays off: with it, hyper would not notice a client that leaves an idle stream. This parser
    // refuses an HTTP/2 preface, so no request bypasses the judgement.
    let mut connection = hyper::server::conn::http1::Builder::new()
        .half_close(false)
        .preserve_header_case(true)
        .max_headers(MAX_HEADERS)
        .max_buf_size(HEAD_BOUND)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let served = tokio::select! {
        served = &mut connection => served,
        Some(raw) = streams.recv() => {
            // The engine answered 101: from here on the client's bytes are not HTTP, and both connections end
            // together.
            if let Some(client) = connection.into_parts() {
                tokio::select! {
                    () = stream_to(client.io.into_inner(), &client.read_buf, raw) => {}
                    () = stop.cancelled() => {}
                }
            }
            return;
        }
        () = stop.cancelled() => {
            Pin::new(&mut connection).graceful_shutdown();
            tokio::time::timeout(GRACE, &mut connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a client's connection broke");
    }
}

/// Answers a client that sent no `Upgrade`, then copies in both directions until the end.
async fn stream_to(mut client: UnixStream, read: &[u8], raw: RawStream) {
    if client.write_all(&raw.head).await.is_ok() {
        splice(client, read, raw.engine).await;
    }
}

async fn handle(proxy: Arc<Proxy>, request: Request<Incoming>) -> Result<Reply, Infallible> {
    let what = format!("{} {}", request.method(), request.uri().path());
    let reply = proxy.answer(request).await;
    Ok(reply.unwrap_or_else(|refusal| {
        if refusal.status != StatusCode::NOT_FOUND {
            proxy.settings.console.say(Line::Refused { what: &what, why: &refusal.why });
            proxy.settings.recorder.refused_call(&what, &refusal.why, refusal.by_guard);
        }
        refusal.reply()
    }))
}

/// The engine behind `socket`, if `socket` belongs to a kfp-creds proxy.
pub async fn upstream_of(socket: &Path) -> Option<Endpoint> {
    let engine = EngineClient::new(socket.to_owned().into(), Tasks::new());
    let look = async {
        let reply = engine.ask(Method::GET, "/kfp-creds/upstream").await.ok()?;
        let mut found: Value =
            serde_json::from_slice(&engine_client::collect(reply.into_body()).await.ok()?).ok()?;
        match found["kfp-creds"]["upstream"].take() {
            Value::String(path) => Some(Endpoint::Unix(path.into())),
            other => serde_json::from_value(other).ok(),
        }
    };
    tokio::time::timeout(Duration::from_secs(2), look).await.ok().flatten()
}
