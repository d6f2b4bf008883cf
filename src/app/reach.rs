//! The engine that a session uses, and the differences if it is on another machine.

use crate::config::{Config, Environment, engine};
use crate::docker::upstream::EngineConnector;
use crate::docker::{Engine, proxy};
use crate::failure::Failure;

/// The engine, bypassing a proxy of ours: a session inside a session uses the same engine.
pub(super) async fn reach(config: &Config, env: &Environment) -> Result<Engine, Failure> {
    let endpoint = engine::endpoint(config.engine.as_deref(), config.plain_tcp, env);
    let mut endpoint = endpoint.map_err(Failure::Engine)?;
    if let Some(socket) = endpoint.socket()
        && let Some(behind) = proxy::upstream_of(socket).await
    {
        endpoint = behind;
    }
    Ok(Engine::reach(EngineConnector::new(endpoint).map_err(|why| Failure::Engine(why.into()))?).await?)
}

/// A notice if the paths in create requests are not this machine's.
pub(super) fn what_paths_mean(engine: &Engine) -> Option<String> {
    let endpoint = engine.upstream().endpoint();
    endpoint.socket().is_none().then(|| {
        format!(
            "the engine is at {endpoint}: what containers bind are paths of that machine, not of this one (a \
             pipeline root too), and whether they hold keys is not verified"
        )
    })
}
