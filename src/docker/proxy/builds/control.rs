//! The client's requests in `POST /grpc`: build arguments and labels, which stay in the image, and contexts
//! that the engine fetches itself.

use std::collections::HashMap;

use bytes::Bytes;

use super::context::MessageFindings;
use super::message::{FieldValue, Messages, PREFIX, Unread, delimited, fields, framed, once};
use crate::config::proxies::ClientProxies;
use crate::docker::proxy::proxies::of_build;
use crate::docker::proxy::texts::value as text;
use crate::guard::GuardRules;
use crate::guard::excepted::TextPart;

/// The longest request is one message.
pub(super) const LONGEST: usize = (16 << 20) + PREFIX;

/// The number of the field with the frontend's options, for calls that have one.
pub(super) fn options(path: &str) -> Option<u64> {
    match path {
        "/moby.buildkit.v1.Control/Solve" => Some(7),
        "/moby.buildkit.v1.frontend.LLBBridge/Solve" => Some(3),
        _ => None,
    }
}

/// With this call a client would open the tunnel for contexts inside this one.
pub(super) const SESSION: &str = "/moby.buildkit.v1.Control/Session";

/// Judges the options of a complete request, which are in the field `number`.
pub(super) fn judge(request: Bytes, number: u64, rules: &GuardRules) -> Result<MessageFindings, Unread> {
    let mut messages = Messages::default();
    messages.push(request)?;
    let mut told = MessageFindings::default();
    while let Some(message) = messages.next()? {
        for field in fields(&message[PREFIX..]) {
            match field? {
                (found, FieldValue::Bytes(entry)) if found == number => option(entry, rules, &mut told)?,
                _ => {}
            }
        }
    }
    told.unverified.dedup();
    Ok(told)
}

/// Adds the proxies of docker's own config for this engine as build arguments, if the request is for a
/// frontend. Of two entries with one key the later one counts (protobuf's maps).
pub(super) fn with_proxies(request: Bytes, path: &str, proxies: &ClientProxies) -> Bytes {
    let (Some(number), Some(frontend)) = (options(path), frontend(path)) else { return request };
    with_arguments(&request, number, frontend, proxies).unwrap_or(request)
}

/// The number of the field with the frontend's name.
fn frontend(path: &str) -> Option<u64> {
    match path {
        "/moby.buildkit.v1.Control/Solve" => Some(6),
        "/moby.buildkit.v1.frontend.LLBBridge/Solve" => Some(2),
        _ => None,
    }
}

/// `None` if nothing changes, or if the request is not exactly one message.
fn with_arguments(request: &Bytes, number: u64, frontend: u64, proxies: &ClientProxies) -> Option<Bytes> {
    let body = request.get(PREFIX..)?;
    let length = u32::from_be_bytes(request.get(1..PREFIX)?.try_into().ok()?);
    if proxies.engine.is_none() || request[0] != 0 || length as usize != body.len() {
        return None;
    }
    let (mut given, mut named) = (HashMap::new(), false);
    for field in fields(body) {
        match field.ok()? {
            (found, FieldValue::Bytes(name)) if found == frontend => named = !name.is_empty(),
            (found, FieldValue::Bytes(entry)) if found == number => {
                let (mut key, mut value) = (vec![], vec![]);
                for part in fields(entry) {
                    match part.ok()? {
                        (1, FieldValue::Bytes(bytes)) => key = bytes.to_vec(),
                        (2, FieldValue::Bytes(bytes)) => value = bytes.to_vec(),
                        _ => return None,
                    }
                }
                given.insert(String::from_utf8(key).ok()?, String::from_utf8_lossy(&value).into_owned());
            }
            _ => {}
        }
    }
    let changes = of_build(proxies, &|name| given.get(&format!("build-arg:{name}")).cloned());
    if !named || changes.is_empty() {
        return None;
    }
    let mut body = body.to_vec();
    for (name, value) in changes {
        // An added entry cannot delete another one, so an argument is removed by an empty value.
        let entry = [
            delimited(1, format!("build-arg:{name}").as_bytes()),
            delimited(2, value.unwrap_or_default().as_bytes()),
        ];
        body.extend(delimited(number, &entry.concat()));
    }
    framed(&body)
}

/// Judges one entry of a map, which protobuf encodes as a message of key and value.
fn option(entry: &[u8], rules: &GuardRules, told: &mut MessageFindings) -> Result<(), Unread> {
    let (mut key, mut value) = (None, None);
    for field in fields(entry) {
        match field? {
            (1, FieldValue::Bytes(bytes)) => once(&mut key, bytes)?,
            (2, FieldValue::Bytes(bytes)) => once(&mut value, bytes)?,
            _ => return Err(Unread("an option with an unknown field")),
        }
    }
    let (key, value) = (String::from_utf8_lossy(key.unwrap_or_default()), value.unwrap_or_default());
    let named = |what, part, name: &str| text(what, part, name, value, rules);
    match key.split_once(':') {
        Some(("build-arg", name)) => {
            told.found.extend(named("build argument", TextPart::BuildArgument, name))
        }
        Some(("label", name)) => told.found.extend(named("label", TextPart::Label, name)),
        _ if (key == "context" || key.starts_with("context:")) && is_fetched(value) => {
            told.unverified.push("a context that the engine fetches itself".into());
        }
        _ => {}
    }
    Ok(())
}

