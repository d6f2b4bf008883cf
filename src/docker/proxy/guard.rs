//! The key guard at the API: judges what a create, a volume, an exec or an upload would bring into a
//! container.
//!
//! `deny` refuses a key that goes into a container of ours (it gets an identity, or it looks like a kfp
//! task), into a leased container or into a build. For the user's other containers it prints a line.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::StatusCode;
use serde_json::Value;

use super::ProxySettings;
use super::engine_client::Refusal;
use super::json::split_bind;
use super::leases::Leases;
use super::lookups::Lookups;
use super::mount_sources::{MountScan, file_system_call};
use super::path::ApiTarget;
use super::texts::{
    FoundKey, MOST, keys_in_body, labels, length_of, refusing, text_of, values, variable, variables, words,
};
use crate::console::Console;
use crate::guard::excepted::TextPart;
use crate::guard::walk::DID_NOT_ANSWER;
use crate::guard::{GuardRules, Mode};
use crate::kfp::{self, Evidence, Reading};
use crate::process;
use crate::record::Recorder;
use crate::workload::{ContainerId, Task};

/// The key guard of a session, for requests to the engine.
#[derive(Debug)]
pub(super) struct KeyGuard {
    rules: GuardRules,
    sockets: Sockets,
    mounts: Arc<MountScan>,
    lookups: Lookups,
    leases: Leases,
    recognise: fn(&Value, Option<&str>) -> Reading,
    evidence: Evidence,
    console: Console,
    recorder: Recorder,
}

impl KeyGuard {
    pub(super) fn new(
        settings: &ProxySettings,
        lookups: Lookups,
        leases: Leases,
        mounts: Arc<MountScan>,
    ) -> Self {
        Self {
            rules: settings.guard.rules.clone(),
            sockets: Sockets {
                own: settings.socket.clone(),
                engine: settings.upstream.endpoint().socket().map(Path::to_owned),
                rules: settings.guard.rules.clone(),
            },
            mounts,
            lookups,
            leases,
            recognise: settings.recognise,
            evidence: settings.evidence.clone(),
            console: settings.console.clone(),
            recorder: settings.recorder.clone(),
        }
    }

    pub(super) fn rules(&self) -> &GuardRules {
        &self.rules
    }

    /// `ours`: whether `deny` applies, so that a key leads to a refusal.
    pub(super) fn strictness(&self, ours: bool) -> Mode {
        strictness(self.rules.mode, ours)
    }

    /// Whether no key may get into the container: it holds an identity, or it looks like a task of kfp. The
    /// guard decides this from the engine's record of the create, so it does not matter when and by which
    /// client the container was created.
    pub(super) async fn protects(&self, container: &ContainerId) -> Result<bool, Refusal> {
        if self.leases.is_leased(container).await {
            return Ok(true);
        }
        let Some(mut found) = self.lookups.container(container.as_str()).await? else {
            return Ok(false);
        };
        let mut body = found["Config"].take();
        body["HostConfig"] = found["HostConfig"].take();
        Ok(self.evidence.is_kfp(&(self.recognise)(&body, None)))
    }

    pub(super) fn notice(&self, line: String) {
        self.console.notice(line);
    }

    /// Reports what passes without a scan, if the guard is on.
    pub(super) fn report_unscanned(&self, what: &str) {
        if self.rules.mode != Mode::Off {
            let advice = "look into the image with kfp-creds scan IMAGE";
            self.console.notice(format!("not verified: {what}; {advice}"));
        }
    }

