//! What the proxy adds to the create of a container with an identity, and which settings of the container
//! would make these additions useless.

use serde_json::{Map, Value, json};

use super::Wiring;
use super::capabilities::Capabilities;
use super::clouds;
use super::environment::ContainerEnvironment;
use super::question::Question;
use crate::docker::labels::{MODE_LABEL, SESSION_LABEL};
use crate::docker::network::{CONTAINER_CREDENTIALS, MAGIC};
use crate::json::{items, one_or_more, strings};

/// This overrides an image's label of that name: a sweep treats a container with the relay's role as a sign
/// of a live session.
pub(super) const ROLE: (&str, &str) = ("kfp-creds.role", "task");

/// Settings of the container that keep client libraries from asking the metadata server.
pub(super) fn shadows(body: &Value, question: &Question<'_>) -> Vec<String> {
    let env = ContainerEnvironment { request: &body["Env"], image: question.image_env };
    let address = metadata_address(question);
    let targets = targets(body);
    let mut found = clouds::shadows(&env, question, &targets);
    if !question.has_google() {
        return found;
    }
    for name in overriding().filter(|name| !METADATA_VARIABLES.contains(name)) {
        match (env.value(name).map(str::trim), only_value(name)) {
            (Some(value), Some(bad)) if value.eq_ignore_ascii_case(bad) => {
                found.push(format!("{name} is {bad}"))
            }
            (Some(value), None) if !value.is_empty() => found.push(format!("{name} is set")),
            _ => {}
        }
    }
    for name in METADATA_VARIABLES {
        if env.says(name) && env.value(name) != Some(address.as_str()) {
            found.push(format!("{name} points elsewhere"));
        }
    }
    let hosts = list(&body["HostConfig"]["ExtraHosts"]);
    for name in question.wiring.names.iter().filter(|_| question.path.is_none()) {
        if hosts.iter().any(|entry| host_entry(entry, name).is_some_and(|at| at != address)) {
            found.push(format!("an extra host entry sends {name} elsewhere"));
        }
    }
    let gcloud = |path: &&&str| path.trim_end_matches('/').rsplit('/').next() == Some("gcloud");
    // A login in that directory takes precedence over a metadata server.
    if let Some(place) = targets.iter().find(gcloud) {
        found.push(format!("a gcloud directory is mounted at {place}"));
    }
    found
}

/// Variables that take precedence over a metadata server in Google's libraries and in gcloud, or keep them
/// from asking one. kfp-creds removes them from the environment of a process that has to ask it.
pub const WINNING: [&str; 7] = [
    "GOOGLE_APPLICATION_CREDENTIALS",
    "NO_GCE_CHECK",
    "CLOUDSDK_AUTH_ACCESS_TOKEN",
    "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE",
    "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE",
    "METADATA_SERVER_DETECTION",
    "GCE_METADATA_MTLS_MODE",
];

/// The variables of [`WINNING`], and those that name gcloud's directory, which may contain a login, or the
/// address of the metadata server.
pub fn overriding() -> impl Iterator<Item = &'static str> {
    WINNING.into_iter().chain(["CLOUDSDK_CONFIG"]).chain(METADATA_VARIABLES)
}

/// The one value of the variable that keeps libraries from asking; with `None`, any value does.
pub fn only_value(name: &str) -> Option<&'static str> {
    match name {
        "METADATA_SERVER_DETECTION" => Some("none"),
        "GCE_METADATA_MTLS_MODE" => Some("strict"),
        _ => None,
    }
}

pub(super) const METADATA_VARIABLES: [&str; 3] =
    ["GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"];

/// The targets of the mounts that the request names.
fn targets(body: &Value) -> Vec<&str> {
    let host = &body["HostConfig"];
    let binds = strings(&host["Binds"]);
    // `source:target[:options]`; a source may contain a colon on Windows, so every part is checked.
    let binds = binds.flat_map(|bind| bind.split(':').skip(1));
    let mounts = items(&host["Mounts"]).filter_map(|mount| mount["Target"].as_str());
    binds.chain(mounts).collect()
}

