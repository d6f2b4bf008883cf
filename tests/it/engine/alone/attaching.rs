//! How containers that name no network reach the relay: `network.attach`.

use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::engine::attacks::{Made, create, inspect, unused};
use crate::engine::floods::{ATTACKER, facts, relay};
use crate::support::proxy_fixture;
use crate::support::raw::{Container, Internal, address, ask, token, until};
use crate::support::session::{Session, docker_at, engine_socket, is_podman, raw, task_image};

/// Podman has the second network alone, whatever the mode.
fn modes() -> &'static [&'static str] {
    if is_podman() { &["auto"] } else { &["auto", "own", "link-local", "second"] }
}

fn in_mode(mode: &str, flags: &[&str]) -> Session {
    Session::offline(&format!("[network]\nattach = \"{mode}\"\n"), flags)
}

fn id(session: &Session) -> String {
    session.socket.file_stem().unwrap().to_string_lossy().into_owned()
}

/// The networks of a container, as the engine itself shows them.
fn networks(container: &Container) -> Vec<String> {
    let found = inspect(&container.0);
    found["NetworkSettings"]["Networks"].as_object().unwrap().keys().cloned().collect()
}

fn running(session: &Session, options: &[&str]) -> Container {
    let image = task_image();
    Container(
        session.ok(&[&["run", "-d", "--stop-timeout", "1"], options, &[&image, "sleep", "120"]].concat()),
    )
}

/// A container that the engine itself starts, on the default bridge.
fn stranger(options: &[&str]) -> Container {
    let image = task_image();
    Container(raw(&[&["run", "-d", "--stop-timeout", "1"], options, &[&image, "sleep", "120"]].concat()))
}

/// The first line of the answer at a published port; empty until a server listens there.
fn head_of(at: &str) -> String {
    let mut line = String::new();
    if let Ok(mut stream) = std::net::TcpStream::connect(at)
        && stream.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
        && stream.write_all(b"GET / HTTP/1.0\r\n\r\n").is_ok()
    {
        let _ = std::io::BufReader::new(stream).read_line(&mut line);
    }
    line
}

/// The networks on which each mode puts a container; Podman has only the second network.
fn places(mode: &str, session: &Session) -> Vec<String> {
    let own = format!("kfp-creds-{}-bridge", id(session));
    match mode {
        _ if is_podman() => vec![],
        "auto" | "own" => vec![own],
        "link-local" => vec!["bridge".into()],
        _ => vec![],
    }
}

/// The engine reserves an address for itself at the end of its part of a range.
#[test]
fn pools_that_end_with_the_relays_address_serve_tokens() {
    for pool in ["169.254.169.0/24", "169.254.169.128/25", "169.254.169.240/28"] {
        let config = format!("[network]\nattach = \"second\"\npool = \"{pool}\"\n");
        let session = Session::offline(&config, &["--all"]);
        let attached = running(&session, &[]);
        assert_eq!(attached.asks().1, 200, "{pool}");
        assert!(session.said().contains(" 169.254.169.254)"), "{pool}: {}", session.said());
    }
}

