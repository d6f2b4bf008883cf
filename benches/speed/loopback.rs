//! A cached token over loopback against a bare hyper server that sends the same bytes.

use std::path::Path;
use std::process::Command;

use crate::figures::{Table, Target, median, of_pairs, ratio};
use crate::load::{body_of, imds_token};
use crate::process::{Running, cpu_seconds, memory, numbers, on_core, output};
use crate::session::{Folder, listener};
use crate::{Outcome, Plan, start};

/// Most CPU time for one answer, in microseconds, and least share of the bare server's rate (design promise 5).
const CPU: f64 = 11.0;
const SHARE: f64 = 0.9;

/// What a round of load brought.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    /// Requests in a second.
    rate: f64,
    /// CPU time of the server for one request, in microseconds.
    pub(crate) cpu: f64,
    /// How much of its core the server used: what the rate depends on when it is near one.
    busy: f64,
}

pub(crate) fn measure(plan: &Plan, table: &mut Table) -> Outcome<()> {
    let folder = Folder::new()?;
    let ours = listener(&plan.program, &folder, &["--offline"])?;
    let body = body_of(ours.at)?;
    let bare = Running::bare(&body)?;
    if body_of(bare.at)?.len() != body.len() {
        return Err("the two servers do not send the same".into());
    }
    let idle = memory(ours.pid())?;
    for connections in [16, 200] {
        let what = format!("cached token, loopback, {connections} connections");
        compare(plan, table, &what, &ours, &bare, connections)?;
        if let Some(program) = &plan.before {
            let before = listener(program, &folder, &["--offline"])?;
            against(plan, table, &what, &ours, &before, connections)?;
        }
    }
    drop(bare);
    clouds(plan, table)?;
    let login = Login::new(&folder)?;
    let user = listener(&plan.program, &folder, &["--config", "kfp-creds.toml"])?;
    let bare = Running::bare(&body_of(user.at)?)?;
    compare(plan, table, "the same, from a user's login, 16 connections", &user, &bare, 16)?;
    drop(login);
    start::first_answer(plan, table)?;
    grows(plan, table, &ours, idle)
}

fn compare(
    plan: &Plan,
    table: &mut Table,
    what: &str,
    ours: &Running,
    bare: &Running,
    connections: usize,
) -> Outcome<()> {
    let rounds = pairs(plan, ours, bare, connections)?;
    let rates: Vec<_> = rounds.iter().map(|(ours, bare)| (ours.rate, bare.rate)).collect();
    let cpus: Vec<_> = rounds.iter().map(|(ours, bare)| (ours.cpu, bare.cpu)).collect();
    let (share, factor) = (of_pairs(&rates, ratio), of_pairs(&cpus, ratio));
    let middle = |of: fn(&(Round, Round)) -> f64| median(&rounds.iter().map(of).collect::<Vec<_>>());
    let (rate, busy) = (middle(|pair| pair.0.rate), middle(|pair| pair.0.busy));
    let shown = format!(
        "{:.3} (95 %: {:.3}–{:.3}), {:.0}k/s at {:.0} % of its core",
        share.value,
        share.low,
        share.high,
        rate / 1e3,
        busy * 100.0
    );
    table.row(
        "loopback",
        format!("{what}: rate, over a bare hyper server"),
        (share.value, shown),
        Target::AtLeast(SHARE),
        "",
    );
    let shown = format!("{:.3} (95 %: {:.3}–{:.3})", factor.value, factor.low, factor.high);
    let most = (factor.value, shown);
    table.row(
        "loopback",
        format!("{what}: CPU per request, over a bare hyper server"),
        most,
        Target::AtMost(1.1),
        "",
    );
    let (own, theirs) = (middle(|pair| pair.0.cpu), middle(|pair| pair.1.cpu));
    let shown = format!("{own:.2} µs (bare: {theirs:.2} µs)");
    table.row("loopback", format!("{what}: CPU per request"), (own, shown), Target::AtMost(CPU), " µs");
    Ok(())
}

/// This build over an older one.
fn against(
    plan: &Plan,
    table: &mut Table,
    what: &str,
    ours: &Running,
    before: &Running,
    connections: usize,
) -> Outcome<()> {
    let rounds = pairs(plan, ours, before, connections)?;
    let cpus: Vec<_> = rounds.iter().map(|(ours, before)| (ours.cpu, before.cpu)).collect();
    let factor = of_pairs(&cpus, ratio);
    let shown = format!("{:.3} (95 %: {:.3}–{:.3})", factor.value, factor.low, factor.high);
    table.row(
        "loopback",
        format!("{what}: CPU per request, over --before"),
        (factor.value, shown),
        Target::Stated,
        "",
    );
    Ok(())
}

/// Alternating, each pair in the other order than the one before.
pub(crate) fn pairs(
    plan: &Plan,
    first: &Running,
    second: &Running,
    connections: usize,
) -> Outcome<Vec<(Round, Round)>> {
    let seconds = if plan.quick { "0.7" } else { "1.5" };
    let mut rounds = Vec::new();
    for pair in 0..=plan.rounds(9, 3) {
        let round = |server: &Running| load(server, connections, seconds);
        let found = if pair % 2 == 0 {
            (round(first)?, round(second)?)
        } else {
            let second = round(second)?;
            (round(first)?, second)
        };
        // The first pair is for caches and is thrown away.
        if pair > 0 {
            rounds.push(found);
        }
    }
    Ok(rounds)
}

