//! The key guard at the API: what a create, a volume, an exec or an upload would bring into a container.
//!
//! `deny` refuses where the container is ours (it gets an identity, or it looks like a kfp task), where
//! something goes into a leased container, and builds; for everything else of the user's it says one line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::path::Target;
use super::room::Room;
use super::volumes::devices;
use super::wire::Refusal;
use crate::guard::walk::{Budget, Seen, look};
use crate::guard::{Find, Kind, Mode, environment, what};

/// Most finds that are told of one request.
const MOST: usize = 4;
/// A look ends by itself, within its budget; this is for a file server that hangs and a machine that is too busy
/// to begin. What was not looked at by then passes, so it is not short.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// A place of the host that a request would bring in, and how: `the bind of /x`.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) how: String,
    pub(super) place: PathBuf,
}

impl Room {
    /// `ours`: whether a find refuses.
    pub(super) fn strictness(&self, ours: bool) -> Mode {
        strictness(self.settings.guard.rules.mode, ours)
    }

    /// Judges a canonical create body. Mounts of the engine's socket are turned to ours.
    pub(super) async fn guard_create(
        &self,
        body: &mut Value,
        image_env: &[String],
        ours: bool,
        task: &str,
    ) -> Result<(), Refusal> {
        let mode = self.strictness(ours);
        if mode == Mode::Off {
            return Ok(());
        }
        self.turn_sockets(&mut body["HostConfig"], task);
        let mut found = keys_in_body(body);
        found.extend(
            image_env
                .iter()
                .filter_map(|entry| environment::variable(entry))
                .map(|find| format!("the image's variable {} holds {}", find.place, find.kind)),
        );
        let sources = self.sources(&body["HostConfig"]).await?;
        let (seen, more) = self.look(sources).await;
        found.extend(more);
        if ours {
            for what in seen.unverified {
                self.settings.voice.notice(format!("{task}: not verified: {what}"));
            }
        }
        self.decide(mode, task, found)
    }

    /// One line a find; the same text to the client where it refuses.
    pub(super) fn decide(&self, mode: Mode, who: &str, mut found: Vec<String>) -> Result<(), Refusal> {
        found.dedup();
        found.truncate(MOST);
        match mode {
            _ if found.is_empty() => Ok(()),
            Mode::Off => Ok(()),
            Mode::Warn => {
                for text in found {
                    self.settings.voice.notice(format!("{who}: {text}"));
                }
                Ok(())
            }
            Mode::Deny => Err(Refusal::forbidden(format!("{who}: {}", refusing(&found)))),
        }
    }

