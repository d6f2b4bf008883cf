//! Google at the wire: token endpoint and IAM Credentials API on loopback, which check the requests.
//!
//! Every secret is a canary: it contains the word [`CANARY`], or is listed in [`FakeGoogle::canaries`], so
//! that a leak test can search for it.

mod sts;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use kfp_creds::source::google::endpoints::Endpoints;
use kfp_creds::token::CLOUD_PLATFORM;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::{Rfc2822, Rfc3339};

use super::server_thread::ServerThread;

pub(crate) const CANARY: &str = "canary";

/// A failure in place of an answer.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// This status and body.
    Answer { status: u16, content_type: &'static str, body: String },
    /// No answer at all.
    Hang,
    /// The connection ends in the middle of the answer.
    CutShort,
    /// A 200 with a body of this many bytes.
    Huge(usize),
}

impl Failure {
    pub(crate) fn html_503() -> Self {
        let body = "<html><h1>503</h1>canary-in-an-error-page</html>".into();
        Self::Answer { status: 503, content_type: "text/html", body }
    }

    /// An OAuth error; its description contains a canary, which the program must not pass on.
    pub(crate) fn oauth(status: u16, error: &str, subtype: Option<&str>) -> Self {
        let mut body = json!({"error": error, "error_description": "canary-in-a-description"});
        if let Some(subtype) = subtype {
            body["error_subtype"] = json!(subtype);
        }
        Self::Answer { status, content_type: "application/json", body: body.to_string() }
    }

    /// A google.rpc error.
    pub(crate) fn rpc(status: u16, code: &str, reason: Option<&str>) -> Self {
        let mut body = json!({"error": {"code": status, "message": "canary-in-a-message", "status": code}});
        if let Some(reason) = reason {
            body["error"]["details"] =
                json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}]);
        }
        Self::Answer { status, content_type: "application/json", body: body.to_string() }
    }
}

/// One received request, reduced to what tests look at.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Call {
    pub(crate) path: String,
    /// `refresh_token`, `jwt-bearer`, `generateAccessToken`, `generateIdToken`.
    pub(crate) kind: String,
    pub(crate) scopes: Option<String>,
    pub(crate) lifetime: Option<String>,
    pub(crate) quota_project: Option<String>,
    /// The status of the answer; 0 without one.
    pub(crate) status: u16,
}

/// An access token that this server gave.
#[derive(Clone, Debug)]
pub(crate) struct Minted {
    pub(crate) email: String,
    pub(crate) scopes: BTreeSet<String>,
    pub(crate) expires: SystemTime,
}

#[derive(Debug)]
struct User {
    email: String,
    client_id: String,
    client_secret: String,
    refresh_token: String,
}

#[derive(Default)]
struct State {
    /// RSA public keys (PKCS#1 DER) by account.
    keys: HashMap<String, Vec<u8>>,
    users: Vec<User>,
    /// Who may impersonate whom.
    allowed: BTreeSet<(String, String)>,
    /// Which service account may act for which user.
    delegated: BTreeSet<(String, String)>,
    sts: sts::State,
    /// Who may disable which account.
    admins: BTreeSet<(String, String)>,
    /// Disabled accounts, whose tokens are all invalid.
    disabled: BTreeSet<String>,
    minted: HashMap<String, Minted>,
    canaries: Vec<String>,
    calls: Vec<Call>,
    connections: usize,
    failures: VecDeque<Failure>,
    latency: Duration,
    outage: Option<Outage>,
    /// `Retry-After` of failures.
    retry_after: Option<String>,
    /// How far this server's clock differs from the real one, in seconds.
    skew: i64,
    /// Whether answers have no Date.
    dateless: bool,
    /// The value of `expireTime`, in place of the real one.
    forged_expiry: Option<String>,
    expires_in: Option<u64>,
    rotate: bool,
    number: u64,
}

/// A token endpoint that recovers step by step.
struct Outage {
    /// So many calls get 503, at any time.
    lost: u32,
    /// When the first call after these came.
    since: Option<Instant>,
}

/// 503 for this long from that call on, and then for [`LATE_FOR`] answers that take [`LATE`].
const OUTAGE: Duration = Duration::from_secs(3);
const LATE_FOR: Duration = Duration::from_secs(4);
const LATE: Duration = Duration::from_secs(2);

