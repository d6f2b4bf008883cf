//! What the proxy adds to a create for AWS and Azure, and which settings keep clients from asking the
//! metadata server.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::judge::{Verdict, judge};
use super::question::Question;
use super::{RelayAt, Wiring, json as strict};
use crate::cloud::{AwsIdentity, AzureIdentity};
use crate::loopback::Paths;
use crate::metadata::{self, AwsView, AzureView, Entered, RequestHead, Step, View};
use crate::policy::Decision;
use crate::secret::Secret;
use crate::token::Now;
use crate::workload::{By, Identity};

const RELAY: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// What a case sets of the identity, the relay and the path.
#[derive(Clone, Copy)]
struct Case<'a> {
    google: bool,
    aws: bool,
    azure: bool,
    /// Whether the relay has the address of container credentials.
    credentials_address: bool,
    path: Option<&'a str>,
}

const ALL: Case<'_> = Case { google: true, aws: true, azure: true, credentials_address: true, path: None };

fn judged(body: &Value, image: &[&str], case: Case<'_>) -> (Vec<String>, Value) {
    let mut body = strict::parse(body.to_string().as_bytes()).unwrap();
    strict::canonical(&mut body, strict::CREATE).unwrap();
    let identity = Identity {
        google: case.google,
        aws: case.aws.then(|| Arc::new(AwsIdentity::default())),
        azure: case.azure.then(|| Arc::new(AzureIdentity::default())),
        ..Identity::default()
    };
    let wiring = Wiring {
        at: RelayAt { address: RELAY, container_credentials: case.credentials_address },
        names: vec!["metadata.google.internal".into()],
        project: Some("proj".into()),
        quota_project: None,
        aws_region: Some("eu-west-1".into()),
    };
    let image: Vec<String> = image.iter().map(ToString::to_string).collect();
    let question = Question {
        mounts: &[],
        decision: &Decision::Attach(Arc::new(identity), By::Default),
        name: None,
        image_env: &image,
        neighbours: &HashMap::new(),
        our_networks: &HashSet::new(),
        wiring: &wiring,
        session: "0123abcd",
        mode: "run",
        alone: false,
        path: case.path,
        secret: Some("s3cret"),
        linked: None,
        joins: None,
    };
    match judge(&mut body, &question) {
        Verdict::Attach { notices, .. } => (notices, body),
        other => panic!("{other:?}"),
    }
}

fn env(body: &Value) -> HashMap<String, String> {
    let all = body["Env"].as_array().unwrap().iter().filter_map(|entry| entry.as_str()?.split_once('='));
    all.map(|(name, value)| (name.into(), value.into())).collect()
}

fn plain() -> Value {
    json!({"Image": "i", "HostConfig": {}})
}

#[test]
fn each_cloud_of_the_identity_is_in_the_environment() {
    let (notices, body) = judged(&plain(), &[], ALL);
    let env = env(&body);
    assert_eq!(notices, Vec::<String>::new());
    for (name, value) in [
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/s3cret"),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_DEFAULT_REGION", "eu-west-1"),
        ("IDENTITY_ENDPOINT", "http://169.254.169.254/msi/token"),
        ("IDENTITY_HEADER", "s3cret"),
        ("GCE_METADATA_HOST", "169.254.169.254"),
        ("NO_PROXY", "metadata.google.internal,169.254.169.254,169.254.170.2"),
    ] {
        assert_eq!(env[name], value, "{name}");
    }
    assert!(!env.contains_key("AWS_EC2_METADATA_SERVICE_ENDPOINT") && !env.contains_key("AZURE_CLIENT_ID"));
}

#[test]
fn a_cloud_that_the_identity_lacks_adds_nothing() {
    let (_, body) = judged(&plain(), &[], Case { google: false, azure: false, ..ALL });
    let env = env(&body);
    let names = |start: &str| env.keys().filter(|name| name.starts_with(start)).count();
    assert_eq!(
        (names("GCE_"), names("GOOGLE_"), names("CPL_"), names("IDENTITY_"), names("AWS_")),
        (0, 0, 0, 0, 3)
    );
    assert!(body["HostConfig"]["ExtraHosts"].is_null(), "{body}");
    let (_, body) = judged(&plain(), &[], Case { aws: false, ..ALL });
    assert!(!super::clouds_tests::env(&body).keys().any(|name| name.starts_with("AWS_")));
}

