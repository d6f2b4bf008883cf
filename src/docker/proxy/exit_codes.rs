//! Exit codes, recorded from a container's creation on.
//!
//! An auto-removed container can be gone before its client waits for it; kfp 2.16 and later then report
//! success (kubeflow/pipelines #13332). So the proxy registers its own wait before it answers a create. When
//! a client waits, it asks the engine first and answers from this record if the engine says 404.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http_body_util::{BodyExt, Either, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Response, StatusCode, header};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::engine_client::{EngineClient, Refusal, Reply, json_reply};
use crate::json::fields;
use crate::process::Tasks;
use crate::workload::ContainerId;

/// Containers whose exit is remembered; beyond it the oldest that have ended are forgotten.
const REMEMBERED: usize = 16_384;
/// How long an answer may wait for the watcher after the engine has removed a container: the engine writes
/// the exit to the watcher's connection before it removes the container.
const LAST_WORD: Duration = Duration::from_secs(10);
/// How long an answer waits for the event of the end, where the watcher got no code.
const EVENT_WITHIN: Duration = Duration::from_secs(3);

/// The exit codes of this session's containers; clones share them.
#[derive(Clone, Debug, Default)]
pub struct ExitCodes(Arc<Mutex<Records>>);

#[derive(Debug, Default)]
struct Records {
    entries: HashMap<ContainerId, WatchedExit>,
    order: VecDeque<ContainerId>,
    ends: Option<mpsc::UnboundedSender<ContainerId>>,
}

#[derive(Debug)]
struct WatchedExit {
    name: Option<String>,
    /// Whether a start passed through the proxy.
    started: bool,
    exit: watch::Receiver<Exit>,
    /// The code in the engine's event; `None` after a restart, whose first run's event may come late.
    event: Option<watch::Sender<Option<i64>>>,
}

/// Which exit counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum WaitCondition {
    Exit,
    /// The engine may restart the container by itself, and its answer about an earlier exit can be a wrong 0
    /// (20.10); only the last run counts.
    Removal,
}

impl WaitCondition {
    /// Chosen by the restart policy of a create body, whatever the case of its keys.
    pub(super) fn of(body: &Value) -> Self {
        let policy = fields(&body["HostConfig"]["RestartPolicy"]);
        let mut names = policy.filter_map(|(_, value)| value.as_str());
        if names.any(|name| !matches!(name, "" | "no")) { Self::Removal } else { Self::Exit }
    }
}

#[derive(Clone, Debug)]
enum Exit {
    Watching,
    /// The exit code, and the engine's reply verbatim.
    Known(i64, Bytes),
    /// The engine closed the connection without an exit code.
    Lost,
}

impl ExitCodes {
    /// The exit code of the container's last run, once it is known.
    pub fn code(&self, container: &ContainerId) -> Option<i64> {
        self.with(|records| match &*records.entries.get(container)?.exit.borrow() {
            Exit::Known(code, _) => Some(*code),
            Exit::Watching | Exit::Lost => None,
        })
    }

    /// The code in the engine's event of a container's end. It counts only if the watcher got none: Podman 5.4 answers
    /// some waits for a container that it removes meanwhile without a code, or not at all.
    pub fn died(&self, container: &ContainerId, code: i64) {
        self.with(|records| {
            let entry = records.entries.get(container);
            if let Some(event) = entry.and_then(|entry| entry.event.as_ref()) {
                event.send_replace(Some(code));
            }
        });
    }

    /// A channel that receives every container whose exit becomes known from now on; there is one listener.
    pub fn ends(&self) -> mpsc::UnboundedReceiver<ContainerId> {
        let (sender, ends) = mpsc::unbounded_channel();
        self.with(|records| records.ends = Some(sender));
        ends
    }

