//! Mounts from the config and `--mount`, in addition to those of the create request.
//!
//! kfp gives a pipeline's user no way to mount anything before 2.14 and no way per component after it
//! (kubeflow/pipelines #10847); here mounts are added to the create request, so every version has them.

use std::fmt;
use std::path::PathBuf;

use crate::json::{fields, items, strings};
use crate::quote;
use crate::workload::{Pattern, Task};
use serde_json::{Map, Value, json};

/// kfp's own mount; no other mount may cover it.
const WORKSPACE: &str = "/kfp-workspace";

/// One `[[mount]]` or `--mount`. All of its patterns must match.
#[derive(Clone, Debug)]
pub struct Mount {
    pub patterns: Vec<Pattern>,
    pub source: Source,
    /// Absolute, in the container.
    pub target: String,
    /// False by default.
    pub writable: bool,
}

/// The source of a mount.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// A file or directory of this machine, absolute. It is bind-mounted: no copy, no link.
    Path(PathBuf),
    /// A named volume of the engine; `beside` is a file or directory of that name where relative paths start, in case
    /// the user meant that.
    Volume { name: String, beside: Option<PathBuf> },
    /// Empty memory.
    Tmpfs,
}

impl Mount {
    pub fn is_for(&self, task: &Task) -> bool {
        self.patterns.iter().all(|pattern| pattern.fits(task))
    }

    /// The form of `HostConfig.Mounts` in the Docker API. There a missing source is an error, where `Binds`
    /// would make an empty directory.
    fn described(&self) -> Value {
        let mut mount = json!({ "Target": self.target, "ReadOnly": !self.writable });
        match &self.source {
            Source::Path(path) => {
                mount["Type"] = "bind".into();
                mount["Source"] = path.to_string_lossy().into_owned().into();
            }
            Source::Volume { name, .. } => {
                mount["Type"] = "volume".into();
                mount["Source"] = name.clone().into();
            }
            Source::Tmpfs => mount["Type"] = "tmpfs".into(),
        }
        mount
    }
}

/// Shown as `TARGET from SOURCE, read-only`.
impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.writable { "writable" } else { "read-only" };
        match &self.source {
            Source::Path(path) => {
                write!(f, "{} from {}, {mode}", quote::name(&self.target), path.to_string_lossy())
            }
            Source::Volume { name, .. } => write!(f, "{} from the volume {name}, {mode}", self.target),
            Source::Tmpfs => write!(f, "{}, empty memory", self.target),
        }
    }
}

/// Normalises a target: `/a/b/` and `/a/b` are the same.
fn place(target: &str) -> &str {
    match target.trim_end_matches('/') {
        "" => "/",
        place => place,
    }
}

/// Why nothing can be mounted at `target`; completes the sentence `"TARGET" …`.
pub fn objection(target: &str) -> Option<&'static str> {
    let within = |outer: &str| place(target) == outer || target.starts_with(&format!("{outer}/"));
    if !target.starts_with('/') || target.split('/').any(|part| part == "..") {
        return Some("has to be an absolute path, without ..");
    }
    if place(target) == "/" || ["/proc", "/sys", "/dev"].into_iter().any(within) {
        return Some("would cover what the container needs to run");
    }
    within(WORKSPACE).then_some("belongs to kfp's workspace")
}

/// Adds the task's mounts to the create request. Two mounts at one target are an error, worded for the
/// container's creator.
pub fn add<'a>(mounts: impl Iterator<Item = &'a Mount>, body: &mut Value) -> Result<(), String> {
    let mut taken = targets(body);
    let mut added = Vec::new();
    for mount in mounts {
        let at = place(&mount.target).to_string();
        if taken.contains(&at) {
            return Err(format!(
                "kfp-creds is to mount something at {at}, where the container has a mount already"
            ));
        }
        taken.push(at);
        added.push(mount.described());
    }
    if added.is_empty() {
        return Ok(());
    }
    if !body["HostConfig"].is_object() {
        body["HostConfig"] = Map::new().into();
    }
    match body["HostConfig"]["Mounts"].as_array_mut() {
        Some(own) => own.extend(added),
        None => body["HostConfig"]["Mounts"] = added.into(),
    }
    Ok(())
}

