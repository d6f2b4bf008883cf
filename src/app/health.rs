//! `kfp-creds health`: whether a session, or a metadata server on loopback, serves; the exit code is for
//! health checks.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::sessions;
use super::status::Status;
use crate::config::Environment;
use crate::failure::{Ended, Failure};
use crate::process::OWN_SOURCE;

/// Enough, because the server is on this machine.
const WITHIN: Duration = Duration::from_secs(5);
/// More than the head of any answer of ours.
const HEAD: u64 = 8 << 10;

/// Checks the session of this name or id, or all of this user's; fails with the first that does not serve.
pub async fn health(env: &Environment, session: Option<&str>) -> Result<Ended, Failure> {
    let peers = sessions::find(env, session).await?;
    if peers.is_empty() {
        return Err(Failure::Engine("no session runs".into()));
    }
    for peer in peers {
        let said = peer.call("GET", "/status").await?;
        let status: Status = serde_json::from_str(&said)
            .map_err(|_| Failure::Engine(format!("session {} is of another version", peer.session).into()))?;
        if let Some(why) = status.failing() {
            return Err(Failure::NoCredential(
                format!("session {}: no token is minted: {why}", peer.session).into(),
            ));
        }
    }
    Ok(Ended::Done)
}

/// Requests the first page of `serve --listen`. Any answer with Google's header counts, even the one that the secret
/// path is missing. The header of our own sources gets this answer also from a server whose identity has no Google.
pub async fn health_of_listener(at: SocketAddr) -> Result<Ended, Failure> {
    let asking = async {
        let mut stream = TcpStream::connect(at).await?;
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {at}\r\nMetadata-Flavor: Google\r\n{OWN_SOURCE}: 1\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(HEAD).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = match timeout(WITHIN, asking).await {
        Ok(answer) => answer.map_err(|error| Failure::Engine(format!("{at}: {error}").into()))?,
        Err(_) => {
            return Err(Failure::Engine(format!("{at}: no answer within {} s", WITHIN.as_secs()).into()));
        }
    };
    let head = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    if head.starts_with("http/1.1 ") && head.contains("\r\nmetadata-flavor: google\r\n") {
        return Ok(Ended::Done);
    }
    Err(Failure::Engine(format!("{at}: the server there is not a metadata server").into()))
}