impl Outage {
    fn next(&mut self) -> Result<Duration, Failure> {
        if self.lost > 0 {
            self.lost -= 1;
            return Err(Failure::html_503());
        }
        let over = self.since.get_or_insert_with(Instant::now).elapsed();
        if over < OUTAGE {
            return Err(Failure::html_503());
        }
        Ok(if over < OUTAGE + LATE_FOR { LATE } else { Duration::ZERO })
    }
}

/// Runs until it is dropped, on its own thread and runtime, so that callers may pause their time.
pub(crate) struct FakeGoogle {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _apart: ServerThread,
}

impl FakeGoogle {
    pub(crate) fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let served = state.clone();
        let (address, apart) = ServerThread::serve(|listener| accept(listener, served));
        Self { address, state, _apart: apart }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn token_uri(&self) -> String {
        format!("{}/token", self.url())
    }

    /// Every endpoint is this server.
    pub(crate) fn endpoints(&self) -> Endpoints {
        Endpoints {
            token: Some(self.token_uri()),
            iam_credentials: Some(self.url()),
            sts: Some(format!("{}/sts/token", self.url())),
            iam: Some(self.url()),
            ..Endpoints::default()
        }
    }

    /// Makes a service account and returns its key file; `key` is [`rsa_key`] or [`another_rsa_key`].
    pub(crate) fn service_account(&self, email: &str, key: &str) -> String {
        self.set(|state| {
            state.keys.insert(email.into(), public_key(key));
            state.canaries.extend(key.lines().filter(|line| !line.starts_with('-')).map(String::from));
        });
        json!({
            "type": "service_account", "project_id": "sa-project", "private_key_id": "key-1",
            "private_key": key, "client_email": email, "client_id": "1234567890",
            "token_uri": self.token_uri(), "universe_domain": "googleapis.com",
        })
        .to_string()
    }

    /// Makes a login and returns its file.
    pub(crate) fn user(&self, email: &str) -> String {
        self.set(|state| {
            let number = state.next();
            let user = User {
                email: email.into(),
                client_id: format!("client-{number}.apps.example.com"),
                client_secret: format!("canary-client-secret-{number}"),
                refresh_token: format!("1//canary-refresh-token-{number}"),
            };
            let file = json!({
                "type": "authorized_user", "account": "", "client_id": user.client_id,
                "client_secret": user.client_secret, "refresh_token": user.refresh_token,
                "quota_project_id": "user-quota-project", "universe_domain": "googleapis.com",
            });
            state.users.push(user);
            file.to_string()
        })
    }

    pub(crate) fn allow(&self, caller: &str, target: &str) {
        self.set(|state| state.allowed.insert((caller.into(), target.into())));
    }

    /// Registers an access token that another service gives, so that the IAM API accepts it.
    pub(crate) fn issue(&self, principal: &str, scopes: BTreeSet<String>, life: u64) -> String {
        self.set(|state| state.mint(principal, scopes, life))
    }

    /// Lets `account` act for `subject`, with any scopes.
    pub(crate) fn delegate(&self, account: &str, subject: &str) {
        self.set(|state| state.delegated.insert((account.into(), subject.into())));
    }

    /// Makes `caller` an administrator of the service account `target`.
    pub(crate) fn allow_disabling(&self, caller: &str, target: &str) {
        self.set(|state| state.admins.insert((caller.into(), target.into())));
    }

    pub(crate) fn is_disabled(&self, account: &str) -> bool {
        self.set(|state| state.disabled.contains(account))
    }

    /// Sends `failure` for the next request; failures queue up.
    pub(crate) fn fail(&self, failure: Failure) {
        self.set(|state| state.failures.push_back(failure));
    }

    /// From now on, failures have a Retry-After.
    pub(crate) fn asks_to_wait(&self, retry_after: &str) {
        self.set(|state| state.retry_after = Some(retry_after.into()));
    }

    /// Drops a failure that was not sent.
    pub(crate) fn unfail(&self) {
        self.set(|state| state.failures.pop_front());
    }

    pub(crate) fn latency(&self, latency: Duration) {
        self.set(|state| state.latency = latency);
    }

    /// From now on `lost` calls for tokens get 503, and so do those in the next 3 s; later answers are 2 s
    /// late, and in the end everything is normal.
    pub(crate) fn outage(&self, lost: u32) {
        self.set(|state| state.outage = Some(Outage { lost, since: None }));
    }

    pub(crate) fn clock_off_by(&self, seconds: i64, with_date: bool) {
        self.set(|state| (state.skew, state.dateless) = (seconds, !with_date));
    }

