//! A network for each container (`isolation = "network"`), with nobody on it but the relay. Making one takes a
//! tenth of a second, so a few are always ready; a create waits only when they are used up.
//!
//! A [`Cell`] is one such network, held by whoever will put a container there. Dropped unused it is ready again;
//! dropped after its container it is taken down, and its addresses are the last to come back.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::network::{Network, SHARED_NAME, TAKEN};
use super::{Engine, EngineError};
use crate::config::Pool;
use crate::process::Tasks;
use crate::readiness::Listening;

/// How many networks are kept ready: as many tasks as a pipeline starts at once, on most laptops.
const READY: usize = 6;
/// Eight addresses: the network's own, the container's, three that nobody gets, the relay's, the engine's gateway,
/// broadcast. So nobody else can be connected, by whichever engine call.
const PREFIX: u8 = 29;
/// The engine makes networks and containers one after the other: while enough are ready, the next one is not begun
/// in the middle of the create that took one (it cost that 18 ms).
const CALM: Duration = Duration::from_millis(200);
/// How long a create waits for a network, and a network for the relay.
const WITHIN: Duration = Duration::from_secs(30);
/// When all addresses are held: how long one that is just being given back is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many attempts may fail while a create waits.
const FAILURES: usize = 2;
/// Between attempts at what failed.
const PAUSE: Duration = Duration::from_millis(200);

/// The networks of one container each that `range` has room for, in order.
pub fn of(range: Pool) -> impl Iterator<Item = Pool> {
    let size = 1_u32 << (32 - PREFIX);
    let count = 1_u32 << PREFIX.saturating_sub(range.prefix);
    let first = u32::from(range.network);
    (0..count)
        .map(move |number| Pool { network: Ipv4Addr::from(first + number * size), prefix: PREFIX })
        .filter(|cell| !TAKEN.iter().any(|taken| cell.contains(*taken)))
}

/// Where the container at `address` finds the relay.
pub fn relay_beside(address: Ipv4Addr) -> Ipv4Addr {
    Pool { network: address, prefix: PREFIX }.relay()
}

fn container_in(range: Pool) -> Ipv4Addr {
    Ipv4Addr::from(range.base() + 1)
}

fn kept_in(range: Pool) -> [Ipv4Addr; 3] {
    [2, 3, 4].map(|number| Ipv4Addr::from(range.base() + number))
}

impl Engine {
    /// Makes the network of one container; [`EngineError::RangeTaken`] tells who has its range.
    pub async fn make_cell(&self, name: &str, range: Pool, session: &str) -> Result<Network, EngineError> {
        self.make_full_network(name, range, &kept_in(range), session).await
    }
}

/// The networks of a session; clones share them.
#[derive(Clone, Debug)]
pub struct Cells(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Engine,
    session: String,
    listening: Listening,
    tasks: Tasks,
    /// The relay's container id.
    relay: watch::Sender<String>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// Ranges without a network, the longest unused first.
    free: VecDeque<Pool>,
    ready: VecDeque<Slot>,
    making: usize,
    taken: Option<Instant>,
    /// Creates that wait for a network, in their order.
    waiters: VecDeque<oneshot::Sender<Result<Cell, String>>>,
    /// In a row: networks that could not be made, and ranges that somebody else has.
    failures: usize,
    overlaps: usize,
    number: u64,
}

/// Or why not, with the range if it is free again.
type Made = Result<Slot, (Option<Pool>, EngineError)>;

#[derive(Debug)]
struct Slot {
    network: String,
    range: Pool,
    /// Cancelled, it is taken down.
    end: CancellationToken,
}

/// The network of one container.
#[derive(Debug)]
pub struct Cell {
    slot: Option<Slot>,
    used: bool,
    home: Weak<Inner>,
    pub relay: Ipv4Addr,
    pub address: Ipv4Addr,
    /// The engine's id.
    pub network: String,
}

