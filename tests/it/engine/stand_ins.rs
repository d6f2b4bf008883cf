//! Attacks on naive counterparts of our parts: a proxy that judges only the first request of a connection, a
//! follower of events that trusts their order, a server without limits per caller, a tunnel with default
//! HTTP/2. Each is written here, honestly and simply, and each attack that our parts refuse works on it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::attacks::{Made, address, inspect, unused};
use super::baselines::Plain;
use super::floods::{ATTACKER, IN_TIME, facts};
use crate::support::delayed_engine::DelayedEngine;
use crate::support::proxy_fixture;
use crate::support::raw::until;
use crate::support::session::{Folder, docker_at, engine_socket, raw, task_image};

const REFUSED: &str = "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// Refuses creates that ask for a capability, and copies everything after a request that it trusts.
struct Copying(PathBuf);

impl Copying {
    /// `trusts` judges each head until it returns true.
    fn start(folder: &Path, engine: &Path, trusts: fn(&str) -> bool) -> Self {
        let socket = folder.join(format!("{}.sock", unused("p")));
        let listener = UnixListener::bind(&socket).unwrap();
        let engine = engine.to_owned();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let engine = engine.clone();
                std::thread::spawn(move || Self::carry(client, &engine, trusts));
            }
        });
        Self(socket)
    }

    fn carry(mut client: UnixStream, engine: &Path, trusts: fn(&str) -> bool) -> Option<()> {
        let mut reader = BufReader::new(client.try_clone().ok()?);
        let mut upstream = UnixStream::connect(engine).ok()?;
        let (mut from, mut to) = (upstream.try_clone().ok()?, client.try_clone().ok()?);
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            to.shutdown(Shutdown::Both)
        });
        loop {
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                let at = head.len();
                (reader.read_line(&mut head).ok()? > 0).then_some(())?;
                if let Some(value) = head[at..].strip_prefix("Content-Length: ") {
                    length = value.trim().parse().ok()?;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
            if head.contains("/containers/create") && String::from_utf8_lossy(&body).contains("CapAdd") {
                client.write_all(REFUSED.as_bytes()).ok()?;
                return client.shutdown(Shutdown::Both).ok();
            }
            upstream.write_all(&[head.as_bytes(), &body].concat()).ok()?;
            if trusts(&head) {
                break;
            }
        }
        std::io::copy(&mut reader, &mut upstream).ok()?;
        upstream.shutdown(Shutdown::Write).ok()
    }
}

