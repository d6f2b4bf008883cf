//! AWS at the wire: the Security Token Service, which checks signatures, forms and limits as its
//! documentation describes; the portal and token endpoint of IAM Identity Center; the metadata service of a
//! machine and the agent of a container. The texts of refusals contain the request's own secrets.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use time::format_description::well_known::{Rfc2822, Rfc3339};

use super::aws::{Signed, in_time};
use super::issuer::seconds;
use super::server_thread::ServerThread;

pub(crate) const ACCOUNT: &str = "123456789012";
pub(crate) const REGION: &str = "eu-west-1";
/// Part of every refusal.
pub(crate) const CANARY: &str = "canary-in-a-message";

/// Keys that the service knows.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) session: Option<String>,
    pub(crate) arn: String,
    pub(crate) is_over: bool,
}

/// A role and its trust policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Role {
    pub(crate) external_id: Option<String>,
    pub(crate) lets_tag: bool,
    pub(crate) lets_name_a_person: bool,
    /// In seconds; 3600 by default.
    pub(crate) longest: Option<u64>,
    /// The token of another issuer that may assume this role.
    pub(crate) web_token: Option<String>,
}

/// A received request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) form: BTreeMap<String, String>,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) status: u16,
}

#[derive(Default)]
struct State {
    keys: HashMap<String, Known>,
    roles: HashMap<String, Role>,
    /// Who may put policies on roles, by ARN, and the inline policies of roles, by role's name and policy's.
    may_put: Vec<String>,
    inline: BTreeMap<(String, String), Value>,
    /// Access tokens that the portal accepts.
    logins: Vec<String>,
    /// The client id, client secret and refresh token that the token endpoint accepts, and the access token
    /// that it gives.
    refresh: Option<([String; 3], String)>,
    /// Status and body of answers that replace the real ones.
    instead: VecDeque<(u16, String)>,
    /// `Retry-After` of refusals.
    retry_after: Option<String>,
    seen: Vec<Seen>,
    /// How far this service's clock differs from the real one, in seconds.
    skew: i64,
    made: u32,
    secrets: Vec<String>,
    /// The keys of the machine and of the container; without keys, the service does not exist.
    machine: Option<Known>,
    agent: Option<String>,
    is_ourselves: bool,
}

pub(crate) struct FakeAws {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _thread: ServerThread,
}

type Answer = Result<String, (u16, String)>;

impl FakeAws {
    pub(crate) fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let served = state.clone();
        let (address, thread) = ServerThread::serve(|listener| accept(listener, served));
        Self { address, state, _thread: thread }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    /// Long-lived keys of a user.
    pub(crate) fn user(&self) -> Known {
        self.set(|state| state.make("AKIA", None, &format!("arn:aws:iam::{ACCOUNT}:user/me")))
    }

    /// A session of a role, or of a user who has presented a second factor.
    pub(crate) fn session(&self, resource: &str) -> Known {
        self.set(|state| {
            let token = state.secret("session-token");
            state.make("ASIA", Some(token), &format!("arn:aws:sts::{ACCOUNT}:{resource}"))
        })
    }

    pub(crate) fn end(&self, keys: &Known) {
        self.set(|state| state.keys.get_mut(&keys.id).unwrap().is_over = true);
    }

    pub(crate) fn role(&self, name: &str, role: Role) -> String {
        let arn = format!("arn:aws:iam::{ACCOUNT}:role/{name}");
        self.set(|state| state.roles.insert(arn.clone(), role));
        arn
    }

    pub(crate) fn may_put_policies(&self, keys: &Known) {
        self.set(|state| state.may_put.push(keys.arn.clone()));
    }

    /// The inline policies of all roles: role's name, policy's name, document.
    pub(crate) fn inline(&self) -> Vec<(String, String, Value)> {
        self.set(|state| {
            state
                .inline
                .iter()
                .map(|((role, name), policy)| (role.clone(), name.clone(), policy.clone()))
                .collect()
        })
    }

