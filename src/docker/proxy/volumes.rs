//! Volumes: what they are bound to, and whether there is a key in it.

use hyper::body::Incoming;
use hyper::http::request::Parts;
use serde_json::Value;
use std::sync::Arc;

use super::create::rewritten;
use super::guard::Source;
use super::path::{Target, encode};
use super::room::Room;
use super::wire::{Refusal, Reply, collect};
use super::{Settings, json};
use crate::guard::Mode;
use crate::mounts;

impl Room {
    /// A named volume: what it is bound to, else where the engine keeps it.
    pub(super) async fn volume(&self, name: &str) -> Result<Vec<Source>, Refusal> {
        let mut path = String::from("/volumes/");
        encode(name, &mut path);
        let Some(found) = self.engine.look(&path).await? else { return Ok(vec![]) };
        let devices = devices(&found["Options"], name);
        if !devices.is_empty() {
            return Ok(devices);
        }
        let place = found["Mountpoint"].as_str().filter(|place| place.starts_with('/'));
        Ok(place
            .map(|place| Source { how: format!("volume {name}"), place: place.into() })
            .into_iter()
            .collect())
    }

    pub(super) async fn mounts_of(&self, container: &str) -> Result<Vec<Source>, Refusal> {
        let mut path = String::from("/containers/");
        encode(container, &mut path);
        let found = self.engine.look(&(path + "/json")).await?.unwrap_or_default();
        let mut sources = vec![];
        for mount in found["Mounts"].as_array().into_iter().flatten() {
            match (mount["Type"].as_str(), mount["Name"].as_str(), mount["Source"].as_str()) {
                (Some("volume"), Some(name), _) => sources.extend(self.volume(name).await?),
                (_, _, Some(source)) if source.starts_with('/') => sources
                    .push(Source { how: format!("{source}, mounted by {container},"), place: source.into() }),
                _ => {}
            }
        }
        Ok(sources)
    }

    /// A volume that is bound to a place of the host. Who will use it is not known yet: one line now, and
    /// the create that names it is judged.
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
            let (_, found) = self.look(devices(&body["DriverOpts"], &name)).await;
            self.decide(Mode::Warn, "a volume for later", found)?;
        }
        let uri = target.uri().map_err(Refusal::malformed)?;
        self.engine.forward(rewritten(parts, &body), uri, None).await
    }
}

/// What the config's volumes hold that every create would be refused for. Directories were looked at when
/// the config was read; volumes are the engine's to name.
pub async fn keys_in_volumes(settings: &Arc<Settings>) -> Result<Vec<String>, String> {
    if settings.guard.rules.mode != Mode::Deny {
        return Ok(vec![]);
    }
    let room = Room::new(settings.clone());
    let mut sources = vec![];
    for mount in &settings.rules.now().mounts {
        if let mounts::Source::Volume(name) = &mount.source {
            sources.extend(room.volume(name).await.map_err(|refusal| refusal.why)?);
        }
    }
    let (_, found) = room.look(sources).await;
    Ok(found)
}

/// Host paths in the options of the local driver: `device`, and the layers of an overlay.
pub(super) fn devices(options: &Value, volume: &str) -> Vec<Source> {
    let mut places: Vec<&str> = options["device"].as_str().into_iter().collect();
    for option in options["o"].as_str().unwrap_or_default().split(',') {
        for key in ["lowerdir=", "upperdir="] {
            places.extend(option.strip_prefix(key).into_iter().flat_map(|layers| layers.split(':')));
        }
    }
    let places = places.into_iter().filter(|place| place.starts_with('/'));
    places
        .map(|place| Source { how: format!("volume {volume}, bound to {place},"), place: place.into() })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_volume_is_bound_to_what_its_options_say() {
        let places = |options: Value| devices(&options, "v").into_iter().map(|s| s.place).collect::<Vec<_>>();
        assert_eq!(places(json!({"type": "none", "o": "bind", "device": "/k"})), [PathBuf::from("/k")]);
        assert_eq!(
            places(json!({"type": "overlay", "o": "lowerdir=/a:/b,upperdir=/c", "device": "overlay"})),
            ["/a", "/b", "/c"].map(PathBuf::from)
        );
        assert!(places(json!({"type": "nfs", "device": ":/x"})).is_empty());
        assert!(places(Value::Null).is_empty());
    }
}
