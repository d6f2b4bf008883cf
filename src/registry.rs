//! Which address has which lease: shared by the side that grants and the side that serves.
//!
//! Only [`Writer`] can grant, and there is one; [`Reader`] can only look up. The two sides never import each
//! other: the reader's side asks through [`Questions`].

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::token::{Deadline, Issued};
use crate::workload::{ContainerId, Grant};

/// Makes the two handles and the queue of questions that the writer's side answers.
pub fn new() -> (Writer, Reader, Questions) {
    let table = Arc::new(Table::default());
    let (ask, questions) = mpsc::channel(256);
    (Writer { table: table.clone(), epoch: 0 }, Reader { table, ask }, Questions(questions))
}

#[derive(Debug, Default)]
struct Table {
    leases: RwLock<HashMap<Ipv4Addr, Lease>>,
    changed: watch::Sender<()>,
}

impl Table {
    fn edit<T>(&self, change: impl FnOnce(&mut HashMap<Ipv4Addr, Lease>) -> T) -> T {
        let outcome = change(&mut self.leases.write().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
        outcome
    }

    fn find(&self, address: Ipv4Addr) -> Option<Lease> {
        self.leases.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
    }
}

/// A live grant at an address, for one epoch (one start) of one container.
#[derive(Clone, Debug)]
pub struct Lease(Arc<LeaseState>);

#[derive(Debug)]
struct LeaseState {
    address: Ipv4Addr,
    grant: Grant,
    epoch: u64,
    /// False until the container was seen running at this address: before that, any container that was put
    /// there by hand could be the caller.
    confirmed: AtomicBool,
    cut: CancellationToken,
    since: SystemTime,
    /// The tokens handed out; they stay valid after a cut-off.
    issued: Issued,
}

impl Lease {
    pub fn address(&self) -> Ipv4Addr {
        self.0.address
    }

    pub fn grant(&self) -> &Grant {
        &self.0.grant
    }

    /// Grows with every admission of the session; a restarted container gets a new one.
    pub fn epoch(&self) -> u64 {
        self.0.epoch
    }

    /// Check again after every wait, directly before bytes go out: addresses are reused.
    pub fn still_valid(&self) -> bool {
        !self.0.cut.is_cancelled()
    }

    /// Whether the container was seen running at this address; until then no caller there is answered.
    pub fn confirmed(&self) -> bool {
        self.0.confirmed.load(Ordering::Acquire)
    }

    /// When the lease was admitted.
    pub fn since(&self) -> SystemTime {
        self.0.since
    }

    /// The tokens handed out; every token must be added before it goes out.
    pub fn issued(&self) -> &Issued {
        &self.0.issued
    }

    /// The latest expiry of the tokens handed out; `None` if there are none.
    pub fn last_expiry(&self) -> Option<Deadline> {
        self.0.issued.last_expiry()
    }

    /// Resolves when the lease is cut off. A dropped registry is not a cut-off.
    pub async fn cut(&self) {
        self.0.cut.cancelled().await;
    }
}

/// Grants and cuts off leases. Not `Clone`: only `lifecycle` holds it.
#[derive(Debug)]
pub struct Writer {
    table: Arc<Table>,
    epoch: u64,
}

impl Writer {
    /// Makes a lease in a new epoch; cuts off any earlier lease at the address first.
    pub fn admit(&mut self, address: Ipv4Addr, grant: Grant) -> Lease {
        self.epoch += 1;
        let lease = Lease(Arc::new(LeaseState {
            address,
            grant,
            epoch: self.epoch,
            confirmed: AtomicBool::new(false),
            cut: CancellationToken::new(),
            since: SystemTime::now(),
            issued: Issued::default(),
        }));
        let old = self.table.edit(|leases| leases.insert(address, lease.clone()));
        if let Some(old) = old {
            old.0.cut.cancel();
        }
        lease
    }

    /// Marks the lease confirmed, once its container was seen running at its address: from now on it is
    /// answered.
    pub fn confirm(&mut self, lease: &Lease) {
        lease.0.confirmed.store(true, Ordering::Release);
        self.table.changed.send_replace(());
    }

    /// Marks the lease unconfirmed, after a break in the events: it is not answered until its container is
    /// seen running again.
    pub fn doubt(&mut self, lease: &Lease) {
        lease.0.confirmed.store(false, Ordering::Release);
    }

    /// Ends the lease of `container` at `address`. `None` if another container holds the address by now: a
    /// late `die` must not end the lease of its successor.
    pub fn cut_off(&mut self, address: Ipv4Addr, container: &ContainerId) -> Option<Lease> {
        let lease = self.table.edit(|leases| {
            let owner = leases.get(&address)?;
            (owner.0.grant.container == *container).then(|| leases.remove(&address)).flatten()
        })?;
        lease.0.cut.cancel();
        Some(lease)
    }

