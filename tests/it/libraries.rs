//! Real client libraries of six languages, unmodified, each in a network namespace where 169.254.169.254 is
//! this program: `docs/internals/clients.md` has the results. `tests/python/clients/matrix.py` runs them.

mod busy;
mod clouds;
mod moto;
mod troubled;

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

use crate::support::session::{PROGRAM, python};

/// Whether a client may be missing: one that no package registry has, or that only `--clients-all` builds.
fn optional(absent: &Value) -> bool {
    let all = std::env::var("KFP_CREDS_TEST_CLIENTS").is_ok_and(|which| which == "all");
    let slow = ["Java", "Rust"].contains(&text(absent, "family"))
        || ["az", "azidentity"].contains(&text(absent, "name"));
    text(absent, "name") == "gcloud" || (!all && slow)
}

/// Cells of the first table: key and heading.
const FINDS: [(&str, &str); 8] = [
    ("detect", "detection"),
    ("token", "token"),
    ("refresh", "second refresh"),
    ("identity", "ID token"),
    ("project", "project id"),
    ("universe", "universe"),
    ("email", "e-mail"),
    ("api", "API call"),
];

/// Follows the version of a client that is not on this machine.
const EARLIER: &str = ", earlier run";

/// Cells of the second table.
const BEARS: [(&str, &str); 5] = [
    ("503", "tokens 503"),
    ("all-503", "everything 503"),
    ("slow", "2 s a token"),
    ("near", "200 s left"),
    ("short", "3 s left"),
];

const HEAD: &str = "# Client libraries

Unmodified libraries and tools, each run in a network namespace of its own in which 169.254.169.254 is `kfp-creds serve
--offline` behind a small proxy that makes the faults, with a DNS server and a TLS listener for `*.googleapis.com`. Nothing
tells a client where the metadata server is: it finds it as on Compute Engine. A *token* counts when its signature is
right and it is one that was handed out; an *API call* (reading an object, listing datasets, opening a read session) when
every request to the API bore such a token. The test `libraries` fails when a verdict differs from this page or a client that
it ran has no row; `KFP_CREDS_TEST_WRITE_CLIENTS=1 cargo nextest run libraries` writes this page. Versions and what is asked
may differ from machine to machine. A version of an *earlier run* is of a client that the machine of the last written run did
not have. A dash is something that the client has no means for; the [notes](#notes) say why, as they do for every other
verdict that is not yes.
";

const FAULTS: &str = "
*tokens 503*: for 3 s, counted from the first request for one, tokens get what they get when Google cannot be reached (503; 404
for an ID token); *everything 503*: the same for every path, as for a container that has no identity yet. *at the next
call*: the client gave up, and the same process succeeded once the 3 s were over. *2 s a token*: each takes as long as the
program ever holds a request. *200 s left*: the first token has so much left, later ones 600 s, the least that is served
from a token of an hour; a client *asks again* at its next use or *keeps it*, and asks no third time. *3 s left*: the
first token expires in use.

These faults stand before the program. With the fault behind it, a service-account key or a login whose Google answers 503 when
the session starts and for 3 s from the first request of a container on, and is 2 s late for a while after that, google-auth (both
versions), google-auth-library (both) and Go's two libraries say in none of their errors that this is another place than
Compute Engine, and have their token in the end (the test `libraries::troubled`).
";

/// The object that `matrix.py` prints.
fn seen() -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/clients/matrix.py");
    let mut command = Command::new(python());
    command.arg(script).arg("--program").arg(PROGRAM);
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    serde_json::from_slice(&ran.stdout).unwrap()
}

