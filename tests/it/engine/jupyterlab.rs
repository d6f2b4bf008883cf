//! A person's use of the Python package in JupyterLab, in a real browser.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::python_package::notebooks;
use crate::support::browser::Browser;
use crate::support::raw::until;
use crate::support::session::Folder;

/// Shift and Enter: runs the cell and selects the next one.
const RUN: &str = "\u{e008}\u{e007}";

const CELLS: [&str; 6] = [
    "%load_ext kfp_creds",
    "%kfp_creds start --offline --all",
    "import os, subprocess\n\
     script = 'curl -sf -H Metadata-Flavor:Google http://$GCE_METADATA_HOST/computeMetadata/v1/instance/service-accounts/default/token >/dev/null && echo a token; sleep 120'\n\
     task = subprocess.run(['docker', 'run', '-d', os.environ['KFP_CREDS_TASK_IMAGE'], 'sh', '-c', script], capture_output=True, text=True, check=True).stdout.strip()\n\
     while not (said := subprocess.run(['docker', 'logs', task], capture_output=True, text=True).stdout): pass\n\
     print('it has', said)",
    "%kfp_creds status",
    "print(subprocess.run(['docker', 'rm', '-f', task], capture_output=True, text=True).returncode)",
    "%kfp_creds stop",
];

/// JupyterLab, ended with the test.
struct Lab(Child);

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts JupyterLab with a notebook of these cells; returns its port.
fn lab(folder: &Folder) -> (Lab, u16) {
    let cell = |(number, source): (usize, &&str)| json!({"cell_type": "code", "id": format!("cell-{number}"), "source": source, "metadata": {}, "outputs": [], "execution_count": null});
    let cells: Vec<_> = CELLS.iter().enumerate().map(cell).collect();
    let kernel = json!({"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}});
    let notebook = json!({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5});
    std::fs::write(folder.0.join("work.ipynb"), notebook.to_string()).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let root = format!("--ServerApp.root_dir={}", folder.0.display());
    let flags =
        ["--no-browser", "--allow-root", "--IdentityProvider.token=abc", "--ServerApp.port_retries=0", &root];
    let at = ["--ip=127.0.0.1".to_owned(), format!("--port={port}")];
    let mut command = notebooks(folder);
    command.args(["-m", "jupyterlab"]).args(flags).args(at).env("HOME", &folder.0);
    let lab = Lab(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    until("JupyterLab listens", Duration::from_secs(60), || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    (lab, port)
}

#[test]
fn a_notebook_in_a_browser_has_credentials_and_shows_them() {
    let folder = Folder::new("lab");
    let (_lab, port) = lab(&folder);

    let browser = Browser::start();
    browser.open(&format!("http://127.0.0.1:{port}/lab/tree/work.ipynb?token=abc&reset"));
    let idle = "return document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]') !== null \
        && document.querySelectorAll('.jp-CodeCell .cm-content').length >= 6";
    until("the kernel is idle", Duration::from_secs(60), || browser.run(idle) == true);
    let shown = |what: &str| {
        browser.run(&format!(
            "return [...document.querySelectorAll('.jp-CodeCell')].slice(0, 6).map((cell) => {{ {what} }}).join('|')"
        ))
    };
    for number in 1..=CELLS.len() {
        let prompt = |of: usize| {
            let prompts = shown("return cell.querySelector('.jp-InputPrompt').textContent");
            prompts.as_str().unwrap().split('|').nth(of - 1).unwrap_or_default().to_owned()
        };
        let focused = format!(
            "const cell = document.querySelectorAll('.jp-CodeCell')[{}]; cell.querySelector('.cm-content').focus(); \
             return cell.classList.contains('jp-mod-active') && cell.contains(document.activeElement)",
            number - 1
        );
        // Keys are lost until the page is ready for them; the star of a running cell shows that they arrived.
        let mut pressed: Option<Instant> = None;
        until(
            &format!("cell {number} has run: {}", shown("return cell.innerText")),
            Duration::from_secs(60),
            || {
                let is_new = prompt(number) == "[ ]:";
                let again = pressed.is_none_or(|at| is_new && at.elapsed() > Duration::from_secs(3));
                if again && browser.run(&focused) == true {
                    browser.chord(RUN);
                    pressed = Some(Instant::now());
                }
                prompt(number) == format!("[{number}]:")
            },
        );
        if number == 4 {
            let table = browser.run("const table = document.querySelectorAll('.jp-CodeCell')[3].querySelector('.jp-OutputArea table'); return table && table.innerText");
            let table = table.as_str().unwrap_or_default();
            assert!(
                table.contains("default")
                    && table.contains("1, the last until ")
                    && table.contains("offline@kfp-creds.invalid, project"),
                "{table:?}: {}",
                shown("return cell.innerText")
            );
        }
    }
    let said = shown("return cell.querySelector('.jp-OutputArea').innerText");
    let said = said.as_str().unwrap();
    assert!(said.contains("it has a token") && said.contains("offline@kfp-creds.invalid, project"), "{said}");
}
