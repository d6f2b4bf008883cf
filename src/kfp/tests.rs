use serde_json::json;

use super::*;

const RUN: &str = "2026-11-23-06-04-22-567757";

fn golden(text: &str) -> Task {
    task(&serde_json::from_str(text).unwrap(), None)
}

/// Pipeline, iteration, component, function.
fn names(task: &Task) -> [&str; 4] {
    [&task.pipeline, &task.iteration, &task.component, &task.function]
        .map(|name| name.as_deref().unwrap_or("-"))
}

#[test]
fn lightweight_components_of_every_version() {
    let task = golden(include_str!("../../tests/golden/create/kfp-2.17-lightweight-with-task-env.json"));
    assert!(task.kfp);
    assert_eq!(names(&task), ["my-etl-pipeline", "-", "extract", "extract"]);
    assert_eq!(task.run.as_deref(), Some(RUN));
    assert_eq!(task.image, "kfp-py:2.17.0");
    let task = golden(include_str!("../../tests/golden/create/kfp-2.17-parallelfor-iteration.json"));
    assert!(task.kfp);
    assert_eq!(names(&task), ["my-etl-pipeline", "for-loop-1-iteration-1", "transform", "transform"]);
    let task = golden(include_str!("../../tests/golden/create/kfp-2.7-lightweight.json"));
    assert!(task.kfp);
    assert_eq!(names(&task), ["pp", "-", "hello", "hello"]);
}

#[test]
fn a_container_component_is_known_by_its_output_path() {
    let task = golden(include_str!("../../tests/golden/create/kfp-2.17-container-component.json"));
    assert!(task.kfp);
    assert_eq!(names(&task), ["my-etl-pipeline", "-", "shell-step", "-"]);
    assert_eq!(task.run.as_deref(), Some(RUN));
}

#[test]
fn the_runners_own_arguments_do_not_disturb() {
    let text = include_str!("../../tests/golden/create/kfp-2.17-dockerrunner-run-args.json");
    let task = task(&serde_json::from_str(text).unwrap(), Some("fixedname"));
    assert!(task.kfp);
    assert_eq!(names(&task), ["pp", "-", "hello", "hello"]);
    assert_eq!(task.name.as_deref(), Some("fixedname"));
    assert_eq!(task.labels, [("a".to_string(), "b".to_string())].into());
}

#[test]
fn docker_run_is_no_task() {
    let task = golden(include_str!("../../tests/golden/create/docker-cli-28-run.json"));
    assert_eq!(task, Task { image: "kfp-py:2.17.0".into(), ..Task::default() });
}

fn body(binds: &[&str], command: &[&str]) -> Value {
    json!({"Image": "i", "Cmd": command, "HostConfig": {"Binds": binds}})
}

