//! The `ENTRYPOINT` of a kfp task's image. In Kubernetes, and so wherever else a pipeline runs, a component's
//! `command` replaces the `ENTRYPOINT`; `kfp.local` sends command and arguments as Docker's `Cmd`, which the
//! engine passes to the `ENTRYPOINT` as arguments.

use serde_json::Value;

use crate::kfp::Compiled;
use crate::workload::Task;

/// Printed when a command replaces an `ENTRYPOINT`.
pub(super) const CLEARED: &str = "its command runs in the place of its image's ENTRYPOINT, as in Kubernetes; \
                                  clear_entrypoint = false runs it behind";

/// If the first word is one of these programs, the words are a command and not only arguments.
const PROGRAMS: [&str; 8] = ["sh", "bash", "dash", "ash", "/bin/sh", "/bin/bash", "python", "python3"];

/// Clears the `ENTRYPOINT` if the component has a command; returns whether it did. Otherwise the
/// `ENTRYPOINT` stays, because arguments alone are meant for it.
pub(super) fn clear(body: &mut Value, task: &Task, compiled: &Compiled) -> bool {
    // A caller that passed `entrypoint=` to the runner has chosen the `ENTRYPOINT`.
    if !task.kfp || !body["Entrypoint"].is_null() {
        return false;
    }
    let words: Vec<&str> = match &body["Cmd"] {
        Value::Array(words) => words.iter().filter_map(Value::as_str).collect(),
        _ => return false,
    };
    let commanded = match compiled.find(&task.image, &words) {
        Some(specified) => specified.commanded,
        None => task.function.is_some() || words.first().is_some_and(|first| is_program(first)),
    };
    if commanded {
        // With an empty list, unlike null, the engine ignores the image's `ENTRYPOINT`.
        body["Entrypoint"] = Value::Array(vec![]);
    }
    commanded
}

fn is_program(word: &str) -> bool {
    let versioned =
        word.strip_prefix("python3.").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
    PROGRAMS.contains(&word) || versioned
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cleared(entrypoint: Value, command: &[&str], task: Task) -> bool {
        let mut body = json!({ "Image": "i", "Cmd": command, "Entrypoint": entrypoint });
        let before = body.clone();
        let cleared = clear(&mut body, &task, &Compiled::default());
        assert_eq!(cleared, body != before);
        assert!(!cleared || body["Entrypoint"] == json!([]));
        cleared
    }

    #[test]
    fn a_command_replaces_the_entrypoint_and_arguments_do_not() {
        let kfp = Task { kfp: true, image: "i".into(), ..Task::default() };
        for command in [&["sh", "-c", "true"][..], &["python3", "-u", "-m", "x"], &["python3.11", "x.py"]] {
            assert!(cleared(Value::Null, command, kfp.clone()), "{command:?}");
            assert!(
                !cleared(Value::Null, command, Task { kfp: false, ..kfp.clone() }),
                "{command:?} of no task"
            );
            for given in [json!([""]), json!([]), json!(["/own"]), json!("")] {
                assert!(!cleared(given, command, kfp.clone()), "the runner said entrypoint=");
            }
        }
        for arguments in [&["storage", "ls"][..], &["--x", "sh"], &[], &["sh.py"], &["python3.x"]] {
            assert!(!cleared(Value::Null, arguments, kfp.clone()), "{arguments:?}");
        }
        let lightweight = Task { function: Some("f".into()), ..kfp };
        assert!(cleared(Value::Null, &["mine", "--executor_input"], lightweight));
    }

    #[test]
    fn a_compiled_pipeline_decides_whether_there_is_a_command() {
        let kfp = Task { kfp: true, image: "i:1".into(), ..Task::default() };
        for (container, words, clears) in [
            (r#"{"image": "i:1", "command": ["gsutil"], "args": ["ls"]}"#, ["gsutil", "ls"], true),
            (r#"{"image": "i:1", "args": ["sh", "ls"]}"#, ["sh", "ls"], false),
        ] {
            let mut compiled = Compiled::default();
            let text = format!(
                r#"{{"pipelineInfo": {{"name": "p"}}, "deploymentSpec": {{"executors": {{"e": {{"container": {container}}}}}}},
                    "components": {{"comp-c": {{"executorLabel": "e"}}}},
                    "root": {{"dag": {{"tasks": {{"t": {{"componentRef": {{"name": "comp-c"}}}}}}}}}}}}"#
            );
            compiled.add(&text).unwrap();
            let mut body = json!({ "Image": "i:1", "Cmd": words });
            assert_eq!(clear(&mut body, &kfp, &compiled), clears, "{container}");
        }
    }
}
