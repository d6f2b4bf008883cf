//! Tasks that cannot be identified, and the names of those that can: `explain --kfp` predicts what a real run
//! gives.

use std::collections::BTreeSet;
use std::process::Command;

use crate::support::fake_google::FakeGoogle;
use crate::support::session::{Folder, Kfp, Ran, nobody, program, raw};

/// `tests/python/pipelines/NAME.py`, compiled.
fn compiled(kfp: &Kfp, folder: &Folder, name: &str) -> String {
    let script = format!("{}/tests/python/pipelines/{name}.py", env!("CARGO_MANIFEST_DIR"));
    let file = folder.0.join(format!("{name}.yaml")).display().to_string();
    let out = Command::new(&kfp.python)
        .args([&script, "--compile", &file])
        .env("KFP_CREDS_TASK_IMAGE", &kfp.image)
        .envs(nobody())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    file
}

/// The blocks of `explain --kfp FILE`, by their headings.
fn explained(config: &str, file: &str) -> Vec<(String, String)> {
    let folder = Folder::new("explain");
    let at = folder.0.join("own.toml");
    std::fs::write(&at, config).unwrap();
    let out =
        program(&folder.0).args(["explain", "--kfp", file]).env("KFP_CREDS_CONFIG", &at).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let block = |text: &str| {
        let (heading, rest) = text.split_once('\n').unwrap();
        (heading.split(", image ").next().unwrap().to_string(), rest.to_string())
    };
    text.split("\n\n").map(block).collect()
}

/// The tasks that were attached, and their identities.
fn attached(ran: &Ran) -> BTreeSet<(String, String)> {
    let word = |line: &str, at: usize| line.split_whitespace().nth(at).unwrap().to_string();
    ran.said("attached").into_iter().map(|line| (word(line, 1), word(line, 3))).collect()
}

fn names_agree(kfp: &Kfp) {
    let folder = Folder::new("nested");
    let file = compiled(kfp, &folder, "nested");
    let rules = "[identity.second]\n[[rule]]\ncomponent = \"who-2\"\nidentity = \"second\"\n";
    let promised: BTreeSet<_> = explained(rules, &file)
        .into_iter()
        .map(|(heading, text)| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix("identity      ")).unwrap();
            (heading.split(" in ").next().unwrap().to_string(), line.to_string())
        })
        .collect();
    let ran = kfp.pipeline(rules, &[], "nested", &[]);
    ran.report();
    assert_eq!(attached(&ran), promised, "{}", ran.stderr);
    assert!(promised.iter().any(|(_, identity)| identity == "second"), "{promised:?}");
}

#[test]
fn names_in_nested_pipelines_are_those_of_the_run() {
    names_agree(&Kfp::newest());
}

#[test]
fn names_in_nested_pipelines_are_those_of_the_oldest_kfp() {
    names_agree(&Kfp::oldest());
}

const UPLOADS: &str = "[identity.narrow]\n[identity.little]\n[[rule]]\npipeline = \"uploads\"\ncomponent = \"upload\"\nidentity = \"narrow\"\n";

fn doubtful(kfp: &Kfp) {
    let folder = Folder::new("uploads");
    let file = compiled(kfp, &folder, "uploads");
    let image = kfp.image.clone();
    let pairs = |all: &[(&str, &str)]| -> BTreeSet<_> {
        all.iter().map(|(task, identity)| (task.to_string(), identity.to_string())).collect()
    };

    // By default such a task gets no identity, and one line names the rule and what to do.
    let ran = kfp.pipeline(UPLOADS, &[], "uploads", &[]);
    ran.report();
    assert_eq!(attached(&ran), pairs(&[("uploads/prepare", "default")]), "{}", ran.stderr);
    let passed = ran.said("not attached");
    assert_eq!(passed.len(), 2, "{}", ran.stderr);
    assert!(passed[0].contains("whether rule 1 matches is unknown"), "{passed:?}");
    assert!(passed[0].contains("compiled_pipelines"), "{passed:?}");
    let explains = |config: &str, task: &str| {
        let found = explained(config, &file).into_iter().find(|(heading, _)| heading == task);
        found.unwrap().1
    };
    let text = explains(UPLOADS, "uploads/upload");
    assert!(text.contains("unknown when it runs") && text.contains("no identity: whether rule 1"), "{text}");

    // Or it gets the identity that the config names.
    let config = format!("unknown = \"little\"\n{UPLOADS}");
    let ran = kfp.pipeline(&config, &[], "uploads", &[]);
    ran.report();
    assert_eq!(
        attached(&ran),
        pairs(&[("uploads/prepare", "default"), (&image, "little")]),
        "{}",
        ran.stderr
    );
    let said = ran.said("notice").into_iter().filter(|line| line.contains("whether rule 1")).count();
    assert_eq!(said, 2, "{}", ran.stderr);
    assert!(explains(&config, "uploads/look").contains("identity      little"));

    // If no rule depends on unknown values, nothing changes.
    let ran = kfp.pipeline("unknown = \"little\"\n[identity.little]\n", &[], "uploads", &[]);
    ran.report();
    assert_eq!(
        attached(&ran),
        pairs(&[("uploads/prepare", "default"), (&image, "default")]),
        "{}",
        ran.stderr
    );

    // The compiled pipeline has the values.
    let config = format!("compiled_pipelines = [\"{file}\"]\n{UPLOADS}");
    let own = folder.0.join("own.toml");
    std::fs::write(&own, &config).unwrap();
    let ran = kfp.pipeline("", &["--config", own.to_str().unwrap()], "uploads", &[]);
    ran.report();
    let known = [("uploads/prepare", "default"), ("uploads/upload", "narrow"), ("uploads/look", "default")];
    assert_eq!(attached(&ran), pairs(&known), "{}", ran.stderr);
    assert!(explains(&config, "uploads/upload").contains("identity      narrow"));
}

