//! `[[rule]]`, `default`, `choose` and `unknown`: which container gets which identity; `compiled_pipelines`:
//! how tasks are recognised.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use super::Environment;
use super::layers::Layers;
use crate::kfp::Compiled;
use crate::policy::Rule;
use crate::quote;
use crate::workload::{Identity, Part, Pattern};

/// Larger than any realistic compiled pipeline.
const LARGEST_PIPELINE: u64 = 32 << 20;

/// Reads the files of `compiled_pipelines`; relative paths are relative to the config file.
pub(super) fn compiled(say: &mut Layers, beside: &Path, env: &Environment) -> Arc<Compiled> {
    let mut compiled = Compiled::default();
    let files = say.list("compiled_pipelines").unwrap_or_default();
    for (index, file) in files.iter().enumerate() {
        let path = match (file.strip_prefix("~/"), env.home()) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => beside.join(file),
        };
        if let Err(why) = pipeline(&path).and_then(|text| compiled.add(&text)) {
            let what = format_args!("{} {why}", quote::path(&path));
            say.problem(&format!("compiled_pipelines[{}]", index + 1), what);
        }
    }
    Arc::new(compiled)
}

fn pipeline(path: &Path) -> Result<String, String> {
    let unread = |error: std::io::Error| format!("cannot be read: {error}");
    if !std::fs::metadata(path).map_err(unread)?.is_file() {
        return Err("is not a file".into());
    }
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unread)?;
    file.take(LARGEST_PIPELINE + 1).read_to_string(&mut text).map_err(unread)?;
    if text.len() as u64 > LARGEST_PIPELINE { Err("is larger than 32 MiB".into()) } else { Ok(text) }
}

type Identities = BTreeMap<String, Arc<Identity>>;

pub(super) fn rules(say: &mut Layers, identities: &Identities) -> Vec<Rule> {
    let mut all = Vec::new();
    for rule in say.entries("rule") {
        let patterns = patterns(say, &rule);
        if patterns.is_empty() {
            say.problem(
                &rule,
                "needs a pipeline, component, image or another pattern; to match every container, use default or all",
            );
        }
        let inside = |key: &str| format!("{rule}.{key}");
        let identity = match say.text(&inside("identity")) {
            Some(name) => named(say, &inside("identity"), &name, identities),
            None => {
                say.problem(&rule, "needs an identity: the name of one, or \"none\"");
                None
            }
        };
        let choose = choose(say, &inside("choose"), identities);
        let join = say.flag(&inside("join")).unwrap_or_default();
        all.push(Rule { patterns, choose, identity, join });
    }
    all
}

/// The patterns at `place`, which is a rule or a mount.
pub(super) fn patterns(say: &mut Layers, place: &str) -> Vec<Pattern> {
    let mut given = Vec::new();
    for (part, key) in [
        (Part::Pipeline, "pipeline"),
        (Part::Component, "component"),
        (Part::Function, "function"),
        (Part::Iteration, "iteration"),
        (Part::Image, "image"),
        (Part::ComposeProject, "compose_project"),
        (Part::ComposeService, "compose_service"),
    ] {
        given.extend(say.text(&format!("{place}.{key}")).map(|glob| (part, key.to_owned(), glob)));
    }
    for (name, glob) in say.texts(&format!("{place}.labels")) {
        given.push((Part::Label(name.clone()), format!("labels.{name}"), glob));
    }
    let mut patterns = Vec::new();
    for (part, key, glob) in given {
        if glob.is_empty() {
            say.problem(&format!("{place}.{key}"), "is empty; leave it out to match any");
        }
        patterns.push(Pattern::new(part, &glob));
    }
    patterns
}

/// Identities that containers may choose. Not `none`: a container that wants none omits the variable.
pub(super) fn choose(say: &mut Layers, path: &str, identities: &Identities) -> Vec<Arc<Identity>> {
    let mut all = Vec::new();
    for name in say.list(path).unwrap_or_default() {
        match name.as_str() {
            "none" => say.problem(path, "none cannot be chosen"),
            name => all.extend(named(say, path, name, identities)),
        }
    }
    all
}

/// The identity with this name; the word `none` means no identity.
pub(super) fn named(
    say: &mut Layers,
    path: &str,
    name: &str,
    identities: &Identities,
) -> Option<Arc<Identity>> {
    let found = identities.get(name).cloned();
    if found.is_none() && name != "none" {
        let known = identities.keys().map(|name| quote::name(name)).collect::<Vec<_>>().join(", ");
        say.problem(
            path,
            format_args!("there is no identity {}; there are: none, {known}", quote::object(name)),
        );
    }
    found
}
