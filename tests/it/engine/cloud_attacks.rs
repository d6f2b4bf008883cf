//! What a hostile neighbour does with the endpoints of AWS and Azure: each attack beside the same request by
//! the owner. The credentials are made here, and no cloud accepts them. These tests run one at a time,
//! because one session has the address 169.254.170.2.

use std::time::Duration;

use serde_json::Value;

use super::attacks::{Made, inspect, ours, unused};
use crate::support::raw::until;
use crate::support::session::{Session, docker_at, engine_socket, is_podman, program, raw, task_image};

const CONFIG: &str = r#"
[aws]
credentials = "offline"
region = "eu-west-1"
[azure]
credentials = "offline"
[identity.default.aws]
role = "arn:aws:iam::123456789012:role/kfp-loader"
[identity.default.azure]
resources = ["https://storage.azure.com"]
[identity.plain]
[[rule]]
image = "*"
labels = { plain = "yes" }
identity = "plain"
"#;

/// `METHOD URL NAME=VALUE...`: prints status and body, or the error.
const ASK: &str = r#"
import os, sys, urllib.error, urllib.request
method, url, *headers = sys.argv[1:]
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
request = urllib.request.Request(url, method=method, headers=dict(h.split('=', 1) for h in headers))
try:
    with opener.open(request, timeout=10) as reply:
        print(reply.status, reply.read().decode())
except urllib.error.HTTPError as refused:
    print(refused.code, refused.read().decode())
except OSError as error:
    print(0, error)
"#;

fn session() -> Session {
    Session::offline(CONFIG, &["--all", "--config", "kfp-creds.toml"])
}

struct Container {
    name: String,
    _made: Made,
}

impl Container {
    fn new(session: &Session, arguments: &[&str]) -> Self {
        let name = unused("cloud");
        let image = task_image();
        let (run, sleep) = (["run", "-d", "--name", &name], [&image, "sleep", "120"]);
        session.ok(&[&run[..], arguments, &sleep].concat());
        Self { _made: Made("container", name.clone()), name }
    }

    fn variable(&self, name: &str) -> String {
        let found = inspect(&self.name);
        let all = found["Config"]["Env"].as_array().unwrap().iter().filter_map(Value::as_str);
        let mut values = all.filter_map(|entry| entry.strip_prefix(name)?.strip_prefix('='));
        values.next().unwrap_or_default().to_owned()
    }

    fn ask(&self, method: &str, url: &str, headers: &[&str]) -> (u16, String) {
        let base = ["exec", &self.name, "python3", "-c", ASK, method, url];
        let answer = raw(&[&base[..], headers].concat());
        let (status, body) = answer.split_once(' ').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    fn imds(&self, path: &str) -> String {
        format!("http://{}/latest/{path}", self.variable("GCE_METADATA_HOST"))
    }

    fn token(&self) -> String {
        let (status, token) =
            self.ask("PUT", &self.imds("api/token"), &["X-aws-ec2-metadata-token-ttl-seconds=21600"]);
        assert_eq!(status, 200, "{token}");
        token.trim().to_owned()
    }

    fn role(&self) -> String {
        self.imds("meta-data/iam/security-credentials/kfp-loader")
    }

    /// The URL that AWS's clients use; `None` if the session does not have that address.
    fn credentials(&self) -> Option<String> {
        let path = self.variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
        (!path.is_empty()).then(|| format!("http://169.254.170.2{path}"))
    }

    fn azure(&self) -> String {
        format!(
            "{}?api-version=2019-08-01&resource=https://storage.azure.com",
            self.variable("IDENTITY_ENDPOINT")
        )
    }
}

#[test]
fn the_secret_of_a_lease_is_refused_at_another_address() {
    let session = session();
    let (own, other) = (Container::new(&session, &[]), Container::new(&session, &[]));
    // For a container whose identity has neither cloud, both seem not to exist.
    let plain = Container::new(&session, &["--label", "plain=yes"]);
    if let Some(url) = own.credentials() {
        let (status, body) = own.ask("GET", &url, &[]);
        let found: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, 200);
        assert!(found["AccessKeyId"].as_str().unwrap().starts_with("ASIA"));
        let (status, body) = other.ask("GET", &url, &[]);
        assert_eq!(status, 403, "{body}");
        assert!(!body.contains("ASIA") && !body.contains(url.rsplit('/').next().unwrap()), "{body}");
        let (status, body) = plain.ask("GET", &url, &[]);
        assert!(status == 403 && body.contains("no identity on AWS"), "{body}");
    } else {
        assert!(is_podman(), "the relay has no second address");
    }
    let header = format!("X-IDENTITY-HEADER={}", own.variable("IDENTITY_HEADER"));
    let (status, body) = own.ask("GET", &own.azure(), &[&header]);
    assert!(status == 200 && body.contains("access_token"), "{status} {body}");
    let (status, body) = other.ask("GET", &own.azure(), &[&header]);
    assert!(status == 401 && !body.contains("access_token"), "{status} {body}");
    let (status, _) = plain.ask("GET", &own.azure(), &[&header]);
    assert_eq!(status, 400);
    assert_eq!(plain.variable("IDENTITY_HEADER"), "");
}

