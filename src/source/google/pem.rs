//! The PEM of a private key as people paste it into JSON: with blanks in the place of line ends, indented, quoted, on
//! one line, with a byte order mark. Google's libraries for Python take all of these.

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::secret::Secret;

/// As long as the lines of PEM are (RFC 7468 section 2).
const LINE: usize = 64;

/// The key and its PEM in the one form that every reader takes.
pub(super) fn private_key(text: &Secret<String>) -> Option<(PrivateKeyDer<'static>, Secret<String>)> {
    let pem = tidy(text)?;
    let der = PrivateKeyDer::from_pem_slice(pem.expose().as_bytes()).ok()?;
    Some((der, pem))
}

/// Only what stands between the two lines counts, and of that what base64 is made of.
fn tidy(text: &Secret<String>) -> Option<Secret<String>> {
    let (_, rest) = text.expose().split_once("-----BEGIN ")?;
    let (label, rest) = rest.split_once("-----")?;
    let (body, _) = rest.split_once("-----END ")?;
    // Line ends that were escaped once too often.
    let body = Secret::new(body.replace("\\r", "").replace("\\n", "\n"));
    let encoded = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
    let blank = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\u{feff}' | ',');
    // Another character than those is no accident of pasting: an encrypted key has headers.
    if body.expose().chars().any(|c| !encoded(&c) && !blank(c)) {
        return None;
    }
    // Never grown, so that no copy of its beginning is left behind.
    let mut tidy = Zeroizing::new(String::with_capacity(body.expose().len() * 2));
    for (at, c) in body.expose().chars().filter(encoded).enumerate() {
        if at % LINE == 0 {
            tidy.push('\n');
        }
        tidy.push(c);
    }
    Some(Secret::new(format!("-----BEGIN {label}-----{}\n-----END {label}-----\n", *tidy)))
}
