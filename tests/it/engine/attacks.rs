//! What a hostile component, image or client of the proxy does to get the identity of another. Design
//! decisions 6, 9, 22 and 23; `docs/security/threats.md` says which test covers which threat.

use std::mem::ManuallyDrop;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::floods::{ATTACKER, attack, facts};
use crate::support::proxy_fixture;
use crate::support::raw::{Container, Internal, SECOND, until};
use crate::support::session::{
    Folder, Session, docker_at, engine_socket, is_podman, program, raw, task_image,
};

/// A name that no other test uses.
pub(super) fn unused(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("kc-{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// An object that is removed at the end of the test, by the engine itself.
pub(super) struct Made(pub(super) &'static str, pub(super) String);

impl Drop for Made {
    fn drop(&mut self) {
        let force: &[&str] = if self.0 == "network" { &[] } else { &["-f"] };
        docker_at(&engine_socket(), &[&[self.0, "rm"], force, &[&self.1]].concat());
    }
}

/// Every container has a network of its own and keeps `NET_RAW`.
pub(super) const STRICT: &str = "isolation = \"network\"\n";

pub(super) fn create(socket: &Path, name: &str, body: &Value) -> (u16, String) {
    let mut body = body.clone();
    body["Image"] = task_image().into();
    proxy_fixture::call(socket, &format!("POST /v1.41/containers/create?name={name}"), &body.to_string())
}

pub(super) fn inspect(container: &str) -> Value {
    let (status, body) =
        proxy_fixture::call(&engine_socket(), &format!("GET /v1.41/containers/{container}/json"), "");
    if status == 404 { Value::Null } else { serde_json::from_str(&body).unwrap() }
}

/// The engine's default bridge: the network of a session with `network.attach = "link-local"`.
pub(super) const DEFAULT: &str = "bridge";

/// The name of the session's network and the relay's name and id.
pub(super) fn ours(session: &Session) -> (String, String, String) {
    let name = session.socket.file_stem().unwrap().to_string_lossy().into_owned();
    let relay = format!("kfp-creds-relay-{name}");
    let found = inspect(&relay);
    // The networks of single containers have names that end in a number.
    let networks = found["NetworkSettings"]["Networks"].as_object().unwrap().keys();
    let network = networks.min_by_key(|name| name.len()).unwrap().clone();
    (network, relay, found["Id"].as_str().unwrap().to_string())
}

/// Whether the session's containers are on the default bridge, where others can be as well.
pub(super) fn is_shared(session: &Session) -> bool {
    ours(session).0 == DEFAULT
}

/// The link-local address that a container has on the network of this endpoint.
fn linked(endpoint: &Value) -> Option<&str> {
    endpoint["IPAMConfig"]["LinkLocalIPs"][0].as_str()
}

/// The network on which a container reaches us: one of ours, or the default bridge.
pub(super) fn network_of(container: &str) -> String {
    let found = inspect(container);
    reaching(&found).unwrap_or_else(|| panic!("{container} is not attached: {found}"))
}

fn reaching(found: &Value) -> Option<String> {
    let all = found["NetworkSettings"]["Networks"].as_object().unwrap();
    let on_default = all.get(DEFAULT).and_then(linked).map(|_| DEFAULT.to_string());
    all.keys().find(|name| name.starts_with("kfp-creds")).cloned().or(on_default)
}

/// The relay's address in a container's environment.
pub(super) fn relay_of(container: &str) -> String {
    let found = inspect(container);
    let env = found["Config"]["Env"].as_array().unwrap().iter().filter_map(Value::as_str);
    env.filter_map(|entry| entry.strip_prefix("GCE_METADATA_HOST=")).next().unwrap().into()
}

/// The address by which the session knows the container: on a bridge, the engine has another one for it.
pub(super) fn address(container: &str, network: &str) -> String {
    let endpoint = &inspect(container)["NetworkSettings"]["Networks"][network];
    let linked = linked(endpoint).filter(|_| network.ends_with("bridge"));
    linked.or_else(|| endpoint["IPAddress"].as_str()).unwrap_or_default().into()
}

/// A leased container that does nothing, and its id.
pub(super) fn sleeper(session: &Session) -> (Made, String) {
    let name = unused("neighbour");
    session.ok(&["run", "-d", "--name", &name, &task_image(), "sleep", "120"]);
    (Made("container", name.clone()), inspect(&name)["Id"].as_str().unwrap().to_string())
}

/// Whether a created container can reach us.
pub(super) fn attached(made: &Value) -> bool {
    reaching(made).is_some()
}

/// On the default bridge such a container would be beside those with an identity: the session refuses it,
/// and the engine alone makes it.
fn refused_as_forger(session: &Session, body: &Value) {
    let made = Made("container", unused("forger"));
    let (status, answer) = create(&session.socket, &made.1, body);
    assert!(status == 403 && answer.contains("could forge addresses"), "{body}: {status} {answer}");
    assert_eq!(inspect(&made.1), Value::Null);
    assert_eq!(create(&engine_socket(), &made.1, body).0, 201, "{body}");
    let networks = inspect(&made.1)["NetworkSettings"]["Networks"].clone();
    assert!(networks.get(DEFAULT).is_some(), "{body}: {networks}");
}

#[test]
fn containers_able_to_pose_as_others_get_no_identity() {
    let raw_sockets = [
        // Only the rule about effective sets catches these: CapAdd wins over our CapDrop, and the packet
        // socket would open.
        json!({"CapAdd": ["NET_RAW"]}),
        json!({"CapAdd": ["CAP_NET_RAW"]}),
        json!({"CapAdd": ["net_raw"], "CapDrop": ["ALL"]}),
        json!({"capadd": ["Cap_Net_Raw"]}),
    ];
    too_strong("", &raw_sockets);
}

/// A container alone on a network cannot pose as another with `NET_RAW`, but it can with stronger rights.
#[test]
fn containers_able_to_change_network_get_no_identity() {
    too_strong(STRICT, &[]);
}

fn too_strong(config: &str, besides: &[Value]) {
    let session = Session::offline(config, &["--all"]);
    let everywhere = [
        json!({"CapAdd": ["ALL"]}),
        json!({"CapAdd": ["NET_ADMIN"]}),
        json!({"CapAdd": ["SYS_ADMIN"]}),
        json!({"Privileged": true}),
        json!({"privileged": true, "CapDrop": ["ALL"]}),
        json!({"NetworkMode": "host"}),
        json!({"PidMode": "host"}),
        json!({"Sysctls": {"net.ipv4.ip_nonlocal_bind": "1"}}),
    ];
    // Podman itself accepts the name only with dots.
    let slashes = [json!({"Sysctls": {"net/ipv4/conf/all/proxy_arp": "1"}})];
    let slashes = if is_podman() { &[][..] } else { &slashes };
    let (shared, alone) = (is_shared(&session), Internal::new());
    for host in besides.iter().chain(&everywhere).chain(slashes) {
        let mut host = host.clone();
        if shared && host["NetworkMode"] != "host" {
            refused_as_forger(&session, &json!({"HostConfig": host}));
            // With a network of its own it is no neighbour.
            host["NetworkMode"] = alone.0.as_str().into();
        }
        let made = Made("container", unused("strong"));
        let (status, answer) = create(&session.socket, &made.1, &json!({"HostConfig": host}));
        assert_eq!(status, 201, "{host} {answer}");
        let found = inspect(&made.1);
        assert!(!attached(&found), "{host}: {found}");
        assert!(!found["Config"]["Env"].to_string().contains("GCE_METADATA"), "{host}");
        let said = session.wait_for(&made.1, Duration::from_secs(2));
        assert!(said.contains("not attached"), "{said}");
    }
    let made = Made("container", unused("plain"));
    create(&session.socket, &made.1, &json!({}));
    assert!(attached(&inspect(&made.1)), "without these rights the container is attached");
}

#[test]
fn a_leased_container_cannot_speak_from_a_neighbours_address() {
    let session = Session::offline("", &["--all"]);
    let (_made, neighbour) = sleeper(&session);
    let at = address(&neighbour, &ours(&session).0);
    let tried = attack(&session, &["spoof", &at]);
    for (trick, outcome) in tried.as_object().unwrap() {
        assert_ne!(outcome, "done", "{trick}: {tried}");
    }
    assert_eq!(tried["packet socket"], "Operation not permitted");
    assert_eq!(tried["bind transparent"], "Operation not permitted");
    // The engine's default capabilities, on a network without a way out: the packet socket opens.
    let network = Made("network", unused("alone"));
    raw(&["network", "create", "--internal", &network.1]);
    let image = task_image();
    let default = [
        "run",
        "--rm",
        "--network",
        &network.1,
        "-e",
        "GCE_METADATA_HOST=127.0.0.1",
        // Docker's default.
        "--cap-add",
        "NET_RAW",
        &image,
        "python3",
        "-c",
        ATTACKER,
        "spoof",
        &at,
    ];
    let default = facts(&docker_at(&engine_socket(), &default));
    assert_eq!(default["packet socket"], "done", "{default}");
}

#[test]
fn no_namespace_of_a_leased_container_can_be_joined() {
    no_namespace("");
}

#[test]
fn no_namespace_can_be_joined_in_isolation() {
    no_namespace(STRICT);
}

fn no_namespace(config: &str) {
    let session = Session::offline(config, &["--all"]);
    let (made, id) = sleeper(&session);
    for reference in [made.1.as_str(), &id, &id[..12], &id[..7], &format!("/{}", made.1)] {
        for key in ["NetworkMode", "PidMode", "IpcMode", "networkmode", "Networ\u{212a}Mode", "pidMODE"] {
            let intruder = Made("container", unused("intruder"));
            let body = json!({"HostConfig": {key: format!("container:{reference}")}});
            let (status, answer) = create(&session.socket, &intruder.1, &body);
            assert_eq!(status, 403, "{key} {reference}: {answer}");
            assert_eq!(inspect(&intruder.1), Value::Null);
        }
        let (status, answer) = proxy_fixture::call(
            &session.socket,
            &format!("POST /v1.41/build?networkmode=container:{reference}"),
            "",
        );
        assert!(status == 403 || status == 400, "{status} {answer}");
    }
    // The same for a victim that is stopped, since it can be started again.
    session.ok(&["kill", &made.1]);
    let body = json!({"HostConfig": {"NetworkMode": format!("container:{id}")}});
    assert_eq!(create(&session.socket, &unused("intruder"), &body).0, 403);
}

/// Without protection between the engine's create and the lease, 20 of 20 joins succeeded.
#[test]
fn no_join_wins_against_the_create_of_its_victim() {
    no_join_wins("");
}

#[test]
fn no_join_wins_against_a_create_in_isolation() {
    no_join_wins(STRICT);
}

fn no_join_wins(config: &str) {
    let session = Session::offline(config, &["--all"]);
    for _ in 0..8 {
        let victim = Made("container", unused("victim"));
        let over = Arc::new(AtomicBool::new(false));
        let joiners = [(); 2].map(|()| {
            let (socket, name, over) = (session.socket.clone(), victim.1.clone(), over.clone());
            std::thread::spawn(move || {
                let mode = json!({"HostConfig": {"NetworkMode": format!("container:{name}")}});
                let exec = json!({"Privileged": true, "Cmd": ["true"]}).to_string();
                while !over.load(Ordering::SeqCst) {
                    let intruder = Made("container", unused("intruder"));
                    let (status, answer) = create(&socket, &intruder.1, &mode);
                    assert!(status == 404 || status == 403, "{status} {answer}");
                    let line = format!("POST /v1.41/containers/{name}/exec");
                    let (status, answer) = proxy_fixture::call(&socket, &line, &exec);
                    // 409 would mean that the proxy let the request through and the engine has the container,
                    // not running.
                    assert!(status == 404 || status == 403, "{status} {answer}");
                }
            })
        });
        std::thread::sleep(Duration::from_millis(20));
        let (status, answer) = create(&session.socket, &victim.1, &json!({"Cmd": ["true"]}));
        std::thread::sleep(Duration::from_millis(30));
        over.store(true, Ordering::SeqCst);
        assert_eq!(status, 201, "{answer}");
        joiners.into_iter().for_each(|joiner| joiner.join().unwrap());
    }
}

#[test]
fn another_sessions_objects_cannot_be_changed() {
    another_sessions("");
}

#[test]
fn another_sessions_objects_are_closed_in_isolation() {
    another_sessions(STRICT);
}

fn another_sessions(config: &str) {
    let (one, two) = (Session::offline(config, &["--all"]), Session::offline(config, &["--all"]));
    let (made, id) = sleeper(&one);
    let (home, relay, relay_id) = ours(&one);
    for reference in [made.1.as_str(), &id, &id[..12]] {
        for key in ["NetworkMode", "PidMode", "IpcMode"] {
            let intruder = Made("container", unused("intruder"));
            let body = json!({"HostConfig": {key: format!("container:{reference}")}});
            assert_eq!(create(&two.socket, &intruder.1, &body).0, 403, "{key} {reference}");
        }
        let line = format!("POST /v1.41/containers/{reference}/exec");
        assert_eq!(proxy_fixture::call(&two.socket, &line, r#"{"Privileged":true,"Cmd":["true"]}"#).0, 403);
    }
    for reference in [relay.as_str(), &relay_id] {
        let intruder = Made("container", unused("intruder"));
        let body = json!({"HostConfig": {"NetworkMode": format!("container:{reference}")}});
        assert_eq!(create(&two.socket, &intruder.1, &body).0, 403, "{reference}");
    }
    let id_of = |network: &str| raw(&["network", "inspect", "-f", "{{.Id}}", network]);
    let network = network_of(&id);
    let (home_id, network_id) = (id_of(&home), id_of(&network));
    let shared = is_shared(&one);
    if shared {
        beside_another_session(&one, &two, &id);
    }
    for reference in [home.as_str(), &home_id, network.as_str(), &network_id, &network_id[..12]] {
        let intruder = Made("container", unused("intruder"));
        // With NET_RAW, the intruder would get no identity from the second session, but could pose on the
        // first one's network.
        let body = json!({"HostConfig": {"NetworkMode": reference, "CapAdd": ["NET_RAW"]}});
        if !shared {
            assert_eq!(create(&two.socket, &intruder.1, &body).0, 403, "{reference}");
        }
        let connect = json!({"Container": id}).to_string();
        let line = format!("POST /v1.41/networks/{reference}/connect");
        assert_eq!(proxy_fixture::call(&two.socket, &line, &connect).0, 403, "{reference}");
    }
}

/// The default bridge is nobody's alone, so another session starts a forger there. While it runs, nobody has
/// a token.
fn beside_another_session(one: &Session, two: &Session, victim: &str) {
    let victim = ManuallyDrop::new(Container(victim.into())); // its maker removes it
    assert_eq!(victim.asks().1, 200, "{}", one.said());
    let image = task_image();
    let forger = ["run", "-d", "--network", DEFAULT, "--cap-add", "NET_RAW"];
    let forger = Container(two.ok(&[&forger[..], &[&image, "sleep", "60"]].concat()));
    assert_eq!(victim.asks().1, 503, "{}", one.said());
    drop(forger);
    until("the lease is back", Duration::from_secs(5), || victim.asks().1 == 200);
}

#[test]
fn a_privileged_exec_into_a_leased_container_is_refused() {
    no_privileged_exec("");
}

#[test]
fn a_privileged_exec_is_refused_in_isolation() {
    no_privileged_exec(STRICT);
}

fn no_privileged_exec(config: &str) {
    let session = Session::offline(config, &["--all"]);
    let (made, id) = sleeper(&session);
    let exec = |reference: &str, body: &str| {
        proxy_fixture::call(&session.socket, &format!("POST /v1.41/containers/{reference}/exec"), body)
    };
    for reference in
        [made.1.as_str(), &id, &id[..12], &id[..6], &format!("%{:02x}{}", id.as_bytes()[0], &id[1..])]
    {
        for body in [
            r#"{"Privileged":true,"Cmd":["true"]}"#,
            r#"{"privileged":true,"Cmd":["true"]}"#,
            r#"{"PRIVILEGED":true,"Cmd":["true"],"Privileged":null}"#,
            r#"{"Privileged":false,"Privileged":true,"Cmd":["true"]}"#,
            r#"{"Privileged":false,"Cmd":["true"]}{"Privileged":true}"#,
            r#"{"Privileged":"true","Cmd":["true"]}"#,
        ] {
            let (status, answer) = exec(reference, body);
            assert!(status == 403 || status == 400, "{reference} {body}: {status} {answer}");
        }
    }
    // Docker answers null, Podman an empty list.
    assert_eq!(inspect(&id)["ExecIDs"].as_array().map_or(0, Vec::len), 0);
    // An ordinary exec has only the container's own rights.
    let caps = session.ok(&["exec", &made.1, "grep", "CapBnd", "/proc/self/status"]);
    let caps = u64::from_str_radix(caps.split_whitespace().last().unwrap(), 16).unwrap();
    // Podman gives NET_RAW only on request.
    let left = if config.is_empty() || is_podman() { 0 } else { 2 };
    assert_eq!(caps >> 12 & 3, left, "no NET_ADMIN, and NET_RAW in a network of its own only: {caps:x}");
}

const ASK: [&str; 5] = ["curl", "-s", "-m", "5", "-HMetadata-Flavor:Google"];

pub(super) fn token_at(relay: &str) -> String {
    format!("http://{relay}/computeMetadata/v1/instance/service-accounts/default/token")
}

/// Status and body that a container gets from the relay if the engine itself puts it on our network.
fn by_hand(network: &str, at: Option<&str>, relay: &str) -> Result<String, String> {
    let name = unused("by-hand");
    let _made = Made("container", name.clone());
    let (image, url) = (task_image(), token_at(relay));
    let at: Vec<&str> = at.into_iter().flat_map(|at| ["--ip", at]).collect();
    let run = [
        &["run", "--name", &name, "--network", network],
        &at[..],
        &[&image],
        &ASK,
        &["-w%{http_code}", &url],
    ];
    let out = docker_at(&engine_socket(), &run.concat());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

/// The command line's output if the address is in use. Podman reports it at the attach, as a 500 without a
/// message.
fn in_use(why: &str) -> bool {
    why.contains(if is_podman() { "received 500" } else { "Address already in use" })
}

#[test]
fn a_container_that_connects_itself_gets_nothing_at_any_address() {
    let session = Session::offline(SECOND, &["--all"]);
    let (network, relay, _) = ours(&session);
    let relay = address(&relay, &network);
    let refused = |answer: Result<String, String>| {
        let answer = answer.unwrap();
        assert!(answer.ends_with("503") && !answer.contains("access_token"), "{answer}");
    };
    refused(by_hand(&network, None, &relay));
    // The address of a running container: the engine refuses it.
    let (made, id) = sleeper(&session);
    let leased = address(&id, &network);
    let taken = by_hand(&network, Some(&leased), &relay).unwrap_err();
    assert!(in_use(&taken), "{taken}");
    // That of an ended one: its lease ended with it.
    session.ok(&["kill", &made.1]);
    session.wait_for(&format!("ended         {}", made.1), Duration::from_secs(5));
    refused(by_hand(&network, Some(&leased), &relay));
    // That of one that was created and does not run yet: its lease applies only while the engine shows it
    // running.
    let waiting = Made("container", unused("waiting"));
    session.ok(&["create", "--name", &waiting.1, &task_image(), "true"]);
    let said = session.wait_for(&format!("attached      {}", waiting.1), Duration::from_secs(2));
    let leased = said.split("  at ").nth(1).unwrap().split_whitespace().next().unwrap().to_string();
    match by_hand(&network, Some(&leased), &relay) {
        Err(taken) => assert!(in_use(&taken), "{taken}"),
        given => refused(given),
    }
    // That of a removed one.
    session.ok(&["rm", "-f", &made.1, &waiting.1]);
    refused(by_hand(&network, Some(&leased), &relay));
    // The relay's own address.
    assert!(by_hand(&network, Some(&relay), &relay).is_err());
}

#[test]
fn no_name_can_be_taken_from_the_relay() {
    for config in ["", SECOND] {
        no_name(config);
    }
}

#[test]
fn no_name_can_be_taken_in_isolation() {
    no_name(STRICT);
}

fn no_name(config: &str) {
    let session = Session::offline(config, &["--all"]);
    let hijack = Made("network", unused("net"));
    raw(&["network", "create", "--internal", &hijack.1]);
    let shared = is_shared(&session);
    // Without an identity it may be on the default bridge only if it cannot forge.
    let drops: &[&str] = if shared { &["NET_RAW"] } else { &[] };
    for name in ["metadata.google.internal", "metadata", "METADATA.goog", "storage.googleapis.com"] {
        if shared {
            refused_as_forger(&session, &json!({"Hostname": name}));
        }
        let (status, answer) = create(&session.socket, name, &json!({"HostConfig": {"CapDrop": drops}}));
        let _made = Made("container", name.into());
        assert_eq!(status, 201, "{answer}");
        assert!(!attached(&inspect(name)), "a container's name is an alias of it: {name}");
        for key in ["Hostname", "Domainname"] {
            let made = Made("container", unused("named"));
            let body = json!({key: name, "HostConfig": {"CapDrop": drops}});
            let (status, answer) = create(&session.socket, &made.1, &body);
            assert_eq!(status, 201, "{answer}");
            assert!(!attached(&inspect(&made.1)), "{key} {name}");
        }
    }
    let claims = json!({"Aliases": ["metadata.google.internal", "metadata"], "Links": []});
    let made = Made("container", unused("alias"));
    let body = json!({"Cmd": ["sleep", "60"], "HostConfig": {"NetworkMode": hijack.1},
                      "NetworkingConfig": {"EndpointsConfig": {&hijack.1: claims}}});
    assert_eq!(create(&session.socket, &made.1, &body).0, 201);
    let (status, _) = proxy_fixture::call(&session.socket, &format!("POST /containers/{}/start", made.1), "");
    assert_eq!(status, 204);
    let found = inspect(&made.1);
    let aliases = &found["NetworkSettings"]["Networks"][network_of(&made.1)]["Aliases"];
    assert!(attached(&found) && !aliases.to_string().contains("metadata"), "{aliases}");
    // A rename could follow the judgement of the create, so it is judged too.
    let line = format!("POST /containers/{}/rename?name=metadata.google.internal", made.1);
    assert_eq!(proxy_fixture::call(&session.socket, &line, "").0, 403);
    // Without a name server that knows the relay, a look-up with a trailing dot finds nothing: on Podman, and
    // on a bridge.
    let names = match is_podman() || config.is_empty() {
        true => ["metadata.google.internal", "metadata", "metadata.goog"],
        false => ["metadata.google.internal", "metadata.google.internal.", "metadata."],
    };
    let look = "echo $GCE_METADATA_HOST; for n; do getent hosts $n || exit 1; done";
    let found = session.ok(&[&["run", "--rm", &task_image(), "sh", "-c", look, "sh"], &names[..]].concat());
    let (at, found) = found.split_once('\n').unwrap();
    assert!(found.lines().count() == 3 && found.lines().all(|line| line.starts_with(at)), "{found}");
}

#[test]
fn containers_and_networks_of_ours_cannot_be_changed() {
    nothing_of_ours("");
}

#[test]
fn our_objects_cannot_be_changed_in_isolation() {
    nothing_of_ours(STRICT);
}

/// Everything that would change the relay, by every way to name it.
fn calls_at_the_relay(name: &str, id: &str) -> Vec<String> {
    let mut lines = vec![];
    for relay in [name, id, &id[..12], &id[..8], &format!("%{:02x}{}", id.as_bytes()[0], &id[1..])] {
        for action in [
            "attach?stream=1&stdin=1",
            "attach/ws?stream=1",
            "exec",
            "kill",
            "stop",
            "restart",
            "pause",
            "update",
            "start",
            "rename?name=x",
            "resize?h=1&w=1",
        ] {
            lines.push(format!("POST /v1.41/containers/{relay}/{action}"));
        }
        lines.push(format!("DELETE /v1.41/containers/{relay}?force=1"));
        lines.push(format!("GET /v1.41/containers/{relay}/archive?path=/"));
        lines.push(format!("PUT /v1.41/containers/{relay}/archive?path=/"));
        lines.push(format!("GET /v1.41/containers/{relay}/export"));
        lines.push(format!("POST /v1.41/commit?container={relay}&repo=stolen"));
    }
    lines
}

/// A client may take its own container off the default bridge. Then it has no address of ours and no token, and it
/// does not return.
fn moved_off_the_default_bridge(session: &Session, leased: &str) {
    let moved = ManuallyDrop::new(Container(leased.into())); // its maker removes it
    assert_eq!(moved.asks().1, 200, "{}", session.said());
    let has_no_token = || {
        let (body, status, _) = moved.asks();
        assert!(status != 200 && !body.contains("access_token"), "{status} {body}");
    };
    session.ok(&["network", "disconnect", DEFAULT, leased]);
    session.wait_for("ended  ", Duration::from_secs(5));
    has_no_token();
    let back = session.docker(&["network", "connect", DEFAULT, leased]);
    assert!(String::from_utf8_lossy(&back.stderr).contains("could forge addresses"), "{back:?}");
    has_no_token();
}

fn nothing_of_ours(config: &str) {
    let session = Session::offline(config, &["--all"]);
    let (network, relay, id) = ours(&session);
    let name = session.socket.file_stem().unwrap().to_string_lossy().into_owned();
    let network_id = raw(&["network", "inspect", "-f", "{{.Id}}", &network]);
    let image = raw(&["inspect", "-f", "{{.Image}}", &id]);
    let reference = raw(&["image", "inspect", "-f", "{{index .RepoTags 0}}", &image]);
    let repository = reference.split(':').next().unwrap().to_string();
    let before = inspect(&id)["State"]["StartedAt"].clone();
    let (_made, leased) = sleeper(&session);
    let (cell, unknown, mut moves) = (network_of(&leased), "x".to_string(), vec![]);
    let mut lines = calls_at_the_relay(&relay, &id);
    for network in [network.as_str(), &cell, &network_id, &network_id[..12], &network_id[..8]] {
        lines.push(format!("DELETE /v1.41/networks/{network}"));
        // With `link-local` the network is everybody's, but the relay on it is ours.
        let whom = if is_shared(&session) { vec![&relay, &id] } else { vec![&relay, &id, &leased, &unknown] };
        for container in whom {
            moves.push((format!("POST /v1.41/networks/{network}/connect"), container));
            moves.push((format!("POST /v1.41/networks/{network}/disconnect"), container));
        }
    }
    for image in [reference.as_str(), &image, &image["sha256:".len()..], &image["sha256:".len()..][..12]] {
        lines.push(format!("DELETE /v1.41/images/{image}?force=1"));
    }
    let tag = &reference[repository.len() + 1..];
    lines.push(format!("POST /v1.41/images/{}/tag?repo={repository}&tag={tag}", task_image()));
    lines.push(format!("POST /v1.41/images/create?fromSrc=-&repo={repository}&tag={tag}"));
    lines.push(format!("POST /v1.41/build?t={reference}"));
    for line in lines {
        let body = if line.contains("/exec") { r#"{"Cmd":["x"]}"# } else { "{}" };
        let (status, answer) = proxy_fixture::call(&session.socket, &line, body);
        assert_eq!(status, 403, "{line}: {answer}");
    }
    for (line, container) in moves {
        let body = json!({"Container": container, "Force": true}).to_string();
        let (status, answer) = proxy_fixture::call(&session.socket, &line, &body);
        assert_eq!(status, 403, "{line} {body}: {answer}");
    }
    if is_shared(&session) {
        moved_off_the_default_bridge(&session, &leased);
    }
    // Prune removes unused objects, and all of these are in use.
    let filter = format!("%7B%22label%22%3A%5B%22kfp-creds.session%3D{name}%22%5D%7D");
    for kind in ["containers", "networks", "volumes"] {
        proxy_fixture::call(&session.socket, &format!("POST /v1.41/{kind}/prune?filters={filter}"), "");
    }
    assert_eq!(ours(&session), (network, relay, id.clone()));
    assert_eq!(inspect(&id)["State"]["StartedAt"], before);
    let url = "http://metadata.google.internal/";
    let image = task_image();
    let asked = [&["run", "--rm", &image], &ASK[..], &["-o/dev/null", "-w%{http_code}", url]].concat();
    assert_eq!(session.ok(&asked), "200");
}

#[test]
fn labels_choose_no_identity_and_make_no_relay() {
    labels("");
}

#[test]
fn labels_choose_nothing_in_isolation() {
    labels(STRICT);
}

fn labels(config: &str) {
    let config = &format!("{config}[identity.rich]\n[[rule]]\nimage = \"rich*\"\nidentity = \"rich\"\n");
    let session = Session::offline(config, &["--all"]);
    let (network, _, _) = ours(&session);
    // An image whose labels claim that it is the relay of a session, as after a `docker commit` of one.
    let base = Made("container", unused("base"));
    raw(&["create", "--name", &base.1, "--network", "none", &task_image(), "true"]);
    let image = Made("image", unused("labelled"));
    let claims = "LABEL kfp-creds.role=relay kfp-creds.session=00000000 kfp-creds.identity=rich";
    raw(&["commit", "-c", claims, &base.1, &image.1]);
    let made = Made("container", unused("claims"));
    session.ok(&[
        "create",
        "--name",
        &made.1,
        "--label",
        "kfp-creds.identity=rich",
        "--label",
        "kfp-creds.session=00000000",
        "--label",
        "kfp-creds.role=relay",
        &image.1,
        "sleep",
        "60",
    ]);
    let said = session.wait_for(&made.1, Duration::from_secs(2));
    assert!(said.contains("as default"), "{said}");
    let found = inspect(&made.1);
    let session_name = session.socket.file_stem().unwrap().to_string_lossy().into_owned();
    assert_eq!(found["Config"]["Labels"]["kfp-creds.session"], session_name);
    assert_ne!(
        found["Config"]["Labels"]["kfp-creds.role"], "relay",
        "a sweep would take it for a live session"
    );
    assert!(attached(&found), "{network}");
}

#[test]
fn the_socket_is_ours_alone_and_hostile_folders_are_refused() {
    let session = Session::offline("", &["--all"]);
    let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&session.socket), 0o600);
    assert_eq!(mode(session.socket.parent().unwrap()), 0o700);
    let folder = Folder::new("hostile");
    let start = |runtime: &Path| {
        let mut command = program(&folder.0);
        command.env("XDG_RUNTIME_DIR", runtime).args(["serve", "--offline"]);
        let out = command.output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    // The folder was made by another user, who could still rename its content.
    for hostile in ["symlink", "file", "other"] {
        let runtime = folder.0.join(hostile);
        std::fs::create_dir(&runtime).unwrap();
        let ours = runtime.join("kfp-creds");
        match hostile {
            "symlink" => symlink(&folder.0, &ours).unwrap(),
            "file" => std::fs::write(&ours, "").unwrap(),
            _ => {
                std::fs::create_dir(&ours).unwrap();
                if std::os::unix::fs::chown(&ours, Some(65_534), Some(65_534)).is_err() {
                    continue; // only root can change the owner of a folder; the two other cases run
                }
            }
        }
        let (code, said) = start(&runtime);
        assert_eq!(code, Some(77), "{hostile}: {said}");
        assert!(said.contains("kfp-creds: ") && said.contains("folder"), "{hostile}: {said}");
    }
}
