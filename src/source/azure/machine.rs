//! The managed identity of this machine, where kfp-creds runs in Azure: at the address that App Service and Container
//! Apps give in `IDENTITY_ENDPOINT`, else at the metadata service of a virtual machine.
//!
//! It must never be kfp-creds itself: our servers answer the header [`OWN_SOURCE`] with 508, which becomes a refusal
//! that explains the loop. Like Google's metadata server, it is asked without proxies.

use std::sync::Arc;

use hyper::Method;
use serde::Deserialize;
use serde_json::Value;

use crate::failure::Reason;
use crate::process::OWN_SOURCE;
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::azure::cli::end;
use crate::source::azure::{AzureRequest, is_name};
use crate::source::expiry::{LONGEST_LIFE, life, remaining};
use crate::source::http::client::Upstream;
use crate::source::http::fault::{Fault, host};
use crate::source::http::request::{Answer, Call};
use crate::source::http::secure_url::within;
use crate::source::variables::Variables;
use crate::token::{AzureToken, Deadline, MintId, RenderedReply};

/// Numeric, because a name could be made to resolve elsewhere.
const ADDRESS: &str = "http://169.254.169.254";

/// Statuses with which the metadata service says that it is being upgraded, which takes about a minute.
const PASSING: [u16; 2] = [404, 410];

#[derive(Debug)]
pub(super) struct Machine {
    /// Up to the query.
    url: String,
    version: &'static str,
    /// `X-IDENTITY-HEADER` of App Service.
    secret: Option<Secret<String>>,
}

#[derive(Deserialize)]
struct TokenJson {
    expires_on: Option<Value>,
    client_id: Option<String>,
}

impl Machine {
    pub(super) fn new(variables: &Variables) -> Result<Self, SourceError> {
        let told = variables.text("IDENTITY_ENDPOINT");
        for (name, what) in
            [("IMDS_ENDPOINT", "Azure Arc"), ("IDENTITY_SERVER_THUMBPRINT", "a Service Fabric cluster")]
        {
            if told.is_some() && variables.text(name).is_some() {
                return Err(SourceError::refused(Reason::advice(format!(
                    "the managed identity of {what} ({name} is set) is not supported; name other credentials"
                ))));
            }
        }
        if let (Some(url), Some(secret)) = (told, variables.secret("IDENTITY_HEADER")) {
            local(url, "IDENTITY_ENDPOINT")?;
            return Ok(Self { url: url.to_owned(), version: "2019-08-01", secret: Some(secret) });
        }
        // Microsoft's libraries read another address from this variable too.
        let base = variables.text("AZURE_POD_IDENTITY_AUTHORITY_HOST").unwrap_or(ADDRESS);
        local(base, "AZURE_POD_IDENTITY_AUTHORITY_HOST")?;
        let url = format!("{}/metadata/identity/oauth2/token", base.trim_end_matches('/'));
        Ok(Self { url, version: "2018-02-01", secret: None })
    }

    pub(super) async fn token(
        &self,
        upstream: &Arc<Upstream>,
        ask: &AzureRequest,
        client_id: Option<&str>,
    ) -> Result<AzureToken, SourceError> {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("api-version", self.version)
            .append_pair("resource", &ask.resource)
            .extend_pairs(client_id.map(|id| ("client_id", id)))
            .finish();
        let url = format!("{}?{query}", self.url);
        let mut call =
            Call { headers: &[("metadata", "true"), (OWN_SOURCE, "1")], ..Call::bare(Method::GET, &url) };
        if let Some(secret) = &self.secret {
            call = call.named("x-identity-header", secret)?;
        }
        let answer = upstream.send(&call).await.map_err(|fault| self.refused(fault, client_id))?;
        let granted = answer.granted()?;
        let written: TokenJson = answer.json()?;
        let claimed =
            granted.life.or_else(|| left(&answer, written.expires_on.as_ref()?)).ok_or_else(|| {
                SourceError::transient(format!("{} gave no token with an expiry; try again", answer.host))
            })?;
        Ok(AzureToken {
            value: granted.token,
            expires: Deadline::after(answer.sent, life(claimed)?),
            resource: ask.resource.clone(),
            client_id: written.client_id.filter(|id| is_name(id)).or_else(|| client_id.map(str::to_owned)),
            id: MintId::random(),
            shown: RenderedReply::default(),
        })
    }

    fn refused(&self, fault: Fault, client_id: Option<&str>) -> SourceError {
        let place = host(&self.url);
        let denial = match &fault {
            Fault::Denied(denial) => denial,
            Fault::Unreachable { .. } if self.secret.is_none() => {
                return SourceError::transient(Reason::advice(format!(
                    "{fault}; if this machine is not in Azure, name other credentials than `machine`"
                )));
            }
            _ => return fault.into(),
        };
        let refused = |why: String| SourceError::refused(Reason::advice(why));
        match denial.status {
            508 => refused(format!(
                "the managed identity at {place} is kfp-creds itself; unset IDENTITY_ENDPOINT and IDENTITY_HEADER, or \
                 name other credentials"
            )),
            status if PASSING.contains(&status) => SourceError::transient(fault.to_string()),
            _ if denial.is_transient() => fault.into(),
            401 | 403 if self.secret.is_some() => {
                refused(format!("{denial}: IDENTITY_HEADER is not the one of {place}"))
            }
            _ => {
                let what = client_id.map_or_else(
                    || "no managed identity, or several and none is named by client_id".to_owned(),
                    |id| format!("no managed identity with the client id {id}"),
                );
                refused(format!("{denial}: this machine has {what}, or there is no such resource"))
            }
        }
    }
}

/// The expiry from `expires_on`, which is by the machine's clock.
fn left(answer: &Answer, written: &Value) -> Option<std::time::Duration> {
    Some(remaining(end(written)?, answer.sent.wall, answer.date, LONGEST_LIFE))
}

fn local(url: &str, name: &str) -> Result<(), SourceError> {
    let plain = !url.contains(['?', '#']);
    within(url, name).ok().filter(|()| plain).ok_or_else(|| {
        SourceError::refused(format!("the variable {name} is not an address of this machine's own identity"))
    })
}
