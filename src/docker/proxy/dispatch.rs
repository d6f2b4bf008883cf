//! Routes each request. The proxy refuses requests that target our objects, judges those that could reach
//! into a leased container, and passes the rest.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode};
use serde_json::Value;

use super::builds::BuildTunnel;
use super::engine_client::{Body, RawClient, Refusal, Reply, collect, full, json_reply};
use super::json::rewritten;
use super::path::{ApiTarget, Route};
use super::question::asks_for_link_local;
use super::reserved::{ReservedKind, captures};
use super::state::Proxy;
use super::upgrade::{Raw, forward_raw, upgrade};
use super::{json, podman};
use crate::docker::image::ROLE_LABEL;
use crate::json::fields;
use crate::workload::ContainerId;

impl Proxy {
    pub(super) async fn answer(self: &Arc<Self>, mut request: Request<Incoming>) -> Result<Reply, Refusal> {
        reject_ambiguous(request.method(), request.headers())?;
        let target = ApiTarget::parse(request.uri()).map_err(Refusal::malformed)?;
        let route = target.route(request.method() == Method::DELETE);
        let looks = matches!(*request.method(), Method::GET | Method::HEAD);
        let raw = upgrade(&mut request, &route)?;
        let (parts, body) = request.into_parts();
        match route {
            Route::Probe => Ok(self.probe()),
            Route::Libpod => Err(Refusal::forbidden(
                "Podman's own API (/libpod) would bypass the checks of kfp-creds; use the Docker-compatible one (docker, \
                 docker-py)",
            )),
            Route::Create if parts.method == Method::POST => self.create(parts, target, body).await,
            Route::ExecStart => self.exec_start(parts, target, body, raw).await,
            Route::BuildSession => {
                self.builds.serve_tunnel(parts, target, body, raw, BuildTunnel::Session).await
            }
            Route::BuildControl => {
                self.builds.serve_tunnel(parts, target, body, raw, BuildTunnel::Control).await
            }
            Route::Containers | Route::Networks if parts.method == Method::GET => {
                let reply = self.engine.pass(parts, target.uri(), Either::Left(body)).await?;
                self.filter.hide_in_list(&route, reply).await
            }
            Route::VolumeCreate if !looks => self.volume_create(parts, target, body).await,
            Route::Swarm if !looks => self.swarm(parts, target, body).await,
            Route::Build if !looks => {
                self.refuse_reserved(&Route::Build, &target).await?;
                self.uploads.build_context(parts, &target, body).await
            }
            Route::ImageLoad if !looks => self.uploads.image_load(parts, &target, body).await,
            Route::ImageCreate if !looks => {
                self.refuse_reserved(&Route::ImageCreate, &target).await?;
                self.uploads.image_create(parts, &target, body).await
            }
            Route::Commit if !looks => {
                self.refuse_reserved(&Route::Commit, &target).await?;
                self.commit(parts, &target, body).await
            }
            Route::Network { ref name, ref action }
                if matches!(action.as_str(), "connect" | "disconnect") && !looks =>
            {
                self.refuse_reserved(&route, &target).await?;
                self.network_change(parts, &target, body, name, action).await
            }
            Route::NetworkCreate if !looks => self.network_create(parts, target, body).await,
            Route::Container { name, action } => {
                self.container(parts, target, body, raw, &name, &action).await
            }
            other => {
                if !looks {
                    self.refuse_reserved(&other, &target).await?;
                }
                self.engine.pass(parts, target.uri(), Either::Left(body)).await
            }
        }
    }

    /// Names the engine behind this socket, so that another session uses the engine directly instead of this
    /// proxy.
    fn probe(&self) -> Reply {
        let endpoint = self.settings.upstream.endpoint();
        let upstream = match endpoint.socket() {
            Some(path) => serde_json::json!(path),
            None => serde_json::json!(endpoint),
        };
        let body = serde_json::json!({ "kfp-creds": { "upstream": upstream } });
        json_reply(StatusCode::OK, body.to_string())
    }