    pub(crate) fn forge_expire_time(&self, text: &str) {
        self.set(|state| state.forged_expiry = Some(text.into()));
    }

    pub(crate) fn expires_in(&self, seconds: u64) {
        self.set(|state| state.expires_in = Some(seconds));
    }

    /// Every refresh gives a new refresh token and ends the old one.
    pub(crate) fn rotate_refresh_tokens(&self) {
        self.set(|state| state.rotate = true);
    }

    /// Ends every access token.
    pub(crate) fn withdraw_all(&self) {
        self.set(|state| state.minted.clear());
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.set(|state| state.calls.clone())
    }

    pub(crate) fn connections(&self) -> usize {
        self.set(|state| state.connections)
    }

    /// Registers a token that something else gave.
    pub(crate) fn adopt(&self, token: &str, email: &str) {
        self.set(|state| {
            let expires = state.now() + Duration::from_secs(3600);
            let minted = Minted { email: email.into(), scopes: [CLOUD_PLATFORM.to_string()].into(), expires };
            state.minted.insert(token.into(), minted)
        });
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn minted(&self, token: &str) -> Option<Minted> {
        self.set(|state| state.minted.get(token).cloned())
    }

    /// Secrets of this server that do not contain the word [`CANARY`]: lines of keys, assertions, ID tokens.
    pub(crate) fn canaries(&self) -> Vec<String> {
        self.set(|state| state.canaries.clone())
    }

    /// Everything secret that this server sent or received so far, which must appear nowhere else, and the
    /// words of its error pages, which the program must not pass on.
    pub(crate) fn secrets(&self) -> Vec<(&'static str, String)> {
        let pages = ["canary-in-a-description", "canary-in-a-message", "canary-in-an-error-page"];
        let mut all: Vec<_> = pages.map(|page| ("an upstream's words", page.to_string())).into();
        self.set(|state| {
            all.extend(state.canaries.iter().map(|one| ("a key line, assertion or ID token", one.clone())));
            all.extend(state.minted.keys().map(|token| ("an access token", token.clone())));
            all.extend(state.sts.secrets());
            for user in &state.users {
                all.push(("a client secret", user.client_secret.clone()));
                all.push(("a refresh token", user.refresh_token.clone()));
            }
        });
        all.retain(|(_, secret)| secret.len() >= 10);
        all
    }

    fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }
}

