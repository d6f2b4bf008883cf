//! Turns an engine's error messages into advice. Engines word the same error differently, and their messages
//! help only those who know their internals; the original is in the diagnostic log.

/// Known causes: phrases of engines' messages, and the advice with the cause.
const CAUSES: [(&[&str], &str); 9] = [
    (
        &["authorization denied"],
        "authorization denied by a plugin of the engine; docker info --format '{{.Plugins.Authorization}}' names \
         it: ask who runs it",
    ),
    (
        &["blockdockerload", "docker load is disabled", "load is not allowed", "loading images is"],
        "Docker Desktop's setting blockDockerLoad forbids docker load, by which the relay comes: ask its \
         administrator to allow it",
    ),
    (
        &["enhanced container isolation", "sysbox"],
        "Docker Desktop's Enhanced Container Isolation forbids it: ask its administrator",
    ),
    (
        &["no space left", "disk quota"],
        "no space left on the engine's disk; docker system df, then docker system prune",
    ),
    (
        &["address pool", "non-overlapping"],
        "the engine has no address pool left for a network; docker network prune",
    ),
    (
        &["iptables", "nftables", "firewalld"],
        "the engine's firewall rules (iptables) are not what it expects; sudo systemctl restart docker, which \
         sets them up again",
    ),
    (
        &["timed out", "timeout", "deadline"],
        "the engine does not answer in time; docker info: where it does not answer either, sudo systemctl restart \
         docker",
    ),
    (
        &["permission denied", "not permitted", "forbidden"],
        "permission denied by the engine; docker run --rm hello-world: where that is refused too, this engine does \
         not obey you",
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
    ),
];

fn known(words: &str) -> Option<&'static str> {
    let words = words.to_lowercase();
    let cause = CAUSES.iter().find(|(all, _)| all.iter().any(|word| words.contains(word)));
    cause.map(|(_, advice)| *advice)
}

/// Advice for an error answer; an unknown one is shown as the engine wrote it.
pub(super) fn of(status: u16, words: &str) -> String {
    if let Some(advice) = known(words) {
        return advice.into();
    }
    let words: String =
        words.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect();
    match words.is_empty() {
        true => format!("the engine refuses it ({status}); docker info says whether it is well"),
        false => format!("{words}; docker info says whether the engine is well"),
    }
}

/// Advice for an answer that is missing, broken off or unparsable.
pub(super) fn of_a_break(words: &str) -> String {
    let unknown = "the engine's answer breaks off or is not understood; docker info says whether it is well";
    known(words).unwrap_or(unknown).into()
}

/// Most characters shown of an engine's message.
const MOST: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_s_words_become_what_to_do() {
        for (words, said) in [
            ("Docker stream error: write /layer.tar: no space left on device", "docker system prune"),
            ("could not find an available, non-overlapping IPv4 address pool", "docker network prune"),
            ("Failed to Setup IP tables: iptables failed: exit status 4", "systemctl restart docker"),
            ("authorization denied by plugin x: no", "ask who runs it"),
            ("Timeout error", "docker info"),
            ("docker load is disabled by your administrator", "blockDockerLoad"),
            ("enhanced container isolation: mounting docker.sock", "Enhanced Container Isolation"),
        ] {
            for told in [of(500, words), of_a_break(words)] {
                assert!(told.contains(said) && !told.contains(words), "{words}: {told}");
            }
        }
        assert!(of(500, "something\nnew").starts_with("something new; docker info"));
        assert!(of(418, "").contains("418") && of_a_break("hyper: 0xc0").contains("docker info"));
    }
}
