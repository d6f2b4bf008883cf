//! Our network: its addresses, its owner, and how a container is connected to it.
//!
//! It is `internal` and has no address of the host (`inhibit_ipv4`): otherwise the bridge would take over the
//! host's own route to 169.254.169.254, which on a cloud machine leads to the host's real metadata server.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use bollard::models::{
    EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig, Network as BollardNetwork, NetworkConnectRequest,
    NetworkCreateRequest, NetworkDisconnectRequest,
};
use bollard::query_parameters::{InspectNetworkOptions, ListNetworksOptionsBuilder};

use tokio::time::Instant;

use super::labels::SESSION_LABEL;
use super::{Engine, EngineError, Product, filters};
use crate::config::Pool;

/// The name of the network with the magic address; other networks have their session in the name.
pub const SHARED_NAME: &str = "kfp-creds";

/// The metadata server's address, known to every Google client.
pub const MAGIC: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Where clients of AWS look for container credentials (Amazon ECS).
pub const CONTAINER_CREDENTIALS: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 2);

/// From this API on (Engine 25) network names are unique.
const UNIQUE_NAMES: (u64, u64) = (1, 44);
/// From this API on (Engine 28) a network's interface in a container can be named, and has to be: since then
/// it is random which of several networks becomes `eth0` (moby #49935). Our interface is named, so `eth0` is
/// never ours.
const NAMES_INTERFACES: (u64, u64) = (1, 48);
const INTERFACE_NAME: &str = "com.docker.network.endpoint.ifname";
const INTERFACE: &str = "kfpcreds0";

/// How long the engine may take to release the endpoints of ended containers (seen: up to 4 s on 20.10 with a
/// pending name look-up).
const ENDPOINTS_WITHIN: Duration = Duration::from_secs(8);
/// How long to wait for a network that lists no members and still cannot be removed.
const MISCOUNTED_AFTER: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);
/// How long a network that is being created or removed elsewhere may conflict without being listed.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

/// One of our networks, as the engine reports it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Network {
    /// The engine's id, 64 hex digits; a name may occur twice, an id may not.
    pub id: String,
    pub name: String,
    /// The session that created it: eight hex digits.
    pub session: String,
    /// `a.b.c.d/n`.
    pub subnet: String,
    /// [`CONTAINER_CREDENTIALS`] is in the subnet and reserved: no container gets it, so the relay may have
    /// it.
    pub keeps_credentials_address: bool,
    /// It has outbound access: containers are on it instead of the default bridge ([`super::bridge`]).
    pub routed: bool,
}

impl Engine {
    /// All networks with our label. The label is trustworthy: networks cannot be committed or pulled.
    pub async fn our_networks(&self) -> Result<Vec<Network>, EngineError> {
        let filters = filters(SESSION_LABEL);
        let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
        let found = self
            .docker
            .list_networks(Some(options))
            .await
            .map_err(|e| EngineError::of("list networks", e))?;
        let networks = found.into_iter().map(|network| {
            let mut labels = network.labels.unwrap_or_default();
            Network {
                id: network.id.unwrap_or_default(),
                name: network.name.unwrap_or_default(),
                session: labels.remove(SESSION_LABEL).unwrap_or_default(),
                keeps_credentials_address: reserves(network.ipam.as_ref(), CONTAINER_CREDENTIALS),
                routed: network.internal == Some(false),
                subnet: subnet_of(network.ipam),
            }
        });
        Ok(networks.collect())
    }

    /// The error for an existing network that conflicts with this name or range, if there is one.
    async fn conflict(&self, name: &str, pool: Pool) -> Result<Option<EngineError>, EngineError> {
        let all = self.docker.list_networks(None).await;
        let all = all.map_err(|e| EngineError::of("list networks", e))?;
        let named = |network: &BollardNetwork| network.name.clone().unwrap_or_default();
        if let Some(holder) = all.iter().find(|network| subnets_of(network).any(|other| pool.meets(other))) {
            return Ok(Some(EngineError::RangeTaken(named(holder))));
        }
        let same = all.iter().any(|network| network.name.as_deref() == Some(name));
        Ok(same.then(|| EngineError::NameTaken(name.into())))
    }

    /// Whether another network has the same name. Engines before 25 allow that, and then start no container
    /// on either.
    async fn is_named_twice(&self, name: &str) -> Result<bool, EngineError> {
        if self.product == Product::Podman || self.api >= UNIQUE_NAMES {
            return Ok(false);
        }
        let all = self.docker.list_networks(None).await;
        let all = all.map_err(|e| EngineError::of("list networks", e))?;
        Ok(all.iter().filter(|network| network.name.as_deref() == Some(name)).count() > 1)
    }

