//! Answers requests: identifies the caller, runs one step of the protocol, gets a token if one is needed, and
//! checks the lease again before any byte goes out.
//!
//! Requests come through the relay's tunnel (callers are containers) or through a loopback listener
//! (`entrance`: programs with the capability of `serve --listen`, or containers on the host's network with
//! their own paths).

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::config::Pool;
use crate::console::Console;
use crate::metadata::{self, Entered, Reply, RequestHead, Service, Step, TokenFailure, View, Wait};
use crate::mint::Mint;
use crate::process::OWN_SOURCE;
use crate::readiness::Listening;
use crate::record::metrics::{Answered, RouteLabel};
use crate::record::{Recorder, Requestor};
use crate::registry::{Lease, Reader};
use crate::relay;
use crate::token::{Issued, Now};

mod caller;
mod clouds;
mod entrance;
pub mod jwks;
mod lease_keys;
mod rates;
mod refusals;
mod repeats;
mod tokens;
pub mod views;

use caller::Caller;
pub use entrance::LoopbackCallers;
pub(crate) use entrance::under;
use lease_keys::LeaseKeys;
use rates::Rates;
use refusals::Refusals;
use repeats::{LastRequest, TokenReply};
use views::Views;

/// How long one request may wait in total, for the lease and for the mint. Node gives up at 3 s and does not
/// retry.
const HOLD: Duration = Duration::from_secs(2);

/// How many views of ended leases may always be left over; see [`Server::view`].
const STALE_VIEWS: usize = 4;

/// The host's end of one relay's tunnel.
#[derive(Debug)]
pub struct TunnelEnd {
    /// The relay's own address, from which its probe comes.
    pub relay: Ipv4Addr,
    /// The addresses of the containers on its network; `None` if the relay itself checks them.
    pub range: Option<Pool>,
    /// Where the relay listens, as it reports.
    pub listening: Listening,
}

impl TunnelEnd {
    /// Whether a caller with this address can be on the relay's network. Leases at loopback addresses belong
    /// to the paths of `network.host_loopback`; no caller on a network has such an address.
    fn serves(&self, from: Ipv4Addr) -> bool {
        from == self.relay || (!from.is_loopback() && self.range.is_none_or(|range| range.contains(from)))
    }
}

/// Answers all metadata requests of one session.
#[derive(Debug)]
pub struct Server {
    reader: Reader,
    mint: Arc<Mint>,
    views: Views,
    refusals: Refusals,
    made: Mutex<HashMap<u64, CallerCache>>,
    recorder: Recorder,
    rates: Rates,
    lease_keys: LeaseKeys,
    /// Tokens handed out to programs on this machine.
    local: Issued,
}

/// What the server keeps for one caller, under its [`Caller::key`].
#[derive(Debug)]
struct CallerCache {
    /// As of the source's principal at the time when it was made.
    view: Arc<View>,
    last: Option<LastRequest>,
}

/// The caller's lease ended: no byte may go out; the connection is closed instead.
#[derive(Debug, thiserror::Error)]
#[error("the caller's lease ended")]
pub struct LeaseEnded;

impl Server {
    /// `console` shows why tokens are refused; `recorder` records tokens handed out and refused.
    pub fn new(
        reader: Reader,
        mint: Arc<Mint>,
        views: Views,
        console: Console,
        recorder: Recorder,
    ) -> Arc<Self> {
        let (made, rates, local) = (Mutex::default(), Rates::default(), Issued::default());
        let (refusals, lease_keys) = (Refusals::new(console), LeaseKeys::random());
        Arc::new(Self { reader, mint, views, refusals, made, recorder, rates, lease_keys, local })
    }

    /// Serves HTTP/2 on the relay's tunnel until the tunnel breaks or the relay ends.
    pub async fn serve_tunnel(
        self: Arc<Self>,
        tunnel: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        end: TunnelEnd,
    ) {
        let (this, end) = (self.clone(), Arc::new(end));
        let listening = end.listening.clone();
        let service = service_fn(move |request| this.clone().from_tunnel(request, end.clone()));
        let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(relay::PING_EVERY)
            .keep_alive_timeout(relay::PING_WITHIN)
            .max_concurrent_streams(4096)
            // A caller that hangs up resets a stream. After many resets HTTP/2 would end the connection, so
            // one container could cut off all others; the relay limits what each container can do.
            .max_pending_accept_reset_streams(usize::MAX)
            .max_local_error_reset_streams(None)
            .serve_connection(TokioIo::new(tunnel), service)
            .await;
        listening.close_all();
        if let Err(error) = served {
            tracing::debug!(%error, "the tunnel broke");
        }
    }

