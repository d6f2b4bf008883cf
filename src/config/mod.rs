//! The resolved config: flags over environment over one file over defaults, validated whole.
//!
//! The environment and the file system are arguments ([`Environment`]); nothing here reads the process's own.
//! Modules: `keys` (every key), `layers` (file, environment, flags), `document`
//! (positions in the file), `find` (finding and trusting the file), `check` and `forms` (validation),
//! [`engine`] (the Docker engine).

mod boundary;
mod check;
mod clouds;
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
mod reference;
mod rules;
mod schema;
mod seeing;
mod shown;
mod summary;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use find::FILE;
pub use keys::{ALWAYS, CONTAINERS, CREDENTIAL, ENDING, Flag, MACHINE, Takes, flags};
pub use layers::Guarded;
use layers::Layers;
pub use reference::reference;
pub use schema::schema;

use crate::console;
use crate::guard::Guard;
use crate::guard::host_root::HostRoot;
use crate::kfp::Compiled;
use crate::mounts::Mount;
use crate::policy::Policy;
use crate::quote;
use crate::record::audit;
use crate::source::aws::AwsSettings;
use crate::source::azure::AzureSettings;
use crate::source::google::{Endpoints, Provided};
use crate::source::stamp::Stamp;
use crate::source::variables::Variables;
use crate::workload::Identity;

/// The environment of the process; built once, in `main.rs`.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// Variables whose name and value are UTF-8; others are ignored.
    pub variables: Variables,
    /// Absolute.
    pub cwd: PathBuf,
}

impl Environment {
    /// A variable's value; an empty one counts as unset.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.text(name)
    }

    pub fn home(&self) -> Option<PathBuf> {
        self.variable("HOME").map(PathBuf::from).filter(|path| path.is_absolute())
    }
}

/// The command line's settings.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub config: Option<PathBuf>,
    /// The values that flags of keys give, by the path of the key; see [`flags`].
    pub keys: BTreeMap<&'static str, String>,
    /// `SOURCE:TARGET[:ro|:rw]` entries.
    pub mounts: Vec<String>,
    pub quiet: bool,
    pub json: bool,
}

/// The resolved settings. `None` always means "not set": the module that uses the value then chooses.
#[derive(Clone, Debug)]
pub struct Config {
    pub source: SourceChoice,
    /// Accounts between the source's own and `impersonate`; each may create tokens for the next.
    pub delegates: Vec<String>,
    /// An e-mail; already in every identity that names no service account of its own.
    pub impersonate: Option<String>,
    pub project: Option<String>,
    pub numeric_project: Option<u64>,
    /// The e-mail of the source's own account.
    pub email: Option<String>,
    pub quota_project: Option<String>,
    /// The short name, such as `us-central1-a`.
    pub zone: String,
    pub instance: Instance,
    pub instance_attributes: BTreeMap<String, String>,
    pub project_attributes: BTreeMap<String, String>,
    pub endpoints: Endpoints,
    /// `None`: no container gets anything on AWS.
    pub aws: Option<AwsSettings>,
    /// `None`: no container gets anything on Azure.
    pub azure: Option<AzureSettings>,
    pub policy: Policy,
    /// Compiled pipelines, used to recognise tasks that do not show which task they are.
    pub compiled: Arc<Compiled>,
    /// kfp tasks that have a command run without the image's `ENTRYPOINT`.
    pub clear_entrypoint: bool,
    /// Identities by name; always contains `default`.
    pub identities: BTreeMap<String, Arc<Identity>>,
    /// `None`: no audit log.
    pub audit: Option<audit::AuditSettings>,
    /// A loopback address for metrics, in addition to the control socket.
    pub metrics: Option<SocketAddr>,
    /// Mounts added to containers, besides the ones that they request.
    pub mounts: Vec<Mount>,
    /// Mounts that could not be searched for keys.
    pub unverified: Vec<String>,
    /// At its end `run` leaves running containers alone, without identity.
    pub keep: bool,
    /// How to treat keys that a request would bring into a container.
    pub guard: Guard,
    /// Settings for fetching Cloud Storage inputs of tasks.
    pub gcs: Gcs,
    pub pool: Pool,
    /// How containers that name no network are attached.
    pub attach: AttachMode,
    /// With `isolation = "network"`: the address range for networks of one container each.
    pub cells: Option<Pool>,
    /// Serve containers on the host's network on its loopback.
    pub host_loopback: bool,
    /// The proxies that docker's own config sets in containers.
    pub client_proxies: proxies::ProxyEntries,
    /// Replaces `DOCKER_HOST`; see [`engine::endpoint`].
    pub engine: Option<String>,
    /// Allows an engine on TCP without TLS.
    pub plain_tcp: bool,
    /// Where the root of the engine's machine is mounted, if not at `/`.
    pub host_root: HostRoot,
    pub relay: RelaySource,
    pub form: console::OutputForm,
    /// Directives for [`console::install_log`].
    pub log: String,
    /// The config file that was read, if any.
    pub file: Option<PathBuf>,
    /// The files of session policies that the config file names.
    pub policies: Vec<PathBuf>,
    /// The stamp of the file as read.
    pub stamp: Option<Stamp>,
    /// The command line's settings, for reading the file again.
    pub flags: Overrides,
}

/// Where host credentials come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SourceChoice {
    /// Application default credentials: `file` (absolute), else the places of Google's libraries.
    Adc { file: Option<PathBuf> },
    /// This machine's own metadata server.
    Metadata,
    /// gcloud's active account.
    Gcloud,
    /// The source that `[credentials]` defines.
    Provided(Box<Provided>),
    /// A key made at start; never chosen without the user's request.
    Offline,
}

