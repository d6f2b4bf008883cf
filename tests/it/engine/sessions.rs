//! Sessions at the same time, after each other, and after a crash.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::delayed_engine::DelayedEngine;
use crate::support::proxy_fixture;
use crate::support::raw::{Container, Running, SECOND, ask, network, token, until};
use crate::support::session::{
    Folder, Session, docker_at, engine_socket, networks_left, program, raw, task_image,
};

const SLEEPS: [&str; 3] = ["sh", "-c", "exec sleep 90"];

fn sleeper(session: &Session) -> Container {
    let container = Container::of(session, &[&[task_image().as_str()], &SLEEPS[..]].concat());
    session.ok(&["start", &container.0]);
    assert_eq!(container.asks().1, 200);
    container
}

fn id(session: &Session) -> String {
    session.socket.file_stem().unwrap().to_string_lossy().into_owned()
}

/// What is left of a session: its network, relay and socket.
fn left(id: &str, socket: &std::path::Path) -> String {
    let label = format!("label=kfp-creds.session={id}");
    let there = raw(&["network", "ls", "-q", "--filter", &label]);
    let networks = networks_left(&label).concat();
    let relays = raw(&["ps", "-aq", "--filter", &format!("name=kfp-creds-relay-{id}")]);
    format!(
        "{networks}{relays}{}",
        // A network that cannot be removed keeps the socket, which shows the next start that no session
        // answers there.
        if socket.exists() && there.is_empty() { socket.display().to_string() } else { String::new() }
    )
}

fn running(container: &Container) -> bool {
    container.inspect("{{.State.Running}}") == "true"
}

#[test]
fn a_killed_serve_is_swept_and_nothing_else() {
    let (first, neighbour) = (Session::offline("", &["--all"]), Session::offline("", &["--all"]));
    let (mine, theirs) = (sleeper(&first), sleeper(&neighbour));
    let stopped = Container::of(&first, &[&task_image(), "true"]);
    // Any image can have our labels: this container belongs to no session.
    let copy = format!("kct-copy:{}", id(&first));
    raw(&["commit", &mine.0, &copy]);
    let copied = Container::raw(&["--network", "none", &copy, "sleep", "90"]);
    raw(&["start", &copied.0]);
    let foreign = crate::support::raw::Internal::new();
    let (killed, socket) = (id(&first), first.socket.clone());
    let (name, relay) = network(&first);
    first.kill();
    until("the relay of a dead session ends", Duration::from_secs(5), || {
        raw(&["ps", "-q", "--filter", &format!("name=kfp-creds-relay-{killed}")]).is_empty()
    });

    let second = Session::offline("", &["--all"]);
    assert!(running(&mine) && running(&theirs) && running(&copied));
    assert_eq!(theirs.asks().1, 200);
    assert_eq!(
        raw(&["network", "ls", "-q", "--filter", &format!("name=^{}$", foreign.0)]).lines().count(),
        1
    );
    // It has no identity, whichever session owns its network now.
    let asked = mine.asks().1;
    assert!(asked == 503 || asked == 0, "{asked}");
    if network(&second).0 == name {
        assert_eq!(network(&second).1, relay);
        assert_eq!(sleeper(&second).asks().1, 200);
    }
    // The stopped container was taken off the network, so it can be started.
    raw(&["start", &stopped.0]);
    drop((mine, stopped));
    drop(second);
    drop(Session::offline("", &[]));
    assert_eq!(left(&killed, &socket), "");
    assert_eq!(theirs.asks().1, 200, "{}", neighbour.said());
    drop(copied);
    raw(&["rmi", &copy]);
}

/// The kind of its own session decides how a container is swept: its network may have belonged to another
/// session.
#[test]
fn a_run_on_the_network_of_a_serve_is_swept_as_a_run() {
    let serve = Session::offline(SECOND, &["--all"]);
    let stays = sleeper(&serve);
    let (session, name) = (id(&serve), network(&serve).0);
    let relay_ends = || {
        until("the relay ends", Duration::from_secs(5), || {
            raw(&["ps", "-q", "--filter", &format!("name=kfp-creds-relay-{session}")]).is_empty()
        });
    };
    serve.kill();
    relay_ends();
    let script = format!("docker run -d {} sleep 90; sleep 60", task_image());
    let folder = Folder::new("run");
    let mut process = program(&folder.0);
    process.env("KFP_CREDS_ATTACH", "second").args(["run", "--offline", "--all", "--", "sh", "-c", &script]);
    let mut run = Running::spawn(process.stdin(Stdio::null()), Some(folder));
    until("a container", Duration::from_secs(20), || run.out().lines().count() == 1);
    let goes = Container(run.out().trim().into());
    // The command line prints the id before it starts the container.
    until("it runs", Duration::from_secs(10), || running(&goes));
    assert!(run.err().contains(&format!("network {name} ")), "it was not taken over: {}", run.err());
    run.signal("-KILL");
    run.wait(Duration::from_secs(2));
    let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", run.pid())]).status();
    relay_ends();
    drop(Session::offline("", &[]));
    assert!(running(&stays), "the container of the serve was stopped");
    assert!(!running(&goes), "the container of the dead run still runs");
}

