//! Nothing that the program writes contains a secret of a federated source, as in [`crate::leaks`]: subject
//! tokens, the secrets to fetch them, federated tokens, client secrets, AWS keys, and the output of commands.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::federation::{asking_for_certificates, certificates};
use crate::leaks::{ACCOUNT, Local, everything, loud};
use crate::support::canary::Canaries;
use crate::support::fake_google::Failure;
use crate::support::federation::{AUDIENCE, AWS4, Federation, Imds, JWT, MTLS, POOL, Trust};
use crate::support::issuer::{Issuer, seconds};
use crate::support::session::{Folder, program};

const RUNNER: &str = "runner@my-project.iam.gserviceaccount.com";

fn failures() -> Vec<Failure> {
    let answer =
        |body: &str| Failure::Answer { status: 200, content_type: "application/json", body: body.into() };
    vec![
        Failure::html_503(),
        Failure::oauth(400, "invalid_grant", None),
        Failure::oauth(400, "canary-in-a-description", None),
        answer("{\"canary-in-a-message\":"),
        answer(r#"{"access_token":"canary-in-a-message","expires_in":"canary-in-a-description"}"#),
        answer(r#"{"access_token":"canary-in-a-message"}"#),
    ]
}

/// Runs the program with `config`, in good order and through every failure, and searches all that it wrote.
/// `before` is how many requests precede the one that fails.
fn searched(fake: &Federation, folder: &Folder, config: &str, variables: &[(&str, &str)], before: usize) {
    searched_at(&fake.url(), fake, folder, config, variables, before);
}

/// The same, with the token service at `sts`.
fn searched_at(
    sts: &str,
    fake: &Federation,
    folder: &Folder,
    config: &str,
    variables: &[(&str, &str)],
    before: usize,
) {
    let file = folder.0.join("test.toml");
    let endpoints =
        format!("[endpoints]\nsts = \"{sts}/v1/token\"\niam_credentials = \"{}\"\n", fake.google.url());
    std::fs::write(&file, format!("{config}\n{endpoints}")).unwrap();
    let command = || {
        let mut command = program(&folder.0);
        command.envs(variables.iter().copied());
        command
    };
    let mut seen = String::new();
    let server = Local::start(command(), &["--config", file.to_str().unwrap()]);
    let (head, _) = server.get(&format!("{ACCOUNT}/token"));
    assert!(head.contains(" 200 "), "{head}");
    seen.push_str(&head);
    for path in [
        format!("{ACCOUNT}/identity?audience=https://a.example"),
        "/computeMetadata/v1/?recursive=true".into(),
    ] {
        let (head, body) = server.get(&path);
        seen.push_str(&head);
        if !(head.contains(" 200 ") && path.contains("identity")) {
            seen.push_str(&body);
        }
    }
    let line = std::fs::read(format!("/proc/{}/cmdline", server.child.id())).unwrap();
    seen.push_str(&String::from_utf8_lossy(&line));
    let (stdout, stderr) = server.end();
    assert!(stderr.contains("TRACE") || stderr.contains("DEBUG"), "the log is not on: {stderr}");
    seen.push_str(&stdout);
    seen.push_str(&stderr);
    for failure in failures() {
        // The first requests succeed; then the next one fails at each of its three attempts.
        fake.fail_later(before, &failure, 3);
        seen.push_str(&briefly(command(), &file));
        fake.unfail();
    }
    let mut canaries = Canaries::default();
    for (what, secret) in fake.secrets() {
        canaries.add(what, &secret);
    }
    assert!(canaries.len() > 6, "the fake has hardly any secret");
    canaries.assert_absent("what it wrote", &seen);
}

/// The output of the program until it ends, or for a short while.
fn briefly(mut command: Command, config: &Path) -> String {
    command.args(["serve", "--listen", "127.0.0.1:0", "--config", config.to_str().unwrap()]);
    let mut child = loud(&mut command);
    for _ in 0..20 {
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let _ = child.kill();
    // The lines that begin with `export` hold the capability, which is meant for the person.
    let out = child.wait_with_output().unwrap();
    let text = everything(&out);
    text.lines().filter(|line| !line.starts_with("export ")).collect::<Vec<_>>().join("\n")
}

fn started(issuer: &Issuer) -> (Federation, Folder) {
    let (fake, folder) = (Federation::start(), Folder::new("leaks-federated"));
    fake.trust(AUDIENCE, issuer, &[]);
    let pool = AUDIENCE.split("/providers/").next().unwrap();
    fake.google.allow(&format!("principal:{pool}/subject/me"), RUNNER);
    (fake, folder)
}

fn audience() -> String {
    format!("https:{AUDIENCE}")
}

fn credential_file(folder: &Folder, fake: &Federation, source: &Value, more: &Value) -> PathBuf {
    let mut file = json!({
        "type": "external_account", "audience": AUDIENCE, "subject_token_type": JWT,
        "token_url": format!("{}/v1/token", fake.url()), "credential_source": source,
        "service_account_impersonation_url":
            format!("{}/v1/projects/-/serviceAccounts/{RUNNER}:generateAccessToken", fake.google.url()),
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        file[name] = value.clone();
    }
    let path = folder.0.join("adc.json");
    std::fs::write(&path, file.to_string()).unwrap();
    path
}

#[test]
fn a_job_on_github_leaks_nothing() {
    let (fake, folder) = started(&Issuer::rs256("https://tokens.example"));
    let variables = fake.actions(Issuer::rs256("https://tokens.example"), "me", json!({}));
    let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let config = format!(
        "[credentials]\nworkload_identity_provider = \"{POOL}\"\nservice_account = \"{RUNNER}\"\ntoken_from = \"github\""
    );
    searched(&fake, &folder, &config, &variables, 1);
    searched(&fake, &folder, &config, &variables, 0);
}

#[test]
fn a_token_file_and_a_client_leak_nothing() {
    let issuer = Issuer::es256("https://tokens.example");
    let (fake, folder) = started(&issuer);
    let token = folder.0.join("token");
    std::fs::write(&token, json!({"jwt": issuer.token("me", &audience(), 300, &json!({}))}).to_string())
        .unwrap();
    fake.client("client", "canary-client-secret");
    let format = json!({"type": "json", "subject_token_field_name": "jwt"});
    let more = json!({
        "client_id": "client", "client_secret": "canary-client-secret",
        "token_info_url": format!("{}/v1/introspect", fake.url()),
    });
    let file = credential_file(&folder, &fake, &json!({"file": token, "format": format}), &more);
    searched(&fake, &folder, &format!("credentials_file = {file:?}"), &[], 0);
    // Files that cannot be parsed.
    for text in [
        "canary-in-a-message",
        "{\"jwt\": [\"canary-in-a-message\"]}",
        "{\"other\": \"canary-in-a-message\"}",
    ] {
        std::fs::write(&token, text).unwrap();
        let said = briefly(program(&folder.0), &folder.0.join("test.toml"));
        assert!(said.contains("subject token file") && !said.contains("canary-in"), "{said}");
    }
}

#[test]
fn aws_keys_leak_nothing() {
    let (fake, folder) = started(&Issuer::es256("https://tokens.example"));
    let (secret, session) = ("canary-aws-secret-key", "canary-aws-session-token");
    let trust = Trust::Aws {
        id: "AKIDEXAMPLE".into(),
        secret: secret.into(),
        session: Some(session.into()),
        region: "us-east-1".into(),
    };
    fake.provider(AUDIENCE, trust, &[]);
    let pool = AUDIENCE.split("/providers/").next().unwrap();
    let arn = "arn:aws:sts::123456789012:assumed-role/runner/i-1";
    fake.google.allow(&format!("principal:{pool}/subject/{arn}"), RUNNER);
    fake.imds(Imds {
        zone: "us-east-1a".into(),
        role: "role".into(),
        id: "AKIDEXAMPLE".into(),
        secret: secret.into(),
        session: session.into(),
        strict: true,
    });
    let aws = fake.aws();
    let file = credential_file(&folder, &fake, &aws, &json!({"subject_token_type": AWS4}));
    let config = format!("credentials_file = {file:?}");
    // A failure at the metadata service, and one at the exchange.
    searched(&fake, &folder, &config, &[], 3);
    searched(&fake, &folder, &config, &[], 4);
    let keys = [
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("AWS_SESSION_TOKEN", session),
        ("AWS_REGION", "us-east-1"),
    ];
    searched(&fake, &folder, &config, &keys, 0);
}

#[test]
fn a_command_leaks_nothing() {
    let issuer = Issuer::rs256("https://tokens.example");
    let (fake, folder) = started(&issuer);
    let helper = folder.0.join("helper");
    let write = |answer: &str| {
        std::fs::write(&helper, format!("#!/bin/sh\necho '{answer}'\n")).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let token = issuer.token("me", &audience(), 300, &json!({}));
    fake.secret("what a command wrote", &token);
    write(&json!({"version": 1, "success": true, "token_type": JWT, "id_token": token}).to_string());
    let config = format!(
        "[credentials]\nexec = [\"./helper\", \"canary-in-an-argument\"]\nworkload_identity_provider = \"{POOL}\"\nservice_account = \"{RUNNER}\""
    );
    fake.secret("an argument", "canary-in-an-argument");
    searched(&fake, &folder, &config, &[], 0);
    for answer in [
        r#"{"version":1,"success":false,"code":"canary-in-a-message","message":"canary-in-a-message"}"#,
        r#"{"version":1,"success":true,"token_type":"canary-in-a-message"}"#,
        r#"{"version":"canary-in-a-message"}"#,
        "canary-in-a-message",
    ] {
        write(answer);
        let said = briefly(program(&folder.0), &folder.0.join("test.toml"));
        assert!(said.contains("helper") && !said.contains("canary-in"), "{said}");
    }
}

#[test]
fn headers_for_a_url_leak_nothing() {
    let issuer = Issuer::rs256("https://tokens.example");
    let (fake, folder) = started(&issuer);
    fake.url_token(&issuer.token("me", &audience(), 300, &json!({})));
    fake.secret("a header's value", "canary-header-value");
    let url = format!("{}/url/json", fake.url());
    let source = json!({
        "url": url, "headers": {"X-Wanted": "canary-header-value"},
        "format": {"type": "json", "subject_token_field_name": "id_token"},
    });
    let file = credential_file(&folder, &fake, &source, &json!({}));
    let of_a_file = format!("credentials_file = {file:?}");
    let of_the_config = format!(
        "[credentials]\nworkload_identity_provider = \"{POOL}\"\nservice_account = \"{RUNNER}\"\n\
         token_from = \"{url}\"\ntoken_field = \"id_token\"\ntoken_headers = [\"X-Wanted: $WANTED\"]"
    );
    for (config, variables) in
        [(of_a_file, &[][..]), (of_the_config, &[("WANTED", "canary-header-value")][..])]
    {
        // A failure at the URL, and one at the exchange.
        searched(&fake, &folder, &config, variables, 0);
        searched(&fake, &folder, &config, variables, 1);
    }
}

#[test]
fn an_output_file_leaks_nothing() {
    let issuer = Issuer::es256("https://tokens.example");
    let (fake, folder) = started(&issuer);
    let (kept, helper) = (folder.0.join("kept.json"), folder.0.join("helper"));
    let token = issuer.token("me", &audience(), 300, &json!({}));
    fake.secret("what an output file keeps", &token);
    // The output file exists before the command would run, and the command fails.
    let end = seconds() + 300;
    let answer = |token: &str| json!({"version": 1, "success": true, "token_type": JWT, "id_token": token, "expiration_time": end});
    std::fs::write(&kept, answer(&token).to_string()).unwrap();
    std::fs::write(&helper, "#!/bin/sh\nexit 1\n").unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let source = json!({"executable": {"command": helper, "output_file": kept}});
    let config = format!("credentials_file = {:?}", credential_file(&folder, &fake, &source, &json!({})));
    let allowed = [("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1")];
    searched(&fake, &folder, &config, &allowed, 0);
    for text in ["canary-in-a-message".into(), json!({"version": "canary-in-a-message"}).to_string()] {
        std::fs::write(&kept, text).unwrap();
        let mut command = program(&folder.0);
        command.envs(allowed);
        let said = briefly(command, &folder.0.join("test.toml"));
        assert!(said.contains("output") && !said.contains("canary-in"), "{said}");
    }
}

#[test]
fn the_key_of_a_certificate_leaks_nothing() {
    let (fake, folder) = started(&Issuer::es256("https://tokens.example"));
    let (ca, leaf, key) = certificates(&folder);
    let sts = format!("https://localhost:{}", fake.behind_tls(asking_for_certificates(&ca, &leaf, &key)));
    fake.provider(AUDIENCE, Trust::Certificate, &[]);
    let pool = AUDIENCE.split("/providers/").next().unwrap();
    fake.google.allow(&format!("principal:{pool}/subject/certificate"), RUNNER);
    fake.secret("the key of a certificate", &std::fs::read_to_string(&key).unwrap());
    let places = folder.0.join("certificate_config.json");
    let workload = json!({"cert_path": leaf, "key_path": key});
    std::fs::write(&places, json!({"cert_configs": {"workload": workload}}).to_string()).unwrap();
    let source = json!({"certificate": {"certificate_config_location": places}});
    let file = credential_file(&folder, &fake, &source, &json!({"subject_token_type": MTLS}));
    let config = format!("credentials_file = {file:?}");
    let trusting = [("SSL_CERT_FILE", ca.to_str().unwrap())];
    searched_at(&sts, &fake, &folder, &config, &trusting, 0);
    // An invalid key: the message quotes nothing of the file.
    let whole = std::fs::read_to_string(&key).unwrap();
    for spoilt in [whole.replace("PRIVATE", "CANARY"), whole.replacen("M", "canary-in-a-message", 1)] {
        std::fs::write(&key, spoilt).unwrap();
        let mut command = program(&folder.0);
        command.envs(trusting);
        let said = briefly(command, &folder.0.join("test.toml"));
        assert!(said.contains("leaf.key") || said.contains("client certificate"), "{said}");
        assert!(!said.contains("canary-in") && !said.contains(whole.lines().nth(1).unwrap()), "{said}");
    }
}
