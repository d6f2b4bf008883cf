//! `[[mount]]` and `--mount`: paths are made absolute and checked here, so that all mounts that cannot work
//! are reported at the start.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Environment;
use super::layers::Layers;
use super::rules::patterns;
use crate::guard::host_root::HostRoot;
use crate::guard::memory::Memory;
use crate::guard::walk::{Budget, look_within};
use crate::guard::{Guard, Mode};
use crate::mounts::{Mount, Source, objection};
use crate::quote;

/// Most keys reported for one mount.
const MOST: usize = 4;
/// Time limit of the search, so that a hanging file server does not block the start of a session.
const LONGEST_SILENCE: Duration = Duration::from_secs(2);

/// A mount as written.
struct WrittenMount {
    source: Option<String>,
    tmpfs: bool,
    target: Option<String>,
    writable: bool,
}

/// The context in which sources are resolved.
#[derive(Clone, Copy)]
pub(super) struct SourceBase<'a> {
    /// The base of relative paths: the config file's directory for the file, the working directory for flags.
    pub(super) beside: &'a Path,
    pub(super) env: &'a Environment,
    /// Absolute paths are paths of the engine's machine.
    pub(super) host: &'a HostRoot,
}

/// The mounts, and the paths that could not be searched.
pub(super) fn mounts(
    say: &mut Layers,
    flags: &[String],
    at: SourceBase<'_>,
    guard: &Guard,
) -> (Vec<Mount>, Vec<String>) {
    let mut mounts: Vec<Mount> = Vec::new();
    let mut looked: Vec<(PathBuf, MountOrigin)> = Vec::new();
    for path in say.entries("mount") {
        let patterns = patterns(say, &path);
        let inside = |key: &str| format!("{path}.{key}");
        let wanted = WrittenMount {
            source: say.text(&inside("source")),
            tmpfs: say.flag(&inside("tmpfs")).unwrap_or_default(),
            target: say.text(&inside("target")),
            writable: say.flag(&inside("writable")).unwrap_or_default(),
        };
        match read(wanted, at) {
            Ok(mount) => {
                looked.extend(place(&mount).map(|place| (place, MountOrigin::Key(format!("{path}.source")))));
                mounts.push(Mount { patterns, ..mount });
            }
            Err(wrong) => {
                for (key, what) in wrong {
                    let key = if key.is_empty() { path.clone() } else { format!("{path}.{key}") };
                    say.problem(&key, what);
                }
            }
        }
    }
    let beside = &at.env.cwd;
    for text in flags {
        match flag(text).and_then(|wanted| read(wanted, SourceBase { beside, ..at }).map_err(all)) {
            Ok(mount) => {
                looked.extend(place(&mount).map(|place| (place, MountOrigin::Flag(text.clone()))));
                mounts.push(mount);
            }
            Err(what) => say.objection(format!("--mount {}: {what}", quote::path(Path::new(&text)))),
        }
    }
    clashes(say, &mounts);
    let unverified = keys(say, looked, at.host, guard);
    (mounts, unverified)
}

/// Reports two mounts with one target if one is for a subset of the other's containers, because each of these
/// containers would be refused. Other patterns may overlap; the create request reports it then.
fn clashes(say: &mut Layers, mounts: &[Mount]) {
    let place = |mount: &Mount| mount.target.trim_end_matches('/').to_string();
    let covers = |wide: &Mount, narrow: &Mount| wide.patterns.iter().all(|one| narrow.patterns.contains(one));
    for (index, mount) in mounts.iter().enumerate() {
        let mut before = mounts[..index].iter().filter(|other| place(other) == place(mount));
        let Some(other) = before.find(|other| covers(other, mount) || covers(mount, other)) else { continue };
        let who = match (mount.patterns.is_empty(), other.patterns.is_empty()) {
            (true, true) => "every container",
            _ => "the same containers",
        };
        say.objection(format!("two mounts are for {who} at {}; leave one out", quote::name(&mount.target)));
    }
}

