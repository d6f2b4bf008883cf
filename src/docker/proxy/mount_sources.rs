//! The host paths that a create mounts, and the scan of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::ProxySettings;
use super::engine_client::Refusal;
use super::inputs::bucket_of;
use super::json::split_bind;
use super::lookups::Lookups;
use super::notices::Notices;
use super::texts::{FoundKey, MOST};
use crate::console::Console;
use crate::docker::upstream::EngineConnector;
use crate::guard::Guard;
use crate::guard::host_root::HostRoot;
use crate::guard::memory::Memory;
use crate::guard::walk::{Budget, DID_NOT_ANSWER, look_within};
use crate::json::{items, strings};
use crate::process;

/// Longest time for one file system call; a file server may hang.
const LONGEST_QUESTION: Duration = Duration::from_secs(1);
/// Longest time for which a file server may not answer during a scan. A scan that makes progress may take any
/// time, within its budget. If the server hangs, its content is unknown, and no container of ours gets the
/// mount.
const LONGEST_SILENCE: Duration = Duration::from_secs(5);

/// Runs a file system call off the serving thread; `None` if it exceeds [`LONGEST_QUESTION`].
pub(super) async fn file_system_call<T: Send + 'static>(
    ask: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    tokio::time::timeout(LONGEST_QUESTION, process::run_blocking(ask)).await.ok().flatten()
}

/// A host path that a request would mount. `how` describes the mount: `the bind of /x`.
#[derive(Clone, Debug)]
pub(super) struct HostPath {
    pub(super) how: String,
    pub(super) place: PathBuf,
    /// The bucket whose fetched objects are at this path.
    pub(super) bucket: Option<String>,
}

impl HostPath {
    pub(super) fn new(how: String, place: impl Into<PathBuf>) -> Self {
        Self { how, place: place.into(), bucket: None }
    }

    fn bind(source: &str, bucket: Option<&str>) -> Self {
        let how = match bucket {
            Some(bucket) => format!("what was fetched from gs://{bucket}"),
            None => format!("the bind of {source}"),
        };
        Self { how, place: source.into(), bucket: bucket.map(String::from) }
    }
}

/// The result of a scan, as reported to a person.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    pub(super) finds: Vec<FoundKey>,
    pub(super) unverified: Vec<String>,
    /// The file system did not answer.
    pub(super) hung: bool,
}

/// Finds the host paths that requests mount, and scans them for keys.
#[derive(Debug)]
pub(super) struct MountScan {
    lookups: Lookups,
    upstream: EngineConnector,
    host_root: HostRoot,
    guard: Arc<Guard>,
    /// Every mount with a source in this folder was fetched from Cloud Storage.
    fetched: Option<PathBuf>,
    console: Console,
    notices: Notices,
    /// The results of earlier scans.
    memory: Memory,
}

impl MountScan {
    pub(super) fn new(settings: &ProxySettings, lookups: Lookups) -> Self {
        Self {
            lookups,
            upstream: settings.upstream.clone(),
            host_root: settings.host_root.clone(),
            guard: settings.guard.clone(),
            fetched: settings.fetching.as_ref().map(|fetching| fetching.folder.clone()),
            console: settings.console.clone(),
            notices: Notices::new(settings.console.clone()),
            memory: Memory::default(),
        }
    }

    /// Every host path that this HostConfig mounts.
    pub(super) async fn sources(&self, host: &Value) -> Result<Vec<HostPath>, Refusal> {
        let (mut sources, fetched) = (vec![], self.fetched.as_deref());
        for bind in strings(&host["Binds"]) {
            let Some((source, rest)) = split_bind(bind) else { continue };
            let target = rest.split(':').next().unwrap_or_default();
            match source.starts_with('/') {
                true => sources.push(HostPath::bind(source, bucket_of(source, target, fetched))),
                false => sources.extend(self.volume(source).await?),
            }
        }
        for mount in items(&host["Mounts"]) {
            let source = mount["Source"].as_str().unwrap_or_default();
            match mount["Type"].as_str() {
                Some("bind") => {
                    let target = mount["Target"].as_str().unwrap_or_default();
                    sources.push(HostPath::bind(source, bucket_of(source, target, fetched)));
                }
                Some("volume") => {
                    let options = &mount["VolumeOptions"]["DriverConfig"]["Options"];
                    sources.extend(devices(options, source));
                    if !source.is_empty() {
                        sources.extend(self.volume(source).await?);
                    }
                }
                // The engine stores the content of these mounts, and no directory of this machine shows it.
                Some(kind @ ("image" | "cluster")) => {
                    self.console.notice(format!("not verified: the {kind} mount of {source}"));
                }
                _ => {}
            }
        }
        for from in strings(&host["VolumesFrom"]) {
            let name = from.split(':').next().unwrap_or_default();
            sources.extend(self.mounts_of(name).await?);
        }
        Ok(sources)
    }

    /// The host paths of a named volume: those it is bound to, otherwise the engine's directory for it.
    async fn volume(&self, name: &str) -> Result<Vec<HostPath>, Refusal> {
        Ok(self.lookups.volume(name).await?.map(|found| places(&found, name)).unwrap_or_default())
    }

