//! Volumes: the host paths that they are bound to, and the keys at these paths.

use hyper::body::Incoming;
use hyper::http::request::Parts;
use std::path::Path;

use super::engine_client::{EngineClient, Refusal, Reply, collect};
use super::json::rewritten;
use super::lookups::Lookups;
use super::mount_sources::{MountScan, devices, places};
use super::path::ApiTarget;
use super::state::Proxy;
use super::{ProxySettings, json};
use crate::guard::Mode;
use crate::mounts::{self, Mount};

impl Proxy {
    /// Creates a volume. If it is bound to a host path with a key, the proxy only prints a line, because each
    /// create that names the volume will be judged.
    pub(super) async fn volume_create(
        &self,
        parts: Parts,
        target: ApiTarget,
        body: Incoming,
    ) -> Result<Reply, Refusal> {
        let mut body = json::parse(&collect(body).await?).map_err(Refusal::malformed)?;
        json::canonical(&mut body, json::VOLUME).map_err(Refusal::malformed)?;
        if self.guard.rules().mode != Mode::Off {
            let name = body["Name"].as_str().unwrap_or("without a name").to_string();
            let looked = self.mounts.scan(devices(&body["DriverOpts"], &name)).await;
            self.guard.decide(Mode::Warn, "a volume for later", looked.finds)?;
        }
        let uri = target.uri().map_err(Refusal::malformed)?;
        self.engine.forward(rewritten(parts, &body), uri, None).await
    }
}

/// All problems of the config's volumes: the engine would create a missing one empty, and because of a key in
/// one, the guard would refuse every create. Directories were checked when the config was read; only the
/// engine knows its volumes. Volumes that could not be scanned are reported.
pub async fn wrong_with_volumes(settings: &ProxySettings, mounts: &[Mount]) -> Result<Vec<String>, String> {
    let engine = EngineClient::new(settings.upstream.clone(), settings.tasks.clone());
    let lookups = Lookups::new(engine, settings.reserved.clone());
    let scan = MountScan::new(settings, lookups.clone());
    let (mut wrong, mut sources) = (vec![], vec![]);
    for mount in mounts {
        let mounts::Source::Volume { name, beside } = &mount.source else { continue };
        match lookups.volume(name).await.map_err(|refusal| refusal.why)? {
            Some(found) => sources.extend(places(&found, name)),
            None => wrong.push(absent(name, beside.as_deref())),
        }
    }
    if settings.guard.rules.mode == Mode::Deny {
        let looked = scan.scan(sources).await;
        wrong.extend(looked.finds.into_iter().map(|key| key.text));
        for what in looked.unverified {
            settings.console.notice(format!("a volume of [[mount]]: not verified: {what}"));
        }
    }
    wrong.dedup();
    Ok(wrong)
}

fn absent(name: &str, beside: Option<&Path>) -> String {
    match beside {
        Some(_) => format!("the engine has no volume {name}; if you mean the one beside it, write ./{name}"),
        None => format!("the engine has no volume {name}; make it with docker volume create {name}"),
    }
}