    /// Judges a canonical create body, and replaces mounts of the engine's socket by mounts of ours.
    pub(super) async fn create(
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
        self.replace_sockets(&mut body["HostConfig"], task).await;
        let (text, image_env, rules) = (text_of(body), image_env.to_vec(), self.rules.clone());
        let length = length_of(&text) + image_env.iter().map(String::len).sum::<usize>();
        let mut found = judged(length, move || {
            let image = image_env.iter().filter_map(|entry| variable("image's variable", entry, &rules));
            keys_in_body(&text, &rules).into_iter().chain(image).collect::<Vec<_>>()
        })
        .await?;
        let sources = self.mounts.sources(&body["HostConfig"]).await?;
        let seen = self.mounts.scan_below(sources, &roots).await;
        found.extend(seen.finds);
        if found.is_empty() && seen.hung && mode == Mode::Deny {
            let advice = "try again, or leave out the mount whose server is down";
            let why = format!("{task}: not verified: {DID_NOT_ANSWER}; {advice}");
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why));
        }
        if ours {
            self.mounts.report_unverified(task, seen.unverified);
        }
        self.decide(mode, task, found)
    }

    /// Prints one line per key; a refusal sends the client the same text.
    pub(super) fn decide(&self, mode: Mode, who: &str, mut found: Vec<FoundKey>) -> Result<(), Refusal> {
        let mut seen = HashSet::new();
        found.retain(|key| seen.insert(key.clone()));
        match mode {
            _ if found.is_empty() => Ok(()),
            Mode::Off => Ok(()),
            Mode::Warn => {
                for key in found.iter().take(MOST) {
                    self.console.notice(format!("{who}: {}", key.text));
                    self.recorder.found(who, &key.text);
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
    async fn replace_sockets(&self, host: &mut Value, task: &str) {
        let mut mounts = serde_json::json!({ "Binds": host["Binds"], "Mounts": host["Mounts"] });
        let (sockets, mut looked) = (self.sockets.clone(), mounts.clone());
        let looked = file_system_call(move || sockets.replace(&mut looked, true).then_some(looked)).await;
        // If a file server hangs, sockets are recognised by name only.
        let replaced = looked.unwrap_or_else(|| self.sockets.replace(&mut mounts, false).then_some(mounts));
        let Some(mut replaced) = replaced else { return };
        for part in ["Binds", "Mounts"] {
            host[part] = replaced[part].take();
        }
        self.console.notice(format!("{task}: the mounted docker.sock leads to this session"));
    }

    /// Keys in the environment and command of an exec.
    pub(super) async fn exec(&self, body: &Value) -> Result<Vec<FoundKey>, Refusal> {
        if self.rules.mode == Mode::Off {
            return Ok(vec![]);
        }
        let (text, rules) = (text_of(body), self.rules.clone());
        judged(length_of(&text), move || {
            let mut found = variables(&text["Env"], &rules);
            found.extend(words(&text["Cmd"], "Cmd", TextPart::Command, &rules));
            found
        })
        .await
    }

    /// Judges `--build-arg`s, which stay in the image's history, and `--label`s.
    pub(super) fn build_arguments(&self, target: &ApiTarget) -> Result<(), Refusal> {
        let mode = self.strictness(true);
        if mode == Mode::Off {
            return Ok(());
        }
        let given = |key: &str| -> Value {
            serde_json::from_str(target.query(key).unwrap_or_default()).unwrap_or_default()
        };
        let (arguments, label_map) = (given("buildargs"), given("labels"));
        let rules = &self.rules;
        let mut found = values(&arguments, "build argument", TextPart::BuildArgument, rules);
        found.extend(labels(&label_map, rules));
        self.decide(mode, "build", found)
    }
}

/// Runs `judge` off the serving thread unless the input is short: a body can have 32 MiB. If `judge` panics,
/// the request is refused.
pub(super) async fn judged<T: Send + 'static>(
    length: usize,
    judge: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    const SHORT: usize = 8 << 10;
    if length <= SHORT {
        return Ok(judge());
    }
    process::run_blocking(judge).await.ok_or_else(|| {
        let why = "the guard could not judge this request; try again";
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why)
    })
}

/// Recognises mounts of the engine's socket.
#[derive(Clone, Debug)]
struct Sockets {
    /// The socket of this session.
    own: PathBuf,
    /// The engine's, if it is on this machine.
    engine: Option<PathBuf>,
    rules: GuardRules,
}

impl Sockets {
    /// Replaces mounts of the engine's socket; returns whether there were any. With `look`, it recognises
    /// sockets on the file system, otherwise by their names.
    fn replace(&self, host: &mut Value, look: bool) -> bool {
        let own = self.own.to_string_lossy();
        let mut replaced = false;
        for bind in host["Binds"].as_array_mut().into_iter().flatten() {
            let Some((source, rest)) = bind.as_str().and_then(split_bind) else { continue };
            let target = rest.split(':').next().unwrap_or_default();
            if self.is_engine(source, target, look) {
                *bind = format!("{own}:{rest}").into();
                replaced = true;
            }
        }
        for mount in host["Mounts"].as_array_mut().into_iter().flatten() {
            let (source, target) =
                (mount["Source"].as_str().unwrap_or_default(), mount["Target"].as_str().unwrap_or_default());
            if mount["Type"] == "bind" && self.is_engine(source, target, look) {
                mount["Source"] = own.clone().into();
                replaced = true;
            }
        }
        replaced
    }

    fn is_engine(&self, source: &str, target: &str, look: bool) -> bool {
        use std::os::unix::fs::FileTypeExt;
        let place = Path::new(source);
        let allowed = |place| if look { self.rules.allows(place) } else { self.rules.allows_plainly(place) };
        if place == self.own || !place.is_absolute() || allowed(place) {
            return false;
        }
        let real = |path: &Path| path.canonicalize().ok();
        let Some(engine) = &self.engine else { return false };
        if place == engine || (look && real(place).is_some_and(|place| Some(place) == real(engine))) {
            return true;
        }
        let named = |path: &str| path.rsplit('/').next() == Some("docker.sock");
        let socket = || look && place.metadata().is_ok_and(|about| about.file_type().is_socket());
        named(target) && (named(source) || socket())
    }
}

pub(super) fn strictness(mode: Mode, ours: bool) -> Mode {
    match mode {
        Mode::Deny if !ours => Mode::Warn,
        mode => mode,
    }
}
