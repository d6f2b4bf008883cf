//! Reading bytes that may be JSON, YAML, INI, source code or none of it: values by name, without parsing.
//!
//! A parser would need the whole document and would be stopped by the first comment; a key that stands in a
//! notebook, a Terraform state or a string of another JSON is as much a key. Nothing here copies a value.

use memchr::memmem;

/// Every place where `needle` stands.
pub(super) fn places<'a>(bytes: &'a [u8], needle: &'a str) -> impl Iterator<Item = usize> + 'a {
    memmem::find_iter(bytes, needle.as_bytes())
}

pub(super) fn has(bytes: &[u8], needle: &str) -> bool {
    memmem::find(bytes, needle.as_bytes()).is_some()
}

/// The values of the field `name`: `"name": "value"`, also with escaped or single quotes, `name = value`
/// and `name: value`. Empty values and stand-ins are left out.
pub(super) fn values<'a>(bytes: &'a [u8], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    written(bytes, name).filter(|value| !is_stand_in(value))
}

/// The same with stand-ins.
fn written<'a>(bytes: &'a [u8], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    places(bytes, name).filter_map(move |at| {
        let before = at.checked_sub(1).and_then(|at| bytes.get(at)).copied();
        if before.is_some_and(is_word) {
            return None;
        }
        value_after(bytes.get(at + name.len()..)?)
    })
}

/// The values of a field that people fill: a password may hold any character and be short.
pub(super) fn passwords<'a>(bytes: &'a [u8], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    written(bytes, name).filter(|value| !is_template(value))
}

pub(super) fn value<'a>(bytes: &'a [u8], name: &'a str) -> Option<&'a [u8]> {
    values(bytes, name).next()
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// What follows a name: quotes, one `=`, `:` or `=>`, quotes, then the value up to its end.
fn value_after(rest: &[u8]) -> Option<&[u8]> {
    let skip = |rest: &[u8], set: &[u8]| rest.iter().take(16).take_while(|b| set.contains(b)).count();
    let rest = &rest[skip(rest, b"\\\"'")..];
    let rest = &rest[skip(rest, b" \t")..];
    let assigns = skip(rest, b"=:>");
    if assigns == 0 {
        return None;
    }
    let rest = &rest[assigns..];
    let rest = &rest[skip(rest, b" \t")..];
    let rest = &rest[skip(rest, b"\\\"'")..];
    let end = rest
        .iter()
        .take(16 << 10)
        .position(|b| b.is_ascii_whitespace() || matches!(b, b'"' | b'\'' | b'\\' | b',' | b'#' | b'<' | 0));
    let value = &rest[..end.unwrap_or_else(|| rest.len().min(16 << 10))];
    (!value.is_empty()).then_some(value)
}

/// What people write where a secret would be: `${KEY}`, `<your key>`, `xxxx`, `AKIA…EXAMPLE`, code.
pub(super) fn is_stand_in(value: &[u8]) -> bool {
    let odd = |b: &u8| matches!(b, b'$' | b'{' | b'}' | b'<' | b'>' | b'(' | b')' | b'*' | b'[' | b'%');
    let same = value.iter().all(|b| b == &value[0]);
    value.len() < 8
        || same
        || value.iter().take(256).any(odd)
        || has(value, "EXAMPLE")
        || has(value, "YOUR")
        || [&b"your"[..], b"xxxx", b"XXXX", b"changeme", b"REDACTED", b"null", b"None", b"os.environ"]
            .iter()
            .any(|word| value.starts_with(word))
}

/// What stands for a password as a whole: `${PASS}`, `$PASS`, `{{ pass }}`, `<pass>`, `xxxx`, `your-password`.
pub(super) fn is_template(value: &[u8]) -> bool {
    let name = |name: &[u8]| name.iter().all(|b| b.is_ascii_uppercase() || *b == b'_');
    let words = |text: &[u8]| text.iter().all(|b| b.is_ascii_alphabetic() || matches!(b, b'-' | b'_'));
    let within = |start: &[u8], end: &[u8]| value.starts_with(start) && value.ends_with(end);
    value.iter().all(|b| b == &value[0])
        || within(b"${", b"}")
        || within(b"$(", b")")
        || within(b"{{", b"}}")
        || within(b"<", b">")
        || value.strip_prefix(b"$").is_some_and(name)
        || value.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"your") && words(value))
        || [&b"changeme"[..], b"REDACTED", b"null", b"None"].contains(&value)
}

/// A token of a machine's making has digits in it and is long; a name in source code is neither.
pub(super) fn token<'a>(bytes: &'a [u8], name: &'a str) -> Option<&'a [u8]> {
    values(bytes, name).find(|value| value.len() >= 16 && value.iter().any(u8::is_ascii_digit))
}

/// Forty characters as AWS makes secret access keys: mixed letters and digits.
pub(super) fn is_aws_secret(value: &[u8]) -> bool {
    value.len() == 40
        && value.iter().all(|b| is_base64(*b))
        && value.iter().any(u8::is_ascii_uppercase)
        && value.iter().any(u8::is_ascii_lowercase)
        && value.iter().any(u8::is_ascii_digit)
        && !is_stand_in(value)
}

pub(super) fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/')
}

/// Text, as far as the beginning shows.
pub(super) fn is_text(bytes: &[u8]) -> bool {
    memchr::memchr(0, &bytes[..bytes.len().min(1024)]).is_none()
}
