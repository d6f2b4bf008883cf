//! `[guard]`, and the places where this machine most likely holds keys.

use std::path::{Path, PathBuf};

use super::layers::Layers;
use super::layers::judged_as;
use super::{Environment, SourceChoice};
use crate::guard::excepted::Named;
use crate::guard::{Guard, GuardRules, Mode};
use crate::quote;
use crate::source::google::TokenFrom;

/// Limit on other users' homes that are searched first.
const MOST_HOMES: usize = 64;

/// The machine's home directories, and the files of the session's own login.
pub(super) fn guard(rules: GuardRules, source: &SourceChoice, env: &Environment) -> Guard {
    let named = match source {
        SourceChoice::Adc { file } => file.clone(),
        SourceChoice::Provided(provided) => match provided.federation.as_ref().map(|of| &of.from) {
            Some(TokenFrom::File(token)) => Some(token.clone()),
            _ => None,
        },
        SourceChoice::Offline | SourceChoice::Metadata | SourceChoice::Gcloud => None,
    };
    let variable = |name| env.variable(name).map(PathBuf::from);
    let cloudsdk =
        variable("CLOUDSDK_CONFIG").map(|folder| folder.join("application_default_credentials.json"));
    let files = [named, variable("GOOGLE_APPLICATION_CREDENTIALS"), cloudsdk].into_iter().flatten();
    let others = std::fs::read_dir("/home").into_iter().flatten().flatten().map(|entry| entry.path());
    let homes = env.home().into_iter().chain([PathBuf::from("/root")]).chain(others.take(MOST_HOMES));
    Guard {
        rules,
        homes: homes.collect(),
        files: files.filter_map(|file| file.canonicalize().ok()).collect(),
        engine: None,
        made: vec![],
    }
}

pub(super) fn rules(say: &mut Layers, beside: &Path, env: &Environment) -> GuardRules {
    let mode = judged_as(say, "guard.mode", |text| match text {
        "deny" => Ok(Mode::Deny),
        "warn" => Ok(Mode::Warn),
        "off" => Ok(Mode::Off),
        _ => Err("has to be \"deny\", \"warn\" or \"off\"".into()),
    });
    let (mut allow, mut named) = (vec![], vec![]);
    for text in &say.list("guard.allow").unwrap_or_default() {
        match Named::parse(text) {
            Some(Ok(name)) => {
                named.push(name);
                continue;
            }
            Some(Err(why)) => {
                say.problem("guard.allow", why);
                continue;
            }
            None => {}
        }
        match (text.strip_prefix("~/"), env.home()) {
            _ if !say.is_path("guard.allow", text) => {}
            _ if text.trim_matches(['/', '.', '~']).is_empty() => {
                say.problem("guard.allow", format_args!("{} would except everything", quote::value(text)));
            }
            (Some(rest), Some(home)) => allow.push(home.join(rest)),
            (Some(_), None) => say.problem("guard.allow", "starts at your home, and HOME is not set"),
            (None, _) => {
                // A relative path means one relative to the config file, and one inside an archive.
                let path = Path::new(text.trim_start_matches("./"));
                allow.extend(path.is_relative().then(|| path.to_owned()));
                allow.push(beside.join(path));
            }
        }
    }
    GuardRules { mode: mode.unwrap_or_default(), allow, named }
}
