//! Real pipelines under `kfp-creds run --offline`, with the newest kfp and the oldest one whose pipelines run
//! locally.

use serde_json::Value;

use crate::support::session::{Kfp, Ran};

/// Rules that give the components of `identities.py` two identities.
const RULES: &str = r#"
    [identity.reads]
    service_account = "reader@offline-project.iam.gserviceaccount.com"
    scopes = ["https://www.googleapis.com/auth/devstorage.read_only"]
    [identity.writes]
    service_account = "writer@offline-project.iam.gserviceaccount.com"
    [[rule]]
    component = "reader"
    identity = "reads"
    [[rule]]
    pipeline = "identities"
    component = "writ*"
    identity = "writes"
"#;

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} in {value}"))
}

/// Asserts that a container's report is about this container only.
fn assert_own(said: &Value) {
    let container = text(said, "container");
    assert!(container.len() == 64 && container.starts_with(text(said, "hostname")), "{said}");
    assert_eq!(said["container"], said["identity_container"]);
    assert_eq!(said["audience"], "https://example.com");
    assert_eq!(said["email"], "offline@kfp-creds.invalid");
    assert!(said["expires_in"].as_f64().is_some_and(|left| (3500.0..=3600.0).contains(&left)), "{said}");
}

/// Asserts that every container was attached and ended, and that its task was recognised.
fn assert_attached(ran: &Ran, tasks: &[&str]) {
    let attached = ran.said("attached");
    let named: Vec<&str> = attached.iter().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(named, tasks, "{}", ran.stderr);
    let ended = ran.said("session ended");
    let count = tasks.len();
    assert!(
        matches!(ended[..], [line] if line.contains(&format!(" {count} attached, {count} ended,"))),
        "{ended:?}"
    );
}

/// Runs the pipeline; returns the version of kfp.
fn lightweight(kfp: &Kfp) -> String {
    let ran = kfp.pipeline("", &[], "lightweight", &[]);
    let report = ran.report();
    assert_own(&report["first"]);
    assert_eq!(report["first"]["note"], "first");
    assert_eq!(report["second"]["before"], report["first"]["container"]);
    assert_ne!(report["second"]["hostname"], report["first"]["hostname"]);
    assert_attached(&ran, &["lightweight/whoami", "lightweight/second"]);
    text(&report, "kfp").to_string()
}

#[test]
fn lightweight_components_get_tokens() {
    lightweight(&Kfp::newest());
}

#[test]
fn lightweight_components_of_the_oldest_kfp() {
    assert_eq!(lightweight(&Kfp::oldest()), "2.7.0");
}

#[test]
fn parallel_iterations_have_tokens_of_their_own() {
    let ran = Kfp::newest().pipeline("", &[], "loop", &[]);
    let report = ran.report();
    let iterations = report["iterations"].as_array().unwrap();
    iterations.iter().for_each(assert_own);
    let mut containers: Vec<&str> = iterations.iter().map(|said| text(said, "container")).collect();
    containers.sort_unstable();
    containers.dedup();
    assert_eq!((containers.len(), iterations.len()), (4, 4));
    let whoami = "loop/whoami";
    assert_attached(&ran, &[whoami, whoami, whoami, whoami, "loop/gather"]);
}

/// A component with an output has its task in its command line; one without is recognised by the workspace
/// that kfp mounts since 2.15.
#[test]
fn container_components_get_tokens() {
    let kfp = Kfp::newest();
    let ran = kfp.pipeline("", &[], "containers", &[]);
    assert_eq!(ran.report()["without_output"], "ran");
    assert_attached(&ran, &["containers/with-output", &kfp.image]);
}

