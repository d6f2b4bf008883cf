//! Searches a directory for keys within a budget: well-known places first, then breadth first in name order,
//! likely names before others, packages and version control last. The budget counts work, not time, so the
//! same tree gives the same result on every machine. What was not scanned is reported.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::likely::{KNOWN, is_kernels, is_likely, is_of_a_run, is_package, is_well_known};
use super::memory::{FileState, Memory};
use super::reading::{self, JudgedFile};
use super::seen::{Budget, Places, Progress, ScanResult};
use super::{Find, Guard, GuardRules, SecretKind};

pub(super) struct Walk<'a> {
    rules: &'a GuardRules,
    memory: &'a Memory,
    budget: Budget,
    most: usize,
    progress: &'a Progress,
    /// Number of finds for each root.
    counts: Vec<usize>,
    spent: bool,
    folders: VecDeque<(usize, PathBuf)>,
    /// Directories of packages and version control, for the end.
    packages: VecDeque<(usize, PathBuf)>,
    /// Files without a likely name, for when the others are done.
    later: VecDeque<(usize, PathBuf)>,
    unreadable: Places,
    /// Archives that were not opened.
    shut: Places,
    /// Packages and version control, scanned for well-known names only.
    skimmed: Places,
    /// The roots of [`Guard::made`], as written and with links resolved.
    made: Vec<PathBuf>,
    seen: ScanResult,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        roots: usize,
        rules: &'a GuardRules,
        budget: Budget,
        memory: &'a Memory,
        most: usize,
        progress: &'a Progress,
    ) -> Self {
        Self {
            rules,
            memory,
            budget,
            most,
            progress,
            counts: vec![0; roots],
            spent: false,
            folders: VecDeque::new(),
            packages: VecDeque::new(),
            later: VecDeque::new(),
            unreadable: Places::default(),
            shut: Places::default(),
            skimmed: Places::default(),
            made: vec![],
            seen: ScanResult::default(),
        }
    }

    /// Queues a directory with everything below it.
    pub(super) fn enter(&mut self, number: usize, folder: PathBuf) {
        self.folders.push_back((number, folder));
    }

    pub(super) fn finds(&self, number: usize) -> Vec<Find> {
        let here = self.seen.finds.iter().filter(|(of, _)| *of == number);
        here.map(|(_, find)| find.clone()).collect()
    }

    /// From here on, does not report pipeline roots that do not exist, nor unreadable files below their runs.
    pub(super) fn expect(&mut self, made: &[PathBuf]) {
        self.made =
            made.iter().cloned().chain(made.iter().filter_map(|root| root.canonicalize().ok())).collect();
    }

    /// The root with links resolved, since an engine follows links too; `None` if it is excepted or
    /// unreadable.
    pub(super) fn root(&mut self, root: &Path) -> Option<PathBuf> {
        match root.canonicalize() {
            Ok(real) => (!self.rules.allows(&real)).then_some(real),
            Err(error) => {
                if error.kind() == io::ErrorKind::NotFound && self.made.iter().any(|made| made == root) {
                    return None;
                }
                let why = if error.kind() == io::ErrorKind::NotFound {
                    "is not there".to_string()
                } else {
                    format!("cannot be read: {}", error.kind())
                };
                self.seen.unverified.push(format!("{} {why}", root.to_string_lossy()));
                None
            }
        }
    }

    /// Reports the engine's socket below `root`: a container with that directory can control the engine.
    pub(super) fn socket(&mut self, number: usize, root: &Path, guard: &Guard) {
        let Some(engine) = &guard.engine else { return };
        let engine = engine.canonicalize().unwrap_or_else(|_| engine.clone());
        if engine.starts_with(root) && !self.rules.allows(&engine) {
            self.found(number, SecretKind::EngineSocket, engine.to_string_lossy().into_owned(), None);
        }
    }

    fn found(&mut self, number: usize, kind: SecretKind, place: String, line: Option<u32>) {
        let find = Find { kind, place };
        self.progress.found.lock().unwrap_or_else(PoisonError::into_inner).push((number, find.clone()));
        self.counts[number] += 1;
        self.seen.finds.push((number, find));
        self.seen.lines.push(line);
    }

    /// Takes over the finds of an earlier scan at this root whose files are unchanged. With one of them the
    /// root needs no walk: no scan could have another result.
    pub(super) fn remembered(&mut self, number: usize, root: &Path) -> bool {
        for find in self.memory.finds(root) {
            if !self.rules.allows_place(&find.place) && !self.full(number) {
                self.found(number, find.kind, find.place, None);
            }
        }
        self.counts[number] > 0
    }

    /// Checks the places that are known to hold keys, at any depth below `root`.
    pub(super) fn known(&mut self, number: usize, root: &Path, guard: &Guard) {
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

    /// True when the budget is spent.
    fn over(&mut self) -> bool {
        self.spent |= self.seen.entries > self.budget.entries || self.seen.bytes > self.budget.bytes;
        self.spent
    }

    fn step(&self) {
        self.progress.steps.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn run(&mut self) {
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
        while !self.all_full()
            && !self.over()
            && let Some((number, folder)) = self.packages.pop_front()
        {
            self.package(number, &folder);
        }
    }

    /// The names in a directory, sorted, as a file system returns them in any order. `None` if the directory
    /// cannot be read or has more names than the budget allows: then none of them is checked.
    fn names(&mut self, folder: &Path) -> Option<Vec<(OsString, fs::FileType)>> {
        self.step();
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => {
                self.unread(folder, &error);
                return None;
            }
        };
        let mut names = vec![];
        for entry in entries {
            self.seen.entries += 1;
            if self.seen.entries > self.budget.entries {
                self.spent = true;
                return None;
            }
            if self.seen.entries.is_multiple_of(1024) {
                self.step();
            }
            let Ok(entry) = entry else { continue };
            let Ok(kind) = entry.file_type() else { continue };
            names.push((entry.file_name(), kind));
        }
        names.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        Some(names)
    }

    fn folder(&mut self, number: usize, folder: &Path) {
        if self.full(number) {
            return;
        }
        let Some(names) = self.names(folder) else { return };
        let is_environment = names.iter().any(|(name, _)| name == "pyvenv.cfg");
        if is_environment && !self.budget.whole {
            self.skimmed.add(folder);
            return self.packages.push_back((number, folder.into()));
        }
        let mut first = vec![];
        for (name, kind) in names {
            let text = name.to_string_lossy();
            let path = folder.join(&name);
            if kind.is_dir() {
                if is_kernels(&path) || self.rules.allows_plainly(&path) {
                    continue;
                }
                if is_package(&text) && !self.budget.whole {
                    self.skimmed.add(&path);
                    self.packages.push_back((number, path));
                } else {
                    self.folders.push_back((number, path));
                }
            } else if kind.is_file() {
                if is_likely(&text) { first.push(path) } else { self.later.push_back((number, path)) }
            }
            // Links are skipped: the target is either in this tree and scanned there, or outside it, where no
            // container can follow.
        }
        for file in first {
            if self.full(number) || self.over() {
                return;
            }
            self.file(number, &file);
        }
    }

    /// Checks well-known names only: other people publish the content of packages, and version control stores
    /// files packed.
    fn package(&mut self, number: usize, folder: &Path) {
        let Some(names) = self.names(folder) else { return };
        for (name, kind) in names {
            let text = name.to_string_lossy();
            let path = folder.join(&name);
            if kind.is_dir() && !self.rules.allows_plainly(&path) {
                self.packages.push_back((number, path));
            } else if kind.is_file() && is_well_known(&text) && !self.full(number) && !self.over() {
                self.file(number, &path);
            }
        }
    }

    pub(super) fn file(&mut self, number: usize, path: &Path) {
        let found = |(of, find): &(usize, Find)| *of == number && Path::new(&find.place) == path;
        if self.full(number) || self.seen.finds.iter().any(found) {
            return;
        }
        self.step();
        let now = match fs::symlink_metadata(path) {
            Ok(about) if about.file_type().is_socket() || about.file_type().is_fifo() => return,
            Ok(about) if !about.is_file() || about.len() < 24 => return,
            Ok(about) => FileState::of(&about),
            Err(error) => return self.unread(path, &error),
        };
        if let Some(clean) = self.memory.clean(now).filter(|_| !self.budget.whole) {
            self.seen.bytes += clean.bytes;
            if clean.shut {
                self.shut.add(path);
            }
            return;
        }
        match self.judge(path) {
            Ok(judged) => self.judged(number, path, judged),
            Err(error) => self.unread(path, &error),
        }
    }

    fn judge(&self, path: &Path) -> io::Result<(JudgedFile, FileState)> {
        let mut file = open(path)?;
        let now = FileState::of(&file.metadata()?);
        let step = || self.step();
        let judged = if self.budget.whole {
            reading::whole(path, &mut file, &step)?
        } else {
            reading::beginning(path, &mut file, now.size)?
        };
        Ok((judged, now))
    }

    fn judged(&mut self, number: usize, path: &Path, (judged, now): (JudgedFile, FileState)) {
        self.seen.files += 1;
        self.seen.bytes += judged.bytes;
        if judged.shut {
            self.shut.add(path);
        }
        if judged.finds.is_empty() && !self.budget.whole {
            self.memory.keep(now, judged.bytes, judged.shut);
        }
        self.seen.unverified.extend(judged.unverified);
        self.seen.passed.add(judged.passed);
        for entry in judged.finds {
            if !self.rules.allows_place(&entry.name) && !self.full(number) {
                self.found(number, entry.kind, entry.name, entry.line);
            }
        }
    }

    fn unread(&mut self, path: &Path, error: &io::Error) {
        // A file deleted in the meantime does not count as unreadable.
        let of_a_task = || self.made.iter().any(|root| is_of_a_run(path, root));
        if error.kind() != io::ErrorKind::NotFound && !of_a_task() {
            self.unreadable.add(path);
        }
    }

    pub(super) fn finish(mut self) -> ScanResult {
        let told = [
            self.unreadable.told("cannot be read"),
            self.shut.told("(archives that are large, encrypted or damaged): not opened"),
            self.skimmed.told("(packages, version control): looked at for well-known names only"),
        ];
        self.seen.unverified.extend(told.into_iter().flatten());
        if self.spent && !self.all_full() {
            self.seen.unverified.push(format!(
                "the budget of {} names and {} MiB ended: what lies beyond was not looked at",
                self.budget.entries,
                self.budget.bytes >> 20
            ));
        }
        self.seen
    }
}

/// Opens a file without following a link and without waiting for the writer of a pipe.
fn open(path: &Path) -> io::Result<File> {
    use rustix::fs::OFlags;
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}
