//! Attacks that work without kfp-creds, first shown on a plain internal network of the engine with a server
//! that identifies callers by address; then the same against a session, in both isolations.
//!
//! Podman's networks are less open than Docker's: it gives containers no `NET_RAW`, resolves a name to its
//! first holder, and reuses an address late. There, some of the first halves cannot be shown; the second
//! halves run all the same.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::attacks::{
    DEFAULT, Made, STRICT, address, create, inspect, network_of, ours, relay_of, sleeper, token_at, unused,
};
use super::floods::{ATTACKER, attack, facts};
use crate::support::proxy_fixture;
use crate::support::raw::{SECOND, TOKEN, until};
use crate::support::release::{Release, release};
use crate::support::session::{Session, claims, docker_at, engine_socket, is_podman, raw, task_image};

const PLAIN: [&str; 2] = [ATTACKER, "plain"];

/// A server on an internal network of this test.
pub(super) struct Plain {
    server: Made,
    pub(super) network: Made,
    pub(super) at: String,
}

impl Plain {
    /// A server that trusts addresses.
    fn new() -> Self {
        Self::of(&PLAIN)
    }

    /// A server that Python runs from `program`: its text and arguments.
    pub(super) fn of(program: &[&str]) -> Self {
        let (network, server) = (Made("network", unused("plain")), Made("container", unused("server")));
        raw(&["network", "create", "--internal", &network.1]);
        Self::serve(&network.1, &server.1, &["--network-alias", "metadata.google.internal"], program);
        let at = address(&server.1, &network.1);
        Self { server, network, at }
    }

    /// Starts another of these servers, and waits until it listens.
    fn serve(network: &str, name: &str, options: &[&str], program: &[&str]) {
        let image = task_image();
        let run = [
            &["run", "-d", "--name", name, "--network", network],
            options,
            &[&image, "python3", "-c"],
            program,
        ];
        raw(&run.concat());
        until("the server listens", Duration::from_secs(10), || raw(&["logs", name]).contains("serving"));
    }

    /// Runs the attacker on this network, with the engine's default capabilities.
    pub(super) fn attack(&self, arguments: &[&str]) -> Value {
        let (image, host) = (task_image(), format!("GCE_METADATA_HOST={}", self.at));
        let run = [&["run", "--rm", "--network", &self.network.1, "-e", &host][..], raw_sockets()].concat();
        let program = [&image, "python3", "-c", ATTACKER];
        facts(&docker_at(&engine_socket(), &[&run[..], &program, arguments].concat()))
    }

    /// A container that does nothing, and its address.
    pub(super) fn sleeper(&self) -> (Made, String) {
        let made = Made("container", unused("plain-neighbour"));
        raw(&["run", "-d", "--name", &made.1, "--network", &self.network.1, &task_image(), "sleep", "120"]);
        let at = address(&made.1, &self.network.1);
        (made, at)
    }
}

/// Options for raw sockets: none if the engine gives `NET_RAW` to every container.
fn raw_sockets() -> &'static [&'static str] {
    if is_podman() { &["--cap-add", "NET_RAW"] } else { &[] }
}

/// The container that the token was made for.
fn holder(reply: &str) -> Option<String> {
    let (_, token) = reply.split_once("\"access_token\":\"")?;
    claims(token.split('"').next()?)["container"].as_str().map(String::from)
}

#[test]
fn posing_works_on_a_plain_network_and_not_on_ours() {
    let plain = Plain::new();
    let (_neighbour, at) = plain.sleeper();
    let told = plain.attack(&["exchange", &at]);
    assert!(told[&at].as_str().unwrap().contains(&format!("of {at}")), "the attack itself fails: {told}");

    let session = Session::offline("", &["--all"]);
    let (_made, id) = sleeper(&session);
    let victim = address(&id, &network_of(&id));
    let told = attack(&session, &["exchange", &victim]);
    assert_eq!(told[&victim], "Operation not permitted", "{told}");
}

