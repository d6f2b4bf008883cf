//! The verdict on a create request (attach, pass or refuse) and the changes to its body.
//!
//! Pure: [`Question`] contains everything that had to be looked up at the engine.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::Value;

use super::capabilities::{Capabilities, risky_sysctl};
use super::engine_client::Refusal;
use super::json::HOST_FIELDS;
use super::question::{Candidate, Neighbour, Question, asks_for_link_local, endpoints};
use super::reserved;
use super::wiring::{shadows, wire_up};
use crate::json::fields;
use crate::mounts::{self};
use crate::policy::Decision;
use crate::workload::{By, ContainerId, Identity};

const OUR_LABELS: &str = "kfp-creds.";

#[derive(Clone, Debug)]
pub(super) enum Verdict {
    /// The container gets an identity and its body is changed; `notices` are for a person.
    Attach {
        identity: Arc<Identity>,
        by: By,
        notices: Vec<String>,
    },
    /// Like `Attach`, but the container has no lease of its own: it shares that of the container whose
    /// network it joins.
    Join {
        identity: Arc<Identity>,
        with: ContainerId,
        notices: Vec<String>,
    },
    /// The container gets no identity; the reason.
    Pass(String),
    Refuse(Refusal),
}

const JOINABLE: [&str; 3] = ["NetworkMode", "PidMode", "IpcMode"];

/// Containers that the body names: those whose namespaces it joins, and those it links to.
pub(super) fn container_references(body: &Value) -> Vec<String> {
    let joined = JOINABLE.iter().filter_map(|key| joined(&body["HostConfig"][key]));
    let links = links(body).filter_map(|link| link.split(':').next()).map(|name| name.trim_matches('/'));
    joined.chain(links).filter(|name| !name.is_empty()).map(Into::into).collect()
}

fn joined(mode: &Value) -> Option<&str> {
    mode.as_str()?.strip_prefix("container:")
}

fn links(body: &Value) -> impl Iterator<Item = &str> {
    let endpoints = endpoints(body).map(|(_, endpoint)| &endpoint["Links"]);
    std::iter::once(&body["HostConfig"]["Links"])
        .chain(endpoints)
        .filter_map(Value::as_array)
        .flatten()
        .filter_map(Value::as_str)
}

/// Networks that the body names.
pub(super) fn network_references(body: &Value) -> Vec<String> {
    let mode = body["HostConfig"]["NetworkMode"].as_str().filter(|mode| !mode.starts_with("container:"));
    let named = endpoints(body).flat_map(|(name, endpoint)| {
        [Some(name.as_str()), endpoint["NetworkID"].as_str()].into_iter().flatten()
    });
    mode.into_iter().chain(named).filter(|name| !name.is_empty()).map(Into::into).collect()
}

/// Judges a canonical create body and changes it accordingly.
pub(super) fn judge(body: &mut Value, question: &Question<'_>) -> Verdict {
    if let Err(refusal) = well_formed(body).and_then(|()| references(body, question)) {
        return Verdict::Refuse(refusal);
    }
    drop_our_labels(body);
    let (identity, by) = match question.decision {
        Decision::Attach(identity, by) => (identity.clone(), *by),
        Decision::Pass(why) => return Verdict::Pass(why.clone()),
    };
    match (disqualified(body, &question.candidate()), question.joins) {
        (Some(why), None) => return Verdict::Pass(why),
        // On that network it would have the identity in any case, because it has its neighbour's address.
        (Some(why), Some(joined)) => {
            return Verdict::Refuse(Refusal::forbidden(format!(
                "it cannot join the network of {}, which has an identity: {why}",
                joined.container
            )));
        }
        (None, _) => {}
    }
    if let Err(why) = mounts::add(question.mounts.iter().copied(), body) {
        return Verdict::Refuse(Refusal::malformed(why));
    }
    let notices = shadows(body, question);
    wire_up(body, question);
    match question.joins {
        Some(joined) => Verdict::Join { identity, with: joined.container.clone(), notices },
        None => Verdict::Attach { identity, by, notices },
    }
}

/// Every judged field must have the type that the engine expects; otherwise the judgement would not hold.
fn well_formed(body: &Value) -> Result<(), Refusal> {
    let wrong = |place: &str, want: &str| Err(Refusal::malformed(format!("{place} must be {want}")));
    let Some(top) = body.as_object() else { return wrong("the body", "an object") };
    let object = |value: &Value| value.is_null() || value.is_object();
    for (place, value) in [
        ("HostConfig", &body["HostConfig"]),
        ("NetworkingConfig", &body["NetworkingConfig"]),
        ("NetworkingConfig.EndpointsConfig", &body["NetworkingConfig"]["EndpointsConfig"]),
        ("Labels", &body["Labels"]),
        ("HostConfig.Sysctls", &body["HostConfig"]["Sysctls"]),
    ] {
        if !object(value) {
            return wrong(place, "an object");
        }
    }
    let host = &body["HostConfig"];
    for (place, value) in
        [("Env", &body["Env"]), ("ExtraHosts", &host["ExtraHosts"]), ("Links", &host["Links"])]
    {
        if !are_strings(value) {
            return wrong(place, "a list of strings");
        }
    }
    for key in ["CapAdd", "CapDrop", "Capabilities"] {
        if !(host[key].is_string() || are_strings(&host[key])) {
            return wrong(key, "a list of strings");
        }
    }
    for (place, value) in [("Privileged", &host["Privileged"]), ("NetworkDisabled", &body["NetworkDisabled"])]
    {
        if !(value.is_null() || value.is_boolean()) {
            return wrong(place, "true or false");
        }
    }
    for key in ["NetworkMode", "PidMode", "IpcMode"] {
        if !(host[key].is_null() || host[key].is_string()) {
            return wrong(key, "a string");
        }
    }
    // If there is no HostConfig, engines up to 24 read its fields from the top level. We add a HostConfig,
    // which would disable that, and no client has sent such bodies for ten years.
    let stray = HOST_FIELDS
        .iter()
        .map(|(name, _)| *name)
        .find(|name| top.get(*name).is_some_and(|value| !value.is_null()) && body["HostConfig"].is_null());
    match stray {
        Some(name) => wrong(name, "inside HostConfig"),
        None => Ok(()),
    }
}

