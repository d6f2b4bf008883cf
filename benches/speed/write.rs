//! `--write`: what was measured goes into `docs/internals/figures.md`.

use std::path::Path;

use crate::engine::{self, docker};
use crate::page::{self, Row, WITHOUT_ENGINE};
use crate::{Outcome, Plan};

/// Groups that leave rows out, or end the run, without these variables of `scripts/setup --all`.
const NEEDS: [(&str, &str); 2] = [("attach", "KFP_CREDS_TEST_PYTHON"), ("builds", "KFP_CREDS_DOCKER_BUILDX")];

/// When and where this run began, or why it may not write. Asked before anything is measured.
pub(crate) fn begin(plan: &Plan) -> Outcome<String> {
    if plan.quick || plan.before.is_some() || plan.program != Path::new(env!("CARGO_BIN_EXE_kfp-creds")) {
        return Err("--write: leave out --quick, --before and --program".into());
    }
    let lacks = |(group, variable): &&(&str, &str)| plan.wants(group) && std::env::var_os(variable).is_none();
    if let Some((group, variable)) = NEEDS.iter().find(lacks) {
        let what = "run scripts/setup --all, then `. .work/env`";
        return Err(format!("--write: {group} needs {variable}: {what}").into());
    }
    let average = std::fs::read_to_string("/proc/loadavg")?;
    let load: f64 = average.split(' ').next().unwrap_or_default().parse()?;
    let about = std::fs::read_to_string("/proc/cpuinfo")?;
    let cpu = about.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(": ")?.1));
    let cores = std::thread::available_parallelism()?.get();
    let day = time::OffsetDateTime::now_utc().date().to_string();
    Ok(page::run(&day, cores, cpu.unwrap_or("unknown CPU"), load, plan.loaded)?)
}

/// Writes the rows into the section of the engine, and those of groups without an engine into theirs.
pub(crate) fn end(run: &str, rows: &[Row]) -> Outcome<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/internals/figures.md");
    let (title, groups) = WITHOUT_ENGINE;
    let (without, with): (Vec<Row>, Vec<Row>) =
        rows.iter().cloned().partition(|row| groups.contains(&row.group));
    let mut text = page::replace_rows(&std::fs::read_to_string(&file)?, title, run, &without)?;
    if !with.is_empty() {
        text = page::replace_rows(&text, &engine_title()?, run, &with)?;
    }
    std::fs::write(&file, text)?;
    eprintln!("written to {}: read its prose again", file.display());
    Ok(())
}

/// Its product and version, and its kind where an engine of the same version may be of another.
fn engine_title() -> Outcome<String> {
    let format = "{{(index .Server.Components 0).Name}} {{.Server.Version}}";
    let found = docker(&engine::socket(), &["version", "--format", format])?;
    let found = found.split('+').next().unwrap_or_default();
    let product = if found.starts_with("Engine") { "Docker " } else { "" };
    let name = std::env::var("KFP_CREDS_TEST_ENGINE_NAME").unwrap_or_default();
    let kind = ["rootless", "vm"].into_iter().find(|kind| name.ends_with(&format!("-{kind}")));
    Ok(format!("{product}{found}{}", kind.map(|kind| format!(", {kind}")).unwrap_or_default()))
}
