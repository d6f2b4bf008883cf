//! `external_account` in a credential file: its fields, and the credential built from them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use hyper::Method;
use serde::{Deserialize, Deserializer};

use crate::secret::Secret;
use crate::source::aws::lookup::Lookup;
use crate::source::google::endpoints::Endpoints;
use crate::source::google::external_account::ExternalAccount;
use crate::source::google::external_account::subject::Subject;
use crate::source::google::external_account::subject::aws::AwsSubject;
use crate::source::google::external_account::subject::certificate::{self, CertificateSubject};
use crate::source::google::external_account::subject::executable::{self, Executable};
use crate::source::http::secure_url::{confidential, within};
use crate::source::subject::{FileToken, Format, SubjectToken, UrlToken};
use crate::source::variables::Variables;

/// The fields that this kind adds to a credential file.
#[derive(Debug, Default)]
pub(in crate::source) struct ExternalAccountFields {
    pub(in crate::source) audience: Option<String>,
    pub(in crate::source) subject_token_type: Option<String>,
    pub(in crate::source) token_url: Option<String>,
    pub(in crate::source) token_info_url: Option<String>,
    pub(in crate::source) client_id: Option<String>,
    pub(in crate::source) client_secret: Option<Secret<String>>,
    pub(in crate::source) workforce_pool_user_project: Option<String>,
    pub(in crate::source) credential_source: Option<CredentialSource>,
    pub(in crate::source) universe: Option<String>,
    /// The account of the impersonation, if any.
    pub(in crate::source) account: Option<String>,
}

/// `credential_source`. Its kind follows from the fields present, in the order of AIP-4117.
#[derive(Debug, Default, Deserialize)]
pub(in crate::source) struct CredentialSource {
    environment_id: Option<String>,
    region_url: Option<String>,
    regional_cred_verification_url: Option<String>,
    imdsv2_session_token_url: Option<String>,
    file: Option<PathBuf>,
    url: Option<String>,
    #[serde(default)]
    headers: Headers,
    format: Option<DescribedFormat>,
    executable: Option<executable::ExecutableSource>,
    certificate: Option<certificate::CertificateSource>,
}

#[derive(Debug, Deserialize)]
struct DescribedFormat {
    #[serde(rename = "type")]
    kind: Option<String>,
    subject_token_field_name: Option<String>,
}

/// In file order; values may be secrets.
#[derive(Debug, Default)]
struct Headers(Vec<(String, Secret<String>)>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let all = Option::<BTreeMap<String, Secret<String>>>::deserialize(from)?;
        Ok(Self(all.unwrap_or_default().into_iter().collect()))
    }
}

impl ExternalAccountFields {
    /// The error is a fragment about the file and contains nothing that could be a secret.
    pub(in crate::source) fn federated(
        self,
        endpoints: &Endpoints,
        variables: &Variables,
    ) -> Result<ExternalAccount, String> {
        let need = |value: Option<String>, key: &str| {
            value.filter(|value| !value.is_empty()).ok_or_else(|| format!("it has no {key}"))
        };
        let audience = need(self.audience, "audience")?;
        let subject_token_type = need(self.subject_token_type, "subject_token_type")?;
        let token_url = match &endpoints.sts {
            Some(configured) => configured.clone(),
            None => match self.token_url.map(|url| url.trim().to_owned()).filter(|url| !url.is_empty()) {
                Some(named) => confidential(&named, "token_url").map(|()| named)?,
                None => endpoints.sts(endpoints.universe(self.universe.as_deref())),
            },
        };
        let token_info_url = self.token_info_url.filter(|url| !url.is_empty());
        if let Some(url) = &token_info_url {
            confidential(url, "token_info_url")?;
        }
        let user_project = self.workforce_pool_user_project.filter(|project| !project.is_empty());
        if user_project.is_some() && !super::is_workforce(&audience) {
            return Err(
                "its workforce_pool_user_project is for workforce pools, and its audience is not one".into(),
            );
        }
        let client = self.client_id.filter(|id| !id.is_empty()).map(|id| {
            let secret = self.client_secret.as_ref().map_or("", |secret| secret.expose());
            Secret::new(format!("{id}:{secret}"))
        });
        let described = self.credential_source.ok_or("it has no credential_source")?;
        let subject = described.subject(variables)?;
        Ok(ExternalAccount {
            audience,
            subject_token_type,
            token_url,
            token_info_url,
            client,
            user_project,
            subject,
            account: self.account,
            name: Mutex::default(),
            seen: Mutex::default(),
        }
        .looked())
    }
}

impl CredentialSource {
    fn subject(self, variables: &Variables) -> Result<Subject, String> {
        let format = || match &self.format {
            None => Ok(Format::Text),
            Some(format) => format.read(),
        };
        if let Some(environment) = &self.environment_id {
            return self.aws(environment, variables).map(|aws| Subject::Aws(Box::new(aws)));
        }
        if let Some(path) = &self.file {
            let file = FileToken { path: path.clone(), format: format()? };
            return Ok(Subject::Issued(SubjectToken::File(file)));
        }
        if let Some(url) = &self.url {
            within(url.trim(), "credential_source.url")?;
            let url = url.trim().to_owned();
            let format = format()?;
            let url = UrlToken { url, method: Method::GET, headers: self.headers.0, format };
            return Ok(Subject::Issued(SubjectToken::Url(url)));
        }
        if let Some(executable) = self.executable {
            return Executable::described(executable, variables).map(Subject::Executable);
        }
        if let Some(certificate) = self.certificate {
            return CertificateSubject::described(certificate, variables).map(Subject::Certificate);
        }
        Err("its credential_source is of no kind that is known (file, url, executable, certificate, AWS)"
            .into())
    }

    fn aws(&self, environment: &str, variables: &Variables) -> Result<AwsSubject, String> {
        match environment.strip_prefix("aws").map(str::parse::<u32>) {
            Some(Ok(1)) => {}
            Some(Ok(_)) => {
                return Err("its environment_id is a version of AWS that this kfp-creds does not know; a newer one may".into());
            }
            _ => return Err("its environment_id is not known".into()),
        }
        let place = |url: &Option<String>, key: &str| match url {
            Some(url) => within(url, key).map(|()| Some(url.clone())),
            None => Ok(None),
        };
        let verification_url = self.regional_cred_verification_url.clone();
        let verification_url = verification_url.ok_or("it has no regional_cred_verification_url")?;
        confidential(&verification_url.replace("{region}", "region"), "regional_cred_verification_url")?;
        Ok(AwsSubject {
            region_url: place(&self.region_url, "region_url")?,
            url: place(&self.url, "credential_source.url")?,
            session_token_url: place(&self.imdsv2_session_token_url, "imdsv2_session_token_url")?,
            verification_url,
            variables: variables.clone(),
            lookup: Lookup::usual(variables),
        })
    }
}

impl DescribedFormat {
    fn read(&self) -> Result<Format, String> {
        match (self.kind.as_deref(), &self.subject_token_field_name) {
            (None | Some("text"), _) => Ok(Format::Text),
            (Some("json"), Some(field)) if !field.is_empty() => Ok(Format::Json { field: field.clone() }),
            (Some("json"), _) => {
                Err("the format of its credential_source has no subject_token_field_name".into())
            }
            _ => Err("the format of its credential_source is neither text nor json".into()),
        }
    }
}
