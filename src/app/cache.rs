//! Stores fetched objects in a folder of the session, which is removed with it.
//!
//! `CACHE/kfp-creds/gcs/SESSION`, accessible to its user only, has a lock that is held while its session
//! lives, each content once (`objects/N`), and for each container a tree of hard links to the objects it may
//! see (`mounts/N`). A killed session no longer holds its lock: the next start removes its folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::runtime_dir::{private_folder, runtime_folder};
use crate::config::Environment;
use crate::quote;

const LOCK: &str = "lock";

/// The folder that holds the sessions' folders.
pub(super) fn root(env: &Environment) -> PathBuf {
    let named = env.variable("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = named.or_else(|| Some(env.home()?.join(".cache")));
    cache.map_or_else(|| runtime_folder(env), |cache| cache.join("kfp-creds")).join("gcs")
}

/// The folder of a session. Made when the first object is fetched.
#[derive(Debug)]
pub(super) struct InputCache {
    root: PathBuf,
    folder: PathBuf,
    lock: Mutex<Option<File>>,
    last: AtomicU64,
}

/// A fetched object: its content, and its name in its bucket.
#[derive(Debug)]
pub(super) struct FetchedObject {
    pub(super) bucket: String,
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) content: Arc<CachedContent>,
}

/// The file of a content. It is removed when nothing needs it any more; the trees have links of their own.
#[derive(Debug)]
pub(super) struct CachedContent(PathBuf);

impl CachedContent {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for CachedContent {
    fn drop(&mut self) {
        // It may not have been made, or the whole folder is gone.
        let _ = fs::remove_file(&self.0);
    }
}

/// The folders to mount into a container, and lines that describe them.
#[derive(Debug, Default)]
pub(super) struct Mounted {
    pub(super) buckets: BTreeMap<String, PathBuf>,
    pub(super) lines: Vec<String>,
    /// Lines about objects that have no place.
    pub(super) left_out: Vec<String>,
}

impl InputCache {
    pub(super) fn new(root: PathBuf, session: &str) -> Self {
        let folder = root.join(session);
        Self { root, folder, lock: Mutex::default(), last: AtomicU64::default() }
    }

    /// Makes the folder and takes its lock, unless done before.
    pub(super) fn open(&self) -> Result<(), String> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.is_some() {
            return Ok(());
        }
        let failed =
            |error: io::Error| format!("nothing can be fetched to {}: {error}", quote::path(&self.folder));
        // Folders above it keep their permissions: others may use them too.
        private_folder(&self.root).map_err(|why| why.to_string())?;
        let _alone = start_lock(&self.root).map_err(failed)?;
        // Remove the folder of a dead session of the same name.
        sweep_locked(&self.root);
        for folder in [self.folder.clone(), self.folder.join("objects"), self.folder.join("mounts")] {
            DirBuilder::new().mode(0o700).create(folder).map_err(failed)?;
        }
        let own = File::create(self.folder.join(LOCK)).map_err(failed)?;
        own.lock().map_err(failed)?;
        *lock = Some(own);
        Ok(())
    }

    /// The place for another content.
    pub(super) fn place(&self) -> CachedContent {
        CachedContent(self.folder.join("objects").join(self.number()))
    }

    fn number(&self) -> String {
        self.last.fetch_add(1, Ordering::Relaxed).to_string()
    }

    /// Makes a tree for one container. An object whose path collides with a folder of the same name is
    /// reported and left out.
    pub(super) fn mount(&self, all: Vec<FetchedObject>) -> Result<Mounted, String> {
        let (mut mounted, mut sums) = (Mounted::default(), BTreeMap::<String, (usize, u64)>::new());
        let tree = self.folder.join("mounts").join(self.number());
        let failed = |error: io::Error| format!("{}: {error}", quote::path(&tree));
        DirBuilder::new().mode(0o700).create(&tree).map_err(failed)?;
        let mut folders = BTreeSet::new();
        for FetchedObject { bucket, name, size: bytes, content } in all {
            let top = tree.join(&bucket);
            match link(content.path(), &top, &name, &mut folders) {
                Ok(()) => {
                    let sum = sums.entry(bucket.clone()).or_default();
                    *sum = (sum.0 + 1, sum.1 + bytes);
                    mounted.buckets.insert(bucket, top);
                }
                Err(error) if matches!(error.kind(), ErrorKind::NotADirectory | ErrorKind::AlreadyExists) => {
                    let uri = uri(&bucket, &name);
                    mounted.left_out.push(format!(
                        "{uri} is not there: an object and a folder of one name cannot both be in a directory"
                    ));
                }
                Err(error) => return Err(failed(error)),
            }
        }
        for (bucket, (count, bytes)) in sums {
            let what = if count == 1 { "1 object".into() } else { format!("{count} objects") };
            let bucket = quote::name(&bucket);
            let line = format!("{what} of gs://{bucket}, {}, at /gcs/{bucket}, read-only", size(bytes));
            mounted.lines.push(line);
        }
        Ok(mounted)
    }

    /// Removes the folder with its content.
    pub(super) fn remove(&self) {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.take().is_some()
            && let Err(error) = fs::remove_dir_all(&self.folder)
        {
            tracing::warn!(%error, "what was fetched is not removed; the next start tries again");
        }
    }
}

/// Links `content` below `top`, in directories that every user in a container may enter.
fn link(content: &Path, top: &Path, name: &str, made: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    let target = top.join(name);
    let mut missing = vec![];
    let mut folder = target.parent();
    while let Some(one) = folder.filter(|one| one.starts_with(top) && !made.contains(*one)) {
        missing.push(one.to_owned());
        folder = one.parent();
    }
    for folder in missing.into_iter().rev() {
        fs::create_dir(&folder)?;
        // Independent of this process's umask.
        fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
        made.insert(folder);
    }
    fs::set_permissions(content, Permissions::from_mode(0o444))?;
    match fs::hard_link(content, &target) {
        // Some file systems have no hard links, and each limits their number.
        Err(error) if !matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotADirectory) => {
            fs::copy(content, &target).map(drop)
        }
        linked => linked,
    }
}

