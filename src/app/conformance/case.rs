//! The cases: requests, and the answers that every server gives.
//!
//! ```text
//! ## NAME
//! # why
//! METHOD TARGET
//! Name: value                  headers, Host among them
//! => STATUS|4xx [media] [etag] [location=PATH] [has=HEADER] [SHAPE]
//! ```
//!
//! Shapes of bodies: `line` one line without a newline, or empty; `digits`; `lines=A,B` at least these lines,
//! each ended; `json=TYPE[:KEY,KEY]` a JSON value, an object with at least these keys; `token`; `text-token`;
//! `jwt`.

use serde_json::Value;

use super::forms::Form;
use super::found::FoundClouds;
use super::wire::ServerAnswer;
use crate::cloud::Cloud;
use crate::secret::Secret;

/// Placeholders for the paths of the services that need a secret.
const CONTAINER: &str = "{container}";
const APP_SERVICE: &str = "{app-service}";

#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) why: &'static str,
    method: &'static str,
    target: &'static str,
    headers: Vec<&'static str>,
    /// 4 for any status from 400 to 499.
    status: u16,
    media: Option<&'static str>,
    etag: bool,
    location: Option<&'static str>,
    /// A header that the answer has to have.
    has: Option<&'static str>,
    shape: Option<&'static str>,
}

/// All cases, those of Google's first and ordered by name.
pub(super) fn all() -> Vec<Case> {
    let texts = [include_str!("cases.txt"), include_str!("clouds.txt")];
    texts.iter().flat_map(|text| text.split("\n## ").skip(1)).filter_map(parse).collect()
}

fn parse(text: &'static str) -> Option<Case> {
    let mut lines = text.lines();
    let name = lines.next()?;
    let why = lines.next()?.strip_prefix("# ")?;
    let (method, target) = lines.next()?.split_once(' ')?;
    let mut headers = vec![];
    let expected = lines.find_map(|line| {
        let expected = line.strip_prefix("=> ");
        if expected.is_none() {
            headers.push(line);
        }
        expected
    })?;
    let mut words = expected.split(' ');
    let status = words.next()?.trim_end_matches("xx").parse().ok()?;
    let mut case = Case {
        name,
        why,
        method,
        target,
        headers,
        status,
        media: None,
        etag: false,
        location: None,
        has: None,
        shape: None,
    };
    for word in words {
        match word {
            "etag" => case.etag = true,
            _ if word.contains('/') && !word.contains('=') => case.media = Some(word),
            _ => match word.split_once('=') {
                Some(("location", path)) => case.location = Some(path),
                Some(("has", header)) => case.has = Some(header),
                _ => case.shape = Some(word),
            },
        }
    }
    Some(case)
}

