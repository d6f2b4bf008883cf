//! Finds private keys in PEM, also within strings of other languages, and PuTTY's.

use zeroize::Zeroizing;

use super::text::{has, is_base64, is_random, places};
use super::work::Work;

/// The shortest real key has 64 characters of base64.
const SHORTEST: usize = 60;
/// Longest body that is read: an RSA key of 16384 bits has 12 600 characters.
const LONGEST: usize = 16 << 10;
/// Headers (RFC 1421) lie within this many bytes.
const HEADERS: usize = 512;

/// The bodies of private keys, reduced to their base64.
pub(super) fn bodies<'a>(bytes: &'a [u8], work: &'a Work) -> impl Iterator<Item = Zeroizing<Vec<u8>>> + 'a {
    const WORDS: &str = "PRIVATE KEY";
    work.add(bytes.len());
    let mut next = places(bytes, WORDS).peekable();
    let armored = std::iter::from_fn(move || {
        let at = next.next()?;
        // A body ends before the words occur again, so each byte is read once.
        Some((at, next.peek().copied().unwrap_or(bytes.len())))
    });
    let armored = armored.filter_map(move |(at, end)| {
        let before = &bytes[at.saturating_sub(40)..at];
        let after = &bytes[(at + WORDS.len()).min(end)..end.min(at + LONGEST)];
        let after = after.strip_prefix(b" BLOCK").unwrap_or(after);
        work.add(after.len().min(5) + before.len());
        let begins = has(before, "-----BEGIN ") || has(before, "---- BEGIN ");
        let after = after.strip_prefix(b"-----").or_else(|| after.strip_prefix(b" ----"))?;
        work.add(after.len().min(HEADERS));
        begins.then(|| body(after, work)).flatten()
    });
    armored.chain(putty(bytes, work))
}

fn putty(bytes: &[u8], work: &Work) -> Option<Zeroizing<Vec<u8>>> {
    const LINES: &str = "Private-Lines:";
    if !bytes.starts_with(b"PuTTY-User-Key-File-") {
        return None;
    }
    let at = places(bytes, LINES).next()? + LINES.len();
    let body: Vec<u8> =
        bytes[at..bytes.len().min(at + LONGEST)].iter().copied().filter(|b| is_base64(*b)).collect();
    work.add(bytes.len() + body.len());
    (!body.is_empty()).then_some(body.into())
}

/// The base64 of a body. Line ends may be escaped, once or more, and lines may be quoted.
fn body(after: &[u8], work: &Work) -> Option<Zeroizing<Vec<u8>>> {
    let mut rest = behind_headers(after);
    let mut body = Zeroizing::new(Vec::new());
    while let Some((byte, more)) = rest.split_first() {
        rest = more;
        match byte {
            b'\\' => {
                // `\n`, `\\n`, `\r`, `\t`: the letter belongs to the escape.
                if let [b'n' | b'r' | b't', more @ ..] = rest {
                    rest = more;
                }
            }
            b if is_base64(*b) => body.push(*b),
            b if b.is_ascii_whitespace() => {}
            b'"' | b'\'' | b'|' | b'>' | b'#' | b'*' | b',' => {}
            _ => break,
        }
    }
    work.add(after.len() - rest.len());
    (body.len() >= SHORTEST && is_random(&body)).then_some(body)
}

fn behind_headers(after: &[u8]) -> &[u8] {
    let start = &after[..after.len().min(HEADERS)];
    let named =
        ["Proc-Type:", "Version: ", "DEK-Info:", "Comment: ", "Hash: "].iter().any(|name| has(start, name));
    if !named {
        return after;
    }
    let blank = places(start, "\n\n").chain(places(start, "\n\r\n")).chain(places(start, "\\n\\n")).min();
    // Headers without a blank line after them: the body begins after the line of the last header.
    let last = || memchr::memrchr(b':', start).and_then(|at| Some(at + memchr::memchr(b'\n', &start[at..])?));
    &after[blank.or_else(last).unwrap_or(0)..]
}
