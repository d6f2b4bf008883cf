//! `kfp-creds serve`: a session that stays until it is stopped, for notebooks and editors; and
//! `serve --listen`, the metadata server alone, for programs without Docker.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::TcpListener;

use super::broken;
use super::child::Signals;
use super::host::Host;
use super::house::{recorder, session_id};
use super::run::{close, open};
use crate::config::{Config, Surroundings};
use crate::failure::{Ended, Failure};
use crate::observe::Voice;
use crate::process::Tasks;
use crate::registry;
use crate::secret::Secret;
use crate::server::Server;

/// Prints the line that puts a shell into the session, and stays. `print` writes to stdout.
pub async fn serve(
    config: &Config,
    around: &Surroundings,
    voice: Voice,
    print: impl Fn(&str),
) -> Result<Ended, Failure> {
    let mut signals = Signals::listen().map_err(|e| broken("listen for signals", e))?;
    let mut house = open(config, around, "serve", &mut signals, &voice).await?;
    print(&format!("export DOCKER_HOST=unix://{}", house.socket.to_string_lossy()));
    for (name, value) in house.host.extra_environment() {
        print(&format!("export {name}={value}"));
    }
    match house.show_page(capability()?).await {
        // A comment, so that the shell may be given all of stdout.
        Ok(place) => print(&format!("# who holds which token: {place}")),
        Err(failure) => voice.notice(failure.to_string()),
    }
    voice.notice("run the lines above where your pipelines start; Ctrl-C ends this session");
    let outcome = tokio::select! {
        _ = signals.next() => Ok(Ended::Done),
        Some(failure) = house.failed.recv() => Err(failure),
    };
    close(house, true, &mut signals, &voice).await;
    outcome
}

/// The metadata server on a loopback address, without an engine. Unless `open`, every path begins with a
/// capability that only the printed lines tell: every user of the machine can reach a loopback port.
pub async fn listen(
    config: &Config,
    around: &Surroundings,
    at: SocketAddr,
    open: bool,
    voice: Voice,
    print: impl Fn(&str),
) -> Result<Ended, Failure> {
    if !at.ip().is_loopback() {
        return Err(Failure::Config(format!(
            "{at} is not a loopback address: tokens would be served to the network"
        )));
    }
    let mut signals = Signals::listen().map_err(|e| broken("listen for signals", e))?;
    let identity = config.policy.default.clone().ok_or_else(|| {
        Failure::Config("the default identity is none: name one in kfp-creds.toml to serve it".into())
    })?;
    let tasks = Tasks::new();
    let recorder = recorder(config, &session_id()?, &voice)?;
    let host = Host::open(config, around, &tasks, &voice, recorder.clone()).await?;
    voice.while_slow("waiting for a first token", host.first_mint(config, &voice)).await?;
    let listener = TcpListener::bind(at).await.map_err(|e| broken(&format!("listen on {at}"), e))?;
    let at = listener.local_addr().map_err(|e| broken("listen", e))?;
    let capability = if open { None } else { Some(capability()?) };
    let (_writer, reader, _questions) = registry::new();
    let server = Server::new(
        reader,
        host.mint.clone(),
        host.views(config, Some(at.to_string())),
        std::net::Ipv4Addr::UNSPECIFIED,
        voice.clone(),
        recorder.clone(),
    );
    let place = match &capability {
        Some(capability) => format!("{at}/{}", capability.expose()),
        None => at.to_string(),
    };
    // The one place where the capability is shown: it is for whoever reads our stdout.
    for name in ["GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"] {
        print(&format!("export {name}={place}"));
    }
    for (name, value) in host.extra_environment() {
        print(&format!("export {name}={value}"));
    }
    voice.notice(format!("serving {} on {at}; Ctrl-C ends it", host.account(config)));
    tasks.spawn("listener", server.serve_listener(listener, identity, capability, tasks.clone()));
    signals.next().await;
    tasks.finish(std::time::Duration::from_secs(1)).await;
    recorder.finish(std::time::Duration::from_secs(1)).await;
    Ok(Ended::Done)
}

fn capability() -> Result<Secret<String>, Failure> {
    let mut bytes = [0_u8; 24];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Failure::NotPermitted("no randomness to be had".into()))?;
    Ok(Secret::new(URL_SAFE_NO_PAD.encode(bytes)))
}
