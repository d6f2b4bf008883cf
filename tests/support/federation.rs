//! Workload and workforce identity federation at the wire: pools with their providers, and the security token
//! service (RFC 8693), which accepts or refuses tokens of their issuers for the same reasons as Google's. It
//! also has the sources of subject tokens: the token service of a CI system, AWS's metadata service, a URL.
//!
//! [`FakeGoogle`] is the IAM Credentials API, which accepts the tokens of this service.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::aws;
use super::fake_google::{Failure, FakeGoogle};
use super::issuer::{Issuer, seconds, verified};
use super::server_thread::ServerThread;

pub(crate) const POOL: &str = "projects/123456/locations/global/workloadIdentityPools/ci/providers/main";
pub(crate) const AUDIENCE: &str =
    "//iam.googleapis.com/projects/123456/locations/global/workloadIdentityPools/ci/providers/main";
pub(crate) const WORKFORCE: &str = "//iam.googleapis.com/locations/global/workforcePools/staff/providers/idp";
pub(crate) const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
pub(crate) const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
pub(crate) const SAML2: &str = "urn:ietf:params:oauth:token-type:saml2";
pub(crate) const AWS4: &str = "urn:ietf:params:aws:token-type:aws4_request";
pub(crate) const MTLS: &str = "urn:ietf:params:oauth:token-type:mtls";

/// Whom a provider trusts.
pub(crate) enum Trust {
    /// OpenID Connect: issuer, key set, audiences.
    Oidc { issuer: String, jwks: Value, audiences: Vec<String> },
    /// One assertion, as its base64.
    Saml { assertion: String },
    /// Keys of AWS: id, secret, session token; and the account they belong to.
    Aws { id: String, secret: String, session: Option<String>, region: String },
    /// The client certificate of the connection.
    Certificate,
}

pub(crate) struct Provider {
    pub(crate) trust: Trust,
    /// The attribute condition: claims and their required values.
    pub(crate) condition: Vec<(String, String)>,
}

/// A received request, reduced to what tests look at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) scope: Option<String>,
    pub(crate) options: Option<String>,
    pub(crate) status: u16,
}

#[derive(Default)]
struct State {
    providers: HashMap<String, Provider>,
    /// `id:secret` of a client of a workforce pool.
    client: Option<String>,
    /// The project that pays for a workforce pool without client.
    user_project: Option<String>,
    seen: Vec<Seen>,
    failures: VecDeque<Option<Failure>>,
    latency: Duration,
    expires_in: Option<u64>,
    endless: bool,
    token_type: Option<String>,
    secrets: Vec<(&'static str, String)>,
    /// What `/actions` signs for a request with its bearer token.
    actions: Option<(Issuer, String, Value)>,
    url_token: Option<String>,
    imds: Option<Imds>,
    /// How far this service's clock differs from the real one, in seconds.
    skew: i64,
}

pub(crate) struct Imds {
    pub(crate) zone: String,
    pub(crate) role: String,
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) session: String,
    /// Whether requests without a session token are refused (version 2).
    pub(crate) strict: bool,
}

/// A request, from either of the two listeners.
struct Asked<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    headers: HashMap<String, String>,
    body: &'a [u8],
    /// The leaf certificate that the client presented in TLS.
    shown: Option<Vec<u8>>,
}

type Refusal = (u16, String);

pub(crate) struct Federation {
    pub(crate) google: Arc<FakeGoogle>,
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _apart: ServerThread,
}

