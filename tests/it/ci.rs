//! Checks `docs/guide/ci.md`, `docs/reference/providers.md` and `deploy/ci/`: the program accepts their
//! configs, their jobs get tokens from the whole program, their messages exist, and their script works as a
//! provider.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

use crate::leaks::{ACCOUNT, Local};
use crate::support::federation::{AUDIENCE, Federation};
use crate::support::issuer::Issuer;
use crate::support::session::{Folder, program};

const RUNNER: &str = "runner@my-project.iam.gserviceaccount.com";

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

fn fenced(text: &str, kind: &str) -> Vec<String> {
    let opened = text.split("\n```").skip(1).step_by(2);
    opened.filter_map(|block| Some(block.strip_prefix(kind)?.strip_prefix('\n')?.to_owned())).collect()
}

#[test]
fn configs_in_the_documents_are_accepted_once_trusted() {
    let mut seen = 0;
    for book in ["docs/guide/ci.md", "docs/reference/providers.md"] {
        for text in fenced(&read(book), "toml") {
            let folder = Folder::new("ci");
            let file = folder.0.join("kfp-creds.toml");
            fs::write(&file, &text).unwrap();
            let check = |arguments: &[&str]| program(&folder.0).args(arguments).output().unwrap();
            let found = check(&["config", "check"]);
            assert_eq!(found.status.code(), Some(78), "a project's file may not say: {text}");
            assert!(String::from_utf8_lossy(&found.stderr).contains("config trust"));
            let named = check(&["config", "check", "--config", file.to_str().unwrap()]);
            assert!(named.status.success(), "{}\n{text}", String::from_utf8_lossy(&named.stderr));
            seen += 1;
        }
    }
    assert_eq!(seen, 3);
}

/// The `KEY: VALUE` lines of a job's file for our variables.
fn variables(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter_map(|line| line.trim().split_once(": "));
    let ours = lines.filter(|(name, _)| name.starts_with("KFP_CREDS_"));
    ours.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Starts the program as the job does, and sends the requests of a container.
fn served(fake: &Federation, variables: &[(String, String)]) {
    assert_eq!(variables.iter().filter(|(name, _)| name.starts_with("KFP_CREDS_")).count(), 3, "three lines");
    let pool = AUDIENCE.split("/providers/").next().unwrap();
    fake.google.allow(&format!("principal:{pool}/subject/job"), RUNNER);
    let folder = Folder::new("ci");
    let mut command = program(&folder.0);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command.env("KFP_CREDS_ENDPOINT_STS", format!("{}/v1/token", fake.url()));
    command.env("KFP_CREDS_ENDPOINT_IAM_CREDENTIALS", fake.google.url());
    let server = Local::start(command, &[]);
    let (head, body) = server.get(&format!("{ACCOUNT}/token"));
    assert!(head.contains(" 200 "), "{head}");
    let token: serde_json::Value = serde_json::from_str(&body).unwrap();
    let minted = fake.google.minted(token["access_token"].as_str().unwrap()).unwrap();
    assert_eq!(minted.email, RUNNER);
    assert_eq!(server.get(&format!("{ACCOUNT}/email")).1, RUNNER);
    assert!(server.get(&format!("{ACCOUNT}/identity?audience=https://a.example")).0.contains(" 200 "));
    server.end();
    let left: Vec<_> = fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "nothing is written: {left:?}");
}

#[test]
fn the_github_workflow_gets_tokens() {
    let text = read("deploy/ci/github.yml");
    assert!(
        text.contains("\n    permissions:\n") && text.contains("\n      id-token: write"),
        "only the job may get an id-token"
    );
    let (fake, issuer) = (Federation::start(), Issuer::rs256("https://token.actions.example"));
    fake.trust(AUDIENCE, &issuer, &[("repository", "owner/name")]);
    let actions = fake.actions(issuer, "job", json!({"repository": "owner/name"}));
    served(&fake, &[variables(&text), actions.to_vec()].concat());
    assert_eq!(fake.count("/actions/token"), 1);
}

#[test]
fn the_gitlab_job_gets_tokens() {
    let text = read("deploy/ci/gitlab.yml");
    let (_, rest) = text.split_once("id_tokens:\n").unwrap();
    let mut lines = rest.lines().map(str::trim);
    let name = lines.next().unwrap().trim_end_matches(':').to_owned();
    let audience = lines.next().unwrap().strip_prefix("aud: ").unwrap();
    let (fake, issuer) = (Federation::start(), Issuer::rs256("https://gitlab.example"));
    fake.trust(AUDIENCE, &issuer, &[]);
    let token = issuer.token("job", audience, 300, &json!({}));
    served(&fake, &[variables(&text), vec![(name, token)]].concat());
}

#[test]
fn messages_in_the_documents_exist_in_the_program() {
    fn all(folder: &Path, into: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                all(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                into.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut source = String::new();
    all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut source);
    let lines: Vec<&str> = source.lines().map(str::trim_start).collect();
    let source = lines.join("\n").replace("\\\n", "");
    let text = read("docs/guide/ci.md");
    let rows = text.lines().skip_while(|line| *line != "| message | what to do |").skip(2);
    let rows: Vec<&str> = rows.take_while(|line| line.starts_with("| `")).collect();
    assert!(rows.len() >= 6, "{rows:?}");
    for row in rows {
        let message = row.trim_start_matches("| `").split('`').next().unwrap();
        for piece in message.split('…') {
            assert!(source.contains(piece.trim()), "nothing in src says {piece:?}");
        }
    }
}

/// The script at the end of `docs/reference/providers.md`, with a fake broker.
#[test]
fn the_script_in_the_documents_works_as_a_provider() {
    let scripts = fenced(&read("docs/reference/providers.md"), "sh");
    let [script] = scripts.as_slice() else { panic!("one script") };
    let folder = Folder::new("ci");
    let write = |name: &str, text: &str| {
        let path = folder.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    write("provider", script);
    write("broker", "#!/bin/sh\n[ \"$1\" = print-token ] && echo a-token-of-the-broker\n");
    write("kfp-creds.toml", "credentials = { exec = [\"./provider\"] }\n");
    let mut command = program(&folder.0);
    command.env("PATH", format!("{}:/usr/bin:/bin", folder.0.display()));
    let config = folder.0.join("kfp-creds.toml").display().to_string();
    let server = Local::start(command, &["--config", &config]);
    let (head, body) = server.get(&format!("{ACCOUNT}/token"));
    assert!(head.contains(" 200 "), "{head} {body}");
    let token: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(token["access_token"], "a-token-of-the-broker");
    assert!((1750..=1800).contains(&token["expires_in"].as_u64().unwrap()), "{token}");
    server.end();
}