    async fn container(
        self: &Arc<Self>,
        parts: Parts,
        target: ApiTarget,
        body: Incoming,
        raw: Raw,
        name: &str,
        action: &str,
    ) -> Result<Reply, Refusal> {
        let reading =
            parts.method == Method::GET && matches!(action, "json" | "top" | "stats" | "logs" | "changes");
        let harmless = reading || (parts.method == Method::POST && action == "wait");
        if !harmless && self.lookups.is_ours(ReservedKind::Container, name).await? {
            return Err(Refusal::forbidden(format!("container {name} is reserved")));
        }
        match (&parts.method, action) {
            (&Method::POST, "attach") | (&Method::GET, "attach/ws") => {
                forward_raw(&self.engine, parts, target, body, raw).await
            }
            (&Method::POST, "exec") => self.exec_create(parts, target, body, name).await,
            (&Method::POST, "start" | "restart") => self.start(parts, target, body, name, action).await,
            (&Method::POST, "rename") => self.rename(parts, target, body, name).await,
            (&Method::PUT, "archive") => self.uploads.archive(parts, target, body, name).await,
            (&Method::POST, "wait") => {
                let reply = self.engine.pass(parts, target.uri(), Either::Left(body)).await?;
                Ok(self.exits.codes().wait(name, reply).await)
            }
            (&Method::GET, "logs") => {
                let reply = self.engine.pass(parts, target.uri(), Either::Left(body)).await?;
                Ok(self.logs.complete(name, &target, reply).await)
            }
            (&Method::GET, "json") => {
                let reply = self.engine.pass(parts, target.uri(), Either::Left(body)).await?;
                self.filter.hide_in_container(self.logs.inspected(name, reply).await).await
            }
            _ => self.engine.pass(parts, target.uri(), Either::Left(body)).await,
        }
    }

    /// Judges an exec. A privileged one has every capability, whatever the container dropped.
    async fn exec_create(
        &self,
        parts: Parts,
        mut target: ApiTarget,
        body: Incoming,
        name: &str,
    ) -> Result<Reply, Refusal> {
        let mut body = json::parse(&collect(body).await?).map_err(Refusal::malformed)?;
        json::canonical(&mut body, json::EXEC).map_err(Refusal::malformed)?;
        let privileged = match &body["Privileged"] {
            Value::Null | Value::Bool(false) => false,
            Value::Bool(true) => true,
            _ => return Err(Refusal::malformed("Privileged must be true or false")),
        };
        self.builds.report_builder(name, &body);
        let keys = self.guard.exec(&body).await?;
        if !keys.is_empty()
            && let Some(id) = self.lookups.locate(name).await?
        {
            let mode = self.guard.strictness(self.guard.protects(&id).await?);
            self.guard.decide(mode, &format!("exec in {name}"), keys)?;
        }
        if privileged {
            let _none = self.leases.none_arriving().await;
            let Some(id) = self.lookups.locate(name).await? else {
                // The proxy does not pass this on: the container could exist, and be leased, when the engine
                // looks it up.
                return Err(Refusal::new(StatusCode::NOT_FOUND, format!("no such container: {name}")));
            };
            if self.leases.has_identity(&id).await? {
                return Err(Refusal::forbidden(format!(
                    "a privileged exec in {id} could take a neighbour's identity; run it without --privileged"
                )));
            }
            self.places.judge_privileged_exec(&id).await?;
            target = target.with_container(id.as_str(), "exec");
        }
        let uri = target.uri().map_err(Refusal::malformed)?;
        self.engine.forward(rewritten(parts, &body), uri, None).await
    }

    async fn exec_start(
        &self,
        mut parts: Parts,
        target: ApiTarget,
        body: Incoming,
        raw: Raw,
    ) -> Result<Reply, Refusal> {
        let bytes = collect(body).await?;
        let mut raw = raw;
        if matches!(raw, Some(RawClient::Bare(_))) {
            let mut value = json::parse(&bytes).map_err(Refusal::malformed)?;
            json::canonical(&mut value, json::EXEC_START).map_err(Refusal::malformed)?;
            // A detached exec has no stream: the engine's answer is an ordinary reply.
            if value["Detach"] == true {
                raw = None;
            }
        }
        parts.headers.insert(header::CONTENT_LENGTH, bytes.len().into());
        parts.headers.remove(header::TRANSFER_ENCODING);
        let uri = target.uri().map_err(Refusal::malformed)?;
        self.engine.forward(Request::from_parts(parts, full(bytes)), uri, raw).await
    }

