//! `POST /containers/create`: judge, create, register the exit, attach, and only then answer.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode, Uri};
use serde_json::Value;
use tokio::sync::oneshot;

use super::engine_client::{Body, Refusal, Reply, collect, full};
use super::exit_codes::restarts_itself;
use super::inputs::{self, FetchedDirectories};
use super::judge::{self, Verdict};
use super::leases::{LeaseSecret, Reach, lease_secret};
use super::mount_sources::file_system_call;
use super::path::ApiTarget;
use super::question::{Candidate, Neighbour, Question};
use super::reserved::ReservedKind;
use super::state::Proxy;
use super::{Attachment, RelayAt, Rules, Wiring, entrypoint, json, podman, proxies, writable};
use crate::console::Line;
use crate::docker::Product;
use crate::policy::{Decision, doubt};
use crate::workload::{By, ContainerId, Identity, Task};

/// Most directories of a command that are checked for existence.
const MOST_DIRECTORIES: usize = 64;

impl Proxy {
    pub(super) async fn create(
        self: &Arc<Self>,
        parts: Parts,
        target: ApiTarget,
        body: Incoming,
    ) -> Result<Reply, Refusal> {
        self.closing()?;
        let bytes = collect(body).await?;
        let mut body = json::parse(&bytes).map_err(Refusal::malformed)?;
        drop(bytes);
        json::canonical(&mut body, json::CREATE).map_err(Refusal::malformed)?;
        proxies::apply(&mut body, &parts.headers, &self.settings.client_proxies);
        let name = target.query("name").map(str::to_string);
        let rules = self.settings.rules.now();
        let task = Arc::new(self.task(&body, name.as_deref(), &rules).await);
        let Judged { verdict, place, secret, brought } =
            self.verdict(&mut body, &task, name.as_deref(), &rules).await?;
        let given = CreateDetails::of(&body);
        let uri = target.uri().map_err(Refusal::malformed)?;
        let without_inputs = (!brought.is_empty()).then(|| {
            let mut plain = body.clone();
            inputs::take_out(&mut plain, &brought);
            (json::rewritten(parts.clone(), &plain), uri.clone())
        });
        let request = json::rewritten(parts, &body);
        // Runs on a task of its own: the container must be attached or removed even if the client
        // disconnects.
        let (done, outcome) = oneshot::channel();
        let proxy = self.clone();
        let arriving = match &verdict {
            Verdict::Attach { .. } | Verdict::Join { .. } => Some(self.leases.arrive().await),
            Verdict::Pass(_) | Verdict::Refuse(_) => None,
        };
        self.settings.tasks.spawn("create", async move {
            let reply = match proxy.forward_create(request, uri, without_inputs, &brought, &task).await {
                Ok(reply) if reply.status() == StatusCode::CREATED => {
                    proxy.created(reply, verdict, Reach { place, secret }, task, name, given).await
                }
                other => other,
            };
            drop(arriving);
            let _ = done.send(reply);
        });
        outcome.await.unwrap_or_else(|_| Err(failed("the create did not come to its end")))
    }

    /// Forwards the create; if the engine does not see the fetched inputs, repeats it without them.
    async fn forward_create(
        &self,
        request: Request<Body>,
        uri: Uri,
        without_inputs: Option<(Request<Body>, Uri)>,
        brought: &FetchedDirectories,
        task: &Task,
    ) -> Result<Reply, Refusal> {
        let reply = self.engine.forward(request, uri, None).await?;
        match without_inputs.filter(|_| !reply.status().is_success()) {
            Some(without_inputs) => self.inputs.without(reply, without_inputs, brought, task).await,
            None => Ok(reply),
        }
    }

    /// Determines the task from the request and the session's evidence.
    async fn task(&self, body: &Value, name: Option<&str>, rules: &Rules) -> Task {
        let reading = (self.settings.recognise)(body, name);
        let directories: Vec<String> =
            reading.directories().take(MOST_DIRECTORIES).map(String::from).collect();
        let host = self.settings.host_root.clone();
        let exists = move |directory: &String| host.find(Path::new(directory)).symlink_metadata().is_ok();
        let existing = match directories.is_empty() {
            true => vec![],
            // If a file server hangs, all directories count as existing; the task then stays unknown.
            false => {
                let looked = directories.clone();
                file_system_call(move || looked.into_iter().filter(exists).collect())
                    .await
                    .unwrap_or(directories)
            }
        };
        self.settings.evidence.task(reading, body, &rules.compiled, &existing)
    }

