//! Programs that print tokens: the Azure CLI with its own login, and commands that print as it does.
//!
//! `az account get-access-token` prints `accessToken` and, from version 2.54 on, `expires_on` in seconds since 1970.
//! Its `expiresOn` is a local time without a zone, so it is never used; before 2.54 the token's own `exp` counts.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;

use crate::failure::Reason;
use crate::quote;
use crate::secret::Secret;
use crate::source::azure::AzureRequest;
use crate::source::azure::refusals::{BUSY, ProofKind, Requested};
use crate::source::command::HelperCommand;
use crate::source::expiry::life;
use crate::source::http::fault::entra_number;
use crate::source::http::request::seconds;
use crate::source::http::secure_url::is_local;
use crate::source::stamp::Stamp;
use crate::source::variables::Variables;
use crate::source::{Reloaded, SourceError, jwt};
use crate::token::{AzureToken, Deadline, MintId, Now, RenderedReply};

/// The Azure CLI is a Python program and slow to start.
const LONGEST_RUN: Duration = Duration::from_secs(20);

/// The placeholder for the requested resource in the arguments of a command.
const RESOURCE: &str = "{resource}";
/// The variable with the requested resource in the environment of a command.
const RESOURCE_VARIABLE: &str = "AZURE_RESOURCE";

#[derive(Debug)]
pub(super) struct Az {
    command: HelperCommand,
    tenant: Option<String>,
    /// `azureProfile.json`, which a login and `az account set` rewrite.
    profile: Option<PathBuf>,
    seen: Mutex<(Option<Stamp>, Option<Vec<u8>>)>,
}

/// The fields that are read from the output.
#[derive(Deserialize)]
struct Printed {
    #[serde(rename = "accessToken")]
    access_token: Secret<String>,
    expires_on: Option<Value>,
}

impl Az {
    pub(super) fn new(tenant: Option<String>, variables: &Variables) -> Result<Self, SourceError> {
        let program = variables.program("az").ok_or_else(|| {
            SourceError::absent(
                "az, the Azure CLI, is not on the PATH; install it, or name other credentials",
            )
        })?;
        let environment = inherited(variables);
        let command = HelperCommand { program, arguments: vec![], environment, timeout: LONGEST_RUN };
        let named = variables.text("AZURE_CONFIG_DIR").map(PathBuf::from);
        let usual = || variables.text("HOME").map(|home| Path::new(home).join(".azure"));
        let profile = named.or_else(usual).map(|folder| folder.join("azureProfile.json"));
        let az = Self { command, tenant, profile, seen: Mutex::default() };
        az.reload();
        Ok(az)
    }

    pub(super) fn patience(&self) -> Duration {
        self.command.timeout
    }

    pub(super) async fn token(&self, ask: &AzureRequest) -> Result<AzureToken, SourceError> {
        let now = Now::read();
        let mut arguments =
            vec!["account", "get-access-token", "--output", "json", "--resource", &ask.resource];
        arguments.extend(self.tenant.iter().flat_map(|tenant| ["--tenant", tenant]));
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        let command = HelperCommand { arguments, ..self.command.clone() };
        let ran = command.hear().await?;
        if ran.success {
            return read(ran.output.expose(), "az", now, ask);
        }
        Err(self.failed(&String::from_utf8_lossy(ran.said.expose()), ask))
    }

    /// Runs az. Its stderr is written for users and quotes much of the request, so errors name only the kind of failure.
    fn failed(&self, said: &str, ask: &AzureRequest) -> SourceError {
        let resource = &ask.resource;
        let requested = Requested {
            client_id: "the Azure CLI",
            tenant: self.tenant.as_deref().unwrap_or("of the login"),
            resource,
            by: ProofKind::Az,
        };
        if let Some(number) = entra_number(said).filter(|number| *number != BUSY) {
            let why = requested.explained(number).unwrap_or_else(|| see(resource));
            return SourceError::refused(Reason::advice(format!("az: AADSTS{number}: {why}")));
        }
        let said = said.to_lowercase();
        match () {
            () if is_unreached(&said) => SourceError::transient("az cannot reach Azure"),
            () if said.contains("az login") => {
                SourceError::refused(Reason::advice("az is not logged in; run: az login"))
            }
            () => SourceError::transient(format!("az failed; {}", see(resource))),
        }
    }

