//! Searches the output of a program for secrets that it processed, in every form in which they could appear.

use std::fmt::Write;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Secrets of a test, each with a description.
#[derive(Clone, Debug, Default)]
pub(crate) struct Canaries(Vec<(String, String)>);

/// Shorter secrets would be found by chance.
const SHORTEST: usize = 10;
/// This much of a long secret is a leak: logs truncate long lines.
const PIECE: usize = 24;

impl Canaries {
    /// Adds a secret, and its secret parts: the lines of a PEM, the claims and the signature of a JWT (its
    /// header is not secret), the beginning and the end of a long text.
    pub(crate) fn add(&mut self, what: &str, secret: &str) {
        if secret.starts_with("eyJ") && secret.matches('.').count() == 2 {
            secret.split('.').skip(1).for_each(|part| self.add(what, part));
            return;
        }
        for line in secret.lines().filter(|line| !line.starts_with("-----")) {
            assert!(
                line.len() >= SHORTEST || secret.lines().count() > 1,
                "{what} is too short to search for"
            );
            if line.len() >= 2 * PIECE && line.is_ascii() {
                self.0.push((what.into(), line[..PIECE].into()));
                self.0.push((what.into(), line[line.len() - PIECE..].into()));
            } else if line.len() >= SHORTEST {
                self.0.push((what.into(), line.into()));
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The secrets that `text` contains, and in which form; no result is good. The findings do not repeat the
    /// secret.
    pub(crate) fn found_in(&self, text: &str) -> Vec<String> {
        let mut found = vec![];
        for (what, secret) in &self.0 {
            for (form, written) in forms(secret) {
                if let Some(at) = text.find(&written) {
                    let line = text[..at].rfind('\n').map_or(0, |at| at + 1);
                    let before: String = text[line..at].chars().take(160).collect();
                    found.push(format!("{what}, {form}, after {before:?}"));
                    break; // plain secrets look the same in several forms
                }
            }
        }
        found
    }

    /// Fails the test and lists every place that contains a secret.
    pub(crate) fn assert_absent(&self, place: &str, text: &str) {
        let found = self.found_in(text);
        assert!(found.is_empty(), "secrets in {place}:\n{}", found.join("\n"));
    }
}

/// Every form in which the secret could have been written.
fn forms(secret: &str) -> Vec<(String, String)> {
    let bytes = secret.as_bytes();
    let mut forms = vec![
        ("raw".to_string(), secret.to_string()),
        ("JSON".into(), inner(&serde_json::to_string(secret).unwrap())),
        (
            "JSON with escaped slashes".into(),
            inner(&serde_json::to_string(secret).unwrap()).replace('/', "\\/"),
        ),
        ("debug".into(), inner(&format!("{secret:?}"))),
        ("form".into(), url::form_urlencoded::byte_serialize(bytes).collect()),
        ("URL".into(), escaped(bytes, "%", true)),
        ("URL in lower case".into(), escaped(bytes, "%", false)),
        ("URL, everything".into(), bytes.iter().fold(String::new(), |text, b| text + &format!("%{b:02X}"))),
        ("hex".into(), bytes.iter().fold(String::new(), |text, b| text + &format!("{b:02x}"))),
        ("bytes".into(), bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ")),
    ];
    for shift in 0..3 {
        for (name, engine) in [("base64", &STANDARD_NO_PAD), ("base64url", &URL_SAFE_NO_PAD)] {
            let moved = engine.encode([&vec![0; shift], bytes].concat());
            // Characters at the ends also encode bits of the neighbouring bytes, so they are left out.
            let start = (shift * 8).div_ceil(6);
            let end = (shift + bytes.len()) * 8 / 6;
            forms.push((format!("{name} at {shift}"), moved[start..end].into()));
        }
    }
    forms
}

fn inner(quoted: &str) -> String {
    quoted[1..quoted.len() - 1].into()
}

fn escaped(bytes: &[u8], mark: &str, upper: bool) -> String {
    bytes.iter().fold(String::new(), |mut text, &byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else if upper {
            let _ = write!(text, "{mark}{byte:02X}");
        } else {
            let _ = write!(text, "{mark}{byte:02x}");
        }
        text
    })
}
