//! Finds a container's task in compiled pipelines by image and command if its request does not show it.
//!
//! `kfp.local` replaces the placeholders of a specification (`{{$.inputs.parameters['x']}}`) with values and
//! leaves the rest of a command unchanged.

use super::pipeline::{self, Specified};
use crate::workload::{Task, Unknown};

/// The tasks of all compiled pipelines that the config names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    tasks: Vec<CompiledTasks>,
}

#[derive(Clone, Debug, PartialEq)]
struct CompiledTasks {
    spec: Specified,
    image: Vec<String>,
    words: Vec<Word>,
}

/// One word of a command, as a specification writes it.
#[derive(Clone, Debug, PartialEq)]
enum Word {
    /// The text before, between and after placeholders.
    Text(Vec<String>),
    /// `{"Concat": …}` and `{"IfPresent": …}`: any number of words.
    Any,
}

impl Compiled {
    /// Adds the tasks of one compiled pipeline.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        for spec in pipeline::tasks(text)? {
            let image = pieces(&tagged(&spec.task.image));
            let words = spec.words.iter().map(|word| Word::of(word)).collect();
            self.tasks.push(CompiledTasks { spec, image, words });
        }
        Ok(())
    }

    /// The task of a container with this image and command, if exactly one task fits.
    pub fn find(&self, image: &str, command: &[&str]) -> Option<&Specified> {
        let image = tagged(image);
        let mut fitting =
            self.tasks.iter().filter(|known| fits(&known.image, &image) && all_fit(&known.words, command));
        let first = &fitting.next()?.spec;
        // A component used in two graphs fits twice, but is the same task.
        let same = |known: &CompiledTasks| {
            (&known.spec.task.pipeline, &known.spec.task.component)
                == (&first.task.pipeline, &first.task.component)
        };
        fitting.all(same).then_some(first)
    }

    /// Completes a task whose request does not show which one it is. A pipeline that is already known has to
    /// match.
    pub(super) fn fill(&self, task: &mut Task, command: &[&str]) {
        let Some(found) = self.find(&task.image, command) else { return };
        if task.pipeline.is_some() && task.pipeline != found.task.pipeline {
            return;
        }
        task.kfp = true;
        task.pipeline.clone_from(&found.task.pipeline);
        task.component.clone_from(&found.task.component);
        // The specification does not tell which iteration of a loop this is.
        task.unknown = Unknown { iteration: found.task.iteration.is_some(), ..Unknown::default() };
    }
}

impl Word {
    fn of(text: &str) -> Self {
        let structure = text.starts_with("{\"Concat\"") || text.starts_with("{\"IfPresent\"");
        if structure { Self::Any } else { Self::Text(pieces(text)) }
    }
}

/// The image with its tag; `kfp.local` passes `docker-py` a tag in any case.
fn tagged(image: &str) -> String {
    if image.contains(':') { image.into() } else { format!("{image}:latest") }
}

/// The text around the placeholders: always one piece more than there are placeholders.
fn pieces(text: &str) -> Vec<String> {
    let mut rest = text;
    let mut found = vec![];
    while let Some((before, after)) = rest.split_once("{{$") {
        let Some((_, behind)) = after.split_once("}}") else { break };
        found.push(before.into());
        rest = behind;
    }
    found.push(rest.into());
    found
}

/// Whether `text` consists of the pieces, in order, with any text between them.
fn fits(pieces: &[String], text: &str) -> bool {
    let [first, middle @ .., last] = pieces else { return pieces.first().is_some_and(|only| only == text) };
    let Some(rest) = text.strip_prefix(first.as_str()).and_then(|rest| rest.strip_suffix(last.as_str()))
    else {
        return false;
    };
    let mut rest = rest;
    for piece in middle {
        let Some((_, behind)) = rest.split_once(piece.as_str()) else { return false };
        rest = behind;
    }
    true
}

