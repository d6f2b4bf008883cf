//! The tasks that a compiled pipeline will create, as they will look in a create request of `kfp.local`.
//!
//! The format is `PipelineSpec` of the pipelines SDK's IR (`pipeline_spec.proto`, version 2): `root` and
//! `components` either are graphs of tasks or name an executor; `deploymentSpec.executors` has images and
//! commands.

use serde_json::Value;

use super::yaml;
use crate::json::{fields, items, strings};
use crate::workload::Task;

/// Deepest nesting of graphs. Loops may be nested; a graph that contains itself is not a pipeline.
const DEEPEST: usize = 16;
/// Most tasks of one pipeline: more than a user could read.
const MOST_TASKS: usize = 10_000;

/// One task of a compiled pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Specified {
    /// The task as its create request will show it; what the request does not show comes from the
    /// specification.
    pub task: Task,
    /// Command and arguments, with placeholders.
    pub words: Vec<String>,
    /// Whether the specification gives a command, and not arguments alone.
    pub commanded: bool,
    /// Whether its create request shows which task it is: it has an `--executor_input` or the path of an
    /// output.
    pub shows: bool,
}

/// The tasks of a compiled pipeline (YAML or JSON) in file order, with the names that `kfp.local` gives them:
/// the component's name, numbered if the component is used again. Of the graphs around a task, only loops
/// appear in its path. A task in a loop is listed as of the first iteration; iterations are numbered from 0.
pub fn tasks(text: &str) -> Result<Vec<Specified>, String> {
    let spec = yaml::first_document(text)?;
    let name = spec["pipelineInfo"]["name"].as_str();
    let name = name.filter(|_| spec["root"].is_object() && spec["deploymentSpec"].is_object());
    let name = name.ok_or("is not a compiled pipeline (no pipelineInfo, root and deploymentSpec)")?;
    let mut found = PipelineTasks { spec: &spec, pipeline: name, tasks: vec![] };
    found.graph(&spec["root"], 0, &[])?;
    Ok(found.tasks)
}

struct PipelineTasks<'a> {
    spec: &'a Value,
    pipeline: &'a str,
    tasks: Vec<Specified>,
}

impl<'a> PipelineTasks<'a> {
    /// `inside` is the nesting depth of this graph, `path` the part of its position that output paths show.
    fn graph(&mut self, component: &'a Value, inside: usize, path: &[String]) -> Result<(), String> {
        if inside > DEEPEST {
            return Err("has components that contain themselves".into());
        }
        for (name, task) in fields(&component["dag"]["tasks"]) {
            if self.tasks.len() >= MOST_TASKS {
                return Err(format!("has more than {MOST_TASKS} tasks"));
            }
            let reference = task["componentRef"]["name"].as_str().unwrap_or_default();
            let component = &self.spec["components"][reference];
            if component["dag"].is_object() {
                let loops = task["parameterIterator"].is_object() || task["artifactIterator"].is_object();
                let step = match loops {
                    true => Some(format!("{name}-iteration-0")),
                    false => name.contains("-iteration-").then(|| name.clone()),
                };
                self.graph(component, inside + 1, &[path, step.as_slice()].concat())?;
                continue;
            }
            let label = component["executorLabel"].as_str().unwrap_or_default();
            let container = &self.spec["deploymentSpec"]["executors"][label]["container"];
            // An importer runs no container.
            if container.is_object() {
                let name = reference.strip_prefix("comp-").unwrap_or(reference);
                self.tasks.push(self.task(name, container, path));
            }
        }
        Ok(())
    }

    fn task(&self, name: &str, container: &Value, inside: &[String]) -> Specified {
        let words = |key: &str| strings(&container[key]);
        let command: Vec<&str> = words("command").chain(words("args")).collect();
        let variables = items(&container["env"]);
        let variables =
            variables.filter_map(|one| Some(format!("{}={}", one["name"].as_str()?, one["value"].as_str()?)));
        let variables: Vec<String> = variables.collect();
        let function = super::argument(&command, "--function_to_execute").find(|name| super::is_name(name));
        let outputs = |word: &&str| word.contains("{{$.outputs.") || word.contains("{{$}}");
        let task = Task {
            kfp: true,
            pipeline: Some(self.pipeline.into()),
            component: Some(name.into()),
            function: function.map(String::from),
            iteration: (!inside.is_empty()).then(|| inside.join("/")),
            image: container["image"].as_str().unwrap_or_default().into(),
            requested: super::requested(&variables.iter().map(String::as_str).collect::<Vec<_>>()),
            ..Task::default()
        };
        Specified {
            task,
            commanded: words("command").next().is_some(),
            shows: command.iter().any(outputs),
            words: command.into_iter().map(String::from).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiled_pipeline_says_what_it_will_create() {
        let text = include_str!("../../tests/golden/pipeline/nightly-etl.yaml");
        let tasks: Vec<Task> = tasks(text).unwrap().into_iter().map(|compiled| compiled.task).collect();
        let rows: Vec<_> = tasks
            .iter()
            .map(|task| {
                let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
                format!("{task} {} {} {}", text(&task.function), text(&task.iteration), text(&task.requested))
            })
            .collect();
        assert_eq!(
            rows,
            [
                "nightly-etl/transform-3 transform - -",
                "nightly-etl/extract extract - loader",
                "nightly-etl/transform-2 transform for-loop-1-iteration-0 -",
                "nightly-etl/transform-2-2 transform for-loop-3-iteration-0 -",
                "nightly-etl/transform transform - -",
                "nightly-etl/shell - - -",
            ]
        );
        assert_eq!(tasks[1].image, "python:3.11");
        assert!(tasks[5].image.starts_with("busybox@sha256:aaaa"));
    }

    #[test]
    fn a_compiled_pipeline_can_be_json_but_not_nonsense() {
        let json = r#"{"pipelineInfo": {"name": "p"}, "deploymentSpec": {"executors": {"e": {"container": {"image": "x"}}}},
            "components": {"c": {"executorLabel": "e"}}, "root": {"dag": {"tasks": {"t": {"componentRef": {"name": "c"}}}}}}"#;
        assert_eq!(tasks(json).unwrap()[0].task.to_string(), "p/c");
        let itself = json.replace(
            r#""executorLabel": "e""#,
            r#""dag": {"tasks": {"t": {"componentRef": {"name": "c"}}}}"#,
        );
        assert!(tasks(&itself).unwrap_err().contains("contain themselves"));
        for bad in ["", "a: b", "[", "a: &x [*x]", "- - -", "\u{0}", "a: *nothing"] {
            assert!(tasks(bad).is_err(), "{bad}");
        }
        // Each line doubles the one before.
        let mut bomb = String::from("a0: &a0 [x, x]\n");
        for n in 1..40 {
            bomb.push_str(&format!("a{n}: &a{n} [*a{0}, *a{0}]\n", n - 1));
        }
        assert!(tasks(&bomb).unwrap_err().contains("too much"));
        assert!(tasks(&"[".repeat(10_000)).is_err());
    }
}
