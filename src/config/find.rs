//! Finds the config file, and determines how far it is trusted.
//!
//! A file found in a project comes from a repository that others wrote. It may choose among identities, but
//! it may not say where credentials are read from or sent to until the user has read and trusted its content
//! (decision 23 of `docs/ARCHITECTURE.md`). Trust is a line in the user's own state file: the SHA-256 of the
//! content and the path; any other content or path is not trusted. The session policies that the file names are part of
//! its content.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Environment;
use super::layers::Guarded;
use crate::quote;
use crate::source::stamp::Stamp;

/// The name of a project's config file.
pub const FILE: &str = "kfp-creds.toml";

/// A config is read whole before it is parsed; a file larger than this is a mistake.
const LARGEST: u64 = 1 << 20;
/// A session policy has 2048 characters at most, without its blanks.
const LARGEST_POLICY: u64 = 64 << 10;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum FileLookup {
    /// Named by the user, or in the user's own directory.
    Own,
    /// Found in the nearest ancestor of the working directory.
    Project,
}

/// A config file as read once, so that the content checked for trust is the content parsed.
#[derive(Debug)]
pub(super) struct FoundConfig {
    pub path: PathBuf,
    pub text: String,
    /// The stamp of the file that was read; see `Config::stamp`.
    pub stamp: Option<Stamp>,
    /// The session policies, by the text that names them.
    pub policies: BTreeMap<String, PolicyFile>,
    found: FileLookup,
    /// Other users who can write the file, if any.
    exposed: Option<&'static str>,
}

/// A session policy of the file, read once with it, so that the content checked for trust is the content sent.
#[derive(Debug)]
pub(super) struct PolicyFile {
    pub path: PathBuf,
    /// The error is a fragment about the file.
    pub content: Result<Vec<u8>, String>,
}

/// The config file to use, with the session policies that it names.
pub(super) fn locate(named: Option<&Path>, env: &Environment) -> Result<Option<FoundConfig>, String> {
    Ok(find(named, env)?.map(|located| FoundConfig { policies: policies(&located), ..located }))
}

/// The config file to use: the named one, else the nearest ancestor's, else the user's.
fn find(named: Option<&Path>, env: &Environment) -> Result<Option<FoundConfig>, String> {
    if let Some(path) = named {
        if let Some(shape) = quote::no_path(&path.to_string_lossy()) {
            return Err(format!(
                "what names the config file (--config, KFP_CREDS_CONFIG) holds {shape}, not a path"
            ));
        }
        let path = env.cwd.join(path);
        return match read(&path, FileLookup::Own)? {
            None => Err(format!("{}: no such file", quote::path(&path))),
            some => Ok(some),
        };
    }
    for directory in env.cwd.ancestors() {
        if let Some(located) = read(&directory.join(FILE), FileLookup::Project)? {
            return Ok(Some(located));
        }
    }
    match user_directory(env, "XDG_CONFIG_HOME", ".config") {
        Some(directory) => read(&directory.join("config.toml"), FileLookup::Own),
        None => Ok(None),
    }
}

fn read(path: &Path, found: FileLookup) -> Result<Option<FoundConfig>, String> {
    let told = |why: String| format!("{}: {why}", quote::path(path));
    let Some((bytes, about)) = bounded(path, LARGEST).map_err(told)? else { return Ok(None) };
    let text = String::from_utf8(bytes).map_err(|error| {
        let (valid, wide) = (error.utf8_error().valid_up_to(), error.as_bytes().contains(&0));
        let line = error.as_bytes().iter().take(valid).filter(|b| **b == b'\n').count() + 1;
        let how = if wide { " (PowerShell writes UTF-16)" } else { "" };
        told(format!("is not UTF-8 in line {line}{how}; save it as UTF-8"))
    })?;
    let (exposed, stamp) = (exposure_of(&about), Stamp::of_opened(&about));
    Ok(Some(FoundConfig { path: path.to_owned(), text, stamp, policies: BTreeMap::new(), found, exposed }))
}