async fn accept(listener: tokio::net::TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let state = state.clone();
        state.lock().unwrap().connections += 1;
        connections.spawn(async move {
            let service = service_fn(|request| answer(state.clone(), request));
            let mut http = hyper::server::conn::http1::Builder::new();
            // Tests include clients that leave. The Date header is set here, because tests change this
            // server's clock.
            let _ = http.auto_date_header(false).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

type Reply = Response<http_body_util::combinators::BoxBody<Bytes, std::io::Error>>;

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Reply, Infallible> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let header = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let (bearer, kind_of_body, quota_project) =
        (header("authorization"), header("content-type"), header("x-goog-user-project"));
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let (latency, failure) = {
        let mut state = state.lock().unwrap();
        // A request that only compares clocks has no body.
        let outage = state.outage.as_mut().filter(|_| path == "/token" && !body.is_empty());
        match outage.map(Outage::next) {
            Some(Err(failure)) => (Duration::ZERO, Some(failure)),
            Some(Ok(late)) => (late, None),
            None => (state.latency, state.failures.pop_front()),
        }
    };
    tokio::time::sleep(latency).await;
    let mut call = Call { path: path.clone(), quota_project, ..Call::default() };
    let (status, content_type, text) = match failure {
        Some(Failure::Hang) => {
            state.lock().unwrap().calls.push(call);
            return std::future::pending().await;
        }
        Some(Failure::CutShort) => {
            state.lock().unwrap().calls.push(call);
            let frames =
                [Ok(hyper::body::Frame::data(Bytes::from("{\"access"))), Err(std::io::Error::other("cut"))];
            let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
            return Ok(Response::new(BodyExt::boxed(body)));
        }
        Some(Failure::Huge(size)) => (200, "application/json", " ".repeat(size)),
        Some(Failure::Answer { status, content_type, body }) => (status, content_type, body),
        None => {
            let mut state = state.lock().unwrap();
            let outcome = if head.method != Method::POST {
                Err(oauth_error(405, "method_not_allowed"))
            } else if path == "/token" {
                token(&mut state, &mut call, kind_of_body.as_deref(), &body, head.headers.get("host"))
            } else if path.starts_with("/sts/") {
                sts::answer(&mut state, &mut call, bearer.as_deref(), kind_of_body.as_deref(), &body)
            } else {
                generate(&mut state, &mut call, &path, bearer.as_deref(), &body)
            };
            match outcome {
                Ok(body) => (200, "application/json", body.to_string()),
                Err((status, body)) => (status, "application/json", body.to_string()),
            }
        }
    };
    let mut state = state.lock().unwrap();
    call.status = status;
    state.calls.push(call);
    let reply = begun(&state, status).header("content-type", content_type);
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
    Ok(reply.body(BodyExt::boxed(body)).unwrap())
}

/// A reply with the headers that depend on the state.
fn begun(state: &State, status: u16) -> hyper::http::response::Builder {
    let mut reply = Response::builder().status(status);
    if let Some(asked) = state.retry_after.as_deref().filter(|_| status >= 400) {
        reply = reply.header("retry-after", asked);
    }
    if !state.dateless {
        let date = OffsetDateTime::from(state.now()).format(&Rfc2822).unwrap().replace("+0000", "GMT");
        reply = reply.header("date", date);
    }
    reply
}

type Refusal = (u16, Value);

fn oauth_error(status: u16, error: &str) -> Refusal {
    (status, json!({"error": error, "error_description": "canary-in-a-description"}))
}

fn rpc_error(status: u16, code: &str) -> Refusal {
    (status, json!({"error": {"code": status, "message": "canary-in-a-message", "status": code}}))
}

impl State {
    fn next(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    fn now(&self) -> SystemTime {
        let now = SystemTime::now();
        let skew = Duration::from_secs(self.skew.unsigned_abs());
        if self.skew < 0 { now - skew } else { now + skew }
    }

    fn mint(&mut self, email: &str, scopes: BTreeSet<String>, life: u64) -> String {
        let value = format!("ya29.canary-access-token-{}", self.next());
        let expires = self.now() + Duration::from_secs(life);
        self.minted.insert(value.clone(), Minted { email: email.into(), scopes, expires });
        value
    }

    /// An ID token in Google's format, with a key of this server.
    fn id_token(&mut self, email: &str, audience: &str) -> String {
        let now = seconds(self.now());
        let claims = json!({
            "iss": "https://accounts.google.com", "aud": audience, "email": email, "email_verified": true,
            "sub": "1234567890", "azp": "1234567890", "iat": now, "exp": now + 3600,
            "jti": format!("canary-id-token-{}", self.next()),
        });
        let token = sign(rsa_key(), &json!({"alg": "RS256", "kid": "google"}), &claims);
        self.canaries.push(token.clone());
        token
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn token(
    state: &mut State,
    call: &mut Call,
    content_type: Option<&str>,
    body: &[u8],
    host: Option<&hyper::header::HeaderValue>,
) -> Result<Value, Refusal> {
    if content_type != Some("application/x-www-form-urlencoded") {
        return Err(oauth_error(400, "invalid_request"));
    }
    let form: HashMap<String, String> = url::form_urlencoded::parse(body).into_owned().collect();
    let field = |name: &str| form.get(name).cloned().ok_or_else(|| oauth_error(400, "invalid_request"));
    match field("grant_type")?.as_str() {
        "refresh_token" => {
            call.kind = "refresh_token".into();
            call.scopes = form.get("scope").cloned();
            // A request with scopes: Google answers like this for scopes that the consent does not cover.
            if call.scopes.is_some() {
                return Err(oauth_error(400, "invalid_scope"));
            }
            refresh(state, &field("client_id")?, &field("client_secret")?, &field("refresh_token")?)
        }
        "urn:ietf:params:oauth:grant-type:jwt-bearer" => {
            call.kind = "jwt-bearer".into();
            let audience = format!("http://{}/token", host.unwrap().to_str().unwrap());
            let assertion = field("assertion")?;
            state.canaries.push(assertion.clone());
            let claims = verify_assertion(state, &assertion, &audience)?;
            call.scopes = claims["scope"].as_str().map(String::from);
            exchange(state, &claims)
        }
        _ => Err(oauth_error(400, "unsupported_grant_type")),
    }
}

fn refresh(state: &mut State, id: &str, secret: &str, refresh_token: &str) -> Result<Value, Refusal> {
    let user = state.users.iter().position(|user| user.client_id == id);
    let at = user.ok_or_else(|| oauth_error(401, "invalid_client"))?;
    if state.users[at].client_secret != secret {
        return Err(oauth_error(401, "invalid_client"));
    }
    if state.users[at].refresh_token != refresh_token {
        return Err(oauth_error(400, "invalid_grant"));
    }
    let email = state.users[at].email.clone();
    let scopes = ["openid", "https://www.googleapis.com/auth/userinfo.email", CLOUD_PLATFORM];
    let life = state.expires_in.unwrap_or(3599);
    let mut answer = json!({
        "access_token": state.mint(&email, scopes.map(String::from).into(), life),
        "expires_in": life, "scope": scopes.join(" "), "token_type": "Bearer",
        "id_token": state.id_token(&email, id),
    });
    if state.rotate {
        let rotated = format!("1//canary-rotated-refresh-token-{}", state.next());
        state.users[at].refresh_token.clone_from(&rotated);
        answer["refresh_token"] = json!(rotated);
    }
    Ok(answer)
}

/// Checks the signature with the registered key, the audience, and that the times are within an hour of now.
fn verify_assertion(state: &State, assertion: &str, audience: &str) -> Result<Value, Refusal> {
    let bad = || oauth_error(400, "invalid_grant");
    let (input, signature) = assertion.rsplit_once('.').ok_or_else(bad)?;
    let (header, claims) = input.split_once('.').ok_or_else(bad)?;
    let part = |text: &str| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| bad());
    let header: Value = serde_json::from_slice(&part(header)?).map_err(|_| bad())?;
    let claims: Value = serde_json::from_slice(&part(claims)?).map_err(|_| bad())?;
    let key = state.keys.get(claims["iss"].as_str().ok_or_else(bad)?).ok_or_else(bad)?;
    let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key);
    key.verify(input.as_bytes(), &part(signature)?).map_err(|_| bad())?;
    let now = seconds(state.now());
    let (issued, ends) = (claims["iat"].as_u64().ok_or_else(bad)?, claims["exp"].as_u64().ok_or_else(bad)?);
    let in_time = issued <= now + 300 && ends > now && ends <= issued + 3600;
    if header["alg"] != "RS256" || claims["aud"] != audience || !in_time {
        return Err(bad());
    }
    Ok(claims)
}

fn exchange(state: &mut State, claims: &Value) -> Result<Value, Refusal> {
    let own = claims["iss"].as_str().unwrap().to_owned();
    let email = claims["sub"].as_str().unwrap_or(&own).to_owned();
    if email != own && !state.delegated.contains(&(own, email.clone())) {
        return Err(oauth_error(401, "unauthorized_client"));
    }
    match (claims["scope"].as_str(), claims["target_audience"].as_str()) {
        (Some(scopes), None) if !scopes.is_empty() => {
            let scopes = scopes.split(' ').map(String::from).collect();
            let life = state.expires_in.unwrap_or(3599);
            Ok(json!({
                "access_token": state.mint(&email, scopes, life), "expires_in": life, "token_type": "Bearer",
            }))
        }
        (None, Some(audience)) => Ok(json!({"id_token": state.id_token(&email, audience)})),
        _ => Err(oauth_error(400, "invalid_scope")),
    }
}

fn generate(
    state: &mut State,
    call: &mut Call,
    path: &str,
    bearer: Option<&str>,
    body: &[u8],
) -> Result<Value, Refusal> {
    let target = path.strip_prefix("/v1/projects/-/serviceAccounts/").and_then(|rest| rest.split_once(':'));
    let (target, method) = target.ok_or_else(|| rpc_error(404, "NOT_FOUND"))?;
    call.kind = method.into();
    let caller = bearer.and_then(|value| state.minted.get(value.strip_prefix("Bearer ")?)).cloned();
    let caller = caller
        .filter(|caller| caller.expires > state.now())
        .ok_or_else(|| rpc_error(401, "UNAUTHENTICATED"))?;
    if !caller.scopes.contains(CLOUD_PLATFORM) {
        return Err(rpc_error(403, "PERMISSION_DENIED"));
    }
    if !state.allowed.iter().any(|(_, known)| known == target) {
        return Err(rpc_error(404, "NOT_FOUND"));
    }
    let invalid = || rpc_error(400, "INVALID_ARGUMENT");
    let body: Value = serde_json::from_slice(body).map_err(|_| invalid())?;
    may(state, caller.email, target, method, &body)?;
    match method {
        "generateAccessToken" => {
            let scopes: Option<BTreeSet<String>> = body["scope"]
                .as_array()
                .and_then(|all| all.iter().map(|one| one.as_str().map(String::from)).collect());
            let scopes = scopes.filter(|scopes| !scopes.is_empty()).ok_or_else(invalid)?;
            call.scopes = Some(scopes.iter().cloned().collect::<Vec<_>>().join(" "));
            call.lifetime = body["lifetime"].as_str().map(String::from);
            let life = call.lifetime.as_deref().and_then(|life| life.strip_suffix('s')?.parse().ok());
            let life: u64 = life.filter(|life| (1..=3600).contains(life)).ok_or_else(invalid)?;
            let value = state.mint(target, scopes, life);
            let end = OffsetDateTime::from(state.minted[&value].expires).replace_nanosecond(0).unwrap();
            let end = state.forged_expiry.clone().unwrap_or_else(|| end.format(&Rfc3339).unwrap());
            Ok(json!({"accessToken": value, "expireTime": end}))
        }
        "generateIdToken" => {
            let audience = body["audience"].as_str().filter(|audience| !audience.is_empty());
            if body["includeEmail"] != true {
                return Err(invalid());
            }
            let token = state.id_token(target, audience.ok_or_else(invalid)?);
            Ok(json!({"token": token}))
        }
        "signJwt" => sign_jwt(state, target, &body),
        "disable" => {
            state.disabled.insert(target.into());
            state.minted.retain(|_, minted| minted.email != target);
            Ok(json!({}))
        }
        _ => Err(rpc_error(404, "NOT_FOUND")),
    }
}

/// Whether `by` may call `method` on `target`; along a chain, each account must be allowed to impersonate the
/// next.
fn may(state: &State, mut by: String, target: &str, method: &str, body: &Value) -> Result<(), Refusal> {
    let denied = || rpc_error(403, "PERMISSION_DENIED");
    if method == "disable" {
        return state.admins.contains(&(by, target.to_owned())).then_some(()).ok_or_else(denied);
    }
    for name in body["delegates"].as_array().into_iter().flatten() {
        let name = name.as_str().and_then(|name| name.strip_prefix("projects/-/serviceAccounts/"));
        let next = name.ok_or_else(|| rpc_error(400, "INVALID_ARGUMENT"))?.to_owned();
        state.allowed.contains(&(by, next.clone())).then_some(()).ok_or_else(denied)?;
        by = next;
    }
    let allowed = state.allowed.contains(&(by, target.to_owned())) && !state.disabled.contains(target);
    allowed.then_some(()).ok_or_else(denied)
}

/// Signs with the key that Google has for the account, whatever other keys of it exist.
fn sign_jwt(state: &mut State, target: &str, body: &Value) -> Result<Value, Refusal> {
    let payload = body["payload"].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    let payload = payload.ok_or_else(|| rpc_error(400, "INVALID_ARGUMENT"))?;
    state.keys.insert(target.into(), public_key(rsa_key()));
    let signed = sign(rsa_key(), &json!({"alg": "RS256", "kid": "google"}), &payload);
    state.canaries.push(signed.clone());
    Ok(json!({"keyId": "google", "signedJwt": signed}))
}

/// Signs a JWT with an RSA key.
pub(crate) fn sign(pem: &str, header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let input = format!("{}.{}", part(header), part(claims));
    let key = key_pair(pem);
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input.as_bytes(), &mut signature).unwrap();
    format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A 2048-bit key in PKCS#8 PEM, made once per test process.
pub(crate) fn rsa_key() -> &'static str {
    static KEY: OnceLock<String> = OnceLock::new();
    KEY.get_or_init(make_rsa_key)
}

/// A second key, for signatures that must not verify.
pub(crate) fn another_rsa_key() -> &'static str {
    static KEY: OnceLock<String> = OnceLock::new();
    KEY.get_or_init(make_rsa_key)
}

fn make_rsa_key() -> String {
    openssl(&["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], "")
}

/// The same key as PKCS#1, the form of old key files.
pub(crate) fn as_pkcs1(pem: &str) -> String {
    openssl(&["rsa", "-traditional"], pem)
}

/// Runs openssl, because ring cannot make RSA keys.
pub(crate) fn openssl(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl has to be installed");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn key_pair(pem: &str) -> RsaKeyPair {
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::pki_types::pem::PemObject;
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).unwrap()
}

pub(crate) fn public_key(pem: &str) -> Vec<u8> {
    key_pair(pem).public().as_ref().to_vec()
}
