//! Recognises binary keys by their structure, from the first byte: DER, PKCS#12, Java's key stores, OpenPGP's
//! secret keys and the files of GnuPG's agent.

use memchr::memmem;

/// Whether this is a private key or a store with one. `bytes` is the whole file.
pub(super) fn is_key(bytes: &[u8]) -> bool {
    match bytes {
        [0x30, 0x80, rest @ ..] => is_pkcs12(rest),
        [0x30, ..] => is_der_key(bytes),
        [0x94..=0x96 | 0xc5, ..] => is_openpgp(bytes),
        [b'(' | b'K' | b'C', ..] => is_of_agent(bytes),
        [0xfe, 0xed, 0xfe, 0xed, rest @ ..] | [0xce, 0xce, 0xce, 0xce, rest @ ..] => has_key_entry(rest),
        _ => false,
    }
}

/// Whether this is a key of RFC 5958 (also encrypted), RFC 8017 or RFC 5915 in DER, or PKCS#12 with a key
/// bag. The outer length must be the file's.
fn is_der_key(bytes: &[u8]) -> bool {
    const VERSION_0: [u8; 3] = [0x02, 0x01, 0x00];
    const VERSION_1: [u8; 4] = [0x02, 0x01, 0x01, 0x30];
    const RSA: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    const EC: [u8; 7] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    /// X25519, X448, Ed25519 and Ed448 end in 110 to 113.
    const CURVES: [u8; 4] = [0x06, 0x03, 0x2b, 0x65];
    const PBES2: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
    /// The older ciphers of RFC 8018 and RFC 7292: 1.2.840.113549.1.5.x and 1.2.840.113549.1.12.1.x.
    const PBES1: [u8; 10] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05];
    const PKCS12_CIPHER: [u8; 11] = [0x06, 0x0a, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x01];
    let Some((length, head)) = length_of(bytes) else { return false };
    if length + head != bytes.len() || bytes.len() < 24 {
        return false;
    }
    let inside = &bytes[head..];
    let holds =
        |part: &[u8], window: usize| memmem::find(&inside[..inside.len().min(window)], part).is_some();
    if inside.starts_with(&VERSION_0) || inside.starts_with(&VERSION_1) {
        // PKCS#1 has the modulus next, PKCS#8 the algorithm.
        return (inside[3] == 0x02 && inside.len() > 256)
            || (inside[3] == 0x30 && (holds(&RSA, 24) || holds(&EC, 24) || holds(&CURVES, 24)));
    }
    // SEC 1: after the version comes the key, then the curve, the public key, or nothing.
    let sec1 = match inside {
        [0x02, 0x01, 0x01, 0x04, length @ 0x10..=0x48, rest @ ..] => {
            matches!(rest.get(usize::from(*length)), None | Some(0xa0 | 0xa1))
        }
        _ => false,
    };
    let ciphers = || holds(&PBES2, 24) || holds(&PBES1, 24) || holds(&PKCS12_CIPHER, 24);
    sec1 || (matches!(inside, [0x30, ..]) && ciphers()) || is_pkcs12(inside)
}

/// The length that the DER head states, and the length of the head itself.
fn length_of(bytes: &[u8]) -> Option<(usize, usize)> {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    Some(match bytes.get(1)? {
        short @ 0..=0x7f => (usize::from(*short), 2),
        long @ 0x81..=0x83 => {
            let head = 2 + usize::from(long & 0x7f);
            (number(bytes.get(2..head)?), head)
        }
        _ => return None,
    })
}

/// Whether this is PKCS#12 (RFC 7292): version 3, and a bag with a key or an encrypted key anywhere. `inside`
/// begins after the outer head, whose length may be indefinite (BER, as Java's libraries write it).
fn is_pkcs12(inside: &[u8]) -> bool {
    /// Followed by 1 for a plain key, 2 for an encrypted one.
    const KEY_BAG: [u8; 10] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01];
    let mut bags = memmem::find_iter(inside, &KEY_BAG).map(|at| inside.get(at + KEY_BAG.len()));
    inside.starts_with(&[0x02, 0x01, 0x03]) && bags.any(|bag| matches!(bag, Some(1 | 2)))
}

/// Whether a JKS or JCEKS store (`sun.security.provider.JavaKeyStore`) has a key: of its entries, 1 is a
/// private key, 2 a certificate, 3 a secret key. A store with only certificates is public.
fn has_key_entry(rest: &[u8]) -> bool {
    const MOST_ENTRIES: u32 = 100_000;
    let mut reader = ByteReader(rest);
    let (Some(1 | 2), Some(entries)) = (reader.number(4), reader.number(4)) else { return false };
    for _ in 0..entries.min(MOST_ENTRIES) {
        match reader.number(4) {
            Some(1 | 3) => return true,
            Some(2) => {}
            _ => return false,
        }
        // An entry: alias, time, type of certificate, certificate.
        let whole = reader.counted(2) && reader.skip(8) && reader.counted(2) && reader.counted(4);
        if !whole {
            return false;
        }
    }
    false
}

/// Whether this begins with a secret-key packet of OpenPGP (RFC 9580, section 5.5.3): what `gpg
/// --export-secret-keys` writes. Another packet follows it.
fn is_openpgp(bytes: &[u8]) -> bool {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let head = match bytes {
        [0x94, length, ..] => Some((2, usize::from(*length))),
        [0x95, one, two, ..] => Some((3, number(&[*one, *two]))),
        [0x96, length @ ..] => length.get(..4).map(|length| (5, number(length))),
        [0xc5, length @ 0..=191, ..] => Some((2, usize::from(*length))),
        [0xc5, one @ 192..=223, two, ..] => {
            Some((3, ((usize::from(*one) - 192) << 8) + usize::from(*two) + 192))
        }
        _ => None,
    };
    let Some((head, length)) = head else { return false };
    let Some(packet) = bytes.get(head..head + length) else { return false };
    let known = matches!(packet, [4..=6, _, _, _, _, 1..=3 | 16..=22 | 25..=28, ..]);
    // A user id, a signature, a user attribute, a direct key signature or a secret subkey.
    let next = bytes.get(head + length).map(|tag| if tag & 0x40 == 0 { tag >> 2 & 0xf } else { tag & 0x3f });
    known && length > 32 && matches!(next, Some(2 | 7 | 13 | 17))
}

/// Whether this is a file of `~/.gnupg/private-keys-v1.d`, in its old or its extended form. A shadowed key is
/// on a smart card.
fn is_of_agent(bytes: &[u8]) -> bool {
    let start = &bytes[..bytes.len().min(1024)];
    let old = [&b"(11:private-key("[..], b"(21:protected-private-key("];
    let extended = [&b"Key: (private-key ("[..], b"Key: (protected-private-key ("];
    let new = || extended.iter().any(|form| memmem::find(start, form).is_some());
    old.iter().any(|form| start.starts_with(form))
        || (start.starts_with(b"Created:") || start.starts_with(b"Key:")) && new()
}

struct ByteReader<'a>(&'a [u8]);

impl ByteReader<'_> {
    fn number(&mut self, bytes: usize) -> Option<u32> {
        let (number, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(number.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    }

    fn skip(&mut self, bytes: usize) -> bool {
        let rest = self.0.get(bytes..);
        self.0 = rest.unwrap_or_default();
        rest.is_some()
    }

    /// Skips a field that is preceded by its length.
    fn counted(&mut self, bytes: usize) -> bool {
        self.number(bytes)
            .and_then(|length| usize::try_from(length).ok())
            .is_some_and(|length| self.skip(length))
    }
}
