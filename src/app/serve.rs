//! `kfp-creds serve`: a session that stays until it is stopped, for notebooks and editors; and
//! `serve --listen`, the metadata server alone, for programs without Docker.

use std::net::SocketAddr;

use tokio::net::UnixListener;

use super::activation::{self, ActivatedSocket};
use super::broken;
use super::child::Signals;
use super::credentials::Credentials;
use super::name::Name;
use super::page::capability;
use super::processes;
use super::ready::{Ready, UNSET};
use super::run::{close, open};
use super::runtime_dir::{private_folder, runtime_folder};
use super::session::{Session, recorder, session_id};
use super::tls::{self, Tls};
use crate::certificates::Folder;
use crate::config::{Config, Environment};
use crate::console::{Console, OutputForm};
use crate::failure::{Ended, Failure};
use crate::process::Tasks;

/// The options of `serve`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServeOptions<'a> {
    /// See [`is_name`](super::is_name).
    pub name: Option<&'a str>,
    /// `--listen` without the secret path.
    pub open: bool,
    /// Ends with its stdin.
    pub stdin: bool,
    /// Serves the Docker API with TLS as well.
    pub tls: Option<tls::TlsOptions<'a>>,
}

/// Prints the line that connects a shell to the session, and serves until it is stopped. `print` writes to
/// stdout.
pub async fn serve(
    config: &Config,
    env: &Environment,
    ask: ServeOptions<'_>,
    console: Console,
    print: impl Fn(&str),
) -> Result<Ended, Failure> {
    let mut signals = signals(ask)?;
    let given = activation::given(env)?;
    let name = match (given.is_empty(), ask.name) {
        (true, wanted) => Name::take(&private_folder(&runtime_folder(env))?, wanted, &console)?,
        (false, None) => None,
        (false, Some(_)) => {
            return Err(Failure::Usage(
                "LISTEN_FDS: the socket has its path already; leave --name out".into(),
            ));
        }
    };
    let tls = match ask.tls {
        Some(ask) => Some(Tls::take(ask).await?),
        None => None,
    };
    let mut session = open(config, env, "serve", &mut signals, &console).await?;
    let places = ServePlaces { name: name.as_ref(), given, tls };
    let outcome = match show(&session, places, (config, env), &console, print).await {
        Ok(_folder) => {
            activation::tell(env, "READY=1");
            tokio::select! {
                _ = signals.next() => Ok(Ended::Done),
                Some(failure) = session.failed.recv() => Err(failure),
            }
        }
        Err(failure) => Err(failure),
    };
    activation::tell(env, "STOPPING=1");
    close(session, true, &mut signals, &console).await;
    outcome
}

fn signals(ask: ServeOptions<'_>) -> Result<Signals, Failure> {
    let signals = Signals::listen().map_err(|e| broken("listen for signals", e))?;
    if ask.stdin { signals.with_input().map_err(|e| broken("read stdin", e)) } else { Ok(signals) }
}

/// Where the Docker API is served, besides the session's own socket.
struct ServePlaces<'a> {
    name: Option<&'a Name>,
    given: Vec<ActivatedSocket>,
    tls: Option<Tls>,
}

/// Opens the additional sockets and the page of the session, and prints their addresses. Returns the folder of
/// certificates, whose files go when it is dropped.
async fn show(
    session: &Session,
    ServePlaces { name, given, tls }: ServePlaces<'_>,
    (config, env): (&Config, &Environment),
    console: &Console,
    print: impl Fn(&str),
) -> Result<Option<Folder>, Failure> {
    let id = &session.metadata.network.session;
    let mut socket = session.socket.clone();
    if let Some(name) = name {
        socket = name.point_to(id).map_err(|e| broken(&format!("give the name {}", name.text), e))?;
    }
    for given in given {
        let listener = UnixListener::from_std(given.listener);
        session.serve_also(listener.map_err(|e| broken("serve the socket that was passed on", e))?);
        socket = given.path;
    }
    let socket = socket.to_string_lossy().into_owned();
    let page = match session.show_page(capability()?).await {
        Ok(place) => Some(place),
        Err(failure) => {
            console.notice(failure.to_string());
            None
        }
    };
    let (leading, folder, unset) = match tls {
        Some(tls) => {
            let (variables, folder) = tls.serve(session, env, console)?;
            (Vec::from(variables), Some(folder), tls::UNSET.to_vec())
        }
        None => (vec![("DOCKER_HOST".into(), format!("unix://{socket}"))], None, UNSET.to_vec()),
    };
    let environment = leading.into_iter().chain(session.credentials.extra_environment());
    let (session, name) = (Some(id.clone()), name.map(|name| name.text.clone()));
    Ready { session, name, page, unset, socket: Some(socket), ..Ready::new(environment) }
        .print(config.form, print);
    if config.form != OutputForm::Json {
        console.notice("run the lines above where your pipelines start; Ctrl-C ends this session");
    }
    Ok(folder)
}

/// The metadata server on a loopback address, without an engine.
pub async fn listen(
    config: &Config,
    env: &Environment,
    at: SocketAddr,
    ask: ServeOptions<'_>,
    console: Console,
    print: impl Fn(&str),
) -> Result<Ended, Failure> {
    if !at.ip().is_loopback() {
        return Err(Failure::Config(format!(
            "{at} is not a loopback address: tokens would be served to the network"
        )));
    }
    let mut signals = signals(ask)?;
    let tasks = Tasks::new();
    let recorder = recorder(config, &session_id()?, &console)?;
    let credentials = Credentials::open(config, env, &tasks, &console, recorder.clone()).await?;
    console.while_slow("waiting for a first token", credentials.first_mint(config, &console)).await?;
    let with = (&tasks, &console, &recorder);
    let (at, mut environment) = processes::serve(at, ask.open, &credentials, config, with)?;
    processes::fit(&mut environment, env);
    let unset = processes::winning(config, &environment);
    let environment = environment.into_iter().chain(credentials.extra_environment());
    Ready { unset, ..Ready::new(environment) }.print(config.form, print);
    activation::tell(env, "READY=1");
    if config.form != OutputForm::Json {
        console.notice(format!("serving {} on {at}; Ctrl-C ends it", credentials.account(config)));
    }
    signals.next().await;
    activation::tell(env, "STOPPING=1");
    tasks.finish(std::time::Duration::from_secs(1)).await;
    recorder.finish(std::time::Duration::from_secs(1)).await;
    Ok(Ended::Done)
}
