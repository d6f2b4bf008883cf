//! The relay with a network per container: one listener for each, bound to its interface.
//!
//! An address alone does not show from which network a request came: the kernel answers on every interface
//! for all of its addresses, and a container that kept `NET_RAW` can forge its packets. A listener bound to
//! an interface receives and answers only there, and a caller must have an address of that network. So the
//! caller's address identifies its network.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use hyper::Request;
use hyper::header::HeaderValue;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::links::{Link, Links};
use super::{Acceptor, Callers, LISTENS, TunnelClient, listen, serve};
use crate::process::Tasks;

/// The listener on the relay's own network, where no other container belongs. It receives the probe, which
/// comes from the same address. (The kernel drops packets from outside whose source is one of its own
/// addresses.)
pub(super) fn own_acceptor(at: Ipv4Addr) -> io::Result<Acceptor> {
    let network = Some(Link { index: 0, name: String::new(), address: at, prefix: 32 });
    Ok(Acceptor { listener: listen(at, None)?, network })
}

/// Serves every network that this namespace is connected to, now or later. The relay's own network is
/// excluded: its address is `at`, and `own` serves it. Returns only on an error.
pub(super) async fn serve_each(
    own: Acceptor,
    at: Ipv4Addr,
    client: TunnelClient,
    tasks: Tasks,
) -> io::Result<()> {
    let callers = Callers::default();
    tasks.spawn("own listener", serve(own, client.clone(), callers.clone(), tasks.clone()));
    let mut links = Links::open().await?;
    let mut open: HashMap<(u32, Ipv4Addr), DropGuard> = HashMap::new();
    loop {
        let found = links.changed().await?;
        let there = |key: &(u32, Ipv4Addr)| found.iter().any(|link| (link.index, link.address) == *key);
        open.retain(|key, _| there(key));
        for link in found {
            let key = (link.index, link.address);
            if link.address == at || link.address.is_loopback() || open.contains_key(&key) {
                continue;
            }
            match open_listener(&link, &client, &callers, &tasks) {
                Ok(guard) => drop(open.insert(key, guard)),
                Err(error) => tracing::warn!(%error, link.name, "cannot listen on an interface (Linux 5.7?)"),
            }
        }
    }
}

fn open_listener(
    link: &Link,
    client: &TunnelClient,
    callers: &Callers,
    tasks: &Tasks,
) -> io::Result<DropGuard> {
    let listener = listen(link.address, Some(&link.name))?;
    let (end, at) = (CancellationToken::new(), link.address);
    let acceptor = Acceptor { listener, network: Some(link.clone()) };
    let serving = serve(acceptor, client.clone(), callers.clone(), tasks.clone());
    let (ended, mut client) = (end.clone(), client.clone());
    tasks.spawn("listener", async move {
        if announce(at, &mut client).await.is_none() {
            return; // the tunnel is gone, and the relay ends
        }
        tokio::select! {
            () = ended.cancelled() => {}
            () = serving => {}
        }
    });
    Ok(end.drop_guard())
}

/// Tells the host that a container connected to this network can reach the relay from now on.
async fn announce(at: Ipv4Addr, client: &mut TunnelClient) -> Option<()> {
    let mut request = Request::new(http_body_util::Empty::new());
    *request.uri_mut() = hyper::Uri::from_static("http://host/");
    request.headers_mut().insert(LISTENS, HeaderValue::from_str(&at.to_string()).ok()?);
    client.ready().await.ok()?;
    client.send_request(request).await.ok().map(drop)
}

impl Acceptor {
    /// Whether this caller can be on this listener's network.
    pub(super) fn serves(&self, from: IpAddr) -> bool {
        match (&self.network, from) {
            (None, _) => true,
            (Some(link), IpAddr::V4(from)) => link.holds(from),
            (Some(_), IpAddr::V6(_)) => false,
        }
    }
}
