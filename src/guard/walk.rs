//! A directory's keys, within a budget: well-known places first, then breadth first, likely names before
//! others. What was not looked at is said.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Find, Guard, Kind, Rules, what};

/// What one look may cost.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub time: Duration,
    pub entries: usize,
    pub bytes: u64,
    /// How much of one file is read.
    pub head: u64,
}

impl Budget {
    /// For a request that somebody waits for.
    pub const REQUEST: Budget =
        Budget { time: Duration::from_millis(150), entries: 200_000, bytes: 256 << 20, head: 256 << 10 };

    /// For `scan`, which is asked to look at everything.
    pub const WHOLE: Budget = Budget {
        time: Duration::MAX,
        entries: usize::MAX,
        bytes: u64::MAX,
        head: super::content::HEAD as u64,
    };
}

/// What a look came to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Seen {
    pub finds: Vec<Find>,
    /// What was not judged, and why; lower-case fragments.
    pub unverified: Vec<String>,
    pub files: usize,
}

/// Files that were judged and found clean, by identity and change time; a later look at the same tree
/// costs a look at its directories only. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<HashSet<u64>>>);

/// Then all is forgotten: bounded memory matters more than one slow look.
const REMEMBERED: usize = 500_000;

impl Memory {
    fn key(about: &fs::Metadata) -> u64 {
        let mut hasher = DefaultHasher::new();
        (about.dev(), about.ino(), about.size(), about.ctime(), about.ctime_nsec()).hash(&mut hasher);
        hasher.finish()
    }

    fn holds(&self, about: &fs::Metadata) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&Self::key(about))
    }

    fn keep(&self, about: &fs::Metadata) {
        let mut clean = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if clean.len() >= REMEMBERED {
            clean.clear();
        }
        clean.insert(Self::key(about));
    }
}

/// Where keys are kept, below a home or any directory that is the end of such a path.
const KNOWN: &[&str] = &[
    ".config/gcloud/application_default_credentials.json",
    ".config/gcloud/credentials.db",
    ".config/gcloud/access_tokens.db",
    ".config/gcloud/legacy_credentials",
    ".aws/credentials",
    ".aws/config",
    ".aws/sso/cache",
    ".aws/cli/cache",
    ".azure/accessTokens.json",
    ".azure/msal_token_cache.json",
    ".azure/service_principal_entries.json",
    ".kube/config",
    ".docker/config.json",
    ".netrc",
    ".boto",
    ".ssh/id_rsa",
    ".ssh/id_ed25519",
    ".ssh/id_ecdsa",
    ".env",
];

/// Looks through `roots`: directories or files. At most `most` finds are taken.
///
/// Blocks; call it off the serving thread, under a time-out: a dead file server answers nothing at all.
pub fn look(roots: &[PathBuf], guard: &Guard, budget: Budget, memory: &Memory, most: usize) -> Seen {
    let mut walk = Walk {
        rules: &guard.rules,
        memory,
        budget,
        most,
        end: Instant::now().checked_add(budget.time),
        entries: 0,
        read: 0,
        spent: false,
        folders: VecDeque::new(),
        later: VecDeque::new(),
        unreadable: 0,
        first_unreadable: None,
        seen: Seen::default(),
    };
    let roots: Vec<PathBuf> = roots.iter().filter_map(|root| walk.root(root)).collect();
    for root in &roots {
        walk.known(root, guard);
    }
    for root in roots {
        if root.is_dir() {
            walk.folders.push_back(root);
        } else {
            walk.file(&root);
        }
    }
    walk.run();
    walk.finish()
}

struct Walk<'a> {
    rules: &'a Rules,
    memory: &'a Memory,
    budget: Budget,
    most: usize,
    end: Option<Instant>,
    entries: usize,
    read: u64,
    spent: bool,
    folders: VecDeque<PathBuf>,
    /// Files whose names promise nothing, for when the others are done.
    later: VecDeque<PathBuf>,
    unreadable: usize,
    first_unreadable: Option<PathBuf>,
    seen: Seen,
}

