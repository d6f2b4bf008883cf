//! A server with scripted sources of AWS and Azure, which tests call as the relay does or on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper::header::{CONNECTION, HOST, HeaderMap};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kfp_creds::cloud::{AwsIdentity, AzureIdentity};
use kfp_creds::console::{Console, OutputForm};
use kfp_creds::failure::Reason;
use kfp_creds::metadata::View;
use kfp_creds::mint::{Mint, Sources};
use kfp_creds::process::Tasks;
use kfp_creds::readiness::Listening;
use kfp_creds::record::Recorder;
use kfp_creds::registry::{self, Lease, Writer};
use kfp_creds::relay;
use kfp_creds::secret::Secret;
use kfp_creds::server::views::{AwsFacts, AzureFacts, Views};
use kfp_creds::server::{LoopbackCallers, Server, TunnelEnd};
use kfp_creds::source::aws::{AwsRequest, AwsSource};
use kfp_creds::source::azure::{AzurePrincipal, AzureRequest, AzureSource};
use kfp_creds::source::offline::Offline;
use kfp_creds::source::{Pending, Reloaded, SourceError};
use kfp_creds::token::{AwsSession, AzureToken, Deadline, MintId, Now, RenderedReply};
use kfp_creds::workload::{By, ContainerId, Grant, Identity, Task};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

pub(crate) const ROLE: &str = "arn:aws:iam::123456789012:role/loader";
pub(crate) const STORAGE: &str = "https://storage.azure.com";

/// The result of a source's next call.
#[derive(Clone, Debug, Default)]
pub(crate) enum Script {
    #[default]
    Give,
    Refuse(&'static str),
    Fail(&'static str),
    /// Fails with a Retry-After of this many seconds.
    Busy(u64),
    /// Waits for this, then gives.
    Hold(Arc<Notify>),
}

/// The source of both clouds. Records its calls.
#[derive(Debug, Default)]
pub(crate) struct Scripted {
    pub(crate) script: Mutex<Script>,
    pub(crate) calls: AtomicUsize,
    pub(crate) asked: Mutex<Vec<String>>,
    /// How often the server asked for Azure's principal, which it does for each request that it reads.
    pub(crate) principals: AtomicUsize,
    /// The result of the next reload.
    pub(crate) reload: Mutex<Option<Reloaded>>,
}

impl Scripted {
    pub(crate) fn set(&self, script: Script) {
        *self.script.lock().unwrap() = script;
    }

    async fn play(&self, asked: String) -> Result<usize, SourceError> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        self.asked.lock().unwrap().push(asked);
        let script = self.script.lock().unwrap().clone();
        match script {
            Script::Give => {}
            Script::Refuse(why) => return Err(SourceError::refused(why)),
            Script::Fail(why) => return Err(SourceError::transient(why)),
            Script::Busy(seconds) => {
                let why = Reason::from("it is busy").after(Some(Duration::from_secs(seconds)));
                return Err(SourceError::transient(why));
            }
            Script::Hold(until) => until.notified().await,
        }
        Ok(number)
    }
}

impl AwsSource for Scripted {
    fn kind(&self) -> String {
        "scripted".into()
    }

    fn session<'a>(&'a self, ask: &'a AwsRequest) -> Pending<'a, Result<AwsSession, SourceError>> {
        Box::pin(async move {
            assert_eq!(ask.identity.role.as_deref(), Some(ROLE));
            let number = self.play(ask.session_name.clone()).await?;
            let secret = |what: &str| Secret::new(format!("canary-{what}-{number}"));
            Ok(AwsSession {
                access_key_id: secret("key-id"),
                secret_access_key: secret("secret-key"),
                session_token: secret("session-token"),
                expires: Deadline::after(Now::read(), Duration::from_secs(3600)),
                account: None,
                user_id: None,
                id: MintId::random(),
                shown: RenderedReply::default(),
            })
        })
    }

    fn reload(&self) -> Reloaded {
        self.reload.lock().unwrap().take().unwrap_or(Reloaded::Same)
    }
}

impl AzureSource for Scripted {
    fn kind(&self) -> String {
        "scripted".into()
    }

    fn principal(&self) -> AzurePrincipal {
        self.principals.fetch_add(1, Ordering::SeqCst);
        AzurePrincipal { tenant: Some("tenant-of-source".into()), client_id: Some("client-of-source".into()) }
    }

    fn token<'a>(&'a self, ask: &'a AzureRequest) -> Pending<'a, Result<AzureToken, SourceError>> {
        Box::pin(async move {
            let number = self.play(ask.resource.clone()).await?;
            Ok(AzureToken {
                value: Secret::new(format!("canary-azure-{number}")),
                expires: Deadline::after(Now::read(), Duration::from_secs(3600)),
                resource: ask.resource.clone(),
                client_id: None,
                id: MintId::random(),
                shown: RenderedReply::default(),
            })
        })
    }

