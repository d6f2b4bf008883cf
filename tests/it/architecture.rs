//! Checks the direction of imports, the one owner of each foreign crate, and the size of rooms. It reads
//! `crate::` paths as text, so it finds accidents and proves nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Lowest first. A room imports from storeys below its own, and from itself.
const STOREYS: [&[&str]; 8] = [
    &["cloud", "failure", "json", "linux", "process", "quote", "secret", "token", "unparsable", "workload"],
    &["certificates", "guard", "inputs", "kfp", "mounts", "console", "policy", "record"],
    &["readiness", "loopback", "registry", "source"],
    &["config"],
    &["docker", "metadata", "mint", "relay"],
    &["lifecycle", "server"],
    &["session", "app"],
    &["bin", "cli", "lib", "main"],
];

/// The same order inside the big rooms: their files and folders, lowest first. Their `mod.rs` is above all of
/// them, and they may import it.
const INSIDE: [(&str, &[&[&str]]); 6] = [
    (
        "docker::proxy",
        &[
            // The shapes of requests and answers, of the engine's wire protocol, and of what is remembered.
            &[
                "capabilities",
                "engine_client",
                "environment",
                "frames",
                "notices",
                "question",
                "removed",
                "reserved",
                "rules",
            ],
            &["clouds", "exit_records"],
            &["json", "outputs", "wiring"],
            // Judgements, which wait for nothing.
            &["entrypoint", "judge", "path", "podman", "proxies", "texts"],
            // The parts of the proxy, each with its own state.
            &["lookups"],
            &["exit_codes", "image_configs", "leases", "reply_filter"],
            &["exit_watch"],
            &["inputs", "logs", "places"],
            &["mount_sources"],
            &["guard"],
            &["upgrade", "upload"],
            &["builds"],
            // All the parts.
            &["state"],
            &["tls"],
            // Whole requests.
            &["dispatch", "volumes", "writable"],
            &["commit", "create", "preview", "swarm"],
        ],
    ),
    (
        "source",
        &[
            &["clock", "document", "flight", "jwt", "stamp", "variables", "xml"],
            &["command", "expiry", "signer"],
            &["http"],
            &["subject"],
            &["aws", "azure"],
            &["google", "storage"],
            &["absent", "offline"],
        ],
    ),
    (
        "source::google",
        &[
            &["configured", "endpoints", "names", "pem", "token_types"],
            &["authorized_user", "downscope", "gcloud", "metadata_server", "service_account"],
            &["external_account_authorized_user", "iam"],
            &["impersonated"],
            &["external_account"],
            &["exec", "file"],
            // Chooses one of the sources above.
            &["search"],
        ],
    ),
    (
        "config",
        &[
            &["endpoint", "forms", "keys", "summary"],
            &["document", "reference", "schema"],
            // Merges file, environment and flags into one table.
            &["layers"],
            &["values"],
            &["boundary", "find", "guarding", "provider", "rules", "seeing", "shown"],
            &["clouds", "engine", "mounts"],
            &["proxies"],
            &["check"],
        ],
    ),
    (
        "metadata",
        &[&["json", "reply", "target", "view"], &["service", "guards"], &["aws", "azure", "google"]],
    ),
    ("lifecycle", &[&["attach", "events", "exit", "joined", "strangers", "tidy"], &["end"], &["by_hand"]]),
];

/// Neighbours on one storey that may import each other, each with its reason.
const NEIGHBOURS: [(&str, &str, &str); 10] = [
    ("token", "cloud", "a kind of token is of one cloud"),
    ("workload", "cloud", "an identity has a part for each cloud"),
    ("workload", "secret", "a grant has a secret that only its container knows"),
    ("unparsable", "cloud", "only paths of Google's get headers of Google's"),
    ("quote", "workload", "patterns are the user's text"),
    ("process", "linux", "core dumps are switched off by a call of Linux's own"),
    ("secret", "token", "a token's value is a secret"),
    ("token", "workload", "an identity names scopes"),
    ("app", "session", "the wiring opens sessions"),
    ("server", "relay", "both ends of the tunnel share header names"),
];

/// Imports that are forbidden although the storeys allow them: (from, to).
const NEVER: [(&str, &str); 9] = [
    ("docker", "registry"),
    ("docker", "source"),
    ("metadata", "registry"),
    ("metadata", "source"),
    ("mint", "registry"),
    ("relay", "registry"),
    ("relay", "secret"),
    ("relay", "source"),
    ("relay", "token"),
];

