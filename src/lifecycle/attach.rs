//! Attaches a created container: its address, its lease, and its first AWS session.

use std::net::Ipv4Addr;
use std::sync::Arc;
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

/// How long a create waits for the container's AWS session, which [`Lifecycle::attach`] requests as soon as
/// it knows the container's id: IMDS clients give up after 0.5 to 1 s. The server holds later requests.
const FIRST_SESSION: Duration = Duration::from_millis(500);

impl Lifecycle {
    /// Connects a created container at an address of its own network or of the shared one (a container on the
    /// host's network needs no connection) and admits it. The proxy may answer the create only after this, so
    /// that the lease exists before the container's first instruction, whichever client starts it.
    pub async fn attach(self: &Arc<Self>, grant: Grant, mut place: Attachment) -> Result<Ipv4Addr, Reason> {
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
        let uses_imds = match &place {
            Attachment::Cell(_) => true,
            Attachment::Shared => {
                !self.state().second.as_ref().is_some_and(|second| second.relay.container_credentials)
            }
            Attachment::Linked(linked) => !linked.segment().container_credentials(),
            Attachment::Loopback(_) => false,
        };
        let arriving = self.mint.arriving(&container);
        let aws_request = self.mint.aws_request(&grant.identity, Some(&container), &grant.task);
        if let Some(request) = &aws_request {
            self.mint.aws_ahead(request, Requestor::Container(&grant));
        }
        let requested_at = Instant::now();
        // A link-local address is already in the create request.
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
        let granted = grant.clone();
        let admitted = self.admit(grant, address, network, place);
        drop(arriving);
        if !admitted {
            self.forget_unused();
            return Err("the session has ended".into());
        }
        self.recorder.attached(&granted, &self.account(&identity), address);
        self.warm(&container);
        if let Some(request) = aws_request {
            let remaining = FIRST_SESSION.saturating_sub(requested_at.elapsed());
            let made = self.mint.aws_session(&request, Some(Requestor::Container(&granted)), remaining).await;
            self.report_late_session(&granted.task, made.err().filter(|_| uses_imds));
        }
        Ok(address)
    }

    /// Reports a late or refused AWS session on the console. IMDS clients then assume a machine without
    /// credentials and give no reason; clients of container credentials show the reason themselves. Reports
    /// once, and again only after a session came in time: a burst of containers has one reason.
    fn report_late_session(&self, task: &Task, late: Option<MintFailure>) {
        let new = self.reported_late.swap(late.is_some(), Ordering::AcqRel) != late.is_some();
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

    /// Disconnects a container that does not run from its network; on the host's network there is nothing to
    /// do.
    pub(super) async fn detach(&self, network: &str, container: &ContainerId) -> Result<(), EngineError> {
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
