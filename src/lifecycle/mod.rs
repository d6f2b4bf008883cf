//! The life of a container from create to removal: connect, admit, confirm, cut off, release its address.
//!
//! Owns the registry's [`Writer`], so no other module can grant leases. One lock guards the state and is
//! never held across an await; the state may change during one, so the code compares it with the engine's
//! answer afterwards.

mod attach;
pub mod by_hand;
mod end;
mod events;
mod exit;
mod joined;
mod strangers;
#[cfg(test)]
mod tests;
mod tidy;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::console::Console;
use crate::docker::addresses::Addresses;
use crate::docker::events::Moment;
use crate::docker::members::KnownMembers;
use crate::docker::network::Network;
use crate::docker::proxy::{Attachment, ExitCodes, LifecycleRequest, RelayAt};
use crate::docker::segment::Segment;
use crate::docker::{Engine, Inspected};
use crate::mint::Mint;
use crate::process::Tasks;
use crate::record::Recorder;
use crate::registry::{Lease, Questions, Writer};
use crate::token::{Deadline, HandedOut, MintId};
use crate::workload::{ContainerId, Grant, Task};

pub use end::Summary;

use exit::UnreportedEnd;
use strangers::Strangers;

/// Everything about the containers of one session.
#[derive(Debug)]
pub struct Lifecycle {
    engine: Engine,
    /// Eight hex digits.
    session: String,
    /// The bridge on which containers have link-local addresses, if there is one.
    segment: Option<Segment>,
    /// Our own containers.
    known: KnownMembers,
    mint: Arc<Mint>,
    recorder: Recorder,
    /// Filled by the proxy, including exit codes of containers that the engine has removed.
    exits: ExitCodes,
    console: Console,
    tasks: Tasks,
    /// Whether the console has said that an AWS session came too late; false again once one comes in time.
    reported_late: AtomicBool,
    state: Mutex<LifecycleState>,
}

#[derive(Debug)]
struct LifecycleState {
    writer: Writer,
    /// `None` until a container needs it.
    second: Option<Second>,
    /// Containers that clients connected to our networks, bypassing the proxy; by network id.
    strangers: Strangers,
    containers: HashMap<ContainerId, AttachedContainer>,
    /// Containers that joined the network of an attached container, whose lease they share.
    joined: HashMap<ContainerId, Arc<Task>>,
    attached: u64,
    cut_off: u64,
    /// Expiries of tokens of ended leases; a token that two containers hold counts once.
    outstanding: HashMap<MintId, Deadline>,
    /// Set at the end of the session; from then on no lease is admitted.
    closed: bool,
    /// Set from a break in the events until the engine has listed who is on our networks; while it is set, no
    /// lease is confirmed.
    unchecked: bool,
    /// How often the events have broken off.
    breaks: u64,
}

/// The network that containers are connected to in addition to their own.
#[derive(Debug)]
struct Second {
    network: Network,
    relay: RelayAt,
    addresses: Addresses,
}

/// The networks on which the containers of a session can be.
#[derive(Debug)]
pub struct SessionNetworks {
    pub engine: Engine,
    /// Eight hex digits.
    pub session: String,
    /// The bridge on which containers have link-local addresses, if there is one.
    pub segment: Option<Segment>,
    /// Our own containers, which do not count as strangers on our networks.
    pub known: KnownMembers,
}

/// A container that has an address of the session, running or not.
#[derive(Debug)]
struct AttachedContainer {
    grant: Grant,
    address: Ipv4Addr,
    /// The id of the network on which it has that address; empty on the host's network, where it has none.
    network: String,
    /// Its own cell or loopback path, if it has one; kept until the container is removed.
    place: Attachment,
    /// `None` from the end of a run until the next start.
    lease: Option<Lease>,
    /// Tokens of its ended leases that were still valid when the latest of these leases ended.
    held: Vec<HandedOut>,
    created: Instant,
    started: bool,
    /// When the run that has the lease began, by the engine's clock; known once the container was seen
    /// running.
    begun: Moment,
    /// When its last run ended, if an inspection and no event has shown that; by the engine's clock.
    finished: Moment,
    /// An ended lease that is reported once the exit code is known.
    unreported: Option<UnreportedEnd>,
    /// Cut off by a person: no start and no event restores its lease.
    barred: bool,
}

impl AttachedContainer {
    /// Whether an inspection shows the container running at the address of its lease.
    fn is_at_its_address(&self, seen: &Inspected) -> bool {
        // On the host's network the path identifies the container: no other container has it.
        let by_path = matches!(self.place, Attachment::Loopback(_));
        seen.running && (by_path || seen.addresses.contains(&self.address))
    }
}

/// What it takes to grant leases: the registry's only writer, the mint (to mint ahead and to erase tokens),
/// and the recorder.
#[derive(Debug)]
pub struct Granting {
    pub writer: Writer,
    pub mint: Arc<Mint>,
    pub recorder: Recorder,
}

impl Lifecycle {
    pub fn new(
        SessionNetworks { engine, session, segment, known }: SessionNetworks,
        granting: Granting,
        console: Console,
        tasks: Tasks,
    ) -> Arc<Self> {
        let Granting { writer, mint, recorder } = granting;
        let exits = ExitCodes::default();
        let state = LifecycleState {
            writer,
            second: None,
            strangers: Strangers::default(),
            containers: HashMap::new(),
            joined: HashMap::new(),
            attached: 0,
            cut_off: 0,
            outstanding: HashMap::new(),
            closed: false,
            unchecked: false,
            breaks: 0,
        };
        let (reported_late, state) = (AtomicBool::new(false), Mutex::new(state));
        Arc::new(Self {
            engine,
            session,
            segment,
            known,
            mint,
            recorder,
            exits,
            console,
            tasks,
            reported_late,
            state,
        })
    }

