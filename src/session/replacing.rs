//! Serves the tunnel of a network's relay, and replaces a relay that died.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::relay_image::LoadedImage;
use super::{BACK_WITHIN, MetadataNetwork};
use crate::console::Console;
use crate::docker::EngineError;
use crate::docker::relay::Tunnel;
use crate::process::Tasks;
use crate::server::Server;

impl MetadataNetwork {
    /// Serves the tunnel and replaces the relay whenever it dies, until the session stops. Calls `renewed`
    /// with the id of every relay after the first, and its image.
    pub async fn keep_relay(
        self: Arc<Self>,
        server: Arc<Server>,
        first: Tunnel,
        tasks: Tasks,
        console: Console,
        renewed: impl Fn(&str, &LoadedImage) + Send + 'static,
    ) -> Result<(), EngineError> {
        let (mut tunnel, mut image) = (first, self.image.clone());
        loop {
            let relay = tunnel.container.clone();
            tokio::select! {
                () = tasks.stop().cancelled() => return Ok(()),
                () = server.clone().serve_tunnel(tunnel.io, self.tunnel_end()) => {}
            }
            let died = Instant::now();
            tracing::debug!(relay, "the relay is gone; starting another");
            tunnel = self.replace_relay(&relay, &mut image, &tasks, &console).await?;
            renewed(&tunnel.container, &image);
            console
                .notice(format!("the relay died and was replaced after {} ms", died.elapsed().as_millis()));
        }
    }

    /// Removes the old relay first: the new one needs its address and its name.
    async fn replace_relay(
        &self,
        old: &str,
        image: &mut LoadedImage,
        tasks: &Tasks,
        console: &Console,
    ) -> Result<Tunnel, EngineError> {
        let deadline = Instant::now() + BACK_WITHIN;
        let mut refused = None;
        loop {
            let attempt = async {
                let _ = self.engine.remove(old).await;
                self.known.remove(old);
                self.start_again(image, console).await
            };
            // An engine that is shutting down may leave a call unanswered.
            let error = match timeout_at(deadline, attempt).await {
                Ok(Ok(tunnel)) => return Ok(tunnel),
                Ok(Err(error)) => error,
                Err(_) => refused.take().unwrap_or_else(|| EngineError::silent("start the relay")),
            };
            if Instant::now() > deadline || tasks.stop().is_cancelled() {
                return Err(error);
            }
            tracing::debug!(%error, "no relay yet");
            refused = Some(error);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Starts the relay. Its image may be gone: while no relay runs, the engine removes it for whoever asks.
    async fn start_again(&self, image: &mut LoadedImage, console: &Console) -> Result<Tunnel, EngineError> {
        match self.start_relay(image).await {
            Err(error) if error.is_gone() => match image.load_again(&self.engine, console).await? {
                true => self.start_relay(image).await,
                false => Err(error), // something else is gone: the network
            },
            started => started,
        }
    }
}
