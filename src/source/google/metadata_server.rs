//! The metadata server of the machine itself, where kfp-creds runs on Compute Engine, GKE or in Cloud Shell.
//!
//! It must never be kfp-creds itself: a listener of ours whose export line is in the environment, or the
//! relay if kfp-creds runs inside a container that another session attached. Every request therefore carries
//! our own header ([`crate::process::OWN_SOURCE`]); our servers answer it with 508 for every client and path,
//! which becomes a refusal that explains the loop.
//!
//! The environment's proxies are not used: the requests are plain HTTP and never leave the host.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::quote;
use crate::secret::Secret;
use crate::source::expiry::id_token_expiry;
use crate::source::http::client::Upstream;
use crate::source::http::fault::Fault;
use crate::source::http::request::{Answer, Call};
use crate::source::{AccessRequest, SourceError};
use crate::token::{AccessToken, IdentityToken, MintId, Scopes};

const ACCOUNT: &str = "instance/service-accounts/default";

/// Longest time that fetching names may delay a token.
const NAMED_IN: Duration = Duration::from_millis(1500);
/// Interval before missing names are requested again; on GKE the account may never have an e-mail.
const ASKED_ANEW: Duration = Duration::from_secs(300);

/// The server's address, and the names it returned.
#[derive(Debug)]
pub(super) struct MetadataServer {
    /// `http://169.254.169.254`, without a trailing slash.
    base: String,
    known: Mutex<InstanceNames>,
    /// When the names were last requested.
    asked: Mutex<Option<Instant>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct InstanceNames {
    pub(super) email: Option<String>,
    pub(super) project: Option<String>,
    pub(super) universe: Option<String>,
}

impl MetadataServer {
    /// `place` is a host with or without a port, in the form of `GCE_METADATA_HOST`.
    pub(super) fn new(place: &str) -> Result<Self, SourceError> {
        let place = place.trim_end_matches('/');
        let base = format!("http://{place}");
        let fits = base.parse::<hyper::Uri>().is_ok_and(|uri| uri.host().is_some() && uri.query().is_none());
        if !fits || place.contains(['@', '#']) {
            return Err(SourceError::refused(
                "GCE_METADATA_HOST is not a host, or a host and a port; correct or unset it",
            ));
        }
        Ok(Self { base, known: Mutex::default(), asked: Mutex::default() })
    }

    /// Host and port, for messages; a path after them can be a secret, and so can what the variable holds in
    /// their place.
    pub(super) fn place(&self) -> String {
        let rest = self.base.trim_start_matches("http://");
        quote::name(rest.split('/').next().unwrap_or(rest))
    }

    pub(super) fn known(&self) -> InstanceNames {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) async fn request_token(
        &self,
        upstream: &Arc<Upstream>,
        ask: &AccessRequest,
    ) -> Result<AccessToken, SourceError> {
        let scopes = ask.scopes.iter().collect::<Vec<_>>().join(",");
        let query =
            url::form_urlencoded::Serializer::new(String::new()).append_pair("scopes", &scopes).finish();
        let answer = self.ask(upstream, &format!("{ACCOUNT}/token?{query}")).await?;
        let granted = answer.granted()?;
        self.learn(upstream).await;
        // A virtual machine's token has the machine's scopes, whatever scopes are requested.
        granted.into_access_token(&answer, Scopes::default())
    }

    pub(super) async fn request_identity(
        &self,
        upstream: &Arc<Upstream>,
        audience: &str,
    ) -> Result<IdentityToken, SourceError> {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("audience", audience)
            .append_pair("format", "full")
            .finish();
        let answer = self.ask(upstream, &format!("{ACCOUNT}/identity?{query}")).await?;
        let value = Secret::new(answer.text().unwrap_or_default().to_owned());
        let expires = id_token_expiry(value.expose(), answer.sent, answer.date)?;
        Ok(IdentityToken { value, expires, id: MintId::random() })
    }

