//! The golden cases of the metadata protocols, for every runner: the pure step, loopback, the relay.
//!
//! A case is `tests/golden/metadata/NAME.http` for Google's tree. The folders `aws`, `azure` and `absent` (Google's
//! tree for a caller without Google) have the same format:
//!
//! ```text
//! # why this case exists, and where the expectation comes from
//! # asks: access EMAIL scopes=a,b form=json      the step must ask for this token; `exactly` if for no other
//! # waits: 60s                                   the step has to wait this long, then reply as below
//! # given: Transient the text                    what `failure_reply` is called with, in place of a token
//! # after: 60                                    the seconds after which a retry may succeed
//! # server: strict                               on a wire: the server to ask, from `support::wire`
//! # clouds: google                               the clouds of the identity, if not all; `aws-own` is the
//!                                                host's own session
//! # entered: SECRET                              the listener has removed this from the path; `-`: it is open
//! # step only: why no listener can be sent this
//! GET /path HTTP/1.1                             lines end in CRLF on the wire, in LF here
//! Name: value
//!
//! HTTP/1.1 200 OK
//! Name: value                                    all of them, in order, but for Date
//!
//! exactly Content-Length bytes and one newline that is not part of the body
//! ```
//!
//! `{token}` is a token of IMDSv2 for six hours from [`now`], `{short-token}` one for ten minutes,
//! `{expired-token}` an expired one, and `{foreign-token}` that of another lease.
//!
//! For HEAD the body is what GET would return; on the wire it is left out. A runner over a wire puts its own
//! `expires_in` into the reply of a case that asks for an access token.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use hyper::header::{HOST, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method};
use kfp_creds::metadata::{
    self, Account, AwsView, AzureView, Entered, RequestHead, Step, TokenFailure, View,
};
use kfp_creds::secret::Secret;
use kfp_creds::token::{
    AccessToken, AwsSession, AzureToken, Deadline, IdentityToken, MintId, Now, RenderedReply, Scopes,
};

pub(crate) const ACCESS_TOKEN: &str = "ya29.golden-access-token";
pub(crate) const IDENTITY_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJnb2xkZW4ifQ.Z29sZGVuLXNpZ25hdHVyZQ";

#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) why: String,
    /// As on the wire, with the blank line at its end.
    pub(crate) request: Vec<u8>,
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) asks: Option<String>,
    pub(crate) waits: Option<String>,
    pub(crate) given: Option<(TokenFailure, String)>,
    /// The value of Retry-After.
    pub(crate) after: Option<Duration>,
    /// What a server needs for this case in addition.
    pub(crate) server: Option<String>,
    /// The clouds of the identity, if not all.
    pub(crate) clouds: Option<String>,
    /// The secret before the path.
    pub(crate) entered: Option<String>,
    /// Why only `step()` can run this case.
    pub(crate) step_only: Option<String>,
}

/// The owned parts of a request head, as a listener has them.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) host: Option<String>,
    pub(crate) headers: HeaderMap,
}

/// All cases of Google's tree, by name.
pub(crate) fn cases() -> Vec<Case> {
    cases_in("metadata")
}

/// The cases of a folder, by name. Panics on a file in another format: a skipped case would look like a
/// passed one.
pub(crate) fn cases_in(folder: &str) -> Vec<Case> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
    let mut paths: Vec<_> =
        fs::read_dir(&directory).expect("the folder of cases").map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let name =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".http"));
            let name = name.unwrap_or_else(|| panic!("{} does not end in .http", path.display()));
            parse(name, &with_tokens(&fs::read_to_string(path).unwrap()))
                .unwrap_or_else(|wrong| panic!("{name}.http: {wrong}"))
        })
        .collect()
}

