//! Executable-sourced credentials in a credential file, per AIP-4117.
//!
//! A program named by a credential file runs only if the user allowed it, with
//! `GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES=1` in the environment.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::quote;
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::command::HelperCommand;
use crate::source::google::external_account::response::{self, Good, Nothing, SubjectAnswer};
use crate::source::google::external_account::subject::Purpose;
use crate::source::subject;
use crate::source::variables::Variables;

pub(crate) const ALLOWED: &str = "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES";

/// Default and range of `timeout_millis`, as in Google's libraries.
const TIMEOUT: Duration = Duration::from_secs(30);
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(120);

/// `credential_source.executable` in a credential file.
#[derive(Debug, Deserialize)]
pub(in crate::source) struct ExecutableSource {
    command: Option<String>,
    timeout_millis: Option<u64>,
    output_file: Option<PathBuf>,
}

#[derive(Debug)]
pub(crate) struct Executable {
    command: HelperCommand,
    output_file: Option<PathBuf>,
    /// Set for the exec provider: it gets the request on stdin and may answer in any version of the format.
    pub(crate) told: bool,
}

impl Executable {
    /// The error is a fragment about the file.
    pub(crate) fn described(described: ExecutableSource, variables: &Variables) -> Result<Self, String> {
        let line = described.command.unwrap_or_default();
        let mut words = words(&line).into_iter();
        let program = words.next().map(PathBuf::from).ok_or("its executable has no command")?;
        let timeout = described.timeout_millis.map_or(TIMEOUT, Duration::from_millis);
        if !(SHORTEST..=LONGEST).contains(&timeout) {
            return Err("the timeout_millis of its executable is not from 5000 to 120000".into());
        }
        if described.output_file.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err("the output_file of its executable is not an absolute path".into());
        }
        if variables.text(ALLOWED) != Some("1") {
            return Err(format!(
                "it names a program to run ({}), and that is only done with {ALLOWED}=1 in the environment",
                quote::path(&program)
            ));
        }
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let environment = variables.all().map(own).collect();
        let command = HelperCommand { program, arguments: words.collect(), environment, timeout };
        Ok(Self { command, output_file: described.output_file, told: false })
    }

    pub(crate) fn provider(command: HelperCommand) -> Self {
        Self { command, output_file: None, told: true }
    }

    pub(crate) fn name(&self) -> String {
        quote::path(&self.command.program)
    }

    pub(crate) fn keeps(&self) -> bool {
        self.output_file.is_some()
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.command.timeout
    }

    pub(crate) async fn token(&self, purpose: &Purpose<'_>) -> Result<Secret<String>, SourceError> {
        if let Some(kept) = self.kept(purpose)? {
            return Ok(kept);
        }
        let output_file = self.output_file.as_ref().map(|path| path.to_string_lossy().into_owned());
        let mut more = vec![
            ("GOOGLE_EXTERNAL_ACCOUNT_AUDIENCE", purpose.audience),
            ("GOOGLE_EXTERNAL_ACCOUNT_TOKEN_TYPE", purpose.token_type),
            // There may be no user at the terminal, and a prompt would block every container.
            ("GOOGLE_EXTERNAL_ACCOUNT_INTERACTIVE", "0"),
        ];
        more.extend(purpose.account.map(|account| ("GOOGLE_EXTERNAL_ACCOUNT_IMPERSONATED_EMAIL", account)));
        more.extend(output_file.as_deref().map(|path| ("GOOGLE_EXTERNAL_ACCOUNT_OUTPUT_FILE", path)));
        let input = match self.told {
            true => serde_json::json!({
                "version": 1, "kind": "subject_token",
                "audience": purpose.audience, "token_type": purpose.token_type,
            })
            .to_string(),
            false => String::new(),
        };
        let name = self.name();
        let brought = response::brought(&self.command.run(&input, &more).await?, &name, self.told)?;
        if self.keeps() && brought.expires.is_none() {
            return Err(SourceError::refused(format!(
                "the answer of the command {name} has no expiration_time, which it needs with an output_file"
            )));
        }
        subject_token(brought, &name)
    }

    /// The token in the command's output file, while it is valid. A file that is not a response is an error:
    /// another program writes there.
    fn kept(&self, purpose: &Purpose<'_>) -> Result<Option<Secret<String>>, SourceError> {
        let Some(path) = self.output_file.as_ref().filter(|_| !purpose.afresh) else { return Ok(None) };
        let name = quote::path(path);
        let bytes = match subject::read(path) {
            Ok(bytes) if bytes.expose().is_empty() => return Ok(None),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(SourceError::refused(format!("the output file {name} cannot be read: {error}")));
            }
        };
        match response::read(bytes.expose(), SystemTime::now()) {
            Ok(brought) if brought.expires.is_some() => subject_token(brought, &self.name()).map(Some),
            Err(Nothing::Expired | Nothing::Failed(_)) => Ok(None),
            Ok(_) => {
                Err(SourceError::refused(format!("the output file {name} has no expiration_time; remove it")))
            }
            Err(Nothing::Malformed(why)) => Err(SourceError::refused(format!(
                "the output file {name} is not understood: {why}; remove it"
            ))),
        }
    }
}

fn subject_token(brought: SubjectAnswer, name: &str) -> Result<Secret<String>, SourceError> {
    match brought.good {
        Good::Identity | Good::Subject | Good::Bare => Ok(brought.token),
        Good::Access => Err(SourceError::refused(format!(
            "the command {name} returned an access token; a token to exchange is expected"
        ))),
    }
}

/// Splits a command line at blanks; text in double quotes stays together. No shell is involved.
fn words(line: &str) -> Vec<String> {
    let (mut all, mut word, mut begun, mut quoted) = (vec![], String::new(), false, false);
    for c in line.chars() {
        match c {
            '"' => (quoted, begun) = (!quoted, true),
            c if c.is_whitespace() && !quoted => {
                if begun {
                    all.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            c => {
                word.push(c);
                begun = true;
            }
        }
    }
    if begun {
        all.push(word);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_split_without_a_shell() {
        assert_eq!(words("/bin/a  --b=c d"), ["/bin/a", "--b=c", "d"]);
        assert_eq!(
            words("\"/opt/my tool/a\" --x=\"1 2\" \"\" $HOME;ls"),
            ["/opt/my tool/a", "--x=1 2", "", "$HOME;ls"]
        );
        assert!(words(" ").is_empty());
    }

    #[test]
    fn executable_settings_of_a_file_are_checked() {
        let allowed: Variables = [(ALLOWED.into(), "1".into())].into_iter().collect();
        let made = |json: serde_json::Value, variables: &Variables| {
            Executable::described(serde_json::from_value(json).unwrap(), variables).map(|made| made.timeout())
        };
        let of =
            |command: &str, millis: u64| serde_json::json!({"command": command, "timeout_millis": millis});
        assert_eq!(made(serde_json::json!({"command": "/bin/a"}), &allowed), Ok(TIMEOUT));
        assert_eq!(made(of("/bin/a", 5000), &allowed), Ok(SHORTEST));
        assert_eq!(made(of("/bin/a", 120_000), &allowed), Ok(LONGEST));
        for bad in [of("/bin/a", 4999), of("/bin/a", 120_001), of("", 5000), of(" \t", 5000)] {
            assert!(made(bad, &allowed).is_err());
        }
        for not in ["", "0", "true", "11"] {
            let variables: Variables = [(ALLOWED.to_owned(), not.to_owned())].into_iter().collect();
            assert!(made(of("/bin/a", 5000), &variables).unwrap_err().contains(ALLOWED), "{not}");
        }
    }
}
