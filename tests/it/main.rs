//! Integration tests: one binary, one module per subject.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

#[path = "../support/fake_google.rs"]
mod fake_google;
mod minting;
