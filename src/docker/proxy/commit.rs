//! `docker commit` makes an image of a container; the proxy leaves our additions out of it. On another
//! machine, or in a later session, the address of an ended relay would keep clients from finding the metadata
//! server, and an image should not carry the name of this machine's project elsewhere.

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use serde_json::{Map, Value, json};

use super::Wiring;
use super::clouds;
use super::engine_client::{Refusal, Reply, collect};
use super::guard::judged;
use super::json as strict;
use super::json::rewritten;
use super::path::ApiTarget;
use super::state::Proxy;
use super::texts::{keys_in_body, length_of, text_of};
use super::upload::changes;
use super::wiring::{METADATA_VARIABLES, ROLE, host_entry, without_exceptions};
use crate::docker::cells::relay_beside;
use crate::docker::labels::{MODE_LABEL, SESSION_LABEL};
use crate::json::{fields, strings};

impl Proxy {
    /// Judges and forwards a commit. The files come from the container; the request can set environment,
    /// labels and command.
    pub(super) async fn commit(
        &self,
        mut parts: Parts,
        target: &ApiTarget,
        body: Incoming,
    ) -> Result<Reply, Refusal> {
        let bytes = collect(body).await?;
        let rules = self.guard.rules().clone();
        let mut found = changes(target, &rules);
        let uri = target.uri().map_err(Refusal::malformed)?;
        let mut body = match bytes.is_empty() {
            true => Value::Null,
            false => strict::parse(&bytes).map_err(Refusal::malformed)?,
        };
        strict::canonical(&mut body, strict::CREATE).map_err(Refusal::malformed)?;
        let text = text_of(&body);
        found.extend(judged(length_of(&text), move || keys_in_body(&text, &rules)).await?);
        self.guard.decide(self.guard.strictness(true), "commit", found)?;
        let source = target.query("container").unwrap_or_default();
        if let Some(id) = self.lookups.locate(source).await?
            && let Some(container) = self.lookups.container(id.as_str()).await?
        {
            let joined = self.network_of(&container).await?;
            leave_out(&mut body, &container, &joined, &self.settings.wiring);
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

    /// The container whose network `container` uses: the one that it joined, or itself. `Null`, which has no
    /// addresses, if the joined one is gone.
    async fn network_of(&self, container: &Value) -> Result<Value, Refusal> {
        let mode = container["HostConfig"]["NetworkMode"].as_str().unwrap_or_default();
        let Some(joined) = mode.strip_prefix("container:") else { return Ok(container.clone()) };
        match self.lookups.locate(joined).await? {
            Some(id) => {
                Ok(self.engine.look(&format!("/containers/{}/json", id.as_str())).await?.unwrap_or_default())
            }
            None => Ok(Value::Null),
        }
    }
}

/// Leaves our additions to `container` out of the image. The engine copies everything of the container that
/// the request does not name, so the request names each addition: a variable without a value is unset in
/// every container of the image. `joined` is the container whose network `container` uses.
fn leave_out(body: &mut Value, container: &Value, joined: &Value, wiring: &Wiring) {
    let config = &container["Config"];
    if !config["Labels"][SESSION_LABEL].is_string() || config["Labels"][ROLE.0] != ROLE.1 {
        return;
    }
    let env: Vec<&str> = strings(&config["Env"]).collect();
    let value = |name: &str| env.iter().rev().find_map(|set| set.strip_prefix(name)?.strip_prefix('='));
    let relays = relays(container, joined, value(METADATA_VARIABLES[0]), wiring);
    let ours = |name: &str, own: Option<&str>| {
        value(name).filter(|value| !value.is_empty() && Some(*value) == own).map(|_| name.to_owned())
    };
    let is_relay = |name: &&str| value(name).is_some_and(|value| relays.iter().any(|relay| relay == value));
    let mut unset: Vec<String> = METADATA_VARIABLES.into_iter().filter(is_relay).map(String::from).collect();
    let region = wiring.aws_region.as_deref();
    let set = |name: &&str| value(name).is_some_and(|value| clouds::sets(name, value, &relays, region));
    unset.extend(clouds::all().filter(set).map(String::from));
    // If the endpoint is not ours, the user has set both: the header alone does not show that we set it.
    if !unset.iter().any(|name| name == "IDENTITY_ENDPOINT") {
        unset.retain(|name| name != "IDENTITY_HEADER");
    }
    unset.extend(ours("CPL_MACHINE_IS_GCE", Some("YES")));
    unset.extend(ours("GOOGLE_CLOUD_PROJECT", wiring.project.as_deref()));
    unset.extend(ours("GOOGLE_CLOUD_QUOTA_PROJECT", wiring.quota_project.as_deref()));
    for name in ["NO_PROXY", "no_proxy"] {
        let Some(all) = value(name) else { continue };
        match without_exceptions(all, &wiring.names, &relays) {
            rest if rest.is_empty() => unset.push(name.into()),
            rest => unset.push(format!("{name}={rest}")),
        }
    }
    if !body.is_object() {
        *body = Map::new().into();
    }
    let mut all: Vec<String> = strings(&body["Env"]).map(String::from).collect();
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

/// The addresses of the metadata server that the proxy may have set in the container: that of Google's names
/// in its hosts entries, that of the session's relay, and those of the relays on the networks of its
/// addresses, or of the addresses of the container that it `joined`. `google` is the value of
/// `GCE_METADATA_HOST`; it counts if it is a path on loopback, or if the container joined another one, which
/// may be gone.
fn relays(container: &Value, joined: &Value, google: Option<&str>, wiring: &Wiring) -> Vec<String> {
    // A container that joined another one's network uses that one's hosts file and has no entries of ours.
    let hosts: Vec<&str> = strings(&container["HostConfig"]["ExtraHosts"]).collect();
    let in_hosts =
        wiring.names.iter().find_map(|name| hosts.iter().find_map(|entry| host_entry(entry, name)));
    let networks = fields(&joined["NetworkSettings"]["Networks"]);
    let addresses = networks.flat_map(|(_, endpoint)| {
        [&endpoint["IPAddress"], &endpoint["IPAMConfig"]["IPv4Address"]].map(Value::as_str)
    });
    let beside = addresses.flatten().filter_map(|at| Some(relay_beside(at.parse().ok()?).to_string()));
    let joins =
        container["HostConfig"]["NetworkMode"].as_str().is_some_and(|mode| mode.starts_with("container:"));
    let google = google.filter(|at| joins || clouds::is_loopback_path(at));
    let fixed = in_hosts.or(google).map(String::from).into_iter().chain([wiring.at.address.to_string()]);
    fixed.chain(beside).collect()
}

#[cfg(test)]
mod tests {
    use super::super::RelayAt;
    use super::*;

    fn wiring() -> Wiring {
        Wiring {
            at: RelayAt { address: std::net::Ipv4Addr::new(198, 18, 1, 1), container_credentials: true },
            names: ["metadata.google.internal", "metadata"].map(String::from).into(),
            project: Some("mine".into()),
            quota_project: Some("other".into()),
            aws_region: Some("eu-west-1".into()),
        }
    }

    /// The variables in the commit of a container with `env`, to which the session added nothing for Google.
    fn left_out(env: &[&str], network: &Value) -> Vec<String> {
        let container = json!({
            "Config": {"Env": env, "Labels": {SESSION_LABEL: "0123abcd", "kfp-creds.role": "task"}},
            "NetworkSettings": {"Networks": {"n": network}},
        });
        let mut body = Value::Null;
        leave_out(&mut body, &container, &container, &wiring());
        assert_eq!(body["Labels"], json!({SESSION_LABEL: "", MODE_LABEL: "", "kfp-creds.role": ""}));
        strings(&body["Env"]).map(String::from).collect()
    }

    /// Such a container has no addresses of its own, and if nothing was added for Google, no variable shows
    /// the relay.
    #[test]
    fn a_commit_of_a_joined_container_omits_our_variables() {
        let at = relay_beside("10.7.0.5".parse().unwrap());
        let secret = crate::loopback::capability().unwrap().expose().clone();
        let env = [
            format!("AWS_EC2_METADATA_SERVICE_ENDPOINT=http://{at}/"),
            format!("AWS_METADATA_ENDPOINT=http://{at}"),
            format!("IDENTITY_ENDPOINT=http://{at}/msi/token"),
            format!("IDENTITY_HEADER={secret}"),
            format!("NO_PROXY=own.example,{at}"),
            "AWS_REGION=eu-west-1".into(),
        ];
        let container = json!({
            "Config": {"Env": env, "Labels": {SESSION_LABEL: "0123abcd", "kfp-creds.role": "task"}},
            "HostConfig": {"NetworkMode": format!("container:{}", "a".repeat(64))},
            "NetworkSettings": {"Networks": {}},
        });
        // The joined container is stopped: only its configured address is left.
        let joined = json!({"NetworkSettings": {"Networks": {"n": {"IPAddress": "", "IPAMConfig": {"IPv4Address": "10.7.0.5"}}}}});
        let mut body = Value::Null;
        leave_out(&mut body, &container, &joined, &wiring());
        let mut found: Vec<&str> = strings(&body["Env"]).collect();
        found.sort_unstable();
        let names = ["AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_METADATA_ENDPOINT", "AWS_REGION"];
        assert_eq!(found[..3], names);
        assert_eq!(found[3..], ["IDENTITY_ENDPOINT", "IDENTITY_HEADER", "NO_PROXY=own.example"]);
    }

    #[test]
    fn a_commit_omits_our_variables_for_aws_and_azure() {
        let secret = crate::loopback::capability().unwrap().expose().clone();
        let relative = format!("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/v2/credentials/{secret}");
        let header = format!("IDENTITY_HEADER={secret}");
        let shared = [
            relative.as_str(),
            "AWS_REGION=eu-west-1",
            "AWS_DEFAULT_REGION=eu-west-1",
            "IDENTITY_ENDPOINT=http://198.18.1.1/msi/token",
            &header,
            "NO_PROXY=a,metadata,198.18.1.1,169.254.169.254,169.254.170.2",
        ];
        let mut found = left_out(&shared, &Value::Null);
        found.sort();
        let names = ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_DEFAULT_REGION", "AWS_REGION"];
        assert_eq!(found[..3], names);
        assert_eq!(found[3..], ["IDENTITY_ENDPOINT", "IDENTITY_HEADER", "NO_PROXY=a"]);

        // On a container's own network, the relay's address follows from the container's.
        let at = relay_beside("10.7.0.5".parse().unwrap());
        let imds = format!("AWS_EC2_METADATA_SERVICE_ENDPOINT=http://{at}/");
        for network in [json!({"IPAddress": "10.7.0.5"}), json!({"IPAMConfig": {"IPv4Address": "10.7.0.5"}})]
        {
            let found = left_out(&[&imds, &format!("NO_PROXY={at}")], &network);
            assert_eq!(found, ["AWS_EC2_METADATA_SERVICE_ENDPOINT", "NO_PROXY"]);
        }
        let full = format!("AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:81/{secret}/v2/credentials");
        let path = format!("AWS_METADATA_ENDPOINT=http://127.0.0.1:81/{secret}");
        let found = left_out(&[&full, &path], &Value::Null);
        assert_eq!(found, ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_METADATA_ENDPOINT"]);
    }

    #[test]
    fn a_commit_keeps_the_users_variables_for_aws_and_azure() {
        let theirs = [
            "AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:9911/creds",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/get-credentials",
            "AWS_METADATA_ENDPOINT=http://192.0.2.1",
            "AWS_REGION=us-east-1",
            "IDENTITY_ENDPOINT=http://127.0.0.1:41741/msi/token",
            "IDENTITY_HEADER=0123456789abcdef0123456789abcdef",
            "GCE_METADATA_HOST=metadata.example",
        ];
        assert_eq!(left_out(&theirs, &json!({"IPAddress": "10.7.0.5"})), Vec::<String>::new());
    }

    #[test]
    fn a_commit_omits_our_additions_and_keeps_other_settings() {
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
        leave_out(&mut body, &container, &container, &wiring());
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
        leave_out(&mut body, &plain, &plain, &wiring());
        assert_eq!(body, Value::Null, "of a container that is not ours");
    }
}
