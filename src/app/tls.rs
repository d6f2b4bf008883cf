//! `serve --tls`: the Docker API on TCP as well, for clients that cannot open the session's socket, such as those on
//! the other side of a virtual machine's border.

use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use tokio::net::TcpListener;

use super::broken;
use super::runtime_dir::{private_folder, runtime_folder};
use super::session::Session;
use crate::certificates::{Certificates, Folder};
use crate::config::Environment;
use crate::console::Console;
use crate::docker::proxy::serve_tls;
use crate::failure::Failure;

/// The options of `serve` about TLS.
#[derive(Clone, Copy, Debug)]
pub struct TlsOptions<'a> {
    /// The folder with the clients' certificate.
    pub folder: &'a Path,
    pub at: SocketAddr,
}

/// Variables that keep Docker's clients from using this listener: another engine, and in Python another
/// authority than `ca.pem`.
pub(super) const UNSET: [&str; 3] = ["DOCKER_CONTEXT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];

/// The folder and the port, taken before anything is started.
#[derive(Debug)]
pub(super) struct Tls {
    folder: Folder,
    listener: TcpListener,
    at: SocketAddr,
}

impl Tls {
    pub(super) async fn take(ask: TlsOptions<'_>) -> Result<Self, Failure> {
        let failed = |error| broken(&format!("--tls-listen {}", ask.at), error);
        let listener = TcpListener::bind(ask.at).await.map_err(failed)?;
        let at = listener.local_addr().map_err(failed)?;
        let folder = Folder::take(ask.folder).map_err(|why| Failure::NotPermitted(format!("--tls {why}")))?;
        Ok(Self { folder, listener, at })
    }

    /// Serves `session`; returns the variables that lead Docker's clients here, and what is to be kept until the
    /// session has ended.
    pub(super) fn serve(
        self,
        session: &Session,
        env: &Environment,
        console: &Console,
    ) -> Result<([(String, String); 3], Folder), Failure> {
        let Self { mut folder, listener, at } = self;
        let id = &session.metadata.network.session;
        let certificates =
            Certificates::make(id, at.ip(), SystemTime::now()).map_err(|why| broken("--tls", why))?;
        folder
            .write(&certificates, id, &private_folder(&runtime_folder(env))?)
            .map_err(|error| broken("write the certificates of --tls", error))?;
        session
            .tasks
            .spawn("TLS proxy", serve_tls(listener, certificates.server.clone(), session.proxy.clone()));
        if !at.ip().is_loopback() {
            console.notice(format!(
                "the Docker API is open to the network on {at}, to whoever has the key.pem of --tls"
            ));
        }
        for name in UNSET.into_iter().skip(1).filter(|name| env.variable(name).is_some()) {
            console.notice(format!(
                "{name} is set: Python's Docker client trusts it in place of ca.pem; unset it where pipelines start"
            ));
        }
        // Clients cannot connect to the unspecified address; the operator who publishes the port knows a better one.
        let to = if at.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], at.port())) } else { at };
        let variables = [
            ("DOCKER_HOST".into(), format!("tcp://{to}")),
            ("DOCKER_TLS_VERIFY".into(), "1".into()),
            ("DOCKER_CERT_PATH".into(), folder.path().to_string_lossy().into_owned()),
        ];
        Ok((variables, folder))
    }
}
