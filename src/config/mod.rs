//! What the user wants: flags over environment over one file over defaults, checked whole, resolved once.
//!
//! The environment and the file system are arguments ([`Surroundings`]); nothing here reads the process's
//! own. Rooms: `keys` (every key), `read` (layers and positions), `find` (where the file is, trust),
//! `check` and `forms` (what values mean), [`engine`] (which Docker engine).

mod check;
pub mod engine;
mod find;
mod forms;
mod keys;
mod mounts;
mod read;
mod rules;
mod seeing;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use find::FILE;
pub use keys::reference;
pub use read::Guarded;
use read::Layers;

use crate::guard::{Mode, Rules};
use crate::mounts::Mount;
use crate::observe;
use crate::policy::Policy;
use crate::record::audit;
use crate::workload::Identity;

/// What the process was started in; made once, in `main.rs`.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Variables whose name and value are UTF-8; others cannot mean anything to us.
    pub env: BTreeMap<String, String>,
    /// Absolute.
    pub cwd: PathBuf,
}

impl Surroundings {
    /// A variable that is set to something; an empty one counts as unset.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str).filter(|value| !value.is_empty())
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
    /// By name; `default` is always there.
    pub identities: BTreeMap<String, Arc<Identity>>,
    /// `None`: no audit log.
    pub audit: Option<audit::Settings>,
    /// Where metrics are served besides the control socket; loopback.
    pub metrics: Option<SocketAddr>,
    /// What is mounted into containers besides what they ask for.
    pub mounts: Vec<Mount>,
    /// What `run` does with containers that still run at its end: leave them, without identity.
    pub keep: bool,
    /// What becomes of keys that a request would bring into a container.
    pub guard: Rules,
    pub pool: Pool,
    /// With `isolation = "network"`: what networks of one container each are made of.
    pub cells: Option<Pool>,
    /// `unix:///path`, in the place of `DOCKER_HOST`; see [`engine::endpoint`].
    pub engine: Option<String>,
    pub form: observe::Form,
    /// Directives for [`observe::install_log`].
    pub log: String,
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
}

/// Where host credentials come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SourceChoice {
    /// Application default credentials: `file` (absolute), else where Google's libraries look.
    Adc { file: Option<PathBuf> },
    /// A key made at start; never chosen silently.
    Offline,
}

/// Places upstream that differ from Google's public ones. URLs have no user, query, fragment or last slash.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Endpoints {
    /// Whole URL.
    pub token: Option<String>,
    /// Scheme and authority only.
    pub iam_credentials: Option<String>,
    /// Whole URL.
    pub sts: Option<String>,
    /// A domain such as `googleapis.com`.
    pub universe: Option<String>,
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
pub fn resolve(flags: &Overrides, around: &Surroundings) -> Result<Config, Problems> {
    let mut layers = Layers::default();
    let file = find::locate(named(flags, around), around)?;
    if let Some(located) = &file {
        let guarded = layers.file(&located.path, &located.text);
        if let Err(objection) = located.objection(&guarded, around) {
            layers.objection(objection);
        }
    }
    // Paths mean what they mean where they were written: in a file, beside the file.
    let beside = file.as_ref().and_then(|located| located.path.parent()).map(Path::to_owned);
    layers.environment(around);
    layers.flags(flags);
    let from_file = layers.is_from_file("credentials_file");
    let base = beside.filter(|_| from_file).unwrap_or_else(|| around.cwd.clone());
    check::resolve(layers, &base, around, flags, file.map(|located| located.path))
}

fn named<'a>(flags: &'a Overrides, around: &'a Surroundings) -> Option<&'a Path> {
    flags.config.as_deref().or_else(|| around.variable("KFP_CREDS_CONFIG").map(Path::new))
}

/// `config init`: writes the commented starter as `file`, else in the working directory.
pub fn init(file: Option<&Path>, around: &Surroundings) -> Result<PathBuf, Problems> {
    let path = around.cwd.join(file.unwrap_or_else(|| Path::new(FILE)));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|mut file| file.write_all(include_bytes!("starter.toml")));
    match written {
        Ok(()) => Ok(path),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(format!("{}: is already there and stays as it is", path.display()).into())
        }
        Err(error) => Err(format!("{}: cannot be written: {error}", path.display()).into()),
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
        writeln!(f, "trusted {}, as it is now", self.file.display())?;
        for Guarded { key, line, value } in &self.guarded {
            writeln!(f, "  line {line}: {key} = {value}")?;
        }
        Ok(())
    }
}

