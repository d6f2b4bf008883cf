//! Credential files: what is in them, and the credential that is made of it.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use ring::digest::{Digest, SHA256, digest};
use serde::Deserialize;

use crate::secret::Secret;
use crate::source::endpoints::{Endpoints, UNIVERSE};
use crate::source::flight::{Kept, Outcome};
use crate::source::gcloud::Program;
use crate::source::impersonate::Iam;
use crate::source::impersonated::{DEEPEST, Impersonated};
use crate::source::machine::Machine;
use crate::source::upstream::Upstream;
use crate::source::user::{LOGIN, Login};
use crate::source::workforce::Workforce;
use crate::source::yup::Key;
use crate::source::{AccessRequest, Pending, SourceError};
use crate::token::{AccessToken, CLOUD_PLATFORM, IdentityToken, Scopes};

/// Base tokens are asked for an hour, whatever the identity's own tokens live.
const BASE_LIFE: u64 = 3600;

/// No credential file is near this size; what is larger was named by mistake.
const LARGEST_FILE: u64 = 1 << 20;

/// A credential file, understood.
#[derive(Debug)]
pub(super) struct Credential {
    pub(super) kind: Kind,
    token_uri: String,
    pub(super) project: Option<String>,
    pub(super) quota_project: Option<String>,
    pub(super) universe: Option<String>,
    base: Kept,
}

#[derive(Debug)]
pub(super) enum Kind {
    Key(Box<Key>),
    Login(Login),
    Workforce(Workforce),
    Impersonated(Box<Impersonated>),
    Machine(Machine),
    Gcloud(Program),
}

impl Credential {
    /// One that comes from no file.
    pub(super) fn unfiled(kind: Kind) -> Self {
        Self {
            kind,
            token_uri: String::new(),
            project: None,
            quota_project: None,
            universe: None,
            base: Kept::default(),
        }
    }

    /// For messages.
    pub(super) fn word(&self) -> &'static str {
        match &self.kind {
            Kind::Key(_) => "service account key",
            Kind::Login(_) => "user login",
            Kind::Workforce(_) => "workforce login",
            Kind::Impersonated(_) => "impersonated service account",
            Kind::Machine(_) => "this machine's service account",
            Kind::Gcloud(_) => "gcloud's account",
        }
    }

    pub(super) fn email(&self) -> Option<String> {
        match &self.kind {
            Kind::Key(key) => Some(key.email().to_owned()),
            Kind::Login(login) => login.email(),
            Kind::Workforce(_) => None,
            Kind::Impersonated(impersonated) => Some(impersonated.account().to_owned()),
            Kind::Machine(machine) => machine.known().email,
            Kind::Gcloud(program) => program.defaults().account,
        }
    }

    pub(super) fn project(&self) -> Option<String> {
        self.project.clone().or_else(|| match &self.kind {
            Kind::Machine(machine) => machine.known().project,
            Kind::Gcloud(program) => program.defaults().project,
            Kind::Impersonated(impersonated) => impersonated.source().project(),
            _ => None,
        })
    }

    pub(super) fn universe(&self) -> Option<String> {
        self.universe.clone().or_else(|| match &self.kind {
            Kind::Machine(machine) => machine.known().universe,
            Kind::Impersonated(impersonated) => impersonated.source().universe(),
            _ => None,
        })
    }

    /// The account to impersonate, unless it is the credential's own.
    pub(super) fn other<'a>(&self, account: Option<&'a str>) -> Option<&'a str> {
        let own = match &self.kind {
            Kind::Login(_) | Kind::Workforce(_) => None,
            _ => self.email(),
        };
        account.filter(|account| own.as_deref() != Some(*account))
    }

    /// Boxed, as a credential may be made of another one.
    pub(super) fn access<'a>(
        self: &'a Arc<Self>,
        upstream: &'a Arc<Upstream>,
        ask: &'a AccessRequest,
    ) -> Pending<'a, Result<AccessToken, SourceError>> {
        Box::pin(async move {
            match &self.kind {
                Kind::Key(key) => key.access(upstream, ask).await,
                Kind::Impersonated(impersonated) => impersonated.access(upstream, ask).await,
                _ if ask.subject.is_some() => Err(SourceError::refused(
                    "only a service account can stand in for a subject; name it with --impersonate",
                )),
                Kind::Login(login) => login.access(upstream, &self.token_uri).await,
                Kind::Workforce(login) => login.access(upstream).await,
                Kind::Machine(machine) => machine.access(upstream, ask).await,
                Kind::Gcloud(program) => program.access().await,
            }
        })
    }

    /// An ID token of the credential's own account.
    pub(super) async fn identity(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        endpoints: &Endpoints,
        audience: &str,
    ) -> Result<IdentityToken, SourceError> {
        match &self.kind {
            Kind::Key(key) if key.exchanges() => key.identity(upstream, audience).await,
            // Where nothing is exchanged, IAM makes them, with a token that the key signed.
            Kind::Key(key) => {
                let endpoint = &endpoints.iam_credentials(endpoints.universe(self.universe.as_deref()));
                let (account, token_uri) = (key.email(), key.token_uri());
                let iam = Iam { upstream, endpoint, token_uri, base: self, account, delegates: &[] };
                iam.identity(audience).await
            }
            Kind::Impersonated(impersonated) => impersonated.identity(upstream, audience).await,
            Kind::Machine(machine) => machine.identity(upstream, audience).await,
            Kind::Gcloud(program) => program.identity(audience).await,
            Kind::Login(_) | Kind::Workforce(_) => Err(SourceError::refused(
                "a user login cannot make ID tokens for an audience; name a service account with --impersonate",
            )),
        }
    }

    /// The credential's own token, for calls to the IAM Credentials API.
    pub(super) async fn base(self: &Arc<Self>, upstream: &Arc<Upstream>) -> Outcome<AccessToken> {
        let start = || {
            let (own, upstream) = (self.clone(), upstream.clone());
            let scopes = Scopes::parse(CLOUD_PLATFORM);
            let ask = AccessRequest { scopes, lifetime: BASE_LIFE, ..AccessRequest::default() };
            async move { own.access(&upstream, &ask).await }
        };
        self.base.token(start).await
    }

    pub(super) fn forget_base(&self, token: &Arc<AccessToken>) {
        self.base.forget(token);
    }

    /// False also where it cannot be known: serving tokens of somebody else is the worse mistake.
    pub(super) fn is_same_account(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (Kind::Key(own), Kind::Key(other)) => own.email() == other.email(),
            (Kind::Login(own), Kind::Login(other)) => own.email().is_some() && own.email() == other.email(),
            (Kind::Workforce(own), Kind::Workforce(other)) => own.is_same(other),
            (Kind::Impersonated(own), Kind::Impersonated(other)) => own.account() == other.account(),
            _ => false,
        }
    }
}

