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

use super::likely::{KNOWN, is_kernels, is_likely};
use super::{Find, Guard, Kind, Rules, what};
use crate::process::within;

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
    /// Each with the number of the root that it belongs to.
    pub finds: Vec<(usize, Find)>,
    /// What was not judged, and why; lower-case fragments.
    pub unverified: Vec<String>,
    /// The work: files judged, names met, bytes read.
    pub files: usize,
    pub entries: usize,
    pub bytes: u64,
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

/// Looks through `roots`: directories or files. At most `most` finds are taken of each.
///
/// Blocks, and for as long as a dead file server likes: where somebody waits, [`look_within`] is for that.
pub fn look(roots: &[PathBuf], guard: &Guard, budget: Budget, memory: &Memory, most: usize) -> Seen {
    look_aloud(roots, guard, budget, memory, most, &|_, _| {})
}

/// The same, and back when `limit` is over at the latest, then with what was found until then: a look ends
/// by itself within its budget, but not where a file server hangs.
pub fn look_within(
    limit: Duration,
    roots: &[PathBuf],
    guard: &Guard,
    budget: Budget,
    memory: &Memory,
    most: usize,
) -> Seen {
    let found: Arc<Mutex<Vec<(usize, Find)>>> = Arc::default();
    let (told, roots, guard, memory) = (found.clone(), roots.to_vec(), guard.clone(), memory.clone());
    let seen = within(limit, move || {
        let tell = |root, find: &Find| {
            told.lock().unwrap_or_else(PoisonError::into_inner).push((root, find.clone()));
        };
        look_aloud(&roots, &guard, budget, &memory, most, &tell)
    });
    seen.unwrap_or_else(|| Seen {
        finds: found.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        unverified: vec!["the mounts were not looked through in time".into()],
        ..Seen::default()
    })
}

/// `tell` hears each find when it is made.
fn look_aloud(
    roots: &[PathBuf],
    guard: &Guard,
    budget: Budget,
    memory: &Memory,
    most: usize,
    tell: &dyn Fn(usize, &Find),
) -> Seen {
    let mut walk = Walk {
        rules: &guard.rules,
        memory,
        budget,
        most,
        tell,
        end: Instant::now().checked_add(budget.time),
        counts: vec![0; roots.len()],
        spent: false,
        folders: VecDeque::new(),
        later: VecDeque::new(),
        unreadable: 0,
        first_unreadable: None,
        seen: Seen::default(),
    };
    // What needs no walk comes first, root by root: a walk may come to where it hangs.
    let mut real = vec![];
    for (number, root) in roots.iter().enumerate() {
        if let Some(root) = walk.root(root) {
            walk.socket(number, &root, guard);
            walk.known(number, &root, guard);
            real.push((number, root));
        }
    }
    for (number, root) in real {
        if root.is_dir() {
            walk.folders.push_back((number, root));
        } else {
            walk.file(number, &root);
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
    tell: &'a dyn Fn(usize, &Find),
    end: Option<Instant>,
    /// Finds by root.
    counts: Vec<usize>,
    spent: bool,
    folders: VecDeque<(usize, PathBuf)>,
    /// Files whose names promise nothing, for when the others are done.
    later: VecDeque<(usize, PathBuf)>,
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
                self.seen.unverified.push(format!("{} {why}", root.to_string_lossy()));
                None
            }
        }
    }

    /// Whoever has a directory with the engine's socket has the engine.
    fn socket(&mut self, number: usize, root: &Path, guard: &Guard) {
        let Some(engine) = &guard.engine else { return };
        let engine = engine.canonicalize().unwrap_or_else(|_| engine.clone());
        if engine.starts_with(root) && !self.rules.allows(&engine) {
            self.found(number, Kind::EngineSocket, &engine);
        }
    }

    fn found(&mut self, number: usize, kind: Kind, place: &Path) {
        // A name that is there is no secret, and rules and people have to find it again.
        let find = Find { kind, place: place.to_string_lossy().into_owned() };
        (self.tell)(number, &find);
        self.counts[number] += 1;
        self.seen.finds.push((number, find));
    }

    /// What is known to hold keys, wherever it lies below `root`.
    fn known(&mut self, number: usize, root: &Path, guard: &Guard) {
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
            if !real.starts_with(root) || self.full(number) {
                continue;
            }
            if real.is_dir() {
                self.folders.push_front((number, real));
            } else {
                self.file(number, &real);
            }
        }
    }

    fn full(&self, number: usize) -> bool {
        self.counts[number] >= self.most
    }

    fn all_full(&self) -> bool {
        self.counts.iter().all(|count| *count >= self.most)
    }

    /// True when there is nothing left to spend.
    fn over(&mut self) -> bool {
        let late = self.end.is_some_and(|end| Instant::now() >= end);
        self.spent |= late || self.seen.entries > self.budget.entries || self.seen.bytes > self.budget.bytes;
        self.spent
    }

    fn run(&mut self) {
        while !self.all_full()
            && !self.over()
            && let Some((number, folder)) = self.folders.pop_front()
        {
            self.folder(number, &folder);
        }
        while !self.all_full()
            && !self.over()
            && let Some((number, file)) = self.later.pop_front()
        {
            self.file(number, &file);
        }
    }

    fn folder(&mut self, number: usize, folder: &Path) {
        if self.full(number) {
            return;
        }
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => return self.unread(folder, &error),
        };
        let mut first = vec![];
        for entry in entries {
            self.seen.entries += 1;
            // The clock is a system call on some machines.
            if self.seen.entries.is_multiple_of(64) && self.over() {
                return;
            }
            let Ok(entry) = entry else { continue };
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                let path = entry.path();
                if !is_kernels(&path) && !self.rules.allows_plainly(&path) {
                    self.folders.push_back((number, path));
                }
            } else if kind.is_file() {
                if is_likely(&entry.file_name().to_string_lossy()) {
                    first.push(entry.path());
                } else {
                    self.later.push_back((number, entry.path()));
                }
            }
            // A link leads somewhere in this tree, where it is met, or out of it, where no container follows.
        }
        for file in first {
            if self.full(number) || self.over() {
                return;
            }
            self.file(number, &file);
        }
    }

    fn file(&mut self, number: usize, path: &Path) {
        let found = |(of, find): &(usize, Find)| *of == number && Path::new(&find.place) == path;
        if self.full(number) || self.seen.finds.iter().any(found) {
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
            Some(kind) if !self.rules.allows(path) => self.found(number, kind, path),
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
        self.seen.bytes += bytes.len() as u64;
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
            self.seen.unverified.push(format!("{}{more} cannot be read", first.to_string_lossy()));
        }
        let left = self.folders.len() + self.later.len();
        if self.spent && !self.all_full() {
            self.seen.unverified.push(format!(
                "the budget ended after {} entries: {left} known files and directories and what lies below \
                 were not looked at",
                self.seen.entries
            ));
        }
        self.seen
    }
}

impl Rules {
    /// Without resolving anything: for every directory of a walk.
    pub fn allows_plainly(&self, place: &Path) -> bool {
        self.allow.iter().any(|allowed| place.starts_with(allowed))
    }
}

/// Never through a link, and never waiting for the writer of a pipe.
fn open(path: &Path) -> std::io::Result<File> {
    use rustix::fs::OFlags;
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}
