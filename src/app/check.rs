//! `kfp-creds check`: everything that could stand in the way, each with what mends it. Looks only; what it
//! makes it removes again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::host::Host;
use super::house::{House, reach};
use crate::config::{Config, Pool, Surroundings};
use crate::docker::Engine;
use crate::docker::cells::{self, Owner};
use crate::docker::network::Network;
use crate::failure::{Ended, Failure};
use crate::mint::MintFailure;
use crate::observe::{Form, Voice};
use crate::process::Tasks;
use crate::record::Recorder;
use crate::workload::{ContainerId, Grant, Identity, Task};

/// Prints one line per look, `ok` or `!!`, and fails with the first thing that has to be mended.
pub async fn check(
    config: &Config,
    around: &Surroundings,
    voice: Voice,
    print: impl Fn(&str),
) -> Result<Ended, Failure> {
    let tasks = Tasks::new();
    let mut first = None;
    let mut say = |what: &str, found: Result<String, Failure>| match found {
        Ok(text) => print(&format!("ok  {what:<11} {text}")),
        Err(failure) => {
            print(&format!("!!  {what:<11} {failure}"));
            first.get_or_insert(failure);
        }
    };
    let file = config.file.as_ref().map_or("none: defaults".into(), |file| file.display().to_string());
    say("config", Ok(file));
    match reach(config, around).await {
        Ok(engine) => {
            say("engine", Ok(format!("{} at {}", engine.version(), engine.socket().display())));
            say("network", look_at_network(&engine, config).await);
        }
        Err(failure) => say("engine", Err(failure)),
    }
    match Host::open(config, around, &tasks, &voice, Recorder::default()) {
        Ok(host) => {
            say("credential", Ok(format!("{}, {}", host.source.principal().kind, host.account(config))));
            say("token", look_at_token(&host, config).await);
            say("project", Ok(host.project(config)));
            tasks.finish(Duration::from_secs(1)).await;
        }
        Err(failure) => say("credential", Err(failure)),
    }
    if let Some(failure) = first {
        return Err(failure);
    }
    let quiet = Voice::new(Form::Quiet, std::io::sink());
    match look_inside(config, around, quiet).await {
        Ok(text) => {
            print(&format!("ok  {:<11} {text}", "container"));
            Ok(Ended::Done)
        }
        Err(failure) => {
            print(&format!("!!  {:<11} {failure}", "container"));
            Err(failure)
        }
    }
}

/// The whole way, once: a session, and in it a container of our own image that asks for a token.
async fn look_inside(config: &Config, around: &Surroundings, voice: Voice) -> Result<String, Failure> {
    let Some(identity) = config.policy.default.clone().or_else(|| config.identities.values().next().cloned())
    else {
        return Ok("no identity to try one with".into());
    };
    let house = House::open(config, around, "run", voice).await?;
    let outcome = probe(&house, identity).await;
    house.close(false).await;
    outcome
}

async fn probe(house: &House, identity: Arc<Identity>) -> Result<String, Failure> {
    let (engine, session) = (&house.session.engine, &house.session);
    let cell = house.cell().await?;
    let relay = cell.as_ref().map_or(session.relay, |cell| cell.relay);
    let made = engine.make_probe(&session.image, relay).await?;
    let container =
        ContainerId::parse(&made).ok_or_else(|| Failure::Engine(format!("{made} is no container id")))?;
    let task = Arc::new(Task { image: "probe".into(), ..Task::default() });
    let attached = house.lifecycle.attach(Grant { container, identity, task }, cell).await;
    let started = Instant::now();
    let ended = match attached {
        Ok(_) => engine.run_to_end(&made).await.map_err(Failure::from),
        Err(why) => Err(Failure::Engine(why)),
    };
    let removed = engine.remove(&made).await;
    let code = ended?;
    removed?;
    match code {
        0 => Ok(format!("got a token at {relay} within {} ms", started.elapsed().as_millis())),
        1 => Err(Failure::NoCredential("reached us and got no token: see the lines above".into())),
        _ => Err(Failure::Engine(format!(
            "did not reach {relay}: does a firewall of this machine drop traffic inside Docker networks?"
        ))),
    }
}

/// Making a network is the only sure way to learn whether its range and the right to it can be had.
async fn look_at_network(engine: &Engine, config: &Config) -> Result<String, Failure> {
    if let Some(range) = config.cells {
        return look_at_cells(engine, range).await;
    }
    let ours = engine.our_networks().await?;
    if let Some(Network { name, subnet, .. }) = ours.iter().find(|network| config.pool.is(&network.subnet)) {
        return Ok(format!("{subnet} is held by {name}: another session runs, or left it; both are handled"));
    }
    match engine.make_network("kfp-creds-check", config.pool, "check", "run").await {
        Ok(network) => {
            engine.remove_network(&network.id).await?;
            Ok(format!("{} can be had", config.pool))
        }
        Err(error) if error.is_overlap() => {
            let owner = engine.owner_of(config.pool).await.unwrap_or_else(|| "something else".into());
            Ok(format!(
                "{owner} holds {}: sessions get another address, which PHP clients do not find",
                config.pool
            ))
        }
        Err(error) => Err(error.into()),
    }
}

/// The same where each container has a network: the first one that is free.
async fn look_at_cells(engine: &Engine, range: Pool) -> Result<String, Failure> {
    let owner = Owner { session: "check".into(), mode: "run".into() };
    let mut held = 0;
    for cell in cells::of(range) {
        match engine.make_cell("kfp-creds-check", cell, &owner).await {
            Ok(network) => {
                engine.remove_network(&network.id).await?;
                let total = cells::of(range).count();
                return Ok(format!(
                    "{cell} can be had, one of {total} for a container each; {held} before it are held"
                ));
            }
            Err(error) if error.is_overlap() => held += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::Engine(format!(
        "all {held} networks of {range} are held: choose another range for network.cells"
    )))
}

async fn look_at_token(host: &Host, config: &Config) -> Result<String, Failure> {
    let mut minted = 0_u32;
    for identity in config.identities.values() {
        let request = host.mint.request(identity, None, None);
        match host.mint.access(&request, Duration::from_secs(25)).await {
            Ok(_) => minted += 1,
            Err(MintFailure::Refused(why)) => {
                return Err(Failure::NoCredential(format!("identity {}: {why}", identity.name)));
            }
            Err(error) => return Err(Failure::NoCredential(format!("identity {}: {error}", identity.name))),
        }
    }
    Ok(format!("minted for {minted} of {} identities", config.identities.len()))
}
