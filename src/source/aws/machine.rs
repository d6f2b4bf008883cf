//! Keys from the place where kfp-creds runs: the agent of a container (ECS, Fargate, EKS Pod Identity), or the
//! metadata service of a virtual machine (IMDS, version 2).
//!
//! Neither may be kfp-creds itself, so every request carries our own header ([`OWN_SOURCE`]), which our servers
//! refuse. The environment's proxies are not used: these requests never leave the host.

use std::path::Path;
use std::time::Duration;

use hyper::Method;

use crate::process::OWN_SOURCE;
use crate::quote;
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::aws::keys::{Keys, KeysJson};
use crate::source::http::client::Upstream;
use crate::source::http::fault::Fault;
use crate::source::http::request::{Answer, Call};
use crate::source::http::secure_url::within;
use crate::source::subject::{Format, read, short};
use crate::source::variables::Variables;

/// The ECS agent; `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` is a path on it.
const ECS: &str = "http://169.254.170.2";
/// Numeric, because a name could be made to resolve elsewhere.
const IMDS: &str = "http://169.254.169.254";
/// Requested lifetime of an IMDS session token, in seconds.
const SESSION: &str = "300";
/// Outside AWS there may be no answer at all; the real service answers at once.
const FOUND_IN: Duration = Duration::from_secs(2);

const HEADERS: &[(&str, &str)] = &[(OWN_SOURCE, "1")];

/// A container's agent, and the authorization to send to it.
struct Agent {
    url: String,
    authorization: Option<Secret<String>>,
}

/// Keys of the container that this program runs in; `None` if no agent is named.
pub(super) async fn of_container(
    variables: &Variables,
    upstream: &Upstream,
) -> Result<Option<Keys>, SourceError> {
    let Some(Agent { url, authorization }) = agent(variables)? else { return Ok(None) };
    let mut call = Call { headers: HEADERS, ..Call::bare(Method::GET, &url) };
    if let Some(authorization) = &authorization {
        call = call.named("authorization", authorization)?;
    }
    let answer = upstream.send(&call).await.map_err(|fault| {
        let what = format!("no AWS credentials of this container from {}", short(&url));
        refused(&what, &url, fault)
    })?;
    answered(&answer, &short(&url)).map(Some)
}

/// Where the agent is, if there is one.
fn agent(variables: &Variables) -> Result<Option<Agent>, SourceError> {
    let full = variables.text("AWS_CONTAINER_CREDENTIALS_FULL_URI");
    let url = match (variables.text("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"), full) {
        (Some(path), _) if path.starts_with('/') => format!("{ECS}{path}"),
        (Some(_), _) => {
            return Err(SourceError::refused(
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI does not begin with a slash",
            ));
        }
        (None, Some(url)) => {
            within(url, "x").map_err(|_| {
                SourceError::refused(
                    "AWS_CONTAINER_CREDENTIALS_FULL_URI is neither https nor an address of this machine or of AWS's agents",
                )
            })?;
            url.to_owned()
        }
        (None, None) => return Ok(None),
    };
    let file = variables.text("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").map(Path::new);
    let authorization = match file {
        None => variables.secret("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
        Some(path) => {
            let bytes = read(path).map_err(|error| {
                let path = quote::path(path);
                SourceError::transient(format!(
                    "{path} (AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE) cannot be read: {error}"
                ))
            })?;
            let text = std::str::from_utf8(bytes.expose()).unwrap_or_default();
            Some(Secret::new(text.trim().to_owned()))
        }
    };
    Ok(Some(Agent { url, authorization }))
}

/// A metadata service of virtual machines, with the session token of one exchange.
pub(crate) struct Imds<'a> {
    upstream: &'a Upstream,
    /// `None` for version 1, which only a credential file of Google's federation can select.
    session_token_url: Option<&'a str>,
    session: Option<Secret<String>>,
}

impl<'a> Imds<'a> {
    pub(crate) fn new(upstream: &'a Upstream, session_token_url: Option<&'a str>) -> Self {
        Self { upstream, session_token_url, session: None }
    }

    /// The keys of the machine's role. `url` is the folder of its roles.
    pub(crate) async fn keys(&mut self, url: &str) -> Result<Keys, SourceError> {
        let role = self.text(url).await?;
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"+=,.@_-".contains(&b);
        if !role.expose().bytes().all(fits) {
            return Err(SourceError::refused("this machine has no AWS role, or one with an odd name"));
        }
        let url = format!("{}/{}", url.trim_end_matches('/'), role.expose());
        let answer = self.raw(&url).await?;
        answered(&answer, &short(&url))
    }

