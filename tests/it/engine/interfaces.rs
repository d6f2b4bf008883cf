//! The relay on two networks, without the engine's own rules: network namespaces in a container that has no
//! network, with the kernel settings that the engine makes for every container.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kfp_creds::docker::relay::BETWEEN_CELLS;
use kfp_creds::relay::{CALLER, LISTENS};
use serde_json::Value;

use super::attacks::{Made, unused};
use super::floods::{ATTACKER, facts};
use crate::support::raw::until;
use crate::support::session::{PROGRAM, docker_at, engine_socket, raw, task_image};

/// The relay's addresses, and those of the containers beside it.
const HERE: &str = "169.254.64.5";
const THERE: &str = "169.254.64.13";
const OWN: &str = "169.254.64.1";
const NEIGHBOUR: &str = "169.254.64.9";

/// Kernel settings of a container on a machine whose own engine turned forwarding on: a new network namespace
/// inherits them from the machine, whatever the engine under test has set.
const OPEN: [&str; 2] = ["net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"];

/// What the relay's container runs for each of the two others, whose process is `$2`.
const CONNECT: &str = "ip link add to-$1 type veth peer name eth0 netns $2
ip addr add $3/29 dev to-$1; ip link set to-$1 up";

/// Three containers on no network of the engine; the middle one has an interface to each of the others.
struct Topology {
    between: Made,
    first: Made,
    second: Made,
}

impl Topology {
    fn set(sysctls: &[&str]) -> Self {
        let program = format!("{PROGRAM}:/kfp-creds:ro");
        let start = |what: &str, options: &[&str]| {
            let (made, image) = (Made("container", unused(what)), task_image());
            let run = ["run", "-d", "--network", "none", "--cap-add", "NET_ADMIN", "--name", &made.1];
            raw(&[&run[..], options, &[&image, "sleep", &format!("12{}", what.len())]].concat());
            made
        };
        let first = start("first", &[]);
        let joined = format!("container:{}", first.1);
        let second = start("second", &["--pid", &joined]);
        let sysctls = sysctls.iter().flat_map(|sysctl| ["--sysctl", sysctl]);
        let options: Vec<&str> = ["--pid", &joined, "-v", &program].into_iter().chain(sysctls).collect();
        let between = start("between", &options);
        let topology = Self { between, first, second };
        let sh = |script: &str| topology.sh(&topology.between, script);
        sh("ip addr add 10.9.9.5/32 dev lo");
        for (name, container, here, at) in
            [("a", &topology.first, HERE, OWN), ("b", &topology.second, THERE, NEIGHBOUR)]
        {
            let process = if name == "a" {
                "1".into()
            } else {
                sh("grep -lzx '12[6]' /proc/[0-9]*/cmdline | cut -d/ -f3")
            };
            sh(&format!("set -e -- {name} {process} {here}; {CONNECT}"));
            let own = format!("set -e; ip addr add {at}/29 dev eth0; ip link set eth0 up");
            topology.sh(container, &format!("{own}; ip route add default via {here}"));
        }
        topology
    }

    fn sh(&self, container: &Made, script: &str) -> String {
        raw(&["exec", &container.1, "sh", "-c", script])
    }

    /// Runs the attacker in the first container, as root.
    fn attack(&self, arguments: &[&str]) -> Value {
        let host = format!("GCE_METADATA_HOST={HERE}");
        let exec = ["exec", "-e", &host, &self.first.1, "python3", "-c", ATTACKER];
        facts(&docker_at(&engine_socket(), &[&exec[..], arguments].concat()))
    }

    /// Starts a server that trusts addresses, on all interfaces or on one; its process id.
    fn plain(&self, container: &Made, interface: &str) -> String {
        let start = format!("python3 -c \"$0\" plain {interface} >/tmp/plain 2>&1 & echo $!");
        let pid = raw(&["exec", &container.1, "sh", "-c", &start, ATTACKER]);
        let serves = || self.sh(container, "cat /tmp/plain").contains("serving");
        until("it serves", Duration::from_secs(10), serves);
        pid
    }
}

