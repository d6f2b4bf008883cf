//! The memory that a session keeps for a container, while it lives and after it is gone. The allocator counts
//! it, with proxy, lifecycle and server as in a session, against a fake engine and relay at the wire. It is a
//! separate program, because the allocator counts for the whole program.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::System;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kfp_creds::console::{Console, OutputForm};
use kfp_creds::docker::Engine;
use kfp_creds::docker::members::KnownMembers;
use kfp_creds::docker::network::Network;
use kfp_creds::docker::proxy::{
    self, Closing, LiveRules, Proxy, ProxySettings, RelayAt, Reserved, Rules, SecondNetwork, Wiring, Writable,
};
use kfp_creds::lifecycle::{Granting, Lifecycle, SessionNetworks};
use kfp_creds::metadata::View;
use kfp_creds::mint::Mint;
use kfp_creds::policy::Policy;
use kfp_creds::process::Tasks;
use kfp_creds::readiness::Listening;
use kfp_creds::record::Recorder;
use kfp_creds::secret::Secret;
use kfp_creds::server::views::Views;
use kfp_creds::server::{Server, TunnelEnd};
use kfp_creds::source::{AccessRequest, IdentityRequest, Pending, Principal, Source, SourceError};
use kfp_creds::token::{AccessToken, Deadline, IdentityToken, Now};
use kfp_creds::workload::{ContainerId, Identity};
use kfp_creds::{kfp, registry, relay};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::sync::mpsc;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that are in use.
fn live() -> isize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as isize - stats.bytes_deallocated as isize
}

const RELAY: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const AT: RelayAt = RelayAt { address: RELAY, container_credentials: false };
const NETWORK: &str = "the-network";

/// Gives tokens without a call.
#[derive(Debug)]
struct Ready;

impl Source for Ready {
    fn principal(&self) -> Principal {
        Principal::default()
    }

    fn access_token<'a>(&'a self, ask: &'a AccessRequest) -> Pending<'a, Result<AccessToken, SourceError>> {
        let expires = Deadline::after(Now::read(), Duration::from_secs(3600));
        Box::pin(async move {
            Ok(AccessToken::new(Secret::new("ya29.token".repeat(20)), expires, ask.scopes.clone()))
        })
    }

    fn identity_token<'a>(
        &'a self,
        _: &'a IdentityRequest,
    ) -> Pending<'a, Result<IdentityToken, SourceError>> {
        Box::pin(async { Err(SourceError::refused("no ID tokens")) })
    }
}

/// An engine that creates containers, and sends events as the test starts and removes them.
#[derive(Clone, Default)]
struct TinyEngine {
    made: Arc<AtomicUsize>,
    followers: Arc<Mutex<Vec<UnixStream>>>,
}

