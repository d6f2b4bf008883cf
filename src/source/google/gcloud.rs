//! gcloud: its configuration, the last place to look up account and project (decision 19), and its own login
//! as a source if there are no application default credentials.
//!
//! kfp-creds runs the program and does not read its credential store:
//! `gcloud config config-helper --format=json` is the command for tools that need a token *and its expiry*
//! (`gcloud auth print-access-token` prints none).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::failure::Reason;
use crate::quote;
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::command::HelperCommand;
use crate::source::expiry::life;
use crate::source::google::names::is_domain_in_host;
use crate::source::jwt;
use crate::source::variables::Variables;
use crate::token::{AccessToken, Deadline, IdentityToken, MintId, Now, Scopes};

/// gcloud is a Python program and slow to start.
const LONGEST_RUN: Duration = Duration::from_secs(20);
/// gcloud answers from a cache, and first renews a token that has less than this left.
const LEAST_LEFT: &str = "30m";
/// The command that a user runs when gcloud's login no longer works.
const LOGIN: &str = "gcloud auth login";

/// The gcloud program, run to get tokens of its active account.
#[derive(Debug)]
pub(super) struct Gcloud {
    command: HelperCommand,
    directory: Option<PathBuf>,
    variables: Variables,
    /// gcloud's configuration at the last check; read on every request.
    known: Mutex<Defaults>,
}

/// The needed part of `config-helper`'s output.
#[derive(Debug, Deserialize)]
struct Helped {
    credential: HelperCredential,
}

#[derive(Debug, Deserialize)]
struct HelperCredential {
    access_token: Secret<String>,
    token_expiry: String,
}

impl Gcloud {
    pub(super) fn new(path: PathBuf, directory: Option<PathBuf>, variables: Variables) -> Self {
        let known = Mutex::new(Defaults::read(directory.as_deref(), &variables));
        let inherited = variables.all().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let environment = inherited.chain([("CLOUDSDK_CORE_DISABLE_PROMPTS".into(), "1".into())]).collect();
        let command = HelperCommand { program: path, arguments: vec![], environment, timeout: LONGEST_RUN };
        Self { command, directory, variables, known }
    }

