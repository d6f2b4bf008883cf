//! Builds by BuildKit. The client opens two tunnels (HTTP/2 after an upgrade): in `POST /grpc` the client
//! asks for the build, in `POST /session` the engine asks the client for what the build needs. The client's
//! answers in the second tunnel contain the context, which the proxy judges while it passes.
//!
//! | file | content |
//! |---|---|
//! | `calls` | the calls of a tunnel, and which answers are judged |
//! | `answer` | one answer: messages in, judged messages or the refusal out |
//! | `context`, `upload` | the two forms of a context |
//! | `control` | the client's requests in `POST /grpc` |
//! | `message` | gRPC and protobuf |
//!
//! Each tunnel has its own thread, so that the scanning of files does not delay requests for tokens.

mod answer;
mod calls;
mod context;
mod control;
mod message;
mod upload;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use tokio_util::sync::CancellationToken;

use self::answer::{Decide, GuardReport};
pub(super) use self::calls::BuildTunnel;
use self::calls::{BROKEN, End, Judge, carry};
use super::ProxySettings;
use super::engine_client::{EngineClient, RawClient, Refusal, Reply, collect, full, opened, opened_engine};
use super::guard::KeyGuard;
use super::path::ApiTarget;
use super::upgrade::{Raw, forward_raw, needs_upgrade};
use crate::config::proxies::ClientProxies;
use crate::console::{Console, Line};
use crate::guard::Mode;
use crate::json::items;
use crate::process::{self, Tasks};
use crate::record::Recorder;

/// The engine caches a context under this key and asks only for later changes to it.
const SHARED_KEY: HeaderName = HeaderName::from_static("x-docker-expose-session-sharedkey");

/// Serves the tunnels of builds.
#[derive(Debug)]
pub(super) struct Builds {
    engine: EngineClient,
    guard: Arc<KeyGuard>,
    session: String,
    client_proxies: ClientProxies,
    console: Console,
    recorder: Recorder,
    tasks: Tasks,
    /// The number of refused builds.
    refused: AtomicU64,
}

impl Builds {
    pub(super) fn new(settings: &ProxySettings, engine: EngineClient, guard: Arc<KeyGuard>) -> Self {
        Self {
            engine,
            guard,
            session: settings.session.clone(),
            client_proxies: settings.client_proxies.clone(),
            console: settings.console.clone(),
            recorder: settings.recorder.clone(),
            tasks: settings.tasks.clone(),
            refused: AtomicU64::default(),
        }
    }

    /// Serves one of BuildKit's tunnels.
    pub(super) async fn serve_tunnel(
        self: &Arc<Self>,
        mut parts: Parts,
        target: ApiTarget,
        body: Incoming,
        raw: Raw,
        tunnel: BuildTunnel,
    ) -> Result<Reply, Refusal> {
        let mode = self.guard.strictness(true);
        if mode == Mode::Off {
            return forward_raw(&self.engine, parts, target, body, raw).await;
        }
        if !collect(body).await?.is_empty() {
            return Err(Refusal::malformed("a request for a tunnel has no body"));
        }
        let Some(RawClient::Upgrade(client, protocol)) = raw else { return Err(needs_upgrade()) };
        let uri = target.uri().map_err(Refusal::malformed)?;
        if tunnel == BuildTunnel::Session {
            self.own_shared_key(&mut parts.headers);
        }
        let request = Request::from_parts(parts, full(bytes::Bytes::new()));
        let (reply, engine) = self.engine.switch(request, uri, Some(protocol)).await?;
        if let Some(engine) = engine {
            let builds = self.clone();
            let serve = async move { builds.serve(client, engine, mode, tunnel).await };
            self.tasks.spawn("build session", serve);
        }
        Ok(reply)
    }