    fn settle(&self, container: &ContainerId, exit: &watch::Sender<Exit>, outcome: Exit) {
        // If the engine broke off, the container may run on or never have been started.
        let known = matches!(outcome, Exit::Known(..));
        exit.send_replace(outcome);
        self.with(|records| {
            if let Some(ends) = records.ends.as_ref().filter(|_| known) {
                // The listener ends with the session, so a failed send is ignored.
                let _ = ends.send(container.clone());
            }
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut Records) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn rename(&self, container: &ContainerId, name: &str) {
        self.with(|records| {
            if let Some(entry) = records.entries.get_mut(container) {
                entry.name = Some(name.trim_start_matches('/').into());
            }
        });
    }

    /// Marks whether the container has run and returns the previous mark.
    pub(super) fn started(&self, container: &ContainerId, started: bool) -> bool {
        self.with(|records| {
            let entry = records.entries.get_mut(container);
            entry.is_some_and(|entry| std::mem::replace(&mut entry.started, started))
        })
    }

    /// Whether a new run of this container would be unwatched.
    pub(super) fn idle(&self, container: &ContainerId) -> bool {
        self.with(|records| {
            records
                .entries
                .get(container)
                .is_some_and(|entry| !matches!(*entry.exit.borrow(), Exit::Watching))
        })
    }

    fn record(&self, container: &ContainerId, name: Option<&str>, restarted: bool) -> watch::Sender<Exit> {
        let (sender, exit) = watch::channel(Exit::Watching);
        let event = (!restarted).then(|| watch::channel(None).0);
        self.with(|records| {
            let old = records.entries.remove(container);
            if old.is_none() {
                records.order.push_back(container.clone());
            }
            let name = name.map(|name| name.trim_start_matches('/').to_string());
            let name = name.or_else(|| old.as_ref().and_then(|old| old.name.clone()));
            let started = old.is_some_and(|old| old.started);
            records.entries.insert(container.clone(), WatchedExit { name, started, exit, event });
            records.shrink();
        });
        sender
    }

    /// The container that a client names: by full id, by name (the newest with that name), or by the
    /// beginning of its id if that is unambiguous.
    pub(super) fn find(&self, reference: &str) -> Option<ContainerId> {
        let reference = reference.trim_start_matches('/');
        self.with(|records| {
            let named = |id: &&ContainerId| {
                records.entries.get(*id).is_some_and(|entry| entry.name.as_deref() == Some(reference))
            };
            if let Some(id) = ContainerId::parse(reference).filter(|id| records.entries.contains_key(id)) {
                return Some(id);
            }
            if let Some(id) = records.order.iter().rev().find(named) {
                return Some(id.clone());
            }
            let mut found =
                records.order.iter().filter(|id| !reference.is_empty() && id.as_str().starts_with(reference));
            found.next().filter(|_| found.next().is_none()).cloned()
        })
    }

    /// How a container that the engine has removed ended; `None` if the proxy never watched it.
    async fn last(&self, container: &ContainerId) -> Option<Exit> {
        let mut exit = self.with(|records| records.entries.get(container).map(|entry| entry.exit.clone()))?;
        let settled = exit.wait_for(|exit| !matches!(exit, Exit::Watching));
        let exit = match tokio::time::timeout(LAST_WORD, settled).await {
            Ok(Ok(exit)) => exit.clone(),
            Ok(Err(_)) | Err(_) => Exit::Lost,
        };
        match exit {
            Exit::Lost => Some(self.of_event(container).await.unwrap_or(Exit::Lost)),
            exit => Some(exit),
        }
    }

    async fn of_event(&self, container: &ContainerId) -> Option<Exit> {
        let event = |records: &mut Records| Some(records.entries.get(container)?.event.as_ref()?.subscribe());
        let mut event = self.with(event)?;
        let code = tokio::time::timeout(EVENT_WITHIN, event.wait_for(Option::is_some)).await;
        let code = (*code.ok()?.ok()?)?;
        Some(Exit::Known(code, Bytes::from(format!("{{\"StatusCode\":{code}}}"))))
    }

    /// The container's exit code, once it is known.
    pub(super) async fn last_code(&self, container: &ContainerId) -> Option<i64> {
        match self.last(container).await? {
            Exit::Known(code, _) => Some(code),
            Exit::Watching | Exit::Lost => None,
        }
    }

    /// The answer to a wait for a container that the engine has removed; `None` if the engine's 404 is right.
    async fn answer(&self, reference: &str) -> Option<Reply> {
        let id = self.find(reference)?;
        let last = self.last(&id).await?;
        // Never started: there was no exit, so the engine's 404 is right.
        if !self.with(|records| records.entries.get(&id).is_some_and(|entry| entry.started)) {
            return None;
        }
        Some(match last {
            Exit::Known(_, words) => json_reply(StatusCode::OK, words),
            Exit::Watching | Exit::Lost => Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the exit code of {id} is not known: the engine broke off; treat the task as failed"),
            )
            .reply(),
        })
    }

    /// The engine's words about an exit; our record where they have no code and the proxy knows the exit.
    async fn instead_of(&self, engine: Incoming, name: &str) -> Result<Bytes, hyper::Error> {
        let words = engine.collect().await?.to_bytes();
        if matches!(known(words.clone()), Exit::Known(..)) {
            return Ok(words);
        }
        let last = match self.find(name) {
            Some(id) => self.last(&id).await,
            None => None,
        };
        Ok(match last {
            Some(Exit::Known(_, ours)) => ours,
            _ => words,
        })
    }
}

impl Records {
    fn shrink(&mut self) {
        while self.order.len() > REMEMBERED {
            let ended = |id: &ContainerId| {
                self.entries.get(id).is_none_or(|entry| !matches!(*entry.exit.borrow(), Exit::Watching))
            };
            let Some(at) = self.order.iter().position(ended) else { return };
            if let Some(id) = self.order.remove(at) {
                self.entries.remove(&id);
            }
        }
    }
}

/// Watches containers for their exits, and answers waits.
#[derive(Clone, Debug)]
pub(super) struct ExitWatch {
    codes: ExitCodes,
    engine: EngineClient,
    tasks: Tasks,
}

impl ExitWatch {
    pub(super) fn new(codes: ExitCodes, engine: EngineClient, tasks: Tasks) -> Self {
        Self { codes, engine, tasks }
    }

