//! Clients of AWS and Azure in containers of a session, unmodified and with only what the session gives them:
//! moto serves STS and S3 (it checks signatures and session tokens), azurite serves Blob Storage.
//! `libraries::clouds` has more clients and every fault, on loopback.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::attacks::{Made, unused};
use crate::support::session::{Folder, Session, claims, python, raw, task_image};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Python's clients: name, steps, and what the first step has to find.
const CLIENTS: [(&str, &str, Finds); 12] = [
    ("google-auth", "identity", Finds::Google),
    ("boto3", "identity region refresh api", Finds::Role),
    ("aiobotocore", "identity region refresh api", Finds::Role),
    ("s3fs", "api refresh", Finds::Content),
    ("pyarrow-s3", "api region refresh", Finds::Content),
    ("obstore-s3", "api refresh", Finds::Content),
    ("minio", "api refresh", Finds::Content),
    ("azure-identity", "api refresh", Finds::Token),
    ("adlfs", "api refresh", Finds::Content),
    ("pyarrow-azure", "api refresh", Finds::Content),
    ("obstore-azure", "api refresh", Finds::Content),
    // Once more, after other clients fetched credentials.
    ("boto3", "api", Finds::Content),
];

#[derive(Clone, Copy, PartialEq)]
enum Finds {
    Google,
    Role,
    Content,
    /// As `Content`, but a refresh gives the token itself.
    Token,
}

/// moto and azurite on the engine's bridge. They end when their stdin ends.
struct StandIns {
    child: Child,
    said: Value,
}

impl StandIns {
    fn start() -> Self {
        let mut child = Command::new(python())
            .arg(format!("{ROOT}/tests/python/clients/cloud_parts.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said = serde_json::from_str(&line).unwrap_or_else(|error| {
            panic!("{error}: the stand-ins did not start (scripts/setup --clients installs them)")
        });
        Self { child, said }
    }

    fn text(&self, path: &str) -> &str {
        self.said.pointer(path).and_then(Value::as_str).unwrap_or_else(|| panic!("no {path}: {}", self.said))
    }

    /// A session whose user may assume the role, with all three clouds in its default identity; a container
    /// with `who=refused` has a role that nobody may assume, and one with `who=neighbour` has only Google.
    fn session(&self) -> Session {
        let (role, refused) = (self.text("/role"), self.text("/refused"));
        let token = Folder::new("token");
        let file = token.0.join("token.json");
        let until = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() + 3600;
        let answer = serde_json::json!({
            "version": 1, "success": true, "token_type": "urn:ietf:params:oauth:token-type:access_token",
            "access_token": "of-no-cloud-and-of-the-right-length", "expiration_time": until,
        });
        std::fs::write(&file, answer.to_string()).unwrap();
        // Not `offline`, which would make AWS sessions that moto does not know.
        let config = format!(
            "credentials = {{ exec = [\"cat\", {file:?}] }}\nproject = \"own-project\"\n\
             [endpoints]\naws_sts = {:?}\n[guard]\nallow = [{:?}]\n\
             [aws]\ncredentials = \"environment\"\nregion = \"eu-west-1\"\n[azure]\ncredentials = \"offline\"\n\
             [identity.default.aws]\nrole = {role:?}\n\
             [identity.default.azure]\nresources = [\"https://storage.azure.com\"]\n\
             [identity.refused]\n[identity.refused.aws]\nrole = {refused:?}\n[identity.refused.azure]\n\
             [identity.neighbour]\n\
             [[rule]]\nlabels = {{ who = \"refused\" }}\nidentity = \"refused\"\n\
             [[rule]]\nlabels = {{ who = \"neighbour\" }}\nidentity = \"neighbour\"\n",
            self.text("/sts"),
            packages(),
        );
        let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        let keys = keys.map(|name| (name, self.text(&format!("/keys/{name}"))));
        // The token file is read when the token is made, at the start.
        let session = Session::start(&config, &["--all", "--config", "kfp-creds.toml"], &keys);
        drop(token);
        session
    }