#[test]
fn aws_clients_use_imds_without_the_credentials_address() {
    let (_, body) = judged(&plain(), &[], Case { credentials_address: false, ..ALL });
    let env = env(&body);
    // Version 2 of AWS's command line appends a path without a slash, object_store one with it.
    assert_eq!(env["AWS_EC2_METADATA_SERVICE_ENDPOINT"], "http://169.254.169.254/");
    assert_eq!(env["AWS_METADATA_ENDPOINT"], "http://169.254.169.254");
    assert!(!env.contains_key("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"));
    assert!(!env["NO_PROXY"].contains("169.254.170.2"));
}

#[test]
fn on_the_hosts_network_urls_contain_the_loopback_path() {
    let body = json!({"Image": "i", "HostConfig": {"NetworkMode": "host"}});
    let (_, body) = judged(&body, &[], Case { path: Some("127.0.0.1:81/p4th"), ..ALL });
    let env = env(&body);
    assert_eq!(env["AWS_CONTAINER_CREDENTIALS_FULL_URI"], "http://127.0.0.1:81/p4th/v2/credentials");
    assert_eq!(env["AWS_METADATA_ENDPOINT"], "http://127.0.0.1:81/p4th");
    assert_eq!(env["IDENTITY_ENDPOINT"], "http://127.0.0.1:81/p4th/msi/token");
    assert!(!env.contains_key("AWS_EC2_METADATA_SERVICE_ENDPOINT"), "the JavaScript client drops the path");
}

/// The server's step for a GET of this target.
fn step_for(target: &str, entered: Entered<'_>, header: Option<&str>) -> Step {
    let secret = Some(Arc::new(Secret::new("s3cret".to_string())));
    let aws = AwsView {
        role: "loader".into(),
        role_arn: None,
        account: None,
        region: None,
        secret: secret.clone(),
        session_key: None,
    };
    let azure = AzureView {
        client_id: None,
        tenant: None,
        subscription: String::new(),
        vm_id: String::new(),
        secret,
    };
    let view = View { aws: Some(aws), azure: Some(azure), ..View::default() };
    let mut headers = hyper::HeaderMap::new();
    if let Some(header) = header {
        headers.insert("x-identity-header", header.parse().unwrap());
    }
    let method = &hyper::Method::GET;
    let head = RequestHead { method, target, host: None, headers: &headers, entered, now: Now::read() };
    metadata::step(&head, &view)
}

#[test]
fn the_server_answers_at_the_urls_in_the_environment() {
    const RESOURCE: &str = "?api-version=2019-08-01&resource=https://storage.azure.com";
    let (_, body) = judged(&plain(), &[], ALL);
    let own = env(&body);
    let uri = &own["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"];
    assert!(matches!(step_for(uri, Entered::Address, None), Step::AwsSession(_)), "{uri}");
    let token =
        own["IDENTITY_ENDPOINT"].strip_prefix("http://169.254.169.254").unwrap().to_owned() + RESOURCE;
    let step = step_for(&token, Entered::Address, Some(&own["IDENTITY_HEADER"]));
    assert!(matches!(step, Step::AzureToken(_)), "{token}: {step:?}");

    let paths = Paths::new("127.0.0.1:81".parse().unwrap());
    let path = paths.take().unwrap();
    let body = json!({"Image": "i", "HostConfig": {"NetworkMode": "host"}});
    let (_, body) = judged(&body, &[], Case { path: Some(&path.place()), ..ALL });
    let own = env(&body);
    let behind = |url: &str| url.strip_prefix("http://127.0.0.1:81").unwrap().to_owned();
    let uri = behind(&own["AWS_CONTAINER_CREDENTIALS_FULL_URI"]);
    let (_, secret, rest) = paths.find(&uri).unwrap();
    let step = step_for(rest, Entered::Secret(secret), None);
    assert!(matches!(step, Step::AwsSession(_)), "{rest}: {step:?}");
    let token = behind(&own["IDENTITY_ENDPOINT"]) + RESOURCE;
    let (_, secret, rest) = paths.find(&token).unwrap();
    let step = step_for(rest, Entered::Secret(secret), Some(&own["IDENTITY_HEADER"]));
    assert!(matches!(step, Step::AzureToken(_)), "{rest}: {step:?}");
}

