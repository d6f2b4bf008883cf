//! Links of the Markdown files lead to files and headings that exist, and documents that other files name
//! exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files of the repository below `folder`, except what builds and `scripts/setup` leave there.
fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let left_out = [".git", ".work", "target", "node_modules", "__pycache__", "local_outputs"];
        if left_out.contains(&name) || path.is_symlink() {
            continue;
        }
        match path.is_dir() {
            true => files(&path, into),
            false => into.push(path),
        }
    }
}

fn documents() -> Vec<PathBuf> {
    let mut all = Vec::new();
    files(root(), &mut all);
    all.retain(|path| path.extension().is_some_and(|end| end == "md"));
    all
}

/// Lines outside fenced blocks, without text in backquotes.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let outside = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    });
    let plain = |line: &str| line.split('`').step_by(2).collect::<Vec<_>>().join("code");
    outside.map(|line| plain(line) + "\n").collect()
}

fn targets(text: &str) -> Vec<String> {
    let all = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    all.map(|(target, _)| target.to_owned()).filter(|target| !target.contains("://")).collect()
}

/// The anchors that code hosts make from headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        fenced ^= line.starts_with("```");
        let Some((level, heading)) = line.split_once(' ').filter(|_| !fenced) else { continue };
        if level.is_empty() || !level.trim_matches('#').is_empty() {
            continue;
        }
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let anchor: String = kept.collect::<String>().to_lowercase().replace(' ', "-");
        let again = (1..).map(|n| format!("{anchor}-{n}"));
        let free = std::iter::once(anchor.clone()).chain(again).find(|name| !found.contains(name));
        found.extend(free);
    }
    found
}

/// The links in `text`, a document of `folder`, that lead nowhere.
fn broken(text: &str, folder: &Path) -> Vec<String> {
    let mut wrong = targets(&prose(text));
    wrong.retain(|target| {
        let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
        let file = folder.join(path);
        let there = match path {
            "" => text.to_owned(),
            _ if !file.exists() => return true,
            _ => fs::read_to_string(&file).unwrap_or_default(),
        };
        !anchor.is_empty() && !anchors(&there).contains(anchor)
    });
    wrong
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        seen += targets(&prose(&text)).len();
        for target in broken(&text, document.parent().unwrap()) {
            wrong.push(format!("{}: {target}", document.strip_prefix(root()).unwrap().display()));
        }
    }
    let schema = fs::read_to_string(root().join("docs/kfp-creds.schema.json")).unwrap();
    let inside = schema.replace('`', "'");
    wrong.extend(broken(&inside, &root().join("docs")).into_iter().map(|target| format!("schema: {target}")));
    assert!(wrong.is_empty(), "these lead nowhere:\n{}", wrong.join("\n"));
    assert!(seen > 80, "only {seen} links were found");
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let docs = root().join("docs");
    let text = "# One\n\n## A `b`, c!\n[x](#a-b-c) [y](README.md#guide) [z](https://example.com/a)\n\
                `[q](code)` [r](guide/no-such.md) [s](README.md#no-such) [t](#two)\n```\n# Two\n[u](v)\n```\n";
    assert_eq!(broken(text, &docs), ["guide/no-such.md", "README.md#no-such", "#two"]);
}

#[test]
fn the_index_lists_every_page() {
    let docs = root().join("docs");
    let index = fs::read_to_string(docs.join("README.md")).unwrap();
    let listed: BTreeSet<PathBuf> =
        targets(&index).iter().map(|target| docs.join(target.split('#').next().unwrap())).collect();
    let pages =
        documents().into_iter().filter(|page| page.starts_with(&docs) && !page.ends_with("README.md"));
    let missing: Vec<PathBuf> = pages.filter(|page| !listed.contains(page)).collect();
    assert!(missing.is_empty(), "docs/README.md does not list {missing:?}");
}

/// Comments, messages and scripts name documents by their path.
#[test]
fn documents_that_other_files_name_exist() {
    let mut all = Vec::new();
    files(root(), &mut all);
    let mut wrong = BTreeSet::new();
    let mut seen = 0;
    for file in all {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for (at, _) in text.match_indices("docs/") {
            let part_of_more = text[..at].ends_with(|c: char| c.is_alphanumeric() || "/.-_".contains(c));
            let is_part = |c: char| c.is_ascii_alphanumeric() || "/.-_".contains(c);
            let rest = &text[at..];
            let name = &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())];
            let name = name.trim_end_matches('.');
            if part_of_more || !(name.ends_with(".md") || name.ends_with(".json")) {
                continue;
            }
            seen += 1;
            if !root().join(name).exists() {
                wrong.insert(format!("{}: {name}", file.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(wrong.is_empty() && seen > 50, "{seen} seen; {wrong:#?}");
}