#[test]
fn a_rule_that_could_match_is_not_skipped_in_a_real_run() {
    doubtful(&Kfp::newest());
}

#[test]
fn with_the_oldest_kfp_a_possible_rule_is_not_skipped() {
    doubtful(&Kfp::oldest());
}

/// Google's pipeline components have images with an `ENTRYPOINT` of their own, and a `command` that replaces it.
#[test]
fn a_command_of_a_task_replaces_the_entrypoint_of_its_image() {
    let newest = Kfp::newest();
    // The name as Podman stores it, so that kfp finds the image and does not pull it.
    let image = format!("localhost/kct-entry:{}", std::process::id());
    let container = raw(&["create", &newest.image, "true"]);
    raw(&[
        "commit",
        "-c",
        "ENTRYPOINT [\"sh\", \"-c\", \"echo the images own way; exit 7\"]",
        &container,
        &image,
    ]);
    raw(&["rm", &container]);
    let kfp = Kfp { image: image.clone(), ..newest };
    let ran = kfp.pipeline("", &[], "containers", &[]);
    assert_eq!(ran.report()["without_output"], "ran", "{}", ran.stderr);
    let said = ran.said("notice").into_iter().filter(|line| line.contains("ENTRYPOINT")).count();
    assert_eq!(said, 1, "{}", ran.stderr);
    let kept = kfp.pipeline("clear_entrypoint = false\n", &[], "containers", &[]);
    assert!(kept.code == Some(1) && kept.stderr.contains("the images own way"), "{}", kept.stderr);
    assert!(!kept.stderr.contains("ENTRYPOINT"), "{}", kept.stderr);
    raw(&["rmi", &image]);
}

/// Processes use the person's own login, although the config requests an impersonated account.
#[test]
fn a_run_without_containers_says_whose_login_was_used() {
    const PIPELINE: &str = "pipeline@target-project.iam.gserviceaccount.com";
    let (google, folder) = (FakeGoogle::start(), Folder::new("none"));
    google.allow("alice@example.com", PIPELINE);
    let (here, elsewhere) = (folder.0.join(".config/gcloud"), folder.0.join("elsewhere.json"));
    std::fs::create_dir_all(&here).unwrap();
    let usual = here.join("application_default_credentials.json");
    std::fs::write(&elsewhere, google.user("alice@example.com")).unwrap();
    let endpoints = format!("token = \"{}\"\niam_credentials = \"{}\"\n", google.token_uri(), google.url());
    let config = folder.0.join("own.toml");
    std::fs::write(&config, format!("[endpoints]\n{endpoints}")).unwrap();
    let said = |flags: &[&str], set: &[(&str, &str)], command: &[&str]| {
        let mut run = program(&folder.0);
        run.env("KFP_CREDS_CONFIG", &config).envs(set.iter().copied());
        let out = run.arg("run").args(flags).arg("--").args(command).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(said.contains("ready  "), "{said}");
        said.matches("no container was created").count()
    };
    let elsewhere = elsewhere.to_str().unwrap();
    let (named, own) = (["--impersonate", PIPELINE], ["--credentials-file", elsewhere]);
    let both = [&named[..], &own].concat();
    assert_eq!(said(&both, &[], &["true"]), 0, "the command finds no login");
    let set = [("GOOGLE_APPLICATION_CREDENTIALS", elsewhere)];
    assert_eq!(said(&named, &set, &["true"]), 1);
    std::fs::write(&usual, google.user("alice@example.com")).unwrap();
    assert_eq!(said(&both, &[], &["true"]), 1);
    assert_eq!(said(&own, &[], &["true"]), 0, "it is the login that containers have");
    assert_eq!(said(&["--offline"], &[], &["true"]), 0);
    let image = crate::support::session::task_image();
    let create = ["docker", "run", "--rm", "--network", "none", &image, "true"];
    assert_eq!(said(&named, &[], &create), 0, "it is a container");
    assert_eq!(said(&named, &[], &["/nowhere/to/be/found"]), 0);
}
