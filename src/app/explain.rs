//! `kfp-creds explain`: which rule decides about a container, why those before it did not, and what it gets.

use std::path::Path;

use serde_json::Value;

use super::cut_off::query;
use super::{reload, sessions};
use crate::config::{Config, Surroundings};
use crate::docker::proxy::Rules;
use crate::failure::{Ended, Failure};
use crate::kfp;
use crate::policy::Decision;
use crate::workload::Task;

/// Larger than any create request that a person would look at.
const LARGEST: u64 = 32 << 20;

/// `what` is a file with the body of a create request, else a container of a session that runs. Whether a
/// container may have an identity at all (`--privileged`, host network) is decided when it is created.
pub async fn explain(
    config: &Config,
    around: &Surroundings,
    what: &str,
    print: impl Fn(&str),
) -> Result<Ended, Failure> {
    let path = around.cwd.join(what);
    if path.is_file() {
        let body: Value = serde_json::from_str(&read(&path)?)
            .map_err(|error| wrong(&path, format!("is not JSON (line {})", error.line())))?;
        if !body.is_object() {
            return Err(wrong(&path, "is not the body of a create request"));
        }
        print(explained(&reload::rules(config), &kfp::task(&body, None)).trim_end());
        return Ok(Ended::Done);
    }
    for peer in sessions::find(around, None).await? {
        match peer.call("GET", &format!("/explain?{}", query("container", what))).await {
            Ok(text) => {
                print(text.trim_end());
                return Ok(Ended::Done);
            }
            Err(Failure::NotFound(_)) => {}
            Err(failure) => return Err(failure),
        }
    }
    Err(Failure::Usage(format!(
        "{what} is neither a file nor a container with an identity in a session that runs"
    )))
}

/// The same for every task of a compiled pipeline.
pub fn explain_pipeline(
    config: &Config,
    around: &Surroundings,
    file: &Path,
    print: impl Fn(&str),
) -> Result<Ended, Failure> {
    let path = around.cwd.join(file);
    let tasks = kfp::pipeline::tasks(&read(&path)?).map_err(|why| wrong(&path, why))?;
    if tasks.is_empty() {
        return Err(wrong(&path, "has no task that runs in a container"));
    }
    let rules = reload::rules(config);
    for (index, task) in tasks.iter().enumerate() {
        if index > 0 {
            print("");
        }
        let inside = task.iteration.as_ref().map_or(String::new(), |inside| format!(" in {inside}"));
        print(&plain(&format!("{task}{inside}, image {}", task.image)));
        for line in explained(&rules, task).lines() {
            print(&format!("  {line}"));
        }
    }
    Ok(Ended::Done)
}

/// Which rule decides, and all that the container is given.
pub(super) fn explained(rules: &Rules, task: &Task) -> String {
    let explanation = rules.policy.explain(task);
    let mut text = explanation.to_string();
    if matches!(explanation.decision, Decision::Attach(..)) {
        for mount in rules.mounts.iter().filter(|mount| mount.is_for(task)) {
            text.push_str(&format!("mount         {mount}\n"));
        }
    }
    plain(&text)
}

/// Names come from whoever wrote the request or the pipeline.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

fn wrong(path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::Usage(format!("{}: {why}", path.display()))
}

fn read(path: &Path) -> Result<String, Failure> {
    let size = std::fs::metadata(path).map_err(|error| wrong(path, error))?.len();
    if size > LARGEST {
        return Err(wrong(path, "is larger than 32 MiB, which the proxy refuses as well"));
    }
    let bytes = std::fs::read(path).map_err(|error| wrong(path, error))?;
    String::from_utf8(bytes).map_err(|_| wrong(path, "is not UTF-8"))
}
