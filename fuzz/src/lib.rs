//! What strangers write and kfp-creds reads, one function for each kind of input. None may panic, and each says
//! what has to hold besides. `cargo fuzz run NAME` drives them, and so does a bounded run of the tests
//! (`tests/it/fuzz.rs` includes this file), which needs no nightly compiler.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use hyper::Method;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use kfp_creds::config::{self, Environment, Overrides};
use kfp_creds::console::{Console, OutputForm};
use kfp_creds::docker::proxy::{self, Networks, PreviewOutcome, Rules};
use kfp_creds::guard;
use kfp_creds::metadata::{self, Entered, RequestHead, Step, View};
use kfp_creds::mint::Mint;
use kfp_creds::policy::Policy;
use kfp_creds::process::Tasks;
use kfp_creds::readiness::Listening;
use kfp_creds::record::Recorder;
use kfp_creds::server::views::Views;
use kfp_creds::server::{Server, TunnelEnd};
use kfp_creds::source::google::{Endpoints, Google, SearchPaths};
use kfp_creds::source::http::client::{Limits, Upstream};
use kfp_creds::source::offline::Offline;
use kfp_creds::token::{Now, Scopes};
use kfp_creds::workload::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A request of a container: `METHOD TARGET`, then header lines, as golden files have them.
pub fn request_head(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let method = first.next().and_then(|m| Method::from_bytes(m.as_bytes()).ok()).unwrap_or(Method::GET);
    let target = first.next().unwrap_or("/");
    let mut headers = HeaderMap::new();
    for (name, value) in lines.take_while(|line| !line.is_empty()).filter_map(|line| line.split_once(':')) {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value.trim())) {
            headers.append(name, value);
        }
    }
    let host = headers.get("host").and_then(|host| host.to_str().ok()).map(str::to_owned);
    let (host, entered, now) = (host.as_deref(), Entered::Address, Now::read());
    let head = RequestHead { method: &method, target, host, headers: &headers, entered, now };
    // A token is never given to a caller whose request a guard refuses.
    let refused = metadata::guard(&head, &View::default()).is_some();
    let step = metadata::step(&head, &View::default());
    let given = !matches!(step, Step::Reply(_) | Step::Wait(_));
    assert!(!(refused && given), "{text}");
}

/// The body of a create request. What is attached can neither take a neighbour's address nor leave its own network.
pub fn create_body(input: &[u8]) {
    let identity = Identity {
        name: "default".into(),
        service_account: None,
        scopes: Scopes::parse("https://www.googleapis.com/auth/cloud-platform"),
        ..Identity::default()
    };
    let policy =
        Policy { rules: vec![], default: Some(Arc::new(identity)), choose: vec![], all: true, unknown: None };
    let rules = Rules {
        policy,
        identities: vec![],
        mounts: vec![],
        compiled: Arc::default(),
        clear_entrypoint: true,
    };
    // What its inputs name becomes paths of this machine.
    if let Ok(body) = serde_json::from_slice(input) {
        for object in kfp_creds::inputs::of(&body).objects {
            assert!(kfp_creds::inputs::unfit(object.name()).is_none(), "{object}");
            assert!(!object.bucket().contains('/') && !object.bucket().starts_with('.'), "{object}");
        }
    }
    let Ok(judged) = proxy::preview(
        input,
        &rules,
        Networks::default(),
        &guard::GuardRules::default(),
        kfp_creds::kfp::task,
    ) else {
        return;
    };
    if !matches!(judged.outcome, PreviewOutcome::Attach(_)) {
        return;
    }
    let body: serde_json::Value = serde_json::from_slice(&judged.body).expect("what is sent is JSON");
    let host = &body["HostConfig"];
    assert_ne!(host["Privileged"], true);
    assert_ne!(host["NetworkMode"], "host");
    let drops = host["CapDrop"].to_string().to_ascii_uppercase();
    assert!(drops.contains("NET_RAW") || drops.contains("ALL"), "{drops}");
}

/// Bytes of a relay on its tunnel. Without a lease nobody gets a token, whatever the relay says.
pub fn tunnel(input: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let source = Offline::new("project", "offline@kfp-creds.invalid").expect("a key");
        let console = Console::new(OutputForm::Text, std::io::sink());
        let mint = Mint::new(Arc::new(source), Tasks::new(), Recorder::default());
        let (_writer, reader, _questions) = kfp_creds::registry::new();
        let views = Views::default();
        let server = Server::new(reader, mint, views, console, Recorder::default());
        let end = TunnelEnd {
            relay: Ipv4Addr::new(169, 254, 169, 254),
            range: None,
            listening: Listening::default(),
        };
        let (mut relay, host) = tokio::io::duplex(1 << 16);
        let served = server.serve_tunnel(host, end);
        let spoken = async {
            if relay.write_all(input).await.is_ok() {
                let _ = relay.shutdown().await;
            }
            let mut answer = Vec::new();
            let _ = relay.read_to_end(&mut answer).await;
            answer
        };
        let both = async { tokio::join!(served, spoken).1 };
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(20), both).await {
            assert!(!answer.windows(3).any(|three| three == b"eyJ"), "a token without a lease");
        }
    });
}

/// A credential file, as far as it is read before anything is asked of a network. Its error shows nothing of it.
pub fn credential_file(input: &[u8]) {
    let scratch = Scratch::new("credential.json", input);
    let place =
        SearchPaths { google_application_credentials: Some(scratch.0.clone()), ..SearchPaths::default() };
    // One for all inputs: it reads the machine's certificate authorities.
    static UPSTREAM: LazyLock<Arc<Upstream>> =
        LazyLock::new(|| Upstream::new(Limits::default(), Vec::new()).expect("a client"));
    let upstream = UPSTREAM.clone();
    if let Err(error) = Google::find(&place, Endpoints::default(), upstream) {
        let told = error.to_string();
        // A program is named by its path, so that a person knows what was not run.
        let (before, rest) = told.split_once("a program to run (").unwrap_or((&told, ""));
        let after = rest.split_once(')').map_or(rest, |(_, after)| after);
        shows_nothing(&format!("{before}{after}"), input);
    }
}

/// The config file of a person.
pub fn config_file(input: &[u8]) {
    let scratch = Scratch::new("kfp-creds.toml", input);
    let flags = Overrides { config: Some(scratch.0.clone()), ..Overrides::default() };
    let env = Environment { cwd: std::env::temp_dir(), ..Environment::default() };
    if let Ok(config) = config::resolve(&flags, &env) {
        assert!(config.identities.contains_key("default"));
        let _ = config.summary();
    }
}

/// An archive that a client uploads, or a person has scanned.
pub fn archive(input: &[u8]) {
    // In two pieces, because uploads come in pieces.
    let (first, second) = input.split_at(input.len() / 2);
    if let Err(error) = guard::image::scan(std::io::Read::chain(first, second)) {
        shows_nothing(&error.to_string(), input);
    }
    let _ = guard::content::what(input);
}

/// No run of 24 bytes of `input` stands in `message`, but for names of fields.
fn shows_nothing(message: &str, input: &[u8]) {
    let name = |byte: &u8| byte.is_ascii_lowercase() || *byte == b'_';
    let long = input.windows(24).find(|run| {
        run.iter().all(u8::is_ascii_graphic)
            && !run.iter().all(name)
            && message.as_bytes().windows(24).any(|shown| shown == *run)
    });
    assert!(long.is_none(), "{message}");
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, content: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kfpc-fuzz-{}-{number}-{name}", std::process::id()));
        std::fs::write(&path, content).expect("a temporary file");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
