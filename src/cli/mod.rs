//! The command line.

pub mod flags;
pub mod plugin;

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::{ArgGroup, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use self::flags::{CONTAINERS, CREDENTIAL, ConfigFlags, ENDING, EVERY, MACHINE, MOUNTS, Output};
use crate::app::{self, TestedServer};
use crate::quote;

/// Gives containers of local Kubeflow pipelines short-lived Google credentials, and no key.
#[derive(Debug, Parser)]
#[command(name = "kfp-creds", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs a command whose containers get credentials; its exit code is passed on
    #[command(after_help = RUN_CODES)]
    Run {
        #[command(flatten)]
        config: ConfigFlags<EVERY>,
        #[command(flatten)]
        output: Output,
        /// Also gives the default identity to processes of the command (SubprocessRunner), in the place of your login;
        /// one identity for all of them, and an agreement, no isolation: they can still read your files
        #[arg(long)]
        processes: bool,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Keeps a session for what you start yourself, such as notebooks and editors, until stopped; prints the line to paste
    #[command(after_help = SERVE_CODES)]
    Serve {
        #[command(flatten)]
        config: ConfigFlags<{ EVERY & !ENDING }>,
        #[command(flatten)]
        output: Output,
        /// Serves programs without Docker at this loopback address; needs no engine
        #[arg(long, value_name = "ADDR", value_parser = loopback)]
        listen: Option<SocketAddr>,
        /// Serves everyone who can connect to ADDR, without the secret path
        #[arg(long, requires = "listen")]
        open: bool,
        /// Names the session: its socket is NAME.sock beside those of all sessions [default: default, if that is free]
        #[arg(long, value_name = "NAME", conflicts_with = "listen", value_parser = name)]
        name: Option<String>,
        /// Ends when its stdin ends, and so with the program that started it
        #[arg(long)]
        stdin: bool,
        /// Serves the Docker API with TLS as well, for clients that cannot open the socket; their ca.pem, cert.pem and
        /// key.pem are in DIR (DOCKER_CERT_PATH) until the session ends
        #[arg(long, value_name = "DIR", conflicts_with = "listen")]
        tls: Option<PathBuf>,
        /// Where --tls listens; beyond the loopback, everyone who has key.pem can use the engine over the network
        #[arg(long, value_name = "IP:PORT", requires = "tls", default_value = "127.0.0.1:0")]
        tls_listen: SocketAddr,
    },
    /// Says whether run would work: engine, rights, network, credential, one token minted
    #[command(after_help = CHECK_CODES)]
    Check {
        #[command(flatten)]
        config: ConfigFlags<{ CREDENTIAL | MACHINE | MOUNTS }>,
        #[command(flatten)]
        output: Output,
    },
    /// Looks for keys in a directory, a file, an archive or an image with all its layers
    #[command(after_help = SCAN_CODES)]
    Scan {
        #[command(flatten)]
        config: ConfigFlags<0>,
        /// Prints one JSON object per line
        #[arg(long)]
        json: bool,
        /// Prints one SARIF 2.1.0 document, for code hosts
        #[arg(long, conflicts_with = "json")]
        sarif: bool,
        /// Leaves out what is in this file, the output of an earlier scan with --json
        #[arg(long, value_name = "FILE")]
        baseline: Option<PathBuf>,
        /// A path if there is one of this name, else an image of the engine
        #[arg(value_name = "IMAGE|DIR|TAR")]
        target: String,
    },
    /// Shows who holds which token until when, in the sessions that run
    #[command(after_help = STATUS_CODES)]
    Status {
        /// Only this session, by its id or name
        #[arg(long, value_name = "ID")]
        session: Option<String>,
        /// Again every second, until stopped
        #[arg(long)]
        watch: bool,
        /// Prints one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Says by its exit code whether sessions serve: 0 if so, 69 if one does not answer, 66 if no token can be made
    #[command(after_help = HEALTH_CODES)]
    Health {
        /// Only this session, by its id or name
        #[arg(long, value_name = "NAME")]
        session: Option<String>,
        /// The server that `serve --listen ADDR` runs, instead of a session
        #[arg(long, value_name = "ADDR", conflicts_with = "session", value_parser = loopback)]
        listen: Option<SocketAddr>,
    },
    /// Gives a container no more tokens, although it runs; what it holds stays good until it expires
    #[command(after_help = CUT_OFF_CODES, group(ArgGroup::new("further").multiple(true)))]
    CutOff {
        /// The beginning of its id, its name, or PIPELINE/COMPONENT
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        container: Option<String>,
        /// Every container that has an identity now
        #[arg(long)]
        all: bool,
        /// Also disables this service account, which ends every token of it for everybody who has one;
        /// its identity has to allow it (kill_switch = true)
        #[arg(long, value_name = "SA", group = "further")]
        disable_account: Option<String>,
        /// Also denies what it was given by AWS, by an inline policy on its role that names its session alone;
        /// its identity has to allow it (kill_switch = true in [identity.NAME.aws])
        #[arg(long, group = "further")]
        deny_aws: bool,
        /// Disables it; without this option, prints what else would stop working
        #[arg(long, requires = "further")]
        yes: bool,
        /// Only in this session, by its id or name
        #[arg(long, value_name = "ID")]
        session: Option<String>,
    },
    /// Says which rule decides about a container, why those before it did not, and what it gets
    #[command(after_help = EXPLAIN_CODES)]
    Explain {
        #[command(flatten)]
        config: ConfigFlags<{ CREDENTIAL | CONTAINERS | MOUNTS }>,
        /// A file with the body of a create request, or a container of a session that runs
        #[arg(value_name = "CREATE.json|CONTAINER", required_unless_present = "kfp")]
        what: Option<String>,
        /// A compiled pipeline: says it for each of its tasks
        #[arg(long, value_name = "PIPELINE.yaml", conflicts_with = "what")]
        kfp: Option<PathBuf>,
    },
    /// Asks a metadata server, any one, what the protocol has, and says where it deviates
    #[command(after_help = CONFORMANCE_CODES)]
    Conformance {
        /// Where it is; a cloud's own is asked only if you name it
        #[arg(long, value_name = "http://HOST:PORT", value_parser = TestedServer::parse)]
        target: TestedServer,
        /// Prints one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Writes, checks, shows or trusts a config file
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Writes the relay's image into a file, to be pushed to a registry: for engines that refuse to load one
    #[command(after_help = RELAY_IMAGE_CODES)]
    RelayImage {
        #[command(flatten)]
        config: ConfigFlags<0>,
        /// For engines of this architecture [default: that of this program]
        #[arg(long, value_parser = ["amd64", "arm64"])]
        arch: Option<String>,
        /// What `docker load` takes
        #[arg(value_name = "FILE.tar")]
        file: PathBuf,
    },
    /// Prints completions for a shell
    #[command(after_help = COMPLETIONS_CODES)]
    Completions { shell: Shell },
    /// Prints the manual page, or writes those of all commands into a directory
    #[command(after_help = MAN_CODES)]
    Man {
        /// Has to be there
        #[arg(value_name = "DIR")]
        into: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Writes a commented starter; never over an existing file
    #[command(after_help = INIT_CODES)]
    Init {
        /// Where to write it [default: kfp-creds.toml]
        file: Option<PathBuf>,
    },
    /// Prints all that is wrong with the config, or what it comes to
    #[command(after_help = CONFIG_CHECK_CODES)]
    Check {
        #[command(flatten)]
        config: ConfigFlags<EVERY>,
    },
    /// Prints every key that is set, and where: a flag, a variable or a line of the file
    #[command(after_help = SHOW_CODES)]
    Show {
        #[command(flatten)]
        config: ConfigFlags<EVERY>,
    },
    /// Prints the JSON Schema of the config file, for editors
    #[command(after_help = SCHEMA_CODES)]
    Schema,
    /// Lets a project's file, as it is now, name endpoints and credential files; read it first
    #[command(after_help = TRUST_CODES)]
    Trust {
        /// The file to trust [default: the one that counts here]
        file: Option<PathBuf>,
    },
}

/// Completions for `shell`, as text.
pub fn completions(shell: Shell) -> Vec<u8> {
    let (mut command, mut text) = (Cli::command(), Vec::new());
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut text);
    text
}

/// The manual page of the program, as roff.
pub fn manual() -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut text)?;
    Ok(text)
}

/// Writes a manual page for the program and for each of its commands: `kfp-creds-run.1`.
pub fn manual_pages(into: &Path) -> io::Result<()> {
    clap_mangen::generate_to(Cli::command(), into)
}

/// What is wrong with a command line, without a value that could be a secret: clap quotes what it does not accept,
/// and suggests what it could have meant.
pub fn usage(mut error: clap::Error) -> String {
    let safe = |text: &String| match text.split_once('=') {
        Some((flag, value)) if flag.starts_with("--") && quote::is_plain(flag) && !flag.contains(' ') => {
            format!("{flag}={}", quote::name(value))
        }
        _ => quote::name(text),
    };
    let mut hidden = false;
    let told: Vec<_> = error.context().map(|(kind, value)| (kind, value.clone())).collect();
    for (kind, value) in told {
        let quoted = match &value {
            ContextValue::String(text) => ContextValue::String(safe(text)),
            ContextValue::Strings(all) => ContextValue::Strings(all.iter().map(safe).collect()),
            _ => continue,
        };
        if quoted != value {
            hidden = true;
            error.insert(kind, quoted);
        }
    }
    if hidden {
        error.remove(ContextKind::Suggested);
    }
    error.to_string()
}

const RUN_CODES: &str = "\
Example: kfp-creds run -- python pipeline.py

Exit codes: that of the command, 128 + n where signal n ended it; 125 kfp-creds failed before the
command ran; 126 the command cannot be executed; 127 it was not found.";

const SCAN_CODES: &str = "\
Example: kfp-creds scan python:3.12-slim

Exit codes: 0 all was looked at and nothing found, 1 a key was found, 64 no such target, 69 engine
not reachable, 77 no key was found, but something could not be looked at, 78 bad config.";

const CONFORMANCE_CODES: &str = "\
Example: kfp-creds conformance --target http://127.0.0.1:8174

Exit codes: 0 no deviation, 1 some, 64 usage, 69 nothing answers there.";

/// The help of a command: an example, and the exit codes of all commands that have none of their own.
macro_rules! example {
    ($line:literal) => {
        concat!(
            "Example: kfp-creds ",
            $line,
            "\n\n",
            "Exit codes: 64 usage, 66 no usable credential or no such file, 69 engine not reachable, 70 bug,\n",
            "77 not permitted, 78 bad config."
        )
    };
}

const SERVE_CODES: &str = example!("serve --name work");
const CHECK_CODES: &str = example!("check --impersonate runner@my-project.iam.gserviceaccount.com");
const STATUS_CODES: &str = example!("status --watch");
const HEALTH_CODES: &str = example!("health --session work");
const CUT_OFF_CODES: &str = example!("cut-off my-pipeline/train");
const EXPLAIN_CODES: &str = example!("explain --kfp pipeline.yaml");
const INIT_CODES: &str = example!("config init");
const CONFIG_CHECK_CODES: &str = example!("config check --config kfp-creds.toml");
const SHOW_CODES: &str = example!("config show");
const SCHEMA_CODES: &str = example!("config schema > kfp-creds.schema.json");
const TRUST_CODES: &str = example!("config trust");
const RELAY_IMAGE_CODES: &str = example!("relay-image --arch arm64 relay.tar");
const COMPLETIONS_CODES: &str =
    example!("completions bash > ~/.local/share/bash-completion/completions/kfp-creds");
const MAN_CODES: &str = example!("man | man -l -");

/// Whoever reaches the address gets tokens, so it is one that only this machine reaches.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "has to be IP:PORT, such as 127.0.0.1:8174")?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("has to be a loopback address: whoever reaches it gets tokens".into())
    }
}