impl Case {
    pub(super) fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }

    pub(super) fn cloud(&self) -> Cloud {
        match () {
            () if self.target.starts_with(CONTAINER) => Cloud::Aws,
            () if self.target.starts_with(APP_SERVICE) => Cloud::Azure,
            () => Cloud::of_path(self.target),
        }
    }

    /// Whether the target has the service that the case tests.
    pub(super) fn is_for(&self, found: &FoundClouds) -> bool {
        match () {
            () if self.target.starts_with(CONTAINER) => found.container.is_some(),
            () if self.target.starts_with(APP_SERVICE) => found.app_service.is_some(),
            () => found.has(self.cloud()),
        }
    }

    /// A request for a token for one resource of Azure, which an identity need not have.
    pub(super) fn is_azure_token(&self) -> bool {
        self.cloud() == Cloud::Azure && self.status == 200
    }

    pub(super) fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    pub(super) fn is_identity(&self) -> bool {
        self.shape == Some("jwt")
    }

    /// The request's bytes, with `prefix` before the target; `None` if the target cannot have a prefix.
    pub(super) fn request(&self, prefix: &str, found: &FoundClouds) -> Option<String> {
        let target = self.target;
        if !prefix.is_empty() && !target.starts_with(['/', '{']) {
            return None;
        }
        // A form with a secret has its whole path.
        let prefix = if target.starts_with('{') { "" } else { prefix };
        let part = |form: Option<&Form>, of: fn(&Form) -> &Secret<String>| {
            form.map_or("", |form| of(form).expose()).to_owned()
        };
        let (container, app_service) = (found.container.as_ref(), found.app_service.as_ref());
        let token = part(container, |form| &form.header);
        let authorization = if token.is_empty() { token } else { format!("Authorization: {token}") };
        let headers = self.headers.iter().map(|line| line.replace("{authorization}", &authorization));
        let headers: String =
            headers.filter(|line| !line.is_empty()).map(|line| format!("{line}\r\n")).collect();
        let method = self.method;
        let request = format!("{method} {prefix}{target} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
        let (token, role) = found.aws.as_ref().map_or(("", ""), |aws| (aws.token.expose(), &*aws.role));
        let request = request.replace(CONTAINER, &part(container, |form| &form.path));
        let request = request.replace(APP_SERVICE, &part(app_service, |form| &form.path));
        let request = request.replace("{header}", &part(app_service, |form| &form.header));
        Some(request.replace("{token}", token).replace("{role}", role))
    }

    /// The first deviation of the answer from the case.
    pub(super) fn deviation(&self, answer: &ServerAnswer) -> Option<String> {
        match self.status {
            4 if answer.status / 100 == 4 => {}
            4 => return Some(format!("status {}, expected one from 400 to 499", answer.status)),
            status if status != answer.status => {
                return Some(format!("status {}, expected {status}", answer.status));
            }
            _ => {}
        }
        let flavored = answer.header("metadata-flavor") == Some("Google");
        match self.cloud() {
            Cloud::Google if !flavored => {
                return Some("the answer does not say Metadata-Flavor: Google".into());
            }
            Cloud::Aws | Cloud::Azure if flavored => {
                return Some("the answer says Metadata-Flavor: Google on a path of another cloud".into());
            }
            _ => {}
        }
        if let Some(name) = self.has.filter(|name| answer.header(name).is_none()) {
            return Some(format!("the answer has no {name}"));
        }
        if let Some(media) = self.media {
            let given = answer.header("content-type").unwrap_or_default();
            if given.split(';').next().unwrap_or_default().trim() != media {
                return Some(format!("content type {given:?}, expected {media}"));
            }
        }
        if self.etag && answer.header("etag").is_none_or(str::is_empty) {
            return Some("no ETag, without which nobody can wait for a change".into());
        }
        if let Some(path) = self.location {
            let given = answer.header("location").unwrap_or_default();
            if !given.ends_with(path) {
                return Some(format!("it leads to {given:?}, expected a URL that ends in {path}"));
            }
        }
        let shape = self.shape.filter(|_| !self.is_head())?;
        let Ok(body) = std::str::from_utf8(&answer.body) else {
            return Some("the body is not UTF-8".into());
        };
        let (kind, rest) = shape.split_once('=').unwrap_or((shape, ""));
        misshapen(kind, rest, body)
    }
}

