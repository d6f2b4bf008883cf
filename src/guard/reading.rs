//! Reads one file of a directory: its beginning for a request, all of it for the command `scan`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use zeroize::Zeroizing;

use super::excepted::Exception;
use super::found::{ArchivedFind, PassedOver};
use super::judge;
use super::stream::{Stream, is_opened};
use super::text::is_text;

/// How much of a file is read for a request: keys are small.
const HEAD: u64 = 256 << 10;
/// The same for a text file.
const LONGEST_TEXT: u64 = 4 << 20;
/// How many bytes an archive of at most [`HEAD`] bytes may unpack to.
const UNPACKED: u64 = 16 << 20;
/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// The result for one file.
#[derive(Debug, Default)]
pub(super) struct JudgedFile {
    pub(super) finds: Vec<ArchivedFind>,
    pub(super) unverified: Vec<String>,
    /// Published keys that were met.
    pub(super) passed: PassedOver,
    /// Whether the file is an archive that was not opened, or not completely.
    pub(super) shut: bool,
    /// Bytes that the file costs of a budget, in this scan and in later ones.
    pub(super) bytes: u64,
}

/// Judges the beginning of a file. Small archives are opened.
pub(super) fn beginning(path: &Path, file: &mut File, size: u64) -> io::Result<JudgedFile> {
    let wanted = usize::try_from(size.min(HEAD)).unwrap_or_default();
    let mut bytes = Zeroizing::new(Vec::with_capacity(wanted + 1));
    file.take(HEAD).read_to_end(&mut bytes)?;
    let name = || path.to_string_lossy().into_owned();
    if is_opened(&bytes) {
        if size > HEAD {
            return Ok(JudgedFile { shut: true, bytes: bytes.len() as u64, ..JudgedFile::default() });
        }
        let mut stream = Stream::file(&name()).with_allowance(UNPACKED);
        stream.push_root(&bytes);
        stream.end();
        let shut = !stream.take_unverified().is_empty();
        let (finds, passed) = (stream.take_finds(), stream.take_passed());
        return Ok(JudgedFile { finds, shut, bytes: stream.bytes(), passed, unverified: vec![] });
    }
    if size > HEAD && is_text(&bytes) {
        file.take(LONGEST_TEXT - HEAD).read_to_end(&mut bytes)?;
    }
    let (find, passed) = judge::all(&bytes, false);
    let passed = PassedOver::of(&name(), &passed);
    let finds = find.into_iter().map(|(kind, line)| ArchivedFind {
        name: name(),
        kind,
        layer: None,
        line,
        exception: Exception::Path,
    });
    Ok(JudgedFile { finds: finds.collect(), passed, bytes: bytes.len() as u64, ..JudgedFile::default() })
}

/// Judges all of a file, with line numbers. Calls `step` before each read, as a sign of progress.
pub(super) fn whole(path: &Path, file: &mut File, step: &dyn Fn()) -> io::Result<JudgedFile> {
    let mut stream = Stream::file(&path.to_string_lossy()).with_lines();
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(PIECE);
    let mut piece = Zeroizing::new(vec![0; size.clamp(1, PIECE)]);
    loop {
        step();
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => stream.push_root(&piece[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.end();
    Ok(JudgedFile {
        finds: stream.take_finds(),
        unverified: stream.take_unverified(),
        passed: stream.take_passed(),
        shut: false,
        bytes: stream.bytes(),
    })
}
