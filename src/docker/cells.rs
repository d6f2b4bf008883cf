//! A network for each container (`isolation = "network"`), shared only with the relay. Creating one takes a
//! tenth of a second, so a few are kept ready; a create waits only when they are used up.
//!
//! A [`Cell`] is one such network, held by the code that will connect a container to it. When a cell is
//! dropped unused, its network is ready again; when it is dropped after use, the network is removed, and its
//! addresses are reused last.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::network::{Network, SHARED_NAME};
use super::ranges::TAKEN;
use super::{Engine, EngineError};
use crate::config::Pool;
use crate::failure::Reason;
use crate::process::Tasks;
use crate::readiness::Listening;

/// How many networks are kept ready: on most laptops, as many as a pipeline starts tasks at once.
const READY: usize = 6;
/// Eight addresses: the network's own, the container's, three reserved ones, the relay's, the engine's
/// gateway, broadcast. So no other container can be connected, by any engine call.
const PREFIX: u8 = 29;
/// The engine creates networks and containers one after the other. While enough networks are ready, the next
/// one has to wait for the create that took one (otherwise that create takes 18 ms longer).
const CALM: Duration = Duration::from_millis(200);
/// How long a create waits for a network. Docker's Python client waits 60 s for the answer to the whole create.
const MADE_WITHIN: Duration = Duration::from_secs(50);
/// How long a network waits for the relay.
const WITHIN: Duration = Duration::from_secs(30);
/// How long to wait for an address that is being given back, if all are in use.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many attempts may fail while a create waits.
const FAILURES: usize = 2;
/// The pause before a failed attempt is repeated.
const PAUSE: Duration = Duration::from_millis(200);

/// The one-container networks that fit into `range`, in order.
pub fn of(range: Pool) -> impl Iterator<Item = Pool> {
    let size = 1_u32 << (32 - PREFIX);
    let count = 1_u32 << PREFIX.saturating_sub(range.prefix);
    let first = u32::from(range.network);
    (0..count)
        .map(move |number| Pool { network: Ipv4Addr::from(first + number * size), prefix: PREFIX })
        .filter(|cell| !TAKEN.iter().any(|taken| cell.contains(*taken)))
}

/// The relay's address on the network of the container at `address`.
pub fn relay_beside(address: Ipv4Addr) -> Ipv4Addr {
    Pool { network: address, prefix: PREFIX }.relay()
}

fn container_address(range: Pool) -> Ipv4Addr {
    Ipv4Addr::from(range.base() + 1)
}

fn reserved_addresses(range: Pool) -> [Ipv4Addr; 3] {
    [2, 3, 4].map(|number| Ipv4Addr::from(range.base() + number))
}

impl Engine {
    /// Creates the network of one container. [`EngineError::RangeTaken`] names the network that has its
    /// range.
    pub async fn make_cell(&self, name: &str, range: Pool, session: &str) -> Result<Network, EngineError> {
        self.make_full_network(name, range, &reserved_addresses(range), session).await
    }
}

/// The networks of a session; clones share them.
#[derive(Clone, Debug)]
pub struct Cells(Arc<CellsInner>);

#[derive(Debug)]
struct CellsInner {
    engine: Engine,
    session: String,
    listening: Listening,
    tasks: Tasks,
    /// The relay's container id.
    relay: watch::Sender<String>,
    state: Mutex<CellState>,
    changed: Notify,
}

#[derive(Debug)]
struct CellState {
    /// Ranges without a network, the longest unused first.
    free: VecDeque<Pool>,
    ready: VecDeque<Slot>,
    making: usize,
    taken: Option<Instant>,
    /// Creates that wait for a network, in order.
    waiters: VecDeque<oneshot::Sender<Result<Cell, Reason>>>,
    /// Consecutive failures: networks that could not be created, and ranges that another network has.
    failures: usize,
    overlaps: usize,
    number: u64,
}

/// The error comes with the range if that is free again.
type SlotResult = Result<Slot, (Option<Pool>, EngineError)>;

#[derive(Debug)]
struct Slot {
    network: String,
    range: Pool,
    /// When cancelled, the network is removed.
    end: CancellationToken,
}

/// The network of one container.
#[derive(Debug)]
pub struct Cell {
    slot: Option<Slot>,
    used: bool,
    home: Weak<CellsInner>,
    pub relay: Ipv4Addr,
    pub address: Ipv4Addr,
    /// The engine's id.
    pub network: String,
}

