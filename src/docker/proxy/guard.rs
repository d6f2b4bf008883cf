//! The key guard at the API: judges what a create, a volume, an exec or an upload would bring into a
//! container.
//!
//! `deny` refuses if the container is ours (it gets an identity, or it looks like a kfp task), if something
//! goes into a leased container, and for builds. For the user's other containers it prints one line.

use std::collections::HashSet;
use std::path::Path;

use hyper::StatusCode;
use serde_json::Value;

use super::Settings;
use super::engine_client::Refusal;
use super::json::split_bind;
use super::mount_sources::aside;
use super::path::Target;
use super::state::Proxy;
use super::texts::{
    Key, MOST, keys_in_body, labels, length_of, refusing, text_of, values, variable, variables, words,
};
use crate::guard::Mode;
use crate::guard::excepted::Part;
use crate::guard::walk::DID_NOT_ANSWER;
use crate::kfp;
use crate::process;
use crate::workload::Task;

impl Proxy {
    /// `ours`: whether a key leads to a refusal.
    pub(super) fn strictness(&self, ours: bool) -> Mode {
        strictness(self.settings.guard.rules.mode, ours)
    }

    /// Judges a canonical create body. Mounts of the engine's socket are replaced by ours.
    pub(super) async fn guard_create(
        &self,
        body: &mut Value,
        image_env: &[String],
        ours: bool,
        task: &Task,
    ) -> Result<(), Refusal> {
        let (roots, task) = (if task.kfp { kfp::roots(body) } else { vec![] }, &task.to_string());
        let mode = self.strictness(ours);
        if mode == Mode::Off {
            return Ok(());
        }
        self.turn_sockets(&mut body["HostConfig"], task).await;
        let (text, image_env, rules) = (text_of(body), image_env.to_vec(), self.settings.guard.rules.clone());
        let length = length_of(&text) + image_env.iter().map(String::len).sum::<usize>();
        let mut found = judged(length, move || {
            let image = image_env.iter().filter_map(|entry| variable("image's variable", entry, &rules));
            keys_in_body(&text, &rules).into_iter().chain(image).collect::<Vec<_>>()
        })
        .await?;
        let sources = self.sources(&body["HostConfig"]).await?;
        let seen = self.look_beside(sources, &roots).await;
        found.extend(seen.finds);
        if found.is_empty() && seen.hung && mode == Mode::Deny {
            let advice = "try again, or leave out the mount whose server is down";
            let why = format!("{task}: not verified: {DID_NOT_ANSWER}; {advice}");
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why));
        }
        if ours {
            self.say_unverified(task, seen.unverified);
        }
        self.decide(mode, task, found)
    }

    /// Prints one line per key; a refusal sends the client the same text.
    pub(super) fn decide(&self, mode: Mode, who: &str, mut found: Vec<Key>) -> Result<(), Refusal> {
        let mut seen = HashSet::new();
        found.retain(|key| seen.insert(key.clone()));
        match mode {
            _ if found.is_empty() => Ok(()),
            Mode::Off => Ok(()),
            Mode::Warn => {
                for key in found.iter().take(MOST) {
                    self.settings.console.notice(format!("{who}: {}", key.text));
                    self.settings.recorder.found(who, &key.text);
                }
                Ok(())
            }
            Mode::Deny => {
                let refusal = Refusal::forbidden(format!("{who}: {}", refusing(&found)));
                Err(Refusal { by_guard: true, ..refusal })
            }
        }
    }

    /// Testcontainers' Ryuk and other programs mount the engine's socket. Through our socket they get what
    /// they need, and every container that they create is judged like others.
    async fn turn_sockets(&self, host: &mut Value, task: &str) {
        let mut mounts = serde_json::json!({ "Binds": host["Binds"], "Mounts": host["Mounts"] });
        let (settings, mut looked) = (self.settings.clone(), mounts.clone());
        let looked = aside(move || turn_sockets(&settings, &mut looked, true).then_some(looked)).await;
        // If a file server hangs, sockets are recognised by name only.
        let turned =
            looked.unwrap_or_else(|| turn_sockets(&self.settings, &mut mounts, false).then_some(mounts));
        let Some(mut turned) = turned else { return };
        for part in ["Binds", "Mounts"] {
            host[part] = turned[part].take();
        }
        self.settings.console.notice(format!("{task}: the mounted docker.sock leads to this session"));
    }

    /// Keys in the environment and command of an exec.
    pub(super) async fn keys_in_exec(&self, body: &Value) -> Result<Vec<Key>, Refusal> {
        if self.settings.guard.rules.mode == Mode::Off {
            return Ok(vec![]);
        }
        let (text, rules) = (text_of(body), self.settings.guard.rules.clone());
        judged(length_of(&text), move || {
            let mut found = variables(&text["Env"], &rules);
            found.extend(words(&text["Cmd"], "Cmd", Part::Command, &rules));
            found
        })
        .await
    }

    /// Judges `--build-arg`s, which stay in the image's history, and `--label`s.
    pub(super) fn guard_build_arguments(&self, target: &Target) -> Result<(), Refusal> {
        let mode = self.strictness(true);
        if mode == Mode::Off {
            return Ok(());
        }
        let given = |key: &str| -> Value {
            serde_json::from_str(target.query(key).unwrap_or_default()).unwrap_or_default()
        };
        let (arguments, marks) = (given("buildargs"), given("labels"));
        let rules = &self.settings.guard.rules;
        let mut found = values(&arguments, "build argument", Part::BuildArgument, rules);
        found.extend(labels(&marks, rules));
        self.decide(mode, "build", found)
    }
}

