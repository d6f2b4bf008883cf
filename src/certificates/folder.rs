//! The folder that clients use as `DOCKER_CERT_PATH`: `ca.pem`, `cert.pem` and `key.pem`, mode 0600. The user names
//! the folder, so kfp-creds overwrites and removes only files there that begin with its own line.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::Certificates;
use crate::quote;

/// The names that Docker's clients look for.
const NAMES: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];
/// The start of each file's first line, before the session's id. Readers of PEM skip text before a section.
const MARK: &str = "kfp-creds session ";

/// A folder that this process holds until the value is dropped, which removes the files. The kernel releases the
/// lock of a killed process.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Whether this process made the folder.
    made: bool,
    /// The link that tells the next start what to remove, and the session that the files belong to.
    linked: Option<(PathBuf, String)>,
    _lock: File,
}

impl Folder {
    /// Takes `folder` for one session, and makes it if it does not exist. The error is one line that says what to
    /// do.
    pub fn take(folder: &Path) -> Result<Self, String> {
        let shown = quote::path(folder);
        let failed = |error: io::Error| format!("{shown}: {error}");
        let made = match DirBuilder::new().mode(0o700).create(folder) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed(error)),
        };
        let path = folder.canonicalize().map_err(failed)?;
        let found = path.metadata().map_err(failed)?;
        let own = rustix::process::geteuid().as_raw();
        if !found.is_dir() {
            return Err(format!(
                "{shown}: is not a directory; name a directory, or a path that does not exist yet"
            ));
        }
        if found.uid() != own {
            let theirs = found.uid();
            return Err(format!(
                "{shown}: belongs to user {theirs}; start kfp-creds as that user, who reads it"
            ));
        }
        if found.permissions().mode() & 0o022 != 0 {
            return Err(format!(
                "{shown}: others may write to it; chmod go-w it, or name a directory of your own"
            ));
        }
        let lock = File::open(&path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(format!(
                    "{shown}: another session has its certificates there; name another directory"
                ));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let taken = Self { path, made, linked: None, _lock: lock };
        for file in taken.files() {
            match file.symlink_metadata() {
                // Nobody holds the lock, so these are a dead session's.
                Ok(_) if session_of(&file).is_some() => std::fs::remove_file(&file).map_err(failed)?,
                Ok(_) => {
                    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    return Err(format!("{shown}: has a {name} that is not ours; name an empty directory"));
                }
                Err(_) => {}
            }
        }
        Ok(taken)
    }

    /// Writes the files of `session`, and beside its socket in `sockets` a link, in case the session is killed.
    pub fn write(&mut self, certificates: &Certificates, session: &str, sockets: &Path) -> io::Result<()> {
        let link = sockets.join(format!("{session}.tls"));
        let _ = std::fs::remove_file(&link);
        symlink(&self.path, &link)?;
        self.linked = Some((link, session.into()));
        let texts = [&certificates.authority, &certificates.client, certificates.key.expose()];
        for (file, text) in self.files().into_iter().zip(texts) {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
            write!(file, "{MARK}{session}: removed when it ends\n{text}")?;
        }
        Ok(())
    }

    /// The absolute path, for clients.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn files(&self) -> [PathBuf; 3] {
        NAMES.map(|name| self.path.join(name))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some((link, session)) = &self.linked {
            remove_files(&self.path, session);
            let _ = std::fs::remove_file(link);
        }
        if self.made {
            // Fails if somebody put something else there, which stays.
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

/// Removes what the killed session of `link` left in its folder, and the link.
pub fn remove_left(link: &Path) {
    if let (Ok(folder), Some(session)) = (std::fs::read_link(link), link.file_stem().and_then(OsStr::to_str))
    {
        remove_files(&folder, session);
    }
    let _ = std::fs::remove_file(link);
}

fn remove_files(folder: &Path, session: &str) {
    for file in NAMES.map(|name| folder.join(name)) {
        if session_of(&file).as_deref() == Some(session) {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// The session whose file this is, if it is one of ours.
fn session_of(file: &Path) -> Option<String> {
    if !file.symlink_metadata().is_ok_and(|found| found.is_file()) {
        return None;
    }
    let mut line = String::new();
    let mut start = BufReader::new(io::Read::take(File::open(file).ok()?, 128));
    start.read_line(&mut line).ok()?;
    line.strip_prefix(MARK)?.split_once(':').map(|(session, _)| session.into())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::SystemTime;

    use super::*;

    fn place(name: &str) -> PathBuf {
        let place = std::env::temp_dir().join(format!("kc-certificates-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir_all(place.join("sockets")).unwrap();
        place
    }

    fn written(at: &Path, session: &str) -> Folder {
        let certificates =
            Certificates::make(session, Ipv4Addr::LOCALHOST.into(), SystemTime::now()).unwrap();
        let mut folder = Folder::take(&at.join("tls")).unwrap();
        folder.write(&certificates, session, &at.join("sockets")).unwrap();
        folder
    }

    fn left(at: &Path) -> usize {
        let count = |path: &str| std::fs::read_dir(at.join(path)).map_or(0, Iterator::count);
        count("tls") + count("sockets")
    }

    #[test]
    fn certificate_files_are_private_and_removed_at_the_end() {
        let at = place("alone");
        let folder = written(&at, "0badcafe");
        for file in folder.files() {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
        }
        assert_eq!(at.join("tls").metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let refusal = Folder::take(&at.join("tls")).unwrap_err();
        assert!(refusal.contains("another session has its certificates there"), "{refusal}");
        drop(folder);
        assert!(left(&at) == 0 && !at.join("tls").exists());
        std::fs::remove_dir_all(&at).unwrap();
    }

    #[test]
    fn files_of_others_are_not_touched() {
        let at = place("foreign");
        let tls = at.join("tls");
        std::fs::create_dir(&tls).unwrap();
        std::fs::write(tls.join("key.pem"), format!("-----BEGIN {}-----\n", "PRIVATE KEY")).unwrap();
        let refusal = Folder::take(&tls).unwrap_err();
        assert!(refusal.contains("has a key.pem that is not ours"), "{refusal}");
        std::fs::remove_file(tls.join("key.pem")).unwrap();
        // A link could lead to a file that begins with our line, and be removed or read in its place.
        symlink("/etc/hostname", tls.join("cert.pem")).unwrap();
        assert!(Folder::take(&tls).unwrap_err().contains("has a cert.pem that is not ours"));
        std::fs::remove_file(tls.join("cert.pem")).unwrap();
        std::fs::set_permissions(&tls, std::fs::Permissions::from_mode(0o770)).unwrap();
        assert!(Folder::take(&tls).unwrap_err().contains("others may write"));
        std::fs::set_permissions(&tls, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(tls.join("notes.txt"), "mine").unwrap();
        drop(written(&at, "0badcafe"));
        assert_eq!(std::fs::read_to_string(tls.join("notes.txt")).unwrap(), "mine");
        assert_eq!(left(&at), 1);
        std::fs::remove_dir_all(&at).unwrap();
    }

    #[test]
    fn only_files_of_a_killed_session_are_removed() {
        let at = place("killed");
        let killed = |session: &str| {
            let mut folder = written(&at, session);
            folder.made = false;
            let linked = folder.linked.take();
            drop(folder);
            linked.unwrap().0
        };
        let link = killed("0badcafe");
        assert_eq!(left(&at), 4);
        remove_left(&link);
        assert_eq!(left(&at), 0);
        // The next one takes the same folder before anybody sweeps.
        let link = killed("0badcafe");
        let next = written(&at, "00c0ffee");
        remove_left(&link);
        assert!(next.files().iter().all(|file| session_of(file).as_deref() == Some("00c0ffee")));
        drop(next);
        assert_eq!(left(&at), 0);
        std::fs::remove_dir_all(&at).unwrap();
    }
}
