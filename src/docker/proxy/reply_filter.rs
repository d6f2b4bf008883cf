//! Hides our objects from clients: relays and our networks in lists, and our network when a client inspects
//! an attached container. Otherwise scripts would take the first of two networks, concatenate two addresses,
//! and remove whatever `ps` lists. If a container has a bridge of ours instead of the default bridge, clients
//! see it as the default bridge. `kfp-creds` itself sees everything, because it asks the engine and not this
//! proxy. Clients can still inspect our objects by name.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{StatusCode, header};
use memchr::memmem;
use serde_json::Value;

use super::engine_client::{BODY_BOUND, Refusal, Reply, full};
use super::lookups::{Lookups, NETWORKS};
use super::path::Route;
use super::reserved::{Hit, Reserved, ReservedKind};
use crate::docker::bridge::{DEFAULT_BRIDGE, is_named_as_bridge};
use crate::docker::image::ROLE_LABEL;
use crate::docker::labels::SESSION_LABEL;

/// Removes our objects from the engine's answers.
#[derive(Debug)]
pub(super) struct ReplyFilter {
    lookups: Lookups,
    reserved: Reserved,
    /// Ids of networks that the engine confirmed as a session's.
    our_networks: Mutex<HashSet<String>>,
}

impl ReplyFilter {
    pub(super) fn new(lookups: Lookups, reserved: Reserved) -> Self {
        Self { lookups, reserved, our_networks: Mutex::default() }
    }

    pub(super) async fn hide_in_list(&self, route: &Route, reply: Reply) -> Result<Reply, Refusal> {
        match route {
            Route::Containers => self.hide_in_containers(reply).await,
            _ => self.hide_in_networks(reply).await,
        }
    }

    /// `GET /containers/json`.
    async fn hide_in_containers(&self, reply: Reply) -> Result<Reply, Refusal> {
        self.changed(reply, async |all| {
            let Some(list) = all.as_array_mut() else { return false };
            let before = list.len();
            list.retain(|found| !self.is_relay(found));
            let mut hidden = list.len() != before;
            for found in list {
                let wired = found["Labels"][SESSION_LABEL].is_string();
                hidden |= self.hide_networks(&mut found["NetworkSettings"], wired).await;
            }
            hidden
        })
        .await
    }

    /// `GET /containers/X/json`.
    pub(super) async fn hide_in_container(&self, reply: Reply) -> Result<Reply, Refusal> {
        self.changed(reply, async |found| {
            let named = found["Name"].as_str().unwrap_or_default();
            if self.reserved.hit(ReservedKind::Container, named) == Hit::Sure {
                return false;
            }
            let wired = found["Config"]["Labels"][SESSION_LABEL].is_string();
            self.hide_networks(&mut found["NetworkSettings"], wired).await
        })
        .await
    }

    /// `GET /networks`. Neither a client of our proxies nor an image can set the label on a network.
    async fn hide_in_networks(&self, reply: Reply) -> Result<Reply, Refusal> {
        self.changed(reply, async |all| {
            let Some(list) = all.as_array_mut() else { return false };
            let before = list.len();
            list.retain(|network| !network["Labels"][SESSION_LABEL].is_string());
            list.len() != before
        })
        .await
    }

    /// Recognises our relay by its id, another session's by its label and network: an image could have the
    /// label alone.
    fn is_relay(&self, found: &Value) -> bool {
        let id = found["Id"].as_str().unwrap_or_default();
        let networks = found["NetworkSettings"]["Networks"].as_object();
        self.reserved.hit(ReservedKind::Container, id) == Hit::Sure
            || (found["Labels"][ROLE_LABEL] == "relay"
                && networks
                    .is_some_and(|all| !all.is_empty() && all.keys().all(|name| name.starts_with(NETWORKS))))
    }