/// All problems in one line, for a flag.
fn all(wrong: Vec<(&'static str, String)>) -> String {
    wrong.into_iter().map(|(_, what)| what).collect::<Vec<_>>().join("; ")
}

/// The origin of a mount.
enum MountOrigin {
    Key(String),
    Flag(String),
}

fn place(mount: &Mount) -> Option<PathBuf> {
    match &mount.source {
        Source::Path(path) => Some(path.clone()),
        Source::Volume { .. } | Source::Tmpfs => None,
    }
}

/// Reports mounts for which every create would be refused. The search budget covers all mounts, so a thousand
/// cost no more than one; places that it does not reach are checked at mount time.
fn keys(
    say: &mut Layers,
    looked: Vec<(PathBuf, MountOrigin)>,
    host: &HostRoot,
    guard: &Guard,
) -> Vec<String> {
    if guard.rules.mode != Mode::Deny || looked.is_empty() {
        return vec![];
    }
    let guard = host.guard(guard.clone());
    let places: Vec<PathBuf> = looked.iter().map(|(place, _)| host.find(place)).collect();
    let mut seen = look_within(LONGEST_SILENCE, &places, &guard, Budget::REQUEST, &Memory::default(), MOST);
    seen.finds.iter_mut().for_each(|(_, find)| find.place = host.name(&find.place));
    for (index, (place, said)) in looked.into_iter().enumerate() {
        let here = seen.finds.iter().filter(|(number, _)| *number == index);
        let Some(what) = here.map(|(_, find)| find.to_string()).reduce(|all, one| format!("{all}; {one}"))
        else {
            continue;
        };
        let what = format!("holds {what}; mount what lies beside it, or except it under [guard]");
        match said {
            MountOrigin::Key(key) => say.problem(&key, format_args!("{} {what}", quote::path(&place))),
            MountOrigin::Flag(text) => {
                say.objection(format!("--mount {}: {what}", quote::path(Path::new(&text))))
            }
        }
    }
    seen.unverified.iter().map(|what| host.name(what)).collect()
}

/// Parses `SOURCE:TARGET[:ro|:rw]`, as in `docker run -v`.
fn flag(text: &str) -> Result<WrittenMount, String> {
    if let Some(shape) = quote::no_path(text) {
        return Err(format!("holds {shape}; it has to be SOURCE:TARGET"));
    }
    let mut parts = text.split(':');
    let (source, target, mode) = (parts.next(), parts.next(), parts.next());
    let writable = match mode {
        None | Some("ro") => false,
        Some("rw") => true,
        Some(_) => return Err("has to end in :ro or :rw, or in its target".into()),
    };
    match (source, target, parts.next()) {
        (Some(source), Some(target), None) if !source.is_empty() => Ok(WrittenMount {
            source: Some(source.into()),
            tmpfs: false,
            target: Some(target.into()),
            writable,
        }),
        _ => Err("has to be SOURCE:TARGET, with :ro or :rw behind it if you like".into()),
    }
}

/// Each problem names the wrong key, or an empty one for the whole mount.
fn read(wanted: WrittenMount, at: SourceBase<'_>) -> Result<Mount, Vec<(&'static str, String)>> {
    let mut wrong = vec![];
    match &wanted.target {
        None => wrong.push(("", "needs a target, a path in the container".to_string())),
        Some(target) => {
            wrong.extend(objection(target).map(|why| ("target", format!("{} {why}", quote::value(target)))));
        }
    }
    let found = match (&wanted.source, wanted.tmpfs) {
        (None, true) => Ok(Source::Tmpfs),
        (Some(_), true) => Err(("tmpfs", "has no source: it is empty memory".into())),
        (None, false) => Err(("", "needs a source, or tmpfs = true".into())),
        (Some(text), false) => source(text, at).map_err(|what| ("source", what)),
    };
    let found = found.map_err(|what| wrong.push(what));
    match (found, wanted.target) {
        (Ok(source), Some(target)) if wrong.is_empty() => {
            Ok(Mount { patterns: vec![], source, target, writable: wanted.writable || wanted.tmpfs })
        }
        _ => Err(wrong),
    }
}

/// A source with a slash, `.` or `~` is a path of the engine's machine; a plain word is a volume of the engine.
fn source(text: &str, at: SourceBase<'_>) -> Result<Source, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if !text.starts_with(['.', '~']) && !text.is_empty() && text.bytes().all(plain) {
        let near = at.beside.join(text);
        return Ok(Source::Volume { name: text.into(), beside: near.exists().then_some(near) });
    }
    let path: PathBuf = match text.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            let home = at.env.home().ok_or("starts at your home, and HOME is not set")?;
            at_home(&home, text, at)?.join(rest.trim_start_matches('/'))
        }
        Some(_) => return Err(format!("{}: write out the path of another user's home", quote::value(text))),
        None if text.starts_with('/') => text.into(),
        None => relative(text, at)?,
    };
    // The path as the engine will see it, without links and dots. It must exist.
    let path =
        at.host.real(&path).map_err(|error| format!("{} cannot be mounted: {error}", quote::path(&path)))?;
    match path.to_str() {
        Some(text) if !text.contains(':') => Ok(Source::Path(path)),
        _ => Err(format!("{} has a name that no request to the engine can hold", quote::path(&path))),
    }
}

/// The path of this user's home on the engine's machine.
fn at_home(home: &Path, text: &str, at: SourceBase<'_>) -> Result<PathBuf, String> {
    if at.host.at().is_none() {
        return Ok(home.into());
    }
    at.host.there(home).ok_or_else(|| {
        let why = "starts at your home, which is not below the host root; write out the path on the engine's machine";
        format!("{} {why}", quote::value(text))
    })
}

/// A relative source starts at a directory of this program; the engine needs its path on the engine's machine.
fn relative(text: &str, at: SourceBase<'_>) -> Result<PathBuf, String> {
    if at.host.at().is_none() {
        return Ok(at.beside.join(text));
    }
    let base = at.beside.canonicalize().unwrap_or_else(|_| at.beside.into());
    let there = at.host.there(&base).ok_or_else(|| {
        format!(
            "{} starts at {}, which is not below the host root; write out the path on the engine's machine",
            quote::value(text),
            quote::path(at.beside)
        )
    })?;
    Ok(there.join(text))
}
