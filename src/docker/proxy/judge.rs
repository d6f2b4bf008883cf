//! What becomes of a create request: attach, pass or refuse, and what is changed in its body.
//!
//! Pure: everything that has to be asked of the engine comes in with [`Question`].

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Map, Value};

use super::confine::{Capabilities, risky_sysctl};
use super::json::HOST_FIELDS;
use super::wire::Refusal;
use super::{Wiring, reserved};
use crate::mounts::{self, Mount};
use crate::policy::Decision;
use crate::workload::{By, Identity};

/// The label that says which session touched a container.
pub const SESSION_LABEL: &str = "kfp-creds.session";
const OUR_LABELS: &str = "kfp-creds.";
/// Set over whatever an image says: a sweep takes a container with the relay's role for a live session.
const ROLE: (&str, &str) = ("kfp-creds.role", "task");

/// What the engine says a container reference of the body stands for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Neighbour {
    Ours,
    /// Joining its namespaces would share its identity.
    Leased,
    /// The full id.
    Other(String),
    Missing,
}

/// What is known when a body is judged.
#[derive(Clone, Debug)]
pub(super) struct Question<'a> {
    pub(super) decision: &'a Decision,
    /// `?name=`.
    pub(super) name: Option<&'a str>,
    /// `NAME=value` of the image.
    pub(super) image_env: &'a [String],
    /// By the reference that stands in the body, see [`container_references`].
    pub(super) neighbours: &'a HashMap<String, Neighbour>,
    /// References that mean our network, see [`network_references`].
    pub(super) our_networks: &'a HashSet<String>,
    pub(super) wiring: &'a Wiring,
    /// What is mounted besides what the request asks for, for this task.
    pub(super) mounts: &'a [&'a Mount],
    pub(super) session: &'a str,
    /// It will be alone with the relay on its network: what it could do to neighbours costs nothing there.
    pub(super) alone: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Verdict {
    /// The body is changed; `notices` are for a person.
    Attach {
        identity: Arc<Identity>,
        by: By,
        notices: Vec<String>,
    },
    /// The container gets no identity, and why.
    Pass(String),
    Refuse(Refusal),
}

const JOINABLE: [&str; 3] = ["NetworkMode", "PidMode", "IpcMode"];

/// Containers that the body names: whose namespaces it joins, and whom it links to.
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

fn endpoints(body: &Value) -> impl Iterator<Item = (&String, &Value)> {
    body["NetworkingConfig"]["EndpointsConfig"].as_object().into_iter().flatten()
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
    if let Some(why) = disqualified(body, question) {
        return Verdict::Pass(why);
    }
    if let Err(why) = mounts::add(question.mounts.iter().copied(), body) {
        return Verdict::Refuse(Refusal::malformed(why));
    }
    let notices = shadows(body, question);
    wire_up(body, question);
    Verdict::Attach { identity, by, notices }
}

