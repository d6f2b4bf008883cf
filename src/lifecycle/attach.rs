//! From a created container to its lease, and its first session of AWS.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::Lifecycle;
use crate::docker::proxy::Attachment;
use crate::failure::Reason;
use crate::mint::MintFailure;
use crate::record::Requestor;
use crate::workload::{Grant, Task};

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
            Attachment::Shared => (self.network.id.clone(), self.take_address()?),
            Attachment::Loopback(path) => (String::new(), path.address()),
        };
        let by_imds = match &place {
            Attachment::Cell(_) => true,
            Attachment::Shared => !self.network.keeps_credentials_address,
            Attachment::Loopback(_) => false,
        };
        let arriving = self.mint.arriving(&container);
        let session = self.mint.aws_request(&grant.identity, Some(&container), &grant.task);
        if let Some(ask) = &session {
            self.mint.aws_ahead(ask, Requestor::Container(&grant));
        }
        let asked = Instant::now();
        if !network.is_empty()
            && let Err(error) = self.engine.connect_container(&network, container.as_str(), address).await
        {
            self.state().addresses.give_back(address);
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

    fn take_address(&self) -> Result<Ipv4Addr, Reason> {
        let mut state = self.state();
        state.addresses.take().ok_or_else(|| {
            let held = state.addresses.held();
            format!(
                "kfp-creds has no address left: {held} containers hold one; remove stopped containers, \
                 or give the network a larger pool in kfp-creds.toml"
            )
            .into()
        })
    }
}
