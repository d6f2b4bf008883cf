//! The PEM of a private key as users paste it into JSON: blanks instead of line ends, indented, quoted, on
//! one line, with a byte order mark. Google's Python libraries accept all of these.

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::secret::Secret;

/// The length of PEM lines (RFC 7468 section 2).
const LINE: usize = 64;

/// The key, and its PEM in the normal form that every parser accepts. The error completes "its private_key
/// …".
pub(super) fn private_key(
    text: &Secret<String>,
) -> Result<(PrivateKeyDer<'static>, Secret<String>), &'static str> {
    let (label, body) = block(text.expose()).ok_or("is not a PEM private key")?;
    match label {
        _ if label.starts_with("ENCRYPTED ") || body.contains("Proc-Type: 4,ENCRYPTED") => {
            return Err("is encrypted with a passphrase, which nobody can be asked for here; decrypt it \
                        (openssl pkcs8), or use the key as Google gives it");
        }
        _ if label.ends_with("PRIVATE KEY") => {}
        "CERTIFICATE" | "PUBLIC KEY" | "RSA PUBLIC KEY" => {
            return Err(
                "holds a public key or a certificate; the private key is in the file that Google gives",
            );
        }
        _ => return Err("is not a PEM private key"),
    }
    let pem = tidy(label, body).ok_or("is not a PEM private key")?;
    let der =
        PrivateKeyDer::from_pem_slice(pem.expose().as_bytes()).map_err(|_| "is not a PEM private key")?;
    Ok((der, pem))
}

/// Label and body of the private key among the blocks of `text` (a certificate may precede it), else of the
/// first block.
fn block(text: &str) -> Option<(&str, &str)> {
    let mut first = None;
    let mut rest = text;
    while let Some((_, begun)) = rest.split_once("-----BEGIN ") {
        let (label, begun) = begun.split_once("-----")?;
        let (body, ended) = begun.split_once("-----END ")?;
        if label.ends_with("PRIVATE KEY") {
            return Some((label, body));
        }
        first = first.or(Some((label, body)));
        rest = ended;
    }
    first
}

/// Keeps only the base64 characters of the body, and none of its headers (RFC 1421).
fn tidy(label: &str, body: &str) -> Option<Secret<String>> {
    // Line ends that were escaped twice.
    let body = Secret::new(body.replace("\\r", "").replace("\\n", "\n"));
    let body = match body.expose().split_once("\n\n") {
        Some((headers, body)) if headers.contains(": ") => Secret::new(body.to_owned()),
        _ => body,
    };
    let encoded = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
    let blank = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\u{feff}' | ',');
    // Any other character is not a paste error.
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
