//! Real clients of AWS and Azure, unmodified, with this program as their server:
//! `tests/python/clients/clouds.py` runs them, with moto (which checks signatures and session tokens) and
//! azurite (which accepts tokens of Entra) behind them. The section of `docs/internals/clients.md` about both
//! clouds has the results.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{agrees_with_the_page, list, note, of_an_earlier_run, optional, out_of_date, text};
use crate::support::session::{PROGRAM, python};

/// The section of the document that this test writes.
const HEADING: &str = "## AWS and Azure";

/// Cells of the first table: key and heading.
const FINDS: [(&str, &str); 4] =
    [("identity", "identity"), ("region", "region"), ("refresh", "second refresh"), ("api", "API call")];

/// Cells of the second table.
const BEARS: [(&str, &str); 5] = [
    ("503", "503"),
    ("slow", "2 s"),
    ("near", "200 s left"),
    ("refused", "refused"),
    ("absent", "cloud is absent"),
];

/// Verdicts that need no explanation.
const GOOD: [&str; 4] = ["yes", "asks again", "keeps it", "shown"];

/// How long a client may look for a cloud that does not exist. Only a client that keeps trying takes longer,
/// and has a note.
const LOOKS: f64 = 15.0;

/// How long google-auth may look for Google if the identity has only AWS and Azure.
const GOOGLE_LOOKS: f64 = 3.0;

const HEAD: &str = "
Each in a network namespace that has nothing but this program, moto 5.2 and azurite 3.35, with the variables that `kfp-creds serve
--listen` printed (with `--open` for IMDS) and the addresses of the stand-ins. moto checks every signature and session token, and
only the role that the identity names may use its bucket; azurite takes only tokens of Entra's form for its own audience, over TLS. An
*identity* is what `GetCallerIdentity` says, or a token that was handed out; an *API call* writes an object and reads it back.
*IMDS at its address* is of clients that read no variable: each has a network of its own, in which 169.254.169.254 is the program.
The test `libraries::clouds` compares this section with each run, and writes it, like the tables above. A version of an *earlier run* is of a
client that the machine of the last written run did not have.
";

const FAULTS: &str = "
*503*: for 3 s credentials get what they get when STS or Entra cannot be reached; *2 s*: the first reply takes that long.
*200 s left*: the first credentials have so much left, later ones the least that is served (660 s, or 600 s on Azure). *refused*: the
role may not be assumed, or the resource is not on the list; *shown*: the error says why in our words. *cloud is absent*: the
identity has Google alone, and the client looks at 169.254.169.254 with no variable that leads there; every error comes within 15 s, unless
a client tries on.
Where an identity has AWS and Azure and `google = false`, `google.auth.default()` fails within 3 s.
";

const NOTES: &str = "\n### Notes on AWS and Azure\n\n";

const READS: &str = "\n### What a person reads\n\nWhere the credentials are refused, and then where the cloud is absent. `HOST` is the program.\n\n";

const ASKS: &str =
    "\n### What clients of AWS and Azure ask\n\n| client | form | asks |\n| --- | --- | --- |\n";

fn seen() -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/clients/clouds.py");
    let ran = Command::new(python()).arg(script).arg("--program").arg(PROGRAM).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    serde_json::from_slice(&ran.stdout).unwrap()
}

#[test]
fn every_client_of_aws_and_azure_finds_its_credentials() {
    let seen = seen();
    for absent in list(&seen, "absent") {
        let (title, why) = (title(absent), text(absent, "why"));
        assert!(optional(absent), "{title}: {why}; scripts/setup --clients installs it");
        eprintln!("NOT RUN: {title}: {why}");
    }
    let mut faults: Vec<String> = list(&seen, "rows").iter().filter_map(fault).collect();
    faults.extend(google_fault(&seen["google"]));
    faults.extend(forbidden_fault(&seen["forbidden"]));
    assert!(faults.is_empty(), "{} clients are not as they should be:\n{}", faults.len(), faults.join("\n"));
    let with_section = |was: &str| {
        format!("{}\n\n{HEADING}\n{}", without(was).trim_end_matches('\n'), document(&seen, &kept(was)))
    };
    agrees_with_the_page(with_section, |page| verdicts(&kept(page)));
}

/// A document without this test's section.
fn without(document: &str) -> &str {
    document.split_once(&format!("\n{HEADING}\n")).map_or(document, |(before, _)| before)
}

/// This test's section of a document, with its heading; empty if there is none.
pub(super) fn kept(document: &str) -> String {
    let found = document.split_once(&format!("\n{HEADING}\n"));
    found.map_or_else(String::new, |(_, section)| format!("\n{HEADING}\n{section}"))
}

/// Azure's clients need no region.
fn applies(row: &Value, cell: &str) -> bool {
    cell != "region" || text(row, "cloud") == "aws"
}

