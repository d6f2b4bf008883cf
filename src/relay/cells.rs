//! The relay where every container has a network of its own: a listener for each, bound to its interface.
//!
//! An address alone does not say from which network a request came: the kernel answers on every interface for
//! all of its addresses, and a container that kept `NET_RAW` writes what it likes into its packets. A listener
//! that is bound to an interface hears that interface only, and answers there only; and whoever calls must have
//! an address of that network. So the caller's address stands for the network it came from.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use hyper::Request;
use hyper::header::HeaderValue;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::links::{Link, Links};
use super::{Acceptor, Callers, Client, LISTENS, listen, serve};
use crate::process::Tasks;

/// On the relay's own network, where nobody else belongs: hears the probe, which comes from the address itself.
/// (The kernel takes no packet from outside with an address of its own.)
pub(super) fn own_acceptor(at: Ipv4Addr) -> io::Result<Acceptor> {
    let network = Some(Link { index: 0, name: String::new(), address: at, prefix: 32 });
    Ok(Acceptor { listener: listen(at, None)?, network })
}

/// Serves every network that this namespace is connected to, as they come and go, but not the relay's own, whose
/// address is `at` and which has `own`. Ends only with an error.
pub(super) async fn serve_each(own: Acceptor, at: Ipv4Addr, client: Client, tasks: Tasks) -> io::Result<()> {
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
            match opened(&link, &client, &callers, &tasks) {
                Ok(guard) => drop(open.insert(key, guard)),
                Err(error) => tracing::warn!(%error, link.name, "cannot listen on an interface (Linux 5.7?)"),
            }
        }
    }
}

fn opened(link: &Link, client: &Client, callers: &Callers, tasks: &Tasks) -> io::Result<DropGuard> {
    let listener = listen(link.address, Some(&link.name))?;
    let (end, at) = (CancellationToken::new(), link.address);
    let acceptor = Acceptor { listener, network: Some(link.clone()) };
    let serving = serve(acceptor, client.clone(), callers.clone(), tasks.clone());
    let (ended, mut client) = (end.clone(), client.clone());
    tasks.spawn("listener", async move {
        if tell(at, &mut client).await.is_none() {
            return; // the tunnel is gone, and everything ends
        }
        tokio::select! {
            () = ended.cancelled() => {}
            () = serving => {}
        }
    });
    Ok(end.drop_guard())
}

/// Tells the host that a container which is connected to this network from now on will find us.
async fn tell(at: Ipv4Addr, client: &mut Client) -> Option<()> {
    let mut news = Request::new(http_body_util::Empty::new());
    *news.uri_mut() = hyper::Uri::from_static("http://host/");
    news.headers_mut().insert(LISTENS, HeaderValue::from_str(&at.to_string()).ok()?);
    client.ready().await.ok()?;
    client.send_request(news).await.ok().map(drop)
}

impl Acceptor {
    /// Whether this caller can be from the network of this listener.
    pub(super) fn knows(&self, from: IpAddr) -> bool {
        match (&self.network, from) {
            (None, _) => true,
            (Some(link), IpAddr::V4(from)) => link.holds(from),
            (Some(_), IpAddr::V6(_)) => false,
        }
    }
}
