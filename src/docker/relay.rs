//! The relay's container: its creation, and the tunnel through its stdin and stdout.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use bollard::container::LogOutput;
use bollard::models::{
    ContainerCreateBody, EndpointIpamConfig, EndpointSettings, HostConfig, HostConfigLogConfig,
    NetworkConnectRequest, NetworkingConfig, ResourcesUlimits,
};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptions, CreateContainerOptionsBuilder,
    StartContainerOptions, WaitContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::StreamReader;

use super::bridge::DEFAULT_BRIDGE;
use super::image::ROLE_LABEL;
use super::labels::SESSION_LABEL;
use super::members::KnownMembers;
use super::network::{Network, fixed};
use super::segment::SegmentAddress;
use super::{Engine, EngineError};

/// The host names of the metadata server. On the second network they are network aliases in addition to hosts
/// entries, for clients that do not read a hosts file.
pub const NAMES: [&str; 3] = ["metadata.google.internal", "metadata", "metadata.goog"];

/// Sysctls that keep a relay on several networks from routing between them: it forwards nothing (the engine's
/// default is to forward), accepts a packet only from the interface by which it would answer, and answers ARP
/// on a network only for its address there.
pub const BETWEEN_CELLS: [(&str, &str); 4] = [
    ("net.ipv4.ip_forward", "0"),
    ("net.ipv4.conf.all.rp_filter", "1"),
    ("net.ipv4.conf.all.arp_ignore", "2"),
    ("net.ipv4.conf.all.arp_announce", "2"),
];

/// A started relay and its tunnel, which carries HTTP/2 with the relay as the client.
pub struct Tunnel {
    /// The relay's container id.
    pub container: String,
    /// Reads the relay's stdout and writes its stdin. The relay has ended when either stream ends.
    pub io: tokio::io::Join<Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>>,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tunnel({})", self.container)
    }
}

/// Where a relay listens.
#[derive(Clone, Copy, Debug)]
pub struct Listens {
    /// Its address on the network.
    pub at: Ipv4Addr,
    /// A second address there, on Docker.
    pub more: Option<Ipv4Addr>,
    pub on: ListensOn,
}

/// The kind of network on which a relay listens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ListensOn {
    /// One of ours without outbound access.
    Internal,
    /// Like `Internal`; the relay also serves the networks that it is connected to later.
    Cells,
    /// Our own bridge with outbound access, which the relay gives up.
    OwnBridge,
    /// The engine's default bridge.
    DefaultBridge,
}

impl ListensOn {
    /// The flag of the relay's command line (`relay::program`).
    fn flag(self) -> Option<&'static str> {
        match self {
            Self::Internal => None,
            Self::Cells => Some("--cells"),
            Self::OwnBridge | Self::DefaultBridge => Some("--confined"),
        }
    }
}

/// The capabilities that a relay on a network with outbound access needs until it has deleted its default
/// route and become `nobody` (`relay::program`); it holds none of them when it reads its first byte.
const CONFINING: [&str; 3] = ["NET_ADMIN", "SETGID", "SETUID"];

impl Engine {
    /// Starts a relay. Its stdin is attached once, so it lives exactly as long as the tunnel.
    pub async fn start_relay(
        &self,
        image: &str,
        network: &Network,
        name: &str,
        listens: Listens,
        known: &KnownMembers,
    ) -> Result<Tunnel, EngineError> {
        const WHAT: &str = "start the relay";
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let mut body = create_body(image, network, listens);
        if listens.on == ListensOn::Cells {
            let sysctls = body.host_config.get_or_insert_default().sysctls.get_or_insert_default();
            sysctls.extend(BETWEEN_CELLS.map(|(name, value)| (name.into(), value.into())));
        }
        let made = self.docker.create_container(Some(options), body).await;
        let container = made.map_err(|e| EngineError::of(WHAT, e))?.id;
        known.add(&container);
        match self.attach_and_start(&container).await {
            Ok(tunnel) => Ok(tunnel),
            Err(error) => {
                let _ = self.remove(&container).await;
                Err(error)
            }
        }
    }

