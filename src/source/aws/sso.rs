//! IAM Identity Center (SSO): a person's login, as `aws sso login` leaves it in `~/.aws/sso/cache`, gives the keys of
//! a role.
//!
//! An expired access token is refreshed here if the login allows it. The new token stays in memory and is used until
//! AWS's tools write a newer one: the cache belongs to those tools, which write it whole and without a lock, and
//! kfp-creds writes no token to disk.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hyper::Method;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::Reason;
use crate::quote::{self, hex};
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::aws::endpoint;
use crate::source::aws::keys::{Keys, moment, of_millis};
use crate::source::expiry::{LONGEST_LIFE, life};
use crate::source::http::client::Upstream;
use crate::source::http::fault::Fault;
use crate::source::http::request::{Call, seconds};
use crate::source::stamp::Stamp;
use crate::source::subject::read;
use crate::source::variables::Variables;
use crate::token::Now;

/// A token with less life left is refreshed: it has to last for one request.
const FLOOR: Duration = Duration::from_secs(120);

/// A login, and the role that its keys are for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Login {
    /// A name for messages.
    pub(super) profile: String,
    /// The name of the `sso-session` section; profiles of the older form have none.
    pub(super) session: Option<String>,
    pub(super) start_url: String,
    pub(super) region: String,
    pub(super) account: String,
    pub(super) role: String,
}

/// A file of the cache.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CachedLogin {
    access_token: Option<Secret<String>>,
    expires_at: Option<String>,
    refresh_token: Option<Secret<String>>,
    client_id: Option<Secret<String>>,
    client_secret: Option<Secret<String>>,
    registration_expires_at: Option<String>,
}

/// `CreateToken` of the service's OIDC API.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Refresh<'a> {
    client_id: &'a str,
    client_secret: &'a str,
    grant_type: &'static str,
    refresh_token: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    access_token: Option<Secret<String>>,
    expires_in: Option<Value>,
    refresh_token: Option<Secret<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RoleCredentialsReply {
    role_credentials: Option<RoleCredentials>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RoleCredentials {
    access_key_id: Option<Secret<String>>,
    secret_access_key: Option<Secret<String>>,
    session_token: Option<Secret<String>>,
    /// Milliseconds since the epoch.
    expiration: Option<u64>,
}

/// The last token that was refreshed here, with the state of the file at that time.
#[derive(Default)]
pub(super) struct Refreshed(Mutex<Option<Renewed>>);

struct Renewed {
    file: (PathBuf, Option<Stamp>),
    access: Secret<String>,
    ends: SystemTime,
    refresh: Option<Secret<String>>,
}

impl fmt::Debug for Refreshed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Refreshed(..)")
    }
}

