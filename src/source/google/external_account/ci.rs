//! Federation that the config sets up: a CI job has its own token and needs no credential file.

use std::sync::Mutex;

use hyper::Method;

use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::command::Command;
use crate::source::google::configured::{Federation, TokenFrom};
use crate::source::google::endpoints::Endpoints;
use crate::source::google::external_account::ExternalAccount;
use crate::source::google::external_account::subject::executable::Executable;
use crate::source::google::external_account::subject::{FileToken, Format, Subject, UrlToken};
use crate::source::google::impersonated::Impersonated;
use crate::source::google::token_types::JWT;
use crate::source::google::{Credential, Kind};
use crate::source::http::secure_url::confidential;
use crate::source::variables::Variables;

impl Federation {
    pub(in crate::source::google) fn kind(
        &self,
        command: Option<Command>,
        endpoints: &Endpoints,
        variables: &Variables,
    ) -> Result<Kind, SourceError> {
        let federated = Kind::ExternalAccount(Box::new(self.federated(command, endpoints, variables)?));
        let Some(account) = &self.service_account else { return Ok(federated) };
        let base = endpoints.iam_credentials(endpoints.universe(None));
        let url = format!("{base}/v1/projects/-/serviceAccounts/{account}:generateAccessToken");
        let source = Credential::unfiled(federated);
        let made = Impersonated::new(source, &url, vec![], None, endpoints).map_err(SourceError::refused)?;
        Ok(Kind::Impersonated(Box::new(made)))
    }

    /// `command` is used by [`TokenFrom::Command`].
    fn federated(
        &self,
        command: Option<Command>,
        endpoints: &Endpoints,
        variables: &Variables,
    ) -> Result<ExternalAccount, SourceError> {
        let universe = endpoints.universe(None);
        let subject = self.subject(command, universe, variables)?;
        let sts = endpoints.sts.clone();
        Ok(ExternalAccount {
            audience: format!("//iam.{universe}/{}", self.provider),
            subject_token_type: self.token_type.clone().unwrap_or_else(|| JWT.into()),
            token_url: sts.unwrap_or_else(|| format!("https://sts.{universe}/v1/token")),
            token_info_url: None,
            client: None,
            user_project: None,
            subject,
            account: self.service_account.clone(),
            name: Mutex::default(),
            seen: Mutex::default(),
        }
        .looked())
    }

    fn subject(
        &self,
        command: Option<Command>,
        universe: &str,
        variables: &Variables,
    ) -> Result<Subject, SourceError> {
        let format = || match &self.field {
            Some(field) => Format::Json { field: field.clone() },
            None => Format::Text,
        };
        Ok(match &self.from {
            TokenFrom::Github => Subject::Url(self.github(universe, variables)?),
            TokenFrom::AzureDevops => Subject::Url(azure_devops(variables)?),
            TokenFrom::Variable(name) => {
                let token = variables.secret(name).ok_or_else(|| {
                    SourceError::refused(format!(
                        "the variable {name}, which should hold the job's token, is not set"
                    ))
                })?;
                Subject::Variable { name: name.clone(), token }
            }
            TokenFrom::File(path) => Subject::File(FileToken { path: path.clone(), format: format() }),
            TokenFrom::Url(url) => {
                let headers = self.headers.iter().map(|line| header(line, variables));
                let headers = headers.collect::<Result<_, _>>()?;
                let method = if self.post { Method::POST } else { Method::GET };
                Subject::Url(UrlToken { url: url.clone(), method, headers, format: format() })
            }
            TokenFrom::Command => {
                let command = command.ok_or_else(|| SourceError::refused("no command brings the token"))?;
                Subject::Executable(Executable::provider(command))
            }
        })
    }

    /// GitHub's runner gives each job that may request tokens the URL and the bearer in variables.
    fn github(&self, universe: &str, variables: &Variables) -> Result<UrlToken, SourceError> {
        let names = ["ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"];
        let (Some(url), Some(bearer)) = (variables.text(names[0]), variables.secret(names[1])) else {
            return Err(SourceError::refused(
                "this job may not have tokens (ACTIONS_ID_TOKEN_REQUEST_URL is not set); give it \
                 `permissions: id-token: write`",
            ));
        };
        confidential(url, names[0]).map_err(|_| {
            SourceError::refused(format!("the variable {} is not an https address", names[0]))
        })?;
        let audience = self.token_audience.clone();
        let audience = audience.unwrap_or_else(|| format!("https://iam.{universe}/{}", self.provider));
        let query =
            url::form_urlencoded::Serializer::new(String::new()).append_pair("audience", &audience).finish();
        let url = format!("{url}{}{query}", if url.contains('?') { '&' } else { '?' });
        let bearer = Secret::new(format!("Bearer {}", bearer.expose()));
        let format = Format::Json { field: "value".into() };
        Ok(UrlToken { url, method: Method::GET, headers: vec![("authorization".into(), bearer)], format })
    }
}