fn load(server: &Running, connections: usize, amount: &str) -> Outcome<Round> {
    load_of(server, connections, amount, &[])
}

/// `other`: path and header of another request than that for Google's token.
fn load_of(server: &Running, connections: usize, amount: &str, other: &[&str]) -> Outcome<Round> {
    let mut client: Command = on_core(1, &std::env::current_exe()?);
    client.args(["load", &server.at.to_string(), &connections.to_string(), amount]).args(other);
    let before = cpu_seconds(server.pid())?;
    let line = output(&mut client)?;
    let used = cpu_seconds(server.pid())? - before;
    let [requests, seconds, ..] = numbers(&line)?[..] else { return Err("no figures".into()) };
    Ok(Round { rate: requests / seconds, cpu: used / requests * 1e6, busy: used / seconds })
}

/// A cached session of AWS and a cached token of Azure against a cached token of Google, from one server.
fn clouds(plan: &Plan, table: &mut Table) -> Outcome<()> {
    let folder = Folder::new()?;
    let config = "[aws]\ncredentials = \"offline\"\n[azure]\ncredentials = \"offline\"\n\
        [identity.default.aws]\nrole = \"arn:aws:iam::123456789012:role/bench\"\n[identity.default.azure]\n";
    write(&folder.0.join("kfp-creds.toml"), config)?;
    let ours = listener(&plan.program, &folder, &["--offline", "--config", "kfp-creds.toml"])?;
    let token = format!("X-aws-ec2-metadata-token: {}", imds_token(ours.at)?);
    let azure = "/msi/token?api-version=2019-08-01&resource=https://storage.azure.com";
    for (what, path, header) in [
        ("session of AWS (IMDSv2)", "/latest/meta-data/iam/security-credentials/bench", token.as_str()),
        ("token of Azure (App Service)", azure, "X-IDENTITY-HEADER: kfp-creds"),
    ] {
        let seconds = if plan.quick { "0.7" } else { "1.5" };
        let mut cpus = vec![];
        for pair in 0..=plan.rounds(9, 3) {
            let (google, other) = match pair % 2 {
                0 => (load(&ours, 16, seconds)?, load_of(&ours, 16, seconds, &[path, header])?),
                _ => {
                    let other = load_of(&ours, 16, seconds, &[path, header])?;
                    (load(&ours, 16, seconds)?, other)
                }
            };
            if pair > 0 {
                cpus.push((other.cpu, google.cpu));
            }
        }
        let factor = of_pairs(&cpus, ratio);
        let shown = format!("{:.3} (95 %: {:.3}–{:.3})", factor.value, factor.low, factor.high);
        let what = format!("cached {what}: CPU per request, over a cached token of Google");
        table.row("loopback", what, (factor.value, shown), Target::AtMost(1.1), "");
    }
    Ok(())
}

/// Memory idle, after load, and whether more load makes it more.
fn grows(plan: &Plan, table: &mut Table, ours: &Running, idle: (f64, f64)) -> Outcome<()> {
    let requests = plan.rounds(200_000, 50_000);
    load(ours, 16, &format!("{requests}r"))?;
    let first = memory(ours.pid())?;
    load(ours, 16, &format!("{requests}r"))?;
    let second = memory(ours.pid())?;
    let shown = format!(
        "{:.1} MiB idle, {:.1} MiB after load ({:.1} MiB of it not from files)",
        idle.0, second.0, second.1
    );
    table.row(
        "loopback",
        "memory (RSS) of `serve --listen`",
        (idle.0, shown),
        Target::AtMost(10.0),
        " MiB idle",
    );
    let growth = second.1 - first.1;
    let what = format!("the same: growth by {requests} more requests");
    table.row("loopback", what, (growth, format!("{growth:+.2} MiB")), Target::AtMost(0.25), " MiB");
    Ok(())
}

/// A user's login that is exchanged at a token endpoint of ours.
#[derive(Debug)]
struct Login {
    _google: Running,
}

impl Login {
    /// Writes the config and the credential file into `folder`. Nothing in them is a credential of anybody.
    fn new(folder: &Folder) -> Outcome<Self> {
        let token = format!("ya29.{}", "bench-".repeat(36));
        let google = Running::bare(&format!(
            r#"{{"access_token":"{token}","expires_in":3599,"token_type":"Bearer"}}"#
        ))?;
        let login = r#"{"type":"authorized_user","client_id":"bench","client_secret":"bench","refresh_token":"bench","account":"bench@kfp-creds.invalid"}"#;
        write(&folder.0.join("login.json"), login)?;
        let config = format!(
            "credentials_file = \"{}\"\nproject = \"bench\"\n[endpoints]\ntoken = \"http://{}/token\"\n",
            folder.0.join("login.json").display(),
            google.at
        );
        write(&folder.0.join("kfp-creds.toml"), &config)?;
        Ok(Self { _google: google })
    }
}

fn write(path: &Path, text: &str) -> Outcome<()> {
    Ok(std::fs::write(path, text)?)
}