    /// Judges the body, chooses where the container will reach us, and writes that into the body.
    async fn verdict(
        &self,
        body: &mut Value,
        task: &Task,
        name: Option<&str>,
        rules: &Rules,
    ) -> Result<Judged, Refusal> {
        let decision = self.decision(body, task, rules)?;
        let image = body["Image"].as_str().unwrap_or_default().to_string();
        if self.lookups.is_ours(ReservedKind::Image, &image).await? {
            return Err(Refusal::forbidden(format!("image {image} is reserved")));
        }
        let neighbours = self.neighbours(&judge::container_references(body)).await?;
        let our_networks = self.ours_among(judge::network_references(body)).await?;
        let config = self.images.of(&image).await?;
        let mounts: Vec<_> = rules.mounts.iter().filter(|mount| mount.is_for(task)).collect();
        let joins = self.leases.joinable(body, &decision, rules, &neighbours).await?;
        let base = &self.settings.wiring;
        let (place, own) = match &decision {
            Decision::Attach(..) if joins.is_none() => self.place(body, name).await?,
            Decision::Attach(..) | Decision::Pass(_) => (Attachment::Shared, base.at),
        };
        let secret = lease_secret(&decision, joins.as_ref())?;
        let path = place.path();
        let at = joins.as_ref().map_or(own, |joined| joined.relay);
        let question = Question {
            mounts: &mounts,
            decision: &decision,
            name,
            image_env: &config.env,
            neighbours: &neighbours,
            our_networks: &our_networks,
            wiring: &Wiring { at, ..base.clone() },
            session: &self.settings.session,
            mode: self.settings.mode,
            // A container that joins another one shares that container's own network.
            alone: self.settings.cells.is_some()
                && matches!(decision, Decision::Attach(..))
                && path.is_none(),
            path: path.as_deref(),
            secret: secret.as_ref().map(|secret| secret.expose().as_str()),
            linked: place.linked(),
            joins: joins.as_ref(),
        };
        let verdict = match judge::judge(body, &question) {
            Verdict::Refuse(refusal) => return Err(refusal),
            verdict => verdict,
        };
        if matches!(verdict, Verdict::Pass(_)) {
            self.places.judge_new_neighbour(body)?;
        }
        let brought = match &verdict {
            Verdict::Attach { identity, .. } | Verdict::Join { identity, .. } if identity.google => {
                self.inputs.bring(body, identity, task).await?
            }
            _ => vec![],
        };
        let ours = task.kfp || !matches!(verdict, Verdict::Pass(_));
        self.guard.create(body, &config.env, ours, task).await?;
        if rules.clear_entrypoint && config.has_entrypoint && entrypoint::clear(body, task, &rules.compiled) {
            self.entrypoints.once(&task.to_string(), image, entrypoint::CLEARED);
        }
        Ok(Judged { verdict, place, secret, brought })
    }

    /// Where a container to which the rules give an identity will reach us. For a container that cannot have
    /// an identity, nothing is prepared: making the second network could fail, and with it the create.
    async fn place(&self, body: &Value, name: Option<&str>) -> Result<(Attachment, RelayAt), Refusal> {
        let on_loopback = body["HostConfig"]["NetworkMode"] == "host" && self.settings.loopback.is_some();
        let wiring = &self.settings.wiring;
        let candidate = Candidate {
            name,
            server_names: &wiring.names,
            on_loopback,
            joins: false,
            alone: self.settings.cells.is_some() && !on_loopback,
        };
        match judge::disqualified(body, &candidate) {
            Some(_) => Ok((Attachment::Shared, wiring.at)),
            None => self.places.of(body).await,
        }
    }

    /// The decision of the rules, limited to what the engine can do.
    fn decision(&self, body: &Value, task: &Task, rules: &Rules) -> Result<Decision, Refusal> {
        let decision = rules.policy.decide(task);
        if self.settings.product != Product::Podman {
            return Ok(decision);
        }
        if let Some(why) = podman::parsed_differently(body) {
            return Err(Refusal::malformed(why));
        }
        Ok(match (decision, podman::not_attachable(body)) {
            (Decision::Attach(..), Some(why)) => Decision::Pass(why),
            (decision, _) => decision,
        })
    }

    async fn ours_among(&self, networks: Vec<String>) -> Result<HashSet<String>, Refusal> {
        let mut ours = HashSet::new();
        for reference in networks {
            if self.lookups.is_ours(ReservedKind::Network, &reference).await? {
                ours.insert(reference);
            }
        }
        Ok(ours)
    }

    async fn neighbours(&self, references: &[String]) -> Result<HashMap<String, Neighbour>, Refusal> {
        let mut found = HashMap::new();
        if references.is_empty() {
            return Ok(found);
        }
        let _none = self.leases.none_arriving().await;
        for reference in references {
            found.insert(reference.clone(), self.neighbour(reference).await?);
        }
        Ok(found)
    }

    async fn neighbour(&self, reference: &str) -> Result<Neighbour, Refusal> {
        if self.lookups.is_ours(ReservedKind::Container, reference).await? {
            return Ok(Neighbour::Ours);
        }
        let Some(id) = self.lookups.locate(reference).await? else { return Ok(Neighbour::Missing) };
        Ok(if self.leases.has_identity(&id).await? {
            Neighbour::Leased
        } else {
            Neighbour::Other(id.as_str().into())
        })
    }

