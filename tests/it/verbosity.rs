//! How much the program prints with `-v`, `--quiet`, `--json`.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use crate::support::session::{Folder, program};

/// The stderr of `serve --listen` until it serves, and for one second longer.
fn said(flags: &[&str]) -> String {
    let folder = Folder::new("verbose");
    let mut child = program(&folder.0)
        .args(["serve", "--offline", "--listen", "127.0.0.1:0", "--open"])
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let first = lines.next().unwrap();
    let place = match serde_json::from_str::<serde_json::Value>(&first) {
        Ok(ready) => ready["environment"]["GCE_METADATA_HOST"].as_str().unwrap().to_string(),
        Err(_) => first.split_once('=').unwrap().1.to_string(),
    };
    // `-vv` prints a line about scopes that the identity does not have, and `-v` one about `format=full`.
    for path in ["token?scopes=https://a.example/none", "identity?audience=a&format=full"] {
        let url = format!("http://{place}/computeMetadata/v1/instance/service-accounts/default/{path}");
        let out = Command::new("curl").args(["-sf", "-H", "Metadata-Flavor: Google", &url]).output().unwrap();
        assert!(out.status.success(), "{path}");
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success());
    text
}

#[test]
fn each_v_prints_more_and_quiet_nothing() {
    let [none, info, debug] = [&[][..], &["-v"], &["-vv"]].map(said);
    let has = |text: &str| [" INFO ", "DEBUG "].map(|level| text.contains(level));
    assert_eq!(
        [has(&none), has(&info), has(&debug)],
        [[false, false], [true, false], [true, true]],
        "{debug}"
    );
    assert!(none.lines().all(|line| line.starts_with("kfp-creds: ")), "{none}");
    assert_eq!(said(&["--quiet"]).matches("kfp-creds: ").count(), 1, "the notice of where it serves");
    // The ready line on stdout has the address; these requests cause lines only with -v.
    let json = said(&["--json"]);
    for line in json.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{json}"));
        assert!(line["event"].is_string(), "{json}");
    }
}