/// Places that are read here must have the type that the engine reads, or nothing said about them holds.
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
        if !strings(value) {
            return wrong(place, "a list of strings");
        }
    }
    for key in ["CapAdd", "CapDrop", "Capabilities"] {
        if !(host[key].is_string() || strings(&host[key])) {
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
    // Engines up to 24 read HostConfig's fields from the top level when there is no HostConfig. We add one,
    // which would switch that off, and nobody has sent such bodies for ten years.
    let stray = HOST_FIELDS
        .iter()
        .map(|(name, _)| *name)
        .find(|name| top.get(*name).is_some_and(|value| !value.is_null()) && body["HostConfig"].is_null());
    match stray {
        Some(name) => wrong(name, "inside HostConfig"),
        None => Ok(()),
    }
}

fn strings(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(|list| list.iter().all(Value::is_string))
}

/// Refuses what would share a leased container's identity or touch what is ours, and writes full ids for
/// joined containers: the engine looks the name up again at start, when another may have it.
fn references(body: &mut Value, question: &Question<'_>) -> Result<(), Refusal> {
    if let Some(name) = network_references(body).iter().find(|name| question.our_networks.contains(*name)) {
        return Err(Refusal::forbidden(format!(
            "network {name} is reserved; containers are attached to it by rule"
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
            Some(Neighbour::Leased | Neighbour::Ours) => {
                return Err(Refusal::forbidden(format!(
                    "{key} container:{name} would share that container's identity; give this one its own"
                )));
            }
            Some(Neighbour::Missing) | None => {
                return Err(Refusal::new(StatusCode::NOT_FOUND, format!("no such container: {name}")));
            }
        }
    }
    Ok(())
}

/// Labels under our prefix are ours to set. The policy has read them from the request by now.
fn drop_our_labels(body: &mut Value) {
    if let Some(labels) = body.get_mut("Labels").and_then(Value::as_object_mut) {
        labels.retain(|name, _| !name.starts_with(OUR_LABELS));
    }
}

/// Why this container can have no identity, whatever the policy says.
fn disqualified(body: &Value, question: &Question<'_>) -> Option<String> {
    let host = &body["HostConfig"];
    if host["Privileged"] == true {
        return Some("it is privileged, so it could take a neighbour's identity".into());
    }
    match host["NetworkMode"].as_str().unwrap_or_default() {
        "host" => return Some("it uses the host's network".into()),
        "none" => return Some("it asked for no network".into()),
        mode if mode.starts_with("container:") => return Some("it joins another container's network".into()),
        _ if body["NetworkDisabled"] == true => return Some("it asked for no network".into()),
        _ => {}
    }
    if host["PidMode"] == "host" {
        return Some("it sees the host's processes, so it could enter a neighbour's network".into());
    }
    if let Some(name) = Capabilities::dangerous(host, question.alone) {
        return Some(format!("it keeps {name}, with which it could take a neighbour's identity"));
    }
    let sysctls = host["Sysctls"].as_object().into_iter().flatten();
    if let Some((name, _)) = sysctls.into_iter().find(|(name, _)| risky_sysctl(name)) {
        return Some(format!("it sets {name}, with which it could speak for a neighbour's address"));
    }
    let names = [
        ("name", question.name),
        ("Hostname", body["Hostname"].as_str()),
        ("Domainname", body["Domainname"].as_str()),
    ];
    names.into_iter().find_map(|(what, name)| {
        let why = reserved::captures(name?, &question.wiring.names)?;
        Some(format!("its {what} {why}"))
    })
}

/// What the container carries that keeps client libraries from asking us.
fn shadows(body: &Value, question: &Question<'_>) -> Vec<String> {
    let env = Environment { request: &body["Env"], image: question.image_env };
    let address = question.wiring.relay.to_string();
    let mut found = vec![];
    for name in ["GOOGLE_APPLICATION_CREDENTIALS", "NO_GCE_CHECK", "CLOUDSDK_CONFIG"] {
        if env.value(name).is_some_and(|value| !value.is_empty()) {
            found.push(format!("{name} is set"));
        }
    }
    for (name, bad) in [("METADATA_SERVER_DETECTION", "none"), ("GCE_METADATA_MTLS_MODE", "strict")] {
        if env.value(name).is_some_and(|value| value.trim().eq_ignore_ascii_case(bad)) {
            found.push(format!("{name} is {bad}"));
        }
    }
    for name in METADATA_VARIABLES {
        if env.says(name) && env.value(name) != Some(address.as_str()) {
            found.push(format!("{name} points elsewhere"));
        }
    }
    let hosts = list(&body["HostConfig"]["ExtraHosts"]);
    for name in &question.wiring.names {
        if hosts.iter().any(|entry| host_entry(entry, name).is_some_and(|at| at != address)) {
            found.push(format!("an extra host entry sends {name} elsewhere"));
        }
    }
    if let Some(place) = gcloud_mount(body) {
        found.push(format!("a gcloud directory is mounted at {place}"));
    }
    found
}

const METADATA_VARIABLES: [&str; 3] = ["GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"];

/// Where a mount puts a gcloud directory, with a login in it that wins over a metadata server.
fn gcloud_mount(body: &Value) -> Option<String> {
    let host = &body["HostConfig"];
    let binds = host["Binds"].as_array().into_iter().flatten().filter_map(Value::as_str);
    // `source:target[:options]`; a source may hold a colon on Windows, so every part is looked at.
    let binds = binds.flat_map(|bind| bind.split(':').skip(1));
    let mounts = host["Mounts"].as_array().into_iter().flatten().filter_map(|mount| mount["Target"].as_str());
    let ends = |path: &&str| path.trim_end_matches('/').rsplit('/').next() == Some("gcloud");
    binds.chain(mounts).find(ends).map(Into::into)
}

fn wire_up(body: &mut Value, question: &Question<'_>) {
    let wiring = question.wiring;
    let additions = environment(body, question);
    let mut env = list(&body["Env"]);
    env.retain(|entry| !additions.iter().any(|(name, _)| entry.split('=').next() == Some(*name)));
    env.extend(additions.iter().map(|(name, value)| format!("{name}={value}")));
    body["Env"] = env.into();
    if !body["Labels"].is_object() {
        body["Labels"] = Map::new().into();
    }
    body["Labels"][SESSION_LABEL] = question.session.into();
    body["Labels"][ROLE.0] = ROLE.1.into();
    if !body["HostConfig"].is_object() {
        body["HostConfig"] = Map::new().into();
    }
    let host = &mut body["HostConfig"];
    let mut hosts = list(&host["ExtraHosts"]);
    for name in &wiring.names {
        if !hosts.iter().any(|entry| host_entry(entry, name).is_some()) {
            hosts.push(format!("{name}:{}", wiring.relay));
        }
    }
    host["ExtraHosts"] = hosts.into();
    if !question.alone && Capabilities::of(host).has("NET_RAW") {
        let mut drop = list(&host["CapDrop"]);
        drop.push("NET_RAW".into());
        host["CapDrop"] = drop.into();
    }
}

/// What is set in the environment: never over a value that is there, except the proxy exceptions, which
/// are merged.
fn environment(body: &Value, question: &Question<'_>) -> Vec<(&'static str, String)> {
    let wiring = question.wiring;
    let env = Environment { request: &body["Env"], image: question.image_env };
    let mut out = vec![];
    for name in METADATA_VARIABLES {
        out.push((name, Some(wiring.relay.to_string())));
    }
    out.push(("GOOGLE_CLOUD_PROJECT", wiring.project.clone()));
    out.push(("GOOGLE_CLOUD_QUOTA_PROJECT", wiring.quota_project.clone()));
    let mut out: Vec<(&'static str, String)> = out
        .into_iter()
        .filter(|(name, _)| !env.says(name))
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
    // Clients read one spelling or the other, some the lower case first: both get what either has.
    for (name, other) in [("NO_PROXY", "no_proxy"), ("no_proxy", "NO_PROXY")] {
        let had = env.value(name).filter(|value| !value.is_empty()).or_else(|| env.value(other));
        out.push((name, exceptions(had.unwrap_or_default(), wiring)));
    }
    out
}

fn exceptions(had: &str, wiring: &Wiring) -> String {
    let mut all: Vec<&str> = had.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
    let relay = wiring.relay.to_string();
    let magic = Ipv4Addr::new(169, 254, 169, 254).to_string();
    for name in wiring.names.iter().map(String::as_str).chain([relay.as_str(), magic.as_str()]) {
        if !all.contains(&name) {
            all.push(name);
        }
    }
    all.join(",")
}

/// What a variable will be in the container: the request's entry wins over the image's.
struct Environment<'a> {
    request: &'a Value,
    image: &'a [String],
}

impl<'a> Environment<'a> {
    /// The last entry for `name`; one without `=` unsets the variable.
    fn entry(&self, name: &str) -> Option<&'a str> {
        let is = |entry: &&str| entry.split('=').next() == Some(name);
        let request = self.request.as_array().into_iter().flatten().filter_map(Value::as_str).rfind(is);
        request.or_else(|| self.image.iter().map(String::as_str).rfind(is))
    }

    /// True when somebody decided about `name`, be it to unset it.
    fn says(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    fn value(&self, name: &str) -> Option<&'a str> {
        self.entry(name)?.split_once('=').map(|(_, value)| value)
    }
}

fn list(value: &Value) -> Vec<String> {
    match value {
        Value::String(one) => vec![one.clone()],
        Value::Array(items) => items.iter().filter_map(Value::as_str).map(Into::into).collect(),
        _ => vec![],
    }
}

/// The address of an extra-hosts entry for `name`; newer clients may write `=` for the colon.
fn host_entry<'a>(entry: &'a str, name: &str) -> Option<&'a str> {
    let (host, at) = entry.split_once([':', '='])?;
    host.eq_ignore_ascii_case(name).then_some(at)
}
