//! Go in a container: whether it is on Compute Engine is a race between the address and the name, and what wins
//! stays for the life of the process. So the name has to mean the address, by Docker's own DNS as well.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::support::session::{Session, claims, task_image};

const STARTS: usize = 20;

/// Built by `scripts/setup --clients`.
fn program() -> PathBuf {
    let fallback = Path::new(env!("CARGO_MANIFEST_DIR")).join(".work/clients");
    let folder = std::env::var_os("KFP_CREDS_CLIENTS").map_or(fallback, PathBuf::from);
    let program = folder.join("go/go_google");
    assert!(program.exists(), "{}: scripts/setup --clients builds it", program.display());
    program
}

/// A session with the address that is built into clients; a neighbour that has it ends soon.
fn with_the_address() -> Session {
    for _ in 0..20 {
        let session = Session::offline("", &["--all"]);
        if !session.said().contains("169.254.169.254 is not ours") {
            return session;
        }
        drop(session);
        std::thread::sleep(Duration::from_secs(6));
    }
    panic!("another session has 169.254.169.254 for two minutes");
}

#[test]
fn go_finds_the_server_at_every_start() {
    let session = with_the_address();
    let container = session.ok(&["create", &task_image(), "sleep", "600"]);
    session.ok(&["cp", &program().display().to_string(), &format!("{container}:/go_google")]);
    session.ok(&["start", &container]);
    let said = |script: &str| -> Vec<Value> {
        let said = session.ok(&["exec", &container, "sh", "-c", script]);
        said.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {said}")))
            .collect()
    };
    let untold = "env -u GCE_METADATA_HOST -u GCE_METADATA_IP -u GCE_METADATA_ROOT";
    let by_dns_alone = "grep -v 169.254.169.254 /etc/hosts >/tmp/hosts && cat /tmp/hosts >/etc/hosts;";
    for (way, before, environment) in
        [("as it is", "", ""), ("untold", "", untold), ("by DNS alone", by_dns_alone, untold)]
    {
        let script =
            format!("{before} for i in $(seq {STARTS}); do {environment} /go_google metadata detect; done");
        let found = said(&script).iter().filter(|line| line["value"] == true).count();
        assert_eq!(found, STARTS, "{way}");
    }
    // The same without being told, to the end.
    let steps = "token refresh project universe email identity";
    for line in said(&format!("AUDIENCE=https://service.example {untold} /go_google metadata {steps}")) {
        let value = line["value"].as_str().unwrap_or_else(|| panic!("{line}"));
        match line["step"].as_str() {
            Some("token" | "refresh" | "identity") => {
                assert_eq!(claims(value)["container"], container, "{line}")
            }
            Some("project") => assert_eq!(value, "offline-project"),
            Some("universe") => assert_eq!(value, "googleapis.com"),
            _ => assert_eq!(value, "offline@kfp-creds.invalid"),
        }
    }
    session.ok(&["rm", "-f", &container]);
}
