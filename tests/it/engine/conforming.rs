//! The protocol as an attached container sees it, judged by the program itself: all the way through the
//! relay, by name and by the address that clients know.

use serde_json::Value;

use crate::support::session::{PROGRAM, Session, task_image};

#[test]
fn a_container_finds_no_deviation() {
    let session = Session::offline("", &["--all"]);
    let program = format!("{PROGRAM}:/kfp-creds:ro");
    // The environment names the relay's address in this session.
    let script = r#"for to in metadata.google.internal "$GCE_METADATA_HOST"; do
        /kfp-creds conformance --json --target "http://$to" || echo "code $?"; done"#;
    let out = session.docker(&["run", "--rm", "-v", &program, &task_image(), "sh", "-c", script]);
    let (said, err) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && !said.contains("code "), "{said}{err}{}", session.said());
    let reports = serde_json::Deserializer::from_str(&said).into_iter::<Value>();
    let reports: Vec<Value> = reports.map(Result::unwrap).collect();
    assert_eq!(reports.len(), 2, "{said}");
    for report in reports {
        assert_eq!(report["deviations"], Value::Array(vec![]), "{report}");
        assert_eq!(report["skipped"], Value::Array(vec![]), "{report}");
        assert!(report["conforming"].as_u64().unwrap() > 100, "{report}");
    }
}
