//! The `proxies` of docker's own config for the engine behind us. Clients look them up by the address that
//! they dial. Here they dial ours, so they take the entry `default`.

use hyper::header::{HeaderMap, USER_AGENT};
use serde_json::Value;

use crate::config::proxies::{ClientProxies, ProxyEntry};
use crate::json::strings;

/// User agents of clients that read that config.
const READERS: [&str; 3] = ["Docker-Client/", "docker-sdk-python/", "compose/"];

/// Sets the variables that the client would have set had it dialled the engine; never overrides the user's
/// own variables.
pub(super) fn apply(body: &mut Value, headers: &HeaderMap, proxies: &ClientProxies) {
    let Some(entry) = &proxies.engine else { return };
    // A malformed body is refused later.
    if !reads_config(headers) || !(body["Env"].is_null() || body["Env"].is_array()) {
        return;
    }
    let mut env: Vec<String> = strings(&body["Env"]).map(String::from).collect();
    let before = env.clone();
    for (name, value) in &proxies.default {
        for name in [(*name).to_string(), name.to_ascii_lowercase()] {
            env.retain(|set| set.split_once('=') != Some((&name, value.expose())));
        }
    }
    for (name, value) in entry {
        for name in [(*name).to_string(), name.to_ascii_lowercase()] {
            if !env.iter().any(|set| set.split('=').next() == Some(&name)) {
                env.push(format!("{name}={}", value.expose()));
            }
        }
    }
    if env != before {
        body["Env"] = env.into();
    }
}

/// Changes to the build arguments in `given`: a new value, or `None` to remove the argument. Clients set
/// build arguments by the same rules as variables.
pub(super) fn of_build(
    proxies: &ClientProxies,
    given: &dyn Fn(&str) -> Option<String>,
) -> Vec<(String, Option<String>)> {
    let Some(entry) = &proxies.engine else { return vec![] };
    let value = |of: &ProxyEntry, name: &str| {
        of.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.expose().clone())
    };
    let mut names: Vec<&str> = entry.iter().chain(&proxies.default).map(|(name, _)| *name).collect();
    names.sort_unstable();
    names.dedup();
    let names = names.into_iter().flat_map(|name| [name.to_string(), name.to_ascii_lowercase()]);
    let change = |name: String| {
        let (own, has) = (value(entry, &name), given(&name));
        let may_change = has.is_none() || has == value(&proxies.default, &name);
        (may_change && own != has).then_some((name, own))
    };
    names.filter_map(change).collect()
}

/// The corrected `buildargs` of the classic builder; `None` if they stay.
pub(super) fn build_arguments(
    given: Option<&str>,
    headers: &HeaderMap,
    proxies: &ClientProxies,
) -> Option<String> {
    if !reads_config(headers) {
        return None;
    }
    let mut all: Value = serde_json::from_str(given.unwrap_or("{}")).ok()?;
    let arguments = all.as_object_mut()?;
    // An argument without a value takes the builder's value; it counts as set by the user.
    let has = |name: &str| arguments.get(name).map(|value| value.as_str().unwrap_or_default().to_owned());
    let changes = of_build(proxies, &has);
    if changes.is_empty() {
        return None;
    }
    for (name, value) in changes {
        match value {
            Some(value) => drop(arguments.insert(name, value.into())),
            None => drop(arguments.remove(&name)),
        }
    }
    Some(all.to_string())
}

fn reads_config(headers: &HeaderMap) -> bool {
    let client = headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    READERS.iter().any(|reader| client.contains(reader))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::secret::Secret;

    fn applied(client: &'static str, env: Value, proxies: &ClientProxies) -> Value {
        let mut body = json!({ "Image": "i", "Env": env });
        let headers = HeaderMap::from_iter([(USER_AGENT, client.parse().unwrap())]);
        apply(&mut body, &headers, proxies);
        body["Env"].take()
    }

    #[test]
    fn the_entry_of_this_engine_replaces_the_default_proxies() {
        let entry = |value: &str| vec![("HTTP_PROXY", std::sync::Arc::new(Secret::new(value.to_string())))];
        let proxies = ClientProxies { engine: Some(entry("http://own")), default: entry("http://other") };
        let own = json!(["HTTP_PROXY=http://own", "http_proxy=http://own"]);
        for client in ["Docker-Client/28.2.2 (linux)", "docker-sdk-python/7.1.0", "compose/v2.30"] {
            assert_eq!(applied(client, Value::Null, &proxies), own, "{client}");
            let taken = json!(["HTTP_PROXY=http://other", "http_proxy=http://other"]);
            assert_eq!(applied(client, taken, &proxies), own, "{client}");
        }
        let asked = json!(["A=1", "HTTP_PROXY=http://asked", "http_proxy"]);
        assert_eq!(applied("Docker-Client/28.2.2", asked.clone(), &proxies), asked);
        assert_eq!(applied("curl/8", Value::Null, &proxies), Value::Null, "who reads no config");
        let none = ClientProxies { engine: None, ..proxies };
        assert_eq!(applied("Docker-Client/28.2.2", asked.clone(), &none), asked);
    }

    #[test]
    fn build_arguments_are_those_that_the_client_would_have_set() {
        let entry = |value: &str| vec![("HTTP_PROXY", std::sync::Arc::new(Secret::new(value.to_string())))];
        let mut proxies = ClientProxies { engine: Some(entry("http://own")), default: entry("http://other") };
        let headers = HeaderMap::from_iter([(USER_AGENT, "Docker-Client/28.2.2 (linux)".parse().unwrap())]);
        let built = |given: Option<&str>, proxies: &ClientProxies| {
            let built = build_arguments(given, &headers, proxies)?;
            Some(serde_json::from_str::<Value>(&built).unwrap())
        };
        let own = json!({"HTTP_PROXY": "http://own", "http_proxy": "http://own"});
        assert_eq!(built(None, &proxies), Some(own.clone()));
        let taken = r#"{"HTTP_PROXY": "http://other", "http_proxy": "http://other"}"#;
        assert_eq!(built(Some(taken), &proxies), Some(own));
        let asked = r#"{"A": "1", "HTTP_PROXY": "http://asked", "http_proxy": null}"#;
        assert_eq!(built(Some(asked), &proxies), None);
        assert_eq!(built(Some("[]"), &proxies), None);
        let curl = HeaderMap::from_iter([(USER_AGENT, "curl/8".parse().unwrap())]);
        assert_eq!(build_arguments(None, &curl, &proxies), None);
        // The engine's entry has none of the values that the client took from `default`.
        proxies.engine = Some(vec![]);
        assert_eq!(built(Some(taken), &proxies), Some(json!({})));
        proxies.engine = None;
        assert_eq!(built(Some(taken), &proxies), None);
    }
}
