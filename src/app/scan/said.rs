//! Prints the result of a scan: as text, as JSON lines, as SARIF. Finds in the baseline are left out.
//!
//! No secret gets here. A find's fingerprint is a digest of its kind and its place below the target, not of
//! the secret: a digest of a short password would allow guessing it. So a new key of the same kind at the
//! same place counts as known, too.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;

use serde_json::{Value, json};

use crate::console::printable;
use crate::guard::found::PassedOver;
use crate::guard::image::{Located, Report};
use crate::guard::{GuardRules, SecretKind};
use crate::quote;

/// The output format.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReportFormat {
    Text,
    /// One object per line: first the finds, then unverified parts, then published keys.
    Json,
    /// SARIF 2.1.0, one document.
    Sarif,
}

/// The event of published keys, which are no finds and are ignored in a baseline.
const PUBLISHED: &str = "published";

/// Fingerprints of reviewed finds: those in the output of an earlier `scan --json`.
#[derive(Clone, Debug, Default)]
pub(super) struct Baseline(BTreeSet<String>);

impl Baseline {
    /// # Errors
    /// If a line is no object with a fingerprint; the error does not quote its content.
    pub(super) fn read(text: &str) -> io::Result<Self> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let known = lines.filter_map(|(number, line)| {
            let object: Option<Value> = serde_json::from_str(line).ok();
            if object.as_ref().is_some_and(|object| object["event"] == PUBLISHED) {
                return None;
            }
            let fingerprint = object.as_ref().and_then(|object| object["fingerprint"].as_str());
            Some(fingerprint.map(String::from).ok_or_else(|| {
                let why = format!("line {} has no fingerprint; it is the output of scan --json", number + 1);
                io::Error::new(io::ErrorKind::InvalidData, why)
            }))
        });
        known.collect::<io::Result<_>>().map(Self)
    }
}

/// The reported part of a scan, in a fixed order, and the number of finds that the baseline knows.
#[derive(Debug)]
pub(super) struct ScanReport<'a> {
    target: &'a str,
    finds: Vec<&'a Located>,
    unverified: Vec<&'a str>,
    passed: &'a PassedOver,
    pub(super) known: usize,
}

impl<'a> ScanReport<'a> {
    pub(super) fn of(report: &'a Report, target: &'a str, rules: &GuardRules, baseline: &Baseline) -> Self {
        let mut finds: Vec<&Located> =
            report.finds.iter().filter(|find| !rules.allows_find(&find.place, &find.exception)).collect();
        finds.sort_by_key(|find| (&find.place, &find.layer, find.line, id(find.kind)));
        finds.dedup();
        let mut unverified: Vec<&str> = report.unverified.iter().map(String::as_str).collect();
        unverified.sort_unstable();
        let all = finds.len() + unverified.len();
        finds.retain(|find| !baseline.0.contains(&fingerprint(find)));
        unverified.retain(|what| !baseline.0.contains(&digest(&["not verified", what])));
        let known = all - finds.len() - unverified.len();
        Self { target, finds, unverified, passed: &report.passed, known }
    }

