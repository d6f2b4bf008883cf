//! Parts of a request that `guard.allow` excepts by name: a variable, a label, a build argument, a word of a
//! command. As narrow as a path: one name, with any value. Objects of Cloud Storage are excepted by their URI.

use super::text::is_random;
use crate::quote;

/// The longest flag that can name a word.
const LONGEST_FLAG: usize = 32;

/// The part of a request, or of an image's config, that holds the text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TextPart {
    Variable,
    Label,
    BuildArgument,
    Command,
    Entrypoint,
    /// An object of Cloud Storage, or all below a name: `//BUCKET/NAME`.
    Object,
}

impl TextPart {
    const ALL: [Self; 6] =
        [Self::Variable, Self::Label, Self::BuildArgument, Self::Command, Self::Entrypoint, Self::Object];

    /// The word before the colon of an entry.
    fn word(self) -> &'static str {
        match self {
            Self::Variable => "env",
            Self::Label => "label",
            Self::BuildArgument => "build-arg",
            Self::Command => "command",
            Self::Entrypoint => "entrypoint",
            Self::Object => "gs",
        }
    }

    /// The entry of `guard.allow` that excepts `name`.
    pub fn entry(self, name: &str) -> String {
        format!("{}:{name}", self.word())
    }
}

/// An entry of `guard.allow` that is not a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Named {
    pub part: TextPart,
    pub name: String,
}

impl Named {
    /// `None` for a path.
    ///
    /// # Errors
    /// If the entry has no name or more than a name; the error does not quote it.
    pub fn parse(entry: &str) -> Option<Result<Self, &'static str>> {
        let (word, name) = entry.split_once(':')?;
        let part = TextPart::ALL.into_iter().find(|part| part.word() == word)?;
        if part == TextPart::Object {
            let uri = name.strip_prefix("//")?;
            let uri = uri.trim_end_matches('/');
            // As a path, such a name would lead out of the bucket's folder. Objects with such names are not fetched.
            let unfit = uri.split('/').any(|part| matches!(part, "" | "." | ".."));
            return Some(match uri {
                "" => Err("names no bucket; write gs://BUCKET/OBJECT"),
                _ if unfit => Err("has an empty part, . or .. in it; write gs://BUCKET/OBJECT"),
                _ => Ok(Self { part, name: format!("//{uri}") }),
            });
        }
        Some(match name {
            "" => Err("names a kind and nothing of it; write env:NAME, for example"),
            _ if name.contains('=') => Err("takes a name without its value: env:NAME"),
            _ => Ok(Self { part, name: name.into() }),
        })
    }
}

/// The entry of `guard.allow` that excepts a find in an archive or an image.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Exception {
    /// Its path.
    #[default]
    Path,
    /// A text in the config of the image.
    Named(Named),
    /// There is none: its name may hold the key.
    None,
}

/// The entry for a path; one that looks like another kind of entry gets `./`.
pub fn path_entry(path: &str) -> String {
    match Named::parse(path) {
        Some(_) => format!("./{path}"),
        None => path.into(),
    }
}

/// The name of the word at `at` of a command: the flag that it is or belongs to (`--executor_input`, `-c`),
/// else its position, from 1.
pub fn word(words: &[&str], at: usize) -> String {
    let own = words.get(at).and_then(|word| word.split_once('=')).map(|(flag, _)| flag);
    let before = at.checked_sub(1).and_then(|before| words.get(before)).copied();
    let flag = own.filter(|flag| is_flag(flag)).or_else(|| before.filter(|flag| is_flag(flag)));
    flag.map_or_else(|| (at + 1).to_string(), String::from)
}

fn is_flag(word: &str) -> bool {
    let bare = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).unwrap_or_default();
    bare.len() <= LONGEST_FLAG
        && bare.starts_with(|c: char| c.is_ascii_alphabetic())
        && bare.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        && (bare.len() < 8 || !is_random(bare.as_bytes()))
        && quote::is_plain(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_names_or_paths() {
        let named = |entry| Named::parse(entry).map(|named| named.map(|named| (named.part, named.name)));
        assert_eq!(named("env:MY_KEY"), Some(Ok((TextPart::Variable, "MY_KEY".into()))));
        assert_eq!(named("command:--token"), Some(Ok((TextPart::Command, "--token".into()))));
        assert!(matches!(named("env:"), Some(Err(_))) && matches!(named("env:A=b"), Some(Err(_))));
        assert_eq!(named("gs://b/dir/o=1"), Some(Ok((TextPart::Object, "//b/dir/o=1".into()))));
        assert_eq!(named("gs://b/dir/"), Some(Ok((TextPart::Object, "//b/dir".into()))));
        for unfit in [
            "gs://",
            "gs:///o",
            "gs://b//home/me",
            "gs://b//.",
            "gs://b/.",
            "gs://b/../other",
            "gs://..",
            "gs://b/a//b",
        ] {
            assert!(matches!(named(unfit), Some(Err(_))), "{unfit}");
        }
        for path in ["gs:b", "tests/data", "a:b", "/x/env:A", "./env:A", "environment"] {
            assert_eq!(named(path), None, "{path}");
            assert_eq!(path_entry(path), path);
        }
        assert_eq!(path_entry("env:A"), "./env:A");
    }

    #[test]
    fn a_word_is_named_by_its_flag_or_its_place() {
        let words = ["sh", "-c", "echo", "--token=x", "--executor_input", "{}", "-9xQ", "last"];
        let names: Vec<String> = (0..words.len()).map(|at| word(&words, at)).collect();
        assert_eq!(names, ["1", "2", "-c", "--token", "5", "--executor_input", "7", "8"]);
        let secret = ["-", "vR7tYw3NbH6c", "8jK2mQ9xLp4Z"].concat();
        assert_eq!(word(&[&secret, "x"], 1), "2", "what looks made by a machine is no flag");
    }
}
