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
                return Ok(Self { text: text.into(), folder: folder.into(), _lock: file });
            }
        }
    }

    /// Links the name to the sockets of the session `id`; returns the path of its Docker socket.
    pub(super) fn point_to(&self, id: &str) -> io::Result<PathBuf> {
        for kind in ["ctl", "sock"] {
            let link = self.path(kind);
            let _ = std::fs::remove_file(&link);
            symlink(format!("{id}.{kind}"), link)?;
        }
        Ok(self.path("sock"))
    }

    fn path(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", self.text))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        for kind in ["sock", "ctl", "pid"] {
            let _ = std::fs::remove_file(self.path(kind));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Form;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("kc-name-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn take(folder: &Path, wanted: Option<&str>) -> Result<Option<String>, String> {
        let console = Console::new(Form::Text, io::sink());
        let taken = Name::take(folder, wanted, &console);
        // Leaked, because a name lasts as long as its holder.
        taken.map(|name| name.map(|name| Box::leak(Box::new(name)).text.clone())).map_err(|e| e.to_string())
    }

    #[test]
    fn a_name_is_had_once_and_the_refusal_names_the_process() {
        let folder = folder("once");
        assert_eq!(take(&folder, Some("team")), Ok(Some("team".into())));
        let refusal = take(&folder, Some("team")).unwrap_err();
        assert!(refusal.contains(&format!("taken by process {}", std::process::id())), "{refusal}");
        assert_eq!(take(&folder, None), Ok(Some("default".into())));
        assert_eq!(take(&folder, None), Ok(None), "a further session has none");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_a_dead_session_left_is_taken_over_and_removed() {
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

    #[test]
    fn names_are_plain_and_no_ids() {
        assert!(["default", "a", "my-team_2", "0badcaf"].into_iter().all(is_name));
        let long = "x".repeat(33);
        for bad in ["", "0badcafe", "../up", "a.b", "-x", "Team", "a b", long.as_str()] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
