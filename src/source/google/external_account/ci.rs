//! Federation that the config sets up: a CI job has its own token and needs no credential file.

use std::sync::Mutex;

use hyper::Method;

use crate::source::SourceError;
use crate::source::command::HelperCommand;
use crate::source::google::configured::{Federation, TokenFrom};
use crate::source::google::endpoints::Endpoints;
use crate::source::google::external_account::ExternalAccount;
use crate::source::google::external_account::subject::Subject;
use crate::source::google::external_account::subject::executable::Executable;
use crate::source::google::impersonated::Impersonated;
use crate::source::google::token_types::JWT;
use crate::source::google::{Credential, CredentialKind};
use crate::source::subject::{FileToken, Format, SubjectToken, UrlToken, azure_devops, github, header};
use crate::source::variables::Variables;

impl Federation {
    pub(in crate::source::google) fn kind(
        &self,
        command: Option<HelperCommand>,
        endpoints: &Endpoints,
        variables: &Variables,
    ) -> Result<CredentialKind, SourceError> {
        let federated =
            CredentialKind::ExternalAccount(Box::new(self.federated(command, endpoints, variables)?));
        let Some(account) = &self.service_account else { return Ok(federated) };
        let base = endpoints.iam_credentials(endpoints.universe(None));
        let url = format!("{base}/v1/projects/-/serviceAccounts/{account}:generateAccessToken");
        let source = Credential::unfiled(federated);
        let made = Impersonated::new(source, &url, vec![], None, endpoints).map_err(SourceError::refused)?;
        Ok(CredentialKind::Impersonated(Box::new(made)))
    }

    /// `command` is used by [`TokenFrom::Command`].
    fn federated(
        &self,
        command: Option<HelperCommand>,
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
        command: Option<HelperCommand>,
        universe: &str,
        variables: &Variables,
    ) -> Result<Subject, SourceError> {
        let format = || match &self.field {
            Some(field) => Format::Json { field: field.clone() },
            None => Format::Text,
        };
        Ok(Subject::Issued(match &self.from {
            TokenFrom::Github => {
                let audience = self.token_audience.clone();
                let audience =
                    audience.unwrap_or_else(|| format!("https://iam.{universe}/{}", self.provider));
                SubjectToken::Url(github(&audience, variables)?)
            }
            TokenFrom::AzureDevops => SubjectToken::Url(azure_devops(variables)?),
            TokenFrom::Variable(name) => SubjectToken::variable(name, variables)?,
            TokenFrom::File(path) => SubjectToken::File(FileToken { path: path.clone(), format: format() }),
            TokenFrom::Url(url) => {
                let headers = self.headers.iter().map(|line| header(line, variables));
                let headers = headers.collect::<Result<_, _>>()?;
                let method = if self.post { Method::POST } else { Method::GET };
                SubjectToken::Url(UrlToken { url: url.clone(), method, headers, format: format() })
            }
            TokenFrom::Command => {
                let command = command.ok_or_else(|| SourceError::refused("no command returns the token"))?;
                return Ok(Subject::Executable(Executable::provider(command)));
            }
        }))
    }
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
}
