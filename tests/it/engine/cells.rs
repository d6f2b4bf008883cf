//! `isolation = "network"`: what happens to the network of a single container.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::attacks::{STRICT, address, inspect, network_of, relay_of};
use super::stress;
use crate::support::raw::{Container, answer, ask, token, until};
use crate::support::session::{
    Folder, Session, docker_at, engine_socket, is_podman, program, raw, repeated, task_image,
};

fn id(session: &Session) -> String {
    session.socket.file_stem().unwrap().to_string_lossy().into_owned()
}

/// Ids of all networks of a session.
fn networks(session: &str) -> BTreeSet<String> {
    let label = format!("label=kfp-creds.session={session}");
    raw(&["network", "ls", "-q", "--no-trunc", "--filter", &label]).lines().map(String::from).collect()
}

fn network_id(container: &Container) -> String {
    // Found by name: the engine does not show the network's id for a container that does not run yet.
    raw(&["network", "inspect", "-f", "{{.Id}}", &network_of(&container.0)])
}

fn sleeper(session: &Session) -> Container {
    let container = Container::of(session, &[&task_image(), "sleep", "120"]);
    session.ok(&["start", &container.0]);
    assert_eq!(container.asks().1, 200, "{}", session.said());
    container
}

fn exists(network: &str) -> bool {
    docker_at(&engine_socket(), &["network", "inspect", network]).status.success()
}

#[test]
fn a_network_exists_before_its_container_and_goes_after_it() {
    let session = Session::offline(STRICT, &["--all"]);
    until("some are ready", Duration::from_secs(20), || networks(&id(&session)).len() == 7);
    let ready = networks(&id(&session));
    let script = ask();
    let six: Vec<Container> =
        (0..6).map(|_| Container::of(&session, &[&task_image(), "sh", "-c", &script])).collect();
    let used: BTreeSet<String> = six.iter().map(network_id).collect();
    assert!(used.len() == 6 && used.is_subset(&ready), "a create waited for its network");
    // The relay answers from the first instruction on, also by name.
    for container in &six {
        assert_eq!(token(&session.ok(&["start", "-a", &container.0]))["container"], container.0);
    }
    let (one, other) = (sleeper(&session), sleeper(&session));
    let (network, at) = (network_of(&one.0), address(&one.0, &network_of(&one.0)));
    let members = raw(&["network", "inspect", "-f", "{{range .Containers}}{{.Name}} {{end}}", &network]);
    assert_eq!(members.split_whitespace().count(), 2, "the relay and itself: {members}");
    one.exec("python3 -m http.server 8000 >/dev/null 2>&1 & sleep 0.7");
    let reach = |from: &Container, at: &str| {
        from.exec(&format!("curl -s -m 2 -o /dev/null -w '%{{http_code}}' http://{at}:8000/ || true"))
    };
    assert_eq!(reach(&one, &at), "200");
    assert_eq!(reach(&other, &at), "000", "neighbours reach each other");
    let gone: Vec<String> = [network_id(&one)].into_iter().chain(used).collect();
    drop((one, six));
    until("the networks are gone", Duration::from_secs(20), || !gone.iter().any(|network| exists(network)));
    assert_eq!(other.asks().1, 200);
    let name = id(&session);
    drop(other);
    let (code, said) = session.end();
    assert_eq!((code, networks(&name).len()), (Some(0), 0), "{said}");
}

#[test]
fn exhausted_networks_are_reported_and_reused() {
    // Room for the relay's own network and three others.
    let config = format!("{STRICT}network.cells = \"10.219.38.0/27\"\n");
    let session = Session::offline(&config, &["--all"]);
    let at = |container: &Container| address_of(&session, container);
    let mut seen = vec![];
    for _ in 0..7 {
        let container = Container::of(&session, &[&task_image(), "true"]);
        seen.push(at(&container));
        let network = network_id(&container);
        session.ok(&["rm", &container.0]);
        until("the network is removed", Duration::from_secs(10), || !exists(&network));
        until("another network is made", Duration::from_secs(10), || networks(&id(&session)).len() == 4);
    }
    assert!((3..seen.len()).all(|n| seen[n] == seen[n - 3]), "used again before the others: {seen:?}");
    let mut held: Vec<_> = (0..3).map(|_| sleeper(&session)).collect();
    let none = session.docker(&["create", "--label", "kct=no-cell", &task_image(), "true"]);
    let said = String::from_utf8_lossy(&none.stderr);
    assert!(!none.status.success());
    assert!(said.contains("no network left: stopped containers keep theirs"), "{said}");
    assert_eq!(raw(&["ps", "-aq", "--filter", "label=kct=no-cell"]), "");
    drop(held.remove(1));
    // At once: the create waits for the network that is being given back.
    assert_eq!(sleeper(&session).asks().1, 200);
}

