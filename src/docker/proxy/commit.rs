//! `docker commit`: an image of a container, without our additions. Elsewhere, and in a later session, the
//! address of an ended relay would keep clients from finding the metadata server there, and the name of this
//! machine's project should not spread.

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use serde_json::{Map, Value, json};

use super::clouds;
use super::engine_client::{Refusal, Reply, collect};
use super::guard::judged;
use super::images::changes;
use super::json as strict;
use super::json::rewritten;
use super::path::Target;
use super::state::Proxy;
use super::texts::{keys_in_body, length_of, text_of};
use super::wiring::{METADATA_VARIABLES, ROLE, host_entry, without_exceptions};
use crate::docker::labels::{MODE_LABEL, SESSION_LABEL};

impl Proxy {
    /// Judges and forwards a commit. The files are the container's; environment, labels and command can be
    /// the request's.
    pub(super) async fn commit(
        &self,
        mut parts: Parts,
        target: &Target,
        body: Incoming,
    ) -> Result<Reply, Refusal> {
        let bytes = collect(body).await?;
        let rules = self.settings.guard.rules.clone();
        let mut found = changes(target, &rules);
        let uri = target.uri().map_err(Refusal::malformed)?;
        let mut body = match bytes.is_empty() {
            true => Value::Null,
            false => strict::parse(&bytes).map_err(Refusal::malformed)?,
        };
        strict::canonical(&mut body, strict::CREATE).map_err(Refusal::malformed)?;
        let text = text_of(&body);
        found.extend(judged(length_of(&text), move || keys_in_body(&text, &rules)).await?);
        self.decide(self.strictness(true), "commit", found)?;
        let source = target.query("container").unwrap_or_default();
        if let Some(id) = self.locate(source).await?
            && let Some(container) = self.engine.look(&format!("/containers/{}/json", id.as_str())).await?
        {
            let wiring = &self.settings.wiring;
            let projects =
                [&wiring.project, &wiring.quota_project].map(|name| name.as_deref().unwrap_or_default());
            leave_out(&mut body, &container, projects, &wiring.names);
        }
        let request = match body {
            Value::Null => hyper::Request::from_parts(parts, super::engine_client::full(bytes)),
            body => {
                // A client that sends no body sends no content type either, and the engine requires one.
                parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                rewritten(parts, &body)
            }
        };
        self.engine.forward(request, uri, None).await
    }
}

/// Removes our additions to `container` from the image. The engine adds everything of the container that the
/// request does not name, so each addition is named: a variable without a value is unset in every container
/// of the image.
fn leave_out(body: &mut Value, container: &Value, projects: [&str; 2], names: &[String]) {
    let config = &container["Config"];
    if !config["Labels"][SESSION_LABEL].is_string() || config["Labels"][ROLE.0] != ROLE.1 {
        return;
    }
    let strings = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(Value::as_str).map(String::from).collect()
    };
    let env = strings(&config["Env"]);
    let value = |name: &str| env.iter().rev().find_map(|set| set.strip_prefix(name)?.strip_prefix('='));
    // A container that joined another one's network uses that one's hosts file.
    let hosts = strings(&container["HostConfig"]["ExtraHosts"]);
    let told = names.iter().find_map(|name| hosts.iter().find_map(|entry| host_entry(entry, name)));
    let Some(relay) = told.or_else(|| value(METADATA_VARIABLES[0])) else { return };
    let ours = |name: &str, own: &str| {
        value(name).filter(|value| !value.is_empty() && *value == own).map(|_| name.to_owned())
    };
    let mut unset: Vec<String> = METADATA_VARIABLES.iter().filter_map(|name| ours(name, relay)).collect();
    // Their values hold a secret that is worth nothing elsewhere.
    unset.extend(
        clouds::ours().filter(|name| value(name).is_some_and(|value| !value.is_empty())).map(String::from),
    );
    unset.extend(ours("CPL_MACHINE_IS_GCE", "YES"));
    unset.extend(ours("GOOGLE_CLOUD_PROJECT", projects[0]));
    unset.extend(ours("GOOGLE_CLOUD_QUOTA_PROJECT", projects[1]));
    for name in ["NO_PROXY", "no_proxy"] {
        let Some(all) = value(name) else { continue };
        match without_exceptions(all, names, relay) {
            rest if rest.is_empty() => unset.push(name.into()),
            rest => unset.push(format!("{name}={rest}")),
        }
    }
    if !body.is_object() {
        *body = Map::new().into();
    }
    let mut all = strings(&body["Env"]);
    let name = |set: &str| set.split('=').next().unwrap_or_default().to_owned();
    unset.retain(|set| !all.iter().any(|given| name(given) == name(set)));
    all.extend(unset);
    body["Env"] = all.into();
    if !body["Labels"].is_object() {
        body["Labels"] = Map::new().into();
    }
    for label in [SESSION_LABEL, MODE_LABEL, ROLE.0] {
        body["Labels"][label] = json!("");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_added_is_left_out_and_what_others_set_stays() {
        let names = ["metadata.google.internal".to_string(), "metadata".into()];
        let container = json!({
            "Config": {
                "Env": ["A=1", "GCE_METADATA_HOST=198.18.1.1", "GCE_METADATA_IP=own", "CPL_MACHINE_IS_GCE=YES",
                        "GOOGLE_CLOUD_PROJECT=mine", "GOOGLE_CLOUD_QUOTA_PROJECT=theirs",
                        "NO_PROXY=a,metadata.google.internal,metadata,198.18.1.1,169.254.169.254", "no_proxy=metadata,198.18.1.1"],
                "Labels": {SESSION_LABEL: "0123abcd", "kfp-creds.role": "task", "team": "a"},
            },
            "HostConfig": {"ExtraHosts": ["metadata.google.internal:198.18.1.1"]},
        });
        let mut body = json!({"Env": ["GOOGLE_CLOUD_PROJECT=given"], "Cmd": ["x"]});
        leave_out(&mut body, &container, ["mine", "other"], &names);
        assert_eq!(
            body["Env"],
            json!([
                "GOOGLE_CLOUD_PROJECT=given",
                "GCE_METADATA_HOST",
                "CPL_MACHINE_IS_GCE",
                "NO_PROXY=a",
                "no_proxy"
            ])
        );
        assert_eq!(body["Labels"], json!({SESSION_LABEL: "", MODE_LABEL: "", "kfp-creds.role": ""}));
        let mut plain = container;
        plain["Config"]["Labels"] = json!({"team": "a"});
        let mut body = Value::Null;
        leave_out(&mut body, &plain, ["mine", "other"], &names);
        assert_eq!(body, Value::Null, "of a container that is not ours");
    }
}
