//! The config's types for parsing, before values are checked; `keys` documents each key.

use std::collections::BTreeMap;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The config as written, with flags and environment merged over the file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawConfig {
    pub credentials: Option<RawCredentials>,
    pub credentials_file: Option<String>,
    pub impersonate: Option<String>,
    pub project: Option<String>,
    pub numeric_project: Option<i64>,
    pub email: Option<String>,
    pub quota_project: Option<String>,
    pub subject: Option<String>,
    pub zone: Option<String>,
    pub region: Option<String>,
    pub default: Option<String>,
    pub choose: Vec<String>,
    pub unknown: Option<String>,
    pub compiled_pipelines: Vec<String>,
    pub clear_entrypoint: Option<bool>,
    pub all: Option<bool>,
    pub keep: Option<bool>,
    pub engine: Option<String>,
    pub plain_tcp: Option<bool>,
    pub host_root: Option<String>,
    pub relay_image: Option<String>,
    pub relay_folder: Option<String>,
    pub log: Option<String>,
    pub isolation: Option<String>,
    pub network: RawNetwork,
    pub audit: RawAudit,
    pub metrics: RawMetrics,
    pub endpoints: RawEndpoints,
    pub guard: RawGuard,
    pub gcs: RawGcs,
    pub instance: RawInstance,
    pub attributes: BTreeMap<String, String>,
    pub project_attributes: BTreeMap<String, String>,
    pub identity: BTreeMap<String, RawIdentity>,
    pub rule: Vec<RawRule>,
    pub mount: Vec<RawMount>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawProvider {
    pub exec: Option<Vec<String>>,
    pub pass: Vec<String>,
    pub timeout: Option<String>,
    pub workload_identity_provider: Option<String>,
    pub service_account: Option<String>,
    pub token_from: Option<String>,
    pub token_field: Option<String>,
    pub token_headers: Vec<String>,
    pub token_method: Option<String>,
    pub token_audience: Option<String>,
    pub token_type: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawNetwork {
    pub pool: Option<String>,
    pub cells: Option<String>,
    pub host_loopback: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawGuard {
    pub mode: Option<String>,
    pub allow: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawGcs {
    pub fetch: Option<bool>,
    pub max_bytes: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawInstance {
    pub hostname: Option<String>,
    pub machine_type: Option<String>,
    pub description: Option<String>,
    pub tags: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawAudit {
    pub file: Option<String>,
    pub max_bytes: Option<i64>,
    pub keep: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawMetrics {
    pub listen: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawEndpoints {
    pub token: Option<String>,
    pub iam_credentials: Option<String>,
    pub iam: Option<String>,
    pub sts: Option<String>,
    pub storage: Option<String>,
    pub universe: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawIdentity {
    pub service_account: Option<String>,
    pub other_accounts: Vec<String>,
    pub scopes: Option<Vec<String>>,
    pub audiences: Vec<String>,
    pub lifetime: Option<String>,
    pub isolate: bool,
    pub strict: bool,
    pub rate: Option<i64>,
    pub subject: Option<String>,
    pub boundary: Vec<RawBoundary>,
    pub kill_switch: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawBoundary {
    pub bucket: Option<String>,
    pub permissions: Vec<String>,
    pub condition: RawCondition,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawCondition {
    pub title: Option<String>,
    pub description: Option<String>,
    pub expression: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawRule {
    pub pipeline: Option<String>,
    pub component: Option<String>,
    pub function: Option<String>,
    pub iteration: Option<String>,
    pub image: Option<String>,
    pub compose_project: Option<String>,
    pub compose_service: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub identity: Option<String>,
    pub choose: Vec<String>,
    pub join: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawMount {
    pub pipeline: Option<String>,
    pub component: Option<String>,
    pub function: Option<String>,
    pub iteration: Option<String>,
    pub image: Option<String>,
    pub compose_project: Option<String>,
    pub compose_service: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub source: Option<String>,
    pub tmpfs: bool,
    pub target: Option<String>,
    pub writable: bool,
}

/// `credentials`, which is a string or a table.
#[derive(Debug)]
pub(super) enum RawCredentials {
    Word(String),
    Table(Box<RawProvider>),
}

impl<'de> Deserialize<'de> for RawCredentials {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = RawCredentials;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a word or a table")
            }

            fn visit_str<E>(self, word: &str) -> Result<Self::Value, E> {
                Ok(RawCredentials::Word(word.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let table = RawProvider::deserialize(MapAccessDeserializer::new(map))?;
                Ok(RawCredentials::Table(Box::new(table)))
            }
        }

        from.deserialize_any(Either)
    }
}
