//! `kfp-creds check`: probes everything that could prevent a session, and prints the command that fixes each
//! problem. Changes nothing permanently: what it makes it removes again.

mod clouds;
mod finding;
mod hints;
mod probes;

use std::cell::RefCell;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::app::credentials::Credentials;
use crate::app::reach::reach;
use crate::app::session::Session;
use finding::Finding;

use crate::config::{Config, Environment};
use crate::console::{Console, OutputForm};
use crate::docker::proxy::Attachment;
use crate::failure::{Ended, Failure, Reason, Remedy};
use crate::process::Tasks;
use crate::record::Recorder;
use crate::workload::{By, ContainerId, Grant, Identity, Task};

/// Prints one line per probe, `ok`, `??`, `!!`, or `--` for one that was left out, followed by its fix; fails
/// with the first failure.
pub async fn check(
    config: &Config,
    env: &Environment,
    console: Console,
    print: impl Fn(&str),
) -> Result<Ended, Failure> {
    let tasks = Tasks::new();
    let first = RefCell::new(None);
    let say = |what: &str, found: Finding| {
        let (mark, text, fix) = match found {
            Finding::Good(text) => ("ok", text, None),
            Finding::Odd(text, fix) => ("??", text, Some(fix)),
            Finding::Bad(failure, fix) => {
                let text = failure.to_string();
                first.borrow_mut().get_or_insert(failure);
                ("!!", text, fix)
            }
        };
        print(&format!("{mark}  {what:<11} {text}"));
        // Many failures already contain their fix.
        if let Some(fix) = fix.filter(|fix| !text.contains(fix.as_str())) {
            print(&format!("    {:<11} {fix}", "fix"));
        }
    };
    say("config", probes::file(config));
    match reach(config, env).await {
        Ok(engine) => {
            say("engine", probes::engine(&engine).await);
            say("rights", probes::rights(env));
            say("network", probes::network(&engine, config, env).await);
            say("images", probes::images(&engine).await);
        }
        Err(failure) => say("engine", probes::no_engine(failure, env)),
    }
    say("routes", probes::routes(config));
    say("shell", probes::shell(env));
    match Credentials::open(config, env, &tasks, &console, Recorder::default()).await {
        Ok(credentials) => {
            if credentials.has_google {
                say("credential", probes::credential(&credentials, config));
                say("clock", probes::clock(&credentials).await);
                for (account, found) in probes::tokens(&credentials, config).await {
                    say("token", probes::token(&credentials, account, found));
                }
                say("project", probes::project(&credentials, config));
            }
            for (word, found) in clouds::probes(&credentials, config).await {
                say(word, found);
            }
            tasks.finish(Duration::from_secs(1)).await;
        }
        Err(failure) => say("credential", Finding::failed(failure)),
    }
    if first.borrow().is_none() {
        let quiet = Console::new(OutputForm::Quiet, std::io::sink());
        say("container", inside(config, env, quiet).await);
    } else {
        print(&format!("--  {:<11} not tried: fix the above first", "container"));
    }
    first.into_inner().map_or(Ok(Ended::Done), Err)
}

/// Tests the whole path once: opens a session, and in it a container of our own image requests a token.
async fn inside(config: &Config, env: &Environment, console: Console) -> Finding {
    let identity = config.policy.default.clone().or_else(|| config.identities.values().next().cloned());
    let Some(identity) = identity else { return "no identity to try one with".to_string().into() };
    let opened = match Session::open(config, env, "run", console).await {
        Ok(opened) => opened,
        Err(failure) => return Finding::failed(failure),
    };
    let outcome = probe(&opened, identity).await;
    opened.close(false).await;
    match outcome {
        Ok(text) => text.into(),
        Err(failure) => Finding::failed(failure),
    }
}

async fn probe(opened: &Session, identity: Arc<Identity>) -> Result<String, Failure> {
    let (engine, metadata) = (&opened.metadata.engine, &opened.metadata);
    let place = opened.place().await?;
    let (relay, linked) = match &place {
        Attachment::Cell(cell) => (cell.relay, None),
        Attachment::Linked(address) => (metadata.relay, Some(address)),
        Attachment::Shared | Attachment::Loopback(_) => (metadata.relay, None),
    };
    let made = engine.make_probe(&metadata.image.id, SocketAddrV4::new(relay, 80), linked, None).await?;
    let container = ContainerId::parse(&made)
        .ok_or_else(|| Failure::Engine(format!("{made} is not a container id").into()))?;
    let task = Arc::new(Task { image: "probe".into(), ..Task::default() });
    let attached = opened
        .lifecycle
        .attach(Grant { container, identity, by: By::Default, task, secret: None }, place)
        .await;
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
        1 => Err(Failure::NoCredential("reached the server but got no token: see the lines above".into())),
        _ => {
            let text = format!(
                "did not reach {relay}: does a firewall of this machine drop traffic inside Docker networks?"
            );
            Err(Failure::Engine(Reason::new(text, Remedy::OpenFirewall)))
        }
    }
}
