//! `kfp-creds conformance`: its cases are the golden files, our own server has no deviation, and the report
//! lists the deviations of a wrong server.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::support::golden::{ACCESS_TOKEN, Case, IDENTITY_TOKEN, cases};
use crate::support::listening::Listening;
use crate::support::session::{Folder, program};

/// Words of cases that depend on the golden view or on an address of their own: no other server can answer
/// these.
const OURS: [&str; 12] = [
    "golden",
    "123-compute",
    "a-key",
    "user-data",
    "fleet",
    "1234",
    "last_etag",
    "attributes/",
    "guest-attributes",
    // The answer depends on the credential.
    "enforce_scopes=true",
    "enforce_scopes=Y",
    // Google has no such path, and we serve another cloud there.
    "/latest/",
];

/// What every server answers to this case, in the format of `cases.txt`; `None` if servers may differ.
fn compact(case: &Case) -> Option<String> {
    let request = String::from_utf8(case.request.clone()).unwrap();
    let (line, headers) = request.trim_end().split_once("\r\n").unwrap_or_else(|| (request.trim_end(), ""));
    // Behind a secret path there is no absolute form, and a case that waits would take too long.
    let waits = case.waits.is_some() || line.contains(" http://");
    let ours = OURS.iter().any(|word| request.contains(word));
    if case.step_only.is_some() || case.given.is_some() || waits || ours {
        return None;
    }
    let line = line.strip_suffix(" HTTP/1.1")?;
    let mut expected = vec![case.status.to_string()];
    let header =
        |name: &str| case.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str());
    if case.status == 200 {
        expected.push(header("Content-Type").unwrap().split(';').next().unwrap().to_string());
        expected.extend(header("ETag").map(|_| "etag".to_string()));
        expected.push(shape(case));
    }
    if let Some(location) = header("Location") {
        let path = location.splitn(4, '/').nth(3).unwrap();
        expected.push(format!("location=/{path}"));
    }
    let headers = headers.replace("\r\n", "\n");
    let headers = if headers.is_empty() { String::new() } else { headers + "\n" };
    Some(format!("## {}\n# {}\n{line}\n{headers}=> {}\n", case.name, case.why, expected.join(" ")))
}

fn shape(case: &Case) -> String {
    let body = std::str::from_utf8(&case.body).unwrap();
    let address = |text: &str| text.parse::<std::net::IpAddr>().is_ok();
    let own = |text: &str| address(text) || OURS[..5].iter().any(|word| text.contains(word));
    if body == IDENTITY_TOKEN {
        return "jwt".into();
    }
    if body.contains(ACCESS_TOKEN) {
        return if body.starts_with('{') { "token".into() } else { "text-token".into() };
    }
    let is_json = case.headers.iter().any(|(_, value)| value == "application/json");
    if is_json {
        let value: Value = serde_json::from_str(body).unwrap();
        return match &value {
            Value::Object(map) => {
                let keys: Vec<&str> = map.keys().map(String::as_str).filter(|key| !own(key)).collect();
                if keys.is_empty() { "json=object".into() } else { format!("json=object:{}", keys.join(",")) }
            }
            Value::Array(_) => "json=array".into(),
            Value::Number(_) => "json=number".into(),
            Value::Bool(_) => "json=boolean".into(),
            Value::String(_) => "json=string".into(),
            Value::Null => "json=null".into(),
        };
    }
    if body.contains('\n') {
        // In lists and in recursive text replies, every server has the same paths, but its own values.
        let listing = body.lines().all(|line| !line.contains(' ') && !line.starts_with("http"));
        let lines: Vec<&str> = body.lines().filter(|line| listing && !own(line)).collect();
        return format!("lines={}", lines.join(","));
    }
    let digits = !body.is_empty() && body.bytes().all(|b| b.is_ascii_digit());
    if digits { "digits".into() } else { "line".into() }
}

#[test]
fn the_cases_are_those_of_the_golden_files() {
    let head = "Made from tests/golden/metadata by a test; do not edit by hand. The format: case.rs.\n";
    let text: String = cases().iter().filter_map(compact).map(|case| format!("\n{case}")).collect();
    let text = format!("{head}{text}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/app/conformance/cases.txt");
    if fs::read_to_string(&path).unwrap_or_default() != text {
        fs::write(&path, text).unwrap();
        panic!(
            "the cases were not those of the golden files; they are rewritten now, look at the difference"
        );
    }
}

