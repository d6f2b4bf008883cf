//! Subject tokens: what another issuer gave this machine or job. Each cloud exchanges them for tokens of its own.
//!
//! They live for minutes, so each exchange fetches a new one and none is kept. `job` has those of CI systems.

mod job;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;

use crate::quote;
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::document::UntypedJson;
use crate::source::http::client::Upstream;
use crate::source::http::request::Call;
use crate::source::http::secure_url::within;
use crate::source::variables::Variables;

/// No token is near this size; a larger file was named by mistake.
const LARGEST_TOKEN: u64 = 1 << 20;

pub(super) use job::{azure_devops, github, header};

/// Where a subject token comes from.
#[derive(Debug)]
pub(crate) enum SubjectToken {
    File(FileToken),
    Url(UrlToken),
    /// An environment variable, whose value stays the same while kfp-creds runs.
    Variable {
        name: String,
        token: Secret<String>,
    },
}

/// Whether the token is the whole text or a field of a JSON object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Format {
    Text,
    Json { field: String },
}

#[derive(Debug)]
pub(crate) struct FileToken {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
}

#[derive(Debug)]
pub(crate) struct UrlToken {
    pub(crate) url: String,
    /// GET, or POST if the request creates the token (Azure DevOps).
    pub(crate) method: Method,
    /// Values may be secrets.
    pub(crate) headers: Vec<(String, Secret<String>)>,
    pub(crate) format: Format,
}

impl SubjectToken {
    /// Parses the text of `token_from`: `github`, `azure-devops`, `env:NAME`, `file:PATH` or a URL. `audience` is the
    /// audience to request, if the issuer lets the caller choose. Errors name the next step.
    pub(crate) fn named(from: &str, audience: &str, variables: &Variables) -> Result<Self, SourceError> {
        let format = Format::Text;
        Ok(match from {
            "github" => Self::Url(github(audience, variables)?),
            "azure-devops" => Self::Url(azure_devops(variables)?),
            _ => match (from.strip_prefix("env:"), from.strip_prefix("file:")) {
                (Some(name), _) => Self::variable(name, variables)?,
                (_, Some(path)) => Self::File(FileToken { path: path.into(), format }),
                _ => {
                    within(from, "token_from").map_err(|_| {
                        SourceError::refused(
                            "token_from is none of \"github\", \"azure-devops\", \"env:NAME\", \"file:PATH\" and an https URL",
                        )
                    })?;
                    let url = from.to_owned();
                    Self::Url(UrlToken { url, method: Method::GET, headers: vec![], format })
                }
            },
        })
    }

    pub(crate) fn variable(name: &str, variables: &Variables) -> Result<Self, SourceError> {
        let token = variables.secret(name).ok_or_else(|| {
            SourceError::refused(format!(
                "the variable {name}, which should hold the job's token, is not set"
            ))
        })?;
        Ok(Self::Variable { name: name.to_owned(), token })
    }

    pub(crate) async fn token(&self, upstream: &Upstream) -> Result<Secret<String>, SourceError> {
        match self {
            Self::File(file) => file.token().await,
            Self::Url(url) => url.token(upstream).await,
            Self::Variable { token, .. } => Ok(Secret::new(token.expose().clone())),
        }
    }

    /// A name for messages.
    pub(crate) fn place(&self) -> String {
        match self {
            Self::File(file) => quote::path(&file.path),
            Self::Url(url) => short(&url.url),
            Self::Variable { name, .. } => format!("the variable {name}"),
        }
    }

    /// Whether fetching again may return a different token.
    pub(crate) fn may_change(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// The files whose change means that a failed exchange may now succeed.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::File(file) => vec![file.path.clone()],
            Self::Url(_) | Self::Variable { .. } => vec![],
        }
    }
}

/// How often to read a file that may be half written, and the pause between two reads.
const LOOKS: u32 = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

