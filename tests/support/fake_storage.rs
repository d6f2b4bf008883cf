//! Cloud Storage at the wire: the JSON API on loopback, which checks token, generation and `userProject`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::fake_google::CANARY;
use super::server_thread::ServerThread;

/// What is sent in place of the answer.
#[derive(Clone, Debug)]
pub(crate) enum Play {
    /// This status; the text contains a canary.
    Status(u16),
    /// A redirect to another host, which must not get the token.
    Redirect,
    /// 403 with a web page, as from a proxy and not from this API.
    Page,
    /// No answer at all.
    Hang,
    /// The answer, after this delay.
    Late(Duration),
    /// The connection ends in the middle of the content.
    CutShort,
    /// More content than the object has.
    Longer,
    /// Other content of the same length.
    Other,
}

/// One received request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Asked {
    /// `object`, `list` or `media`.
    pub(crate) kind: &'static str,
    pub(crate) bucket: String,
    /// The name of the object, or the prefix.
    pub(crate) name: String,
    /// The account of the token.
    pub(crate) account: String,
    pub(crate) user_project: Option<String>,
}

struct Stored {
    generation: u64,
    content: Bytes,
    /// The length in its metadata, in place of the real one.
    claims: Option<u64>,
}

type WhoseToken = Box<dyn Fn(&str) -> Option<String> + Send>;

