//! What is reported about containers that end, start again and are cut off, with an engine that the test
//! controls.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kfp_creds::console::{Console, OutputForm};
use kfp_creds::docker::Engine;
use kfp_creds::docker::members::KnownMembers;
use kfp_creds::docker::network::Network;
use kfp_creds::docker::proxy::{LifecycleRequest, RelayAt};
use kfp_creds::lifecycle::by_hand::JoinedMember;
use kfp_creds::lifecycle::{Granting, Lifecycle, SessionNetworks};
use kfp_creds::mint::{Mint, Sources};
use kfp_creds::process::Tasks;
use kfp_creds::record::audit::{Audit, AuditSettings};
use kfp_creds::record::{Recorder, Requestor};
use kfp_creds::registry;
use kfp_creds::source::offline::Offline;
use kfp_creds::source::{IdentityRequest, Source};
use kfp_creds::token::{Deadline, HandedOut, MintId, Now, Scopes, TokenKind};
use kfp_creds::workload::{By, ContainerId, Grant, Identity, Task};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::minting::source;
use crate::support::clouds::{self, Script, Scripted};
use crate::support::fake_engine::{Act, FakeEngine};
use crate::support::fake_google::{FakeGoogle, rsa_key};
use crate::support::proxy_fixture::{Heard, Scratch};

const NETWORK: &str = "the-network";

fn container(digit: char) -> ContainerId {
    ContainerId::parse(&digit.to_string().repeat(64)).unwrap()
}

/// The event of a container that stopped.
fn died(container: &ContainerId) -> String {
    let event = serde_json::json!({
        "Type": "container", "Action": "die",
        "Actor": {"ID": container.as_str(), "Attributes": {"exitCode": "3"}},
    });
    format!("{event}\n")
}

struct Fixture {
    lifecycle: Arc<Lifecycle>,
    mint: Arc<Mint>,
    ask: mpsc::Sender<LifecycleRequest>,
    recorder: Recorder,
    heard: Heard,
    audit: PathBuf,
    /// While this is true, the engine connects no container.
    held: Arc<AtomicBool>,
    tasks: Tasks,
    _scratch: Scratch,
}

impl Fixture {
    /// `events` is what the engine sends to every follower of its events.
    async fn new(source: Arc<dyn Source>, events: String) -> Self {
        Self::of_clouds(Sources { google: source, aws: None, azure: None }, events, false).await
    }