impl FileToken {
    /// Retries, because a writer that replaces the file in place leaves it empty or broken for a moment.
    pub(crate) async fn token(&self) -> Result<Secret<String>, SourceError> {
        for _ in 1..LOOKS {
            if let Ok(token) = self.look() {
                return Ok(token);
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        self.look()
    }

    fn look(&self) -> Result<Secret<String>, SourceError> {
        let name = quote::path(&self.path);
        let bytes = read(&self.path).map_err(|error| {
            SourceError::transient(format!("the subject token file {name} cannot be read: {error}"))
        })?;
        self.format.pick(&bytes).map_err(|why| {
            SourceError::transient(format!(
                "the subject token file {name} {why}; fix the program that writes it"
            ))
        })
    }
}

/// Reads a file that should hold a credential; never blocks on a pipe without a writer.
pub(crate) fn read(path: &Path) -> std::io::Result<Secret<Vec<u8>>> {
    let about = fs::metadata(path)?;
    if !about.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut bytes =
        Vec::with_capacity(usize::try_from(about.len().min(LARGEST_TOKEN)).unwrap_or_default() + 1);
    fs::File::open(path)?.take(LARGEST_TOKEN).read_to_end(&mut bytes)?;
    Ok(Secret::new(bytes))
}

impl UrlToken {
    async fn token(&self, upstream: &Upstream) -> Result<Secret<String>, SourceError> {
        let mut call = Call::bare(self.method.clone(), &self.url);
        if self.method == Method::POST {
            call.content_type = "application/json";
        }
        for (name, value) in &self.headers {
            call = call.named(name, value)?;
        }
        let place = short(&self.url);
        let answer = upstream.send(&call).await.map_err(|fault| {
            let why = format!("no subject token from {place}: {fault}");
            if fault.is_transient() { SourceError::transient(why) } else { SourceError::refused(why) }
        })?;
        self.format
            .pick(answer.bytes())
            .map_err(|why| SourceError::refused(format!("what {place} answered as a subject token {why}")))
    }
}

impl Format {
    /// The error completes a sentence about the source of the bytes and quotes nothing from them.
    pub(crate) fn pick(&self, bytes: &Secret<Vec<u8>>) -> Result<Secret<String>, String> {
        let token = match self {
            Self::Text => {
                let text = std::str::from_utf8(bytes.expose()).map_err(|_| "is not text")?;
                Secret::new(text.trim().to_owned())
            }
            Self::Json { field } => {
                let named = quote::name(field);
                let no_text = || format!("is not a JSON object with the text {named} in it");
                let json: UntypedJson = serde_json::from_slice(bytes.expose()).map_err(|_| no_text())?;
                json.text(field).map_err(|_| no_text())?.ok_or_else(|| format!("has no {named} in it"))?
            }
        };
        if token.expose().is_empty() {
            return Err("is empty".into());
        }
        Ok(token)
    }
}

/// Scheme, host and path only: the query may hold a secret.
pub(crate) fn short(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    quote::name(url.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_picked_from_text_and_json() {
        let pick = |format: &Format, text: &str| {
            format.pick(&Secret::new(text.as_bytes().to_vec())).map(|token| token.expose().clone())
        };
        let json = Format::Json { field: "access_token".into() };
        assert_eq!(pick(&Format::Text, " a.b.c\n").as_deref(), Ok("a.b.c"));
        let nested = Format::Json { field: "data.token".into() };
        assert_eq!(pick(&nested, r#"{"data":{"token":"t"}}"#).as_deref(), Ok("t"));
        assert_eq!(pick(&nested, r#"{"data":{"token":"u"},"data.token":"t"}"#).as_deref(), Ok("t"));
        assert!(pick(&nested, r#"{"data":{"tokens":"canary"}}"#).unwrap_err().contains("has no data.token"));
        assert!(pick(&nested, r#"{"data":"canary"}"#).unwrap_err().contains("has no data.token"));
        assert_eq!(pick(&json, r#"{"x":[{"access_token":1}],"access_token":"t","y":2}"#).as_deref(), Ok("t"));
        for (format, bad) in [
            (&Format::Text, ""),
            (&Format::Text, " \n"),
            (&json, ""),
            (&json, "canary"),
            (&json, "[]"),
            (&json, "{}"),
            (&json, r#"{"access_token":""}"#),
            (&json, r#"{"access_token":["canary"]}"#),
            (&json, r#"{"access_token":"canary"} and more"#),
            (&json, r#"{"access_token":"canary""#),
        ] {
            let why = pick(format, bad).unwrap_err();
            assert!(!why.contains("canary"), "{why}");
        }
    }

    #[test]
    fn a_token_is_named_as_in_the_config() {
        let variables: Variables = [
            ("TOKEN", "canary"),
            ("ACTIONS_ID_TOKEN_REQUEST_URL", "https://a.example/x?y=1"),
            ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "canary"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into_iter()
        .collect();
        let named = |from: &str| SubjectToken::named(from, "sts.amazonaws.com", &variables);
        for (from, place) in [
            ("github", "https://a.example/x"),
            ("env:TOKEN", "the variable TOKEN"),
            ("file:/a/b", "/a/b"),
            ("https://a.example/t?q=s3cret", "https://a.example/t"),
            ("http://127.0.0.1/t", "http://127.0.0.1/t"),
        ] {
            assert_eq!(named(from).unwrap().place(), place);
        }
        let SubjectToken::Url(url) = named("github").unwrap() else { panic!("a URL") };
        assert_eq!(url.url, "https://a.example/x?y=1&audience=sts.amazonaws.com");
        for bad in ["", "azure-devops", "env:OTHER", "canary", "http://a.example/", "ftp://a.example"] {
            let why = named(bad).unwrap_err().to_string();
            assert!(!why.contains("canary"), "{why}");
        }
    }

    #[test]
    fn a_place_is_shown_without_its_query() {
        assert_eq!(short("https://h.example/p?key=1#x"), "https://h.example/p");
        assert_eq!(short("https://h.example"), "https://h.example");
    }
}
