//! Request fields that Podman parses and Docker does not. Podman passes parts of a create to the parsers of
//! its command line, which can read several fields from one string. The proxy refuses such strings, so that
//! Podman does exactly what was judged. Checked against the source and the behaviour of Podman 5.4 to 6.1.

use serde_json::Value;

use crate::json::{fields, items, strings};

/// Query keys of a build that give its steps files, capabilities or namespaces of the host, or another
/// container's network. Docker has none of these, and ignores them.
const BUILD_KEYS: [&str; 7] =
    ["nsoptions", "volume", "transientrunmounts", "additionalbuildcontexts", "secrets", "devices", "addcaps"];

/// Network modes outside the engine's networks: a container with one of them can join no other network.
const UNCONNECTED: [&str; 4] = ["pasta", "slirp4netns", "private", "pod"];

/// The first Podman-only query key of a build that would bypass the judgement.
pub(super) fn build_key<'a>(mut keys: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    keys.find(|key| BUILD_KEYS.contains(&super::json::fold(key).as_str()))
}

/// The reason why Podman would parse a canonical create body differently; a lower-case fragment.
pub(super) fn parsed_differently(body: &Value) -> Option<String> {
    let host = &body["HostConfig"];
    for key in ["NetworkMode", "PidMode", "IpcMode"] {
        let mode = host[key].as_str().unwrap_or_default();
        if mode.starts_with("ns:") {
            return Some(format!("{key} ns: joins a namespace by its path; join a container by name"));
        }
    }
    let network = host["NetworkMode"].as_str().unwrap_or_default();
    let own = network.starts_with("container:") || unconnected(network);
    if !own && network.contains([',', ':']) {
        return Some(
            "NetworkMode names one network; put several, and addresses, into NetworkingConfig".into(),
        );
    }
    if strings(&host["Binds"]).any(|bind| bind.starts_with('.')) {
        return Some(
            "a bind from a relative path begins where Podman was started; give the whole path".into(),
        );
    }
    let option = |bind: &str| bind.split([':', ',']).any(|part| is_option(part, &["upperdir", "workdir"]));
    if strings(&host["Binds"]).any(option) {
        return Some(
            "upperdir and workdir of a bind mount other directories; bind them by themselves".into(),
        );
    }
    let mut volumes = fields(&body["Volumes"]);
    if volumes.any(|(at, _)| at.contains(':')) {
        return Some("Volumes holds places in the container only; binds belong into HostConfig.Binds".into());
    }
    for mount in items(&host["Mounts"]) {
        if !matches!(mount["Type"].as_str(), Some("bind" | "volume" | "tmpfs" | "image")) {
            return Some("the Type of a mount is bind, volume, tmpfs or image".into());
        }
        if any_string(mount, &|text| text.contains([',', '"', '\n', '\r'])) {
            return Some(
                "a mount has a comma or a quote in it, which Podman reads as the end of a field".into(),
            );
        }
    }
    None
}

/// The reason why a container cannot get an identity: our network cannot be added to its own.
pub(super) fn not_attachable(body: &Value) -> Option<String> {
    let mode = body["HostConfig"]["NetworkMode"].as_str().unwrap_or_default();
    unconnected(mode).then(|| format!("its network is {mode}, to which no other can be added; use bridge"))
}

fn unconnected(mode: &str) -> bool {
    UNCONNECTED.contains(&mode.split(':').next().unwrap_or_default())
}

fn is_option(part: &str, names: &[&str]) -> bool {
    part.split_once('=').is_some_and(|(name, _)| names.contains(&name.trim()))
}

fn any_string(value: &Value, bad: &impl Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => bad(text),
        Value::Array(items) => items.iter().any(|item| any_string(item, bad)),
        Value::Object(fields) => fields.values().any(|field| any_string(field, bad)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bodies_that_podman_parses_differently_are_refused() {
        for bad in [
            json!({"HostConfig": {"NetworkMode": "ns:/proc/7/ns/net"}}),
            json!({"HostConfig": {"PidMode": "ns:/proc/7/ns/pid"}}),
            json!({"HostConfig": {"IpcMode": "ns:/proc/7/ns/ipc"}}),
            json!({"HostConfig": {"NetworkMode": "mine,kfp-creds"}}),
            json!({"HostConfig": {"NetworkMode": "kfp-creds:ip=169.254.168.1"}}),
            json!({"HostConfig": {"NetworkMode": "bridge:mac=02:42:a9:fe:a8:01"}}),
            json!({"HostConfig": {"Binds": ["./keys:/keys"]}}),
            json!({"HostConfig": {"Binds": ["/a:/b:O,upperdir=/home/user,workdir=/w"]}}),
            json!({"Volumes": {"/run/podman/podman.sock:/p.sock": {}}}),
            json!({"HostConfig": {"Mounts": [{"Type": "bind", "Source": "/a,source=/b", "Target": "/c"}]}}),
            json!({"HostConfig": {"Mounts": [{"Type": "bind", "Source": "/a", "Target": "/c\"", "x": 1}]}}),
            json!({"HostConfig": {"Mounts": [{"Type": "volume", "Target": "/c", "consistency": "a,source=/b"}]}}),
            json!({"HostConfig": {"Mounts": [{"Type": "tmpfs", "Target": "/c", "o": {"s": ["\n"]}}]}}),
            json!({"HostConfig": {"Mounts": [{"Type": "glob", "Source": "/home/*", "Target": "/c"}]}}),
            json!({"HostConfig": {"Mounts": [{"Source": "/home", "Target": "/c"}]}}),
        ] {
            let why = parsed_differently(&bad);
            assert!(why.is_some_and(|why| !why.contains('\n')), "{bad}");
        }
        for good in [
            json!({}),
            json!({"HostConfig": {"NetworkMode": "container:abc", "PidMode": "container:abc"}}),
            json!({"HostConfig": {"NetworkMode": "default", "Binds": ["/a:/b:ro,z", "name:/c"]}}),
            json!({"HostConfig": {"NetworkMode": "pasta:-T,5000"}}),
            json!({"Volumes": {"/data": {}}, "HostConfig": {"Mounts": [{"Type": "bind", "Source": "/a b", "Target": "/c"}]}}),
        ] {
            assert_eq!(parsed_differently(&good), None, "{good}");
        }
    }

    #[test]
    fn networks_that_allow_no_second_one_are_recognised() {
        let of = |mode: &str| not_attachable(&json!({"HostConfig": {"NetworkMode": mode}}));
        assert!(
            ["pasta", "pasta:-T,5000", "slirp4netns:mtu=9000", "private"]
                .iter()
                .all(|mode| of(mode).is_some())
        );
        assert!(["", "default", "bridge", "podman", "pasta-of-mine"].iter().all(|mode| of(mode).is_none()));
    }

    #[test]
    fn podmans_build_keys_are_found_in_any_case() {
        assert_eq!(build_key(["t", "nsoptions"].into_iter()), Some("nsoptions"));
        assert_eq!(build_key(["NsOption\u{17f}"].into_iter()), Some("NsOption\u{17f}"));
        assert_eq!(build_key(["t", "dockerfile", "buildargs", "labels"].into_iter()), None);
    }
}
