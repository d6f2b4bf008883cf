//! Infers from a create request which `kfp.local` task it is for.
//!
//! No field of the request names the task; it follows from what `DockerRunner` of `kfp.local` always does
//! (read and run, kfp 2.7 to 2.17): it binds the pipeline root at its own path, from 2.15 on a workspace at
//! `/kfp-workspace`, and passes output paths of the form `ROOT/PIPELINE-TIMESTAMP/[ITERATION/]TASK/FILE`.
//! Rules and messages use the names found here. Pipeline code wrote them: they are hints, not proof.

mod compiled;
mod evidence;
pub mod pipeline;
mod yaml;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use crate::json::one_or_more;
use crate::workload::{Task, Unknown};

pub use compiled::Compiled;
pub use evidence::Evidence;

/// `kfp.local` binds one root. Users may add mounts of their own, so more are accepted, but not thousands:
/// the command is searched for each.
const MOST_ROOTS: usize = 16;

/// The variable in which a container names the identity that it asks for.
pub const IDENTITY_VARIABLE: &str = "KFP_CREDS_IDENTITY";

/// What a create request shows about its task, and the paths from which the session may learn more.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub task: Task,
    /// Directories that are bound at their own path.
    roots: Vec<String>,
    /// The one of `roots` below which the request names a run.
    root: Option<String>,
    /// The places that the paths in a command point to, with their directories: the task's outputs, and its
    /// inputs, which are outputs of other tasks. Empty if the request itself shows the task's own place.
    places: Vec<(RunPath, String)>,
}

impl Reading {
    /// Directories of the places. One that exists already shows that its task was started before.
    pub fn directories(&self) -> impl Iterator<Item = &str> {
        self.places.iter().map(|(_, directory)| directory.as_str())
    }
}

impl From<Task> for Reading {
    fn from(task: Task) -> Self {
        Self { task, ..Self::default() }
    }
}

/// The task that [`read`] infers from the request alone.
pub fn task(body: &Value, name: Option<&str>) -> Task {
    read(body, name).task
}

/// Reads the body of a create request; `name` is its `?name=`. The body is an untyped value on purpose:
/// clients omit keys or write null for them, and the engine refuses wrong types. Never fails: anything not
/// understood counts as absent. Only the labels in the request count, not those of the image.
///
/// A container component is identified only by the paths in its command. If they point at several tasks
/// (paths of inputs do), the component stays unknown instead of being guessed; [`Evidence`] may resolve it.
pub fn read(body: &Value, name: Option<&str>) -> Reading {
    let binds: Vec<&str> = one_or_more(&body["HostConfig"]["Binds"]).collect();
    let roots: Vec<&str> = binds.iter().filter_map(|bind| root(bind)).take(MOST_ROOTS).collect();
    let workspace = binds.iter().any(|bind| without_mode(bind).ends_with(":/kfp-workspace"));
    let command: Vec<&str> = one_or_more(&body["Cmd"]).collect();
    let input = executor_input(&command);
    let (place, root, places) = match &input {
        Some(input) => {
            let output = input.outputs.get("outputFile").and_then(Value::as_str);
            let own = output
                .and_then(|path| roots.iter().find_map(|root| Some((RunPath::of(path, root)?, Some(*root)))));
            let (place, root) = own.unzip();
            (place, root.flatten(), vec![])
        }
        None => scanned(&command, &roots),
    };
    let rooted = !roots.is_empty() && (input.is_some() || place.is_some());
    let function =
        input.and_then(|_| argument(&command, "--function_to_execute").next()).filter(|name| is_name(name));
    let kfp = workspace || rooted;
    let place = place.unwrap_or_default();
    let hidden = kfp && place.component.is_none();
    let unknown = Unknown {
        pipeline: hidden && place.pipeline.is_none(),
        component: hidden,
        function: hidden && function.is_none(),
        iteration: hidden,
    };
    let task = Task {
        kfp,
        pipeline: place.pipeline,
        run: place.run,
        component: place.component,
        function: function.map(String::from),
        iteration: place.iteration,
        image: body.get("Image").and_then(Value::as_str).unwrap_or_default().into(),
        name: name.filter(|name| !name.is_empty()).map(String::from),
        labels: labels(body.get("Labels")),
        requested: requested(&one_or_more(&body["Env"]).collect::<Vec<_>>()),
        unknown,
    };
    let root = root.map(String::from);
    Reading { task, root, roots: roots.into_iter().map(String::from).collect(), places }
}

/// The pipeline roots that a kfp task binds. kfp creates these directories itself, and its tasks create the
/// files below them.
pub fn roots(body: &Value) -> Vec<PathBuf> {
    let binds: Vec<&str> = one_or_more(&body["HostConfig"]["Binds"]).collect();
    binds.iter().filter_map(|bind| root(bind)).take(MOST_ROOTS).map(PathBuf::from).collect()
}

/// The place in a run that a path points to.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
struct RunPath {
    pipeline: Option<String>,
    run: Option<String>,
    iteration: Option<String>,
    component: Option<String>,
}

impl RunPath {
    /// `ROOT/PIPELINE-TIMESTAMP/[ITERATION/…]COMPONENT/FILE`, with the separator of the root's system.
    fn of(path: &str, root: &str) -> Option<Self> {
        let separator = if is_windows(root) { '\\' } else { '/' };
        let rest = path.strip_prefix(root.trim_end_matches(separator))?.strip_prefix(separator)?;
        let parts: Vec<&str> = rest.split(separator).collect();
        let [directory, middle @ .., component, _file] = parts.as_slice() else { return None };
        let (pipeline, run) = run_of(directory)?;
        if !parts.iter().all(|part| is_name(part)) {
            return None;
        }
        Some(Self {
            pipeline: Some(pipeline.into()),
            run: Some(run.into()),
            iteration: (!middle.is_empty()).then(|| middle.join("/")),
            component: Some((*component).into()),
        })
    }
}