#[test]
fn an_imds_token_is_bound_to_its_container_and_v1_refused() {
    let session = session();
    let (own, other) = (Container::new(&session, &[]), Container::new(&session, &[]));
    let token = format!("X-aws-ec2-metadata-token={}", own.token());
    let (status, body) = own.ask("GET", &own.role(), &[&token]);
    assert!(status == 200 && body.contains("AWS-HMAC"), "{status} {body}");
    let (status, body) = other.ask("GET", &own.role(), &[&token]);
    assert!(status == 401 && !body.contains("ASIA"), "{status} {body}");
    // IMDSv1, which a plain GET through an SSRF hole would use.
    let (status, body) = own.ask("GET", &own.role(), &[]);
    assert!(status == 401 && !body.contains("ASIA"), "{status} {body}");
    // A restart gives another lease.
    session.ok(&["restart", "-t", "0", &own.name]);
    let (status, _) = own.ask("GET", &own.role(), &[&token]);
    assert_eq!(status, 401);
}

#[test]
fn requests_that_others_cause_get_no_credentials_of_any_cloud() {
    let session = session();
    let own = Container::new(&session, &[]);
    let token = format!("X-aws-ec2-metadata-token={}", own.token());
    let header = format!("X-IDENTITY-HEADER={}", own.variable("IDENTITY_HEADER"));
    let imds = own.azure().replace("/msi/token", "/metadata/identity/oauth2/token");
    let mut doors = vec![(own.role(), token), (own.azure(), header), (imds, "Metadata=true".to_owned())];
    doors.extend(own.credentials().map(|url| (url, "Accept=*/*".to_owned())));
    for (url, own_header) in &doors {
        let (status, body) = own.ask("GET", url, &[own_header]);
        assert_eq!(status, 200, "{url}: {body}");
        for foreign in ["X-Forwarded-For=10.0.0.1", "Origin=https://evil.example", "Host=evil.example"] {
            let (status, body) = own.ask("GET", url, &[own_header, foreign]);
            assert!((400..500).contains(&status), "{url} {foreign}: {status} {body}");
            assert!(!body.contains("ASIA") && !body.contains("access_token"), "{url} {foreign}: {body}");
        }
    }
    let (status, _) = own.ask(
        "PUT",
        &own.imds("api/token"),
        &["X-aws-ec2-metadata-token-ttl-seconds=60", "X-Forwarded-For=10.0.0.1"],
    );
    assert_eq!(status, 403);
}

/// Its neighbours' clients would take a container with this address for AWS.
#[test]
fn nobody_takes_the_address_of_container_credentials() {
    if is_podman() {
        return;
    }
    let session = session();
    let (network, ..) = ours(&session);
    let own = Container::new(&session, &[]);
    let url = own.credentials().unwrap();
    let asks = || own.ask("GET", &url, &[]);
    assert_eq!(asks().0, 200);
    // The engine itself starts the thief, as anyone with access to its socket can.
    let thief = |option: &str| {
        let thief = Made("container", unused("thief"));
        let image = task_image();
        let run = ["run", "-d", "--name", &thief.1, "--network", &network, option, "169.254.170.2", &image];
        let started = docker_at(&engine_socket(), &[&run[..], &["sleep", "60"]].concat()).status.success();
        (thief, started)
    };
    let (ordinary, started) = thief("--ip");
    assert!(!started, "the thief has the address on {network}");
    drop(ordinary);
    assert_eq!(asks().0, 200);
    // The engine does not compare link-local addresses. While the thief runs, nobody gets credentials.
    let (linked, started) = thief("--link-local-ip");
    assert!(started, "the attack itself fails on {network}");
    let (status, body) = asks();
    assert!(status != 200 && !body.contains("ASIA"), "{status} {body}");
    drop(linked);
    until("the credentials are back", Duration::from_secs(10), || asks().0 == 200);
}

#[test]
fn a_cut_off_ends_what_every_cloud_hands_out() {
    let session = session();
    let own = Container::new(&session, &[]);
    let header = format!("X-IDENTITY-HEADER={}", own.variable("IDENTITY_HEADER"));
    assert_eq!(own.ask("GET", &own.azure(), &[&header]).0, 200);
    let out = program(&session.folder.0).args(["cut-off", &own.name]).output().unwrap();
    let cut = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(cut.contains("cut off") && cut.contains("Azure: 1, the last until"), "{cut}");
    let (status, body) = own.ask("GET", &own.azure(), &[&header]);
    assert!(status == 503 || status == 0, "{status} {body}");
    if let Some(url) = own.credentials() {
        let (status, body) = own.ask("GET", &url, &[]);
        assert!((status == 503 || status == 0) && !body.contains("ASIA"), "{status} {body}");
    }
}