impl Federation {
    pub(crate) fn start() -> Self {
        let (google, state) = (Arc::new(FakeGoogle::start()), Arc::new(Mutex::new(State::default())));
        let served = (state.clone(), google.clone());
        let (address, apart) = ServerThread::serve(|listener| accept(listener, served));
        Self { google, address, state, _apart: apart }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn provider(&self, audience: &str, trust: Trust, condition: &[(&str, &str)]) {
        let condition = condition.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        self.set(|state| state.providers.insert(audience.into(), Provider { trust, condition }));
    }

    /// A provider for an issuer, with the audience that Google expects by default.
    pub(crate) fn trust(&self, audience: &str, issuer: &Issuer, condition: &[(&str, &str)]) {
        let audiences = vec![format!("https:{audience}"), audience.to_owned()];
        let trust = Trust::Oidc { issuer: issuer.url.clone(), jwks: issuer.jwks(), audiences };
        self.provider(audience, trust, condition);
    }

    pub(crate) fn client(&self, id: &str, secret: &str) {
        self.set(|state| {
            state.secrets.push(("a client secret", secret.into()));
            state.client = Some(format!("{id}:{secret}"));
        });
    }

    pub(crate) fn user_project(&self, project: &str) {
        self.set(|state| state.user_project = Some(project.into()));
    }

    /// Starts the token service of a CI system; returns the variables with its URL and bearer token.
    pub(crate) fn actions(&self, issuer: Issuer, subject: &str, more: Value) -> [(String, String); 2] {
        let bearer = "canary-actions-request-token".to_owned();
        self.set(|state| {
            state.secrets.push(("the ACTIONS request token", bearer.clone()));
            state.actions = Some((issuer, subject.into(), more));
        });
        let url = format!("{}/actions/token?api-version=2.0", self.url());
        [("ACTIONS_ID_TOKEN_REQUEST_URL".into(), url), ("ACTIONS_ID_TOKEN_REQUEST_TOKEN".into(), bearer)]
    }

    pub(crate) fn url_token(&self, token: &str) {
        self.set(|state| state.url_token = Some(token.into()));
    }

    /// The `credential_source` of a file that leads to [`Self::imds`].
    pub(crate) fn aws(&self) -> Value {
        let base = format!("{}/latest", self.url());
        json!({
            "environment_id": "aws1",
            "region_url": format!("{base}/meta-data/placement/availability-zone"),
            "url": format!("{base}/meta-data/iam/security-credentials"),
            "regional_cred_verification_url":
                "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15",
            "imdsv2_session_token_url": format!("{base}/api/token"),
        })
    }

    pub(crate) fn imds(&self, imds: Imds) {
        self.set(|state| {
            state.secrets.push(("an AWS secret key", imds.secret.clone()));
            state.secrets.push(("an AWS session token", imds.session.clone()));
            state.imds = Some(imds);
        });
    }

    pub(crate) fn fail(&self, failure: Failure) {
        self.set(|state| state.failures.push_back(Some(failure)));
    }

    /// Lets `after` requests succeed, and then sends `failure` `times` times.
    pub(crate) fn fail_later(&self, after: usize, failure: &Failure, times: usize) {
        self.set(|state| {
            state.failures.extend(std::iter::repeat_n(None, after));
            state.failures.extend(std::iter::repeat_n(Some(failure.clone()), times));
        });
    }

    pub(crate) fn unfail(&self) {
        self.set(|state| state.failures.clear());
    }

    pub(crate) fn latency(&self, latency: Duration) {
        self.set(|state| state.latency = latency);
    }

    pub(crate) fn clock_off_by(&self, seconds: i64) {
        self.set(|state| state.skew = seconds);
    }

    pub(crate) fn expires_in(&self, seconds: u64) {
        self.set(|state| state.expires_in = Some(seconds));
    }

    /// Whether answers leave out the lifetime.
    pub(crate) fn leave_lives_out(&self, yes: bool) {
        self.set(|state| state.endless = yes);
    }

    pub(crate) fn token_type(&self, kind: &str) {
        self.set(|state| state.token_type = Some(kind.into()));
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.set(|state| state.seen.clone())
    }

    /// How many requests for this path arrived.
    pub(crate) fn count(&self, path: &str) -> usize {
        self.seen().iter().filter(|seen| seen.path == path).count()
    }

    /// Everything secret, which must appear nowhere else.
    pub(crate) fn secrets(&self) -> Vec<(&'static str, String)> {
        let mut all = self.google.secrets();
        all.extend(self.set(|state| state.secrets.clone()));
        all
    }

    pub(crate) fn secret(&self, what: &'static str, value: &str) {
        self.set(|state| state.secrets.push((what, value.into())));
    }

    fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    /// The same service behind TLS, with `config` asking for a client certificate. Ends with the test
    /// process.
    pub(crate) fn behind_tls(&self, config: rustls::ServerConfig) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (state, google, config) = (self.state.clone(), self.google.clone(), Arc::new(config));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let mut session = rustls::ServerConnection::new(config.clone()).unwrap();
                let mut tls = rustls::Stream::new(&mut session, &mut stream);
                let Some((head, body)) = request(&mut tls) else { continue };
                let shown =
                    tls.conn.peer_certificates().and_then(|all| all.first()).map(|leaf| leaf.to_vec());
                let (line, rest) = head.split_once("\r\n").unwrap();
                let mut words = line.split(' ');
                let (method, target) = (words.next().unwrap(), words.next().unwrap());
                let (path, query) = target.split_once('?').unwrap_or((target, ""));
                let headers = rest.lines().filter_map(|line| line.split_once(": "));
                let headers =
                    headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
                let asked = Asked { method, path, query, headers, body: &body, shown };
                let failure = state.lock().unwrap().failures.pop_front().flatten();
                let (status, text) = match failure {
                    Some(Failure::Answer { status, body, .. }) => (status, body),
                    _ => answer(&state, &google, &asked),
                };
                let reply = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                    text.len()
                );
                let _ = tls.write_all(reply.as_bytes());
                tls.conn.send_close_notify();
                let _ = tls.flush();
            }
        });
        port
    }
}

