//! One test binary: what is tested through the outside of the program, and what holds for the whole tree.

mod architecture;
mod config;
mod dependencies;
mod golden_metadata;

#[path = "../support/mod.rs"]
mod support;
