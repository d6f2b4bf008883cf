//! Finds the Cloud Storage objects that a kfp task's inputs name: `gs://BUCKET/OBJECT` as an artifact's URI,
//! and `/gcs/BUCKET/OBJECT` in its arguments.
//!
//! Vertex AI mounts every bucket at `/gcs/BUCKET`, and kfp's `Artifact.path` relies on it: the URI
//! `gs://BUCKET/OBJECT` is the path `/gcs/BUCKET/OBJECT` in the component. The names become paths of this
//! machine, so they are checked strictly: only plain paths below their bucket are accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::json::one_or_more;
use crate::quote;

/// The directory with the buckets in a container.
pub const ROOT: &str = "/gcs";

/// Limit on the names followed in one task; exceeding it is reported.
const MOST: usize = 64;

/// <https://cloud.google.com/storage/docs/objects#naming>, in bytes.
const LONGEST_NAME: usize = 1024;
/// The longest single name that file systems accept, in bytes.
const LONGEST_SEGMENT: usize = 255;

/// An object, or a folder of objects; which of the two is known only when it is fetched.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Object {
    bucket: String,
    name: String,
    folder: bool,
}

/// The objects that a create request names.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Inputs {
    pub objects: BTreeSet<Object>,
    /// Names that are not followed, with the reason, for messages.
    pub refused: BTreeSet<String>,
}

impl Object {
    /// Parses `BUCKET/OBJECT`, without a scheme or root. A trailing slash marks a folder.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (bucket, name) = text.split_once('/').unwrap_or((text, ""));
        if !is_bucket(bucket) {
            return Err("that is not the name of a bucket");
        }
        let plain = name.strip_suffix('/').unwrap_or(name);
        if plain.is_empty() {
            return Err("that is a whole bucket; name an object or a folder in it");
        }
        match unfit(plain) {
            Some(why) => Err(why),
            None => Ok(Self { bucket: bucket.into(), name: plain.into(), folder: plain.len() < name.len() }),
        }
    }

    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The name without a trailing slash.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the name marks a folder; otherwise it can be an object or a folder.
    pub fn is_folder(&self) -> bool {
        self.folder
    }
}

/// Prints `gs://BUCKET/OBJECT`, for messages.
impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.folder { "/" } else { "" };
        f.write_str(&shown(&format!("gs://{}/{}{slash}", self.bucket, self.name)))
    }
}

fn shown(uri: &str) -> String {
    quote::path(Path::new(uri))
}

/// Why an object's name cannot be a path below its bucket; completes `gs://…: `.
pub fn unfit(name: &str) -> Option<&'static str> {
    if name.len() > LONGEST_NAME {
        return Some("its name is longer than Cloud Storage has any");
    }
    if name.chars().any(char::is_control) {
        return Some("its name has control characters");
    }
    name.split('/').find_map(|segment| match segment {
        "" => Some("its name has an empty part, which no path has"),
        "." | ".." => Some("its name has . or .. in it, which would lead elsewhere"),
        long if long.len() > LONGEST_SEGMENT => Some("a part of its name is longer than a file's can be"),
        _ => None,
    })
}

/// <https://cloud.google.com/storage/docs/buckets#naming>.
fn is_bucket(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    let end = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    let longest = if name.contains('.') { 222 } else { 63 };
    (3..=longest).contains(&name.len())
        && bytes.iter().all(|b| fits(*b))
        && end(bytes.first())
        && end(bytes.last())
        && name.split('.').all(|part| (1..=63).contains(&part.len()))
        && name.parse::<std::net::Ipv4Addr>().is_err()
}

/// The objects named in the body of a create request. Never fails: unknown parts name nothing.
pub fn of(body: &Value) -> Inputs {
    let words: Vec<&str> =
        ["Entrypoint", "Cmd"].into_iter().flat_map(|key| one_or_more(&body[key])).collect();
    let mut found = Inputs::default();
    // A lightweight component's code is one of its arguments, and paths in code are not inputs.
    let code = words.iter().any(|word| word.starts_with("--function_to_execute"));
    for word in &words {
        let value = word.strip_prefix("--executor_input=").unwrap_or(word).trim_start();
        if value.starts_with('{') {
            found.executor_input(value);
        } else if word.starts_with("/gcs/") {
            found.path(word);
        } else if let Some((flag, path)) = word.split_once('=')
            && path.starts_with("/gcs/")
            && !flag.contains(char::is_whitespace)
        {
            found.path(path);
        } else if !code {
            found.shell(word);
        }
    }
    found
}