/// Head and body of a request, as far as they arrive.
fn request(from: &mut impl Read) -> Option<(String, Vec<u8>)> {
    let mut all = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let read = from.read(&mut piece).ok().filter(|read| *read > 0)?;
        all.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&all).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok())?
        });
        if body.len() >= length.unwrap_or(0) {
            return Some((head.to_owned(), body.as_bytes().to_vec()));
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, served: (Arc<Mutex<State>>, Arc<FakeGoogle>)) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let served = served.clone();
        connections.spawn(async move {
            let service = service_fn(|request| serve(served.clone(), request));
            let http = hyper::server::conn::http1::Builder::new();
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn serve(
    (state, google): (Arc<Mutex<State>>, Arc<FakeGoogle>),
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let headers = head
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap_or_default().to_owned()));
    let asked = Asked {
        method: head.method.as_str(),
        path: head.uri.path(),
        query: head.uri.query().unwrap_or_default(),
        headers: headers.collect(),
        body: &body,
        shown: None,
    };
    let (latency, failure) = {
        let mut state = state.lock().unwrap();
        (state.latency, state.failures.pop_front().flatten())
    };
    tokio::time::sleep(latency).await;
    let (status, text) = match failure {
        None => answer(&state, &google, &asked),
        Some(failure) => {
            let (status, text) = match failure {
                Failure::Answer { status, body, .. } => (status, body),
                Failure::Huge(size) => (200, " ".repeat(size)),
                Failure::Hang | Failure::CutShort => (0, String::new()),
            };
            let seen = Seen { path: asked.path.into(), scope: None, options: None, status };
            state.lock().unwrap().seen.push(seen);
            if status == 0 {
                return std::future::pending().await;
            }
            (status, text)
        }
    };
    let mut reply = Response::builder().status(status).header("content-type", "application/json");
    let skew = state.lock().unwrap().skew;
    // The clock of a machine's metadata service does not matter; without a skew, hyper sets the Date.
    if skew != 0 && asked.method == "POST" {
        let now = time::OffsetDateTime::now_utc() + time::Duration::seconds(skew);
        let date = now.format(&time::format_description::well_known::Rfc2822).unwrap();
        reply = reply.header("date", date.replace("+0000", "GMT"));
    }
    Ok(reply.body(Full::new(Bytes::from(text))).unwrap())
}

fn answer(state: &Mutex<State>, google: &FakeGoogle, asked: &Asked<'_>) -> (u16, String) {
    let mut state = state.lock().unwrap();
    let form: HashMap<String, String> = url::form_urlencoded::parse(asked.body).into_owned().collect();
    let narrows = form.get("subject_token_type").is_some_and(|kind| kind == ACCESS_TOKEN);
    let outcome = match (asked.method, asked.path) {
        ("POST", "/v1/token") if narrows => {
            let authorization = asked.headers.get("authorization").map(String::as_str);
            let outcome = google.narrow(authorization, &form);
            outcome.map(|body| body.to_string()).map_err(|(status, body)| (status, body.to_string()))
        }
        ("POST", "/v1/token") => exchange(&mut state, google, asked, &form).map(|body| body.to_string()),
        ("POST", "/v1/introspect") => introspect(&state, google, asked, &form).map(|body| body.to_string()),
        ("GET", "/actions/token") => actions(&mut state, asked),
        ("GET", "/url/text" | "/url/json") => url_token(&state, asked),
        (_, path) if path.starts_with("/latest/") => imds(&state, asked),
        _ => Err((404, "not found".into())),
    };
    let (status, text) = match outcome {
        Ok(text) => (200, text),
        Err(refusal) => refusal,
    };
    let field = |name: &str| form.get(name).cloned();
    state.seen.push(Seen {
        path: asked.path.into(),
        scope: field("scope"),
        options: field("options"),
        status,
    });
    (status, text)
}

