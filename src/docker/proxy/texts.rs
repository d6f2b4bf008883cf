//! Texts of a request that reach a container or stay in an image: variables, commands, labels, build
//! arguments. Finds keys in them and writes the report.

use std::collections::HashSet;

use serde_json::Value;

use crate::guard::environment::Held;
use crate::guard::excepted::{Exception, TextPart, path_entry, word};
use crate::guard::found::ArchivedFind;
use crate::guard::{Find, GuardRules, environment, what};
use crate::json::{fields, one_or_more, strings};

/// Most keys described for one request; the scan of its mounts stops after as many.
pub(super) const MOST: usize = 4;

/// A key that a request would bring into a container or an image.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct FoundKey {
    /// Description and location, for a person.
    pub(super) text: String,
    /// The entry of `guard.allow` that would permit it; `None` if there is none.
    entry: Option<String>,
}

impl FoundKey {
    /// A key that no entry can permit.
    pub(super) fn plain(text: String) -> Self {
        Self { text, entry: None }
    }

    /// A key in a file of the host.
    pub(super) fn in_file(text: String, find: &Find) -> Self {
        Self { text, entry: Some(path_entry(&find.place)) }
    }

    /// A key in an object of Cloud Storage.
    pub(super) fn in_object(text: String, bucket: &str, name: &str) -> Self {
        Self { text, entry: Some(TextPart::Object.entry(&format!("//{bucket}/{name}"))) }
    }

    /// A key in an archive, a build context or the config of an image.
    pub(super) fn inside(text: String, found: &ArchivedFind) -> Self {
        let entry = match &found.exception {
            Exception::Path => Some(path_entry(found.name.trim_start_matches("./").trim_start_matches('/'))),
            Exception::Named(named) => Some(named.part.entry(&named.name)),
            Exception::None => None,
        };
        Self { text, entry }
    }

    fn named(text: String, part: TextPart, name: &str) -> Self {
        Self { text, entry: Some(part.entry(name)) }
    }

    /// `what` says what has the name (a variable, a label). `None` if the operator has excepted the name.
    fn held(what: &str, part: TextPart, held: &Held<'_>, rules: &GuardRules) -> Option<Self> {
        let text = format!("the {what} {} holds {}", held.shown, held.kind);
        // A name that may not be shown may not be in an entry either.
        let entry = held.plain.then(|| part.entry(held.name));
        (!rules.allows_named(part, held.name)).then_some(Self { text, entry })
    }
}

const ADVICE: &str = "leave it out (containers with an identity get tokens without a key)";

/// The reason for refusing a request with these keys, and the line of the config that would let it pass. Not
/// all keys are described, but the line has the entries of all.
pub(super) fn refusing(keys: &[FoundKey]) -> String {
    let texts: Vec<&str> = keys.iter().take(MOST).map(|key| key.text.as_str()).collect();
    let (mut entries, mut seen) = (vec![], HashSet::new());
    for entry in keys.iter().filter_map(|key| key.entry.as_deref()) {
        if seen.insert(entry) {
            entries.push(quoted(entry));
        }
    }
    let texts = texts.join("; ");
    match entries.is_empty() {
        true => format!("{texts}; {ADVICE}"),
        false => format!(
            "{texts}; {ADVICE}, or except it under [guard] in kfp-creds.toml: allow = [{}]",
            entries.join(", ")
        ),
    }
}

/// `text` as a basic string of TOML, which has all of JSON's escapes.
fn quoted(text: &str) -> String {
    Value::from(text).to_string().replace('\x7f', "\\u007f")
}

/// The parts of the body that reach a container as text.
pub(super) fn text_of(body: &Value) -> Value {
    let mut text = Value::Null;
    for part in ["Env", "Cmd", "Entrypoint", "Labels"] {
        text[part] = body[part].clone();
    }
    text
}

