//! What the user wants: flags over environment over one file over defaults, checked whole, resolved once.
//!
//! The environment and the file system are arguments ([`Environment`]); nothing here reads the process's
//! own. Rooms: `keys` (every key), `raw` (the shape that is read), `layers` (file, environment, flags), `document` (positions in the file), `find` (where the file is, trust),
//! `check` and `forms` (what values mean), [`engine`] (which Docker engine).

mod boundary;
mod check;
mod document;
pub mod endpoint;
pub mod engine;
mod find;
mod forms;
mod guarding;
mod keys;
mod layers;
mod mounts;
mod provider;
pub mod proxies;
mod raw;
mod reference;
mod rules;
mod schema;
mod seeing;
mod shown;
mod summary;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use find::FILE;
pub use layers::Guarded;
use layers::Layers;
pub use reference::reference;
pub use schema::schema;

use crate::console;
use crate::guard::Guard;
use crate::kfp::Compiled;
use crate::mounts::Mount;
use crate::policy::Policy;
use crate::quote;
use crate::record::audit;
use crate::source::google::{Endpoints, Provided};
use crate::workload::Identity;

/// What the process was started in; made once, in `main.rs`.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// Variables whose name and value are UTF-8; others cannot mean anything to us.
    pub variables: BTreeMap<String, String>,
    /// Absolute.
    pub cwd: PathBuf,
}

impl Environment {
    /// A variable that is set to something; an empty one counts as unset.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub fn home(&self) -> Option<PathBuf> {
        self.variable("HOME").map(PathBuf::from).filter(|path| path.is_absolute())
    }
}

/// What the command line says; the flags that `run`, `serve` and `check` share.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub config: Option<PathBuf>,
    pub offline: bool,
    pub credentials_file: Option<PathBuf>,
    pub impersonate: Option<String>,
    pub project: Option<String>,
    pub all: bool,
    /// `SOURCE:TARGET[:ro|:rw]`, each.
    pub mounts: Vec<String>,
    pub keep: bool,
    pub quiet: bool,
    pub json: bool,
    /// How often `-v` was said.
    pub verbose: u8,
}

/// Everything resolved. `None` always means "the user did not say": the owner of the value decides then.
#[derive(Clone, Debug)]
pub struct Config {
    pub source: SourceChoice,
    /// Accounts between the own one and `impersonate`, each of which may make tokens of the next.
    pub delegates: Vec<String>,
    /// An e-mail; already in every identity that names no service account of its own.
    pub impersonate: Option<String>,
    pub project: Option<String>,
    pub numeric_project: Option<u64>,
    /// Of the source's own account.
    pub email: Option<String>,
    pub quota_project: Option<String>,
    /// The short name, `us-central1-a`.
    pub zone: String,
    pub instance: Instance,
    pub instance_attributes: BTreeMap<String, String>,
    pub project_attributes: BTreeMap<String, String>,
    pub endpoints: Endpoints,
    pub policy: Policy,
    /// By which tasks are known that do not show which one they are.
    pub compiled: Arc<Compiled>,
    /// kfp tasks with a command run without the image's `ENTRYPOINT`.
    pub clear_entrypoint: bool,
    /// By name; `default` is always there.
    pub identities: BTreeMap<String, Arc<Identity>>,
    /// `None`: no audit log.
    pub audit: Option<audit::Settings>,
    /// Where metrics are served besides the control socket; loopback.
    pub metrics: Option<SocketAddr>,
    /// What is mounted into containers besides what they ask for.
    pub mounts: Vec<Mount>,
    /// What of them could not be looked through for keys.
    pub unverified: Vec<String>,
    /// What `run` does with containers that still run at its end: leave them, without identity.
    pub keep: bool,
    /// What becomes of keys that a request would bring into a container.
    pub guard: Guard,
    /// What is fetched for tasks whose inputs are in Cloud Storage.
    pub gcs: Gcs,
    pub pool: Pool,
    /// With `isolation = "network"`: what networks of one container each are made of.
    pub cells: Option<Pool>,
    /// Containers on the host's network are served on its loopback.
    pub host_loopback: bool,
    /// What docker's own config says of proxies in containers.
    pub client_proxies: proxies::Said,
    /// In the place of `DOCKER_HOST`; see [`engine::endpoint`].
    pub engine: Option<String>,
    /// An engine may be on TCP without TLS.
    pub plain_tcp: bool,
    pub form: console::Form,
    /// Directives for [`console::install_log`].
    pub log: String,
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
    /// Of the file, as it was read: modified (seconds, nanoseconds), size, inode.
    pub stamp: Option<(i64, i64, u64, u64)>,
    /// What the command line said, for reading the file again.
    pub flags: Overrides,
}

/// Where host credentials come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SourceChoice {
    /// Application default credentials: `file` (absolute), else where Google's libraries look.
    Adc { file: Option<PathBuf> },
    /// The metadata server of the machine itself.
    Metadata,
    /// gcloud's active account.
    Gcloud,
    /// What `[credentials]` sets up.
    Provided(Box<Provided>),
    /// A key made at start; never chosen silently.
    Offline,
}

/// `[gcs]`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Gcs {
    pub fetch: bool,
    /// For one task.
    pub max_bytes: u64,
}

