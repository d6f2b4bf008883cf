//! Reloads the config file during a session: its rules, identities and mounts apply to containers created
//! after it changed. Live leases keep what they were given until they end.
//!
//! The file is read again only if its content is trusted (decision 23): a project's file after `kfp-creds
//! config trust`, and never one that a container can write or could write earlier in the session.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{self, Config, Environment, ReloadError};
use crate::console::Console;
use crate::docker::proxy::{ProxySettings, Rules, writable_by_a_container, wrong_with_volumes};
use crate::lifecycle::Lifecycle;
use crate::process::{Tasks, run_blocking};
use crate::quote;
use crate::source::stamp::Stamp;

/// How often the file is checked: one `stat`.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// After this time a notice says that the file system keeps the session waiting.
const SILENT: Duration = Duration::from_secs(10);

/// The part of a config that a running session takes up.
pub(super) fn rules(config: &Config) -> Rules {
    Rules {
        policy: config.policy.clone(),
        identities: config.identities.values().cloned().collect(),
        mounts: config.mounts.clone(),
        compiled: config.compiled.clone(),
        clear_entrypoint: config.clear_entrypoint,
    }
}

/// Follows the file until the session stops. `config` is the one that the session started with.
pub(super) async fn follow(
    mut config: Config,
    env: Environment,
    proxy: Arc<ProxySettings>,
    lifecycle: Arc<Lifecycle>,
    console: Console,
    tasks: Tasks,
) {
    let Some(file) = config.file.clone() else { return };
    let (mut seen, mut taken) = (config.stamp, config.stamp);
    let mut waiting = false;
    loop {
        let place = file.clone();
        let next = async {
            tokio::time::sleep(LOOK_EVERY).await;
            run_blocking(move || Stamp::of(&place)).await
        };
        let now = tokio::select! {
            () = tasks.stop().cancelled() => return,
            now = next => now.flatten(),
        };
        // Writes are not atomic: a state counts when it was seen twice. A file that waits for trust is
        // checked again without another notice.
        let settled = now == std::mem::replace(&mut seen, now);
        if !settled || (now == taken && !waiting) {
            continue;
        }
        let again = now == taken;
        taken = now;
        waiting = false;
        let read = tokio::select! {
            () = tasks.stop().cancelled() => return,
            read = look(&config, &env, &proxy, &file, &console) => read,
        };
        match read {
            Ok(new) => {
                let live = lifecycle.members().iter().filter(|member| member.lease.is_some()).count();
                proxy.rules.replace(rules(&new));
                console.notice(said(&config, &new, &file, live));
                config = new;
            }
            Err(ReloadError::Untrusted(why)) => {
                waiting = true;
                if !again {
                    console.notice(why);
                }
            }
            Err(ReloadError::Broken(why)) => console.notice(why),
        }
    }
}

async fn look(
    config: &Config,
    env: &Environment,
    proxy: &Arc<ProxySettings>,
    file: &Path,
    console: &Console,
) -> Result<Config, ReloadError> {
    let stays = "what was read before stays";
    let broken =
        |why: String| ReloadError::Broken(format!("{} is not read again: {why}; {stays}", quote::path(file)));
    let (old, env) = (config.clone(), env.clone());
    // The sources of mounts are searched for keys, which blocks: not on the serving thread.
    let mut reading = pin!(run_blocking(move || config::reread(&old, &env)));
    let read = match tokio::time::timeout(SILENT, &mut reading).await {
        Ok(read) => read,
        Err(_) => {
            let file = quote::path(file);
            console.notice(format!(
                "{file} or what it mounts is on a file system that does not answer; {stays} until it does"
            ));
            reading.await
        }
    };
    let read = read.ok_or_else(|| broken("reading it failed".into()))?;
    let new = read.map_err(|unread| match unread {
        ReloadError::Broken(why) => {
            let mut lines = why.lines();
            let first = lines.next().unwrap_or_default();
            let more = if lines.next().is_some() { " (and more: kfp-creds config check)" } else { "" };
            ReloadError::Broken(format!("{first}{more}; {stays}"))
        }
        waits @ ReloadError::Untrusted(_) => waits,
    })?;
    let wrong = wrong_with_volumes(proxy, &new.mounts).await.map_err(broken)?;
    if !wrong.is_empty() {
        return Err(broken(format!("a volume of [[mount]]: {}", wrong.join("; "))));
    }
    // A session policy needs the same protection as the config file that names it.
    for file in std::iter::once(file).chain(new.policies.iter().map(PathBuf::as_path)) {
        if let Some(place) = writable_by_a_container(proxy, file).await.map_err(broken)? {
            return Err(broken(format!("a container can write {}, or could", quote::path(&place))));
        }
    }
    Ok(new)
}

fn said(old: &Config, new: &Config, file: &Path, live: usize) -> String {
    let mut text = format!(
        "{} was read again: {} rules, {} identities, {} mounts for containers from now on",
        quote::path(file),
        new.policy.rules.len(),
        new.identities.len(),
        new.mounts.len(),
    );
    if live > 0 {
        text.push_str(&format!("; {live} that run keep what they have until they end"));
    }
    let fixed = old.differs_beyond_rules(new);
    if !fixed.is_empty() {
        text.push_str(&format!("; {} counts from the next session on", fixed.join(", ")));
    }
    text
}
