//! The program as a plugin of docker's command line, by the name `docker-creds`: `docker creds run -- …`. docker starts it
//! with its own flags, the word `creds` and the rest, and with `docker-cli-plugin-metadata` to learn what it is.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use serde_json::json;

use crate::quote;

const NAME: &str = "docker-creds";
const WORD: &str = "creds";

/// How the program was called.
#[derive(Debug, Eq, PartialEq)]
pub enum Called {
    /// By a person, with these arguments; the first one is the program's name.
    Plainly(Vec<OsString>),
    /// By docker, with the settings of its flags as variables; `None` removes one.
    AsPlugin(Vec<OsString>, Vec<(&'static str, Option<OsString>)>),
    /// By docker, to request the plugin's metadata.
    ForMetadata,
    /// By docker, with a flag of docker's that is not supported.
    Wrongly(String),
}

/// Reads the arguments of the process, its name first.
pub fn called(arguments: Vec<OsString>) -> Called {
    let name = arguments.first().and_then(|name| Path::new(name).file_name());
    if name != Some(OsStr::new(NAME)) {
        return Called::Plainly(arguments);
    }
    let mut rest = arguments.into_iter().skip(1).peekable();
    if rest.peek().is_some_and(|first| first == "docker-cli-plugin-metadata") {
        return Called::ForMetadata;
    }
    let mut variables = vec![];
    while let Some(flag) = rest.next_if(|word| word.as_encoded_bytes().starts_with(b"-")) {
        let flag = flag.to_string_lossy().into_owned();
        let (flag, joined) =
            flag.split_once('=').map_or((flag.as_str(), None), |(flag, value)| (flag, Some(value)));
        let known = match flag {
            "--context" | "-c" => &[("DOCKER_CONTEXT", true), ("DOCKER_HOST", false)][..],
            "--host" | "-H" => &[("DOCKER_HOST", true)],
            "--config" => &[("DOCKER_CONFIG", true)],
            "--debug" | "-D" => continue,
            // A person started the plugin under its own name.
            "--help" | "-h" | "--version" | "-V" => {
                return Called::AsPlugin(with_name(std::iter::once(flag.into()).chain(rest)), variables);
            }
            _ => {
                return Called::Wrongly(format!(
                    "docker's {} is not supported here: name the engine with --context NAME or --host ADDRESS \
                     before {WORD}",
                    quote::name(flag)
                ));
            }
        };
        let Some(value) = joined.map(OsString::from).or_else(|| rest.next()) else {
            return Called::Wrongly(format!("docker's {flag} needs a value"));
        };
        variables.extend(known.iter().map(|(name, set)| (*name, set.then(|| value.clone()))));
    }
    rest.next_if(|word| word == WORD);
    Called::AsPlugin(with_name(rest), variables)
}

fn with_name(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    std::iter::once("kfp-creds".into()).chain(arguments).collect()
}

/// The plugin's metadata, as docker reads it (cli-plugins/manager/metadata.go).
pub fn metadata() -> String {
    json!({
        "SchemaVersion": "0.1.0",
        "Vendor": "kfp-creds",
        "Version": env!("CARGO_PKG_VERSION"),
        "ShortDescription": "Short-lived cloud credentials for containers of local Kubeflow pipelines",
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Called {
        called(line.split(' ').map(OsString::from).collect())
    }

    fn plugin(arguments: &str, variables: &[(&'static str, Option<&str>)]) -> Called {
        let arguments = arguments.split(' ').map(OsString::from).collect();
        Called::AsPlugin(
            arguments,
            variables.iter().map(|(name, value)| (*name, value.map(OsString::from))).collect(),
        )
    }

    #[test]
    fn dockers_own_words_come_first_and_are_followed() {
        let path = "/home/u/.docker/cli-plugins/docker-creds";
        let run = "kfp-creds run --all -- docker ps";
        assert_eq!(read(&format!("{path} creds run --all -- docker ps")), plugin(run, &[]));
        let context = [("DOCKER_CONTEXT", Some("far")), ("DOCKER_HOST", None)];
        assert_eq!(read("docker-creds --context far creds check"), plugin("kfp-creds check", &context));
        assert_eq!(read("docker-creds -D --context=far creds check"), plugin("kfp-creds check", &context));
        let host = [("DOCKER_HOST", Some("ssh://a"))];
        assert_eq!(read("docker-creds -H ssh://a creds creds"), plugin("kfp-creds creds", &host));
        assert_eq!(read("docker-creds docker-cli-plugin-metadata"), Called::ForMetadata);
        assert!(matches!(read("docker-creds --tlsverify creds check"), Called::Wrongly(_)));
        assert!(matches!(read("docker-creds --context"), Called::Wrongly(_)));
    }

    #[test]
    fn a_flag_that_is_not_followed_is_told_without_what_it_may_hold() {
        let told = |line: &str| match read(line) {
            Called::Wrongly(text) => text,
            other => panic!("{other:?}"),
        };
        let text = told("docker-creds --tlsverify creds check");
        assert!(text.starts_with("docker's --tlsverify is not supported here: name the engine"), "{text}");
        let text = told("docker-creds -Hssh://u:secret@host creds check");
        assert!(text.contains("not shown") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn under_another_name_the_plugin_reads_nothing() {
        let words: Vec<OsString> = ["kfp-creds", "--context", "x", "creds"].map(OsString::from).to_vec();
        assert_eq!(called(words.clone()), Called::Plainly(words));
    }

    #[test]
    fn docker_is_told_what_it_asks_for() {
        let told: serde_json::Value = serde_json::from_str(&metadata()).unwrap();
        assert_eq!(
            (&told["SchemaVersion"], &told["Version"]),
            (&"0.1.0".into(), &env!("CARGO_PKG_VERSION").into())
        );
        assert!(told["Vendor"].is_string());
    }
}
