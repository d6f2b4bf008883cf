//! Microsoft Entra at the wire: the token endpoint of a tenant, and the two services that give a machine its
//! managed identity. They check the requests.
//!
//! Every description of an error contains a canary and the request's values; the program must not pass it on.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::issuer::{Issuer, seconds, verified};
use super::server_thread::ServerThread;

pub(crate) const TENANT: &str = "11111111-aaaa-4bbb-8ccc-000000000001";
pub(crate) const APP: &str = "22222222-aaaa-4bbb-8ccc-000000000002";
pub(crate) const OTHER_APP: &str = "33333333-aaaa-4bbb-8ccc-000000000003";
pub(crate) const STORAGE: &str = "https://storage.azure.com";

/// How a principal may prove itself.
pub(crate) enum Trust {
    Secret(String),
    /// The certificate as DER, and its public key (PKCS#1).
    Certificate {
        certificate: Vec<u8>,
        public: Vec<u8>,
    },
    Federated {
        issuer: String,
        jwks: Value,
        subject: String,
        audience: String,
    },
}

/// A received request, reduced to what tests look at.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) client_id: Option<String>,
    pub(crate) resource: Option<String>,
    pub(crate) status: u16,
}

#[derive(Default)]
struct State {
    apps: HashMap<String, Vec<Trust>>,
    /// The base URL that clients use, if it is not this server's own.
    known_as: Option<String>,
    /// Client ids of the machine's identities; the first one is the default.
    machine: Vec<String>,
    identity_header: String,
    /// Whether an assertion must include the certificate chain.
    wants_chain: bool,
    assertions: BTreeSet<String>,
    minted: HashMap<String, (String, String)>,
    failures: VecDeque<(u16, String)>,
    /// `Retry-After` of failures.
    retry_after: Option<String>,
    seen: Vec<Seen>,
    secrets: Vec<(&'static str, String)>,
    /// How far this service's clock differs from the real one, in seconds.
    skew: i64,
}

/// Status, `error`, AADSTS number.
type Refusal = (u16, &'static str, u32);

pub(crate) struct FakeEntra {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _apart: ServerThread,
}

impl FakeEntra {
    pub(crate) fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let served = state.clone();
        let (address, apart) = ServerThread::serve(move |listener| accept(listener, served));
        state.lock().unwrap().identity_header = "canary-identity-header".into();
        Self { address, state, _apart: apart }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Clients use another base URL for this server.
    pub(crate) fn known_as(&self, base: &str) {
        self.set(|state| state.known_as = Some(base.into()));
    }

    pub(crate) fn trust(&self, app: &str, trust: Trust) {
        self.set(|state| {
            if let Trust::Secret(secret) = &trust {
                state.secrets.push(("a client secret", secret.clone()));
            }
            state.apps.entry(app.into()).or_default().push(trust);
        });
    }

    pub(crate) fn federate(&self, app: &str, issuer: &Issuer, subject: &str, audience: &str) {
        let (subject, audience) = (subject.into(), audience.into());
        self.trust(
            app,
            Trust::Federated { issuer: issuer.url.clone(), jwks: issuer.jwks(), subject, audience },
        );
    }

    pub(crate) fn wants_chain(&self) {
        self.set(|state| state.wants_chain = true);
    }

    pub(crate) fn machine(&self, identities: &[&str]) {
        self.set(|state| state.machine = identities.iter().map(|id| (*id).to_owned()).collect());
    }

    /// The variables that App Service sets for its programs.
    pub(crate) fn app_service(&self) -> [(String, String); 2] {
        let header = self.set(|state| state.identity_header.clone());
        [
            ("IDENTITY_ENDPOINT".into(), format!("{}/msi/token", self.url())),
            ("IDENTITY_HEADER".into(), header),
        ]
    }

    /// From now on, failures have a Retry-After.
    pub(crate) fn asks_to_wait(&self, retry_after: &str) {
        self.set(|state| state.retry_after = Some(retry_after.into()));
    }

    /// Sends this answer once.
    pub(crate) fn fail(&self, status: u16, body: &str) {
        self.set(|state| state.failures.push_back((status, body.into())));
    }

    /// Sends an error in Entra's format once.
    pub(crate) fn fail_as(&self, status: u16, error: &str, number: u32) {
        self.fail(status, &described(error, number, "what was sent").to_string());
    }

    pub(crate) fn clock_off_by(&self, seconds: i64) {
        self.set(|state| state.skew = seconds);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.set(|state| state.seen.clone())
    }

    /// The principal and the resource of this token.
    pub(crate) fn minted(&self, token: &str) -> Option<(String, String)> {
        self.set(|state| state.minted.get(token).cloned())
    }

    /// Everything secret, which must appear nowhere else.
    pub(crate) fn secrets(&self) -> Vec<(&'static str, String)> {
        self.set(|state| {
            let mut all = state.secrets.clone();
            all.extend(state.minted.keys().map(|token| ("an access token", token.clone())));
            all.extend(state.assertions.iter().map(|one| ("an assertion", one.clone())));
            all.push(("the identity header", state.identity_header.clone()));
            all
        })
    }

    fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }
}

fn described(error: &str, number: u32, sent: &str) -> Value {
    json!({
        "error": error, "error_codes": [number], "trace_id": "canary-trace", "timestamp": "2026-01-01 00:00:00Z",
        "error_description": format!("AADSTS{number}: canary-in-a-description of {sent}."),
    })
}

async fn accept(listener: tokio::net::TcpListener, state: Arc<Mutex<State>>) {
    let own = format!("http://{}", listener.local_addr().unwrap());
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (state, own) = (state.clone(), own.clone());
        connections.spawn(async move {
            let service = service_fn(|request| serve(state.clone(), own.clone(), request));
            let mut http = hyper::server::conn::http1::Builder::new();
            // The Date header is set here, because tests change this server's clock.
            let _ = http.auto_date_header(false).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn serve(
    state: Arc<Mutex<State>>,
    own: String,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut state = state.lock().unwrap();
    let mut seen = Seen { path: head.uri.path().to_owned(), ..Seen::default() };
    let sent = String::from_utf8_lossy(&body).into_owned();
    let (status, text) = if let Some((status, body)) = state.failures.pop_front() {
        (status, body)
    } else {
        let header = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let path = head.uri.path().to_owned();
        if path == "/msi/token" || path == "/metadata/identity/oauth2/token" {
            let query = pairs(head.uri.query().unwrap_or_default().as_bytes());
            assert!(head.method == hyper::Method::GET && body.is_empty(), "a GET without a body");
            machine(&mut state, &mut seen, &path, &query, &header)
        } else {
            let form = header("content-type").as_deref() == Some("application/x-www-form-urlencoded");
            let outcome = match head.method == hyper::Method::POST && form {
                true => token(&mut state, &mut seen, &own, &path, &pairs(&body)),
                false => Err((400, "invalid_request", 900_144)),
            };
            match outcome {
                Ok(answer) => (200, answer.to_string()),
                Err((status, error, number)) => (status, described(error, number, &sent).to_string()),
            }
        }
    };
    seen.status = status;
    state.seen.push(seen);
    let date = OffsetDateTime::now_utc() + time::Duration::seconds(state.skew);
    let date = date.format(&Rfc2822).unwrap().replace("+0000", "GMT");
    let mut reply =
        Response::builder().status(status).header("content-type", "application/json").header("date", date);
    if let Some(asked) = state.retry_after.as_deref().filter(|_| status >= 400) {
        reply = reply.header("retry-after", asked);
    }
    Ok(reply.body(Full::new(Bytes::from(text))).unwrap())
}

/// The fields of a form, each of which may come once.
fn pairs(bytes: &[u8]) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (name, value) in url::form_urlencoded::parse(bytes) {
        assert!(all.insert(name.clone().into_owned(), value.into_owned()).is_none(), "{name} comes twice");
    }
    all
}

fn token(
    state: &mut State,
    seen: &mut Seen,
    own: &str,
    path: &str,
    form: &BTreeMap<String, String>,
) -> Result<Value, Refusal> {
    let field = |name: &str| form.get(name).map(String::as_str);
    let tenant = path.strip_prefix('/').and_then(|path| path.strip_suffix("/oauth2/v2.0/token"));
    let tenant = tenant.ok_or((404, "not_found", 900_561))?;
    if tenant != TENANT {
        return Err((400, "invalid_request", 90_002));
    }
    let client = field("client_id").ok_or((400, "invalid_request", 900_144))?.to_owned();
    seen.client_id = Some(client.clone());
    if field("grant_type") != Some("client_credentials") {
        return Err((400, "unsupported_grant_type", 70_003));
    }
    let resource = field("scope").and_then(|scope| scope.strip_suffix("/.default"));
    let resource = resource.ok_or((400, "invalid_scope", 1_002_012))?.to_owned();
    seen.resource = Some(resource.clone());
    if resource != STORAGE && resource != "https://vault.azure.net" {
        return Err((400, "invalid_resource", 500_011));
    }
    let url = format!("{}{path}", state.known_as.as_deref().unwrap_or(own));
    let now = seconds().saturating_add_signed(state.skew);
    let trusts = state.apps.get(&client).ok_or((400, "unauthorized_client", 700_016))?;
    let names: Vec<&str> = form.keys().map(String::as_str).collect();
    match names.as_slice() {
        ["client_id", "client_secret", "grant_type", "scope"] => {
            let secret = field("client_secret").unwrap_or_default();
            let known = trusts.iter().any(|trust| matches!(trust, Trust::Secret(own) if own == secret));
            known.then_some(()).ok_or((401, "invalid_client", 7_000_215))?;
        }
        ["client_assertion", "client_assertion_type", "client_id", "grant_type", "scope"] => {
            let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
            if field("client_assertion_type") != Some(kind) {
                return Err((400, "invalid_request", 900_144));
            }
            let assertion = field("client_assertion").unwrap_or_default().to_owned();
            let outcome = trusts
                .iter()
                .filter_map(|trust| match trust {
                    Trust::Secret(_) => None,
                    Trust::Certificate { certificate, public } => {
                        let known = (&state.assertions, state.wants_chain);
                        Some(signed(&assertion, (certificate, public), (&client, &url, now), known))
                    }
                    Trust::Federated { issuer, jwks, subject, audience } => {
                        Some(federated(&assertion, (issuer, jwks), (subject, audience), now))
                    }
                })
                .reduce(|one, other| one.or(other));
            state.assertions.insert(assertion);
            outcome.unwrap_or(Err(700_021)).map_err(|number| (401, "invalid_client", number))?;
        }
        _ => return Err((400, "invalid_request", 900_144)),
    }
    let token = mint(state, &client, &resource);
    Ok(json!({"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": token}))
}

fn mint(state: &mut State, client: &str, resource: &str) -> String {
    let mut random = [0; 24];
    SystemRandom::new().fill(&mut random).unwrap();
    let token = format!("canary-entra-token-{}", URL_SAFE_NO_PAD.encode(random));
    state.minted.insert(token.clone(), (client.into(), resource.into()));
    token
}

/// Checks an assertion that a certificate of the principal signed.
fn signed(
    assertion: &str,
    (certificate, public): (&[u8], &[u8]),
    (client, url, now): (&str, &str, u64),
    (earlier, wants_chain): (&BTreeSet<String>, bool),
) -> Result<(), u32> {
    let (input, signature) = assertion.rsplit_once('.').ok_or(50_027_u32)?;
    let (header, claims) = input.split_once('.').ok_or(50_027_u32)?;
    let part = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| 50_027_u32);
    let read = |text: &str| serde_json::from_slice::<Value>(&part(text)?).map_err(|_| 50_027_u32);
    let (header, claims) = (read(header)?, read(claims)?);
    let thumbprint = URL_SAFE_NO_PAD.encode(digest(&SHA256, certificate));
    if header["alg"] != "PS256" || header["typ"] != "JWT" || header["x5t#S256"] != thumbprint.as_str() {
        return Err(700_027);
    }
    if wants_chain && header["x5c"][0] != STANDARD.encode(certificate).as_str()
        || !wants_chain && !header["x5c"].is_null()
    {
        return Err(700_027);
    }
    let key = UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, public);
    key.verify(input.as_bytes(), &part(signature)?).map_err(|_| 700_027_u32)?;
    if claims["aud"] != url {
        return Err(700_023);
    }
    if claims["iss"] != client || claims["sub"] != client {
        return Err(700_021);
    }
    let time = |name: &str| claims[name].as_u64().ok_or(50_027_u32);
    let (from, to) = (time("nbf")?, time("exp")?);
    // Five minutes of leeway, as documented.
    if time("iat")? != from || from > now + 300 || to + 300 < now || to - from > 600 {
        return Err(700_024);
    }
    let fresh = claims["jti"].as_str().is_some_and(|id| id.len() >= 16) && !earlier.contains(assertion);
    fresh.then_some(()).ok_or(50_027)
}

/// Checks another issuer's token: its signature, then issuer, audience and subject literally.
fn federated(
    assertion: &str,
    (issuer, jwks): (&str, &Value),
    (subject, audience): (&str, &str),
    now: u64,
) -> Result<(), u32> {
    let claims = verified(assertion, jwks).ok_or(700_021_u32)?;
    match () {
        () if claims["iss"] != issuer => Err(700_211),
        () if claims["aud"] != audience => Err(700_212),
        () if claims["sub"] != subject => Err(700_213),
        () if claims["exp"].as_u64().is_none_or(|end| end + 300 < now) => Err(700_024),
        () => Ok(()),
    }
}

/// The metadata services of a virtual machine and of App Service, each of which requires its own headers.
fn machine(
    state: &mut State,
    seen: &mut Seen,
    path: &str,
    query: &BTreeMap<String, String>,
    header: &dyn Fn(&str) -> Option<String>,
) -> (u16, String) {
    let app_service = path == "/msi/token";
    let field = |name: &str| query.get(name).map(String::as_str);
    (seen.client_id, seen.resource) =
        (field("client_id").map(str::to_owned), field("resource").map(str::to_owned));
    let refuse = |status: u16, error: &str| {
        let body = json!({
            "error": error, "error_description": "canary-in-a-description", "statusCode": status,
            "message": "canary-in-a-message",
        });
        (status, body.to_string())
    };
    // This header marks requests of kfp-creds, which must always send it.
    assert_eq!(header("x-kfp-creds-source").as_deref(), Some("1"), "the header of kfp-creds is missing");
    assert!(header("x-forwarded-for").is_none() && header("authorization").is_none());
    if app_service {
        if header("x-identity-header").as_deref() != Some(&state.identity_header) {
            return refuse(401, "unauthorized");
        }
    } else if header("metadata").as_deref() != Some("true") || header("x-identity-header").is_some() {
        return refuse(400, "invalid_request");
    }
    let version = if app_service { "2019-08-01" } else { "2018-02-01" };
    let known = ["api-version", "client_id", "resource"];
    if field("api-version") != Some(version) || query.keys().any(|name| !known.contains(&name.as_str())) {
        return refuse(400, "bad_request_102");
    }
    let identity = match field("client_id") {
        None => state.machine.first().cloned(),
        Some(id) => state.machine.iter().find(|own| *own == id).cloned(),
    };
    let (Some(identity), Some(resource)) = (identity, field("resource")) else {
        return refuse(400, "invalid_request");
    };
    let token = mint(state, &identity, resource);
    let end = seconds().saturating_add_signed(state.skew) + 86_000;
    let body = match app_service {
        true => json!({
            "access_token": token, "expires_on": end.to_string(), "resource": resource, "token_type": "Bearer",
            "client_id": identity,
        }),
        false => json!({
            "access_token": token, "client_id": identity, "expires_in": "3599", "expires_on": end.to_string(),
            "ext_expires_in": "3599", "not_before": "1", "resource": resource, "token_type": "Bearer",
        }),
    };
    (200, body.to_string())
}