#[test]
fn what_makes_a_kfp_task() {
    let output = format!("/r/p-{RUN}/c/out");
    let input = format!(r#"{{"outputs":{{"outputFile":"/r/p-{RUN}/c/executor_output.json"}}}}"#);
    let cases: &[(&str, Value, bool)] = &[
        (
            "a directory mounted at its own path is nothing special",
            body(&["/r:/r"], &["ls", "/r/src"]),
            false,
        ),
        ("nor is a file below it", body(&["/r:/r:rw"], &["cat", "/r/src/c/out"]), false),
        ("a run below it is", body(&["/r:/r:rw"], &["cat", &output]), true),
        ("SELinux modes", body(&["/r:/r:rw,z"], &["cat", &output]), true),
        ("executor input is", body(&["/r:/r"], &["x", "--executor_input", &input]), true),
        ("with an equals sign, too", body(&["/r:/r"], &[&format!("--executor_input={input}")]), true),
        ("even one without outputs", body(&["/r:/r"], &["x", "--executor_input", "{}"]), true),
        ("executor input without a root is not", body(&["/r:/x"], &["x", "--executor_input", &input]), false),
        ("the workspace is", body(&["/tmp/kfp-workspace-1:/kfp-workspace:rw"], &["true"]), true),
        ("without a mode, too", body(&["/tmp/kfp-workspace-1:/kfp-workspace"], &["true"]), true),
        ("a workspace elsewhere is not", body(&["/kfp-workspace:/x"], &["true"]), false),
        ("nor below another", body(&["/t:/x/kfp-workspace:rw"], &["true"]), false),
        ("the whole disk is no root", body(&["/:/:rw"], &["cat", &output]), false),
        ("a named volume is no root", body(&["r:r"], &["cat", &format!("r/p-{RUN}/c/out")]), false),
    ];
    for (why, body, expected) in cases {
        assert_eq!(task(body, None).kfp, *expected, "{why}");
    }
}

#[test]
fn launchers_carry_their_input_anywhere() {
    let input = format!(r#"{{"outputs":{{"outputFile":"/r/bq-{RUN}/query/executor_output.json"}}}}"#);
    let command =
        ["python3", "-u", "-m", "launcher", "--executor_input", &input, "--gcp_resources", "/r/x/y/z"];
    let task = task(&body(&["/r:/r:rw"], &command), None);
    assert_eq!(names(&task), ["bq", "-", "query", "-"]);
}

#[test]
fn windows_paths_are_understood() {
    let root = r"C:\Users\me\local_outputs";
    let bind = format!("{root}:{root}:rw");
    let output = format!(r"{root}\pp-{RUN}\for-loop-1-iteration-0\hello\executor_output.json");
    let input = json!({"outputs": {"outputFile": output}}).to_string();
    let workspace = r"C:\Temp\kfp-workspace-1:/kfp-workspace:rw";
    let task = task(&body(&[&bind, workspace], &["sh", "--executor_input", &input]), None);
    assert!(task.kfp);
    assert_eq!(names(&task), ["pp", "for-loop-1-iteration-0", "hello", "-"]);
}

#[test]
fn several_tasks_in_one_command_are_not_guessed_between() {
    let (own, input) = (format!("/r/p-{RUN}/mine/out"), format!("/r/p-{RUN}/extract/data"));
    let both = task(&body(&["/r:/r"], &["sh", "-c", &format!("cp \"{input}\" '{own}'; true")]), None);
    assert_eq!(names(&both), ["p", "-", "-", "-"]);
    assert!(both.kfp);
    let one =
        task(&body(&["/r:/r"], &["sh", "-c", &format!("mkdir -p $(dirname {own}) && date >{own}")]), None);
    assert_eq!(names(&one), ["p", "-", "mine", "-"]);
    let below =
        task(&body(&["/r:/r"], &["cp", &format!("/x/r/p-{RUN}/c/f"), &format!("--to=file://{own}")]), None);
    assert_eq!(names(&below), ["p", "-", "mine", "-"]);
    let elsewhere = format!("/r/q-{RUN}/mine/out");
    let runs = task(&body(&["/r:/r"], &["cp", &elsewhere, &own]), None);
    assert_eq!(names(&runs), ["-", "-", "-", "-"]);
}

#[test]
fn the_executor_input_wins_over_paths_in_the_source() {
    let source = format!("open('/r/other-{RUN}/admin/out')");
    let input = format!(r#"{{"outputs":{{"outputFile":"/r/p-{RUN}/c/executor_output.json"}}}}"#);
    let task = task(&body(&["/r:/r"], &["sh", "-ec", &source, "--executor_input", &input]), None);
    assert_eq!(names(&task), ["p", "-", "c", "-"]);
}

#[test]
fn only_well_formed_places_have_names() {
    let long = "x".repeat(256);
    for path in [
        format!("/r/p-{RUN}/executor_output.json"),
        format!("/r/p-{RUN}"),
        format!("/r/-{RUN}/c/f"),
        format!("/r/{RUN}/c/f"),
        "/r/p-2026-11-23-06-04-22-56775/c/f".into(),
        "/r/p-2026-11-23-06-04-22-56775x/c/f".into(),
        "/r/pé2026-11-23-06-04-22-567757/c/f".into(),
        format!("/r/p-{RUN}/../c/f"),
        format!("/r/p-{RUN}//f"),
        format!("/r/p-{RUN}/{long}/f"),
        format!("/rx/p-{RUN}/c/f"),
        format!("r/p-{RUN}/c/f"),
    ] {
        assert_eq!(RunPath::of(&path, "/r"), None, "{path}");
    }
    let odd = format!("/r/é-{RUN}/ü/f");
    assert_eq!(RunPath::of(&odd, "/r/").unwrap().component.as_deref(), Some("ü"));
}

#[test]
fn hostile_bodies_are_no_task_and_never_panic() {
    let deep = "[".repeat(200_000);
    let wrong: &[Value] = &[
        json!(null),
        json!([]),
        json!("text"),
        json!(1e300),
        json!({"Image": 5, "Cmd": {"a": 1}, "HostConfig": "x", "Labels": ["a"]}),
        json!({"Image": null, "Cmd": null, "HostConfig": null, "Labels": null}),
        json!({"Cmd": [null, 1, ["--executor_input"]], "HostConfig": {"Binds": {"a": "b"}}}),
        json!({"Cmd": ["--executor_input"], "HostConfig": {"Binds": [null, "", ":", "::", "é", "a:é", "/:/", ":rw"]}}),
        json!({"Cmd": ["--executor_input", deep], "HostConfig": {"Binds": [7]}}),
        json!({"Cmd": ["--executor_input=", "--executor_input", "[]"], "Labels": {"a": 1, "b": null}}),
    ];
    for body in wrong {
        assert_eq!(task(body, Some("")), Task::default(), "{body:.60}");
    }
    let rooted = |input: &str| task(&body(&["/r:/r"], &["--executor_input", input]), None);
    for input in
        [r#"{"outputs":null}"#, r#"{"outputs":{"outputFile":{}}}"#, r#"{"outputs":[{"outputFile":"/r"}]}"#]
    {
        assert_eq!(names(&rooted(input)), ["-"; 4], "{input}");
    }
    let labels = task(&json!({"Labels": {"a": 1, "b": "c"}}), None).labels;
    assert_eq!(labels, [("b".to_string(), "c".to_string())].into());
}

/// Time must grow no faster than the size, because the caller controls the body.
#[test]
fn a_huge_command_is_scanned_once() {
    let many = format!("/r/p-{RUN}/c/f ").repeat(200_000);
    let task = task(&body(&["/r:/r"], &[&many, &"/r/".repeat(1_000_000)]), None);
    assert_eq!(names(&task), ["p", "-", "c", "-"]);
}