/// The content of a regular file of at most `largest` bytes; `None` if there is no file. The error is a fragment about
/// the file.
fn bounded(path: &Path, largest: u64) -> Result<Option<(Vec<u8>, Metadata)>, String> {
    let failed = |error: io::Error| format!("cannot be read: {error}");
    // NONBLOCK, so that opening a pipe without a writer does not hang.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err("is not a file".into());
    }
    let mut bytes = Vec::new();
    file.take(largest + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > largest {
        let size = if largest >= 1 << 20 {
            format!("{} MiB", largest >> 20)
        } else {
            format!("{} KiB", largest >> 10)
        };
        return Err(format!("is larger than {size}"));
    }
    Ok(Some((bytes, about)))
}

/// The files of `identity.*.aws.policy`. A relative path starts at the config file.
fn policies(located: &FoundConfig) -> BTreeMap<String, PolicyFile> {
    // The later parse reports mistakes in the file.
    let table: toml::Table = toml::from_str(&located.text).unwrap_or_default();
    let identities = table.get("identity").and_then(toml::Value::as_table).into_iter().flatten();
    let named = identities.filter_map(|(_, identity)| identity.get("aws")?.get("policy")?.as_str());
    let beside = located.path.parent().unwrap_or(&located.path);
    let read = |text: &str| {
        let path = beside.join(text);
        let content = bounded(&path, LARGEST_POLICY).and_then(|found| match found {
            None => Err("cannot be read: there is no such file".into()),
            Some((bytes, about)) => {
                exposure_of(&about).map_or(Ok(bytes), |why| Err(format!("is not used: {why}")))
            }
        });
        (text.to_owned(), PolicyFile { path, content })
    };
    named.filter(|text| quote::no_path(text).is_none()).map(read).collect()
}

fn exposure_of(about: &Metadata) -> Option<&'static str> {
    exposure(about.mode(), about.uid(), rustix::process::geteuid().as_raw())
}

/// Which other users can write a file with this mode and owner.
fn exposure(mode: u32, owner: u32, us: u32) -> Option<&'static str> {
    match () {
        () if mode & 0o002 != 0 => Some("everybody can write it"),
        () if owner != us && owner != 0 => Some("it belongs to another user"),
        () => None,
    }
}

impl FoundConfig {
    /// An error if this file may not set the `guarded` keys.
    pub(super) fn objection(&self, guarded: &[Guarded], env: &Environment) -> Result<(), String> {
        if guarded.is_empty() {
            return Ok(());
        }
        let names = guarded.iter().map(|one| format!("`{}` (line {})", one.key, one.line));
        let names = names.collect::<Vec<_>>().join(", ");
        let path = quote::path(&self.path);
        if let Some(why) = self.exposed {
            return Err(format!("{path}: {names} cannot be taken from it: {why}; chmod or chown it"));
        }
        if self.found == FileLookup::Own || Trusted::open(env)?.holds(self) {
            return Ok(());
        }
        Err(format!(
            "{path}: {names} has effect in a project's file only once you trust it; read it, then run: \
             kfp-creds config trust"
        ))
    }

    /// An error if a running session may not load this content.
    pub(super) fn content_is_trusted(&self, env: &Environment) -> Result<(), String> {
        let path = quote::path(&self.path);
        if let Some(why) = self.exposed {
            return Err(format!("{path} changed and is not read again: {why}; chmod or chown it"));
        }
        if self.found == FileLookup::Own || Trusted::open(env)?.holds(self) {
            return Ok(());
        }
        Err(format!("{path} changed; the session reads it again once you trust it: kfp-creds config trust"))
    }

