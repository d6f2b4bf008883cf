//! `kfp-creds run -- COMMAND`: a session around one command.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::broken;
use super::child::{self, EndSignal, GRACE, Interrupts, Signals};
use super::processes::{self, NoLogin};
use super::session::Session;
use crate::config::{Config, Environment, SourceChoice};
use crate::console::Console;
use crate::failure::{Ended, Failure};
use crate::quote;
use crate::source::google::adc;
use crate::workload::Identity;

/// The options of `run`.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions<'a> {
    /// The program and its arguments.
    pub command: &'a [OsString],
    /// Processes of the command get the default identity, too.
    pub processes: bool,
}

/// Runs the command with its Docker calls going through our socket; returns its exit code.
pub async fn run(
    config: &Config,
    env: &Environment,
    ask: RunOptions<'_>,
    console: Console,
) -> Result<Ended, Failure> {
    let mut signals = Signals::listen().map_err(|e| broken("listen for signals", e))?;
    // If this process is killed, the next start must leave the same containers running as this end would.
    let mode = if config.keep { "serve" } else { "run" };
    let mut session = open(config, env, mode, &mut signals, &console).await?;
    let outcome = match surround(&session, (config, env), ask).await {
        Ok(env) => match child::start(ask.command, &session.socket, &env.set, &env.unset) {
            Ok(child) => attend(&mut session, child, &mut signals, config.keep, &console).await,
            Err(error) => Err(not_started(ask.command, &error)),
        },
        Err(failure) => Err(failure),
    };
    if outcome.is_ok() && session.has_clients().await {
        console.notice(
            "the command ended, but something it started still uses Docker through kfp-creds: \
             for editors and notebooks use `kfp-creds serve`",
        );
    }
    let alone = outcome.is_ok() && !ask.processes && !session.has_created();
    if alone && names_an_identity(config) && has_login(env) {
        console.notice(
            "no container was created: what ran in processes (SubprocessRunner) had your own login, and not the \
             identity of this session, which --processes gives them",
        );
    }
    close(session, config.keep, &mut signals, &console).await;
    outcome
}

/// Changes to the command's environment, besides the engine.
#[derive(Debug, Default)]
struct Around {
    set: Vec<(String, String)>,
    unset: Vec<&'static str>,
    /// Held until the command has ended.
    _no_login: Option<NoLogin>,
}

async fn surround(
    session: &Session,
    (config, env): (&Config, &Environment),
    ask: RunOptions<'_>,
) -> Result<Around, Failure> {
    let mut set = session.credentials.extra_environment();
    if !ask.processes {
        return Ok(Around { set, ..Around::default() });
    }
    let folder = session.socket.parent().unwrap_or_else(|| Path::new("/tmp"));
    let no_login = NoLogin::new(folder, &session.metadata.network.session)?;
    set.extend(session.serve_processes(config)?);
    processes::fit(&mut set, env);
    set.extend(no_login.variables(config));
    Ok(Around { unset: processes::winning(config, &set), set, _no_login: Some(no_login) })
}

/// Whether the config gives containers anything beyond the person's own login. False
/// offline, because no process expects a token that the session signs.
fn names_an_identity(config: &Config) -> bool {
    let policy = &config.policy;
    let plain = Identity::default();
    !matches!(config.source, SourceChoice::Offline)
        && (config.impersonate.is_some()
            || !policy.rules.is_empty()
            || policy.default.as_deref() != Some(&plain))
}

/// Whether Google's libraries find a credential file in the command's environment.
fn has_login(env: &Environment) -> bool {
    let variable = |name| env.variable(name).map(PathBuf::from);
    let home = env.home();
    let file = adc(variable("GOOGLE_APPLICATION_CREDENTIALS"), variable("CLOUDSDK_CONFIG"), home.as_deref());
    file.is_some_and(|file| env.cwd.join(file).is_file())
}

