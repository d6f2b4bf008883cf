//! Decodes text: base64 and hexadecimal, UTF-16, and the escapes of URLs, mail, HTML and JSON. Each is
//! decoded once, into a buffer that is wiped.

use std::cell::Cell;
use std::io::Read;

use zeroize::Zeroizing;

use super::lines::next_line;
use super::work::Work;

/// The shortest run that is decoded: few registry logins are shorter.
const SHORTEST_RUN: usize = 40;
/// The shortest word; words below [`SHORTEST_RUN`] count only as part of consecutive lines of one width.
const SHORTEST_WORD: usize = 8;
/// The longest run that is decoded in one piece.
const LONGEST_RUN: usize = 4 << 20;
/// The number of characters that show whether a run holds text or a key.
const TASTE: usize = 64;

type Bytes = Zeroizing<Vec<u8>>;

/// The decoded runs of base64 or hexadecimal in `bytes`, as far as they are text or a key. Lines of one width
/// form one run, with indentation, quotes and escaped line ends between them. Each character is decoded once
/// at most.
pub(super) fn runs<'a>(bytes: &'a [u8], work: &'a Work) -> impl Iterator<Item = Bytes> + 'a {
    let mut from = 0;
    std::iter::from_fn(move || {
        while let Some((run, end)) = next_run(bytes, from, work) {
            from = end;
            let run = match &run {
                Run::Word(word) => *word,
                Run::Lines(lines) => lines.as_slice(),
            };
            if run.len() >= SHORTEST_RUN
                && let Some(plain) = decode(run, work)
            {
                return Some(plain);
            }
        }
        None
    })
}

/// The six bits of each character, in both alphabets; 64 for any other character.
const VALUES: [u8; 256] = {
    let mut values = [64; 256];
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut at = 0;
    while at < 64 {
        values[alphabet[at] as usize] = at as u8;
        at += 1;
    }
    values[b'-' as usize] = 62;
    values[b'_' as usize] = 63;
    values
};

fn is_of_run(byte: u8) -> bool {
    VALUES[usize::from(byte)] < 64
}

/// The characters to decode. Most runs are one word, which is not copied.
enum Run<'a> {
    Word(&'a [u8]),
    Lines(Bytes),
}

/// The characters of the next run at or after `from`, and where to continue. The run can be too short.
fn next_run<'a>(bytes: &'a [u8], from: usize, work: &Work) -> Option<(Run<'a>, usize)> {
    let (start, mut end) = next_word(bytes, from, work)?;
    // Allocated with the second line: wiping even an empty buffer has a cost.
    let mut run: Option<Bytes> = None;
    let first = end - start;
    let mut width = None;
    while run.as_ref().is_none_or(|run| run.len() < LONGEST_RUN)
        && let Some(next) = next_line(bytes, end, first >= SHORTEST_RUN)
    {
        let line = &bytes[next..next + bytes[next..].iter().take_while(|b| is_of_run(**b)).count()];
        work.add(line.len() + next - end);
        // The first line may begin after a name and the last may be shorter; those between have one width.
        let full = *width.get_or_insert_with(|| line.len().max(first));
        if line.is_empty() || line.len() > full || full < SHORTEST_WORD {
            break;
        }
        let run = run.get_or_insert_with(|| Zeroizing::new(bytes[start..end].to_vec()));
        run.extend_from_slice(line);
        end = next + line.len();
        if line.len() < full {
            break;
        }
    }
    let Some(run) = run else { return Some((Run::Word(&bytes[start..end]), end)) };
    work.add(run.len());
    Some((Run::Lines(run), end))
}

/// The next word of at least [`SHORTEST_WORD`] characters. Checks windows of that size from their end: the
/// search continues after the last byte that cannot be in a word.
fn next_word(bytes: &[u8], from: usize, work: &Work) -> Option<(usize, usize)> {
    let mut start = from;
    loop {
        let window = bytes.get(start..start + SHORTEST_WORD)?;
        if let Some(at) = window.iter().rposition(|b| !is_of_run(*b)) {
            work.add(SHORTEST_WORD - at);
            start += at + 1;
            continue;
        }
        let more = bytes[start + SHORTEST_WORD..].iter().take_while(|b| is_of_run(**b)).count();
        let end = start + SHORTEST_WORD + more;
        work.add(end - start);
        if start > 0 && bytes[start - 1] == b'\\' && matches!(bytes[start], b'n' | b'r' | b't') {
            start += 1;
        }
        if end - start >= SHORTEST_WORD {
            return Some((start, end));
        }
        start = end;
    }
}