impl Walk<'_> {
    /// The place that a root really is; an engine follows links too.
    fn root(&mut self, root: &Path) -> Option<PathBuf> {
        match root.canonicalize() {
            Ok(real) => (!self.rules.allows(&real)).then_some(real),
            Err(error) => {
                let why = if error.kind() == std::io::ErrorKind::NotFound {
                    "is not there".to_string()
                } else {
                    format!("cannot be read: {}", error.kind())
                };
                self.seen.unverified.push(format!("{} {why}", root.display()));
                None
            }
        }
    }

    /// What is known to hold keys, wherever it lies below `root`.
    fn known(&mut self, root: &Path, guard: &Guard) {
        let mut places: Vec<PathBuf> =
            guard.files.iter().filter(|file| file.starts_with(root)).cloned().collect();
        for home in guard.homes.iter().filter_map(|home| home.canonicalize().ok()) {
            if home.starts_with(root) {
                places.extend(KNOWN.iter().map(|known| home.join(known)));
            }
        }
        for known in KNOWN {
            let mut rest = Path::new(known).components();
            while !rest.as_path().as_os_str().is_empty() {
                places.push(root.join(rest.as_path()));
                rest.next();
            }
        }
        for place in places {
            let Ok(real) = place.canonicalize() else { continue };
            if !real.starts_with(root) || self.full() {
                continue;
            }
            if real.is_dir() {
                self.folders.push_front(real);
            } else {
                self.file(&real);
            }
        }
    }

    fn full(&self) -> bool {
        self.seen.finds.len() >= self.most
    }

    /// True when there is nothing left to spend.
    fn over(&mut self) -> bool {
        let late = self.end.is_some_and(|end| Instant::now() >= end);
        self.spent |= late || self.entries > self.budget.entries || self.read > self.budget.bytes;
        self.spent
    }

    fn run(&mut self) {
        while !self.full()
            && !self.over()
            && let Some(folder) = self.folders.pop_front()
        {
            self.folder(&folder);
        }
        while !self.full()
            && !self.over()
            && let Some(file) = self.later.pop_front()
        {
            self.file(&file);
        }
    }

    fn folder(&mut self, folder: &Path) {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => return self.unread(folder, &error),
        };
        let mut first = vec![];
        for entry in entries {
            self.entries += 1;
            // The clock is a system call on some machines.
            if self.entries.is_multiple_of(64) && self.over() {
                return;
            }
            let Ok(entry) = entry else { continue };
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                let path = entry.path();
                if !is_kernels(&path) && !self.rules.allows_plainly(&path) {
                    self.folders.push_back(path);
                }
            } else if kind.is_file() {
                if is_likely(&entry.file_name().to_string_lossy()) {
                    first.push(entry.path());
                } else {
                    self.later.push_back(entry.path());
                }
            }
            // A link leads somewhere in this tree, where it is met, or out of it, where no container follows.
        }
        for file in first {
            if self.full() || self.over() {
                return;
            }
            self.file(&file);
        }
    }

    fn file(&mut self, path: &Path) {
        if self.seen.finds.iter().any(|find| Path::new(&find.place) == path) {
            return;
        }
        match fs::symlink_metadata(path) {
            Ok(about) if about.file_type().is_socket() || about.file_type().is_fifo() => return,
            Ok(about) if !about.is_file() || about.len() < 24 || self.memory.holds(&about) => return,
            Ok(_) => {}
            Err(error) => return self.unread(path, &error),
        }
        let (kind, about) = match self.judge(path) {
            Ok(judged) => judged,
            Err(error) => return self.unread(path, &error),
        };
        self.seen.files += 1;
        match kind {
            Some(kind) if !self.rules.allows(path) => {
                self.seen.finds.push(Find { kind, place: path.display().to_string() });
            }
            Some(_) => {}
            None => self.memory.keep(&about),
        }
    }

    fn judge(&mut self, path: &Path) -> std::io::Result<(Option<Kind>, fs::Metadata)> {
        let file = open(path)?;
        let about = file.metadata()?;
        let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(
            usize::try_from(about.len().min(self.budget.head)).unwrap_or_default() + 1,
        ));
        file.take(self.budget.head).read_to_end(&mut bytes)?;
        self.read += bytes.len() as u64;
        Ok((what(&bytes), about))
    }

    fn unread(&mut self, path: &Path, error: &std::io::Error) {
        // Gone in the meantime is not unread.
        if error.kind() != std::io::ErrorKind::NotFound {
            self.unreadable += 1;
            self.first_unreadable.get_or_insert_with(|| path.into());
        }
    }

    fn finish(mut self) -> Seen {
        if let Some(first) = &self.first_unreadable {
            let more = match self.unreadable - 1 {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            self.seen.unverified.push(format!("{}{more} cannot be read", first.display()));
        }
        let left = self.folders.len() + self.later.len();
        if self.spent && !self.full() {
            self.seen.unverified.push(format!(
                "the budget ended after {} entries: {left} known files and directories and what lies below \
                 were not looked at",
                self.entries
            ));
        }
        self.seen
    }
}

impl Rules {
    /// Without resolving anything: for every directory of a walk.
    fn allows_plainly(&self, place: &Path) -> bool {
        self.allow.iter().any(|allowed| place.starts_with(allowed))
    }
}

/// Never through a link, and never waiting for the writer of a pipe.
fn open(path: &Path) -> std::io::Result<File> {
    use rustix::fs::OFlags;
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

/// File systems of the kernel's own: no file of a user's, and no end.
fn is_kernels(path: &Path) -> bool {
    ["/proc", "/sys", "/dev"].iter().any(|kernels| path == Path::new(kernels))
}

/// Names under which keys are usually kept.
fn is_likely(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let ends = [
        ".json",
        ".pem",
        ".key",
        ".p12",
        ".pfx",
        ".ppk",
        ".env",
        ".db",
        ".yaml",
        ".yml",
        ".toml",
        ".ini",
        ".cfg",
        ".conf",
        ".csv",
        ".boto",
        ".txt",
        ".sh",
        ".tfstate",
        ".properties",
    ];
    let words = [
        "cred", "secret", "token", "key", "id_rsa", "id_ed", "id_ec", "netrc", "kube", "config", ".env",
        "auth",
    ];
    !name.contains('.')
        || ends.iter().any(|end| name.ends_with(end))
        || words.iter().any(|word| name.contains(word))
}
