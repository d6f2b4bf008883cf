//! Recognises files of known tools that are logins as a whole: kubeconfigs, registries, `.netrc`, gcloud's
//! databases.

use super::SecretKind;
use super::encoded::base64;
use super::fields::{Plain, fields, filled};
use super::text::{has, is_base64, is_stand_in, is_strong, is_template};
use super::work::Work;

type Accept<'a> = &'a dyn Fn(SecretKind, &[u8]) -> Option<SecretKind>;

/// gcloud keeps logins in `credentials.db` and tokens in `access_tokens.db`; a database without rows is
/// harmless.
pub(super) fn database(bytes: &[u8], work: &Work) -> Option<SecretKind> {
    work.add(bytes.len() * 7);
    // Its table is `credentials (account_id TEXT PRIMARY KEY, value BLOB)`; another database may have the words.
    let logins = has(bytes, "credentials") && (has(bytes, "account_id TEXT") || !has(bytes, "CREATE TABLE"));
    let filled = has(bytes, "refresh_token") || has(bytes, "private_key") || has(bytes, "external_account");
    let tokens = has(bytes, "access_tokens") && has(bytes, "ya29.");
    ((logins && filled) || tokens).then_some(SecretKind::GcloudDatabase)
}

pub(super) fn kubeconfig(bytes: &[u8], work: &Work, accept: Accept<'_>) -> Option<SecretKind> {
    const STARTS: [&str; 9] = [
        "apiVersion:",
        "kind:",
        "clusters:",
        "contexts:",
        "current-context:",
        "users:",
        "preferences:",
        "{",
        "---",
    ];
    work.add(bytes.len() * 3);
    let first = first_line(bytes);
    let begins = STARTS.iter().any(|start| first.starts_with(start.as_bytes()));
    if !begins || !has(bytes, "clusters") || !has(bytes, "users") {
        return None;
    }
    fields(bytes, work).find_map(|field| {
        let made = match Plain::of(field.name).text() {
            b"clientkeydata" | b"token" => !is_stand_in(field.value),
            b"password" => !is_template(filled(bytes, &field)),
            _ => false,
        };
        made.then(|| accept(SecretKind::Kubeconfig, field.value)).flatten()
    })
}

/// `~/.docker/config.json` with a login in it; a file that only names a helper has none.
pub(super) fn registry(bytes: &[u8], work: &Work, accept: Accept<'_>) -> Option<SecretKind> {
    work.add(bytes.len() * 3);
    let new = has(bytes, "auths");
    if !new && !has(bytes, "docker.io") {
        return None;
    }
    // A document of its own, or a secret of Kubernetes that holds one as text.
    let document = first_line(bytes).starts_with(b"{") || has(bytes, "dockerconfigjson");
    fields(bytes, work).find_map(|field| {
        let made = match Plain::of(field.name).text() {
            b"auth" => is_login(field.value),
            b"password" => new && document && !is_template(filled(bytes, &field)),
            b"identitytoken" => new && is_strong(field.value, 16),
            _ => false,
        };
        made.then(|| accept(SecretKind::RegistryLogin, field.value)).flatten()
    })
}

/// Whether this is a real `USER:PASSWORD` in base64, and not a stand-in.
fn is_login(value: &[u8]) -> bool {
    let bare = value.strip_suffix(b"==").or_else(|| value.strip_suffix(b"=")).unwrap_or(value);
    let bare = &bare[..bare.len().min(4096)];
    if !bare.iter().all(|b| is_base64(*b) || matches!(b, b'-' | b'_')) {
        return false;
    }
    let plain = base64(bare);
    let Some(colon) = plain.iter().position(|b| *b == b':') else { return false };
    let (user, password) = (&plain[..colon], &plain[colon + 1..]);
    let shown = |text: &[u8]| !text.is_empty() && text.iter().all(|b| matches!(b, b'!'..=b'~'));
    shown(user) && shown(password) && !is_template(password) && user != password
}

/// The first line that is neither blank nor a comment.
fn first_line(bytes: &[u8]) -> &[u8] {
    let mut lines = bytes.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
    lines.find(|line| !line.is_empty() && !line.starts_with(b"#")).unwrap_or_default()
}

/// A file of `machine HOST login USER password SECRET`, ignoring comments and macros.
pub(super) fn netrc(bytes: &[u8], work: &Work, accept: Accept<'_>) -> Option<SecretKind> {
    work.add(bytes.len());
    let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.trim_ascii_start().starts_with(b"#"));
    let words = lines.flat_map(|line| line.split(u8::is_ascii_whitespace));
    let mut words = words.filter(|word| !word.is_empty());
    match words.next()? {
        b"machine" => drop(words.next()),
        b"default" => {}
        _ => return None,
    }
    // Prose that begins with `machine` does not continue with such a word.
    let mut last = words.next()?;
    if !matches!(last, b"login" | b"password" | b"account" | b"macdef") {
        return None;
    }
    let filled = words.any(|word| std::mem::replace(&mut last, word) == b"password" && !is_template(word));
    // A password alone is too short for a digest to identify it, as others may have chosen the same one: the
    // digest of the whole file is what tells that it was published.
    filled.then(|| accept(SecretKind::Netrc, bytes)).flatten()
}