    pub(super) fn exposed(&self) -> Option<&'static str> {
        self.exposed
    }

    /// The digest of the file alone, if it names no session policy.
    fn digest(&self) -> String {
        let mut content = self.text.clone();
        for (text, PolicyFile { content: policy, .. }) in &self.policies {
            let digest = policy.as_ref().map_or_else(|_| "none".into(), |bytes| digest_of(bytes));
            content.push_str(&format!("\0{text}\0{digest}"));
        }
        digest_of(content.as_bytes())
    }

    /// The line in the state file. The path is resolved, so that a link to another place is another path.
    fn record(&self) -> Result<String, String> {
        let path = self.path.canonicalize();
        let path =
            path.map_err(|error| format!("{}: cannot be resolved: {error}", quote::path(&self.path)))?;
        match path.to_str() {
            Some(text) if !text.contains('\n') => Ok(format!("{} {text}", self.digest())),
            _ => Err(format!("{}: a path that is not plain text cannot be trusted", quote::path(&self.path))),
        }
    }
}

/// The user's list of trusted contents, `$XDG_STATE_HOME/kfp-creds/trusted`, one `SHA256 PATH` per line.
#[derive(Debug)]
pub(super) struct Trusted {
    file: PathBuf,
    lines: Vec<String>,
}

impl Trusted {
    pub(super) fn open(env: &Environment) -> Result<Self, String> {
        let directory = user_directory(env, "XDG_STATE_HOME", ".local/state");
        let directory = directory.ok_or("HOME is not set, so there is no list of trusted files")?;
        let file = directory.join("trusted");
        let lines = match read(&file, FileLookup::Own)? {
            None => Vec::new(),
            Some(FoundConfig { exposed: Some(why), .. }) => {
                return Err(format!("{}: {why}, so it proves nothing; remove it", quote::path(&file)));
            }
            Some(located) => located.text.lines().map(String::from).collect(),
        };
        Ok(Self { file, lines })
    }

    fn holds(&self, located: &FoundConfig) -> bool {
        located.record().is_ok_and(|record| self.lines.contains(&record))
    }

    /// Adds this content and replaces an older entry for the same path.
    pub(super) fn add(&mut self, located: &FoundConfig) -> Result<(), String> {
        let record = located.record()?;
        let path = |line: &str| line.split_once(' ').map(|(_, path)| path.to_owned());
        self.lines.retain(|line| path(line) != path(&record));
        self.lines.push(record);
        self.write().map_err(|error| format!("{}: cannot be written: {error}", quote::path(&self.file)))
    }

    fn write(&self) -> io::Result<()> {
        if let Some(directory) = self.file.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        // Written to a temporary file and renamed, so that readers see either the old or the new list.
        let beside = self.file.with_extension(format!("new-{}", std::process::id()));
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        let written =
            file.write_all((self.lines.join("\n") + "\n").as_bytes()).and_then(|()| file.sync_all());
        match written.and_then(|()| fs::rename(&beside, &self.file)) {
            Ok(()) => Ok(()),
            Err(error) => {
                let _ = fs::remove_file(&beside);
                Err(error)
            }
        }
    }
}

/// SHA-256 in lower-case hex.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    quote::hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

/// `$VARIABLE/kfp-creds`, or `~/FALLBACK/kfp-creds`. A relative value counts as unset (XDG base directories).
fn user_directory(env: &Environment, variable: &str, fallback: &str) -> Option<PathBuf> {
    let named = env.variable(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = named.or_else(|| Some(env.home()?.join(fallback)))?;
    Some(base.join("kfp-creds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_writers_of_a_config_file_are_found() {
        for (mode, owner, us, exposed) in [
            (0o100_644, 1000, 1000, false),
            (0o100_664, 1000, 1000, false),
            (0o100_644, 0, 1000, false),
            (0o100_646, 1000, 1000, true),
            (0o100_644, 1001, 1000, true),
            (0o100_600, 1001, 0, true),
        ] {
            assert_eq!(exposure(mode, owner, us).is_some(), exposed, "{mode:o} {owner} {us}");
        }
    }
}
