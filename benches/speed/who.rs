//! Who gets what: judging, rules, scanning, and what the audit log adds.

use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kfp_creds::docker::proxy::{Networks, Rules, preview};
use kfp_creds::guard::memory::Memory;
use kfp_creds::guard::walk::{Budget, look};
use kfp_creds::guard::{self, Guard, image};
use kfp_creds::kfp;
use kfp_creds::policy::{Policy, Rule};
use kfp_creds::workload::{Identity, Part, Pattern, Task};
use serde_json::json;

use crate::figures::{Table, Target, median, of_pairs, percentile, ratio};
use crate::load::body_of;
use crate::loopback::pairs;
use crate::session::{Folder, Session, listener};
use crate::{Outcome, Plan, engine};

pub(crate) fn measure(plan: &Plan, table: &mut Table) -> Outcome<()> {
    judging(plan, table)?;
    rules(plan, table);
    scanning(plan, table)?;
    project(plan, table)?;
    auditing(plan, table)
}

fn policy(rules: usize) -> Policy {
    let identity = Some(Arc::new(Identity::default()));
    // As people write them, and none that matches: the worst there is.
    let rule = |n: usize| Rule {
        patterns: vec![
            Pattern::new(Part::Pipeline, "nightly-*"),
            Pattern::new(Part::Component, &format!("load-*-part-{n}")),
            Pattern::new(Part::Image, "*/team/*@sha256:*"),
        ],
        choose: vec![],
        identity: identity.clone(),
        join: false,
    };
    Policy {
        rules: (0..rules).map(rule).collect(),
        default: identity.clone(),
        choose: vec![],
        all: true,
        unknown: None,
    }
}

/// Microseconds of `work`, many times.
fn times(rounds: usize, mut work: impl FnMut()) -> Vec<f64> {
    work();
    (0..rounds)
        .map(|_| {
            let began = Instant::now();
            work();
            began.elapsed().as_secs_f64() * 1e6
        })
        .collect()
}

fn judging(plan: &Plan, table: &mut Table) -> Outcome<()> {
    let rules = Rules {
        policy: policy(0),
        identities: vec![],
        mounts: vec![],
        compiled: Arc::default(),
        clear_entrypoint: true,
    };
    let root = "/home/user/pipelines/local_outputs";
    let output = format!("{root}/nightly-2026-11-23-06-04-22-567757/transform/executor_output.json");
    // 67: a row with the escapes of both strings around it.
    // Half of it source code of the component, half its input, as `kfp.local` sends them.
    let source = "def transform(rows: list) -> dict:\n    return {row['id']: row['amount'] * 37 % 101 for row in rows}\n\n";
    let source = source.repeat((1 << 19) / source.len());
    let rows = r#"{"id": 1, "city": "Lima", "amount": 12.5}, "#.repeat((1 << 19) / 67);
    let input = json!({"inputs": {"parameterValues": {"rows": rows}}, "outputs": {"outputFile": output}});
    let body = json!({
        "Image": "python:3.11",
        "Env": ["A=b"],
        "Cmd": ["sh", "-ec", "program_path=$(mktemp -d)", source, "--executor_input", input.to_string(),
            "--function_to_execute", "transform"],
        "HostConfig": {"Binds": [format!("{root}:{root}:rw"), "/tmp/w:/kfp-workspace:rw"], "AutoRemove": true},
    })
    .to_string();
    let judged =
        preview(body.as_bytes(), &rules, Networks::default(), &guard::GuardRules::default(), kfp::task)?;
    if judged.task.component.as_deref() != Some("transform") || judged.body.len() < body.len() {
        return Err("the body was not understood".into());
    }
    let mut found = times(plan.rounds(200, 40), || {
        let _ = black_box(preview(
            black_box(body.as_bytes()),
            &rules,
            Networks::default(),
            &guard::GuardRules::default(),
            kfp::task,
        ));
    });
    let (middle, high) = (median(&found) / 1e3, percentile(&mut found, 95.0) / 1e3);
    let shown =
        format!("{middle:.2} ms (95 %: ≤ {high:.2}), {:.2} MiB", body.len() as f64 / f64::from(1 << 20));
    let what = "judging a create body of 1 MiB: parse, recognise, rules, keys, write";
    table.row("who", what, (middle, shown), Target::AtMost(5.0), " ms");
    Ok(())
}

