//! From a created container to its lease, and its first session of AWS.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::Lifecycle;
use crate::docker::EngineError;
use crate::docker::proxy::Attachment;
use crate::failure::Reason;
use crate::mint::MintFailure;
use crate::record::Requestor;
use crate::workload::{ContainerId, Grant, Task};

/// How long a create waits for the container's session of AWS, which is asked for as soon as its id is known: IMDS
/// clients give up after 0.5 to 1 s. Later requests are held at the server.
const FIRST_SESSION: Duration = Duration::from_millis(500);

impl Lifecycle {
    /// Connects a created container at an address of its own network or of the shared one (a container on the
    /// host's network needs no connection) and admits it. The proxy may answer the create only after this, so
    /// that the lease exists before the container's first instruction, whichever client starts it.
    pub async fn attach(&self, grant: Grant, mut place: Attachment) -> Result<Ipv4Addr, Reason> {
        let container = grant.container.clone();
        let (network, address) = match &mut place {
            Attachment::Cell(cell) => {
                cell.occupy();
                (cell.network.clone(), cell.address)
            }
            Attachment::Shared => self.take_address()?,
            Attachment::Linked(linked) => (linked.segment().network().id.clone(), linked.address),
            Attachment::Loopback(path) => (String::new(), path.address()),
        };
        let by_imds = match &place {
            Attachment::Cell(_) => true,
            Attachment::Shared => {
                !self.state().second.as_ref().is_some_and(|second| second.relay.container_credentials)
            }
            Attachment::Linked(linked) => !linked.segment().container_credentials(),
            Attachment::Loopback(_) => false,
        };
        let arriving = self.mint.arriving(&container);
        let session = self.mint.aws_request(&grant.identity, Some(&container), &grant.task);
        if let Some(ask) = &session {
            self.mint.aws_ahead(ask, Requestor::Container(&grant));
        }
        let asked = Instant::now();
        // A link-local address is in the create already.
        if matches!(place, Attachment::Shared | Attachment::Cell(_))
            && let Err(error) = self.engine.connect_container(&network, container.as_str(), address).await
        {
            if matches!(place, Attachment::Shared) {
                self.give_back(address);
            }
            drop(arriving);
            self.forget_unused();
            let text = format!("kfp-creds could not attach the container: {error}");
            return Err(Reason::new(text, error.remedy()));
        }
        let identity = grant.identity.clone();
        let told = grant.clone();
        let admitted = self.admit(grant, address, network, place);
        drop(arriving);
        if !admitted {
            self.forget_unused();
            return Err("the session has ended".into());
        }
        self.recorder.attached(&told, &self.account(&identity), address);
        self.warm(&container);
        if let Some(ask) = session {
            let left = FIRST_SESSION.saturating_sub(asked.elapsed());
            let made = self.mint.aws_session(&ask, Some(Requestor::Container(&told)), left).await;
            self.say_late(&told.task, made.err().filter(|_| by_imds));
        }
        Ok(address)
    }

    /// Clients of IMDS take a late or refused session for a machine without credentials and say nothing more of it;
    /// those of container credentials show the reason themselves. Said once, and again only after a session was
    /// made in time: a burst of containers has one reason.
    fn say_late(&self, task: &Task, late: Option<MintFailure>) {
        let new = self.told_late.swap(late.is_some(), Ordering::AcqRel) != late.is_some();
        let Some(late) = late.filter(|_| new) else { return };
        let why = match late {
            MintFailure::Slow => format!("it is not there after {} ms", FIRST_SESSION.as_millis()),
            MintFailure::Refused(why) | MintFailure::Transient(why) => why.to_string(),
        };
        self.console.notice(format!(
            "{task}: no session of AWS yet: {why}; its clients ask the instance metadata service (IMDS) and may say \
             only that there are no credentials"
        ));
    }

    /// The second network, and an address on it.
    fn take_address(&self) -> Result<(String, Ipv4Addr), Reason> {
        let mut state = self.state();
        let second = state.second.as_mut().ok_or("kfp-creds has no second network")?;
        let address = second.addresses.take().ok_or_else(|| {
            let held = second.addresses.held();
            Reason::from(format!(
                "kfp-creds has no address left: {held} containers hold one; remove stopped containers, \
                 or give the network a larger pool in kfp-creds.toml"
            ))
        })?;
        Ok((second.network.id.clone(), address))
    }

    fn give_back(&self, address: Ipv4Addr) {
        if let Some(second) = &mut self.state().second {
            second.addresses.give_back(address);
        }
    }

    /// Takes a container that does not run off its network; on the host's network there is none.
    pub(super) async fn take_off(&self, network: &str, container: &ContainerId) -> Result<(), EngineError> {
        match &self.segment {
            _ if network.is_empty() => Ok(()),
            Some(segment) if segment.network().id == network && segment.is_default_bridge() => {
                self.engine.clear_default_bridge(container.as_str()).await
            }
            Some(segment) if segment.network().id == network => {
                self.engine.detach_stopped(segment.network(), container.as_str()).await
            }
            _ => self.engine.disconnect_container(network, container.as_str()).await,
        }
    }
}
