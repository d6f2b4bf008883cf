//! Renders values and subtrees: text, JSON, listings, ETags, error pages. Everything is written into a
//! `Vec<u8>` so that a token can be rendered in one allocation of the right size.

use std::borrow::Cow;

use hyper::StatusCode;

use super::tree::{Spot, TreeValue};
use crate::metadata::json::{json_length, json_string, number};

/// The format of a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ResponseFormat {
    Json,
    Text,
}

impl ResponseFormat {
    /// Only the opposite of the default has an effect; any other `alt` is ignored.
    pub(super) fn asked(alt: Option<&str>, default: Self) -> Self {
        match alt {
            Some("json") => Self::Json,
            Some("text") => Self::Text,
            _ => default,
        }
    }

    /// Without a charset: older clients compare the whole header value.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Text => "application/text",
        }
    }
}

impl TreeValue<'_> {
    pub(super) fn default_form(&self) -> ResponseFormat {
        match self {
            TreeValue::Array(_) => ResponseFormat::Json,
            TreeValue::Text(_) | TreeValue::Number(_) | TreeValue::Lines(_) => ResponseFormat::Text,
        }
    }

    pub(super) fn render(&self, form: ResponseFormat) -> Vec<u8> {
        let mut out = Vec::new();
        match form {
            ResponseFormat::Json => json_value(&mut out, self),
            ResponseFormat::Text => text_value(&mut out, self),
        }
        out
    }
}

/// One child per line; directories end in a slash.
pub(super) fn listing(spot: &Spot<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, child) in spot.children() {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(if child.is_dir() { b"/\n" } else { b"\n" });
    }
    out
}

/// The subtree without the leaves that need a mint.
pub(super) fn subtree(spot: &Spot<'_>, form: ResponseFormat) -> Vec<u8> {
    let mut out = Vec::with_capacity(2048);
    match form {
        ResponseFormat::Json => json_subtree(&mut out, spot),
        ResponseFormat::Text => text_subtree(&mut out, spot, &mut String::new()),
    }
    out
}

/// Sixteen hex digits that depend on the value alone, not on the requested format: choosing another format
/// must not end a wait for a change. FNV-1a: no security depends on its strength.
pub(super) fn etag(rendered: &[u8]) -> String {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    format!("{:016x}", rendered.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// An error page in the style of Google's servers: title, path in `<code>`, one sentence.
pub(super) fn page(status: StatusCode, path: &str, sentence: &str) -> String {
    let reason = match status {
        StatusCode::FORBIDDEN => "Forbidden",
        _ => "Not Found",
    };
    let code = status.as_u16();
    format!(
        "<!DOCTYPE html>\n<html lang=en>\n<meta charset=utf-8>\n<title>Error {code} ({reason})!!1</title>\n\
         <p><b>{code}</b> <code>{}</code></p>\n<p>{sentence}</p>\n",
        html(path)
    )
}

/// `{"access_token":…,"expires_in":…,"token_type":"Bearer"}`, keys in this order, no newline. The buffer
/// never grows, so that no copy of the token stays behind in freed memory.
pub(super) fn token(value: &str, expires_in: u64, form: ResponseFormat) -> Vec<u8> {
    const FRAME: usize = 96;
    let mut out = Vec::with_capacity(FRAME + json_length(value));
    match form {
        ResponseFormat::Json => {
            out.extend_from_slice(b"{\"access_token\":");
            json_string(&mut out, value);
            out.extend_from_slice(b",\"expires_in\":");
            number(&mut out, expires_in);
            out.extend_from_slice(b",\"token_type\":\"Bearer\"}");
        }
        ResponseFormat::Text => {
            out.extend_from_slice(b"access_token ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\nexpires_in ");
            number(&mut out, expires_in);
            out.extend_from_slice(b"\ntoken_type Bearer\n");
        }
    }
    out
}

fn text_value(out: &mut Vec<u8>, value: &TreeValue<'_>) {
    match value {
        TreeValue::Text(text) => out.extend_from_slice(text.as_bytes()),
        TreeValue::Number(value) => number(out, *value),
        TreeValue::Lines(items) | TreeValue::Array(items) => {
            for item in items {
                out.extend_from_slice(item.as_bytes());
                out.push(b'\n');
            }
        }
    }
}

fn json_value(out: &mut Vec<u8>, value: &TreeValue<'_>) {
    match value {
        TreeValue::Text(text) => json_string(out, text),
        TreeValue::Number(value) => number(out, *value),
        TreeValue::Lines(items) | TreeValue::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                json_string(out, item);
            }
            out.push(b']');
        }
    }
}

/// Compact; keys in the order of the tree, which is alphabetical.
fn json_subtree(out: &mut Vec<u8>, spot: &Spot<'_>) {
    if let Some(value) = spot.value() {
        return json_value(out, &value);
    }
    let (open, close) = if spot.is_indexed() { (b'[', b']') } else { (b'{', b'}') };
    out.push(open);
    let recursed = spot.children().into_iter().filter(|(_, child)| child.is_dir() || child.value().is_some());
    for (index, (name, child)) in recursed.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        if !spot.is_indexed() {
            json_string(out, &if spot.has_custom_names() { name } else { camel(name) });
            out.push(b':');
        }
        json_subtree(out, &child);
    }
    out.push(close);
}

/// `relative/path value` per leaf; a list repeats its path. Paths keep their hyphens.
fn text_subtree(out: &mut Vec<u8>, spot: &Spot<'_>, path: &mut String) {
    let mut line = |value: &[u8]| {
        out.extend_from_slice(path.as_bytes());
        out.push(b' ');
        out.extend_from_slice(value);
        out.push(b'\n');
    };
    match spot.value() {
        Some(TreeValue::Lines(items) | TreeValue::Array(items)) => {
            items.iter().for_each(|item| line(item.as_bytes()))
        }
        Some(single) => line(&single.render(ResponseFormat::Text)),
        None => {
            let parent = path.len();
            for (name, child) in spot.children() {
                if parent > 0 {
                    path.push('/');
                }
                path.push_str(&name);
                text_subtree(out, &child, path);
                path.truncate(parent);
            }
        }
    }
}

/// `cpu-platform` to `cpuPlatform`.
fn camel(name: Cow<'_, str>) -> Cow<'_, str> {
    if !name.contains('-') {
        return name;
    }
    let mut words = name.split('-');
    let mut out = String::from(words.next().unwrap_or_default());
    for word in words {
        let mut letters = word.chars();
        out.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        out.push_str(letters.as_str());
    }
    out.into()
}

fn html(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"', '\'']) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 32);
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(letter),
        }
    }
    out.into()
}
