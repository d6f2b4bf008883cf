//! Keys in a swarm's configs, secrets and services. Their containers belong to the swarm and get no identity
//! here, so a key in them is only reported, as in every container that is not ours.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use serde_json::Value;
use zeroize::Zeroizing;

use super::engine_client::{Refusal, Reply, collect};
use super::guard::judged;
use super::json;
use super::json::rewritten;
use super::path::ApiTarget;
use super::state::Proxy;
use super::texts::{FoundKey, labels, length_of, variables, words};
use crate::guard::excepted::TextPart;
use crate::guard::{GuardRules, Mode, what};

impl Proxy {
    pub(super) async fn swarm(
        &self,
        parts: Parts,
        target: ApiTarget,
        body: Incoming,
    ) -> Result<Reply, Refusal> {
        let mut body = json::parse(&collect(body).await?).map_err(Refusal::malformed)?;
        json::canonical(&mut body, json::SWARM).map_err(Refusal::malformed)?;
        if self.guard.rules().mode != Mode::Off {
            let name = body["Name"].as_str().unwrap_or("without a name");
            let mounts = serde_json::json!({ "Mounts": body["TaskTemplate"]["ContainerSpec"]["Mounts"] });
            // The node that runs the service can be another machine; only files at that path on this machine
            // can be scanned.
            let looked = self.mounts.scan(self.mounts.sources(&mounts).await?).await;
            let (text, rules) = (body.clone(), self.guard.rules().clone());
            let found = judged(length_of(&text), move || found(&text, &rules)).await?;
            let found = found.into_iter().chain(looked.finds).collect();
            self.guard.decide(Mode::Warn, &format!("{name}, of the swarm"), found)?;
        }
        let uri = target.uri().map_err(Refusal::malformed)?;
        self.engine.forward(rewritten(parts, &body), uri, None).await
    }
}

fn found(body: &Value, rules: &GuardRules) -> Vec<FoundKey> {
    let container = &body["TaskTemplate"]["ContainerSpec"];
    let mut found = variables(&container["Env"], rules);
    found.extend(words(&container["Command"], "Command", TextPart::Entrypoint, rules));
    found.extend(words(&container["Args"], "Args", TextPart::Command, rules));
    found.extend(labels(&body["Labels"], rules));
    found.extend(labels(&container["Labels"], rules));
    // Base64 per RFC 4648, as the API defines it.
    let data = body["Data"].as_str().and_then(|data| STANDARD.decode(data).ok()).map(Zeroizing::new);
    found.extend(data.and_then(|data| what(&data)).map(|kind| FoundKey::plain(format!("it holds {kind}"))));
    found
}