/// Bytes of all strings in `value`.
pub(super) fn length_of(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(length_of).sum(),
        Value::Object(map) => map.iter().map(|(name, value)| name.len() + length_of(value)).sum(),
        _ => 0,
    }
}

/// Keys in the parts that reach the container as text.
pub(super) fn keys_in_body(body: &Value, rules: &GuardRules) -> Vec<FoundKey> {
    let mut found = variables(&body["Env"], rules);
    found.extend(words(&body["Cmd"], "Cmd", TextPart::Command, rules));
    found.extend(words(&body["Entrypoint"], "Entrypoint", TextPart::Entrypoint, rules));
    found.extend(labels(&body["Labels"], rules));
    found
}

pub(super) fn variables(list: &Value, rules: &GuardRules) -> Vec<FoundKey> {
    strings(list).filter_map(|entry| variable("variable", entry, rules)).collect()
}

/// `what` says whose variable it is.
pub(super) fn variable(what: &str, entry: &str, rules: &GuardRules) -> Option<FoundKey> {
    FoundKey::held(what, TextPart::Variable, &environment::variable(entry)?, rules)
}

pub(super) fn labels(map: &Value, rules: &GuardRules) -> Vec<FoundKey> {
    values(map, "label", TextPart::Label, rules)
}

pub(super) fn values(map: &Value, what: &str, part: TextPart, rules: &GuardRules) -> Vec<FoundKey> {
    let all = fields(map);
    all.filter_map(|(name, text)| value(what, part, name, text.as_str()?.as_bytes(), rules)).collect()
}

/// One label or build argument.
pub(super) fn value(
    what: &str,
    part: TextPart,
    name: &str,
    value: &[u8],
    rules: &GuardRules,
) -> Option<FoundKey> {
    FoundKey::held(what, part, &environment::pair(name, value)?, rules)
}

/// `command` is a list of words, or one text; `place` is its key in the request.
pub(super) fn words(command: &Value, place: &str, part: TextPart, rules: &GuardRules) -> Vec<FoundKey> {
    let all: Vec<&str> = one_or_more(command).collect();
    let found = all.iter().enumerate().filter_map(|(at, text)| {
        let kind = what(text.as_bytes())?;
        let name = word(&all, at);
        let text = format!("{place} holds {kind} at {name}");
        (!rules.allows_named(part, &name)).then(|| FoundKey::named(text, part, &name))
    });
    found.collect()
}