    /// Contexts that the engine has from elsewhere were never judged, so this session's contexts get a key of
    /// their own. After a refusal the key changes again, because a part of the refused context may have
    /// arrived.
    fn own_shared_key(&self, headers: &mut HeaderMap) {
        let own = headers.get(&SHARED_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
        let refusals = self.refused.load(Ordering::SeqCst);
        let key = [own, format!(" kfp-creds {} {refusals}", self.session).as_bytes()].concat();
        if let Ok(key) = HeaderValue::from_bytes(&key) {
            headers.insert(SHARED_KEY, key);
        }
    }

    async fn serve(self: &Arc<Self>, client: OnUpgrade, engine: OnUpgrade, mode: Mode, tunnel: BuildTunnel) {
        let both = tokio::join!(opened(client), opened_engine(engine, &self.tasks));
        let (Some(client), Some(engine)) = both else { return };
        let (Ok(client), Ok(engine)) = (End::of(client), End::of(engine)) else { return };
        let (caller, answerer) = match tunnel {
            BuildTunnel::Session => (engine, client),
            BuildTunnel::Control => (client, engine),
        };
        let rules = self.guard.rules().clone();
        let proxies = self.client_proxies.clone();
        let judge = Judge { tunnel, rules, proxies, decide: self.decide(mode, tunnel) };
        let stop = self.tasks.stop().clone();
        // If the thread itself panicked, both connections were closed with it.
        let whole = process::run_blocking(move || serve_on_this_thread(caller, answerer, judge, &stop)).await;
        if whole != Some(true) {
            let why = "the key guard failed while reading the build context; please report this";
            self.console.notice(format!("the build ends with an error: {why}"));
        }
    }

    /// Reports a builder in a container: its tunnels are inside an exec, where the proxy cannot judge them.
    pub(super) fn report_builder(&self, container: &str, exec: &serde_json::Value) {
        let mut words = items(&exec["Cmd"]);
        if words.any(|word| word == "dial-stdio") {
            self.guard.report_unscanned(&format!(
                "what the builder in {container} builds, because its context arrives through an exec"
            ));
        }
    }

    fn decide(self: &Arc<Self>, mode: Mode, tunnel: BuildTunnel) -> Decide {
        let builds = self.clone();
        let what = match tunnel {
            BuildTunnel::Session => "POST /session",
            BuildTunnel::Control => "POST /grpc",
        };
        Arc::new(move |who, matter| {
            let decided = match matter {
                GuardReport::Found(found) => builds.guard.decide(mode, who, found),
                GuardReport::Unread(why) if mode == Mode::Deny => Err(Refusal::forbidden(format!(
                    "{who}: {why}, which the key guard does not read; build past this session, and look into the \
                     image with kfp-creds scan IMAGE"
                ))),
                GuardReport::Unread(why) => {
                    builds.console.notice(format!("{who}: not verified: {why}"));
                    Ok(())
                }
                GuardReport::Unverified(why) => {
                    builds.console.notice(format!("{who}: not verified: {why}"));
                    Ok(())
                }
                GuardReport::Note(note) => {
                    builds.console.notice(format!("{who}: {note}"));
                    Ok(())
                }
            };
            decided.map_err(|refusal| {
                builds.refused.fetch_add(1, Ordering::SeqCst);
                builds.console.say(Line::Refused { what, why: &refusal.why });
                builds.recorder.refused_call(what, &refusal.why, refusal.by_guard);
                format!("kfp-creds: {}", refusal.why)
            })
        })
    }
}

/// Serves a tunnel on the current thread until the tunnel or the session ends. False if it broke on our side.
fn serve_on_this_thread(caller: End, answerer: End, judge: Judge, stop: &CancellationToken) -> bool {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::warn!(%error, "a build session could not be served");
            return false;
        }
    };
    let served = async {
        tokio::select! {
            served = carry(caller, answerer, judge) => served,
            () = stop.cancelled() => Ok(()),
        }
    };
    let Err(error) = runtime.block_on(served) else { return true };
    tracing::debug!(%error, "a build session broke");
    error.to_string() != BROKEN
}