/// Shows that `no_namespace_..` and `a_privileged_exec_..` succeed without kfp-creds.
#[test]
fn without_us_namespaces_are_joined_and_exec_is_privileged() {
    let victim = Made("container", unused("victim"));
    let image = task_image();
    raw(&["run", "-d", "--name", &victim.1, "-e", "WHAT_IT_KNOWS=here", &image, "sleep", "120"]);
    let pid = format!("container:{}", victim.1);
    let seen = raw(&["run", "--rm", "--pid", &pid, &image, "cat", "/proc/1/environ"]);
    assert!(seen.contains("WHAT_IT_KNOWS=here"), "{seen:?}");
    // The same for shared IPC.
    let sharing = Made("container", unused("sharing"));
    let writes = ["sh", "-c", "echo here >/dev/shm/what_it_knows; exec sleep 120"];
    raw(&[&["run", "-d", "--name", &sharing.1, "--ipc", "shareable", &image], &writes[..]].concat());
    until("it is written", Duration::from_secs(5), || {
        docker_at(&engine_socket(), &["exec", &sharing.1, "test", "-s", "/dev/shm/what_it_knows"])
            .status
            .success()
    });
    let ipc = format!("container:{}", sharing.1);
    assert_eq!(raw(&["run", "--rm", "--ipc", &ipc, &image, "cat", "/dev/shm/what_it_knows"]), "here");
    // Created but not started: an engine inside a container may not be able to grant such rights.
    let line = format!("POST /v1.41/containers/{}/exec", victim.1);
    let body = r#"{"Privileged":true,"Cmd":["true"]}"#;
    let (status, made) = proxy_fixture::call(&engine_socket(), &line, body);
    assert_eq!(status, 201, "{made}");
    let made: Value = serde_json::from_str(&made).unwrap();
    let line = format!("GET /v1.41/exec/{}/json", made["Id"].as_str().unwrap());
    let (_, seen) = proxy_fixture::call(&engine_socket(), &line, "");
    let seen: Value = serde_json::from_str(&seen).unwrap();
    assert_eq!(seen["ProcessConfig"]["privileged"], true, "{seen}");
}

