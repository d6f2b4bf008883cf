//! A user's login (`authorized_user`): the refresh-token grant of RFC 6749 section 6.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::failure::Reason;
use crate::quote;
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::http::client::Upstream;
use crate::source::http::fault::{Denial, Fault};
use crate::source::http::request::Call;
use crate::source::jwt;
use crate::token::{AccessToken, Scopes};

/// The command that a user runs when the login no longer works.
pub(super) const LOGIN: &str = "gcloud auth application-default login";

/// The command with which the user logs in again so that this session sees the new login.
#[derive(Clone, Debug)]
pub(super) struct LoginCommand {
    command: String,
    /// The credential file in use, if the command writes a different one.
    elsewhere: Option<PathBuf>,
}

impl LoginCommand {
    pub(super) fn into(file: &Path, usual: Option<&Path>) -> Self {
        let elsewhere = (usual != Some(file)).then(|| file.to_owned());
        Self { command: LOGIN.into(), elsewhere }
    }

    /// The command for a login that is the base of an impersonation in the file.
    pub(super) fn impersonating(&self, account: &str, delegates: &[String]) -> Self {
        let chain: Vec<&str> = delegates.iter().map(String::as_str).chain([account]).collect();
        let command = format!("{LOGIN} --impersonate-service-account={}", chain.join(","));
        Self { command, elsewhere: self.elsewhere.clone() }
    }

    /// The command for a login through a workforce pool, which needs its own configuration file.
    pub(super) fn with_config(&self) -> Self {
        let command = format!("{LOGIN} --login-config=FILE");
        Self { command, elsewhere: self.elsewhere.clone() }
    }
}

impl fmt::Display for LoginCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run `{}` on the host", self.command)?;
        match &self.elsewhere {
            None => Ok(()),
            Some(file) => write!(
                f,
                "; it writes gcloud's own file and not {}, which is in use here: put the new one in its place, or \
                 leave GOOGLE_APPLICATION_CREDENTIALS and credentials_file out",
                quote::path(file)
            ),
        }
    }
}

pub(super) struct AuthorizedUser {
    client_id: String,
    client_secret: Secret<String>,
    /// The token from the file, or its replacement from the last refresh.
    refresh_token: Mutex<Arc<Secret<String>>>,
    /// Serialises refreshes: an issuer that rotates refresh tokens invalidates the old one, so a concurrent
    /// refresh with the old token would look like an expired login.
    turn: tokio::sync::Mutex<()>,
    /// From the file, or from the ID token that a refresh returned.
    email: Mutex<Option<String>>,
    again: LoginCommand,
}

impl fmt::Debug for AuthorizedUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({:?})", self.email())
    }
}

impl AuthorizedUser {
    pub(super) fn new(
        client_id: String,
        client_secret: Secret<String>,
        refresh_token: Secret<String>,
        email: Option<String>,
        again: LoginCommand,
    ) -> Self {
        Self {
            client_id,
            client_secret,
            refresh_token: Mutex::new(Arc::new(refresh_token)),
            turn: tokio::sync::Mutex::default(),
            email: Mutex::new(email),
            again,
        }
    }

    pub(super) fn email(&self) -> Option<String> {
        self.email.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Refreshes once, without a `scope` parameter: for some grants the server answers `invalid_scope` to
    /// narrower scopes. The token has the scopes that the user consented to.
    pub(super) async fn request_token(
        &self,
        upstream: &Upstream,
        token_uri: &str,
    ) -> Result<AccessToken, SourceError> {
        let _turn = self.turn.lock().await;
        let refresh_token = self.refresh_token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let call = Call::form(
            token_uri,
            &[
                ("grant_type", "refresh_token"),
                ("client_id", &self.client_id),
                ("client_secret", self.client_secret.expose()),
                ("refresh_token", refresh_token.expose()),
            ],
        );
        let answer = upstream.send(&call).await.map_err(|fault| refused(fault, &self.again))?;
        let mut granted = answer.granted()?;
        self.learn(granted.id_token.take(), granted.refresh_token.take());
        granted.into_access_token(&answer, Scopes::default())
    }

    /// Reads the e-mail from the ID token. The signature is not checked: the token came over TLS directly
    /// from its issuer, and only the displayed e-mail is taken from it.
    fn learn(&self, id_token: Option<Secret<String>>, rotated: Option<Secret<String>>) {
        if let Some(rotated) = rotated.filter(|token| !token.expose().is_empty()) {
            // Kept in memory only: the file belongs to gcloud.
            *self.refresh_token.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(rotated);
        }
        let Some(id_token) = id_token else { return };
        let claims = jwt::unverified_claims(id_token.expose()).unwrap_or_default();
        if let Some(email) = claims["email"].as_str().filter(|email| !email.is_empty()) {
            *self.email.lock().unwrap_or_else(PoisonError::into_inner) = Some(email.to_owned());
        }
    }
}

fn refused(fault: Fault, again: &LoginCommand) -> SourceError {
    match &fault {
        Fault::Denied(denial) if denial.is("invalid_grant") => expired(denial, again),
        Fault::Denied(denial) if denial.is("invalid_client") || denial.is("unauthorized_client") => {
            SourceError::refused(Reason::advice(format!(
                "{denial}: this login's client is not accepted any more; {again}"
            )))
        }
        _ => fault.into(),
    }
}

fn expired(denial: &Denial, again: &LoginCommand) -> SourceError {
    match denial.reason.as_deref() {
        Some(reason @ ("invalid_rapt" | "rapt_required")) => SourceError::refused(Reason::advice(format!(
            "the organisation asks for a new login now and then, and it is due ({reason}); {again}"
        ))),
        _ => SourceError::refused(Reason::advice(format!(
            "the login on the host has expired or was withdrawn (invalid_grant); {again}"
        ))),
    }
}
