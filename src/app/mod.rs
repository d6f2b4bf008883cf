//! The only wiring: rooms are built here, handed to each other, run and ended.

mod child;
mod host;
mod house;
mod run;
mod serve;

pub use run::run;
pub use serve::{listen, serve};

use std::fmt::Display;

use crate::docker;

/// Why a session could not begin or go on, by whose turn it is to act. `main` turns it into an exit code.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The config asks for something that cannot be.
    #[error("{0}")]
    Config(String),
    /// No engine, or not one that is served.
    #[error("{0}")]
    Engine(String),
    /// Nothing to mint with.
    #[error("{0}")]
    Credential(String),
    /// The command under `run` was not found.
    #[error("{0}")]
    NotFound(String),
    /// The command under `run` was found and cannot be executed.
    #[error("{0}")]
    NotExecutable(String),
    /// This machine's fault or ours: files, sockets, a relay that does not come back.
    #[error("{0}")]
    Broken(String),
}

impl From<docker::Error> for Failure {
    fn from(error: docker::Error) -> Self {
        Self::Engine(error.to_string())
    }
}

impl Failure {
    fn broken(what: &str, why: impl Display) -> Self {
        Self::Broken(format!("{what}: {why}"))
    }
}
