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
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Response, StatusCode};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::engine_client::{Refusal, Reply, json_reply};
use super::state::Proxy;
use crate::workload::ContainerId;

/// Containers whose exit is remembered; beyond it the oldest that have ended are forgotten.
const REMEMBERED: usize = 16_384;
/// How long an answer may wait for the watcher after the engine has removed a container: the engine writes
/// the exit to the watcher's connection before it removes the container.
const LAST_WORD: Duration = Duration::from_secs(10);

/// The exit codes of this session's containers; clones share them.
#[derive(Clone, Debug, Default)]
pub struct ExitCodes(Arc<Mutex<Records>>);

#[derive(Debug, Default)]
struct Records {
    entries: HashMap<ContainerId, Entry>,
    order: VecDeque<ContainerId>,
    ends: Option<mpsc::UnboundedSender<ContainerId>>,
}

#[derive(Debug)]
struct Entry {
    name: Option<String>,
    /// Whether a start passed through the proxy.
    started: bool,
    exit: watch::Receiver<Exit>,
}

/// Which exit counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Condition {
    Exit,
    /// The engine may restart the container by itself, and its answer about an earlier exit can be a wrong 0
    /// (20.10); only the last run counts.
    Removal,
}

impl Condition {
    /// Chosen by the restart policy of a create body, whatever the case of its keys.
    pub(super) fn of(body: &Value) -> Self {
        let policy = body["HostConfig"]["RestartPolicy"].as_object().into_iter().flatten();
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

    fn record(&self, container: &ContainerId, name: Option<&str>) -> watch::Sender<Exit> {
        let (sender, exit) = watch::channel(Exit::Watching);
        self.with(|records| {
            let old = records.entries.remove(container);
            if old.is_none() {
                records.order.push_back(container.clone());
            }
            let name = name.map(|name| name.trim_start_matches('/').to_string());
            let name = name.or_else(|| old.as_ref().and_then(|old| old.name.clone()));
            let started = old.is_some_and(|old| old.started);
            records.entries.insert(container.clone(), Entry { name, started, exit });
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
        Some(match tokio::time::timeout(LAST_WORD, settled).await {
            Ok(Ok(exit)) => exit.clone(),
            Ok(Err(_)) | Err(_) => Exit::Lost,
        })
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

impl Proxy {
    /// Registers for the next exit of `container`. The engine has the registration when this returns, so no
    /// exit can be missed; the code is read in the background.
    pub(super) async fn watch_exit(
        self: &Arc<Self>,
        container: &ContainerId,
        name: Option<&str>,
        until: Condition,
    ) {
        let exit = self.settings.exits.record(container, name);
        let registered = self.register_wait(container, until).await;
        self.follow(container, exit, Vec::from_iter(registered));
    }

    /// Watches a container after a restart, which ended the watched run. The new run may have ended already,
    /// and the container been removed, so `removal` is a registration made before the restart.
    pub(super) async fn watch_restarted(
        self: &Arc<Self>,
        container: &ContainerId,
        removal: Option<Response<Incoming>>,
    ) {
        let exit = self.settings.exits.record(container, None);
        let next = self.register_wait(container, Condition::Exit).await;
        self.follow(container, exit, next.into_iter().chain(removal).collect());
    }

    /// The engine's answer to a wait, whose body arrives with the exit; `None` if it does not know the
    /// container.
    pub(super) async fn register_wait(
        &self,
        container: &ContainerId,
        until: Condition,
    ) -> Option<Response<Incoming>> {
        let condition = match until {
            Condition::Exit => "next-exit",
            Condition::Removal => "removed",
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
        let (exits, container) = (self.settings.exits.clone(), container.clone());
        self.settings.tasks.clone().spawn("exit watch", async move {
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
            exits.settle(&container, &exit, outcome);
        });
    }

    /// A client's wait: the engine's answer, or our record if the engine answers 404 and the proxy knows the
    /// exit.
    pub(super) async fn wait(&self, name: &str, reply: Reply) -> Reply {
        if reply.status() != StatusCode::NOT_FOUND {
            return reply;
        }
        self.settings.exits.answer(name).await.unwrap_or(reply)
    }
}

fn known(body: Bytes) -> Exit {
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    // A copy: the bytes are a part of the connection's whole buffer, and are kept as long as the session.
    let words = Bytes::copy_from_slice(&body);
    value["StatusCode"].as_i64().map_or(Exit::Lost, |code| Exit::Known(code, words))
}
