//! The PEM of a private key as users paste it into JSON: blanks instead of line ends, indented, quoted, on
//! one line, with a byte order mark. Google's Python libraries accept all of these.

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::secret::Secret;

/// The length of PEM lines (RFC 7468 section 2).
const LINE: usize = 64;

/// The key, and its PEM in the normal form that every parser accepts.
pub(super) fn private_key(text: &Secret<String>) -> Option<(PrivateKeyDer<'static>, Secret<String>)> {
    let pem = tidy(text)?;
    let der = PrivateKeyDer::from_pem_slice(pem.expose().as_bytes()).ok()?;
    Some((der, pem))
}

/// Keeps only the base64 characters between the BEGIN and END lines.
fn tidy(text: &Secret<String>) -> Option<Secret<String>> {
    let (_, rest) = text.expose().split_once("-----BEGIN ")?;
    let (label, rest) = rest.split_once("-----")?;
    let (body, _) = rest.split_once("-----END ")?;
    // Line ends that were escaped twice.
    let body = Secret::new(body.replace("\\r", "").replace("\\n", "\n"));
    let encoded = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
    let blank = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\u{feff}' | ',');
    // Any other character is not a paste error: an encrypted key has headers.
    if body.expose().chars().any(|c| !encoded(&c) && !blank(c)) {
        return None;
    }
    // The buffer never grows, so that no copy of its beginning is left in memory.
    let mut tidy = Zeroizing::new(String::with_capacity(body.expose().len() * 2));
    for (at, c) in body.expose().chars().filter(encoded).enumerate() {
        if at % LINE == 0 {
            tidy.push('\n');
        }
        tidy.push(c);
    }
    Some(Secret::new(format!("-----BEGIN {label}-----{}\n-----END {label}-----\n", *tidy)))
}
