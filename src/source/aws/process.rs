//! Commands that print keys: `credential_process` of a profile, and the command of the config. Both answer in the
//! form of `credential_process`, as `aws configure export-credentials`, aws-vault and IAM Roles Anywhere's tool do.

use std::time::Duration;

use crate::quote;
use crate::source::SourceError;
use crate::source::aws::keys::{Keys, KeysJson};
use crate::source::command::HelperCommand;
use crate::source::variables::Variables;
use crate::token::Now;

/// A command of a profile may ask the person for consent in a browser.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

/// The command of a profile. The profile is the user's own configuration, so the command gets the user's whole
/// environment, as it does from AWS's tools.
pub(super) fn of_profile(words: &[String], variables: &Variables) -> Option<HelperCommand> {
    let (program, arguments) = words.split_first()?;
    Some(HelperCommand {
        program: program.into(),
        arguments: arguments.to_vec(),
        environment: variables.all().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        timeout: TIMEOUT,
    })
}

/// Runs the command without input on stdin, because a prompt would block every container.
pub(super) async fn keys(command: &HelperCommand) -> Result<Keys, SourceError> {
    let name = quote::path(&command.program);
    let now = Now::read();
    let ran = command.run("", &[]).await?;
    if !ran.success {
        return Err(SourceError::refused(format!(
            "the command {name} returned no AWS keys; its error output is on the terminal of kfp-creds"
        )));
    }
    // serde's messages quote the input, which may be a key.
    let written: KeysJson = serde_json::from_slice(ran.output.expose()).map_err(|_| {
        SourceError::refused(format!("the command {name} wrote no JSON of the form of credential_process"))
    })?;
    if written.version != Some(1) {
        return Err(SourceError::refused(format!(
            "what the command {name} wrote has no Version 1; is kfp-creds older than the command?"
        )));
    }
    written.keys(&format!("the command {name}"), now)
}
