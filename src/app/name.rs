//! The name of a `serve`: `NAME.sock`, a path that stays the same from start to start, for docker contexts,
//! editors and Compose. It and `NAME.ctl` are links to the session's sockets, which are named by its id.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use super::broken;
use crate::console::Console;
use crate::failure::Failure;

/// The name of a session started without one, if it is free.
const DEFAULT: &str = "default";
/// The length that the limit of a unix socket's path leaves for a name.
const LONGEST: usize = 32;

/// A name held by this process until the value is dropped. `NAME.pid` holds the process id and is locked; the
/// kernel releases the lock of a killed process.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) text: String,
    folder: PathBuf,
    _lock: File,
}

#[derive(Debug)]
enum Untaken {
    /// Held by the process of this id, if it could be read.
    Held(Option<u32>),
    /// `NAME.sock` is not a link of ours.
    Foreign,
    Broken(io::Error),
}

impl From<io::Error> for Untaken {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// Whether `text` is a valid name of a session, and not an id.
pub fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    let id = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    !id && (1..=LONGEST).contains(&text.len()) && !text.starts_with('-') && text.bytes().all(plain)
}

impl Name {
    /// Takes the requested name, or refuses and names the process that has it. Without a requested name,
    /// takes the default one; if that is taken, prints a notice and returns `None`.
    pub(super) fn take(
        folder: &Path,
        wanted: Option<&str>,
        console: &Console,
    ) -> Result<Option<Self>, Failure> {
        let text = wanted.unwrap_or(DEFAULT);
        let holder = match Self::lock(folder, text) {
            Ok(name) => return Ok(Some(name)),
            Err(Untaken::Broken(error)) => return Err(broken(&format!("take the name {text}"), error)),
            Err(Untaken::Held(None)) => "another process".into(),
            Err(Untaken::Held(Some(pid))) => format!("process {pid}"),
            Err(Untaken::Foreign) => "a socket of another program, such as systemd's kfp-creds.socket".into(),
        };
        if wanted.is_some() {
            return Err(Failure::NotPermitted(format!(
                "the name {text} is taken by {holder}: end that, or choose another --name"
            )));
        }
        console.notice(format!("the name {text} is taken by {holder}: this session has a socket of its own"));
        Ok(None)
    }

    fn lock(folder: &Path, text: &str) -> Result<Self, Untaken> {
        let path = folder.join(format!("{text}.pid"));
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let mut file = options.open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut pid = String::new();
                    file.read_to_string(&mut pid)?;
                    return Err(Untaken::Held(pid.trim().parse().ok()));
                }
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            // The previous holder removes the file at its end, perhaps after it was opened here.
            let locked = file.metadata()?.ino();
            if std::fs::metadata(&path).is_ok_and(|there| there.ino() == locked) {
                file.set_len(0)?;
                writeln!(file, "{}", std::process::id())?;
                let name = Self { text: text.into(), folder: folder.into(), _lock: file };
                return if name.is_foreign() { Err(Untaken::Foreign) } else { Ok(name) };
            }
        }
    }

    /// Links the name to the sockets of the session `id`; returns the path of its Docker socket.
    pub(super) fn point_to(&self, id: &str) -> io::Result<PathBuf> {
        for kind in ["ctl", "sock"] {
            let link = self.path(kind);
            remove_link(&link);
            symlink(format!("{id}.{kind}"), link)?;
        }
        Ok(self.path("sock"))
    }

    /// A service manager binds the path that its socket unit names, and listens there while no session runs.
    fn is_foreign(&self) -> bool {
        std::fs::symlink_metadata(self.path("sock")).is_ok_and(|found| !found.is_symlink())
    }

    fn path(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", self.text))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        remove_link(&self.path("sock"));
        remove_link(&self.path("ctl"));
        let _ = std::fs::remove_file(self.path("pid"));
    }
}

/// Leaves anything that is not a link: the sessions' names are links, and a socket here is somebody else's.
fn remove_link(path: &Path) {
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::console::OutputForm;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("kc-name-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn take(folder: &Path, wanted: Option<&str>) -> Result<Option<String>, String> {
        let console = Console::new(OutputForm::Text, io::sink());
        let taken = Name::take(folder, wanted, &console);
        // Leaked, because a name lasts as long as its holder.
        taken.map(|name| name.map(|name| Box::leak(Box::new(name)).text.clone())).map_err(|e| e.to_string())
    }

    #[test]
    fn a_session_name_is_taken_once_and_the_holder_is_named() {
        let folder = folder("once");
        assert_eq!(take(&folder, Some("team")), Ok(Some("team".into())));
        let refusal = take(&folder, Some("team")).unwrap_err();
        assert!(refusal.contains(&format!("taken by process {}", std::process::id())), "{refusal}");
        assert_eq!(take(&folder, None), Ok(Some("default".into())));
        assert_eq!(take(&folder, None), Ok(None), "a further session has none");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_dead_sessions_name_is_taken_over() {
        let folder = folder("dead");
        std::fs::write(folder.join("team.pid"), "1\n").unwrap();
        symlink("0badcafe.sock", folder.join("team.sock")).unwrap();
        let name = Name::lock(&folder, "team").unwrap();
        let socket = name.point_to("00c0ffee").unwrap();
        assert_eq!(std::fs::read_link(&socket).unwrap(), Path::new("00c0ffee.sock"));
        assert_eq!(std::fs::read_link(folder.join("team.ctl")).unwrap(), Path::new("00c0ffee.ctl"));
        drop(name);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// As systemd does it for `deploy/kfp-creds.socket`.
    #[test]
    fn a_socket_that_another_program_bound_keeps_its_name() {
        let folder = folder("foreign");
        let paths = ["default.sock", "team.sock"].map(|name| folder.join(name));
        let bound = paths.each_ref().map(|path| UnixListener::bind(path).unwrap());
        assert_eq!(take(&folder, None), Ok(None), "the implicit name is left to it");
        let refusal = take(&folder, Some("team")).unwrap_err();
        assert!(refusal.contains("the name team is taken by a socket of another program"), "{refusal}");
        // Bound after the name was taken.
        let late = Name::lock(&folder, "late").unwrap();
        let late_socket = UnixListener::bind(folder.join("late.sock")).unwrap();
        assert!(late.point_to("00c0ffee").is_err());
        drop(late);
        assert!(
            paths.iter().chain([&folder.join("late.sock")]).all(|path| UnixStream::connect(path).is_ok())
        );
        assert!(!folder.join("team.pid").exists() && !folder.join("default.pid").exists());
        drop((bound, late_socket));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn names_are_plain_and_no_ids() {
        assert!(["default", "a", "my-team_2", "0badcaf"].into_iter().all(is_name));
        let long = "x".repeat(33);
        for bad in ["", "0badcafe", "../up", "a.b", "-x", "Team", "a b", long.as_str()] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
