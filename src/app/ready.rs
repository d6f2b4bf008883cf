//! The output of `serve` on stdout once it is ready: lines for a shell, or one line of JSON for a program.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::console::OutputForm;

/// With a unix `DOCKER_HOST` the first two make clients fail; the third selects another engine.
pub(super) const UNSET: [&str; 3] = ["DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_CONTEXT"];

/// The line of `serve --json`. Values that do not apply are `null`: a session without an engine has no
/// `socket`.
#[derive(Debug, Serialize)]
pub(super) struct Ready {
    pub(super) ready: bool,
    pub(super) pid: u32,
    /// Eight hex digits, for `status` and `cut-off`.
    pub(super) session: Option<String>,
    pub(super) name: Option<String>,
    /// The socket of the Docker API.
    pub(super) socket: Option<String>,
    /// Variables to set for programs that use the session.
    pub(super) environment: Map<String, Value>,
    /// Variables to remove for them.
    pub(super) unset: Vec<&'static str>,
    /// The URL of the status page, including the secret path.
    pub(super) page: Option<String>,
    /// The URL of the offline source's public keys.
    pub(super) jwks: Option<String>,
}

impl Ready {
    pub(super) fn new(environment: impl IntoIterator<Item = (String, String)>) -> Self {
        let environment: Map<String, Value> =
            environment.into_iter().map(|(name, value)| (name, value.into())).collect();
        let told = |name: &str| environment.get(name).and_then(Value::as_str).map(String::from);
        Self {
            ready: true,
            pid: std::process::id(),
            session: None,
            name: None,
            socket: None,
            jwks: told("KFP_CREDS_JWKS_URL"),
            page: None,
            unset: vec![],
            environment,
        }
    }

    pub(super) fn print(&self, form: OutputForm, print: impl Fn(&str)) {
        if form == OutputForm::Json {
            print(&serde_json::to_string(self).unwrap_or_default());
            return;
        }
        for (name, value) in &self.environment {
            print(&format!("export {name}={}", for_a_shell(value.as_str().unwrap_or_default())));
        }
        if let Some(place) = &self.page {
            // A comment, so that a shell may evaluate all of stdout.
            print(&format!("# who holds which token: {place}"));
        }
    }
}

/// Quotes a value as one word of a shell: a directory that the user named can contain any character.
fn for_a_shell(text: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into();
    }
    format!("'{}'", text.replace('\'', r"'\''")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exported_values_are_quoted_for_the_shell() {
        assert_eq!(for_a_shell("unix:///run/user/1000/a.sock"), "unix:///run/user/1000/a.sock");
        let hostile = "/a b/it's; $(touch x)`";
        let mut shell = std::process::Command::new("sh");
        let out = shell.arg("-c").arg(format!("printf %s {}", for_a_shell(hostile)));
        assert_eq!(String::from_utf8(out.output().unwrap().stdout).unwrap(), hostile);
    }
}