    async fn from_tunnel(
        self: Arc<Self>,
        request: Request<Incoming>,
        end: Arc<TunnelEnd>,
    ) -> Result<Response<Full<Bytes>>, LeaseEnded> {
        let now = Now::read();
        let (head, _) = request.into_parts();
        let mut headers = head.headers;
        // Trusted: only the relay can write to the tunnel, and it sets these headers itself.
        if let Some(at) = headers.remove(relay::LISTENS) {
            at.to_str().ok().and_then(|at| at.parse().ok()).into_iter().for_each(|at| end.listening.open(at));
            return Ok(Response::new(Full::default()));
        }
        let from =
            headers.remove(relay::CALLER).and_then(|from| from.to_str().ok()?.parse::<Ipv4Addr>().ok());
        let host = headers.remove(relay::HOST);
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        let mut reply = match from {
            Some(_) if headers.contains_key(OWN_SOURCE) => own_source(target),
            // A lease belongs to one network: on another one, a caller with its address forged it or is a
            // stranger.
            Some(from) if !end.serves(from) => unknown_caller(target, "no container has this address"),
            Some(from) => {
                if from == end.relay {
                    end.listening.open(from);
                }
                let from = (from, from == end.relay);
                self.answer_container(from, &head.method, target, host.as_ref(), &headers, now).await?
            }
            None => unknown_caller(target, "the relay did not say who called"),
        };
        if reply.headers_mut().remove(hyper::header::CONNECTION).is_some() {
            // HTTP/2 has no `Connection` header; the relay restores it.
            reply.headers_mut().insert(relay::CLOSE, HeaderValue::from_static("1"));
        }
        if head.method == Method::HEAD {
            // hyper omits the body of a HEAD reply on HTTP/1; on HTTP/2 it would send it, which is an error.
            *reply.body_mut() = Full::default();
        }
        Ok(reply)
    }

    async fn answer_container(
        &self,
        (from, is_relay): (Ipv4Addr, bool),
        method: &Method,
        target: &str,
        host: Option<&HeaderValue>,
        headers: &HeaderMap,
        arrived: Now,
    ) -> Result<Response<Full<Bytes>>, LeaseEnded> {
        let (deadline, mut now) = (arrived.mono + HOLD, arrived);
        let caller = if is_relay {
            Caller::Relay
        } else {
            let mut lease = self.reader.resolve(from);
            if lease.is_none() {
                lease = self.reader.ask(from, deadline).await;
                now = Now::read();
            }
            match lease {
                Some(lease) => Caller::Container(lease),
                None => {
                    tracing::debug!(%from, "no container with a lease has this address");
                    let why = "this container has no identity here (yet): kfp-creds did not attach it";
                    self.recorder.metrics().request(RouteLabel::Metadata, Answered::Unknown);
                    self.recorder.refused(
                        Requestor::Unknown(from),
                        503,
                        "any",
                        "nobody with a lease is there",
                    );
                    return Ok(unknown_caller(target, why));
                }
            }
        };
        let host = host.and_then(|host| host.to_str().ok());
        let head = RequestHead { method, target, host, headers, entered: Entered::Address, now };
        self.answer(caller, &head, deadline).await
    }

    async fn answer(
        &self,
        caller: Caller,
        head: &RequestHead<'_>,
        deadline: Instant,
    ) -> Result<Response<Full<Bytes>>, LeaseEnded> {
        let generation = self.mint.generation();
        let (route, reply) = match self.answer_repeat(&caller, head, generation) {
            Some(reply) => (RouteLabel::Token, reply),
            None => {
                let (route, answer) = self.run_step(&caller, head, deadline).await;
                if let Some(again) = answer.again {
                    self.remember(&caller, head, generation, again);
                }
                (route, answer.reply)
            }
        };
        // The container may have ended during the wait, and another may have its address by now.
        let valid = caller.still_valid();
        let answered = if valid { Answered::of(reply.counted().as_u16()) } else { Answered::CutOff };
        self.recorder.metrics().request(route, answered);
        if valid { Ok(respond(reply)) } else { Err(LeaseEnded) }
    }

