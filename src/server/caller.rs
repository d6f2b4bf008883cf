//! Who is asking: a container by its lease, a program of this machine, or the relay itself.

use std::sync::Arc;

use crate::registry::Lease;
use crate::workload::{By, ContainerId, Grant, Identity};

/// Who is asking.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    Container(Lease),
    /// The holder of the path capability on this machine: the default identity.
    Local(Arc<Identity>),
    /// The relay itself: its probe proves the way, and it has nothing to ask for.
    Relay,
}

impl Caller {
    pub(super) fn still_valid(&self) -> bool {
        match self {
            Self::Container(lease) => lease.still_valid(),
            Self::Local(_) | Self::Relay => true,
        }
    }

    /// For a line on the terminal.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Container(lease) => {
                let Grant { task, container, .. } = lease.grant();
                format!("{task} ({container})")
            }
            Self::Local(_) => "a program on this machine".into(),
            Self::Relay => "the relay".into(),
        }
    }

    /// What gave it its identity.
    pub(super) fn by(&self) -> By {
        match self {
            Self::Container(lease) => lease.grant().by,
            Self::Local(_) | Self::Relay => By::Default,
        }
    }

    /// Resolves when the lease ends; never for callers without one.
    pub(super) async fn cut(&self) {
        match self {
            Self::Container(lease) => lease.cut().await,
            Self::Local(_) | Self::Relay => std::future::pending().await,
        }
    }

    /// What it may have, and as which container; nothing for the relay.
    pub(super) fn granted(&self) -> Option<(&Arc<Identity>, Option<&ContainerId>)> {
        match self {
            Self::Container(lease) => Some((&lease.grant().identity, Some(&lease.grant().container))),
            Self::Local(identity) => Some((identity, None)),
            Self::Relay => None,
        }
    }
}
