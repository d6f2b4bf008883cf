//! Our network: which addresses it has, who made it, how a container gets onto it.
//!
//! `internal` and without an address of the host's (`inhibit_ipv4`): otherwise the bridge would take over
//! the host's own route to 169.254.169.254, which on a cloud machine is the host's real metadata server.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use bollard::models::{
    ContainerSummary, ContainerSummaryStateEnum, EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig,
    Network as BollardNetwork, NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest,
};
use bollard::query_parameters::{
    InspectNetworkOptions, ListContainersOptionsBuilder, ListNetworksOptionsBuilder,
};

use tokio::time::Instant;

use super::{Engine, EngineError, filters};
use crate::config::Pool;

/// On every network of ours; the value is the session that made it.
pub const SESSION_LABEL: &str = "kfp-creds.session";
/// On every container of ours, `run` or `serve`: what a sweep does with it where a dead session left it running.
/// Not on networks, for one that had to stay is taken over by the next session, whichever that is.
pub const MODE_LABEL: &str = "kfp-creds.mode";

/// The network that holds the magic address has this name; others carry their session in it.
pub const SHARED_NAME: &str = "kfp-creds";

/// The address that every Google client knows.
pub const MAGIC: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// From this API on (Engine 28) a network's interface in a container can be named, and has to be: which of several
/// networks becomes `eth0` is random since then (moby #49935). Ours has a name of its own, so `eth0` is never ours.
const NAMES_INTERFACES: (u64, u64) = (1, 48);
const INTERFACE_NAME: &str = "com.docker.network.endpoint.ifname";
const INTERFACE: &str = "kfpcreds0";

/// How long the engine may take to give up the endpoints of what has ended (seen: up to 4 s on 20.10 with a
/// pending name look-up).
const ENDPOINTS_WITHIN: Duration = Duration::from_secs(8);
/// Nobody is listed on a network and it cannot be removed: from when on waiting is no use.
const MISCOUNTED_AFTER: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);
/// How long a network that another is making, or removing, may be in the way without being listed.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

/// Link-local addresses that clouds give a meaning of their own; never leased to a container.
pub(super) const TAKEN: [Ipv4Addr; 5] = [
    MAGIC,
    Ipv4Addr::new(169, 254, 169, 253),
    Ipv4Addr::new(169, 254, 169, 123),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
];

/// How the range is divided: the last quarter is the engine's own allocator's (a container connected by
/// hand lands there), the rest is ours to lease, less the relay and those of `TAKEN`.
impl Pool {
    pub(super) fn base(self) -> u32 {
        u32::from(self.network) & self.mask()
    }

    fn mask(self) -> u32 {
        u32::MAX << (32 - self.prefix)
    }

    fn quarter(self) -> u32 {
        1 << (30 - self.prefix)
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == self.base()
    }

    /// The magic address where the range holds it, else the last address that could be leased.
    pub fn relay(self) -> Ipv4Addr {
        if self.contains(MAGIC) { MAGIC } else { Ipv4Addr::from(self.base() + 3 * self.quarter() - 1) }
    }

    /// The addresses that containers may be given, in order.
    pub fn leasable(self) -> impl Iterator<Item = Ipv4Addr> {
        let relay = self.relay();
        (self.base() + 1..self.base() + 3 * self.quarter())
            .map(Ipv4Addr::from)
            .filter(move |address| *address != relay && !TAKEN.contains(address))
    }

    /// Whether the two have an address in common.
    fn meets(self, other: Self) -> bool {
        other.contains(Ipv4Addr::from(self.base())) || self.contains(other.network)
    }

    /// Whether `subnet` (`a.b.c.d/n`) is this range.
    pub fn is(self, subnet: &str) -> bool {
        self.subnet() == subnet
    }

    fn subnet(self) -> String {
        format!("{}/{}", Ipv4Addr::from(self.base()), self.prefix)
    }

    fn engine_slice(self) -> String {
        format!("{}/{}", Ipv4Addr::from(self.base() + 3 * self.quarter()), self.prefix + 2)
    }

    /// Reserved by the engine even where the bridge gets no address: at the end of its own slice.
    fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base() + 4 * self.quarter() - 2)
    }
}

/// A network of ours, as the engine shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Network {
    /// The engine's id, 64 hex digits: names can be given twice, ids cannot.
    pub id: String,
    pub name: String,
    /// Who made it: eight hex digits.
    pub session: String,
    /// `a.b.c.d/n`.
    pub subnet: String,
}

/// A container on a network of ours.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    pub id: String,
    pub running: bool,
    /// What its label says; an image can bring that too, so it counts only together with the membership.
    pub session: Option<String>,
    /// `run`, or `serve` where it is left running; like the session's.
    pub mode: Option<String>,
}