    pub(super) fn defaults(&self) -> Defaults {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the configuration again; true if another account is now active.
    pub(super) fn switched(&self) -> bool {
        let now = Defaults::read(self.directory.as_deref(), &self.variables);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let switched = known.account != now.account;
        *known = now;
        switched
    }

    pub(super) async fn request_token(&self) -> Result<AccessToken, SourceError> {
        let now = Now::read();
        let minimum = format!("--min-expiry={LEAST_LEFT}");
        let printed = self.run(&["config", "config-helper", "--format=json", &minimum]).await?;
        let unread = || SourceError::transient("gcloud's answer is not understood; is it a recent one?");
        let helped: Helped = serde_json::from_slice(printed.expose()).map_err(|_| unread())?;
        let end = OffsetDateTime::parse(&helped.credential.token_expiry, &Rfc3339).map_err(|_| unread())?;
        let value = helped.credential.access_token;
        if value.expose().is_empty() {
            return Err(unread());
        }
        // gcloud computed the expiry by this machine's clock.
        let left = std::time::SystemTime::from(end).duration_since(now.wall).unwrap_or_default();
        let expires = Deadline::after(now, life(left)?);
        Ok(AccessToken::new(value, expires, Scopes::default()))
    }

    /// Works if the active account is a service account; a user's ID token has gcloud as its only audience.
    pub(super) async fn request_identity(&self, audience: &str) -> Result<IdentityToken, SourceError> {
        let account = self.defaults().account.unwrap_or_default();
        if !account.ends_with(".gserviceaccount.com") {
            return Err(SourceError::refused(Reason::advice(
                "a user login cannot make ID tokens for an audience; name a service account with --impersonate",
            )));
        }
        let now = Now::read();
        let wanted = format!("--audiences={audience}");
        let printed = self.run(&["auth", "print-identity-token", &wanted]).await?;
        let text = std::str::from_utf8(printed.expose()).unwrap_or_default().trim();
        let end = jwt::unverified_claims(text).and_then(|claims| jwt::expiry(&claims));
        let end = end
            .ok_or_else(|| SourceError::transient("gcloud printed no ID token with an expiry; try again"))?;
        let left = end.duration_since(now.wall).unwrap_or_default();
        let expires = Deadline::after(now, life(left)?);
        Ok(IdentityToken { value: Secret::new(text.to_owned()), expires, id: MintId::random() })
    }

    /// Runs gcloud. Its stderr is written for users and may be long, so errors name the kind of failure and
    /// do not quote it.
    async fn run(&self, arguments: &[&str]) -> Result<Secret<Vec<u8>>, SourceError> {
        let arguments = arguments.iter().map(|&word| word.to_owned()).collect();
        let ran = HelperCommand { arguments, ..self.command.clone() }.hear().await?;
        if ran.success {
            return Ok(ran.output);
        }
        if is_logged_out(&String::from_utf8_lossy(ran.said.expose()).to_lowercase()) {
            return Err(SourceError::refused(Reason::advice(format!(
                "gcloud's login has expired or was withdrawn; run `{LOGIN}` on the host"
            ))));
        }
        Err(SourceError::transient("gcloud failed; see what `gcloud config config-helper` says"))
    }
}

/// Whether gcloud's stderr, in lower case, reports a problem with the login itself. Its advice to log in
/// proves nothing: gcloud prints it after any failed refresh, including network failures.
fn is_logged_out(said: &str) -> bool {
    const ENDED: [&str; 2] = ["invalid_grant", "invalid_rapt"];
    /// Words in network errors of Python's HTTP libraries, which may quote the re-authentication host.
    const UNREACHED: [&str; 6] =
        ["connectionpool", "max retries", "resolv", "timed out", "connection aborted", "unreachable"];
    const AGAIN: [&str; 3] = ["reauth", "active account selected", "any valid credentials"];
    let any = |words: &[&str]| words.iter().any(|word| said.contains(word));
    any(&ENDED) || (!any(&UNREACHED) && any(&AGAIN))
}

/// The values gcloud would use: from its variables, else from the active configuration.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Defaults {
    pub(super) account: Option<String>,
    pub(super) project: Option<String>,
    pub(super) quota_project: Option<String>,
    pub(super) universe: Option<String>,
}

impl Defaults {
    /// Treats missing or unreadable values as absent: this is a fallback for names, never a credential.
    pub(super) fn read(directory: Option<&Path>, variables: &Variables) -> Self {
        let mut found = directory
            .map(|directory| Self::configured(directory, variables.text("CLOUDSDK_ACTIVE_CONFIG_NAME")))
            .unwrap_or_default();
        for (name, value) in [
            ("CLOUDSDK_CORE_ACCOUNT", &mut found.account),
            ("CLOUDSDK_CORE_PROJECT", &mut found.project),
            ("CLOUDSDK_CORE_UNIVERSE_DOMAIN", &mut found.universe),
            ("CLOUDSDK_BILLING_QUOTA_PROJECT", &mut found.quota_project),
        ] {
            *value = variables.text(name).map(str::to_owned).or_else(|| value.take());
        }
        // The values are shown to users and containers, so drop any that cannot be a name.
        for value in [&mut found.account, &mut found.project, &mut found.quota_project] {
            *value = value.take().filter(|text| quote::is_plain(text));
        }
        found.universe = found.universe.filter(|universe| is_domain_in_host(universe));
        found.quota_project = match found.quota_project.as_deref() {
            Some("CURRENT_PROJECT") => found.project.clone(),
            Some(id) if !id.bytes().any(|b| b.is_ascii_uppercase()) => Some(id.to_owned()),
            // `LEGACY` and similar: no project, or one of gcloud's own.
            _ => None,
        };
        found
    }