    /// Called when the engine has created the container: does everything that must be done before the client
    /// gets the answer.
    async fn created(
        self: &Arc<Self>,
        reply: Reply,
        verdict: Verdict,
        reach: Reach,
        task: Arc<Task>,
        name: Option<String>,
        given: CreateDetails,
    ) -> Result<Reply, Refusal> {
        let (head, body) = reply.into_parts();
        let body = body.collect().await.map_err(|_| failed("the engine's answer ended early"))?.to_bytes();
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        let id = answer["Id"].as_str().and_then(ContainerId::parse);
        let id = id.ok_or_else(|| failed("the engine's answer names no container"))?;
        self.settings.created.store(true, Ordering::Relaxed);
        self.note_writable(&id, &given).await;
        match name {
            Some(name) => self.exits.watch(&id, Some(&name), given.restarts).await,
            // The engine has chosen a name, and a client may use it in a wait.
            None => {
                tokio::join!(self.exits.watch(&id, None, given.restarts), self.learn_name(&id));
            }
        }
        match verdict {
            Verdict::Attach { identity, by, notices } => {
                if let Err(why) = self.attach(&id, &identity, by, &task, reach).await {
                    self.settings.recorder.attach_failed(&id, &task, &why);
                    return Err(self.undo(&id, &task, why).await);
                }
                if let By::Unknown(rule) = by {
                    let gets = &identity.name;
                    self.settings.console.notice(format!("{task}: {}; it gets {gets}", doubt(rule)));
                }
                self.report_shadows(&task, notices);
            }
            Verdict::Join { identity, with, notices } => {
                if let Err(why) = self.leases.join(&id, &with, &task).await {
                    return Err(self.undo(&id, &task, why).await);
                }
                let name = &identity.name;
                let why = format!("it shares the network and the lease of {with}, as {name}");
                self.settings.recorder.passed(&id, &task, &why);
                self.settings.console.notice(format!("{task} ({id}): {why}, which ends with that container"));
                self.report_shadows(&task, notices);
            }
            Verdict::Pass(why) => {
                self.settings.recorder.passed(&id, &task, &why);
                self.settings.console.say(Line::NotAttached { task: &task.to_string(), why: &why });
            }
            Verdict::Refuse(refusal) => return Err(refusal),
        }
        Ok(Response::from_parts(head, full(body)))
    }

    /// Gives a created container its lease, and prints its address.
    async fn attach(
        &self,
        id: &ContainerId,
        identity: &Arc<Identity>,
        by: By,
        task: &Arc<Task>,
        reach: Reach,
    ) -> Result<(), String> {
        let on_loopback = matches!(reach.place, Attachment::Loopback(_));
        let address = self.leases.attach(id, identity, by, task, reach).await?;
        let at = self.settings.loopback.as_ref().filter(|_| on_loopback).map(|paths| paths.at().to_string());
        self.settings.console.say(Line::Attached {
            task: &task.to_string(),
            container: id.short(),
            identity: &identity.name,
            address: &at.unwrap_or_else(|| address.to_string()),
        });
        Ok(())
    }

    fn report_shadows(&self, task: &Task, notices: Vec<String>) {
        for notice in notices {
            self.settings
                .console
                .notice(format!("{task}: {notice}, so its clients might not ask the metadata server"));
        }
    }

    /// Notes the host paths that the container can write. Called before the client gets the answer, so before
    /// anything can run in the container.
    async fn note_writable(&self, id: &ContainerId, given: &CreateDetails) {
        let mounted = match given.indirect {
            true => self.lookups.container(id.as_str()).await,
            false => Ok(None),
        };
        let mounted = mounted.ok().flatten().unwrap_or_default();
        self.settings.writable.note(&given.writable, &mounted["Mounts"], &self.settings.host_root).await;
    }

    async fn learn_name(&self, id: &ContainerId) {
        if let Ok(Some(found)) = self.lookups.container(id.as_str()).await
            && let Some(name) = found["Name"].as_str()
        {
            self.exits.codes().rename(id, name);
        }
    }

    /// Removes the container, because it cannot get its identity.
    async fn undo(&self, id: &ContainerId, task: &Task, why: String) -> Refusal {
        let path = format!("/containers/{}?force=1", id.as_str());
        let removed = self.engine.ask(Method::DELETE, &path).await;
        let left = match removed {
            Ok(reply) if reply.status().is_success() || reply.status() == StatusCode::NOT_FOUND => "",
            Ok(_) | Err(_) => "; the container could not be removed",
        };
        failed(format!("{task} ({id}) could not be attached: {why}{left}"))
    }
}

/// The judgement on a create.
#[derive(Debug)]
struct Judged {
    verdict: Verdict,
    /// Where the container will reach us, as written into its body.
    place: Attachment,
    secret: LeaseSecret,
    /// Fetched directories that are mounted into the container.
    brought: FetchedDirectories,
}

/// Parts of the body that the proxy needs after it has sent the body to the engine.
#[derive(Debug)]
struct CreateDetails {
    /// The engine may start the container again by itself.
    restarts: bool,
    /// A body that has only the `HostConfig`; the writable paths are read from it.
    writable: Value,
    /// The `HostConfig` does not show all host paths.
    indirect: bool,
}

impl CreateDetails {
    fn of(body: &Value) -> Self {
        let writable = serde_json::json!({ "HostConfig": body["HostConfig"] });
        Self { restarts: restarts_itself(body), writable, indirect: writable::is_indirect(body) }
    }
}

fn failed(why: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why)
}