fn oauth(status: u16, error: &str) -> Refusal {
    (status, json!({"error": error, "error_description": "canary-in-a-description"}).to_string())
}

/// Whether the request has `Basic` with the client's own pair, in the usual alphabet of base64.
fn is_client(state: &State, asked: &Asked<'_>) -> Result<bool, Refusal> {
    let Some(value) = asked.headers.get("authorization") else { return Ok(false) };
    let pair = value.strip_prefix("Basic ").and_then(|value| STANDARD.decode(value).ok());
    match (pair, &state.client) {
        (Some(pair), Some(client)) if pair == client.as_bytes() => Ok(true),
        _ => Err(oauth(401, "invalid_client")),
    }
}

fn exchange(
    state: &mut State,
    google: &FakeGoogle,
    asked: &Asked<'_>,
    form: &HashMap<String, String>,
) -> Result<Value, Refusal> {
    let field = |name: &str| form.get(name).map(String::as_str).ok_or_else(|| oauth(400, "invalid_request"));
    if asked.headers.get("content-type").is_none_or(|kind| kind != "application/x-www-form-urlencoded") {
        return Err(oauth(400, "invalid_request"));
    }
    let client = is_client(state, asked)?;
    if field("grant_type")? != "urn:ietf:params:oauth:grant-type:token-exchange" {
        return Err(oauth(400, "unsupported_grant_type"));
    }
    if field("requested_token_type")? != "urn:ietf:params:oauth:token-type:access_token" {
        return Err(oauth(400, "invalid_request"));
    }
    let (audience, subject, kind) =
        (field("audience")?, field("subject_token")?, field("subject_token_type")?);
    let scopes: BTreeSet<String> =
        field("scope")?.split(' ').filter(|one| !one.is_empty()).map(String::from).collect();
    if scopes.is_empty() {
        return Err(oauth(400, "invalid_scope"));
    }
    if audience.contains("/workforcePools/") && !client {
        let options: Value =
            serde_json::from_str(field("options")?).map_err(|_| oauth(400, "invalid_request"))?;
        if options["userProject"].as_str() != state.user_project.as_deref() {
            return Err(oauth(403, "access_denied"));
        }
    }
    state.secrets.push(("a subject token", subject.to_owned()));
    let provider = state.providers.get(audience).ok_or_else(|| oauth(400, "invalid_target"))?;
    let now = seconds().saturating_add_signed(state.skew);
    let claims = proven(provider, audience, kind, subject, (asked, now))?;
    if provider.condition.iter().any(|(name, value)| claims[name] != json!(value)) {
        return Err(oauth(400, "unauthorized_client"));
    }
    let pool = audience.split("/providers/").next().unwrap_or_default();
    let principal = format!("principal:{pool}/subject/{}", claims["sub"].as_str().unwrap_or_default());
    let life = state.expires_in.unwrap_or(3599);
    let mut answer = json!({
        "access_token": google.issue(&principal, scopes, life.min(86_400)),
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "token_type": state.token_type.as_deref().unwrap_or("Bearer"),
    });
    if !state.endless {
        answer["expires_in"] = json!(life);
    }
    Ok(answer)
}

