//! `explain` as a person uses it, with create requests that `kfp.local` really sends.

use std::process::Command;

use crate::support::session::{Folder, PROGRAM};

const CONFIG: &str = r#"
[identity.loader]
service_account = "loader@my-project.iam.gserviceaccount.com"
scopes = ["https://www.googleapis.com/auth/bigquery"]
lifetime = "30m"
rate = 60

[[rule]]
pipeline = "train-*"
identity = "none"

[[rule]]
pipeline = "my-*"
function = "extract"
identity = "loader"
"#;

fn explained(what: &str) -> (Option<i32>, String) {
    explained_by("deny", what)
}

fn explained_by(guard: &str, what: &str) -> (Option<i32>, String) {
    let folder = Folder::new("explain");
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/create");
    std::fs::write(folder.0.join("kfp-creds.toml"), CONFIG).unwrap();
    std::fs::write(folder.0.join("list.json"), "[]").unwrap();
    // The create request of a task of `my-etl`, with the parts that vary.
    let task = |more: serde_json::Value| {
        let output = "/r/my-etl-2026-11-23-06-04-22-567757/extract/executor_output.json";
        let input = serde_json::json!({"outputs": {"outputFile": output}}).to_string();
        let mut body = serde_json::json!({
            "Image": "x", "Cmd": ["--executor_input", input, "--function_to_execute", "extract"],
            "HostConfig": {"Binds": ["/r:/r:rw"]},
        });
        for word in more["Words"].as_array().into_iter().flatten() {
            body["Cmd"].as_array_mut().unwrap().push(word.clone());
        }
        body["Env"] = more["Env"].clone();
        body["HostConfig"]["Privileged"] = more["Privileged"].clone();
        body.to_string()
    };
    let secret = ["AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI7K7", "MDENGbPxRfiCYz8h2kP0aQ1L"].concat();
    for (file, more) in [
        ("privileged.json", serde_json::json!({"Privileged": true})),
        ("keyed.json", serde_json::json!({"Env": [secret]})),
        ("inputs.json", serde_json::json!({"Words": ["/gcs/kct-bucket/in/rows.csv"]})),
        ("shadowed.json", serde_json::json!({"Env": ["NO_GCE_CHECK=true"]})),
    ] {
        std::fs::write(folder.0.join(file), task(more)).unwrap();
    }
    let file = golden.join(what);
    let out = Command::new(PROGRAM)
        .env_clear()
        .env("HOME", &folder.0)
        .env("XDG_RUNTIME_DIR", &folder.0)
        .env("KFP_CREDS_GUARD", guard)
        .current_dir(&folder.0)
        .args(["explain", if file.is_file() { file.to_str().unwrap() } else { what }])
        .output()
        .unwrap();
    let text = String::from_utf8([out.stdout, out.stderr].concat()).unwrap();
    (out.status.code(), text.replace(&folder.0.display().to_string(), "."))
}

#[test]
fn explain_gives_notes_only_where_they_apply() {
    let folder = Folder::new("explain-imds");
    let body = serde_json::json!({"Image": "x", "Env": ["AWS_EC2_METADATA_DISABLED=true"], "HostConfig": {}});
    std::fs::write(folder.0.join("body.json"), body.to_string()).unwrap();
    for (network, told) in [("", false), ("isolation = \"network\"\n", true)] {
        let config = format!(
            "{network}[aws]\ncredentials = \"offline\"\n[identity.default.aws]\nrole = \"arn:aws:iam::123456789012:role/loader\"\n"
        );
        std::fs::write(folder.0.join("own.toml"), config).unwrap();
        let out = Command::new(PROGRAM)
            .env_clear()
            .env("HOME", &folder.0)
            .env("XDG_RUNTIME_DIR", &folder.0)
            .current_dir(&folder.0)
            .args(["explain", "--config", "own.toml", "--all", "body.json"])
            .output()
            .unwrap();
        let text = String::from_utf8([out.stdout, out.stderr].concat()).unwrap();
        assert!(text.contains("aws           the role"), "{text}");
        assert_eq!(text.contains("AWS_EC2_METADATA_DISABLED is set"), told, "{text}");
    }
}

