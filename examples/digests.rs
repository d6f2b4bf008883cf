//! Prints the digest of every key in the files below the directories that are named, for `scripts/published-keys`:
//! `DIGEST<TAB>KIND<TAB>PATH`. A digest says nothing of the key. What gzip compressed is read, too.

use std::io::{self, Read, Write};
use std::path::Path;

use kfp_creds::guard::content::digests;

fn main() -> io::Result<()> {
    let mut out = io::stdout().lock();
    std::env::args_os().skip(1).try_for_each(|root| below(Path::new(&root), &mut out))
}

fn below(path: &Path, out: &mut impl Write) -> io::Result<()> {
    let about = std::fs::symlink_metadata(path)?;
    if about.is_dir() {
        for entry in std::fs::read_dir(path)? {
            below(&entry?.path(), out)?;
        }
    } else if about.is_file() {
        let mut bytes = std::fs::read(path)?;
        if bytes.starts_with(&[0x1f, 0x8b, 8]) {
            let mut plain = Vec::new();
            // Incomplete data is read as far as it goes.
            let _ = flate2::read::MultiGzDecoder::new(&*bytes).take(1 << 30).read_to_end(&mut plain);
            bytes = plain;
        }
        for (kind, digest) in digests(&bytes) {
            writeln!(out, "{digest:016x}\t{kind:?}\t{}", path.display())?;
        }
    }
    Ok(())
}