    pub(super) fn codes(&self) -> &ExitCodes {
        &self.codes
    }

    /// Registers for the next exit of `container`. The engine has the registration when this returns, so no
    /// exit can be missed; the code is read in the background.
    pub(super) async fn watch(&self, container: &ContainerId, name: Option<&str>, until: WaitCondition) {
        let exit = self.codes.record(container, name, false);
        let registered = self.register(container, until).await;
        self.follow(container, exit, Vec::from_iter(registered));
    }

    /// Watches a container after a restart, which ended the watched run. The new run may have ended already,
    /// and the container been removed, so `removal` is a registration made before the restart.
    pub(super) async fn watch_restarted(&self, container: &ContainerId, removal: Option<Response<Incoming>>) {
        let exit = self.codes.record(container, None, true);
        let next = self.register(container, WaitCondition::Exit).await;
        self.follow(container, exit, next.into_iter().chain(removal).collect());
    }

    /// The engine's answer to a wait, whose body arrives with the exit; `None` if it does not know the
    /// container.
    pub(super) async fn register(
        &self,
        container: &ContainerId,
        until: WaitCondition,
    ) -> Option<Response<Incoming>> {
        let condition = match until {
            WaitCondition::Exit => "next-exit",
            WaitCondition::Removal => "removed",
        };
        let path = format!("/containers/{}/wait?condition={condition}", container.as_str());
        let reply = self.engine.ask(Method::POST, &path).await;
        reply.ok().filter(|reply| reply.status() == StatusCode::OK)
    }

    /// Records the first of these answers that has a code.
    fn follow(&self, container: &ContainerId, exit: watch::Sender<Exit>, answers: Vec<Response<Incoming>>) {
        if answers.is_empty() {
            exit.send_replace(Exit::Lost);
            return;
        }
        let (codes, container) = (self.codes.clone(), container.clone());
        self.tasks.spawn("exit watch", async move {
            let bodies = answers.into_iter().map(|answer| answer.into_body().collect());
            let mut bodies = FuturesUnordered::from_iter(bodies);
            let mut outcome = Exit::Lost;
            while let Some(body) = bodies.next().await {
                outcome = body.map_or(Exit::Lost, |body| known(body.to_bytes()));
                // The other wait may never be answered: Podman keeps one for a container that is gone.
                if matches!(outcome, Exit::Known(..)) {
                    break;
                }
            }
            codes.settle(&container, &exit, outcome);
        });
    }

    /// A client's wait: the engine's answer, or our record if the engine answers 404, or without a code, and the
    /// proxy knows the exit. A 200 is passed on at once: clients start the container only after it.
    pub(super) async fn wait(&self, name: &str, reply: Reply) -> Reply {
        let (mut head, body) = reply.into_parts();
        match (head.status, body) {
            (StatusCode::OK, Either::Left(engine)) => {
                head.headers.remove(header::CONTENT_LENGTH);
                let (codes, name) = (self.codes.clone(), name.to_owned());
                let words = async move { codes.instead_of(engine, &name).await.map(Frame::data) };
                let body = StreamBody::new(futures_util::stream::once(words)).boxed_unsync();
                Response::from_parts(head, Either::Right(Either::Right(body)))
            }
            (StatusCode::NOT_FOUND, body) => {
                let reply = Response::from_parts(head, body);
                self.codes.answer(name).await.unwrap_or(reply)
            }
            (_, body) => Response::from_parts(head, body),
        }
    }
}

fn known(body: Bytes) -> Exit {
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    let code = value["StatusCode"].as_i64().filter(|code| *code >= 0);
    // A copy: the bytes are a part of the connection's whole buffer, and are kept as long as the session.
    let words = Bytes::copy_from_slice(&body);
    code.map_or(Exit::Lost, |code| Exit::Known(code, words))
}