/// What is read of a credential file.
#[derive(Debug, Deserialize)]
struct File {
    #[serde(rename = "type")]
    kind: Option<String>,
    project_id: Option<String>,
    quota_project_id: Option<String>,
    universe_domain: Option<String>,
    client_email: Option<String>,
    private_key_id: Option<String>,
    private_key: Option<Secret<String>>,
    token_uri: Option<String>,
    client_id: Option<String>,
    client_secret: Option<Secret<String>>,
    refresh_token: Option<Secret<String>>,
    account: Option<String>,
    audience: Option<String>,
    token_url: Option<String>,
    service_account_impersonation_url: Option<String>,
    service_account_impersonation: Option<ImpersonationFile>,
    delegates: Option<Vec<String>>,
    source_credentials: Option<Box<File>>,
}

#[derive(Debug, Deserialize)]
struct ImpersonationFile {
    token_lifetime_seconds: Option<u64>,
}

/// Reads and understands a file; the error is a fragment that names it and quotes nothing from it.
pub(super) fn read(path: &Path, endpoints: &Endpoints) -> Result<(Credential, Digest), String> {
    let name = path.display();
    let unread = |error: std::io::Error| format!("cannot read the credential file {name}: {error}");
    // Asked before it is opened: opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(unread)?.is_file() {
        return Err(format!("the credential file {name} is not a regular file"));
    }
    let file = fs::File::open(path).map_err(unread)?;
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE).read_to_end(&mut bytes).map_err(unread)?;
    let bytes = Secret::new(bytes);
    let digest = digest(&SHA256, bytes.expose());
    // serde's own message would quote what it stumbled over.
    let file: File = serde_json::from_slice(bytes.expose()).map_err(|error| {
        format!("the credential file {name} is not valid (line {}); log in again: `{LOGIN}`", error.line())
    })?;
    let credential =
        understand(file, endpoints, 0).map_err(|why| format!("the credential file {name}: {why}"))?;
    Ok((credential, digest))
}

type Secrets = Option<Secret<String>>;

fn set(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.is_empty())
}

fn need(value: Option<String>, key: &str) -> Result<String, String> {
    set(value).ok_or_else(|| format!("it has no {key}"))
}

fn secret(value: Secrets, key: &str) -> Result<Secret<String>, String> {
    value.filter(|value| !value.expose().is_empty()).ok_or_else(|| format!("it has no {key}"))
}