    /// Reads `configurations/config_NAME`; without a name, the one in `active_config`.
    fn configured(directory: &Path, named: Option<&str>) -> Self {
        let active = named
            .map(str::to_owned)
            .unwrap_or_else(|| fs::read_to_string(directory.join("active_config")).unwrap_or_default());
        let active = match active.trim() {
            "" => "default",
            // The name becomes part of a path, so its characters are restricted.
            name if name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') => name,
            _ => return Self::default(),
        };
        let file = directory.join("configurations").join(format!("config_{active}"));
        fs::read_to_string(file).map(|text| Self::parse(&text)).unwrap_or_default()
    }

    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        let mut section = "";
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = name.trim();
            } else if let Some((key, value)) = line.split_once('=') {
                let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
                match (section, key.trim()) {
                    ("core", "account") => found.account = value,
                    ("core", "project") => found.project = value,
                    ("core", "universe_domain") => found.universe = value,
                    ("billing", "quota_project") => found.quota_project = value,
                    _ => {}
                }
            }
        }
        found
    }
}

/// The file that `gcloud auth application-default login` writes, in gcloud's directory.
pub(super) const ADC: &str = "application_default_credentials.json";

/// `$CLOUDSDK_CONFIG`, else `~/.config/gcloud`.
pub(super) fn directory(cloudsdk_config: Option<&Path>, home: Option<&Path>) -> Option<PathBuf> {
    let set = cloudsdk_config.filter(|path| !path.as_os_str().is_empty());
    set.map(Path::to_owned).or_else(|| Some(home?.join(".config").join("gcloud")))
}

/// The path where Google's libraries look for a credential file, which may not exist. A variable that names
/// one takes precedence.
pub fn adc(named: Option<PathBuf>, cloudsdk_config: Option<PathBuf>, home: Option<&Path>) -> Option<PathBuf> {
    let named = named.filter(|path| !path.as_os_str().is_empty());
    named.or_else(|| Some(directory(cloudsdk_config.as_deref(), home)?.join(ADC)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_core_section_counts() {
        let text = "quota_project = no\n[billing]\nquota_project=payer\n[compute]\nproject = wrong\n# project = no\n[core]\n account = dev@example.com\nproject=my-project\ndisable_prompts = True\n[x]\naccount = wrong\n";
        let found = Defaults::parse(text);
        assert_eq!(found.account.as_deref(), Some("dev@example.com"));
        assert_eq!(found.project.as_deref(), Some("my-project"));
        assert_eq!(found.quota_project.as_deref(), Some("payer"));
        assert_eq!(Defaults::parse("project = x\nnonsense"), Defaults::default());
    }

    #[test]
    fn an_invalid_quota_project_or_universe_is_dropped() {
        let read = |name: &str, value: &str| {
            let all = [("CLOUDSDK_CORE_PROJECT", "p"), (name, value)];
            Defaults::read(
                None,
                &all.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect(),
            )
        };
        for (said, meant) in
            [("payer", Some("payer")), ("CURRENT_PROJECT", Some("p")), ("LEGACY", None), ("", None)]
        {
            let found = read("CLOUDSDK_BILLING_QUOTA_PROJECT", said);
            assert_eq!(found.quota_project.as_deref(), meant, "{said}");
        }
        assert_eq!(read("CLOUDSDK_CORE_UNIVERSE_DOMAIN", "u.example").universe.as_deref(), Some("u.example"));
        assert_eq!(read("CLOUDSDK_CORE_UNIVERSE_DOMAIN", "u.example/x").universe, None);
    }

    #[test]
    fn only_the_known_message_means_an_ended_login() {
        let offline = "error: (gcloud.config.config-helper) there was a problem refreshing your current auth \
                       tokens: httpsconnectionpool(host='oauth2.googleapis.com', port=443): max retries exceeded \
                       (nameresolutionerror: failed to resolve); please run: $ gcloud auth login";
        for passing in [
            offline,
            &offline.replace("oauth2", "reauth"),
            "problem refreshing your current auth tokens: internal_failure; please run: $ gcloud auth login",
            "read timed out; please run: $ gcloud auth login",
            "crashed",
        ] {
            assert!(!is_logged_out(passing), "{passing}");
        }
        for ended in [
            "problem refreshing your current auth tokens: ('invalid_grant: bad request')",
            "invalid_grant: reauth related error (invalid_rapt)",
            "reauthentication failed. cannot prompt during non-interactive execution.",
            "you do not currently have an active account selected.",
            "your current active account does not have any valid credentials",
        ] {
            assert!(is_logged_out(ended), "{ended}");
        }
    }
}
