//! A user's login through a workforce pool (`external_account_authorized_user`): the refresh-token grant at
//! the Security Token Service, with client authentication (RFC 6749 section 2.3.1).
//!
//! The service may return a new refresh token, which invalidates the old one. It is kept in memory only,
//! because the file belongs to gcloud; a message says so once, as the file may no longer work.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::failure::Reason;
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::google::authorized_user::LoginCommand;
use crate::source::http::client::Upstream;
use crate::source::http::fault::Fault;
use crate::source::http::request::Call;
use crate::token::{AccessToken, Scopes};

pub(super) struct ExternalAccountAuthorizedUser {
    /// The pool's provider, as in the file; it does not identify a user.
    audience: Option<String>,
    token_url: String,
    /// `client_id:client_secret`.
    client: Secret<String>,
    refresh_token: Mutex<Arc<Secret<String>>>,
    /// Serialises refreshes: an issuer that rotates refresh tokens invalidates the old one, so a concurrent
    /// refresh with the old token would look like an expired login.
    turn: tokio::sync::Mutex<()>,
    rotated: AtomicBool,
    again: LoginCommand,
}

impl fmt::Debug for ExternalAccountAuthorizedUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExternalAccountAuthorizedUser({:?})", self.audience)
    }
}

impl ExternalAccountAuthorizedUser {
    pub(super) fn new(
        audience: Option<String>,
        token_url: String,
        client_id: &str,
        client_secret: &Secret<String>,
        refresh_token: Secret<String>,
        again: LoginCommand,
    ) -> Self {
        Self {
            audience,
            token_url,
            client: Secret::new(format!("{client_id}:{}", client_secret.expose())),
            refresh_token: Mutex::new(Arc::new(refresh_token)),
            turn: tokio::sync::Mutex::default(),
            rotated: AtomicBool::new(false),
            again,
        }
    }

    /// Refreshes once. As for every login, no scope is sent; the user's consent determines the scopes.
    pub(super) async fn request_token(&self, upstream: &Upstream) -> Result<AccessToken, SourceError> {
        let _turn = self.turn.lock().await;
        let refresh_token = self.refresh_token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let fields = [("grant_type", "refresh_token"), ("refresh_token", refresh_token.expose().as_str())];
        let call = Call { basic: Some(&self.client), ..Call::form(&self.token_url, &fields) };
        let answer = upstream.send(&call).await.map_err(|fault| refused(fault, &self.again))?;
        let mut granted = answer.granted()?;
        if let Some(new) = granted.refresh_token.take().filter(|new| !new.expose().is_empty()) {
            self.rotate(new);
        }
        granted.into_access_token(&answer, Scopes::default())
    }

    fn rotate(&self, new: Secret<String>) {
        let mut kept = self.refresh_token.lock().unwrap_or_else(PoisonError::into_inner);
        let same = kept.expose() == new.expose();
        *kept = Arc::new(new);
        drop(kept);
        if !same && !self.rotated.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the login's refresh token was replaced by its issuer, and the new one is kept in memory alone: when \
                 this session has ended, the credential file may need a new login: {}",
                self.again
            );
        }
    }

    /// True only for the same refresh token: the user of another login cannot be known without a request.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let own = self.refresh_token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let other = other.refresh_token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        own.expose() == other.expose()
    }
}

fn refused(fault: Fault, again: &LoginCommand) -> SourceError {
    match &fault {
        Fault::Denied(denial) if denial.is("invalid_grant") => SourceError::refused(Reason::advice(format!(
            "the workforce login on the host has expired or was withdrawn (invalid_grant); {again} (FILE is the login configuration of your pool)"
        ))),
        Fault::Denied(denial) if denial.is("invalid_client") || denial.is("unauthorized_client") => {
            SourceError::refused(Reason::advice(format!(
                "{denial}: this login's client is not accepted any more; {again} (FILE is the login configuration of your pool)"
            )))
        }
        _ => fault.into(),
    }
}
