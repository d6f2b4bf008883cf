//! Finds this user's sessions by their control sockets, and sends requests to them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::runtime_dir::runtime_folder;
use crate::config::Environment;
use crate::failure::Failure;
use crate::quote;

/// A session gives a call to the cloud 25 s.
const WITHIN: Duration = Duration::from_secs(30);

/// A session that answers.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) session: String,
    socket: PathBuf,
}

/// All sessions of this user, ordered by id, or the one of this id or name.
pub(super) async fn find(env: &Environment, wanted: Option<&str>) -> Result<Vec<Peer>, Failure> {
    let folder = runtime_folder(env);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        let socket = entry.path();
        // A name is a link to a session that is also listed by its id.
        let all = wanted.is_none() && !socket.is_symlink();
        let Some(session) = name_of(&socket).filter(|name| all || wanted == Some(name)) else { continue };
        // A killed session leaves its socket, but nothing listens on it.
        if UnixStream::connect(&socket).await.is_ok() {
            found.push(Peer { session, socket });
        }
    }
    found.sort_by(|a, b| a.session.cmp(&b.session));
    match wanted {
        Some(wanted) if found.is_empty() => {
            Err(Failure::Engine(format!("no session {} runs", quote::name(wanted)).into()))
        }
        _ => Ok(found),
    }
}

fn name_of(socket: &Path) -> Option<String> {
    let control = socket.extension().is_some_and(|extension| extension == "ctl");
    control.then(|| Some(socket.file_stem()?.to_str()?.to_owned())).flatten()
}

impl Peer {
    /// The body of a successful answer; any other answer is a failure with its text.
    pub(super) async fn call(&self, method: &str, target: &str) -> Result<String, Failure> {
        let call = tokio::time::timeout(WITHIN, self.exchange(method, target)).await;
        let lost = |why: String| Failure::Engine(format!("session {}: {why}", self.session).into());
        let (status, body) = call.map_err(|_| lost("does not answer".into()))?.map_err(lost)?;
        let text = String::from_utf8_lossy(&body).into_owned();
        let said = text.trim_end();
        match status.as_u16() {
            200..300 => Ok(text),
            // The session knows the target and refuses; no other session may do it either.
            409 => Err(Failure::Usage(said.to_owned())),
            // A request of the session to the engine or the cloud failed.
            502 => Err(Failure::NotPermitted(said.to_owned())),
            _ => Err(Failure::NotFound(said.to_owned())),
        }
    }

    async fn exchange(&self, method: &str, target: &str) -> Result<(hyper::StatusCode, Bytes), String> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let request = Request::builder().method(method).uri(target).header(HOST, "localhost");
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
        let asking = async {
            let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = answer.status();
            let body = answer.into_body().collect().await.map_err(|error| error.to_string())?;
            Ok((status, body.to_bytes()))
        };
        tokio::pin!(asking);
        let mut connection = std::pin::pin!(connection);
        // The connection ends before the whole answer is read only if it broke.
        tokio::select! {
            answer = &mut asking => answer,
            _ = &mut connection => asking.await,
        }
    }
}
