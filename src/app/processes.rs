//! The metadata server on loopback, for processes of this machine: `serve --listen`, and `run --processes`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use tokio::net::TcpListener;

use super::broken;
use super::credentials::Credentials;
use super::page::capability;
use super::runtime_dir::private_folder;
use crate::config::Config;
use crate::console::Console;
use crate::failure::Failure;
use crate::process::Tasks;
use crate::record::Recorder;
use crate::registry;
use crate::server::{Entrance, Server};

/// Serves the default identity at `at` until the tasks stop. Unless `open`, every path begins with a
/// capability that only the variables contain, because every user of the machine can reach a loopback port.
/// Returns the address, and the variables that lead clients there.
pub(super) async fn serve(
    at: SocketAddr,
    open: bool,
    credentials: &Credentials,
    config: &Config,
    (tasks, console, recorder): (&Tasks, &Console, &Recorder),
) -> Result<(SocketAddr, Vec<(String, String)>), Failure> {
    let identity = config.policy.default.clone().ok_or_else(|| {
        Failure::Config("the default identity is none: name one in kfp-creds.toml to serve it".into())
    })?;
    let listener = TcpListener::bind(at).await.map_err(|e| broken(&format!("listen on {at}"), e))?;
    let at = listener.local_addr().map_err(|e| broken("listen", e))?;
    let capability = if open { None } else { Some(capability()?) };
    let (_writer, reader, _questions) = registry::new();
    let server = Server::new(
        reader,
        credentials.mint.clone(),
        credentials.views(config, Some(at.to_string())),
        Ipv4Addr::UNSPECIFIED,
        console.clone(),
        recorder.clone(),
    );
    // The only place that exposes the capability: the variables go to stdout or to the command of `run`.
    let place = match &capability {
        Some(capability) => format!("{at}/{}", capability.expose()),
        None => at.to_string(),
    };
    let entrance = Entrance::Local { identity, capability };
    tasks.spawn("listener", server.serve_listener(listener, entrance, tasks.stop().clone(), tasks.clone()));
    let names = ["GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"];
    Ok((at, names.map(|name| (name.to_owned(), place.clone())).to_vec()))
}

/// An empty directory in place of gcloud's, whose login file would take precedence over a metadata server. It
/// is removed with its content when this is dropped.
#[derive(Debug)]
pub(super) struct NoLogin(PathBuf);

impl NoLogin {
    /// Makes the directory beside the sockets, for the session `id`.
    pub(super) fn new(folder: &Path, id: &str) -> Result<Self, Failure> {
        let place = folder.join(format!("{id}.gcloud"));
        // That of a killed session whose network and id were taken over, with what gcloud wrote into it.
        let _ = std::fs::remove_dir_all(&place);
        private_folder(&place).map(Self)
    }

    pub(super) fn variable(&self) -> (String, String) {
        ("CLOUDSDK_CONFIG".into(), self.0.to_string_lossy().into_owned())
    }
}

impl Drop for NoLogin {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_without_a_login_is_emptied_at_the_start() {
        let folder = std::env::temp_dir().join(format!("kc-no-login-{}", std::process::id()));
        let place = folder.join("0badcafe.gcloud");
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join("application_default_credentials.json"), "{}").unwrap();
        let made = NoLogin::new(&folder, "0badcafe").unwrap();
        assert_eq!(made.variable().1, place.to_string_lossy());
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
        drop(made);
        assert!(!place.exists());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