impl Inputs {
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.refused.is_empty()
    }

    fn executor_input(&mut self, text: &str) {
        // Inputs can be megabytes: do not parse text that names no object.
        if !text.contains("gs:") && !text.contains("gcs") {
            return;
        }
        let Ok(Executor { inputs }) = serde_json::from_str(text) else { return };
        for artifact in inputs.artifacts.into_values().flat_map(|list| list.artifacts) {
            // If the artifact has its own path, the component reads it there.
            if artifact.custom_path.is_none_or(|path| path.is_empty())
                && let Some(rest) = artifact.uri.strip_prefix("gs://")
            {
                self.add(&artifact.uri, rest);
            }
        }
        for path in inputs.parameter_values.values().filter_map(Value::as_str) {
            if path.starts_with("/gcs/") {
                self.path(path);
            }
        }
    }

    /// Finds the paths in a shell command line, except those that it writes to.
    fn shell(&mut self, line: &str) {
        let mut from = 0;
        while let Some(at) = line[from..].find("/gcs/").map(|at| at + from) {
            let rest = &line[at..];
            let length = rest.find(ends_path).unwrap_or(rest.len());
            let before = &line[..at];
            let begins = !before.ends_with(|c: char| c.is_alphanumeric() || "/\\._-}".contains(c));
            if begins && !before.trim_end().ends_with('>') {
                self.path(&rest[..length]);
            }
            from = at + length.max(1);
        }
    }

    fn path(&mut self, path: &str) {
        if let Some(rest) = path.strip_prefix("/gcs/").filter(|rest| !rest.is_empty()) {
            self.add(&format!("gs://{rest}"), rest);
        }
    }

    fn add(&mut self, uri: &str, rest: &str) {
        match Object::parse(rest) {
            Ok(object) if self.objects.contains(&object) => {}
            Ok(_) if self.objects.len() >= MOST => {
                self.refused.insert(format!(
                    "more than {MOST} objects and folders are named; the rest is not fetched"
                ));
            }
            Ok(object) => drop(self.objects.insert(object)),
            Err(why) if self.refused.len() < MOST => {
                self.refused.insert(format!("{} is not fetched: {why}", shown(uri)));
            }
            Err(_) => {}
        }
    }
}

/// Where a path ends; paths also occur in shell command lines.
fn ends_path(c: char) -> bool {
    c.is_whitespace() || c.is_control() || "\"'`;,|&<>()${}*?[]\\:".contains(c)
}

