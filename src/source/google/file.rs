//! Credential files: their fields, and the credential built from them.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use ring::digest::{Digest, SHA256, digest};
use serde::Deserialize;
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use crate::failure::Reason;
use crate::quote;
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::document::UntypedJson;
use crate::source::google::authorized_user::{AuthorizedUser, LOGIN, LoginCommand};
use crate::source::google::endpoints::{Endpoints, UNIVERSE};
use crate::source::google::external_account;
use crate::source::google::external_account_authorized_user::ExternalAccountAuthorizedUser;
use crate::source::google::gcloud;
use crate::source::google::impersonated::{self, DEEPEST, Impersonated};
use crate::source::google::names::is_domain_in_host;
use crate::source::google::service_account::ServiceAccount;
use crate::source::google::{Credential, CredentialKind};
use crate::source::http::secure_url::confidential;
use crate::source::variables::Variables;

/// No credential file is near this size; a larger file was named by mistake.
const LARGEST_FILE: u64 = 1 << 20;

/// The fields read from a credential file.
#[derive(Debug, Deserialize)]
struct CredentialFile {
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
    source_credentials: Option<Box<CredentialFile>>,
    subject_token_type: Option<String>,
    token_info_url: Option<String>,
    workforce_pool_user_project: Option<String>,
    credential_source: Option<external_account::CredentialSource>,
    /// Of the file of an OAuth client, which is often taken for a credential.
    installed: Option<IgnoredAny>,
    web: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct ImpersonationFile {
    token_lifetime_seconds: Option<u64>,
}

/// A file that the user names must exist. The error is a fragment that lists the ways to name one.
pub(super) fn named(path: PathBuf) -> Result<PathBuf, String> {
    let names = "GOOGLE_APPLICATION_CREDENTIALS, --credentials-file, or credentials_file in kfp-creds.toml";
    if let Some(shape) = quote::no_path(&path.to_string_lossy()) {
        return Err(format!(
            "what names the credential file ({names}) holds {shape}, not a path; write the credential to a file that \
             only you can read, and name that file"
        ));
    }
    if path.exists() {
        return Ok(path);
    }
    Err(format!("the credential file {} is not there; correct what names it: {names}", quote::path(&path)))
}

/// The error if no credential was found; `usual` is the file that gcloud writes.
pub(super) fn absent(usual: Option<&Path>) -> SourceError {
    let looked =
        usual.map_or_else(|| "no home directory is known".into(), |path| format!("no {}", quote::path(path)));
    SourceError::absent(Reason::advice(format!(
        "no Google credentials on this host (GOOGLE_APPLICATION_CREDENTIALS is not set, {looked}); \
         run `{LOGIN}`, or start with --offline"
    )))
}

/// Reads and parses a file. The error is a fragment that names the file and quotes nothing from it.
pub(super) fn read(
    path: &Path,
    endpoints: &Endpoints,
    variables: &Variables,
) -> Result<(Credential, Digest), String> {
    let name = quote::path(path);
    let unread = |error: std::io::Error| format!("cannot read the credential file {name}: {error}");
    // Checked before opening: opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(unread)?.is_file() {
        return Err(format!("the credential file {name} is not a regular file"));
    }
    let file = fs::File::open(path).map_err(unread)?;
    // The buffer never grows, so that no copy of its beginning is left in memory. A write during the read
    // changes the stamp, and the file is read again.
    let room = match file.metadata().map_err(unread)?.len() {
        0 => LARGEST_FILE, // some file systems do not know
        length => length.min(LARGEST_FILE) + 1,
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(room).unwrap_or_default()));
    file.take(room).read_to_end(&mut bytes).map_err(unread)?;
    let bytes = Secret::new(std::mem::take(&mut *bytes));
    let digest = digest(&SHA256, bytes.expose());
    let place = |name| variables.text(name).map(Path::new);
    let usual =
        gcloud::directory(place("CLOUDSDK_CONFIG"), place("HOME")).map(|folder| folder.join(gcloud::ADC));
    let text = bytes.expose().strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes.expose());
    let document: UntypedJson = serde_json::from_slice(text).map_err(|error| {
        // Logging in again helps only if the file holds a login.
        let login = usual.as_deref() == Some(path) || holds(text, "authorized_user");
        let remedy = if login { format!("; log in again: `{LOGIN}`") } else { String::new() };
        format!("the credential file {name} {}{remedy}", unread_as(text, error.line(), login))
    })?;
    let file = CredentialFile::deserialize(document)
        .map_err(|wrong| format!("the credential file {name}: {wrong}"))?;
    let again = LoginCommand::into(path, usual.as_deref());
    let credential = understand(file, (endpoints, variables, &again), 0)
        .map_err(|why| format!("the credential file {name}: {why}"))?;
    Ok((credential, digest))
}

