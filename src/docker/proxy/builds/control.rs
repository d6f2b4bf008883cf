//! What a client asks for in `POST /grpc`: build arguments and labels, which stay in the image, and contexts that
//! the engine fetches itself.

use super::context::Told;
use super::message::{Messages, PREFIX, Unread, Value, fields, once};
use crate::guard::environment;

/// The longest request is one message.
pub(super) const LONGEST: usize = (16 << 20) + PREFIX;

/// The field of a request in which the frontend's options are, for the calls that have one.
pub(super) fn options(path: &str) -> Option<u64> {
    match path {
        "/moby.buildkit.v1.Control/Solve" => Some(7),
        "/moby.buildkit.v1.frontend.LLBBridge/Solve" => Some(3),
        _ => None,
    }
}

/// In this call a client would open the tunnel of contexts inside the other one.
pub(super) const SESSION: &str = "/moby.buildkit.v1.Control/Session";

/// Judges the options of a whole request, which are in the field `number`.
pub(super) fn judge(request: bytes::Bytes, number: u64) -> Result<Told, Unread> {
    let mut messages = Messages::default();
    messages.push(request)?;
    let mut told = Told::default();
    while let Some(message) = messages.next()? {
        for field in fields(&message[PREFIX..]) {
            match field? {
                (found, Value::Bytes(entry)) if found == number => option(entry, &mut told)?,
                _ => {}
            }
        }
    }
    told.unverified.dedup();
    Ok(told)
}

/// One entry of a map, which protobuf writes as a message of key and value.
fn option(entry: &[u8], told: &mut Told) -> Result<(), Unread> {
    let (mut key, mut value) = (None, None);
    for field in fields(entry) {
        match field? {
            (1, Value::Bytes(bytes)) => once(&mut key, bytes)?,
            (2, Value::Bytes(bytes)) => once(&mut value, bytes)?,
            _ => return Err(Unread("an option with an unknown field")),
        }
    }
    let (key, value) = (String::from_utf8_lossy(key.unwrap_or_default()), value.unwrap_or_default());
    let named = |what: &str, name: &str| {
        environment::named(name, value).map(|kind| format!("the {what} {name} holds {kind}"))
    };
    match key.split_once(':') {
        Some(("build-arg", name)) => told.found.extend(named("build argument", name)),
        Some(("label", name)) => told.found.extend(named("label", name)),
        _ if (key == "context" || key.starts_with("context:")) && is_fetched(value) => {
            told.unverified.push("a context that the engine fetches itself".into());
        }
        _ => {}
    }
    Ok(())
}

/// An address; everything else is the client's, or an image.
fn is_fetched(context: &[u8]) -> bool {
    const OTHERS: [&str; 6] =
        ["local:", "input:", "target:", "docker-image://", "oci-layout://", "http://buildkit-session/"];
    !context.is_empty() && !OTHERS.iter().any(|start| context.starts_with(start.as_bytes()))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

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
    fn arguments_and_labels_with_keys_are_found_and_fetched_contexts_said() {
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
            let told = judge(request(7, &[("target", "x"), (key, value)]), 7).unwrap();
            assert_eq!((told.found.len(), told.unverified.len()), (found, unverified), "{key}: {told:?}");
            assert!(!format!("{told:?}").contains(&aws));
            assert_eq!(judge(request(3, &[(key, value)]), 7), Ok(Told::default()), "another field");
        }
        assert!(judge(Bytes::from_static(&[1, 0, 0, 0, 0]), 7).is_err());
    }
}
