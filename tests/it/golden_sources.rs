//! Credential sources, case by case: `tests/golden/sources/CASE/` has the environment and files
//! (`environment`, `files/`), the exchange on the wire (`exchange.json`) and the outcome (`expected.json`),
//! with one line that gives the reason.
//!
//! `{place}` stands for the directory with the files, which is also the home, `{upstream}` for the URL where
//! the recorded exchange is played, `{upstream_host}` for its host and port, and `{rsa_key}`, in JSON, for a
//! key made in this run. `ask.json` has the request, if it is not for one access token for BigQuery. If
//! `expected.json` has `claims`, the token is a JWT with these claims besides its times.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use kfp_creds::app;
use kfp_creds::config::{self, Environment, Overrides};
use kfp_creds::source::google::Google;
use kfp_creds::source::{AccessRequest, IdentityRequest, Source, SourceError};
use kfp_creds::token::{Deadline, Now, Scopes};
use serde_json::{Value, json};

use crate::support::fake_google::rsa_key;
use crate::support::replay::{Replay, claims};
use crate::support::session::Folder;

const BIGQUERY: &str = "https://www.googleapis.com/auth/bigquery";

const KINDS: [&str; 9] = [
    "command",
    "gcloud's account",
    "impersonated service account",
    "service account key",
    "this machine's service account",
    "user login",
    "workforce identity",
    "workforce login",
    "workload identity",
];

struct Case {
    folder: PathBuf,
    place: Folder,
    replay: Replay,
}

impl Case {
    fn open(folder: PathBuf) -> Self {
        let case = Self { folder, place: Folder::new("golden-source"), replay: Replay::start() };
        let why = case.text("why").expect("one line with the reason");
        assert_eq!(why.trim().lines().count(), 1, "{}: one line with the reason", case.folder.display());
        case.lay(&case.folder.join("files"), &case.place.0);
        case
    }

