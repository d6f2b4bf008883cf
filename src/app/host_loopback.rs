//! `network.host_loopback`: a listener for containers on this machine's network, if the engine shares its
//! loopback.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::broken;
use crate::config::Config;
use crate::console::Console;
use crate::docker::{EngineError, Product};
use crate::failure::Failure;
use crate::loopback::{Path, Paths};
use crate::process::{Tasks, listen};
use crate::server::{LoopbackCallers, Server};
use crate::session::MetadataNetwork;

/// The time limit of the container that tests it.
const PROOF_WITHIN: Duration = Duration::from_secs(10);

/// A bound listener that is not served yet.
#[derive(Debug)]
pub(super) struct Bound {
    listener: TcpListener,
    pub(super) paths: Paths,
}

/// `None` if the config does not enable it.
pub(super) fn bind(config: &Config) -> Result<Option<Bound>, Failure> {
    if !config.host_loopback {
        return Ok(None);
    }
    let failed = |error| broken("listen on loopback (network.host_loopback)", error);
    let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).map_err(failed)?;
    let SocketAddr::V4(at) = listener.local_addr().map_err(failed)? else {
        return Err(failed(std::io::ErrorKind::AddrNotAvailable.into()));
    };
    Ok(Some(Bound { listener, paths: Paths::new(at) }))
}

/// Serves the listener, if there is one and the engine shares the loopback.
pub(super) async fn proved(
    bound: Option<Bound>,
    session: &MetadataNetwork,
    server: &Arc<Server>,
    console: &Console,
    tasks: &Tasks,
) -> Option<Paths> {
    bound?.proved(session, server, console, tasks).await
}

impl Bound {
    /// Serves the listener once a container on the engine's host network has reached it. Nothing else proves
    /// that the two loopbacks are the same: the engine may run in a VM that forwards its socket, in its own
    /// namespace, or elsewhere. `None`, with a notice, if they are not the same.
    async fn proved(
        self,
        session: &MetadataNetwork,
        server: &Arc<Server>,
        console: &Console,
        tasks: &Tasks,
    ) -> Option<Paths> {
        let stop = tasks.stop().child_token();
        let (at, entrance) = (self.paths.at(), LoopbackCallers::Leases(self.paths.clone()));
        let serving = server.clone().serve_listener(self.listener, entrance, stop.clone(), tasks.clone());
        tasks.spawn("host loopback", serving);
        let Err(why) = prove(session, at, &self.paths).await else { return Some(self.paths) };
        stop.cancel();
        console.notice(format!(
            "network.host_loopback: containers on the host's network get no identity, because {why}"
        ));
        None
    }
}

async fn prove(session: &MetadataNetwork, at: SocketAddrV4, paths: &Paths) -> Result<(), String> {
    let engine = &session.engine;
    if engine.product() == Product::Podman {
        return Err("that needs Docker Engine".into());
    }
    if engine.upstream().endpoint().socket().is_none() {
        return Err("the engine is another machine's".into());
    }
    let path: Path = paths.take().ok_or("the system has no random numbers")?;
    let below = format!("/{}", path.segment());
    let failed = |error: EngineError| format!("no container could be run there: {error}");
    let container = engine.make_probe(&session.image.id, at, None, Some(&below)).await.map_err(failed)?;
    let ran = tokio::time::timeout(PROOF_WITHIN, engine.run_to_end(&container)).await;
    let removed = engine.remove(&container).await;
    if let Err(error) = removed {
        // That says nothing about the loopback.
        tracing::warn!(%error, %container, "the probe of network.host_loopback is left behind");
    }
    match ran {
        _ if path.was_asked() => Ok(()),
        Ok(Err(error)) => Err(failed(error)),
        Ok(Ok(_)) | Err(_) => {
            Err("the engine's loopback is not this machine's: it runs in a VM, rootless or in a namespace"
                .into())
        }
    }
}
