//! The engine that a session uses, and what is different when it is another machine's.

use crate::config::{Config, Environment, engine};
use crate::docker::upstream::Upstream;
use crate::docker::{Engine, proxy};
use crate::failure::Failure;

/// The engine, past a proxy of ours if there is one: a session inside a session stands beside it.
pub(super) async fn reach(config: &Config, env: &Environment) -> Result<Engine, Failure> {
    let mut endpoint =
        engine::endpoint(config.engine.as_deref(), config.plain_tcp, env).map_err(Failure::Engine)?;
    if let Some(socket) = endpoint.socket()
        && let Some(behind) = proxy::upstream_of(socket).await
    {
        endpoint = behind;
    }
    Ok(Engine::reach(Upstream::new(endpoint).map_err(Failure::Engine)?).await?)
}

/// One line where the paths of creates are not this machine's.
pub(super) fn what_paths_mean(engine: &Engine) -> Option<String> {
    let endpoint = engine.upstream().endpoint();
    endpoint.socket().is_none().then(|| {
        format!(
            "the engine is at {endpoint}: what containers bind are paths of that machine, not of this one (a \
             pipeline root too), and whether they hold keys is not verified"
        )
    })
}