    /// Makes the second network known; `addresses` are its leasable addresses, in the order of their first use.
    pub fn open_second(&self, network: Network, relay: RelayAt, addresses: impl Iterator<Item = Ipv4Addr>) {
        let addresses = Addresses::new(addresses);
        self.state().second = Some(Second { network, relay, addresses });
    }

    /// The exit codes that the proxy records.
    pub fn exits(&self) -> ExitCodes {
        self.exits.clone()
    }

    fn state(&self) -> MutexGuard<'_, LifecycleState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the proxy's requests and the server's questions until the proxy is gone or the session stops.
    pub async fn attend(
        self: Arc<Self>,
        mut requests: mpsc::Receiver<LifecycleRequest>,
        mut questions: Questions,
    ) {
        self.tasks.spawn("tidy", self.clone().tidy());
        self.tasks.spawn("compare", self.clone().compare_regularly());
        loop {
            tokio::select! {
                () = self.tasks.stop().cancelled() => return,
                request = requests.recv() => match request {
                    Some(request) => self.clone().answer(request),
                    None => return,
                },
                Some(address) = questions.next() => {
                    let this = self.clone();
                    self.tasks.spawn("confirm", async move { this.confirm_at(address).await });
                }
            }
        }
    }

    fn answer(self: Arc<Self>, request: LifecycleRequest) {
        match request {
            LifecycleRequest::Attach { container, identity, by, task, place, secret, answer } => {
                let this = self.clone();
                self.tasks.spawn("attach", async move {
                    let grant = Grant { container: container.clone(), identity, by, task, secret };
                    let outcome = this.attach(grant, place).await;
                    let attached = outcome.is_ok();
                    if answer.send(outcome).is_err() && attached {
                        // The caller no longer waits for the answer: it has abandoned the create.
                        this.forget(&container);
                    }
                });
            }
            LifecycleRequest::Starting { container, answer } => {
                self.readmit(&container);
                let _ = answer.send(());
            }
            LifecycleRequest::IsLeased { container, answer } => {
                let _ = answer.send(self.state().is_leased(&container));
            }
            LifecycleRequest::LeasedAs { container, answer } => drop(answer.send(self.leased_as(&container))),
            LifecycleRequest::Joined { container, with, task, answer } => {
                let _ = answer.send(self.join(container, &with, task));
            }
        }
    }

    /// False once the session has ended: nothing would cut off the lease.
    fn admit(self: &Arc<Self>, grant: Grant, address: Ipv4Addr, network: String, place: Attachment) -> bool {
        let container = grant.container.clone();
        let mut state = self.state();
        if state.closed {
            return false;
        }
        let lease = state.writer.admit(address, grant.clone());
        state.attached += 1;
        let attached = AttachedContainer {
            address,
            network,
            place,
            lease: Some(lease),
            held: vec![],
            created: Instant::now(),
            started: false,
            begun: None,
            finished: None,
            unreported: None,
            barred: false,
            grant,
        };
        state.containers.insert(attached.grant.container.clone(), attached);
        drop(state);
        // Another client may have started it before this: its connection then made it a stranger.
        self.stranger_gone(&container, None);
        true
    }

    /// Mints ahead if the mint has no fresh token of the identity, so that the first request finds one. Does
    /// nothing for a lease that has ended by now: its end has already erased its tokens, and a new one would
    /// stay in memory.
    fn warm(&self, container: &ContainerId) {
        let state = self.state();
        if let Some(attached) = state.containers.get(container)
            && attached.lease.is_some()
        {
            self.mint.ahead_of(&attached.grant);
        }
    }

    /// Admits a stopped container that is about to run again: a new epoch, at the same address.
    fn readmit(&self, container: &ContainerId) {
        let mut state = self.state();
        let LifecycleState { writer, containers, closed, .. } = &mut *state;
        if let Some(attached) = containers.get_mut(container)
            && attached.lease.is_none()
            && !*closed
            && !attached.barred
        {
            attached.lease = Some(writer.admit(attached.address, attached.grant.clone()));
            attached.begun = None;
            drop(state);
            self.warm(container);
        }
    }

    async fn confirm_at(&self, address: Ipv4Addr) {
        let container = {
            let state = self.state();
            let found = state.containers.values().find(|attached| attached.address == address);
            found.map(|attached| attached.grant.container.clone())
        };
        if let Some(container) = container {
            self.confirm(&container).await;
        }
    }

    /// Confirms the lease if an inspection shows that the container runs at its address. Before it runs, the
    /// caller could be another container that somebody put at the same address by hand.
    async fn confirm(&self, container: &ContainerId) {
        let epoch = |state: &LifecycleState| {
            let attached = state.containers.get(container)?;
            attached.lease.as_ref().map(|lease| (lease.epoch(), attached.network.clone()))
        };
        let Some((before, network)) = epoch(&self.state()) else { return };
        let Ok(seen) = self.engine.look(container.as_str(), &network).await else { return };
        let mut state = self.state();
        if epoch(&state).map(|(now, _)| now) != Some(before) {
            return; // it ended, or ended and started again, during the inspection
        }
        let LifecycleState { writer, containers, strangers, unchecked, .. } = &mut *state;
        if let Some(attached) = containers.get_mut(container)
            && let Some(lease) = &attached.lease
            && attached.is_at_its_address(&seen)
            && !strangers.are_on(&attached.network)
            && !*unchecked
        {
            attached.started = true;
            attached.begun = attached.begun.or(seen.started);
            writer.confirm(lease);
        }
    }
}