    /// Whether a policy on its role denies this session every action.
    pub(crate) fn denies(&self, role: &str, session_name: &str) -> bool {
        let user_id = format!("{}:{session_name}", role_id(role));
        self.inline().iter().filter(|(on, ..)| on == role).any(|(_, _, policy)| {
            policy["Statement"].as_array().unwrap().iter().any(|statement| {
                let condition = &statement["Condition"];
                let named = condition["StringEquals"]["aws:userid"].as_array();
                statement["Effect"] == "Deny"
                    && statement["Action"] == "*"
                    && statement["Resource"] == "*"
                    && condition.as_object().is_some_and(|all| all.len() == 1)
                    && named.is_some_and(|all| all.contains(&json!(user_id)))
            })
        })
    }

    pub(crate) fn login(&self) -> String {
        self.set(|state| {
            let token = state.secret("sso-token");
            state.logins.push(token.clone());
            token
        })
    }

    /// A client id, client secret and refresh token that the endpoint accepts.
    pub(crate) fn refreshes(&self) -> [String; 3] {
        self.set(|state| {
            let given = ["client-id", "client-secret", "refresh-token"].map(|what| state.secret(what));
            let token = state.secret("sso-token");
            state.logins.push(token.clone());
            state.refresh = Some((given.clone(), token));
            given
        })
    }

    pub(crate) fn log_out(&self) {
        self.set(|state| (state.logins.clear(), state.refresh.take()));
    }

    /// Gives a role to the machine and its containers.
    pub(crate) fn machine(&self) -> Known {
        let keys = self.session("assumed-role/machine/i-1");
        self.set(|state| {
            state.machine = Some(keys.clone());
            state.agent = Some(state.secret("agent-token"));
        });
        keys
    }

    pub(crate) fn agent_token(&self) -> String {
        self.set(|state| state.agent.clone().unwrap())
    }

    /// Makes the machine's service answer as our own servers do.
    pub(crate) fn is_ourselves(&self) {
        self.set(|state| state.is_ourselves = true);
    }

    pub(crate) fn instead(&self, status: u16, body: &str) {
        self.set(|state| state.instead.push_back((status, body.into())));
    }

    /// From now on, refusals have a Retry-After.
    pub(crate) fn asks_to_wait(&self, retry_after: &str) {
        self.set(|state| state.retry_after = Some(retry_after.into()));
    }

    pub(crate) fn clock_off_by(&self, skew: i64) {
        self.set(|state| state.skew = skew);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.set(|state| state.seen.clone())
    }

    /// The requests with this action, or for this path.
    pub(crate) fn of(&self, what: &str) -> Vec<Seen> {
        let is =
            |seen: &Seen| seen.path == what || seen.form.get("Action").is_some_and(|action| action == what);
        self.seen().into_iter().filter(is).collect()
    }

    /// Every secret that went over the wire.
    pub(crate) fn secrets(&self) -> Vec<String> {
        self.set(|state| state.secrets.clone())
    }
}

/// The unique id of a role, which differs from its name.
fn role_id(role: &str) -> String {
    format!("AROA{:0>17}", role.to_ascii_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "X"))
}

/// An error in AWS's format.
pub(crate) fn refusal(code: &str) -> String {
    format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  <Error>\n    <Type>Sender</Type>\n    \
         <Code>{code}</Code>\n    <Message>{CANARY} &amp; more</Message>\n  </Error>\n  <RequestId>1-2</RequestId>\n</ErrorResponse>\n"
    )
}

fn denied(status: u16, code: &str) -> (u16, String) {
    (status, refusal(code))
}

impl State {
    fn secret(&mut self, what: &str) -> String {
        self.made += 1;
        let secret = format!("canary-{what}-{}/+=", self.made);
        self.secrets.push(secret.clone());
        secret
    }

    fn make(&mut self, kind: &str, session: Option<String>, arn: &str) -> Known {
        let secret = self.secret("secret-key");
        let id = format!("{kind}{:0>16}", format!("EXAMPLE{}", self.made));
        let known = Known { id: id.clone(), secret, session, arn: arn.into(), is_over: false };
        self.keys.insert(id, known.clone());
        known
    }

    fn now(&self) -> u64 {
        seconds().checked_add_signed(self.skew).unwrap()
    }

    fn after(&self, life: u64) -> String {
        let at = i64::try_from(self.now() + life).unwrap();
        time::OffsetDateTime::from_unix_timestamp(at).unwrap().format(&Rfc3339).unwrap()
    }

    /// The keys that signed the request.
    fn signer(&self, seen: &Seen, body: &[u8]) -> Result<Known, (u16, String)> {
        self.signer_for("sts", REGION, seen, body)
    }