/// Replaces the placeholders of IMDSv2 tokens with tokens that are made as a client gets them.
fn with_tokens(text: &str) -> String {
    if !text.contains("token}") {
        return text.into();
    }
    let now = now();
    let made = |key: u8, ttl: u32, age: u64| {
        let mut view = view();
        if let Some(aws) = &mut view.aws {
            aws.session_key = Some(Arc::new(Secret::new([key; 32])));
        }
        let ttl = HeaderValue::from(ttl);
        let headers =
            HeaderMap::from_iter([(HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds"), ttl)]);
        let now = Now { wall: now.wall - Duration::from_secs(age), mono: now.mono };
        let (method, target, host) = (&Method::PUT, "/latest/api/token", Some("169.254.169.254"));
        let head = RequestHead { method, target, host, headers: &headers, entered: Entered::Address, now };
        match metadata::step(&head, &view) {
            Step::Reply(reply) if reply.status == 200 => {
                String::from_utf8(reply.body.into_bytes().to_vec()).unwrap()
            }
            other => panic!("no token: {other:?}"),
        }
    };
    text.replace("{token}", &made(7, 21_600, 0))
        .replace("{short-token}", &made(7, 600, 0))
        .replace("{expired-token}", &made(7, 60, 60))
        .replace("{foreign-token}", &made(8, 21_600, 0))
}

fn parse(name: &str, text: &str) -> Result<Case, String> {
    let comments: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("# ")).collect();
    let told = |key: &str| comments.iter().find_map(|line| line.strip_prefix(key)).map(String::from);
    let why: Vec<&str> = comments
        .iter()
        .copied()
        .filter(|line| {
            !["asks: ", "waits: ", "given: ", "after: ", "server: ", "clouds: ", "entered: ", "step only: "]
                .iter()
                .any(|key| line.starts_with(key))
        })
        .collect();
    let rest = &text[comments.iter().map(|line| line.len() + 3).sum::<usize>()..];
    let (request, rest) = rest.split_once("\n\n").ok_or("no blank line after the request")?;
    let (head, rest) = rest.split_once("\n\n").ok_or("no blank line after the response head")?;
    let mut head = head.lines();
    let status = head.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).ok_or("no status line")?;
    let headers: Vec<(String, String)> = head
        .map(|line| line.split_once(':').map(|(name, value)| (name.to_string(), value.trim().to_string())))
        .collect::<Option<_>>()
        .ok_or("a response header without a colon")?;
    let length = headers.iter().find(|(name, _)| name == "Content-Length").ok_or("no Content-Length")?;
    let length: usize = length.1.parse().map_err(|_| "Content-Length is no number")?;
    let body = rest.strip_suffix('\n').filter(|body| body.len() == length);
    if why.is_empty() {
        return Err("it does not say why it exists".into());
    }
    Ok(Case {
        name: name.into(),
        why: why.join(" "),
        request: format!("{}\r\n\r\n", request.replace('\n', "\r\n")).into_bytes(),
        status: status.get(..3).and_then(|code| code.parse().ok()).ok_or("no status code")?,
        body: body.ok_or("the body is not Content-Length bytes and a newline")?.into(),
        headers,
        asks: told("asks: "),
        waits: told("waits: "),
        given: told("given: ").map(|given| failure(&given)).transpose()?,
        after: told("after: ")
            .map(|after| after.parse().map(Duration::from_secs))
            .transpose()
            .map_err(|_| "after: no number")?,
        server: told("server: "),
        clouds: told("clouds: "),
        entered: told("entered: "),
        step_only: told("step only: "),
    })
}

fn failure(given: &str) -> Result<(TokenFailure, String), String> {
    let (kind, why) = given.split_once(' ').ok_or("given: without a text")?;
    let kind = match kind {
        "AccessRefused" => TokenFailure::AccessRefused,
        "IdentityRefused" => TokenFailure::IdentityRefused,
        "IdentityTransient" => TokenFailure::IdentityTransient,
        "NotFull" => TokenFailure::NotFull,
        "NotAllowedAudience" => TokenFailure::NotAllowedAudience,
        "TooMany" => TokenFailure::TooMany,
        "Transient" => TokenFailure::Transient,
        "UnknownCaller" => TokenFailure::UnknownCaller,
        _ => return Err(format!("no failure is called {kind}")),
    };
    Ok((kind, why.into()))
}

impl Case {
    /// The view for this case.
    pub(crate) fn view(&self) -> View {
        let mut view = view();
        let Some(clouds) = &self.clouds else { return view };
        let has = |cloud: &str| clouds.split(' ').any(|own| own == cloud);
        view.google = has("google");
        view.aws = view.aws.filter(|_| has("aws") || has("aws-own")).map(|aws| match has("aws-own") {
            true => AwsView { role: "kfp-creds".into(), role_arn: None, account: None, region: None, ..aws },
            false => aws,
        });
        view.azure = view.azure.filter(|_| has("azure"));
        view
    }

    /// How the listener admitted the caller.
    pub(crate) fn entered(&self) -> Entered<'_> {
        match self.entered.as_deref() {
            None => Entered::Address,
            Some("-") => Entered::Open,
            Some(secret) => Entered::Secret(secret),
        }
    }

    pub(crate) fn head(&self) -> Head {
        let text = String::from_utf8(self.request.clone()).unwrap();
        let mut lines = text.lines();
        let mut words = lines.next().unwrap().split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let headers: HeaderMap = lines
            .take_while(|line| !line.is_empty())
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap();
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                (name, HeaderValue::from_str(value.trim()).unwrap())
            })
            .collect::<Vec<_>>()
            .into_iter()
            .fold(HeaderMap::new(), |mut headers, (name, value)| {
                headers.append(name, value);
                headers
            });
        let host = headers.get(HOST).map(|host| host.to_str().unwrap().to_string());
        Head { method: method.parse().unwrap(), target: target.into(), host, headers }
    }
}

