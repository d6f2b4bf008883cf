//! Runs the entry points of `fuzz/` on changed golden files, for a bounded time and without a fuzzer. The
//! changes come from a seed, so a failure can be repeated.

use std::path::Path;

#[expect(unreachable_pub, reason = "in its own package these are the entry points of the fuzzer")]
#[path = "../../fuzz/src/lib.rs"]
mod targets;

const ROUNDS: usize = 400;

/// Deterministic; quality does not matter here (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound.max(1) as u64).unwrap()
    }
}

/// Every file below `folder`, in order.
fn seeds(folder: &str) -> Vec<Vec<u8>> {
    fn gather(folder: &Path, into: &mut Vec<Vec<u8>>) {
        let mut entries: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            match path.is_dir() {
                true => gather(&path, into),
                false => into.push(std::fs::read(&path).unwrap()),
            }
        }
    }
    let mut all = Vec::new();
    gather(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder), &mut all);
    assert!(!all.is_empty());
    all
}

const PIECES: [&[u8]; 10] =
    [b"\0", b"\xff", b"\"", b"{", b"]]", b"\r\n", b"%2e", b"-9223372036854775809", b"null", b"\xc5\xbf"];

fn changed(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        let (at, piece) = (random.below(bytes.len() + 1), PIECES[random.below(PIECES.len())]);
        match random.below(5) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 => drop(bytes.drain(at..(at + random.below(16)).min(bytes.len()))),
            3 => {
                let copy = bytes[at..(at + random.below(64)).min(bytes.len())].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => drop(bytes.splice(at..at, piece.iter().copied())),
        }
    }
    bytes
}

fn drive(name: &str, seeds: &[Vec<u8>], target: fn(&[u8])) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..ROUNDS {
        let input = match seeds.get(round) {
            Some(seed) => seed.clone(),
            None => changed(&seeds[random.below(seeds.len())], &mut random),
        };
        let ran = std::panic::catch_unwind(|| target(&input));
        assert!(ran.is_ok(), "{name}, round {round}: {:?}", String::from_utf8_lossy(&input));
    }
}

#[test]
fn changed_request_heads_get_no_token_past_a_guard() {
    drive("request_head", &seeds("metadata"), targets::request_head);
}

#[test]
fn changed_create_bodies_are_judged_or_refused() {
    drive("create_body", &seeds("create"), targets::create_body);
}

#[test]
fn changed_tunnel_bytes_bring_no_token() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    // HEADERS of stream 1: GET, http, an indexed path and authority.
    let headers = [preface.as_slice(), b"\0\0\x03\x01\x05\0\0\0\x01\x82\x86\x84"].concat();
    drive("tunnel", &[preface, headers], targets::tunnel);
}

#[test]
fn changed_credential_files_are_read_or_refused_unquoted() {
    drive("credential_file", &seeds("sources"), targets::credential_file);
}

#[test]
fn changed_config_files_are_read_or_refused() {
    drive("config_file", &seeds("config"), targets::config_file);
}

#[test]
fn changed_archives_are_read_or_refused_unquoted() {
    let mut builder = tar::Builder::new(Vec::new());
    for name in ["a/b.txt", "etc/key.pem", "manifest.json"] {
        let mut header = tar::Header::new_gnu();
        header.set_size(40);
        header.set_cksum();
        builder.append_data(&mut header, name, &[b'x'; 40][..]).unwrap();
    }
    drive("archive", &[builder.into_inner().unwrap()], targets::archive);
}
