//! What fails with a real engine: rows of `docs/internals/failures.md`.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::engine::attacks::network_of;
use crate::engine::terminal::normal;
use crate::support::delayed_engine::DelayedEngine;
use crate::support::failures::Happened;
use crate::support::raw::{Container, Internal, TOKEN, address, ask, token, until};
use crate::support::second_engine::{IMAGE, SecondEngine};
use crate::support::session::{Folder, Session, docker_at, engine_socket, program, raw, task_image};

const ENGINE: &str = "Engine";
const CONTAINERS: &str = "Containers and their network";
const COMMAND: &str = "Clients and the session";
const ENDED: &str = "no: the session has ended";
const UNAFFECTED: &str = "not needed: tokens are served all the time";
const BY_ITSELF: &str = "yes";

fn steady(word: &str) -> String {
    let core = word.trim_matches(|c| "(),;:".contains(c));
    if core.starts_with("/v1.") {
        return word.replace(core.split('/').nth(1).unwrap_or_default(), "…");
    }
    let hex = core.len() >= 8 && core.bytes().all(|b| b.is_ascii_hexdigit());
    let placeholder = ["CONTAINER", "ADDRESS", "TIME", "SECONDS", "VERSION"].contains(&core);
    if hex || placeholder || core.starts_with("/tmp/") { word.replace(core, "…") } else { word.into() }
}

/// The lines without progress and what every session says; what differs from run to run is `…`.
fn lines(said: &str) -> String {
    let one = |line: &str| {
        let line = normal(line);
        let mut words: Vec<String> = line.split(' ').map(steady).collect();
        for at in 1..words.len() {
            if words[at] == "ms" {
                words[at - 1] = "…".into();
            }
        }
        words.join(" ")
    };
    let every_session = ["kfp-creds: ...  ", "kfp-creds: ready  ", "run the lines above"];
    let wanted = |line: &&str| !every_session.iter().any(|part| line.contains(part));
    said.lines().filter(wanted).map(one).collect::<Vec<_>>().join("\n").replace(&task_image(), "IMAGE")
}

fn since(session: &Session, before: &str) -> String {
    std::thread::sleep(Duration::from_millis(300));
    lines(session.said().strip_prefix(before).unwrap())
}

fn sleeper(session: &Session) -> Container {
    let image = task_image();
    Container(session.ok(&["run", "-d", "--stop-timeout", "1", &image, "sleep", "120"]))
}

fn relay(session: &Session) -> String {
    format!("kfp-creds-relay-{}", session.socket.file_stem().unwrap().to_string_lossy())
}

#[test]
fn addresses_that_are_taken() {
    let config = "[network]\nattach = \"second\"\npool = \"10.219.38.0/28\"\n";
    let session = Session::offline(config, &["--all"]);
    let image = task_image();
    let mut all: Vec<Container> =
        (0..10).map(|_| Container(session.ok(&["create", &image, "true"]))).collect();
    let before = session.said();
    let refused = session.docker(&["create", &image, "true"]);
    let client = lines(&String::from_utf8(refused.stderr).unwrap());
    let case = "all addresses of the pool are in use";
    let person = since(&session, &before);
    all.pop();
    until("an address is free", Duration::from_secs(5), || {
        let made = session.docker(&["create", &image, "true"]);
        let id = String::from_utf8_lossy(&made.stdout).trim().to_owned();
        made.status.success().then(|| all.push(Container(id))).is_some()
    });
    let recovers = "yes: once a container is removed";
    Happened { part: CONTAINERS, case, client, person, recovers }.is_on_the_page();
}

