//! Continues base64 from one line to the next: text that was wrapped stands in lists, comments, quoted mail and
//! strings that a program joins.

/// The most bytes between two lines.
const MOST: usize = 160;
/// The most signs after a line's text, and blanks and signs before the next one's.
const CLOSING: usize = 8;
const OPENING: usize = 128;

/// Where the next line's characters begin, if a line ends at `end` with only padding, quotes and signs of a
/// continued string. After a `long` word a blank counts too: lines may have been joined with blanks.
pub(super) fn next_line(bytes: &[u8], end: usize, long: bool) -> Option<usize> {
    let closes = |b: u8| matches!(b, b'"' | b'\'' | b'`' | b' ' | b'\t' | b'\r' | b'+' | b',' | b')');
    let first = *bytes.get(end)?;
    if !closes(first) && !matches!(first, b'\n' | b'\\') {
        return None;
    }
    let rest = &bytes[end..bytes.len().min(end + MOST)];
    // A full stop and an ampersand join strings, but only behind one.
    let closing = |from: usize| {
        let signs = rest[from..].iter().take(CLOSING);
        signs.take_while(|b| closes(**b) || from == 0 && matches!(**b, b'.' | b'&')).count()
    };
    let mut at = closing(0);
    let escaped = rest.get(at) == Some(&b'\\');
    if escaped {
        // `\n` in a string, or a continued line.
        while let [b'\\', b'n' | b'r' | b'\\', ..] = rest.get(at..)? {
            at += if rest[at + 1] == b'\\' { 1 } else { 2 };
        }
        at += usize::from(rest.get(at) == Some(&b'\\'));
        at += closing(at);
    }
    let line = rest.get(at) == Some(&b'\n');
    if !line && !escaped && !long {
        return None;
    }
    at += usize::from(line);
    at += opening(&rest[at.min(rest.len())..]);
    (at > 0).then_some(end + at)
}

/// The length of what stands before a line's text: blanks, quotes, and the marks of lists, comments and
/// quoted mail. The signs of base64 are marks only if a blank follows: `- `, `+ `, `// `.
fn opening(rest: &[u8]) -> usize {
    let rest = &rest[..rest.len().min(OPENING)];
    let mut at = 0;
    while let Some(b) = rest.get(at) {
        at += match b {
            b'"' | b'\'' | b'`' | b' ' | b'\t' | b'#' | b'>' | b'*' | b';' | b'.' | b'&' | b'|' | b'(' => 1,
            b'-' | b'+' | b'/' => {
                let signs = rest[at..].iter().take(3).take_while(|one| *one == b).count();
                match rest.get(at + signs) {
                    Some(b' ' | b'\t') => signs,
                    _ => break,
                }
            }
            _ => break,
        };
    }
    at
}