    async fn attach_and_start(&self, container: &str) -> Result<Tunnel, EngineError> {
        const WHAT: &str = "start the relay";
        let options =
            AttachContainerOptionsBuilder::new().stream(true).stdin(true).stdout(true).stderr(true).build();
        let attached = self.docker.attach_container(container, Some(options)).await;
        let attached = attached.map_err(|e| EngineError::of(WHAT, e))?;
        let started = self.docker.start_container(container, None::<StartContainerOptions>).await;
        started.map_err(|e| EngineError::of(WHAT, e))?;
        let output = attached.output.filter_map(|piece| async {
            match piece {
                Ok(LogOutput::StdOut { message }) => Some(Ok(message)),
                Ok(LogOutput::StdErr { message }) => {
                    tracing::warn!(relay = %String::from_utf8_lossy(&message).trim_end());
                    None
                }
                Ok(_) => None,
                Err(error) => Some(Err(std::io::Error::other(error))),
            }
        });
        let reader: Box<dyn AsyncRead + Send + Unpin> =
            Box::new(StreamReader::<_, Bytes>::new(Box::pin(output)));
        let writer: Box<dyn AsyncWrite + Send + Unpin> = Box::new(attached.input);
        Ok(Tunnel { container: container.into(), io: tokio::io::join(reader, writer) })
    }

    /// Connects a running relay to one more network, with the server's names and with an IP and a hardware
    /// address that stay the same when the relay is replaced. A relay that is connected already counts as
    /// success.
    pub(super) async fn connect_relay(
        &self,
        network: &str,
        relay: &str,
        at: Ipv4Addr,
    ) -> Result<(), EngineError> {
        let request = NetworkConnectRequest { container: relay.into(), endpoint_config: Some(endpoint(at)) };
        let connected = self.docker.connect_network(network, request).await;
        match connected.map_err(|e| EngineError::of("connect the relay to a network", e)) {
            Err(EngineError::Refused { why, .. }) if why.contains("already exists in network") => Ok(()),
            outcome => outcome,
        }
    }

    /// Creates a container that asks for a token at `at` and ends; it runs only our own program. With `linked`
    /// it has this link-local address; with `below`, it is on the engine's host network and asks below this
    /// path.
    pub async fn make_probe(
        &self,
        image: &str,
        at: SocketAddrV4,
        linked: Option<&SegmentAddress>,
        below: Option<&str>,
    ) -> Result<String, EngineError> {
        let (host, port) = (at.ip().to_string(), at.port().to_string());
        let mut command = vec!["/kfp-creds", "probe", &host, "--port", &port];
        command.extend(below.iter().flat_map(|below| ["--below", below]));
        let body = ContainerCreateBody {
            image: Some(image.into()),
            entrypoint: Some(command.into_iter().map(String::from).collect()),
            user: Some("65534:65534".into()),
            host_config: Some(HostConfig {
                readonly_rootfs: Some(true),
                cap_drop: Some(vec!["ALL".into()]),
                network_mode: below.map(|_| "host".into()),
                log_config: Some(HostConfigLogConfig { typ: Some("none".into()), config: None }),
                ..Default::default()
            }),
            networking_config: linked.map(|linked| {
                let ipam = EndpointIpamConfig {
                    link_local_ips: Some(vec![linked.address.to_string()]),
                    ..Default::default()
                };
                let endpoint = EndpointSettings { ipam_config: Some(ipam), ..Default::default() };
                let named = linked.segment().reference().to_string();
                NetworkingConfig { endpoints_config: Some(HashMap::from([(named, endpoint)])) }
            }),
            ..Default::default()
        };
        let made = self.docker.create_container(None::<CreateContainerOptions>, body).await;
        Ok(made.map_err(|e| EngineError::of("make a probe container", e))?.id)
    }

    /// Starts a container that is not auto-removed, and waits for its exit code. After the start this waits
    /// for "not running": a wait for the *next* exit could reach the engine after a short run and never end.
    pub async fn run_to_end(&self, container: &str) -> Result<i64, EngineError> {
        const WHAT: &str = "run the probe container";
        let started = self.docker.start_container(container, None::<StartContainerOptions>).await;
        started.map_err(|e| EngineError::of(WHAT, e))?;
        let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
        match self.docker.wait_container(container, Some(options)).next().await {
            Some(Ok(answer)) => Ok(answer.status_code),
            // bollard returns an error for every exit code but 0.
            Some(Err(bollard::errors::Error::DockerContainerWaitError { code, .. })) => Ok(code),
            Some(Err(error)) => Err(EngineError::of(WHAT, error)),
            None => Err(EngineError::Broken(WHAT, "the engine did not say how it ended".into())),
        }
    }

