//! Paths of this machine that containers can write: kfp-creds does not read a config file again that one of
//! them could have changed (decision 23).
//!
//! Existing containers are looked up at the engine when needed; the paths of this session's removed
//! containers are remembered here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::engine_client::EngineClient;
use super::mount_sources::file_system_call;
use super::{ProxySettings, capabilities};
use crate::guard::host_root::HostRoot;
use crate::json::{items, strings};

/// Directories and files that containers of this session could write. Clones share the list.
#[derive(Clone, Debug, Default)]
pub struct Writable(Arc<Mutex<BTreeSet<PathBuf>>>);

impl Writable {
    /// Notes the writable paths of a judged create body. Mounts that the body does not spell out (named
    /// volumes, the mounts of another container) are in `mounted`, the engine's own list, if it was fetched.
    pub(super) async fn note(&self, body: &Value, mounted: &Value, host: &HostRoot) {
        let mut found = given(&body["HostConfig"]);
        found.extend(listed(mounted));
        if found.is_empty() {
            return;
        }
        // First the paths as written; their canonical form is added when it is known.
        self.add(&found);
        let (own, host) = (self.clone(), host.clone());
        let real = move || {
            let real = found.iter().filter_map(|place| host.real(place).ok());
            own.add(&real.collect::<Vec<_>>());
        };
        let _ = file_system_call(real).await;
    }

    fn add(&self, places: &[PathBuf]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(places.iter().cloned());
    }

    fn covers(&self, file: &Path) -> Option<PathBuf> {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.iter().find(|place| file.starts_with(place)).cloned()
    }
}

/// Whether only the engine knows what is mounted: the body names volumes, or the mounts of another container.
pub(super) fn is_indirect(body: &Value) -> bool {
    let host = &body["HostConfig"];
    let named = |bind: &Value| bind.as_str().is_some_and(|bind| !bind.starts_with('/'));
    let volume = |mount: &Value| mount["Type"] == "volume";
    let any =
        |list: &Value, test: &dyn Fn(&Value) -> bool| list.as_array().is_some_and(|l| l.iter().any(test));
    any(&host["VolumesFrom"], &|_| true) || any(&host["Binds"], &named) || any(&host["Mounts"], &volume)
}

/// The writable paths that a HostConfig itself contains.
fn given(host: &Value) -> Vec<PathBuf> {
    let everything = host["Privileged"] == true
        || host["PidMode"] == "host"
        || capabilities::Capabilities::of(host).has("SYS_ADMIN");
    if everything {
        // A container that controls the machine's disks or processes can write anywhere.
        return vec!["/".into()];
    }
    let binds = strings(&host["Binds"]);
    let binds = binds.filter_map(|bind| {
        let mut parts = bind.split(':');
        let (source, _, options) = (parts.next()?, parts.next()?, parts.next().unwrap_or_default());
        let read_only = options.split(',').any(|option| option == "ro");
        (source.starts_with('/') && !read_only).then(|| PathBuf::from(source))
    });
    let mounts = items(&host["Mounts"]);
    let mounts = mounts.filter(|mount| mount["ReadOnly"] != true).flat_map(|mount| {
        let source = mount["Source"].as_str().filter(|_| mount["Type"] == "bind");
        let device = mount["VolumeOptions"]["DriverConfig"]["Options"]["device"].as_str();
        [source, device].into_iter().flatten().map(PathBuf::from)
    });
    binds.chain(mounts).filter(|place| place.is_absolute()).collect()
}

/// The writable paths in the engine's list `Mounts` of a container.
fn listed(mounts: &Value) -> Vec<PathBuf> {
    let mounts = items(mounts).filter(|mount| mount["RW"] != false);
    mounts
        .filter_map(|mount| mount["Source"].as_str())
        .filter(|s| s.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// Containers name paths as the engine's machine does, and this file's path on that machine is unknown.
const ELSEWHERE: &str = "who can write it is unknown, because it is not below the host root; name it there";
/// Until the file system answers, it is unknown who can write the file.
const SILENT: &str = "the file system does not answer";

/// The path through which a container can write `file` (absolute), or could earlier in this session. An error
/// if the engine or the file system does not answer. Neither look-up blocks the serving thread.
pub async fn writable_by_a_container(
    settings: &ProxySettings,
    file: &Path,
) -> Result<Option<PathBuf>, String> {
    let named = file.to_owned();
    let file = file_system_call(move || named.canonicalize())
        .await
        .ok_or(SILENT)?
        .map_err(|error| error.to_string())?;
    let file = settings.host_root.there(&file).ok_or(ELSEWHERE)?;
    if let Some(place) = settings.writable.covers(&file) {
        return Ok(Some(place));
    }
    let engine = EngineClient::new(settings.upstream.clone(), settings.tasks.clone());
    let ask = async |path: &str| {
        let found = engine.look(path).await.map_err(|refusal| refusal.why)?;
        found.ok_or_else(|| "the engine does not list its containers".to_string())
    };
    let containers = ask("/containers/json?all=1").await?;
    let mut places: Vec<PathBuf> = items(&containers).flat_map(|one| listed(&one["Mounts"])).collect();
    let volumes = ask("/volumes").await?;
    let volumes = items(&volumes["Volumes"]);
    // A container that mounts the volume by its name can write the directory behind it.
    places.extend(volumes.filter_map(|volume| volume["Options"]["device"].as_str()).map(PathBuf::from));
    let host = settings.host_root.clone();
    let covering = move || {
        let mut real = places.into_iter().map(|place| host.real(&place).unwrap_or(place));
        real.find(|place| place.is_absolute() && file.starts_with(place))
    };
    Ok(file_system_call(covering).await.ok_or(SILENT)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn writable_paths_of_a_create_body_are_found() {
        let places = |host: Value| given(&host);
        for (host, expected) in [
            (
                json!({"Binds": ["/a:/x", "/b:/x:ro", "/c:/x:rw,z", "/d:/x:z,ro", "name:/x"]}),
                vec!["/a", "/c"],
            ),
            (
                json!({"Mounts": [
                    {"Type": "bind", "Source": "/a"},
                    {"Type": "bind", "Source": "/b", "ReadOnly": true},
                    {"Type": "volume", "Source": "v", "VolumeOptions": {"DriverConfig": {"Options": {"device": "/c"}}}},
                    {"Type": "tmpfs"},
                ]}),
                vec!["/a", "/c"],
            ),
            (json!({"Privileged": true, "Binds": ["/a:/x"]}), vec!["/"]),
            (json!({"PidMode": "host"}), vec!["/"]),
            (json!({"CapAdd": ["SYS_ADMIN"]}), vec!["/"]),
            (Value::Null, vec![]),
        ] {
            assert_eq!(
                places(host.clone()),
                expected.into_iter().map(PathBuf::from).collect::<Vec<_>>(),
                "{host}"
            );
        }
    }

    #[tokio::test]
    async fn a_noted_path_covers_everything_below_it() {
        let (writable, here) = (Writable::default(), HostRoot::default());
        writable.note(&json!({"HostConfig": {"Binds": ["/no/such/place:/x"]}}), &Value::Null, &here).await;
        writable
            .note(
                &Value::Null,
                &json!([{"Source": "/other", "RW": true}, {"Source": "/read", "RW": false}]),
                &here,
            )
            .await;
        assert!(writable.covers(Path::new("/no/such/place/kfp-creds.toml")).is_some());
        assert!(writable.covers(Path::new("/other/x")).is_some());
        assert!(writable.covers(Path::new("/no/such/places/x")).is_none());
        assert!(writable.covers(Path::new("/read/x")).is_none());
    }
}
