//! Judges variables: by name for known secrets, and by content for all.

use super::rules::SECRET;
use super::text::{is_azurites, is_stand_in, is_strong};
use super::{Find, Kind, what};

/// Shorter values under these names are stand-ins of emulators (`minio123`, `test`).
const SHORTEST: usize = 16;
/// Shorter passwords are stand-ins; people choose passwords, so they may be shorter than secrets of machines.
const SHORTEST_PASSWORD: usize = 8;

/// Judges `NAME=value`.
pub fn variable(entry: &str) -> Option<Find> {
    let (name, value) = entry.split_once('=')?;
    Some(Find { kind: named(name, value.as_bytes())?, place: name.into() })
}

/// Judges a value under its name.
pub fn named(name: &str, value: &[u8]) -> Option<Kind> {
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
pub fn instruction(text: &str) -> Option<Find> {
    let (word, rest) = text.trim().split_once(char::is_whitespace)?;
    let rest = rest.trim();
    let find = |name: &str, kind| Find { kind, place: name.into() };
    let pair = || {
        let (name, value) = rest.split_once(char::is_whitespace)?;
        Some(find(name, named(name, value.as_bytes())?))
    };
    let whole = || what(rest.as_bytes()).map(|kind| find(word, kind));
    rest.split_whitespace().find_map(variable).or_else(pair).or_else(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_name_and_by_content() {
        let secret = ["wJalrXUtnFEMI7K7MDENGbPxR", "fiCYz8h2kP0aQ1L"].concat();
        for (entry, kind) in [
            (format!("AWS_SECRET_ACCESS_KEY={secret}"), Some(Kind::AwsKey)),
            ("AWS_SECRET_ACCESS_KEY=minio123".into(), None),
            ("AWS_SECRET_ACCESS_KEY=testing".into(), None),
            ("AWS_SECRET_ACCESS_KEY=${AWS_SECRET_ACCESS_KEY}".into(), None),
            ("AWS_SECRET_ACCESS_KEY".into(), None),
            (format!("AZURE_CLIENT_SECRET=abc8Q~{secret}"), Some(Kind::AzureLogin)),
            ("GOOGLE_APPLICATION_CREDENTIALS=/keys/sa.json".into(), None),
            ("OPENAI_API_KEY=sk-proj-0123456789abcdef".into(), None),
            (format!("X=aws_secret_access_key = {secret}"), Some(Kind::AwsKey)),
        ] {
            let set = instruction(&format!("ENV A=b {entry}"));
            assert_eq!(set.map(|find| find.kind), kind, "ENV {entry}");
            assert_eq!(variable(&entry).map(|find| find.kind), kind, "{entry}");
        }
    }
}
