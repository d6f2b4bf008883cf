//! The commands that a newcomer copies from README and the page of the Python package, run as they are
//! written there. Only the login differs: the user's own config says `credentials = "offline"`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use super::python_package::notebooks;
use crate::support::session::Folder;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The reader's pipeline.
const PIPELINE: &str = "
import lightweight
from kfp import local

def my_pipeline():
    said = lightweight.lightweight().outputs['first']
    print('served to', said['email'])

if __name__ == '__main__':
    local.init(runner=local.DockerRunner())
    my_pipeline()
";

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(name)).unwrap()
}

/// A newcomer's folder.
fn folder() -> Folder {
    let folder = Folder::new("quick");
    std::fs::create_dir_all(folder.0.join(".config/kfp-creds")).unwrap();
    std::fs::write(folder.0.join(".config/kfp-creds/config.toml"), "credentials = \"offline\"\n").unwrap();
    std::fs::write(folder.0.join("my_pipeline.py"), PIPELINE).unwrap();
    folder
}

/// A command with the newcomer's programs and variables.
fn person(folder: &Folder, name: &str) -> Command {
    let python = notebooks(folder);
    let mut command = Command::new(name);
    let set = |(name, value): (_, Option<_>)| Some((name, value?));
    command.env_clear().envs(python.get_envs().filter_map(set)).env("HOME", &folder.0);
    command.current_dir(&folder.0).stdin(Stdio::null());
    command
}

fn succeeds(what: &str, mut command: Command) -> Output {
    let began = Instant::now();
    let out = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{what}: {said}");
    eprintln!("quickstart: {:5.1} s  {what}", began.elapsed().as_secs_f64());
    out
}

/// The commands of a section, without their comments.
fn commands(text: &str, section: &str) -> Vec<String> {
    let (_, rest) = text.split_once(&format!("\n## {section}\n")).unwrap();
    let lines = rest.split("\n## ").next().unwrap().lines();
    let commands = lines.filter_map(|line| line.strip_prefix("    ")?.split(" #").next());
    commands.map(|line| line.trim().to_owned()).collect()
}

#[test]
fn the_commands_of_readme_do_what_they_say() {
    let folder = folder();
    let lines = commands(&read("README.md"), "Quick start");
    let (ours, login): (Vec<&String>, Vec<&String>) =
        lines.iter().partition(|line| line.starts_with("kfp-creds "));
    assert_eq!(login, ["gcloud auth application-default login"]);
    let mut seen = vec![];
    for line in ours {
        let mut shell = person(&folder, "sh");
        match line.as_str() {
            "kfp-creds check" | "kfp-creds run -- python my_pipeline.py" => {
                shell.args(["-c", line]);
                let out = succeeds(line, shell);
                let said = String::from_utf8_lossy(&out.stdout);
                assert_eq!(
                    said.contains("served to offline@kfp-creds.invalid"),
                    line.contains(" run "),
                    "{said}"
                );
            }
            // This command serves until it is stopped. The document's port may be in use.
            serve => {
                let began = Instant::now();
                shell.args(["-c", &format!("exec {}", serve.replace(":8174", ":0"))]);
                let mut child = shell.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
                let mut line = String::new();
                BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
                eprintln!("quickstart: {:5.1} s  {serve}, until it is ready", began.elapsed().as_secs_f64());
                let id = child.id().to_string();
                assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
                assert!(child.wait().unwrap().success(), "{serve}");
                let variable =
                    if serve.contains("--listen") { "GCE_METADATA_" } else { "DOCKER_HOST=unix://" };
                assert!(line.starts_with(&format!("export {variable}")), "{serve}: {line}");
            }
        }
        seen.push(line.as_str());
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

/// The Python blocks of the page.
fn blocks() -> Vec<String> {
    let text = read("docs/guide/python.md");
    let blocks = text.split("```python\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    blocks.collect()
}

#[test]
fn the_blocks_of_the_python_page_do_what_they_say() {
    let (folder, blocks) = (folder(), blocks());
    let block =
        |what: &str| blocks.iter().find(|block| block.contains(what)).unwrap_or_else(|| panic!("{what}"));
    let write = |name: &str, text: &str| {
        std::fs::write(folder.0.join(name), format!("from my_pipeline import my_pipeline\n{text}")).unwrap();
    };
    write("script.py", block("local.DockerRunner()"));
    let mut script = person(&folder, "python");
    script.arg("script.py");
    let out = succeeds("python script.py, with kfp_creds.session()", script);
    assert!(String::from_utf8_lossy(&out.stdout).contains("served to offline@kfp-creds.invalid"));

    let runner = "from kfp import local\nlocal.init(runner=local.DockerRunner())\n";
    write("test_it.py", &format!("{runner}{}", block("def test_my_pipeline(kfp_creds)")));
    let mut tests = person(&folder, "python");
    tests.args(["-m", "pytest", "-q", "-s", "-p", "kfp_creds._pytest", "test_it.py"]);
    let out = succeeds("pytest, with the fixture kfp_creds", tests);
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(said.contains("1 passed") && said.contains("served to offline@kfp-creds.invalid"), "{said}");
}