/// The claims that the subject token proves.
fn proven(
    provider: &Provider,
    audience: &str,
    kind: &str,
    subject: &str,
    (asked, aws_now): (&Asked<'_>, u64),
) -> Result<Value, Refusal> {
    let bad = || oauth(400, "invalid_grant");
    match &provider.trust {
        Trust::Oidc { issuer, jwks, audiences } if kind == JWT || kind == ID_TOKEN => {
            let claims = verified(subject, jwks).ok_or_else(bad)?;
            let time = |name: &str| claims[name].as_u64().ok_or_else(bad);
            let (begins, ends, now) = (time("iat")?, time("exp")?, seconds());
            let for_us = audiences.iter().any(|known| claims["aud"] == json!(known));
            let named = claims["sub"].as_str().is_some_and(|name| !name.is_empty() && name.len() <= 127);
            // Google refuses a token that lives longer than a day.
            let in_time = begins <= now + 60 && ends > now && ends - begins <= 86_400;
            let good = claims["iss"] == json!(issuer) && for_us && in_time && named;
            good.then_some(claims).ok_or_else(bad)
        }
        Trust::Saml { assertion } if kind == SAML2 && subject == assertion => {
            Ok(json!({"sub": "saml-subject"}))
        }
        Trust::Aws { id, secret, session, region } if kind == AWS4 => {
            let arn = aws::caller(subject, audience, (id, secret, session.as_deref()), (region, aws_now))
                .ok_or_else(bad)?;
            Ok(json!({"sub": arn}))
        }
        Trust::Certificate if kind == MTLS => {
            let chain: Vec<String> = serde_json::from_str(subject).map_err(|_| bad())?;
            let leaf = chain.first().and_then(|leaf| STANDARD.decode(leaf).ok());
            let same = leaf.is_some() && leaf == asked.shown;
            same.then(|| json!({"sub": "certificate", "chain": chain.len().to_string()})).ok_or_else(bad)
        }
        _ => Err(bad()),
    }
}

/// Introspection (RFC 7662) of tokens that this service gave.
fn introspect(
    state: &State,
    google: &FakeGoogle,
    asked: &Asked<'_>,
    form: &HashMap<String, String>,
) -> Result<Value, Refusal> {
    if state.client.is_some() && !is_client(state, asked)? {
        return Err(oauth(401, "invalid_client"));
    }
    let known = form.get("token").and_then(|token| google.minted(token));
    Ok(known
        .map_or_else(|| json!({"active": false}), |minted| json!({"active": true, "username": minted.email})))
}

fn actions(state: &mut State, asked: &Asked<'_>) -> Result<String, Refusal> {
    let Some((issuer, subject, more)) = &state.actions else { return Err((404, String::new())) };
    let bearer = asked.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
    if bearer != Some("canary-actions-request-token") {
        return Err((401, "canary-in-an-error-page".into()));
    }
    let query: HashMap<String, String> =
        url::form_urlencoded::parse(asked.query.as_bytes()).into_owned().collect();
    if query.get("api-version").is_none_or(|version| version != "2.0") {
        return Err((400, String::new()));
    }
    let audience = query.get("audience").map_or("https://github.com/owner", String::as_str);
    let token = issuer.token(subject, audience, 300, more);
    state.secrets.push(("a job's token", token.clone()));
    Ok(json!({"count": 1, "value": token}).to_string())
}

fn url_token(state: &State, asked: &Asked<'_>) -> Result<String, Refusal> {
    if asked.headers.get("x-wanted").is_none_or(|value| value != "canary-header-value") {
        return Err((403, "canary-in-an-error-page".into()));
    }
    let token = state.url_token.clone().unwrap_or_default();
    Ok(match asked.path {
        "/url/json" => json!({"other": {"id_token": 1}, "id_token": token}).to_string(),
        _ => format!("{token}\n"),
    })
}

fn imds(state: &State, asked: &Asked<'_>) -> Result<String, Refusal> {
    const SESSION: &str = "canary-imds-session";
    let Some(imds) = &state.imds else { return Err((404, String::new())) };
    if (asked.method, asked.path) == ("PUT", "/latest/api/token") {
        let seconds =
            asked.headers.get("x-aws-ec2-metadata-token-ttl-seconds").and_then(|all| all.parse::<u32>().ok());
        return match seconds {
            Some(1..=21_600) => Ok(SESSION.into()),
            _ => Err((400, String::new())),
        };
    }
    let shown = asked.headers.get("x-aws-ec2-metadata-token").is_some_and(|token| token == SESSION);
    if (imds.strict && !shown) || asked.method != "GET" {
        return Err((401, String::new()));
    }
    let roles = "/latest/meta-data/iam/security-credentials";
    match asked.path.trim_end_matches('/') {
        "/latest/meta-data/placement/availability-zone" => Ok(imds.zone.clone()),
        path if path == roles => Ok(imds.role.clone()),
        path if path == format!("{roles}/{}", imds.role) => Ok(json!({
            "Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": imds.id, "SecretAccessKey": imds.secret,
            "Token": imds.session, "Expiration": "2999-01-01T00:00:00Z",
        })
        .to_string()),
        _ => Err((404, String::new())),
    }
}