impl Engine {
    /// All networks that carry our label. The label is trustworthy: networks cannot be committed or pulled.
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
                subnet: subnet_of(network.ipam),
            }
        });
        Ok(networks.collect())
    }

    /// Who is in the way of a network with this name and range, as the error that says so.
    async fn in_the_way(&self, name: &str, pool: Pool) -> Result<Option<EngineError>, EngineError> {
        let all = self.docker.list_networks(None).await;
        let all = all.map_err(|e| EngineError::of("list networks", e))?;
        let named = |network: &BollardNetwork| network.name.clone().unwrap_or_default();
        if let Some(holder) = all.iter().find(|network| subnets_of(network).any(|other| pool.meets(other))) {
            return Ok(Some(EngineError::RangeTaken(named(holder))));
        }
        let same = all.iter().any(|network| network.name.as_deref() == Some(name));
        Ok(same.then(|| EngineError::NameTaken(name.into())))
    }

    /// Makes a network. [`EngineError::RangeTaken`] and [`EngineError::NameTaken`] tell who is in the way.
    pub async fn make_network(&self, name: &str, pool: Pool, session: &str) -> Result<Network, EngineError> {
        self.make_full_network(name, pool, &[], session).await
    }

    /// Like [`Self::make_network`]; nobody can be connected at the addresses of `kept`.
    pub(super) async fn make_full_network(
        &self,
        name: &str,
        pool: Pool,
        kept: &[Ipv4Addr],
        session: &str,
    ) -> Result<Network, EngineError> {
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
        let id = self.create_network(request, pool).await?;
        Ok(Network { id, name: name.into(), session: session.into(), subnet: pool.subnet() })
    }

    /// The engine refuses a name and a range that somebody has by various statuses (names: 409 since Engine 25;
    /// ranges: 403, Podman 500) and words, and each of them means something else as well. So it is looked who
    /// holds them; and for a moment again, because a network that is being made is not listed yet, and one that
    /// is being removed is not any more.
    async fn create_network(&self, request: NetworkCreateRequest, pool: Pool) -> Result<String, EngineError> {
        const MAY_BE_TAKEN: [u16; 4] = [400, 403, 409, 500];
        let began = Instant::now();
        loop {
            let made = self.docker.create_network(request.clone()).await;
            let error = match made.map_err(|e| EngineError::of("make the network", e)) {
                Ok(made) => return Ok(made.id),
                Err(error) => error,
            };
            if !matches!(&error, EngineError::Refused { status, .. } if MAY_BE_TAKEN.contains(status)) {
                return Err(error);
            }
            if let Some(taken) = self.in_the_way(&request.name, pool).await? {
                return Err(taken);
            }
            if began.elapsed() > SEEN_WITHIN {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Connects a container that does not run yet, at an address that we chose. Measured on 20.10: the
    /// address is held from the first instruction on and survives a restart.
    pub async fn connect_container(
        &self,
        network: &str,
        container: &str,
        at: Ipv4Addr,
    ) -> Result<(), EngineError> {
        let driver_opts = (self.api >= NAMES_INTERFACES)
            .then(|| HashMap::from([(INTERFACE_NAME.to_string(), INTERFACE.to_string())]));
        let endpoint = EndpointSettings { ipam_config: Some(fixed(at)), driver_opts, ..Default::default() };
        let request = NetworkConnectRequest { container: container.into(), endpoint_config: Some(endpoint) };
        let connected = self.docker.connect_network(network, request).await;
        connected.map_err(|e| EngineError::of("connect the container to our network", e))
    }

    /// For containers that do not run any more. A running one is never disconnected to cut it off: its
    /// packets would leave by its default route.
    pub async fn disconnect_container(&self, network: &str, container: &str) -> Result<(), EngineError> {
        let request = NetworkDisconnectRequest { container: container.into(), force: Some(true) };
        let outcome = self.docker.disconnect_network(network, request).await;
        super::undone(outcome.map_err(|e| EngineError::of("disconnect the container", e)))
    }

    /// Containers that belong to a network, running or not.
    pub async fn containers_on(&self, network: &Network) -> Result<Vec<Member>, EngineError> {
        let joined = self.list(HashMap::from([("network".into(), vec![network.id.clone()])])).await?;
        // That list leaves out what was never started; of those, only ours carry the label.
        let labelled = self.list(filters(SESSION_LABEL)).await?;
        let on = |found: &ContainerSummary| {
            let networks = found.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
            networks.is_some_and(|networks| {
                networks.contains_key(&network.name)
                    && found.state == Some(ContainerSummaryStateEnum::CREATED)
            })
        };
        let ids: Vec<_> = joined.iter().map(|found| found.id.clone()).collect();
        let created =
            labelled.into_iter().filter(|found| on(found) && !ids.contains(&found.id)).collect::<Vec<_>>();
        Ok(joined.into_iter().chain(created).filter_map(member).collect())
    }

    /// Containers that a session labelled, wherever they are connected.
    pub async fn containers_of(&self, session: &str) -> Result<Vec<Member>, EngineError> {
        let labelled = self.list(filters(&format!("{SESSION_LABEL}={session}"))).await?;
        Ok(labelled.into_iter().filter_map(member).collect())
    }

    async fn list(
        &self,
        filters: HashMap<String, Vec<String>>,
    ) -> Result<Vec<ContainerSummary>, EngineError> {
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let found = self.docker.list_containers(Some(options)).await;
        found.map_err(|e| EngineError::of("list the containers on our network", e))
    }

    /// Addresses that running containers hold on a network.
    pub async fn addresses_on(&self, network: &str) -> Result<Vec<Ipv4Addr>, EngineError> {
        let options = None::<InspectNetworkOptions>;
        let found = self.docker.inspect_network(network, options).await;
        let members =
            found.map_err(|e| EngineError::of("inspect our network", e))?.containers.unwrap_or_default();
        let address = |text: String| text.split('/').next().and_then(|address| address.parse().ok());
        Ok(members.into_values().filter_map(|member| address(member.ipv4_address?)).collect())
    }

    /// For a network whose members have ended: they, and a relay, may hold their endpoints for a moment longer, as
    /// the engine gives them up behind the `die` event. It also miscounts at times (seen on 20.10 under load): it
    /// lists nobody on the network and does not remove it, until it restarts. `before` each try.
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
                let why =
                    "the engine counts somebody there whom it does not list; the next session uses it again";
                return Err(EngineError::Broken("remove our network", why.into()));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Gone already is a success. The engine refuses while a running container is on it.
    pub async fn remove_network(&self, network: &str) -> Result<(), EngineError> {
        super::undone(
            self.docker.remove_network(network).await.map_err(|e| EngineError::of("remove our network", e)),
        )
    }
}

fn member(found: ContainerSummary) -> Option<Member> {
    use ContainerSummaryStateEnum::{PAUSED, RESTARTING, RUNNING};
    let mut labels = found.labels.unwrap_or_default();
    let (session, mode) = (labels.remove(SESSION_LABEL), labels.remove(MODE_LABEL));
    let running = matches!(found.state, Some(RUNNING | PAUSED | RESTARTING));
    Some(Member { id: found.id?, running, session, mode })
}

pub(super) fn fixed(at: Ipv4Addr) -> EndpointIpamConfig {
    EndpointIpamConfig { ipv4_address: Some(at.to_string()), ..Default::default() }
}

/// The IPv4 ranges of a network of anybody's.
fn subnets_of(network: &BollardNetwork) -> impl Iterator<Item = Pool> {
    let ranges = network.ipam.iter().flat_map(|ipam| ipam.config.iter().flatten());
    ranges.filter_map(|range| {
        let (address, prefix) = range.subnet.as_deref()?.split_once('/')?;
        let pool = Pool { network: address.parse().ok()?, prefix: prefix.parse().ok()? };
        (1..=32).contains(&pool.prefix).then_some(pool)
    })
}

fn subnet_of(ipam: Option<Ipam>) -> String {
    let first = ipam.and_then(|ipam| ipam.config).and_then(|ranges| ranges.into_iter().next());
    first.and_then(|range| range.subnet).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_pool_is_divided_as_documented() {
        let pool = Pool { network: Ipv4Addr::new(169, 254, 168, 0), prefix: 22 };
        assert_eq!(pool.relay(), MAGIC);
        assert_eq!(pool.subnet(), "169.254.168.0/22");
        assert_eq!(pool.engine_slice(), "169.254.171.0/24");
        assert_eq!(pool.gateway(), Ipv4Addr::new(169, 254, 171, 254));
        let all: Vec<_> = pool.leasable().collect();
        assert_eq!(all.len(), 3 * 256 - 1 - TAKEN.len());
        assert_eq!(all[0], Ipv4Addr::new(169, 254, 168, 1));
        assert!(all.iter().all(|address| !TAKEN.contains(address) && address.octets()[2] != 171));
    }

    #[test]
    fn a_small_pool_still_has_room_for_everybody() {
        let pool = Pool { network: Ipv4Addr::new(10, 9, 8, 16), prefix: 28 };
        assert_eq!(pool.relay(), Ipv4Addr::new(10, 9, 8, 27));
        assert_eq!(pool.engine_slice(), "10.9.8.28/30");
        assert_eq!(pool.gateway(), Ipv4Addr::new(10, 9, 8, 30));
        assert_eq!(pool.leasable().count(), 10);
    }
}
