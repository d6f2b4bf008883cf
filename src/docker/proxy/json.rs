//! Strict JSON for judged bodies, so that this program and the engine cannot parse different things.
//!
//! The engine (Go) accepts keys of any case, takes the last of several, and ignores what follows the
//! document. Here a duplicate key anywhere, or anything after the document, is refused. Where the engine
//! decodes into a struct, keys that differ only in case are refused, and a single key gets its canonical
//! spelling. Unknown keys, key order, strings and integers (up to 64 bits) stay as they are; other numbers
//! are written in their shortest form (`1e2` becomes `100.0`, `-0` becomes `-0.0`), but no field of a judged
//! body holds such a number.

use std::fmt;

use bytes::Bytes;
use hyper::http::request::Parts;
use hyper::{Request, header};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::engine_client::{Body, full};

/// Parses one document strictly. The error says what is wrong and never contains a value.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, String> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict.deserialize(&mut reader).map_err(reason)?;
    reader.end().map_err(reason)?;
    Ok(value)
}

fn reason(error: serde_json::Error) -> String {
    format!("the body is not strict JSON: {error}")
}

struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Strict)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(Strict)?;
            if map.insert(key, value).is_some() {
                return Err(de::Error::custom("a key stands twice in one object"));
            }
        }
        Ok(Value::Object(map))
    }
}

/// How the engine decodes a part of a body.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// Not inspected.
    Any,
    /// A struct: its judged fields, in their canonical spelling.
    Fields(&'static [(&'static str, Shape)]),
    List(&'static Shape),
    /// A free map: its keys are data.
    Entries(&'static Shape),
}

/// Brings `value` into the canonical spelling of `shape`.
pub(super) fn canonical(value: &mut Value, shape: Shape) -> Result<(), String> {
    match (value, shape) {
        (Value::Object(map), Shape::Fields(fields)) => rename(map, fields),
        (Value::Object(map), Shape::Entries(inner)) => {
            map.values_mut().try_for_each(|value| canonical(value, *inner))
        }
        (Value::Array(list), Shape::List(inner)) => {
            list.iter_mut().try_for_each(|value| canonical(value, *inner))
        }
        _ => Ok(()),
    }
}

fn rename(map: &mut Map<String, Value>, fields: &'static [(&'static str, Shape)]) -> Result<(), String> {
    let mut seen = std::collections::HashSet::new();
    let mut out = Map::with_capacity(map.len());
    for (key, mut value) in std::mem::take(map) {
        let folded = fold(&key);
        if !seen.insert(folded.clone()) {
            return Err("two keys of one object differ in case only".into());
        }
        match fields.iter().find(|(name, _)| fold(name) == folded) {
            Some((name, shape)) => {
                canonical(&mut value, *shape)?;
                out.insert((*name).to_string(), value);
            }
            None => {
                out.insert(key, value);
            }
        }
    }
    *map = out;
    Ok(())
}

/// Go's case folding of struct keys, for names of ASCII letters; two non-ASCII characters fold to letters,
/// too.
pub(super) fn fold(key: &str) -> String {
    key.chars()
        .map(|c| match c {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            other => other.to_ascii_lowercase(),
        })
        .collect()
}

const ANY: Shape = Shape::Any;

const ENDPOINT: Shape = Shape::Fields(&[
    ("IPAMConfig", Shape::Fields(&[("IPv4Address", ANY), ("IPv6Address", ANY), ("LinkLocalIPs", ANY)])),
    ("Links", ANY),
    ("Aliases", ANY),
    ("MacAddress", ANY),
    ("NetworkID", ANY),
    ("DriverOpts", ANY),
]);

const MOUNT: Shape = Shape::Fields(&[
    ("Type", ANY),
    ("Source", ANY),
    ("Target", ANY),
    ("ReadOnly", ANY),
    ("BindOptions", ANY),
    ("VolumeOptions", Shape::Fields(&[("DriverConfig", Shape::Fields(&[("Name", ANY), ("Options", ANY)]))])),
]);

/// Fields of the engine's HostConfig that are judged or decide what a container can reach. If a body has no
/// `HostConfig`, engines up to 24 also read them from the top level.
pub(super) const HOST_FIELDS: &[(&str, Shape)] = &[
    ("AutoRemove", ANY),
    ("Binds", ANY),
    ("CapAdd", ANY),
    ("CapDrop", ANY),
    ("Capabilities", ANY),
    ("Devices", ANY),
    ("ExtraHosts", ANY),
    ("IpcMode", ANY),
    ("Links", ANY),
    ("Mounts", Shape::List(&MOUNT)),
    ("NetworkMode", ANY),
    ("PidMode", ANY),
    ("Privileged", ANY),
    ("RestartPolicy", ANY),
    ("SecurityOpt", ANY),
    ("Sysctls", ANY),
    ("UTSMode", ANY),
    ("UsernsMode", ANY),
    ("VolumesFrom", ANY),
];

/// The body of `containers/create`.
pub(super) const CREATE: Shape = Shape::Fields(&[
    ("Hostname", ANY),
    ("Domainname", ANY),
    ("User", ANY),
    ("Env", ANY),
    ("Cmd", ANY),
    ("Entrypoint", ANY),
    ("Image", ANY),
    ("Volumes", ANY),
    ("WorkingDir", ANY),
    ("NetworkDisabled", ANY),
    ("Labels", ANY),
    ("MacAddress", ANY),
    ("HostConfig", Shape::Fields(HOST_FIELDS)),
    ("NetworkingConfig", Shape::Fields(&[("EndpointsConfig", Shape::Entries(&ENDPOINT))])),
    // Fields of HostConfig at the top level, where an old client puts them.
    ("Binds", ANY),
    ("CapAdd", ANY),
    ("CapDrop", ANY),
    ("Capabilities", ANY),
    ("IpcMode", ANY),
    ("Links", ANY),
    ("NetworkMode", ANY),
    ("PidMode", ANY),
    ("Privileged", ANY),
    ("Sysctls", ANY),
]);