    fn signer_for(
        &self,
        service: &str,
        region: &str,
        seen: &Seen,
        body: &[u8],
    ) -> Result<Known, (u16, String)> {
        let header = |name: &str| seen.headers.get(name).map(String::as_str);
        let stamp = header("x-amz-date").ok_or_else(|| denied(400, "IncompleteSignature"))?;
        let mut must = vec!["content-type", "host", "x-amz-date"];
        must.extend(header("x-amz-security-token").map(|_| "x-amz-security-token"));
        let request = Signed { headers: &seen.headers, query: "", body, must: &must };
        let id = request.key_id().ok_or_else(|| denied(403, "MissingAuthenticationToken"))?;
        let known = self.keys.get(id).ok_or_else(|| denied(403, "InvalidClientTokenId"))?;
        if known.session.as_deref() != header("x-amz-security-token") {
            return Err(denied(403, "InvalidClientTokenId"));
        }
        if in_time(stamp, self.now()).is_none()
            || !request.is_signed_for(service, (id, &known.secret), stamp, region)
        {
            return Err(denied(403, "SignatureDoesNotMatch"));
        }
        if known.is_over {
            return Err(denied(403, "ExpiredToken"));
        }
        Ok(known.clone())
    }

    fn sts(&mut self, seen: &Seen, body: &[u8]) -> Answer {
        let header = |name: &str| seen.headers.get(name).map(String::as_str);
        let is_form = header("content-type") == Some("application/x-www-form-urlencoded");
        if !is_form
            || header("accept") != Some("application/xml")
            || seen.form.get("Version").is_none_or(|v| v != "2011-06-15")
        {
            return Err(denied(400, "ValidationError"));
        }
        match seen.form.get("Action").map(String::as_str) {
            Some("GetCallerIdentity") => {
                let who = self.signer(seen, body)?;
                Ok(format!(
                    "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult>\
                     <Arn>{}</Arn><UserId>AIDAEXAMPLE</UserId><Account>{ACCOUNT}</Account></GetCallerIdentityResult>\
                     <ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></GetCallerIdentityResponse>",
                    who.arn
                ))
            }
            Some("AssumeRole") => {
                let who = self.signer(seen, body)?;
                self.assume(&seen.form, Some(&who))
            }
            Some("AssumeRoleWithWebIdentity") => {
                if header("authorization").is_some() || header("x-amz-date").is_some() {
                    return Err(denied(400, "ValidationError"));
                }
                self.assume(&seen.form, None)
            }
            _ => Err(denied(400, "InvalidAction")),
        }
    }

