//! Tokens that CI systems give their jobs.

use hyper::Method;

use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::http::secure_url::confidential;
use crate::source::subject::{Format, UrlToken};
use crate::source::variables::Variables;

/// GitHub's runner gives each job that may request tokens the URL and the bearer in variables.
pub(crate) fn github(audience: &str, variables: &Variables) -> Result<UrlToken, SourceError> {
    let names = ["ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"];
    let (Some(url), Some(bearer)) = (variables.text(names[0]), variables.secret(names[1])) else {
        return Err(SourceError::refused(
            "this job may not have tokens (ACTIONS_ID_TOKEN_REQUEST_URL is not set); give it \
             `permissions: id-token: write`",
        ));
    };
    confidential(url, names[0])
        .map_err(|_| SourceError::refused(format!("the variable {} is not an https address", names[0])))?;
    let query =
        url::form_urlencoded::Serializer::new(String::new()).append_pair("audience", audience).finish();
    let url = format!("{url}{}{query}", if url.contains('?') { '&' } else { '?' });
    let bearer = Secret::new(format!("Bearer {}", bearer.expose()));
    let format = Format::Json { field: "value".into() };
    Ok(UrlToken { url, method: Method::GET, headers: vec![("authorization".into(), bearer)], format })
}

/// Azure DevOps issues a token on a POST without a body, at a URL that each job gets in a variable.
pub(crate) fn azure_devops(variables: &Variables) -> Result<UrlToken, SourceError> {
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
pub(crate) fn header(line: &str, variables: &Variables) -> Result<(String, Secret<String>), SourceError> {
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