fn are_strings(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(|list| list.iter().all(Value::is_string))
}

/// Refuses references that would share a leased container's identity or touch our objects. Replaces names of
/// joined containers by full ids, because the engine resolves the name again at start, when another container
/// may have it.
fn references(body: &mut Value, question: &Question<'_>) -> Result<(), Refusal> {
    if let Some(name) = network_references(body).iter().find(|name| question.our_networks.contains(*name)) {
        return Err(Refusal::forbidden(format!(
            "network {name} is reserved; containers are attached to it by rule"
        )));
    }
    if let Some((name, _)) = endpoints(body).find(|(_, endpoint)| asks_for_link_local(endpoint)) {
        return Err(Refusal::forbidden(format!(
            "the link-local address (LinkLocalIPs) on network {name} could be that of a container with an identity; \
             leave it out"
        )));
    }
    for name in container_references(body) {
        if question.neighbours.get(&name) == Some(&Neighbour::Ours) {
            return Err(Refusal::forbidden(format!("container {name} is reserved")));
        }
    }
    for key in JOINABLE {
        let Some(name) = joined(&body["HostConfig"][key]).map(str::to_string) else { continue };
        match question.neighbours.get(&name) {
            Some(Neighbour::Other(id)) => body["HostConfig"][key] = format!("container:{id}").into(),
            Some(Neighbour::Leased) if key == "NetworkMode" && question.joins.is_some() => {
                let joined = question.joins.map(|joined| joined.container.as_str()).unwrap_or_default();
                body["HostConfig"][key] = format!("container:{joined}").into();
            }
            Some(Neighbour::Leased | Neighbour::Ours) => {
                return Err(Refusal::forbidden(format!(
                    "{key} container:{name} would share that container's identity; give this one its own, or both the \
                     same and allow the network by a [[rule]] with join = true"
                )));
            }
            Some(Neighbour::Missing) | None => {
                return Err(Refusal::new(StatusCode::NOT_FOUND, format!("no such container: {name}")));
            }
        }
    }
    Ok(())
}

/// Removes labels under our prefix, which only we may set. The policy has already read them from the request.
fn drop_our_labels(body: &mut Value) {
    if let Some(labels) = body.get_mut("Labels").and_then(Value::as_object_mut) {
        labels.retain(|name, _| !name.starts_with(OUR_LABELS));
    }
}

/// The reason why this container cannot have an identity, whatever the policy says.
pub(super) fn disqualified(body: &Value, candidate: &Candidate<'_>) -> Option<String> {
    let host = &body["HostConfig"];
    if host["Privileged"] == true {
        return Some("it is privileged, so it could take a neighbour's identity".into());
    }
    match host["NetworkMode"].as_str().unwrap_or_default() {
        "host" if !candidate.on_loopback => return Some("it uses the host's network".into()),
        "none" => return Some("it asked for no network".into()),
        mode if mode.starts_with("container:") && !candidate.joins => {
            return Some("it joins another container's network".into());
        }
        _ if body["NetworkDisabled"] == true => return Some("it asked for no network".into()),
        _ => {}
    }
    if host["PidMode"] == "host" {
        return Some("it sees the host's processes, so it could enter a neighbour's network".into());
    }
    if let Some(name) = Capabilities::dangerous(host, candidate.alone) {
        return Some(format!("it keeps {name}, with which it could take a neighbour's identity"));
    }
    let sysctls = fields(&host["Sysctls"]);
    if let Some((name, _)) = sysctls.into_iter().find(|(name, _)| risky_sysctl(name)) {
        return Some(format!("it sets {name}, with which it could speak for a neighbour's address"));
    }
    let names = candidate.server_names;
    let name = candidate.name.and_then(|name| reserved::captures(name, names)).map(|why| ("name", why));
    let host = |key: &'static str| {
        let why = reserved::captures_as_host(body[key].as_str()?, names)?;
        Some((key, why))
    };
    let found = name.or_else(|| host("Hostname")).or_else(|| host("Domainname"));
    found.map(|(what, why)| format!("its {what} {why}"))
}