/// `config trust`: trusts the present content of `file`, else of the file that counts here.
pub fn trust(flags: &Overrides, around: &Surroundings) -> Result<Trust, Problems> {
    let Some(located) = find::locate(named(flags, around), around)? else {
        return Err(format!("there is no {FILE} here or above; nothing to trust").into());
    };
    let mut layers = Layers::default();
    let guarded = layers.file(&located.path, &located.text);
    layers.verdict()?;
    if let Some(why) = located.exposed() {
        return Err(
            format!("{}: {why}, so it cannot be trusted; chmod or chown it", located.path.display()).into()
        );
    }
    find::Trusted::open(around)?.add(&located)?;
    Ok(Trust { file: located.path, guarded })
}

impl Config {
    /// What `config check` prints: one line per fact.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, what: String| {
            let _ = writeln!(text, "{name:<12}  {}", read::one_line(&what));
        };
        line(
            "file",
            self.file.as_ref().map_or_else(|| "none, defaults only".into(), |f| f.display().to_string()),
        );
        line(
            "credentials",
            match &self.source {
                SourceChoice::Offline => "offline: no cloud accepts these tokens".into(),
                SourceChoice::Adc { file: Some(file) } => file.display().to_string(),
                SourceChoice::Adc { file: None } => "adc, where Google's libraries look".into(),
            },
        );
        line("project", self.project.clone().unwrap_or_else(|| "what the credential says".into()));
        for (name, value) in [
            ("number", self.numeric_project.map(|number| number.to_string())),
            ("quota", self.quota_project.clone()),
            ("e-mail", self.email.clone()),
            ("zone", Some(self.zone.clone())),
            ("token", self.endpoints.token.clone()),
            ("iam", self.endpoints.iam_credentials.clone()),
            ("sts", self.endpoints.sts.clone()),
            ("universe", self.endpoints.universe.clone()),
            ("engine", self.engine.clone()),
            ("pool", self.cells.is_none().then(|| self.pool.to_string())),
            ("cells", self.cells.map(|range| format!("{range}, one network for each container"))),
            ("guard", (self.guard != Rules::default()).then(|| guarding(&self.guard))),
            ("audit", self.audit.as_ref().map(|audit| audit.file.display().to_string())),
            ("metrics", self.metrics.map(|at| at.to_string())),
        ] {
            if let Some(value) = value {
                line(name, value);
            }
        }
        for identity in self.identities.values() {
            line("identity", sentence(identity));
        }
        for (index, rule) in self.policy.rules.iter().enumerate() {
            let given = rule.patterns.iter().map(|(part, pattern)| format!("{part} {pattern}"));
            let given = given.collect::<Vec<_>>().join(", ");
            let identity = rule.identity.as_ref().map_or("none", |identity| &identity.name);
            let identity = format!("{identity}{}", choices(&rule.choose));
            line(&format!("rule {}", index + 1), format!("{given}: {identity}"));
        }
        let who = if self.policy.all { "every other container" } else { "every other kfp task" };
        let identity = self.policy.default.as_ref().map_or("none", |identity| &identity.name);
        line("otherwise", format!("{who}: {identity}{}", choices(&self.policy.choose)));
        text
    }
}

fn guarding(rules: &Rules) -> String {
    let mode = match rules.mode {
        Mode::Deny => "deny",
        Mode::Warn => "warn",
        Mode::Off => "off",
    };
    match rules.allow.is_empty() {
        true => mode.into(),
        false => {
            let allowed = rules.allow.iter().map(|path| path.display().to_string());
            format!("{mode}, except {}", allowed.collect::<Vec<_>>().join(" "))
        }
    }
}

fn choices(choose: &[Arc<Identity>]) -> String {
    let names: Vec<&str> = choose.iter().map(|identity| identity.name.as_str()).collect();
    if names.is_empty() { String::new() } else { format!(", or by choice {}", names.join(", ")) }
}

fn sentence(identity: &Identity) -> String {
    let account = identity.service_account.as_deref().unwrap_or("the own account");
    let mut text = format!("{}: {account}, {} s", identity.name, identity.lifetime.as_secs());
    let _ = write!(text, ", scopes {}", identity.scopes);
    if !identity.audiences.is_empty() {
        let _ = write!(text, ", audiences {}", identity.audiences.join(" "));
    }
    if let Some(rate) = identity.rate {
        let _ = write!(text, ", {rate} a minute");
    }
    for (word, said) in [("isolate", identity.isolate), ("strict", identity.strict)] {
        if said {
            let _ = write!(text, ", {word}");
        }
    }
    text
}
