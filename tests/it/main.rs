//! One test binary: what is tested through the outside of the program, and what holds for the whole tree.

#[cfg(test)]
mod architecture;
#[cfg(test)]
mod config;
#[cfg(test)]
mod dependencies;
#[cfg(test)]
mod engine;
#[cfg(test)]
mod golden_metadata;

#[cfg(test)]
#[path = "../support/mod.rs"]
mod support;
