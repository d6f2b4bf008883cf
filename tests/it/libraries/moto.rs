//! `cut-off --deny-aws` with moto's IAM, which checks signatures, permissions and the form of policies. moto
//! also makes the session and judges its calls.
//!
//! moto (5.2) has no `aws:userid` for policies, and denies if it cannot judge a condition. So it denies every
//! session of the role; the fake of `aws_source` and AWS's documentation show that the policy denies only
//! one.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use kfp_creds::cloud::AwsIdentity;
use kfp_creds::source::aws::{Aws, AwsCredentials, AwsRequest, AwsSettings, AwsSource, Deny, session_name};
use kfp_creds::token::AwsSession;
use kfp_creds::workload::ContainerId;
use serde_json::{Value, json};

use super::busy::python_of_clouds;
use crate::minting::upstream;

struct Moto {
    child: Child,
    lines: BufReader<ChildStdout>,
    about: Value,
}

impl Moto {
    fn start() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/clients/iam.py");
        let mut command = Command::new(python_of_clouds());
        command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut moto = Self { child, lines, about: Value::Null };
        moto.about = moto.line();
        moto
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn call(&mut self, keys: &Value, call: &str, name: &str) -> Value {
        let asked = json!({ "keys": keys, "call": call, "name": name });
        writeln!(self.child.stdin.as_mut().unwrap(), "{asked}").unwrap();
        self.line()
    }

    fn text(&self, pointer: &str) -> String {
        self.about.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{pointer}")).into()
    }

    /// The person's keys, as boto3 takes them.
    fn person(&self) -> Value {
        json!({
            "aws_access_key_id": self.text("/keys/AWS_ACCESS_KEY_ID"),
            "aws_secret_access_key": self.text("/keys/AWS_SECRET_ACCESS_KEY"),
        })
    }

    fn source(&self) -> Aws {
        let [id, secret] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        let mut variables: Vec<(String, String)> = vec![("AWS_REGION".into(), "eu-west-1".into())];
        variables.extend([id, secret].map(|name| (name.into(), self.text(&format!("/keys/{name}")))));
        for service in ["IAM", "STS"] {
            variables.push((format!("AWS_ENDPOINT_URL_{service}"), self.text("/url")));
        }
        let settings =
            AwsSettings { credentials: AwsCredentials::Environment, region: None, sts: None, iam: None };
        Aws::open(&settings, &variables.into_iter().collect(), None, upstream(), None).unwrap()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // moto ends when its stdin ends.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn ask(role: &str, digit: &str) -> AwsRequest {
    let container = ContainerId::parse(&digit.repeat(64)).unwrap();
    AwsRequest {
        identity: Arc::new(AwsIdentity { role: Some(role.into()), ..AwsIdentity::default() }),
        session_name: session_name("load", &container),
        tags: vec![],
        holder: Some(container),
    }
}

fn keys(session: &AwsSession) -> Value {
    json!({
        "aws_access_key_id": session.access_key_id.expose(),
        "aws_secret_access_key": session.secret_access_key.expose(),
        "aws_session_token": session.session_token.expose(),
    })
}

#[tokio::test]
async fn motos_iam_takes_the_policy_and_denies_the_session() {
    let mut moto = Moto::start();
    let (role, person, aws) = (moto.text("/role"), moto.person(), moto.source());
    let session = aws.session(&ask(&role, "a")).await.unwrap();
    let user_id = session.user_id.clone().unwrap();
    assert!(user_id.ends_with(":kfp-load-aaaaaaaaaaaa"), "{user_id}");
    assert_eq!(moto.call(&keys(&session), "list", ""), "listed");
    assert_eq!(moto.call(&person, "list", ""), "AccessDenied", "moto does not look at who asks");

    let deny = Deny { role: role.clone(), user_ids: vec![user_id.clone()] };
    for _ in 0..2 {
        aws.deny(&deny).await.unwrap();
        assert_eq!(moto.call(&keys(&session), "list", ""), "AccessDenied");
    }
    let policies = moto.call(&person, "policies", "");
    let statement = json!({
        "Effect": "Deny", "Action": "*", "Resource": "*",
        "Condition": { "StringEquals": { "aws:userid": [user_id] } },
    });
    let policy = json!({ "Version": "2012-10-17", "Statement": [statement] });
    assert_eq!((policies.as_object().unwrap().len(), &policies[deny.policy_name()]), (2, &policy));
    // If this fails, moto knows `aws:userid` by now, and the head of this file and tested.md can say more.
    let other = aws.session(&ask(&role, "b")).await.unwrap();
    assert_eq!(moto.call(&keys(&other), "list", ""), "AccessDenied");

    // The command prints how to undo the denial with this policy, so the policy caused it.
    assert_eq!(moto.call(&person, "undo", &deny.policy_name()), "removed");
    assert_eq!(moto.call(&keys(&session), "list", ""), "listed");
}