pub(super) fn wire_up(body: &mut Value, question: &Question<'_>) {
    let wiring = question.wiring;
    let additions = environment(body, question);
    let mut env = list(&body["Env"]);
    env.retain(|entry| !additions.iter().any(|(name, _)| entry.split('=').next() == Some(*name)));
    env.extend(additions.iter().map(|(name, value)| format!("{name}={value}")));
    body["Env"] = env.into();
    for part in ["Labels", "HostConfig"] {
        if !body[part].is_object() {
            body[part] = Map::new().into();
        }
    }
    body["Labels"][SESSION_LABEL] = question.session.into();
    body["Labels"][MODE_LABEL] = question.mode.into();
    body["Labels"][ROLE.0] = ROLE.1.into();
    // A container that joins another's network has that one's host name and hosts entries. On the host's
    // network, a hosts entry cannot contain the port and the path.
    if question.joins.is_none() && question.path.is_none() {
        shorten_host_name(body);
        if question.has_google() {
            add_hosts(&mut body["HostConfig"], wiring);
        }
    }
    if let Some(linked) = question.linked {
        let endpoint = json!({ "IPAMConfig": { "LinkLocalIPs": [linked.address] } });
        // This overwrites nothing: only a request without settings for its network gets a link-local address
        // (`places`).
        body["NetworkingConfig"] = json!({ "EndpointsConfig": { linked.segment().reference(): endpoint } });
    }
    let host = &mut body["HostConfig"];
    if !question.alone && Capabilities::of(host).has("NET_RAW") {
        let mut drop = list(&host["CapDrop"]);
        drop.push("NET_RAW".into());
        host["CapDrop"] = drop.into();
    }
}

fn add_hosts(host: &mut Value, wiring: &Wiring) {
    let mut hosts = list(&host["ExtraHosts"]);
    for name in &wiring.names {
        if hosts.iter().any(|entry| host_entry(entry, name).is_some()) {
            continue;
        }
        hosts.push(format!("{name}:{}", wiring.at.address));
        // glibc and musl compare a name with a trailing dot literally, and on a bridge no DNS server has it.
        if name.contains('.') {
            hosts.push(format!("{name}.:{}", wiring.at.address));
        }
    }
    host["ExtraHosts"] = hosts.into();
}

/// Splits a fully qualified host name into host name and domain. The engine makes the host name an alias on
/// every network; on ours, other containers would resolve the full name to this container instead of the real
/// machine. `hostname -f` stays the same inside the container, and the full name stays an alias on the user's
/// own networks.
fn shorten_host_name(body: &mut Value) {
    let Some((host, rest)) = body["Hostname"].as_str().and_then(|whole| whole.split_once('.')) else {
        return;
    };
    let whole = format!("{host}.{rest}");
    let domain = match body["Domainname"].as_str().unwrap_or_default() {
        "" => rest.to_owned(),
        domain => format!("{rest}.{domain}"),
    };
    (body["Hostname"], body["Domainname"]) = (host.into(), domain.into());
    name_the_network(body);
    for endpoint in body["NetworkingConfig"]["EndpointsConfig"].as_object_mut().into_iter().flatten() {
        if let (name, endpoint) = endpoint
            && has_aliases(name)
        {
            if endpoint.is_null() {
                *endpoint = Map::new().into();
            }
            let Value::Object(endpoint) = endpoint else { continue };
            let mut aliases = list(endpoint.get("Aliases").unwrap_or(&Value::Null));
            aliases.push(whole.clone());
            endpoint.insert("Aliases".into(), aliases.into());
        }
    }
}

/// Adds an endpoint for the network of the mode. Clients omit it if they need no settings:
/// `docker run --network own` names the network only in its mode, and the engine reads that as an endpoint
/// without settings.
fn name_the_network(body: &mut Value) {
    let mode = body["HostConfig"]["NetworkMode"].as_str().filter(|mode| has_aliases(mode));
    let Some(mode) = mode.map(String::from) else { return };
    if !body["NetworkingConfig"].is_object() {
        body["NetworkingConfig"] = Map::new().into();
    }
    let endpoints = &mut body["NetworkingConfig"]["EndpointsConfig"];
    if endpoints.as_object().is_none_or(Map::is_empty) {
        *endpoints = json!({ mode: {} });
    }
}

