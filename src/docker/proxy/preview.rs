//! The outcome of a create request, as far as it can be determined without an engine: no image, other
//! container or directory is inspected. For `explain`, benchmarks and fuzzing.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use serde_json::Value;

use super::guard::strictness;
use super::judge::{self, Verdict};
use super::question::{Neighbour, Question};
use super::texts::{FoundKey, keys_in_body, refusing};
use super::{RelayAt, Rules, Wiring, json};
use crate::docker::relay::NAMES;
use crate::guard::{self, Mode};
use crate::workload::Task;

/// A judged request.
#[derive(Debug)]
pub struct Preview {
    pub task: Task,
    pub outcome: PreviewOutcome,
    /// Keys that the container would receive, because the guard only warns of them.
    pub told: Vec<String>,
    /// The body that the engine would be sent.
    pub body: Vec<u8>,
}

#[derive(Debug)]
pub enum PreviewOutcome {
    /// The container gets an identity; further notices for a person.
    Attach(Vec<String>),
    /// The container gets no identity; the reason.
    Pass(String),
    /// The container is not created; the reason.
    Refuse(String),
}

/// The networks by which containers reach us.
#[derive(Clone, Copy, Debug, Default)]
pub struct Networks {
    /// Each container has a network of its own.
    pub alone: bool,
    /// Containers on the host's network can reach us, too.
    pub host_loopback: bool,
    /// The relay has AWS's address of container credentials.
    pub container_credentials: bool,
}

/// Judges the body of a create request. An error if the body is not valid.
pub fn preview(
    bytes: &[u8],
    rules: &Rules,
    Networks { alone, host_loopback, container_credentials }: Networks,
    guard: &guard::GuardRules,
    recognise: impl Fn(&Value, Option<&str>) -> Task,
) -> Result<Preview, String> {
    let mut body = json::parse(bytes).map_err(|error| error.to_string())?;
    if !body.is_object() {
        return Err("it is not an object".into());
    }
    json::canonical(&mut body, json::CREATE)?;
    let task = recognise(&body, None);
    let decision = rules.policy.decide(&task);
    let relay = Ipv4Addr::new(169, 254, 169, 254);
    let wiring = Wiring {
        at: RelayAt { address: relay, container_credentials },
        names: NAMES.map(String::from).to_vec(),
        project: None,
        quota_project: None,
        aws_region: None,
    };
    let path = (host_loopback && body["HostConfig"]["NetworkMode"] == "host").then_some("127.0.0.1");
    let others = judge::container_references(&body);
    let neighbours = others.into_iter().map(|name| (name.clone(), Neighbour::Other(name)));
    let mounts: Vec<_> = rules.mounts.iter().filter(|mount| mount.is_for(&task)).collect();
    let question = Question {
        decision: &decision,
        name: None,
        image_env: &[],
        neighbours: &neighbours.collect::<HashMap<_, _>>(),
        our_networks: &HashSet::new(),
        wiring: &wiring,
        mounts: &mounts,
        session: "",
        mode: "",
        alone: alone && path.is_none(),
        path,
        secret: None,
        linked: None,
        joins: None,
    };
    let outcome = match judge::judge(&mut body, &question) {
        Verdict::Attach { notices, .. } | Verdict::Join { notices, .. } => PreviewOutcome::Attach(notices),
        Verdict::Pass(why) => PreviewOutcome::Pass(why),
        Verdict::Refuse(refusal) => PreviewOutcome::Refuse(refusal.why),
    };
    let ours = task.kfp || matches!(outcome, PreviewOutcome::Attach(_));
    let refused = matches!(outcome, PreviewOutcome::Refuse(_));
    let (outcome, told) = match (strictness(guard.mode, ours), keys_in_body(&body, guard)) {
        (Mode::Deny, keys) if !refused && !keys.is_empty() => {
            (PreviewOutcome::Refuse(refusing(&keys)), vec![])
        }
        (Mode::Warn, keys) if !refused => {
            (outcome, keys.into_iter().map(|FoundKey { text, .. }| text).collect())
        }
        _ => (outcome, vec![]),
    };
    Ok(Preview { task, outcome, told, body: serde_json::to_vec(&body).unwrap_or_default() })
}