fn holds(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|window| window == word.as_bytes())
}

/// Describes a file that is not JSON; serde's own message would quote the input.
fn unread_as(bytes: &[u8], line: usize, login: bool) -> String {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let key = "; download the key of a service account as JSON";
    match quote::no_path(text) {
        _ if bytes.trim_ascii().is_empty() => "is empty".into(),
        _ if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) || bytes.contains(&0) => {
            "is not UTF-8 text (PowerShell writes UTF-16); save it as UTF-8".into()
        }
        _ if bytes.starts_with(&[0x30, 0x82]) => format!("is a P12 key, which is not supported{key}"),
        Some("a PEM file") if !bytes.trim_ascii_start().starts_with(b"{") => {
            format!("holds a PEM file, not the JSON of a credential{key}")
        }
        Some(shape) if shape.starts_with("base64 of") => {
            format!("holds {shape}; decode it first (base64 -d)")
        }
        Some(shape @ "a JSON Web Token") => format!("holds {shape}, not the JSON of a credential"),
        _ if login => format!("is not valid JSON (line {line})"),
        _ => format!("is not valid JSON (line {line}); if it was cut short, write or download it again"),
    }
}

type Secrets = Option<Secret<String>>;

fn set(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.is_empty())
}

/// An address, without the blanks and the line end that pasting leaves.
fn address(value: Option<String>) -> Option<String> {
    set(value.map(|url| url.trim().to_owned()))
}

fn need(value: Option<String>, key: &str) -> Result<String, String> {
    set(value).ok_or_else(|| format!("it has no {key}"))
}

fn secret(value: Secrets, key: &str) -> Result<Secret<String>, String> {
    value.filter(|value| !value.expose().is_empty()).ok_or_else(|| format!("it has no {key}"))
}

/// The context for parsing a file.
type With<'a> = (&'a Endpoints, &'a Variables, &'a LoginCommand);

fn understand(file: CredentialFile, with: With<'_>, depth: usize) -> Result<Credential, String> {
    let (endpoints, _, again) = with;
    if !file.universe_domain.as_deref().is_none_or(is_domain_in_host) {
        return Err("its universe_domain is not a domain".into());
    }
    let (project, quota_project) = (file.project_id.clone(), file.quota_project_id.clone());
    let universe = set(file.universe_domain.clone());
    let mut token_uri = String::new();
    let kind = match file.kind.as_deref() {
        Some("service_account") => CredentialKind::ServiceAccount(Box::new(key(file, endpoints)?)),
        Some("authorized_user") => {
            token_uri = self::token_uri(endpoints, None, universe.as_deref())?;
            CredentialKind::AuthorizedUser(login(file, again)?)
        }
        Some("external_account_authorized_user") => {
            CredentialKind::ExternalAccountAuthorizedUser(workforce(file, endpoints, again)?)
        }
        Some("impersonated_service_account") if depth >= DEEPEST => {
            return Err(format!("it nests credentials deeper than {DEEPEST}"));
        }
        Some("impersonated_service_account") => {
            CredentialKind::Impersonated(Box::new(impersonated(file, with, depth)?))
        }
        Some("external_account") => external_account(file, with)?,
        Some(known @ "gdch_service_account") => {
            // google-auth exchanges an ES256 assertion for a token of the audience that its caller names
            // (`with_gdch_audience`); no request to a metadata server has one.
            return Err(format!(
                "its type {known} is of Google Distributed Cloud, whose tokens are for the one audience that a program \
                 names; a metadata server is asked without one, so such a credential cannot be handed out; use a user \
                 login (`{LOGIN}`) or a service-account key"
            ));
        }
        None if file.installed.is_some() || file.web.is_some() => {
            return Err(format!(
                "it is the client of an application, and no credential; log in with it: \
                 `{LOGIN} --client-id-file=FILE`"
            ));
        }
        _ => return Err("its type is not known; is this a Google credential file?".into()),
    };
    let mut made = Credential::unfiled(kind);
    (made.token_uri, made.universe) = (token_uri, universe);
    (made.project, made.quota_project) = (set(project), set(quota_project));
    Ok(made)
}