/// From the session's output, since the engine shows no address for a container that does not run.
fn address_of(session: &Session, container: &Container) -> String {
    crate::support::raw::address(session, container)
}

#[test]
fn a_container_that_starts_again_finds_its_network() {
    let session = Session::offline(STRICT, &["--all"]);
    let container = sleeper(&session);
    let before = (network_id(&container), address(&container.0, &network_of(&container.0)));
    for action in [&["restart", "-t", "0"][..], &["kill"], &["stop", "-t", "0"]] {
        session.ok(&[action, &[&container.0]].concat());
        if action[0] != "restart" {
            let cut = || session.said().matches("ended  ").count() >= 2;
            until("its end is reported", Duration::from_secs(5), cut);
            session.ok(&["start", &container.0]);
        }
        assert_eq!(container.asks().1, 200, "{action:?}");
        assert_eq!((network_id(&container), address(&container.0, &network_of(&container.0))), before);
    }
}

#[test]
fn a_relay_that_is_replaced_comes_back_to_every_network() {
    let session = Session::offline(STRICT, &["--all"]);
    let (one, other) = (sleeper(&session), sleeper(&session));
    for _ in 0..2 {
        raw(&["kill", &format!("kfp-creds-relay-{}", id(&session))]);
        session.wait_for("the relay died and was replaced", Duration::from_secs(15));
        // This container is created while the relay is being connected again: its network exists before the
        // relay is on it.
        let third = Container::of(&session, &[&task_image(), "sh", "-c", &ask()]);
        assert_eq!(token(&session.ok(&["start", "-a", &third.0]))["container"], third.0);
        for container in [&one, &other] {
            until("it is served again", Duration::from_secs(15), || container.asks().1 == 200);
        }
    }
}

#[test]
fn a_killed_session_in_isolation_is_swept() {
    let first = Session::offline(STRICT, &["--all"]);
    let runs = sleeper(&first);
    let stopped = Container::of(&first, &[&task_image(), "true"]);
    let neighbour = Session::offline(STRICT, &["--all"]);
    let theirs = sleeper(&neighbour);
    let (killed, socket) = (id(&first), first.socket.clone());
    first.kill();
    let relay = format!("name=kfp-creds-relay-{killed}");
    until("the relay ends", Duration::from_secs(10), || raw(&["ps", "-q", "--filter", &relay]).is_empty());
    let second = Session::offline(STRICT, &["--all"]);
    assert_eq!(networks(&killed), BTreeSet::from([network_id(&runs)]), "{}", second.said());
    assert_ne!(runs.asks().1, 200);
    assert_eq!(theirs.asks().1, 200, "a live neighbour was swept");
    // The stopped container was taken off its network, so it can be started.
    raw(&["start", &stopped.0]);
    drop(runs);
    drop(Session::offline("", &[]));
    assert!(networks(&killed).is_empty() && !socket.exists());
    assert_eq!(theirs.asks().1, 200);
    drop((second, neighbour));
}

#[test]
fn serve_in_isolation_leaves_containers_running_and_startable() {
    let session = Session::offline(STRICT, &["--all"]);
    let (runs, stopped) = (sleeper(&session), sleeper(&session));
    session.ok(&["stop", "-t", "0", &stopped.0]);
    let name = id(&session);
    let (code, said) = session.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("keeps running, without identity"), "{said}");
    assert_eq!(networks(&name), BTreeSet::from([network_id(&runs)]), "{said}");
    assert_ne!(runs.asks().1, 200);
    raw(&["start", &stopped.0]);
    drop(runs);
    drop(Session::offline("", &[]));
    assert!(networks(&name).is_empty());
}

#[test]
fn no_attach_and_no_exit_code_is_lost_in_isolation() {
    let config = format!("{STRICT}{}", stress::IDENTITIES);
    let session = Session::offline(&config, &[]);
    let expect = ["reader", "writer"].map(|task| format!("--expect={task}={task}@p.iam.gserviceaccount.com"));
    let count = repeated(48).to_string();
    let arguments = ["-n", &count, "-p", "6", &expect[0], &expect[1]];
    let (report, faultless) = stress::report("stress.py", &session.socket, &arguments);
    assert!(faultless, "{report}\n{}", session.said());
    let name = id(&session);
    let (_, said) = session.end();
    assert!(
        said.contains(&format!("session ended {count} attached, {count} ended, {count} tokens outstanding")),
        "{said}"
    );
    assert!(networks(&name).is_empty(), "{said}");
}