    fn text(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.folder.join(name)).ok()?;
        Some(self.filled(&text))
    }

    fn filled(&self, text: &str) -> String {
        let place = self.place.0.display().to_string();
        let text = text.replace("{upstream}", &self.replay.url()).replace("{place}", &place);
        let text = text.replace("{upstream_host}", &self.replay.host());
        match text.contains("{rsa_key}") {
            true => text.replace("{rsa_key}", &rsa_key().replace('\n', "\\n")),
            false => text,
        }
    }

    fn json(&self, name: &str) -> Option<Value> {
        let text = self.text(name)?;
        Some(
            serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{}: {name}: {error}", self.folder.display())),
        )
    }

    /// Copies files; scripts become executable.
    fn lay(&self, from: &Path, to: &Path) {
        for entry in fs::read_dir(from).into_iter().flatten() {
            let from = entry.unwrap().path();
            let to = to.join(from.file_name().unwrap());
            if from.is_dir() {
                fs::create_dir_all(&to).unwrap();
                self.lay(&from, &to);
                continue;
            }
            let text = self.filled(&fs::read_to_string(&from).unwrap());
            fs::write(&to, &text).unwrap();
            let mode = if text.starts_with("#!") { 0o755 } else { 0o600 };
            fs::set_permissions(&to, fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    fn env(&self) -> Environment {
        let mut env: BTreeMap<String, String> = BTreeMap::new();
        env.insert("HOME".into(), self.place.0.display().to_string());
        env.insert("PATH".into(), "/usr/bin:/bin".into());
        env.insert("NO_GCE_CHECK".into(), "true".into());
        let text = self.text("environment").unwrap_or_default();
        env.extend(text.lines().filter_map(|line| line.split_once('=')).map(|(n, v)| (n.into(), v.into())));
        Environment { variables: env.into_iter().collect(), cwd: self.place.0.clone() }
    }

    /// The outcome of the case, in the form of `expected.json`.
    async fn outcome(&self) -> Value {
        self.replay
            .play(self.json("exchange.json").map_or_else(Vec::new, |all| all.as_array().unwrap().clone()));
        let env = self.env();
        let named = self.place.0.join("kfp-creds.toml");
        let flags = Overrides { config: named.exists().then_some(named), ..Overrides::default() };
        let config = match config::resolve(&flags, &env) {
            Ok(config) => config,
            Err(problems) => return json!({"config": self.bare(&problems.to_string())}),
        };
        let source = match app::google(&config, &env) {
            Ok(source) => source,
            Err(failure) => return json!({"start": self.bare(&failure.to_string())}),
        };
        let ask = self.json("ask.json").unwrap_or_default();
        let account =
            ask["service_account"].as_str().map(String::from).or_else(|| config.impersonate.clone());
        let mut outcome = asked(&source, &ask, account.clone()).await;
        for _ in 1..ask["times"].as_u64().unwrap_or(1) {
            outcome = asked(&source, &ask, account.clone()).await;
        }
        let mut came = match outcome {
            // Rounded up to ten seconds, because the test takes time.
            Ok((token, left)) => json!({"token": token, "lives": left.div_ceil(10) * 10}),
            Err(SourceError::Refused(why)) => json!({"refused": self.bare(&why)}),
            Err(SourceError::Transient(why)) => json!({"transient": self.bare(&why)}),
            Err(SourceError::Absent(why)) => json!({"absent": self.bare(&why)}),
        };
        let known = source.principal();
        if came["token"].is_string() {
            came["kind"] = json!(known.kind);
            came["email"] = json!(known.email);
            came["project"] = json!(known.project);
            came["quota_project"] = json!(known.quota_project);
            came["universe"] = json!(known.universe);
            came.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        }
        came
    }

    fn bare(&self, text: &str) -> String {
        let text = text.replace(&self.place.0.display().to_string(), "{place}");
        text.replace(&self.replay.url(), "{upstream}").replace(&self.replay.host(), "{upstream_host}")
    }
}

/// The token that `ask` requests, and its remaining seconds.
async fn asked(source: &Google, ask: &Value, account: Option<String>) -> Result<(String, u64), SourceError> {
    let left = |end: Deadline| end.remaining(Now::read()).as_secs();
    if let Some(audience) = ask["audience"].as_str() {
        let ask = IdentityRequest { service_account: account, audience: audience.into(), holder: None };
        let token = source.identity_token(&ask).await?;
        return Ok((token.value.expose().clone(), left(token.expires)));
    }
    let ask = AccessRequest {
        service_account: account,
        scopes: Scopes::parse(ask["scopes"].as_str().unwrap_or(BIGQUERY)),
        lifetime: ask["lifetime"].as_u64().unwrap_or(3600),
        subject: ask["subject"].as_str().map(String::from),
        ..AccessRequest::default()
    };
    let token = source.access_token(&ask).await?;
    Ok((token.value.expose().clone(), left(token.expires)))
}

#[tokio::test]
async fn every_source_behaves_as_recorded() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sources");
    let mut folders: Vec<PathBuf> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 120, "only {} cases", folders.len());
    every_kind_is_among(&folders);
    // Several run at a time, because they mostly wait for pauses and commands.
    let outcomes = futures_util::stream::iter(folders).map(judged).buffer_unordered(8).concat().await;
    assert!(outcomes.is_empty(), "{}", outcomes.join("\n"));
}

/// Every kind of principal has a case. (A workload identity with a certificate is one like the others.)
fn every_kind_is_among(folders: &[PathBuf]) {
    let kinds: BTreeSet<String> = folders
        .iter()
        .filter_map(|folder| fs::read_to_string(folder.join("expected.json")).ok())
        .filter_map(|text| Some(serde_json::from_str::<Value>(&text).ok()?["kind"].as_str()?.to_owned()))
        .collect();
    for kind in KINDS {
        assert!(kinds.contains(kind), "no case ends with a token of a {kind}");
    }
}

/// The differences from the record.
async fn judged(folder: PathBuf) -> Vec<String> {
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    let case = Case::open(folder);
    let mut came = case.outcome().await;
    let mut wrong: Vec<String> =
        case.replay.faults().iter().map(|fault| format!("{name}: {fault}")).collect();
    if came["token"].is_null() && came.to_string().contains("canary") {
        wrong.push(format!("{name}: an error holds a secret: {came}"));
    }
    let expected = case.json("expected.json").unwrap_or_default();
    let expected = serde_json::from_str::<Value>(&case.bare(&expected.to_string())).unwrap();
    if let (true, Some(token)) = (expected["claims"].is_object(), came["token"].as_str()) {
        let mut claims = claims(token);
        claims.as_object_mut().unwrap().retain(|name, _| name != "iat" && name != "exp");
        came["claims"] = claims;
        came.as_object_mut().unwrap().remove("token");
    }
    if came != expected {
        wrong.push(format!("{name}: came to\n  {came}\nexpected is\n  {expected}"));
    }
    wrong
}
