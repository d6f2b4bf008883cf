//! What the lock file may contain: one TLS provider, one HTTP stack, no bridge that carries the log of
//! dependencies, and their secrets, into ours, and no crate twice without a reason.

use std::collections::BTreeMap;
use std::process::Command;

/// Crates that are present twice on purpose, each with its reason.
const TWICE: [(&str, &str); 0] = [];

const BANNED: [(&str, &str); 7] = [
    ("tracing-log", "carries what yup-oauth2 and bollard log, which holds secrets, into our log"),
    ("aws-lc-rs", "a second TLS provider beside ring"),
    ("aws-lc-sys", "a second TLS provider beside ring"),
    ("openssl-sys", "a second TLS stack"),
    ("native-tls", "a second TLS stack"),
    ("reqwest", "a second HTTP client"),
    ("rsa", "RUSTSEC-2023-0071, unfixed"),
];

const LICENCES: [&str; 11] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
    "bzip2-1.0.6",
];

/// Crates that cargo really builds for this target, with versions, licences and features.
fn tree() -> Vec<(String, String, String, String)> {
    tree_with(&[])
}

fn tree_with(features: &[&str]) -> Vec<(String, String, String, String)> {
    let out = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--offline",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
            "--format",
            "{p}|{l}|{f}",
        ])
        .args(features)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let mut rows: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.trim_end_matches(" (*)").split('|');
            let (name, version) = fields.next()?.split_once(' ')?;
            let version = version.split(' ').next()?.to_string();
            Some((name.to_string(), version, fields.next()?.to_string(), fields.next()?.to_string()))
        })
        .collect();
    rows.sort();
    rows.dedup();
    rows
}

#[test]
fn no_crate_is_banned_or_present_twice() {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (name, version, _, features) in tree() {
        if let Some((_, why)) = BANNED.iter().find(|(banned, _)| *banned == name) {
            wrong.push(format!("{name}: {why}"));
        }
        if name == "tracing-subscriber" && features.contains("tracing-log") {
            wrong.push("tracing-subscriber has its tracing-log feature on".into());
        }
        let seen = versions.entry(name).or_default();
        if !seen.contains(&version) {
            seen.push(version);
        }
    }
    for (name, seen) in versions {
        if seen.len() > 1 && !TWICE.iter().any(|(twice, _)| *twice == name) {
            wrong.push(format!("{name} is there in versions {}", seen.join(", ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The program in the engine is small enough to read: it moves bytes, and does not parse or encrypt.
#[test]
fn the_relay_program_depends_only_on_what_moves_bytes() {
    let tree = tree_with(&["--no-default-features", "--features", "relay", "--edges", "normal"]);
    let names: std::collections::BTreeSet<&str> = tree.iter().map(|(name, ..)| name.as_str()).collect();
    for needed in ["hyper", "tokio", "rustix"] {
        assert!(names.contains(needed), "{names:?}");
    }
    for other in
        ["clap", "ring", "rustls", "serde", "serde_json", "bollard", "toml", "tracing-subscriber", "zeroize"]
    {
        assert!(!names.contains(other), "the relay has {other} now: {names:?}");
    }
    assert!(names.len() < 50, "{} crates: {names:?}", names.len());
}

#[test]
fn licences_of_dependencies_are_on_the_list() {
    let allowed = |licence: &str| LICENCES.contains(&licence.trim().trim_matches(['(', ')']));
    let fits = |expression: &str| {
        expression.split(" AND ").all(|part| part.replace('/', " OR ").split(" OR ").any(allowed))
    };
    let wrong: Vec<String> = tree()
        .into_iter()
        .filter(|(_, _, licence, _)| !fits(licence))
        .map(|(name, version, licence, _)| format!("{name} {version}: {licence}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every direct dependency has a line with its reason in docs/ARCHITECTURE.md, and no line is left over.
#[test]
fn every_dependency_has_its_line_in_architecture() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let wanted = manifest.lines().skip_while(|line| *line != "[dependencies]").skip(1);
    let wanted: Vec<&str> = wanted
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| Some(line.split_once('=')?.0.trim()))
        .collect();
    let text = std::fs::read_to_string(root.join("docs/ARCHITECTURE.md")).unwrap();
    let section = text.split("\n## Dependencies\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let named: Vec<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .filter(|(_, why)| why.trim_end_matches(" |").len() > 8)
        .map(|(name, _)| name)
        .collect();
    assert!(wanted.len() > 20, "{wanted:?}");
    assert_eq!(named, wanted, "the table of docs/ARCHITECTURE.md against Cargo.toml");
}
