//! `impersonated_service_account`: a credential file with an account to impersonate and a base credential.
//!
//! `gcloud auth application-default login --impersonate-service-account=SA` writes such files. The base is
//! any other credential, even another of this type; each mints its own base token once and caches it.

use std::sync::Arc;

use crate::source::google::Credential;
use crate::source::google::endpoints::Endpoints;
use crate::source::google::iam::Iam;
use crate::source::google::names::is_account_in_path;
use crate::source::http::client::Upstream;
use crate::source::http::secure_url::confidential;
use crate::source::{AccessRequest, SourceError};
use crate::token::{AccessToken, IdentityToken};

/// Deepest nesting of credentials in a file.
pub(super) const DEEPEST: usize = 8;

const PATH: &str = "/v1/projects/-/serviceAccounts/";

/// The account in a `service_account_impersonation_url`; its `@` may be escaped. The URL may name either
/// method (access or ID token), because both are called.
pub(super) fn account_of(url: &str) -> Option<String> {
    let (_, rest) = url.trim().split_once(PATH)?;
    let account =
        rest.strip_suffix(":generateAccessToken").or_else(|| rest.strip_suffix(":generateIdToken"))?;
    Some(account.trim().replace("%40", "@")).filter(|account| is_account_in_path(account))
}

/// Shortens `projects/-/serviceAccounts/NAME` to the name; a bare name stays.
pub(super) fn bare(name: &str) -> String {
    name.rsplit('/').next().unwrap_or_default().to_owned()
}

/// The account to impersonate, and the base credential for it.
#[derive(Debug)]
pub(super) struct Impersonated {
    source: Arc<Credential>,
    account: String,
    delegates: Vec<String>,
    endpoint: String,
    token_uri: String,
    /// The longest token lifetime that the file allows, in seconds.
    longest: Option<u64>,
}

impl Impersonated {
    /// `url` is the file's `service_account_impersonation_url`.
    pub(super) fn new(
        source: Credential,
        url: &str,
        delegates: Vec<String>,
        longest: Option<u64>,
        endpoints: &Endpoints,
    ) -> Result<Self, String> {
        let (base, _) = url
            .trim()
            .split_once(PATH)
            .ok_or("its service_account_impersonation_url is not one of IAM Credentials")?;
        let account =
            account_of(url).ok_or("its service_account_impersonation_url names no service account")?;
        let delegates: Vec<String> = delegates.iter().map(|name| bare(name)).collect();
        if !delegates.iter().all(|name| is_account_in_path(name)) {
            return Err("one of its delegates is not a service account".into());
        }
        if endpoints.iam_credentials.is_none() {
            confidential(base, "service_account_impersonation_url")?;
        }
        let endpoint = endpoints.iam_credentials.as_deref().unwrap_or(base).trim_end_matches('/').to_owned();
        let universe = endpoints.universe(source.universe.as_deref());
        let token_uri = endpoints.token(None, universe);
        Ok(Self { source: Arc::new(source), account, delegates, endpoint, token_uri, longest })
    }

    pub(super) fn account(&self) -> &str {
        &self.account
    }

    pub(super) fn source(&self) -> &Credential {
        &self.source
    }

    fn iam<'a>(&'a self, upstream: &'a Arc<Upstream>) -> Iam<'a> {
        Iam {
            upstream,
            endpoint: &self.endpoint,
            token_uri: &self.token_uri,
            base: &self.source,
            account: &self.account,
            delegates: &self.delegates,
        }
    }

    pub(super) async fn request_token(
        &self,
        upstream: &Arc<Upstream>,
        ask: &AccessRequest,
    ) -> Result<AccessToken, SourceError> {
        let lifetime = self.longest.map_or(ask.lifetime, |longest| longest.min(ask.lifetime));
        self.iam(upstream).request_token(&AccessRequest { lifetime, ..ask.clone() }).await
    }

    pub(super) async fn request_identity(
        &self,
        upstream: &Arc<Upstream>,
        audience: &str,
    ) -> Result<IdentityToken, SourceError> {
        self.iam(upstream).request_identity(audience).await
    }
}