/// What is wrong with a row: a verdict without its reason, a reason without its verdict, a client that died
/// or looked for too long.
fn fault(row: &Value) -> Option<String> {
    let mut found = String::new();
    for (cell, heading) in FINDS.iter().chain(&BEARS).filter(|(cell, _)| applies(row, cell)) {
        let verdict = row["cells"][cell].as_str().unwrap_or("missing");
        if GOOD.contains(&verdict) == note(row, cell).is_some() {
            writeln!(found, "  {heading}: {verdict}, and the note is {:?}", note(row, cell)).unwrap();
        }
    }
    if row["silent"].as_object().is_some_and(|silent| !silent.is_empty()) {
        writeln!(found, "  ended before its last step: {}", row["silent"]).unwrap();
    }
    for (condition, seconds) in row["seconds"].as_object().into_iter().flatten() {
        if seconds.as_f64().is_some_and(|seconds| seconds > LOOKS) {
            writeln!(found, "  {condition}: its error came after {seconds} s").unwrap();
        }
    }
    if found.is_empty() {
        return None;
    }
    Some(format!("{}, {}\n{found}  {}", text(row, "name"), text(row, "form"), row["errors"]))
}

fn google_fault(google: &Value) -> Option<String> {
    let error = google["error"].as_str().unwrap_or_default();
    let quick = google["after"].as_f64().is_some_and(|after| after < GOOGLE_LOOKS);
    let good = quick && error.starts_with("DefaultCredentialsError: ");
    (!good).then(|| format!("google-auth where there is no Google: {google}"))
}

/// If the session cannot be had, the program ends before a client could wait for it.
fn forbidden_fault(forbidden: &Value) -> Option<String> {
    let said = forbidden["said"].as_str().unwrap_or_default();
    let good = forbidden["code"] == 66 && said.contains("kfp-forbidden") && said.contains("AccessDenied");
    (!good).then(|| format!("a role that may not be assumed, at the start: {forbidden}"))
}

/// The section, with the earlier text about clients that are not on this machine.
fn document(seen: &Value, was: &str) -> String {
    let rows = list(seen, "rows");
    let mut out = String::from(HEAD);
    table(&mut out, rows, &FINDS, true);
    earlier(&mut out, seen, was, 1);
    out += FAULTS;
    table(&mut out, rows, &BEARS, false);
    earlier(&mut out, seen, was, 2);
    out += NOTES;
    for row in rows {
        for (cells, note) in row["notes"].as_object().into_iter().flatten() {
            let named: Vec<&str> = FINDS
                .iter()
                .chain(&BEARS)
                .filter(|(cell, _)| applies(row, cell) && cells.split(", ").any(|of| of == *cell))
                .map(|(_, heading)| *heading)
                .collect();
            writeln!(out, "- {}, {}: {}.", title(row), named.join(", "), note.as_str().unwrap_or_default())
                .unwrap();
        }
    }
    earlier(&mut out, seen, was, 3);
    out += READS;
    for row in rows {
        let words = |condition: &str| match row["texts"][condition].as_str().unwrap_or_default() {
            "" => "nothing yet".to_string(),
            said => format!("`{said}`"),
        };
        writeln!(out, "- {}: {}; {}", title(row), words("refused"), words("absent")).unwrap();
    }
    earlier(&mut out, seen, was, 4);
    out += ASKS;
    for row in rows {
        let asked: Vec<String> =
            list(row, "asked").iter().filter_map(Value::as_str).map(|path| format!("`{path}`")).collect();
        writeln!(out, "| {} | {} | {} |", text(row, "name"), text(row, "form"), asked.join(" ")).unwrap();
    }
    earlier(&mut out, seen, was, 5);
    out
}

/// The earlier lines of a part of the section, for clients that are not on this machine. The parts are two
/// tables, notes, what is read, and what is requested.
fn earlier(out: &mut String, seen: &Value, was: &str, part: usize) {
    let begins = |line: &str| {
        line.starts_with("| client |") || [NOTES, READS].iter().any(|head| head.trim().starts_with(line))
    };
    let mut at = 0;
    for line in was.lines().filter(|line| !line.is_empty()) {
        at += usize::from(begins(line));
        if at == part && list(seen, "absent").iter().any(|absent| is_about(line, absent)) {
            writeln!(out, "{}", if part == 1 { of_an_earlier_run(line, 2) } else { line.to_string() })
                .unwrap();
        }
    }
}

/// Whether a line is the client's row in this form, or a note about it.
fn is_about(line: &str, absent: &Value) -> bool {
    let (name, family, form) = (text(absent, "name"), text(absent, "family"), text(absent, "form"));
    [
        format!("| {name} ({family}) | {form} |"),
        format!("| {name} | {form} |"),
        format!("- {}", title(absent)),
    ]
    .iter()
    .any(|start| line.starts_with(start))
}

fn title(row: &Value) -> String {
    format!("**{}**, {}", text(row, "name"), text(row, "form"))
}

fn table(out: &mut String, rows: &[Value], cells: &[(&str, &str)], with_version: bool) {
    let headings: Vec<&str> = cells.iter().map(|(_, heading)| *heading).collect();
    let version = if with_version { " version |" } else { "" };
    writeln!(out, "\n| client | form |{version} {} |", headings.join(" | ")).unwrap();
    writeln!(out, "|{}", " --- |".repeat(cells.len() + 2 + usize::from(with_version))).unwrap();
    for row in rows {
        let found: Vec<&str> =
            cells.iter().map(|(cell, _)| row["cells"][cell].as_str().unwrap_or("missing")).collect();
        let version = if with_version { format!(" {} |", text(row, "version")) } else { String::new() };
        let name = format!("{} ({})", text(row, "name"), text(row, "family"));
        writeln!(out, "| {name} | {} |{version} {} |", text(row, "form"), found.join(" | ")).unwrap();
    }
}

