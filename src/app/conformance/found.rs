//! Detects which clouds the target has, and collects what their cases need.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::time::timeout;

use super::PATIENCE;
use super::forms::{self, Form};
use super::wire::{self, ServerAnswer, TestedServer};
use crate::cloud::Cloud;
use crate::config::Environment;
use crate::secret::Secret;

const TOKEN: &str = "/latest/api/token";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
const AZURE: &str = "/metadata/identity/oauth2/token";

/// The clouds of a target besides Google, whose cases always run.
#[derive(Debug, Default)]
pub(super) struct FoundClouds {
    pub(super) aws: Option<FoundAws>,
    azure: bool,
    pub(super) container: Option<Form>,
    pub(super) app_service: Option<Form>,
}

#[derive(Debug)]
pub(super) struct FoundAws {
    /// A token of IMDSv2.
    pub(super) token: Secret<String>,
    pub(super) role: String,
}

impl FoundClouds {
    /// The target has AWS if it returns a token of IMDSv2, and Azure if it requires Azure's header. A target that does
    /// not answer has neither; the cases report that.
    pub(super) async fn look(target: &TestedServer, at: SocketAddr, env: &Environment) -> Self {
        let prefix = target.prefix();
        let asked = async |line: &str, header: &str| -> Option<ServerAnswer> {
            let (method, path) = line.split_once(' ')?;
            let request = format!(
                "{method} {prefix}{path} HTTP/1.1\r\nHost: 169.254.169.254\r\n{header}Connection: close\r\n\r\n"
            );
            timeout(PATIENCE, wire::exchange(at, &request, false)).await.ok()?.ok()
        };
        let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 300\r\n";
        let token = asked(&format!("PUT {TOKEN}"), ttl).await.and_then(value);
        let mut found = Self::default();
        if let Some(token) = token {
            let header = format!("X-aws-ec2-metadata-token: {token}\r\n");
            let role = asked(&format!("GET {ROLES}"), &header).await.and_then(value).unwrap_or_default();
            found.aws = Some(FoundAws { token: Secret::new(token), role });
        }
        found.azure = asked(&format!("GET {AZURE}"), "").await.is_some_and(|answer| misses_header(&answer));
        // Below a secret path the forms are there with their clouds.
        let (aws, azure) = (prefix.is_empty() || found.aws.is_some(), prefix.is_empty() || found.azure);
        found.container = forms::container(target, at, env).filter(|_| aws);
        found.app_service = forms::app_service(target, at, env).filter(|_| azure);
        found
    }

    pub(super) fn has(&self, cloud: Cloud) -> bool {
        match cloud {
            Cloud::Google => true,
            Cloud::Aws => self.aws.is_some(),
            Cloud::Azure => self.azure,
        }
    }
}

/// The body of a 200, if it can be a part of a request.
fn value(answer: ServerAnswer) -> Option<String> {
    let text = String::from_utf8(answer.body).ok()?;
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    (answer.status == 200 && plain && text.len() < 1024).then_some(text)
}

fn misses_header(answer: &ServerAnswer) -> bool {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let why = body["error_description"].as_str().unwrap_or_default();
    answer.status == 400 && why.contains("metadata header")
}
