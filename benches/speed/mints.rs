//! What a mint through each kind of credential costs us, with an upstream that answers at once.
//!
//! Sources are made as a session makes them, from a config and an environment; each has its client, whose roots
//! are read once. A mint is one whole chain: the upstream's tokens live too short to be kept as a base. CPU is that
//! of all of this process' threads; what a command uses itself is its own, what starting it takes is ours. It is
//! plain HTTP over connections that are kept: what setting one up costs, with TLS, is not in it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use kfp_creds::app;
use kfp_creds::config::{self, Environment, Overrides};
use kfp_creds::source::google::Google;
use kfp_creds::source::{AccessRequest, Source as _};
use kfp_creds::token::{CLOUD_PLATFORM, Scopes};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::figures::{Table, Target, median};
use crate::process::{Running, cpu_seconds, memory, output};
use crate::session::Folder;
use crate::{Outcome, Plan};

/// Most CPU time for a mint, in milliseconds.
const CPU: f64 = 2.0;
/// Mints between two looks at the clock.
const BATCH: usize = 10;
/// Most growth for a mint, in bytes: less than the shortest secret of one.
const GROWTH: f64 = 100.0;

const RUNNER: &str = "runner@my-project.iam.gserviceaccount.com";
const PROVIDER: &str = "projects/1/locations/global/workloadIdentityPools/p/providers/p";
/// When what commands bring ends.
const FAR: u64 = 4_102_444_800;
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// A kind of credential: what it is called, its file, and the config where that is not all.
struct Kind {
    what: &'static str,
    file: Value,
    config: String,
    environment: &'static [(&'static str, &'static str)],
}

impl Kind {
    fn file(what: &'static str, file: Value) -> Self {
        Self { what, file, config: String::new(), environment: &[] }
    }
}

