//! `enforce_scopes`: a token has exactly the listed scopes, or there is none, for every kind of credential.

use serde_json::Value;

use crate::leaks::{ACCOUNT, Local, files};
use crate::support::fake_google::{FakeGoogle, rsa_key};
use crate::support::session::{Folder, program};

const BIGQUERY: &str = "https://www.googleapis.com/auth/bigquery";
const READ: &str = "https://www.googleapis.com/auth/devstorage.read_only";
const DRIVE: &str = "https://www.googleapis.com/auth/drive";
const ALL: &str = "https://www.googleapis.com/auth/cloud-platform";
const RUNNER: &str = "runner@sa-project.iam.gserviceaccount.com";

struct Fixture {
    google: FakeGoogle,
    server: Local,
    _folder: Folder,
}

impl Fixture {
    fn new(credential: impl Fn(&FakeGoogle) -> String, more: &str) -> Self {
        let (google, folder) = (FakeGoogle::start(), Folder::new("enforced"));
        let (config, credential) = files(&folder.0, &google, &credential(&google));
        let text = std::fs::read_to_string(&config).unwrap();
        // Top-level keys must come before the first table.
        std::fs::write(&config, format!("{more}\n{text}")).unwrap();
        let mut command = program(&folder.0);
        command.env("GOOGLE_APPLICATION_CREDENTIALS", &credential);
        let server = Local::start(command, &["--config", &config]);
        Self { google, server, _folder: folder }
    }

    /// The scopes that the issuer knows for the token, or status and body.
    fn ask(&self, query: &str) -> Result<Vec<String>, String> {
        let (head, body) = self.server.get(&format!("{ACCOUNT}/token?{query}"));
        if !head.starts_with("HTTP/1.1 200") {
            return Err(format!("{} {body}", head.split(' ').nth(1).unwrap()));
        }
        let token: Value = serde_json::from_str(&body).unwrap();
        let minted = self.google.minted(token["access_token"].as_str().unwrap()).unwrap();
        Ok(minted.scopes.into_iter().collect())
    }
}

fn key(google: &FakeGoogle) -> String {
    google.service_account("loader@sa-project.iam.gserviceaccount.com", rsa_key())
}

#[test]
fn a_token_of_a_key_has_exactly_what_was_listed() {
    let fixture = Fixture::new(key, "");
    assert_eq!(fixture.ask(&format!("scopes={BIGQUERY}")).unwrap(), [ALL], "not enforced");
    assert_eq!(fixture.ask(&format!("scopes={BIGQUERY}&enforce_scopes=true")).unwrap(), [BIGQUERY]);
    let both = fixture.ask(&format!("scopes={READ},{BIGQUERY}&enforce_scopes=yes")).unwrap();
    assert_eq!(both, [BIGQUERY, READ]);
    assert_eq!(fixture.ask(&format!("scopes={BIGQUERY},{ALL}&enforce_scopes=1")).unwrap(), [ALL]);
    assert_eq!(fixture.ask("enforce_scopes=true").unwrap(), [ALL], "nothing is listed");
    let why = fixture.ask(&format!("scopes={BIGQUERY},{DRIVE}&enforce_scopes=true")).unwrap_err();
    assert!(why.starts_with("403 ") && why.contains(DRIVE) && why.contains("[identity.default]"), "{why}");
    assert!(!why.contains('\n'), "{why}");
    let calls = fixture.google.calls().len();
    assert_eq!(fixture.ask(&format!("scopes={BIGQUERY}&enforce_scopes=true")).unwrap(), [BIGQUERY]);
    assert_eq!(fixture.google.calls().len(), calls, "the exact set is a key of the cache");
}

#[test]
fn an_identity_without_cloud_platform_has_its_own_scopes_alone() {
    let fixture = Fixture::new(key, &format!("[identity.default]\nscopes = [\"{DRIVE}\", \"{READ}\"]"));
    assert_eq!(fixture.ask(&format!("scopes={DRIVE}&enforce_scopes=true")).unwrap(), [DRIVE]);
    for outside in [BIGQUERY, ALL] {
        let why = fixture.ask(&format!("scopes={READ},{outside}&enforce_scopes=true")).unwrap_err();
        assert!(why.starts_with("403 ") && why.contains(&format!("scope {outside}:")), "{why}");
    }
}

#[test]
fn a_login_cannot_narrow_but_an_impersonated_account_can() {
    let person = |google: &FakeGoogle| google.user("somebody@example.com");
    let fixture = Fixture::new(person, "");
    for scope in [BIGQUERY, ALL] {
        let why = fixture.ask(&format!("scopes={scope}&enforce_scopes=true")).unwrap_err();
        assert!(why.starts_with("403 ") && why.contains("user login") && why.contains(scope), "{why}");
        assert!(why.contains("--impersonate") && !why.contains('\n'), "{why}");
    }
    assert!(fixture.ask(&format!("scopes={BIGQUERY}")).is_ok(), "without the option nothing changes");

    let allowed = |google: &FakeGoogle| {
        google.allow("somebody@example.com", RUNNER);
        person(google)
    };
    let fixture = Fixture::new(allowed, &format!("impersonate = \"{RUNNER}\""));
    assert_eq!(fixture.ask(&format!("scopes={BIGQUERY}&enforce_scopes=true")).unwrap(), [BIGQUERY]);
}

#[test]
fn a_command_gets_the_scopes_and_is_not_trusted_to_narrow() {
    let folder = Folder::new("enforced");
    let script = folder.0.join("bring");
    let answer = r#"{"version":1,"success":true,"token_type":"urn:ietf:params:oauth:token-type:access_token","access_token":"ya29.brought","expiration_time":'$(( $(date +%s) + 1800 ))'}"#;
    std::fs::write(&script, format!("#!/bin/sh\necho '{answer}'\n")).unwrap();
    let config = folder.0.join("test.toml");
    let text = format!("credentials = {{ exec = [\"/bin/sh\", \"{}\"] }}\n", script.display());
    std::fs::write(&config, text).unwrap();
    let server = Local::start(program(&folder.0), &["--config", &config.display().to_string()]);
    let (head, _) = server.get(&format!("{ACCOUNT}/token?scopes={BIGQUERY}"));
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let (head, body) = server.get(&format!("{ACCOUNT}/token?scopes={BIGQUERY}&enforce_scopes=true"));
    assert!(
        head.starts_with("HTTP/1.1 403") && body.contains(BIGQUERY) && body.contains("command"),
        "{body}"
    );
}