impl Cell {
    /// Marks the network as used: a container will be connected, and no other one may follow, whatever
    /// happens to it.
    pub fn occupy(&mut self) {
        self.used = true;
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        match self.home.upgrade() {
            Some(home) if !self.used => home.put(slot),
            _ => slot.end.cancel(),
        }
    }
}

impl Cells {
    /// `ranges` in the order of first use; `relay` is the relay's container id.
    pub fn new(
        engine: Engine,
        session: String,
        ranges: impl Iterator<Item = Pool>,
        relay: &str,
        listening: Listening,
        tasks: Tasks,
    ) -> Self {
        let state = CellState {
            free: ranges.collect(),
            ready: VecDeque::new(),
            making: 0,
            taken: None,
            waiters: VecDeque::new(),
            failures: 0,
            overlaps: 0,
            number: 0,
        };
        let (relay, _) = watch::channel(relay.to_owned());
        let (state, changed) = (Mutex::new(state), Notify::new());
        Self(Arc::new(CellsInner { engine, session, listening, tasks, relay, state, changed }))
    }

    /// Connects the relay's replacement to every network.
    pub fn renewed(&self, relay: &str) {
        self.0.relay.send_replace(relay.to_owned());
    }

    /// A network with only the relay on it. Waits, in order of arrival, only if none is ready.
    pub async fn take(&self) -> Result<Cell, Reason> {
        let inner = &self.0;
        let ready = {
            let mut state = inner.state();
            state.taken = Some(Instant::now());
            state.ready.pop_front()
        };
        let cell = match ready {
            Some(slot) => inner.cell(slot),
            None => self.wait_for_cell().await?,
        };
        inner.changed.notify_one(); // one network fewer is ready
        // A relay that is being replaced does not listen yet.
        let listening = timeout(WITHIN, inner.listening.wait(cell.relay)).await;
        listening.map(|()| cell).map_err(|_| "the relay of kfp-creds does not listen".into())
    }

    async fn wait_for_cell(&self) -> Result<Cell, Reason> {
        let (wanted, mut made) = oneshot::channel();
        self.0.state().waiters.push_back(wanted);
        self.0.changed.notify_one();
        let end = Instant::now() + MADE_WITHIN;
        while Instant::now() < end {
            if let Ok(outcome) = timeout(PATIENCE, &mut made).await {
                return outcome.unwrap_or_else(|_| Err("the session has ended".into()));
            }
            let state = self.0.state();
            if state.making == 0 && state.free.is_empty() {
                return Err(
                    "kfp-creds has no network left: stopped containers keep theirs; remove them, or give \
                            network.cells in kfp-creds.toml a larger range"
                        .into(),
                );
            }
        }
        Err(format!(
            "the engine made no network for it within {} s: it makes one after the other, so create fewer containers at \
             once; docker info says whether the engine is well",
            MADE_WITHIN.as_secs()
        )
        .into())
    }

    /// Keeps networks ready until the session stops.
    pub async fn keep_ready(self) {
        let stop = self.0.tasks.stop().clone();
        while !stop.is_cancelled() {
            let (pause, idle) = match self.0.next_range() {
                Ok(range) => {
                    let made = self.0.make(range).await;
                    (self.0.finish_attempt(made), false)
                }
                Err(pause) => (pause, true),
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
                () = self.0.changed.notified(), if idle => {}
            }
        }
    }
}

impl CellsInner {
    fn state(&self) -> MutexGuard<'_, CellState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The range of the next network to create, or how long to wait before creating one.
    fn next_range(&self) -> Result<Pool, Duration> {
        let mut state = self.state();
        if state.ready.len() + state.making >= READY + state.waiters.len() {
            return Err(Duration::MAX);
        }
        let since = state.taken.map_or(CALM, |taken| taken.elapsed());
        if state.ready.len() > READY / 2 && since < CALM {
            return Err(CALM - since);
        }
        let range = state.free.pop_front().ok_or(Duration::MAX)?;
        state.making += 1;
        Ok(range)
    }

    fn cell(self: &Arc<Self>, slot: Slot) -> Cell {
        Cell {
            relay: slot.range.relay(),
            address: container_address(slot.range),
            network: slot.network.clone(),
            slot: Some(slot),
            used: false,
            home: Arc::downgrade(self),
        }
    }

    /// Gives the network to the create that has waited longest, otherwise to the ready ones.
    fn put(self: &Arc<Self>, slot: Slot) {
        let mut state = self.state();
        let mut cell = self.cell(slot);
        while let Some(waiter) = state.waiters.pop_front() {
            match waiter.send(Ok(cell)) {
                Err(Ok(back)) => cell = back, // this create has given up
                Ok(()) | Err(Err(_)) => return,
            }
        }
        state.ready.extend(cell.slot.take());
    }