    /// The host paths that a container mounts.
    async fn mounts_of(&self, container: &str) -> Result<Vec<HostPath>, Refusal> {
        let found = self.lookups.container(container).await?.unwrap_or_default();
        let mut sources = vec![];
        for mount in items(&found["Mounts"]) {
            match (mount["Type"].as_str(), mount["Name"].as_str(), mount["Source"].as_str()) {
                (Some("volume"), Some(name), _) => sources.extend(self.volume(name).await?),
                (_, _, Some(source)) if source.starts_with('/') => {
                    sources.push(HostPath::new(format!("{source}, mounted by {container},"), source))
                }
                _ => {}
            }
        }
        Ok(sources)
    }

    /// Reports unverified mounts, each once in a session.
    pub(super) fn report_unverified(&self, who: &str, unverified: Vec<String>) {
        for what in unverified {
            let line = format!("not verified: {what}");
            self.notices.once(who, what, &line);
        }
    }

    /// Scans the sources under one common budget.
    pub(super) async fn scan(&self, sources: Vec<HostPath>) -> Scanned {
        self.scan_below(sources, &[]).await
    }

    /// Sources that are the engine's socket on a remote machine, by their name. Through that socket a
    /// container would bypass this session, and our socket, which could be mounted instead, does not exist
    /// there.
    fn sockets_there(&self, sources: &[HostPath]) -> Vec<FoundKey> {
        if self.upstream.endpoint().socket().is_some() {
            return vec![];
        }
        let sockets = sources.iter().filter(|source| source.place.ends_with("docker.sock"));
        sockets.map(|source| FoundKey::plain(format!("{} holds the engine's socket", source.how))).collect()
    }

    /// Scans the sources. kfp itself creates directories below `roots`; missing or unreadable ones are not
    /// reported.
    pub(super) async fn scan_below(&self, sources: Vec<HostPath>, roots: &[PathBuf]) -> Scanned {
        // The paths of a remote engine do not refer to files of this machine, so they are not scanned; the
        // session has reported that.
        let Some(socket) = self.upstream.endpoint().socket().filter(|_| !sources.is_empty()) else {
            return Scanned { finds: self.sockets_there(&sources), ..Scanned::default() };
        };
        let host = &self.host_root;
        let mut guard = host.guard(Guard {
            engine: Some(socket.to_owned()),
            made: roots.to_vec(),
            ..Guard::clone(&self.guard)
        });
        for source in &sources {
            if let Some(bucket) = &source.bucket {
                guard.rules = guard.rules.with_objects_at(bucket, &host.find(&source.place));
            }
        }
        let memory = self.memory.clone();
        let places: Vec<PathBuf> = sources.iter().map(|source| host.find(&source.place)).collect();
        let work = tokio::task::spawn_blocking(move || {
            look_within(LONGEST_SILENCE, &places, &guard, Budget::REQUEST, &memory, MOST)
        });
        let Ok(seen) = work.await else {
            return Scanned { unverified: vec![DID_NOT_ANSWER.into()], hung: true, ..Scanned::default() };
        };
        let finds = seen.finds.into_iter().map(|(source, mut find)| {
            let HostPath { how, place, bucket } = &sources[source];
            find.place = host.name(&find.place);
            let text = format!("{how} holds {find}");
            // The next session fetches to another path, so the entry of `guard.allow` has the object's name.
            match (bucket, find.place.strip_prefix(&*place.to_string_lossy())) {
                (Some(bucket), Some(name)) => FoundKey::in_object(text, bucket, name.trim_start_matches('/')),
                (Some(_), None) => FoundKey::plain(text),
                (None, _) => FoundKey::in_file(text, &find),
            }
        });
        let unverified = seen.unverified.iter().map(|what| host.name(what)).collect();
        Scanned { finds: finds.collect(), unverified, hung: seen.hung }
    }
}

/// The host paths of a volume, from the engine's record of it: those it is bound to, otherwise the engine's
/// directory.
pub(super) fn places(found: &Value, name: &str) -> Vec<HostPath> {
    let devices = devices(&found["Options"], name);
    if !devices.is_empty() {
        return devices;
    }
    let place = found["Mountpoint"].as_str().filter(|place| place.starts_with('/'));
    place.map(|place| HostPath::new(format!("volume {name}"), place)).into_iter().collect()
}

/// Host paths in the options of the local driver: `device`, and the layers of an overlay.
pub(super) fn devices(options: &Value, volume: &str) -> Vec<HostPath> {
    let mut places: Vec<&str> = options["device"].as_str().into_iter().collect();
    for option in options["o"].as_str().unwrap_or_default().split(',') {
        for key in ["lowerdir=", "upperdir="] {
            places.extend(option.strip_prefix(key).into_iter().flat_map(|layers| layers.split(':')));
        }
    }
    let places = places.into_iter().filter(|place| place.starts_with('/'));
    places.map(|place| HostPath::new(format!("volume {volume}, bound to {place},"), place)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn binds_are_split_into_source_and_rest() {
        for (bind, split) in [
            ("/a:/b", Some(("/a", "/b"))),
            ("/a:/b:ro,z", Some(("/a", "/b:ro,z"))),
            ("vol:/b", Some(("vol", "/b"))),
            ("/b", None),
            (r"C:\a:/b:ro", Some((r"C:\a", "/b:ro"))),
        ] {
            assert_eq!(split_bind(bind), split, "{bind}");
        }
    }

    #[test]
    fn host_paths_of_a_volume_are_read_from_its_options() {
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
