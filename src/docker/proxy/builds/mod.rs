//! Builds by BuildKit. The client opens two tunnels (HTTP/2 after an upgrade): in `POST /grpc` it asks for the
//! build, in `POST /session` the engine asks the client for what the build needs. The client's answers there
//! carry the context, which is judged while it passes.
//!
//! | file | content |
//! |---|---|
//! | `calls` | the calls of a tunnel, and which answers are judged |
//! | `answer` | one answer: messages in, judged messages or the refusal out |
//! | `context`, `upload` | the two forms of a context |
//! | `control` | requests in the other tunnel |
//! | `message` | gRPC and protobuf |
//!
//! Each tunnel has its own thread: scanning files takes time that requests for tokens do not have.

mod answer;
mod calls;
mod context;
mod control;
mod message;
mod upload;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use tokio_util::sync::CancellationToken;

use self::answer::{Decide, Matter};
pub(super) use self::calls::Tunnel;
use self::calls::{BROKEN, End, Judge, carry};
use super::engine_client::{RawClient, Refusal, Reply, collect, full, opened, opened_engine};
use super::path::Target;
use super::state::Proxy;
use super::upgrade::{Raw, needs_upgrade};
use crate::console::Line;
use crate::guard::Mode;
use crate::json::items;
use crate::process;

/// The engine caches a context under this key and asks only for later changes to it.
const SHARED_KEY: HeaderName = HeaderName::from_static("x-docker-expose-session-sharedkey");

impl Proxy {
    /// Serves one of BuildKit's tunnels.
    pub(super) async fn build_tunnel(
        self: &Arc<Self>,
        mut parts: Parts,
        target: Target,
        body: Incoming,
        raw: Raw,
        tunnel: Tunnel,
    ) -> Result<Reply, Refusal> {
        let mode = self.strictness(true);
        if mode == Mode::Off {
            return self.raw(parts, target, body, raw).await;
        }
        if !collect(body).await?.is_empty() {
            return Err(Refusal::malformed("a request for a tunnel has no body"));
        }
        let Some(RawClient::Upgrade(client, protocol)) = raw else { return Err(needs_upgrade()) };
        let uri = target.uri().map_err(Refusal::malformed)?;
        if tunnel == Tunnel::Session {
            self.own_shared_key(&mut parts.headers);
        }
        let request = Request::from_parts(parts, full(bytes::Bytes::new()));
        let (reply, engine) = self.engine.switch(request, uri, Some(protocol)).await?;
        if let Some(engine) = engine {
            let proxy = self.clone();
            let serve = async move { proxy.serve_build(client, engine, mode, tunnel).await };
            self.settings.tasks.spawn("build session", serve);
        }
        Ok(reply)
    }

    /// Contexts that the engine has from elsewhere were never judged, so this session's contexts get a key of
    /// their own. After a refusal the key changes again, because a part of the refused context may have
    /// arrived.
    fn own_shared_key(&self, headers: &mut HeaderMap) {
        let own = headers.get(&SHARED_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
        let refusals = self.refused_builds.load(Ordering::SeqCst);
        let key = [own, format!(" kfp-creds {} {refusals}", self.settings.session).as_bytes()].concat();
        if let Ok(key) = HeaderValue::from_bytes(&key) {
            headers.insert(SHARED_KEY, key);
        }
    }

    async fn serve_build(self: &Arc<Self>, client: OnUpgrade, engine: OnUpgrade, mode: Mode, tunnel: Tunnel) {
        let both = tokio::join!(opened(client), opened_engine(engine, &self.settings.tasks));
        let (Some(client), Some(engine)) = both else { return };
        let (Ok(client), Ok(engine)) = (End::of(client), End::of(engine)) else { return };
        let (caller, answerer) = match tunnel {
            Tunnel::Session => (engine, client),
            Tunnel::Control => (client, engine),
        };
        let rules = self.settings.guard.rules.clone();
        let proxies = self.settings.client_proxies.clone();
        let judge = Judge { tunnel, rules, proxies, decide: self.decide_build(mode, tunnel) };
        let stop = self.settings.tasks.stop().clone();
        // If the thread itself panicked, both ends were dropped with it.
        let whole = process::aside(move || apart(caller, answerer, judge, &stop)).await;
        if whole != Some(true) {
            let why = "the key guard failed while reading the build context; please report this";
            self.settings.console.notice(format!("the build ends with an error: {why}"));
        }
    }

    /// A builder in a container carries its tunnels inside an exec, where they cannot be judged.
    pub(super) fn say_builder(&self, container: &str, exec: &serde_json::Value) {
        let mut words = items(&exec["Cmd"]);
        if words.any(|word| word == "dial-stdio") {
            self.unlooked(&format!(
                "what the builder in {container} builds, for its context comes in an exec"
            ));
        }
    }

    fn decide_build(self: &Arc<Self>, mode: Mode, tunnel: Tunnel) -> Decide {
        let proxy = self.clone();
        let what = match tunnel {
            Tunnel::Session => "POST /session",
            Tunnel::Control => "POST /grpc",
        };
        Arc::new(move |who, matter| {
            let decided = match matter {
                Matter::Found(found) => proxy.decide(mode, who, found),
                Matter::Unread(why) if mode == Mode::Deny => Err(Refusal::forbidden(format!(
                    "{who}: {why}, which the key guard does not read; build past this session, and look into the \
                     image with kfp-creds scan IMAGE"
                ))),
                Matter::Unread(why) => {
                    proxy.settings.console.notice(format!("{who}: not verified: {why}"));
                    Ok(())
                }
                Matter::Unverified(why) => {
                    proxy.settings.console.notice(format!("{who}: not verified: {why}"));
                    Ok(())
                }
                Matter::Note(note) => {
                    proxy.settings.console.notice(format!("{who}: {note}"));
                    Ok(())
                }
            };
            decided.map_err(|refusal| {
                proxy.refused_builds.fetch_add(1, Ordering::SeqCst);
                proxy.settings.console.say(Line::Refused { what, why: &refusal.why });
                proxy.settings.recorder.refused_call(what, &refusal.why, refusal.by_guard);
                format!("kfp-creds: {}", refusal.why)
            })
        })
    }
}

/// Serves a tunnel on a thread of its own until it or the session ends. False if the tunnel broke on our
/// side.
fn apart(caller: End, answerer: End, judge: Judge, stop: &CancellationToken) -> bool {
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