/// The same for the words of a command. `Any` may match no word; time is at most the product of both lengths.
fn all_fit(words: &[Word], command: &[&str]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut back = None;
    while from < command.len() {
        match words.get(at) {
            Some(Word::Any) => {
                back = Some((at, from));
                at += 1;
            }
            Some(Word::Text(pieces)) if fits(pieces, command[from]) => (at, from) = (at + 1, from + 1),
            Some(Word::Text(_)) | None => {
                let Some((any, taken)) = back else { return false };
                back = Some((any, taken + 1));
                (at, from) = (any + 1, taken + 1);
            }
        }
    }
    words[at..].iter().all(|word| *word == Word::Any)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(executors: &str, tasks: &str) -> Compiled {
        let components: String =
            ["a", "b", "c"].map(|name| format!(r#""comp-{name}": {{"executorLabel": "{name}"}}"#)).join(", ");
        let text = format!(
            r#"{{"pipelineInfo": {{"name": "p"}}, "deploymentSpec": {{"executors": {{{executors}}}}},
                "components": {{{components}, "comp-loop": {{"dag": {{"tasks": {{"in": {{"componentRef": {{"name": "comp-c"}}}}}}}}}}}},
                "root": {{"dag": {{"tasks": {{{tasks}}}}}}}}}"#
        );
        let mut compiled = Compiled::default();
        compiled.add(&text).unwrap();
        compiled
    }

    const TASKS: &str = r#""one": {"componentRef": {"name": "comp-a"}}, "two": {"componentRef": {"name": "comp-b"}},
        "loop": {"parameterIterator": {}, "componentRef": {"name": "comp-loop"}}"#;

    const EXECUTORS: &str = r#"
        "a": {"container": {"image": "gcr.io/x/cli", "command": ["gsutil", "cp"], "args": ["{{$.inputs.parameters['from']}}", "gs://b/{{$.inputs.parameters['to']}}.csv"]}},
        "b": {"container": {"image": "gcr.io/x/cli:1", "command": ["gsutil"], "args": ["{\"IfPresent\": {\"InputName\": \"x\"}}", "ls"]}},
        "c": {"container": {"image": "gcr.io/x/cli", "command": ["gsutil", "du"]}}"#;

    #[test]
    fn image_and_command_name_a_task_when_exactly_one_fits() {
        let compiled = compiled(EXECUTORS, TASKS);
        let name =
            |image: &str, command: &[&str]| compiled.find(image, command).map(|spec| spec.task.to_string());
        let cli = "gcr.io/x/cli:latest";
        assert_eq!(name(cli, &["gsutil", "cp", "/x y", "gs://b/2026.csv"]).as_deref(), Some("p/a"));
        assert_eq!(name("gcr.io/x/cli:1", &["gsutil", "ls"]).as_deref(), Some("p/b"));
        assert_eq!(name("gcr.io/x/cli:1", &["gsutil", "-o", "x", "ls"]).as_deref(), Some("p/b"));
        for (image, command) in [
            (cli, &["gsutil", "cp", "/x", "gs://other/2026.csv"][..]),
            (cli, &["gsutil", "cp", "/x"]),
            (cli, &["gsutil", "cp", "/x", "gs://b/2026.csv", "more"]),
            ("gcr.io/x/cli:1", &["gsutil", "cp", "/x", "gs://b/2026.csv"]),
            ("gcr.io/x/cli:1", &["gsutil", "ls", "more"]),
            (cli, &[]),
        ] {
            assert_eq!(name(image, command), None, "{image} {command:?}");
        }
    }

    #[test]
    fn two_matches_are_none_and_loops_hide_the_iteration() {
        let same = EXECUTORS.replace("\"du\"", "\"cp\", \"{{$}}\", \"gs://b/x.csv\"");
        let found = |compiled: &Compiled, command: &[&str]| {
            let mut task =
                Task { kfp: true, unknown: Unknown::PLACE, image: "gcr.io/x/cli".into(), ..Task::default() };
            compiled.fill(&mut task, command);
            task
        };
        let task = found(&compiled(&same, TASKS), &["gsutil", "cp", "y", "gs://b/x.csv"]);
        assert_eq!((task.component, task.unknown), (None, Unknown::PLACE));
        let task = found(&compiled(EXECUTORS, TASKS), &["gsutil", "du"]);
        assert_eq!(task.component.as_deref(), Some("c"));
        assert_eq!(task.unknown, Unknown { iteration: true, ..Unknown::default() });
        let other =
            Task { pipeline: Some("q".into()), ..Task { image: "gcr.io/x/cli".into(), ..Task::default() } };
        let mut kept = other.clone();
        compiled(EXECUTORS, TASKS).fill(&mut kept, &["gsutil", "du"]);
        assert_eq!(kept, other, "another pipeline's run");
    }

    #[test]
    fn placeholders_stand_for_any_text() {
        for (pattern, text, fit) in [
            ("a{{$.x}}b{{$.y}}c", "a1b2c", true),
            ("a{{$.x}}b{{$.y}}c", "abc", true),
            ("a{{$.x}}b{{$.y}}c", "ac", false),
            ("{{$}}", "", true),
            ("a{{$}}a", "a", false),
            ("a{{$", "a{{$", true),
        ] {
            assert_eq!(fits(&pieces(pattern), text), fit, "{pattern} {text}");
        }
    }
}