/// The end has begun, but the engine hangs.
#[test]
fn two_more_signals_leave_a_hung_engine_to_the_next_start() {
    let folder = Folder::new("between");
    let between = DelayedEngine::start(&folder.0, &engine_socket());
    let engine = format!("unix://{}", between.socket.display());
    let session = Session::start("", &["--offline", "--all"], &[("DOCKER_HOST", &engine)]);
    let (container, socket) = (sleeper(&session), session.socket.clone());
    let signal = || Command::new("kill").args(["-INT", &session.pid().to_string()]).status().unwrap();
    between.hang();
    signal();
    // Two signals at the same time would count as one.
    std::thread::sleep(Duration::from_millis(300));
    let (status, said) = proxy_fixture::call(&socket, "POST /v1.41/containers/create", r#"{"Image":"x"}"#);
    assert!(status >= 400 && said.contains("ending"), "{status} {said}");
    assert!(!session.said().contains("still ending"), "{}", session.said());
    signal();
    session.wait_for(
        "still ending; press Ctrl-C or send the signal again to leave the rest to the next start",
        Duration::from_secs(5),
    );
    signal();
    session.wait_for("left as it is: the next start of kfp-creds removes it", Duration::from_secs(5));
    let left_by = id(&session);
    let (code, said) = session.left();
    assert_eq!(code, Some(0), "{said}");
    until("its relay ends with it", Duration::from_secs(5), || {
        raw(&["ps", "-q", "--filter", &format!("name=kfp-creds-relay-{left_by}")]).is_empty()
    });
    drop(container);
    drop(Session::offline("", &[]));
    assert_eq!(left(&left_by, &socket), "");
}

#[test]
fn a_killed_run_is_swept_with_its_containers() {
    let image = task_image();
    let script = format!(
        "docker run -d {image} sleep 90; docker run -d {image} sleep 90; docker create {image} true; sleep 60"
    );
    let mut run = Running::run(&["--all"], &["sh", "-c", &script]);
    until("three containers", Duration::from_secs(20), || run.out().lines().count() == 3);
    let made: Vec<Container> = run.out().lines().map(|id| Container(id.into())).collect();
    let said = run.err();
    let network =
        said.lines().find(|l| l.contains("ready  ")).unwrap().split("network ").last().unwrap().to_string();
    let network = network.split(' ').next().unwrap().to_string();
    let label = raw(&["network", "inspect", "-f", "{{index .Labels \"kfp-creds.session\"}}", &network]);
    let user = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap());
    let socket = std::path::PathBuf::from(format!("/tmp/kfp-creds-{user}/{label}.sock"));
    assert!(socket.exists(), "{}", socket.display());
    until("they run", Duration::from_secs(10), || made[..2].iter().all(running));
    run.signal("-KILL");
    run.wait(Duration::from_secs(2));
    // The command outlives the killed session, so the test ends it.
    let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", run.pid())]).status();
    until("the relay ends", Duration::from_secs(5), || {
        raw(&["ps", "-q", "--filter", &format!("name=kfp-creds-relay-{label}")]).is_empty()
    });
    drop(Session::offline("", &[]));
    assert!(!made.iter().any(running), "a container of the dead run still runs");
    assert_eq!(left(&label, &socket), "");
    raw(&["start", &made[2].0]);
}

#[test]
fn a_killed_session_leaves_its_neighbour_alone() {
    let start = || std::thread::spawn(|| Session::offline("", &["--all"]));
    let (first, second) = (start(), start());
    let (first, second) = (first.join().unwrap(), second.join().unwrap());
    assert_ne!(network(&first), network(&second));
    let (one, other) = (sleeper(&first), sleeper(&second));
    let third = start();
    first.kill();
    for _ in 0..30 {
        let (body, status, seconds) = other.asks();
        assert_eq!(status, 200, "{body}");
        assert!(seconds < 1.0, "{seconds} s");
    }
    let third = third.join().unwrap();
    assert_eq!(other.asks().1, 200);
    let script = ask();
    for session in [&second, &third] {
        let container = Container::of(session, &[&task_image(), "sh", "-c", &script]);
        assert_eq!(token(&session.ok(&["start", "-a", &container.0]))["container"], container.0);
    }
    assert!(!second.said().contains("replaced"), "{}", second.said());
    drop(one);
}

/// While a dead relay is being replaced, the session has none, but it is alive.
#[test]
fn a_session_whose_relay_is_being_replaced_is_not_swept() {
    let session = Session::offline("", &["--all"]);
    let container = sleeper(&session);
    let name = format!("kfp-creds-relay-{}", id(&session));
    let neighbours = std::thread::spawn(|| {
        for _ in 0..3 {
            drop(Session::offline("", &[]));
        }
    });
    for _ in 0..8 {
        docker_at(&engine_socket(), &["kill", &name]);
        std::thread::sleep(Duration::from_millis(350));
    }
    neighbours.join().unwrap();
    until("tokens again", Duration::from_secs(10), || container.asks().1 == 200);
}

#[test]
fn serve_leaves_containers_running_and_startable() {
    let session = Session::offline("", &["--all"]);
    let runs = sleeper(&session);
    let stopped = sleeper(&session);
    session.ok(&["stop", "-t", "0", &stopped.0]);
    let created = Container::of(&session, &[&task_image(), "true"]);
    let (network, _) = network(&session);
    let (code, said) = session.end();
    assert_eq!(code, Some(0), "{said}");
    let line = |c: &Container| {
        said.lines()
            .filter(|l| l.contains(c.short()) && l.contains("keeps running, without identity"))
            .count()
    };
    assert_eq!((line(&runs), line(&stopped), line(&created)), (1, 0, 0), "{said}");
    assert!(said.contains(&format!("the network {network} stays")), "{said}");
    assert!(running(&runs));
    assert_ne!(runs.asks().1, 200);
    // The engine would connect them to a network that goes with its last running container.
    raw(&["stop", "-t", "0", &runs.0]);
    let next = Session::offline("", &[]);
    drop(next);
    for container in [&stopped, &created, &runs] {
        raw(&["start", &container.0]);
    }
}