impl Login {
    /// The file of the login: named by the SHA-1 of the session's name, or of the start URL.
    pub(super) fn file(&self, home: Option<&Path>) -> Option<PathBuf> {
        let key = self.session.as_ref().unwrap_or(&self.start_url);
        let name = hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes()).as_ref());
        Some(home?.join(".aws/sso/cache").join(format!("{name}.json")))
    }

    fn lapsed(&self, why: &str) -> SourceError {
        let command = match &self.session {
            Some(session) => format!("aws sso login --sso-session {}", quote::name(session)),
            None => format!("aws sso login --profile {}", quote::name(&self.profile)),
        };
        SourceError::refused(Reason::advice(format!("{why}; run: {command}")))
    }

    /// The role's keys.
    pub(super) async fn keys(
        &self,
        home: Option<&Path>,
        variables: &Variables,
        upstream: &Upstream,
        refreshed: &Refreshed,
    ) -> Result<Keys, SourceError> {
        let token = self.token(home, variables, upstream, refreshed).await?;
        let base = endpoint::named("SSO", variables)?.unwrap_or_else(|| endpoint::portal(&self.region));
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("role_name", &self.role)
            .append_pair("account_id", &self.account)
            .finish();
        let url = format!("{base}/federation/credentials?{query}");
        let call = Call::bare(Method::GET, &url).named("x-amz-sso_bearer_token", &token)?;
        let answer = upstream.send(&call).await.map_err(|fault| self.refused(fault))?;
        let given: RoleCredentialsReply = answer.json()?;
        let place = format!("the AWS SSO portal of {}", quote::name(&self.region));
        let incomplete = || SourceError::transient(format!("{place} gave no keys with an end; try again"));
        let given = given.role_credentials.ok_or_else(incomplete)?;
        let end = given.expiration.and_then(of_millis).ok_or_else(incomplete)?;
        let keys = Keys::new(given.access_key_id, given.secret_access_key, given.session_token, &place)?;
        let mut keys = keys.until(end, answer.sent, answer.date, LONGEST_LIFE, &place)?.of_role();
        keys.account = Some(self.account.clone());
        Ok(keys)
    }

    fn refused(&self, fault: Fault) -> SourceError {
        let Fault::Denied(denial) = &fault else { return fault.into() };
        let (role, account) = (quote::name(&self.role), quote::name(&self.account));
        match denial.status {
            401 => self.lapsed("the AWS SSO login is not accepted any more"),
            403 | 404 => SourceError::refused(format!(
                "the AWS SSO login may not use the role {role} of the account {account} ({denial}); compare sso_role_name and \
                 sso_account_id with `aws sso list-account-roles`"
            )),
            _ => fault.into(),
        }
    }

    async fn token(
        &self,
        home: Option<&Path>,
        variables: &Variables,
        upstream: &Upstream,
        refreshed: &Refreshed,
    ) -> Result<Secret<String>, SourceError> {
        let file =
            self.file(home).ok_or_else(|| SourceError::refused("HOME is not set, so there is no ~/.aws"))?;
        let stamp = Stamp::of(&file);
        let cached = self.cached(&file)?;
        let now = SystemTime::now();
        let lasts = |ends: SystemTime| ends.duration_since(now).is_ok_and(|left| left >= FLOOR);
        let ends = cached.expires_at.as_deref().and_then(moment);
        if let (Some(token), true) = (&cached.access_token, ends.is_some_and(lasts)) {
            return Ok(copy(token));
        }
        let file = (file, stamp);
        let newer = {
            let renewed = refreshed.0.lock().unwrap_or_else(PoisonError::into_inner);
            match renewed.as_ref().filter(|renewed| renewed.file == file) {
                Some(renewed) if lasts(renewed.ends) => return Ok(copy(&renewed.access)),
                renewed => renewed.and_then(|renewed| renewed.refresh.as_ref().map(copy)),
            }
        };
        let is_registered = cached.registration_expires_at.as_deref().and_then(moment).is_none_or(lasts);
        let (Some(refresh), Some(id), Some(secret), true) =
            (newer.or(cached.refresh_token), cached.client_id, cached.client_secret, is_registered)
        else {
            return Err(self.lapsed("the AWS SSO login has expired"));
        };
        let renewed = self.renew((&id, &secret, &refresh), file, variables, upstream).await?;
        let token = copy(&renewed.access);
        *refreshed.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(renewed);
        Ok(token)
    }

    fn cached(&self, file: &Path) -> Result<CachedLogin, SourceError> {
        let name = quote::path(file);
        let bytes = read(file).map_err(|error| match error.kind() {
            ErrorKind::NotFound => self.lapsed("there is no AWS SSO login"),
            _ => SourceError::refused(format!("{name} cannot be read: {error}; correct that")),
        })?;
        serde_json::from_slice(bytes.expose())
            .map_err(|_| self.lapsed(&format!("{name} is not a login of AWS's tools")))
    }

    async fn renew(
        &self,
        (id, secret, refresh): (&Secret<String>, &Secret<String>, &Secret<String>),
        file: (PathBuf, Option<Stamp>),
        variables: &Variables,
        upstream: &Upstream,
    ) -> Result<Renewed, SourceError> {
        let base = endpoint::named("SSO_OIDC", variables)?.unwrap_or_else(|| endpoint::oidc(&self.region));
        let url = format!("{base}/token");
        let wanted = Refresh {
            client_id: id.expose(),
            client_secret: secret.expose(),
            grant_type: "refresh_token",
            refresh_token: refresh.expose(),
        };
        let unfit = |_| SourceError::refused("the AWS SSO login does not fit into a request");
        let body = Secret::new(serde_json::to_string(&wanted).map_err(unfit)?);
        let call = Call { body, ..Call::json(&url, &Value::Null) };
        let now = Now::read();
        let answer = upstream.send(&call).await.map_err(|fault| match &fault {
            Fault::Denied(denial) if !fault.is_transient() => {
                self.lapsed(&format!("the AWS SSO login cannot be refreshed any more ({denial})"))
            }
            _ => fault.into(),
        })?;
        let created: Created = answer.json()?;
        let access = created.access_token.filter(|token| !token.expose().is_empty());
        let (Some(access), Some(left)) = (access, created.expires_in.as_ref().and_then(seconds)) else {
            return Err(SourceError::transient(format!(
                "{} gave no token with an end; try again",
                answer.host
            )));
        };
        Ok(Renewed {
            file,
            access,
            ends: now.wall + life(left)?,
            refresh: created.refresh_token.or_else(|| Some(copy(refresh))),
        })
    }
}

fn copy(text: &Secret<String>) -> Secret<String> {
    Secret::new(text.expose().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(session: Option<&str>) -> Login {
        Login {
            profile: "dev".into(),
            session: session.map(String::from),
            start_url: "https://corp.awsapps.com/start".into(),
            region: "eu-west-1".into(),
            account: "123456789012".into(),
            role: "Reader".into(),
        }
    }

    #[test]
    fn the_file_is_named_as_by_aws_s_tools() {
        let file = |login: Login| login.file(Some(Path::new("/h"))).unwrap();
        // printf corp | sha1sum; the hash is written in two parts so that it does not look like a key.
        for (session, name) in [
            (Some("corp"), ["ee0bfd2552fbd840c02c", "c48b6e823320543c450f"]),
            (None, ["a51746d4aa793ae07b25", "e90c3a5db96fc7832bd7"]),
        ] {
            let name = format!("/h/.aws/sso/cache/{}.json", name.concat());
            assert_eq!(file(login(session)), Path::new(&name));
        }
        assert!(login(None).file(None).is_none());
    }

    #[test]
    fn the_next_step_is_a_login_of_that_session() {
        let why = |login: Login| login.lapsed("over").to_string();
        assert_eq!(why(login(Some("corp"))), "over; run: aws sso login --sso-session corp");
        assert_eq!(why(login(None)), "over; run: aws sso login --profile dev");
    }
}
