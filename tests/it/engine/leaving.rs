//! What `run` prints about programs that outlive its command.

use std::process::Output;

use crate::support::session::{Folder, program, task_image};

const SAID: &str = "still uses Docker through kfp-creds";

fn run(command: &[&str]) -> Output {
    let folder = Folder::new("leaving");
    program(&folder.0).args(["run", "--offline", "--"]).args(command).output().unwrap()
}

#[test]
fn no_notice_is_printed_if_every_client_ended() {
    let image = task_image();
    for command in ["docker run --rm --network none $IMAGE true", "exec docker version"] {
        let out = run(&["sh", "-c", &command.replace("$IMAGE", &image)]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(0), "{said}");
        assert!(!said.contains(SAID), "{command}\n{said}");
    }
}

#[test]
fn serve_is_advised_if_a_client_outlives_the_command() {
    let out = run(&["sh", "-c", "docker events >/dev/null 2>&1 & sleep 1"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{said}");
    assert!(said.contains(SAID), "{said}");
}
