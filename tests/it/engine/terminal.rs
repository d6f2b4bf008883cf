//! What a person sees: the whole terminal output of the demo's pipeline, and the other two forms.

use std::path::Path;

use serde_json::Value;

use crate::support::session::{Kfp, is_sometimes, run};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Ids, addresses and times as words; the rest as it is.
fn normal(line: &str) -> String {
    let digits = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    let word = |word: &str| {
        let core = word.trim_matches(|c| "(),;".contains(c));
        let kind = match core {
            _ if core.len() == 12 && core.bytes().all(|b| b.is_ascii_hexdigit()) => "CONTAINER",
            _ if core.len() == 20 && core.ends_with('Z') && core.as_bytes()[10] == b'T' => "TIME",
            _ if core.split('.').count() == 4 && core.split('.').all(digits) => "ADDRESS",
            _ if core.starts_with("kfp-creds-") && core.len() == 18 => "kfp-creds",
            _ => return word.to_string(),
        };
        word.replace(core, kind)
    };
    let mut words: Vec<String> = line.split(' ').map(word).collect();
    for at in 1..words.len() {
        if words[at - 1] == "(in" && digits(&words[at]) {
            words[at] = "SECONDS".into();
        }
        if words[at - 1] == "docker" {
            words[at] = "VERSION;".into();
        }
    }
    words.join(" ")
}

/// Parallel containers end in any order: the lines of each stand together, in the order of attaching.
fn by_container<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    let id = |line: &str| {
        let rest = line.rsplit_once('(').filter(|_| line.starts_with("attached"));
        let rest = rest.or_else(|| line.split_once("  (").filter(|_| line.starts_with("cut off")));
        rest.map(|(_, id)| id[..12].to_string())
    };
    let mut order: Vec<Option<String>> = Vec::new();
    for line in lines {
        if let Some(id) = id(line)
            && !order.contains(&Some(id.clone()))
        {
            order.push(Some(id));
        }
    }
    let mut sorted = lines.to_vec();
    let last = order.len();
    sorted.sort_by_key(|line| match id(line) {
        Some(id) => order.iter().position(|known| known.as_ref() == Some(&id)).map_or(last, |at| at + 1),
        None if line.starts_with("ready") => 0,
        None => last + 1,
    });
    sorted
}

#[test]
fn the_demo_on_the_terminal() {
    let kfp = Kfp::newest();
    let emulators = format!("{ROOT}/tests/python/emulators.py");
    let pipeline = format!("{ROOT}/examples/pipeline.py");
    let command = [&kfp.python, &emulators, "--stderr", "pipeline.log", "--", &kfp.python, &pipeline];
    let ran = run(&kfp, "", &["--offline"], &command);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let lines: Vec<&str> = ran.stderr.lines().collect();
    let ours: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("kfp-creds: ")).collect();
    assert_eq!(lines.len(), ours.len(), "a line on the terminal is not ours:\n{}", ran.stderr);
    let ours: Vec<&str> = ours.into_iter().filter(|line| !is_sometimes(line)).collect();
    let shown: String =
        by_container(&ours).iter().map(|line| format!("kfp-creds: {}\n", normal(line))).collect();
    let shown = format!("$ kfp-creds run --offline -- python examples/pipeline.py\n{shown}{}", ran.stdout);
    let golden = Path::new(ROOT).join("tests/golden/terminal/demo.txt");
    let want = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(
        shown == want,
        "{} is not what the terminal shows:\n{shown}\nraw:\n{}",
        golden.display(),
        ran.stderr
    );
}

#[test]
fn json_has_one_object_per_line() {
    let kfp = Kfp::newest();
    let script =
        format!("docker run --rm {} true; docker run --rm --net host {} true; exit 3", kfp.image, kfp.image);
    let ran = run(&kfp, "", &["--offline", "--all", "--json"], &["sh", "-c", &script]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(3), ""), "{}", ran.stderr);
    let parsed = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let mut lines: Vec<Value> = ran.stderr.lines().map(parsed).collect();
    lines.retain(|line| line["event"] != "progress" && line["event"] != "notice");
    let events: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["ready", "attached", "cut-off", "not-attached", "ended"], "{}", ran.stderr);
    let [ready, attached, cut_off, passed, ended] = &lines[..] else { unreachable!() };
    assert_eq!((&ready["source"], &ready["project"]), (&"offline".into(), &"offline-project".into()));
    assert_eq!(attached["task"], kfp.image);
    assert_eq!(attached["identity"], "default");
    assert_eq!(attached["container"].as_str().map(str::len), Some(12));
    assert_eq!((&cut_off["container"], &cut_off["exit_code"]), (&attached["container"], &0.into()));
    assert!(passed["why"].as_str().is_some_and(|why| why.contains("host")), "{passed}");
    assert_eq!((&ended["attached"], &ended["cut_off"]), (&1.into(), &1.into()));
}

#[test]
fn quiet_says_nothing_on_a_good_day() {
    let kfp = Kfp::newest();
    let script = format!("docker run --rm {} true", kfp.image);
    let ran = run(&kfp, "", &["--offline", "--all", "--quiet"], &["sh", "-c", &script]);
    let said: Vec<&str> = ran.lines().into_iter().filter(|line| !is_sometimes(line)).collect();
    assert_eq!((ran.code, said), (Some(0), vec![]), "{}", ran.stderr);
    assert_eq!(ran.lines().len(), ran.stderr.lines().count(), "{}", ran.stderr);
}

#[test]
fn what_changes_from_run_to_run_becomes_a_word() {
    let line = "cut off       a/b  (0123456789ab, exit code 0); its last token expires 2026-11-23T13:17:38Z (in 3598 s)";
    assert_eq!(
        normal(line),
        "cut off       a/b  (CONTAINER, exit code 0); its last token expires TIME (in SECONDS s)"
    );
    let line = "ready         x@y  project p  (offline; docker 20.10.24+dfsg1; network kfp-creds-0a1b2c3d 198.18.0.191)";
    assert_eq!(
        normal(line),
        "ready         x@y  project p  (offline; docker VERSION; network kfp-creds ADDRESS)"
    );
    let lines = [
        "ready",
        "attached  a (00000000000a)",
        "attached  b (00000000000b)",
        "cut off  b  (00000000000b)",
        "cut off  a  (00000000000a, exit code 0); x (in 1 s)",
        "ended",
    ];
    assert_eq!(by_container(&lines), [lines[0], lines[1], lines[4], lines[2], lines[3], lines[5]]);
}
