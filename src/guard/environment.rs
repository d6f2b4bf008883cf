//! Judges variables: by name for known secrets, and by content for all. A key that was given without a name
//! (`-e "$(cat key)"`) is the name itself, up to its first `=`, so names are judged as well.

use super::rules::SECRET;
use super::text::{is_azurites, is_stand_in, is_strong};
use super::{SecretKind, what};
use crate::quote;

/// Shorter values under these names are stand-ins of emulators (`minio123`, `test`).
const SHORTEST: usize = 16;
/// Shorter passwords are stand-ins; people choose passwords, so they may be shorter than secrets of machines.
const SHORTEST_PASSWORD: usize = 8;

/// A key in a variable, a label or a build argument.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Held<'a> {
    pub kind: SecretKind,
    /// As the client gave it; it may hold the key, so messages show `shown` instead.
    pub name: &'a str,
    /// The name, or else its shape.
    pub shown: String,
    /// Whether `name` may be shown.
    pub plain: bool,
}

impl<'a> Held<'a> {
    fn at(name: &'a str, kind: SecretKind) -> Self {
        Self { kind, name, shown: quote::name(name), plain: quote::is_plain(name) }
    }

    /// The name itself holds the key, whether or not it has the shape of one.
    fn as_name(name: &'a str, kind: SecretKind) -> Self {
        let shown = if quote::is_plain(name) { "(a key, not shown)".into() } else { quote::name(name) };
        Self { kind, name, shown, plain: false }
    }
}

/// Judges `NAME=value` or `NAME`.
pub fn variable(entry: &str) -> Option<Held<'_>> {
    let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
    pair(name, value.as_bytes())
}

/// Judges a name and its value.
pub fn pair<'a>(name: &'a str, value: &[u8]) -> Option<Held<'a>> {
    if let Some(kind) = named(name, value) {
        return Some(Held::at(name, kind));
    }
    // The `=` may be the padding of a key.
    let whole = || match quote::is_plain(name) {
        true => None,
        false => what(&[name.as_bytes(), b"=", value].concat()),
    };
    what(name.as_bytes()).or_else(whole).map(|kind| Held::as_name(name, kind))
}

/// Judges a value under its name.
fn named(name: &str, value: &[u8]) -> Option<SecretKind> {
    let bare = value.trim_ascii();
    let by_name = SECRET.iter().find(|(secret, _)| *secret == name).map(|(_, kind)| *kind);
    let made = || match name.ends_with("PASSWORD") {
        true => bare.len() >= SHORTEST_PASSWORD && !is_stand_in(bare),
        false => is_strong(bare, SHORTEST) && !bare.iter().any(u8::is_ascii_whitespace),
    };
    if let Some(kind) = by_name
        && made()
        && !is_azurites(bare)
    {
        return Some(kind);
    }
    what(bare)
}

/// Judges an instruction of a Dockerfile: `ENV NAME=value`, `LABEL NAME=value`, `ENV NAME value`.
pub fn instruction(text: &str) -> Option<Held<'_>> {
    let (word, rest) = text.trim().split_once(char::is_whitespace)?;
    let rest = rest.trim();
    let apart = || {
        let (name, value) = rest.split_once(char::is_whitespace)?;
        pair(name, value.as_bytes())
    };
    let whole = || what(rest.as_bytes()).map(|kind| Held::at(word, kind));
    assignments(rest).find_map(variable).or_else(apart).or_else(whole)
}