fn decode(run: &[u8], work: &Work) -> Option<Bytes> {
    if run[..TASTE.min(run.len())].iter().all(u8::is_ascii_hexdigit) {
        let digits = hexadecimal(&run[..TASTE.min(run.len()) & !1])?;
        work.add(TASTE);
        if tastes(&digits, true) {
            work.add(run.len());
            return hexadecimal(&run[..run.iter().take_while(|b| b.is_ascii_hexdigit()).count() & !1]);
        }
    }
    // Preceding text may be joined to the run, so its start and its groups of four may be at any offset.
    let places = [0, run.len() / 2, run.len().saturating_sub(TASTE)];
    for (number, place) in places.into_iter().enumerate() {
        for shift in 0..4 {
            let from = place + shift;
            work.add(8);
            let taste = run.get(from..run.len().min(from + TASTE))?;
            if is_plausible(taste) && tastes(&base64(taste), number + shift == 0) {
                work.add(run.len() + TASTE);
                return Some(base64(&run[from % 4..]));
            }
        }
    }
    None
}

/// Whether the first characters could decode to text or a key; most runs fail here.
fn is_plausible(taste: &[u8]) -> bool {
    let Some([a, b, c, d]) = taste.first_chunk() else { return false };
    let value = |b: &u8| u32::from(VALUES[usize::from(*b)]);
    let bits = value(a) << 18 | value(b) << 12 | value(c) << 6 | value(d);
    let plain = &bits.to_be_bytes()[1..];
    plain.iter().all(|b| is_text_byte(b) || *b == 0) || STARTS.contains(&plain[0])
}

fn is_text_byte(b: &u8) -> bool {
    matches!(b, b' '..=b'~' | b'\n' | b'\r' | b'\t')
}

/// First bytes of binary data that can be or hold a key.
const STARTS: [u8; 7] = [0x30, 0x80, 0xce, 0xfe, 0xff, 0xef, 0x1f];

/// Whether `plain` is text, or the beginning of a binary key.
fn tastes(plain: &[u8], start: bool) -> bool {
    let text = is_text_byte;
    let wide = |plain: &[u8], zero: usize| {
        plain.chunks_exact(2).all(|pair| pair[zero] == 0 && (text(&pair[1 - zero]) || pair[1 - zero] == 0xfe))
    };
    let binary = start
        && matches!(
            plain,
            [0x30, 0x80..=0x83, ..]
                | [0x30, 0x2e..=0x7f, 0x02 | 0x30, ..]
                | [0xfe, 0xed, 0xfe, 0xed, ..]
                | [0xce, 0xce, 0xce, 0xce, ..]
                | [0x80, 2..=5, ..]
                | [0x1f, 0x8b, 8, ..]
                | [b'S', b'Q', b'L', b'i', ..]
                | [0xff, 0xfe, ..]
                | [0xef, 0xbb, 0xbf, ..]
        );
    plain.len() >= 12 && (binary || plain.iter().all(text) || wide(plain, 1) || wide(plain, 0))
}

/// Decodes base64; an incomplete last character is dropped.
pub(super) fn base64(run: &[u8]) -> Bytes {
    let value = |b: u8| u32::from(VALUES[usize::from(b)]);
    let mut plain = Vec::with_capacity(run.len() / 4 * 3 + 3);
    let mut groups = run.chunks_exact(4);
    for four in groups.by_ref() {
        let bits = value(four[0]) << 18 | value(four[1]) << 12 | value(four[2]) << 6 | value(four[3]);
        plain.extend_from_slice(&bits.to_be_bytes()[1..]);
    }
    match *groups.remainder() {
        [one, two] => plain.push((value(one) << 2 | value(two) >> 4) as u8),
        [one, two, three] => {
            let bits = value(one) << 10 | value(two) << 4 | value(three) >> 2;
            plain.extend_from_slice(&(bits as u16).to_be_bytes());
        }
        _ => {}
    }
    plain.into()
}

