//! Containers, events and comparisons against an engine that answers as a test says.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::tidy::UNSTARTED;
use super::{Granting, Lifecycle, SessionNetworks};
use crate::console::{Console, OutputForm};
use crate::docker::Engine;
use crate::docker::events::ContainerEvent;
use crate::docker::members::KnownMembers;
use crate::docker::network::Network;
use crate::docker::proxy::{Attachment, RelayAt};
use crate::mint::Mint;
use crate::process::Tasks;
use crate::record::Recorder;
use crate::registry::{self, Lease};
use crate::source::offline::Offline;
use crate::workload::{By, ContainerId, Grant, Identity, Task};

/// What the engine's inspection of a container says that runs at the first address.
const RUNS: &str = r#"{"State":{"Running":true},"NetworkSettings":{"Networks":{"x":{"NetworkID":"n","IPAddress":"10.0.0.2"}}}}"#;
const INSPECT: &str = "/json HTTP";
const LIST: &str = "/containers/json";

/// An engine that reports a version, accepts every connect, and says that no container runs or is on a network,
/// unless a test says otherwise.
#[derive(Debug, Default)]
struct FakeEngine {
    /// For request lines that contain the first; later ones come first.
    answers: Mutex<Vec<(&'static str, u16, String)>>,
    asked: Mutex<Vec<String>>,
    /// The next answer to such a request line waits for `go`.
    held: Mutex<Option<&'static str>>,
    go: Notify,
}

impl FakeEngine {
    fn answers(&self, to: &'static str, status: u16, body: &str) {
        self.answers.lock().unwrap().insert(0, (to, status, body.into()));
    }

    fn asked(&self, what: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|line| line.contains(what))
    }