    /// The number of finds, and of places that could not be scanned.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.finds.len(), self.unverified.len())
    }

    pub(super) fn tell(&self, form: ReportFormat, print: &impl Fn(&str)) {
        match form {
            ReportFormat::Text => self.text(print),
            ReportFormat::Json => self.json(print),
            ReportFormat::Sarif => print(&self.sarif().to_string()),
        }
    }

    fn text(&self, print: &impl Fn(&str)) {
        for find in &self.finds {
            let line = find.line.map(|line| format!(":{line}")).unwrap_or_default();
            let layer = find.layer.as_ref().map(|layer| format!("  in layer {layer}")).unwrap_or_default();
            let deleted = if find.deleted { ", deleted by a later layer and still in the image" } else { "" };
            print(&printable(&format!("{}{line}: {}{layer}{deleted}", find.place, find.kind)));
        }
        for what in &self.unverified {
            print(&printable(&format!("not verified: {what}")));
        }
        if let Some(note) = self.passed.told() {
            print(&printable(&format!("note: {note}")));
        }
        let known = match self.known {
            0 => String::new(),
            known => format!(" besides {known} that the baseline lists"),
        };
        if self.counts() == (0, 0) {
            print(&printable(&format!("{}: no key found{known}", self.target)));
        }
    }

    fn json(&self, print: &impl Fn(&str)) {
        for find in &self.finds {
            print(
                &json!({
                    "event": "find",
                    "path": find.place,
                    "line": find.line,
                    "layer": find.layer,
                    "deleted": find.deleted,
                    "kind": id(find.kind),
                    "what": find.kind.to_string(),
                    "fingerprint": fingerprint(find),
                })
                .to_string(),
            );
        }
        for what in &self.unverified {
            let fingerprint = digest(&["not verified", what]);
            print(&json!({ "event": "not-verified", "what": what, "fingerprint": fingerprint }).to_string());
        }
        if let Some(note) = self.passed.told() {
            let PassedOver { keys, files, first } = self.passed;
            let line =
                json!({ "event": PUBLISHED, "keys": keys, "files": files, "path": first, "what": note });
            print(&line.to_string());
        }
    }

    /// One run. Places are relative to the scanned target; unverified parts are notifications of the
    /// invocation.
    fn sarif(&self) -> Value {
        let rules: Vec<Value> = SecretKind::ALL
            .iter()
            .map(|kind| json!({ "id": id(*kind), "shortDescription": { "text": kind.to_string() } }))
            .collect();
        let results: Vec<Value> = self.finds.iter().map(|find| self.result(find)).collect();
        let notifications: Vec<Value> = self
            .unverified
            .iter()
            .map(|what| json!({ "level": "warning", "message": { "text": format!("not verified: {what}") } }))
            .chain(self.passed.told().map(|note| json!({ "level": "note", "message": { "text": note } })))
            .collect();
        json!({
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{
                "tool": { "driver": {
                    "name": "kfp-creds",
                    "version": env!("CARGO_PKG_VERSION"),
                    "rules": rules,
                } },
                "invocations": [{
                    "executionSuccessful": self.unverified.is_empty(),
                    "toolExecutionNotifications": notifications,
                }],
                "results": results,
            }],
        })
    }

    fn result(&self, find: &Located) -> Value {
        let mut place = json!({ "artifactLocation": { "uri": uri(&find.place), "uriBaseId": "%SRCROOT%" } });
        // A line number inside an archive refers to no file that the reader has.
        if let Some(line) = find.line.filter(|_| find.layer.is_none() && !find.place.contains("!/")) {
            place["region"] = json!({ "startLine": line });
        }
        let layer = find.layer.as_ref().map(|layer| format!(" in layer {layer}")).unwrap_or_default();
        json!({
            "ruleId": id(find.kind),
            "ruleIndex": SecretKind::ALL.iter().position(|kind| *kind == find.kind),
            "level": "error",
            "message": { "text": format!("{} holds {}{layer}", find.place, find.kind) },
            "locations": [{ "physicalLocation": place }],
            "partialFingerprints": { "kfpCreds/v1": fingerprint(find) },
        })
    }
}

/// The machine-readable name of a kind: `private-key`.
fn id(kind: SecretKind) -> String {
    let mut id = String::new();
    for letter in format!("{kind:?}").chars() {
        if letter.is_ascii_uppercase() && !id.is_empty() {
            id.push('-');
        }
        id.push(letter.to_ascii_lowercase());
    }
    id
}

/// A digest of the kind and the place, without the layer, which changes with every build, and without the
/// line, which moves.
fn fingerprint(find: &Located) -> String {
    digest(&[&id(find.kind), &find.place])
}

fn digest(parts: &[&str]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(part.as_bytes());
        context.update(&[0]);
    }
    format!("v1:{}", quote::hex(&context.finish().as_ref()[..16]))
}

