//! Tests that measure, or take something away from a session: they have the machine to themselves.

mod attaching;
mod death;
mod failing;
mod images;
mod libraries;
mod restart;
mod soak;
mod vm;
