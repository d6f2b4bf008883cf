//! What a compiled pipeline will create: the tasks of its specification, as they will look in a create
//! request of `kfp.local`.
//!
//! `PipelineSpec` of the pipelines SDK's IR (`pipeline_spec.proto`, version 2): `root` and `components` are
//! graphs of tasks or name an executor, `deploymentSpec.executors` has images and commands.

use serde_json::Value;

use super::yaml;
use crate::workload::Task;

/// A loop may be nested in a loop; a graph that contains itself is no pipeline.
const DEEPEST: usize = 16;
/// More than anybody reads.
const MOST_TASKS: usize = 10_000;

/// The tasks of a compiled pipeline (YAML or JSON), in the order of the file. In loops, what is true of the
/// first iteration; iterations are numbered from 0.
pub fn tasks(text: &str) -> Result<Vec<Task>, String> {
    let spec = yaml::first_document(text)?;
    let name = spec["pipelineInfo"]["name"].as_str();
    let name = name.filter(|_| spec["root"].is_object() && spec["deploymentSpec"].is_object());
    let name = name.ok_or("is not a compiled pipeline (no pipelineInfo, root and deploymentSpec)")?;
    let mut found = Found { spec: &spec, pipeline: name, tasks: vec![] };
    found.graph(&spec["root"], &[])?;
    Ok(found.tasks)
}

struct Found<'a> {
    spec: &'a Value,
    pipeline: &'a str,
    tasks: Vec<Task>,
}

impl<'a> Found<'a> {
    /// `inside` is the way to this graph: the names of the tasks that are graphs themselves.
    fn graph(&mut self, component: &'a Value, inside: &[String]) -> Result<(), String> {
        if inside.len() > DEEPEST {
            return Err("has components that contain themselves".into());
        }
        for (name, task) in component["dag"]["tasks"].as_object().into_iter().flatten() {
            if self.tasks.len() >= MOST_TASKS {
                return Err(format!("has more than {MOST_TASKS} tasks"));
            }
            let reference = task["componentRef"]["name"].as_str().unwrap_or_default();
            let component = &self.spec["components"][reference];
            if component["dag"].is_object() {
                let loops = task["parameterIterator"].is_object() || task["artifactIterator"].is_object();
                let step = if loops { format!("{name}-iteration-0") } else { name.clone() };
                self.graph(component, &[inside, &[step]].concat())?;
                continue;
            }
            let label = component["executorLabel"].as_str().unwrap_or_default();
            let container = &self.spec["deploymentSpec"]["executors"][label]["container"];
            // An importer runs no container.
            if container.is_object() {
                self.tasks.push(self.task(name, container, inside));
            }
        }
        Ok(())
    }

    fn task(&self, name: &str, container: &Value, inside: &[String]) -> Task {
        let words = |key: &str| container[key].as_array().into_iter().flatten().filter_map(Value::as_str);
        let command: Vec<&str> = words("command").chain(words("args")).collect();
        let variables = container["env"].as_array().into_iter().flatten();
        let variables =
            variables.filter_map(|one| Some(format!("{}={}", one["name"].as_str()?, one["value"].as_str()?)));
        let variables: Vec<String> = variables.collect();
        let function = super::argument(&command, "--function_to_execute").find(|name| super::is_name(name));
        Task {
            kfp: true,
            pipeline: Some(self.pipeline.into()),
            component: Some(name.into()),
            function: function.map(String::from),
            iteration: (!inside.is_empty()).then(|| inside.join("/")),
            image: container["image"].as_str().unwrap_or_default().into(),
            wish: super::wish(&variables.iter().map(String::as_str).collect::<Vec<_>>()),
            ..Task::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiled_pipeline_says_what_it_will_create() {
        let text = include_str!("../../tests/golden/pipeline/nightly-etl.yaml");
        let tasks = tasks(text).unwrap();
        let rows: Vec<_> = tasks
            .iter()
            .map(|task| {
                let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
                format!("{task} {} {} {}", text(&task.function), text(&task.iteration), text(&task.wish))
            })
            .collect();
        assert_eq!(
            rows,
            [
                "nightly-etl/transform-3 transform condition-4 -",
                "nightly-etl/extract extract - loader",
                "nightly-etl/transform transform for-loop-1-iteration-0 -",
                "nightly-etl/transform-2 transform for-loop-3-iteration-0 -",
                "nightly-etl/transform transform my-etl -",
                "nightly-etl/shell - - -",
            ]
        );
        assert_eq!(tasks[1].image, "python:3.11");
        assert!(tasks[5].image.starts_with("busybox@sha256:aaaa"));
    }

    #[test]
    fn json_is_read_too_and_nonsense_is_not() {
        let json = r#"{"pipelineInfo": {"name": "p"}, "deploymentSpec": {"executors": {"e": {"container": {"image": "x"}}}},
            "components": {"c": {"executorLabel": "e"}}, "root": {"dag": {"tasks": {"t": {"componentRef": {"name": "c"}}}}}}"#;
        assert_eq!(tasks(json).unwrap()[0].to_string(), "p/t");
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