/// `POST path` at the session, however long it takes: the status and the answer.
fn post(session: &Session, path: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(&session.socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(180))).unwrap();
    let head = "Host: d\r\nConnection: close\r\nContent-Type: application/json";
    let length = body.len();
    write!(stream, "POST /v1.41/{path} HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}")
        .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let status = reply.split(' ').nth(1).and_then(|status| status.parse().ok());
    let (_, answer) = reply.split_once("\r\n\r\n").unwrap_or_default();
    (status.unwrap_or_else(|| panic!("no status: {reply:?}")), answer.into())
}

/// Creates and starts one container, and says how long the create took.
fn one_more(session: &Session) -> Result<(Container, Duration), String> {
    let from = Instant::now();
    let body = json!({"Image": task_image(), "Cmd": ["sleep", "900"]}).to_string();
    let (status, answer) = post(session, "containers/create", &body);
    let made: Value = serde_json::from_str(&answer).unwrap_or_default();
    let Some(id) = made["Id"].as_str() else { return Err(format!("{status} {answer}")) };
    let (container, took) = (Container(id.into()), from.elapsed());
    match post(session, &format!("containers/{id}/start"), "") {
        (204, _) => Ok((container, took)),
        (status, why) => Err(format!("{status} {why}")),
    }
}

/// With more than this, some creates may wait too long and fail.
const AT_ONCE: usize = 200;

/// 12 containers, or as many as `KFP_CREDS_TEST_STRESS` says: all are requested at once, and all run at once.
#[test]
fn containers_at_once_each_have_a_network_and_a_token() {
    let count = std::env::var("KFP_CREDS_TEST_STRESS").map_or(12, |count| count.parse().unwrap());
    let session = Session::offline(STRICT, &["--all"]);
    let from = Instant::now();
    let made: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..count).map(|_| scope.spawn(|| one_more(&session))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let started = from.elapsed();
    let (made, refused): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    let made: Vec<_> = made.into_iter().map(Result::unwrap).collect();
    assert!(made.len() >= count.min(AT_ONCE), "{refused:?}");
    let refused: BTreeSet<String> = refused.into_iter().map(Result::unwrap_err).collect();
    let longest = made.iter().map(|(_, took)| *took).max().unwrap_or_default();
    eprintln!(
        "{} of {count} run after {started:.1?}; the longest create took {longest:.1?}; {refused:?}",
        made.len()
    );
    let used: BTreeSet<String> = made.iter().map(|(container, _)| network_of(&container.0)).collect();
    let from = Instant::now();
    let without: Vec<_> = made
        .iter()
        .filter(|(container, _)| {
            let told = container.exec(&format!("{} || true", ask()));
            answer(&told).1 != 200 || token(&told)["container"] != container.0
        })
        .collect();
    eprintln!("all were asked in {:.1?}", from.elapsed());
    assert!(without.is_empty(), "{without:?} have no token");
    assert_eq!(used.len(), made.len());
    let late = |why: &String| why.contains("made no network for it within 50 s");
    assert!(made.len() == count || count > AT_ONCE && refused.iter().all(late), "{refused:?}");
    drop(made);
    let from = Instant::now();
    let (code, said) = session.end();
    eprintln!("the session ended after {:.1?}", from.elapsed());
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn check_tries_a_network_of_one_container() {
    let folder = Folder::new("check");
    std::fs::write(folder.0.join("kfp-creds.toml"), STRICT).unwrap();
    let out = program(&folder.0).args(["check", "--offline"]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success() && text.contains("for a container each"), "{text}");
    assert!(text.contains("got a token at 169.254."), "{text}");
}

/// The host and the relay exchange nothing that a container could say in their place.
#[test]
fn the_relay_between_networks_does_not_route() {
    let session = Session::offline(STRICT, &["--all"]);
    let container = sleeper(&session);
    let relay = inspect(&format!("kfp-creds-relay-{}", id(&session)));
    let sysctls = &relay["HostConfig"]["Sysctls"];
    // Podman does not list the sysctls, so the kernel is asked.
    let space = format!("--net=/proc/{}/ns/net", relay["State"]["Pid"]);
    for (name, value) in [
        ("net.ipv4.ip_forward", "0"),
        ("net.ipv4.conf.all.rp_filter", "1"),
        ("net.ipv4.conf.all.arp_ignore", "2"),
    ] {
        if is_podman() {
            let found = Command::new("nsenter").args([&space, "sysctl", "-n", name]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&found.stdout).trim(), value, "{name}");
        } else {
            assert_eq!(sysctls[name], value, "{sysctls}");
        }
    }
    let networks = relay["NetworkSettings"]["Networks"].as_object().unwrap();
    assert_eq!(networks[&network_of(&container.0)]["IPAddress"], relay_of(&container.0));
    if is_podman() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", relay["State"]["Pid"])).unwrap();
        assert!(status.contains("CapBnd:\t0000000000000000"), "{status}");
    } else {
        assert_eq!(relay["HostConfig"]["CapDrop"], serde_json::json!(["ALL"]));
    }
}