/// Runs off the serving thread unless the input is short: a body can have 32 MiB. If the judgement fails, the
/// request is refused.
pub(super) async fn judged<T: Send + 'static>(
    length: usize,
    judge: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    const SHORT: usize = 8 << 10;
    if length <= SHORT {
        return Ok(judge());
    }
    process::aside(judge).await.ok_or_else(|| {
        let why = "the guard could not judge this request; try again";
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why)
    })
}

/// Whether a mount was replaced. With `look`, sockets are recognised on the file system, otherwise by their
/// names.
fn turn_sockets(settings: &Settings, host: &mut Value, look: bool) -> bool {
    let own = settings.socket.to_string_lossy().into_owned();
    let mut turned = false;
    for bind in host["Binds"].as_array_mut().into_iter().flatten() {
        let Some((source, rest)) = bind.as_str().and_then(split_bind) else { continue };
        let target = rest.split(':').next().unwrap_or_default();
        if is_engine(settings, source, target, look) {
            *bind = format!("{own}:{rest}").into();
            turned = true;
        }
    }
    for mount in host["Mounts"].as_array_mut().into_iter().flatten() {
        let (source, target) =
            (mount["Source"].as_str().unwrap_or_default(), mount["Target"].as_str().unwrap_or_default());
        if mount["Type"] == "bind" && is_engine(settings, source, target, look) {
            mount["Source"] = own.clone().into();
            turned = true;
        }
    }
    turned
}

fn is_engine(settings: &Settings, source: &str, target: &str, look: bool) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let (place, rules) = (Path::new(source), &settings.guard.rules);
    let allowed = |place| if look { rules.allows(place) } else { rules.allows_plainly(place) };
    if place == settings.socket || !place.is_absolute() || allowed(place) {
        return false;
    }
    let real = |path: &Path| path.canonicalize().ok();
    let Some(engine) = settings.upstream.endpoint().socket() else { return false };
    if place == engine || (look && real(place).is_some_and(|place| Some(place) == real(engine))) {
        return true;
    }
    let named = |path: &str| path.rsplit('/').next() == Some("docker.sock");
    let socket = || look && place.metadata().is_ok_and(|about| about.file_type().is_socket());
    named(target) && (named(source) || socket())
}

pub(super) fn strictness(mode: Mode, ours: bool) -> Mode {
    match mode {
        Mode::Deny if !ours => Mode::Warn,
        mode => mode,
    }
}
