//! Writes JSON into buffers that never grow, so that no copy of a secret stays behind in freed memory.

use std::fmt::Display;
use std::io::Write as _;

/// A value of an object.
#[derive(Clone, Copy, Debug)]
pub(super) enum JsonValue<'a> {
    Text(&'a str),
    Number(u64),
    Object(&'a [(&'a str, JsonValue<'a>)]),
}

/// A compact object, keys in this order, no newline.
pub(super) fn object(fields: &[(&str, JsonValue<'_>)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(object_length(fields));
    write_object(&mut out, fields);
    out
}

fn write_object(out: &mut Vec<u8>, fields: &[(&str, JsonValue<'_>)]) {
    out.push(b'{');
    for (index, (name, value)) in fields.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        json_string(out, name);
        out.push(b':');
        match value {
            JsonValue::Text(text) => json_string(out, text),
            JsonValue::Number(value) => number(out, value),
            JsonValue::Object(fields) => write_object(out, fields),
        }
    }
    out.push(b'}');
}

/// An upper bound of the length that [`write_object`] writes.
fn object_length(fields: &[(&str, JsonValue<'_>)]) -> usize {
    const LONGEST_NUMBER: usize = 20;
    let field = |(name, value): &(&str, JsonValue<'_>)| {
        let value = match value {
            JsonValue::Text(text) => json_length(text),
            JsonValue::Number(_) => LONGEST_NUMBER,
            JsonValue::Object(fields) => object_length(fields),
        };
        json_length(name) + 2 + value
    };
    2 + fields.iter().map(field).sum::<usize>()
}

pub(super) fn number(out: &mut Vec<u8>, value: impl Display) {
    // Writing into a `Vec` cannot fail.
    let _ = write!(out, "{value}");
}

pub(super) fn json_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    if is_plain(text) {
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return;
    }
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => {
                let _ = write!(out, "\\u{byte:04x}");
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// An upper bound of the length that [`json_string`] writes.
pub(super) fn json_length(text: &str) -> usize {
    2 + text.len() * if is_plain(text) { 1 } else { 6 }
}

/// Whether no character needs escaping, as in every token. Without an early exit, so that the compiler can
/// vectorise the loop.
fn is_plain(text: &str) -> bool {
    !text.bytes().fold(false, |found, byte| found | (byte < 0x20) | (byte == b'"') | (byte == b'\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_written_without_growing() {
        let inner = [("a", JsonValue::Number(u64::MAX)), ("b\n", JsonValue::Text("\u{1}\"é"))];
        let fields = [("o", JsonValue::Object(&inner)), ("t", JsonValue::Text(""))];
        let out = object(&fields);
        assert_eq!(out.capacity(), Vec::<u8>::with_capacity(object_length(&fields)).capacity());
        let read: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(read["o"]["a"], u64::MAX);
        assert_eq!(read["o"]["b\n"], "\u{1}\"é");
        assert_eq!(object(&[]), b"{}");
    }
}
