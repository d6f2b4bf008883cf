//! The image from which a session starts its relay.

use std::path::{Path, PathBuf};

use crate::config::RelaySource;
use crate::console::{Console, Line};
use crate::docker::{Engine, EngineError, relays};
use crate::failure::Reason;

const WHAT: &str = "make the relay image";

/// The relay's image at the engine, and where it comes from.
#[derive(Clone, Debug)]
pub struct LoadedImage {
    pub id: String,
    pub name: String,
    from: RelaySource,
    /// The lock of starts.
    lock: PathBuf,
}

impl LoadedImage {
    /// Loads the image if the engine does not have it; the caller holds `lock`.
    pub(super) async fn load(
        engine: &Engine,
        from: &RelaySource,
        lock: PathBuf,
        console: &Console,
    ) -> Result<Self, EngineError> {
        let (id, name) = ensure(engine, from, console).await?;
        Ok(Self { id, name, from: from.clone(), lock })
    }

    /// Loads the image again if somebody has removed it; false if the engine has it.
    pub(super) async fn load_again(
        &mut self,
        engine: &Engine,
        console: &Console,
    ) -> Result<bool, EngineError> {
        if engine.has_image(&self.id).await? {
            return Ok(false);
        }
        let _lock = super::lock(&self.lock).await?;
        (self.id, self.name) = ensure(engine, &self.from, console).await?;
        Ok(true)
    }
}

/// The image's id and name, once the engine has it.
async fn ensure(
    engine: &Engine,
    from: &RelaySource,
    console: &Console,
) -> Result<(String, String), EngineError> {
    let arch = engine.architecture().to_owned();
    if let Some(image) = &from.image {
        return pinned(engine, image, from.folder.as_deref(), console).await.map(|id| (id, image.clone()));
    }
    let folder = from.folder.clone();
    let relay = made(move || relays::relay_for(&arch, folder.as_deref())).await?;
    if let Some(id) = engine.find_relay_image(&relay).await? {
        return Ok((id, relay.reference()));
    }
    console.say(Line::Progress { text: "loading the relay image into the engine (once per build)" });
    Ok((engine.load_relay_image(&relay).await?, relay.reference()))
}

/// The operator's own image, which the operator brought to the engine.
async fn pinned(
    engine: &Engine,
    image: &str,
    folder: Option<&Path>,
    console: &Console,
) -> Result<String, EngineError> {
    let (arch, folder) = (engine.architecture().to_owned(), folder.map(Path::to_owned));
    let ours = made(move || relays::alone(&arch, folder.as_deref())).await?;
    match engine.find_pinned_image(image, ours.as_ref()).await? {
        Some((id, same)) => {
            if !same {
                console.notice(
                    "relay_image is not the relay of this version: make it again, by kfp-creds relay-image",
                );
            }
            Ok(id)
        }
        None => Err(EngineError::Broken(
            "use relay_image",
            Reason::advice(format!("the engine does not have it: docker pull {image}")),
        )),
    }
}

/// Off the serving thread: programs are read and hashed.
async fn made<T: Send + 'static>(
    make: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, EngineError> {
    let made = tokio::task::spawn_blocking(make).await;
    made.map_err(|error| EngineError::Broken(WHAT, error.to_string().into()))?
        .map_err(|why| EngineError::Broken(WHAT, Reason::advice(why)))
}
