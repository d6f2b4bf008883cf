//! Where the files of the engine's machine are, if this program runs in a container: create requests and `[[mount]]`
//! name them by their paths on that machine, which here are below a mounted directory (`--host-root`).

use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::Guard;

/// More links in one path than any kernel follows.
const MOST_LINKS: usize = 40;

/// The directory at which the root of the engine's machine is mounted; `None` if that machine is this one.
#[derive(Clone, Debug, Default)]
pub struct HostRoot(Option<PathBuf>);

impl HostRoot {
    pub fn new(at: Option<PathBuf>) -> Self {
        // A root that is the root changes nothing.
        let real = at.map(|at| at.canonicalize().unwrap_or(at));
        Self(real.filter(|at| at.parent().is_some()))
    }

    pub fn at(&self) -> Option<&Path> {
        self.0.as_deref()
    }

    /// Where `path` of that machine is found here. Links are resolved as that machine does: an absolute one
    /// starts at its root, not at the root of this container.
    pub fn find(&self, path: &Path) -> PathBuf {
        let Some(root) = &self.0 else { return path.into() };
        let mut rest: Vec<OsString> = names(path);
        let (mut found, mut links) = (PathBuf::new(), 0);
        while let Some(name) = rest.pop() {
            if name == ".." {
                found.pop();
                continue;
            }
            let next = found.join(&name);
            match std::fs::read_link(root.join(&next)) {
                Ok(target) if links < MOST_LINKS => {
                    links += 1;
                    if target.is_absolute() {
                        found = PathBuf::new();
                    }
                    rest.extend(names(&target));
                }
                _ => found = next,
            }
        }
        root.join(found)
    }

    /// The path on that machine of something found here, which is the path that a person can use.
    pub fn name(&self, found: &str) -> String {
        let Some(root) = self.0.as_deref().and_then(Path::to_str) else { return found.into() };
        match found.strip_prefix(root.trim_end_matches('/')) {
            Some(rest) if rest.starts_with('/') => rest.into(),
            Some("") => "/".into(),
            _ => found.into(),
        }
    }

    /// `path` of that machine with its links resolved, if it exists.
    pub fn real(&self, path: &Path) -> io::Result<PathBuf> {
        let Some(root) = &self.0 else { return path.canonicalize() };
        let found = self.find(path);
        found.symlink_metadata()?;
        Ok(Path::new("/").join(found.strip_prefix(root).unwrap_or(&found)))
    }

    /// The path on that machine of a file that this program sees as `here`; `None` if it is not below the mounted root,
    /// because its path on that machine is unknown then.
    pub fn there(&self, here: &Path) -> Option<PathBuf> {
        let Some(root) = &self.0 else { return Some(here.into()) };
        Some(Path::new("/").join(here.strip_prefix(root).ok()?))
    }

    /// The guard for that machine's files: places that it knows by path are searched there as well.
    pub fn guard(&self, mut guard: Guard) -> Guard {
        if self.0.is_none() {
            return guard;
        }
        guard.engine = guard.engine.map(|path| self.find(&path));
        for paths in [&mut guard.rules.allow, &mut guard.homes, &mut guard.files, &mut guard.made] {
            let there: Vec<PathBuf> =
                paths.iter().filter(|path| path.is_absolute()).map(|path| self.find(path)).collect();
            paths.extend(there);
        }
        guard
    }
}

/// The names of a path, the last one first.
fn names(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn host(name: &str) -> (PathBuf, HostRoot) {
        let at = std::env::temp_dir().join(format!("kc-host-root-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&at);
        std::fs::create_dir_all(at.join("home/you/data")).unwrap();
        (at.clone(), HostRoot::new(Some(at)))
    }

    #[test]
    fn a_path_is_found_where_that_machine_has_it() {
        let (at, root) = host("find");
        symlink("/home/you", at.join("absolute")).unwrap();
        symlink("../home/you/data", at.join("home/relative")).unwrap();
        symlink("/../../../etc", at.join("home/up")).unwrap();
        symlink("loop", at.join("loop")).unwrap();
        for (path, found) in [
            ("/home/you/data", "home/you/data"),
            ("/absolute/data", "home/you/data"),
            ("/home/relative", "home/you/data"),
            ("/home/you/../you/./data", "home/you/data"),
            // No link leads out of the root.
            ("/home/up/passwd", "etc/passwd"),
            ("/../../etc/passwd", "etc/passwd"),
            ("/not/there", "not/there"),
            ("/loop", "loop"),
        ] {
            assert_eq!(root.find(Path::new(path)), at.join(found), "{path}");
        }
        std::fs::remove_dir_all(&at).unwrap();
    }

    #[test]
    fn messages_show_the_path_of_the_host() {
        let root = HostRoot::new(Some("/host".into()));
        for (found, name) in [
            ("/host/home/you/key.json", "/home/you/key.json"),
            ("/host/a.tar!/key.pem", "/a.tar!/key.pem"),
            ("/host", "/"),
            ("/hosts/x", "/hosts/x"),
            ("text", "text"),
        ] {
            assert_eq!(root.name(found), name);
        }
        let here = HostRoot::new(Some("/".into()));
        assert_eq!((here.name("/x"), here.find(Path::new("/x"))), ("/x".into(), "/x".into()));
    }

    #[test]
    fn a_path_has_the_name_that_the_machine_calls_it() {
        let (at, root) = host("real");
        symlink("/home/you", at.join("link")).unwrap();
        assert_eq!(root.real(Path::new("/link/../you/data")).unwrap(), Path::new("/home/you/data"));
        assert!(root.real(Path::new("/home/nobody")).is_err());
        assert_eq!(root.there(&at.join("home/you/x.toml")).unwrap(), Path::new("/home/you/x.toml"));
        assert_eq!(root.there(Path::new("/etc/x.toml")), None);
        let here = HostRoot::default();
        assert_eq!(here.there(&at).as_ref(), Some(&at));
        assert_eq!(
            here.real(&at.join("home/./you/../you")).unwrap(),
            at.canonicalize().unwrap().join("home/you")
        );
        std::fs::remove_dir_all(&at).unwrap();
    }

    #[test]
    fn exceptions_and_homes_are_that_machines_too() {
        let (at, root) = host("guard");
        let mut guard = Guard { homes: vec!["/home/you".into()], ..Guard::default() };
        guard.rules.allow = vec!["/home/you/data".into(), "inside/a/context".into()];
        let guard = root.guard(guard);
        assert!(guard.rules.allows(&at.join("home/you/data")) && guard.homes.contains(&at.join("home/you")));
        assert!(guard.rules.allow.contains(&"inside/a/context".into()));
        std::fs::remove_dir_all(&at).unwrap();
    }
}