    /// Creates a network. [`EngineError::RangeTaken`] and [`EngineError::NameTaken`] name the conflicting
    /// network.
    pub async fn make_network(&self, name: &str, pool: Pool, session: &str) -> Result<Network, EngineError> {
        let credentials = [CONTAINER_CREDENTIALS];
        // Podman reserves no further addresses, and ignores a relay's second address anyway.
        let kept = match pool.contains(CONTAINER_CREDENTIALS) && self.product == Product::Docker {
            true => &credentials[..],
            false => &[],
        };
        self.make_full_network(name, pool, kept, session).await
    }

    /// Like [`Self::make_network`]; no container can be connected at the addresses in `kept`.
    pub(super) async fn make_full_network(
        &self,
        name: &str,
        pool: Pool,
        kept: &[Ipv4Addr],
        session: &str,
    ) -> Result<Network, EngineError> {
        let made = |id| Network {
            id,
            name: name.into(),
            session: session.into(),
            subnet: pool.subnet(),
            keeps_credentials_address: kept.contains(&CONTAINER_CREDENTIALS),
            routed: false,
        };
        if self.product == Product::Podman {
            let range = pool.podman_range(!kept.is_empty());
            let make = || self.make_podman_network(name, &range, session);
            return self.create_network(name, pool, make).await.map(made);
        }
        let named: HashMap<_, _> =
            kept.iter().map(|address| (format!("kept-{address}"), address.to_string())).collect();
        let range = IpamConfig {
            subnet: Some(pool.subnet()),
            ip_range: Some(pool.engine_slice()),
            gateway: Some(pool.gateway().to_string()),
            auxiliary_addresses: (!named.is_empty()).then_some(named),
        };
        let labels = HashMap::from([(SESSION_LABEL.to_string(), session.to_string())]);
        let request = NetworkCreateRequest {
            name: name.into(),
            driver: Some("bridge".into()),
            internal: Some(true),
            enable_ipv6: Some(false),
            ipam: Some(Ipam { config: Some(vec![range]), ..Default::default() }),
            options: Some(HashMap::from([(
                "com.docker.network.bridge.inhibit_ipv4".to_string(),
                "true".to_string(),
            )])),
            labels: Some(labels),
            ..Default::default()
        };
        let make = || async {
            let made = self.docker.create_network(request.clone()).await;
            made.map(|made| made.id).map_err(|e| EngineError::of("make the network", e))
        };
        self.create_network(name, pool, make).await.map(made)
    }

