//! An engine with its own files and network, like that of Docker Desktop, colima and others: the sources of
//! binds and volumes are paths on its machine, but the guard reads this one.

use std::time::Duration;

use crate::support::raw::until;
use crate::support::second_engine::{IMAGE, SecondEngine};
use crate::support::session::{Folder, Session};

use super::restart::{stays, tokens};

/// A key that no service accepts; made when the test runs.
fn key() -> String {
    let dashes = "-".repeat(5);
    let label = ["PRIVATE", "KEY"].join(" ");
    let body = "MIIEvQIBADANBgkqhkiG9w0BAQEF".repeat(6);
    format!("{dashes}BEGIN {label}{dashes}\n{body}\n{dashes}END {label}{dashes}\n")
}

#[test]
fn an_engine_with_files_of_its_own_is_served_and_guarded() {
    let engine = SecondEngine::vm();
    let host = engine.host();
    let session =
        Session::start("", &["--offline", "--all"], &[("DOCKER_HOST", &host), ("KFP_CREDS_GUARD", "deny")]);
    let container = session.ok(&["run", "-d", "--stop-timeout", "1", IMAGE, "sh", "-c", &stays()]);
    until("a token", Duration::from_secs(20), || tokens(&engine, &container) == 1);
    let code = session.docker(&["run", "--rm", IMAGE, "sh", "-c", "exit 7"]).status.code();
    assert_eq!(code, Some(7), "{}", session.said());

    binds(&session);
    volumes(&session);
    loads(&session, &engine);
    let (code, said) = session.end();
    assert_eq!(code, Some(0), "{said}");
}

/// The guard judges a source by its path on this machine. A path that is not shared with the engine is empty
/// there.
fn binds(session: &Session) {
    let folder = Folder::new("vm");
    std::fs::write(folder.0.join("data.csv"), "1,2\n").unwrap();
    let bind = format!("{}:/x", folder.0.display());
    let seen = session.ok(&["run", "--rm", "-v", &bind, IMAGE, "busybox", "ls", "-A", "/x"]);
    assert_eq!(seen, "", "the engine has no such files");
    std::fs::write(folder.0.join("key.pem"), key()).unwrap();
    refused(session, &["create", "-v", &bind, IMAGE, "true"], "key.pem");
}

/// Nobody here can read a volume of that machine: the create passes, and the session reports it.
fn volumes(session: &Session) {
    session.ok(&["run", "--rm", "-v", "kept:/x", IMAGE, "sh", "-c", "echo kept >/x/file"]);
    assert_eq!(session.ok(&["run", "--rm", "-v", "kept:/x", IMAGE, "busybox", "cat", "/x/file"]), "kept");
    session.wait_for("not verified", Duration::from_secs(5));
}

/// An archive is sent through the session, wherever the engine runs.
fn loads(session: &Session, engine: &SecondEngine) {
    let folder = Folder::new("vm");
    let key_file = folder.0.join("key.pem");
    std::fs::write(&key_file, key()).unwrap();
    let base = engine.ok(&["create", IMAGE, "true"]);
    engine.ok(&["cp", &key_file.display().to_string(), &format!("{base}:/key.pem")]);
    engine.ok(&["commit", &base, "kct-with-key:1"]);
    engine.ok(&["rm", &base]);
    let saved = |image: &str, name: &str| {
        let tar = folder.0.join(name).display().to_string();
        engine.ok(&["save", "-o", &tar, image]);
        tar
    };
    let (bad, good) = (saved("kct-with-key:1", "bad.tar"), saved(IMAGE, "good.tar"));
    engine.ok(&["rmi", "kct-with-key:1"]);
    refused(session, &["load", "-i", &bad], "key.pem");
    assert_eq!(engine.ok(&["images", "-q", "kct-with-key"]), "", "nothing of it was loaded");
    session.ok(&["load", "-i", &good]);
}

fn refused(session: &Session, arguments: &[&str], word: &str) {
    let out = session.docker(arguments);
    let said = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
    assert!(!out.status.success() && said.contains(word), "docker {arguments:?}: {said}\n{}", session.said());
}
