//! Names of networks, which are unique since Engine 25: a session starts whatever names are in use.

use std::process::{Command, Output};
use std::time::Duration;

use crate::support::raw::{Container, ask, network, token, until};
use crate::support::session::{Folder, Session, docker_at, engine_socket, program, raw, task_image};

const MAGIC: &str = "169.254.169.254";

fn works(session: &Session) {
    let script = ask();
    let container = Container::of(session, &[&task_image(), "sh", "-c", &script]);
    assert_eq!(token(&session.ok(&["start", "-a", &container.0]))["container"], container.0);
}

/// A session of another user of the same engine, with its own sockets and lock.
fn of_another_user(folder: &Folder) -> Session {
    let place = folder.0.display().to_string();
    Session::start("", &["--offline", "--all"], &[("XDG_RUNTIME_DIR", &place)])
}

fn check(folder: &Folder) -> Command {
    let mut check = program(&folder.0);
    check.args(["check", "--offline"]);
    check
}

fn good(out: &Output) {
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && !text.contains("!!") && text.contains("got a token at"), "{text}");
}

#[test]
fn sessions_of_one_user_run_side_by_side() {
    let sessions = [Session::offline("", &["--all"]), Session::offline("", &["--all"])];
    assert_ne!(network(&sessions[0]), network(&sessions[1]));
    sessions.iter().for_each(works);
}

#[test]
fn sessions_of_two_users_run_side_by_side() {
    let folder = Folder::new("user");
    let sessions = [Session::offline("", &["--all"]), of_another_user(&folder)];
    assert_ne!(network(&sessions[0]), network(&sessions[1]));
    sessions.iter().for_each(works);
}

#[test]
fn sessions_of_two_users_start_at_the_same_moment() {
    let folders: Vec<Folder> = (0..3).map(|_| Folder::new("user")).collect();
    let sessions: Vec<Session> = std::thread::scope(|scope| {
        let starts: Vec<_> =
            folders.iter().map(|folder| scope.spawn(move || of_another_user(folder))).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    sessions.iter().for_each(works);
}

#[test]
fn a_check_beside_a_session_passes_and_changes_nothing() {
    let (session, folder, other) =
        (Session::offline("", &["--all"]), Folder::new("check"), Folder::new("user"));
    good(&check(&folder).output().unwrap());
    good(&check(&folder).env("XDG_RUNTIME_DIR", &other.0).output().unwrap());
    works(&session);
    assert!(!session.said().contains("replaced"), "{}", session.said());
}

#[test]
fn two_checks_at_once_pass() {
    for users in [1, 2] {
        let folders = [Folder::new("check"), Folder::new("check")];
        let other = Folder::new("user");
        let checks: Vec<_> = folders
            .iter()
            .enumerate()
            .map(|(number, folder)| {
                let mut check = check(folder);
                if number == 1 && users == 2 {
                    check.env("XDG_RUNTIME_DIR", &other.0);
                }
                check
                    .stdout(std::process::Stdio::piped())
                    .stderr(std::process::Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        checks.into_iter().for_each(|check| good(&check.wait_with_output().unwrap()));
    }
}

/// A foreign network has the name that a session would take, and addresses that no session uses.
#[test]
fn a_network_of_the_same_name_and_other_addresses_is_ignored() {
    struct ForeignNetwork;
    impl Drop for ForeignNetwork {
        fn drop(&mut self) {
            docker_at(&engine_socket(), &["network", "rm", "kfp-creds"]);
        }
    }
    let name = ["network", "create", "--internal", "--subnet", "10.219.41.0/24", "kfp-creds"];
    // Another test's session may have the name now; an old engine allows it twice.
    until("the name is free", Duration::from_secs(60), || {
        docker_at(&engine_socket(), &name).status.success()
    });
    let _stranger = ForeignNetwork;
    let session = Session::offline("", &["--all"]);
    let (_, relay) = network(&session);
    assert!(relay == MAGIC || session.said().contains("holds its range"), "{}", session.said());
    works(&session);
    let out = check(&Folder::new("check")).output().unwrap();
    good(&out);
}

#[test]
fn the_network_of_a_killed_session_is_taken_over_or_swept() {
    let (first, folder) = (Session::offline("", &["--all"]), Folder::new("user"));
    let id = first.socket.file_stem().unwrap().to_string_lossy().into_owned();
    let held = Container::of(&first, &[&task_image(), "sleep", "60"]);
    first.ok(&["start", &held.0]);
    first.kill();
    until("its relay ends", Duration::from_secs(5), || {
        raw(&["ps", "-q", "--filter", &format!("name=kfp-creds-relay-{id}")]).is_empty()
    });
    // With a container that keeps running on it, and without one.
    works(&of_another_user(&folder));
    good(&check(&folder).output().unwrap());
    drop(held);
    works(&Session::offline("", &["--all"]));
    let label = format!("label=kfp-creds.session={id}");
    assert_eq!(crate::support::session::networks_left(&label), [""; 0]);
}