/// Azure DevOps issues a token on a POST without a body, at a URL that each job gets in a variable.
fn azure_devops(variables: &Variables) -> Result<UrlToken, SourceError> {
    let names = ["SYSTEM_OIDCREQUESTURI", "SYSTEM_ACCESSTOKEN"];
    let (Some(url), Some(bearer)) = (variables.text(names[0]), variables.secret(names[1])) else {
        return Err(SourceError::refused(
            "this job may not have tokens (SYSTEM_OIDCREQUESTURI or SYSTEM_ACCESSTOKEN is not set); give the step \
             `env: {SYSTEM_ACCESSTOKEN: $(System.AccessToken)}`",
        ));
    };
    confidential(url, names[0])
        .map_err(|_| SourceError::refused(format!("the variable {} is not an https address", names[0])))?;
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("api-version", "7.1");
    // Without this parameter the token is the pipeline's, not that of a service connection.
    if let Some(connection) = variables.text("AZURESUBSCRIPTION_SERVICE_CONNECTION_ID") {
        query.append_pair("serviceConnectionId", connection);
    }
    let url = format!("{url}{}{}", if url.contains('?') { '&' } else { '?' }, query.finish());
    let bearer = Secret::new(format!("Bearer {}", bearer.expose()));
    let format = Format::Json { field: "oidcToken".into() };
    Ok(UrlToken { url, method: Method::POST, headers: vec![("authorization".into(), bearer)], format })
}

/// Parses `NAME: VALUE` and replaces variables in the value.
fn header(line: &str, variables: &Variables) -> Result<(String, Secret<String>), SourceError> {
    let (name, value) = line.split_once(':').ok_or_else(|| {
        SourceError::refused("a line of credentials.token_headers is not of the form NAME: VALUE")
    })?;
    let name = name.trim().to_ascii_lowercase();
    let mut parts = value.trim().split('$');
    let mut whole = Secret::new(parts.next().unwrap_or_default().to_owned());
    for part in parts {
        let word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
        let end = part.find(word).unwrap_or(part.len());
        let (variable, rest) = part.split_at(end);
        let value = variables.text(variable).ok_or_else(|| {
            SourceError::refused(format!(
                "the variable {variable}, which the header {name} needs, is not set"
            ))
        })?;
        whole = Secret::new(format!("{}{value}{rest}", whole.expose()));
    }
    Ok((name, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_one_of_the_universe() {
        let from = TokenFrom::Variable("T".into());
        let (service_account, token_audience, token_type, field) = (None, None, None, None);
        let provider = "projects/1/providers/p".into();
        let federation = Federation {
            provider,
            service_account,
            from,
            token_audience,
            token_type,
            field,
            headers: vec![],
            post: false,
        };
        let variables = [("T".to_owned(), "t".to_owned())].into_iter().collect();
        let endpoints = Endpoints { universe: Some("u.example".into()), ..Endpoints::default() };
        let made = federation.federated(None, &endpoints, &variables).unwrap();
        assert_eq!(made.audience, "//iam.u.example/projects/1/providers/p");
        assert_eq!(made.token_url, "https://sts.u.example/v1/token");
    }

    #[test]
    fn headers_take_variables() {
        let variables: Variables = [("TOKEN".to_owned(), "t".to_owned())].into_iter().collect();
        let read = |line| header(line, &variables).map(|(name, value)| (name, value.expose().clone()));
        assert_eq!(
            read("Authorization: bearer $TOKEN").unwrap(),
            ("authorization".into(), "bearer t".into())
        );
        assert_eq!(read("X:a$TOKEN-b").unwrap(), ("x".into(), "at-b".into()));
        assert!(read("X $TOKEN").is_err() && read("X: $OTHER").is_err() && read("X: $").is_err());
    }
}