    /// Ends every lease, at the end of the session.
    pub fn cut_off_all(&mut self) -> Vec<Lease> {
        let leases: Vec<Lease> = self.table.edit(|leases| leases.drain().map(|(_, lease)| lease).collect());
        leases.iter().for_each(|lease| lease.0.cut.cancel());
        leases
    }
}

/// Looks leases up. Cannot grant.
#[derive(Clone, Debug)]
pub struct Reader {
    table: Arc<Table>,
    ask: mpsc::Sender<Ipv4Addr>,
}

impl Reader {
    /// The lease at `address`, if it is confirmed.
    pub fn resolve(&self, address: Ipv4Addr) -> Option<Lease> {
        self.table.find(address).filter(Lease::confirmed)
    }

    /// Like [`Self::resolve`], but asks the writer's side to confirm the lease and waits for it until
    /// `deadline`: a container's first request can be faster than its start event. Negative results are not
    /// cached.
    pub async fn ask(&self, address: Ipv4Addr, deadline: Instant) -> Option<Lease> {
        let mut changes = self.table.changed.subscribe();
        let mut asked = false;
        loop {
            if let Some(lease) = self.resolve(address) {
                return Some(lease);
            }
            // A full queue means that many look-ups are under way already; the next change wakes us.
            if !asked && self.table.find(address).is_some() {
                asked = self.ask.try_send(address).is_ok();
            }
            if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                return self.resolve(address);
            }
        }
    }

    /// Whether there is a lease at `address`, confirmed or not.
    pub fn has(&self, address: Ipv4Addr) -> bool {
        self.table.find(address).is_some()
    }

    /// Every live lease, for messages and `status`.
    pub fn leases(&self) -> Vec<Lease> {
        self.table.leases.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// Addresses of unconfirmed leases from which requests came.
#[derive(Debug)]
pub struct Questions(mpsc::Receiver<Ipv4Addr>);

impl Questions {
    /// `None` once every [`Reader`] is gone.
    pub async fn next(&mut self) -> Option<Ipv4Addr> {
        self.0.recv().await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::token::Scopes;
    use crate::workload::{By, Identity, Task};

    const AT: Ipv4Addr = Ipv4Addr::new(169, 254, 168, 2);

    fn grant(digit: char) -> Grant {
        let identity = Identity { scopes: Scopes::default(), ..Identity::default() };
        Grant {
            container: ContainerId::parse(&digit.to_string().repeat(64)).unwrap(),
            identity: Arc::new(identity),
            by: By::Default,
            task: Arc::new(Task::default()),
            secret: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_lease_is_found_before_its_container_runs() {
        let (mut writer, reader, mut questions) = new();
        let lease = writer.admit(AT, grant('a'));
        assert!(reader.resolve(AT).is_none());
        let asking = reader.ask(AT, Instant::now() + Duration::from_secs(2));
        let answering = async {
            assert_eq!(questions.next().await, Some(AT));
            writer.confirm(&lease);
        };
        let (found, ()) = tokio::join!(asking, answering);
        assert_eq!(found.unwrap().epoch(), lease.epoch());
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_address_waits_for_a_lease_until_the_deadline() {
        let (mut writer, reader, _questions) = new();
        let started = Instant::now();
        assert!(reader.ask(AT, started + Duration::from_secs(2)).await.is_none());
        assert_eq!(started.elapsed(), Duration::from_secs(2));
        let late = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let lease = writer.admit(AT, grant('a'));
            writer.confirm(&lease);
        };
        let (found, ()) = tokio::join!(reader.ask(AT, Instant::now() + Duration::from_secs(2)), late);
        assert!(found.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_unconfirmed_lease_is_checked_again() {
        let (mut writer, reader, mut questions) = new();
        let lease = writer.admit(AT, grant('a'));
        writer.confirm(&lease);
        writer.doubt(&lease);
        assert!(reader.resolve(AT).is_none() && lease.still_valid());
        let asking = reader.ask(AT, Instant::now() + Duration::from_secs(2));
        let answering = async {
            assert_eq!(questions.next().await, Some(AT));
            writer.confirm(&lease);
        };
        let (found, ()) = tokio::join!(asking, answering);
        assert!(found.is_some());
    }

    #[test]
    fn a_late_end_does_not_take_the_lease_of_the_successor() {
        let (mut writer, reader, _questions) = new();
        let first = writer.admit(AT, grant('a'));
        let second = writer.admit(AT, grant('b'));
        writer.confirm(&second);
        assert!(!first.still_valid());
        assert!(writer.cut_off(AT, &grant('a').container).is_none());
        assert!(reader.resolve(AT).unwrap().still_valid());
        assert!(writer.cut_off(AT, &grant('b').container).is_some());
        assert!(!second.still_valid() && reader.resolve(AT).is_none());
    }
}
