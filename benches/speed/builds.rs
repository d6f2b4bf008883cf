//! The context of a build by BuildKit, which the key guard looks into as it is sent.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use crate::creates::{interval, medians, pairs};
use crate::engine;
use crate::figures::{Table, Target, of_pairs, ratio};
use crate::session::{Folder, Session};
use crate::{Outcome, Plan};

/// Least share of the speed without us.
const SPEED: f64 = 0.8;
/// Megabytes of a context, in files of one.
const SIZE: usize = 500;

pub(crate) fn measure(plan: &Plan, table: &mut Table) -> Outcome<()> {
    let Some(plugin) = std::env::var_os("KFP_CREDS_DOCKER_BUILDX") else {
        return Err("builds: no buildx; run scripts/setup --all, then `. .work/env`".into());
    };
    let config = Folder::new()?;
    std::fs::create_dir(config.0.join("cli-plugins"))?;
    std::os::unix::fs::symlink(plugin, config.0.join("cli-plugins/docker-buildx"))?;
    let session = Session::start(&plan.program)?;
    let through = |_| send(&session.socket, &config.0);
    let pairs = pairs(plan.rounds(5, 2), |_| send(&engine::socket(), &config.0), through)?;
    let speed = of_pairs(&pairs, ratio);
    let shown = format!("{} ({}, {SIZE} MB each)", interval(speed, 1.0, ""), medians(&pairs));
    table.row(
        "builds",
        "sending a build context, first build, over without us",
        (speed.value, shown),
        Target::AtLeast(SPEED),
        "",
    );
    Ok(())
}

/// Builds a context that the engine has not seen; how long BuildKit says that it was transferred, in milliseconds.
fn send(socket: &Path, config: &Path) -> Outcome<f64> {
    let folder = Folder::new()?;
    std::fs::write(folder.0.join("Dockerfile"), "FROM scratch\nCOPY . /\n")?;
    let mut random = std::fs::File::open("/dev/urandom")?;
    for part in 0..SIZE {
        let mut file = std::fs::File::create(folder.0.join(format!("part-{part}.bin")))?;
        std::io::copy(&mut std::io::Read::take(&mut random, 1_000_000), &mut file)?;
        file.flush()?;
    }
    let out = Command::new("docker")
        .args(["build", "--progress", "plain", "."])
        .current_dir(&folder.0)
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .env("DOCKER_CONFIG", config)
        .env("DOCKER_BUILDKIT", "1")
        .output()?;
    let said = String::from_utf8_lossy(&out.stderr);
    if !out.status.success() {
        return Err(format!("docker build: {said}").into());
    }
    // `#5 transferring context: 500.02MB 2.3s done`
    let line = said.lines().rfind(|line| line.contains("transferring context:") && line.ends_with("s done"));
    let took = line.and_then(|line| line.trim_end_matches("s done").rsplit(' ').next()?.parse::<f64>().ok());
    Ok(took.ok_or_else(|| format!("docker build does not say how long it took: {said}"))? * 1e3)
}
