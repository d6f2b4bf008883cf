//! Google's own library on this machine, pointed at `serve --listen`.

use std::process::Command;

use serde_json::Value;

use crate::support::listening::Listening;
use crate::support::session::{Folder, python};

pub(crate) const SCRIPT: &str = include_str!("../python/google_auth.py");

/// Runs the library with `place` as its metadata server and none of the developer's credentials in reach.
fn library(place: &str) -> Result<Value, String> {
    assert!(place.starts_with("127.0.0.1:"), "{place}");
    let home = Folder::new("home");
    let out = Command::new(python())
        .args(["-c", SCRIPT])
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap())
        .env("HOME", &home.0)
        .env("CLOUDSDK_CONFIG", &home.0)
        .env("GCE_METADATA_HOST", place)
        .env("GCE_METADATA_IP", place)
        .env("GCE_METADATA_ROOT", place)
        .env("GCE_METADATA_DETECT_RETRIES", "1")
        .output()
        .unwrap();
    if out.status.success() {
        Ok(serde_json::from_slice(&out.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&out.stderr).into_owned())
    }
}

/// What the library must find, both in a container and here.
pub(crate) fn assert_found(report: &Value, project: &str, account: &str) {
    assert_eq!(report["kind"], "google.auth.compute_engine.credentials");
    assert_eq!((&report["project"], &report["account"]), (&project.into(), &account.into()));
    assert_eq!((&report["universe"], &report["valid"]), (&"googleapis.com".into(), &true.into()));
    assert!(report["left"].as_f64().is_some_and(|left| (3000.0..=3601.0).contains(&left)), "{report}");
    assert_eq!(report["identity"]["aud"], "https://service.example/path?a=b");
    for token in ["first", "second", "identity"] {
        assert_eq!(report[token]["email"], account, "{token}");
    }
    // A refresh gives the existing token while that is valid.
    assert_eq!(report["first"]["jti"], report["second"]["jti"]);
}

#[test]
fn google_auth_works_behind_a_secret_path() {
    let server = Listening::guarded("project = \"own-project\"\nemail = \"own@own-project.example\"\n");
    let (at, path) = server.place.split_once('/').unwrap();
    assert_eq!(path.len(), 32, "{path}");
    assert_found(&library(&server.place).unwrap(), "own-project", "own@own-project.example");
    for wrong in [at.to_string(), format!("{at}/{}", "x".repeat(32))] {
        let why = library(&wrong).unwrap_err();
        assert!(why.contains("DefaultCredentialsError"), "{wrong}: {why}");
    }
}

#[test]
fn google_auth_works_without_a_secret_path() {
    let server = Listening::open("");
    assert_found(&library(&server.place).unwrap(), "offline-project", "offline@kfp-creds.invalid");
}

/// The config's universe applies to every source, also to one that has no universe of its own.
#[test]
fn google_auth_learns_another_universe() {
    let server = Listening::with(&[("KFP_CREDS_UNIVERSE", "cloud.example")]);
    assert_eq!(library(&server.place).unwrap()["universe"], "cloud.example");
}