/// The oldest kfp's container without an output is recognised only because it binds a pipeline root that the
/// session has seen.
#[test]
fn an_oldest_kfp_component_without_outputs_gets_tokens() {
    let kfp = Kfp::oldest();
    let ran = kfp.pipeline("", &[], "containers", &[]);
    assert_eq!(ran.report()["without_output"], "ran");
    assert_attached(&ran, &["containers/with-output", &kfp.image]);
    let rule = format!("[[rule]]\nimage = \"{}\"\nidentity = \"default\"\n", kfp.image);
    let ran = kfp.pipeline(&rule, &[], "containers", &[]);
    assert_eq!(ran.report()["without_output"], "ran");
    assert_attached(&ran, &["containers/with-output", &kfp.image]);
}

fn failures(kfp: &Kfp, times: usize) {
    let ran = kfp.pipeline("", &["--all"], "fails", &["--times", &times.to_string()]);
    let report = ran.last_line();
    assert_eq!((&report["lost"], &report["times"]), (&0.into(), &times.into()), "{}", ran.stderr);
    assert!(text(&report, "error").contains("FAILURE"), "{report}");
    assert_eq!(ran.code, Some(1), "the exit code of the pipeline is passed on");
    let codes = ran.said("ended").iter().filter(|line| line.contains(", exit code 3)")).count();
    assert_eq!(codes, times, "{}", ran.stderr);
}

/// Without kfp-creds, kfp takes some of these failures for successes: the container is gone before kfp waits.
#[test]
fn no_exit_code_of_a_fast_failure_is_lost() {
    failures(&Kfp::newest(), 20);
}

#[test]
fn no_fast_failure_is_lost_with_the_oldest_kfp() {
    failures(&Kfp::oldest(), 3);
}

#[test]
fn environment_of_task_and_runner_is_kept() {
    let report = Kfp::newest().pipeline("", &[], "own_env", &[]).report();
    let said = &report["environment"];
    assert_eq!(said["FROM_TASK"], "task");
    assert_eq!(said["FROM_RUNNER"], "runner");
    assert_eq!(said["GOOGLE_CLOUD_PROJECT"], "set-by-the-task");
    let host = text(said, "GCE_METADATA_HOST");
    assert!(said["GCE_METADATA_IP"] == host && said["GCE_METADATA_ROOT"] == host, "{said}");
    for name in ["NO_PROXY", "no_proxy"] {
        let hosts: Vec<&str> = text(said, name).split(',').collect();
        assert_eq!(hosts[0], "registry.example.com", "{name}");
        assert!(hosts.contains(&host) && hosts.contains(&"metadata.google.internal"), "{name}: {hosts:?}");
    }
}

#[test]
fn every_attempt_of_a_retry_is_a_container_of_its_own() {
    let ran = Kfp::newest().pipeline("", &[], "retries", &[]);
    let report = ran.report();
    assert_ne!(text(&report, "first"), text(&report, "second"));
    assert_attached(&ran, &["retries/second-time", "retries/second-time", "retries/whoami"]);
    let ends: Vec<bool> = ran.said("ended").iter().map(|line| line.contains("exit code 7")).collect();
    assert_eq!(ends, [true, false, false], "{}", ran.stderr);
}

fn two_identities(kfp: &Kfp) {
    let report = kfp.pipeline(RULES, &[], "identities", &[]).report();
    let (reader, writer) = (&report["reader"], &report["writer"]);
    assert_eq!(reader["email"], "reader@offline-project.iam.gserviceaccount.com");
    assert_eq!(reader["scope"], "https://www.googleapis.com/auth/devstorage.read_only");
    assert_eq!(writer["email"], "writer@offline-project.iam.gserviceaccount.com");
    assert_eq!(writer["scope"], "https://www.googleapis.com/auth/cloud-platform");
    assert_ne!(reader["container"], writer["container"]);
}

#[test]
fn two_components_of_one_pipeline_are_two_identities() {
    two_identities(&Kfp::newest());
}

#[test]
fn with_the_oldest_kfp_two_components_are_two_identities() {
    two_identities(&Kfp::oldest());
}