/// The container keeps `NET_RAW`, and with it everything that an attack on a shared network needs.
#[test]
fn a_container_alone_with_the_relay_cannot_pose() {
    let session = Session::offline(STRICT, &["--all"]);
    let (_made, id) = sleeper(&session);
    let victim = address(&id, &network_of(&id));
    let (there, home) = (relay_of(&id), ours(&session).0);
    let relays_own = address(&ours(&session).1, &home);
    let own = Made("container", unused("attacker"));
    let image = task_image();
    session.ok(&[&["create", "--name", &own.1], raw_sockets(), &[&image, "sleep", "120"]].concat());
    session.ok(&["start", &own.1]);
    let at = address(&own.1, &network_of(&own.1));
    let caps = session.ok(&["exec", &own.1, "grep", "CapEff", "/proc/self/status"]);
    let caps = u64::from_str_radix(caps.split_whitespace().last().unwrap(), 16).unwrap();
    assert_eq!(caps >> 12 & 3, 2, "NET_RAW and not NET_ADMIN: {caps:x}");
    let beside = |number: u8| {
        let mut parts: Vec<u8> = at.split('.').map(|part| part.parse().unwrap()).collect();
        parts[3] = parts[3] & !7 | number;
        format!("{}.{}.{}.{}", parts[0], parts[1], parts[2], parts[3])
    };
    let here = relay_of(&own.1);
    let lies: Vec<String> =
        [victim.clone(), there.clone(), relays_own.clone(), here.clone(), "10.1.2.3".into()]
            .into_iter()
            .chain([2, 3, 4, 6].map(beside))
            // Also at addresses of another network, and at unused ones.
            .chain([format!("{victim}@{there}"), format!("{at}@{there}"), format!("{at}@{relays_own}")])
            .collect();
    let exec = |arguments: &[&str]| {
        let run = [&["exec", &own.1, "python3", "-c", ATTACKER], arguments].concat();
        facts(&session.docker(&run))
    };
    // A handmade request from the container's own address is answered, so the tool works here.
    let told = exec(&["exchange", &at]);
    let own_id = inspect(&own.1)["Id"].as_str().unwrap().to_string();
    assert_eq!(holder(told[&at].as_str().unwrap()), Some(own_id.clone()), "{told}\n{}", session.said());
    let told = exec(&[&["exchange"], &lies.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
    for lie in &lies {
        let reply = told[lie].as_str().unwrap();
        assert!(!reply.contains("access_token"), "{lie}: {reply}");
        assert!(!reply.contains("200 OK"), "{lie}: {reply}");
    }
    // Through the kernel's own sockets, and with the relay as a router.
    for server in [&there, &victim, &relays_own] {
        let told = exec(&["through", server]);
        for way in ["bound", "routed"] {
            assert!(!told[way].as_str().unwrap().contains("HTTP/1.1"), "{server}: {told}");
        }
    }
    eprintln!("{told}");
    assert!(!session.said().contains("the relay died"), "{}", session.said());
}

/// The engine reuses an address at once, but a lease never passes to its next holder.
#[test]
fn an_address_reused_within_milliseconds_gets_no_token() {
    let plain = Plain::new();
    let (first, at) = plain.sleeper();
    let second = Made("container", unused("heir"));
    let image = task_image();
    let ask = ["curl", "-s", "-m", "5", &format!("http://{}/", plain.at)];
    raw(&[&["create", "--name", &second.1, "--network", &plain.network.1, &image], &ask[..]].concat());
    let began = Instant::now();
    raw(&["kill", &first.1]);
    let told = raw(&["start", "-a", &second.1]);
    eprintln!("the engine gave {at} to another within {} ms", began.elapsed().as_millis());
    assert!(is_podman() || told.contains(&format!("of {at}")), "{told}");

    for config in [SECOND, STRICT] {
        let session = Session::offline(config, &["--all"]);
        let (made, id) = sleeper(&session);
        let (network, relay) = (network_of(&id), relay_of(&id));
        let at = address(&id, &network);
        let heir = Made("container", unused("heir"));
        // It asks as often as it can, from its start on.
        let script = format!(
            "for n in $(seq 40); do curl -s -m 3 -H Metadata-Flavor:Google {}; sleep 0.02; done; true",
            token_at(&relay)
        );
        let create =
            ["create", "--name", &heir.1, "--network", &network, "--ip", &at, &image, "timeout", "6"];
        raw(&[&create[..], &["sh", "-c", &script]].concat());
        raw(&["kill", &made.1]);
        let began = Instant::now();
        let out = docker_at(&engine_socket(), &["start", "-a", &heir.1]);
        let told = String::from_utf8_lossy(&out.stdout);
        eprintln!("the same with {config:?}: {} ms, {told}", began.elapsed().as_millis());
        assert_eq!(address(&heir.1, &network_of(&id)), "", "it has ended");
        assert!(!told.contains("access_token"), "{told}");
        // The previous holder of the address has its own identity again after a restart.
        raw(&["rm", "-f", &heir.1]);
        session.ok(&["start", &made.1]);
        let url = token_at(&relay);
        let again = session.ok(&["exec", &made.1, "curl", "-s", "-m", "5", "-HMetadata-Flavor:Google", &url]);
        assert_eq!(holder(&again), Some(id), "{again}");
    }
}

#[test]
fn a_name_taken_on_a_plain_network_stays_the_relays_here() {
    const NAME: &str = "metadata.google.internal";
    // Podman's DNS resolves a name to its first holder, and is slow on an internal network.
    if !is_podman() {
        let plain = Plain::new();
        let impostor = Made("container", unused("impostor"));
        Plain::serve(&plain.network.1, &impostor.1, &["--network-alias", NAME], &PLAIN);
        let told = plain.attack(&["resolve", NAME, "60"]);
        let taken = told[address(&impostor.1, &plain.network.1)].as_u64().unwrap_or_default();
        eprintln!("an impostor got {taken} of 60 look-ups");
        assert!(taken > 0, "{told}");
    }

    for config in ["", STRICT] {
        let session = Session::offline(config, &["--all"]);
        let (made, id) = sleeper(&session);
        let (network, relay) = (network_of(&id), relay_of(&id));
        // The engine itself, not the session, starts the impostor.
        let guest = Made("container", unused("impostor"));
        let image = task_image();
        let run = ["run", "-d", "--name", &guest.1, "--network", &network, "--network-alias", NAME, &image];
        let joined = docker_at(&engine_socket(), &[&run[..], &["sleep", "60"]].concat());
        // The default bridge has no names that a container could take.
        assert_eq!(
            joined.status.success(),
            config.is_empty() && network != DEFAULT,
            "{:?}",
            String::from_utf8_lossy(&joined.stderr)
        );
        let resolve = ["exec", &made.1, "python3", "-c", ATTACKER, "resolve", NAME, "60"];
        let told = facts(&session.docker(&resolve));
        assert_eq!(told, json!({ relay: 60 }), "{config:?}");
        if !config.is_empty() {
            // This holds also for look-ups that miss the hosts file, since the network has no room for
            // others.
            let resolve = ["exec", &made.1, "python3", "-c", ATTACKER, "resolve", "metadata.goog.", "60"];
            assert_eq!(facts(&session.docker(&resolve)), json!({ relay_of(&id): 60 }));
        }
    }
}

#[test]
fn a_self_connected_container_is_served_only_without_us() {
    let plain = Plain::new();
    let guest = Made("container", unused("guest"));
    let image = task_image();
    let ask = ["curl", "-s", "-m", "5", &format!("http://{}/", plain.at)];
    raw(&[&["create", "--name", &guest.1, "--network", "none", &image], &ask[..]].concat());
    // Podman cannot connect a container that was created without a network.
    if !is_podman() {
        raw(&["network", "disconnect", "none", &guest.1]);
        raw(&["network", "connect", &plain.network.1, &guest.1]);
        assert!(raw(&["start", "-a", &guest.1]).contains("access_token"));
    }

    // `a_container_that_connects_itself_gets_nothing_at_any_address` tests the shared network. Here no other
    // container gets on the network.
    let session = Session::offline(STRICT, &["--all"]);
    let (_made, id) = sleeper(&session);
    let network = network_of(&id);
    let own = address(&id, &network);
    let head = &own[..=own.rfind('.').unwrap()];
    let last: u8 = own[head.len()..].parse().unwrap();
    let addresses = (last - 1..=last + 6).map(|number| format!("{head}{number}"));
    for at in [None].into_iter().chain(addresses.map(Some)) {
        let guest = Made("container", unused("guest"));
        let ip: Vec<&str> = at.iter().flat_map(|at| ["--ip", at]).collect();
        let run = [&["run", "--name", &guest.1, "--network", &network], &ip[..], &[&image, "true"]].concat();
        let out = docker_at(&engine_socket(), &run);
        // Podman does not reserve addresses; the relay refuses a caller at an address without a lease.
        assert!(is_podman() || !out.status.success(), "{at:?} on {network} is available");
    }
    // The session refuses it before the engine is asked.
    let guest = Made("container", unused("guest"));
    let (status, answer) =
        create(&session.socket, &guest.1, &json!({"HostConfig": {"NetworkMode": network}}));
    assert_eq!(status, 403, "{answer}");
}

#[test]
fn without_us_joined_namespaces_and_image_labels_take_effect() {
    // The engine lets any container join any namespace, and takes it for the other container there.
    let session = Session::offline("", &["--all"]);
    let (made, id) = sleeper(&session);
    let (image, url) = (task_image(), format!("http://{}/{TOKEN}", relay_of(&id)));
    let joined = format!("container:{}", made.1);
    let ask = ["curl", "-s", "-m", "5", "-HMetadata-Flavor:Google", &url];
    let told = raw(&[&["run", "--rm", "--network", &joined, &image], &ask[..]].concat());
    assert_eq!(holder(&told), Some(id), "{told}");
    let (status, answer) =
        create(&session.socket, &unused("intruder"), &json!({"HostConfig": {"NetworkMode": joined}}));
    assert_eq!(status, 403, "{answer}");
    // The engine shows an image's labels as the container's.
    let base = Made("container", unused("base"));
    raw(&["create", "--name", &base.1, "--network", "none", &image, "true"]);
    let labelled = Made("image", unused("claims"));
    raw(&["commit", "-c", "LABEL kfp-creds.identity=rich kfp-creds.role=relay", &base.1, &labelled.1]);
    let claims = Made("container", unused("claims"));
    raw(&["create", "--name", &claims.1, "--network", "none", &labelled.1, "true"]);
    assert_eq!(inspect(&claims.1)["Config"]["Labels"]["kfp-creds.identity"], "rich");
    assert_eq!(inspect(&claims.1)["Config"]["Labels"]["kfp-creds.role"], "relay");
}

/// A server without guards answers every request that the relay refuses.
pub(super) fn a_plain_server_answers(requests: &[String]) {
    let plain = Plain::new();
    let arguments: Vec<&str> = ["raw"].into_iter().chain(requests.iter().map(String::as_str)).collect();
    let told = plain.attack(&arguments);
    for (request, reply) in requests.iter().zip(told["replies"].as_array().unwrap()) {
        assert!(reply.as_str().unwrap().contains("access_token"), "{request}: {reply}");
    }
    let _ = &plain.server;
}

/// The engine itself accepts this head, so the proxy's limits matter. Since 26.1 that depends on the Go
/// version it was built with: some patch releases limit the number of headers.
pub(super) fn the_engine_takes(head: &str) {
    let reply = proxy_fixture::raw(&engine_socket(), head);
    let bounded = release() != Release::Docker(20) && reply.starts_with("HTTP/1.1 431");
    assert!(bounded || reply.starts_with("HTTP/1.1 200"), "{}", &reply[..reply.len().min(200)]);
}
