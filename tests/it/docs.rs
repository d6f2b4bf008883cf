//! What the documents claim about the program is true: it accepts the examples, quoted messages exist, and so
//! do files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::session::Folder;

/// The documents that are read from beginning to end, and name files and functions of the source.
const HANDBOOKS: [&str; 7] = [
    "README.md",
    "docs/guide/first-run.md",
    "docs/guide/how-it-works.md",
    "docs/guide/troubleshooting.md",
    "docs/ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Runs `config check` on a file, with no other config in reach.
fn check(text: &str) -> Output {
    let folder = Folder::new("docs");
    fs::write(folder.0.join("kfp-creds.toml"), text).unwrap();
    Command::new(env!("CARGO_BIN_EXE_kfp-creds"))
        .args(["config", "check"])
        .env_clear()
        .env("HOME", &folder.0)
        .current_dir(&folder.0)
        .output()
        .unwrap()
}

fn accepted(text: &str) -> String {
    let out = check(text);
    assert!(out.status.success(), "{}\n{text}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The fenced blocks of `text` with the language `kind`.
fn fenced<'a>(text: &'a str, kind: &str) -> Vec<&'a str> {
    let opened = text.split("\n```").skip(1).step_by(2);
    opened.filter_map(|block| block.strip_prefix(kind)?.strip_prefix('\n')).collect()
}

#[test]
fn the_example_config_is_accepted_in_a_project_without_trust() {
    let summary = accepted(&read("examples/kfp-creds.toml"));
    assert!(summary.contains("otherwise     every other kfp task: reader"), "{summary}");
    let broken = read("examples/kfp-creds.toml").replacen("lifetime", "lifetme", 1);
    assert_eq!(check(&broken).status.code(), Some(78));
}

#[test]
fn the_readmes_config_has_the_stated_effect() {
    for book in ["README.md", "docs/guide/rules.md"] {
        let text = read(book);
        let blocks = fenced(&text, "toml");
        let [config] = blocks.as_slice() else { panic!("one config in {book}, not {}", blocks.len()) };
        let summary = accepted(config);
        let shown = fenced(&text, "text").into_iter().find(|block| block.starts_with("project  ")).unwrap();
        assert!(
            summary.trim_end().ends_with(shown.trim_end()),
            "config check says:\n{summary}\n{book}:\n{shown}"
        );
    }
}

/// The program can print every message in the table of docs/guide/troubleshooting.md: the parts between the
/// dots are in its source.
#[test]
fn messages_of_troubleshooting_exist_in_the_program() {
    let mut source = String::new();
    walk(&root().join("src"), "rs", &mut |path| source.push_str(&fs::read_to_string(path).unwrap()));
    // A string literal may continue on the next line after a backslash, and has placeholders where the table
    // has dots.
    let source = source.replace("\\\"", "\"");
    let lines: Vec<&str> = source.lines().map(str::trim_start).collect();
    let source = lines.join("\n").replace("\\\n", "");
    let table = read("docs/guide/troubleshooting.md");
    let rows = table.lines().skip_while(|line| *line != "| message | what to do |").skip(2);
    let messages: Vec<&str> = rows
        .take_while(|line| line.starts_with("| `"))
        .map(|line| line.trim_start_matches("| `").split('`').next().unwrap())
        .collect();
    assert!(messages.len() > 10, "{messages:?}");
    let said = |piece: &str| source.contains(piece.trim());
    let wrong: Vec<_> =
        messages.iter().flat_map(|message| message.split('…')).filter(|piece| !said(piece)).collect();
    assert!(wrong.is_empty(), "nothing in src says: {wrong:#?}");
}

/// All documents, not only the handbooks.
fn documents() -> Vec<String> {
    let mut found: Vec<String> =
        HANDBOOKS.into_iter().filter(|book| !book.contains('/')).map(String::from).collect();
    walk(&root().join("docs"), "md", &mut |path| {
        found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().into());
    });
    assert!(HANDBOOKS.iter().all(|book| found.iter().any(|name| name == book)), "{found:?}");
    found
}