    /// Ids and sessions of the running relays. `docker commit` can copy a label, so a relay counts for a
    /// network only if it is a member of it.
    pub async fn running_relays(&self) -> Result<Vec<(String, String)>, EngineError> {
        let found = self.list("label", &format!("{ROLE_LABEL}=relay"), false).await?;
        let relays = found.iter().filter_map(|relay| {
            let session = relay["Labels"][SESSION_LABEL].as_str()?;
            Some((relay["Id"].as_str()?.into(), session.into()))
        });
        Ok(relays.collect())
    }
}

/// The create request for a container that can only forward bytes: an unprivileged uid, read-only, no
/// capability, no mount, no port, no log (its output is the tunnel), and small limits. On a network with
/// outbound access it starts as root, with the capabilities of [`CONFINING`], and gives both up before it
/// listens.
fn create_body(image: &str, network: &Network, Listens { at, more, on }: Listens) -> ContainerCreateBody {
    let routed = on.flag() == Some("--confined");
    let mut endpoint = endpoint(at);
    if let Some(ipam) = &mut endpoint.ipam_config {
        // An endpoint has one address of its own; further ones have to be link-local (Engine API, `LinkLocalIPs`).
        let linked: Vec<String> =
            routed.then_some(at).into_iter().chain(more).map(|at| at.to_string()).collect();
        ipam.link_local_ips = (!linked.is_empty()).then_some(linked);
        if routed {
            ipam.ipv4_address = None;
        }
    }
    let on_default = on == ListensOn::DefaultBridge;
    if routed {
        // The default bridge has no DNS. The DNS of our bridge would answer with the address that the engine
        // gave, where the relay does not listen: it knows containers only by their link-local addresses.
        endpoint.aliases = None;
    }
    // By id, because the engine allows two networks of one name.
    let named = if on_default { DEFAULT_BRIDGE.to_string() } else { network.id.clone() };
    let command = std::iter::once(at).chain(more).map(|at| at.to_string());
    let host = HostConfig {
        auto_remove: Some(true),
        network_mode: Some(named.clone()),
        readonly_rootfs: Some(true),
        cap_drop: Some(vec!["ALL".into()]),
        cap_add: routed.then(|| CONFINING.map(String::from).to_vec()),
        security_opt: Some(vec!["no-new-privileges:true".into()]),
        // The relay runs as an unprivileged user (`nobody`) and has to bind port 80.
        sysctls: Some(HashMap::from([("net.ipv4.ip_unprivileged_port_start".into(), "0".into())])),
        log_config: Some(HostConfigLogConfig { typ: Some("none".into()), config: None }),
        memory: Some(64 << 20),
        pids_limit: Some(16),
        ulimits: Some(vec![ResourcesUlimits {
            name: Some("nofile".into()),
            soft: Some(16_384),
            hard: Some(16_384),
        }]),
        ..Default::default()
    };
    ContainerCreateBody {
        image: Some(image.into()),
        // Set here and not left to the image, because only the image's layer is verified, not its config.
        entrypoint: Some(vec!["/kfp-creds".into(), "relay".into()]),
        user: Some(if routed { "0:0".into() } else { "65534:65534".into() }),
        cmd: Some(command.chain(on.flag().map(String::from)).collect()),
        open_stdin: Some(true),
        stdin_once: Some(true),
        // Process 1 ignores SIGTERM, so an engine that shuts down would wait ten seconds for it.
        stop_signal: Some("SIGKILL".into()),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        labels: Some(HashMap::from([
            (ROLE_LABEL.to_string(), "relay".to_string()),
            (SESSION_LABEL.to_string(), network.session.clone()),
        ])),
        host_config: Some(host),
        networking_config: Some(NetworkingConfig {
            endpoints_config: Some(HashMap::from([(named, endpoint)])),
        }),
        ..Default::default()
    }
}

fn endpoint(at: Ipv4Addr) -> EndpointSettings {
    EndpointSettings {
        ipam_config: Some(fixed(at)),
        aliases: Some(NAMES.map(String::from).to_vec()),
        mac_address: Some(mac(at)),
        ..Default::default()
    }
}

/// Derived from the address, so that a relay's replacement matches its neighbours' ARP caches.
fn mac(at: Ipv4Addr) -> String {
    let [a, b, c, d] = at.octets();
    format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}