fn create(name: &str) -> String {
    let body = json!({"Image": task_image(), "HostConfig": {"CapAdd": ["NET_ADMIN"]}}).to_string();
    format!(
        "POST /v1.41/containers/create?name={name} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Our part: `the_proxy_reads_every_create_as_the_engine_does`.
#[test]
fn a_naive_proxy_lets_a_pipelined_create_through() {
    let folder = Folder::new("smuggled");
    let ping = "GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n";
    // The engine does not upgrade here, and reads the next request.
    let upgrade = "GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
    let first = Copying::start(&folder.0, &engine_socket(), |_| true);
    let upgraded = Copying::start(&folder.0, &engine_socket(), |head| head.contains("Upgrade: "));
    for (proxy, before, made) in
        [(&first, "", false), (&first, ping, true), (&upgraded, ping, false), (&upgraded, upgrade, true)]
    {
        let container = Made("container", unused("smuggled"));
        let reply = proxy_fixture::raw(&proxy.0, before.to_string() + &create(&container.1));
        let has = inspect(&container.1)["HostConfig"]["CapAdd"].to_string().contains("NET_ADMIN");
        assert_eq!(has, made, "{before:?}: {reply}");
    }
}

/// Our part: the same. Not every engine accepts HTTP/2 without TLS; this one does.
#[tokio::test]
async fn a_naive_proxy_lets_a_create_in_http_2_through() {
    let folder = Folder::new("preface");
    let created = Arc::new(AtomicUsize::new(0));
    let engine = &tokio::net::UnixListener::bind(folder.0.join("engine.sock")).unwrap();
    let counted = created.clone();
    let serving = async move {
        let (stream, _) = engine.accept().await.unwrap();
        let service = service_fn(move |request: Request<Incoming>| {
            let counted = counted.clone();
            async move {
                assert_eq!(request.uri().path(), "/v1.41/containers/create");
                let body = request.into_body().collect().await.unwrap().to_bytes();
                assert!(String::from_utf8_lossy(&body).contains("CapAdd"));
                counted.fetch_add(1, Ordering::SeqCst);
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
            }
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        server.serve_connection(TokioIo::new(stream), service).await
    };
    let proxy = Copying::start(&folder.0, &folder.0.join("engine.sock"), |_| true);
    let attacking = async {
        let stream = tokio::net::UnixStream::connect(&proxy.0).await.unwrap();
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        let body = Full::new(Bytes::from(r#"{"HostConfig":{"CapAdd":["NET_ADMIN"]}}"#));
        let request = Request::post("http://d/v1.41/containers/create").body(body).unwrap();
        tokio::select! {
            reply = sender.send_request(request) => assert_eq!(reply.unwrap().status(), 200),
            ended = connection => panic!("{ended:?}"),
        }
    };
    tokio::select! {
        ended = serving => panic!("{ended:?}"),
        () = attacking => {}
    }
    assert_eq!(created.load(Ordering::SeqCst), 1);
    // In HTTP/1 the proxy notices the create.
    assert!(
        tokio::task::spawn_blocking(move || proxy_fixture::raw(&proxy.0, create("x")))
            .await
            .unwrap()
            .contains("403")
    );
}

/// Trusts every event when it arrives: which containers run, and at which address.
#[derive(Clone, Default)]
struct NaiveTracker {
    runs: Arc<Mutex<HashMap<String, bool>>>,
    at: Arc<Mutex<HashMap<String, String>>>,
}

impl NaiveTracker {
    fn follow(events: &Path, network: &str) -> Self {
        let this = Self::default();
        let mut stream = UnixStream::connect(events).unwrap();
        stream.write_all(b"GET /v1.41/events HTTP/1.1\r\nHost: d\r\n\r\n").unwrap();
        let (follower, network) = (this.clone(), network.to_owned());
        std::thread::spawn(move || {
            let lines = BufReader::new(stream).lines().map_while(Result::ok);
            for line in lines.filter(|line| line.starts_with('{')) {
                let event: Value = serde_json::from_str(&line).unwrap();
                follower.on(&event["Action"], event["Actor"]["ID"].as_str().unwrap_or_default(), &network);
            }
        });
        this
    }

    fn on(&self, action: &Value, id: &str, network: &str) {
        if action == "start" {
            self.at.lock().unwrap().insert(address(id, network), id.into());
            self.runs.lock().unwrap().insert(id.into(), true);
        } else if action == "die" {
            self.at.lock().unwrap().retain(|_, holder| holder != id);
            self.runs.lock().unwrap().insert(id.into(), false);
        }
    }

    fn runs(&self, id: &str) -> bool {
        self.runs.lock().unwrap().get(id) == Some(&true)
    }

    fn holder(&self, at: &str) -> Option<String> {
        self.at.lock().unwrap().get(at).cloned()
    }
}

/// Our part: `a_die_that_comes_after_the_next_start_ends_nobodys_lease`,
/// `a_late_die_event_ends_only_its_own_lease`.
#[test]
fn trusting_the_order_of_events_ends_the_wrong_lease() {
    const LATE: Duration = Duration::from_millis(2500);
    let folder = Folder::new("as-told");
    let between = DelayedEngine::start(&folder.0, &engine_socket());
    let network = Made("network", unused("as-told"));
    raw(&["network", "create", "--internal", &network.1]);
    let told = NaiveTracker::follow(&between.socket, &network.1);
    let image = task_image();
    let create = ["create", "--network", &network.1, &image, "sleep", "120"];
    let [first, second] = [(); 2].map(|()| Made("container", raw(&create)));
    raw(&["start", &first.1]);
    until("the start event arrives", Duration::from_secs(10), || told.runs(&first.1));

    between.hold_beyond_start("die", &first.1, LATE);
    raw(&["restart", "-t", "0", &first.1]);
    let late = || between.place("die", &first.1) > between.place("start", &first.1);
    until("the die comes after the start", Duration::from_secs(10), late);
    until("the tracker takes it for dead", Duration::from_secs(5), || !told.runs(&first.1));
    assert_eq!(inspect(&first.1)["State"]["Running"], true, "but it runs");

    raw(&["restart", "-t", "0", &first.1]);
    until("the next start event arrives", Duration::from_secs(10), || told.runs(&first.1));
    let at = address(&first.1, &network.1);
    // Longer than the rest of the test takes.
    between.hold("die", &first.1, 8 * LATE);
    between.hold("start", &second.1, 8 * LATE);
    raw(&["kill", &first.1]);
    raw(&["start", &second.1]);
    assert_eq!(address(&second.1, &network.1), at, "the engine gives it to the next at once");
    assert_eq!(
        told.holder(&at),
        Some(first.1.clone()),
        "the tracker takes a caller there for the dead container"
    );
    assert_eq!(inspect(&first.1)["State"]["Running"], false);
}

const NAIVE: &str = include_str!("../../python/naive.py");

/// One container starves the others at a server without limits per caller. Our part:
/// `ten_thousand_connections_of_one_container_delay_no_other`,
/// `slow_endless_and_huge_requests_cost_their_sender_only`.
#[test]
fn without_limits_one_container_starves_all_others() {
    let plain = Plain::of(&[NAIVE]);
    let (image, host) = (task_image(), format!("GCE_METADATA_HOST={}", plain.at));
    let attacks: [&[&str]; 3] =
        [&["connections", "10000", "6"], &["loris", "400", "5"], &["waits", "400", "5"]];
    for attack in attacks {
        let victim = Made("container", unused("victim"));
        let name = ["--name", &victim.1, "--network", &plain.network.1, "-e", &host];
        let does = [&image, "python3", "-c", ATTACKER, "victim", "6"];
        let run = [&["run"], &name[..], &does].concat().iter().map(ToString::to_string).collect::<Vec<_>>();
        let watching = std::thread::spawn(move || {
            docker_at(&engine_socket(), &run.iter().map(String::as_str).collect::<Vec<_>>())
        });
        until("the victim runs", Duration::from_secs(20), || inspect(&victim.1)["State"]["Running"] == true);
        std::thread::sleep(Duration::from_millis(700));
        let done = plain.attack(attack);
        let served = facts(&watching.join().unwrap());
        eprintln!("{attack:?}: {done}\nthe other container {served}");
        assert!(served["p50"].as_f64().unwrap() < IN_TIME, "served before that: {served}");
        assert!(served["max"].as_f64().unwrap() > IN_TIME, "{attack:?} did nothing to {served}");
    }
    let done = plain.attack(&["heads"]);
    assert_eq!(done, json!({"200": 200}), "heads of every size, up to a megabyte");
    let done = plain.attack(&["bodies"]);
    assert_eq!(done["outcomes"], json!(["all taken", "all taken"]), "{done}");
}

/// Our part: `the_caller_is_identified_by_its_socket`.
#[test]
fn a_trusted_header_lets_a_container_pose_as_another() {
    let plain = Plain::of(&[NAIVE]);
    let (_neighbour, victim) = plain.sleeper();
    let ask =
        |lie: String| format!(r"GET / HTTP/1.1\r\nHost: metadata\r\nConnection: close\r\n{lie}\r\n\r\n");
    let requests = ["kfp-creds-caller", "X-Real-IP"].map(|name| ask(format!("{name}: {victim}")));
    let told = plain.attack(&[&["raw"][..], &[&requests[0], &requests[1]]].concat());
    for reply in told["replies"].as_array().unwrap() {
        assert!(reply.as_str().unwrap().contains(&format!("of {victim}")), "{told}");
    }
}

/// One frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The next frame of an HTTP/2 server: kind and stream.
async fn next(from: &mut (impl AsyncRead + Unpin)) -> Option<(u8, u32)> {
    let mut head = [0; 9];
    from.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    tokio::io::copy(&mut from.take(length.into()), &mut tokio::io::sink()).await.ok()?;
    Some((head[3], u32::from_be_bytes(head[5..].try_into().unwrap())))
}

/// Our part: `hanging_up_before_the_answer_does_not_end_the_tunnel`. For each caller that hangs up, a relay
/// resets a stream that it has opened.
#[tokio::test]
async fn with_plain_http_2_one_hang_up_ends_the_tunnel_of_all() {
    let (headers, reset, settings, go_away) = (1, 3, 4, 7);
    let (mut near, far) = tokio::io::duplex(1 << 20);
    let service = service_fn(async |_: Request<Incoming>| {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let serving = server.serve_connection(TokioIo::new(far), service);
    // `GET / http` in HPACK's static table; a whole request.
    let ask = |stream| frame(headers, 5, stream, &[0x82, 0x84, 0x86]);
    let attacking = async {
        let start = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(settings, 0, 0, &[]), &ask(1)];
        near.write_all(&start.concat()).await.unwrap();
        while next(&mut near).await.unwrap() != (headers, 1) {}
        let hung_up = (0..100).map(|number| 3 + 2 * number);
        let mut all: Vec<u8> = hung_up
            .flat_map(|stream| [ask(stream), frame(reset, 0, stream, &8_u32.to_be_bytes())].concat())
            .collect();
        all.extend(ask(203)); // the request of a neighbour
        near.write_all(&all).await.unwrap();
        let mut told = vec![];
        while let Some(one) = next(&mut near).await {
            told.push(one);
        }
        told
    };
    let within = tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(attacking, serving) });
    let (told, served) = within.await.unwrap();
    eprintln!("{told:?}, {served:?}");
    assert!(told.contains(&(go_away, 0)) && !told.contains(&(headers, 203)), "{told:?}");
}