/// Whether the request mounts something at `at`, above it or below it.
pub fn touches(body: &Value, at: &str) -> bool {
    let within =
        |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
    targets(body).iter().any(|own| own == at || within(own, at) || within(at, own))
}

/// The targets of the request's own mounts.
fn targets(body: &Value) -> Vec<String> {
    let host = &body["HostConfig"];
    let binds = strings(&host["Binds"]);
    // `source:target[:options]`, or a bare target for an anonymous volume. Only Linux engines are supported,
    // so a source contains no colon.
    let binds = binds.filter_map(|bind| bind.split(':').nth(usize::from(bind.contains(':'))));
    let mounts = items(&host["Mounts"]).filter_map(|mount| mount["Target"].as_str());
    let memory = fields(&host["Tmpfs"]).map(|(at, _)| at.as_str());
    binds.chain(mounts).chain(memory).map(|at| place(at).to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Part;

    fn mount(component: &str, target: &str) -> Mount {
        Mount {
            patterns: vec![Pattern::new(Part::Component, component)],
            source: Source::Path("/home/user/data".into()),
            target: target.into(),
            writable: false,
        }
    }

    #[test]
    fn a_mount_goes_where_its_patterns_say_and_is_read_only() {
        let task = Task { component: Some("train-2".into()), ..Task::default() };
        let all = [mount("train*", "/data"), mount("load", "/other")];
        let mut body = json!({ "Image": "x" });
        add(all.iter().filter(|mount| mount.is_for(&task)), &mut body).unwrap();
        let wanted =
            json!([{ "Target": "/data", "ReadOnly": true, "Type": "bind", "Source": "/home/user/data" }]);
        assert_eq!(body["HostConfig"]["Mounts"], wanted);
    }

    #[test]
    fn a_mount_does_not_cover_the_containers_own() {
        for host in [
            json!({ "Binds": ["/tmp/x:/data:rw"] }),
            json!({ "Binds": ["/data:/data"] }),
            json!({ "Binds": ["name:/data/"] }),
            json!({ "Binds": ["/data"] }),
            json!({ "Mounts": [{ "Type": "volume", "Target": "/data/" }] }),
            json!({ "Tmpfs": { "/data": "" } }),
        ] {
            let mut body = json!({ "HostConfig": host });
            let before = body.clone();
            assert!(add([mount("x", "/data")].iter(), &mut body).is_err(), "{before}");
            assert_eq!(body, before);
        }
        let mut body = json!({ "HostConfig": { "Binds": ["/data:/elsewhere:ro"], "Mounts": null } });
        add([mount("x", "/data")].iter(), &mut body).unwrap();
        assert!(add([mount("x", "/a"), mount("x", "/a/")].iter(), &mut json!({})).is_err());
    }

    #[test]
    fn a_place_is_touched_at_above_and_below() {
        for (target, touched) in [
            ("/gcs/bucket", true),
            ("/gcs/bucket/", true),
            ("/gcs/bucket/a/b", true),
            ("/gcs", true),
            ("/gcs/bucket-2", false),
            ("/gc", false),
            ("/data/gcs/bucket", false),
        ] {
            let body = json!({ "HostConfig": { "Binds": [format!("/x:{target}:ro")] } });
            assert_eq!(touches(&body, "/gcs/bucket"), touched, "{target}");
        }
    }

    #[test]
    fn reserved_targets_are_refused_for_mounts() {
        for bad in
            ["data", "", "/", "//", "/a/../b", "/proc/x", "/dev", "/kfp-workspace", "/kfp-workspace/in/"]
        {
            assert!(objection(bad).is_some(), "{bad}");
        }
        for good in ["/data", "/data/", "/devices", "/kfp-workspaces"] {
            assert!(objection(good).is_none(), "{good}");
        }
    }
}
