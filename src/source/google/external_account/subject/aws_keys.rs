//! Sources of AWS keys other than the machine's metadata service, in the order of AWS's own tools: variables,
//! a profile, container credentials (ECS, Fargate, EKS Pod Identity).

use std::path::{Path, PathBuf};

use hyper::Method;
use serde::Deserialize;

use crate::failure::Reason;
use crate::quote;
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::http::client::Upstream;
use crate::source::http::fault::Fault;
use crate::source::http::request::{Answer, Call};
use crate::source::http::secure_url::within;
use crate::source::subject::{read, short};
use crate::source::variables::Variables;

/// The ECS agent; `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` is a path on it.
const ECS: &str = "http://169.254.170.2";

pub(crate) struct Keys {
    pub(crate) id: String,
    pub(crate) secret: Secret<String>,
    pub(crate) session_token: Option<Secret<String>>,
}

/// A container's agent, and the authorization to send to it.
struct Agent {
    url: String,
    authorization: Option<Secret<String>>,
}

/// The answer of IMDS for a role, and of a container's agent for its task.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answered {
    access_key_id: String,
    secret_access_key: Secret<String>,
    token: Option<Secret<String>>,
}

impl Keys {
    /// `None` if the environment names no keys; the caller then asks IMDS.
    pub(crate) async fn env(variables: &Variables, upstream: &Upstream) -> Result<Option<Self>, SourceError> {
        if let Some(keys) = Self::of_variables(variables) {
            return Ok(Some(keys));
        }
        if let Some(keys) = Self::of_profile(variables)? {
            return Ok(Some(keys));
        }
        match Self::container(variables)? {
            None => Ok(None),
            Some(Agent { url, authorization }) => {
                let mut call = Call::bare(Method::GET, &url);
                if let Some(authorization) = &authorization {
                    call = call.named("authorization", authorization)?;
                }
                let answer = upstream.send(&call).await.map_err(|fault| unanswered(&url, &fault))?;
                Self::answered(&answer).map(Some)
            }
        }
    }

    pub(crate) fn answered(answer: &Answer) -> Result<Self, SourceError> {
        let answered: Answered = answer.json()?;
        Ok(Self {
            id: answered.access_key_id,
            secret: answered.secret_access_key,
            session_token: answered.token.filter(|token| !token.expose().is_empty()),
        })
    }

    fn of_variables(variables: &Variables) -> Option<Self> {
        Some(Self {
            id: variables.text("AWS_ACCESS_KEY_ID")?.to_owned(),
            secret: variables.secret("AWS_SECRET_ACCESS_KEY")?,
            session_token: variables.secret("AWS_SESSION_TOKEN"),
        })
    }

    /// A named profile must exist; `default` need not. SSO and assumed roles need AWS's own tools.
    fn of_profile(variables: &Variables) -> Result<Option<Self>, SourceError> {
        let named = variables.text("AWS_PROFILE").or_else(|| variables.text("AWS_DEFAULT_PROFILE"));
        let profile = named.unwrap_or("default");
        let file = |variable: &str, usual: &str| {
            let named = variables.text(variable).map(PathBuf::from);
            named.or_else(|| Some(Path::new(variables.text("HOME")?).join(".aws").join(usual)))
        };
        let credentials = file("AWS_SHARED_CREDENTIALS_FILE", "credentials");
        let config = file("AWS_CONFIG_FILE", "config");
        let section = format!("profile {profile}");
        let places = [(credentials, profile), (config.clone(), &section), (config, profile)];
        let mut found = Vec::new();
        for (path, section) in places {
            let Some(bytes) = path.and_then(|path| read(&path).ok()) else { continue };
            found.extend(entries(&bytes, section));
        }
        let value = |key: &str| found.iter().find(|(name, _)| name == key).map(|(_, value)| value);
        if let (Some(id), Some(secret)) = (value("aws_access_key_id"), value("aws_secret_access_key")) {
            let copy = |text: &Secret<String>| Secret::new(text.expose().clone());
            return Ok(Some(Self {
                id: id.expose().clone(),
                secret: copy(secret),
                session_token: value("aws_session_token").map(copy),
            }));
        }
        let Some(named) = named else { return Ok(None) };
        let shown = quote::name(named);
        let foreign =
            ["sso_session", "sso_start_url", "role_arn", "credential_process", "web_identity_token_file"];
        Err(SourceError::refused(match foreign.iter().find(|key| value(key).is_some()) {
            Some(key) => Reason::advice(format!(
                "the AWS profile {shown} has {key} and no keys; run `eval \"$(aws configure export-credentials --profile \
                 {shown} --format env)\"` first, which puts keys into the environment"
            )),
            None => {
                format!("there are no keys of the AWS profile {shown} (AWS_PROFILE) in ~/.aws/credentials")
                    .into()
            }
        }))
    }

    /// The address of a container's agent, if there is one.
    fn container(variables: &Variables) -> Result<Option<Agent>, SourceError> {
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
}

/// The lines `key = value` of one section.
fn entries(bytes: &Secret<Vec<u8>>, wanted: &str) -> Vec<(String, Secret<String>)> {
    let mut inside = false;
    let mut all = Vec::new();
    for line in std::str::from_utf8(bytes.expose()).unwrap_or_default().lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            inside = name.trim() == wanted;
        } else if inside
            && !line.starts_with(['#', ';'])
            && let Some((key, value)) = line.split_once('=')
        {
            all.push((key.trim().to_ascii_lowercase(), Secret::new(value.trim().to_owned())));
        }
    }
    all
}

fn unanswered(url: &str, fault: &Fault) -> SourceError {
    let why = format!("no AWS credentials of this container from {}: {fault}", short(url));
    if fault.is_transient() { SourceError::transient(why) } else { SourceError::refused(why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_has_its_lines_and_no_others() {
        let text =
            "[default]\naws_access_key_id=A\n[ p q ]\n# no = one\nAWS_Secret_Access_Key = s=t \n[x]\nq=1\n";
        let found = entries(&Secret::new(text.as_bytes().to_vec()), "p q");
        let found: Vec<_> =
            found.iter().map(|(key, value)| (key.as_str(), value.expose().as_str())).collect();
        assert_eq!(found, [("aws_secret_access_key", "s=t")]);
    }

    #[test]
    fn a_containers_place_is_near() {
        let of = |pairs: &[(&str, &str)]| {
            let variables: Variables =
                pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Keys::container(&variables).map(|found| found.map(|agent| agent.url))
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