    /// Creates a network and explains conflicts. The engine refuses a used name or range by various statuses
    /// (names: 409 since Engine 25; ranges: 403, Podman 500) and messages, none of which is specific. So this
    /// lists the networks to find the conflicting one, repeatedly for a moment, because a network is not
    /// listed while it is being created or removed.
    async fn create_network<T: Future<Output = Result<String, EngineError>>>(
        &self,
        name: &str,
        pool: Pool,
        make: impl Fn() -> T,
    ) -> Result<String, EngineError> {
        const MAY_BE_TAKEN: [u16; 4] = [400, 403, 409, 500];
        let began = Instant::now();
        loop {
            let error = match make().await {
                Ok(id) if name != SHARED_NAME || !self.is_named_twice(name).await? => return Ok(id),
                Ok(id) => {
                    self.remove_network(&id).await?;
                    return Err(EngineError::NameTaken(name.into()));
                }
                Err(error) => error,
            };
            if !matches!(&error, EngineError::Refused { status, .. } if MAY_BE_TAKEN.contains(status)) {
                return Err(error);
            }
            if let Some(taken) = self.conflict(name, pool).await? {
                return Err(taken);
            }
            if began.elapsed() > SEEN_WITHIN {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Connects a container that has not started yet, at an address that we choose. Measured on 20.10: the
    /// container has the address from its first instruction on and keeps it over a restart.
    pub async fn connect_container(
        &self,
        network: &str,
        container: &str,
        at: Ipv4Addr,
    ) -> Result<(), EngineError> {
        let driver_opts = (self.api >= NAMES_INTERFACES)
            .then(|| HashMap::from([(INTERFACE_NAME.to_string(), INTERFACE.to_string())]));
        let mut ipam = fixed(at);
        // With an address in 169.254.0.0/16 the container's kernel sends to this whole range on our network,
        // and not by the default route, behind which a cloud's own metadata server may be.
        ipam.link_local_ips = Some(vec![link_local_for(at).to_string()]);
        let endpoint = EndpointSettings { ipam_config: Some(ipam), driver_opts, ..Default::default() };
        let request = NetworkConnectRequest { container: container.into(), endpoint_config: Some(endpoint) };
        let connected = self.docker.connect_network(network, request).await;
        connected.map_err(|e| EngineError::of("connect the container to our network", e))
    }

    /// Disconnects a stopped container from one of our networks. If it is our bridge, the container is first
    /// connected to the default bridge, without which it would have no network; so it is on at least one of
    /// them at any moment.
    pub async fn detach_stopped(&self, network: &Network, container: &str) -> Result<(), EngineError> {
        if network.routed {
            self.return_to_default_bridge(container).await?;
        }
        self.disconnect_container(&network.id, container).await
    }

    /// Disconnects a container that has ended. A running one is never disconnected to cut it off, because its
    /// packets would then leave by its default route.
    pub async fn disconnect_container(&self, network: &str, container: &str) -> Result<(), EngineError> {
        let request = NetworkDisconnectRequest { container: container.into(), force: Some(true) };
        let outcome = self.docker.disconnect_network(network, request).await;
        super::allow_already_done(outcome.map_err(|e| EngineError::of("disconnect the container", e)))
    }

    /// Addresses of the running containers on a network.
    pub async fn addresses_on(&self, network: &str) -> Result<Vec<Ipv4Addr>, EngineError> {
        let options = None::<InspectNetworkOptions>;
        let found = self.docker.inspect_network(network, options).await;
        let members =
            found.map_err(|e| EngineError::of("inspect our network", e))?.containers.unwrap_or_default();
        let address = |text: String| text.split('/').next().and_then(|address| address.parse().ok());
        Ok(members.into_values().filter_map(|member| address(member.ipv4_address?)).collect())
    }

    /// Removes a network whose members have ended. They, and a relay, may keep their endpoints for a moment,
    /// because the engine releases these after the `die` event. The engine also miscounts at times (seen on
    /// 20.10 under load): it lists no member and yet refuses to remove the network until it restarts.
    /// `before` runs before each attempt.
    pub async fn remove_ended_network<T: Future<Output = ()>>(
        &self,
        network: &str,
        before: impl Fn() -> T,
    ) -> Result<(), EngineError> {
        let began = Instant::now();
        let mut listed = began;
        loop {
            before().await;
            match self.remove_network(network).await {
                Err(error) if error.is_in_use() && began.elapsed() < ENDPOINTS_WITHIN => {}
                outcome => return outcome,
            }
            if !self.addresses_on(network).await?.is_empty() {
                listed = Instant::now();
            } else if listed.elapsed() > MISCOUNTED_AFTER {
                let why = "the engine says that a container is still on it but lists none; the next session \
                           reuses it";
                return Err(EngineError::Broken("remove our network", why.into()));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Removes a network; a missing one counts as success. The engine refuses while a running container is on
    /// it.
    pub async fn remove_network(&self, network: &str) -> Result<(), EngineError> {
        let named = match self.product {
            Product::Docker => Ok(network.into()),
            Product::Podman => self.network_name(network).await,
        };
        let network = match named {
            Ok(network) => network,
            Err(error) => return super::allow_already_done(Err(error)),
        };
        super::allow_already_done(
            self.docker.remove_network(&network).await.map_err(|e| EngineError::of("remove our network", e)),
        )
    }
}

/// The link-local address of a container at `at`: `at` if it is link-local, otherwise one with its last two
/// bytes.
fn link_local_for(at: Ipv4Addr) -> Ipv4Addr {
    let [.., third, last] = at.octets();
    Ipv4Addr::new(169, 254, third, last)
}

pub(super) fn fixed(at: Ipv4Addr) -> EndpointIpamConfig {
    EndpointIpamConfig { ipv4_address: Some(at.to_string()), ..Default::default() }
}

/// The IPv4 ranges of any network.
fn subnets_of(network: &BollardNetwork) -> impl Iterator<Item = Pool> {
    let ranges = network.ipam.iter().flat_map(|ipam| ipam.config.iter().flatten());
    ranges.filter_map(|range| {
        let (address, prefix) = range.subnet.as_deref()?.split_once('/')?;
        let pool = Pool { network: address.parse().ok()?, prefix: prefix.parse().ok()? };
        (1..=32).contains(&pool.prefix).then_some(pool)
    })
}

fn reserves(ipam: Option<&Ipam>, address: Ipv4Addr) -> bool {
    let ranges = ipam.and_then(|ipam| ipam.config.as_ref()).into_iter().flatten();
    let mut kept = ranges.filter_map(|range| range.auxiliary_addresses.as_ref()).flat_map(HashMap::values);
    kept.any(|own| *own == address.to_string())
}

fn subnet_of(ipam: Option<Ipam>) -> String {
    let first = ipam.and_then(|ipam| ipam.config).and_then(|ranges| ranges.into_iter().next());
    first.and_then(|range| range.subnet).unwrap_or_default()
}
