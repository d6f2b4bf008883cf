//! The flags that commands share: those of config keys, made from the table of keys, and those of the output.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{self, Flag, Overrides, Takes};
pub use crate::config::{CONTAINERS, CREDENTIAL, ENDING, MACHINE};

/// `--mount`, which is no key: it adds to `[[mount]]`.
pub const MOUNTS: u8 = 128;
/// All flags that `run` has.
pub const EVERY: u8 = CREDENTIAL | CONTAINERS | ENDING | MACHINE | MOUNTS;

/// The flags of config keys in these groups. They win over environment and file.
#[derive(Clone, Debug, Default)]
pub struct KeyFlags<const GROUPS: u8> {
    pub keys: BTreeMap<&'static str, String>,
    pub mounts: Vec<String>,
}

fn flags(groups: u8) -> impl Iterator<Item = Flag> {
    config::flags().filter(move |flag| flag.groups & (groups | config::ALWAYS) != 0)
}

fn arg(flag: Flag) -> Arg {
    let arg = Arg::new(flag.path).help(flag.help);
    let arg = match flag.name.strip_prefix("--") {
        Some(long) => arg.long(long),
        None => arg.short(flag.name.chars().nth(1)),
    };
    let arg = match flag.takes {
        Takes::Value(name) => arg.value_name(name).value_parser(clap::value_parser!(OsString)),
        Takes::Nothing(_) => arg.action(ArgAction::SetTrue),
        Takes::Count(_) => arg.action(ArgAction::Count),
    };
    match flag.path {
        "credentials" => arg.conflicts_with_all(["credentials_file", "impersonate"]),
        _ => arg,
    }
}

fn given(flag: Flag, matches: &ArgMatches) -> Option<String> {
    match flag.takes {
        Takes::Value(_) => {
            matches.get_one::<OsString>(flag.path).map(|value| value.to_string_lossy().into_owned())
        }
        Takes::Nothing(sets) => matches.get_flag(flag.path).then(|| sets.into()),
        Takes::Count(levels) => {
            let count = usize::from(matches.get_count(flag.path)).min(levels.len());
            count.checked_sub(1).map(|at| levels[at].into())
        }
    }
}

impl<const GROUPS: u8> Args for KeyFlags<GROUPS> {
    fn augment_args(command: Command) -> Command {
        let command = command.args(flags(GROUPS).map(arg));
        if GROUPS & MOUNTS == 0 {
            return command;
        }
        let mount = Arg::new("mounts").long("mount").value_name("SRC:DST[:rw]").action(ArgAction::Append);
        let help = "Mounts a path of this machine, or a volume, into every container that gets an identity";
        command.arg(mount.help(help))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const GROUPS: u8> FromArgMatches for KeyFlags<GROUPS> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let keys = flags(GROUPS).filter_map(|flag| Some((flag.path, given(flag, matches)?))).collect();
        let mounts = match GROUPS & MOUNTS {
            0 => vec![],
            _ => matches.get_many("mounts").into_iter().flatten().cloned().collect(),
        };
        Ok(Self { keys, mounts })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What a command reads from the config, and the flags that change it.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigFlags<const GROUPS: u8> {
    #[command(flatten)]
    pub keys: KeyFlags<GROUPS>,
    /// Reads this config file and no other
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// How a command prints what happens.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Output {
    /// Prints only lines that need attention
    #[arg(long, conflicts_with = "json")]
    pub quiet: bool,
    /// Prints one JSON object per line
    #[arg(long)]
    pub json: bool,
}

impl<const GROUPS: u8> ConfigFlags<GROUPS> {
    pub fn overrides(self, output: Output) -> Overrides {
        let KeyFlags { keys, mounts } = self.keys;
        Overrides { config: self.config, keys, mounts, quiet: output.quiet, json: output.json }
    }
}
