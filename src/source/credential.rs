//! Credential files: what is in them, and the credential that is made of it.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use ring::digest::{Digest, SHA256, digest};
use serde::Deserialize;

use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::flight::{Kept, Outcome};
use crate::source::google::Endpoints;
use crate::source::upstream::Upstream;
use crate::source::user::{LOGIN, Login};
use crate::source::yup::Key;
use crate::token::{AccessToken, CLOUD_PLATFORM, Scopes};

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
}

impl Credential {
    pub(super) fn email(&self) -> Option<String> {
        match &self.kind {
            Kind::Key(key) => Some(key.email().to_owned()),
            Kind::Login(login) => login.email(),
        }
    }

    /// The account to impersonate, unless it is the credential's own.
    pub(super) fn other<'a>(&self, account: Option<&'a str>) -> Option<&'a str> {
        account.filter(|account| !matches!(&self.kind, Kind::Key(key) if key.email() == *account))
    }

    pub(super) async fn access(
        &self,
        upstream: &Upstream,
        scopes: &Scopes,
    ) -> Result<AccessToken, SourceError> {
        match &self.kind {
            Kind::Key(key) => key.access(upstream, scopes).await,
            Kind::Login(login) => login.access(upstream, &self.token_uri).await,
        }
    }

    /// The credential's own token, for calls to the IAM Credentials API.
    pub(super) async fn base(self: &Arc<Self>, upstream: &Arc<Upstream>) -> Outcome<AccessToken> {
        let start = || {
            let (own, upstream) = (self.clone(), upstream.clone());
            async move { own.access(&upstream, &Scopes::parse(CLOUD_PLATFORM)).await }
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
        understand(file, endpoints).map_err(|why| format!("the credential file {name}: {why}"))?;
    Ok((credential, digest))
}

fn understand(file: File, endpoints: &Endpoints) -> Result<Credential, String> {
    let set = |value: Option<String>| value.filter(|value| !value.is_empty());
    let need = |value: Option<String>, key: &str| set(value).ok_or_else(|| format!("it has no {key}"));
    let secret = |value: Option<Secret<String>>, key: &str| {
        value.filter(|value| !value.expose().is_empty()).ok_or_else(|| format!("it has no {key}"))
    };
    let universe = set(file.universe_domain);
    if !universe.as_deref().is_none_or(is_domain) {
        return Err("its universe_domain is not a domain".into());
    }
    let (kind, token_uri) = match file.kind.as_deref() {
        Some("service_account") => {
            let own = set(file.token_uri);
            if let Some(own) = own.as_deref().filter(|_| endpoints.token.is_none()) {
                confidential(own)?;
            }
            let token_uri = token_uri(endpoints, own.as_deref(), universe.as_deref())?;
            let email = need(file.client_email, "client_email")?;
            let pem = secret(file.private_key, "private_key")?;
            let key = Key::new(email, set(file.private_key_id), pem, token_uri.clone())?;
            (Kind::Key(Box::new(key)), token_uri)
        }
        Some("authorized_user") => {
            let token_uri = token_uri(endpoints, None, universe.as_deref())?;
            let login = Login::new(
                need(file.client_id, "client_id")?,
                secret(file.client_secret, "client_secret")?,
                secret(file.refresh_token, "refresh_token")?,
                set(file.account),
            );
            (Kind::Login(login), token_uri)
        }
        Some(
            known @ ("external_account"
            | "external_account_authorized_user"
            | "impersonated_service_account"
            | "gdch_service_account"),
        ) => {
            return Err(format!(
                "its type {known} is not supported yet; use a user login (`{LOGIN}`) or a service-account key"
            ));
        }
        _ => return Err("its type is not known; is this a Google credential file?".into()),
    };
    Ok(Credential {
        kind,
        token_uri,
        project: set(file.project_id),
        quota_project: set(file.quota_project_id),
        universe,
        base: Kept::default(),
    })
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

/// A *file's* endpoint gets assertions, so it is `https` or this machine; the config may say otherwise.
fn confidential(uri: &str) -> Result<(), String> {
    let loopback = ["http://127.0.0.1:", "http://localhost:", "http://[::1]:"];
    if uri.starts_with("https://") || loopback.iter().any(|start| uri.starts_with(start)) {
        return Ok(());
    }
    Err("its token_uri is not an https address".into())
}
