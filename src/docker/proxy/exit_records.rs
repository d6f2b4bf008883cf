//! The recorded containers of a session and their exit codes, as `exit_codes` keeps them under its lock.

use std::collections::HashMap;

use tokio::sync::mpsc;

use super::removed::{NEVER_RAN, Removed, UNKNOWN};
use crate::workload::ContainerId;

#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) present: HashMap<ContainerId, Present>,
    pub(super) gone: Removed,
    pub(super) ends: Option<mpsc::UnboundedSender<ContainerId>>,
    /// How many containers were recorded so far.
    pub(super) recorded: u64,
}

/// A container that the engine still has, according to its events.
#[derive(Debug)]
pub(super) struct Present {
    pub(super) name: Option<Box<str>>,
    pub(super) recorded: u64,
    /// Whether it has run.
    pub(super) started: bool,
    /// The engine may start the container again by itself.
    pub(super) restarts: bool,
    /// The exit code of its last run; `None` while it runs, and before it runs.
    pub(super) code: Option<u32>,
    /// The code that lifecycle read, if `code` stays unknown; `None` after a start: it may be an earlier
    /// run's.
    pub(super) backup: Option<u32>,
}

impl Records {
    /// The name for a container that has it from now on. If the removal of an earlier holder was missed, that one
    /// is not found by it any more.
    pub(super) fn take_name(&mut self, name: &str) -> Box<str> {
        let name = name.trim_start_matches('/');
        let holders = self.present.values_mut().filter(|present| present.name.as_deref() == Some(name));
        holders.for_each(|present| present.name = None);
        name.into()
    }

    pub(super) fn ended(&mut self, container: &ContainerId, code: Option<u32>) {
        if let Some(present) = self.present.get_mut(container) {
            present.started = true;
            let Some(code) = code else { return };
            // The engine repeats events after a gap.
            if present.code.replace(code) == Some(code) {
                return;
            }
        } else if let Some(gone) = self.gone.code(container)
            && let Some(code) = code
            && valid((*gone).into()).is_none()
        {
            *gone = code;
        } else {
            return;
        }
        if let Some(ends) = &self.ends {
            // The listener ends with the session, so a failed send is ignored.
            let _ = ends.send(container.clone());
        }
    }

    pub(super) fn removed(&mut self, container: &ContainerId) {
        if let Some(present) = self.present.remove(container) {
            let code =
                if present.started { present.code.or(present.backup).unwrap_or(UNKNOWN) } else { NEVER_RAN };
            self.gone.push(container, present.name.as_deref(), code);
            if self.present.capacity() > 64 + self.present.len() * 4 {
                self.present.shrink_to(self.present.len() * 2);
            }
        }
    }
}

/// Podman 5.4 answers some waits with -1. No Linux container has a code above 255.
pub(super) fn valid(code: i64) -> Option<u32> {
    u32::try_from(code).ok().filter(|code| *code < NEVER_RAN)
}