/// Whether the name is that of a user-defined network. The engine refuses aliases on its own networks.
fn has_aliases(network: &str) -> bool {
    // Podman's modes can have options (`slirp4netns:…`).
    let mode = network.split(':').next().unwrap_or_default();
    !["", "bridge", "container", "default", "host", "nat", "none", "ns", "pasta", "private", "slirp4netns"]
        .contains(&mode)
}

/// The address at which clients have to ask the metadata server.
fn metadata_address(question: &Question<'_>) -> String {
    question.path.map_or_else(|| question.wiring.at.address.to_string(), String::from)
}

/// Variables to set. Existing values are kept, except the proxy exceptions, which are merged.
fn environment(body: &Value, question: &Question<'_>) -> Vec<(&'static str, String)> {
    let wiring = question.wiring;
    let env = ContainerEnvironment { request: &body["Env"], image: question.image_env };
    let mut out = vec![];
    if question.has_google() {
        for name in METADATA_VARIABLES {
            out.push((name, Some(metadata_address(question))));
        }
        // GDAL asks a metadata server only if it believes that it runs on a GCE instance.
        out.push(("CPL_MACHINE_IS_GCE", Some("YES".into())));
        out.push(("GOOGLE_CLOUD_PROJECT", wiring.project.clone()));
        out.push(("GOOGLE_CLOUD_QUOTA_PROJECT", wiring.quota_project.clone()));
    }
    let mut out: Vec<(&'static str, String)> = out
        .into_iter()
        .filter(|(name, _)| !env.says(name))
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
    out.extend(clouds::environment(&env, question));
    // Clients read one of the two spellings, some the lower-case one first, so each gets the other's value if
    // it has none.
    for (name, other) in [("NO_PROXY", "no_proxy"), ("no_proxy", "NO_PROXY")] {
        let existing = env.value(name).filter(|value| !value.is_empty()).or_else(|| env.value(other));
        out.push((name, exceptions(existing.unwrap_or_default(), wiring)));
    }
    out
}

fn exceptions(existing: &str, wiring: &Wiring) -> String {
    let mut all: Vec<&str> = existing.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
    let relay = wiring.at.address.to_string();
    let magic = MAGIC.to_string();
    let aws = CONTAINER_CREDENTIALS.to_string();
    let aws = wiring.at.container_credentials.then_some(aws.as_str());
    for name in wiring.names.iter().map(String::as_str).chain([relay.as_str(), magic.as_str()]).chain(aws) {
        if !all.contains(&name) {
            all.push(name);
        }
    }
    all.join(",")
}

/// `all` without the exceptions that we add.
pub(super) fn without_exceptions(all: &str, names: &[String], relays: &[String]) -> String {
    let fixed = [MAGIC, CONTAINER_CREDENTIALS].map(|address| address.to_string());
    let ours = |entry: &&str| names.iter().chain(relays).chain(&fixed).any(|own| own == entry);
    all.split(',').filter(|entry| !ours(entry)).collect::<Vec<_>>().join(",")
}

/// Whether a session may have set this variable of an image. In a committed image such values are stale.
pub(super) fn is_ours(variable: &str) -> bool {
    let name = variable.split('=').next().unwrap_or_default();
    METADATA_VARIABLES.contains(&name)
        || clouds::ours().any(|own| own == name)
        || ["CPL_MACHINE_IS_GCE", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_QUOTA_PROJECT"].contains(&name)
}

fn list(value: &Value) -> Vec<String> {
    one_or_more(value).map(String::from).collect()
}

/// The address in an extra-hosts entry for `name`, with or without a trailing dot; newer clients may write
/// `=` instead of the colon.
pub(super) fn host_entry<'a>(entry: &'a str, name: &str) -> Option<&'a str> {
    let (host, at) = entry.split_once([':', '='])?;
    host.trim_end_matches('.').eq_ignore_ascii_case(name).then_some(at)
}