/// The words `NAME=value` of an instruction.
pub(super) fn assignments(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace().filter(|word| word.contains('='))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    #[test]
    fn variables_are_judged_by_name_and_content() {
        let secret = ["wJalrXUtnFEMI7K7MDENGbPxR", "fiCYz8h2kP0aQ1L"].concat();
        for (entry, kind) in [
            (format!("AWS_SECRET_ACCESS_KEY={secret}"), Some(SecretKind::AwsKey)),
            ("AWS_SECRET_ACCESS_KEY=minio123".into(), None),
            ("AWS_SECRET_ACCESS_KEY=testing".into(), None),
            ("AWS_SECRET_ACCESS_KEY=${AWS_SECRET_ACCESS_KEY}".into(), None),
            ("AWS_SECRET_ACCESS_KEY".into(), None),
            (format!("AZURE_CLIENT_SECRET=abc8Q~{secret}"), Some(SecretKind::AzureLogin)),
            ("GOOGLE_APPLICATION_CREDENTIALS=/keys/sa.json".into(), None),
            ("OPENAI_API_KEY=sk-proj-0123456789abcdef".into(), None),
            (format!("X=aws_secret_access_key = {secret}"), Some(SecretKind::AwsKey)),
        ] {
            let set = format!("ENV A=b {entry}");
            assert_eq!(instruction(&set).map(|held| held.kind), kind, "ENV {entry}");
            assert_eq!(variable(&entry).map(|held| held.kind), kind, "{entry}");
        }
    }

    #[test]
    fn variables_of_aws_and_azure_are_told_apart_by_name() {
        let random = ["vR7tYw3NbH6c8jK2mQ9xLp4Z", "Td5Fg1Hs6Ju0Wq8"].concat();
        let signed = format!("sv=2022-11-02&se=2027-01-01&sp=r&sig={random}abcd%3D");
        for (name, value, kind) in [
            ("AZURE_STORAGE_SAS_TOKEN", signed.as_str(), Some(SecretKind::SasToken)),
            ("AZURE_STORAGE_SAS_TOKEN", &random, Some(SecretKind::SasToken)),
            ("AZURE_STORAGE_SAS_TOKEN", "sv=2022-11-02&sig=<signature>", None),
            // A person's password, and a stand-in for one.
            ("AZURE_CLIENT_CERTIFICATE_PASSWORD", "horse7battery", Some(SecretKind::SecretVariable)),
            ("AZURE_CLIENT_CERTIFICATE_PASSWORD", "changeme", None),
            ("AWS_BEARER_TOKEN_BEDROCK", &random, Some(SecretKind::SecretVariable)),
            ("AWS_BEARER_TOKEN_BEDROCK", "${BEDROCK_TOKEN}", None),
            // Good for the container that has them only, or names of files.
            ("IDENTITY_HEADER", &random, None),
            ("IDENTITY_ENDPOINT", "http://169.254.168.2/msi/token", None),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", &format!("/v2/credentials/{random}"), None),
            (
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                &format!("http://127.0.0.1:8174/{random}/v2/credentials"),
                None,
            ),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", &random, None),
            ("AZURE_FEDERATED_TOKEN_FILE", "/var/run/secrets/token", None),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets/token", None),
        ] {
            assert_eq!(pair(name, value.as_bytes()).map(|held| held.kind), kind, "{name}={value}");
        }
    }

    #[test]
    fn a_key_that_is_the_name_is_found_and_not_shown() {
        let (dashes, label) = ("-".repeat(5), ["PRIVATE", "KEY"].join(" "));
        let lines = "MIIEvQIBADANBgkqhkiG9w0BAQEF".repeat(6);
        let pem = format!("{dashes}BEGIN {label}{dashes}\n{lines}A==\n{dashes}END {label}{dashes}\n");
        let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{pem}."));
        let netrc = ["machine storage.googleapis.com login", "a password vR7tYw3NbH6c8jK2mQ9x"].join(" ");
        assert!(encoded.ends_with('='), "{encoded}");
        for (entry, kind) in [
            (pem.clone(), SecretKind::PrivateKey),
            (encoded, SecretKind::PrivateKey),
            (netrc, SecretKind::Netrc),
        ] {
            let held = variable(&entry).unwrap();
            assert_eq!((held.kind, held.plain), (kind, false), "{entry}");
            assert!(held.shown.ends_with(", not shown)") && held.shown.len() < 60, "{}", held.shown);
        }
        // A token as the name, and a key as the value.
        let token = ["ghp_", "vR7tYw3NbH6c8jK2mQ9xLp4Z"].concat();
        let entry = format!("{token}={pem}");
        let held = variable(&entry).unwrap();
        assert_eq!((held.kind, held.plain), (SecretKind::PrivateKey, false));
        assert_eq!(held.shown, "(a token or key, not shown)");
        assert_eq!(variable("HOME"), None);
    }
}
