//! What a scan came to, told: as text, as JSON lines, as SARIF. What a baseline knows is left out.
//!
//! Nothing here has the secret. A find's fingerprint is a digest of its kind and its place below the target, not of
//! what was found: a digest of a short password would be a way to guess it. So a new key of the same kind at the same
//! place is known as well.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;

use serde_json::{Value, json};

use crate::guard::image::{Located, Report};
use crate::guard::{Kind, Rules};

/// How it is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    Text,
    /// One object a line: first the finds, then what is not verified.
    Json,
    /// SARIF 2.1.0, one document.
    Sarif,
}

/// Fingerprints that somebody has looked at: those in the output of an earlier `scan --json`.
#[derive(Clone, Debug, Default)]
pub(super) struct Baseline(BTreeSet<String>);

impl Baseline {
    /// # Errors
    /// Where a line is no object with a fingerprint; without a word of its content.
    pub(super) fn read(text: &str) -> io::Result<Self> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let known = lines.map(|(number, line)| {
            let object: Option<Value> = serde_json::from_str(line).ok();
            let fingerprint = object.as_ref().and_then(|object| object["fingerprint"].as_str());
            fingerprint.map(String::from).ok_or_else(|| {
                let why = format!("line {} has no fingerprint; it is the output of scan --json", number + 1);
                io::Error::new(io::ErrorKind::InvalidData, why)
            })
        });
        known.collect::<io::Result<_>>().map(Self)
    }
}

/// What counts of a report, in a fixed order, and how many finds the baseline knows.
#[derive(Debug)]
pub(super) struct Said<'a> {
    target: &'a str,
    finds: Vec<&'a Located>,
    unverified: Vec<&'a str>,
    pub(super) known: usize,
}

impl<'a> Said<'a> {
    pub(super) fn of(report: &'a Report, target: &'a str, rules: &Rules, baseline: &Baseline) -> Self {
        let mut finds: Vec<&Located> =
            report.finds.iter().filter(|find| !rules.allows_inside(&find.place)).collect();
        finds.sort_by_key(|find| (&find.place, &find.layer, find.line, id(find.kind)));
        finds.dedup();
        let mut unverified: Vec<&str> = report.unverified.iter().map(String::as_str).collect();
        unverified.sort_unstable();
        let all = finds.len() + unverified.len();
        finds.retain(|find| !baseline.0.contains(&fingerprint(find)));
        unverified.retain(|what| !baseline.0.contains(&digest(&["not verified", what])));
        let known = all - finds.len() - unverified.len();
        Self { target, finds, unverified, known }
    }

    /// How many finds, and how many places that could not be looked at.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.finds.len(), self.unverified.len())
    }

    pub(super) fn tell(&self, form: Form, print: &impl Fn(&str)) {
        match form {
            Form::Text => self.text(print),
            Form::Json => self.json(print),
            Form::Sarif => print(&self.sarif().to_string()),
        }
    }

    fn text(&self, print: &impl Fn(&str)) {
        for find in &self.finds {
            let line = find.line.map(|line| format!(":{line}")).unwrap_or_default();
            let layer = find.layer.as_ref().map(|layer| format!("  in layer {layer}")).unwrap_or_default();
            let deleted = if find.deleted { ", deleted by a later layer and still in the image" } else { "" };
            print(&one_line(&format!("{}{line}: {}{layer}{deleted}", find.place, find.kind)));
        }
        for what in &self.unverified {
            print(&one_line(&format!("not verified: {what}")));
        }
        let known = match self.known {
            0 => String::new(),
            known => format!(" beside {known} that the baseline knows"),
        };
        if self.counts() == (0, 0) {
            print(&one_line(&format!("{}: no key found{known}", self.target)));
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
    }

    /// One run. Places are relative to what was scanned; what was not verified is a notification of the invocation.
    fn sarif(&self) -> Value {
        let rules: Vec<Value> = Kind::ALL
            .iter()
            .map(|kind| json!({ "id": id(*kind), "shortDescription": { "text": kind.to_string() } }))
            .collect();
        let results: Vec<Value> = self.finds.iter().map(|find| self.result(find)).collect();
        let notifications: Vec<Value> = self
            .unverified
            .iter()
            .map(|what| json!({ "level": "warning", "message": { "text": format!("not verified: {what}") } }))
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
        // What is in an archive has no line of a file that the reader has.
        if let Some(line) = find.line.filter(|_| find.layer.is_none() && !find.place.contains("!/")) {
            place["region"] = json!({ "startLine": line });
        }
        let layer = find.layer.as_ref().map(|layer| format!(" in layer {layer}")).unwrap_or_default();
        json!({
            "ruleId": id(find.kind),
            "ruleIndex": Kind::ALL.iter().position(|kind| *kind == find.kind),
            "level": "error",
            "message": { "text": format!("{} holds {}{layer}", find.place, find.kind) },
            "locations": [{ "physicalLocation": place }],
            "partialFingerprints": { "kfpCreds/v1": fingerprint(find) },
        })
    }
}