    fn answer(&self, line: &str) -> (u16, String) {
        self.asked.lock().unwrap().push(line.into());
        let answers = self.answers.lock().unwrap();
        if let Some((_, status, body)) = answers.iter().find(|(to, ..)| line.contains(to)) {
            return (*status, body.clone());
        }
        let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        let body = match () {
            () if line.contains("/version") => {
                format!(r#"{{"Version":"20.10","ApiVersion":"1.41","Os":"linux","Arch":"{arch}"}}"#)
            }
            () if line.contains(LIST) => "[]".into(),
            () => r#"{"State":{"Running":false}}"#.into(),
        };
        (200, body)
    }

    async fn serve(self: Arc<Self>, mut stream: tokio::net::UnixStream) {
        let mut head = vec![0; 4096];
        let read = stream.read(&mut head).await.unwrap();
        let head = String::from_utf8_lossy(&head[..read]);
        let line = head.lines().next().unwrap_or_default();
        let (status, body) = self.answer(line);
        let held = self.held.lock().unwrap().take_if(|held| line.contains(*held));
        if held.is_some() {
            self.go.notified().await;
        }
        let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n");
        let reply = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        // A client that only tests whether anybody listens has disconnected by now.
        let _ = stream.write_all(reply.as_bytes()).await;
    }
}

/// A session whose second network has the id `n` and the name `kfp-creds`.
struct Fixture {
    lifecycle: Arc<Lifecycle>,
    engine: Arc<FakeEngine>,
    folder: PathBuf,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn fixture(name: &str) -> Fixture {
    let folder = std::env::temp_dir().join(format!("kc-lifecycle-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (tasks, fake) = (Tasks::new(), Arc::new(FakeEngine::default()));
    let socket = folder.join("engine.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let (answering, each) = (fake.clone(), tasks.clone());
    tasks.spawn("engine", async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            each.spawn("connection", answering.clone().serve(stream));
        }
    });
    let engine = Engine::connect(&socket).await.unwrap();
    let recorder = Recorder::default();
    let source = Arc::new(Offline::new("p", "a@p.invalid").unwrap());
    let mint = Mint::new(source, tasks.clone(), recorder.clone());
    let network = Network {
        id: "n".into(),
        name: "kfp-creds".into(),
        session: "s".into(),
        subnet: "10.0.0.0/24".into(),
        keeps_credentials_address: false,
        routed: false,
    };
    let (writer, _reader, _questions) = registry::new();
    let granting = Granting { writer, mint, recorder };
    let addresses = (2..9).map(|last| Ipv4Addr::new(10, 0, 0, last));
    let relay = RelayAt { address: Ipv4Addr::new(10, 0, 0, 1), container_credentials: false };
    let console = Console::new(OutputForm::Quiet, std::io::sink());
    let known = KnownMembers::default();
    let networks = SessionNetworks { engine, session: "s".into(), segment: None, known };
    let lifecycle = Lifecycle::new(networks, granting, console, tasks);
    lifecycle.open_second(network, relay, addresses);
    Fixture { lifecycle, engine: fake, folder }
}

impl Fixture {
    async fn attach(&self, container: &ContainerId) {
        let (container, identity) = (container.clone(), Arc::new(Identity::default()));
        let grant =
            Grant { container, identity, by: By::Default, task: Arc::new(Task::default()), secret: None };
        self.lifecycle.attach(grant, Attachment::Shared).await.unwrap();
    }

    fn on(&self, event: ContainerEvent) {
        self.lifecycle.clone().on(event, None);
    }

    fn died(&self, container: &ContainerId) {
        self.on(ContainerEvent::Died { container: container.clone(), code: Some(0), at: None });
    }

    fn is_suspended(&self) -> bool {
        self.lifecycle.state().strangers.are_on("n")
    }

    /// `None` without a lease; else whether it is confirmed.
    fn lease(&self, container: &ContainerId) -> Option<bool> {
        let state = self.lifecycle.state();
        state.containers.get(container)?.lease.as_ref().map(Lease::confirmed)
    }

    /// Runs `asking`, whose next question `what` is answered only after `meanwhile`, as it stood before.
    async fn held(&self, what: &'static str, asking: impl Future, meanwhile: impl Future) {
        *self.engine.held.lock().unwrap() = Some(what);
        let meanwhile = async {
            until(|| self.engine.held.lock().unwrap().is_none()).await;
            meanwhile.await;
            self.engine.go.notify_one();
        };
        tokio::join!(asking, meanwhile);
    }

    fn has_run(&self, container: &ContainerId) -> bool {
        self.lifecycle.state().containers.get(container).is_some_and(|attached| attached.started)
    }
}

fn container(digit: &str) -> ContainerId {
    ContainerId::parse(&digit.repeat(64)).unwrap()
}

async fn until(done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap();
}

#[tokio::test]
async fn a_container_that_ended_before_its_inspection_has_run() {
    let session = fixture("ended").await;
    let [ran, ended, never] = ["a", "b", "c"].map(container);
    for container in [&ran, &ended, &never] {
        session.attach(container).await;
    }
    session.on(ContainerEvent::Started(ran.clone()));
    session.died(&ended);
    assert!(session.has_run(&ran) && session.has_run(&ended) && !session.has_run(&never));
}

#[tokio::test]
async fn a_stranger_that_left_during_a_gap_or_ended_is_forgotten() {
    let session = fixture("stranger").await;
    session.attach(&container("a")).await;
    let stranger = container("b");
    assert!(session.lifecycle.suspend(&stranger, "n") && session.is_suspended());
    assert!(session.lifecycle.resync().await && !session.is_suspended());
    assert!(session.lifecycle.suspend(&stranger, "n"));
    session.died(&stranger);
    until(|| !session.is_suspended()).await;
    // And without an event.
    assert!(session.lifecycle.suspend(&stranger, "n"));
    session.lifecycle.compare().await;
    assert!(!session.is_suspended());
}

#[tokio::test]
async fn no_lease_is_confirmed_before_the_networks_are_listed() {
    let session = fixture("unchecked").await;
    let attached = container("a");
    session.attach(&attached).await;
    session.engine.answers(INSPECT, 200, RUNS);
    session.lifecycle.confirm(&attached).await;
    assert_eq!(session.lease(&attached), Some(true));
    session.lifecycle.doubt_all();
    session.engine.answers(LIST, 500, r#"{"message":"not now"}"#);
    assert!(!session.lifecycle.resync().await);
    session.lifecycle.confirm(&attached).await;
    assert_eq!(session.lease(&attached), Some(false), "a stranger may be there");
    session.engine.answers(LIST, 200, "[]");
    assert!(session.lifecycle.resync().await);
    assert_eq!(session.lease(&attached), Some(true));
}

#[tokio::test]
async fn an_engine_error_disconnects_no_container() {
    let session = fixture("idle").await;
    let idle = container("a");
    session.attach(&idle).await;
    let long_ago = Instant::now().checked_sub(UNSTARTED + Duration::from_secs(1)).unwrap();
    session.lifecycle.state().containers.get_mut(&idle).unwrap().created = long_ago;
    session.engine.answers(INSPECT, 500, r#"{"message":"not now"}"#);
    session.lifecycle.give_back_unstarted().await;
    assert!(session.lease(&idle).is_some() && !session.engine.asked("/disconnect"));
    session.engine.answers(INSPECT, 404, r#"{"message":"no such container"}"#);
    session.lifecycle.give_back_unstarted().await;
    assert!(session.lease(&idle).is_none() && !session.engine.asked("/disconnect"));
}

#[tokio::test]
async fn a_container_started_before_its_lease_is_no_stranger() {
    let session = fixture("early").await;
    let early = container("a");
    assert!(session.lifecycle.suspend(&early, "n"));
    session.attach(&early).await;
    assert!(!session.is_suspended());
}

#[tokio::test]
async fn the_comparison_finds_a_lost_start_and_a_lost_removal() {
    let session = fixture("compare").await;
    let [started, removed] = ["a", "b"].map(container);
    session.attach(&started).await;
    session.attach(&removed).await;
    session.died(&removed);
    session.engine.answers(INSPECT, 404, r#"{"message":"no such container"}"#);
    session.engine.answers("aaaa/json", 200, RUNS);
    let list = format!(
        r#"[{{"Id":"{}","State":"running","Labels":{{"kfp-creds.session":"s"}}}}]"#,
        started.as_str()
    );
    session.engine.answers(LIST, 200, &list);
    session.lifecycle.compare().await;
    assert_eq!(session.lease(&started), Some(true));
    assert!(!session.lifecycle.state().containers.contains_key(&removed), "its address is free");
}

#[tokio::test]
async fn an_old_inspection_does_not_end_a_new_run() {
    let session = fixture("old").await;
    let attached = container("a");
    session.attach(&attached).await;
    session.engine.answers(INSPECT, 200, RUNS);
    session.lifecycle.confirm(&attached).await;
    // The next inspection sees the container between two runs, and is answered late.
    session.engine.answers(INSPECT, 200, r#"{"State":{"Running":false}}"#);
    let restarting = async {
        session.engine.answers(INSPECT, 200, RUNS);
        session.died(&attached);
        session.on(ContainerEvent::Started(attached.clone()));
        until(|| session.lease(&attached) == Some(true)).await;
    };
    session.held(INSPECT, session.lifecycle.look_at(&attached, "n"), restarting).await;
    assert_eq!(session.lease(&attached), Some(true));
}

#[tokio::test]
async fn a_network_that_an_event_names_is_recognised() {
    let session = fixture("named").await;
    session.attach(&container("a")).await;
    session.on(ContainerEvent::Connected { container: container("b"), network: "kfp-creds".into() });
    assert!(session.is_suspended());
}

#[tokio::test]
async fn a_stranger_that_comes_during_the_listing_stays_one() {
    let session = fixture("during").await;
    session.attach(&container("a")).await;
    let connecting = async { assert!(session.lifecycle.suspend(&container("b"), "n")) };
    session.held(LIST, session.lifecycle.look_for_strangers(true), connecting).await;
    assert!(session.is_suspended());
}

#[tokio::test]
async fn an_old_inspection_does_not_forget_a_stranger_that_is_back() {
    let session = fixture("back").await;
    session.attach(&container("a")).await;
    let stranger = container("b");
    assert!(session.lifecycle.suspend(&stranger, "n"));
    let restarting = async {
        session.lifecycle.stranger_gone(&stranger, None);
        assert!(session.lifecycle.suspend(&stranger, "n"));
    };
    session.held(INSPECT, session.lifecycle.look_at_stranger(&stranger, "n"), restarting).await;
    assert!(session.is_suspended());
}

#[tokio::test]
async fn a_repeated_start_of_a_run_that_ended_gives_no_lease() {
    let session = fixture("repeated").await;
    let ended = container("a");
    session.attach(&ended).await;
    session.engine.answers(INSPECT, 200, RUNS);
    session.lifecycle.confirm(&ended).await;
    session.lifecycle.state().containers.get_mut(&ended).unwrap().begun = Some(1);
    let state = r#"{"State":{"Running":false,"StartedAt":"2026-01-01T00:00:00Z","FinishedAt":"2026-01-01T00:01:00Z"}}"#;
    session.engine.answers(INSPECT, 200, state);
    assert!(session.lifecycle.resync().await);
    assert_eq!(session.lease(&ended), None);
    let started = |seconds: i64| {
        let at = (1_767_225_600 + seconds) * 1_000_000_000;
        session.lifecycle.clone().on(ContainerEvent::Started(ended.clone()), Some(at));
    };
    started(1);
    assert_eq!(session.lease(&ended), None, "it is the start of the run that ended");
    started(61);
    assert!(session.lease(&ended).is_some());
}

#[tokio::test]
async fn a_start_under_way_keeps_its_lease() {
    let session = fixture("pending").await;
    let attached = container("a");
    session.attach(&attached).await;
    session.engine.answers(INSPECT, 200, RUNS);
    session.lifecycle.confirm(&attached).await;
    session.died(&attached);
    session.engine.answers(INSPECT, 200, r#"{"State":{"Running":false}}"#);
    session.lifecycle.readmit(&attached);
    session.lifecycle.look_at(&attached, "n").await;
    assert_eq!(session.lease(&attached), Some(false));
}

#[tokio::test]
async fn a_listing_from_before_a_break_confirms_nothing() {
    let session = fixture("break").await;
    session.attach(&container("a")).await;
    session.lifecycle.doubt_all();
    let breaking = async { session.lifecycle.doubt_all() };
    session.held(LIST, session.lifecycle.resync(), breaking).await;
    assert!(session.lifecycle.state().unchecked);
}

/// This machine's clock may be ahead of the engine's.
#[tokio::test]
async fn the_events_go_on_after_the_last_one_by_the_engines_clock() {
    let session = fixture("since").await;
    let id = container("c");
    let event = format!(
        r#"{{"Type":"container","Action":"start","Actor":{{"ID":"{}"}},"timeNano":1767225600000000007}}"#,
        id.as_str()
    );
    session.engine.answers("/events", 200, &event);
    let asked = until(|| session.engine.asked("since=1767225600.000000008"));
    tokio::select! {
        () = session.lifecycle.clone().follow_events() => unreachable!("the session goes on"),
        () = asked => {}
    }
}