/// `my-etl-2026-11-23-06-04-22-567757` → `my-etl` and the time stamp.
fn run_of(directory: &str) -> Option<(&str, &str)> {
    const FORM: &[u8] = b"-0000-00-00-00-00-00-000000";
    let at = directory.len().checked_sub(FORM.len()).filter(|at| *at > 0)?;
    let like = |(byte, form): (&u8, &u8)| if *form == b'0' { byte.is_ascii_digit() } else { byte == form };
    let stamp = &directory.as_bytes()[at..];
    // All of the stamp is ASCII, so both cuts fall between characters.
    stamp.iter().zip(FORM).all(like).then(|| (&directory[..at], &directory[at + 1..]))
}

/// Whether `part` is a usable file name: not empty, not `.` or `..`, no longer than file systems allow.
fn is_name(part: &str) -> bool {
    !matches!(part, "" | "." | "..") && part.len() <= 255 && !part.contains('\0')
}

/// The place that all paths in a command agree on; with its component only if they agree on that too.
fn scanned<'a>(
    command: &[&str],
    roots: &[&'a str],
) -> (Option<RunPath>, Option<&'a str>, Vec<(RunPath, String)>) {
    let mut places: BTreeMap<RunPath, (String, &str)> = BTreeMap::new();
    for root in roots {
        for path in command.iter().flat_map(|word| paths(word, root)) {
            if let Some(place) = RunPath::of(path, root) {
                let directory = path.trim_end_matches(|c| c != '/' && c != '\\');
                places.entry(place).or_insert_with(|| (directory.into(), root));
            }
        }
    }
    let Some((first, (_, root))) = places.first_key_value() else { return (None, None, vec![]) };
    let (first, root) = (first.clone(), *root);
    let one = places.len() == 1;
    let same = places.keys().all(|place| (&place.pipeline, &place.run) == (&first.pipeline, &first.run));
    let all = places.into_iter().map(|(place, (directory, _))| (place, directory)).collect();
    match (one, same) {
        (true, _) => (Some(first), Some(root), all),
        (false, true) => (Some(RunPath { iteration: None, component: None, ..first }), Some(root), all),
        (false, false) => (None, Some(root), all),
    }
}

/// The paths in `word` that begin with `root`. The search continues after each path, so it is linear in
/// `word`.
fn paths<'a>(word: &'a str, root: &str) -> impl Iterator<Item = &'a str> {
    let mut from = 0;
    std::iter::from_fn(move || {
        loop {
            let at = from + word[from..].find(root)?;
            let rest = &word[at + root.len()..];
            from = at + root.len() + rest.find(ends_path).unwrap_or(rest.len());
            let before = &word[..at];
            if before.ends_with("://")
                || !before.ends_with(|c: char| c.is_alphanumeric() || "/\\._-".contains(c))
            {
                return Some(&word[at..from]);
            }
        }
    })
}

/// Whether `c` ends a path. Paths also occur inside shell lines.
fn ends_path(c: char) -> bool {
    c.is_whitespace() || c.is_control() || "\"'`;,|&<>()${}*?".contains(c)
}

/// The part of an `--executor_input` that is read. Its inputs can be megabytes and are skipped.
#[derive(Deserialize)]
struct Input {
    #[serde(default)]
    outputs: Value,
}

/// The first `--executor_input` that is a JSON object.
fn executor_input(command: &[&str]) -> Option<Input> {
    let objects = argument(command, "--executor_input").filter(|text| text.trim_start().starts_with('{'));
    objects.filter_map(|text| serde_json::from_str(text).ok()).next()
}

/// The values of `FLAG VALUE` and `FLAG=VALUE`, at any position in the command.
fn argument<'a>(command: &[&'a str], flag: &str) -> impl Iterator<Item = &'a str> {
    command.iter().enumerate().filter_map(move |(at, word)| match word.strip_prefix(flag)? {
        "" => command.get(at + 1).copied(),
        rest => rest.strip_prefix('='),
    })
}

/// The path that a bind maps to itself. Windows paths contain colons, so the text is not split at colons:
/// source and destination are two equal halves.
fn root(bind: &str) -> Option<&str> {
    let both = without_mode(bind);
    let (source, destination) = both.split_at_checked(both.len() / 2)?;
    let rooted = source.starts_with('/') || is_windows(source);
    (rooted && source.len() > 1 && destination.strip_prefix(':') == Some(source)).then_some(source)
}

/// A bind without its `:rw`, `:ro,z` and the like.
fn without_mode(bind: &str) -> &str {
    match bind.rsplit_once(':') {
        Some((rest, mode)) if mode.bytes().all(|b| b.is_ascii_alphabetic() || b == b',') => rest,
        _ => bind,
    }
}

fn is_windows(path: &str) -> bool {
    path.starts_with("\\\\")
        || matches!(path.as_bytes(), [drive, b':', b'\\', ..] if drive.is_ascii_alphabetic())
}

/// The identity that the environment asks for. The container sees the last entry of a name; an entry without
/// `=` unsets it.
fn requested(environment: &[&str]) -> Option<String> {
    let value = environment.iter().rev().find_map(|entry| {
        entry.strip_prefix(IDENTITY_VARIABLE).filter(|rest| rest.is_empty() || rest.starts_with('='))
    })?;
    value.strip_prefix('=').filter(|name| !name.is_empty()).map(String::from)
}

fn labels(value: Option<&Value>) -> BTreeMap<String, String> {
    let all = value.and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests;