struct State {
    whose: WhoseToken,
    objects: BTreeMap<(String, String), Stored>,
    /// Account and bucket.
    readers: BTreeSet<(String, String)>,
    /// Account and bucket; these may only list.
    listers: BTreeSet<(String, String)>,
    payer: Option<String>,
    page: usize,
    number: u64,
    asked: Vec<Asked>,
    plays: VecDeque<(&'static str, Play)>,
    /// The requests that [`Play::Hang`] holds.
    hanging: Arc<()>,
}

/// Runs until it is dropped.
pub(crate) struct FakeStorage {
    address: std::net::SocketAddr,
    state: Arc<Mutex<State>>,
    _apart: ServerThread,
}

impl FakeStorage {
    /// `whose` returns the account of a valid token.
    pub(crate) fn start(whose: impl Fn(&str) -> Option<String> + Send + 'static) -> Self {
        let state = Arc::new(Mutex::new(State {
            whose: Box::new(whose),
            objects: BTreeMap::new(),
            readers: BTreeSet::new(),
            listers: BTreeSet::new(),
            payer: None,
            page: 1000,
            number: 1_700_000_000_000_000,
            asked: vec![],
            plays: VecDeque::new(),
            hanging: Arc::default(),
        }));
        let served = state.clone();
        let (address, apart) = ServerThread::serve(|listener| accept(listener, served));
        Self { address, state, _apart: apart }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stores an object, as a new generation.
    pub(crate) fn put(&self, bucket: &str, name: &str, content: impl Into<Bytes>) {
        self.store(bucket, name, content.into(), None);
    }

    /// Stores an object whose metadata claim a size of `claims` bytes.
    pub(crate) fn put_claiming(&self, bucket: &str, name: &str, claims: u64) {
        self.store(bucket, name, Bytes::from_static(b"small"), Some(claims));
    }

    fn store(&self, bucket: &str, name: &str, content: Bytes, claims: Option<u64>) {
        let mut state = self.state.lock().unwrap();
        state.number += 1;
        let stored = Stored { generation: state.number, content, claims };
        state.objects.insert((bucket.into(), name.into()), stored);
    }

    pub(crate) fn allow(&self, account: &str, bucket: &str) {
        self.state.lock().unwrap().readers.insert((account.into(), bucket.into()));
    }

    /// From now on the account may list, but not get.
    pub(crate) fn allow_only_lists(&self, account: &str, bucket: &str) {
        let (mut state, one) = (self.state.lock().unwrap(), (account.to_owned(), bucket.to_owned()));
        state.readers.remove(&one);
        state.listers.insert(one);
    }

    /// The reader pays, and has to send `userProject`.
    pub(crate) fn wants_payer(&self, project: &str) {
        self.state.lock().unwrap().payer = Some(project.into());
    }

    /// How many items a page of a list has.
    pub(crate) fn pages_of(&self, items: usize) {
        self.state.lock().unwrap().page = items;
    }

    /// Does this for the next request of this kind; plays queue up.
    pub(crate) fn play(&self, kind: &'static str, play: Play) {
        self.state.lock().unwrap().plays.push_back((kind, play));
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.lock().unwrap().asked.clone()
    }

    /// How many requests for content arrived.
    pub(crate) fn downloads(&self) -> usize {
        self.asked().iter().filter(|asked| asked.kind == "media").count()
    }

    /// Whether a request that gets no answer is still open.
    pub(crate) fn hangs(&self) -> bool {
        Arc::strong_count(&self.state.lock().unwrap().hanging) > 1
    }
}

async fn accept(listener: tokio::net::TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let state = state.clone();
        connections.spawn(async move {
            let service = service_fn(|request| answer(state.clone(), request));
            // Tests include clients that leave.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Reply = Response<http_body_util::combinators::BoxBody<Bytes, std::io::Error>>;

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Reply, Infallible> {
    let query: BTreeMap<String, String> =
        url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
    let parts: Vec<String> = request.uri().path().split('/').map(decoded).collect();
    let media = query.get("alt").is_some_and(|alt| alt == "media");
    let (kind, bucket, name) = match parts.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["", "storage", "v1", "b", bucket, "o"] => ("list", bucket, query.get("prefix").cloned()),
        ["", "storage", "v1", "b", bucket, "o", name] => {
            (if media { "media" } else { "object" }, bucket, Some(name.to_owned()))
        }
        _ => panic!("not a path of this API: {}", request.uri().path()),
    };
    assert_eq!(request.method(), Method::GET);
    assert!(request.headers().get("content-length").is_none_or(|length| length == "0"));
    let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    if media {
        assert_eq!(header("accept-encoding").as_deref(), Some("gzip"), "the server would unpack it");
    }
    let token = header("authorization").and_then(|bearer| bearer.strip_prefix("Bearer ").map(String::from));
    let (reply, play, hanging) = {
        let mut state = state.lock().unwrap();
        let account = token.and_then(|token| (state.whose)(&token));
        state.asked.push(Asked {
            kind,
            bucket: bucket.into(),
            name: name.clone().unwrap_or_default(),
            account: account.clone().unwrap_or_default(),
            user_project: query.get("userProject").cloned(),
        });
        let next = state.plays.iter().position(|(of, _)| *of == kind);
        let play = next.and_then(|next| state.plays.remove(next)).map(|(_, play)| play);
        let hanging = matches!(play, Some(Play::Hang)).then(|| state.hanging.clone());
        (state.judged(kind, account, bucket, &name.unwrap_or_default(), &query), play, hanging)
    };
    let reply = played(reply, play, media).await;
    drop(hanging);
    Ok(reply)
}

impl State {
    fn judged(
        &self,
        kind: &str,
        account: Option<String>,
        bucket: &str,
        name: &str,
        query: &BTreeMap<String, String>,
    ) -> (u16, Bytes) {
        let error = |status: u16, reason: &str| {
            let message = format!("{CANARY}-in-a-message");
            // The real API answers requests for content with plain text.
            if kind == "media" {
                return (status, Bytes::from(message));
            }
            let body = json!({"error": {"code": status, "message": message,
                "errors": [{"message": message, "domain": "global", "reason": reason}]}});
            (status, Bytes::from(body.to_string()))
        };
        let Some(account) = account else { return error(401, "authError") };
        match (&self.payer, query.get("userProject")) {
            (Some(_), None) => return error(400, "required"),
            (Some(payer), Some(said)) if payer != said => return error(403, "forbidden"),
            _ => {}
        }
        let one = (account, bucket.to_owned());
        let lists = kind == "list" && self.listers.contains(&one);
        if !lists && !self.readers.contains(&one) {
            return error(403, "forbidden");
        }
        let about = |name: &str, stored: &Stored| {
            let sum = base64::engine::general_purpose::STANDARD.encode(crc32c(&stored.content).to_be_bytes());
            json!({"name": name, "generation": stored.generation.to_string(), "crc32c": sum,
                "size": stored.claims.unwrap_or(stored.content.len() as u64).to_string()})
        };
        if kind == "list" {
            let all = self.objects.iter().filter(|((of, key), _)| of == bucket && key.starts_with(name));
            let begin = query.get("pageToken").map_or(0, |token| {
                token.strip_prefix("page&of ").expect("a token that was given out").parse().unwrap()
            });
            let most = self.page.min(query["maxResults"].parse().unwrap());
            let all: Vec<Value> = all.map(|((_, name), stored)| about(name, stored)).collect();
            let mut page = json!({ "items": all.iter().skip(begin).take(most).collect::<Vec<_>>() });
            if begin + most < all.len() {
                page["nextPageToken"] = format!("page&of {}", begin + most).into();
            }
            return (200, page.to_string().into());
        }
        let Some(stored) = self.objects.get(&(bucket.into(), name.into())) else {
            return error(404, "notFound");
        };
        if kind == "object" {
            return (200, about(name, stored).to_string().into());
        }
        match query.get("generation") {
            Some(wanted) if *wanted == stored.generation.to_string() => (200, stored.content.clone()),
            Some(_) => error(404, "notFound"),
            None => panic!("content is asked for without its generation"),
        }
    }
}

async fn played((status, content): (u16, Bytes), play: Option<Play>, media: bool) -> Reply {
    let whole = |status: u16, content: Bytes| {
        let body = Full::new(content).map_err(|never: Infallible| match never {});
        Response::builder().status(status).body(BodyExt::boxed(body)).unwrap()
    };
    match play {
        None => whole(status, content),
        Some(Play::Late(time)) => {
            tokio::time::sleep(time).await;
            whole(status, content)
        }
        Some(Play::Hang) => std::future::pending().await,
        Some(Play::Status(status)) if media => whole(status, CANARY.into()),
        Some(Play::Status(status)) => whole(status, json!({"error": {"message": CANARY}}).to_string().into()),
        Some(Play::Page) => whole(403, format!("<html>{CANARY}</html>").into()),
        Some(Play::Redirect) => {
            let mut reply = whole(307, Bytes::new());
            reply.headers_mut().insert("location", "http://127.0.0.1:9/elsewhere".parse().unwrap());
            reply
        }
        Some(Play::Longer) => whole(status, [&content[..], b"and more"].concat().into()),
        Some(Play::Other) => whole(status, content.iter().map(|byte| !byte).collect::<Vec<_>>().into()),
        Some(Play::CutShort) => {
            let half = content.slice(..content.len() / 2);
            let begin = stream::once(async move { Ok(Frame::data(half)) });
            // After a pause, so that the first half is sent.
            let end = stream::once(async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(std::io::Error::other("cut"))
            });
            Response::new(BodyExt::boxed(StreamBody::new(Box::pin(begin.chain(end)))))
        }
    }
}

fn decoded(segment: &str) -> String {
    // In a path, a plus stands for itself.
    let field = format!("x={}", segment.replace('+', "%2B"));
    url::form_urlencoded::parse(field.as_bytes()).next().unwrap().1.into_owned()
}

/// RFC 3720 appendix B.4, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| if sum & 1 == 1 { sum >> 1 ^ 0x82F6_3B78 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}