impl Default for Gcs {
    fn default() -> Self {
        Self { fetch: true, max_bytes: 4 << 30 }
    }
}

/// What containers are told of the machine they run on, where it is not the stand-in.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Instance {
    pub hostname: Option<String>,
    /// The short name.
    pub machine_type: Option<String>,
    pub description: Option<String>,
    pub tags: Vec<String>,
}

/// The addresses of the metadata network, 169.254.168.0/22 by default; /16 to /28.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pool {
    /// The first address; bits beyond the prefix are zero.
    pub network: Ipv4Addr,
    /// In bits.
    pub prefix: u8,
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// All that is wrong, one line each, with its place.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Problems(pub Vec<String>);

impl From<String> for Problems {
    fn from(problem: String) -> Self {
        Self(vec![problem])
    }
}

/// Reads, layers and checks. Fails with everything that is wrong, not with the first of it.
pub fn resolve(flags: &Overrides, env: &Environment) -> Result<Config, Problems> {
    judge(find::locate(named(flags, env), env)?, flags, env)
}

/// `config show`: every key that is set, what it says and who says it, in the order of their names.
pub fn show(flags: &Overrides, env: &Environment) -> Result<String, Problems> {
    let file = find::locate(named(flags, env), env)?;
    let shown = shown::text(&layers(file.as_ref(), flags, env));
    // Only what is valid as a whole means anything.
    judge(file, flags, env)?;
    Ok(shown)
}

/// The same for a file that was read already.
fn judge(file: Option<find::Located>, flags: &Overrides, env: &Environment) -> Result<Config, Problems> {
    let layers = layers(file.as_ref(), flags, env);
    // Paths mean what they mean where they were written: in a file, beside the file.
    let beside = file.as_ref().and_then(|located| located.path.parent()).map(Path::to_owned);
    let from_file = layers.is_from_file("credentials_file");
    let base = beside.filter(|_| from_file).unwrap_or_else(|| env.cwd.clone());
    check::resolve(layers, &base, env, flags, file)
}

fn layers(file: Option<&find::Located>, flags: &Overrides, env: &Environment) -> Layers {
    let mut layers = Layers::default();
    if let Some(located) = file {
        let guarded = layers.file(&located.path, &located.text);
        if let Err(objection) = located.objection(&guarded, env) {
            layers.objection(objection);
        }
    }
    layers.environment(env);
    layers.flags(flags);
    layers
}

/// Why a file that changed was not taken up.
#[derive(Debug)]
pub enum Unread {
    /// It came with a project and waits for `kfp-creds config trust`.
    Untrusted(String),
    Broken(String),
}

/// Reads the file of `config` again, as it was found then. Content that is not trusted is not parsed.
pub fn reread(config: &Config, env: &Environment) -> Result<Config, Unread> {
    let broken = |why: String| Unread::Broken(why);
    let located = find::locate(named(&config.flags, env), env).map_err(broken)?;
    let Some(located) = located.filter(|located| Some(&located.path) == config.file.as_ref()) else {
        return Err(broken("another config file counts here now".into()));
    };
    located.content_is_trusted(env).map_err(Unread::Untrusted)?;
    judge(Some(located), &config.flags, env).map_err(|problems| Unread::Broken(problems.to_string()))
}

fn named<'a>(flags: &'a Overrides, env: &'a Environment) -> Option<&'a Path> {
    flags.config.as_deref().or_else(|| env.variable("KFP_CREDS_CONFIG").map(Path::new))
}

/// `config init`: writes the commented starter as `file`, else in the working directory.
pub fn init(file: Option<&Path>, env: &Environment) -> Result<PathBuf, Problems> {
    let path = env.cwd.join(file.unwrap_or_else(|| Path::new(FILE)));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|mut file| file.write_all(include_bytes!("starter.toml")));
    match written {
        Ok(()) => Ok(path),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(format!("{}: is already there and stays as it is", quote::path(&path)).into())
        }
        Err(error) => Err(format!("{}: cannot be written: {error}", quote::path(&path)).into()),
    }
}

/// What `config trust` did: the file, and what it may say from now on.
#[derive(Debug)]
pub struct Trust {
    pub file: PathBuf,
    pub guarded: Vec<Guarded>,
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "trusted {}, as it is now", quote::path(&self.file))?;
        for Guarded { key, line, value } in &self.guarded {
            writeln!(f, "  line {line}: {key} = {value}")?;
        }
        Ok(())
    }
}

/// `config trust`: trusts the present content of `file`, else of the file that counts here.
pub fn trust(flags: &Overrides, env: &Environment) -> Result<Trust, Problems> {
    let Some(located) = find::locate(named(flags, env), env)? else {
        return Err(format!("there is no {FILE} here or above; nothing to trust").into());
    };
    let mut layers = Layers::default();
    let guarded = layers.file(&located.path, &located.text);
    layers.verdict()?;
    if let Some(why) = located.exposed() {
        return Err(format!(
            "{}: {why}, so it cannot be trusted; chmod or chown it",
            quote::path(&located.path)
        )
        .into());
    }
    find::Trusted::open(env)?.add(&located)?;
    Ok(Trust { file: located.path, guarded })
}