    /// Whether somebody logged in, logged out or chose another subscription.
    pub(super) fn reload(&self) -> Reloaded {
        let Some(profile) = &self.profile else { return Reloaded::Same };
        let stamp = Stamp::of(profile);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0 == stamp {
            return Reloaded::Same;
        }
        let content = fs::read(profile).ok();
        let same = seen.1 == content;
        *seen = (stamp, content);
        if same { Reloaded::Renewed } else { Reloaded::OtherAccount }
    }
}

fn see(resource: &str) -> String {
    format!("see what `az account get-access-token --resource {resource}` says")
}

/// Whether stderr, in lower case, reports a failure of the network.
fn is_unreached(said: &str) -> bool {
    ["connectionpool", "max retries", "timed out", "connection aborted", "unreachable", "failed to resolve"]
        .iter()
        .any(|word| said.contains(word))
}

/// A command of the config.
#[derive(Debug)]
pub(super) struct TokenCommand {
    pub(super) command: HelperCommand,
}

impl TokenCommand {
    pub(super) fn patience(&self) -> Duration {
        self.command.timeout
    }

    pub(super) async fn token(&self, ask: &AzureRequest) -> Result<AzureToken, SourceError> {
        let now = Now::read();
        let arguments =
            self.command.arguments.iter().map(|word| word.replace(RESOURCE, &ask.resource)).collect();
        let command = HelperCommand { arguments, ..self.command.clone() };
        let name = quote::path(&command.program);
        let ran = command.run("", &[(RESOURCE_VARIABLE, &ask.resource)]).await?;
        if !ran.success {
            return Err(SourceError::refused(format!(
                "the command {name} failed; its error output is on the terminal of kfp-creds"
            )));
        }
        read(ran.output.expose(), &name, now, ask)
    }
}

/// The printed token. Its lifetime counts from `now`, before the program ran: too short rather than too long.
fn read(printed: &[u8], name: &str, now: Now, ask: &AzureRequest) -> Result<AzureToken, SourceError> {
    // serde's messages quote the input, which may be a token.
    let printed: Printed = serde_json::from_slice(printed).map_err(|_| {
        SourceError::refused(format!(
            "what {name} printed is not understood: it is no JSON with an accessToken"
        ))
    })?;
    let value = printed.access_token;
    if value.expose().is_empty() || !value.expose().bytes().all(|b| b.is_ascii_graphic()) {
        return Err(SourceError::refused(format!("{name} printed an accessToken that is not a token")));
    }
    let written = printed.expires_on.as_ref().and_then(end);
    let own = || jwt::unverified_claims(value.expose()).and_then(|claims| jwt::expiry(&claims));
    let end = written.or_else(own).ok_or_else(|| {
        SourceError::refused(format!(
            "{name} did not say when its token expires (expires_on, in seconds since 1970), and such a token is not \
             used; update it"
        ))
    })?;
    let left = end.duration_since(now.wall).unwrap_or_default();
    let expires = Deadline::after(now, life(left)?);
    Ok(AzureToken {
        value,
        expires,
        resource: ask.resource.clone(),
        client_id: None,
        id: MintId::random(),
        shown: RenderedReply::default(),
    })
}

/// Seconds since 1970, as a number or as text.
pub(super) fn end(written: &Value) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(seconds(written)?)
}