fn understand(file: File, endpoints: &Endpoints, depth: usize) -> Result<Credential, String> {
    if !file.universe_domain.as_deref().is_none_or(is_domain) {
        return Err("its universe_domain is not a domain".into());
    }
    let (project, quota_project) = (file.project_id.clone(), file.quota_project_id.clone());
    let universe = set(file.universe_domain.clone());
    let mut token_uri = String::new();
    let kind = match file.kind.as_deref() {
        Some("service_account") => Kind::Key(Box::new(key(file, endpoints)?)),
        Some("authorized_user") => {
            token_uri = self::token_uri(endpoints, None, universe.as_deref())?;
            Kind::Login(login(file)?)
        }
        Some("external_account_authorized_user") => Kind::Workforce(workforce(file, endpoints)?),
        Some("impersonated_service_account") if depth >= DEEPEST => {
            return Err(format!("it nests credentials deeper than {DEEPEST}"));
        }
        Some("impersonated_service_account") => {
            Kind::Impersonated(Box::new(impersonated(file, endpoints, depth)?))
        }
        Some(known @ ("external_account" | "gdch_service_account")) => {
            return Err(format!(
                "its type {known} is not supported yet; use a user login (`{LOGIN}`) or a service-account key"
            ));
        }
        _ => return Err("its type is not known; is this a Google credential file?".into()),
    };
    let made = Credential::unfiled(kind);
    Ok(Credential { token_uri, project: set(project), quota_project: set(quota_project), universe, ..made })
}

fn key(file: File, endpoints: &Endpoints) -> Result<Key, String> {
    let (own, universe) = (set(file.token_uri), set(file.universe_domain));
    if let Some(own) = own.as_deref().filter(|_| endpoints.token.is_none()) {
        confidential(own, "token_uri")?;
    }
    let token_uri = token_uri(endpoints, own.as_deref(), universe.as_deref())?;
    let email = need(file.client_email, "client_email")?;
    let pem = secret(file.private_key, "private_key")?;
    // A token endpoint that the operator names is there to be asked.
    let exchanges = endpoints.token.is_some() || endpoints.universe(universe.as_deref()) == UNIVERSE;
    Ok(Key::new(email, set(file.private_key_id), pem, token_uri, exchanges)?)
}

fn login(file: File) -> Result<Login, String> {
    Ok(Login::new(
        need(file.client_id, "client_id")?,
        secret(file.client_secret, "client_secret")?,
        secret(file.refresh_token, "refresh_token")?,
        set(file.account),
    ))
}

fn workforce(file: File, endpoints: &Endpoints) -> Result<Workforce, String> {
    let universe = set(file.universe_domain);
    // Not the token endpoint of the config: that is another server's.
    let token_url = match set(file.token_url) {
        Some(own) => confidential(&own, "token_url").map(|()| own)?,
        None => format!("https://sts.{}/v1/oauthtoken", endpoints.universe(universe.as_deref())),
    };
    let client_id = need(file.client_id, "client_id")?;
    let client_secret = secret(file.client_secret, "client_secret")?;
    let refresh_token = secret(file.refresh_token, "refresh_token")?;
    Ok(Workforce::new(set(file.audience), token_url, &client_id, &client_secret, refresh_token))
}

fn impersonated(file: File, endpoints: &Endpoints, depth: usize) -> Result<Impersonated, String> {
    let source = file.source_credentials.ok_or("it has no source_credentials")?;
    let mut source =
        understand(*source, endpoints, depth + 1).map_err(|why| format!("its source_credentials: {why}"))?;
    source.universe = source.universe.or_else(|| set(file.universe_domain));
    let url = need(file.service_account_impersonation_url, "service_account_impersonation_url")?;
    let longest = file.service_account_impersonation.and_then(|of| of.token_lifetime_seconds);
    Impersonated::new(source, &url, file.delegates.unwrap_or_default(), longest, endpoints)
}

/// Hosts are made of it, and containers are told it.
fn is_domain(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    text.len() <= 253 && text.bytes().all(fits)
}

/// Checked here because yup panics on an address that does not parse.
fn token_uri(endpoints: &Endpoints, file: Option<&str>, universe: Option<&str>) -> Result<String, String> {
    let uri = endpoints.token(file, endpoints.universe(universe));
    match uri.parse::<hyper::Uri>() {
        Ok(parsed) if parsed.host().is_some() && matches!(parsed.scheme_str(), Some("http" | "https")) => {
            Ok(uri)
        }
        _ => Err("the token endpoint is not an http or https address".into()),
    }
}

/// A *file's* endpoint gets assertions and tokens, so it is `https` or this machine; the config may say otherwise.
pub(super) fn confidential(uri: &str, key: &str) -> Result<(), String> {
    let loopback = ["http://127.0.0.1:", "http://localhost:", "http://[::1]:"];
    let local = || loopback.iter().any(|start| uri.starts_with(start));
    if !uri.contains('@') && (uri.starts_with("https://") || local()) {
        return Ok(());
    }
    Err(format!("its {key} is not an https address"))
}
