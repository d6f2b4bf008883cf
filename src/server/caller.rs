//! The caller of a request: a container by its lease, a program on this machine, or the relay itself.

use std::sync::{Arc, LazyLock};

use crate::registry::Lease;
use crate::workload::{By, ContainerId, Grant, Identity, Task};

/// The caller of a request.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    Container(Lease),
    /// A program on this machine that holds the path capability: it has the default identity.
    Local(Arc<Identity>),
    /// The relay itself, whose probe proves that the path to the server works; it has no identity.
    Relay,
}

impl Caller {
    /// Distinguishes the callers of a session; `None` for the relay.
    pub(super) fn key(&self) -> Option<u64> {
        match self {
            Self::Container(lease) => Some(lease.epoch()),
            Self::Local(_) => Some(0), // the first lease is in epoch 1
            Self::Relay => None,
        }
    }

    pub(super) fn still_valid(&self) -> bool {
        match self {
            Self::Container(lease) => lease.still_valid(),
            Self::Local(_) | Self::Relay => true,
        }
    }

    /// The caller's name in lines on the terminal.
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

    /// The rule that gave the caller its identity.
    pub(super) fn by(&self) -> By {
        match self {
            Self::Container(lease) => lease.grant().by,
            Self::Local(_) | Self::Relay => By::Default,
        }
    }

    /// The task of a container; programs on this machine have an empty one.
    pub(super) fn task(&self) -> &Task {
        static NONE: LazyLock<Task> = LazyLock::new(Task::default);
        match self {
            Self::Container(lease) => &lease.grant().task,
            Self::Local(_) | Self::Relay => &NONE,
        }
    }

    /// Resolves when the lease ends; never resolves for callers without a lease.
    pub(super) async fn cut(&self) {
        match self {
            Self::Container(lease) => lease.cut().await,
            Self::Local(_) | Self::Relay => std::future::pending().await,
        }
    }

    /// The caller's identity and, for a container, its id; `None` for the relay.
    pub(super) fn granted(&self) -> Option<(&Arc<Identity>, Option<&ContainerId>)> {
        match self {
            Self::Container(lease) => Some((&lease.grant().identity, Some(&lease.grant().container))),
            Self::Local(identity) => Some((identity, None)),
            Self::Relay => None,
        }
    }
}
