//! Real client libraries in containers, and gateways that refuse requests without a token of a running
//! container.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::google_auth::{SCRIPT, assert_found};
use crate::support::session::{Kfp, Session, claims, engine_socket, nobody, python, run, task_image};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn google_auth_finds_everything() {
    let config = "project = \"own-project\"\n[identity.default]\nscopes = \
        [\"https://www.googleapis.com/auth/cloud-platform\", \"https://www.googleapis.com/auth/drive\"]\n";
    let session = Session::offline(config, &["--all"]);
    let container = session.ok(&["create", &task_image(), "python3", "-c", SCRIPT]);
    let report: Value = serde_json::from_str(&session.ok(&["start", "-a", &container])).unwrap();
    assert_found(&report, "own-project", "offline@kfp-creds.invalid");
    for token in ["first", "second", "identity"] {
        assert_eq!(report[token]["container"], container, "{token}");
    }
    session.ok(&["rm", &container]);
}

/// google-auth, BigQuery, Storage and curl as components, with default credentials only; no request without a
/// valid token gets past the gateway of an emulator.
fn libraries(kfp: &Kfp) {
    let emulators = format!("{ROOT}/tests/python/emulators.py");
    let pipeline = format!("{ROOT}/tests/python/pipelines/clients.py");
    // The gateways and emulators run in the newest environment, whichever kfp runs the pipeline.
    let newest = Kfp::newest().python;
    let command = [&newest, &emulators, "--summary", "summary.json", "--", &kfp.python, &pipeline];
    let script = format!("{} && cat summary.json", command.map(|word| format!("'{word}'")).join(" "));
    let ran = run(kfp, "", &["--offline"], &["sh", "-c", &script]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    let lines: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [report, summary] = &lines[..] else { panic!("{}", ran.stdout) };
    let auth = &report["auth"];
    assert_eq!(auth["kind"], "google.auth.compute_engine.credentials");
    assert_eq!((&auth["project"], &auth["valid"]), (&"offline-project".into(), &true.into()));
    assert_eq!(auth["account"], "offline@kfp-creds.invalid");
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{report}"));
    assert!((number(&report["bigquery"]["answer"]) - 42.0).abs() < f64::EPSILON, "{report}");
    assert_eq!(report["bigquery"]["project"], "offline-project");
    assert_eq!(report["storage"]["small"], "written without a key");
    assert!((number(&report["storage"]["large"]) - 600_000.0).abs() < f64::EPSILON, "{report}");
    assert_eq!(report["storage"]["names"], json!(["large", "small"]));
    let (with, without) = (number(&report["curl"]["with"]), number(&report["curl"]["without"]));
    assert!(with < 300.0 && (without - 401.0).abs() < f64::EPSILON, "{report}");
    // The containers of BigQuery, Storage and curl; google-auth alone asks no gateway.
    assert_eq!(summary["containers"].as_array().map(Vec::len), Some(3), "{summary}");
    assert_eq!(summary["accounts"], json!(["offline@kfp-creds.invalid"]));
    // Two probes at each gateway, and curl's request without its token.
    assert_eq!(summary["refused"], 5, "{summary}");
}

#[test]
fn bigquery_storage_and_curl_get_past_the_gateways() {
    libraries(&Kfp::newest());
}

#[test]
fn with_the_oldest_kfp_clients_get_past_the_gateways() {
    libraries(&Kfp::oldest());
}

/// Sends tokens to a gateway; status and reason by name.
fn present(session: &Session, tokens: &Value, in_an_hour: bool) -> Value {
    let mut child = Command::new(python())
        .arg("present_tokens.py")
        .current_dir(format!("{ROOT}/tests/python"))
        .envs(nobody())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let given = json!({
        "jwks": session.jwks.as_ref().unwrap(), "socket": engine_socket(), "tokens": tokens, "in_an_hour": in_an_hour,
    });
    child.stdin.take().unwrap().write_all(given.to_string().as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success());
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn gateways_refuse_what_is_not_the_token_of_a_running_container() {
    let (session, other) = (Session::offline("", &["--all"]), Session::offline("", &["--all"]));
    let image = task_image();
    let ask = |session: &Session, path: &str| {
        let id = session.ok(&["run", "-d", &image, "sleep", "300"]);
        let url =
            format!("http://$GCE_METADATA_HOST/computeMetadata/v1/instance/service-accounts/default/{path}");
        let script = format!("curl -sSf -H Metadata-Flavor:Google \"{url}\"");
        (session.ok(&["exec", &id, "sh", "-c", &script]), id)
    };
    let access = |answer: &str| {
        let answer: Value = serde_json::from_str(answer).unwrap();
        answer["access_token"].as_str().unwrap().to_string()
    };
    let (own, container) = ask(&session, "token");
    let (foreign, stranger) = ask(&other, "token");
    let (identity, asker) = ask(&session, "identity?audience=x");
    let own = access(&own);
    assert_eq!(claims(&own)["container"], container);
    // Changes one character of the claims, so that the signature does not fit.
    let (head, rest) = own.split_once('.').unwrap();
    let (middle, signature) = rest.split_once('.').unwrap();
    let flipped = if middle.ends_with('A') { "B" } else { "A" };
    let forged = format!("{head}.{}{flipped}.{signature}", &middle[..middle.len() - 1]);
    let tokens = json!({
        "own": own, "foreign": access(&foreign), "identity": identity, "forged": forged, "garbage": "x.y.z",
        "missing": null,
    });
    let said = present(&session, &tokens, false);
    assert_eq!(said["own"], json!([200, ""]));
    for (name, why) in [
        ("foreign", "signed with a key that is not in the JWKS"),
        ("identity", "an identity token, not an access token"),
        ("forged", "not a valid token"),
        ("garbage", "not a valid token"),
        ("missing", "no bearer token"),
    ] {
        assert_eq!(said[name][0], 401, "{name}: {said}");
        assert!(said[name][1].as_str().is_some_and(|text| text.contains(why)), "{name}: {said}");
    }
    let late = present(&session, &json!({"own": own}), true);
    assert_eq!(late["own"], json!([401, "Request refused: expired."]));

    session.ok(&["rm", "-f", &container]);
    let ended = present(&session, &json!({"own": own}), false);
    assert_eq!(ended["own"], json!([401, "Request refused: its container does not run."]));
    session.ok(&["rm", "-f", &asker]);
    other.ok(&["rm", "-f", &stranger]);
}
