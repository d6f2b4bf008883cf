//! `kfp-creds run -- COMMAND`: a session around one command.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::broken;
use super::child::{self, Asked, GRACE, Interrupts, Signals};
use super::house::House;
use super::processes::{NoLogin, WINNING};
use crate::config::{Config, SourceChoice, Surroundings};
use crate::failure::{Ended, Failure};
use crate::observe::Voice;
use crate::quote;
use crate::source::google::adc;
use crate::workload::Identity;

/// How a `run` is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The program and its arguments.
    pub command: &'a [OsString],
    /// Processes of the command have the default identity, too.
    pub processes: bool,
}

/// Runs the command with its Docker calls going through us; the answer is its exit code.
pub async fn run(
    config: &Config,
    around: &Surroundings,
    ask: Ask<'_>,
    voice: Voice,
) -> Result<Ended, Failure> {
    let mut signals = Signals::listen().map_err(|e| broken("listen for signals", e))?;
    // Should we be killed, the next start leaves running what this end would leave running.
    let mode = if config.keep { "serve" } else { "run" };
    let mut house = open(config, around, mode, &mut signals, &voice).await?;
    let outcome = match surround(&house, config, ask).await {
        Ok(around) => match child::start(ask.command, &house.socket, &around.set, around.unset) {
            Ok(child) => attend(&mut house, child, &mut signals, config.keep, &voice).await,
            Err(error) => Err(not_started(ask.command, &error)),
        },
        Err(failure) => Err(failure),
    };
    if outcome.is_ok() && house.has_clients().await {
        voice.notice(
            "the command ended, but something it started still uses Docker through kfp-creds: \
             for editors and notebooks use `kfp-creds serve`",
        );
    }
    let alone = outcome.is_ok() && !ask.processes && !house.has_created();
    if alone && names_an_identity(config) && has_login(around) {
        voice.notice(
            "no container was created: what ran in processes (SubprocessRunner) had your own login, and not the \
             identity of this session, which --processes gives them",
        );
    }
    close(house, config.keep, &mut signals, &voice).await;
    outcome
}

/// What the command's environment has and has not, besides the engine.
#[derive(Debug, Default)]
struct Around {
    set: Vec<(String, String)>,
    unset: &'static [&'static str],
    /// Lasts as long as the command.
    _no_login: Option<NoLogin>,
}

async fn surround(house: &House, config: &Config, ask: Ask<'_>) -> Result<Around, Failure> {
    let mut set = house.host.extra_environment();
    if !ask.processes {
        return Ok(Around { set, ..Around::default() });
    }
    let folder = house.socket.parent().unwrap_or_else(|| Path::new("/tmp"));
    let no_login = NoLogin::new(folder, &house.session.network.session)?;
    set.extend(house.serve_processes(config).await?);
    set.push(no_login.variable());
    Ok(Around { set, unset: &WINNING, _no_login: Some(no_login) })
}

/// Whether containers would have had anything but what the person's own login has. Offline, nobody expects a
/// process to have what the session signs.
fn names_an_identity(config: &Config) -> bool {
    let policy = &config.policy;
    let plain = Identity::default();
    !matches!(config.source, SourceChoice::Offline)
        && (config.impersonate.is_some()
            || !policy.rules.is_empty()
            || policy.default.as_deref() != Some(&plain))
}

/// Whether Google's libraries find a credential file in the environment that the command has from us.
fn has_login(around: &Surroundings) -> bool {
    let variable = |name| around.variable(name).map(PathBuf::from);
    let home = around.home();
    let file = adc(variable("GOOGLE_APPLICATION_CREDENTIALS"), variable("CLOUDSDK_CONFIG"), home.as_deref());
    file.is_some_and(|file| around.cwd.join(file).is_file())
}

/// Closes the session. An engine that does not answer must not keep a person: two signals more leave the rest.
pub(super) async fn close(house: House, keep: bool, signals: &mut Signals, voice: &Voice) {
    let mut closing = std::pin::pin!(house.close(keep));
    for advice in [
        "still ending; once more to leave what is left to the next start",
        "left as it is: the next start of kfp-creds removes it",
    ] {
        tokio::select! {
            () = &mut closing => return,
            _ = signals.next() => voice.notice(advice),
        }
    }
}

/// Opens a session. A signal meanwhile lets it finish, so that it can be closed in good order.
pub(super) async fn open(
    config: &Config,
    around: &Surroundings,
    mode: &'static str,
    signals: &mut Signals,
    voice: &Voice,
) -> Result<House, Failure> {
    let mut opening = std::pin::pin!(House::open(config, around, mode, voice.clone()));
    tokio::select! {
        opened = &mut opening => return opened,
        _ = signals.next() => {}
    }
    voice.notice("ending as soon as what was begun can be undone; once more to leave it to the next start");
    tokio::select! {
        opened = &mut opening => if let Ok(house) = opened {
            close(house, false, signals, voice).await;
        },
        _ = signals.next() => {}
    }
    Err(Failure::NotPermitted("stopped by a signal before the session was ready".into()))
}

async fn attend(
    house: &mut House,
    mut child: tokio::process::Child,
    signals: &mut Signals,
    keep: bool,
    voice: &Voice,
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
                let at_terminal = asked == Asked::Interrupt && child::in_foreground();
                if kill_at.is_some() {
                    child::pass_on(&child, asked);
                    let _ = child.start_kill();
                } else if at_terminal && interrupts.are_the_commands(now) {
                    remind_at = Some(now + Interrupts::WITHIN);
                } else {
                    end(house, &child, asked, keep, voice);
                    kill_at = Some(now + GRACE);
                }
            }
            () = until(remind_at) => {
                remind_at = None;
                house.remind_of_running(
                    "the command goes on after Ctrl-C, and its containers run; three within 2 s end the session",
                );
            }
            () = until(kill_at) => {
                voice.notice(format!("the command did not end within {} s and is killed", GRACE.as_secs()));
                let _ = child.start_kill();
                kill_at = Some(Instant::now() + Duration::from_secs(3600));
            }
            Some(failure) = house.failed.recv() => {
                voice.notice("no container can get a token any more: ending the command");
                house.refuse_creates();
                relay_gone = Some(failure);
                child::pass_on(&child, Asked::Terminate);
                kill_at = Some(Instant::now() + GRACE);
            }
        }
    }
}

/// The session ends, and with it the command.
fn end(house: &House, child: &tokio::process::Child, asked: Asked, keep: bool, voice: &Voice) {
    child::pass_on(child, asked);
    house.refuse_creates();
    voice.notice("ending: no new containers, running ones are stopped; once more to end at once");
    if !keep {
        house.begin_stop();
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
