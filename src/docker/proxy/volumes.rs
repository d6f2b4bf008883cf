//! Volumes: the host paths that they are bound to, and the keys in these.

use hyper::body::Incoming;
use hyper::http::request::Parts;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

use super::engine_client::{Refusal, Reply, collect};
use super::json::rewritten;
use super::mount_sources::{Source, devices};
use super::path::{Target, encode};
use super::state::Proxy;
use super::{Settings, json};
use crate::guard::Mode;
use crate::json::items;
use crate::mounts::{self, Mount};

impl Proxy {
    /// The host paths of a named volume: those it is bound to, otherwise the engine's directory of it.
    pub(super) async fn volume(&self, name: &str) -> Result<Vec<Source>, Refusal> {
        Ok(self.found(name).await?.map(|found| places(&found, name)).unwrap_or_default())
    }

    /// The engine's record of a volume.
    async fn found(&self, name: &str) -> Result<Option<Value>, Refusal> {
        let mut path = String::from("/volumes/");
        encode(name, &mut path);
        self.engine.look(&path).await
    }

    pub(super) async fn mounts_of(&self, container: &str) -> Result<Vec<Source>, Refusal> {
        let mut path = String::from("/containers/");
        encode(container, &mut path);
        let found = self.engine.look(&(path + "/json")).await?.unwrap_or_default();
        let mut sources = vec![];
        for mount in items(&found["Mounts"]) {
            match (mount["Type"].as_str(), mount["Name"].as_str(), mount["Source"].as_str()) {
                (Some("volume"), Some(name), _) => sources.extend(self.volume(name).await?),
                (_, _, Some(source)) if source.starts_with('/') => {
                    sources.push(Source::new(format!("{source}, mounted by {container},"), source))
                }
                _ => {}
            }
        }
        Ok(sources)
    }

    /// Creates a volume. If it is bound to a host path with a key, one line is printed; its users are not
    /// known yet, and each create that names the volume is judged.
    pub(super) async fn volume_create(
        &self,
        parts: Parts,
        target: Target,
        body: Incoming,
    ) -> Result<Reply, Refusal> {
        let mut body = json::parse(&collect(body).await?).map_err(Refusal::malformed)?;
        json::canonical(&mut body, json::VOLUME).map_err(Refusal::malformed)?;
        if self.settings.guard.rules.mode != Mode::Off {
            let name = body["Name"].as_str().unwrap_or("without a name").to_string();
            let looked = self.look(devices(&body["DriverOpts"], &name)).await;
            self.decide(Mode::Warn, "a volume for later", looked.finds)?;
        }
        let uri = target.uri().map_err(Refusal::malformed)?;
        self.engine.forward(rewritten(parts, &body), uri, None).await
    }
}

/// All problems of the config's volumes: a missing one would be created empty, and one with a key in it would
/// have every create refused. Directories were checked when the config was read; only the engine knows its
/// volumes. Volumes that could not be scanned are reported.
pub async fn wrong_with_volumes(settings: &Arc<Settings>, mounts: &[Mount]) -> Result<Vec<String>, String> {
    let proxy = Proxy::new(settings.clone());
    let (mut wrong, mut sources) = (vec![], vec![]);
    for mount in mounts {
        let mounts::Source::Volume { name, beside } = &mount.source else { continue };
        match proxy.found(name).await.map_err(|refusal| refusal.why)? {
            Some(found) => sources.extend(places(&found, name)),
            None => wrong.push(absent(name, beside.as_deref())),
        }
    }
    if settings.guard.rules.mode == Mode::Deny {
        let looked = proxy.look(sources).await;
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

fn places(found: &Value, name: &str) -> Vec<Source> {
    let devices = devices(&found["Options"], name);
    if !devices.is_empty() {
        return devices;
    }
    let place = found["Mountpoint"].as_str().filter(|place| place.starts_with('/'));
    place.map(|place| Source::new(format!("volume {name}"), place)).into_iter().collect()
}
