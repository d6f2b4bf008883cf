//! Entra is busy and sends a Retry-After: Azure's library waits as long as this program says, and asks once
//! more.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::fake_entra::{APP, FakeEntra, STORAGE, TENANT, Trust};
use crate::support::served::Served;
use crate::support::session::{Folder, program};

/// Longer than the source itself waits (5 s), and than the library's own pauses of 0.8 and 1.6 s.
const PAUSE: Duration = Duration::from_secs(6);

const SECRET: &str = "canary-client-secret";

pub(super) fn python_of_clouds() -> PathBuf {
    let clients = std::env::var("KFP_CREDS_CLIENTS").expect("scripts/setup --clients installs the libraries");
    Path::new(&clients).join("venv-clouds/bin/python")
}

/// A session with tokens of Azure from `entra`. At its start it requests one for the first resource, which
/// the client does not use.
fn session(folder: &Folder, entra: &FakeEntra) -> Served {
    let config = format!(
        "[azure]\ncredentials = \"environment\"\n[identity.default]\ngoogle = false\n[identity.default.azure]\nresources = [\"https://vault.azure.net\", {STORAGE:?}]\n\
         [audit]\nfile = {:?}\n",
        folder.0.join("audit.jsonl")
    );
    std::fs::write(folder.0.join("kfp-creds.toml"), config).unwrap();
    let mut command = program(&folder.0);
    command.args(["serve", "--json", "--listen", "127.0.0.1:0", "--config", "kfp-creds.toml"]);
    command.envs([("AZURE_TENANT_ID", TENANT), ("AZURE_CLIENT_ID", APP), ("AZURE_CLIENT_SECRET", SECRET)]);
    command.env("AZURE_AUTHORITY_HOST", entra.url());
    Served::of(command).unwrap_or_else(|(_, said)| panic!("it did not start: {said}"))
}

#[test]
fn azures_library_waits_as_long_as_entra_asks_for() {
    let (folder, entra) = (Folder::new("busy"), FakeEntra::start());
    entra.trust(APP, Trust::Secret(SECRET.into()));
    let mut served = session(&folder, &entra);
    entra.asks_to_wait(&PAUSE.as_secs().to_string());
    entra.fail(429, r#"{"error":"temporarily_unavailable"}"#);
    let before = entra.seen().len();
    let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/clients/programs/python_clouds.py");
    let mut command = Command::new(python_of_clouds());
    command.arg(client).args(["azure-identity", "identity"]).env_clear();
    command.env("PATH", "/usr/bin:/bin").env("HOME", &folder.0);
    for name in ["IDENTITY_ENDPOINT", "IDENTITY_HEADER"] {
        command.env(name, served.variable(name));
    }
    let began = Instant::now();
    let out = command.output().unwrap();
    let took = began.elapsed();
    let said = String::from_utf8_lossy(&out.stdout);
    let found: Value = serde_json::from_str(said.lines().next().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {said} {}", String::from_utf8_lossy(&out.stderr)));
    let token = found["value"].as_str().unwrap_or_else(|| panic!("no token: {found}"));
    assert_eq!(entra.minted(token).map(|(app, _)| app).as_deref(), Some(APP));
    assert!(took >= PAUSE, "it came back after {took:?}");
    let statuses: Vec<u16> = entra.seen()[before..].iter().map(|seen| seen.status).collect();
    assert_eq!(statuses, [429, 200]);
    // Without the header the library would have asked again after 0.8 s, and once more later.
    served.signal("-TERM");
    assert!(served.ended(Duration::from_secs(10)).is_some());
    let log = std::fs::read_to_string(folder.0.join("audit.jsonl")).unwrap();
    let entries: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let refusals: Vec<&Value> = entries.iter().filter(|entry| entry["event"] == "refusal").collect();
    assert!(refusals.len() == 1 && refusals[0]["repeats"].is_null(), "{log}");
}