/// The name of a kind for programs: `private-key`.
fn id(kind: Kind) -> String {
    let mut id = String::new();
    for letter in format!("{kind:?}").chars() {
        if letter.is_ascii_uppercase() && !id.is_empty() {
            id.push('-');
        }
        id.push(letter.to_ascii_lowercase());
    }
    id
}

/// Of a kind and a place: neither the layer, which every build names anew, nor the line, which moves.
fn fingerprint(find: &Located) -> String {
    digest(&[&id(find.kind), &find.place])
}

fn digest(parts: &[&str]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(part.as_bytes());
        context.update(&[0]);
    }
    let mut text = String::from("v1:");
    for byte in context.finish().as_ref().iter().take(16) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A relative reference (RFC 3986): what has a meaning in one is escaped.
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

/// Names come out of archives.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
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
        };
        Report {
            finds: vec![
                find("z/key.json", Kind::ServiceAccountKey, Some(3), None),
                find("a b/x.whl!/.env", Kind::AwsKey, Some(1), None),
                find("a/id_rsa", Kind::PrivateKey, Some(1), Some("1/layer.tar")),
                find("z/key.json", Kind::ServiceAccountKey, Some(3), None),
            ],
            unverified: vec!["x.zip!/b: it is encrypted".into()],
            bytes: 1,
        }
    }

    fn told(form: Form, baseline: &Baseline) -> (Vec<String>, (usize, usize), usize) {
        let (report, lines) = (report(), RefCell::new(vec![]));
        let said = Said::of(&report, "t", &Rules::default(), baseline);
        said.tell(form, &|line| lines.borrow_mut().push(line.to_string()));
        (lines.into_inner(), said.counts(), said.known)
    }

    #[test]
    fn one_object_for_each_find_in_a_stable_order_and_a_baseline_takes_them_out() {
        let (lines, counts, _) = told(Form::Json, &Baseline::default());
        assert_eq!(counts, (3, 1));
        let objects: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let column = |name: &str| objects.iter().map(|one| one[name].clone()).collect::<Vec<_>>();
        let none = Value::Null;
        assert_eq!(column("path"), [json!("a b/x.whl!/.env"), json!("a/id_rsa"), json!("z/key.json"), none]);
        assert_eq!(column("event"), ["find", "find", "find", "not-verified"]);
        assert_eq!(column("kind")[..3], ["aws-key", "private-key", "service-account-key"]);
        assert_eq!(column("line")[..3], [1, 1, 3]);
        assert_eq!(objects[1]["layer"], "1/layer.tar");
        let all = Baseline::read(&lines.join("\n")).unwrap();
        assert_eq!(told(Form::Json, &all), (vec![], (0, 0), 4));
        assert_eq!(told(Form::Text, &all).0, ["t: no key found beside 4 that the baseline knows"]);
        let some = Baseline::read(&lines[1]).unwrap();
        assert_eq!(told(Form::Json, &some).1, (2, 1));
        let why = Baseline::read("{\"fingerprint\": \"v1:1\"}\nsecret").unwrap_err().to_string();
        assert!(why.contains("line 2") && !why.contains("secret"), "{why}");
    }

    /// What section 3 of SARIF 2.1.0 asks of the properties that are here.
    #[test]
    fn the_sarif_has_the_shape_that_code_hosts_read() {
        let (lines, ..) = told(Form::Sarif, &Baseline::default());
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
        assert!(invocation["toolExecutionNotifications"][0]["message"]["text"].is_string());
    }
}