/// Whether the engine fetches the context from an address; otherwise the client sends it, or it is an image.
fn is_fetched(context: &[u8]) -> bool {
    const OTHERS: [&str; 6] =
        ["local:", "input:", "target:", "docker-image://", "oci-layout://", "http://buildkit-session/"];
    !context.is_empty() && !OTHERS.iter().any(|start| context.starts_with(start.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn request(number: u8, options: &[(&str, &str)]) -> Bytes {
        let entry = |(key, value): &(&str, &str)| {
            field(number, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat())
        };
        let message: Vec<u8> = options.iter().flat_map(entry).collect();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0][..], &length, &message].concat().into()
    }

    #[test]
    fn build_arguments_and_labels_are_searched_for_keys() {
        let rules = GuardRules::default();
        let aws = ["Zq3xUtnFEMI7K7MDENGb", "PxRfiCYz8h2kP0aQ1Lm9"].concat();
        for (key, value, found, unverified) in [
            ("build-arg:AWS_SECRET_ACCESS_KEY", aws.as_str(), 1, 0),
            ("label:AWS_SECRET_ACCESS_KEY", &aws, 1, 0),
            ("build-arg:VERSION", "1.2", 0, 0),
            ("filename", "Dockerfile", 0, 0),
            ("context", "https://x.example/a.git", 0, 1),
            ("context:more", "git@x.example:a.git", 0, 1),
            ("context:more", "docker-image://python:3", 0, 0),
            ("context:more", "local:more", 0, 0),
            ("context", "http://buildkit-session/u", 0, 0),
        ] {
            let told = judge(request(7, &[("target", "x"), (key, value)]), 7, &rules).unwrap();
            assert_eq!((told.found.len(), told.unverified.len()), (found, unverified), "{key}: {told:?}");
            assert!(!format!("{told:?}").contains(&aws));
            assert_eq!(
                judge(request(3, &[(key, value)]), 7, &rules),
                Ok(MessageFindings::default()),
                "another field"
            );
        }
        assert!(judge(Bytes::from_static(&[1, 0, 0, 0, 0]), 7, &rules).is_err());
    }

    #[test]
    fn proxies_become_build_arguments_of_a_frontend() {
        let entry =
            |value: &str| vec![("HTTP_PROXY", std::sync::Arc::new(crate::secret::Secret::new(value.into())))];
        let proxies = ClientProxies { engine: Some(entry("http://own")), default: entry("http://other") };
        let solve = "/moby.buildkit.v1.Control/Solve";
        let of = |frontend: &str, options: &[(&str, &str)]| {
            let bare = request(7, options);
            let body = [&bare[PREFIX..], &field(6, frontend.as_bytes())].concat();
            let length = u32::try_from(body.len()).unwrap().to_be_bytes();
            Bytes::from([&[0][..], &length, &body].concat())
        };
        let arguments = |request: Bytes| {
            let mut messages = Messages::default();
            messages.push(request).unwrap();
            let message = messages.next().unwrap().unwrap();
            let mut found = std::collections::BTreeMap::new();
            for one in fields(&message[PREFIX..]) {
                let (7, FieldValue::Bytes(entry)) = one.unwrap() else { continue };
                let parts: Vec<_> = fields(entry).map(Result::unwrap).collect();
                let [(1, FieldValue::Bytes(key)), (2, FieldValue::Bytes(value))] = parts[..] else {
                    panic!("{parts:?}")
                };
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                found.insert(text(key), text(value));
            }
            found
        };
        let wanted = [("build-arg:HTTP_PROXY", "http://own"), ("build-arg:http_proxy", "http://own")];
        let wanted = wanted.map(|(name, value)| (name.to_string(), value.to_string())).into();
        for given in [&[][..], &[("build-arg:HTTP_PROXY", "http://other")]] {
            assert_eq!(
                arguments(with_proxies(of("dockerfile.v0", given), solve, &proxies)),
                wanted,
                "{given:?}"
            );
        }
        let asked = of("dockerfile.v0", &[("build-arg:HTTP_PROXY", "x"), ("build-arg:http_proxy", "")]);
        let whole = of("", &[]);
        for same in [asked, whole] {
            assert_eq!(with_proxies(same.clone(), solve, &proxies), same);
            assert_eq!(with_proxies(same.clone(), "/moby.buildkit.v1.Control/Status", &proxies), same);
        }
        let none = ClientProxies { engine: None, ..proxies };
        assert_eq!(with_proxies(of("dockerfile.v0", &[]), solve, &none), of("dockerfile.v0", &[]));
    }
}