pub(crate) fn measure(plan: &Plan, table: &mut Table) -> Outcome<()> {
    let (folder, upstream) = (Folder::new()?, Running::upstream()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut sources = Vec::new();
    for (number, kind) in kinds(&folder.0, &format!("http://{}", upstream.at))?.into_iter().enumerate() {
        let place = folder.0.join(number.to_string());
        sources.push((kind.what, runtime.block_on(async { source(&kind, &place) })?));
    }
    for (what, google) in &sources {
        let found = costs(plan, &runtime, google)?;
        let what = format!("CPU of a mint, upstream of 0 ms: {what}");
        table.row("mints", what, (found, format!("{found:.2} ms")), Target::AtMost(CPU), " ms");
    }
    grows(plan, table, &runtime, &sources)
}

/// The median over batches, in milliseconds.
fn costs(plan: &Plan, runtime: &Runtime, google: &Google) -> Outcome<f64> {
    mints(runtime, google, BATCH)?;
    let mut found = Vec::new();
    for _ in 0..plan.rounds(40, 10) {
        let before = cpu()?;
        mints(runtime, google, BATCH)?;
        found.push((cpu()? - before) * 1e3 / BATCH as f64);
    }
    Ok(median(&found))
}

/// CPU seconds of this process. The kernel books a running thread's time when it gives way.
fn cpu() -> Outcome<f64> {
    std::thread::yield_now();
    cpu_seconds(std::process::id())
}

fn mints(runtime: &Runtime, google: &Google, count: usize) -> Outcome<()> {
    let ask =
        AccessRequest { scopes: Scopes::parse(CLOUD_PLATFORM), lifetime: 3600, ..AccessRequest::default() };
    runtime.block_on(async {
        for _ in 0..count {
            google.access_token(&ask).await?;
        }
        Ok(())
    })
}

/// Memory of this bench with all the sources in it, which no session has side by side, and how it grows.
fn grows(plan: &Plan, table: &mut Table, runtime: &Runtime, sources: &[(&str, Google)]) -> Outcome<()> {
    let each = plan.rounds(500, 100);
    let round = || -> Outcome<f64> {
        for (_, google) in sources {
            mints(runtime, google, each)?;
        }
        Ok(memory(std::process::id())?.0)
    };
    let before = round()?;
    let after = round()?;
    let count = each * sources.len();
    let grown = (after - before) * f64::from(1 << 20) / count as f64;
    let shown = format!("{grown:.0} bytes ({before:.1} to {after:.1} MiB, the bench itself)");
    let what = format!("memory that a mint leaves behind, {} kinds, {count} mints", sources.len());
    table.row("mints", what, (grown, shown), Target::AtMost(GROWTH), " bytes");
    Ok(())
}

fn source(kind: &Kind, place: &Path) -> Outcome<Google> {
    std::fs::create_dir_all(place)?;
    let (file, config) = (place.join("adc.json"), place.join("kfp-creds.toml"));
    std::fs::write(&file, kind.file.to_string())?;
    std::fs::write(&config, &kind.config)?;
    let mut env: std::collections::BTreeMap<String, String> =
        kind.environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    env.insert("PATH".into(), "/usr/bin:/bin".into());
    env.insert("HOME".into(), place.display().to_string());
    env.insert("NO_GCE_CHECK".into(), "true".into());
    env.insert("GOOGLE_APPLICATION_CREDENTIALS".into(), file.display().to_string());
    let env = Environment { variables: env.into_iter().collect(), cwd: place.to_owned() };
    let flags = Overrides { config: Some(config), ..Overrides::default() };
    let config = config::resolve(&flags, &env).map_err(|problems| problems.to_string())?;
    Ok(app::google(&config, &env)?)
}

fn script(path: &Path, answer: &Value) -> Outcome<()> {
    std::fs::write(path, format!("#!/bin/sh\necho '{answer}'\n"))?;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}

fn kinds(folder: &Path, upstream: &str) -> Outcome<Vec<Kind>> {
    let generate = format!("{upstream}/v1/projects/-/serviceAccounts/{RUNNER}:generateAccessToken");
    let mut all = keys_and_logins(upstream, &generate)?;
    all.extend(federated(folder, upstream, &generate)?);
    all.push(command(folder)?);
    Ok(all)
}

fn keys_and_logins(upstream: &str, generate: &str) -> Outcome<Vec<Kind>> {
    let user =
        json!({"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"});
    let impersonated = json!({
        "type": "impersonated_service_account", "service_account_impersonation_url": generate, "source_credentials": user,
    });
    let key = output(Command::new("openssl").args(["genpkey", "-algorithm", "RSA"]))?;
    let key = json!({
        "type": "service_account", "client_email": RUNNER, "private_key": key, "token_uri": format!("{upstream}/token"),
    });
    let workforce = json!({
        "type": "external_account_authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r",
        "token_url": format!("{upstream}/v1/oauthtoken"),
    });
    let kind = |what, file| Kind {
        config: format!("[endpoints]\ntoken = \"{upstream}/token\"\n"),
        ..Kind::file(what, file)
    };
    Ok(vec![
        kind("service_account", key),
        kind("authorized_user", user),
        kind("impersonated_service_account over a user", impersonated),
        kind("external_account_authorized_user", workforce),
    ])
}

fn federated(folder: &Path, upstream: &str, generate: &str) -> Outcome<Vec<Kind>> {
    let (token, helper) = (folder.join("token"), folder.join("helper"));
    std::fs::write(&token, "header.payload.signature")?;
    script(
        &helper,
        &json!({
            "version": 1, "success": true, "token_type": JWT, "id_token": "a.b.c", "expiration_time": FAR,
        }),
    )?;
    let kind = |what, source: Value, more: Value| {
        let mut file = json!({
            "type": "external_account", "audience": format!("//iam.googleapis.com/{PROVIDER}"),
            "subject_token_type": JWT, "token_url": format!("{upstream}/v1/token"), "credential_source": source,
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            file[name] = value.clone();
        }
        Kind::file(what, file)
    };
    let aws = json!({
        "environment_id": "aws1",
        "regional_cred_verification_url": "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15",
    });
    let aws_type = json!({"subject_token_type": "urn:ietf:params:aws:token-type:aws4_request"});
    let become_runner = json!({"service_account_impersonation_url": generate});
    let url = json!({"url": format!("{upstream}/subject")});
    Ok(vec![
        kind("external_account, file", json!({"file": token}), json!({})),
        kind("external_account, URL", url, json!({})),
        Kind {
            environment: &[("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1")],
            ..kind("external_account, executable", json!({"executable": {"command": helper}}), json!({}))
        },
        Kind {
            environment: &[
                ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
                ("AWS_SECRET_ACCESS_KEY", "of-a-benchmark"),
                ("AWS_REGION", "eu-west-1"),
            ],
            ..kind("external_account, AWS keys of the environment", aws, aws_type)
        },
        kind("external_account, file, with impersonation", json!({"file": token}), become_runner),
    ])
}

fn command(folder: &Path) -> Outcome<Kind> {
    let provider = folder.join("provider");
    script(
        &provider,
        &json!({
            "version": 1, "success": true, "token_type": "urn:ietf:params:oauth:token-type:access_token",
            "access_token": "ya29.x", "expiration_time": FAR,
        }),
    )?;
    Ok(Kind {
        config: format!("credentials = {{ exec = [{provider:?}] }}\n"),
        ..Kind::file("exec provider", json!({}))
    })
}
