//! Finds named values in text that may be JSON, YAML, INI, a URL's query, source code or anything else: one
//! pass, no parsing.
//!
//! A parser would need the whole document and would stop at the first comment; a key inside a notebook, a
//! Terraform state or a JSON string within JSON counts as well. Nothing here copies a value.

use super::work::Work;

/// Longest name that is read; a longer one loses its beginning.
const LONGEST_NAME: usize = 64;
/// Most blanks, quotes and signs between a name and its value.
const GAP: usize = 16;
/// Longest indentation between a name and a value on the next line.
const INDENT: usize = 64;

/// Most fields inside the value of another, as in `--env=NAME=VALUE`.
const MOST_WITHIN: u32 = 3;

/// A field: `name = value`, `"name": "value"`, `name: value`, `--name value`; also with escaped or single
/// quotes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    pub(super) name: &'a [u8],
    /// Ends before a blank, a quote or a sign that no token contains; never empty.
    pub(super) value: &'a [u8],
    /// Where the value begins.
    pub(super) at: usize,
}

/// A name without case and punctuation: `client-secret`, `clientSecret` and `CLIENT_SECRET` become equal.
pub(super) struct Plain([u8; LONGEST_NAME], usize);

impl Plain {
    pub(super) fn of(name: &[u8]) -> Self {
        let mut plain = Self([0; LONGEST_NAME], 0);
        for byte in name.iter().take(LONGEST_NAME).filter(|b| b.is_ascii_alphanumeric()) {
            plain.0[plain.1] = byte.to_ascii_lowercase();
            plain.1 += 1;
        }
        plain
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

/// Fields whose name may matter ([`is_interesting`]), in order of position.
pub(super) fn fields<'a>(bytes: &'a [u8], work: &'a Work) -> impl Iterator<Item = Field<'a>> {
    work.add(bytes.len());
    // The end of the last value. A value that begins before it has the same end, so each byte is read once.
    let (mut end, mut within) = (0, 0);
    memchr::memchr2_iter(b'=', b':', bytes).filter_map(move |at| {
        if at < end && within >= MOST_WITHIN {
            return None;
        }
        let name = name_before(bytes, at);
        work.add(name.len() + 8);
        if !is_interesting(name) {
            return None;
        }
        let start = value_start(bytes, at)?;
        work.add(start - at);
        within += 1;
        if start >= end {
            within = 0;
            end = start + ends_at(&bytes[start..]);
            work.add(end - start);
        }
        let value = unclosed(bytes.get(start..end)?);
        (!value.is_empty()).then_some(Field { name, value, at: start })
    })
}

/// The value without the closing bracket of a YAML or JSON map after it.
fn unclosed(value: &[u8]) -> &[u8] {
    let (Some(b'}'), false) = (value.last(), value.iter().take(256).any(|b| *b == b'{')) else {
        return value;
    };
    &value[..value.len() - value.iter().rev().take(8).take_while(|b| **b == b'}').count()]
}

/// `--name value` and `"--name", "value"`, as in commands.
pub(super) fn flags<'a>(bytes: &'a [u8], work: &'a Work) -> impl Iterator<Item = Field<'a>> {
    work.add(bytes.len());
    let mut next = 0;
    memchr::memmem::find_iter(bytes, b"--").filter_map(move |at| {
        let from = at + 2;
        if from < next {
            return None;
        }
        let rest = &bytes[from..];
        let length = rest.iter().take(LONGEST_NAME).take_while(|b| is_of_name(**b)).count();
        work.add(length + 8);
        let name = &rest[..length];
        if !is_interesting(name) {
            return None;
        }
        let gap =
            rest[length..].iter().take(GAP).take_while(|b| matches!(b, b' ' | b'"' | b'\'' | b',' | b'\\'));
        let gap = gap.count();
        let start = from + length + gap;
        let end = start + ends_at(bytes.get(start..)?);
        work.add(end - from);
        next = end;
        (gap > 0 && end > start).then(|| Field { name, value: &bytes[start..end], at: start })
    })
}

/// `<name>value</name>`.
pub(super) fn tags<'a>(bytes: &'a [u8], work: &'a Work) -> impl Iterator<Item = Field<'a>> {
    work.add(bytes.len() * 2);
    let mut last = 0;
    memchr::memmem::find_iter(bytes, b"</").filter_map(move |at| {
        let start = memchr::memrchr(b'>', &bytes[last..at]).map(|end| last + end + 1);
        last = at;
        let length = bytes[at + 2..].iter().take(LONGEST_NAME).take_while(|b| is_of_name(**b)).count();
        work.add(length + 8);
        let (name, start) = (&bytes[at + 2..at + 2 + length], start?);
        let value = bytes[start..at].trim_ascii();
        let whole = is_interesting(name) && !value.is_empty() && !value.iter().take(256).any(|b| is_end(*b));
        whole.then_some(Field { name, value, at: start })
    })
}

/// `"name", "value"`, as arguments of a call: `conf.set("fs.s3a.secret.key", "…")`.
pub(super) fn arguments<'a>(bytes: &'a [u8], work: &'a Work) -> impl Iterator<Item = Field<'a>> {
    work.add(bytes.len() * 2);
    let quoted = [b"\",", b"',"].into_iter();
    quoted.flat_map(|end| memchr::memmem::find_iter(bytes, end)).filter_map(move |at| {
        // Quotes inside a string are escaped.
        let end = at - usize::from(bytes[..at].ends_with(b"\\"));
        let name = name_before(bytes, end);
        work.add(name.len() + 8);
        let before = end.checked_sub(name.len() + 1).map(|at| bytes[at]);
        if !is_interesting(name) || !matches!(before, Some(b'"' | b'\'')) {
            return None;
        }
        let blanks =
            bytes[at + 2..].iter().take(INDENT).take_while(|b| b.is_ascii_whitespace() || **b == b'\\');
        let start = at + 2 + blanks.count();
        let start = matches!(bytes.get(start), Some(b'"' | b'\'')).then_some(start + 1)?;
        let rest = &bytes[start..bytes.len().min(start + 256)];
        let value = &rest[..ends_at(rest)];
        work.add(start - at + value.len());
        (!value.is_empty()).then_some(Field { name, value, at: start })
    })
}

/// `NAME value`, as in Dockerfiles and the properties of Hadoop.
pub(super) fn spaced<'a>(bytes: &'a [u8], work: &'a Work) -> impl Iterator<Item = Field<'a>> {
    work.add(bytes.len() * 5);
    let ends = ["key ", "KEY ", "net ", "SECRET ", "TOKEN "].into_iter();
    ends.flat_map(|end| memchr::memmem::find_iter(bytes, end.as_bytes()).map(move |at| at + end.len() - 1))
        .filter_map(move |at| {
            let name = name_before(bytes, at);
            let start = at
                + bytes[at..]
                    .iter()
                    .take(GAP)
                    .take_while(|b| matches!(b, b' ' | b'\t' | b'"' | b'\''))
                    .count();
            let rest = &bytes[start..bytes.len().min(start + 256)];
            let value = &rest[..ends_at(rest)];
            work.add(name.len() + value.len() + 16);
            (!value.is_empty()).then_some(Field { name, value, at: start })
        })
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

/// The word before the sign at `at`, ignoring quotes and blanks between them.
fn name_before(bytes: &[u8], at: usize) -> &[u8] {
    let before = &bytes[at.saturating_sub(LONGEST_NAME + GAP)..at];
    let closed =
        before.iter().rev().take(GAP).take_while(|b| matches!(b, b' ' | b'\t' | b'"' | b'\'' | b'\\' | b']'));
    let before = &before[..before.len() - closed.count()];
    let length = before.iter().rev().take(LONGEST_NAME).take_while(|b| is_of_name(**b)).count();
    &before[before.len() - length..]
}

/// Whether a name may matter, by its last two letters, so that most text needs no further work.
fn is_interesting(name: &[u8]) -> bool {
    let last = |back: usize| name.len().checked_sub(back).map_or(0, |at| name[at].to_ascii_lowercase());
    matches!(
        &[last(2), last(1)],
        b"ey"
            | b"et"
            | b"en"
            | b"rd"
            | b"th"
            | b"hs"
            | b"ig"
            | b"se"
            | b"sv"
            | b"kn"
            | b"ty"
            | b"pe"
            | b"id"
            | b"nt"
            | b"rl"
            | b"ce"
            | b"ud"
            | b"ss"
            | b"ls"
            | b"me"
            | b"ue"
            | b"ta"
            | b"ns"
            | b"xt"
            | b"y1"
            | b"y2"
            | b"ng"
            | b"ds"
            | b"ck"
    ) || (name.len() == 1 && matches!(name[0], b'd' | b'D'))
}

/// Where the value for the sign at `at` begins: after `=`, `:=`, `=>`, blanks, quotes and YAML's block marks.
fn value_start(bytes: &[u8], at: usize) -> Option<usize> {
    let skip = |from: usize, set: &[u8], most: usize| {
        from + bytes[from..].iter().take(most).take_while(|b| set.contains(b)).count()
    };
    let mut start = skip(at, b"=:>", 3);
    start = skip(start, b" \t", GAP);
    // A YAML block mark: the text is on the lines below.
    let line = skip(start, b"|>-+", 2);
    let line = skip(line, b" \t\r", GAP);
    if bytes.get(line) == Some(&b'\n') {
        start = skip(line, b" \t\r\n", INDENT);
    }
    // `b"…"` and `["…"]`.
    if matches!(bytes.get(start..start + 2)?, [b'b' | b'r' | b'f' | b'u' | b'[' | b'(', b'"' | b'\'']) {
        start += 1;
    }
    start = skip(start, b"\\\"'", GAP);
    (start < bytes.len()).then_some(start)
}

/// The length of the value at the beginning of `rest`.
fn ends_at(rest: &[u8]) -> usize {
    rest.iter().position(|b| is_end(*b)).unwrap_or(rest.len())
}

fn is_end(byte: u8) -> bool {
    byte <= b' '
        || matches!(
            byte,
            b'"' | b'\''
                | b'\\'
                | b','
                | b'#'
                | b'<'
                | b'>'
                | b';'
                | b'&'
                | b')'
                | b']'
                | b'|'
                | b'`'
                | 0x7f..
        )
}

/// The value up to a blank or a quote only: a password may contain any other sign.
pub(super) fn filled<'a>(bytes: &'a [u8], field: &Field<'a>) -> &'a [u8] {
    let rest = &bytes[field.at..bytes.len().min(field.at + 256)];
    let end = rest.iter().position(|b| b.is_ascii_whitespace() || matches!(b, b'"' | b'\'' | 0));
    &rest[..end.unwrap_or(rest.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_every_notation() {
        let work = Work::default();
        for text in [
            "secret_key = abc",
            "\"secret-key\": \"abc\"",
            "\\\"secretKey\\\": \\\"abc\\\"",
            "secret_key: abc",
            "x.secret_key => 'abc'",
            "os.environ[\"SECRET_KEY\"] = b\"abc\"",
            "secretKey: |-\n    abc\n",
            "?a=b&secret_key=abc&c=d",
        ] {
            let found: Vec<_> = fields(text.as_bytes(), &work).collect();
            let found = found.iter().find(|field| Plain::of(field.name).text().ends_with(b"secretkey"));
            assert_eq!(found.map(|field| field.value), Some(&b"abc"[..]), "{text}");
        }
        for text in ["login --secret-key abc", "[\"--secret-key\", \"abc\"]"] {
            let found = flags(text.as_bytes(), &work).next();
            assert_eq!(found.map(|field| field.value), Some(&b"abc"[..]), "{text}");
        }
    }
}
