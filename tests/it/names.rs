//! Names of types and tests, and the words that no name may contain.

use std::collections::BTreeMap;

use crate::architecture::{before_tests, rust_files, sources};

/// Types of several files that share a name, each with the reason why they may.
const SHARED: [(&str, &str); 4] = [
    ("Body", "in docker::proxy the aliases of a forwarded body; in metadata the body of a reply, as bytes"),
    ("Reading", "of a create request in kfp; in docker::proxy::builds of a stream, and known only there"),
    ("Reply", "in docker::proxy the alias of an engine's answer; in metadata the reply of a metadata server"),
    ("Source", "the trait of credential sources, and the source of a mount, which is Docker's word"),
];

/// The name of a type that a line declares for other files.
fn public_type(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub")?;
    let rest = match rest.strip_prefix('(') {
        Some(scope) => scope.split_once(')')?.1,
        None => rest,
    };
    let rest = ["struct ", "enum ", "trait ", "type ", "union "]
        .iter()
        .find_map(|kind| rest.trim_start().strip_prefix(kind))?;
    rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()
}

#[test]
fn public_type_names_are_unique() {
    let mut declared: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (file, text) in sources() {
        for name in before_tests(&text).lines().filter_map(public_type) {
            declared.entry(name.to_owned()).or_default().push(file.clone());
        }
    }
    assert!(declared.len() > 300, "{} types: they are not recognised any more", declared.len());
    declared.retain(|_, files| files.len() > 1);
    let mut wrong: Vec<String> = declared
        .iter()
        .filter(|(name, _)| !SHARED.iter().any(|(shared, _)| shared == name))
        .map(|(name, files)| format!("{name} is declared in {}", files.join(" and ")))
        .collect();
    let unused = SHARED.iter().filter(|(name, _)| !declared.contains_key(*name));
    wrong.extend(unused.map(|(name, _)| format!("{name} of SHARED is declared once")));
    assert!(wrong.is_empty(), "one name for one type:\n{}", wrong.join("\n"));
}

#[test]
fn public_types_are_recognised() {
    for (line, name) in [
        ("pub struct Lease {", Some("Lease")),
        ("pub(super) enum Kind<T> {", Some("Kind")),
        ("pub(in crate::source) struct Fields(u8);", Some("Fields")),
        ("pub type Reply = u8;", Some("Reply")),
        ("pub trait Source: Debug {", Some("Source")),
        ("    pub struct Nested;", None),
        ("struct Private;", None),
        ("pub fn structure() {", None),
    ] {
        assert_eq!(public_type(line), name, "{line}");
    }
}

/// Each of these was a private name for something that has a common one (`src/lib.rs`, "Words").
#[test]
fn refused_words_are_not_in_identifiers() {
    let gone = [
        ("house", "session"),
        ("desk", "control server"),
        ("doors", "listening"),
        ("shelf", "cache"),
        ("ride", "in flight"),
        ("tale", "stream"),
        ("mend", "fix"),
        ("mends", "fixes"),
        ("mended", "fixed"),
        ("voice", "console"),
        ("surroundings", "environment"),
        ("landed", "finished"),
        ("depart", "start"),
        ("ticket", "own flight"),
        ("wish", "requested"),
    ];
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for (number, line) in before_tests(&text).lines().enumerate() {
            // Finds the words of identifiers such as `SomeHouse` and `some_house`, but not those of messages.
            let mut spaced = String::new();
            for c in line.split('"').step_by(2).flat_map(str::chars) {
                if c.is_uppercase() {
                    spaced.push(' ');
                }
                spaced.push(if c.is_alphabetic() { c.to_ascii_lowercase() } else { ' ' });
            }
            for (word, better) in gone {
                if spaced.split(' ').any(|one| one == word) {
                    wrong.push(format!("{file}:{}: {word}; say {better}", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A test's name says its subject and what is expected; what needs more words belongs in a comment. Types
/// that tests share have names that any engineer would guess.
#[test]
fn test_names_are_short_and_their_types_ordinary() {
    const LONGEST_NAME: usize = 60;
    let gone = ["Stand", "Bench", "Desk", "Stage", "Stranger", "Thief", "Dice", "Guest"];
    let mut wrong = Vec::new();
    for (file, text) in ["src", "tests/it", "tests/support"].iter().flat_map(|folder| rust_files(folder)) {
        let mut is_next = false;
        for line in text.lines().map(str::trim_start) {
            let name = |before: &str| {
                let (_, rest) = line.split_once(before)?;
                rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()
            };
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_next = true;
            } else if let Some(name) = name("fn ").filter(|_| is_next) {
                is_next = false;
                if name.len() > LONGEST_NAME {
                    wrong.push(format!("{file}: {name} has {} characters", name.len()));
                }
            }
            if let Some(name) = name("struct ").filter(|name| gone.contains(name)) {
                wrong.push(format!("{file}: {name} is no name for a type"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