    /// The settings for the fake clouds, packages and programs of the clients, as arguments of `docker run`.
    fn arguments(&self) -> Vec<String> {
        let authority = self.text("/environment/CA");
        let packages = packages();
        let mut all = vec![
            format!("-v={authority}:{authority}:ro"),
            // The C++ client reads this file and no variable.
            format!("-v={authority}:/etc/ssl/certs/ca-certificates.crt:ro"),
            format!("-v={packages}:{packages}:ro"),
            format!("-v={ROOT}/tests/python/clients/programs:/programs:ro"),
            format!("-e=PYTHONPATH={packages}"),
        ];
        for (name, value) in self.said["environment"].as_object().unwrap() {
            all.push(format!("-e={name}={}", value.as_str().unwrap()));
        }
        all
    }
}

impl Drop for StandIns {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let end = Instant::now() + Duration::from_secs(15);
        while Instant::now() < end && self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The folder of the packages for the image's Python.
fn packages() -> String {
    let folder = std::env::var("KFP_CREDS_CLIENTS")
        .map_or_else(|_| PathBuf::from(ROOT).join(".work/clients"), PathBuf::from)
        .join("venv-clouds/lib");
    let of = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{folder:?}: {error}; scripts/setup --clients makes it"));
    let python = of.map(|entry| entry.unwrap().path()).next().unwrap();
    let asks = "import sys; print('python%d.%d' % sys.version_info[:2])";
    let image = raw(&["run", "--rm", "--network=none", &task_image(), "python3", "-c", asks]);
    assert!(python.ends_with(&image), "the image has {image}, and the clients are for another: {python:?}");
    python.join("site-packages").display().to_string()
}

/// Runs the clients in one container of the session; returns its id and their output: client and step.
fn run(session: &Session, stand_ins: &StandIns, who: &str, clients: &str) -> (String, Vec<(String, Value)>) {
    let name = unused("clouds");
    let arguments = stand_ins.arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let script = format!(
        "while read -r client steps; do echo \"# $client\"; \
                          python3 /programs/python_clouds.py $client $steps </dev/null 2>/dev/null; done <<E\n{clients}\nE\n"
    );
    let image = task_image();
    let label = format!("--label=who={who}");
    let command =
        [&["create", &label, "--name", &name], &arguments[..], &[&image, "sh", "-c", &script]].concat();
    let id = session.ok(&command);
    let _made = Made("container", name);
    let said = session.ok(&["start", "-a", &id]);
    let (mut all, mut client) = (vec![], String::new());
    for line in said.lines() {
        match line.strip_prefix("# ") {
            Some(name) => client = name.into(),
            None => all.push((client.clone(), serde_json::from_str(line).unwrap_or_else(|_| line.into()))),
        }
    }
    (id, all)
}

#[test]
fn clients_of_three_clouds_work_in_one_container() {
    let stand_ins = StandIns::start();
    let role = stand_ins.text("/role");
    let session = stand_ins.session();
    let wanted = CLIENTS.map(|(client, steps, _)| format!("{client} {steps}")).join("\n");
    let (id, said) = run(&session, &stand_ins, "owner", &wanted);
    let steps: Vec<(&str, &str, Finds, bool)> = CLIENTS
        .iter()
        .flat_map(|(client, steps, finds)| {
            steps.split(' ').enumerate().map(move |(at, step)| (*client, step, *finds, at == 0))
        })
        .collect();
    assert_eq!(said.len(), steps.len(), "{said:#?}\n{}", session.said());
    let assumed = role.replace(":iam:", ":sts:").replace(":role/", ":assumed-role/");
    for ((client, step, finds, first), (who, line)) in steps.into_iter().zip(&said) {
        assert_eq!((client, step), (who.as_str(), line["step"].as_str().unwrap()));
        let value = line["value"].as_str().unwrap_or_else(|| panic!("{client}: {line}\n{}", session.said()));
        match (step, finds) {
            ("region", _) => assert_eq!(value, "eu-west-1", "{client}"),
            (_, Finds::Google) => assert_eq!(value, "google.auth.compute_engine.credentials"),
            // The AWS session belongs to this container.
            ("identity" | "refresh", Finds::Role) => {
                assert!(value.starts_with(&format!("{assumed}/kfp-")), "{client}: {value}");
                assert!(value.ends_with(&id[..12]), "{client}: {value} and {id}");
            }
            ("refresh", Finds::Token) => assert_eq!(claims(value)["oid"], id, "{client}"),
            _ => assert_eq!(value, "written and read", "{client}, {step}, first: {first}"),
        }
    }
}

#[test]
fn a_role_that_may_not_be_assumed_gives_our_error_text() {
    let stand_ins = StandIns::start();
    let session = stand_ins.session();
    let began = Instant::now();
    let (_, said) =
        run(&session, &stand_ins, "refused", "boto3 identity\nazure-identity api\ngoogle-auth identity");
    let [(_, boto3), (_, azure), (_, google)] = said.as_slice() else { panic!("{said:?}") };
    let error = boto3["error"].as_str().unwrap_or_else(|| panic!("{boto3}"));
    // If boto has to use IMDS, because another session has the other address, it does not show the reason.
    let silent = error == "NoCredentialsError: Unable to locate credentials";
    let shown = error.contains("\"Code\":\"AccessDenied\"") && error.contains("kfp-forbidden");
    assert!(shown || silent, "{error}");
    // The other clouds still work.
    assert_eq!(azure["value"], "written and read", "{azure}");
    assert_eq!(google["value"], "google.auth.compute_engine.credentials");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

/// Status of a request from a container; 000 without an answer.
const STATUS: &str = "curl -s -o /dev/null --noproxy '*' --connect-timeout 3 --max-time 8 -w '%{http_code}'";

#[test]
fn a_copied_environment_gives_no_credentials() {
    let stand_ins = StandIns::start();
    let session = stand_ins.session();
    let image = task_image();
    let started = |arguments: &[&str]| {
        let id = session.ok(&[&["run", "-d"], arguments, &[&image, "sleep", "300"]].concat());
        (Made("container", id.clone()), id)
    };
    let (_owner, owner) = started(&[]);
    let told = raw(&["inspect", "-f", "{{range .Config.Env}}{{println .}}{{end}}", &owner]);
    let value = |name: &str| {
        let found = told.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        found.unwrap_or_else(|| panic!("no {name}: {told}\n{}", session.said())).to_string()
    };
    // Podman's relays and a second session lack the address 169.254.170.2, and IMDS needs no secret.
    let aws = match told.lines().find_map(|line| line.strip_prefix("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI="))
    {
        Some(path) => format!("{STATUS} http://169.254.170.2{path}"),
        None => format!(
            "{STATUS} -X PUT -H 'x-aws-ec2-metadata-token-ttl-seconds: 60' {}latest/api/token",
            value("AWS_EC2_METADATA_SERVICE_ENDPOINT")
        ),
    };
    let azure = format!(
        "{STATUS} -H 'X-IDENTITY-HEADER: {}' '{}?api-version=2019-08-01&resource=https://storage.azure.com'",
        value("IDENTITY_HEADER"),
        value("IDENTITY_ENDPOINT")
    );
    let ask = |id: &str| {
        let answer = |script: &str| raw(&["exec", id, "sh", "-c", &format!("{script} || true")]);
        [answer(&aws), answer(&azure)]
    };
    assert_eq!(ask(&owner), ["200", "200"], "{}", session.said());
    // A neighbour whose identity has only Google.
    let (_neighbour, neighbour) = started(&["--label=who=neighbour"]);
    assert_eq!(ask(&neighbour), ["403", "400"]);
    // A container with the same identity and its own secret.
    let (_twin, twin) = started(&[]);
    let [stolen_aws, stolen_azure] = ask(&twin);
    assert!(["403", "200"].contains(&stolen_aws.as_str()), "{stolen_aws}");
    assert_eq!(stolen_azure, "401");
    if aws.contains("/v2/credentials/") {
        assert_eq!(stolen_aws, "403");
    }
    // A container that the engine itself starts, on its own bridge.
    let stranger = raw(&["run", "-d", &image, "sleep", "300"]);
    let _stranger = Made("container", stranger.clone());
    assert_eq!(ask(&stranger), ["000", "000"]);
    raw(&["rm", "-f", &owner]);
    // The owner's secret became invalid with the owner's end.
    assert_eq!(ask(&twin)[1], "401");
}