    fn reload(&self) -> Reloaded {
        self.reload.lock().unwrap().take().unwrap_or(Reloaded::Same)
    }
}

/// An identity with both clouds, and with Google unless changed.
pub(crate) fn identity() -> Identity {
    Identity {
        name: "loader".into(),
        aws: Some(Arc::new(AwsIdentity { role: Some(ROLE.into()), ..AwsIdentity::default() })),
        azure: Some(Arc::new(AzureIdentity { client_id: None, resources: vec![STORAGE.into()] })),
        ..Identity::default()
    }
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A server that the test calls as the relay does.
pub(crate) struct Clouds {
    pub(crate) server: Arc<Server>,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) mint: Arc<Mint>,
    pub(crate) recorder: Recorder,
    pub(crate) aws: Arc<Scripted>,
    pub(crate) azure: Arc<Scripted>,
    pub(crate) tasks: Tasks,
    tunnel: http2::SendRequest<Empty<Bytes>>,
    _questions: registry::Questions,
}

pub(crate) const RELAY: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

impl Clouds {
    pub(crate) async fn start() -> Self {
        let (aws, azure, tasks) = (Arc::<Scripted>::default(), Arc::<Scripted>::default(), Tasks::new());
        let google = Arc::new(Offline::new("project", "offline@kfp-creds.invalid").unwrap());
        let sources = Sources { google, aws: Some(aws.clone()), azure: Some(azure.clone()) };
        let recorder = Recorder::default();
        let mint = Mint::of_clouds(sources, tasks.clone(), recorder.clone());
        let (writer, reader, questions) = registry::new();
        let views = Views {
            base: View { accounts: vec![], hosts: Arc::from(["127.0.0.1".to_string()]), ..View::default() },
            aws: Some(AwsFacts { region: Some("eu-west-1".into()) }),
            azure: Some(AzureFacts::default()),
            ..Views::default()
        };
        let console = Console::new(OutputForm::Quiet, std::io::sink());
        let server = Server::new(reader, mint.clone(), views, console, recorder.clone());
        let (near, far) = tokio::io::duplex(1 << 16);
        let end = TunnelEnd { relay: RELAY, range: None, listening: Listening::default() };
        tasks.spawn("server", server.clone().serve_tunnel(far, end));
        let (tunnel, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(near)).await.unwrap();
        tasks.spawn("relay", async move { drop(connection.await) });
        let writer = Mutex::new(writer);
        Self { server, writer, mint, recorder, aws, azure, tasks, tunnel, _questions: questions }
    }

    /// A running container at 169.254.168.`last`, whose secret is `secret-LAST`.
    pub(crate) fn lease(&self, last: u8, identity: &Identity) -> Lease {
        let grant = Grant {
            container: ContainerId::parse(&format!("{last:064x}")).unwrap(),
            identity: Arc::new(identity.clone()),
            by: By::Rule(3),
            task: Arc::new(Task { component: Some("load data".into()), ..Task::default() }),
            secret: Some(Arc::new(Secret::new(format!("secret-{last}")))),
        };
        self.admit(at(last), grant)
    }

    pub(crate) fn admit(&self, address: Ipv4Addr, grant: Grant) -> Lease {
        let mut writer = self.writer.lock().unwrap();
        let lease = writer.admit(address, grant);
        writer.confirm(&lease);
        lease
    }

    /// Sends a request of the container at 169.254.168.`last`; an error means a closed connection.
    pub(crate) async fn try_ask(
        &self,
        last: u8,
        line: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer, hyper::Error> {
        let (method, target) = line.split_once(' ').unwrap();
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://host{target}"))
            .header(relay::CALLER, at(last).to_string())
            .header(relay::HOST, "169.254.169.254");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut tunnel = self.tunnel.clone();
        tunnel.ready().await?;
        read(tunnel.send_request(request.body(Empty::new()).unwrap()).await?).await
    }

    pub(crate) async fn ask(&self, last: u8, line: &str, headers: &[(&str, &str)]) -> Answer {
        self.try_ask(last, line, headers).await.unwrap()
    }

    /// A token of IMDSv2 for the container at 169.254.168.`last`.
    pub(crate) async fn imds_token(&self, last: u8) -> String {
        let ttl = [("x-aws-ec2-metadata-token-ttl-seconds", "21600")];
        let answer = self.ask(last, "PUT /latest/api/token", &ttl).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.headers["x-aws-ec2-metadata-token-ttl-seconds"], "21600");
        answer.body
    }

    /// A loopback listener for these callers.
    pub(crate) async fn listen(&self, entrance: LoopbackCallers) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (stop, tasks) = (self.tasks.stop().clone(), self.tasks.clone());
        self.tasks.spawn("listener", self.server.clone().serve_listener(listener, entrance, stop, tasks));
        at
    }

    /// How many requests for tokens ended with this outcome.
    pub(crate) fn counted(&self, outcome: &str) -> u64 {
        let text = self.recorder.metrics().render(kfp_creds::record::metrics::Gauges::default());
        let start = format!("kfp_creds_requests_total{{route=\"token\",outcome=\"{outcome}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("no {start}: {text}")).parse().unwrap()
    }
}

fn at(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(169, 254, 168, last)
}

/// Sends one request to a loopback listener.
pub(crate) async fn ask_at(to: SocketAddr, line: &str, headers: &[(&str, &str)]) -> Answer {
    let (method, target) = line.split_once(' ').unwrap();
    let stream = TcpStream::connect(to).await.unwrap();
    let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let mut request = Request::builder().method(method).uri(target).header(HOST, to.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.header(CONNECTION, "close").body(Empty::<Bytes>::new()).unwrap();
    let exchange = async { read(client.send_request(request).await?).await };
    tokio::join!(exchange, connection).0.unwrap()
}

async fn read(response: hyper::Response<hyper::body::Incoming>) -> Result<Answer, hyper::Error> {
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    Ok(Answer { status: head.status, headers: head.headers, body })
}
