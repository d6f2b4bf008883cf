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
    let folder = Folder::new("explain");
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/create");
    std::fs::write(folder.0.join("kfp-creds.toml"), CONFIG).unwrap();
    std::fs::write(folder.0.join("list.json"), "[]").unwrap();
    let file = golden.join(what);
    let out = Command::new(PROGRAM)
        .env_clear()
        .env("HOME", &folder.0)
        .env("XDG_RUNTIME_DIR", &folder.0)
        .current_dir(&folder.0)
        .args(["explain", if file.is_file() { file.to_str().unwrap() } else { what }])
        .output()
        .unwrap();
    let text = String::from_utf8([out.stdout, out.stderr].concat()).unwrap();
    (out.status.code(), text.replace(&folder.0.display().to_string(), "."))
}

#[test]
fn the_rule_that_decides_and_those_that_did_not() {
    let loader = "rule 1 does not match: pipeline has to be train-*, and it is my-etl-pipeline\nrule 2 matches\n\
        identity      loader\naccount       loader@my-project.iam.gserviceaccount.com\n\
        scopes        https://www.googleapis.com/auth/bigquery\naudiences     any\nlifetime      1800 s\n\
        rate          60 a minute\n";
    assert_eq!(explained("kfp-2.17-lightweight-with-task-env.json"), (Some(0), loader.into()));
    let other = "rule 1 does not match: pipeline has to be train-*, and it has none\n\
        rule 2 does not match: pipeline has to be my-*, and it has none\n\
        no rule matches, and it is not a kfp task\n\
        no identity: not a kfp task; attach it with --all or a [[rule]]\n";
    assert_eq!(explained("docker-cli-28-run.json"), (Some(0), other.into()));
    let list = "kfp-creds: ./list.json: is not the body of a create request\n";
    assert_eq!(explained("list.json"), (Some(64), list.into()));
    let nobody =
        "kfp-creds: nobody is neither a file nor a container with an identity in a session that runs\n";
    assert_eq!(explained("nobody"), (Some(64), nobody.into()));
}