    async fn start(
        self: &Arc<Self>,
        mut parts: Parts,
        target: ApiTarget,
        body: Incoming,
        name: &str,
        action: &str,
    ) -> Result<Reply, Refusal> {
        // If a container started after the ending session has stopped the others, nothing would stop it.
        self.closing()?;
        // Below API 1.24 a start may contain a HostConfig, which could change a leased container.
        let bytes = collect(body).await?;
        if !matches!(bytes.trim_ascii(), b"" | b"{}" | b"null") {
            return Err(Refusal::malformed(
                "a start has no body since API 1.24; put HostConfig into the create",
            ));
        }
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        parts.headers.remove(header::TRANSFER_ENCODING);
        let Some(id) = self.lookups.locate(name).await? else {
            return self.engine.pass(parts, target.uri(), empty()).await;
        };
        let target = target.with_container(id.as_str(), action);
        self.exits.followed().await;
        self.places.judge_neighbour(&id).await?;
        self.leases.starting(&id).await;
        if action == "start" && self.leases.is_leased(&id).await {
            self.logs.keep(&id).await;
        }
        // The start is recorded before the engine answers, because the container may have ended by then.
        let before = self.exits.codes().begin(&id);
        let reply = self.engine.pass(parts, target.uri(), empty()).await;
        if reply.as_ref().map_or(true, |reply| reply.status().as_u16() >= 400) {
            self.exits.codes().undo(&id, before);
        }
        reply
    }

    async fn rename(
        &self,
        parts: Parts,
        mut target: ApiTarget,
        body: Incoming,
        name: &str,
    ) -> Result<Reply, Refusal> {
        let wanted = target.query("name").unwrap_or_default().to_string();
        let Some(id) = self.lookups.locate(name).await? else {
            return self.engine.pass(parts, target.uri(), Either::Left(body)).await;
        };
        if let Some(why) = captures(&wanted, &self.settings.wiring.names)
            && self.leases.is_leased(&id).await
        {
            return Err(Refusal::forbidden(format!("{id} cannot be renamed to {wanted}: the name {why}")));
        }
        target = target.with_container(id.as_str(), "rename");
        let reply = self.engine.pass(parts, target.uri(), Either::Left(body)).await?;
        if reply.status().is_success() {
            self.exits.codes().rename(&id, &wanted);
        }
        Ok(reply)
    }

    async fn network_create(
        &self,
        parts: Parts,
        target: ApiTarget,
        body: Incoming,
    ) -> Result<Reply, Refusal> {
        let mut body = json::parse(&collect(body).await?).map_err(Refusal::malformed)?;
        json::canonical(&mut body, json::NETWORK).map_err(Refusal::malformed)?;
        let name = body["Name"].as_str().unwrap_or_default();
        let mut labels = fields(&body["Labels"]);
        if self.lookups.is_ours(ReservedKind::Network, name).await?
            || labels.any(|(label, _)| label.starts_with("kfp-creds."))
        {
            return Err(Refusal::forbidden(format!("network {name}: the name or a label of it is reserved")));
        }
        let uri = target.uri().map_err(Refusal::malformed)?;
        self.engine.forward(rewritten(parts, &body), uri, None).await
    }