    fn assume(&mut self, form: &BTreeMap<String, String>, who: Option<&Known>) -> Answer {
        let field = |name: &str| form.get(name).map(String::as_str);
        let invalid = || denied(400, "ValidationError");
        let (arn, name) =
            (field("RoleArn").ok_or_else(invalid)?, field("RoleSessionName").ok_or_else(invalid)?);
        let role = self.roles.get(arn).cloned().ok_or_else(|| denied(403, "AccessDenied"))?;
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b);
        let life: u64 = field("DurationSeconds").map_or(Ok(3600), str::parse).map_err(|_| invalid())?;
        let chained = who.is_some_and(|who| who.arn.contains(":assumed-role/"));
        let longest = if chained { 3600 } else { role.longest.unwrap_or(3600) };
        if !(2..=64).contains(&name.len()) || !name.bytes().all(fits) || !(900..=longest).contains(&life) {
            return Err(invalid());
        }
        let others = ["Action", "Version", "RoleArn", "RoleSessionName", "DurationSeconds", "Policy"];
        let own: &[&str] =
            if who.is_some() { &["SourceIdentity", "ExternalId"] } else { &["WebIdentityToken"] };
        let members = |prefix: &str| form.keys().filter(|name| name.starts_with(prefix)).count();
        let (arns, tags) = (members("PolicyArns.member."), members("Tags.member."));
        let known = form
            .keys()
            .filter(|name| others.contains(&name.as_str()) || own.contains(&name.as_str()))
            .count();
        let tags_here = if who.is_some() { tags } else { 0 };
        if known + arns + tags_here != form.len() || arns > 10 || tags > 100 {
            return Err(invalid());
        }
        let tag = |c: char| c.is_alphanumeric() || " _.:/=+-@".contains(c);
        let mut values =
            form.iter().filter(|(name, _)| name.starts_with("Tags.member.") && name.ends_with(".Value"));
        if values.any(|(_, value)| value.chars().count() > 256 || !value.chars().all(tag)) {
            return Err(invalid());
        }
        if field("SourceIdentity")
            .is_some_and(|text| !(2..=64).contains(&text.len()) || !text.bytes().all(fits))
        {
            return Err(invalid());
        }
        if let Some(policy) = field("Policy") {
            if policy.chars().count() > 2048 {
                return Err(denied(400, "PackedPolicyTooLarge"));
            }
            let written: Option<Value> = serde_json::from_str(policy).ok();
            if written.is_none_or(|policy| !policy["Statement"].is_array()) {
                return Err(denied(400, "MalformedPolicyDocument"));
            }
        }
        let refused = match who {
            None => role.web_token.is_none() || role.web_token.as_deref() != field("WebIdentityToken"),
            Some(_) => {
                role.web_token.is_some()
                    || role.external_id.as_deref() != field("ExternalId")
                    || tags > 0 && !role.lets_tag
                    || field("SourceIdentity").is_some() && !role.lets_name_a_person
            }
        };
        if refused {
            return Err(denied(403, "AccessDenied"));
        }
        Ok(self.session(field("Action").unwrap(), arn, name, life))
    }

    fn session(&mut self, action: &str, arn: &str, name: &str, life: u64) -> String {
        let short = arn.rsplit('/').next().unwrap();
        let token = self.secret("session-token");
        let known =
            self.make("ASIA", Some(token), &format!("arn:aws:sts::{ACCOUNT}:assumed-role/{short}/{name}"));
        let end = self.after(life);
        format!(
            "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  <{action}Result>\n    <AssumedRoleUser>\
             <AssumedRoleId>{}:{name}</AssumedRoleId><Arn>{}</Arn></AssumedRoleUser>\n    <Credentials>\
             <AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken>\
             <Expiration>{end}</Expiration></Credentials>\n    <PackedPolicySize>6</PackedPolicySize>\n  </{action}Result>\n  \
             <ResponseMetadata><RequestId>1</RequestId></ResponseMetadata>\n</{action}Response>\n",
            role_id(short),
            known.arn,
            known.id,
            known.secret,
            known.session.unwrap()
        )
    }

    /// `PutRolePolicy` of IAM, which is the same service for all regions.
    fn iam(&mut self, seen: &Seen, body: &[u8]) -> Answer {
        let who = self.signer_for("iam", "us-east-1", seen, body)?;
        if !self.may_put.contains(&who.arn) {
            return Err(denied(403, "AccessDenied"));
        }
        let field = |name: &str| seen.form.get(name).cloned().ok_or_else(|| denied(400, "ValidationError"));
        let (role, name, policy) = (field("RoleName")?, field("PolicyName")?, field("PolicyDocument")?);
        if !self.roles.keys().any(|arn| arn.ends_with(&format!("/{role}"))) || role.contains('/') {
            return Err(denied(404, "NoSuchEntity"));
        }
        let policy: Value =
            serde_json::from_str(&policy).map_err(|_| denied(400, "MalformedPolicyDocument"))?;
        if seen.form.len() != 5 || policy["Version"] != "2012-10-17" || !policy["Statement"].is_array() {
            return Err(denied(400, "MalformedPolicyDocument"));
        }
        self.inline.insert((role, name), policy);
        Ok("<PutRolePolicyResponse xmlns=\"https://iam.amazonaws.com/doc/2010-05-08/\"><ResponseMetadata><RequestId>1</RequestId>\
            </ResponseMetadata></PutRolePolicyResponse>"
            .into())
    }

    fn portal(&mut self, seen: &Seen, query: &str) -> Answer {
        let refused = |status: u16| (status, json!({"message": CANARY}).to_string());
        let token = seen.headers.get("x-amz-sso_bearer_token").ok_or_else(|| refused(401))?;
        if !self.logins.contains(token) {
            return Err(refused(401));
        }
        let asked: HashMap<_, _> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        if asked.get("account_id").is_none_or(|id| id != ACCOUNT)
            || asked.get("role_name").is_none_or(|name| name != "Reader")
        {
            return Err(refused(403));
        }
        let token = self.secret("session-token");
        let known = self.make(
            "ASIA",
            Some(token),
            &format!("arn:aws:sts::{ACCOUNT}:assumed-role/AWSReservedSSO_Reader/me"),
        );
        Ok(json!({"roleCredentials": {
            "accessKeyId": known.id, "secretAccessKey": known.secret, "sessionToken": known.session,
            "expiration": (self.now() + 3600) * 1000,
        }})
        .to_string())
    }

    fn refreshed(&mut self, body: &[u8]) -> Answer {
        let refused = || (400, json!({"error": "invalid_grant", "error_description": CANARY}).to_string());
        let asked: Value = serde_json::from_slice(body).map_err(|_| refused())?;
        let (given, token) = self.refresh.clone().ok_or_else(refused)?;
        let wanted = json!({
            "clientId": given[0], "clientSecret": given[1], "grantType": "refresh_token", "refreshToken": given[2],
        });
        if asked != wanted {
            return Err(refused());
        }
        Ok(json!({"accessToken": token, "tokenType": "Bearer", "expiresIn": 3600, "refreshToken": given[2]})
            .to_string())
    }

    fn surroundings(&mut self, method: &str, seen: &Seen) -> Answer {
        let header = |name: &str| seen.headers.get(name).map(String::as_str);
        if header("x-kfp-creds-source").is_none() {
            return Err((400, "the header of our own sources".into()));
        }
        if self.is_ourselves {
            return Err((508, "loop".into()));
        }
        const SESSION: &str = "canary-imds-session";
        const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
        let known = self.machine.clone().ok_or((404, String::new()))?;
        let keys = || {
            json!({
                "Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": known.id, "SecretAccessKey": known.secret,
                "Token": known.session, "Expiration": self.after(3600),
            })
            .to_string()
        };
        match (method, seen.path.as_str()) {
            ("PUT", "/latest/api/token") if header("x-aws-ec2-metadata-token-ttl-seconds").is_some() => {
                Ok(SESSION.into())
            }
            ("GET", "/agent") if header("authorization") == self.agent.as_deref() => Ok(keys()),
            ("GET", "/agent") => Err((401, String::new())),
            ("GET", _) if header("x-aws-ec2-metadata-token") != Some(SESSION) => Err((401, String::new())),
            ("GET", ROLES) => Ok("machine".into()),
            ("GET", path) if path.strip_prefix(ROLES) == Some("machine") => Ok(keys()),
            _ => Err((404, String::new())),
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let state = state.clone();
        connections.spawn(async move {
            let service = service_fn(|request| serve(state.clone(), request));
            let http = hyper::server::conn::http1::Builder::new();
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn serve(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let headers = head.headers.iter();
    let headers = headers
        .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap_or_default().to_owned()));
    let mut seen = Seen { path: head.uri.path().into(), headers: headers.collect(), ..Seen::default() };
    if head.method == "POST" && seen.path == "/" {
        seen.form = url::form_urlencoded::parse(&body).into_owned().collect();
    }
    let mut state = state.lock().unwrap();
    let outcome = match (state.instead.pop_front(), head.method.as_str(), seen.path.as_str()) {
        (Some(instead), ..) => Err(instead),
        (None, "POST", "/") if seen.form.get("Version").is_some_and(|version| version == "2010-05-08") => {
            state.iam(&seen, &body)
        }
        (None, "POST", "/") => state.sts(&seen, &body),
        (None, "GET", "/federation/credentials") => state.portal(&seen, head.uri.query().unwrap_or_default()),
        (None, "POST", "/token") => state.refreshed(&body),
        (None, method, _) => state.surroundings(method, &seen),
    };
    let (status, text) = outcome.map_or_else(|refused| refused, |text| (200, text));
    seen.status = status;
    state.seen.push(seen);
    let mut reply = Response::builder().status(status);
    if let Some(asked) = state.retry_after.as_deref().filter(|_| status >= 400) {
        reply = reply.header("retry-after", asked);
    }
    if state.skew != 0 {
        let now = time::OffsetDateTime::now_utc() + time::Duration::seconds(state.skew);
        reply = reply.header("date", now.format(&Rfc2822).unwrap().replace("+0000", "GMT"));
    }
    Ok(reply.body(Full::new(Bytes::from(text))).unwrap())
}
