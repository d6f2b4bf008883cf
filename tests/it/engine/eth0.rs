//! The user's network is `eth0` in every start. Engine 28 names interfaces in the order of a Go map (moby
//! #49935), so one start proves nothing.

use crate::support::raw::{Container, Internal, ask, token};
use crate::support::session::{Session, docker_at, engine_socket, repeated, task_image};

/// Prints the addresses of `eth0` and asks for a token.
fn script() -> String {
    let show = "python3 -c 'import fcntl, socket, struct
for name in sorted(n for _, n in socket.if_nameindex() if n != \"lo\"):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    at = fcntl.ioctl(s, 0x8915, struct.pack(\"256s\", name.encode()))[20:24]
    print(name, socket.inet_ntoa(at))'";
    format!("{show}; echo --; {}", ask())
}

/// Starts `times` containers and returns the interfaces of each with their addresses.
fn interfaces(session: &Session, networks: &[&Internal], times: usize) -> Vec<Vec<(String, String)>> {
    let (script, image) = (script(), task_image());
    let networks: Vec<&str> = networks.iter().flat_map(|network| ["--network", network.0.as_str()]).collect();
    let started = (0..times).map(|_| {
        let arguments = [&networks[..], &[&image, "sh", "-c", &script]].concat();
        let container = Container::of(session, &arguments);
        let told = session.ok(&["start", "-a", &container.0]);
        let (shown, answer) = told.split_once("--").unwrap();
        assert_eq!(token(answer)["container"], container.0);
        let row = |line: &str| line.split_once(' ').map(|(name, at)| (name.into(), at.into()));
        shown.lines().filter_map(row).collect()
    });
    started.collect()
}

fn ours(at: &str) -> bool {
    at.starts_with("169.254.") || at.starts_with("198.18.")
}

fn hold(all: &[Vec<(String, String)>], networks: usize) {
    for shown in all {
        let theirs: Vec<&str> =
            shown.iter().filter(|(_, at)| !ours(at)).map(|(name, _)| name.as_str()).collect();
        let want: Vec<String> = (0..networks).map(|number| format!("eth{number}")).collect();
        assert_eq!(theirs, want, "{shown:?} of {all:?}");
        assert_eq!(shown.len(), networks + 1, "{shown:?}");
    }
}

/// Whether a create can name two networks: the command line since 25, the engine since API 1.44.
fn two_at_create() -> bool {
    let one = Internal::new();
    let other = Internal::new();
    let arguments = ["create", "--network", &one.0, "--network", &other.0, &task_image(), "true"];
    let made = docker_at(&engine_socket(), &arguments);
    let id = String::from_utf8_lossy(&made.stdout).trim().to_string();
    docker_at(&engine_socket(), &["rm", &id]);
    made.status.success()
}

#[test]
fn the_user_s_network_is_eth0_in_every_start() {
    let (session, network) = (Session::offline("", &["--all"]), Internal::new());
    hold(&interfaces(&session, &[&network], repeated(50)), 1);
}

#[test]
fn the_user_s_two_networks_are_eth0_and_eth1_in_every_start() {
    let session = Session::offline("", &["--all"]);
    let networks = [Internal::new(), Internal::new()];
    if two_at_create() {
        hold(&interfaces(&session, &[&networks[0], &networks[1]], repeated(50)), 2);
        return;
    }
    // For such an engine, the second network is connected by hand.
    for _ in 0..10 {
        let script = script();
        let arguments = ["--network", &networks[0].0, &task_image(), "sh", "-c", &script];
        let container = Container::of(&session, &arguments);
        session.ok(&["network", "connect", &networks[1].0, &container.0]);
        let told = session.ok(&["start", "-a", &container.0]);
        let first = told.lines().find(|line| line.starts_with("eth0 ")).unwrap();
        assert!(!ours(first.split(' ').nth(1).unwrap()), "{told}");
    }
}

#[test]
fn in_isolation_the_users_network_is_eth0_too() {
    let (session, network) = (Session::offline(super::attacks::STRICT, &["--all"]), Internal::new());
    hold(&interfaces(&session, &[&network], repeated(25)), 1);
    // The same after the relay was replaced.
    let relay = format!("kfp-creds-relay-{}", session.socket.file_stem().unwrap().to_string_lossy());
    docker_at(&engine_socket(), &["kill", &relay]);
    session.wait_for("the relay died and was replaced", std::time::Duration::from_secs(20));
    hold(&interfaces(&session, &[&network], repeated(25)), 1);
}
