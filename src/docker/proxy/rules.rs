//! The rules as they stand now. They are read anew while a session runs, so whoever judges takes the whole
//! of them once and keeps to it.

use std::sync::{Arc, PoisonError, RwLock};

use crate::kfp::Compiled;
use crate::mounts::Mount;
use crate::policy::Policy;
use crate::workload::Identity;

/// What the config says about who gets what.
#[derive(Clone, Debug)]
pub struct Rules {
    pub policy: Policy,
    /// All of the config, in the order of their names.
    pub identities: Vec<Arc<Identity>>,
    /// Added to containers that get an identity.
    pub mounts: Vec<Mount>,
    /// By which tasks are known that do not show which one they are.
    pub compiled: Arc<Compiled>,
    /// kfp tasks with a command run without the image's `ENTRYPOINT`.
    pub clear_entrypoint: bool,
}

/// Clones share it.
#[derive(Clone, Debug)]
pub struct LiveRules(Arc<RwLock<Arc<Rules>>>);

impl LiveRules {
    pub fn new(rules: Rules) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(rules))))
    }

    pub fn now(&self) -> Arc<Rules> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For containers that are created from now on. A lease has its identity until it ends.
    pub fn replace(&self, rules: Rules) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }
}
