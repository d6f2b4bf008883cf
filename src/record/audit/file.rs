//! The files of the audit log: 0600, rotated by size, shared by sessions, whole lines only.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::AuditSettings;

/// The current file and its rotation.
pub(super) struct LogFile {
    pub(super) settings: AuditSettings,
    open: Option<File>,
}

impl LogFile {
    pub(super) fn open(settings: AuditSettings) -> io::Result<Self> {
        let open = Some(open(&settings.file)?);
        Ok(Self { settings, open })
    }

    /// Writes all of `bytes` or none of it: an incomplete line would spoil the next one.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        // The file may have been renamed meanwhile: by another session's rotation or by logrotate.
        loop {
            let file = match self.open.take() {
                Some(file) => file,
                None => open(&self.settings.file)?,
            };
            file.lock()?;
            if !same(&file, &self.settings.file) {
                continue;
            }
            let about = file.metadata()?;
            let full = about.is_file() && about.len() + bytes.len() as u64 > self.settings.max_bytes;
            if full && about.len() > 0 {
                self.rotate()?;
                continue;
            }
            let written = (&file).write_all(bytes);
            if written.is_err() && about.is_file() {
                let _ = file.set_len(about.len());
            }
            let _ = file.unlock();
            self.open = Some(file);
            return written;
        }
    }

    /// Renames `FILE` to `FILE.1`, that to `FILE.2`, and so on; removes the file beyond the limit.
    fn rotate(&self) -> io::Result<()> {
        let file = &self.settings.file;
        let numbered = |number: u32| {
            let mut name = file.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        if self.settings.keep == 0 {
            return fs::remove_file(file);
        }
        let names: Vec<PathBuf> = (1..=self.settings.keep).map(numbered).collect();
        for (older, newer) in names.iter().zip(names.iter().skip(1)).rev() {
            match fs::rename(older, newer) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(file, &names[0])
    }
}

fn same(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Opens for appending, readable by us alone. Refuses a pipe or a socket, where writing would wait for a
/// reader.
fn open(path: &Path) -> io::Result<File> {
    let wrong = |what: &str| Err(io::Error::other(what.to_owned()));
    match fs::metadata(path) {
        Ok(about) if about.is_file() || about.file_type().is_char_device() => {}
        Ok(_) => return wrong("is not a file"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path)?;
    let about = file.metadata()?;
    if about.is_file() && about.mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}