    async fn of_clouds(sources: Sources, events: String, keeps_credentials_address: bool) -> Self {
        let scratch = Scratch::new();
        let held = Arc::new(AtomicBool::new(false));
        let connects = held.clone();
        let engine = FakeEngine::start(&scratch.0, move |seen| {
            let path = seen.line.split(' ').nth(1).unwrap();
            let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
            let whole = |body: &str| {
                let length = body.len();
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
                vec![Act::Send(format!("{head}Content-Length: {length}\r\n\r\n{body}").into_bytes())]
            };
            if path.contains("/events") {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n";
                return vec![Act::Send(format!("{head}{events}").into_bytes()), Act::Hold];
            }
            if path.ends_with("/version") {
                let about = r#"{"Version":"20.10.24","ApiVersion":"1.41","Os":"linux","Arch":"ARCH"}"#;
                return whole(&about.replace("ARCH", arch));
            }
            while path.ends_with("/connect") && connects.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(2));
            }
            whole(if path.contains("/containers/json") { "[]" } else { "{}" })
        });
        let engine = Engine::connect(&engine.socket).await.unwrap();
        let (writer, _reader, questions) = registry::new();
        let heard = Heard::default();
        let audit = scratch.0.join("audit.jsonl");
        let settings = AuditSettings { file: audit.clone(), max_bytes: 1 << 20, keep: 1 };
        let recorder = Recorder::new(Some(Audit::open(settings, "0123abcd", Arc::new(|_| {})).unwrap()));
        let tasks = Tasks::new();
        let mint = Mint::of_clouds(sources, tasks.clone(), recorder.clone());
        let network = Network {
            keeps_credentials_address,
            routed: false,
            id: NETWORK.into(),
            name: NETWORK.into(),
            session: "0123abcd".into(),
            subnet: "10.9.0.0/24".into(),
        };
        let addresses = (2..9).map(|last| Ipv4Addr::new(10, 9, 0, last));
        let granting = Granting { writer, mint: mint.clone(), recorder: recorder.clone() };
        let console = Console::new(OutputForm::Text, heard.clone());
        let networks = SessionNetworks {
            engine,
            session: "0123abcd".into(),
            segment: None,
            known: KnownMembers::default(),
        };
        let lifecycle = Lifecycle::new(networks, granting, console, tasks.clone());
        let relay =
            RelayAt { address: Ipv4Addr::new(10, 9, 0, 1), container_credentials: keeps_credentials_address };
        lifecycle.open_second(network, relay, addresses);
        let (ask, asks) = mpsc::channel(4);
        tasks.spawn("attend", lifecycle.clone().attend(asks, questions));
        Self { lifecycle, mint, ask, recorder, heard, audit, held, tasks, _scratch: scratch }
    }

    async fn attach(&self, digit: char, identity: &Arc<Identity>) {
        let task = Task { name: Some(format!("/task-{digit}")), ..Task::default() };
        let grant = Grant {
            container: container(digit),
            identity: identity.clone(),
            by: By::Default,
            task: Arc::new(task),
            secret: None,
        };
        self.lifecycle.attach(grant, kfp_creds::docker::proxy::Attachment::Shared).await.unwrap();
    }

    fn only(&self) -> JoinedMember {
        let members = self.lifecycle.members();
        assert_eq!(members.len(), 1);
        members.into_iter().next().unwrap()
    }

    async fn start(&self, digit: char) {
        let (answer, answered) = oneshot::channel();
        self.ask.send(LifecycleRequest::Starting { container: container(digit), answer }).await.unwrap();
        answered.await.unwrap();
    }

    /// Follows the events until they have ended the lease of the container `digit`.
    async fn follow(&self, digit: char) {
        self.tasks.spawn("events", self.lifecycle.clone().follow_events());
        let leased = || {
            let members = self.lifecycle.members();
            members.iter().any(|member| member.grant.container == container(digit) && member.lease.is_some())
        };
        let end = Instant::now() + Duration::from_secs(10);
        while leased() {
            assert!(Instant::now() < end, "the end was not noticed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn said(&self) -> String {
        String::from_utf8(self.heard.0.lock().unwrap().clone()).unwrap()
    }

    async fn cut_offs(&self) -> Vec<Value> {
        self.audited("cut-off").await
    }

    async fn audited(&self, event: &str) -> Vec<Value> {
        self.recorder.audit().unwrap().flush(Duration::from_secs(5)).await;
        let text = std::fs::read_to_string(&self.audit).unwrap();
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        all.filter(|line| line["event"] == event).collect()
    }
}

fn token() -> HandedOut {
    let life = Duration::from_secs(3600);
    HandedOut { id: MintId::random(), kind: TokenKind::Access, expires: Deadline::after(Now::read(), life) }
}

fn offline() -> Arc<Offline> {
    Arc::new(Offline::new("p", "offline@x").unwrap())
}

#[tokio::test]
async fn cut_off_reports_what_a_stopped_container_holds() {
    let fixture = Fixture::new(offline(), died(&container('a'))).await;
    fixture.attach('a', &Arc::new(Identity::default())).await;
    let held = token();
    fixture.only().lease.unwrap().issued().add(held);
    fixture.follow('a').await;

    let told = fixture.lifecycle.cut_off_for_good(&container('a')).unwrap();
    assert_eq!(told.iter().map(|token| token.id).collect::<Vec<_>>(), [held.id]);
    assert!(fixture.lifecycle.cut_off_for_good(&container('a')).is_none(), "once");
    let said = fixture.said();
    let line = said.lines().find(|line| line.contains("by hand")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains("its last token expires"), "{line}");
    let entries = fixture.cut_offs().await;
    assert_eq!(entries.iter().map(|entry| &entry["why"]).collect::<Vec<_>>(), ["ended", "by_hand"]);
    for entry in &entries {
        assert_eq!(entry["outstanding"], serde_json::json!([held.id.to_string()]));
        assert!(entry["expires"].is_string(), "{entry}");
    }
    assert_eq!(fixture.lifecycle.summary().cut_off, 1, "one lease ended");
}

#[tokio::test]
async fn status_lists_tokens_of_earlier_runs_too() {
    let fixture = Fixture::new(offline(), died(&container('a'))).await;
    fixture.attach('a', &Arc::new(Identity::default())).await;
    let (first, second) = (token(), token());
    fixture.only().lease.unwrap().issued().add(first);
    fixture.follow('a').await;
    fixture.start('a').await;
    // The first token is served from the cache again, and the second is new.
    let lease = fixture.only().lease.unwrap();
    lease.issued().add(first);
    lease.issued().add(second);
    let told = fixture.lifecycle.cut_off_for_good(&container('a')).unwrap();
    assert_eq!(told.iter().map(|token| token.id).collect::<Vec<_>>(), [first.id, second.id]);
    assert_eq!(fixture.cut_offs().await[1]["outstanding"].as_array().unwrap().len(), 2);
    fixture.start('a').await;
    assert!(fixture.only().lease.is_none(), "a start brought the lease back");
}

const WITHIN: Duration = Duration::from_secs(8);

/// An identity of the source's own account.
fn identity(name: &str, scopes: &str) -> Arc<Identity> {
    Arc::new(Identity { name: name.into(), scopes: Scopes::parse(scopes), ..Identity::default() })
}

#[tokio::test]
async fn the_end_of_a_container_erases_tokens_of_no_other_lease() {
    for by_hand in [false, true] {
        let (scratch, fake) = (crate::minting::Scratch::new(), FakeGoogle::start());
        let key = fake.service_account(crate::minting::KEY_ACCOUNT, rsa_key());
        let fixture = Fixture::new(Arc::new(source(&scratch, &key, &fake)), died(&container('a'))).await;
        // Two identities of one account, and one that shares nothing.
        let wide = identity("wide", "https://a.example/x https://a.example/y");
        let narrow = identity("narrow", "https://a.example/x");
        let own = Arc::new(Identity { isolate: true, ..Identity::clone(&narrow) });
        fixture.attach('a', &wide).await;
        fixture.attach('b', &narrow).await;
        fixture.attach('c', &own).await;
        let mut kept = vec![];
        let shared = fixture.mint.request(&wide, None, None);
        for (request, stays) in [
            (shared.clone(), false),
            (fixture.mint.request(&narrow, None, None), true),
            (fixture.mint.request(&own, Some(&container('a')), None), false),
            (fixture.mint.request(&own, Some(&container('c')), None), true),
        ] {
            let token = Arc::downgrade(&fixture.mint.access(&request, None, WITHIN).await.unwrap());
            kept.push((token, stays));
        }
        tokio::time::sleep(Duration::from_millis(1)).await; // wait until the tasks of the mint end
        match by_hand {
            true => drop(fixture.lifecycle.cut_off_for_good(&container('a')).unwrap()),
            false => fixture.follow('a').await,
        }
        let there: Vec<bool> = kept.iter().map(|(token, _)| token.upgrade().is_some()).collect();
        let expected: Vec<bool> = kept.iter().map(|(_, stays)| *stays).collect();
        assert_eq!(there, expected, "by hand: {by_hand}");

        // The next container of that identity causes one new token.
        let before = fake.calls().len();
        fixture.attach('d', &wide).await;
        fixture.mint.access(&shared, None, WITHIN).await.unwrap();
        assert_eq!(fake.calls().len(), before + 1);
    }
}

#[tokio::test]
async fn a_token_minted_ahead_for_an_ended_container_is_dropped() {
    // The container ends while the token is being minted, or before anybody requested one.
    for on_its_way in [true, false] {
        let (scratch, fake) = (crate::minting::Scratch::new(), FakeGoogle::start());
        let key = fake.service_account(crate::minting::KEY_ACCOUNT, rsa_key());
        let fixture = Fixture::new(Arc::new(source(&scratch, &key, &fake)), String::new()).await;
        fake.latency(Duration::from_millis(200));
        let identity = identity("short", "https://a.example/x");
        fixture.attach('a', &identity).await;
        if on_its_way {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        fixture.lifecycle.cut_off_for_good(&container('a')).unwrap();
        fixture.start('a').await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(fake.calls().len(), 1, "made ahead, but not for a container that was cut off");
        assert!(
            fixture.mint.cached(&fixture.mint.request(&identity, None, None), None, Now::read()).is_none(),
            "{on_its_way}"
        );
    }
}

#[tokio::test]
async fn a_container_attached_while_another_ends_has_its_token() {
    let (scratch, fake) = (crate::minting::Scratch::new(), FakeGoogle::start());
    let key = fake.service_account(crate::minting::KEY_ACCOUNT, rsa_key());
    let fixture = Fixture::new(Arc::new(source(&scratch, &key, &fake)), died(&container('a'))).await;
    let identity = identity("shared", "https://a.example/x");
    fixture.attach('a', &identity).await;
    let request = fixture.mint.request(&identity, None, None);
    fixture.mint.access(&request, None, WITHIN).await.unwrap();
    // The engine is slow to connect the next container, so that has no lease yet when this one ends.
    fixture.held.store(true, Ordering::Release);
    let ended = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        fixture.follow('a').await;
        assert!(fixture.mint.cached(&request, None, Now::read()).is_none(), "the token is still cached");
        fixture.held.store(false, Ordering::Release);
    };
    tokio::join!(fixture.attach('b', &identity), ended);
    fixture.mint.access(&request, None, WITHIN).await.unwrap();
    assert_eq!(fake.calls().len(), 2, "made ahead once, and not again for its first request");
    assert!(fixture.mint.cached(&request, None, Now::read()).is_some());
}

/// Sources with a scripted AWS, which the test controls, and an identity that has a role.
fn on_aws() -> (Arc<Scripted>, Sources, Arc<Identity>) {
    let aws = Arc::<Scripted>::default();
    let sources = Sources { google: offline(), aws: Some(aws.clone()), azure: None };
    (aws, sources, Arc::new(Identity { google: false, azure: None, ..clouds::identity() }))
}

#[tokio::test]
async fn an_aws_session_requested_in_the_attach_is_minted_once() {
    let (aws, sources, identity) = on_aws();
    let fixture = Fixture::of_clouds(sources, died(&container('a')), false).await;
    fixture.attach('a', &identity).await;
    fixture.held.store(true, Ordering::Release);
    let ended = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        fixture.follow('a').await;
        fixture.held.store(false, Ordering::Release);
    };
    tokio::join!(fixture.attach('b', &identity), ended);
    let asked = aws.asked.lock().unwrap().clone();
    let of = |digit: char| asked.iter().filter(|name| name.ends_with(&digit.to_string().repeat(12))).count();
    assert_eq!((of('a'), of('b')), (1, 1), "{asked:?}");
}

