//! Parses the request target: host, path, parameters. Percent signs are decoded exactly once, after the path
//! was split, so that an encoded slash can never make a segment.

use std::borrow::Cow;
use std::time::Duration;

use super::LONGEST_WAIT;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Target<'a> {
    /// As received, still encoded. Starts with `/` and is visible ASCII, so it can go into `Location`.
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    /// The authority of an absolute form; by RFC 9112 section 3.2.2 it takes precedence over the Host header.
    pub(super) authority: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// Origin form or `http://` absolute form; everything else (`*`, an authority, an opaque URL) is `None`.
    pub(super) fn parse(raw: &'a str) -> Option<Self> {
        let (authority, rest) = if raw.starts_with('/') {
            (None, raw)
        } else {
            let scheme = raw.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://"))?;
            let rest = &raw[scheme.len()..];
            let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            (Some(authority), rest)
        };
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        let path = if path.is_empty() { "/" } else { path };
        path.bytes().all(|b| b.is_ascii_graphic()).then_some(Self { path, query, authority })
    }

    /// The segments of the path; an item is `None` if no node can have that name.
    pub(super) fn segments(&self) -> impl Iterator<Item = Option<Cow<'a, str>>> {
        let inner = self.path.strip_prefix('/').unwrap_or(self.path);
        let inner = inner.strip_suffix('/').unwrap_or(inner);
        let mut rest = (!inner.is_empty() || self.path == "//").then_some(inner);
        let plain = !self.path.as_bytes().contains(&b'%');
        std::iter::from_fn(move || {
            let left = rest?;
            let (name, after) = match left.bytes().position(|byte| byte == b'/') {
                Some(at) => (&left[..at], Some(&left[at + 1..])),
                None => (left, None),
            };
            rest = after;
            Some(segment(name, plain))
        })
    }

    pub(super) fn ends_in_slash(&self) -> bool {
        self.path.ends_with('/')
    }
}

/// `plain`: the segment contains no escape.
fn segment(raw: &str, plain: bool) -> Option<Cow<'_, str>> {
    let name = if plain { Cow::Borrowed(raw) } else { unescape(raw, Escapes::Path)? };
    let hostile = match &name {
        // The segment is visible ASCII and contains no slash, so only these names are left to refuse.
        Cow::Borrowed(name) => matches!(*name, "" | "." | ".."),
        Cow::Owned(name) => {
            matches!(name.as_str(), "" | "." | "..") || name.contains('/') || name.contains(char::is_control)
        }
    };
    (!hostile).then_some(name)
}

/// The parameters that the protocol knows, decoded. The first of a name counts; unknown names and values that
/// are not UTF-8 are ignored.
#[derive(Debug, Default)]
pub(super) struct Query<'a> {
    recursive: Option<Cow<'a, str>>,
    wait_for_change: Option<Cow<'a, str>>,
    timeout_sec: Option<Cow<'a, str>>,
    scope: Option<Cow<'a, str>>,
    scopes: Option<Cow<'a, str>>,
    enforce_scopes: Option<Cow<'a, str>>,
    format: Option<Cow<'a, str>>,
    licenses: Option<Cow<'a, str>>,
    pub(super) alt: Option<Cow<'a, str>>,
    pub(super) last_etag: Option<Cow<'a, str>>,
    pub(super) audience: Option<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    pub(super) fn parse(raw: Option<&'a str>) -> Self {
        let mut query = Self::default();
        for pair in raw.into_iter().flat_map(|raw| raw.split('&')) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (unescape(name, Escapes::Form), unescape(value, Escapes::Form))
            else {
                continue;
            };
            let slot = match &*name {
                "alt" => &mut query.alt,
                "audience" => &mut query.audience,
                "enforce_scopes" => &mut query.enforce_scopes,
                "format" => &mut query.format,
                "last_etag" => &mut query.last_etag,
                "licenses" => &mut query.licenses,
                "recursive" => &mut query.recursive,
                "scope" => &mut query.scope,
                "scopes" => &mut query.scopes,
                "timeout_sec" => &mut query.timeout_sec,
                "wait_for_change" => &mut query.wait_for_change,
                _ => continue,
            };
            slot.get_or_insert(value);
        }
        query
    }

    pub(super) fn recursive(&self) -> bool {
        one_of(&self.recursive, &TRUE)
    }

    pub(super) fn waits(&self) -> bool {
        one_of(&self.wait_for_change, &TRUE)
    }

    /// `Err` if it is not a whole number of seconds: waiting for ever would be worse.
    pub(super) fn timeout(&self) -> Result<Option<Duration>, NotSeconds> {
        match self.timeout_sec.as_deref() {
            None | Some("") => Ok(None),
            Some(text) if text.bytes().all(|b| b.is_ascii_digit()) => {
                Ok(Some(text.parse().map_or(LONGEST_WAIT, Duration::from_secs).min(LONGEST_WAIT)))
            }
            Some(_) => Err(NotSeconds),
        }
    }

    pub(super) fn scopes(&self) -> Option<&str> {
        self.scopes.as_deref().or(self.scope.as_deref())
    }

    /// Whether the caller wants a token of exactly the scopes that it lists.
    pub(super) fn enforced(&self) -> bool {
        one_of(&self.enforce_scopes, &["true", "1", "yes", "y"])
    }

    /// Whether the caller requests a token *without* enforcement, which the protocol refuses.
    pub(super) fn unenforced(&self) -> bool {
        one_of(&self.enforce_scopes, &["false", "0", "no", "n"])
    }

    pub(super) fn full(&self) -> bool {
        one_of(&self.format, &["full"])
    }

    pub(super) fn licenses(&self) -> bool {
        one_of(&self.licenses, &TRUE)
    }
}

#[derive(Debug, Eq, PartialEq)]
pub(super) struct NotSeconds;

/// gcloud and cloud-init send `True`; the 2016 emulator accepted `on`, LUCI accepts `yes`.
const TRUE: [&str; 4] = ["true", "1", "yes", "on"];

fn one_of(value: &Option<Cow<'_, str>>, words: &[&str]) -> bool {
    value.as_ref().is_some_and(|value| words.iter().any(|word| value.eq_ignore_ascii_case(word)))
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Escapes {
    /// A broken escape is an error, `+` stands for itself.
    Path,
    /// A broken escape stands for itself, `+` is a blank.
    Form,
}

/// `None` for a broken escape in a path, and for text that is not UTF-8.
fn unescape(raw: &str, escapes: Escapes) -> Option<Cow<'_, str>> {
    let special = |b: u8| raw.as_bytes().contains(&b);
    if !special(b'%') && (escapes == Escapes::Path || !special(b'+')) {
        return Some(Cow::Borrowed(raw));
    }
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        match (first, hex_pair(tail)) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                rest = &tail[2..];
            }
            (b'%', None) if escapes == Escapes::Path => return None,
            (b'+', _) if escapes == Escapes::Form => decoded.push(b' '),
            _ => decoded.push(first),
        }
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

fn hex_pair(bytes: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}
