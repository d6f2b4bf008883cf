//! `POST /containers/create`: judge, create, register the exit, attach, and only then answer.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::Value;
use tokio::sync::oneshot;

use super::judge::{self, Neighbour, Question, Verdict};
use super::path::Target;
use super::reserved::Kind;
use super::room::Room;
use super::wait::Until;
use super::wire::{Refusal, Reply, collect, full};
use super::{Ask, Wiring, json, podman, writable};
use crate::docker::Product;
use crate::docker::cells::Cell;
use crate::observe::Line;
use crate::policy::Decision;
use crate::workload::{ContainerId, Task};

impl Room {
    pub(super) async fn create(
        self: &Arc<Self>,
        parts: Parts,
        target: Target,
        body: Incoming,
    ) -> Result<Reply, Refusal> {
        self.closing()?;
        let bytes = collect(body).await?;
        let mut body = json::parse(&bytes).map_err(Refusal::malformed)?;
        drop(bytes);
        json::canonical(&mut body, json::CREATE).map_err(Refusal::malformed)?;
        let name = target.query("name").map(str::to_string);
        let task = Arc::new((self.settings.recognise)(&body, name.as_deref()));
        let (verdict, cell) = self.verdict(&mut body, &task, name.as_deref()).await?;
        let given = Given::of(&body);
        let request = rewritten(parts, &body);
        let uri = target.uri().map_err(Refusal::malformed)?;
        // On a task of its own: a client that hangs up must not leave a container that exists and is
        // neither attached nor removed.
        let (done, outcome) = oneshot::channel();
        let room = self.clone();
        let arriving = match &verdict {
            Verdict::Attach { .. } => Some(self.arrive().await),
            Verdict::Pass(_) | Verdict::Refuse(_) => None,
        };
        self.settings.tasks.spawn("create", async move {
            let reply = match room.engine.forward(request, uri, None).await {
                Ok(reply) if reply.status() == StatusCode::CREATED => {
                    room.created(reply, verdict, cell, task, name, given).await
                }
                other => other,
            };
            drop(arriving);
            let _ = done.send(reply);
        });
        outcome.await.unwrap_or_else(|_| Err(broken("the create did not come to its end")))
    }

    /// With the network that the container will have, and is told of here.
    async fn verdict(
        &self,
        body: &mut Value,
        task: &Task,
        name: Option<&str>,
    ) -> Result<(Verdict, Option<Cell>), Refusal> {
        let rules = self.settings.rules.now();
        let mut decision = rules.policy.decide(task);
        if self.settings.product == Product::Podman {
            if let Some(why) = podman::second_reading(body) {
                return Err(Refusal::malformed(why));
            }
            if let (Decision::Attach(..), Some(why)) = (&decision, podman::not_attachable(body)) {
                decision = Decision::Pass(why);
            }
        }
        let image = body["Image"].as_str().unwrap_or_default().to_string();
        if self.is_ours(Kind::Image, &image).await? {
            return Err(Refusal::forbidden(format!("image {image} is reserved")));
        }
        let neighbours = self.neighbours(&judge::container_references(body)).await?;
        let mut our_networks = HashSet::new();
        for reference in judge::network_references(body) {
            if self.is_ours(Kind::Network, &reference).await? {
                our_networks.insert(reference);
            }
        }
        let image_env = self.image_env(&image).await?;
        let mounts: Vec<_> = rules.mounts.iter().filter(|mount| mount.is_for(task)).collect();
        let cell = match (&self.settings.cells, &decision) {
            (Some(cells), Decision::Attach(..)) => Some(cells.take().await.map_err(broken)?),
            (None, _) | (_, Decision::Pass(_)) => None,
        };
        let shared = &self.settings.wiring;
        let relay = cell.as_ref().map_or(shared.relay, |cell| cell.relay);
        let question = Question {
            mounts: &mounts,
            decision: &decision,
            name,
            image_env: &image_env,
            neighbours: &neighbours,
            our_networks: &our_networks,
            wiring: &Wiring { relay, ..shared.clone() },
            session: &self.settings.session,
            mode: self.settings.mode,
            alone: cell.is_some(),
        };
        let verdict = match judge::judge(body, &question) {
            Verdict::Refuse(refusal) => return Err(refusal),
            verdict => verdict,
        };
        let ours = task.kfp || matches!(verdict, Verdict::Attach { .. });
        self.guard_create(body, &image_env, ours, &task.to_string()).await?;
        Ok((verdict, cell))
    }

    async fn neighbours(&self, references: &[String]) -> Result<HashMap<String, Neighbour>, Refusal> {
        let mut found = HashMap::new();
        if references.is_empty() {
            return Ok(found);
        }
        let _none = self.none_arriving().await;
        for reference in references {
            found.insert(reference.clone(), self.neighbour(reference).await?);
        }
        Ok(found)
    }

