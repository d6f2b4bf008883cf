//! Our calls to the engine: the only module that uses `bollard`. It reports and executes; policy is decided
//! elsewhere.

pub mod addresses;
mod advice;
pub mod bridge;
mod call;
pub mod cells;
mod elf;
pub mod events;
pub mod image;
pub mod labels;
pub mod members;
pub mod network;
mod podman;
pub mod proxy;
pub mod ranges;
pub mod relay;
pub mod relays;
pub mod segment;
pub mod upstream;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;

use bollard::errors::Error as BollardError;
use bollard::query_parameters::{RemoveContainerOptionsBuilder, StopContainerOptionsBuilder};
use bollard::{BollardRequest, Docker};
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

pub use self::podman::Product;

use self::upstream::EngineConnector;
use crate::failure::{Reason, Remedy};
use crate::json::{fields, strings};

/// The oldest supported engine API (Docker Engine 20.10).
const OLDEST_API: (u64, u64) = (1, 41);

/// How long the engine may take for one call. Starting a container on a busy laptop takes seconds.
const CALL_SECONDS: u64 = 60;

/// The reason why a call to the engine failed. Texts are lower-case fragments that say what to do; the
/// engine's own message is in the diagnostic log.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No engine answers at this address; the reason.
    #[error("no engine answers at {0}: {1}")]
    Unreachable(String, Reason),
    /// The engine answers but is not supported; the text completes the sentence.
    #[error("the engine at {0} {1}")]
    Unsuitable(String, String),
    /// The engine answered with this HTTP status and this message, which is not shown.
    #[error("{what}: {}", advice::of(*status, why))]
    Refused { what: &'static str, status: u16, why: String },
    /// A network cannot be created, because the network of this name has addresses of its range.
    #[error("make the network: network {0} holds its range")]
    RangeTaken(String),
    /// A network cannot be created, because one of this name exists with another range.
    #[error("make the network: there is a network {0} already")]
    NameTaken(String),
    /// The operation, and why the call failed: in transport, in decoding, or on our own side.
    #[error("{0}: {1}")]
    Broken(&'static str, Reason),
}

impl EngineError {
    /// The engine left a call unanswered.
    pub fn silent(what: &'static str) -> Self {
        Self::Broken(what, Reason::new("the engine does not answer", Remedy::WakeEngine))
    }

    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Refused { status, why, .. } => advice::of(*status, why).remedy,
            Self::Unreachable(_, Reason { remedy: Remedy::InText, .. }) => Remedy::InText,
            Self::Unreachable(..) => Remedy::StartEngine,
            Self::Broken(_, why) => why.remedy.clone(),
            Self::Unsuitable(..) => Remedy::UseAnotherEngine,
            Self::RangeTaken(_) | Self::NameTaken(_) => Remedy::Unknown,
        }
    }

    fn of(what: &'static str, error: BollardError) -> Self {
        match error {
            BollardError::DockerResponseServerError { status_code, message } => {
                tracing::debug!(what, status_code, message, "the engine refuses");
                Self::Refused { what, status: status_code, why: message }
            }
            BollardError::DockerStreamError { error } => {
                tracing::debug!(what, error, "the engine breaks off");
                Self::Refused { what, status: 500, why: error }
            }
            other => {
                let words = other.to_string();
                tracing::debug!(what, words, "a call to the engine broke");
                Self::Broken(what, advice::of_broken_answer(&words))
            }
        }
    }

    /// The engine answered 404: the object to be removed is gone already.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// The engine refused because containers still have endpoints on the network (403 on Docker, 500 on
    /// Podman).
    pub fn is_in_use(&self) -> bool {
        let says = |why: &str| why.contains("active endpoints") || why.contains("network is being used");
        matches!(self, Self::Refused { why, .. } if says(why))
    }

    /// Another network has addresses of the range.
    pub fn is_range_taken(&self) -> bool {
        matches!(self, Self::RangeTaken(_))
    }

    /// The engine answered and refused, whatever the reason.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

/// A connection to one engine.
#[derive(Clone, Debug)]
pub struct Engine {
    docker: Docker,
    upstream: EngineConnector,
    product: Product,
    /// `docker 20.10.24` or `podman 5.8.6`, for messages.
    version: String,
    desktop: bool,
    arch: String,
    /// The newest API that the engine supports, which our own calls use.
    api: (u64, u64),
}

