#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests fail by panicking, print measurements, wait for other processes, and are told by the environment where the engine is"
)]

#[path = "../support/fake_engine.rs"]
mod fake_engine;
mod proxy;
mod proxy_engine;
#[path = "../support/stand.rs"]
mod stand;