    /// Everything of the host that this HostConfig mounts.
    async fn sources(&self, host: &Value) -> Result<Vec<Source>, Refusal> {
        let mut sources = vec![];
        for bind in strings(&host["Binds"]) {
            let Some((source, _)) = split_bind(bind) else { continue };
            match source.starts_with('/') {
                true => sources.push(Source { how: format!("the bind of {source}"), place: source.into() }),
                false => sources.extend(self.volume(source).await?),
            }
        }
        for mount in host["Mounts"].as_array().into_iter().flatten() {
            let source = mount["Source"].as_str().unwrap_or_default();
            match mount["Type"].as_str() {
                Some("bind") => {
                    sources.push(Source { how: format!("the bind of {source}"), place: source.into() });
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
                    self.settings.voice.notice(format!("not verified: the {kind} mount of {source}"));
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

    /// Looks through the sources, together under one budget.
    pub(super) async fn look(&self, sources: Vec<Source>) -> (Seen, Vec<String>) {
        if sources.is_empty() {
            return (Seen::default(), vec![]);
        }
        let (guard, memory) = (self.settings.guard.clone(), self.memory.clone());
        let engine = self.settings.upstream.clone();
        let work = tokio::task::spawn_blocking(move || {
            let places: Vec<PathBuf> = sources.iter().map(|source| source.place.clone()).collect();
            let mut seen = look(&places, &guard, Budget::REQUEST, &memory, MOST);
            let engine = engine.canonicalize().unwrap_or(engine);
            let real: Vec<(String, PathBuf)> = sources
                .into_iter()
                .map(|source| (source.how, source.place.canonicalize().unwrap_or(source.place)))
                .collect();
            if real.iter().any(|(_, place)| engine.starts_with(place)) && !guard.rules.allows(&engine) {
                let place = engine.display().to_string();
                seen.finds.push(Find { kind: Kind::EngineSocket, place });
            }
            let texts = seen.finds.iter().map(|find| {
                let how = real.iter().find(|(_, place)| Path::new(&find.place).starts_with(place));
                let how = how.map_or("a mount", |(how, _)| how);
                format!("{how} holds {find}")
            });
            let texts = texts.collect();
            (seen, texts)
        });
        match tokio::time::timeout(LONGEST_LOOK, work).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) | Err(_) => {
                let unverified = vec!["the mounts were not looked through in time".into()];
                (Seen { unverified, ..Seen::default() }, vec![])
            }
        }
    }

    /// Testcontainers' Ryuk and other programs mount the engine's socket: through ours they get what they
    /// need, and every container that they make is judged like the others.
    fn turn_sockets(&self, host: &mut Value, task: &str) {
        let own = self.settings.socket.display().to_string();
        let mut turned = false;
        for bind in host["Binds"].as_array_mut().into_iter().flatten() {
            let Some((source, rest)) = bind.as_str().and_then(split_bind) else { continue };
            let target = rest.split(':').next().unwrap_or_default();
            if self.is_engine(source, target) {
                *bind = format!("{own}:{rest}").into();
                turned = true;
            }
        }
        for mount in host["Mounts"].as_array_mut().into_iter().flatten() {
            let (source, target) =
                (mount["Source"].as_str().unwrap_or_default(), mount["Target"].as_str().unwrap_or_default());
            if mount["Type"] == "bind" && self.is_engine(source, target) {
                mount["Source"] = own.clone().into();
                turned = true;
            }
        }
        if turned {
            self.settings.voice.notice(format!("{task}: the mounted docker.sock leads to this session"));
        }
    }

    fn is_engine(&self, source: &str, target: &str) -> bool {
        use std::os::unix::fs::FileTypeExt;
        let place = Path::new(source);
        if place == self.settings.socket || !place.is_absolute() || self.settings.guard.rules.allows(place) {
            return false;
        }
        let real = |path: &Path| path.canonicalize().ok();
        if real(place).is_some_and(|place| Some(place) == real(&self.settings.upstream)) {
            return true;
        }
        let named = |path: &str| path.rsplit('/').next() == Some("docker.sock");
        let socket = place.metadata().is_ok_and(|about| about.file_type().is_socket());
        named(target) && (socket || named(source))
    }

    /// In environment and command of an exec.
    pub(super) fn keys_in_exec(&self, body: &Value) -> Vec<String> {
        if self.settings.guard.rules.mode == Mode::Off {
            return vec![];
        }
        let mut found = variables(&body["Env"], "variable");
        found.extend(words(&body["Cmd"], "Cmd"));
        found
    }

    /// `--build-arg`s: they stay in the image's history.
    pub(super) fn guard_build_arguments(&self, target: &Target) -> Result<(), Refusal> {
        let mode = self.strictness(true);
        if mode == Mode::Off {
            return Ok(());
        }
        let arguments = target.query("buildargs").unwrap_or_default();
        let arguments: Map<String, Value> = serde_json::from_str(arguments).unwrap_or_default();
        let found = arguments.iter().filter_map(|(name, value)| {
            let kind = environment::named(name, value.as_str()?.as_bytes())?;
            Some(format!("the build argument {name} holds {kind}"))
        });
        self.decide(mode, "build", found.collect())
    }
}

pub(super) fn strictness(mode: Mode, ours: bool) -> Mode {
    match mode {
        Mode::Deny if !ours => Mode::Warn,
        mode => mode,
    }
}

pub(super) const ADVICE: &str = "leave it out (containers with an identity get tokens without a key), or \
     except it in kfp-creds.toml under [guard]";

pub(super) fn variables(list: &Value, what: &str) -> Vec<String> {
    let found = strings(list).filter_map(environment::variable);
    found.map(|find| format!("the {what} {} holds {}", find.place, find.kind)).collect()
}

/// What reaches the container as text.
pub(super) fn keys_in_body(body: &Value) -> Vec<String> {
    let mut found = variables(&body["Env"], "variable");
    found.extend(texts(body));
    found
}

/// Why a request with these is refused.
pub(super) fn refusing(found: &[String]) -> String {
    format!("{}; {ADVICE}", found.join("; "))
}

fn texts(body: &Value) -> Vec<String> {
    let mut found: Vec<String> =
        words(&body["Cmd"], "Cmd").chain(words(&body["Entrypoint"], "Entrypoint")).collect();
    for (name, value) in body["Labels"].as_object().into_iter().flatten() {
        if let Some(kind) = environment::named(name, value.as_str().unwrap_or_default().as_bytes()) {
            found.push(format!("the label {name} holds {kind}"));
        }
    }
    found
}

fn words<'a>(command: &'a Value, place: &'a str) -> impl Iterator<Item = String> + 'a {
    let values = strings(command).chain(command.as_str());
    values.filter_map(|text| what(text.as_bytes())).map(move |kind| format!("{place} holds {kind}"))
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Source and rest of `source:target[:options]`; a lone target has no source. A drive letter's colon
/// belongs to the source.
fn split_bind(bind: &str) -> Option<(&str, &str)> {
    let drive = matches!(bind.as_bytes(), [letter, b':', b'\\' | b'/', ..] if letter.is_ascii_alphabetic());
    let colon = bind[if drive { 2 } else { 0 }..].find(':')? + if drive { 2 } else { 0 };
    Some((&bind[..colon], &bind[colon + 1..]))
}

#[cfg(test)]
mod tests {
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
}