impl Cell {
    /// A container will be connected: whatever becomes of it, no other one comes to this network.
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
    /// `ranges` in the order of their first use; `relay` is the relay's container id.
    pub fn new(
        engine: Engine,
        session: String,
        ranges: impl Iterator<Item = Pool>,
        relay: &str,
        listening: Listening,
        tasks: Tasks,
    ) -> Self {
        let state = State {
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
        Self(Arc::new(Inner { engine, session, listening, tasks, relay, state, changed }))
    }

    /// The relay was replaced: the new one is connected to every network.
    pub fn renewed(&self, relay: &str) {
        self.0.relay.send_replace(relay.to_owned());
    }

    /// A network with the relay on it and nobody else. Waits only when none is ready, and then in line.
    pub async fn take(&self) -> Result<Cell, String> {
        let inner = &self.0;
        let ready = {
            let mut state = inner.state();
            state.taken = Some(Instant::now());
            state.ready.pop_front()
        };
        let cell = match ready {
            Some(slot) => inner.cell(slot),
            None => self.next_made().await?,
        };
        inner.changed.notify_one(); // there is one less ready
        // A relay that is being replaced is not there yet.
        let there = timeout(WITHIN, inner.listening.wait(cell.relay)).await;
        there.map(|()| cell).map_err(|_| "the relay of kfp-creds does not listen".into())
    }

    async fn next_made(&self) -> Result<Cell, String> {
        let (wanted, mut made) = oneshot::channel();
        self.0.state().waiters.push_back(wanted);
        self.0.changed.notify_one();
        let end = Instant::now() + WITHIN;
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
        Err("kfp-creds could not make a network for it in time".into())
    }

    /// Keeps networks ready until the session stops.
    pub async fn keep_ready(self) {
        let stop = self.0.tasks.stop().clone();
        while !stop.is_cancelled() {
            let (pause, idle) = match self.0.next() {
                Ok(range) => {
                    let made = self.0.make(range).await;
                    (self.0.made(made), false)
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

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A range to make a network of, or how long none is wanted.
    fn next(&self) -> Result<Pool, Duration> {
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
            address: container_in(slot.range),
            network: slot.network.clone(),
            slot: Some(slot),
            used: false,
            home: Arc::downgrade(self),
        }
    }

    /// To whoever waits longest, else to those that are ready.
    fn put(self: &Arc<Self>, slot: Slot) {
        let mut state = self.state();
        let mut cell = self.cell(slot);
        while let Some(waiter) = state.waiters.pop_front() {
            match waiter.send(Ok(cell)) {
                Err(Ok(back)) => cell = back, // it has given up
                Ok(()) | Err(Err(_)) => return,
            }
        }
        state.ready.extend(cell.slot.take());
    }

    /// Hands on what was made; how long to wait before the next one.
    fn made(self: &Arc<Self>, made: Made) -> Duration {
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
            return Duration::ZERO; // somebody else has these addresses; the next ones may be free
        }
        (state.failures, state.overlaps) = (state.failures + 1, 0);
        if state.failures > FAILURES {
            for waiter in state.waiters.drain(..) {
                let _ = waiter.send(Err(format!("kfp-creds could not make a network for it: {error}")));
            }
        }
        PAUSE
    }

    async fn make(self: &Arc<Self>, range: Pool) -> Made {
        let number = {
            let mut state = self.state();
            state.number += 1;
            state.number
        };
        let name = format!("{SHARED_NAME}-{}-{number}", self.session);
        let made = self.engine.make_cell(&name, range, &self.session).await;
        let network = made.map_err(|error| (Some(range), error))?.id;
        let end = CancellationToken::new();
        self.tasks.spawn("cell", self.clone().tend(network.clone(), range, end.clone()));
        if timeout(WITHIN, self.listening.wait(range.relay())).await.is_err() {
            end.cancel(); // and it is given back once it is down
            let why = "the relay does not listen on a network that it was connected to".to_string();
            return Err((None, EngineError::Broken("make a network", why)));
        }
        Ok(Slot { network, range, end })
    }

    /// Connects the relay, and every one that replaces it, until `end`; then takes the network down.
    async fn tend(self: Arc<Self>, network: String, range: Pool, end: CancellationToken) {
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
        let off = || async {
            let relay = self.relay.borrow().clone();
            // Not on it (any more) is what is wanted; anything else shows when the network is not removed.
            let _ = self.engine.disconnect_container(network, &relay).await;
        };
        if let Err(error) = self.engine.remove_ended_network(network, off).await {
            // Its addresses are not given back: the end of the session and the next one try again.
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
    fn a_range_is_divided_and_every_address_has_its_holder() {
        let range = Pool { network: Ipv4Addr::new(169, 254, 64, 0), prefix: 19 };
        let all: Vec<Pool> = of(range).collect();
        assert_eq!(all.len(), 1024);
        let last = all[1023];
        assert_eq!(last.to_string(), "169.254.95.248/29");
        assert_eq!(container_in(last), Ipv4Addr::new(169, 254, 95, 249));
        assert_eq!(kept_in(last).map(|kept| kept.octets()[3]), [250, 251, 252]);
        assert_eq!(last.relay(), Ipv4Addr::new(169, 254, 95, 253));
        assert_eq!(relay_beside(container_in(last)), last.relay());
        // What clouds give a meaning of their own is left out.
        let shared = Pool { network: Ipv4Addr::new(169, 254, 168, 0), prefix: 22 };
        let left: Vec<Pool> = of(shared).collect();
        assert_eq!(left.len(), 128 - 4);
        assert!(!left.iter().any(|cell| cell.contains(TAKEN[0])));
    }
}