    /// Hides our networks and link-local addresses; returns whether there were any. `wired`: whether the
    /// container has a session's label.
    async fn hide_networks(&self, settings: &mut Value, wired: bool) -> bool {
        let Some(networks) = settings["Networks"].as_object_mut() else { return false };
        let like_ours: Vec<(String, String)> = networks.iter().filter_map(like_ours).collect();
        let mut hidden = false;
        let mut bridge = None;
        for (name, id) in like_ours {
            if self.is_our_network(&name, &id).await {
                let endpoint = networks.shift_remove(&name);
                if is_named_as_bridge(&name) {
                    bridge = endpoint;
                }
                hidden = true;
            }
        }
        if let Some(mut endpoint) = bridge.filter(|_| !networks.contains_key(DEFAULT_BRIDGE)) {
            clear_link_local(&mut endpoint);
            networks.insert(DEFAULT_BRIDGE.into(), endpoint.clone());
            show_at_the_top(settings, &endpoint);
        } else if let Some(endpoint) = networks.get_mut(DEFAULT_BRIDGE).filter(|_| wired) {
            hidden |= clear_link_local(endpoint);
        }
        hidden
    }

    /// Whether this is a network of ours. A container that was never started shows no network id, so the
    /// engine is asked by name. Confirmed ids are cached.
    async fn is_our_network(&self, name: &str, id: &str) -> bool {
        let reference = if id.is_empty() { name } else { id };
        if self.known_networks().contains(reference) {
            return true;
        }
        let ours = self.lookups.is_ours(ReservedKind::Network, reference).await.unwrap_or(false);
        // The engine may reuse a name, but never an id.
        if ours && !id.is_empty() {
            self.known_networks().insert(id.into());
        }
        ours
    }

    fn known_networks(&self) -> MutexGuard<'_, HashSet<String>> {
        self.our_networks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The engine's answer, rewritten if `change` returns true, otherwise byte for byte.
    async fn changed(
        &self,
        reply: Reply,
        change: impl AsyncFnOnce(&mut Value) -> bool,
    ) -> Result<Reply, Refusal> {
        if reply.status() != StatusCode::OK {
            return Ok(reply);
        }
        let (mut head, body) = reply.into_parts();
        let broken =
            |_| Refusal::new(StatusCode::BAD_GATEWAY, "the engine's answer ended early or is too large");
        let bytes: Bytes = Limited::new(body, BODY_BOUND).collect().await.map_err(broken)?.to_bytes();
        if memmem::find(&bytes, NETWORKS.as_bytes()).is_some()
            && let Ok(mut value) = serde_json::from_slice::<Value>(&bytes)
            && change(&mut value).await
            && let Ok(rewritten) = serde_json::to_vec(&value)
        {
            head.headers.remove(header::CONTENT_LENGTH);
            return Ok(Reply::from_parts(head, full(rewritten.into())));
        }
        Ok(Reply::from_parts(head, full(bytes)))
    }
}

/// Removes the link-local address, which only we assign, from the settings of an endpoint; false if there was
/// none.
fn clear_link_local(endpoint: &mut Value) -> bool {
    let Some(settings) = endpoint["IPAMConfig"].as_object_mut() else { return false };
    if settings.shift_remove("LinkLocalIPs").is_none() {
        return false;
    }
    if settings.is_empty() {
        endpoint["IPAMConfig"] = Value::Null;
    }
    true
}

/// Fills in what engines up to 28 show of the default bridge outside the list of networks.
fn show_at_the_top(settings: &mut Value, endpoint: &Value) {
    const SHOWN: [&str; 5] = ["EndpointID", "Gateway", "IPAddress", "IPPrefixLen", "MacAddress"];
    for name in SHOWN {
        if let Some(shown) = settings.get_mut(name)
            && let Some(value) = endpoint.get(name)
        {
            *shown = value.clone();
        }
    }
}

/// Name and id of a network whose name begins like the names of ours.
fn like_ours((name, endpoint): (&String, &Value)) -> Option<(String, String)> {
    let id = endpoint["NetworkID"].as_str().unwrap_or_default();
    name.starts_with(NETWORKS).then(|| (name.clone(), id.to_owned()))
}