fn rules(plan: &Plan, table: &mut Table) {
    let policy = policy(1000);
    let task = Task {
        kfp: true,
        pipeline: Some("nightly-etl".into()),
        component: Some("load-orders-part-x".into()),
        image: "registry.example/team/etl@sha256:0123".into(),
        ..Task::default()
    };
    let mut found = times(plan.rounds(2000, 400), || {
        let _ = black_box(policy.decide(black_box(&task)));
    });
    let (middle, high) = (median(&found), percentile(&mut found, 95.0));
    let shown = format!("{middle:.1} µs (95 %: ≤ {high:.1})");
    let what = "1 000 rules of three patterns, none of which matches";
    table.row("who", what, (middle, shown), Target::AtMost(100.0), " µs");
}

/// Whether the guard would open it: what is in it has a row of its own.
fn is_packed(bytes: &[u8]) -> bool {
    let heads: [&[u8]; 5] = [b"\x1f\x8b", b"PK", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"];
    heads.iter().any(|head| bytes.starts_with(head))
}

/// Files of this machine, as layers hold them: programs, libraries, sources. None of them is compressed.
fn layers(most: usize) -> Outcome<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::with_capacity(most));
    for root in ["/usr/lib/python3", "/usr/lib/python3.11", "/usr/share", "/usr/lib", "/usr/bin"] {
        add(&mut builder, Path::new(root), most)?;
    }
    Ok(builder.into_inner()?)
}

fn add(builder: &mut tar::Builder<Vec<u8>>, folder: &Path, most: usize) -> Outcome<()> {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(about) = std::fs::symlink_metadata(&path) else { continue };
        if builder.get_ref().len() >= most {
            return Ok(());
        }
        if about.is_dir() {
            add(builder, &path, most)?;
        } else if let (true, Ok(bytes)) = (about.is_file(), std::fs::read(&path)) {
            if is_packed(&bytes) {
                continue;
            }
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path.strip_prefix("/")?, &bytes[..])?;
        }
    }
    Ok(())
}

/// As `docker save` writes an image of one layer.
fn saved(layer: &[u8]) -> Outcome<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::with_capacity(layer.len() + 4096));
    let mut header = tar::Header::new_gnu();
    header.set_size(layer.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "one/layer.tar", layer)?;
    Ok(builder.into_inner()?)
}

fn scanning(plan: &Plan, table: &mut Table) -> Outcome<()> {
    let layer = layers(if plan.quick { 64 << 20 } else { 256 << 20 })?;
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::default());
    gzip.write_all(&layer)?;
    let (what, least) = ("scanning uncompressed layers, one core", Target::AtLeast(300.0));
    scanned(plan, table, (what, least), layer.len(), &saved(&layer)?)?;
    let what = "scanning gzip layers, one core, as bytes of their content";
    scanned(plan, table, (what, Target::Stated), layer.len(), &saved(&gzip.finish()?)?)
}

