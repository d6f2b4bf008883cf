//! What an identity costs a container that names no network, in each mode of `network.attach`: against the same
//! container without kfp-creds, on the default bridge.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::creates::{interval, medians, pairs};
use crate::engine::{self, Stage, call};
use crate::figures::{Table, Target, of_pairs, ratio};
use crate::session::Session;
use crate::{Outcome, Plan};

/// The mode, and most that a container may take of what it takes without us, on the newest engine.
const MODES: [(&str, Target); 3] =
    [("auto", Target::AtMost(1.06)), ("link-local", Target::AtMost(1.03)), ("second", Target::Stated)];

pub(crate) fn measure(plan: &Plan, stage: &Stage, table: &mut Table) -> Outcome<()> {
    for (mode, target) in MODES {
        let session = Session::with(&plan.program, &[("KFP_CREDS_ATTACH", mode)])?;
        let (ours, plain) = (session.socket.clone(), engine::socket());
        let found =
            pairs(plan.rounds(25, 6), |_| to_exit(&ours, &stage.image), |_| to_exit(&plain, &stage.image))?;
        let share = of_pairs(&found, ratio);
        let shown = format!("{} ({})", interval(share, 1.0, ""), medians(&found));
        let what =
            format!("network.attach = \"{mode}\": a container from create to exit, over one without us");
        table.row("attach", &what, (share.value, shown), target, "");
    }
    let Ok(python) = std::env::var("KFP_CREDS_TEST_PYTHON") else { return Ok(()) };
    for (mode, target) in MODES {
        let session = Session::with(&plan.program, &[("KFP_CREDS_ATTACH", mode)])?;
        let (ours, plain) = (session.socket.clone(), engine::socket());
        let found = pairs(plan.rounds(10, 3), |_| ten_tasks(&python, &ours), |_| ten_tasks(&python, &plain))?;
        let share = of_pairs(&found, ratio);
        let shown = format!("{} ({})", interval(share, 1.0, ""), medians(&found));
        let what =
            format!("network.attach = \"{mode}\": a kfp task, in a pipeline of ten, over one without us");
        table.row("attach", &what, (share.value, shown), target, "");
    }
    Ok(())
}

/// Milliseconds from the create of a container on the default bridge to its exit; it is removed after that.
fn to_exit(socket: &Path, image: &str) -> Outcome<f64> {
    let body = json!({"Image": image, "Cmd": ["nothing"], "HostConfig": {"NetworkMode": "default"}});
    let began = Instant::now();
    let answer: Value = serde_json::from_slice(&call(socket, "POST", "/containers/create", Some(&body))?)?;
    let id = answer["Id"].as_str().ok_or("no id")?;
    call(socket, "POST", &format!("/containers/{id}/start"), None)?;
    let exit: Value =
        serde_json::from_slice(&call(socket, "POST", &format!("/containers/{id}/wait"), None)?)?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    call(socket, "DELETE", &format!("/containers/{id}"), None)?;
    match exit["StatusCode"] == 0 {
        true => Ok(took),
        false => Err(format!("the short container failed: {exit}").into()),
    }
}

/// Milliseconds for each task of a pipeline of ten.
fn ten_tasks(python: &str, socket: &Path) -> Outcome<f64> {
    let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/python/pipelines/ten_tasks.py");
    let ran = Command::new(python)
        .arg(program)
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&ran.stderr);
    let seconds = said.lines().rev().find_map(|line| line.strip_prefix("seconds ")?.parse::<f64>().ok());
    match seconds {
        Some(seconds) if ran.status.success() => Ok(seconds * 1e3 / 10.0),
        _ => {
            let (at, why) = (socket.display(), said.lines().last().unwrap_or_default());
            Err(format!("the pipeline at {at} failed: {why}").into())
        }
    }
}
