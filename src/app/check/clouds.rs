//! Probes of AWS and Azure: one credential for each identity that has the cloud.

use super::finding::Finding;
use crate::app::clouds::{Trial, WITHIN, one};
use crate::app::credentials::Credentials;
use crate::cloud::Cloud;
use crate::config::Config;
use crate::failure::Failure;
use crate::mint::MintFailure;

/// The lines of `check`, each with its first word.
pub(super) async fn probes(credentials: &Credentials, config: &Config) -> Vec<(&'static str, Finding)> {
    let mut found = vec![];
    for (cloud, kind) in credentials.clouds.kinds() {
        let mut any = false;
        for identity in config.identities.values() {
            let trial = one(&credentials.mint, identity, cloud, WITHIN).await;
            any |= !matches!(trial, Trial::Absent);
            let outcome = match trial {
                Trial::Absent => continue,
                Trial::Untried => {
                    let text = format!("{kind}: {} not tried: no resource is named", identity.name);
                    found.push((cloud.word(), text.into()));
                    continue;
                }
                Trial::Done(outcome) => outcome,
            };
            let finding = match outcome {
                Ok(left) => format!("{kind}: {} has it for {} s", identity.name, left.as_secs()).into(),
                Err(MintFailure::Refused(why)) => {
                    Finding::Bad(Failure::NoCredential(format!("{}: {why}", identity.name).into()), None)
                }
                Err(failure) => {
                    let text = format!("{}: {failure}", identity.name);
                    Finding::Bad(Failure::NoCredential(text.into()), Some(reach(cloud).into()))
                }
            };
            found.push((cloud.word(), finding));
        }
        if !any {
            let fix = format!("[identity.NAME.{}] in kfp-creds.toml", cloud.word());
            found.push((
                cloud.word(),
                Finding::Odd(format!("{kind}: no identity has anything on {cloud}"), fix),
            ));
        }
    }
    found
}

fn reach(cloud: Cloud) -> &'static str {
    match cloud {
        Cloud::Google => "is Google reachable? curl -sI https://oauth2.googleapis.com",
        Cloud::Aws => "is AWS reachable? curl -sI https://sts.amazonaws.com",
        Cloud::Azure => "is Azure reachable? curl -sI https://login.microsoftonline.com",
    }
}