/// A relative reference (RFC 3986), with its reserved characters escaped.
fn uri(place: &str) -> String {
    let mut uri = String::new();
    for byte in place.trim_start_matches("./").bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b'!' => {
                uri.push(char::from(byte));
            }
            _ => {
                let _ = write!(uri, "%{byte:02X}");
            }
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn report() -> Report {
        let find = |place: &str, kind, line, layer: Option<&str>| Located {
            kind,
            place: place.into(),
            layer: layer.map(String::from),
            line,
            deleted: false,
            exception: Default::default(),
        };
        Report {
            finds: vec![
                find("z/key.json", SecretKind::ServiceAccountKey, Some(3), None),
                find("a b/x.whl!/.env", SecretKind::AwsKey, Some(1), None),
                find("a/id_rsa", SecretKind::PrivateKey, Some(1), Some("1/layer.tar")),
                find("z/key.json", SecretKind::ServiceAccountKey, Some(3), None),
            ],
            unverified: vec!["x.zip!/b: it is encrypted".into()],
            passed: PassedOver { keys: 3, files: 2, first: "lib/test.py".into() },
            bytes: 1,
        }
    }

    fn told(form: ReportFormat, baseline: &Baseline) -> (Vec<String>, (usize, usize), usize) {
        let (report, lines) = (report(), RefCell::new(vec![]));
        let said = ScanReport::of(&report, "t", &GuardRules::default(), baseline);
        said.tell(form, &|line| lines.borrow_mut().push(line.to_string()));
        (lines.into_inner(), said.counts(), said.known)
    }

    #[test]
    fn finds_have_a_stable_order_and_a_baseline_removes_them() {
        let (lines, counts, _) = told(ReportFormat::Json, &Baseline::default());
        assert_eq!(counts, (3, 1));
        let objects: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let column = |name: &str| objects.iter().map(|one| one[name].clone()).collect::<Vec<_>>();
        let none = Value::Null;
        let published = json!("lib/test.py");
        assert_eq!(
            column("path"),
            [json!("a b/x.whl!/.env"), json!("a/id_rsa"), json!("z/key.json"), none, published]
        );
        assert_eq!(column("event"), ["find", "find", "find", "not-verified", "published"]);
        assert_eq!((&objects[4]["keys"], &objects[4]["files"]), (&json!(3), &json!(2)));
        let note = "3 published test keys in lib/test.py and 1 more file: known by digest, not refused";
        assert_eq!(objects[4]["what"], note);
        assert_eq!(column("kind")[..3], ["aws-key", "private-key", "service-account-key"]);
        assert_eq!(column("line")[..3], [1, 1, 3]);
        assert_eq!(objects[1]["layer"], "1/layer.tar");
        let all = Baseline::read(&lines.join("\n")).unwrap();
        assert_eq!(told(ReportFormat::Json, &all), (vec![lines[4].clone()], (0, 0), 4));
        let clean = "t: no key found besides 4 that the baseline lists";
        assert_eq!(told(ReportFormat::Text, &all).0, [&format!("note: {note}"), clean]);
        let some = Baseline::read(&lines[1]).unwrap();
        assert_eq!(told(ReportFormat::Json, &some).1, (2, 1));
        let why = Baseline::read("{\"fingerprint\": \"v1:1\"}\nsecret").unwrap_err().to_string();
        assert!(why.contains("line 2") && !why.contains("secret"), "{why}");
    }

    /// The requirements of section 3 of SARIF 2.1.0 for the properties in use.
    #[test]
    fn the_sarif_has_the_shape_that_code_hosts_read() {
        let (lines, ..) = told(ReportFormat::Sarif, &Baseline::default());
        let log: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!((lines.len(), &log["version"]), (1, &json!("2.1.0")));
        let run = &log["runs"][0];
        let driver = &run["tool"]["driver"];
        assert_eq!((&driver["name"], log["runs"].as_array().unwrap().len()), (&json!("kfp-creds"), 1));
        let rules = driver["rules"].as_array().unwrap();
        let results = run["results"].as_array().unwrap();
        assert_eq!(results.len(), 3);
        for result in results {
            let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
            assert_eq!(rules[index]["id"], result["ruleId"]);
            assert!(["none", "note", "warning", "error"].contains(&result["level"].as_str().unwrap()));
            assert!(!result["message"]["text"].as_str().unwrap().is_empty());
            let place = &result["locations"][0]["physicalLocation"];
            let uri = place["artifactLocation"]["uri"].as_str().unwrap();
            assert!(!uri.contains(' ') && !uri.starts_with('/'), "{uri}");
            assert!(place["region"].is_null() || place["region"]["startLine"].as_u64().unwrap() > 0);
            assert!(result["partialFingerprints"].as_object().unwrap().values().all(Value::is_string));
        }
        assert_eq!(
            results[0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"],
            "a%20b/x.whl!/.env"
        );
        assert_eq!(results[2]["locations"][0]["physicalLocation"]["region"]["startLine"], 3);
        let invocation = &run["invocations"][0];
        assert_eq!(invocation["executionSuccessful"], false);
        let notifications = &invocation["toolExecutionNotifications"];
        assert_eq!(
            (&notifications[0]["level"], &notifications[1]["level"]),
            (&json!("warning"), &json!("note"))
        );
        assert!(notifications.as_array().unwrap().iter().all(|one| one["message"]["text"].is_string()));
    }
}
