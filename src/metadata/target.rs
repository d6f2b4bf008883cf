//! Parses the request target: host, path, parameters, whatever the cloud. Percent signs are decoded exactly once, after the path
//! was split, so that an encoded slash can never make a segment.

use std::borrow::Cow;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct PathTarget<'a> {
    /// As received, still encoded. Starts with `/` and is visible ASCII, so it can go into `Location`.
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    /// The authority of an absolute form; by RFC 9112 section 3.2.2 it takes precedence over the Host header.
    pub(super) authority: Option<&'a str>,
}

impl<'a> PathTarget<'a> {
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

/// The parameters of a query, decoded; those that are not UTF-8 are left out.
pub(super) fn parameters(raw: Option<&str>) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    raw.into_iter().flat_map(|raw| raw.split('&')).filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        unescape(name, Escapes::Form).zip(unescape(value, Escapes::Form))
    })
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