    /// Passes on the result of an attempt; returns the pause before the next one.
    fn finish_attempt(self: &Arc<Self>, made: SlotResult) -> Duration {
        self.state().making -= 1;
        let (range, error) = match made {
            Ok(slot) => {
                self.put(slot);
                let mut state = self.state();
                (state.failures, state.overlaps) = (0, 0);
                return Duration::ZERO;
            }
            Err(failed) => failed,
        };
        tracing::debug!(%error, "could not make a network");
        let mut state = self.state();
        state.free.extend(range);
        state.overlaps += 1;
        if error.is_range_taken() && state.overlaps <= state.free.len() {
            return Duration::ZERO; // another network has these addresses; the next ones may be free
        }
        (state.failures, state.overlaps) = (state.failures + 1, 0);
        if state.failures > FAILURES {
            for waiter in state.waiters.drain(..) {
                let text = format!("kfp-creds could not make a network for it: {error}");
                let _ = waiter.send(Err(Reason::new(text, error.remedy())));
            }
        }
        PAUSE
    }

    async fn make(self: &Arc<Self>, range: Pool) -> SlotResult {
        let number = {
            let mut state = self.state();
            state.number += 1;
            state.number
        };
        let name = format!("{SHARED_NAME}-{}-{number}", self.session);
        let made = self.engine.make_cell(&name, range, &self.session).await;
        let network = made.map_err(|error| (Some(range), error))?.id;
        let end = CancellationToken::new();
        self.tasks.spawn("cell", self.clone().keep_relay_connected(network.clone(), range, end.clone()));
        if timeout(WITHIN, self.listening.wait(range.relay())).await.is_err() {
            end.cancel(); // the range is free again once the network is removed
            let why = "the relay does not listen on a network that it was connected to".to_string();
            return Err((None, EngineError::Broken("make a network", why.into())));
        }
        Ok(Slot { network, range, end })
    }

    /// Connects the relay, and every replacement of it, until `end`; then removes the network.
    async fn keep_relay_connected(self: Arc<Self>, network: String, range: Pool, end: CancellationToken) {
        let mut relay = self.relay.subscribe();
        let stop = self.tasks.stop();
        loop {
            let id = relay.borrow_and_update().clone();
            let wait = match self.engine.connect_relay(&network, &id, range.relay()).await {
                Ok(()) => Duration::MAX,
                Err(error) => {
                    tracing::debug!(%error, network, "could not connect the relay");
                    PAUSE
                }
            };
            tokio::select! {
                () = end.cancelled() => break,
                () = stop.cancelled() => return,
                _ = relay.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.take_down(&network, range).await;
    }

    async fn take_down(&self, network: &str, range: Pool) {
        let disconnect_relay = || async {
            let relay = self.relay.borrow().clone();
            // The relay may be disconnected already. Any other error shows when the network cannot be
            // removed.
            let _ = self.engine.disconnect_container(network, &relay).await;
        };
        if let Err(error) = self.engine.remove_ended_network(network, disconnect_relay).await {
            // Its addresses are not reused. The end of this session, and the next session, try again to
            // remove the network.
            tracing::info!(%error, network, "the network of a container that is gone stays");
            return;
        }
        self.listening.close(range.relay());
        self.state().free.push_back(range);
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_divided_into_cells_with_fixed_addresses() {
        let range = Pool { network: Ipv4Addr::new(169, 254, 64, 0), prefix: 19 };
        let all: Vec<Pool> = of(range).collect();
        assert_eq!(all.len(), 1024);
        let last = all[1023];
        assert_eq!(last.to_string(), "169.254.95.248/29");
        assert_eq!(container_address(last), Ipv4Addr::new(169, 254, 95, 249));
        assert_eq!(reserved_addresses(last).map(|reserved| reserved.octets()[3]), [250, 251, 252]);
        assert_eq!(last.relay(), Ipv4Addr::new(169, 254, 95, 253));
        assert_eq!(relay_beside(container_address(last)), last.relay());
        // Cells with an address that clouds use for their own services are left out.
        let shared = Pool { network: Ipv4Addr::new(169, 254, 168, 0), prefix: 22 };
        let left: Vec<Pool> = of(shared).collect();
        assert_eq!(left.len(), 128 - 4);
        assert!(!left.iter().any(|cell| cell.contains(TAKEN[0])));
    }
}