    async fn neighbour(&self, reference: &str) -> Result<Neighbour, Refusal> {
        if self.is_ours(Kind::Container, reference).await? {
            return Ok(Neighbour::Ours);
        }
        let Some(id) = self.locate(reference).await? else { return Ok(Neighbour::Missing) };
        Ok(if self.has_identity(&id).await? {
            Neighbour::Leased
        } else {
            Neighbour::Other(id.as_str().into())
        })
    }

    /// The engine has made the container: everything that must be true before the client hears of it.
    async fn created(
        self: &Arc<Self>,
        reply: Reply,
        verdict: Verdict,
        cell: Option<Cell>,
        task: Arc<Task>,
        name: Option<String>,
        given: Given,
    ) -> Result<Reply, Refusal> {
        let (head, body) = reply.into_parts();
        let body = body.collect().await.map_err(|_| broken("the engine's answer ended early"))?.to_bytes();
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        let id = answer["Id"].as_str().and_then(ContainerId::parse);
        let id = id.ok_or_else(|| broken("the engine's answer names no container"))?;
        let until = given.until;
        self.note_writable(&id, &given).await;
        match name {
            Some(name) => self.watch_exit(&id, Some(&name), until).await,
            // The engine has chosen a name, by which a client may wait.
            None => {
                tokio::join!(self.watch_exit(&id, None, until), self.learn_name(&id));
            }
        }
        match verdict {
            Verdict::Attach { identity, by, notices } => {
                let (answer, answered) = oneshot::channel();
                let ask = Ask::Attach {
                    container: id.clone(),
                    identity: identity.clone(),
                    by,
                    task: task.clone(),
                    cell,
                    answer,
                };
                let gone = || Err("the session has ended".to_string());
                let outcome = match self.settings.ask.send(ask).await {
                    Ok(()) => answered.await.unwrap_or_else(|_| gone()),
                    Err(_) => gone(),
                };
                match outcome {
                    Ok(address) => self.settings.voice.say(Line::Attached {
                        task: &task.to_string(),
                        container: id.short(),
                        identity: &identity.name,
                        address: &address.to_string(),
                    }),
                    Err(why) => {
                        self.settings.recorder.attach_failed(&id, &task, &why);
                        return Err(self.undo(&id, &task, why).await);
                    }
                }
                for notice in notices {
                    self.settings.voice.notice(format!("{task}: {notice}, so its clients may not ask us"));
                }
            }
            Verdict::Pass(why) => {
                self.settings.recorder.passed(&id, &task, &why);
                self.settings.voice.say(Line::NotAttached { task: &task.to_string(), why: &why });
            }
            Verdict::Refuse(refusal) => return Err(refusal),
        }
        Ok(Response::from_parts(head, full(body)))
    }

    /// Before the client hears of the container, and so before anything in it can run.
    async fn note_writable(&self, id: &ContainerId, given: &Given) {
        let mounted = match given.indirect {
            true => self.engine.look(&format!("/containers/{}/json", id.as_str())).await,
            false => Ok(None),
        };
        let mounted = mounted.ok().flatten().unwrap_or_default();
        self.settings.writable.note(&given.writable, &mounted["Mounts"]).await;
    }

    async fn learn_name(&self, id: &ContainerId) {
        if let Ok(Some(found)) = self.engine.look(&format!("/containers/{}/json", id.as_str())).await
            && let Some(name) = found["Name"].as_str()
        {
            self.settings.exits.rename(id, name);
        }
    }

    /// No container without the identity that it was promised.
    async fn undo(&self, id: &ContainerId, task: &Task, why: String) -> Refusal {
        let path = format!("/containers/{}?force=1", id.as_str());
        let removed = self.engine.ask(Method::DELETE, &path).await;
        let left = match removed {
            Ok(reply) if reply.status().is_success() || reply.status() == StatusCode::NOT_FOUND => "",
            Ok(_) | Err(_) => "; the container could not be removed",
        };
        broken(format!("{task} ({id}) could not be attached: {why}{left}"))
    }
}

/// What is still asked about a body when it has gone to the engine.
#[derive(Debug)]
struct Given {
    until: Until,
    /// Only `HostConfig` of it.
    writable: Value,
    indirect: bool,
}

impl Given {
    fn of(body: &Value) -> Self {
        let writable = serde_json::json!({ "HostConfig": body["HostConfig"] });
        Self { until: Until::of(body), writable, indirect: writable::is_indirect(body) }
    }
}

/// The request as it was judged.
pub(super) fn rewritten(mut parts: Parts, body: &Value) -> Request<super::wire::Body> {
    // Half the time of `to_string`, which goes through a formatter; a value cannot fail.
    let bytes = Bytes::from(serde_json::to_vec(body).unwrap_or_default());
    parts.headers.insert(hyper::header::CONTENT_LENGTH, bytes.len().into());
    parts.headers.remove(hyper::header::TRANSFER_ENCODING);
    Request::from_parts(parts, full(bytes))
}

fn broken(why: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why)
}
