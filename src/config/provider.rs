//! `[credentials]` as a table: a command that returns tokens, or another issuer's token to exchange, such as
//! a CI job's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use super::Environment;
use super::forms::account;
use super::layers::Layers;
use super::layers::{judged, judged_as};
use crate::quote;
use crate::source::google::{Exec, Federation, Provided, TokenFrom};
use crate::source::http::secure_url::{is_link_local_service, is_loopback};

const TIMEOUT: Duration = Duration::from_secs(20);

/// `beside` is the base of relative paths in the file.
pub(super) fn provided(say: &mut Layers, beside: &Path, env: &Environment) -> Option<Provided> {
    let base = |say: &Layers, path: &str| match say.is_from_file(path) {
        true => beside.to_owned(),
        false => env.cwd.clone(),
    };
    let timeout = judged_as(say, "credentials.timeout", seconds);
    let (words, pass) = (say.list("credentials.exec"), say.list("credentials.pass").unwrap_or_default());
    let (has_command, passes) = (words.is_some(), !pass.is_empty());
    let exec = words.and_then(|words| {
        let at = base(say, "credentials.exec");
        exec(say, "credentials", &words, pass, timeout.unwrap_or(TIMEOUT), (&at, env))
    });
    if !has_command && (passes || timeout.is_some()) {
        say.problem("credentials", "pass and timeout are for a command, and there is no exec");
    }
    let at = base(say, "credentials.token_from");
    let from = judged_as(say, "credentials.token_from", |text| token_from(text, &at, env));
    if say.text("credentials.workload_identity_provider").is_some() {
        let federation = federation(say, from, exec.is_some(), has_command)?;
        return Some(Provided { exec, federation: Some(federation) });
    }
    let given = |key: &str| say.text(&format!("credentials.{key}")).is_some();
    let exchanged = given("token_from") || given("service_account") || given("token_type");
    if exchanged || !has_command {
        let what = "has to say workload_identity_provider, which exchanges the token, or exec, a command that brings \
                    tokens that need no exchange (and then impersonate for a service account)";
        say.problem("credentials", what);
    }
    exec.map(|exec| Provided { exec: Some(exec), federation: None })
}

fn federation(
    say: &mut Layers,
    from: Option<TokenFrom>,
    by_command: bool,
    has_command: bool,
) -> Option<Federation> {
    let provider = judged_as(say, "credentials.workload_identity_provider", pool);
    let service_account = judged(say, "credentials.service_account", account);
    let from = match (from, by_command) {
        (Some(_), true) => {
            say.problem("credentials.token_from", "exec is given too; keep one of them");
            return None;
        }
        (Some(named), false) => named,
        (None, true) => TokenFrom::Command,
        (None, false) => {
            // Problems with a value that is set are already reported.
            if say.text("credentials.token_from").is_none() && !has_command {
                let what = "there is no token to exchange; set token_from or exec";
                say.problem("credentials.workload_identity_provider", what);
            }
            return None;
        }
    };
    let (file, url) = (matches!(from, TokenFrom::File(_)), matches!(from, TokenFrom::Url(_)));
    let field = say.text("credentials.token_field");
    let headers = say.list("credentials.token_headers").unwrap_or_default();
    let token_audience = say.text("credentials.token_audience");
    for (key, given, fits) in [
        ("token_field", field.is_some(), file || url),
        ("token_headers", !headers.is_empty(), url),
        ("token_method", say.text("credentials.token_method").is_some(), url),
        ("token_audience", token_audience.is_some(), from == TokenFrom::Github),
    ] {
        if given && !fits {
            say.problem(&format!("credentials.{key}"), "does not apply to a token from there");
        }
    }
    let post = judged_as(say, "credentials.token_method", |text| match text {
        "GET" => Ok(false),
        "POST" => Ok(true),
        _ => Err("has to be \"GET\" or \"POST\"".into()),
    });
    Some(Federation {
        post: post.unwrap_or_default(),
        provider: provider?,
        service_account,
        from,
        token_audience,
        token_type: say.text("credentials.token_type"),
        field,
        headers,
    })
}