/// Foreign crates with one owner: (crate, the path prefixes that may name it).
const OWNERS: [(&str, &[&str]); 9] = [
    ("yup_oauth2", &["source/google/service_account/mod.rs"]),
    (
        "bollard",
        &[
            "docker/mod.rs",
            "docker/bridge.rs",
            "docker/image.rs",
            "docker/network.rs",
            "docker/relay.rs",
            "docker/events.rs",
        ],
    ),
    ("clap", &["cli/", "main.rs"]),
    ("toml", &["config/"]),
    ("saphyr_parser", &["kfp/yaml.rs"]),
    ("strsim", &["config/"]),
    ("hyper_rustls", &["source/http/", "source/google/service_account/"]),
    ("tokio_rustls", &["docker/upstream.rs", "docker/proxy/tls.rs"]),
    ("rcgen", &["certificates/mod.rs"]),
];

/// Lines before the tests of a file; a longer one needs its reason here.
const LONGEST: usize = 400;
const LONGER: [(&str, usize); 1] = [
    // One state machine handles a stream from its first byte to its last.
    ("guard/stream/mod.rs", 410),
];

fn is_test(path: &Path) -> bool {
    path.file_stem().unwrap().to_string_lossy().ends_with("tests")
}

/// A file up to its unit tests.
pub(crate) fn before_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
}

pub(crate) fn sources() -> BTreeMap<String, String> {
    let mut found = rust_files("src");
    found.retain(|file, _| !is_test(Path::new(file)));
    found
}

