//! Texts of a request that reach a container or stay in an image: variables, commands, labels, build
//! arguments. Finds those that hold keys and words the report.

use serde_json::Value;

use super::json::strings;
use crate::guard::excepted::{Part, path_entry, word};
use crate::guard::{Find, Rules, environment, what};

/// A key that a request would bring in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Key {
    /// Description and location, for a person.
    pub(super) text: String,
    /// The entry of `guard.allow` that would permit it; `None` if there is none.
    entry: Option<String>,
}

impl Key {
    /// A key that no entry can permit.
    pub(super) fn plain(text: String) -> Self {
        Self { text, entry: None }
    }

    /// A key in a file of the host.
    pub(super) fn in_file(text: String, find: &Find) -> Self {
        Self { text, entry: Some(path_entry(&find.place)) }
    }

    /// A key in an archive or a build context, at `name` as written there, or in the config of an image.
    pub(super) fn inside(text: String, name: &str) -> Self {
        let entry = match crate::guard::excepted::of_image(name) {
            Some((part, name)) => part.entry(name),
            None => path_entry(name.trim_start_matches("./").trim_start_matches('/')),
        };
        Self { text, entry: Some(entry) }
    }

    pub(super) fn named(text: String, part: Part, name: &str) -> Self {
        Self { text, entry: Some(part.entry(name)) }
    }
}

const ADVICE: &str = "leave it out (containers with an identity get tokens without a key)";

/// The reason for refusing a request with these keys, and the line of the config that would let it pass.
pub(super) fn refusing(keys: &[Key]) -> String {
    let texts: Vec<&str> = keys.iter().map(|key| key.text.as_str()).collect();
    let mut entries: Vec<String> = keys.iter().filter_map(|key| key.entry.as_deref().map(quoted)).collect();
    entries.dedup();
    let texts = texts.join("; ");
    match entries.is_empty() {
        true => format!("{texts}; {ADVICE}"),
        false => format!(
            "{texts}; {ADVICE}, or except it under [guard] in kfp-creds.toml: allow = [{}]",
            entries.join(", ")
        ),
    }
}

/// A basic string of TOML, which understands all of JSON's escapes.
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
pub(super) fn keys_in_body(body: &Value, rules: &Rules) -> Vec<Key> {
    let mut found = variables(&body["Env"], rules);
    found.extend(words(&body["Cmd"], "Cmd", Part::Command, rules));
    found.extend(words(&body["Entrypoint"], "Entrypoint", Part::Entrypoint, rules));
    found.extend(labels(&body["Labels"], rules));
    found
}

pub(super) fn variables(list: &Value, rules: &Rules) -> Vec<Key> {
    strings(list).filter_map(|entry| variable("variable", entry, rules)).collect()
}

/// `what` describes the variable's owner.
pub(super) fn variable(what: &str, entry: &str, rules: &Rules) -> Option<Key> {
    let find = environment::variable(entry)?;
    let text = format!("the {what} {} holds {}", find.place, find.kind);
    let allowed = rules.allows_named(Part::Variable, &find.place);
    (!allowed).then(|| Key::named(text, Part::Variable, &find.place))
}

pub(super) fn labels(map: &Value, rules: &Rules) -> Vec<Key> {
    values(map, "label", Part::Label, rules)
}

pub(super) fn values(map: &Value, what: &str, part: Part, rules: &Rules) -> Vec<Key> {
    let all = map.as_object().into_iter().flatten();
    all.filter_map(|(name, text)| value(what, part, name, text.as_str()?.as_bytes(), rules)).collect()
}

/// One label or build argument.
pub(super) fn value(what: &str, part: Part, name: &str, value: &[u8], rules: &Rules) -> Option<Key> {
    let kind = environment::named(name, value)?;
    let text = format!("the {what} {name} holds {kind}");
    (!rules.allows_named(part, name)).then(|| Key::named(text, part, name))
}

/// `command` is a list of words, or one text; `place` is its key in the request.
pub(super) fn words(command: &Value, place: &str, part: Part, rules: &Rules) -> Vec<Key> {
    let all: Vec<&str> = strings(command).chain(command.as_str()).collect();
    let found = all.iter().enumerate().filter_map(|(at, text)| {
        let kind = what(text.as_bytes())?;
        let name = word(&all, at);
        let text = format!("{place} holds {kind} at {name}");
        (!rules.allows_named(part, &name)).then(|| Key::named(text, part, &name))
    });
    found.collect()
}

/// One instruction of a Dockerfile in a commit or an import.
pub(super) fn instruction(text: &str, rules: &Rules) -> Option<Key> {
    let find = environment::instruction(text)?;
    let label = text.trim_start().get(..5).is_some_and(|word| word.eq_ignore_ascii_case("label"));
    let part = if label { Part::Label } else { Part::Variable };
    let text = format!("the change of {} holds {}", find.place, find.kind);
    (!rules.allows_named(part, &find.place)).then(|| Key::named(text, part, &find.place))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::guard::excepted::Named;

    fn secret() -> String {
        ["wJalrXUtnFEMI7K7MDENGbPxR", "fiCYz8h2kP0aQ1L"].concat()
    }

    fn allowing(entries: &[&str]) -> Rules {
        let named = entries.iter().map(|entry| Named::parse(entry).unwrap().unwrap());
        Rules { named: named.collect(), ..Rules::default() }
    }

    #[test]
    fn the_line_that_a_refusal_prints_excepts_what_it_names_and_no_more() {
        let aws = secret();
        let setting = format!("aws_secret_access_key = {aws}");
        let body = json!({
            "Env": [format!("AWS_SECRET_ACCESS_KEY={aws}"), format!("OTHER={setting}")],
            "Cmd": ["sh", "-c", format!("export X; {setting}"), format!("--conf={setting}"), setting],
            "Entrypoint": [setting],
            "Labels": {"team": setting},
        });
        let keys = keys_in_body(&body, &Rules::default());
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
        let key = |name| Key::inside(String::from("t"), name);
        let line = refusing(&[key("./a/key.json"), key("a/key.json"), key("b \"x\"!/c"), key("variable A")]);
        assert!(line.ends_with(r#"allow = ["a/key.json", "b \"x\"!/c", "env:A"]"#), "{line}");
        assert_eq!(refusing(&[Key::plain("it holds x".into())]), format!("it holds x; {ADVICE}"));
    }
}