#[test]
fn each_mode_attaches_before_the_first_instruction() {
    let (image, script) = (task_image(), ask());
    for &mode in modes() {
        let session = in_mode(mode, &["--all"]);
        // The container asks with its first instruction.
        let asked = session.ok(&["run", "--rm", &image, "sh", "-c", &script]);
        assert!(token(&asked)["container"].is_string(), "{mode}: {asked}");
        let container = running(&session, &["-p", "127.0.0.1::8000", "--name", &unused("attached")]);
        let on = networks(&container);
        match places(mode, &session) {
            places if places.is_empty() => assert_eq!(on.len(), 2, "{mode}: {on:?}"),
            places => assert_eq!(on, places, "{mode}"),
        }
        // A client sees one network, under the name that it requested.
        let seen = session.ok(&["inspect", "-f", "{{json .}}", &container.0]);
        let seen: Value = serde_json::from_str(&seen).unwrap();
        let all = seen["NetworkSettings"]["Networks"].as_object().unwrap();
        assert_eq!(all.len(), 1, "{mode}: {all:?}");
        if !is_podman() {
            assert!(
                all.contains_key("bridge") && !seen.to_string().contains("LinkLocalIPs\":[\""),
                "{mode}: {seen}"
            );
            assert!(["bridge", "default"].contains(&seen["HostConfig"]["NetworkMode"].as_str().unwrap()));
        }
        // Its published port works, and it can reach other networks.
        container.exec("python3 -m http.server 8000 >/dev/null 2>&1 &");
        let port = session.ok(&["port", &container.0, "8000"]);
        // In its own network namespace Podman forwards no port of the loopback, with or without kfp-creds.
        until(&format!("{mode}: {port} is reached"), Duration::from_secs(10), || {
            is_podman() || head_of(&port).contains(" 200 ")
        });
        assert!(container.exec("ip route").contains("default via"), "{mode}");
        // C libraries compare names in a hosts file literally, and some clients append a dot.
        for name in ["metadata.google.internal", "metadata.google.internal.", "metadata.goog.", "metadata"] {
            let found = container
                .exec(&format!("getent ahostsv4 {name} | cut -d' ' -f1 | uniq; echo $GCE_METADATA_IP"));
            let found: Vec<&str> = found.lines().collect();
            assert!(found.len() == 2 && found[0] == found[1], "{mode}: {name}: {found:?}");
        }
        // No address of 169.254.0.0/16 is routed outside.
        for at in ["169.254.169.253", "169.254.1.1", "169.254.170.23"] {
            let route = container.exec(&format!("ip route get {at}"));
            assert!(!route.contains(" via ") || is_podman(), "{mode}: {route}");
        }
        let (code, said) = session.end();
        assert_eq!(code, Some(0), "{mode}: {said}");
    }
}

/// Looks from inside the relay's own network namespace.
#[test]
fn a_relay_listens_on_one_address_and_has_no_way_out() {
    for &mode in modes() {
        let session = in_mode(mode, &["--all"]);
        let relay = format!("kfp-creds-relay-{}", id(&session));
        let image = task_image();
        let inside = |script: &str| {
            let network = format!("container:{relay}");
            raw(&["run", "--rm", "--network", &network, &image, "sh", "-c", script])
        };
        let routes = inside("ip route");
        // Engine 20.10 gives an internal network a default route to an address that nobody has.
        assert!(mode == "second" || !routes.contains("default"), "{mode}: {routes}");
        let away =
            inside("curl -s -m 3 -o /dev/null -w '%{http_code} %{errormsg}' http://192.0.2.1/ || true");
        assert!(away.starts_with("000"), "{mode}: {away}");
        let status = inside("cat /proc/net/tcp");
        let listens: Vec<&str> =
            status.lines().filter(|line| line.contains(":0050 00000000:0000 0A")).collect();
        assert_eq!(listens.len(), 1, "{mode}: {status}");
        assert!(!listens[0].contains(" 00000000:0050"), "{mode}: it listens at every address: {status}");
        let status =
            raw(&["run", "--rm", "--pid", &format!("container:{relay}"), &image, "cat", "/proc/1/status"]);
        for line in ["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapAmb:\t0000000000000000"] {
            assert!(status.contains(line), "{mode}: {status}");
        }
        assert!(status.contains("NoNewPrivs:\t1"), "{mode}: {status}");
        assert!(!status.contains("Uid:\t0\t"), "{mode}: {status}");
        let groups = status.lines().find(|line| line.starts_with("Groups:")).unwrap();
        assert!(!groups.split_whitespace().any(|group| group == "0"), "{mode}: {groups}");
    }
}