fn name(text: &str) -> Result<String, String> {
    match app::is_name(text) {
        true => Ok(text.into()),
        false => Err("has to be lower-case letters, digits, - and _, at most 32, and no session's id".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_shell_and_the_manual_know_every_command() {
        let manual = String::from_utf8(manual().unwrap()).unwrap();
        let shells = [Shell::Bash, Shell::Zsh, Shell::Fish].map(completions);
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            assert!(manual.contains(&name.replace('-', "\\-")), "{name}: {manual}");
            for shell in &shells {
                assert!(String::from_utf8_lossy(shell).contains(name), "{name}");
            }
        }
    }

    #[test]
    fn the_command_keeps_its_own_flags() {
        for line in ["run --all -- python x.py --all -v", "run --all python x.py --all -v"] {
            let cli = Cli::try_parse_from(["kfp-creds"].into_iter().chain(line.split(' '))).unwrap();
            let Command::Run { config, command, .. } = cli.command else { panic!("{line}") };
            assert_eq!(command, ["python", "x.py", "--all", "-v"]);
            assert_eq!(config.keys.keys, [("all", "true".to_owned())].into_iter().collect());
        }
    }

    #[test]
    fn the_help_of_every_command_has_an_example_and_exit_codes() {
        fn visit(command: &clap::Command) {
            for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
                let help = inner.get_after_help().map(ToString::to_string).unwrap_or_default();
                let complete = help.starts_with("Example: kfp-creds ") && help.contains("Exit codes: ");
                assert!(complete || inner.has_subcommands(), "{}: {help}", inner.get_name());
                visit(inner);
            }
        }
        visit(&Cli::command());
    }

    #[test]
    fn senseless_command_lines_are_refused() {
        for line in [
            "run",
            "run --",
            "run --no-such-flag -- true",
            "serve --open",
            "serve --listen 0.0.0.0:8174",
            "serve --listen 8174",
            "serve --name ../up",
            "serve --name x --listen 127.0.0.1:0",
            "serve --tls x --listen 127.0.0.1:0",
            "serve --tls-listen 127.0.0.1:0",
            "check --quiet --json",
            "check --offline --impersonate a@b",
            "check --keep",
            "serve --keep",
            "cut-off abcd --yes",
            "scan --mount /tmp:/x .",
            "scan --offline .",
            "explain --keep a.json",
            "config",
        ] {
            let parsed = Cli::try_parse_from(["kfp-creds"].into_iter().chain(line.split(' ')));
            assert!(parsed.is_err(), "{line}");
        }
    }
}