fn hexadecimal(digits: &[u8]) -> Option<Bytes> {
    let digit = |b: u8| char::from(b).to_digit(16);
    let pairs = digits.chunks_exact(2).map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8));
    pairs.collect::<Option<Vec<u8>>>().map(Zeroizing::new)
}

/// The content of gzip data, which Helm and the user data of machines store as base64; `left` is how much may
/// still be inflated.
pub(super) fn inflated(bytes: &[u8], left: &Cell<u64>, work: &Work) -> Option<Bytes> {
    if !bytes.starts_with(&[0x1f, 0x8b, 8]) || left.get() == 0 {
        return None;
    }
    let mut plain = Zeroizing::new(vec![]);
    // Incomplete data is judged as far as it goes.
    let _ = flate2::read::GzDecoder::new(bytes).take(left.get()).read_to_end(&mut plain);
    left.set(left.get() - plain.len() as u64);
    work.add(plain.len());
    (!plain.is_empty()).then_some(plain)
}

/// UTF-16 of either byte order, recognised by its mark or its zeros, as single bytes; other characters become
/// `?`.
pub(super) fn narrowed(bytes: &[u8], work: &Work) -> Option<Bytes> {
    let start = &bytes[..bytes.len().min(512) & !1];
    let low = match bytes {
        [0xff, 0xfe, ..] => 0,
        [0xfe, 0xff, ..] => 1,
        _ => {
            let zeros = |at: usize| start.iter().skip(at).step_by(2).filter(|b| **b == 0).count();
            let (even, odd) = (zeros(0), zeros(1));
            let most = start.len() / 2 * 9 / 10;
            match () {
                () if start.len() >= 16 && odd > most && even * 20 < start.len() => 0,
                () if start.len() >= 16 && even > most && odd * 20 < start.len() => 1,
                () => return None,
            }
        }
    };
    work.add(bytes.len());
    let sign = |pair: &[u8]| if pair[1 - low] == 0 { pair[low] } else { b'?' };
    Some(Zeroizing::new(bytes.chunks_exact(2).map(sign).collect()))
}

/// The texts of an SQLite database that keeps them in UTF-16 (its head says so), without the zeros.
pub(super) fn narrowed_database(bytes: &[u8], work: &Work) -> Option<Bytes> {
    const ENCODING: std::ops::Range<usize> = 56..60;
    matches!(bytes.get(ENCODING)?, [0, 0, 0, 2 | 3]).then(|| {
        work.add(bytes.len());
        Zeroizing::new(bytes.iter().copied().filter(|b| *b != 0).collect())
    })
}

/// The text without the escapes of HTML, URLs, mail (quoted-printable) and JSON, undone in this order; `None`
/// if it has too few escapes.
pub(super) fn unescaped(bytes: &[u8], work: &Work) -> Option<Bytes> {
    let mut text: Option<Bytes> = None;
    for (is_used, signs, undo) in [
        (is_html as fn(&[u8]) -> bool, [b'&', b'&'], html as fn(&[u8]) -> Option<(u8, usize)>),
        (is_url, [b'%', b'+'], url),
        (is_mail, [b'=', b'='], mail),
        (is_json, [b'\\', b'\\'], json),
    ] {
        let before = text.as_deref().map_or(bytes, Vec::as_slice);
        work.add(before.len());
        if is_used(before) {
            work.add(before.len() * 2);
            text = Some(undone(before, signs, undo));
        }
    }
    text
}

/// Undoes escapes, which begin with one of `signs`. `escape` returns the byte that an escape stands for and
/// the escape's length; byte 0 stands for nothing.
fn undone(bytes: &[u8], signs: [u8; 2], escape: fn(&[u8]) -> Option<(u8, usize)>) -> Bytes {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = memchr::memchr2(signs[0], signs[1], rest) {
        plain.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        let (byte, length) = escape(rest).unwrap_or((rest[0], 1));
        if byte != 0 || length == 1 {
            plain.push(byte);
        }
        rest = &rest[length.min(rest.len())..];
    }
    plain.extend_from_slice(rest);
    plain.into()
}