#[test]
fn every_client_finds_what_it_needs() {
    let seen = seen();
    for absent in list(&seen, "absent") {
        let (name, why) = (text(absent, "name"), text(absent, "why"));
        assert!(optional(absent), "{name}: {why}; scripts/setup --clients installs it");
        eprintln!("NOT RUN: {name}: {why}");
    }
    let faults: Vec<String> = list(&seen, "rows").iter().filter_map(fault).collect();
    assert!(faults.is_empty(), "{} clients are not as they should be:\n{}", faults.len(), faults.join("\n"));
    agrees_with_the_page(|was| document(&seen, was), verdicts);
}

/// Fails unless the page claims what a run found. With `KFP_CREDS_TEST_WRITE_CLIENTS=1` the page is written instead.
/// `document` makes the page from the one before; versions alone may differ, because another machine has other ones.
fn agrees_with_the_page<K: Ord + Debug>(
    document: impl Fn(&str) -> String,
    claims: impl Fn(&str) -> BTreeMap<K, Vec<String>>,
) {
    // Two tests write it, each in its own process.
    let lock = std::fs::File::open(book()).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let was = std::fs::read_to_string(book()).unwrap();
    let is = document(&was);
    if std::env::var("KFP_CREDS_TEST_WRITE_CLIENTS").is_ok_and(|value| value == "1") {
        std::fs::write(book(), is).unwrap();
        return;
    }
    let wrong = out_of_date(&claims(&was), &claims(&is));
    assert!(
        wrong.is_empty(),
        "docs/internals/clients.md is out of date; write it with KFP_CREDS_TEST_WRITE_CLIENTS=1\n{}",
        wrong.join("\n")
    );
}

/// What a page does not claim although a run found it, and what it claims although no run would.
fn out_of_date<K: Ord + Debug>(
    page: &BTreeMap<K, Vec<String>>,
    found: &BTreeMap<K, Vec<String>>,
) -> Vec<String> {
    let other = found.iter().filter(|(key, cells)| page.get(*key) != Some(*cells));
    let mut wrong: Vec<String> = other
        .map(|(key, cells)| match page.get(key) {
            None => format!("it has no line for {key:?}, which is {cells:?}"),
            Some(before) => format!("{key:?} is {cells:?}, and it says {before:?}"),
        })
        .collect();
    let gone = page.keys().filter(|key| !found.contains_key(*key));
    wrong.extend(gone.map(|key| format!("{key:?} is no longer so")));
    wrong
}

fn book() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/internals/clients.md")
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// The note of a cell. Its key may name several cells.
fn note<'a>(row: &'a Value, cell: &str) -> Option<&'a str> {
    let notes = row["notes"].as_object()?;
    notes.iter().find(|(cells, _)| cells.split(", ").any(|of| of == cell)).and_then(|(_, note)| note.as_str())
}

/// Verdicts that need no explanation.
const GOOD: [&str; 3] = ["yes", "asks again", "keeps it"];

/// What is wrong with a row: a verdict without its reason, a reason without its verdict, a client that died.
fn fault(row: &Value) -> Option<String> {
    let mut found = String::new();
    for (cell, heading) in FINDS.iter().chain(&BEARS) {
        let verdict = row["cells"][cell].as_str().unwrap_or("missing");
        if GOOD.contains(&verdict) == note(row, cell).is_some() {
            writeln!(found, "  {heading}: {verdict}, and the note is {:?}", note(row, cell)).unwrap();
        }
    }
    if row["silent"].as_object().is_some_and(|silent| !silent.is_empty()) {
        writeln!(found, "  ended before its last step: {}", row["silent"]).unwrap();
    }
    if found.is_empty() {
        return None;
    }
    Some(format!("{}\n{found}  {}", text(row, "name"), row["errors"]))
}

