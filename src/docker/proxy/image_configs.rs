//! What images add to the containers created from them, cached for a few seconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::engine_client::Refusal;
use super::lookups::Lookups;
use super::wiring::is_ours;
use crate::docker::labels::SESSION_LABEL;
use crate::json::{items, strings};

/// How long an image's config is cached: a tag may get another image.
const FRESH: Duration = Duration::from_secs(5);

/// What an image adds to the containers created from it.
#[derive(Debug, Default)]
pub(super) struct ImageConfig {
    /// Entries `NAME=value`.
    pub(super) env: Vec<String>,
    pub(super) has_entrypoint: bool,
}

/// The configs of images, by the reference in the request.
#[derive(Debug)]
pub(super) struct ImageConfigs {
    lookups: Lookups,
    found: Mutex<HashMap<String, (Instant, Arc<ImageConfig>)>>,
}

impl ImageConfigs {
    pub(super) fn new(lookups: Lookups) -> Self {
        Self { lookups, found: Mutex::default() }
    }

    /// Empty if the engine does not have the image: the create will fail anyway.
    pub(super) async fn of(&self, reference: &str) -> Result<Arc<ImageConfig>, Refusal> {
        if reference.is_empty() {
            return Ok(Arc::default());
        }
        let now = Instant::now();
        if let Some((_, image)) = self.fresh(now).get(reference) {
            return Ok(image.clone());
        }
        let Some(found) = self.lookups.image(reference).await? else { return Ok(Arc::default()) };
        let config = &found["Config"];
        // The label shows an image that was committed from an attached container, by a session that left our
        // variables in it or past the proxy.
        let committed = config["Labels"][SESSION_LABEL].is_string();
        // A variable without a value does not count.
        let counts = |set: &&str| set.contains('=') && !(committed && is_ours(set));
        let image = Arc::new(ImageConfig {
            env: strings(&config["Env"]).filter(counts).map(Into::into).collect(),
            has_entrypoint: items(&config["Entrypoint"]).next().is_some(),
        });
        self.fresh(now).insert(reference.into(), (now, image.clone()));
        Ok(image)
    }

    fn fresh(&self, now: Instant) -> MutexGuard<'_, HashMap<String, (Instant, Arc<ImageConfig>)>> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.retain(|_, (asked, _)| now.duration_since(*asked) < FRESH);
        found
    }
}