    async fn network_change(
        &self,
        parts: Parts,
        target: &ApiTarget,
        body: Incoming,
        network: &str,
        action: &str,
    ) -> Result<Reply, Refusal> {
        let mut body = json::parse(&collect(body).await?).map_err(Refusal::malformed)?;
        json::canonical(&mut body, json::CONNECT).map_err(Refusal::malformed)?;
        if asks_for_link_local(&body["EndpointConfig"]) {
            return Err(Refusal::forbidden(
                "a link-local address (LinkLocalIPs) could be that of a container with an identity; leave it out",
            ));
        }
        let named = body["Container"].as_str().unwrap_or_default();
        // With `link-local`, relays are on the default bridge, which is not reserved. The label also finds the relays of
        // other sessions. Any image can have it, and then only its own containers stay where they are.
        let found = self.lookups.container(named).await?;
        let relay = found.is_some_and(|found| found["Config"]["Labels"][ROLE_LABEL] == "relay");
        if relay || self.lookups.is_ours(ReservedKind::Container, named).await? {
            return Err(Refusal::forbidden(format!("container {named} is reserved")));
        }
        if action == "connect" {
            self.places.judge_connect(named, network)?;
        }
        let uri = target.uri().map_err(Refusal::malformed)?;
        self.engine.forward(rewritten(parts, &body), uri, None).await
    }

    /// Refuses requests that change our networks and images, including builds and commits.
    async fn refuse_reserved(&self, route: &Route, target: &ApiTarget) -> Result<(), Refusal> {
        match route {
            Route::Network { name, .. } if self.lookups.is_ours(ReservedKind::Network, name).await? => {
                return Err(Refusal::forbidden(format!("network {name} is reserved")));
            }
            Route::Image { name, action }
                if action.is_empty() && self.lookups.is_ours(ReservedKind::Image, name).await? =>
            {
                return Err(Refusal::forbidden(format!("image {name} is reserved")));
            }
            Route::Commit => {
                let source = target.query("container").unwrap_or_default();
                if self.lookups.is_ours(ReservedKind::Container, source).await? {
                    return Err(Refusal::forbidden(format!("container {source} is reserved")));
                }
            }
            Route::Build => self.judge_build(target).await?,
            _ => {}
        }
        let tagging = matches!(route, Route::Image { action, .. } if action == "tag")
            || matches!(route, Route::ImageCreate | Route::Build | Route::Commit);
        let mut tags = ["repo", "t", "fromImage"].into_iter().flat_map(|key| target.queries(key));
        match tags.find(|tag| tagging && self.settings.reserved.owns_repository(tag)) {
            Some(tag) => Err(Refusal::forbidden(format!("image name {tag} is reserved"))),
            None => Ok(()),
        }
    }

    /// Judges a build by the classic builder, which runs its steps on the network that the query names.
    async fn judge_build(&self, target: &ApiTarget) -> Result<(), Refusal> {
        if let Some(key) = podman::build_key(target.query_keys()) {
            return Err(Refusal::forbidden(format!(
                "the build option {key} would bypass the checks of kfp-creds; leave it out"
            )));
        }
        let mode = target.query("networkmode").unwrap_or_default();
        let Some(joined) = mode.strip_prefix("container:") else {
            if self.lookups.is_ours(ReservedKind::Network, mode).await? {
                return Err(Refusal::forbidden(format!("network {mode} is reserved")));
            }
            return Ok(());
        };
        // The engine resolves a name again at every step; only an id always means the same container.
        let id = ContainerId::parse(joined)
            .ok_or_else(|| Refusal::malformed("networkmode=container: needs the full container id"))?;
        let _none = self.leases.none_arriving().await;
        if self.lookups.is_ours(ReservedKind::Container, joined).await?
            || self.leases.has_identity(&id).await?
        {
            return Err(Refusal::forbidden(format!(
                "a build cannot join the network of {id}: it has an identity"
            )));
        }
        Ok(())
    }
}

fn empty() -> Body {
    full(Bytes::new())
}

/// Rejects requests that the engine could parse differently.
fn reject_ambiguous(method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
    if *method == Method::CONNECT {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this is not a forward proxy"));
    }
    // The engine reads form fields from such a body, and they take precedence over the query.
    let form = |value: &HeaderValue| {
        value.as_bytes().trim_ascii().to_ascii_lowercase().starts_with(b"application/x-www-form-urlencoded")
    };
    if headers.get_all(header::CONTENT_TYPE).iter().any(form) {
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "form bodies are not used by this API"));
    }
    Ok(())
}
