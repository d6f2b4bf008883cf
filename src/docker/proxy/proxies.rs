//! The `proxies` of docker's own config for the engine behind us. Its clients look them up by the address that they
//! dial, which is ours here, and so take those of `default`.

use hyper::header::{HeaderMap, USER_AGENT};
use serde_json::Value;

use super::look::strings;
use crate::config::proxies::ClientProxies;

/// Clients that read that config, by what they call themselves.
const READERS: [&str; 3] = ["Docker-Client/", "docker-sdk-python/", "compose/"];

/// Sets what the client would have set had it dialled the engine, and never over what the person asked for.
pub(super) fn apply(body: &mut Value, headers: &HeaderMap, proxies: &ClientProxies) {
    let Some(entry) = &proxies.engine else { return };
    let client = headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // A body of another form is refused later.
    if !READERS.iter().any(|reader| client.contains(reader))
        || !(body["Env"].is_null() || body["Env"].is_array())
    {
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
    fn the_engines_own_entry_replaces_what_a_client_took_from_default() {
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
}
