//! The containers on our networks, by the engine's lists.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::call::filtered;
use super::image::ROLE_LABEL;
use super::labels::{MODE_LABEL, SESSION_LABEL};
use super::network::Network;
use super::{Engine, EngineError};

/// A container on one of our networks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    pub id: String,
    pub running: bool,
    /// The value of its session label. An image can set the label, so it counts only for members of the
    /// network.
    pub session: Option<String>,
    /// The value of its mode label: `run`, or `serve` if the container is left running. An image can set it,
    /// too.
    pub mode: Option<String>,
    /// Whether its label marks it as a relay, which the engine removes when it ends.
    pub relay: bool,
}

/// Ids of containers that this program puts on its networks besides those with a lease: relays, probes, and
/// the members of a network that was taken over. A client connected any other container there bypassing the
/// proxy. Clones share the list.
#[derive(Clone, Debug, Default)]
pub struct KnownMembers(Arc<Mutex<HashSet<String>>>);

impl KnownMembers {
    /// Called before the container can start.
    pub fn add(&self, container: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(container.into());
    }

    pub fn has(&self, container: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(container)
    }

    /// Called once the container is gone for good.
    pub fn remove(&self, container: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(container);
    }
}

impl Engine {
    /// Containers on a network, running or not.
    pub async fn containers_on(&self, network: &Network) -> Result<Vec<Member>, EngineError> {
        let joined = self.list("network", &network.id, true).await?;
        // That list omits containers that were never started; of those, only ours carry the label.
        let labelled = self.list("label", SESSION_LABEL, true).await?;
        let on = |found: &Value| {
            found["NetworkSettings"]["Networks"].get(&network.name).is_some() && found["State"] == "created"
        };
        let created = labelled
            .iter()
            .filter(|found| on(found) && !joined.iter().any(|other| other["Id"] == found["Id"]));
        Ok(joined.iter().chain(created).filter_map(member).collect())
    }

    /// Containers with a session's label, whatever network they are on.
    pub async fn containers_of(&self, session: &str) -> Result<Vec<Member>, EngineError> {
        let labelled = self.list("label", &format!("{SESSION_LABEL}={session}"), true).await?;
        Ok(labelled.iter().filter_map(member).collect())
    }

    /// Containers that match one filter: the running ones, or `all`.
    pub(super) async fn list(&self, key: &str, value: &str, all: bool) -> Result<Vec<Value>, EngineError> {
        const WHAT: &str = "list the containers on our network";
        let path = filtered(&format!("/containers/json?all={all}"), key, value);
        match self.get(WHAT, &path).await? {
            Value::Array(found) => Ok(found),
            Value::Null => Ok(vec![]),
            _ => Err(EngineError::Broken(WHAT, "the engine's answer is not a list".into())),
        }
    }
}

fn member(found: &Value) -> Option<Member> {
    let label = |name: &str| found["Labels"][name].as_str().map(Into::into);
    let id = found["Id"].as_str()?.into();
    Some(Member {
        id,
        running: runs(&found["State"]),
        session: label(SESSION_LABEL),
        mode: label(MODE_LABEL),
        relay: found["Labels"][ROLE_LABEL] == "relay",
    })
}

/// Whether this state of the engine means running. An unknown state counts as running: a container that may
/// still run is not taken off its network.
pub(super) fn runs(state: &Value) -> bool {
    const ENDED: [&str; 7] =
        ["created", "exited", "dead", "removing", "stopped", "configured", "initialized"];
    state.as_str().is_none_or(|state| !ENDED.contains(&state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_state_counts_as_running() {
        for (state, running) in [
            ("running", true),
            ("paused", true),
            ("restarting", true),
            ("stopping", true),
            ("what comes next", true),
            ("exited", false),
            ("stopped", false),
            ("created", false),
            ("initialized", false),
        ] {
            let found = serde_json::json!({"Id": "a", "State": state, "Labels": {MODE_LABEL: "run"}});
            let member = member(&found).unwrap();
            assert_eq!((member.running, member.mode.as_deref()), (running, Some("run")), "{state}");
        }
        assert!(member(&serde_json::json!({"Id": "a", "Labels": null})).unwrap().running);
    }
}