/// Where the relay comes from, if not from this program.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RelaySource {
    /// An image that the engine has, as `NAME@sha256:DIGEST`.
    pub image: Option<String>,
    /// A folder with `kfp-creds-relay-ARCH`, absolute.
    pub folder: Option<PathBuf>,
}

/// `[gcs]`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Gcs {
    pub fetch: bool,
    /// Limit for one task.
    pub max_bytes: u64,
}

impl Default for Gcs {
    fn default() -> Self {
        Self { fetch: true, max_bytes: 4 << 30 }
    }
}

/// Properties of the machine that containers see, where they replace the placeholders.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Instance {
    pub hostname: Option<String>,
    /// The short name.
    pub machine_type: Option<String>,
    pub description: Option<String>,
    pub tags: Vec<String>,
}

/// How a container that would be on the default bridge reaches the relay.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AttachMode {
    /// On a bridge of ours in place of the default one where no other container runs on that; otherwise by a
    /// second network.
    #[default]
    Auto,
    /// At a link-local address on the default bridge.
    LinkLocal,
    /// As `Auto`; where that is not possible at all, one line says so.
    Own,
    /// By a second network.
    Second,
}

impl AttachMode {
    /// All of them, by their names in the config.
    pub const NAMES: [(&'static str, Self); 4] =
        [("auto", Self::Auto), ("link-local", Self::LinkLocal), ("own", Self::Own), ("second", Self::Second)];

    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, attach)| *attach == self).map_or("auto", |(name, _)| name)
    }
}

/// The addresses of the metadata network, 169.254.168.0/22 by default; /16 to /28.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pool {
    /// The first address; bits beyond the prefix are zero.
    pub network: Ipv4Addr,
    /// Prefix length in bits.
    pub prefix: u8,
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// All problems, one line each, with their places.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// More than a person reads at once: the file is something else.
        const MOST: usize = 50;
        let (told, more) = self.0.split_at(self.0.len().min(MOST));
        f.write_str(&told.join("\n"))?;
        if more.is_empty() { Ok(()) } else { write!(f, "\nand {} more", more.len()) }
    }
}

impl From<String> for Problems {
    fn from(problem: String) -> Self {
        Self(vec![problem])
    }
}

/// Reads, merges and validates the config. Fails with all problems, not just the first.
pub fn resolve(flags: &Overrides, env: &Environment) -> Result<Config, Problems> {
    judge(find::locate(named(flags, env), env)?, flags, env)
}

/// `config show`: every key that is set, with value and origin, sorted by name.
pub fn show(flags: &Overrides, env: &Environment) -> Result<String, Problems> {
    let file = find::locate(named(flags, env), env)?;
    let shown = shown::text(&layers(file.as_ref(), flags, env));
    // Values mean something only if the config is valid as a whole.
    judge(file, flags, env)?;
    Ok(shown)
}

/// Like [`resolve`], for a file that is already read.
fn judge(file: Option<find::FoundConfig>, flags: &Overrides, env: &Environment) -> Result<Config, Problems> {
    let layers = layers(file.as_ref(), flags, env);
    // Relative paths in a file are relative to its directory.
    let beside = file.as_ref().and_then(|located| located.path.parent()).map(Path::to_owned);
    let from_file = layers.is_from_file("credentials_file");
    let base = beside.filter(|_| from_file).unwrap_or_else(|| env.cwd.clone());
    check::resolve(layers, &base, env, flags, file)
}

fn layers(file: Option<&find::FoundConfig>, flags: &Overrides, env: &Environment) -> Layers {
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

/// Why a changed file was not loaded.
#[derive(Debug)]
pub enum ReloadError {
    /// The file belongs to a project and waits for `kfp-creds config trust`.
    Untrusted(String),
    Broken(String),
}

/// Reads the file of `config` again, found in the same way. Untrusted content is not parsed.
pub fn reread(config: &Config, env: &Environment) -> Result<Config, ReloadError> {
    let broken = |why: String| ReloadError::Broken(why);
    let located = find::locate(named(&config.flags, env), env).map_err(broken)?;
    let Some(located) = located.filter(|located| Some(&located.path) == config.file.as_ref()) else {
        return Err(broken("another config file applies here now".into()));
    };
    located.content_is_trusted(env).map_err(ReloadError::Untrusted)?;
    judge(Some(located), &config.flags, env).map_err(|problems| ReloadError::Broken(problems.to_string()))
}

fn named<'a>(flags: &'a Overrides, env: &'a Environment) -> Option<&'a Path> {
    flags.config.as_deref().or_else(|| env.variable("KFP_CREDS_CONFIG").map(Path::new))
}

/// `config init`: writes the commented starter to `file`, else into the working directory.
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
            Err(format!("{}: already exists and was not changed", quote::path(&path)).into())
        }
        Err(error) => Err(format!("{}: cannot be written: {error}", quote::path(&path)).into()),
    }
}

/// The result of `config trust`: the file, and the settings that it may now make.
#[derive(Debug)]
pub struct Trust {
    pub file: PathBuf,
    pub guarded: Vec<Guarded>,
    /// The session policies that it names, whose content is trusted with it.
    pub policies: Vec<PathBuf>,
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "trusted {}, as it is now", quote::path(&self.file))?;
        for Guarded { key, line, value } in &self.guarded {
            writeln!(f, "  line {line}: {key} = {value}")?;
        }
        for policy in &self.policies {
            writeln!(f, "  and the session policy {}, as it is now", quote::path(policy))?;
        }
        Ok(())
    }
}

/// `config trust`: trusts the current content of `file`, else of the config file used here.
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
    let policies = located.policies.into_values().map(|policy| policy.path).collect();
    Ok(Trust { file: located.path, guarded, policies })
}