fn conformance(target: &str, arguments: &[&str]) -> (Output, String) {
    let folder = Folder::new("conformance");
    let out = program(&folder.0).args(["conformance", "--target", target]).args(arguments).output().unwrap();
    let said = String::from_utf8(out.stdout.clone()).unwrap();
    (out, said)
}

#[test]
fn our_own_server_has_no_deviation() {
    let open = Listening::open("");
    let (out, said) = conformance(&format!("http://{}", open.place), &[]);
    assert_eq!(out.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&out.stderr));
    let last = said.lines().last().unwrap();
    assert!(last.contains("cases as expected, 0 skipped, 0 deviations"), "{said}");
    let (out, said) = conformance(&format!("http://{}", open.place), &["--json"]);
    let report: Value = serde_json::from_str(&said).unwrap();
    assert!(out.status.success() && report["conforming"].as_u64().unwrap() > 100, "{said}");
    assert_eq!(report["deviations"], Value::Array(vec![]));

    // It works behind a secret path too, and the report does not contain the path.
    let guarded = Listening::guarded("");
    let (out, said) = conformance(&format!("http://{}", guarded.place), &[]);
    assert_eq!(out.status.code(), Some(0), "{said}");
    let secret = guarded.place.split_once('/').unwrap().1;
    assert!(!said.contains(secret) && said.contains("skipped"), "{said}");
}

/// A server with mistakes that other servers made: no check of the header, HTML with a 404, a token whose
/// lifetime is a string, a number with a newline, directories without a redirect.
fn wrong_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap_or(0) > 0 {}
            let target = head.split(' ').nth(1).unwrap_or_default().to_string();
            let path = target.split('?').next().unwrap_or_default();
            let (media, flavor, body) = match path.rsplit("/v1/").next().unwrap_or_default() {
                "instance/service-accounts/default/token" => (
                    "application/json",
                    true,
                    r#"{"access_token":"ya29.canary-of-the-wrong","expires_in":"3599","token_type":"Bearer"}"#,
                ),
                "project/numeric-project-id" => ("application/text", true, "123\n"),
                "project/project-id" => ("text/plain", true, "p"),
                "instance/zone" => ("application/text", false, "projects/1/zones/z"),
                _ => ("text/html", true, "<html>200 for everything</html>"),
            };
            let flavor = if flavor { "Metadata-Flavor: Google\r\n" } else { "" };
            let length = body.len();
            let reply = format!(
                "HTTP/1.1 200 OK\r\n{flavor}Content-Type: {media}\r\nETag: 1\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            let _ = reader.get_mut().write_all(reply.as_bytes());
        }
    });
    at
}

#[test]
fn deviations_of_a_server_are_listed() {
    let at = wrong_server();
    let (out, said) = conformance(&format!("http://{at}"), &["--json"]);
    assert_eq!(out.status.code(), Some(1), "{said}");
    let report: Value = serde_json::from_str(&said).unwrap();
    let deviations = report["deviations"].as_array().unwrap();
    let of = |name: &str| {
        let found = deviations.iter().find(|deviation| deviation["case"] == name);
        found.unwrap_or_else(|| panic!("no deviation in {name}: {said}"))["deviation"]
            .as_str()
            .unwrap()
            .to_string()
    };
    assert!(of("token").contains("expires_in"), "{said}");
    assert!(of("flavor-missing").contains("status 200, expected 403"), "{said}");
    assert!(of("unknown").contains("status 200, expected 404"), "{said}");
    assert!(of("numeric-project-id").contains("newline"), "{said}");
    assert!(of("project-id").contains("content type"), "{said}");
    assert!(of("zone").contains("Metadata-Flavor"), "{said}");
    assert!(of("accounts-without-slash").contains("expected 301"), "{said}");
    assert!(!said.contains("canary"), "the report must not show a token");
    let (_, said) = conformance(&format!("http://{at}"), &[]);
    assert!(
        said.contains("!!  token: GET /computeMetadata/v1/instance/service-accounts/default/token: "),
        "{said}"
    );
}

#[test]
fn conformance_needs_a_target_that_answers() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (out, _) = conformance(&format!("http://{free}"), &[]);
    assert_eq!(out.status.code(), Some(69));
    for bad in ["https://127.0.0.1:1", "127.0.0.1:1", "http://user@127.0.0.1:1"] {
        assert_eq!(conformance(bad, &[]).0.status.code(), Some(64), "{bad}");
    }
    // The environment does not provide a target.
    let folder = Folder::new("conformance");
    let mut command = program(&folder.0);
    let out = command.arg("conformance").env("GCE_METADATA_HOST", free.to_string()).output().unwrap();
    assert_eq!(out.status.code(), Some(64));
}