/// The variables that az inherits, without an identity endpoint on this machine: that endpoint is kfp-creds itself,
/// and az would ask kfp-creds for the tokens that az is to return.
fn inherited(variables: &Variables) -> Vec<(String, String)> {
    let ours = |endpoint: &str| variables.text(endpoint).is_some_and(is_local);
    let (app_service, older) = (ours("IDENTITY_ENDPOINT"), ours("MSI_ENDPOINT"));
    let passes = |name: &str| match name {
        "IDENTITY_ENDPOINT" | "IDENTITY_HEADER" => !app_service,
        "MSI_ENDPOINT" | "MSI_SECRET" => !older,
        _ => true,
    };
    let passed = variables.all().filter(|(name, _)| passes(name));
    passed.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ask() -> AzureRequest {
        AzureRequest { client_id: None, resource: "https://storage.azure.com".into(), holder: None }
    }

    fn left(printed: &Value) -> Result<u64, String> {
        let now = Now::read();
        let token = read(printed.to_string().as_bytes(), "az", now, &ask());
        token.map(|token| token.expires.remaining(now).as_secs()).map_err(|why| why.to_string())
    }

    #[test]
    fn an_expiry_is_a_number_of_seconds_and_never_a_local_time() {
        let at = jwt::seconds(SystemTime::now()) + 3600;
        let own = jwt::signing_input(&Value::Null, &json!({"exp": at - 1800}));
        let own = format!("{own}.c2ln");
        let local = "2099-01-01 00:00:00.000000";
        for (printed, wanted) in [
            (json!({"accessToken": "t", "expires_on": at, "expiresOn": local}), 3600),
            (json!({"accessToken": "t", "expires_on": at.to_string()}), 3600),
            (json!({"accessToken": own, "expires_on": at}), 3600),
            (json!({"accessToken": own, "expiresOn": local}), 1800),
        ] {
            let left = left(&printed).unwrap();
            assert!((wanted - 2..=wanted).contains(&left), "{left} of {wanted}");
        }
        for (bad, words) in [
            (json!({"accessToken": "canary", "expiresOn": local}), "expires_on"),
            (json!({"accessToken": "canary", "expires_on": "soon"}), "expires_on"),
            (json!({"accessToken": "canary", "expires_on": at - 7200}), "already expired"),
            (json!({"accessToken": "canary two", "expires_on": at}), "accessToken"),
            (json!({"accessToken": "", "expires_on": at}), "accessToken"),
            (json!({"access_token": "canary", "expires_on": at}), "accessToken"),
            (json!(["canary"]), "accessToken"),
        ] {
            let why = left(&bad).unwrap_err();
            assert!(why.contains(words) && !why.contains("canary"), "{why}");
        }
    }

    #[test]
    fn az_is_not_sent_to_kfp_creds_itself() {
        let names = ["HOME", "IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT", "MSI_SECRET"];
        let passed = |identity: &str, older: &str| {
            let values = ["/home/me", identity, "header", older, "secret"];
            let all = names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), value.to_owned()));
            inherited(&all.collect()).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        let far = "http://169.254.130.2:8081/msi/token";
        assert_eq!(passed(far, far), names);
        assert_eq!(passed("http://127.0.0.1:8174/secret/msi/token", far), [names[0], names[3], names[4]]);
        assert_eq!(passed(far, "http://localhost:8174/msi"), names[..3]);
    }

    #[test]
    fn stderr_tells_the_failure_and_is_not_quoted() {
        let variables = Variables::default();
        let command = HelperCommand {
            program: "az".into(),
            arguments: vec![],
            environment: vec![],
            timeout: LONGEST_RUN,
        };
        let az = Az { command, tenant: None, profile: None, seen: Mutex::default() };
        assert!(Az::new(None, &variables).is_err_and(|why| why.to_string().contains("not on the PATH")));
        for (said, transient, words) in [
            ("ERROR: Please run 'az login' to setup account. canary", false, "run: az login"),
            ("ERROR: AADSTS70043: canary. To re-authenticate, please run: az login", false, "run: az login"),
            ("AADSTS50076: canary", false, "az login --scope https://storage.azure.com/.default"),
            ("AADSTS1234567: canary", false, "AADSTS1234567: see what `az account"),
            ("HTTPSConnectionPool(host='canary'): Max retries exceeded; az login", true, "cannot reach"),
            ("AADSTS90033: canary", true, "az failed"),
            ("Traceback: canary", true, "see what `az account"),
        ] {
            let why = az.failed(said, &ask());
            assert_eq!(matches!(why, SourceError::Transient(_)), transient, "{said}");
            let why = why.to_string();
            assert!(why.contains(words) && !why.contains("canary"), "{why}");
        }
    }
}