#[test]
fn files_that_the_documents_name_exist() {
    let mut wrong = Vec::new();
    for book in documents() {
        let text = read(&book);
        let words = text.split(|c: char| c.is_whitespace() || "`()[]|,;:\"".contains(c));
        for word in words.map(|word| word.trim_end_matches('.')).collect::<BTreeSet<_>>() {
            let ours = ["src/", "tests/", "scripts/", "examples/", "deploy/", ".ci/"];
            // In other documents, folders may be examples from the reader's own project.
            let meant = HANDBOOKS.contains(&book.as_str()) || word.ends_with(".rs");
            let named = meant && ours.iter().any(|folder| word.starts_with(folder));
            if named && !root().join(word).exists() {
                wrong.push(format!("{book}: {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `scripts/test --record` writes the table of engines: it has a column for each engine that the scripts
/// know, and names every group of tests that need an engine.
#[test]
fn the_table_of_engines_has_every_engine_and_every_group() {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect()
    };
    let text = read("docs/internals/engines.md");
    let table: Vec<Vec<String>> = text.lines().filter(|line| line.starts_with('|')).map(cells).collect();
    let columns: Vec<&str> = table[0][2..].iter().map(|head| head.split(' ').next().unwrap()).collect();
    let scripts = read("scripts/engines.sh");
    let names = scripts.lines().find_map(|line| line.strip_prefix("engine_names='")).unwrap();
    // kfp-creds refuses Podman 4.
    let names: Vec<&str> =
        names.trim_end_matches('\'').split(' ').filter(|name| *name != "podman-4").collect();
    assert_eq!(columns, names, "docs/internals/engines.md and scripts/engines.sh");
    let modules = |file: &str, before: &str| -> BTreeSet<String> {
        let text = read(file);
        let named = text.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
        named.filter(|name| *name != "alone").map(|name| format!("{before}{name}")).collect()
    };
    let mut there = modules("tests/it/engine/mod.rs", "");
    there.append(&mut modules("tests/it/engine/alone/mod.rs", "alone::"));
    let told: BTreeSet<String> =
        table[2..].iter().flat_map(|row| row[1].split(' ').map(String::from).collect::<Vec<_>>()).collect();
    let missing: Vec<_> = there.difference(&told).collect();
    assert!(missing.is_empty(), "FEATURES in tests/python/engines.py does not name {missing:?}");
    assert!(table.iter().all(|row| row.len() == columns.len() + 2));
    let newest = scripts.lines().find_map(|line| line.strip_prefix("newest=")).unwrap();
    let newest = 2 + columns.iter().position(|column| *column == newest).unwrap();
    assert!(table[0][newest].contains(' '), "the newest engine has a version, because its tests ran");
}

/// `Type::function` beside the name of a file: the file has that function.
#[test]
fn functions_that_the_documents_name_are_where_they_say() {
    let mut found = 0;
    for line in HANDBOOKS.iter().flat_map(|book| read(book).lines().map(String::from).collect::<Vec<_>>()) {
        let words: Vec<&str> = line.split('`').skip(1).step_by(2).collect();
        let files: Vec<&&str> =
            words.iter().filter(|word| word.starts_with("src/") && word.ends_with(".rs")).collect();
        let named = words.iter().filter_map(|word| word.split_once("::")).filter(|(owner, function)| {
            owner.starts_with(char::is_uppercase) && function.starts_with(char::is_lowercase)
        });
        for (_, function) in named {
            let has = |file: &&&str| read(file).contains(&format!("fn {function}("));
            found += usize::from(!files.is_empty());
            assert!(files.is_empty() || files.iter().any(has), "`{function}` does not exist: {line}");
        }
    }
    assert!(found >= 3, "only {found} functions are named");
}

/// "Decision 15" in a comment is a number in docs/ARCHITECTURE.md.
#[test]
fn decisions_that_comments_name_are_written_down() {
    let architecture = read("docs/ARCHITECTURE.md");
    let mut wrong = Vec::new();
    let mut named = 0;
    walk(&root().join("src"), "rs", &mut |path| {
        let text = fs::read_to_string(path).unwrap().to_lowercase();
        for rest in text.split("decision ").skip(1) {
            let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
            if number.is_empty() {
                continue;
            }
            named += 1;
            if !architecture.contains(&format!("\n{number}. *")) {
                wrong.push(format!("{}: decision {number}", path.display()));
            }
        }
    });
    assert!(wrong.is_empty() && named > 5, "{named} named; {}", wrong.join("\n"));
}

/// All files below `folder` that end in `.END`.
fn walk(folder: &Path, end: &str, seen: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, end, seen);
        } else if path.extension().is_some_and(|found| found == end) {
            seen(&path);
        }
    }
}

/// `docs/security/threats.md` names the test of every claim.
#[test]
fn every_test_that_the_threats_name_exists() {
    let mut tests = String::new();
    for folder in ["tests/it", "src"] {
        walk(&root().join(folder), "rs", &mut |path| tests.push_str(&fs::read_to_string(path).unwrap()));
    }
    let threats = read("docs/security/threats.md");
    // A name in backquotes with at least three underscores is a test.
    let named = threats.split('`').skip(1).step_by(2).filter(|name| name.matches('_').count() >= 3);
    let named: BTreeSet<&str> = named.filter(|name| !name.contains(|c: char| c.is_uppercase())).collect();
    let missing: Vec<&&str> = named.iter().filter(|name| !tests.contains(&format!("fn {name}()"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(named.len() > 20, "{named:?}");
}