const NAMED: [(&[u8], u8); 5] =
    [(b"&quot;", b'"'), (b"&amp;", b'&'), (b"&lt;", b'<'), (b"&gt;", b'>'), (b"&apos;", b'\'')];

fn html(rest: &[u8]) -> Option<(u8, usize)> {
    if rest[0] != b'&' {
        return None;
    }
    if let Some((name, byte)) = NAMED.iter().find(|(name, _)| rest.starts_with(name)) {
        return Some((*byte, name.len()));
    }
    let digits = rest.strip_prefix(b"&#")?;
    let end = digits.iter().take(6).position(|b| *b == b';')?;
    let text = std::str::from_utf8(&digits[..end]).ok()?;
    let byte = match text.strip_prefix(['x', 'X']) {
        Some(text) => u8::from_str_radix(text, 16),
        None => text.parse(),
    };
    Some((byte.ok()?, end + 3))
}

fn is_html(bytes: &[u8]) -> bool {
    const ESCAPES: [&[u8]; 7] =
        [b"&quot;", b"&#34;", b"&#x22;", b"&#39;", b"&#10;", b"&amp;sig=", b"&amp;se="];
    memchr::memchr_iter(b'&', bytes).any(|at| ESCAPES.iter().any(|escape| bytes[at..].starts_with(escape)))
}

fn pair(digits: &[u8]) -> Option<u8> {
    let digit = |b: &u8| char::from(*b).to_digit(16);
    Some((digit(digits.first()?)? << 4 | digit(digits.get(1)?)?) as u8)
}

fn url(rest: &[u8]) -> Option<(u8, usize)> {
    match rest[0] {
        b'%' => Some((pair(&rest[1..])?, 3)),
        // Forms write a blank as a plus; elsewhere a plus is itself escaped.
        b'+' => Some((b' ', 1)),
        _ => None,
    }
}

fn is_url(bytes: &[u8]) -> bool {
    const SHORT: usize = 4096;
    let sign = |at: usize| pair(&bytes[at + 1..]).is_some_and(|b| b" \"'\n\r{}:,/+=&@;%".contains(&b));
    let least = if bytes.len() <= SHORT { 1 } else { 3 };
    memchr::memchr_iter(b'%', bytes).filter(|at| sign(*at)).take(least).count() == least
}

fn mail(rest: &[u8]) -> Option<(u8, usize)> {
    match rest {
        [b'=', b'\n', ..] => Some((0, 2)),
        [b'=', b'\r', b'\n', ..] => Some((0, 3)),
        [b'=', digits @ ..] => Some((pair(digits)?, 3)),
        _ => None,
    }
}

fn is_mail(bytes: &[u8]) -> bool {
    // Counts soft line ends, but not the padding of base64, which ends a line the same way.
    let (mut soft, mut before) = (0, usize::MAX);
    memchr::memchr_iter(b'=', bytes).any(|at| {
        let padding = before.wrapping_add(1) == at;
        before = at;
        match bytes[at + 1..] {
            [b'\n', ..] | [b'\r', b'\n', ..] => soft += u32::from(!padding),
            [b'3', b'D', ..] => return true,
            _ => {}
        }
        soft >= 2
    })
}

/// Go and .NET escape `<`, `>`, `&` and quotes in JSON this way, and PHP slashes.
fn json(rest: &[u8]) -> Option<(u8, usize)> {
    match rest {
        [b'\\', b'u', b'0', b'0', digits @ ..] => Some((pair(digits)?, 6)),
        [b'\\', b'x', digits @ ..] => Some((pair(digits)?, 4)),
        [b'\\', b'/', ..] => Some((b'/', 2)),
        _ => None,
    }
}

fn is_json(bytes: &[u8]) -> bool {
    const ESCAPES: [&[u8]; 4] = [b"\\u00", b"\\x22", b"\\x0a", b"\\/"];
    memchr::memchr_iter(b'\\', bytes).any(|at| ESCAPES.iter().any(|escape| bytes[at..].starts_with(escape)))
}
