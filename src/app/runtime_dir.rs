//! The folder of the sessions' sockets, which only its user can enter.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::config::Environment;
use crate::failure::Failure;
use crate::quote;

/// Short, because a unix socket's path is limited to 107 bytes.
pub(super) fn runtime_folder(env: &Environment) -> PathBuf {
    match env.variable("XDG_RUNTIME_DIR") {
        Some(folder) if folder.len() < 60 => Path::new(folder).join("kfp-creds"),
        _ => PathBuf::from(format!("/tmp/kfp-creds-{}", rustix::process::getuid().as_raw())),
    }
}

/// A folder that only we can enter, because access to its sockets equals root on this machine.
pub(super) fn private_folder(folder: &Path) -> Result<PathBuf, Failure> {
    let broken = |why: String| Failure::NotPermitted(format!("the folder {}: {why}", quote::path(folder)));
    match DirBuilder::new().mode(0o700).recursive(true).create(folder) {
        Ok(()) => {}
        Err(error) => return Err(broken(error.to_string())),
    }
    let found = std::fs::symlink_metadata(folder).map_err(|e| broken(e.to_string()))?;
    let own = rustix::process::getuid().as_raw();
    if !found.is_dir() || std::os::unix::fs::MetadataExt::uid(&found) != own {
        return Err(broken("belongs to somebody else: remove it, or set XDG_RUNTIME_DIR".into()));
    }
    std::fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(|e| broken(e.to_string()))?;
    Ok(folder.into())
}

pub(super) fn listen(socket: &Path) -> io::Result<UnixListener> {
    // The socket of the dead session whose network was taken over.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, Permissions::from_mode(0o600))?;
    Ok(listener)
}
