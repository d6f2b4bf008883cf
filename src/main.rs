//! Parse, resolve, dispatch, exit code. Nothing else.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::future::Future;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use kfp_creds::cli::flags::{ConfigFlags, Output};
use kfp_creds::cli::plugin::{self, Called};
use kfp_creds::cli::{self, Cli, Command, ConfigCommand, usage};
use kfp_creds::config::{self, Config, Environment, Overrides};
use kfp_creds::console::{self, Console};
use kfp_creds::failure::{Ended, Failure};
use kfp_creds::relay::program::ProgramCall;
use kfp_creds::{app, process, quote};

fn main() -> ExitCode {
    process::forbid_core_dumps();
    let (arguments, variables) = match plugin::called(std::env::args_os().collect()) {
        Called::Plainly(arguments) => (arguments, vec![]),
        Called::AsPlugin(arguments, variables) => (arguments, variables),
        Called::ForMetadata => {
            print(&plugin::metadata());
            return ExitCode::SUCCESS;
        }
        Called::Wrongly(why) => {
            let _ = writeln!(std::io::stderr(), "kfp-creds: {why}");
            return ExitCode::from(64);
        }
    };
    // Not clap's: it is also the whole command line of the relay's own program.
    if let Some(asked) = ProgramCall::parse(arguments.get(1..).unwrap_or_default()) {
        return in_container(asked);
    }
    let run = arguments.get(1).is_some_and(|command| command == "run");
    let outcome = match Cli::try_parse_from(arguments) {
        Ok(cli) => environment(variables).and_then(|env| dispatch(cli.command, &env)),
        Err(said) if !said.use_stderr() => said.print().map(|()| Ended::Done).map_err(lost),
        Err(said) => Err(Failure::Usage(usage(said))),
    };
    if let Err(failure) = &outcome {
        for line in failure.to_string().lines().filter(|line| !line.is_empty()) {
            // A closed terminal must not change the exit code.
            let _ = writeln!(std::io::stderr(), "kfp-creds: {line}");
        }
    }
    ExitCode::from(exit_code(run, &outcome))
}

/// The relay, or a probe of it.
fn in_container(asked: Result<ProgramCall, &'static str>) -> ExitCode {
    console::install_log("warn", std::io::stderr);
    let (code, why) = match asked.map(ProgramCall::run) {
        Ok(Ok(code)) => return ExitCode::from(code),
        Ok(Err(error)) => (77, error.to_string()),
        Err(why) => (64, why.to_string()),
    };
    let _ = writeln!(std::io::stderr(), "kfp-creds: {why}");
    ExitCode::from(code)
}