    /// Requests the names once, and only rarely again if one is missing. Placeholders stand in for missing
    /// names, so failures are ignored.
    pub(super) async fn learn(&self, upstream: &Arc<Upstream>) {
        if self.known().email.is_some() {
            return;
        }
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if asked.is_some_and(|before| before.elapsed() < ASKED_ANEW) {
                return;
            }
            *asked = Some(Instant::now());
        }
        let value = async |key: &str| {
            let answer = tokio::time::timeout(NAMED_IN, self.ask(upstream, key)).await.ok()?.ok()?;
            answer.text().filter(|text| is_name(text)).map(str::to_owned)
        };
        let email = format!("{ACCOUNT}/email");
        let (email, project, universe) =
            tokio::join!(value(&email), value("project/project-id"), value("universe/universe-domain"));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.email = email.filter(|email| email.contains('@')).or_else(|| known.email.take());
        known.project = project.or_else(|| known.project.take());
        known.universe = universe.or_else(|| known.universe.take());
    }

    async fn ask(&self, upstream: &Arc<Upstream>, key: &str) -> Result<Answer, SourceError> {
        let url = format!("{}/computeMetadata/v1/{key}", self.base);
        let answer = upstream.send(&Call::metadata(&url)).await.map_err(|fault| self.refused(fault))?;
        if !answer.flavored {
            return Err(SourceError::refused(format!(
                "what answers at {} is not a metadata server (no Metadata-Flavor); correct GCE_METADATA_HOST",
                self.place()
            )));
        }
        Ok(answer)
    }

    fn refused(&self, fault: Fault) -> SourceError {
        let Fault::Denied(denial) = &fault else { return fault.into() };
        let place = self.place();
        match denial.status {
            508 => SourceError::refused(format!(
                "the metadata server at {place} is kfp-creds itself; unset GCE_METADATA_HOST, or name another source"
            )),
            404 => SourceError::refused(format!(
                "this machine's metadata server ({place}) has no service account; attach one to the machine"
            )),
            _ => fault.into(),
        }
    }
}

/// An e-mail, a project or a domain. Checked because it is shown to users and containers.
fn is_name(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"@.-_:+".contains(&b);
    !text.is_empty() && text.len() <= 254 && text.bytes().all(fits)
}

/// The address of the metadata server if this looks like a Google machine, decided without network requests.
/// `product` is the firmware's product name (`/sys/class/dmi/id/product_name`). `NO_GCE_CHECK=true` means no,
/// as for Google's libraries.
pub fn detect(host: Option<&str>, product: Option<&str>, no_check: Option<&str>) -> Option<String> {
    if no_check.is_some_and(|said| said.eq_ignore_ascii_case("true") || said == "1") {
        return None;
    }
    let google = product.is_some_and(|name| matches!(name.trim(), "Google" | "Google Compute Engine"));
    host.map(str::to_owned).or_else(|| google.then(|| ADDRESS.to_owned()))
}

/// The address of every metadata server. Numeric, because a name could be made to resolve elsewhere.
pub const ADDRESS: &str = "169.254.169.254";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_of_google_is_known_without_a_network() {
        let product = Some("Google Compute Engine\n");
        assert_eq!(detect(None, product, None).as_deref(), Some(ADDRESS));
        assert_eq!(detect(None, Some("Google"), Some("")).as_deref(), Some(ADDRESS));
        assert_eq!(detect(Some("127.0.0.1:1"), None, None).as_deref(), Some("127.0.0.1:1"));
        assert_eq!(detect(Some("127.0.0.1:1"), product, None).as_deref(), Some("127.0.0.1:1"));
        for (host, product, no_check) in [
            (None, None, None),
            (None, Some("Virtual Machine"), None),
            (None, Some("Google Chromebook"), None),
            (None, product, Some("true")),
            (Some("127.0.0.1:1"), product, Some("True")),
        ] {
            assert_eq!(detect(host, product, no_check), None, "{host:?} {product:?} {no_check:?}");
        }
    }

    #[test]
    fn a_metadata_host_is_shown_without_its_path() {
        assert_eq!(MetadataServer::new("127.0.0.1:80/s3cret").unwrap().place(), "127.0.0.1:80");
        for bad in ["", "a b", "user@host", "h#x", "h?x=y", "\n"] {
            assert!(matches!(MetadataServer::new(bad), Err(SourceError::Refused(_))), "{bad}");
        }
    }
}