fn scanned(
    plan: &Plan,
    table: &mut Table,
    (what, target): (&'static str, Target),
    bytes: usize,
    saved: &[u8],
) -> Outcome<()> {
    let report = image::scan(saved)?;
    if report.bytes < bytes as u64 || !report.unverified.is_empty() {
        return Err(format!("the layer was not read: {:?}", report.unverified).into());
    }
    let found = times(plan.rounds(5, 2), || {
        let _ = black_box(image::scan(black_box(saved)));
    });
    let rate = bytes as f64 / median(&found);
    let shown = format!("{rate:.0} MB/s, {} MB of this machine's /usr", bytes / 1_000_000);
    table.row("who", what, (rate, shown), target, " MB/s");
    Ok(())
}

/// What the key guard adds to a create that binds a project of 30 000 source files: to the first one of a session, and to
/// those after it, which are nearly all.
fn project(plan: &Plan, table: &mut Table) -> Outcome<()> {
    const FILES: usize = 30_000;
    let (folder, guard) = (Folder::new()?, Guard::default());
    let line = "def load(table: str, limit: int = 100) -> list[dict]:\n    return [row for row in rows(table)][:limit]\n\n";
    for number in 0..FILES {
        let inside = folder.0.join(format!("package{}", number / 100));
        if number % 100 == 0 {
            std::fs::create_dir(&inside)?;
        }
        std::fs::write(inside.join(format!("module{number}.py")), line.repeat(4 + number % 32))?;
    }
    let root = [folder.0.clone()];
    let once = |memory: &Memory| look(&root, &guard, Budget::REQUEST, memory, 4);
    let memory = Memory::default();
    let seen = once(&memory);
    if seen.files < FILES || !seen.finds.is_empty() || !seen.unverified.is_empty() {
        return Err(format!("{} files: {:?} {:?}", seen.files, seen.finds, seen.unverified).into());
    }
    let first = times(plan.rounds(9, 3), || drop(black_box(once(&Memory::default()))));
    let later = times(plan.rounds(25, 5), || drop(black_box(once(&memory))));
    let (first, later) = (median(&first) / 1e3, median(&later) / 1e3);
    let shown =
        format!("{later:.0} ms, the first one of a session {first:.0} ms ({} MB)", seen.bytes / 1_000_000);
    let what = "look through a bound project of 30 000 files, for a create";
    table.row("who", what, (later, shown), Target::AtMost(150.0), " ms");
    Ok(())
}

fn auditing(plan: &Plan, table: &mut Table) -> Outcome<()> {
    let (plain, audited) = (Folder::new()?, Folder::new()?);
    std::fs::write(audited.0.join("kfp-creds.toml"), "[audit]\nfile = \"audit.jsonl\"\n")?;
    let without = listener(&plan.program, &plain, &["--offline"])?;
    let with = listener(&plan.program, &audited, &["--offline", "--config", "kfp-creds.toml"])?;
    body_of(with.at)?;
    let rounds = pairs(plan, &with, &without, 16)?;
    let cpus: Vec<_> = rounds.iter().map(|(with, without)| (with.cpu, without.cpu)).collect();
    let more = of_pairs(&cpus, ratio);
    let percent = |value: f64| (value - 1.0) * 100.0;
    let shown =
        format!("{:+.1} % (95 %: {:+.1}–{:+.1})", percent(more.value), percent(more.low), percent(more.high));
    if std::fs::metadata(audited.0.join("audit.jsonl"))?.len() == 0 {
        return Err("nothing was written to the audit log".into());
    }
    let what = "CPU of a cached token that the audit log adds, loopback, 16 connections";
    table.row("who", what, (percent(more.value), shown), Target::AtMost(2.0), " %");
    Ok(())
}

/// As many containers as the pool has addresses for, made through the session; then it is asked how it does.
pub(crate) fn leases(plan: &Plan, image: &str, table: &mut Table) -> Outcome<()> {
    let wanted = if plan.quick { 100 } else { 1000 };
    let session = Session::with(&plan.program, &[("KFP_CREDS_POOL", "10.231.64.0/20")])?;
    let made = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let body = json!({"Image": image, "Cmd": ["true"]});
                while made.lock().map_or(0, |made| made.len()) < wanted {
                    let Ok(answer) = engine::call(&session.socket, "POST", "/containers/create", Some(&body))
                    else {
                        return;
                    };
                    let id = serde_json::from_slice::<serde_json::Value>(&answer)
                        .ok()
                        .and_then(|a| Some(a["Id"].as_str()?.to_owned()));
                    if let (Some(id), Ok(mut made)) = (id, made.lock()) {
                        made.push(id);
                    }
                }
            });
        }
    });
    let made = made.into_inner().unwrap_or_default();
    let outcome = asked(plan, &session, made.len(), wanted, table);
    for batch in made.chunks(50) {
        let arguments: Vec<&str> = ["rm", "-f"].into_iter().chain(batch.iter().map(String::as_str)).collect();
        engine::docker(&engine::socket(), &arguments)?;
    }
    outcome
}

fn asked(plan: &Plan, session: &Session, made: usize, wanted: usize, table: &mut Table) -> Outcome<()> {
    if made < wanted {
        return Err(format!("only {made} of {wanted} containers could be made").into());
    }
    let control = session.socket.with_extension("ctl");
    for path in ["/status", "/metrics"] {
        let answer = engine::plain(&control, path)?;
        let leases = match path {
            "/status" => {
                serde_json::from_slice::<serde_json::Value>(&answer)?["leases"].as_array().map_or(0, Vec::len)
            }
            _ => String::from_utf8_lossy(&answer)
                .lines()
                .find_map(|l| l.strip_prefix("kfp_creds_leases ")?.parse().ok())
                .unwrap_or(0),
        };
        if leases < wanted {
            return Err(format!("{path} knows {leases} of {wanted} leases").into());
        }
        let mut found = times(plan.rounds(200, 40), || {
            let _ = black_box(engine::plain(&control, path));
        });
        let (middle, high) = (median(&found) / 1e3, percentile(&mut found, 95.0) / 1e3);
        let shown = format!("{middle:.2} ms (95 %: ≤ {high:.2}), {} kB", answer.len() / 1000);
        let what = format!("`GET {path}` on the control socket with {made} leases");
        table.row("leases", what, (middle, shown), Target::AtMost(10.0), " ms");
    }
    Ok(())
}
