//! Turns an engine's error messages into advice. Engines word the same error differently, and their messages
//! help only people who know their internals; the diagnostic log has the original.

use crate::failure::{Reason, Remedy};

/// Known causes: phrases of engines' messages, the advice with the cause, and what `check` suggests.
const CAUSES: [(&[&str], &str, Remedy); 9] = [
    (
        &["authorization denied"],
        "authorization denied by a plugin of the engine; docker info --format '{{.Plugins.Authorization}}' names \
         it: ask who runs it",
        Remedy::AllowInPlugin,
    ),
    (
        &["blockdockerload", "docker load is disabled", "load is not allowed", "loading images is"],
        "Docker Desktop's setting blockDockerLoad forbids docker load, by which the relay comes: ask its \
         administrator to allow it",
        Remedy::Unknown,
    ),
    (
        &["enhanced container isolation", "sysbox"],
        "Docker Desktop's Enhanced Container Isolation forbids it: ask its administrator",
        Remedy::Unknown,
    ),
    (
        &["no space left", "disk quota"],
        "no space left on the engine's disk; docker system df, then docker system prune",
        Remedy::FreeDisk,
    ),
    (
        &["address pool", "non-overlapping"],
        "the engine has no address pool left for a network; docker network prune",
        Remedy::FreeNetworks,
    ),
    (
        &["iptables", "nftables", "firewalld"],
        "the engine's firewall rules (iptables) are not what it expects; sudo systemctl restart docker, which \
         sets them up again",
        Remedy::RestoreFirewall,
    ),
    (
        &["timed out", "timeout", "deadline"],
        "the engine does not answer in time; docker info: where it does not answer either, sudo systemctl restart \
         docker",
        Remedy::WakeEngine,
    ),
    (
        &["permission denied", "not permitted", "forbidden"],
        "permission denied by the engine; docker run --rm hello-world: if that is refused too, you have no \
         permission to use this engine",
        Remedy::GainRights,
    ),
    (
        &[
            "connection refused",
            "connection reset",
            "broken pipe",
            "connect error",
            "channel closed",
            "incomplete",
        ],
        "the connection to the engine broke; docker info says whether it still runs",
        Remedy::Unknown,
    ),
];

fn known_cause(words: &str) -> Option<Reason> {
    let words = words.to_lowercase();
    let cause = CAUSES.iter().find(|(all, ..)| all.iter().any(|word| words.contains(word)));
    cause.map(|(_, advice, remedy)| Reason::new(*advice, remedy.clone()))
}

/// Advice for an error answer; an unknown one is shown as the engine wrote it.
pub(super) fn of(status: u16, words: &str) -> Reason {
    if let Some(advice) = known_cause(words) {
        return advice;
    }
    let words: String =
        words.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect();
    match words.is_empty() {
        true => format!("the engine refuses it ({status}); docker info says whether it is well"),
        false => format!("{words}; docker info says whether the engine is well"),
    }
    .into()
}

/// Advice for an answer that is missing, incomplete or unparsable.
pub(super) fn of_broken_answer(words: &str) -> Reason {
    let unknown = "the engine's answer breaks off or is not understood; docker info says whether it is well";
    known_cause(words).unwrap_or_else(|| unknown.into())
}

/// Most characters shown of an engine's message.
const MOST: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_errors_of_engines_become_advice() {
        for (words, said, remedy) in [
            (
                "Docker stream error: write /x: no space left on device",
                "docker system prune",
                Remedy::FreeDisk,
            ),
            ("an available, non-overlapping IPv4 address pool", "docker network prune", Remedy::FreeNetworks),
            (
                "Failed to Setup IP tables: iptables failed",
                "systemctl restart docker",
                Remedy::RestoreFirewall,
            ),
            ("authorization denied by plugin x: no", "ask who runs it", Remedy::AllowInPlugin),
            ("Timeout error", "docker info", Remedy::WakeEngine),
            ("docker load is disabled by your administrator", "blockDockerLoad", Remedy::Unknown),
            ("enhanced container isolation: docker.sock", "Enhanced Container Isolation", Remedy::Unknown),
        ] {
            for advice in [of(500, words), of_broken_answer(words)] {
                assert!(advice.contains(said) && !advice.contains(words), "{words}: {advice}");
                assert_eq!(advice.remedy, remedy, "{words}");
            }
        }
        assert!(of(500, "something\nnew").starts_with("something new; docker info"));
        assert!(of(418, "").contains("418") && of_broken_answer("hyper: 0xc0").contains("docker info"));
    }
}