/// The command of `exec` in `table`; a relative path in it starts at `base`.
pub(super) fn exec(
    say: &mut Layers,
    table: &str,
    words: &[String],
    pass: Vec<String>,
    timeout: Duration,
    (base, env): (&Path, &Environment),
) -> Option<Exec> {
    let Some((program, arguments)) = words.split_first().filter(|(program, _)| !program.is_empty()) else {
        say.problem(&format!("{table}.exec"), "has to name a command");
        return None;
    };
    if !say.is_path(&format!("{table}.exec"), program) {
        return None;
    }
    let program = match program.contains('/') {
        true => path(program, base, env),
        false => PathBuf::from(program),
    };
    for name in &pass {
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if name.is_empty() || !name.bytes().all(good) {
            say.problem(&format!("{table}.pass"), "has to hold names of variables, without their values");
        }
    }
    Some(Exec { program, arguments: arguments.to_vec(), pass, timeout })
}

fn path(text: &str, base: &Path, env: &Environment) -> PathBuf {
    match (text.strip_prefix("~/"), env.home()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => base.join(text.trim_start_matches("./")),
    }
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').filter(|number| number.bytes().all(|b| b.is_ascii_digit()));
    match number.and_then(|number| number.parse().ok()) {
        Some(number @ 1..=120) => Ok(Duration::from_secs(number)),
        _ => Err("has to be a time from \"1s\" to \"120s\"".into()),
    }
}

/// A provider as Google's console shows it, with or without the service's host in front.
fn pool(text: &str) -> Result<String, String> {
    let rest = text.trim_start_matches("https:");
    let rest = rest.strip_prefix("//").and_then(|rest| rest.split_once('/')).map_or(text, |(_, rest)| rest);
    let parts: Vec<&str> = rest.split('/').collect();
    let good = |part: &&str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let workload = matches!(
        parts.as_slice(),
        ["projects", _, "locations", _, "workloadIdentityPools", _, "providers", _]
    );
    if workload && parts.iter().all(good) {
        return match parts.get(1) {
            Some(project) if !project.bytes().all(|b| b.is_ascii_digit()) => Err(format!(
                "has to name the project by its number, not its id (gcloud projects describe {project} \
                 --format='value(projectNumber)')"
            )),
            _ => Ok(rest.to_owned()),
        };
    }
    Err("has to be a provider, such as \"projects/123456/locations/global/workloadIdentityPools/POOL/providers/NAME\""
        .into())
}

pub(super) fn token_from(text: &str, base: &Path, env: &Environment) -> Result<TokenFrom, String> {
    if text == "github" {
        return Ok(TokenFrom::Github);
    }
    if text == "azure-devops" {
        return Ok(TokenFrom::AzureDevops);
    }
    let name = |name: &&str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if let Some(name) = text.strip_prefix("env:").filter(name) {
        return Ok(TokenFrom::Variable(name.into()));
    }
    if let Some(file) = text.strip_prefix("file:").filter(|file| !file.is_empty()) {
        if let Some(shape) = quote::no_path(file) {
            return Err(format!("has to name a file, and holds {shape} instead of its path"));
        }
        return Ok(TokenFrom::File(path(file, base, env)));
    }
    if text.starts_with("http") {
        return source_url(text).map(TokenFrom::Url);
    }
    Err("has to be \"github\", \"azure-devops\", \"env:NAME\", \"file:PATH\" or a URL".into())
}

/// A subject token's URL. Unlike an endpoint it may have a query, or be a cloud's metadata service.
fn source_url(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("is no URL: {error}"))?;
    let local = url.host_str().is_some_and(|host| is_loopback(host) || is_link_local_service(host));
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err("has to be a URL without user and fragment".into());
    }
    match url.scheme() {
        "https" => Ok(url.into()),
        "http" if local => Ok(url.into()),
        _ => Err("has to be an https URL, or http on this machine".into()),
    }
}

impl Provided {
    /// The text for `config check`.
    pub(super) fn summary(&self) -> String {
        let command = |exec: &Exec| format!("the command {}", quote::path(&exec.program));
        match (&self.federation, &self.exec) {
            (None, Some(exec)) => command(exec),
            (None, None) => String::new(),
            (Some(federation), exec) => {
                let from = match &federation.from {
                    TokenFrom::Github => "GitHub".into(),
                    TokenFrom::AzureDevops => "Azure DevOps".into(),
                    TokenFrom::Variable(name) => format!("the variable {name}"),
                    TokenFrom::File(path) => quote::path(path),
                    TokenFrom::Url(url) => quote::name(url),
                    TokenFrom::Command => exec.as_ref().map(command).unwrap_or_default(),
                };
                let account = federation.service_account.as_ref();
                let account = account.map(|account| format!(", as {account}")).unwrap_or_default();
                format!("{}, by a token from {from}{account}", federation.provider)
            }
        }
    }
}
