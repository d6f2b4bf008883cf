//! Go in a container: the library decides by a race between the address and the name whether it is on Compute
//! Engine, and keeps the result for the life of the process. So the name has to lead to the address, also in
//! Docker's own DNS.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::second_engine::{IMAGE, SecondEngine};
use crate::support::session::{Session, claims};

const STARTS: usize = 20;

/// Built by `scripts/setup --clients`; static, so that it runs in any image.
fn program() -> PathBuf {
    let fallback = Path::new(env!("CARGO_MANIFEST_DIR")).join(".work/clients");
    let folder = std::env::var_os("KFP_CREDS_CLIENTS").map_or(fallback, PathBuf::from);
    let program = folder.join("go/go_google");
    assert!(program.exists(), "{}: scripts/setup --clients builds it", program.display());
    program
}

/// Removes the variables that name the server.
const UNTOLD: &str = "busybox env -u GCE_METADATA_HOST -u GCE_METADATA_IP -u GCE_METADATA_ROOT";

/// The lines that the program printed in the container.
fn said(session: &Session, container: &str, script: &str) -> Vec<Value> {
    let said = session.ok(&["exec", container, "sh", "-c", script]);
    said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {said}"))).collect()
}

#[test]
fn go_finds_the_server_at_every_start() {
    // A separate engine, where no neighbour has the address that clients have built in.
    let engine = SecondEngine::start();
    let by_dns_alone = "left=$(busybox grep -v 169.254.169.254 /etc/hosts); echo \"$left\" >/etc/hosts;";
    let all = [("as it is", "", ""), ("untold", "", UNTOLD), ("by DNS alone", by_dns_alone, UNTOLD)];
    // On a bridge, the engine's DNS server does not know the name.
    for (mode, ways) in [("auto", &all[..2]), ("second", &all)] {
        let config = format!("[network]\nattach = \"{mode}\"\n");
        let session = Session::start(&config, &["--offline", "--all"], &[("DOCKER_HOST", &engine.host())]);
        let container = session.ok(&["create", IMAGE, "sleep", "600"]);
        session.ok(&["cp", &program().display().to_string(), &format!("{container}:/bin/go_google")]);
        session.ok(&["start", &container]);
        for (way, before, environment) in ways {
            let starts =
                format!("for i in $(busybox seq {STARTS}); do {environment} go_google metadata detect; done");
            let found = said(&session, &container, &format!("{before} {starts}"));
            let detected = found.iter().filter(|line| line["value"] == true).count();
            assert_eq!(detected, STARTS, "{mode}, {way}: {found:?}");
        }
        reaches_the_end(&session, &container);
    }
}

fn reaches_the_end(session: &Session, container: &str) {
    // All steps, without the variables.
    let steps = "token refresh project universe email identity";
    let script = format!("AUDIENCE=https://service.example {UNTOLD} go_google metadata {steps}");
    for line in said(session, container, &script) {
        let value = line["value"].as_str().unwrap_or_else(|| panic!("{line}"));
        match line["step"].as_str() {
            Some("token" | "refresh" | "identity") => {
                assert_eq!(claims(value)["container"], container, "{}", line["step"]);
            }
            Some("project") => assert_eq!(value, "offline-project"),
            Some("universe") => assert_eq!(value, "googleapis.com"),
            _ => assert_eq!(value, "offline@kfp-creds.invalid"),
        }
    }
}
