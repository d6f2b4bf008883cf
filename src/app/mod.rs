//! The only wiring: builds the rooms, connects them, runs and ends them.

mod about;
mod activation;
mod cache;
mod check;
mod child;
mod clouds;
mod conformance;
mod contents;
#[cfg(test)]
mod contents_tests;
mod control;
mod credentials;
mod cut_off;
mod deny;
mod explain;
mod health;
mod held;
mod host_loopback;
mod inputs;
mod kill_switch;
mod name;
mod named;
mod networks;
mod page;
mod processes;
mod proxied;
mod reach;
mod ready;
mod relay_image;
mod reload;
mod run;
mod runtime_dir;
mod scan;
mod serve;
mod session;
mod sessions;
mod status;
mod tls;

pub use check::check;
pub use conformance::{TestedServer, conformance};
pub use credentials::google;
pub use cut_off::{CutOff, cut_off};
pub use explain::{explain, explain_pipeline};
pub use health::{health, health_of_listener};
pub use name::is_name;
pub use relay_image::relay_image;
pub use run::{RunOptions, run};
pub use scan::{ReportFormat, ScanOptions, scan};
pub use serve::{ServeOptions, listen, serve};
pub use status::status;
pub use tls::TlsOptions;

use std::fmt::Display;

use crate::config::Environment;
use crate::docker;
use crate::failure::{Failure, Reason};
use crate::source::SourceError;
use crate::source::http::proxy::Proxies;

impl From<docker::EngineError> for Failure {
    fn from(error: docker::EngineError) -> Self {
        Self::Engine(Reason::new(error.to_string(), error.remedy()))
    }
}

/// An operation that failed on this machine.
fn broken(what: &str, why: impl Display) -> Failure {
    Failure::NotPermitted(format!("{what}: {why}"))
}

fn no_credential(error: SourceError) -> Failure {
    Failure::NoCredential(error.into_reason())
}

/// Read as curl does: the lower-case name takes precedence.
fn proxies(env: &Environment) -> Proxies {
    let first = |names: &[&str]| names.iter().find_map(|name| env.variable(name)).map(String::from);
    Proxies { https: first(&["https_proxy", "HTTPS_PROXY"]), none_for: first(&["no_proxy", "NO_PROXY"]) }
}