/// The claims of the section: the rows of both tables without versions, and the notes. What is read and
/// requested may differ between machines.
fn verdicts(section: &str) -> BTreeMap<(usize, String), Vec<String>> {
    let (claims, _) = section.split_once("### What a person reads").unwrap_or((section, ""));
    let mut found = BTreeMap::new();
    let mut tables = 0;
    for line in claims.lines() {
        if line.starts_with("| client |") {
            tables += 1;
        }
        let cells: Vec<String> =
            line.trim_matches(['|', ' ']).split(" | ").map(|cell| cell.trim().to_string()).collect();
        match cells.as_slice() {
            [client, form, cells @ ..] if line.starts_with("| ") && !line.starts_with("| ---") => {
                let skipped = usize::from(tables == 1).min(cells.len());
                found.insert((tables, format!("{client} {form}")), cells[skipped..].to_vec());
            }
            _ if line.starts_with("- ") => {
                found.insert((0, line.to_string()), vec![]);
            }
            _ => {}
        }
    }
    found
}

#[test]
fn the_section_claims_verdicts_and_reasons_and_no_versions() {
    let row = |version: &str, refused: &str, notes: Value| {
        let mut cells: serde_json::Map<String, Value> =
            FINDS.iter().chain(&BEARS).map(|(cell, _)| ((*cell).to_string(), "yes".into())).collect();
        cells.insert("refused".into(), refused.into());
        serde_json::json!({
            "name": "a", "family": "A", "form": "IMDS", "cloud": "aws", "version": version, "cells": cells,
            "notes": notes, "asked": ["/x"], "errors": {}, "silent": {}, "seconds": {"absent": 0.5},
            "texts": {"refused": "no", "absent": ""},
        })
    };
    let reason = serde_json::json!({"refused, slow": "says nothing"});
    let good = row("1", "shown", Value::Null);
    assert_eq!(fault(&good), None);
    assert!(fault(&row("1", "not shown", Value::Null)).unwrap().contains("refused: not shown"));
    assert!(fault(&row("1", "shown", reason.clone())).unwrap().contains("refused: shown"));
    let mut slow = good.clone();
    slow["seconds"]["absent"] = 16.0.into();
    assert!(fault(&slow).unwrap().contains("after 16"));
    let of = |row: Value| {
        let document = document(&serde_json::json!({"rows": [row]}), "");
        format!("# Before\n\n{HEADING}\n{document}")
    };
    let (first, newer) = (of(good.clone()), of(row("2", "shown", Value::Null)));
    assert_eq!(verdicts(&kept(&first)), verdicts(&kept(&newer)));
    assert_eq!(verdicts(&kept(&first)).len(), 4, "two rows and two headings");
    let changed = of(row("1", "not shown", reason));
    let (of_first, of_changed) = (verdicts(&kept(&first)), verdicts(&kept(&changed)));
    assert_eq!(out_of_date(&of_first, &of_changed).len(), 2, "a row of the second table and its note");
    let said = out_of_date(&verdicts(""), &of_first);
    assert_eq!(
        said.iter().filter(|line| line.contains("no line for") && line.contains("a (A) IMDS")).count(),
        2
    );
    assert!(changed.contains("- **a**, IMDS, 2 s, refused: says nothing."), "{changed}");
    assert_eq!(format!("{}{}", without(&first), kept(&first)), first);
    assert_eq!((kept("# Before\n"), without("# Before\n")), (String::new(), "# Before\n"));
    let away = [serde_json::json!({"name": "a", "family": "A", "form": "IMDS", "why": "not here"})];
    let elsewhere = |was: &str| {
        let without_it = document(&serde_json::json!({"rows": [], "absent": away}), &kept(was));
        format!("# Before\n\n{HEADING}\n{without_it}")
    };
    let later = elsewhere(&changed);
    assert_eq!(verdicts(&kept(&later)), verdicts(&kept(&changed)));
    assert_eq!(later, changed.replace("| IMDS | 1 |", "| IMDS | 1, earlier run |"));
    assert_eq!(elsewhere(&later), later);
    let google = |after: f64, error: &str| google_fault(&serde_json::json!({"after": after, "error": error}));
    assert_eq!(google(0.2, "DefaultCredentialsError: not found"), None);
    assert!(google(3.5, "DefaultCredentialsError: not found").is_some());
    let forbidden = |code: u8| {
        forbidden_fault(&serde_json::json!({"code": code, "said": "role/kfp-forbidden (403 AccessDenied)"}))
    };
    assert!(forbidden(66).is_none() && forbidden(0).is_some());
    assert!(
        google(0.2, "RefreshError: x").is_some()
            && google_fault(&serde_json::json!({"after": 0.2})).is_some()
    );
}