#[tokio::test]
async fn an_attach_without_google_names_the_aws_role() {
    let (_aws, sources, identity) = on_aws();
    let fixture = Fixture::of_clouds(sources, String::new(), false).await;
    fixture.attach('a', &identity).await;
    let attached = fixture.audited("attach").await;
    assert_eq!(attached.len(), 1);
    assert_eq!(attached[0]["account"], clouds::ROLE);
    assert!(attached[0]["scopes"].is_null(), "{attached:?}");
}

#[tokio::test]
async fn a_late_aws_session_is_reported_once_if_clients_use_imds() {
    let (aws, sources, identity) = on_aws();
    let fixture = Fixture::of_clouds(sources, String::new(), false).await;
    aws.set(Script::Refuse("sts:AssumeRole is missing"));
    fixture.attach('a', &identity).await;
    fixture.attach('b', &identity).await;
    let notices = || fixture.said().lines().filter(|line| line.contains("no session of AWS")).count();
    assert_eq!(notices(), 1, "{}", fixture.said());
    assert!(fixture.said().contains("task-a: no session of AWS yet: sts:AssumeRole is missing; "));
    aws.set(Script::Give);
    fixture.attach('c', &identity).await;
    aws.set(Script::Hold(Arc::default()));
    fixture.attach('d', &identity).await;
    assert_eq!(notices(), 2, "{}", fixture.said());
    assert!(fixture.said().contains("it is not there after 500 ms"));

    let (aws, sources, identity) = on_aws();
    let fixture = Fixture::of_clouds(sources, String::new(), true).await;
    aws.set(Script::Refuse("sts:AssumeRole is missing"));
    fixture.attach('a', &identity).await;
    assert!(!fixture.said().contains("no session of AWS"), "its clients show the reason");
}

