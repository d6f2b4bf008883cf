//! Effective capabilities and sysctls with which a container could impersonate its neighbours on our network.

use serde_json::Value;

/// Capabilities that the engine grants by default.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// With one of these a container can impersonate its neighbour (with a packet socket, it took a neighbour's
/// token in 3 of 3 tries), change its own addresses, enter another network namespace, or load code into the
/// kernel.
const DANGEROUS: [&str; 5] = ["NET_RAW", "NET_ADMIN", "SYS_ADMIN", "SYS_MODULE", "BPF"];

/// The effective capabilities of a HostConfig by the engine's rules: additions are applied after drops,
/// except that an added `ALL` means every capability that is not dropped by name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Capabilities {
    Only(Vec<String>),
    AllBut(Vec<String>),
}

impl Capabilities {
    pub(super) fn of(host: &Value) -> Self {
        Self::dropping(host, &[])
    }

    fn dropping(host: &Value, ours: &[&str]) -> Self {
        if host["Privileged"] == true {
            return Self::AllBut(vec![]);
        }
        let (mut add, mut drop) = (names(&host["CapAdd"]), names(&host["CapDrop"]));
        drop.extend(ours.iter().map(ToString::to_string));
        // A field of the engine's development versions that sets the whole list; no release has it.
        add.extend(names(&host["Capabilities"]));
        let all = |list: &[String]| list.iter().any(|name| name == "ALL");
        if all(&add) {
            return Self::AllBut(drop);
        }
        let kept = DEFAULT.iter().map(ToString::to_string);
        let mut kept: Vec<String> =
            if all(&drop) { vec![] } else { kept.filter(|name| !drop.contains(name)).collect() };
        kept.extend(add);
        Self::Only(kept)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Only(kept) => kept.iter().any(|kept| kept == name),
            Self::AllBut(dropped) => !dropped.iter().any(|dropped| dropped == name),
        }
    }

    /// The first capability because of which the container gets no identity: one that it keeps although we
    /// also drop NET_RAW. A container that is alone on its network has no neighbour to impersonate and keeps
    /// NET_RAW.
    pub(super) fn dangerous(host: &Value, alone: bool) -> Option<&'static str> {
        let effective = Self::dropping(host, &["NET_RAW"]);
        DANGEROUS.into_iter().find(|name| effective.has(name) && !(alone && *name == "NET_RAW"))
    }
}

/// Whether a container with this HostConfig could send from an address that is not its own.
pub fn could_forge(host: &Value) -> bool {
    Capabilities::of(host).has("NET_RAW") || Capabilities::dangerous(host, false).is_some()
}

/// Capability names in upper case, without `CAP_`, as the engine normalises them.
fn names(value: &Value) -> Vec<String> {
    let one = |value: &Value| {
        let name = value.as_str()?.trim().to_uppercase();
        Some(name.strip_prefix("CAP_").unwrap_or(&name).to_string())
    };
    match value {
        Value::Array(items) => items.iter().filter_map(one).collect(),
        single => one(single).into_iter().collect(),
    }
}

/// Sysctls of the network namespace that make the kernel answer or send for addresses that are not its own.
/// runc accepts `/` for the dots.
pub(super) fn risky_sysctl(name: &str) -> bool {
    let name = name.trim().replace('/', ".").to_lowercase();
    ["net.ipv4.conf.", "net.ipv4.neigh.", "net.ipv4.ip_nonlocal_bind", "net.ipv4.ip_forward", "net.bridge."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dangerous_capabilities_are_found_in_the_effective_set() {
        for (host, dangerous) in [
            (json!({}), None),
            (json!({"CapDrop": ["NET_RAW"]}), None),
            (json!({"CapDrop": "all"}), None),
            (json!({"CapAdd": ["SYS_PTRACE", "CHOWN"]}), None),
            (json!({"CapAdd": null, "CapDrop": null}), None),
            (json!({"CapAdd": ["NET_RAW"]}), Some("NET_RAW")),
            (json!({"CapAdd": ["NET_RAW"], "CapDrop": ["NET_RAW"]}), Some("NET_RAW")),
            (json!({"CapAdd": ["cap_net_raw"], "CapDrop": ["ALL"]}), Some("NET_RAW")),
            (json!({"CapAdd": "net_admin"}), Some("NET_ADMIN")),
            (json!({"CapAdd": ["Cap_Net_Admin"]}), Some("NET_ADMIN")),
            (json!({"CapAdd": ["SY\u{17f}_ADMIN"]}), Some("SYS_ADMIN")),
            (json!({"CapAdd": ["all"]}), Some("NET_ADMIN")),
            (json!({"CapAdd": ["CAP_ALL"]}), Some("NET_ADMIN")),
            (json!({"CapAdd": ["ALL"], "CapDrop": ["ALL"]}), Some("NET_ADMIN")),
            (json!({"CapAdd": ["ALL"], "CapDrop": ["NET_RAW"]}), Some("NET_ADMIN")),
            (json!({"Capabilities": ["NET_ADMIN"]}), Some("NET_ADMIN")),
            (json!({"Privileged": true, "CapDrop": ["ALL"]}), Some("NET_RAW")),
        ] {
            assert_eq!(Capabilities::dangerous(&host, false), dangerous, "{host}");
            let alone = Capabilities::dangerous(&host, true);
            let relaxed = match dangerous {
                Some("NET_RAW") if host["Privileged"] == true => Some("NET_ADMIN"),
                Some("NET_RAW") => None,
                other => other,
            };
            assert_eq!(alone, relaxed, "{host}");
        }
    }

    #[test]
    fn sysctls_that_allow_foreign_addresses_are_risky() {
        for bad in [
            "net.ipv4.ip_nonlocal_bind",
            "net/ipv4/conf/all/proxy_arp_pvlan",
            "net.ipv4.conf.eth1.arp_ignore",
        ] {
            assert!(risky_sysctl(bad), "{bad}");
        }
        for good in ["net.core.somaxconn", "net.ipv4.ip_unprivileged_port_start", "kernel.shmmax"] {
            assert!(!risky_sysctl(good), "{good}");
        }
    }

    #[test]
    fn a_container_with_net_raw_could_forge_addresses() {
        assert!(could_forge(&json!({})));
        assert!(could_forge(&json!({"Privileged": true})));
        assert!(could_forge(&json!({"CapDrop": ["NET_RAW"], "CapAdd": ["NET_ADMIN"]})));
        assert!(!could_forge(&json!({"CapDrop": ["NET_RAW"]})) && !could_forge(&json!({"CapDrop": ["ALL"]})));
    }
}