/// The state of an inspected container.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Inspected {
    pub running: bool,
    /// Its addresses on the network in question: its own, and the link-local ones of its create request.
    pub addresses: Vec<Ipv4Addr>,
    /// Its last start, in nanoseconds since 1970 by the engine's clock.
    pub started: Option<i64>,
    /// The end of its last run, by the same clock.
    pub finished: Option<i64>,
    /// The exit code of its last run, once that has ended.
    pub exit_code: Option<i64>,
}

/// The endpoint of an inspected container on a network (a network id).
fn endpoint_on<'a>(found: &'a Value, network: &str) -> Option<&'a Value> {
    let networks = fields(&found["NetworkSettings"]["Networks"]);
    networks.map(|(_, endpoint)| endpoint).find(|one| one["NetworkID"] == network)
}

/// The addresses of an endpoint; none while it is not connected: the engine then shows only the settings of
/// the create request.
fn addresses_at(endpoint: &Value) -> Vec<Ipv4Addr> {
    let Some(own) = endpoint["IPAddress"].as_str().and_then(|own| own.parse().ok()) else { return vec![] };
    let linked = strings(&endpoint["IPAMConfig"]["LinkLocalIPs"]).filter_map(|address| address.parse().ok());
    std::iter::once(own).chain(linked).collect()
}

impl Engine {
    /// The engine behind a unix socket; see [`Self::reach`].
    pub async fn connect(socket: &Path) -> Result<Self, EngineError> {
        Self::reach(socket.to_owned().into()).await
    }

    /// Connects, and refuses with a one-line error what this release does not support: other systems and engines
    /// older than 20.10.
    pub async fn reach(upstream: EngineConnector) -> Result<Self, EngineError> {
        let at = upstream.endpoint().to_string();
        // bollard does not report why it could not connect.
        if let Err(error) = upstream.connect().await {
            return Err(EngineError::Unreachable(at, upstream.why(Some(&error)).await));
        }
        let docker = client_over(&upstream);
        let version = async { docker?.negotiate_version().await };
        let docker = match version.await {
            Ok(docker) => docker,
            Err(error) => {
                tracing::debug!(%error, "no version of the engine's");
                return Err(EngineError::Unreachable(at, upstream.why(None).await));
            }
        };
        let unreachable = |error: BollardError| {
            EngineError::Unreachable(at.clone(), advice::of_broken_answer(&error.to_string()))
        };
        let version = docker.version().await.map_err(unreachable)?;
        let unsuitable = |why: String| Err(EngineError::Unsuitable(at.clone(), why));
        let components = version.components.unwrap_or_default();
        let parts = components.iter().map(|part| (part.name.as_str(), part.version.as_str()));
        let product = match Product::of(parts) {
            Ok(product) => product,
            Err(why) => return unsuitable(why),
        };
        let (os, arch) = (version.os.unwrap_or_default(), version.arch.unwrap_or_default());
        if os != "linux" {
            return unsuitable(format!("runs {os}/{arch} containers: switch it to Linux containers"));
        }
        let api = version.api_version.unwrap_or_default();
        let number = |part: Option<&str>| part.and_then(|text| text.parse().ok()).unwrap_or(0_u64);
        let mut parts = api.split('.');
        let newest = (number(parts.next()), number(parts.next()));
        if newest < OLDEST_API {
            return unsuitable(format!(
                "speaks API {api}: Docker Engine 20.10 (API 1.41) is the oldest that works"
            ));
        }
        let desktop = version.platform.is_some_and(|platform| platform.name.contains("Docker Desktop"));
        let what = if desktop { " (Docker Desktop)" } else { "" };
        let version = format!("{} {}{what}", product.name(), version.version.unwrap_or_default());
        Ok(Self { docker, upstream, product, version, desktop, arch, api: newest })
    }

    /// How to connect to the engine directly, bypassing a proxy of ours.
    pub fn upstream(&self) -> &EngineConnector {
        &self.upstream
    }

    pub fn product(&self) -> Product {
        self.product
    }

    /// `docker 20.10.24`, for messages.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The architecture of its containers: `amd64`.
    pub fn architecture(&self) -> &str {
        &self.arch
    }

    /// Whether this is a Docker Desktop with Enhanced Container Isolation, recognised by its runtime.
    pub async fn is_isolating(&self) -> bool {
        let runtime = || async { self.docker.info().await.ok()?.default_runtime };
        self.desktop && runtime().await.is_some_and(|runtime| runtime.contains("sysbox"))
    }

