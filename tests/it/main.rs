//! One test binary: tests of the program from outside, and of the whole tree.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests fail by panicking, print measurements, wait for other processes, and are told by the environment where the engine is"
)]

mod architecture;
mod aws_source;
mod azure_source;
mod builds;
mod check;
mod ci;
mod circles;
mod clouds_config;
mod clouds_served;
mod config;
mod conformance;
mod dependencies;
mod docs;
mod enforced;
mod engine;
mod engine_calls;
mod explain;
mod failures;
mod failures_machine;
mod failures_upstreams;
mod federation;
mod figures;
mod fuzz;
mod golden_clouds;
mod golden_metadata;
mod golden_sources;
mod golden_wire;
mod google_auth;
mod guard_notations;
mod guard_set;
mod inputs;
mod keys;
mod leaks;
mod leaks_federated;
mod leaks_input;
mod libraries;
mod lifecycle;
mod links;
mod minting;
mod names;
mod panics;
mod proxy;
mod reference;
mod release;
mod repeats;
mod serving;
mod sources_files;
mod sources_host;
mod stampede;
mod storage;
mod suspend;
mod tls;
mod verbosity;

#[path = "../support/mod.rs"]
mod support;