/// The parsed fields of an `--executor_input`.
#[derive(Deserialize)]
struct Executor {
    #[serde(default)]
    inputs: NamedInputs,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NamedInputs {
    artifacts: BTreeMap<String, List>,
    parameter_values: BTreeMap<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct List {
    artifacts: Vec<Artifact>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Artifact {
    uri: String,
    #[serde(alias = "customPath")]
    custom_path: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn named(words: &[&str]) -> (Vec<String>, Vec<String>) {
        let Inputs { objects, refused } = of(&json!({ "Cmd": words }));
        (objects.iter().map(ToString::to_string).collect(), refused.into_iter().collect())
    }

    fn executor_input(uri: &str) -> String {
        let artifact = json!({ "name": "x", "uri": uri, "type": { "schemaTitle": "system.Dataset" } });
        json!({
            "inputs": {
                "artifacts": { "data": { "artifacts": [artifact] } },
                "parameterValues": { "n": 3, "note": "gs://not-an/input" },
            },
            "outputs": { "artifacts": { "out": { "artifacts": [{ "uri": "gs://output/of-it" }] } },
                         "outputFile": "/data/x/executor_output.json" },
        })
        .to_string()
    }

    #[test]
    fn artifacts_and_arguments_name_objects() {
        let input = executor_input("gs://my-bucket/dir/data.csv");
        let code = "open('/gcs/in-code/x')";
        let lightweight = ["sh", "-ec", code, "--executor_input", &input, "--function_to_execute", "f"];
        for (words, wanted) in [
            (&lightweight[..], &["gs://my-bucket/dir/data.csv"][..]),
            (&["python3", &format!("--executor_input={input}")], &["gs://my-bucket/dir/data.csv"]),
            (&["cat", "/gcs/bucket/a b/ü.csv"], &["gs://bucket/a b/ü.csv"]),
            (&["--data=/gcs/bucket/a", "--data=/gcs/bucket/a"], &["gs://bucket/a"]),
            (&["cat", "/gcs/bucket/folder/"], &["gs://bucket/folder/"]),
            (
                &[
                    "sh",
                    "-c",
                    "wc '/gcs/bucket/one' <\"/gcs/bucket/two\";cat /gcs/three/x>/gcs/bucket/written",
                ],
                &["gs://bucket/one", "gs://bucket/two", "gs://three/x"],
            ),
            (&["sh", "-c", "cat /data/gcs/bucket/a x/gcs/bucket/b $HOME/gcs/c"], &[]),
            (&["ls", "/gcs", "/gcs/"], &[]),
            (&["gsutil", "cp", "gs://bucket/a", "."], &[]),
        ] {
            assert_eq!(named(words), (wanted.iter().map(ToString::to_string).collect(), vec![]), "{words:?}");
        }
    }

    #[test]
    fn a_parameter_that_is_a_gcs_path_names_an_object() {
        let input = json!({ "inputs": { "parameterValues": { "path": "/gcs/bucket/model/", "other": ["/gcs/no/list"] } } });
        let (objects, refused) = named(&["--executor_input", &input.to_string()]);
        assert_eq!((objects, refused), (vec!["gs://bucket/model/".to_string()], vec![]));
    }

    #[test]
    fn inputs_with_a_local_path_are_not_fetched() {
        for key in ["custom_path", "customPath"] {
            let artifact = json!({ "uri": "gs://bucket/a", key: "/kfp-workspace/.artifacts/a" });
            let input = json!({ "inputs": { "artifacts": { "data": { "artifacts": [artifact] } } } });
            assert_eq!(named(&["--executor_input", &input.to_string()]), (vec![], vec![]));
        }
    }

    #[test]
    fn hostile_object_names_are_refused_and_reported_once() {
        let long = format!("bucket/{}", "x".repeat(256));
        let longer = format!("bucket/{}", "xy/".repeat(400));
        for (name, why) in [
            ("bucket/../../etc/passwd", ". or .. in it"),
            ("bucket/..", ". or .. in it"),
            ("bucket/a/../b", ". or .. in it"),
            ("bucket/./a", ". or .. in it"),
            ("../bucket/a", "not the name of a bucket"),
            ("./a", "not the name of a bucket"),
            ("/a", "not the name of a bucket"),
            ("", "not the name of a bucket"),
            ("b/a", "not the name of a bucket"),
            ("Bucket/a", "not the name of a bucket"),
            ("bücket/a", "not the name of a bucket"),
            ("-bucket/a", "not the name of a bucket"),
            ("bucket./a", "not the name of a bucket"),
            ("buc..ket/a", "not the name of a bucket"),
            ("192.168.5.4/a", "not the name of a bucket"),
            ("example.com:bucket/a", "not the name of a bucket"),
            ("bucket:ro/a", "not the name of a bucket"),
            ("buc ket/a", "not the name of a bucket"),
            ("bucket", "a whole bucket"),
            ("bucket/", "a whole bucket"),
            ("bucket//a", "an empty part"),
            ("bucket/a//b", "an empty part"),
            ("bucket/a//", "an empty part"),
            ("bucket/a\0b", "control characters"),
            ("bucket/a\nb", "control characters"),
            ("bucket/a\u{1b}[2J", "control characters"),
            (&long, "longer than a file's can be"),
            (&longer, "longer than Cloud Storage has any"),
        ] {
            let uri = format!("gs://{name}");
            let (objects, refused) = named(&["--executor_input", &executor_input(&uri)]);
            assert!(objects.is_empty(), "{name:?}: {objects:?}");
            let [line] = refused.as_slice() else { panic!("{name:?}: {refused:?}") };
            assert!(line.contains(why) && !line.contains(char::is_control), "{name:?}: {line}");
        }
        for name in ["a.b", "a..b", "...", "-", "~", "%2e%2e", "a\\b", "a:b", "名前"] {
            assert_eq!(Object::parse(&format!("bucket/{name}")).unwrap().name(), name);
        }
        for bucket in ["abc", "my_bucket-1", "assets.example.com", "1-2"] {
            assert_eq!(Object::parse(&format!("{bucket}/a")).unwrap().bucket(), bucket);
        }
    }

    #[test]
    fn a_secret_in_an_object_name_is_not_shown() {
        let token = ["ya", "29.CANARY-token-value"].concat();
        let (_, refused) = named(&[&format!("/gcs/{token}/a"), &format!("/gcs/bucket/../{token}")]);
        assert!(refused.len() == 2 && !refused.concat().contains("CANARY"), "{refused:?}");
    }

    #[test]
    fn the_number_of_objects_is_limited() {
        let words: Vec<String> = (0..MOST + 9).map(|n| format!("/gcs/bucket/{n}")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (objects, refused) = named(&words);
        assert_eq!((objects.len(), refused.len()), (MOST, 1));
    }

    /// Seven bodies of unexpected forms: no name is found by accident, and there is no panic.
    #[test]
    fn unparsable_commands_name_no_object() {
        for body in [
            json!(null),
            json!({ "Cmd": null, "Entrypoint": null }),
            json!({ "Cmd": 3 }),
            json!({ "Cmd": ["--executor_input", "{gs:"] }),
            json!({ "Cmd": ["--executor_input", r#"{"inputs":{"artifacts":["gs://b/c"]}}"#] }),
            json!({ "Cmd": ["--executor_input", r#"{"inputs":{"artifacts":{"a":{"artifacts":[{"uri":3}]}}} gs:"#] }),
            json!({ "Cmd": ["/gcs", "/gcsx/bucket/a", "/GCS/bucket/a"] }),
        ] {
            assert!(of(&body).is_empty(), "{body}");
        }
    }
}