    /// Whether the engine answers at all.
    pub async fn ping(&self) -> bool {
        self.docker.ping().await.is_ok()
    }

    /// Whether a container runs, and its address on `network` (a network id).
    pub async fn look(&self, container: &str, network: &str) -> Result<Inspected, EngineError> {
        let found = self.inspect(container).await?;
        let state = &found["State"];
        let running = state["Running"] == true;
        // A container that was never started has a start time before 1970 and the exit code 0.
        let started = state["StartedAt"].as_str().and_then(nanoseconds).filter(|at| *at > 0);
        let exit_code = state["ExitCode"].as_i64().filter(|_| !running && started.is_some());
        let addresses = endpoint_on(&found, network).map(addresses_at).unwrap_or_default();
        let finished = state["FinishedAt"].as_str().and_then(nanoseconds).filter(|at| *at > 0);
        Ok(Inspected { running, addresses, started, finished, exit_code })
    }

    async fn inspect(&self, container: &str) -> Result<Value, EngineError> {
        self.get("inspect", &format!("/containers/{}/json", call::segment(container))).await
    }

    /// The create body and the name of a container; `None` if the container does not exist. The engine has
    /// filled in what the request left out.
    pub async fn created(&self, container: &str) -> Result<Option<(Value, String)>, EngineError> {
        let mut found = match self.inspect(container).await {
            Ok(found) => found,
            Err(error) if error.is_gone() => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut body = found["Config"].take();
        if !body.is_object() {
            body = json!({});
        }
        body["HostConfig"] = found["HostConfig"].take();
        Ok(Some((body, found["Name"].as_str().unwrap_or_default().into())))
    }

    /// Asks a container to stop, and kills it after `grace` seconds.
    pub async fn stop(&self, container: &str, grace: i32) -> Result<(), EngineError> {
        let options = StopContainerOptionsBuilder::new().t(grace).build();
        let stopped = self.docker.stop_container(container, Some(options)).await;
        allow_already_done(stopped.map_err(|e| EngineError::of("stop", e)))
    }

    /// Removes a container, running or not.
    pub async fn remove(&self, container: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::new().force(true).build();
        let removed = self.docker.remove_container(container, Some(options)).await;
        match allow_already_done(removed.map_err(|e| EngineError::of("remove", e))) {
            // The engine is already removing an auto-removed container.
            Err(EngineError::Refused { status: 409, .. }) => Ok(()),
            other => other,
        }
    }
}

/// A bollard client that uses our own connector, with a connection for each call.
fn client_over(upstream: &EngineConnector) -> Result<Docker, BollardError> {
    let transport = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(upstream.clone());
    let transport = move |request: BollardRequest| {
        let answer = transport.request(request);
        async move { answer.await.map_err(BollardError::from) }
    };
    Docker::connect_with_custom_transport(
        transport,
        Some("http://docker"),
        CALL_SECONDS,
        bollard::API_DEFAULT_VERSION,
    )
}

/// Converts RFC 3339, as engines write it, to nanoseconds since 1970.
fn nanoseconds(text: &str) -> Option<i64> {
    let time = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
    time.unix_timestamp_nanos().try_into().ok()
}

/// Counts "already gone" as success; bollard does so with "already stopped" (304).
fn allow_already_done(outcome: Result<(), EngineError>) -> Result<(), EngineError> {
    match outcome {
        Err(error) if error.is_gone() => Ok(()),
        other => other,
    }
}

fn filters(label: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_string(), vec![label.to_string()])])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_docker_and_podman_write_them() {
        assert_eq!(nanoseconds("1970-01-01T00:00:01.000000002Z"), Some(1_000_000_002));
        assert_eq!(nanoseconds("1970-01-01T01:00:01.5+01:00"), Some(1_500_000_000));
        assert!(nanoseconds("0001-01-01T00:00:00Z").is_none_or(|at| at < 0));
        assert_eq!(nanoseconds("soon"), None);
    }

    #[test]
    fn a_network_in_use_is_recognised_by_the_message() {
        let refused =
            |why: &str| EngineError::Refused { what: "remove our network", status: 403, why: why.into() };
        let busy = "error while removing network: network kfp-creds id 380f has active endpoints";
        assert!(refused(busy).is_in_use());
        assert!(!refused("Pool overlaps with other one on this address space").is_in_use());
        let busy = "\"kfp-creds\" has associated containers with it. Use -f to forcibly delete containers and pods: \
                    network is being used";
        assert!(refused(busy).is_in_use());
    }
}
