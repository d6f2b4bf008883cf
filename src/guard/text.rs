//! Classifies values: secrets that a machine made, passwords, and the stand-ins that people write in their
//! place.

use memchr::memmem;

/// How many bytes of a value are examined, so that work stays linear however often a long value is met.
const ENOUGH: usize = 256;

pub(super) fn places<'a>(bytes: &'a [u8], needle: &'a str) -> impl Iterator<Item = usize> + 'a {
    memmem::find_iter(bytes, needle.as_bytes())
}

pub(super) fn has(bytes: &[u8], needle: &str) -> bool {
    memmem::find(bytes, needle.as_bytes()).is_some()
}

/// Whether `word` occurs in `value`, in any case.
fn has_word(value: &[u8], word: &[u8]) -> bool {
    value.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word))
}

/// Whether this is what people write in place of a secret: `${KEY}`, `<your key>`, `xxxx`, `AKIA…EXAMPLE`,
/// code.
pub(super) fn is_stand_in(value: &[u8]) -> bool {
    const WORDS: [&[u8]; 14] = [
        b"example",
        b"your",
        b"xxxx",
        b"changeme",
        b"redacted",
        b"omitted",
        b"placeholder",
        b"os.environ",
        b"....",
        b"dummy",
        b"insert",
        b"replace",
        b"sample",
        b"not-a-real",
    ];
    let odd = |b: &u8| matches!(b, b'$' | b'{' | b'}' | b'<' | b'>' | b'(' | b')' | b'*' | b'[');
    let value = &value[..value.len().min(ENOUGH)];
    value.len() < 8
        || value.iter().all(|b| b == &value[0])
        || value.iter().any(odd)
        || [&b"null"[..], b"None"].contains(&value)
        || WORDS.iter().any(|word| has_word(value, word))
}

/// Whether the whole value is a stand-in for a password: `${PASS}`, `$PASS`, `{{ pass }}`, `<pass>`, `xxxx`,
/// `your-password`.
pub(super) fn is_template(value: &[u8]) -> bool {
    let value = &value[..value.len().min(ENOUGH)];
    let name = |name: &[u8]| name.iter().all(|b| b.is_ascii_uppercase() || *b == b'_');
    let words = |text: &[u8]| text.iter().all(|b| b.is_ascii_alphabetic() || matches!(b, b'-' | b'_'));
    let within = |start: &[u8], end: &[u8]| value.starts_with(start) && value.ends_with(end);
    let Some(first) = value.first() else { return true };
    value.iter().all(|b| b == first)
        || within(b"${", b"}")
        || within(b"$(", b")")
        || within(b"%(", b")s")
        || within(b"{{", b"}}")
        || within(b"{", b"}")
        || within(b"%", b"%")
        || within(b"<", b">")
        || value.strip_prefix(b"$").is_some_and(name)
        || value.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"your") && words(value))
        || (words(value) && has_word(value, b"password"))
        || [&b"changeme"[..], b"REDACTED", b"null", b"None", b"..."].contains(&value)
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Class {
    Upper,
    Lower,
    Digit,
    Other,
}

/// Whether a machine made the value: letters and digits alternate far more often than in words, names and
/// counts.
pub(super) fn is_random(value: &[u8]) -> bool {
    let value = &value[..value.len().min(ENOUGH)];
    let class = |b: &u8| match b {
        b'A'..=b'Z' => Class::Upper,
        b'a'..=b'z' => Class::Lower,
        b'0'..=b'9' => Class::Digit,
        _ => Class::Other,
    };
    let changes = value
        .windows(2)
        .filter(|pair| {
            let (one, other) = (class(&pair[0]), class(&pair[1]));
            one != other && one != Class::Other && other != Class::Other
        })
        .count();
    let mut seen = [false; 256];
    value.iter().for_each(|b| seen[usize::from(*b)] = true);
    let different = seen.iter().filter(|seen| **seen).count();
    let digits = value.iter().filter(|b| b.is_ascii_digit()).count();
    // Names in camel case have one number, at the end.
    let ends = |pair: &&[u8]| pair[0].is_ascii_digit() && !pair[1].is_ascii_digit();
    let last = value.last().is_some_and(u8::is_ascii_digit);
    let numbers = value.windows(2).filter(ends).count() + usize::from(last);
    (numbers > 1 || !last || value.len() < 32)
        && digits > value.len() / 24
        && changes * 5 >= value.len()
        && different >= value.len().min(64) / 4 + 3
}

/// Whether this is a secret that a machine made, of at least `least` bytes.
pub(super) fn is_strong(value: &[u8], least: usize) -> bool {
    value.len() >= least && is_random(value) && !is_stand_in(value)
}

/// Whether this looks like an AWS secret access key: forty characters, mixed letters and digits.
pub(super) fn is_aws_secret(value: &[u8]) -> bool {
    value.len() == 40
        && value.iter().all(|b| is_base64(*b))
        && value.iter().any(u8::is_ascii_uppercase)
        && value.iter().any(u8::is_ascii_lowercase)
        && is_strong(value, 40)
}

/// Whether this is a key of an Azure storage account: 64 bytes in base64. The keys that every copy of Azurite
/// and of Cosmos DB's emulator has are not secrets.
pub(super) fn is_azure_key(value: &[u8]) -> bool {
    value.len() == 88
        && value.ends_with(b"==")
        && value[..86].iter().all(|b| is_base64(*b))
        && is_strong(&value[..86], 86)
        && !is_azurites(value)
}

pub(super) fn is_azurites(value: &[u8]) -> bool {
    let start = &value[..value.len().min(4 * ENOUGH)];
    [
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1",
        "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEH",
        // In base64, as secrets of Kubernetes hold them.
        "RWJ5OHZkTTAyeE5PY3FGbHFV",
        "QzJ5NnlEamY1L1Irb2IwTjhB",
    ]
    .iter()
    .any(|key| has(start, key))
}

/// Whether this is an application secret of Entra ID: `abc8Q~` and 34 more characters.
pub(super) fn is_entra_secret(value: &[u8]) -> bool {
    (37..=44).contains(&value.len())
        && value[3].is_ascii_digit()
        && &value[4..6] == b"Q~"
        && value.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'~'))
        && is_strong(&value[6..], 30)
}

pub(super) fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/')
}

/// Characters of a token: base64 for URLs, and the dots of a JWT.
pub(super) fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'+' | b'/')
}

/// The token at the beginning of `bytes`.
pub(super) fn token(bytes: &[u8]) -> &[u8] {
    let bytes = &bytes[..bytes.len().min(ENOUGH)];
    &bytes[..bytes.iter().take_while(|b| is_of_token(**b)).count()]
}

/// Whether this is text, judged by its beginning.
pub(super) fn is_text(bytes: &[u8]) -> bool {
    memchr::memchr(0, &bytes[..bytes.len().min(1024)]).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_machine_made_text_counts_as_a_secret() {
        let random = ["8jK2mQ9xLp4Z", "vR7tYw3NbH6c"].concat();
        for made in [&random, &random.to_lowercase(), "3f9a1c72-8be4-4d05-9c6e-a1b27f40d9e8"] {
            assert!(is_strong(made.as_bytes(), 16), "{made}");
        }
        for word in [
            "my-client-secret",
            "client_secret_value",
            "self.client_secret",
            "super-secret-123",
            "clientSecretValue",
            "01234567890123456789",
            "abcdefghijklmnop1234",
            "this_is_a_test_secret_2",
            "azure-client-secret-1234567890",
        ] {
            assert!(!is_strong(word.as_bytes(), 16), "{word}");
        }
    }
}
