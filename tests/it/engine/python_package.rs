//! The Python package with a real kfp: in a script, in a notebook, in pytest.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::session::{Folder, PROGRAM, nobody, program, task_image};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The Python that `scripts/setup --all` makes for notebooks, with the package importable and the program on
/// its path.
pub(super) fn notebooks(folder: &Folder) -> Command {
    let fallback = Path::new(ROOT).join(".work/venv-notebooks/bin");
    let bin = std::env::var("KFP_CREDS_TEST_NOTEBOOKS").unwrap_or_else(|_| fallback.display().to_string());
    let mut command = Command::new(format!("{bin}/python"));
    let usual = program(&folder.0);
    command.env_clear().envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let programs = Path::new(PROGRAM).parent().unwrap().display();
    command.env("PATH", format!("{programs}:{bin}:{}", std::env::var("PATH").unwrap()));
    command.env("PYTHONPATH", format!("{ROOT}/python:{ROOT}/tests/python/pipelines"));
    command.env("KFP_CREDS_TASK_IMAGE", task_image()).env("TMPDIR", &folder.0).envs(nobody());
    command.current_dir(&folder.0).stdin(Stdio::null());
    command
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

fn last_line(out: &Output) -> Value {
    assert!(out.status.success(), "{}", text(out));
    let stdout = String::from_utf8_lossy(&out.stdout);
    serde_json::from_str(stdout.lines().last().unwrap_or_default())
        .unwrap_or_else(|e| panic!("{e}: {}", text(out)))
}

#[test]
fn an_unchanged_pipeline_has_credentials_through_the_package() {
    let folder = Folder::new("package");
    let out =
        notebooks(&folder).arg(format!("{ROOT}/tests/python/pipelines/in_session.py")).output().unwrap();
    let report = last_line(&out);
    assert_eq!(report["first"]["email"], "offline@kfp-creds.invalid", "{report}");
    assert_eq!(report["second"]["before"], report["first"]["container"]);
    assert_eq!((&report["attached"], &report["restored"]), (&2.into(), &true.into()), "{report}");
    assert_eq!(report["running"], false);
    assert!(report["during"].as_str().unwrap().ends_with(".sock"), "{report}");
}

#[test]
fn a_notebook_has_credentials_from_the_next_cell_on() {
    let folder = Folder::new("package");
    let cells = json!([
        "%load_ext kfp_creds",
        "%kfp_creds status",
        "%kfp_creds start --offline",
        "from common import start\nfrom lightweight import lightweight\nroot = start()\nrun = lightweight()",
        "print(run.outputs['first']['email'])",
        "%kfp_creds start --offline",
        "%kfp_creds status",
        "import os\nprint(os.environ['DOCKER_HOST'].endswith('.sock'))",
        "%kfp_creds stop",
        "print(os.environ['DOCKER_HOST'])",
        "%kfp_creds start --config nowhere.toml",
    ]);
    let mut command = notebooks(&folder);
    command.arg(format!("{ROOT}/tests/python/in_notebook.py")).arg(cells.to_string());
    let host = command.get_envs().find(|(name, _)| *name == "DOCKER_HOST").unwrap().1.unwrap().to_owned();
    let gave = last_line(&command.output().unwrap());
    let shown = |cell: usize, kind: &str| {
        let outputs = gave[cell].as_array().unwrap();
        outputs.iter().filter_map(|output| output[kind].as_str()).collect::<String>()
    };
    assert_eq!(gave[0], json!([]), "{gave:#}");
    assert!(shown(1, "stderr").contains("kfp-creds: no session is active"), "{gave:#}");
    assert!(shown(2, "html").contains("offline@kfp-creds.invalid, project offline-project"), "{gave:#}");
    assert_eq!(shown(4, "stdout"), "offline@kfp-creds.invalid\n", "{gave:#}");
    assert!(shown(5, "stderr").contains("stop it first"), "{gave:#}");
    assert!(shown(2, "html").contains("no container has an identity now"), "{gave:#}");
    // The page may list the containers or not: the engine may have removed them before this cell.
    assert!(shown(6, "html").contains("offline@kfp-creds.invalid, project offline-project"), "{gave:#}");
    assert_eq!(shown(7, "stdout"), "True\n");
    assert_eq!(shown(9, "stdout"), format!("{}\n", host.to_string_lossy()));
    assert!(shown(10, "stderr").contains("kfp-creds: "), "{gave:#}");
    assert_ne!(shown(10, "error"), "", "a cell that failed ends `Run All`: {gave:#}");
}

/// One session serves two tests; the variables exist only while a test that requests them runs.
const TESTS: &str = r#"
import os, subprocess

def docker(*arguments):
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout

def test_a_container_has_a_token(kfp_creds):
    script = "curl -sf -H Metadata-Flavor:Google http://$GCE_METADATA_HOST/computeMetadata/v1/instance/service-accounts/default/email"
    assert docker("run", "--rm", os.environ["KFP_CREDS_TASK_IMAGE"], "sh", "-c", script) == "offline@kfp-creds.invalid"

def test_another_one_has_none():
    assert "GCE" not in docker("run", "--rm", os.environ["KFP_CREDS_TASK_IMAGE"], "env")

def test_the_session_is_the_same(kfp_creds, kfp_creds_session):
    assert kfp_creds is kfp_creds_session and kfp_creds.status().details["totals"]["attached"] == 1
"#;

#[test]
fn a_fixture_gives_a_test_of_pytest_a_session() {
    let folder = Folder::new("package");
    std::fs::write(folder.0.join("test_it.py"), TESTS).unwrap();
    let options = "import pytest\n@pytest.fixture(scope='session')\ndef kfp_creds_options():\n    return {'offline': True, 'all': True}\n";
    std::fs::write(folder.0.join("conftest.py"), options).unwrap();
    let mut command = notebooks(&folder);
    let out = command.args(["-m", "pytest", "-q", "-p", "kfp_creds._pytest", "test_it.py"]).output().unwrap();
    assert!(out.status.success() && text(&out).contains("3 passed"), "{}", text(&out));
}
