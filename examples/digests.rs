//! Prints the digest of every key in the files below the directories that are named, for `scripts/published-keys`:
//! `DIGEST<TAB>KIND<TAB>PATH`. A digest says nothing of the key.

use std::io::{self, Write};
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
        for (kind, digest) in digests(&std::fs::read(path)?) {
            writeln!(out, "{digest:016x}\t{kind:?}\t{}", path.display())?;
        }
    }
    Ok(())
}
