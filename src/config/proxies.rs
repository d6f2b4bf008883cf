//! `proxies` in docker's own config: variables that docker's clients set in containers, by the engine's
//! address. Under kfp-creds clients see the address of our socket, so the engine's own entry is applied here.

use std::sync::Arc;

use serde_json::Value;

use super::Environment;
use super::endpoint::Endpoint;
use super::engine::{configuration, json};
use crate::json::fields;
use crate::secret::Secret;

/// An entry's key, and the variable that docker's clients set from it, in upper and lower case.
const VARIABLES: [(&str, &str); 5] = [
    ("httpProxy", "HTTP_PROXY"),
    ("httpsProxy", "HTTPS_PROXY"),
    ("ftpProxy", "FTP_PROXY"),
    ("noProxy", "NO_PROXY"),
    ("allProxy", "ALL_PROXY"),
];

/// One entry: variables (in upper case) with their values. A proxy's URL can hold a password.
pub type ProxyEntry = Vec<(&'static str, Arc<Secret<String>>)>;

/// All entries of `proxies`.
#[derive(Clone, Debug, Default)]
pub struct ProxyEntries(Vec<(String, ProxyEntry)>);

/// The settings for containers of one engine.
#[derive(Clone, Debug, Default)]
pub struct ClientProxies {
    /// `None` if no entry is for this engine: the clients have then already set what applies.
    pub engine: Option<ProxyEntry>,
    /// The variables that clients set for an address without an entry.
    pub default: ProxyEntry,
}

impl ProxyEntries {
    /// A file that is missing, or that clients could not read either, counts as empty.
    pub(super) fn read(env: &Environment) -> Self {
        let file = configuration(env).map(|directory| directory.join("config.json"));
        let said = file.and_then(|file| json(&file).ok().flatten()).unwrap_or_default();
        let entry = |(address, entry): (&String, &Value)| {
            let value = |key: &str| entry[key].as_str().filter(|value| !value.is_empty()).map(String::from);
            let set =
                VARIABLES.iter().filter_map(|(key, name)| Some((*name, Arc::new(Secret::new(value(key)?)))));
            (address.clone(), set.collect())
        };
        Self(fields(&said["proxies"]).map(entry).collect())
    }

    pub fn of(&self, engine: &Endpoint) -> ClientProxies {
        let find = |wanted: &str| {
            self.0.iter().find(|(address, _)| address == wanted).map(|(_, entry)| entry.clone())
        };
        let engine = match engine.socket() {
            Some(socket) => find(&format!("unix://{}", socket.to_string_lossy())),
            None => find(&engine.to_string()),
        };
        ClientProxies { engine, default: find("default").unwrap_or_default() }
    }
}