#[tokio::test]
async fn a_container_that_starts_again_has_its_token_made_ahead() {
    let (scratch, fake) = (crate::minting::Scratch::new(), FakeGoogle::start());
    let key = fake.service_account(crate::minting::KEY_ACCOUNT, rsa_key());
    let fixture = Fixture::new(Arc::new(source(&scratch, &key, &fake)), died(&container('a'))).await;
    let identity = identity("again", "https://a.example/x");
    fixture.attach('a', &identity).await;
    let request = fixture.mint.request(&identity, None, None);
    fixture.mint.access(&request, None, WITHIN).await.unwrap();
    fixture.follow('a').await;
    assert!(fixture.mint.cached(&request, None, Now::read()).is_none());
    fixture.start('a').await;
    fixture.start('a').await;
    let end = Instant::now() + Duration::from_secs(10);
    while fixture.mint.cached(&request, None, Now::read()).is_none() {
        assert!(Instant::now() < end, "nothing was made ahead");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(fake.calls().len(), 2, "once for each start");
}

#[tokio::test]
async fn a_token_minted_at_the_start_is_kept_for_a_minute() {
    let (scratch, fake) = (crate::minting::Scratch::new(), FakeGoogle::start());
    let key = fake.service_account(crate::minting::KEY_ACCOUNT, rsa_key());
    let fixture = Fixture::new(Arc::new(source(&scratch, &key, &fake)), String::new()).await;
    let request = fixture.mint.request(&identity("first", "https://a.example/x"), None, None);
    fixture.mint.access(&request, None, WITHIN).await.unwrap();
    tokio::time::pause();
    let minute = Duration::from_secs(60);
    for (passed, there) in [(minute / 2, true), (minute / 2 + Duration::from_secs(1), false)] {
        tokio::time::advance(passed).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(fixture.mint.cached(&request, None, Now::read()).is_some(), there);
    }
}

#[tokio::test]
async fn every_minted_token_is_recorded() {
    let (scratch, fake) = (crate::minting::Scratch::new(), FakeGoogle::start());
    let key = fake.service_account(crate::minting::KEY_ACCOUNT, rsa_key());
    let fixture = Fixture::new(Arc::new(source(&scratch, &key, &fake)), String::new()).await;
    let (first, second) =
        (identity("first", "https://a.example/x"), identity("second", "https://a.example/y"));
    let ask = |identity: &Identity| fixture.mint.request(identity, None, None);
    fixture.mint.access(&ask(&first), Some(Requestor::Session(&first)), WITHIN).await.unwrap();
    fixture.attach('a', &first).await;
    fixture.attach('b', &second).await;
    // One token that was already minted, and one that was not.
    let grant = fixture.lifecycle.members()[1].grant.clone();
    fixture.mint.access(&ask(&second), Some(Requestor::Container(&grant)), WITHIN).await.unwrap();
    let audience =
        IdentityRequest { service_account: None, audience: "https://b.example".into(), holder: None };
    fixture.mint.identity(&audience, Some(Requestor::Container(&grant)), WITHIN).await.unwrap();
    let told: Vec<Value> = fixture
        .audited("mint")
        .await
        .iter()
        .map(|line| {
            assert_eq!(line["account"], crate::minting::KEY_ACCOUNT);
            serde_json::json!([line["identity"], line["name"], line["ahead"], line["kind"]])
        })
        .collect();
    let expected = serde_json::json!([
        ["first", null, true, "access"],
        ["second", "/task-b", true, "access"],
        ["second", "/task-b", null, "identity"],
    ]);
    assert_eq!(serde_json::json!(told), expected);
    assert_eq!(fake.calls().len(), told.len());
}
