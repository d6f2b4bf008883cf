//! What happens to containers, as the engine tells it, with the gaps named.

use std::collections::HashMap;
use std::time::SystemTime;

use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::{Stream, StreamExt};

use super::{Engine, EngineError};
use crate::workload::ContainerId;

/// One thing that happened to one container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ContainerEvent {
    /// It runs, from this moment or an earlier one.
    Started(ContainerId),
    /// It ended; the exit code is what the engine says.
    Died { container: ContainerId, code: Option<i64>, at: Moment },
    /// It does not exist any more.
    Destroyed(ContainerId),
    /// It was taken off a network (a network id), by whomever; also when it ends, before or after that is told.
    Disconnected { container: ContainerId, network: String, at: Moment },
}

/// When it happened: nanoseconds since 1970 by the engine's clock, if it says so.
pub type Moment = Option<i64>;

impl Engine {
    /// What happens from `since` on; the engine tells again what it had told before the subscription stood
    /// (it keeps the last 256). The stream ends when the engine does.
    pub fn container_events(
        &self,
        since: SystemTime,
    ) -> impl Stream<Item = Result<ContainerEvent, EngineError>> + use<> {
        let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let since = format!("{}.{:09}", since.as_secs(), since.subsec_nanos());
        let filters = HashMap::from([
            ("type", vec!["container", "network"]),
            ("event", vec!["start", "die", "destroy", "disconnect"]),
        ]);
        let options = EventsOptionsBuilder::new().filters(&filters).since(&since).build();
        let events = self.docker.events(Some(options));
        events.filter_map(|event| async {
            match event {
                Ok(event) => read(event).map(Ok),
                Err(error) => Some(Err(EngineError::of("read the engine's events", error))),
            }
        })
    }
}

fn read(event: EventMessage) -> Option<ContainerEvent> {
    let actor = event.actor?;
    let (id, at) = (actor.id?, event.time_nano);
    let mut facts = actor.attributes.unwrap_or_default();
    Some(match event.action?.as_str() {
        "start" => ContainerEvent::Started(ContainerId::parse(&id)?),
        "die" => {
            let code = facts.remove("exitCode").and_then(|code| code.parse().ok());
            ContainerEvent::Died { container: ContainerId::parse(&id)?, code, at }
        }
        "destroy" => ContainerEvent::Destroyed(ContainerId::parse(&id)?),
        "disconnect" => {
            let container = ContainerId::parse(&facts.remove("container")?)?;
            ContainerEvent::Disconnected { container, network: id, at }
        }
        _ => return None,
    })
}