#[test]
fn explain_names_the_deciding_rule_and_the_others() {
    let loader = "rule 1 does not match: pipeline has to be train-*, but it is my-etl-pipeline\nrule 2 matches\n\
        identity      loader\naccount       loader@my-project.iam.gserviceaccount.com\n\
        scopes        https://www.googleapis.com/auth/bigquery\naudiences     any\nlifetime      1800 s\n\
        rate          60 a minute\n";
    assert_eq!(explained("kfp-2.17-lightweight-with-task-env.json"), (Some(0), loader.into()));
    let other = "rule 1 does not match: pipeline has to be train-*, but it has none\n\
        rule 2 does not match: pipeline has to be my-*, but it has none\n\
        no rule matches, and it is not a kfp task\n\
        no identity: not a kfp task; attach it with --all or a [[rule]]\n";
    assert_eq!(explained("docker-cli-28-run.json"), (Some(0), other.into()));
    let list = "kfp-creds: ./list.json: is not the body of a create request: it is not an object\n";
    assert_eq!(explained("list.json"), (Some(64), list.into()));
    let privileged = explained("privileged.json").1;
    assert!(
        privileged.ends_with(
            "it gets no identity nevertheless: it is privileged, so it could take a neighbour's identity\n"
        ),
        "{privileged}"
    );
    let keyed = explained("keyed.json").1;
    assert!(
        keyed.contains("it is refused nevertheless: the variable AWS_SECRET_ACCESS_KEY holds an AWS"),
        "{keyed}"
    );
    let (code, warned) = explained_by("warn", "keyed.json");
    assert!(
        code == Some(0) && warned.contains("note          the variable AWS_SECRET_ACCESS_KEY holds an AWS"),
        "{warned}"
    );
    assert!(!warned.contains("refused"), "{warned}");
    let off = explained_by("off", "keyed.json").1;
    assert!(off.contains("rule 2 matches") && !off.contains("AWS_SECRET_ACCESS_KEY"), "{off}");
    let shadowed = explained("shadowed.json").1;
    assert!(
        shadowed
            .contains("note          NO_GCE_CHECK is set, so its clients might not ask the metadata server"),
        "{shadowed}"
    );
    let inputs = explained("inputs.json").1;
    let fetched = "input         gs://kct-bucket/in/rows.csv, fetched with a token of this identity, at /gcs/kct-bucket\n";
    assert!(inputs.ends_with(fetched), "{inputs}");
    let nobody =
        "kfp-creds: nobody is neither a file nor a container of an engine for which a session runs\n";
    assert_eq!(explained("nobody"), (Some(64), nobody.into()));
}

#[test]
fn every_task_of_a_compiled_pipeline_is_explained() {
    let folder = Folder::new("explain");
    let pipeline =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pipeline/nightly-etl.yaml");
    let config = "choose = [\"loader\"]\n[identity.loader]\n[identity.looper]\n[[rule]]\niteration = \"for-loop-1*\"\n\
        identity = \"looper\"\n[[rule]]\nimage = \"busybox@sha256:*\"\nidentity = \"none\"\n[[mount]]\nfunction = \"extract\"\n\
        tmpfs = true\ntarget = \"/scratch\"\n";
    std::fs::write(folder.0.join("kfp-creds.toml"), config).unwrap();
    let run = |file: &str| {
        let out = Command::new(PROGRAM)
            .env_clear()
            .env("HOME", &folder.0)
            .current_dir(&folder.0)
            .args(["explain", "--kfp", file])
            .output()
            .unwrap();
        (out.status.code(), String::from_utf8([out.stdout, out.stderr].concat()).unwrap())
    };
    let (code, text) = run(pipeline.to_str().unwrap());
    assert_eq!(code, Some(0), "{text}");
    let of = |heading: &str| {
        let block = text.split("\n\n").find(|block| block.starts_with(heading));
        block.unwrap_or_else(|| panic!("{heading}:\n{text}")).to_string()
    };
    assert_eq!(text.split("\n\n").count(), 6, "{text}");
    let extract = of("nightly-etl/extract, image python:3.11\n");
    assert!(
        extract.contains("rule 1 does not match: iteration has to be for-loop-1*, but it has none"),
        "{extract}"
    );
    assert!(
        extract.contains("identity      loader") && extract.contains("mount         /scratch, empty memory"),
        "{extract}"
    );
    let looped = of("nightly-etl/transform-2 in for-loop-1-iteration-0, image python:3.11\n");
    assert!(looped.contains("rule 1 matches; the rule after it is not evaluated"), "{looped}");
    assert!(looped.contains("identity      looper") && !looped.contains("/scratch"), "{looped}");
    assert!(of("nightly-etl/shell, image busybox@sha256:").contains("no identity: rule 2 says none"));
    assert_eq!(run("kfp-creds.toml").0, Some(64));
    assert_eq!(run("nothing.yaml").0, Some(64));
}

#[test]
fn a_missing_file_gives_exit_code_66() {
    for missing in ["/no/such/file", "./no-such-file", "no-such-file.json"] {
        let (code, text) = explained(missing);
        assert_eq!(code, Some(66), "{text}");
        assert!(text.contains(&format!("there is no file {missing}\n")), "{text}");
    }
    // These may be the name of a container or of a task, so they are not taken for files.
    for name in ["/web", "city-sales/extract"] {
        assert_eq!(explained(name).0, Some(64), "{name}");
    }
}