fn document(seen: &Value, was: &str) -> String {
    let mut out = String::from(HEAD);
    out += "\n## What they find\n";
    table(&mut out, seen, was, "What they find", &FINDS);
    out += "\n## How they bear faults\n";
    out += FAULTS;
    table(&mut out, seen, was, "How they bear faults", &BEARS);
    out += "\n## Notes\n\n";
    for line in section(was, "Notes").filter(|line| absent(seen, line.split("**").nth(1).unwrap_or_default()))
    {
        writeln!(out, "{line}").unwrap();
    }
    for row in list(seen, "rows") {
        for (cells, note) in row["notes"].as_object().into_iter().flatten() {
            let named: Vec<&str> = FINDS
                .iter()
                .chain(&BEARS)
                .filter(|(cell, _)| cells.split(", ").any(|of| of == *cell))
                .map(|(_, heading)| *heading)
                .collect();
            let note = note.as_str().unwrap_or_default();
            writeln!(out, "- **{}**, {}: {note}.", text(row, "name"), named.join(", ")).unwrap();
        }
        for remark in list(row, "remarks").iter().filter_map(Value::as_str) {
            writeln!(out, "- **{}**: {remark}.", text(row, "name")).unwrap();
        }
    }
    out += "\n## What they ask\n\nBelow `/computeMetadata/v1`, each path once, in the order of a run without faults.\n\n";
    out += "| client | asks |\n| --- | --- |\n";
    for line in kept(seen, was, "What they ask") {
        writeln!(out, "{line}").unwrap();
    }
    for row in list(seen, "rows") {
        let asked: Vec<String> =
            list(row, "asked").iter().filter_map(Value::as_str).map(|path| format!("`{path}`")).collect();
        writeln!(out, "| {} | {} |", text(row, "name"), asked.join(" ")).unwrap();
    }
    // The section of another test.
    out += &clouds::kept(was);
    out
}

fn table(out: &mut String, seen: &Value, was: &str, section: &str, cells: &[(&str, &str)]) {
    let headings: Vec<&str> = cells.iter().map(|(_, heading)| *heading).collect();
    writeln!(out, "\n| client | version | {} |", headings.join(" | ")).unwrap();
    writeln!(out, "| --- | --- |{}", " --- |".repeat(cells.len())).unwrap();
    for row in list(seen, "rows") {
        let found: Vec<&str> =
            cells.iter().map(|(cell, _)| row["cells"][cell].as_str().unwrap_or("missing")).collect();
        let name = format!("{} ({})", text(row, "name"), text(row, "family"));
        writeln!(out, "| {name} | {} | {} |", text(row, "version"), found.join(" | ")).unwrap();
    }
    let old: Vec<&str> = kept(seen, was, section).collect();
    for line in &old {
        writeln!(out, "{}", of_an_earlier_run(line, 1)).unwrap();
    }
    for absent in list(seen, "absent") {
        let name = format!("| {} ({})", text(absent, "name"), text(absent, "family"));
        if !old.iter().any(|line| line.starts_with(&name)) {
            let blanks = " not run |".repeat(cells.len());
            writeln!(out, "{name} | {} |{blanks}", text(absent, "why")).unwrap();
        }
    }
}

/// The row with [`EARLIER`] after its version, which is in the column `at`; a client that never ran has no
/// version.
fn of_an_earlier_run(row: &str, at: usize) -> String {
    let mut cells: Vec<String> = row.split(" | ").map(String::from).collect();
    if let Some([version, first, ..]) = cells.get_mut(at..)
        && *first != "not run"
        && !version.ends_with(EARLIER)
    {
        version.push_str(EARLIER);
    }
    cells.join(" | ")
}

/// The lines of a section, without its heading.
fn section<'a>(document: &'a str, heading: &str) -> impl Iterator<Item = &'a str> {
    let start = format!("## {heading}");
    document
        .lines()
        .skip_while(move |line| *line != start)
        .skip(1)
        .take_while(|line| !line.starts_with("## "))
        .filter(|line| !line.is_empty())
}

fn absent(seen: &Value, name: &str) -> bool {
    let name = name.split(" (").next().unwrap_or_default();
    list(seen, "absent").iter().any(|absent| text(absent, "name") == name)
}

