//! What a create mounts, as places of the host, and the look through them.

use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

use serde_json::Value;

use super::engine_client::Refusal;
use super::inputs::told;
use super::json::{split_bind, strings};
use super::state::Proxy;
use super::texts::Key;
use crate::guard::Guard;
use crate::guard::walk::{Budget, DID_NOT_ANSWER, look_within};
use crate::process;

/// For a question to a file server that hangs.
const LONGEST_QUESTION: Duration = Duration::from_secs(1);
/// A look ends by itself, within its budget, however long that takes; this is for a file server that hangs. What it
/// holds is not known, and no container of ours gets it.
const LONGEST_SILENCE: Duration = Duration::from_secs(5);

/// Asks the file system away from the thread that serves; `None` where that takes longer than a look may.
pub(super) async fn aside<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::time::timeout(LONGEST_QUESTION, process::aside(ask)).await.ok().flatten()
}

/// Most finds that are told of one request.
pub(super) const MOST: usize = 4;

/// A place of the host that a request would bring in, and how: `the bind of /x`.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) how: String,
    pub(super) place: PathBuf,
}

/// What a look came to, as a person is told.
#[derive(Debug, Default)]
pub(super) struct Looked {
    pub(super) finds: Vec<Key>,
    pub(super) unverified: Vec<String>,
    /// The file system did not answer.
    pub(super) hung: bool,
}

impl Proxy {
    /// Everything of the host that this HostConfig mounts.
    pub(super) async fn sources(&self, host: &Value) -> Result<Vec<Source>, Refusal> {
        let (mut sources, fetching) = (vec![], self.settings.fetching.as_ref());
        for bind in strings(&host["Binds"]) {
            let Some((source, rest)) = split_bind(bind) else { continue };
            let target = rest.split(':').next().unwrap_or_default();
            match source.starts_with('/') {
                true => sources.push(Source { how: told(source, target, fetching), place: source.into() }),
                false => sources.extend(self.volume(source).await?),
            }
        }
        for mount in host["Mounts"].as_array().into_iter().flatten() {
            let source = mount["Source"].as_str().unwrap_or_default();
            match mount["Type"].as_str() {
                Some("bind") => {
                    let target = mount["Target"].as_str().unwrap_or_default();
                    let how = told(source, target, fetching);
                    sources.push(Source { how, place: source.into() });
                }
                Some("volume") => {
                    let options = &mount["VolumeOptions"]["DriverConfig"]["Options"];
                    sources.extend(devices(options, source));
                    if !source.is_empty() {
                        sources.extend(self.volume(source).await?);
                    }
                }
                // Their content is the engine's, and no directory of this machine.
                Some(kind @ ("image" | "cluster")) => {
                    self.settings.console.notice(format!("not verified: the {kind} mount of {source}"));
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

    /// What was not verified is said once in a session: every task of a pipeline has the same mounts.
    pub(super) fn say_unverified(&self, who: &str, unverified: Vec<String>) {
        for what in unverified {
            let new = self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(what.clone());
            if new {
                self.settings.console.notice(format!("{who}: not verified: {what}"));
            }
        }
    }

    /// Looks through the sources, together under one budget.
    pub(super) async fn look(&self, sources: Vec<Source>) -> Looked {
        self.look_beside(sources, &[]).await
    }

    /// The engine's socket on another machine, by its name: through it a container would get past this session, and
    /// ours is not there to be mounted in its place.
    fn sockets_there(&self, sources: &[Source]) -> Vec<Key> {
        if self.settings.upstream.endpoint().socket().is_some() {
            return vec![];
        }
        let sockets = sources.iter().filter(|source| source.place.ends_with("docker.sock"));
        sockets.map(|source| Key::plain(format!("{} holds the engine's socket", source.how))).collect()
    }

    /// Looks through the sources; below `roots` kfp makes directories itself, of which nothing is said.
    pub(super) async fn look_beside(&self, sources: Vec<Source>, roots: &[PathBuf]) -> Looked {
        // Where the engine is another machine's, these are its paths: what has them here is something else. The
        // session has said so.
        let Some(socket) = self.settings.upstream.endpoint().socket().filter(|_| !sources.is_empty()) else {
            return Looked { finds: self.sockets_there(&sources), ..Looked::default() };
        };
        let guard = Guard {
            engine: Some(socket.to_owned()),
            made: roots.to_vec(),
            ..Guard::clone(&self.settings.guard)
        };
        let memory = self.memory.clone();
        let places: Vec<PathBuf> = sources.iter().map(|source| source.place.clone()).collect();
        let work = tokio::task::spawn_blocking(move || {
            look_within(LONGEST_SILENCE, &places, &guard, Budget::REQUEST, &memory, MOST)
        });
        let Ok(seen) = work.await else {
            return Looked { unverified: vec![DID_NOT_ANSWER.into()], hung: true, ..Looked::default() };
        };
        let finds = seen.finds.iter();
        let finds = finds
            .map(|(source, find)| Key::in_file(format!("{} holds {find}", sources[*source].how), find))
            .collect();
        Looked { finds, unverified: seen.unverified, hung: seen.hung }
    }
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
    use serde_json::json;

    use super::*;

    #[test]
    fn binds_and_devices() {
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
