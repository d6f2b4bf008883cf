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

/// Gives containers of local Kubeflow pipelines short-lived cloud credentials instead of key files.
#[derive(Debug, Parser)]
#[command(name = "kfp-creds", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs a command, gives its containers credentials, and exits with the command's exit code
    #[command(after_help = RUN_CODES)]
    Run {
        #[command(flatten)]
        config: ConfigFlags<EVERY>,
        #[command(flatten)]
        output: Output,
        /// Also gives the default identity to processes that the command starts on this machine (SubprocessRunner),
        /// instead of your login. They all share this identity and are not isolated: they can still read your files
        #[arg(long)]
        processes: bool,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Keeps a session for containers that you start yourself, such as from a notebook or an editor; prints the
    /// export line to paste, and runs until it is stopped
    #[command(after_help = SERVE_CODES)]
    Serve {
        #[command(flatten)]
        config: ConfigFlags<{ EVERY & !ENDING }>,
        #[command(flatten)]
        output: Output,
        /// Serves programs outside containers, at this loopback address; needs no Docker engine
        #[arg(long, value_name = "ADDR", value_parser = loopback)]
        listen: Option<SocketAddr>,
        /// Serves every program that can connect to ADDR: the URL has no secret path
        #[arg(long, requires = "listen")]
        open: bool,
        /// Names the session: its socket is NAME.sock, in the folder of all session sockets [default: default, if
        /// no other session has that name]
        #[arg(long, value_name = "NAME", conflicts_with = "listen", value_parser = name)]
        name: Option<String>,
        /// Ends the session when its stdin is closed, so that it ends with the program that started it
        #[arg(long)]
        stdin: bool,
        /// Also serves the Docker API over TLS, for clients that cannot open the socket. The session writes ca.pem,
        /// cert.pem and key.pem to DIR (set DOCKER_CERT_PATH to it), and removes them when it ends
        #[arg(long, value_name = "DIR", conflicts_with = "listen")]
        tls: Option<PathBuf>,
        /// The address for --tls. If it is not a loopback address, everyone who has key.pem can use the engine over the
        /// network
        #[arg(long, value_name = "IP:PORT", requires = "tls", default_value = "127.0.0.1:0")]
        tls_listen: SocketAddr,
    },
    /// Checks whether run would work, and suggests fixes: engine, permissions, network, credential, one minted token
    #[command(after_help = CHECK_CODES)]
    Check {
        #[command(flatten)]
        config: ConfigFlags<{ CREDENTIAL | MACHINE | MOUNTS }>,
        #[command(flatten)]
        output: Output,
    },
    /// Searches a directory, a file, an archive, or an image with all its layers for keys
    #[command(after_help = SCAN_CODES)]
    Scan {
        #[command(flatten)]
        config: ConfigFlags<0>,
        /// Prints one JSON object per line
        #[arg(long)]
        json: bool,
        /// Prints one SARIF 2.1.0 document, which code hosts can show
        #[arg(long, conflicts_with = "json")]
        sarif: bool,
        /// Leaves out the keys that FILE lists, the output of an earlier scan with --json
        #[arg(long, value_name = "FILE")]
        baseline: Option<PathBuf>,
        /// What to search: a path, or an image of the engine if no such path exists
        #[arg(value_name = "IMAGE|DIR|FILE")]
        target: String,
    },
    /// Lists the containers of running sessions, with their tokens and the times when those expire
    #[command(after_help = STATUS_CODES)]
    Status {
        /// Lists only this session, given by its id or name
        #[arg(long, value_name = "ID")]
        session: Option<String>,
        /// Repeats the list every second until it is stopped
        #[arg(long)]
        watch: bool,
        /// Prints one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Checks whether sessions serve, and exits with 0 if they do, 69 if one does not answer, 66 if no token can be made
    #[command(after_help = HEALTH_CODES)]
    Health {
        /// Checks only this session, given by its id or name
        #[arg(long, value_name = "NAME")]
        session: Option<String>,
        /// Checks the server that `serve --listen ADDR` runs, instead of a session
        #[arg(long, value_name = "ADDR", conflicts_with = "session", value_parser = loopback)]
        listen: Option<SocketAddr>,
    },
    /// Stops giving tokens to a container that runs; tokens that it already has stay valid until they expire
    #[command(after_help = CUT_OFF_CODES, group(ArgGroup::new("further").multiple(true)))]
    CutOff {
        /// The container, given by the beginning of its id, its name, or PIPELINE/COMPONENT
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        container: Option<String>,
        /// Cuts off every container that has an identity now
        #[arg(long)]
        all: bool,
        /// Also disables this service account, which invalidates all its tokens, for everyone who uses it. Its
        /// identity has to allow this (kill_switch = true)
        #[arg(long, value_name = "SA", group = "further")]
        disable_account: Option<String>,
        /// Also denies the container's AWS session, by an inline policy on the role that names only this session. The
        /// identity has to allow this (kill_switch = true in [identity.NAME.aws])
        #[arg(long, group = "further")]
        deny_aws: bool,
        /// Disables the account or denies the session; without --yes, only prints what would stop working
        #[arg(long, requires = "further")]
        yes: bool,
        /// Cuts off only in this session, given by its id or name
        #[arg(long, value_name = "ID")]
        session: Option<String>,
    },
    /// Explains which rule decides about a container, why the rules before it do not, and what the container gets
    #[command(after_help = EXPLAIN_CODES)]
    Explain {
        #[command(flatten)]
        config: ConfigFlags<{ CREDENTIAL | CONTAINERS | MOUNTS }>,
        /// A file with the body of a create request, or a container of a running session
        #[arg(value_name = "CREATE.json|CONTAINER", required_unless_present = "kfp")]
        what: Option<String>,
        /// Explains each task of this compiled pipeline
        #[arg(long, value_name = "PIPELINE.yaml", conflicts_with = "what")]
        kfp: Option<PathBuf>,
    },
    /// Tests a metadata server, of any make, against the protocol and prints where it deviates
    #[command(after_help = CONFORMANCE_CODES)]
    Conformance {
        /// The URL of the server; the metadata server of a cloud itself is asked only if you name it here
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
    /// Writes the relay's image to a file, from which you push it to a registry: for engines that refuse to load images
    #[command(after_help = RELAY_IMAGE_CODES)]
    RelayImage {
        #[command(flatten)]
        config: ConfigFlags<0>,
        /// The architecture of the engine [default: that of this program]
        #[arg(long, value_parser = ["amd64", "arm64"])]
        arch: Option<String>,
        /// The file to write, in the format of `docker load`
        #[arg(value_name = "FILE.tar")]
        file: PathBuf,
    },
    /// Prints the completions for a shell
    #[command(after_help = COMPLETIONS_CODES)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Prints the manual page, or writes the manual pages of all commands to a directory
    #[command(after_help = MAN_CODES)]
    Man {
        /// An existing directory
        #[arg(value_name = "DIR")]
        into: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Writes a starter config with comments; never overwrites a file
    #[command(after_help = INIT_CODES)]
    Init {
        /// The file to write [default: kfp-creds.toml]
        file: Option<PathBuf>,
    },
    /// Checks the config; prints every mistake in it, or the settings that it results in
    #[command(after_help = CONFIG_CHECK_CODES)]
    Check {
        #[command(flatten)]
        config: ConfigFlags<EVERY>,
    },
    /// Prints every key that is set, with what sets it: a flag, a variable or a line of the file
    #[command(after_help = SHOW_CODES)]
    Show {
        #[command(flatten)]
        config: ConfigFlags<EVERY>,
    },
    /// Prints the JSON Schema of the config file, for editors
    #[command(after_help = SCHEMA_CODES)]
    Schema,
    /// Trusts a project's config file as it is now: it may then name endpoints and credential files. Read it first
    #[command(after_help = TRUST_CODES)]
    Trust {
        /// The file to trust [default: the one that is used in this directory]
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

Exit codes: that of the command, or 128 + n if signal n ended it; 125 kfp-creds itself failed;
126 the command cannot be executed; 127 the command was not found.";

const SCAN_CODES: &str = "\
Example: kfp-creds scan python:3.12-slim

Exit codes: 0 everything was searched and no key found, 1 a key was found, 64 no such target,
69 engine not reachable, 77 no key was found but something could not be searched, 78 bad config.";

const CONFORMANCE_CODES: &str = "\
Example: kfp-creds conformance --target http://127.0.0.1:8174

Exit codes: 0 no deviation, 1 at least one deviation, 64 usage, 69 no server answers.";

/// The help of a command: an example, and the exit codes of all commands that have none of their own.
macro_rules! example {
    ($line:literal) => {
        concat!(
            "Example: kfp-creds ",
            $line,
            "\n\n",
            "Exit codes: 0 success, 64 usage, 66 no usable credential or no such file, 69 engine not reachable,\n",
            "70 bug, 77 not permitted, 78 bad config."
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

/// Every program that can connect to the address gets tokens, so only a loopback address is accepted.
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