/// The host's end of the tunnel, which answers every caller with the address that the relay reports.
async fn serve(container: String, listening: Arc<Mutex<Vec<String>>>) {
    let socket = format!("unix://{}", engine_socket().display());
    let mut relay = tokio::process::Command::new("docker")
        .args(["-H", &socket, "exec", "-i", &container, "/kfp-creds", "relay", "10.9.9.5", "--cells"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let tunnel = tokio::io::join(relay.stdout.take().unwrap(), relay.stdin.take().unwrap());
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let said = |name| request.headers().get(name).map(|value| value.to_str().unwrap().to_string());
        listening.lock().unwrap().extend(said(LISTENS));
        let body = format!("{{\"access_token\": \"of {}\"}}", said(CALLER).unwrap_or_default());
        async move { Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(body)))) }
    });
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(tunnel), service).await;
}

fn answered(reply: &Value) -> bool {
    reply.as_str().unwrap().contains("access_token")
}

#[test]
fn a_listener_serves_only_its_own_network() {
    let topology = Topology::set(&OPEN);
    let lie = format!("{NEIGHBOUR}@{HERE}");
    // A server that listens on one interface answers there, whatever the source address; one that listens on
    // all is reached at its address on another network.
    let server = topology.plain(&topology.between, "to-a");
    let told = topology.attack(&["exchange", OWN, &lie]);
    assert!(told[OWN].as_str().unwrap().contains(&format!("of {OWN}")), "{told}");
    assert!(
        told[&lie].as_str().unwrap().contains(&format!("of {NEIGHBOUR}")),
        "the attack itself fails: {told}"
    );
    topology.sh(&topology.between, &format!("kill {server}"));
    let server = topology.plain(&topology.between, "");
    let told = topology.attack(&["through", THERE]);
    assert!(answered(&told["bound"]) && answered(&told["routed"]), "the attack itself fails: {told}");
    topology.sh(&topology.between, &format!("kill {server}"));

    let listening = Arc::new(Mutex::new(vec![]));
    let (heard, container) = (listening.clone(), topology.between.1.clone());
    // Runs until the container, and with it the tunnel, ends.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(serve(container, heard));
    });
    let tells = |at: &str| listening.lock().unwrap().iter().any(|told| told == at);
    until("the relay reports both addresses", Duration::from_secs(10), || tells(HERE) && tells(THERE));
    let home = format!("{OWN}@10.9.9.5");
    let told = topology.attack(&["exchange", OWN, &lie, &home]);
    assert!(told[OWN].as_str().unwrap().contains(&format!("of {OWN}")), "{told}");
    assert!(!answered(&told[&lie]) && !answered(&told[&home]), "{told}");
    let told = topology.attack(&["through", THERE]);
    assert!(!answered(&told["bound"]) && !answered(&told["routed"]), "{told}");
    // The relay also serves a network that is added later, and one that is removed and added again.
    topology
        .sh(&topology.between, "ip addr add 169.254.64.21/29 dev to-a; ip addr del 169.254.64.5/29 dev to-a");
    until("the relay reports the third address", Duration::from_secs(5), || tells("169.254.64.21"));
    listening.lock().unwrap().clear();
    topology.sh(&topology.between, "ip addr add 169.254.64.5/29 dev to-a");
    until("the relay reports the first address again", Duration::from_secs(5), || tells(HERE));
    let told = topology.attack(&["exchange", OWN]);
    assert!(answered(&told[OWN]), "{told}");
}

/// The same with such servers, and with the kernel settings of every relay between networks.
#[test]
fn the_kernel_of_a_relay_between_networks_keeps_them_apart() {
    let lie = format!("{NEIGHBOUR}@{HERE}");
    let closed = BETWEEN_CELLS.map(|(name, value)| format!("{name}={value}"));
    for (sysctls, open) in [(OPEN.map(String::from).to_vec(), true), (closed.to_vec(), false)] {
        let topology = Topology::set(&sysctls.iter().map(String::as_str).collect::<Vec<_>>());
        let server = topology.plain(&topology.between, "to-a");
        let told = topology.attack(&["exchange", OWN, &lie]);
        assert!(answered(&told[OWN]) && answered(&told[&lie]) == open, "{sysctls:?}: {told}");
        topology.sh(&topology.between, &format!("kill {server}"));
        topology.plain(&topology.second, "");
        // With the relay as a router, to the neighbour itself.
        let told = topology.attack(&["through", NEIGHBOUR]);
        assert_eq!(answered(&told["routed"]), open, "{sysctls:?}: {told}");
    }
}
