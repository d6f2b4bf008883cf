//! What a session says of itself in `status`, apart from its containers.

use std::time::SystemTime;

use super::credentials::Credentials;
use crate::cloud::Cloud;
use crate::config::Config;
use crate::session::MetadataNetwork;

/// Properties of a session that never change.
#[derive(Clone, Debug)]
pub(super) struct About {
    pub(super) session: String,
    pub(super) mode: &'static str,
    pub(super) since: SystemTime,
    pub(super) engine: String,
    pub(super) network: String,
    pub(super) relay: String,
    /// Empty without Google.
    pub(super) project: String,
    pub(super) account: String,
    /// The kind of the credential for Google; empty without Google.
    pub(super) kind: String,
    /// The kinds of the others.
    pub(super) clouds: Vec<(Cloud, String)>,
}

impl About {
    pub(super) fn of(
        mode: &'static str,
        metadata: &MetadataNetwork,
        credentials: &Credentials,
        config: &Config,
    ) -> Self {
        Self {
            session: metadata.network.session.clone(),
            mode,
            since: SystemTime::now(),
            engine: metadata.engine.version().into(),
            network: metadata.network.name.clone(),
            relay: metadata.relay.to_string(),
            project: credentials.shown_project(config),
            account: credentials.source_account(config),
            kind: if credentials.has_google { credentials.kind() } else { String::new() },
            clouds: credentials.clouds.kinds(),
        }
    }
}