/// The body of `containers/X/exec`.
pub(super) const EXEC: Shape = Shape::Fields(&[("Privileged", ANY), ("Env", ANY), ("Cmd", ANY)]);

/// A config, a secret or a service of a swarm.
pub(super) const SWARM: Shape = Shape::Fields(&[
    ("Name", ANY),
    ("Data", ANY),
    ("Labels", ANY),
    (
        "TaskTemplate",
        Shape::Fields(&[(
            "ContainerSpec",
            Shape::Fields(&[
                ("Env", ANY),
                ("Command", ANY),
                ("Args", ANY),
                ("Labels", ANY),
                ("Mounts", Shape::List(&MOUNT)),
            ]),
        )]),
    ),
]);

/// The body of `volumes/create`.
pub(super) const VOLUME: Shape = Shape::Fields(&[("Name", ANY), ("Driver", ANY), ("DriverOpts", ANY)]);

/// The body of `exec/X/start`.
pub(super) const EXEC_START: Shape = Shape::Fields(&[("Detach", ANY)]);

/// The body of `networks/X/connect`.
pub(super) const CONNECT: Shape = Shape::Fields(&[("Container", ANY), ("EndpointConfig", ENDPOINT)]);

/// The body of `networks/create`.
pub(super) const NETWORK: Shape = Shape::Fields(&[("Name", ANY), ("Labels", ANY), ("ConfigFrom", ANY)]);

/// Source and rest of `source:target[:options]`; `None` for a target alone, which has no source. The colon of
/// a drive letter belongs to the source.
pub(super) fn split_bind(bind: &str) -> Option<(&str, &str)> {
    let drive = matches!(bind.as_bytes(), [letter, b':', b'\\' | b'/', ..] if letter.is_ascii_alphabetic());
    let colon = bind[if drive { 2 } else { 0 }..].find(':')? + if drive { 2 } else { 0 };
    Some((&bind[..colon], &bind[colon + 1..]))
}

/// The request with the body as it was judged.
pub(super) fn rewritten(mut parts: Parts, body: &Value) -> Request<Body> {
    // This takes half the time of `to_string`, which goes through a formatter. Serialising a `Value` cannot
    // fail.
    let bytes = Bytes::from(serde_json::to_vec(body).unwrap_or_default());
    parts.headers.insert(header::CONTENT_LENGTH, bytes.len().into());
    parts.headers.remove(header::TRANSFER_ENCODING);
    Request::from_parts(parts, full(bytes))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_that_parsers_read_differently_is_refused() {
        for bad in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":{"b":1,"b":2}}"#,
            r#"[{"a":1,"\u0061":2}]"#,
            r#"{} {}"#,
            r#"{}x"#,
            "\u{feff}{}",
            r#"{"a":"\ud800"}"#,
            r#"{"a":NaN}"#,
            "",
            "{",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse(b"{\"a\":\"\xff\"}").is_err());
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(deep(100).as_bytes()).is_ok());
        assert!(parse(deep(100_000).as_bytes()).is_err());
    }

    #[test]
    fn unambiguous_json_stays_unchanged() {
        let text = r#"{"z":1,"Env":null,"a":[18446744073709551615,-9223372036854775808,1.5],"é":{"b":""}}"#;
        assert_eq!(serde_json::to_string(&parse(text.as_bytes()).unwrap()).unwrap(), text);
    }

    #[test]
    fn keys_that_differ_only_in_case_are_refused() {
        let check = |text: &str| {
            let mut value = parse(text.as_bytes()).unwrap();
            canonical(&mut value, CREATE).map(|()| value)
        };
        for bad in [
            r#"{"HostConfig":{},"hostconfig":{}}"#,
            "{\"HostConfig\":{},\"Ho\u{17f}tConfig\":{}}",
            r#"{"hostConfig":{"binds":[],"Binds":[]}}"#,
            "{\"HostConfig\":{\"Networ\u{212a}Mode\":\"a\",\"networkmode\":\"b\"}}",
            r#"{"NetworkingConfig":{"EndpointsConfig":{"n":{"Links":[],"links":[]}}}}"#,
            r#"{"HostConfig":{"Mounts":[{"Type":"bind","type":"bind"}]}}"#,
            r#"{"unknown":1,"Unknown":2}"#,
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        let mixed = "{\"ho\u{17f}tconfig\":{\"CAPADD\":[],\"Networ\u{212a}Mode\":\"x\"},\"Labels\":{\"A\":\"1\",\"a\":\"2\"},\
                     \"networkingconfig\":{\"endpointsconfig\":{\"N\":{\"links\":null},\"n\":null}}}";
        let labels = json!({"A": "1", "a": "2"});
        assert_eq!(
            check(mixed).unwrap(),
            json!({"HostConfig": {"CapAdd": [], "NetworkMode": "x"}, "Labels": labels,
                   "NetworkingConfig": {"EndpointsConfig": {"N": {"Links": null}, "n": null}}})
        );
    }
}
