//! The keys of AWS's and Azure's trees, as `docs/reference/metadata.md` lists them.

use std::fmt::Write as _;

use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Method};
use kfp_creds::metadata::{self, Entered, Reply, RequestHead, Step, View};

use crate::support::golden;

fn step(method: &Method, target: &str, header: (&'static str, &str), view: &View) -> Step {
    let value = HeaderValue::from_str(header.1).unwrap();
    let headers = HeaderMap::from_iter([(HeaderName::from_static(header.0), value)]);
    let (host, now) = (Some("169.254.169.254"), golden::now());
    metadata::step(
        &RequestHead { method, target, host, headers: &headers, entered: Entered::Address, now },
        view,
    )
}

fn text(reply: Reply) -> String {
    assert_eq!(reply.status, 200);
    String::from_utf8(reply.body.into_bytes().to_vec()).unwrap()
}

/// What a container gets at a path of IMDSv2; `None` for credentials.
fn imds(path: &str, view: &View) -> Option<String> {
    let ttl = ("x-aws-ec2-metadata-token-ttl-seconds", "60");
    let Step::Reply(token) = step(&Method::PUT, "/latest/api/token", ttl, view) else { panic!("no token") };
    match step(&Method::GET, path, ("x-aws-ec2-metadata-token", &text(token)), view) {
        Step::Reply(reply) => Some(text(reply)),
        Step::AwsSession(_) => None,
        other => panic!("{path}: {other:?}"),
    }
}

/// Every key below a directory that the listings name.
fn crawl(directory: &str, view: &View, found: &mut Vec<(String, Option<String>)>) {
    for name in imds(directory, view).unwrap().lines() {
        let path = format!("{directory}{name}");
        match name.ends_with('/') {
            true if path.ends_with("/security-credentials/") => {
                let role = imds(&path, view).unwrap();
                assert_eq!(imds(&format!("{path}{role}"), view), None);
                found.extend([(path.clone(), Some(role)), (format!("{path}ROLE"), None)]);
            }
            true => crawl(&path, view, found),
            false => found.push((path.clone(), imds(&path, view))),
        }
    }
}

/// What sets the value of a key.
fn said_by(key: &str) -> &'static str {
    match key.rsplit('/').next().unwrap_or_default() {
        "hostname" => "the container's address, `region` in `[aws]`",
        "local-ipv4" | "mac" => "the container's address",
        "instance-id" => "the container's id",
        "availability-zone" | "region" => "`region` in `[aws]`; without one there is no such key",
        "domain" | "partition" => "the identity's `aws.role`, else `region`",
        "info" | "document" => "all of these",
        "" | "ROLE" => "the identity's `aws.role`",
        _ => "",
    }
}

/// The part of `docs/reference/metadata.md` on AWS and Azure.
pub(crate) fn trees() -> String {
    let mut text = String::from(
        "\n## AWS\n\n\
         These paths exist only for identities with `[identity.NAME.aws]`. For others, every path below `/latest` and `/v2` is a 403 with one line.\n\n\
         | request | reply |\n| --- | --- |\n\
         | `GET /v2/credentials/SECRET` at 169.254.170.2 or the relay | a session, as the agent of Amazon's container service gives it; \
         another secret is a 403. `SECRET` is the lease's own, in `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` |\n\
         | `PUT /latest/api/token` with `X-aws-ec2-metadata-token-ttl-seconds` (1 \u{2026} 21600) | a token of IMDSv2, valid for this lease alone; 400 \
         for another lifetime |\n\
         | `GET /latest/\u{2026}` with `X-aws-ec2-metadata-token` | the keys below; 401 without a valid token (there is no IMDSv1), 404 for all \
         other keys, `user-data` among them |\n\n\
         A refused session is a 403 with `Code` and `Message` in the container form, and a 200 with `Code` and `Message` at IMDSv2, where \
         clients show no\nother text. A failure that may be temporary is a 503. Below the secret path of `serve --listen` the container form is \
         `/SECRET/v2/credentials`.\n\n\
         | key | example | set by |\n| --- | --- | --- |\n",
    );
    let view = golden::view();
    let mut keys = vec![];
    crawl("/latest/meta-data/", &view, &mut keys);
    crawl("/latest/dynamic/", &view, &mut keys);
    for (key, value) in keys {
        let shown = value.map_or_else(|| "minted: a session".into(), |value| format!("`{value}`"));
        writeln!(text, "| `{key}` | {shown} | {} |", said_by(&key)).unwrap();
    }
    let metadata = ("metadata", "true");
    let azure = |path: &str| match step(&Method::GET, path, metadata, &view) {
        Step::Reply(reply) => self::text(reply),
        other => panic!("{path}: {other:?}"),
    };
    write!(
        text,
        "\n`iam/security-credentials-extended/` is served, but not listed. One slash at the end of a path makes no \
         difference,\nand doubled slashes count as one.\n\n\
         ## Azure\n\n\
         These paths exist only for identities with `[identity.NAME.azure]`. For others, every path below `/metadata` and `/msi` is a 400 with JSON.\n\n\
         | request | reply |\n| --- | --- |\n\
         | `GET /msi/token?api-version=\u{2026}&resource=R` with `X-IDENTITY-HEADER` | a token, as App Service gives it; 401 for another header. \
         Its value is the lease's own, in `IDENTITY_HEADER`; behind the secret path of `serve --listen` it is that secret |\n\
         | `GET /metadata/identity/oauth2/token?api-version=\u{2026}&resource=R` with `Metadata: true` | a token, as the instance metadata service \
         gives it |\n\
         | `GET /metadata/identity/info?api-version=\u{2026}` with `Metadata: true` | `{}` |\n\
         | `GET /metadata/instance?api-version=\u{2026}` with `Metadata: true` | `{}` |\n\n\
         `client_id` may be that of the identity; another one, and any `object_id`, `principal_id`, `mi_res_id` or `msi_res_id`, is a \
         400. `R` has to be one of\nthe identity's `azure.resources`, if there are any: else 403 at App Service, 400 at the metadata service. \
         A failure that may pass is a 503. Below\n`/metadata` no answer is a 404, because clients retry after a 404.\n",
        azure("/metadata/identity/info?api-version=2018-02-01"),
        azure("/metadata/instance?api-version=2021-02-01"),
    )
    .unwrap();
    text
}

#[test]
fn listed_keys_of_aws_are_there_with_and_without_a_slash() {
    let (view, mut keys) = (golden::view(), vec![]);
    crawl("/latest/meta-data/", &view, &mut keys);
    crawl("/latest/dynamic/", &view, &mut keys);
    assert!(keys.len() >= 13, "{keys:?}");
    for (key, value) in keys.iter().filter(|(key, _)| !key.ends_with("ROLE")) {
        assert!(!value.as_deref().unwrap_or_default().is_empty(), "{key}");
        let other = key.strip_suffix('/').map_or_else(|| format!("{key}/"), String::from);
        assert_eq!(&imds(&other, &view), value, "{other}");
    }
}