#[test]
fn a_pool_that_another_network_has() {
    let other = Internal::new();
    let subnet = raw(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", &other.0]);
    let folder = Folder::new("taken");
    let mut command = program(&folder.0);
    command.env("KFP_CREDS_POOL", &subnet).env("KFP_CREDS_ATTACH", "second");
    let out = command.args(["run", "--offline", "--", "true"]).stdin(Stdio::null()).output().unwrap();
    let client = format!("exit code {}", out.status.code().unwrap());
    let person = String::from_utf8(out.stderr).unwrap().replace(&subnet, "…").replace(&other.0, "…");
    let recovers = "yes: the session takes another range";
    let case = "another network has the addresses of the pool";
    Happened { part: CONTAINERS, case, client, person: lines(&person), recovers }.is_on_the_page();
}

#[test]
fn a_session_that_was_killed() {
    let killed = Session::offline("", &["--all"]);
    let left = sleeper(&killed);
    assert_eq!(left.asks().1, 200);
    killed.kill();
    until("the relay follows", Duration::from_secs(10), || left.asks().1 != 200);
    let client = match left.asks().1 {
        0 => "no answer".into(),
        status => status.to_string(),
    };
    drop(left);
    let next = Session::offline("", &["--all"]);
    let person = lines(&next.said());
    assert_eq!(sleeper(&next).asks().1, 200);
    let case = "a session is killed, and the next one starts";
    let recovers = "yes: the next session removes the network and the relay";
    Happened { part: CONTAINERS, case, client, person, recovers }.is_on_the_page();
}

#[test]
fn a_relay_that_is_killed() {
    let session = Session::offline("", &["--all"]);
    let attached = sleeper(&session);
    assert_eq!(attached.asks().1, 200);
    let before = session.said();
    raw(&["kill", &relay(&session)]);
    session.wait_for("the relay died", Duration::from_secs(10));
    until("the relay is back", Duration::from_secs(20), || attached.asks().1 == 200);
    let person = since(&session, &before);
    let (case, client) =
        ("the relay is killed, as when memory is short", "200 once the relay is back".into());
    Happened { part: CONTAINERS, case, client, person, recovers: BY_ITSELF }.is_on_the_page();
}

/// Kills the relay, and pauses the session during `change`.
fn without_relay(session: &Session, change: impl FnOnce()) {
    let signal = |name: &str| {
        assert!(Command::new("kill").args([name, &session.pid().to_string()]).status().unwrap().success());
    };
    signal("-STOP");
    raw(&["kill", &relay(session)]);
    change();
    signal("-CONT");
}

#[test]
fn a_session_network_that_is_removed() {
    let session = Session::offline("", &["--all"]);
    let network = crate::support::raw::network(&session).0;
    let before = session.said();
    without_relay(&session, || {
        until("the network is gone", Duration::from_secs(10), || {
            docker_at(&engine_socket(), &["network", "rm", &network]).status.success()
        });
    });
    session.wait_for("does not come back", Duration::from_secs(45));
    let person = since(&session, &before).replace("docker …; says", "docker info says");
    let (code, _) = session.left();
    assert_eq!(sleeper(&Session::offline("", &["--all"])).asks().1, 200);
    let client = format!("no answer: exit code {}", code.unwrap());
    let case = "the session's network is removed, and the relay ends";
    let recovers = "no: start the session again";
    Happened { part: CONTAINERS, case, client, person, recovers }.is_on_the_page();
}

/// Somebody removes the image, as `docker system prune --all --force` does while the relay does not run.
#[test]
fn a_relay_image_that_is_removed() {
    let session = Session::offline("", &["--all"]);
    let attached = sleeper(&session);
    assert_eq!(attached.asks().1, 200);
    let image = raw(&["inspect", "-f", "{{.Image}}", &relay(&session)]);
    let tag = raw(&["image", "inspect", "-f", "{{index .RepoTags 0}}", &image]);
    let before = session.said();
    raw(&["rmi", "-f", &tag]);
    // The engine keeps an image without a name as long as the relay runs.
    without_relay(&session, || {
        until("the image is gone", Duration::from_secs(10), || {
            docker_at(&engine_socket(), &["rmi", "-f", &image]);
            !docker_at(&engine_socket(), &["image", "inspect", &image]).status.success()
        });
    });
    session.wait_for("the relay died", Duration::from_secs(40));
    until("the relay is back", Duration::from_secs(20), || attached.asks().1 == 200);
    let person = since(&session, &before);
    assert_eq!(raw(&["image", "inspect", "-f", "{{.Id}}", &tag]), image, "the same image, by the same name");
    let (case, client) =
        ("the relay's image is removed, and the relay ends", "200 once the relay is back".into());
    let recovers = "yes: the session loads the image again";
    Happened { part: CONTAINERS, case, client, person, recovers }.is_on_the_page();
}

/// Two identities, by the label `task`.
const BY_LABEL: &str = "[identity.reader]\nservice_account = \"reader@p.iam.gserviceaccount.com\"\n\
    [[rule]]\nlabels = { task = \"reader\" }\nidentity = \"reader\"\n\
    [identity.writer]\nservice_account = \"writer@p.iam.gserviceaccount.com\"\n\
    [[rule]]\nlabels = { task = \"writer\" }\nidentity = \"writer\"\n";

fn task(session: &Session, name: &str) -> Container {
    let (label, image) = (format!("task={name}"), task_image());
    Container(session.ok(&["run", "-d", "--stop-timeout", "1", "--label", &label, &image, "sleep", "120"]))
}

/// Puts another container at the address of one that ends; the session is told of the second at once, and
/// only much later of the end of the first. The first answer to the second, and the second.
fn next_at_the_address_of(
    first: &Container,
    between: &DelayedEngine,
    at: &str,
    option: &str,
) -> (String, Container) {
    // Podman uses `remove` for `destroy`.
    for action in ["die", "disconnect", "destroy", "remove"] {
        between.hold(action, &first.0, Duration::from_secs(12));
    }
    let url = format!("http://{}/{TOKEN}", first.exec("echo $GCE_METADATA_IP"));
    let asks = format!("curl -s -m 4 -w '\\nHTTP %{{http_code}}\\n' -H Metadata-Flavor:Google {url}");
    let script = format!("for n in $(seq 20); do {asks}; sleep 0.1; done");
    let (network, image) = (network_of(&first.0), task_image());
    let second =
        Container::raw(&["--network", &network, option, at, &image, "timeout", "5", "sh", "-c", &script]);
    raw(&["kill", &first.0]);
    until("the address is free", Duration::from_secs(5), || {
        docker_at(&engine_socket(), &["start", &second.0]).status.success()
    });
    raw(&["wait", &second.0]);
    assert!(between.place("die", &first.0).is_none(), "the session was told of the end already");
    let told = raw(&["logs", &second.0]);
    assert!(!told.contains("access_token"), "{told}");
    assert!(told.matches("HTTP 503").count() > 1 && !told.contains("HTTP 2"), "{told}");
    let (body, status) = told.split_once("\nHTTP ").unwrap();
    (format!("{} {body}", status.lines().next().unwrap()), second)
}

#[test]
fn the_next_container_at_an_address_gets_no_old_token() {
    let folder = Folder::new("between");
    let between = DelayedEngine::start(&folder.0, &engine_socket());
    let host = format!("unix://{}", between.socket.display());
    let session = |network: &str| {
        let config = format!("{BY_LABEL}[network]\n{network}");
        Session::start(&config, &["--offline", "--all"], &[("DOCKER_HOST", &host)])
    };
    let reader = |session: &Session| {
        let first = task(session, "reader");
        assert_eq!(token(&first.exec(&ask()))["email"], "reader@p.iam.gserviceaccount.com");
        let at = address(session, &first);
        (first, at)
    };
    // The engine lets two containers have one link-local address.
    let on_bridge = session("attach = \"own\"\n");
    let (first, at) = reader(&on_bridge);
    next_at_the_address_of(&first, &between, &at, "--link-local-ip");
    drop((first, on_bridge));

    let session = session("attach = \"second\"\npool = \"10.219.39.0/28\"\n");
    let image = task_image();
    // All addresses but one.
    let _held: Vec<Container> = (0..9).map(|_| Container(session.ok(&["create", &image, "true"]))).collect();
    let (first, at) = reader(&session);
    let before = session.said();
    let (client, second) = next_at_the_address_of(&first, &between, &at, "--ip");
    drop(second);
    until("the end is told", Duration::from_secs(30), || between.place("die", &first.0).is_some());
    session.wait_for("ended  ", Duration::from_secs(5));
    let person = since(&session, &before);
    raw(&["rm", &first.0]);
    until("the address is free", Duration::from_secs(15), || {
        let made = session.docker(&["create", "--rm", "--label", "task=writer", &image, "sleep", "60"]);
        let next = Container(String::from_utf8_lossy(&made.stdout).trim().into());
        made.status.success() && {
            session.ok(&["start", &next.0]);
            assert_eq!(address(&session, &next), at);
            let claims = token(&next.exec(&ask()));
            assert_eq!(claims["email"], "writer@p.iam.gserviceaccount.com");
            claims["container"] == next.0
        }
    });
    let case = "another container gets an address before the session learns that the previous one ended";
    let recovers = "yes: the session's next container there has its own token";
    Happened { part: CONTAINERS, case, client, person, recovers }.is_on_the_page();
}

#[test]
fn a_container_that_cannot_start() {
    let config = "[network]\nattach = \"second\"\npool = \"10.219.38.0/28\"\n";
    let session = Session::offline(config, &["--all"]);
    let image = task_image();
    // All addresses but one.
    let _held: Vec<Container> = (0..9).map(|_| Container(session.ok(&["create", &image, "true"]))).collect();
    let stays = Container::of(&session, &[&image, "no-such-command"]);
    assert!(!session.docker(&["start", &stays.0]).status.success());
    let refused = session.docker(&["create", &image, "true"]);
    assert!(!refused.status.success(), "its address is free although it may start again");
    session.ok(&["rm", &stays.0]);
    session.wait_for("ended  ", Duration::from_secs(5));
    let before = session.said();
    let failed = session.docker(&["run", "--rm", &image, "no-such-command"]);
    let person = since(&session, &before);
    let plain = docker_at(&engine_socket(), &["run", "--rm", "--network", "none", &image, "no-such-command"]);
    let said = |out: &std::process::Output| String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said(&failed).contains("no-such-command"), "{}", said(&failed));
    assert_eq!((failed.status.code(), said(&failed)), (plain.status.code(), said(&plain)));
    let next = sleeper(&session);
    assert_eq!((next.asks().1, address(&session, &next).as_str()), (200, "10.219.38.10"));
    let case = "a container with an identity cannot start";
    let client = format!("exit code {}, and the engine's own message", failed.status.code().unwrap());
    let recovers = "yes: its address is free again once it is removed";
    Happened { part: CONTAINERS, case, client, person, recovers }.is_on_the_page();
}