#[test]
fn with_a_stranger_on_the_default_bridge_both_reach_each_other() {
    if is_podman() {
        return; // Podman has only the second network
    }
    let session = in_mode("auto", &["--all"]);
    let alone = running(&session, &[]);
    let neighbour = stranger(&[]);
    let at = neighbour.inspect("{{.NetworkSettings.Networks.bridge.IPAddress}}");
    let beside = running(&session, &[]);
    assert_eq!(networks(&alone).len(), 1);
    let on = networks(&beside);
    assert!(on.contains(&"bridge".into()) && on.len() == 2, "{on:?}");
    // No server listens there, but a refusal is an answer.
    let connect =
        format!("python3 -c 'import socket; socket.create_connection((\"{at}\", 9), 3)' 2>&1 || true");
    let said = beside.exec(&connect);
    assert!(said.contains("ConnectionRefusedError"), "{said}");
    for container in [&alone, &beside] {
        assert_eq!(container.asks().1, 200, "{}", session.said());
    }
    drop((neighbour, beside));
    let again = running(&session, &[]);
    assert_eq!(networks(&again), networks(&alone));
    let (code, said) = session.end();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn with_a_named_network_or_a_link_the_second_is_used() {
    if is_podman() {
        return; // Podman has no other network; see `each_mode_attaches_before_the_first_instruction`
    }
    let session = in_mode("auto", &["--all"]);
    let own = Internal::new();
    let named = running(&session, &["--network", &own.0]);
    assert_eq!(networks(&named), [own.0.clone(), "kfp-creds".into()]);
    assert_eq!(named.asks().1, 200);
    let linked = stranger(&["--name", &unused("db")]);
    let name = linked.inspect("{{.Name}}");
    let links = running(&session, &["--link", &format!("{}:db", name.trim_start_matches('/'))]);
    assert!(networks(&links).contains(&"bridge".into()));
    assert!(links.exec("cat /etc/hosts").contains("\tdb"), "the link is lost");
    assert_eq!(links.asks().1, 200);
}

#[test]
fn clients_cannot_choose_link_local_addresses() {
    let session = in_mode("auto", &[]);
    let asked = |network: &str| {
        json!({"HostConfig": {"NetworkMode": network}, "NetworkingConfig": {"EndpointsConfig": {
            network: {"IPAMConfig": {"linklocalips": ["169.254.169.254"]}}}}})
    };
    let own = Internal::new();
    for network in ["bridge", own.0.as_str()] {
        let name = unused("linked");
        let _made = Made("container", name.clone());
        let (status, said) = create(&session.socket, &name, &asked(network));
        assert_eq!(status, 403, "{network}: {said}");
        assert!(said.contains("LinkLocalIPs") && said.contains("leave it out"), "{said}");
    }
    let container = running(&session, &[]);
    let body = json!({"Container": container.0, "EndpointConfig": {"IPAMConfig": {"LinkLocalIPs": ["169.254.172.9"]}}});
    let line = format!("POST /v1.41/networks/{}/connect", own.0);
    let (status, said) = proxy_fixture::call(&session.socket, &line, &body.to_string());
    assert_eq!(status, 403, "{said}");
    let body = json!({"Container": container.0});
    let (status, said) = proxy_fixture::call(&session.socket, &line, &body.to_string());
    assert_eq!(status, 200, "{said}");
}

/// A container that is connected without the proxy suspends the leases of that network until it is gone.
#[test]
fn a_stranger_on_our_network_suspends_its_leases() {
    for &mode in if is_podman() { &["second"][..] } else { &["own", "second"] } {
        let session = in_mode(mode, &["--all"]);
        let container = running(&session, &[]);
        assert_eq!(container.asks().1, 200);
        let network = networks(&container).into_iter().find(|name| name.starts_with("kfp-creds")).unwrap();
        let intruder = stranger(&[]);
        raw(&["network", "connect", &network, &intruder.0]);
        let connected = Instant::now();
        // Podman tells of events up to 250 ms late.
        let within = if is_podman() { Duration::from_secs(3) } else { Duration::ZERO };
        let mut asked = container.asks();
        while asked.1 != 503 && connected.elapsed() < within {
            asked = container.asks();
        }
        assert_eq!(asked.1, 503, "{mode}: {}", session.said());
        println!("{mode}: refused {} ms after the connect was answered", connected.elapsed().as_millis());
        session.wait_for("past kfp-creds", Duration::from_secs(3));
        assert_eq!(intruder.asks().1, 0, "the stranger has no variable that names a server");
        drop(intruder);
        until("the lease is back", Duration::from_secs(5), || container.asks().1 == 200);
        let (code, said) = session.end();
        assert_eq!(code, Some(0), "{mode}: {said}");
    }
}

/// The engine does not check whether a link-local address is in use.
#[test]
fn an_address_at_two_containers_ends_the_lease() {
    if is_podman() {
        return; // Podman gives no link-local addresses
    }
    let session = in_mode("own", &["--all"]);
    let container = running(&session, &[]);
    assert_eq!(container.asks().1, 200);
    let network = networks(&container).remove(0);
    let found = inspect(&container.0);
    let at = found["NetworkSettings"]["Networks"][&network]["IPAMConfig"]["LinkLocalIPs"][0].clone();
    let second = Made("container", unused("second"));
    let body = json!({"Cmd": ["sleep", "60"], "HostConfig": {"NetworkMode": network},
        "NetworkingConfig": {"EndpointsConfig": {network.clone(): {"IPAMConfig": {"LinkLocalIPs": [at]}}}}});
    assert_eq!(create(&engine_socket(), &second.1, &body).0, 201);
    raw(&["start", &second.1]);
    session.wait_for("has the address of", Duration::from_secs(3));
    assert_eq!(container.asks().1, 503);
    drop(second);
    // The lease has ended for good, since nobody knows which of the two asked in between.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(container.asks().1, 503);
}

/// A container that outlives its session is on the default bridge after its next start.
#[test]
fn a_kept_container_goes_back_to_the_default_bridge() {
    if is_podman() {
        return; // Podman's containers never leave their own network
    }
    for mode in ["auto", "link-local"] {
        let session = in_mode(mode, &["--all"]);
        let kept = Container::of(&session, &[&task_image(), "sleep", "60"]);
        session.ok(&["start", &kept.0]);
        session.ok(&["kill", &kept.0]);
        let killed = in_mode(mode, &["--all"]);
        let swept = Container::of(&killed, &[&task_image(), "sleep", "60"]);
        assert_eq!(session.end().0, Some(0));
        assert_eq!(networks(&kept), ["bridge"], "{mode}");
        assert!(!inspect(&kept.0).to_string().contains("169.254.17"), "{mode}");
        raw(&["start", &kept.0]);
        assert!(!kept.inspect("{{.NetworkSettings.Networks.bridge.IPAddress}}").is_empty());
        killed.kill();
        drop(in_mode("auto", &[]));
        if mode == "auto" {
            assert_eq!(networks(&swept), ["bridge"], "{mode}");
        }
        raw(&["start", &swept.0]);
    }
}

/// On the default bridge itself, the proxy refuses a container that could forge addresses, and the leases are
/// suspended if one is started without the proxy.
#[test]
fn a_stranger_that_could_forge_is_kept_from_a_shared_bridge() {
    if is_podman() {
        return; // Podman gives no link-local addresses
    }
    let rule = "[identity.one]\n[[rule]]\nlabels.kct = \"yes\"\nidentity = \"one\"\n";
    let session = Session::offline(&format!("[network]\nattach = \"link-local\"\n{rule}"), &[]);
    let attached = running(&session, &["--label", "kct=yes"]);
    assert_eq!(networks(&attached), ["bridge"]);
    assert_eq!(attached.asks().1, 200, "{}", session.said());
    let refused = session.docker(&["run", "--rm", "-d", &task_image(), "sleep", "60"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("network.attach = \"auto\""), "{said}");
    let harmless =
        Container(session.ok(&["run", "-d", "--cap-drop", "NET_RAW", &task_image(), "sleep", "60"]));
    assert_eq!(attached.asks().1, 200);
    let harmless_too = stranger(&["--cap-drop", "ALL"]);
    until("the session inspects a harmless stranger", Duration::from_secs(3), || attached.asks().1 == 200);
    let forger = stranger(&[]);
    assert_eq!(attached.asks().1, 503, "{}", session.said());
    drop(forger);
    until("the lease is back", Duration::from_secs(5), || attached.asks().1 == 200);
    drop((harmless, harmless_too));
}

/// By its names, by the network of what is on it, and by what is connected to it later.
#[test]
fn names_and_joins_lead_no_forger_to_a_shared_bridge() {
    if is_podman() {
        return; // Podman gives no link-local addresses
    }
    let rule = "[identity.one]\n[[rule]]\nlabels.kct = \"yes\"\nidentity = \"one\"\n";
    let session = Session::offline(&format!("[network]\nattach = \"link-local\"\n{rule}"), &[]);
    let attached = running(&session, &["--label", "kct=yes"]);
    assert_eq!((networks(&attached), attached.asks().1), (vec!["bridge".to_string()], 200));
    let (image, bridge) = (task_image(), raw(&["network", "inspect", "-f", "{{.Id}}", "bridge"]));
    let refused = |arguments: &[&str]| {
        let out = session.docker(arguments);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains("could forge addresses"), "{arguments:?}: {said}");
    };
    let apart = Internal::new();
    let forger = Container(session.ok(&["run", "-d", "--network", &apart.0, &image, "sleep", "60"]));
    for name in ["bridge", &bridge, &bridge[..12], &bridge[..7]] {
        refused(&["create", "--network", name, &image, "true"]);
        refused(&["network", "connect", name, &forger.0]);
        // The engine alone takes each of these names.
        drop(Container::raw(&["--network", name, &image, "true"]));
    }
    // What cannot forge may be there, but nobody who can forge may enter it, or what joined it.
    let harmless = |network: &str| {
        let options = ["run", "-d", "--cap-drop", "NET_RAW", "--network", network, &image, "sleep", "60"];
        Container(session.ok(&options))
    };
    let first = harmless("bridge");
    let second = harmless(&format!("container:{}", first.0));
    for inside in [&first, &second] {
        let joins =
            Container::of(&session, &["--network", &format!("container:{}", inside.0), &image, "true"]);
        refused(&["start", &joins.0]);
        refused(&["exec", "--privileged", &inside.0, "true"]);
        session.ok(&["exec", &inside.0, "true"]);
    }
    // Whoever is inside a container would be on the bridge with it.
    let later = harmless(&apart.0);
    let inside = format!("container:{}", later.0);
    let _waits = Container(session.ok(&["run", "-d", "--network", &inside, &image, "sleep", "60"]));
    refused(&["network", "connect", "bridge", &later.0]);
    // The relay of a session does not leave the bridge, nor does that of another one.
    let other = in_mode("auto", &[]);
    for client in [&session, &other] {
        let out = client.docker(&["network", "disconnect", "-f", "bridge", &relay(&session)]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains("is reserved"), "{said}");
    }
    // An engine that has not all capabilities itself refuses this one too, in its own words.
    let elsewhere = session.docker(&["exec", "--privileged", &forger.0, "true"]);
    assert!(!String::from_utf8_lossy(&elsewhere.stderr).contains("could forge addresses"), "{elsewhere:?}");
    assert_eq!(attached.asks().1, 200, "{}", session.said());
}

/// Both would give their first containers the same address, and have relays at the same one.
#[test]
fn only_one_session_is_on_the_default_bridge() {
    if is_podman() {
        return; // Podman gives no link-local addresses
    }
    let (one, two) = (in_mode("link-local", &["--all"]), in_mode("link-local", &["--all"]));
    assert!(
        two.said().contains("another session has 169.254.169.254 on the default bridge"),
        "{}",
        two.said()
    );
    let (first, second) = (running(&one, &[]), running(&two, &[]));
    assert_eq!(networks(&first), ["bridge"]);
    assert_ne!(networks(&second), ["bridge"]);
    for container in [&first, &second] {
        assert_eq!(token(&container.exec(&ask()))["container"], container.0);
    }
}

/// The answer that a container on the default bridge, past every session and with what the engine gives to all,
/// gets from `server` as `victim`.
fn forged(victim: &str, server: &str) -> String {
    let (image, host) = (task_image(), format!("GCE_METADATA_HOST={server}"));
    let run = ["run", "--rm", "-e", &host, &image, "python3", "-c", ATTACKER, "exchange", victim];
    let found = facts(&docker_at(&engine_socket(), &run));
    found[victim].as_str().unwrap().into()
}

/// On the default bridge, with a link-local address, past every session.
fn at_link_local(address: &str, command: &[&str]) -> Made {
    let made = Made("container", unused("link-local"));
    let body = json!({"Cmd": command, "HostConfig": {"NetworkMode": "bridge"}, "NetworkingConfig":
        {"EndpointsConfig": {"bridge": {"IPAMConfig": {"LinkLocalIPs": [address]}}}}});
    assert_eq!(create(&engine_socket(), &made.1, &body).0, 201);
    raw(&["start", &made.1]);
    made
}

/// What `link-local` depends on is that nobody who could forge runs beside its containers unseen. With a bridge of
/// the session the forger does not even reach the relay.
#[test]
fn a_forged_address_on_the_default_bridge_gets_no_token() {
    if is_podman() {
        return; // it gives no link-local addresses
    }
    let (server, victim) = ("169.254.177.1", "169.254.177.2");
    let plain = at_link_local(server, &["python3", "-c", ATTACKER, "plain"]);
    until("the server listens", Duration::from_secs(10), || raw(&["logs", &plain.1]).contains("serving"));
    let neighbour = at_link_local(victim, &["sleep", "60"]);
    let baseline = forged(victim, server);
    assert!(baseline.contains(&format!("of {victim}")), "the attack itself fails: {baseline}");
    drop((plain, neighbour));
    // While its lease is suspended a request is held for two seconds, longer than the forger waits.
    for (mode, expected) in [("link-local", ""), ("own", "nobody is there")] {
        let session = in_mode(mode, &["--all"]);
        let attached = running(&session, &[]);
        assert_eq!(attached.asks().1, 200);
        let relay = attached.exec("echo $GCE_METADATA_IP");
        let reply = forged(&address(&session, &attached), &relay);
        assert!(reply == expected || reply.contains(" 503 "), "{mode}: {reply}");
        until("the lease is back", Duration::from_secs(5), || attached.asks().1 == 200);
    }
}

/// Containers and relay of a session with `link-local` are on no network of ours.
#[test]
fn another_session_cannot_enter_link_local_containers() {
    if is_podman() {
        return; // it gives no link-local addresses
    }
    let (one, two) = (in_mode("link-local", &["--all"]), in_mode("second", &["--all"]));
    let attached = running(&one, &[]);
    assert_eq!(networks(&attached), ["bridge"]);
    for container in [attached.0.clone(), format!("kfp-creds-relay-{}", id(&one))] {
        let intruder = Made("container", unused("intruder"));
        let body = json!({"HostConfig": {"NetworkMode": format!("container:{container}")}});
        assert_eq!(create(&two.socket, &intruder.1, &body).0, 403, "{container}");
        let line = format!("POST /v1.41/containers/{container}/exec");
        let body = r#"{"Privileged":true,"Cmd":["true"]}"#;
        assert_eq!(proxy_fixture::call(&two.socket, &line, body).0, 403, "{container}");
    }
}