/// The secret of the golden lease.
const SECRET: &str = "golden-secret-of-the-lease";

/// The time of the cases of AWS and Azure: 2026-11-30T12:00:00Z.
pub(crate) fn now() -> Now {
    Now { wall: UNIX_EPOCH + Duration::from_secs(1_796_040_000), ..Now::read() }
}

/// The view for all cases.
pub(crate) fn view() -> View {
    let strings = |values: &[&str]| values.iter().map(ToString::to_string).collect::<Vec<_>>();
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<_, _> {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    };
    View {
        project_id: "golden-project".into(),
        numeric_project_id: 987_654_321_098,
        zone: "europe-west4-b".into(),
        instance_id: 7_015_181_712_655_481_713,
        instance_name: "golden-vm".into(),
        description: "Tom & \"Jerry\" <b>é</b>".into(),
        tags: strings(&["http-server", "kfp"]),
        licenses: strings(&["5543610867827062957"]),
        attributes: map(&[("a-key", "007"), ("user-data", "line one\nline \"two\"\n")]),
        project_attributes: map(&[("fleet", "test")]),
        accounts: vec![
            Account {
                email: "golden@golden-project.iam.gserviceaccount.com".into(),
                scopes: Scopes::parse(
                    "https://www.googleapis.com/auth/cloud-platform,https://www.googleapis.com/auth/bigquery",
                ),
                service_account: None,
            },
            Account {
                email: "123-compute@developer.gserviceaccount.com".into(),
                scopes: Scopes::parse("https://www.googleapis.com/auth/devstorage.read_only"),
                service_account: Some("123-compute@developer.gserviceaccount.com".into()),
            },
        ],
        hosts: Arc::from(["127.0.0.1".to_string(), "localhost:8174".to_string()]),
        ip: "169.254.168.7".into(),
        gateway: "169.254.168.1".into(),
        aws: Some(AwsView {
            role: "golden-role".into(),
            role_arn: Some("arn:aws:iam::123456789012:role/team/golden-role".into()),
            account: Some("123456789012".into()),
            region: Some("eu-west-1".into()),
            secret: Some(Arc::new(Secret::new(SECRET.into()))),
            session_key: Some(Arc::new(Secret::new([7; 32]))),
        }),
        azure: Some(AzureView {
            client_id: Some("11111111-2222-3333-4444-555555555555".into()),
            tenant: Some("99999999-8888-7777-6666-555555555555".into()),
            subscription: "00000000-0000-0000-0000-000000000000".into(),
            vm_id: "01234567-89ab-cdef-0123-456789abcdef".into(),
            secret: Some(Arc::new(Secret::new(SECRET.into()))),
        }),
        ..View::default()
    }
}

/// It expires in 3 521.9 seconds, which must be shown as 3521.
pub(crate) fn access_token(now: Now) -> AccessToken {
    let expires = Deadline::after(now, Duration::from_millis(3_521_900));
    AccessToken::new(Secret::new(ACCESS_TOKEN.into()), expires, Scopes::default())
}

pub(crate) fn identity_token(now: Now) -> IdentityToken {
    IdentityToken {
        value: Secret::new(IDENTITY_TOKEN.into()),
        expires: Deadline::after(now, Duration::from_secs(3600)),
        id: MintId::random(),
    }
}

/// It lives as long as [`access_token`], and its account is that of the view.
pub(crate) fn aws_session(now: Now) -> AwsSession {
    let secret = |text: &str| Secret::new(text.to_string());
    AwsSession {
        access_key_id: secret("golden-key-id"),
        secret_access_key: secret("golden-secret-key"),
        session_token: secret("golden-session-token"),
        expires: Deadline::after(now, Duration::from_millis(3_521_900)),
        account: None,
        user_id: None,
        id: MintId::random(),
        shown: RenderedReply::default(),
    }
}

/// It lives as long as [`access_token`].
pub(crate) fn azure_token(now: Now) -> AzureToken {
    AzureToken {
        value: Secret::new("golden-azure-token".into()),
        expires: Deadline::after(now, Duration::from_millis(3_521_900)),
        resource: "not shown".into(),
        client_id: None,
        id: MintId::random(),
        shown: RenderedReply::default(),
    }
}
