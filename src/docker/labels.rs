//! The labels by which sessions recognise their own objects.

/// On each of our networks and containers; the value is the session that created it.
pub const SESSION_LABEL: &str = "kfp-creds.session";
/// On each of our containers, `run` or `serve`: decides what a sweep does with it if a dead session left it
/// running. Networks do not have it, because the next session takes over a network that could not be removed.
pub const MODE_LABEL: &str = "kfp-creds.mode";