#[test]
fn an_engine_that_is_paused() {
    let engine = SecondEngine::start();
    let session = Session::start("", &["--offline", "--all"], &[("DOCKER_HOST", &engine.host())]);
    let container = session.ok(&["run", "-d", IMAGE, "sleep", "600"]);
    let ask = "(printf 'GET /computeMetadata/v1/instance/service-accounts/default/token HTTP/1.0\\r\\nMetadata-Flavor: Google\\r\\n\\r\\n'; sleep 2) | busybox nc -w 5 $GCE_METADATA_IP 80 | busybox head -n 1";
    let asks = || engine.docker(&["exec", &container, "sh", "-c", ask]);
    let first = |out: std::process::Output| String::from_utf8_lossy(&out.stdout).trim().to_owned();
    let once = asks();
    assert!(first(once.clone()).contains("200"), "{once:?}");
    let before = session.said();
    engine.signal("-STOP");
    std::thread::sleep(Duration::from_secs(20));
    engine.signal("-CONT");
    until("the container is answered again", Duration::from_secs(30), || first(asks()).contains("200"));
    let person = since(&session, &before);
    let case = "the engine is paused for 20 s";
    let client = "200 once the engine runs again".into();
    Happened { part: ENGINE, case, client, person, recovers: BY_ITSELF }.is_on_the_page();
}