    /// Reads a value that is one word.
    pub(crate) async fn text(&mut self, url: &str) -> Result<Secret<String>, SourceError> {
        let answer = self.raw(url).await?;
        let said = |why| SourceError::transient(format!("what {} answered {why}", short(url)));
        Format::Text.pick(answer.bytes()).map_err(said)
    }

    async fn raw(&mut self, url: &str) -> Result<Answer, SourceError> {
        let failed = |url: &str, fault| {
            refused(&format!("AWS's metadata service gave no answer to {}", short(url)), url, fault)
        };
        if let (Some(place), None) = (self.session_token_url, &self.session) {
            let seconds = Secret::new(SESSION.to_owned());
            let call = Call { headers: HEADERS, ..Call::bare(Method::PUT, place) }
                .named("x-aws-ec2-metadata-token-ttl-seconds", &seconds)?;
            let answer = self.upstream.send(&call).await.map_err(|fault| failed(place, fault))?;
            let said = |why| SourceError::transient(format!("the session token of {} {why}", short(place)));
            self.session = Some(Format::Text.pick(answer.bytes()).map_err(said)?);
        }
        let mut call = Call { headers: HEADERS, ..Call::bare(Method::GET, url) };
        if let Some(session) = &self.session {
            call = call.named("x-aws-ec2-metadata-token", session)?;
        }
        self.upstream.send(&call).await.map_err(|fault| failed(url, fault))
    }
}

/// Keys of the virtual machine that this program runs on. [`SourceError::Absent`] if there is no such service.
pub(super) async fn of_machine(variables: &Variables, upstream: &Upstream) -> Result<Keys, SourceError> {
    let is_off =
        variables.text("AWS_EC2_METADATA_DISABLED").is_some_and(|off| off.eq_ignore_ascii_case("true"));
    if is_off {
        return Err(SourceError::absent(
            "AWS_EC2_METADATA_DISABLED turns this machine's metadata service off",
        ));
    }
    let base = variables.text("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or(IMDS).trim_end_matches('/');
    within(base, "x").map_err(|_| {
        SourceError::refused(
            "AWS_EC2_METADATA_SERVICE_ENDPOINT is neither https nor an address of this machine or of AWS's metadata service",
        )
    })?;
    let token = format!("{base}/latest/api/token");
    let mut imds = Imds::new(upstream, Some(&token));
    // The first request decides whether there is such a service; it is not repeated.
    let call = Call { headers: HEADERS, ..Call::bare(Method::PUT, &token) }
        .named("x-aws-ec2-metadata-token-ttl-seconds", &Secret::new(SESSION.to_owned()))?;
    let session = match tokio::time::timeout(FOUND_IN, upstream.once(&call)).await {
        Ok(Ok(answer)) => Format::Text.pick(answer.bytes()).ok(),
        Ok(Err(fault @ Fault::Denied(_))) => {
            return Err(refused(&format!("{} gave no session token", short(&token)), &token, fault));
        }
        Ok(Err(_)) | Err(_) => None,
    };
    if session.is_none() {
        return Err(SourceError::absent(format!("{} is not a metadata service of AWS", short(base))));
    }
    imds.session = session;
    imds.keys(&format!("{base}/latest/meta-data/iam/security-credentials/")).await
}

fn answered(answer: &Answer, place: &str) -> Result<Keys, SourceError> {
    let written: KeysJson = answer.json()?;
    if written.code.as_deref().is_some_and(|code| code != "Success") {
        return Err(SourceError::transient(format!("{place} has no AWS credentials at the moment")));
    }
    // These services only return keys of roles.
    written.keys(place, answer.sent).map(Keys::of_role)
}

fn refused(what: &str, url: &str, fault: Fault) -> SourceError {
    match &fault {
        Fault::Denied(denial) if denial.status == 508 => SourceError::refused(format!(
            "{} is kfp-creds itself; unset the variable that leads there, or name another source",
            short(url)
        )),
        _ if fault.is_transient() => fault.transient(format!("{what}: {fault}")),
        _ => SourceError::refused(format!("{what}: {fault}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_credential_address_is_local() {
        let of = |pairs: &[(&str, &str)]| {
            let variables: Variables =
                pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            agent(&variables).map(|found| found.map(|agent| agent.url))
        };
        let relative = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
        let full = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&[(relative, "/v2/x")]).unwrap().as_deref(), Some("http://169.254.170.2/v2/x"));
        let eks = "http://169.254.170.23/v1/credentials";
        assert_eq!(of(&[(full, eks)]).unwrap().as_deref(), Some(eks));
        assert!(of(&[(relative, "@evil.example/")]).is_err());
        assert!(of(&[(full, "http://evil.example/")]).is_err());
    }
}
