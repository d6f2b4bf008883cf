//! `kfp-creds check`: everything that could stand in the way, each with the command that mends it. Looks
//! only; what it makes it removes again.

use std::cell::RefCell;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::finding::Finding;
use super::host::Host;
use super::house::House;
use super::looks;
use super::reach::reach;
use crate::config::{Config, Surroundings};
use crate::failure::{Ended, Failure};
use crate::observe::{Form, Voice};
use crate::process::Tasks;
use crate::record::Recorder;
use crate::workload::{By, ContainerId, Grant, Identity, Task};

/// Prints one line per look, `ok`, `??`, `!!`, or `--` for one that was left out, with what mends it below; fails with the first thing that
/// has to be mended.
pub async fn check(
    config: &Config,
    around: &Surroundings,
    voice: Voice,
    print: impl Fn(&str),
) -> Result<Ended, Failure> {
    let tasks = Tasks::new();
    let first = RefCell::new(None);
    let say = |what: &str, found: Finding| {
        let (mark, text, mend) = match found {
            Finding::Good(text) => ("ok", text, None),
            Finding::Odd(text, mend) => ("??", text, Some(mend)),
            Finding::Bad(failure, mend) => {
                let text = failure.to_string();
                first.borrow_mut().get_or_insert(failure);
                ("!!", text, mend)
            }
        };
        print(&format!("{mark}  {what:<11} {text}"));
        // Many a failure says itself what to do.
        if let Some(mend) = mend.filter(|mend| !text.contains(mend.as_str())) {
            print(&format!("    {:<11} {mend}", "mend"));
        }
    };
    say("config", looks::file(config));
    match reach(config, around).await {
        Ok(engine) => {
            say("engine", looks::engine(&engine).await);
            say("rights", looks::rights(around));
            say("network", looks::network(&engine, config, around).await);
            say("images", looks::images(&engine).await);
        }
        Err(failure) => say("engine", looks::no_engine(failure, around)),
    }
    say("routes", looks::routes(config));
    say("shell", looks::shell(around));
    match Host::open(config, around, &tasks, &voice, Recorder::default()).await {
        Ok(host) => {
            say("credential", looks::credential(&host, config));
            say("clock", looks::clock(&host).await);
            for (account, found) in looks::tokens(&host, config).await {
                say("token", looks::token(&host, account, found));
            }
            say("project", looks::project(&host, config));
            tasks.finish(Duration::from_secs(1)).await;
        }
        Err(failure) => say("credential", Finding::failed(failure)),
    }
    if first.borrow().is_none() {
        let quiet = Voice::new(Form::Quiet, std::io::sink());
        say("container", inside(config, around, quiet).await);
    } else {
        print(&format!("--  {:<11} not tried: mend the above first", "container"));
    }
    first.into_inner().map_or(Ok(Ended::Done), Err)
}

/// The whole way, once: a session, and in it a container of our own image that asks for a token.
async fn inside(config: &Config, around: &Surroundings, voice: Voice) -> Finding {
    let identity = config.policy.default.clone().or_else(|| config.identities.values().next().cloned());
    let Some(identity) = identity else { return "no identity to try one with".to_string().into() };
    let house = match House::open(config, around, "run", voice).await {
        Ok(house) => house,
        Err(failure) => return Finding::failed(failure),
    };
    let outcome = probe(&house, identity).await;
    house.close(false).await;
    match outcome {
        Ok(text) => text.into(),
        Err(failure) => Finding::failed(failure),
    }
}

async fn probe(house: &House, identity: Arc<Identity>) -> Result<String, Failure> {
    let (engine, session) = (&house.session.engine, &house.session);
    let cell = house.cell().await?;
    let relay = cell.as_ref().map_or(session.relay, |cell| cell.relay);
    let made = engine.make_probe(&session.image, SocketAddrV4::new(relay, 80), None).await?;
    let container =
        ContainerId::parse(&made).ok_or_else(|| Failure::Engine(format!("{made} is no container id")))?;
    let task = Arc::new(Task { image: "probe".into(), ..Task::default() });
    let attached =
        house.lifecycle.attach(Grant { container, identity, by: By::Default, task }, cell.into()).await;
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
