//! gcloud: its configuration, the last place where account and project are looked up (decision 19), and its
//! own login as a source, where there are no application default credentials.
//!
//! The program is asked, and its credential store left alone: `gcloud config config-helper --format=json` is
//! the command for tools that need a token *and its expiry* (`gcloud auth print-access-token` prints none).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::google::life;
use crate::source::jwt;
use crate::token::{AccessToken, Deadline, IdentityToken, MintId, Now, Scopes};

/// It is Python and reads much before it works.
const LONGEST_RUN: Duration = Duration::from_secs(20);
/// gcloud answers from a cache; what has less than this left is renewed by it first.
const LEAST_LEFT: &str = "30m";
/// What a person runs when gcloud's login does not work any more.
const LOGIN: &str = "gcloud auth login";

/// The program, asked for tokens of its active account.
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    directory: Option<PathBuf>,
    /// Its configuration at the last look: it is asked for on every request.
    known: Mutex<Defaults>,
}

/// What `config-helper` prints, as far as it is needed.
#[derive(Debug, Deserialize)]
struct Helped {
    credential: Credential,
}

#[derive(Debug, Deserialize)]
struct Credential {
    access_token: Secret<String>,
    token_expiry: String,
}

impl Program {
    pub(super) fn new(path: PathBuf, directory: Option<PathBuf>) -> Self {
        let known = Mutex::new(directory.as_deref().map(Defaults::read).unwrap_or_default());
        Self { path, directory, known }
    }

    pub(super) fn defaults(&self) -> Defaults {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at the configuration again; true where another account is the active one.
    pub(super) fn switched(&self) -> bool {
        let now = self.directory.as_deref().map(Defaults::read).unwrap_or_default();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let switched = known.account != now.account;
        *known = now;
        switched
    }

    pub(super) async fn access(&self) -> Result<AccessToken, SourceError> {
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
        // gcloud computed it by this machine's clock.
        let left = std::time::SystemTime::from(end).duration_since(now.wall).unwrap_or_default();
        let expires = Deadline::after(now, life(left)?);
        Ok(AccessToken { value, expires, scopes: Scopes::default(), id: MintId::random() })
    }

    /// Possible where the active account is a service account; a person's has one audience, which is gcloud.
    pub(super) async fn identity(&self, audience: &str) -> Result<IdentityToken, SourceError> {
        let account = self.defaults().account.unwrap_or_default();
        if !account.ends_with(".gserviceaccount.com") {
            return Err(SourceError::refused(
                "a user login cannot make ID tokens for an audience; name a service account with --impersonate",
            ));
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

    /// What it prints on stderr is for a person and may be long: its kind of trouble is recognised, not quoted.
    async fn run(&self, arguments: &[&str]) -> Result<Secret<Vec<u8>>, SourceError> {
        let mut command = tokio::process::Command::new(&self.path);
        command.args(arguments).env("CLOUDSDK_CORE_DISABLE_PROMPTS", "1").kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let ended = tokio::time::timeout(LONGEST_RUN, command.output()).await;
        let ended = ended.map_err(|_| {
            SourceError::transient(format!("gcloud gave no answer within {} s", LONGEST_RUN.as_secs()))
        })?;
        let ended = ended.map_err(|error| {
            SourceError::refused(format!("{} cannot be run: {error}", self.path.display()))
        })?;
        let printed = Secret::new(ended.stdout);
        if ended.status.success() {
            return Ok(printed);
        }
        let said = Secret::new(ended.stderr);
        let said = String::from_utf8_lossy(said.expose()).to_lowercase();
        let again = ["reauth", "invalid_grant", "invalid_rapt", "login", "refresh"];
        if again.iter().any(|word| said.contains(word)) {
            return Err(SourceError::refused(format!(
                "gcloud's login has expired or was withdrawn; run `{LOGIN}` on the host"
            )));
        }
        Err(SourceError::transient(format!(
            "gcloud failed ({}); see what `gcloud config config-helper` says",
            ended.status
        )))
    }
}

/// `[core]` of the active configuration.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Defaults {
    pub(super) account: Option<String>,
    pub(super) project: Option<String>,
}

impl Defaults {
    /// Reads `active_config` and `configurations/config_<active>`. What is missing or unreadable is absent:
    /// this is a fallback for names, never a credential.
    pub(super) fn read(directory: &Path) -> Self {
        let active = fs::read_to_string(directory.join("active_config")).unwrap_or_default();
        let active = match active.trim() {
            "" => "default",
            // The name becomes part of a path.
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
            } else if let Some((key, value)) = line.split_once('=')
                && section == "core"
            {
                let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
                match key.trim() {
                    "account" => found.account = value,
                    "project" => found.project = value,
                    _ => {}
                }
            }
        }
        found
    }
}

/// `$CLOUDSDK_CONFIG`, else `~/.config/gcloud`.
pub(super) fn directory(cloudsdk_config: Option<&Path>, home: Option<&Path>) -> Option<PathBuf> {
    let set = cloudsdk_config.filter(|path| !path.as_os_str().is_empty());
    set.map(Path::to_owned).or_else(|| Some(home?.join(".config").join("gcloud")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_core_counts() {
        let text = "[compute]\nproject = wrong\n# project = no\n[core]\n account = dev@example.com\nproject=my-project\ndisable_prompts = True\n[x]\naccount = wrong\n";
        let found = Defaults::parse(text);
        assert_eq!(found.account.as_deref(), Some("dev@example.com"));
        assert_eq!(found.project.as_deref(), Some("my-project"));
        assert_eq!(Defaults::parse("project = x\nnonsense"), Defaults::default());
    }
}
