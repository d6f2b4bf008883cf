//! The current rules. They are reloaded while a session runs, so each judgement takes one snapshot and keeps
//! to it.

use std::sync::{Arc, PoisonError, RwLock};

use crate::kfp::Compiled;
use crate::mounts::Mount;
use crate::policy::Policy;
use crate::workload::Identity;

/// The config's decisions on identities and mounts.
#[derive(Clone, Debug)]
pub struct Rules {
    pub policy: Policy,
    /// All identities of the config, sorted by name.
    pub identities: Vec<Arc<Identity>>,
    /// Mounts added to containers that get an identity.
    pub mounts: Vec<Mount>,
    /// Compiled pipelines: they identify tasks whose requests do not show which task they are.
    pub compiled: Arc<Compiled>,
    /// Whether kfp tasks with a command run without the image's `ENTRYPOINT`.
    pub clear_entrypoint: bool,
}

/// The rules in force. Clones share them.
#[derive(Clone, Debug)]
pub struct LiveRules(Arc<RwLock<Arc<Rules>>>);

impl LiveRules {
    pub fn new(rules: Rules) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(rules))))
    }

    pub fn now(&self) -> Arc<Rules> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the rules for containers created from now on. A lease keeps its identity until it ends.
    pub fn replace(&self, rules: Rules) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }
}
