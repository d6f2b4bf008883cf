#[cfg(test)]
#[path = "../support/golden.rs"]
mod golden;
#[cfg(test)]
mod golden_metadata;