    async fn run_step(
        &self,
        caller: &Caller,
        head: &RequestHead<'_>,
        deadline: Instant,
    ) -> (RouteLabel, TokenReply) {
        let now = head.now;
        match metadata::step(head, &self.view(caller)) {
            Step::Reply(reply) => (RouteLabel::Metadata, self.record_guard_refusal(caller, reply).into()),
            Step::Access(ask) => (RouteLabel::Token, self.answer_token(caller, &ask, now, deadline).await),
            Step::Identity(ask) => {
                (RouteLabel::Identity, self.answer_identity(caller, &ask, now, deadline).await.into())
            }
            Step::AwsSession(ask) => (RouteLabel::Token, self.aws_session(caller, &ask, now, deadline).await),
            Step::AzureToken(ask) => (RouteLabel::Token, self.azure_token(caller, &ask, now, deadline).await),
            Step::Wait(wait) => (RouteLabel::Wait, self.hold(caller, head, wait).await.into()),
        }
    }

    /// The caller's view, which is made once per lease and again when the source's principal has changed.
    fn view(&self, caller: &Caller) -> Arc<View> {
        let (Some(key), Some((identity, _))) = (caller.key(), caller.granted()) else {
            return Arc::new(self.views.nobody());
        };
        let principal = self.mint.principal();
        let azure = identity.azure.as_ref().map(|_| self.mint.azure_principal()).unwrap_or_default();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(CallerCache { view, .. }) = made.get(&key)
            && self.views.is_current(view, identity, &principal, &azure)
        {
            return view.clone();
        }
        // Removes views of ended leases once they outnumber those of live leases: each is about a kilobyte.
        if made.len() >= STALE_VIEWS && !made.contains_key(&key) {
            let live: HashSet<u64> = self.reader.leases().iter().map(Lease::epoch).collect();
            if made.len() >= STALE_VIEWS + live.len() * 2 {
                made.retain(|epoch, _| live.contains(epoch));
                made.shrink_to(STALE_VIEWS);
            }
        }
        let (mut view, address, grant) = match caller {
            Caller::Container(lease) => {
                let (grant, address) = (lease.grant(), lease.address());
                (self.views.of(grant, address, &principal), address, Some(grant))
            }
            Caller::Local(_) | Caller::Relay => {
                (self.views.local(identity, &principal), Ipv4Addr::LOCALHOST, None)
            }
        };
        self.views.add_clouds(&mut view, identity, grant, &azure, self.lease_keys.of(key, address));
        let view = Arc::new(view);
        made.insert(key, CallerCache { view: view.clone(), last: None });
        view
    }

    /// Waits for a change of the view. Within a lease only the source's principal can change: by a login, or
    /// when an upstream answer names it.
    async fn hold(&self, caller: &Caller, head: &RequestHead<'_>, wait: Wait) -> Reply {
        let mut principals = self.mint.principals();
        let until = Instant::now() + wait.limit.unwrap_or(metadata::LONGEST_WAIT);
        let Wait { then, .. } = wait;
        loop {
            tokio::select! {
                () = caller.cut() => return then,
                () = tokio::time::sleep_until(until) => return then,
                changed = principals.changed() => if changed.is_err() { return then },
            }
            match metadata::step(head, &self.view(caller)) {
                Step::Wait(now) if now.then.etag == then.etag => {}
                Step::Wait(Wait { then: reply, .. }) | Step::Reply(reply) => return reply,
                Step::Access(_) | Step::Identity(_) | Step::AwsSession(_) | Step::AzureToken(_) => {
                    return then;
                }
            }
        }
    }
}

/// Refuses a credential source of this session or another one that took this server for the machine's own
/// metadata server. Only such sources send that header; they get no metadata.
fn own_source(target: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(b"kfp-creds is no source for kfp-creds")));
    *response.status_mut() = StatusCode::LOOP_DETECTED;
    if Service::of(target) == Service::Google {
        response.headers_mut().insert("metadata-flavor", HeaderValue::from_static("Google"));
    }
    response
}

/// The reply to a caller without a lease, in the form of the cloud that it asks.
fn unknown_caller(target: &str, why: &str) -> Response<Full<Bytes>> {
    respond(metadata::failure_reply(Service::of(target), TokenFailure::UnknownCaller, why))
}

fn respond(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = reply.status;
    *response.headers_mut() = metadata::headers(&reply);
    *response.body_mut() = Full::new(reply.body.into_bytes());
    response
}