/// Describes a wrong body without quoting it, because bodies may hold tokens.
fn misshapen(kind: &str, rest: &str, body: &str) -> Option<String> {
    let json = || serde_json::from_str::<Value>(body).ok();
    match kind {
        "line" => body.contains('\n').then(|| "the value is not one line without a newline".into()),
        "digits" => {
            let digits = !body.is_empty() && body.bytes().all(|b| b.is_ascii_digit());
            (!digits).then(|| "the value is not a number without a newline".into())
        }
        "lines" => {
            let has =
                |line: &&str| body.split_inclusive('\n').any(|own| own.strip_suffix('\n') == Some(line));
            let missing: Vec<&str> = rest.split(',').filter(|line| !line.is_empty() && !has(line)).collect();
            (!missing.is_empty()).then(|| format!("these lines are missing: {}", missing.join(", ")))
        }
        "json" => {
            let (wanted, keys) = rest.split_once(':').unwrap_or((rest, ""));
            let Some(value) = json() else { return Some("the body is not JSON".into()) };
            let missing = |key: &&str| !key.is_empty() && value.get(*key).is_none();
            let missing: Vec<&str> = keys.split(',').filter(missing).collect();
            if kind_of(&value) != wanted {
                Some(format!("the JSON is of type {}, expected {wanted}", kind_of(&value)))
            } else {
                (!missing.is_empty()).then(|| format!("these keys are missing: {}", missing.join(", ")))
            }
        }
        "token" => {
            let value = json().unwrap_or_default();
            let text = |key: &str| value[key].as_str().is_some_and(|text| !text.is_empty());
            let good = text("access_token") && value["expires_in"].as_u64().is_some_and(|left| left > 0);
            (!good || value["token_type"] != "Bearer").then(|| {
                "not a token: access_token, expires_in (a positive number) and token_type Bearer".into()
            })
        }
        "text-token" => {
            let has =
                |key: &str| body.lines().any(|line| line.split_once(' ').is_some_and(|(own, _)| own == key));
            let keys = ["access_token", "expires_in", "token_type"];
            (!keys.iter().all(|key| has(key))).then(|| "not a token as text, one `key value` a line".into())
        }
        "jwt" => {
            let good = body.split('.').count() == 3 && !body.contains(char::is_whitespace);
            (!good).then(|| "the body is not a bare JWT".into())
        }
        other => Some(format!("unknown shape {other}; please report this")),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_is_read() {
        let count = |text: &str| text.matches("\n## ").count();
        assert_eq!(all().len(), count(include_str!("cases.txt")) + count(include_str!("clouds.txt")));
        assert!(all().len() > 100, "{}", all().len());
        for case in all() {
            let shape = case.shape.unwrap_or("line");
            let (kind, rest) = shape.split_once('=').unwrap_or((shape, ""));
            let said = misshapen(kind, rest, "").unwrap_or_default();
            assert!(!said.contains("unknown shape"), "{}: {said}", case.name);
        }
    }

    #[test]
    fn values_are_judged_by_their_shape() {
        for (shape, good, bad) in [
            ("line", &["", "x"][..], &["x\n", "a\nb"][..]),
            ("digits", &["0", "123"], &["", "1\n", "x"]),
            ("lines=a/,b", &["a/\nb\n", "b\nx\na/\n"], &["a/\nb", "a/\n", ""]),
            ("json=array", &["[]"], &["{}", "", "x"]),
            ("json=object:a,b", &["{\"b\":1,\"a\":null}"], &["{\"a\":1}", "[]"]),
            (
                "token",
                &["{\"access_token\":\"x\",\"expires_in\":5,\"token_type\":\"Bearer\"}"],
                &[
                    "{\"access_token\":\"x\",\"expires_in\":\"5\",\"token_type\":\"Bearer\"}",
                    "{\"access_token\":\"x\",\"expires_in\":0,\"token_type\":\"Bearer\"}",
                    "{\"access_token\":\"\",\"expires_in\":5,\"token_type\":\"Bearer\"}",
                    "{\"access_token\":\"x\",\"expires_in\":5}",
                ],
            ),
            ("text-token", &["access_token x\nexpires_in 5\ntoken_type Bearer\n"], &["access_token x\n"]),
            ("jwt", &["a.b.c"], &["a.b.c\n", "a.b", ""]),
        ] {
            let (kind, rest) = shape.split_once('=').unwrap_or((shape, ""));
            for body in good {
                assert_eq!(misshapen(kind, rest, body), None, "{shape}: {body}");
            }
            for body in bad {
                assert!(misshapen(kind, rest, body).is_some(), "{shape}: {body}");
            }
        }
    }
}