/// Every Rust file below a folder of the repository, by its path in there.
pub(crate) fn rust_files(folder: &str) -> BTreeMap<String, String> {
    fn walk(folder: &Path, root: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found = BTreeMap::new();
    walk(&root, &root, &mut found);
    found
}

/// Without unit tests and comments.
fn code(text: &str) -> String {
    before_tests(text)
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join(" ")
}

fn room(file: &str) -> String {
    file.split('/').next().unwrap().trim_end_matches(".rs").to_string()
}

/// The names directly after every `crate::`, in braces only one level deep.
fn imports(code: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut found = Vec::new();
    for part in code.split("crate::").skip(1) {
        let Some(group) = part.trim_start().strip_prefix('{') else {
            found.push(word(part));
            continue;
        };
        let mut depth = 0_i32;
        let mut start = true;
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && !c.is_whitespace() => {
                    found.push(word(&group[at..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    found.retain(|name| name.chars().next().is_some_and(char::is_lowercase));
    found
}

fn storey(room: &str) -> usize {
    let found = STOREYS.iter().position(|rooms| rooms.contains(&room));
    found.unwrap_or_else(|| panic!("{room} has no storey: place it on purpose"))
}

#[test]
fn architecture_md_lists_the_same_storeys() {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ARCHITECTURE.md")).unwrap();
    for (number, rooms) in STOREYS.iter().enumerate() {
        let row = text.lines().find_map(|line| line.strip_prefix(&format!("| {number} | `"))).unwrap();
        let named: Vec<&str> = format!("`{row}")
            .split('`')
            .skip(1)
            .step_by(2)
            .map(|room| *rooms.iter().find(|own| **own == room).unwrap_or(&"?"))
            .collect();
        assert_eq!(named, *rooms, "storey {number}: {row}");
    }
}

#[test]
fn rooms_import_only_from_lower_storeys() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let from = room(&file);
        let code = code(&text);
        if code.contains("super::super::super") {
            wrong.push(format!("{file}: climbs too far with super::"));
        }
        for to in imports(&code) {
            if to == from || from == "lib" || from == "main" {
                continue;
            }
            let neighbours = NEIGHBOURS.iter().any(|(a, b, _)| {
                (*a, *b) == (from.as_str(), to.as_str()) || (*b, *a) == (from.as_str(), to.as_str())
            });
            if (storey(&to) >= storey(&from) && !neighbours) || NEVER.contains(&(from.as_str(), to.as_str()))
            {
                wrong.push(format!("{file} imports {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "against the storeys of docs/ARCHITECTURE.md:\n{}", wrong.join("\n"));
}

#[test]
fn files_of_big_rooms_import_only_from_lower_levels() {
    let mut wrong = Vec::new();
    let imports = crate::circles::imports();
    for (room, storeys) in INSIDE {
        let room: Vec<String> = room.split("::").map(String::from).collect();
        let part = |module: &[String]| module.strip_prefix(&*room).and_then(|inside| inside.first()).cloned();
        let height = |part: &str| storeys.iter().position(|names| names.contains(&part));
        for (from, to) in &imports {
            let Some(from_part) = part(from) else { continue };
            let Some(above) = height(&from_part) else {
                wrong.push(format!("{}: place {from_part} on purpose", room.join("::")));
                continue;
            };
            for to in to {
                let below = part(to).filter(|to| *to != from_part).and_then(|to| height(&to));
                if below.is_some_and(|below| below >= above) {
                    wrong.push(format!("{} imports {}", from.join("::"), to.join("::")));
                }
            }
        }
        for name in storeys.iter().flat_map(|names| *names) {
            let path: Vec<String> = room.iter().cloned().chain([(*name).to_string()]).collect();
            if !imports.contains_key(&path) {
                wrong.push(format!("{} is not there", path.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "against the storeys in INSIDE:\n{}", wrong.join("\n"));
}

#[test]
fn foreign_crates_have_one_owner() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let code = code(&text);
        for (name, owners) in OWNERS {
            let named = code.contains(&format!("{name}::")) || code.contains(&format!("use {name}"));
            if named && !owners.iter().any(|owner| file.starts_with(owner)) {
                wrong.push(format!("{file} names {name}, which belongs to {}", owners.join(", ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_stay_within_their_limit_and_rooms_are_on_the_map() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let lines = before_tests(&text).lines().count();
        let limit = LONGER.iter().find(|(name, _)| *name == file).map_or(LONGEST, |(_, limit)| *limit);
        if lines > limit {
            wrong.push(format!("{file}: {lines} lines before its tests, the budget is {limit}"));
        }
        if limit > LONGEST && lines <= LONGEST {
            wrong.push(format!("{file}: {lines} lines before its tests need no reason in LONGER"));
        }
        if !map.contains(&format!("| `{}` |", room(&file))) {
            wrong.push(format!("{file} is in no room of the map in src/lib.rs"));
        }
    }
    let absent = LONGER.iter().filter(|(name, _)| !sources().contains_key(*name));
    wrong.extend(absent.map(|(name, _)| format!("{name} of LONGER is not there")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Clouds do not revoke single tokens; Google's endpoint that seems to would end the user's whole login.
#[test]
fn no_code_calls_googles_revocation_endpoint() {
    let word = ["rev", "oke"].concat();
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let lower = code(&text).to_lowercase();
        // Finds both spellings of the endpoint, and every name that could mean it.
        if lower.contains(&word) {
            wrong.push(file);
        }
    }
    for script in ["scripts", "deploy", "examples"] {
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(script)).unwrap() {
            let path = entry.unwrap().path();
            if fs::read_to_string(&path).is_ok_and(|text| text.to_lowercase().contains(&word)) {
                wrong.push(path.display().to_string());
            }
        }
    }
    assert!(wrong.is_empty(), "these say {word}: {}", wrong.join(", "));
}

/// A field that holds a secret has the type of a secret.
#[test]
fn secrets_are_not_strings() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for line in code(&text).split(&[',', '{', ';'][..]) {
            let Some((name, kind)) = line.rsplit_once(':') else { continue };
            let name = name.trim().rsplit(' ').next().unwrap_or_default();
            let secret =
                ["access_token", "refresh_token", "client_secret", "private_key", "password", "assertion"];
            if secret.contains(&name) && matches!(kind.trim(), "String" | "Option<String>" | "Vec<u8>") {
                wrong.push(format!("{file}: {name}: {}", kind.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "these hold secrets and can be printed:\n{}", wrong.join("\n"));
}

#[test]
fn imports_are_found_in_every_form() {
    let code = code("use crate::{a, b::{c, d}, e}; // crate::no\nuse crate::f::g; let x = crate::h::i();");
    assert_eq!(imports(&code), ["a", "b", "e", "f", "h"]);
}

/// A path that a user named may be a secret: `quote::path` decides which part of it is shown.
#[test]
fn paths_are_shown_only_through_quote_path() {
    let shows = ["disp", "lay()"].concat();
    let wrong: Vec<String> = sources()
        .into_iter()
        .filter(|(_, text)| code(text).contains(&format!(".{shows}")))
        .map(|(file, _)| file)
        .collect();
    assert!(wrong.is_empty(), "these show a path without crate::quote: {}", wrong.join(", "));
}