impl TinyEngine {
    fn start(&self, socket: &Path) {
        let (listener, engine) = (UnixListener::bind(socket).unwrap(), self.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let engine = engine.clone();
                std::thread::spawn(move || engine.serve(stream));
            }
        });
    }

    fn serve(&self, mut stream: UnixStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut line, mut length) = (String::new(), 0);
        if !matches!(reader.read_line(&mut line), Ok(1..)) {
            return;
        }
        loop {
            let mut header = String::new();
            if !matches!(reader.read_line(&mut header), Ok(1..)) {
                return;
            }
            let header = header.trim().to_ascii_lowercase();
            if let Some(value) = header.strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            }
            if header.is_empty() {
                break;
            }
        }
        reader.read_exact(&mut vec![0; length]).unwrap();
        let path = line.split(' ').nth(1).unwrap();
        if path.contains("/events?") {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n").unwrap();
            self.followers.lock().unwrap().push(stream);
            return;
        }
        let (status, body) = self.answer(&line, path);
        let reply = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        // A connection that a client keeps for later would count as memory of the last container.
        let _ = stream.write_all(reply.as_bytes());
    }

    fn answer(&self, line: &str, path: &str) -> (u16, String) {
        let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        if path.ends_with("/version") {
            let body = format!(r#"{{"Version":"28.5.2","ApiVersion":"1.51","Os":"linux","Arch":"{arch}"}}"#);
            return (200, body);
        }
        if path.contains("/containers/create") {
            return (201, format!(r#"{{"Id":"{}"}}"#, id(self.made.fetch_add(1, Ordering::SeqCst))));
        }
        if path.contains("/images/") {
            return (404, "{}".into());
        }
        let of = path.split('/').find(|part| part.len() == 64);
        match (of, line) {
            (Some(of), line) if line.starts_with("GET ") => {
                // The address that the lifecycle gave it.
                let address = address(usize::from_str_radix(of, 16).unwrap());
                let body = serde_json::json!({
                    "Id": of, "Name": format!("/task-{of}"), "State": {"Status": "running", "Running": true},
                    "HostConfig": {"AutoRemove": false}, "Config": {"Tty": false},
                    "NetworkSettings": {"Networks": {NETWORK: {"NetworkID": NETWORK, "IPAddress": address.to_string()}}},
                });
                (200, body.to_string())
            }
            (Some(of), line) if line.contains("/start") => {
                self.tell(of, "start");
                (204, String::new())
            }
            (Some(of), line) if line.starts_with("DELETE ") => {
                self.tell(of, "die");
                self.tell(of, "destroy");
                (204, String::new())
            }
            _ if path.contains("/containers/json") => (200, "[]".into()),
            _ => (200, "{}".into()),
        }
    }

    fn tell(&self, container: &str, action: &str) {
        let actor = serde_json::json!({"ID": container, "Attributes": {"exitCode": "3"}});
        let event = serde_json::json!({"Type": "container", "Action": action, "Actor": actor});
        self.followers.lock().unwrap().retain_mut(|follower| writeln!(follower, "{event}").is_ok());
    }
}

fn id(number: usize) -> String {
    format!("{number:064x}")
}

/// Addresses are given in turn, and there are enough for all containers.
const ADDRESSES: usize = 4000;

fn address(number: usize) -> Ipv4Addr {
    let place = number % ADDRESSES;
    Ipv4Addr::new(10, 9, (place / 250) as u8, (place % 250) as u8 + 2)
}

/// The parts of a session, without a process.
struct SessionParts {
    socket: PathBuf,
    lifecycle: Arc<Lifecycle>,
    leases: registry::Reader,
    exits: proxy::ExitCodes,
    tunnel: http2::SendRequest<Empty<Bytes>>,
    tasks: Tasks,
    folder: PathBuf,
}

impl SessionParts {
    async fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("kfpc-memory-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (upstream, socket) = (folder.join("engine.sock"), folder.join("proxy.sock"));
        TinyEngine::default().start(&upstream);
        let engine = Engine::connect(&upstream).await.unwrap();
        let (tasks, recorder) = (Tasks::new(), Recorder::default());
        let mint = Mint::new(Arc::new(Ready), tasks.clone(), recorder.clone());
        let (writer, leases, questions) = registry::new();
        let network = Network {
            keeps_credentials_address: false,
            routed: false,
            id: NETWORK.into(),
            name: NETWORK.into(),
            session: "0123abcd".into(),
            subnet: "10.9.0.0/16".into(),
        };
        let console = || Console::new(OutputForm::Quiet, std::io::sink());
        let granting = Granting { writer, mint: mint.clone(), recorder: recorder.clone() };
        let addresses = (0..ADDRESSES).map(address);
        let (session, known) = ("0123abcd".into(), KnownMembers::default());
        let networks = SessionNetworks { engine, session, segment: None, known };
        let lifecycle = Lifecycle::new(networks, granting, console(), tasks.clone());
        lifecycle.open_second(network, AT, addresses);
        let (ask, asks) = mpsc::channel(64);
        tasks.spawn("attend", lifecycle.clone().attend(asks, questions));
        tasks.spawn("events", lifecycle.clone().follow_events());
        let base = View { accounts: vec![], hosts: Arc::from(["metadata".to_string()]), ..View::default() };
        let views = Views { base, ..Views::default() };
        let server = Server::new(leases.clone(), mint, views, console(), recorder.clone());
        let (near, far) = tokio::io::duplex(1 << 16);
        let end = TunnelEnd { relay: RELAY, range: None, listening: Listening::default() };
        tasks.spawn("server", server.serve_tunnel(far, end));
        let (tunnel, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(near)).await.unwrap();
        tasks.spawn("relay", async move { drop(connection.await) });
        let exits = lifecycle.exits();
        let settings =
            Arc::new(settings(&upstream, &socket, exits.clone(), recorder, console(), ask, &tasks));
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        tasks.spawn("proxy", proxy::serve(listener, Arc::new(Proxy::new(settings))));
        Self { socket, lifecycle, leases, exits, tunnel, tasks, folder }
    }

    async fn call(&self, line: &str, body: String) -> u16 {
        let stream = tokio::net::UnixStream::connect(&self.socket).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, String>(TokioIo::new(stream)).await.unwrap();
        let (method, path) = line.split_once(' ').unwrap();
        let request = Request::builder().method(method).uri(path).header("host", "d");
        let request = request.header("content-type", "application/json").body(body).unwrap();
        let exchange = async move {
            let reply = sender.send_request(request).await.unwrap();
            let status = reply.status().as_u16();
            reply.into_body().collect().await.unwrap();
            status
        };
        let (status, connection) = tokio::join!(exchange, connection);
        connection.unwrap();
        status
    }

    /// Creates and starts a kfp task, which requests its token as soon as it runs.
    async fn starts(&self, number: usize) {
        let body = BODY.replace("\"AutoRemove\": true", "\"AutoRemove\": false");
        let body = body.replace("567757", &format!("{number:06}"));
        assert_eq!(self.call(&format!("POST /containers/create?name=task-{number}"), body).await, 201);
        assert_eq!(self.call(&format!("POST /containers/{}/start", id(number)), String::new()).await, 204);
        let request = Request::builder()
            .uri("http://host/computeMetadata/v1/instance/service-accounts/default/token")
            .header(relay::CALLER, address(number).to_string())
            .header(relay::HOST, "metadata")
            .header("metadata-flavor", "Google")
            .body(Empty::new())
            .unwrap();
        let mut tunnel = self.tunnel.clone();
        tunnel.ready().await.unwrap();
        let reply = tunnel.send_request(request).await.unwrap();
        assert_eq!(reply.status(), 200);
        reply.into_body().collect().await.unwrap();
    }

    async fn is_removed(&self, number: usize) {
        assert_eq!(self.call(&format!("DELETE /containers/{}", id(number)), String::new()).await, 204);
    }

    /// Waits until exactly `leases` leases are left and no work is pending.
    async fn settles_at(&self, leases: usize) {
        let within = std::time::Instant::now() + Duration::from_secs(20);
        while self.leases.leases().len() != leases {
            assert!(std::time::Instant::now() < within, "{} leases", self.leases.leases().len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The look for a late event takes a second.
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
}

const BODY: &str = include_str!("golden/create/kfp-2.17-lightweight-with-task-env.json");

fn settings(
    upstream: &Path,
    socket: &Path,
    exits: proxy::ExitCodes,
    recorder: Recorder,
    console: Console,
    ask: mpsc::Sender<proxy::LifecycleRequest>,
    tasks: &Tasks,
) -> ProxySettings {
    let policy = Policy {
        rules: vec![],
        default: Some(Arc::new(Identity::default())),
        choose: vec![],
        all: true,
        unknown: None,
    };
    ProxySettings {
        upstream: upstream.into(),
        product: kfp_creds::docker::Product::Docker,
        session: "0123abcd".into(),
        mode: "serve",
        rules: LiveRules::new(Rules {
            policy,
            identities: vec![],
            mounts: vec![],
            compiled: Arc::default(),
            clear_entrypoint: true,
        }),
        writable: Writable::default(),
        recognise: kfp::read,
        client_proxies: Default::default(),
        evidence: Default::default(),
        console,
        wiring: Wiring {
            at: AT,
            names: vec!["metadata.google.internal".into()],
            project: None,
            quota_project: None,
            aws_region: None,
        },
        reserved: Reserved::default(),
        exits,
        closing: Closing::default(),
        socket: socket.into(),
        guard: Arc::default(),
        host_root: Default::default(),
        clients: Default::default(),
        created: Arc::default(),
        cells: None,
        segment: None,
        second: SecondNetwork::Open(AT),
        loopback: None,
        recorder,
        fetching: None,
        ask,
        tasks: tasks.clone(),
    }
}

/// The page's history holds the last 500 runs, so those come first. One container runs all the time, like a
/// notebook: its token is the one that the others get.
#[tokio::test]
async fn a_gone_container_keeps_64_bytes_and_a_live_one_4_kilobytes() {
    const BEFORE: usize = 600;
    const GONE: usize = 3072;
    const ALIVE: usize = 200;
    let session = SessionParts::start().await;
    session.starts(0).await;
    for number in 1..=BEFORE {
        session.starts(number).await;
        session.is_removed(number).await;
    }
    session.settles_at(1).await;
    let before = live();
    for number in BEFORE + 1..=BEFORE + GONE {
        session.starts(number).await;
        session.is_removed(number).await;
    }
    session.settles_at(1).await;
    let gone = (live() - before) as f64 / GONE as f64;
    let before = live();
    for number in BEFORE + GONE + 1..=BEFORE + GONE + ALIVE {
        session.starts(number).await;
    }
    session.settles_at(1 + ALIVE).await;
    let alive = (live() - before) as f64 / ALIVE as f64;
    let last = ContainerId::parse(&id(BEFORE + GONE)).unwrap();
    assert_eq!(session.exits.code(&last), Some(3), "its code is still known");
    assert_eq!(session.lifecycle.cut_off_all().attached as usize, 1 + BEFORE + GONE + ALIVE);
    println!("bytes of a container: {alive:.0} while it lives, {gone:.1} after it is gone");
    session.tasks.finish(Duration::from_secs(5)).await;
    std::fs::remove_dir_all(&session.folder).unwrap();
    assert!(gone <= 64.0, "{gone:.1} bytes stay of a container that is gone");
    assert!(alive <= 4096.0, "a container takes {alive:.0} bytes");
}
