//! What a person sees: all of the demo's output on the terminal, and the two other forms of output.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::session::{Folder, Kfp, PROGRAM, engine_socket, is_sometimes, nobody, program, run};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Whether it is a network of a session: a second network, or a bridge in place of the default one.
fn is_network(name: &str) -> bool {
    let session = name.strip_suffix("-bridge").unwrap_or(name).strip_prefix("kfp-creds-");
    session.is_some_and(|id| id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The line with placeholders for ids, addresses and times.
pub(super) fn normal(line: &str) -> String {
    let digits = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    let word = |word: &str| {
        let core = word.trim_matches(|c| "(),;".contains(c));
        let kind = match core {
            _ if core.len() == 12 && core.bytes().all(|b| b.is_ascii_hexdigit()) => "CONTAINER",
            _ if core.len() == 20 && core.ends_with('Z') && core.as_bytes()[10] == b'T' => "TIME",
            _ if core.split('.').count() == 4 && core.split('.').all(digits) => "ADDRESS",
            _ if is_network(core) => "kfp-creds",
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

/// Parallel containers end in any order, so this groups the lines of each, in the order of attaching.
fn by_container<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    let id = |line: &str| {
        let rest = line.rsplit_once('(').filter(|_| line.starts_with("attached"));
        let rest = rest.or_else(|| line.split_once("  (").filter(|_| line.starts_with("ended ")));
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

/// The output of `scripts/demo` from its command line on, with placeholders for what changes from run to run.
fn shown(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let ours = |line: &&str| line.starts_with("kfp-creds: ");
    let begin = lines.iter().position(&ours).unwrap_or_default();
    let end = lines.iter().rposition(ours).map_or(begin, |last| last + 1);
    let among: Vec<&str> = lines[begin..end]
        .iter()
        .map(|line| line.strip_prefix("kfp-creds: ").unwrap_or_else(|| panic!("not ours: {line}\n{text}")))
        .filter(|line| !is_sometimes(line))
        .collect();
    let among = by_container(&among).into_iter().map(|line| format!("kfp-creds: {}", normal(line)));
    let line = |line: &&str| line.to_string();
    let all = lines[..begin].iter().map(line).chain(among).chain(lines[end..].iter().map(line));
    all.map(|line| format!("{line}\n")).collect::<String>().trim_start_matches('\n').into()
}

fn golden() -> String {
    std::fs::read_to_string(Path::new(ROOT).join("tests/golden/terminal/demo.txt")).unwrap_or_default()
}

#[test]
fn the_demo_prints_the_golden_lines() {
    let (kfp, folder) = (Kfp::newest(), Folder::new("demo"));
    let environment = program(&folder.0);
    // One terminal for stdout and stderr.
    let mut demo = Command::new("sh");
    demo.env_clear().envs(environment.get_envs().filter_map(|(name, value)| Some((name, value?))));
    demo.args(["-c", "exec \"$0\" --built \"$@\" 2>&1", &format!("{ROOT}/scripts/demo"), PROGRAM])
        .arg(&folder.0);
    demo.env("KFP_CREDS_TEST_PYTHON", &kfp.python).env("KFP_CREDS_TASK_IMAGE", &kfp.image);
    demo.env("KFP_CREDS_TEST_ENGINE", format!("unix://{}", engine_socket().display()));
    demo.env("TMPDIR", &folder.0).envs(nobody()).stdin(Stdio::null());
    let ran = demo.output().unwrap();
    let text = String::from_utf8(ran.stdout).unwrap();
    assert_eq!((ran.status.code(), ran.stderr), (Some(0), vec![]), "{text}");
    assert!(
        shown(&text) == golden(),
        "demo.txt is not what the terminal shows:\n{}\nraw:\n{text}",
        shown(&text)
    );
}

/// The guide contains a whole copy of such a run.
#[test]
fn the_guide_shows_the_output_of_the_demo() {
    let readme = std::fs::read_to_string(Path::new(ROOT).join("docs/guide/first-run.md")).unwrap();
    let block = readme.split("```text\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert!(shown(block) == golden(), "{}", shown(block));
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
fn quiet_prints_nothing_without_a_problem() {
    let kfp = Kfp::newest();
    let script = format!("docker run --rm {} true", kfp.image);
    let ran = run(&kfp, "", &["--offline", "--all", "--quiet"], &["sh", "-c", &script]);
    let said: Vec<&str> = ran.lines().into_iter().filter(|line| !is_sometimes(line)).collect();
    assert_eq!((ran.code, said), (Some(0), vec![]), "{}", ran.stderr);
    assert_eq!(ran.lines().len(), ran.stderr.lines().count(), "{}", ran.stderr);
}

#[test]
fn varying_output_is_replaced_by_placeholders() {
    let line = "ended         a/b  (0123456789ab, exit code 0); its last token expires 2026-11-23T13:17:38Z (in 3598 s)";
    assert_eq!(
        normal(line),
        "ended         a/b  (CONTAINER, exit code 0); its last token expires TIME (in SECONDS s)"
    );
    for suffix in ["", "-bridge"] {
        let line = format!(
            "ready         x@y  project p  (offline; docker 20.10.24+dfsg1; network kfp-creds-0a1b2c3d{suffix} 198.18.0.191)"
        );
        assert_eq!(
            normal(&line),
            "ready         x@y  project p  (offline; docker VERSION; network kfp-creds ADDRESS)"
        );
    }
    let lines = [
        "ready",
        "attached  a (00000000000a)",
        "attached  b (00000000000b)",
        "ended  b  (00000000000b)",
        "ended  a  (00000000000a, exit code 0); x (in 1 s)",
        "session ended",
    ];
    assert_eq!(by_container(&lines), [lines[0], lines[1], lines[4], lines[2], lines[3], lines[5]]);
}