fn key(file: CredentialFile, endpoints: &Endpoints) -> Result<ServiceAccount, String> {
    let (own, universe) = (address(file.token_uri), set(file.universe_domain));
    if let Some(own) = own.as_deref().filter(|_| endpoints.token.is_none()) {
        confidential(own, "token_uri")?;
    }
    let token_uri = token_uri(endpoints, own.as_deref(), universe.as_deref())?;
    let email = need(file.client_email, "client_email")?;
    let pem = secret(file.private_key, "private_key")?;
    // If the operator names a token endpoint, exchange there even in other universes.
    let exchanges = endpoints.token.is_some() || endpoints.universe(universe.as_deref()) == UNIVERSE;
    ServiceAccount::new(email, set(file.private_key_id), pem, token_uri, exchanges)
}

fn login(file: CredentialFile, again: &LoginCommand) -> Result<AuthorizedUser, String> {
    Ok(AuthorizedUser::new(
        need(file.client_id, "client_id")?,
        // Some clients have an empty one, and the token endpoint is who decides.
        file.client_secret.ok_or("it has no client_secret")?,
        secret(file.refresh_token, "refresh_token")?,
        set(file.account),
        again.clone(),
    ))
}

fn workforce(
    file: CredentialFile,
    endpoints: &Endpoints,
    again: &LoginCommand,
) -> Result<ExternalAccountAuthorizedUser, String> {
    let universe = set(file.universe_domain);
    // The config's token endpoint does not apply: it belongs to another server.
    let token_url = match address(file.token_url) {
        Some(own) => confidential(&own, "token_url").map(|()| own)?,
        None => format!("https://sts.{}/v1/oauthtoken", endpoints.universe(universe.as_deref())),
    };
    let client_id = need(file.client_id, "client_id")?;
    let client_secret = secret(file.client_secret, "client_secret")?;
    let refresh_token = secret(file.refresh_token, "refresh_token")?;
    Ok(ExternalAccountAuthorizedUser::new(
        set(file.audience),
        token_url,
        &client_id,
        &client_secret,
        refresh_token,
        again.with_config(),
    ))
}

/// With an impersonation URL, the impersonated account on top of the federated identity.
fn external_account(
    file: CredentialFile,
    (endpoints, variables, _): With<'_>,
) -> Result<CredentialKind, String> {
    let url = address(file.service_account_impersonation_url);
    let longest = file.service_account_impersonation.and_then(|of| of.token_lifetime_seconds);
    let universe = set(file.universe_domain);
    let fields = external_account::ExternalAccountFields {
        audience: file.audience,
        subject_token_type: file.subject_token_type,
        token_url: file.token_url,
        token_info_url: file.token_info_url,
        client_id: file.client_id,
        client_secret: file.client_secret,
        workforce_pool_user_project: file.workforce_pool_user_project,
        credential_source: file.credential_source,
        universe: universe.clone(),
        account: url.as_deref().and_then(impersonated::account_of),
    };
    let federated = CredentialKind::ExternalAccount(Box::new(fields.federated(endpoints, variables)?));
    let Some(url) = url else { return Ok(federated) };
    let mut source = Credential::unfiled(federated);
    source.universe = universe;
    Ok(CredentialKind::Impersonated(Box::new(Impersonated::new(source, &url, vec![], longest, endpoints)?)))
}

fn impersonated(file: CredentialFile, with: With<'_>, depth: usize) -> Result<Impersonated, String> {
    let source = file.source_credentials.ok_or("it has no source_credentials")?;
    let url = need(address(file.service_account_impersonation_url), "service_account_impersonation_url")?;
    // gcloud writes one impersonation, with delegates, over a login; deeper nesting is hand-made.
    let delegates = file.delegates.unwrap_or_default();
    let chain: Vec<String> = delegates.iter().map(|one| impersonated::bare(one)).collect();
    let (endpoints, variables, again) = with;
    let outermost = impersonated::account_of(&url).filter(|_| depth == 0);
    let again = outermost.map_or_else(|| again.clone(), |account| again.impersonating(&account, &chain));
    let with = (endpoints, variables, &again);
    let mut source =
        understand(*source, with, depth + 1).map_err(|why| format!("its source_credentials: {why}"))?;
    source.universe = source.universe.or_else(|| set(file.universe_domain));
    let longest = file.service_account_impersonation.and_then(|of| of.token_lifetime_seconds);
    Impersonated::new(source, &url, delegates, longest, endpoints)
}

/// Checked here because yup panics on a URL that does not parse.
fn token_uri(endpoints: &Endpoints, file: Option<&str>, universe: Option<&str>) -> Result<String, String> {
    let uri = endpoints.token(file, endpoints.universe(universe));
    match uri.parse::<hyper::Uri>() {
        Ok(parsed) if parsed.host().is_some() && matches!(parsed.scheme_str(), Some("http" | "https")) => {
            Ok(uri)
        }
        _ => Err("the token endpoint is not an http or https address".into()),
    }
}
