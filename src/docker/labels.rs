//! The labels by which sessions know their own.

/// On every network of ours; the value is the session that made it.
pub const SESSION_LABEL: &str = "kfp-creds.session";
/// On every container of ours, `run` or `serve`: what a sweep does with it where a dead session left it running.
/// Not on networks, for one that had to stay is taken over by the next session, whichever that is.
pub const MODE_LABEL: &str = "kfp-creds.mode";