/// One instruction of a Dockerfile in a commit or an import.
pub(super) fn instruction(text: &str, rules: &GuardRules) -> Option<FoundKey> {
    let held = environment::instruction(text)?;
    let label = text.trim_start().get(..5).is_some_and(|word| word.eq_ignore_ascii_case("label"));
    let part = if label { TextPart::Label } else { TextPart::Variable };
    FoundKey::held("change of", part, &held, rules)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::guard::SecretKind;
    use crate::guard::excepted::Named;

    fn secret() -> String {
        ["wJalrXUtnFEMI7K7MDENGbPxR", "fiCYz8h2kP0aQ1L"].concat()
    }

    fn allowing(entries: &[&str]) -> GuardRules {
        let named = entries.iter().map(|entry| Named::parse(entry).unwrap().unwrap());
        GuardRules { named: named.collect(), ..GuardRules::default() }
    }

    #[test]
    fn the_printed_exception_excepts_only_what_it_names() {
        let aws = secret();
        let setting = format!("aws_secret_access_key = {aws}");
        let body = json!({
            "Env": [format!("AWS_SECRET_ACCESS_KEY={aws}"), format!("OTHER={setting}")],
            "Cmd": ["sh", "-c", format!("export X; {setting}"), format!("--conf={setting}"), setting],
            "Entrypoint": [setting],
            "Labels": {"team": setting},
        });
        let keys = keys_in_body(&body, &GuardRules::default());
        let entries: Vec<String> = keys.iter().map(|key| key.entry.clone().unwrap()).collect();
        let all = [
            "env:AWS_SECRET_ACCESS_KEY",
            "env:OTHER",
            "command:-c",
            "command:--conf",
            "command:5",
            "entrypoint:1",
            "label:team",
        ];
        assert_eq!(entries, all);
        for entry in all {
            let left = keys_in_body(&body, &allowing(&[entry]));
            assert_eq!(left.len(), keys.len() - 1, "{entry}");
            assert!(!left.iter().any(|key| key.entry.as_deref() == Some(entry)), "{entry}");
            let line = refusing(&keys[entries.iter().position(|one| one == entry).unwrap()..][..1]);
            assert!(line.ends_with(&format!("allow = [\"{entry}\"]")), "{line}");
        }
        assert_eq!(keys_in_body(&body, &allowing(&all)), []);
        // An entry of another kind permits nothing.
        let wrong = ["label:OTHER", "build-arg:OTHER", "env:team", "entrypoint:5", "command:1"];
        assert_eq!(keys_in_body(&body, &allowing(&wrong)), keys);
        assert!(!refusing(&keys).contains(&aws));
    }

    #[test]
    fn a_refusal_names_paths_as_the_config_takes_them() {
        let found = |name: &str, exception| {
            let (name, kind) = (name.into(), SecretKind::PrivateKey);
            FoundKey::inside("t".into(), &ArchivedFind { name, kind, layer: None, line: None, exception })
        };
        let key = |name| found(name, Exception::Path);
        let named = Named { part: TextPart::Variable, name: "A".into() };
        let in_image = found("variable A", Exception::Named(named));
        let hidden = found("variable (JSON, not shown)", Exception::None);
        let line = refusing(&[key("./a/key.json"), key("b \"x\"!/c"), key("a/key.json"), in_image, hidden]);
        assert!(line.ends_with(r#"allow = ["a/key.json", "b \"x\"!/c", "env:A"]"#), "{line}");
        assert_eq!(refusing(&[FoundKey::plain("it holds x".into())]), format!("it holds x; {ADVICE}"));
    }

    #[test]
    fn the_line_of_a_refusal_has_the_entries_of_all_keys() {
        let (aws, count) = (secret(), MOST + 3);
        let set: Vec<String> = (0..count).map(|n| format!("K{n}=aws_secret_access_key = {aws}")).collect();
        let keys = keys_in_body(&json!({ "Env": set }), &GuardRules::default());
        let line = refusing(&keys);
        assert_eq!(line.matches(" holds ").count(), MOST, "{line}");
        let entries: Vec<String> = (0..count).map(|n| format!("\"env:K{n}\"")).collect();
        assert!(line.ends_with(&format!("allow = [{}]", entries.join(", "))), "{line}");
    }

    #[test]
    fn a_name_that_is_or_looks_like_a_key_is_nowhere_in_a_refusal() {
        let (dashes, label) = ("-".repeat(5), ["PRIVATE", "KEY"].join(" "));
        let lines = "MIIEvQIBADANBgkqhkiG9w0BAQEF".repeat(6);
        let pem = format!("{dashes}BEGIN {label}{dashes}\n{lines}A==\n{dashes}END {label}{dashes}\n");
        let token = ["ghp_", "vR7tYw3NbH6c8jK2mQ9xLp4Z"].concat();
        let body = json!({
            "Env": [pem, format!("{token}={pem}")],
            "Labels": { pem.as_str(): "", token.as_str(): pem },
        });
        let keys = keys_in_body(&body, &GuardRules::default());
        assert_eq!(keys.len(), 4, "{keys:?}");
        let changes = [format!("ENV {token}={}", secret()), format!("LABEL {token} {pem}")];
        let changes = changes.iter().filter_map(|change| instruction(change, &GuardRules::default()));
        for key in keys.into_iter().chain(changes) {
            assert_eq!(key.entry, None, "{key:?}");
            assert!(!key.text.contains(&token) && !key.text.contains("MII"), "{key:?}");
        }
    }
}