#[test]
fn a_proxy_socket_that_is_removed() {
    let session = Session::offline("", &["--all"]);
    let attached = sleeper(&session);
    let before = session.said();
    std::fs::remove_file(&session.socket).unwrap();
    let out = session.docker(&["version"]);
    assert!(!out.status.success());
    assert_eq!(attached.asks().1, 200, "those that are attached go on");
    let person = since(&session, &before);
    let client = "docker: no such socket; attached containers: 200".into();
    let case = "the proxy's socket is removed";
    let recovers = "no: start the session again";
    Happened { part: COMMAND, case, client, person, recovers }.is_on_the_page();
    assert_eq!(session.end().0, Some(0));
}

/// `run` with this shell script as its command, after `then` has seen it run.
fn command(script: &str, then: impl FnOnce(u32)) -> (Option<i32>, String) {
    let folder = Folder::new("command");
    let mut run = program(&folder.0);
    run.args(["run", "--offline", "--all", "--", "sh", "-c", script]);
    let child = run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    then(child.id());
    let out = child.wait_with_output().unwrap();
    (out.status.code(), lines(&String::from_utf8(out.stderr).unwrap()))
}

#[test]
fn commands_that_end_in_other_ways() {
    let marker = Folder::new("marker");
    let running = marker.0.join("running");
    let twice = format!("trap '' INT; touch {}; exec sleep 60", running.display());
    let ignores = format!("trap '' INT TERM; touch {}; exec sleep 60", running.display());
    for (case, script, interrupts) in [
        ("the command exits with 255", "exit 255", 0),
        ("the command is killed", "kill -9 $$", 0),
        ("the command leaves a process behind", "setsid sleep 5 >/dev/null 2>&1 & exit 0", 0),
        ("SIGTERM is sent twice", twice.as_str(), 2),
        ("SIGTERM is sent, and the command ignores it", ignores.as_str(), 1),
    ] {
        let _ = std::fs::remove_file(&running);
        let (code, person) = command(script, |pid| {
            for _ in 0..interrupts {
                until("the command runs", Duration::from_secs(20), || running.exists());
                std::thread::sleep(Duration::from_millis(500));
                assert!(Command::new("kill").args(["-TERM", &pid.to_string()]).status().unwrap().success());
            }
        });
        let client = format!("exit code {}", code.unwrap());
        Happened { part: COMMAND, case, client, person, recovers: ENDED }.is_on_the_page();
    }
}

#[test]
fn connections_that_stay_idle() {
    let session = Session::offline("", &["--all"]);
    let (busy, other) = (sleeper(&session), sleeper(&session));
    let before = session.said();
    busy.exec(
        "python3 -c 'import os, socket, time\n\
         held = [socket.create_connection((os.environ[\"GCE_METADATA_IP\"], 80)) for _ in range(1000)]\n\
         if os.fork(): os._exit(0)\n\
         os.close(1); os.close(2); time.sleep(30)'",
    );
    let (_, status, seconds) = other.asks();
    assert!(seconds < 1.0, "{seconds} s");
    let person = since(&session, &before);
    let client = format!("{status} for every other container");
    let case = "a container opens 1 000 connections and sends nothing";
    Happened { part: COMMAND, case, client, person, recovers: UNAFFECTED }.is_on_the_page();
}
