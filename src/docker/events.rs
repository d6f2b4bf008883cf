//! Container events, as the engine reports them.

use std::collections::HashMap;
use std::time::SystemTime;

use bollard::models::{EventMessage, EventMessageTypeEnum};
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::{Stream, StreamExt};

use super::{Engine, EngineError, Product};
use crate::workload::ContainerId;

/// One event of one container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ContainerEvent {
    /// The container has started, now or earlier.
    Started(ContainerId),
    /// The container ended, with the exit code that the engine reports.
    Died { container: ContainerId, code: Option<i64>, at: Moment },
    /// The container no longer exists.
    Destroyed(ContainerId),
    /// The container was disconnected from a network (a network id), by any client; also when it ends, before
    /// or after `Died`.
    Disconnected { container: ContainerId, network: String, at: Moment },
    /// The container was connected to a network (a network id), at its start or while it runs.
    Connected { container: ContainerId, network: String },
}

/// The time of an event: nanoseconds since 1970 by the engine's clock, if it reports one.
pub type Moment = Option<i64>;

impl Engine {
    /// Events from `since` on, each with its time. The engine repeats those that it reported before the
    /// subscription (it keeps the last 256). The stream ends when the engine does.
    pub fn container_events(
        &self,
        since: SystemTime,
    ) -> impl Stream<Item = Result<(Moment, ContainerEvent), EngineError>> + use<> {
        let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let since = format!("{}.{:09}", since.as_secs(), since.subsec_nanos());
        let filters = HashMap::from([
            ("type", vec!["container", "network"]),
            // Podman uses `remove` for `destroy`.
            ("event", vec!["start", "die", "destroy", "remove", "connect", "disconnect"]),
        ]);
        let options = EventsOptionsBuilder::new().filters(&filters).since(&since).build();
        let events = self.docker.events(Some(options));
        let engine = self.clone();
        events.filter_map(move |event| {
            let engine = engine.clone();
            async move {
                let event = match event {
                    Ok(event) => event,
                    Err(error) => return Some(Err(EngineError::of("read the engine's events", error))),
                };
                let (time, mut event) = (event.time_nano, container_event(event)?);
                // Podman gives the network's name; the rest of this program uses its id, where there is one.
                if engine.product == Product::Podman
                    && let ContainerEvent::Disconnected { network, .. }
                    | ContainerEvent::Connected { network, .. } = &mut event
                    && let Some(id) = engine.network_id(network).await
                {
                    *network = id;
                }
                Some(Ok((time, event)))
            }
        })
    }
}

/// One line of the engine's answer: the time, and the event if it is a [`ContainerEvent`].
pub(super) fn of_line(line: &[u8]) -> Option<(Moment, Option<ContainerEvent>)> {
    let event: EventMessage = serde_json::from_slice(line).ok()?;
    Some((event.time_nano, container_event(event)))
}

/// Networks and containers have events of the same names, which differ in their type.
fn container_event(event: EventMessage) -> Option<ContainerEvent> {
    let of_container = event.typ == Some(EventMessageTypeEnum::CONTAINER);
    let actor = event.actor?;
    let (id, at) = (actor.id?, event.time_nano);
    let mut facts = actor.attributes.unwrap_or_default();
    let action = event.action?;
    Some(match action.as_str() {
        "connect" | "disconnect" => {
            // Docker's actor is the network, Podman's the container.
            let (container, network) = match facts.remove("container") {
                Some(container) => (container, id),
                None => (id, facts.remove("network")?),
            };
            let container = ContainerId::parse(&container)?;
            match action == "connect" {
                true => ContainerEvent::Connected { container, network },
                false => ContainerEvent::Disconnected { container, network, at },
            }
        }
        _ if !of_container => return None,
        "start" => ContainerEvent::Started(ContainerId::parse(&id)?),
        "die" => {
            let code = facts.remove("exitCode").and_then(|code| code.parse().ok());
            ContainerEvent::Died { container: ContainerId::parse(&id)?, code, at }
        }
        "destroy" | "remove" => ContainerEvent::Destroyed(ContainerId::parse(&id)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str) -> Option<ContainerEvent> {
        container_event(serde_json::from_str(text).unwrap())
    }

    /// As recorded: Docker 20.10 and 28, Podman 5.8.
    #[test]
    fn events_of_docker_and_podman_are_parsed() {
        let (id, network) = ("a1".repeat(32), "b2".repeat(32));
        let container = ContainerId::parse(&id).unwrap();
        let of = |kind: &str, action: &str, actor: &str, attributes: &str| {
            event(&format!(
                r#"{{"Type":"{kind}","Action":"{action}","Actor":{{"ID":"{actor}","Attributes":{attributes}}}}}"#
            ))
        };
        let destroyed = Some(ContainerEvent::Destroyed(container.clone()));
        assert_eq!(of("container", "destroy", &id, "{}"), destroyed);
        assert_eq!(of("container", "remove", &id, "{}"), destroyed);
        assert_eq!(of("network", "remove", &network, "{}"), None);
        assert_eq!(of("network", "destroy", &network, "{}"), None);
        let died = ContainerEvent::Died { container: container.clone(), code: Some(7), at: None };
        assert_eq!(of("container", "die", &id, r#"{"exitCode":"7"}"#), Some(died));
        let docker = of("network", "disconnect", &network, &format!(r#"{{"container":"{id}"}}"#));
        let off = |network: String| {
            Some(ContainerEvent::Disconnected { container: container.clone(), network, at: None })
        };
        assert_eq!(docker, off(network.clone()));
        let docker = of("network", "connect", &network, &format!(r#"{{"container":"{id}"}}"#));
        assert_eq!(docker, Some(ContainerEvent::Connected { container: container.clone(), network }));
        let podman = of("network", "disconnect", &id, r#"{"name":"","network":"kfp-creds"}"#);
        assert_eq!(podman, off("kfp-creds".into()));
    }
}