#[test]
fn settings_of_the_user_stay_and_are_reported() {
    let body = json!({
        "Image": "i",
        "Env": ["AWS_PROFILE=dev", "AWS_REGION=us-east-1", "IDENTITY_ENDPOINT=http://elsewhere/", "MSI_ENDPOINT=",
                "AZURE_TOKEN_CREDENTIALS=DEV"],
        "HostConfig": {"Binds": ["/home/me/.aws:/root/.aws:ro"]},
    });
    let (notices, changed) = judged(&body, &["AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1/x"], ALL);
    let env = env(&changed);
    assert_eq!(env["AWS_REGION"], "us-east-1");
    assert!(!env.contains_key("AWS_DEFAULT_REGION"), "two regions in one container");
    assert_eq!(env["IDENTITY_ENDPOINT"], "http://elsewhere/");
    assert!(
        !env.contains_key("IDENTITY_HEADER") && !env.contains_key("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
    );
    let reported: HashSet<&str> = notices.iter().map(String::as_str).collect();
    let expected = [
        "AWS_PROFILE is set",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI is set",
        "IDENTITY_ENDPOINT is set",
        "AZURE_TOKEN_CREDENTIALS is dev",
        "a directory of AWS's tools is mounted at /root/.aws",
    ];
    assert_eq!(reported, HashSet::from(expected));
    let (notices, _) = judged(&body, &[], Case { aws: false, azure: false, ..ALL });
    assert_eq!(notices, Vec::<String>::new(), "settings for clouds that the identity lacks are not reported");
}

#[test]
fn disabled_imds_is_reported_only_where_clients_need_it() {
    let body = json!({"Image": "i", "Env": ["AWS_EC2_METADATA_DISABLED=true"], "HostConfig": {}});
    assert_eq!(judged(&body, &[], ALL).0, Vec::<String>::new());
    let (notices, _) = judged(&body, &[], Case { credentials_address: false, ..ALL });
    assert_eq!(notices, ["AWS_EC2_METADATA_DISABLED is set"]);
}

#[test]
fn other_imds_endpoints_are_reported_where_imds_is_used() {
    let set =
        ["AWS_EC2_METADATA_SERVICE_ENDPOINT=http://192.0.2.1", "AWS_METADATA_ENDPOINT=http://192.0.2.1"];
    assert_eq!(judged(&plain(), &set, ALL).0, Vec::<String>::new());
    let (notices, _) = judged(&plain(), &set, Case { credentials_address: false, ..ALL });
    assert_eq!(notices, ["AWS_EC2_METADATA_SERVICE_ENDPOINT is set", "AWS_METADATA_ENDPOINT is set"]);
    let body = json!({"Image": "i", "Env": ["AWS_EC2_METADATA_DISABLED=true"], "HostConfig": {"NetworkMode": "host"}});
    let case = Case { path: Some("127.0.0.1:81/p4th"), credentials_address: false, ..ALL };
    assert_eq!(judged(&body, &set, case).0, ["AWS_METADATA_ENDPOINT is set"]);
}

#[test]
fn an_identity_header_without_endpoint_is_reported() {
    let (notices, body) = judged(&plain(), &["IDENTITY_HEADER=theirs"], ALL);
    assert_eq!(notices, ["IDENTITY_HEADER is set"]);
    assert!(!env(&body).contains_key("IDENTITY_ENDPOINT"));
}
