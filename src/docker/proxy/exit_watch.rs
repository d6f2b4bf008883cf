//! Follows the engine's events for the exit codes of this session's containers.
//!
//! There is one stream for all containers and not one wait for each, because a wait needs a connection and
//! its buffers as long as its container runs. After a gap, the engine repeats its events, and the proxy asks
//! for what they do not show.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use serde_json::Value;
use tokio::sync::watch;
use url::form_urlencoded;

use super::engine_client::EngineClient;
use super::exit_codes::ExitCodes;
use crate::docker::events;
use crate::docker::members::runs;
use crate::json::items;
use crate::process::Tasks;
use crate::workload::ContainerId;

/// How long a create or a start may wait for the stream of events. The engine has just answered, so it runs.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(5);
/// The pause before the stream is opened again.
const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// How far back the first stream begins: the engine answers before it subscribes to its events.
const BEGIN_BEFORE: Duration = Duration::from_secs(2);
/// Largest event.
const LONGEST: usize = 1 << 20;

/// Podman uses `remove` for `destroy`.
const FILTERS: &str = r#"{"type":["container"],"event":["start","die","destroy","remove"]}"#;

/// Watches containers for their exits.
#[derive(Clone, Debug)]
pub(super) struct ExitWatch {
    codes: ExitCodes,
    engine: EngineClient,
    tasks: Tasks,
    /// Set when the first container is watched.
    stream: Arc<OnceLock<watch::Receiver<Stream>>>,
}

/// The stream of events.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stream {
    Opening,
    Followed,
    /// The engine refused the stream, or it broke off.
    Broken,
}

impl ExitWatch {
    pub(super) fn new(codes: ExitCodes, engine: EngineClient, tasks: Tasks) -> Self {
        Self { codes, engine, tasks, stream: Arc::default() }
    }

    pub(super) fn codes(&self) -> &ExitCodes {
        &self.codes
    }

    /// Records a container that was just created. When this returns, the engine reports its exit.
    pub(super) async fn watch(&self, container: &ContainerId, name: Option<&str>, restarts: bool) {
        self.codes.record(container, name, restarts);
        self.followed().await;
    }

    /// Returns when the stream of events is open, or after [`FOLLOWED_WITHIN`]. A late stream is no error:
    /// the engine repeats the events of a gap.
    pub(super) async fn followed(&self) {
        let mut stream = self.stream.get_or_init(|| self.follow()).clone();
        let opened = stream.wait_for(|stream| *stream != Stream::Opening);
        let _ = tokio::time::timeout(FOLLOWED_WITHIN, opened).await;
    }

    fn follow(&self) -> watch::Receiver<Stream> {
        let (opened, stream) = watch::channel(Stream::Opening);
        let this = self.clone();
        self.tasks.spawn("exit watch", async move {
            let begin = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let mut since = begin.saturating_sub(BEGIN_BEFORE).as_nanos();
            let mut gap = false;
            loop {
                tokio::select! {
                    () = this.tasks.stop().cancelled() => return,
                    () = this.events(&mut since, gap, &opened) => {}
                }
                gap |= opened.send_replace(Stream::Broken) == Stream::Followed;
                tokio::select! {
                    () = this.tasks.stop().cancelled() => return,
                    () = tokio::time::sleep(AGAIN_AFTER) => {}
                }
            }
        });
        stream
    }

    /// Reads one stream of events, from `since` (by the engine's clock, once it has sent an event) to its
    /// end.
    async fn events(&self, since: &mut u128, gap: bool, opened: &watch::Sender<Stream>) {
        let filters: String = form_urlencoded::byte_serialize(FILTERS.as_bytes()).collect();
        let (seconds, rest) = (*since / 1_000_000_000, *since % 1_000_000_000);
        let path = format!("/events?since={seconds}.{rest:09}&filters={filters}");
        let reply = match self.engine.ask(Method::GET, &path).await {
            Ok(reply) if reply.status() == StatusCode::OK => reply,
            Ok(reply) => return tracing::debug!(status = %reply.status(), "the engine reports no events"),
            Err(refusal) => return tracing::debug!(why = refusal.why, "the engine reports no events"),
        };
        opened.send_replace(Stream::Followed);
        // This comes before the first event is read, so that events that occurred meanwhile are applied after
        // it, in order.
        if gap {
            self.compare().await;
        }
        let (mut body, mut rest) = (reply.into_body(), Vec::new());
        while let Some(Ok(frame)) = body.frame().await {
            let Some(data) = frame.data_ref() else { continue };
            rest.extend_from_slice(data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let Some((at, event)) = events::of_line(&line) else { continue };
                if let Some(at) = at.and_then(|at| u128::try_from(at).ok()) {
                    *since = at;
                }
                if let Some(event) = event {
                    self.codes.happened(&event);
                }
            }
            if rest.len() > LONGEST {
                return;
            }
        }
    }

    /// Compares the recorded containers with the engine's: an engine that restarted in a gap has lost the
    /// events before its restart.
    async fn compare(&self) {
        let recorded = self.codes.recorded();
        let Ok(Some(list)) = self.engine.look("/containers/json?all=1").await else { return };
        let row = |one: &Value| Some((ContainerId::parse(one["Id"].as_str()?)?, runs(&one["State"])));
        let all: HashMap<ContainerId, bool> = items(&list).filter_map(row).collect();
        for container in self.codes.listed(&all, recorded) {
            let path = format!("/containers/{}/json", container.as_str());
            if let Ok(Some(found)) = self.engine.look(&path).await
                && found["State"]["Running"] != true
                && let Some(code) = found["State"]["ExitCode"].as_i64()
            {
                self.codes.inspected(&container, code);
            }
        }
    }
}
