//! The loopback listeners: that of `serve --listen`, for programs without Docker, and that of
//! `network.host_loopback`, for containers on this machine's network.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::caller::Caller;
use super::{HOLD, LeaseEnded, Server, own_source, respond};
use crate::loopback::Paths;
use crate::metadata::{self, Entered, RequestHead, Service, TokenFailure};
use crate::process::{OWN_SOURCE, Tasks, accept_each};
use crate::secret::Secret;
use crate::token::Now;
use crate::unparsable::Flavored;
use crate::workload::Identity;

/// The callers that a loopback listener admits. Every user of the machine can reach a loopback port.
#[derive(Debug)]
pub enum LoopbackCallers {
    /// Programs on this machine, all as `identity`. With a capability, every path must begin with it.
    Local { identity: Arc<Identity>, capability: Option<Secret<String>> },
    /// Containers on this machine's network, each with its own path.
    Leases(Paths),
}

impl Server {
    /// Serves the protocol on loopback, until `stop`.
    pub async fn serve_listener(
        self: Arc<Self>,
        listener: TcpListener,
        entrance: LoopbackCallers,
        stop: CancellationToken,
        tasks: Tasks,
    ) {
        let entrance = Arc::new(entrance);
        let serve = |(stream, _): (TcpStream, _)| {
            let _ = stream.set_nodelay(true);
            let (this, entrance, stop) = (self.clone(), entrance.clone(), stop.clone());
            tasks.spawn("local connection", async move {
                let service =
                    service_fn(move |request| this.clone().from_loopback(request, entrance.clone()));
                let serving = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(75))
                    .max_buf_size(16 * 1024)
                    .serve_connection(TokioIo::new(Flavored::new(stream)), service);
                tokio::select! {
                    () = stop.cancelled() => {}
                    served = serving => if let Err(error) = served {
                        tracing::debug!(%error, "a local connection ended");
                    }
                }
            });
        };
        accept_each(&stop, || listener.accept(), serve).await;
    }

    async fn from_loopback(
        self: Arc<Self>,
        request: Request<Incoming>,
        entrance: Arc<LoopbackCallers>,
    ) -> Result<Response<Full<Bytes>>, LeaseEnded> {
        let arrived = Now::read();
        let deadline = arrived.mono + HOLD;
        let (head, _) = request.into_parts();
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        let Some((caller, secret, target)) = self.identify(&entrance, target, deadline).await else {
            // The same reply on every path, and never a success: a caller learns nothing about the paths
            // behind a secret.
            let reply =
                metadata::failure_reply(Service::Google, TokenFailure::IdentityRefused, "no such path");
            return Ok(respond(reply));
        };
        if head.headers.contains_key(OWN_SOURCE) {
            return Ok(own_source(target));
        }
        let host = head.headers.get(hyper::header::HOST).and_then(|host| host.to_str().ok());
        let host = head.uri.authority().map(|named| named.as_str()).or(host);
        let request_head = RequestHead {
            method: &head.method,
            target,
            host,
            headers: &head.headers,
            entered: secret.map_or(Entered::Open, Entered::Secret),
            // Only a container's request may have waited, for its lease.
            now: if matches!(*entrance, LoopbackCallers::Leases(_)) { Now::read() } else { arrived },
        };
        let mut reply = self.answer(caller, &request_head, deadline).await?;
        if let Some(secret) = secret {
            keep_secret_in_redirect(secret, reply.headers_mut());
        }
        Ok(reply)
    }

    /// The caller, the secret in `target` and the rest of `target`. `None` if the secret is unknown or its
    /// lease has ended: the caller must not learn which.
    async fn identify<'a>(
        &self,
        entrance: &LoopbackCallers,
        target: &'a str,
        deadline: Instant,
    ) -> Option<(Caller, Option<&'a str>, &'a str)> {
        match entrance {
            LoopbackCallers::Local { identity, capability: None } => {
                Some((Caller::Local(identity.clone()), None, target))
            }
            LoopbackCallers::Local { identity, capability: Some(capability) } => {
                let (secret, rest) = under(capability, target)?;
                Some((Caller::Local(identity.clone()), Some(secret), rest))
            }
            LoopbackCallers::Leases(paths) => {
                let (address, secret, rest) = paths.find(target)?;
                if !self.reader.has(address) {
                    return None;
                }
                let lease = self.reader.ask(address, deadline).await?;
                Some((Caller::Container(lease), Some(secret), rest))
            }
        }
    }
}

/// The capability as given in `target`, compared in constant time, and the rest of `target`.
pub(crate) fn under<'a>(capability: &Secret<String>, target: &'a str) -> Option<(&'a str, &'a str)> {
    let rest = target.strip_prefix('/')?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (given, rest) = rest.split_at(end);
    capability.is(given).then_some((given, if rest.is_empty() { "/" } else { rest }))
}

/// Adds the secret to a redirect's path, so that the caller can follow it. The caller has sent the secret
/// itself.
fn keep_secret_in_redirect(secret: &str, headers: &mut HeaderMap) {
    let location = headers.get(hyper::header::LOCATION).and_then(|location| location.to_str().ok());
    let Some((host, path)) = location.and_then(|at| at.strip_prefix("http://")?.split_once('/')) else {
        return;
    };
    if let Ok(location) = HeaderValue::from_str(&format!("http://{host}/{secret}/{path}")) {
        headers.insert(hyper::header::LOCATION, location);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_is_the_whole_first_segment() {
        let capability = Secret::new("s3cr3t".to_string());
        let rest = |target| under(&capability, target).map(|(_, rest)| rest);
        assert_eq!(rest("/s3cr3t/computeMetadata/v1/?a=b"), Some("/computeMetadata/v1/?a=b"));
        assert_eq!(rest("/s3cr3t"), Some("/"));
        for bad in ["/", "/s3cr3", "/s3cr3tx/a", "/computeMetadata/v1/", "s3cr3t/", "//s3cr3t/a"] {
            assert_eq!(rest(bad), None, "{bad}");
        }
    }
}