/// The only place that reads the process's environment. `variables` come from the command line and take
/// precedence.
fn environment(variables: Vec<(&'static str, Option<OsString>)>) -> Result<Environment, Failure> {
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    let cwd = std::env::current_dir();
    let cwd =
        cwd.map_err(|error| Failure::Usage(format!("the working directory cannot be used: {error}")))?;
    let mut all: BTreeMap<String, String> = std::env::vars_os().filter_map(text).collect();
    for (name, value) in variables {
        all.remove(name);
        let value = value.and_then(|value| value.into_string().ok());
        all.extend(value.map(|value| (name.to_owned(), value)));
    }
    Ok(Environment { variables: all.into_iter().collect(), cwd })
}

fn dispatch(command: Command, env: &Environment) -> Result<Ended, Failure> {
    match command {
        Command::Run { config, output, processes, command } => {
            let (config, console) = resolve(config, output, env)?;
            let ask = app::RunOptions { command: &command, processes };
            wait_for(app::run(&config, env, ask, console))?
        }
        Command::Serve { config, output, listen, open, name, stdin, tls, tls_listen } => {
            let (config, console) = resolve(config, output, env)?;
            let tls = tls.as_deref().map(|folder| app::TlsOptions { folder, at: tls_listen });
            let ask = app::ServeOptions { name: name.as_deref(), open, stdin, tls };
            match listen {
                None => wait_for(app::serve(&config, env, ask, console, print))?,
                Some(at) => wait_for(app::listen(&config, env, at, ask, console, print))?,
            }
        }
        Command::Check { config, output } => {
            let (config, console) = resolve(config, output, env)?;
            wait_for(app::check(&config, env, console, print))?
        }
        Command::Scan { config, json, sarif, baseline, target } => {
            let form = match (sarif, json) {
                (true, _) => app::ReportFormat::Sarif,
                (_, true) => app::ReportFormat::Json,
                _ => app::ReportFormat::Text,
            };
            let (config, _) = resolve(config, Output::default(), env)?;
            let ask = app::ScanOptions { form, baseline: baseline.as_deref() };
            wait_for(app::scan(&config, env, &target, ask, print))?
        }
        Command::Status { session, watch, json } => {
            wait_for(app::status(env, session.as_deref(), watch, json, print))?
        }
        Command::Health { listen: Some(at), .. } => wait_for(app::health_of_listener(at))?,
        Command::Health { session, .. } => wait_for(app::health(env, session.as_deref()))?,
        Command::CutOff { container, session, disable_account, deny_aws, yes, .. } => {
            let (session, container) = (session.as_deref(), container.as_deref());
            let account = disable_account.as_deref();
            let ask = app::CutOff { session, container, account, deny_aws, yes };
            wait_for(app::cut_off(env, ask, print))?
        }
        Command::Explain { config, what, kfp } => {
            let (config, _) = resolve(config, Output::default(), env)?;
            match (what, kfp) {
                (None, Some(file)) => app::explain_pipeline(&config, env, &file, print),
                (what, _) => wait_for(app::explain(&config, env, &what.unwrap_or_default(), print))?,
            }
        }
        Command::Conformance { target, json } => wait_for(app::conformance(env, &target, json, print))?,
        Command::Config { command } => configure(command, env),
        Command::RelayImage { config, arch, file } => {
            let (config, _) = resolve(config, Output::default(), env)?;
            app::relay_image(&config, arch.as_deref(), &env.cwd.join(file), print)
        }
        Command::Completions { shell } => write(&cli::completions(shell)),
        Command::Man { into } => manual(into.as_deref()),
    }
}

fn resolve<const GROUPS: u8>(
    given: ConfigFlags<GROUPS>,
    output: Output,
    env: &Environment,
) -> Result<(Config, Console), Failure> {
    let config = config::resolve(&given.overrides(output), env).map_err(bad_config)?;
    console::install_log(&config.log, std::io::stderr);
    let console = Console::new(config.form, std::io::stderr());
    Ok((config, console))
}

/// One thread serves everything: the work is moving bytes, and measurements showed no gain from a second one.
fn wait_for<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::NotPermitted(format!("no event loop: {error}")))?;
    let done = runtime.block_on(work);
    // A call to a dead file server may hang in its thread; the exit does not wait for it.
    runtime.shutdown_background();
    Ok(done)
}

fn configure(command: ConfigCommand, env: &Environment) -> Result<Ended, Failure> {
    let text = match command {
        ConfigCommand::Init { file } => {
            let path = config::init(file.as_deref(), env).map_err(bad_config)?;
            format!("wrote {}\n", quote::path(&path))
        }
        ConfigCommand::Check { config } => {
            config::resolve(&config.overrides(Output::default()), env).map_err(bad_config)?.summary()
        }
        ConfigCommand::Show { config } => {
            config::show(&config.overrides(Output::default()), env).map_err(bad_config)?
        }
        ConfigCommand::Schema => config::schema(),
        ConfigCommand::Trust { file } => {
            let flags = Overrides { config: file, ..Overrides::default() };
            config::trust(&flags, env).map_err(bad_config)?.to_string()
        }
    };
    write(text.as_bytes())
}

fn manual(into: Option<&Path>) -> Result<Ended, Failure> {
    let Some(into) = into else { return write(&cli::manual().map_err(lost)?) };
    let cannot = |error| Failure::NotPermitted(format!("{}: {error}", quote::path(into)));
    cli::manual_pages(into).map(|()| Ended::Done).map_err(cannot)
}

fn write(text: &[u8]) -> Result<Ended, Failure> {
    std::io::stdout().write_all(text).map(|()| Ended::Done).map_err(lost)
}

/// Prints for a shell or a reader of stdout. A closed stdout does not end the program.
fn print(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn bad_config(problems: config::Problems) -> Failure {
    Failure::Config(problems.to_string())
}

fn lost(error: std::io::Error) -> Failure {
    Failure::NotPermitted(format!("stdout cannot be written: {error}"))
}

/// `run` keeps the codes below 125 for its child, as `docker run` does; the rest are those of sysexits.h.
fn exit_code(run: bool, outcome: &Result<Ended, Failure>) -> u8 {
    let own = |code| if run { 125 } else { code };
    match outcome {
        Ok(Ended::Done) => 0,
        Ok(Ended::Found) => 1,
        Ok(Ended::Child(code)) => *code,
        Err(Failure::Usage(_)) => own(64),
        Err(Failure::NoInput(_) | Failure::NoCredential(_)) => own(66),
        Err(Failure::Engine(_)) => own(69),
        Err(Failure::Bug(_)) => own(70),
        Err(Failure::NotPermitted(_)) => own(77),
        Err(Failure::Config(_)) => own(78),
        Err(Failure::CannotExecute(_)) => 126,
        Err(Failure::NotFound(_)) => 127,
    }
}
