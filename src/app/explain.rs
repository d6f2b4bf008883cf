//! `kfp-creds explain`: which rule applies to a container, why earlier rules did not match, and what the
//! container gets.

use std::path::Path;

use super::cut_off::query;
use super::{reload, sessions};
use crate::config::{Config, Environment};
use crate::docker::Engine;
use crate::docker::network::CONTAINER_CREDENTIALS;
use crate::docker::proxy::{Networks, PreviewOutcome, ProxySettings, Rules, preview};
use crate::failure::{Ended, Failure};
use crate::inputs::{self, Object};
use crate::kfp::{self, pipeline::Specified};
use crate::policy::Decision;
use crate::quote;
use crate::workload::{Task, Unknown};

/// Larger than any realistic create request.
const LARGEST: u64 = 32 << 20;

/// `what` is a file with the body of a create request, else a container of a running session. Images,
/// containers and directories that a file names are inspected only when the container is created.
pub async fn explain(
    config: &Config,
    env: &Environment,
    what: &str,
    print: impl Fn(&str),
) -> Result<Ended, Failure> {
    let path = env.cwd.join(what);
    if path.is_file() {
        let rules = reload::rules(config);
        let preview = preview(
            read(&path)?.as_bytes(),
            &rules,
            usual_networks(config),
            &config.guard.rules,
            |body, name| kfp::Evidence::default().look(kfp::read(body, name), body, &rules.compiled),
        )
        .map_err(|why| wrong(&path, format!("is not the body of a create request: {why}")))?;
        let mut beyond = beyond_the_rules(&preview.outcome, &rules, &preview.task);
        if config.gcs.fetch && preview.task.kfp && matches!(preview.outcome, PreviewOutcome::Attach(_)) {
            beyond.push_str(&fetched(&preview.body));
        }
        for key in &preview.told {
            beyond.push_str(&format!("note          {key}; the guard warns of it and lets it pass\n"));
        }
        print(plain(&(explained(&rules, &preview.task) + &beyond)).trim_end());
        return Ok(Ended::Done);
    }
    if is_file_name(what) {
        return Err(Failure::NoInput(format!("there is no file {}", quote::path(Path::new(what)))));
    }
    let mut peers = sessions::find(env, None).await?;
    let mut lost = None;
    // The session that gave the container its identity knows best; for a container without one, each session
    // can apply its rules.
    for target in ["/explain", "/explain/created"] {
        let (mut told, mut answering) = (false, vec![]);
        for peer in peers {
            match peer.call("GET", &format!("{target}?{}", query("container", what))).await {
                Ok(text) => {
                    if told {
                        print("");
                    }
                    print(text.trim_end());
                    told = true;
                }
                Err(Failure::NotFound(_)) => answering.push(peer),
                // A session that hangs does not keep the others from answering.
                Err(failure @ Failure::Engine(_)) => lost = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        if told {
            return Ok(Ended::Done);
        }
        peers = answering;
    }
    if let Some(failure) = lost {
        return Err(failure);
    }
    Err(Failure::Usage(format!(
        "{} is neither a file nor a container of an engine for which a session runs",
        quote::name(what)
    )))
}

/// The properties of a session with this config that is alone at its Docker Engine.
fn usual_networks(config: &Config) -> Networks {
    let alone = config.cells.is_some();
    Networks {
        alone,
        host_loopback: config.host_loopback,
        container_credentials: !alone && config.pool.contains(CONTAINER_CREDENTIALS),
    }
}

/// Whether `what` can only be a file: no container and no task of a pipeline has such a name. The engine
/// writes names with one leading slash.
fn is_file_name(what: &str) -> bool {
    let absolute = what.strip_prefix('/').is_some_and(|rest| rest.contains('/'));
    let relative = ["./", "../", "~/"].iter().any(|start| what.starts_with(start));
    absolute || relative || [".json", ".yaml", ".yml"].iter().any(|end| what.ends_with(end))
}

/// The result of a session's rules for an existing container without an identity; `None` if there is no such
/// container. Images and other containers that it names are not inspected again.
pub(super) async fn explained_created(
    session: &str,
    proxy: &ProxySettings,
    wanted: &str,
) -> Result<Option<String>, String> {
    let engine = Engine::reach(proxy.upstream.clone()).await.map_err(|error| error.to_string())?;
    let Some((body, name)) = engine.created(wanted).await.map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let rules = proxy.rules.now();
    let networks = Networks {
        alone: proxy.cells.is_some(),
        host_loopback: proxy.loopback.is_some(),
        container_credentials: proxy.wiring.at.container_credentials,
    };
    let guard = &proxy.guard.rules;
    let preview = preview(body.to_string().as_bytes(), &rules, networks, guard, |body, name| {
        proxy.evidence.look((proxy.recognise)(body, name), body, &rules.compiled)
    })?;
    let task = Task { name: Some(name.clone()), ..preview.task };
    let mut text = explained(&rules, &task) + &beyond_the_rules(&preview.outcome, &rules, &task);
    let name = name.trim_start_matches('/');
    text.push_str(&format!(
        "{name} has no identity in session {session}: below is what its rules decide now, from the engine's record of it\n"
    ));
    if matches!(rules.policy.decide(&task), Decision::Attach(..))
        && matches!(preview.outcome, PreviewOutcome::Attach(_))
    {
        text.push_str(
            "a container is attached when it is created through the session's socket, and not later\n",
        );
    }
    Ok(Some(plain(&text)))
}

/// Explains every task of a compiled pipeline.
pub fn explain_pipeline(
    config: &Config,
    env: &Environment,
    file: &Path,
    print: impl Fn(&str),
) -> Result<Ended, Failure> {
    let path = env.cwd.join(file);
    let tasks = kfp::pipeline::tasks(&read(&path)?).map_err(|why| wrong(&path, why))?;
    if tasks.is_empty() {
        return Err(wrong(&path, "has no task that runs in a container"));
    }
    let rules = reload::rules(config);
    for (index, specified) in tasks.iter().enumerate() {
        if index > 0 {
            print("");
        }
        let task = &specified.task;
        let inside = task.iteration.as_ref().map_or(String::new(), |inside| format!(" in {inside}"));
        print(&plain(&format!("{task}{inside}, image {}", task.image)));
        let (shown, how) = when_it_runs(specified, &rules);
        for line in how.iter().copied().chain(explained(&rules, &shown).lines()) {
            print(&format!("  {line}"));
        }
    }
    Ok(Ended::Done)
}

/// The task as a session will know it, with a line if a session will know less than the pipeline shows.
fn when_it_runs(specified: &Specified, rules: &Rules) -> (Task, Option<&'static str>) {
    let Specified { task, words, shows, .. } = specified;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if *shows || rules.compiled.find(&task.image, &words).is_some() {
        return (task.clone(), None);
    }
    let hidden =
        Task { pipeline: None, component: None, iteration: None, unknown: Unknown::PLACE, ..task.clone() };
    let how = "unknown when it runs: its command names none of its outputs, and no file of compiled_pipelines \
               tells it from the others";
    (hidden, Some(how))
}

/// The rule that applies, and everything that the container is given.
pub(super) fn explained(rules: &Rules, task: &Task) -> String {
    let explanation = rules.policy.explain(task);
    let mut text = explanation.to_string();
    if matches!(explanation.decision, Decision::Attach(..)) {
        for mount in rules.mounts.iter().filter(|mount| mount.is_for(task)) {
            text.push_str(&format!("mount         {mount}\n"));
        }
    }
    plain(&text)
}

/// Properties of the request, apart from the task's, that deny it what the rules give.
fn beyond_the_rules(outcome: &PreviewOutcome, rules: &Rules, task: &Task) -> String {
    let given = matches!(rules.policy.decide(task), Decision::Attach(..));
    match outcome {
        PreviewOutcome::Attach(notices) => {
            let line = |notice: &String| {
                format!("note          {notice}, so its clients might not ask the metadata server\n")
            };
            notices.iter().map(line).collect()
        }
        PreviewOutcome::Pass(why) if given => format!("it gets no identity nevertheless: {why}\n"),
        PreviewOutcome::Pass(_) => String::new(),
        PreviewOutcome::Refuse(why) => format!("it is refused nevertheless: {why}\n"),
    }
}

/// The objects of Cloud Storage that a create with this body fetches first.
fn fetched(body: &[u8]) -> String {
    let body = serde_json::from_slice(body).unwrap_or_default();
    let named = inputs::of(&body);
    let one = |object: &Object| {
        format!(
            "input         {object}, fetched with a token of this identity, at {}/{}\n",
            inputs::ROOT,
            object.bucket()
        )
    };
    let refused = named.refused.iter().map(|why| format!("input         {why}\n"));
    named.objects.iter().map(one).chain(refused).collect()
}

/// The author of the request or pipeline chose the names: no control character reaches the terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

fn wrong(path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::Usage(format!("{}: {why}", quote::path(path)))
}

fn read(path: &Path) -> Result<String, Failure> {
    let size = std::fs::metadata(path).map_err(|error| wrong(path, error))?.len();
    if size > LARGEST {
        return Err(wrong(path, "is larger than 32 MiB, which the proxy refuses as well"));
    }
    let bytes = std::fs::read(path).map_err(|error| wrong(path, error))?;
    String::from_utf8(bytes).map_err(|_| wrong(path, "is not UTF-8"))
}
