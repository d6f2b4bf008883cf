//! `relay-image`: the relay's image as a file, for those who bring it to their engines by a registry.

use std::fs;
use std::path::Path;

use super::broken;
use crate::config::Config;
use crate::docker::{image, relays};
use crate::failure::{Ended, Failure};
use crate::quote;

/// Writes what `docker load` takes, and prints the image's name in it.
pub fn relay_image(
    config: &Config,
    arch: Option<&str>,
    file: &Path,
    print: impl Fn(&str),
) -> Result<Ended, Failure> {
    let arch = arch.unwrap_or_else(|| image::own_architecture());
    let relay = relays::relay_for(arch, config.relay.folder.as_deref()).map_err(Failure::Usage)?;
    let cannot = |error| broken(&quote::path(file), error);
    fs::write(file, relay.archive().map_err(cannot)?).map_err(cannot)?;
    print(&relay.reference());
    Ok(Ended::Done)
}