/// The rows of clients that are not on this machine, unchanged.
fn kept<'a>(seen: &Value, was: &'a str, heading: &str) -> impl Iterator<Item = &'a str> {
    let name = |line: &str| line.trim_start_matches("| ").split(" |").next().unwrap_or_default().to_string();
    section(was, heading).filter(move |line| absent(seen, &name(line)))
}

/// The claims of a document, by section and client, and its notes, without versions and requests, which
/// differ between machines.
fn verdicts(document: &str) -> BTreeMap<(String, String), Vec<String>> {
    let mut found = BTreeMap::new();
    for heading in ["What they find", "How they bear faults"] {
        for line in section(document, heading).filter(|line| line.starts_with("| ")) {
            let cells: Vec<String> =
                line.trim_matches(['|', ' ']).split(" | ").map(|cell| cell.trim().to_string()).collect();
            if let [client, _version, verdicts @ ..] = cells.as_slice() {
                found.insert((heading.to_string(), client.clone()), verdicts.to_vec());
            }
        }
    }
    for line in section(document, "Notes") {
        found.insert(("Notes".into(), line.to_string()), vec![]);
    }
    found
}

#[test]
fn a_verdict_needs_a_reason_and_absent_clients_keep_their_row() {
    let row = |identity: &str, notes: Value| {
        let mut cells: serde_json::Map<String, Value> =
            FINDS.iter().chain(&BEARS).map(|(cell, _)| ((*cell).to_string(), "yes".into())).collect();
        cells.insert("identity".into(), identity.into());
        serde_json::json!({
            "name": "a", "family": "A", "version": "1", "cells": cells, "notes": notes, "asked": ["/x"],
            "errors": {}, "silent": {},
        })
    };
    let (good, reason) = (row("yes", Value::Null), serde_json::json!({"identity, slow": "makes none"}));
    assert_eq!(fault(&good), None);
    assert!(fault(&row("no", Value::Null)).unwrap().contains("ID token: no"));
    // A reason that has become wrong is a fault too.
    assert!(fault(&row("yes", reason.clone())).unwrap().contains("ID token: yes"));
    let of = |row: Value| document(&serde_json::json!({"rows": [row], "absent": []}), "");
    let (first, second) = (of(good), of(row("-", reason)));
    let changed = out_of_date(&verdicts(&first), &verdicts(&second));
    assert_eq!(changed.len(), 2, "a verdict and its note: {changed:?}");
    assert_eq!(out_of_date(&verdicts(&second), &verdicts(&first)).len(), 2);
    assert_eq!(out_of_date(&verdicts(&first), &verdicts(&first)), [""; 0]);
    // A client that ran must have its row in both tables, and other versions are no difference.
    let missing = |table: &str| {
        let (before, after) = first.split_once(&format!("## {table}\n")).unwrap();
        let page = format!("{before}## {table}\n{}", after.replacen("| a (A) |", "| b (A) |", 1));
        out_of_date(&verdicts(&page), &verdicts(&first))
    };
    for table in ["What they find", "How they bear faults"] {
        let said = missing(table);
        assert!(said.len() == 2 && said[0].contains("no line for") && said[0].contains("a (A)"), "{said:?}");
    }
    assert_eq!(verdicts(&first), verdicts(&first.replace("| a (A) | 1 |", "| a (A) | 2 |")));
    assert!(second.contains("- **a**, ID token, 2 s a token: makes none."), "{second}");
    let away = serde_json::json!({"rows": [], "absent": [{"name": "a", "family": "A", "why": "not here"}]});
    let kept = document(&away, &second);
    assert_eq!(kept.matches("| a (A) | 1, earlier run |").count(), 2, "{kept}");
    assert_eq!(verdicts(&kept), verdicts(&second));
    assert_eq!(document(&away, &kept), kept);
    let never = document(&away, "");
    assert!(never.contains("| a (A) | not here | not run |"));
    assert_eq!(document(&away, &never), never);
}
