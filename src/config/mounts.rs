//! `[[mount]]` and `--mount`: paths are made absolute and looked at here, so that what cannot be mounted is
//! said at the start, all of it at once.

use std::path::{Path, PathBuf};

use wildmatch::WildMatch;

use super::Surroundings;
use super::keys::RawMount;
use super::read::Layers;
use crate::mounts::{Mount, Source, objection};

/// `beside` is where relative sources of the file start; `flags` are relative to the working directory.
pub(super) fn mounts(
    say: &mut Layers,
    raw: Vec<RawMount>,
    flags: &[String],
    beside: &Path,
    around: &Surroundings,
) -> Vec<Mount> {
    let mut all = Vec::new();
    for (index, raw) in raw.into_iter().enumerate() {
        let path = format!("mount[{}]", index + 1);
        match read(raw, beside, around) {
            Ok(mount) => all.push(mount),
            Err(("", what)) => say.problem(&path, what),
            Err((key, what)) => say.problem(&format!("{path}.{key}"), what),
        }
    }
    for text in flags {
        match flag(text).and_then(|raw| read(raw, &around.cwd, around).map_err(|(_, what)| what)) {
            Ok(mount) => all.push(mount),
            Err(what) => say.objection(format!("--mount {text}: {what}")),
        }
    }
    all
}

/// `SOURCE:TARGET[:ro|:rw]`, as `docker run -v` has it.
fn flag(text: &str) -> Result<RawMount, String> {
    let mut parts = text.split(':');
    let (source, target, mode) = (parts.next(), parts.next(), parts.next());
    let writable = match mode {
        None | Some("ro") => false,
        Some("rw") => true,
        Some(other) => return Err(format!("`{other}` has to be ro or rw")),
    };
    match (source, target, parts.next()) {
        (Some(source), Some(target), None) if !source.is_empty() => Ok(RawMount {
            source: Some(source.into()),
            target: Some(target.into()),
            writable,
            ..RawMount::default()
        }),
        _ => Err("has to be SOURCE:TARGET, with :ro or :rw behind it if you like".into()),
    }
}

/// The error names the key that is wrong, or none.
fn read(raw: RawMount, beside: &Path, around: &Surroundings) -> Result<Mount, (&'static str, String)> {
    let target = raw.target.ok_or(("", "needs a target, a path in the container".to_string()))?;
    if let Some(why) = objection(&target) {
        return Err(("target", format!("\"{target}\" {why}")));
    }
    let source = match (raw.source, raw.tmpfs) {
        (None, true) => Source::Tmpfs,
        (Some(_), true) => return Err(("tmpfs", "has no source: it is empty memory".into())),
        (None, false) => return Err(("", "needs a source, or tmpfs = true".into())),
        (Some(text), false) => source(&text, beside, around).map_err(|what| ("source", what))?,
    };
    let pattern = |text: Option<String>| text.map(|text| WildMatch::new(&text));
    Ok(Mount {
        pipeline: pattern(raw.pipeline),
        component: pattern(raw.component),
        image: pattern(raw.image),
        source,
        target,
        writable: raw.writable || raw.tmpfs,
    })
}

/// With a slash, or `.`, or `~` it is a path of this machine; a plain word is a volume of the engine.
fn source(text: &str, beside: &Path, around: &Surroundings) -> Result<Source, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if !text.starts_with(['.', '~']) && !text.is_empty() && text.bytes().all(plain) {
        return Ok(Source::Volume(text.into()));
    }
    let path: PathBuf = match text.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            let home = around.home().ok_or("starts at your home, and HOME is not set")?;
            home.join(rest.trim_start_matches('/'))
        }
        Some(_) => return Err(format!("\"{text}\": write the home of another user out")),
        None => beside.join(text),
    };
    // As the engine will see it: without links and dots, and it has to be there.
    let path =
        path.canonicalize().map_err(|error| format!("{} cannot be mounted: {error}", path.display()))?;
    match path.to_str() {
        Some(text) if !text.contains(':') => Ok(Source::Path(path)),
        _ => Err(format!("{} has a name that the engine cannot be told", path.display())),
    }
}