/// Closes the session. Two more signals leave the rest to the next start, so that an engine that does not
/// answer cannot block the exit.
pub(super) async fn close(session: Session, keep: bool, signals: &mut Signals, console: &Console) {
    let mut closing = std::pin::pin!(session.close(keep));
    for advice in [
        "still ending; press Ctrl-C or send the signal again to leave the rest to the next start",
        "left as it is: the next start of kfp-creds removes it",
    ] {
        tokio::select! {
            () = &mut closing => return,
            _ = signals.next() => console.notice(advice),
        }
    }
}

/// Opens a session. A signal during this lets the opening finish, so that the session can be closed properly.
pub(super) async fn open(
    config: &Config,
    env: &Environment,
    mode: &'static str,
    signals: &mut Signals,
    console: &Console,
) -> Result<Session, Failure> {
    let mut opening = std::pin::pin!(Session::open(config, env, mode, console.clone()));
    tokio::select! {
        opened = &mut opening => return opened,
        _ = signals.next() => {}
    }
    console
        .notice("ending as soon as the start can be undone; press Ctrl-C or send the signal again to leave that to the next start");
    tokio::select! {
        opened = &mut opening => if let Ok(session) = opened {
            close(session, false, signals, console).await;
        },
        _ = signals.next() => {}
    }
    Err(Failure::NotPermitted("stopped by a signal before the session was ready".into()))
}

async fn attend(
    session: &mut Session,
    mut child: tokio::process::Child,
    signals: &mut Signals,
    keep: bool,
    console: &Console,
) -> Result<Ended, Failure> {
    let mut kill_at = None;
    let mut relay_gone = None;
    let mut interrupts = Interrupts::default();
    let mut remind_at = None;
    loop {
        tokio::select! {
            ended = child.wait() => {
                let status = ended.map_err(|e| broken("wait for the command", e))?;
                return relay_gone.map_or_else(|| Ok(status.into()), Err);
            }
            asked = signals.next() => {
                let now = Instant::now();
                let at_terminal = asked == EndSignal::Interrupt && child::in_foreground();
                if kill_at.is_some() {
                    child::pass_on(&child, asked);
                    let _ = child.start_kill();
                } else if at_terminal && interrupts.are_the_commands(now) {
                    remind_at = Some(now + Interrupts::WITHIN);
                } else {
                    end(session, &child, asked, keep, console);
                    kill_at = Some(now + GRACE);
                }
            }
            () = until(remind_at) => {
                remind_at = None;
                session.remind_of_running(
                    "the command continues after Ctrl-C, and its containers keep running; press it three times within 2 s to end the session",
                );
            }
            () = until(kill_at) => {
                console.notice(format!("the command did not end within {} s and is killed", GRACE.as_secs()));
                let _ = child.start_kill();
                kill_at = Some(Instant::now() + Duration::from_secs(3600));
            }
            Some(failure) = session.failed.recv() => {
                console.notice("no container can get a token any more: ending the command");
                session.refuse_creates();
                relay_gone = Some(failure);
                child::pass_on(&child, EndSignal::Terminate);
                kill_at = Some(Instant::now() + GRACE);
            }
        }
    }
}

/// Ends the session, and the command with it.
fn end(session: &Session, child: &tokio::process::Child, asked: EndSignal, keep: bool, console: &Console) {
    child::pass_on(child, asked);
    session.refuse_creates();
    let running = if keep { "running ones are kept" } else { "running ones are stopped" };
    console.notice(format!(
        "ending: no new containers, {running}; press Ctrl-C or send the signal again to end at once"
    ));
    if !keep {
        session.begin_stop();
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn not_started(command: &[OsString], error: &std::io::Error) -> Failure {
    let name = command.first().map(|name| quote::path(Path::new(name))).unwrap_or_default();
    match error.kind() {
        ErrorKind::NotFound => Failure::NotFound(format!("{name}: command not found")),
        _ => Failure::CannotExecute(format!("{name}: cannot be executed: {error}")),
    }
}