/// Removes the folders of dead sessions. Blocks; run it beside the start.
pub(super) fn sweep(root: &Path) {
    if root.is_dir()
        && let Ok(_alone) = start_lock(root)
    {
        sweep_locked(root);
    }
}

/// A lock held while folders are made and swept, so that no folder is swept while it is being made.
fn start_lock(root: &Path) -> io::Result<File> {
    let file = File::create(root.join(LOCK))?;
    file.lock()?;
    Ok(file)
}

fn sweep_locked(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let folder = entry.path();
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let lock = File::open(folder.join(LOCK));
        let dead = match &lock {
            Ok(lock) => lock.try_lock().is_ok(),
            Err(error) => error.kind() == ErrorKind::NotFound,
        };
        if dead && let Err(error) = fs::remove_dir_all(&folder) {
            tracing::debug!(%error, "what a dead session fetched stays for now");
        }
    }
}

/// The URI of an object, for messages.
pub(super) fn uri(bucket: &str, name: &str) -> String {
    quote::path(Path::new(&format!("gs://{bucket}/{name}")))
}

/// A size for a person: `812 bytes`, `1.5 MiB`.
pub(super) fn size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => {
            let tenths = (u128::from(bytes) * 10) >> shift;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None if bytes == 1 => "1 byte".into(),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("kc-cache-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir(&folder).unwrap();
            fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
            Self(folder)
        }

        fn root(&self) -> PathBuf {
            self.0.join("gcs")
        }

        fn cache(&self, session: &str) -> InputCache {
            let cache = InputCache::new(self.root(), session);
            cache.open().unwrap();
            cache
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn kept(cache: &InputCache, name: &str) -> FetchedObject {
        let content = Arc::new(cache.place());
        fs::write(content.path(), name).unwrap();
        FetchedObject { bucket: "bucket".into(), name: name.into(), size: name.len() as u64, content }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_fetched_tree_is_private_and_complete() {
        let place = Place::new("tree");
        let cache = place.cache("0badcafe");
        let all = ["a", "dir/b", "dir/deep/c"].map(|name| kept(&cache, name)).into();
        let Mounted { buckets, lines, .. } = cache.mount(all).unwrap();
        let top = &buckets["bucket"];
        assert_eq!(fs::read_to_string(top.join("dir/deep/c")).unwrap(), "dir/deep/c");
        assert_eq!((mode(top), mode(&top.join("dir/deep")), mode(&top.join("a"))), (0o755, 0o755, 0o444));
        for private in
            [&place.root(), &cache.folder, &cache.folder.join("mounts"), &cache.folder.join("objects")]
        {
            assert_eq!(mode(private), 0o700, "{}", private.display());
        }
        assert_eq!(mode(&place.0), 0o755, "what was there before is as it was");
        assert_eq!(lines, ["3 objects of gs://bucket, 16 bytes, at /gcs/bucket, read-only"]);
        cache.remove();
        assert!(!cache.folder.exists());
    }

    #[test]
    fn conflicting_object_names_are_reported() {
        let place = Place::new("clash");
        let cache = place.cache("0badcafe");
        for names in [["a", "a/b"], ["a/b", "a"]] {
            let Mounted { buckets, lines, left_out } =
                cache.mount(names.map(|name| kept(&cache, name)).into()).unwrap();
            let left = format!("gs://bucket/{} is not there: an object and a folder of one name", names[1]);
            assert!(left_out.len() == 1 && left_out[0].starts_with(&left), "{left_out:?}");
            assert_eq!(
                lines,
                ["1 object of gs://bucket, ".to_owned()
                    + &size(names[0].len() as u64)
                    + ", at /gcs/bucket, read-only"]
            );
            assert_eq!(fs::read_to_string(buckets["bucket"].join(names[0])).unwrap(), names[0]);
        }
    }

    #[test]
    fn a_bucket_whose_name_looks_like_a_key_is_not_shown() {
        let place = Place::new("quoted");
        let cache = place.cache("0badcafe");
        let bucket = "0123456789abcdef0123456789abcdef";
        let lines =
            cache.mount(vec![FetchedObject { bucket: bucket.into(), ..kept(&cache, "a") }]).unwrap().lines;
        assert_eq!(
            lines,
            [
                "1 object of gs://(random text, not shown), 1 byte, at /gcs/(random text, not shown), read-only"
            ]
        );
    }

    #[test]
    fn a_sweep_removes_only_files_of_dead_sessions() {
        let place = Place::new("sweep");
        let (living, dead) = (place.cache("11111111"), place.cache("22222222"));
        fs::create_dir(place.root().join("33333333")).unwrap();
        // The kernel releases a lock like this when its process ends.
        dead.lock.lock().unwrap().take();
        sweep(&place.root());
        assert!(living.folder.exists() && !dead.folder.exists() && !place.root().join("33333333").exists());
        // A session of the same name starts with an empty folder.
        living.lock.lock().unwrap().take();
        let content = living.place();
        fs::write(content.path(), "old").unwrap();
        place.cache("11111111");
        assert!(!content.path().exists());
    }

    #[test]
    fn sizes_are_written_with_units() {
        let told = [0, 1023, 1024, 1536, 4 << 30, u64::MAX].map(size);
        assert_eq!(told, ["0 bytes", "1023 bytes", "1.0 KiB", "1.5 KiB", "4.0 GiB", "17179869183.9 GiB"]);
    }
}
