//! Scans a whole archive: plain tar, `docker save` and OCI layouts, with every layer, what later layers
//! delete, and the image's own environment, labels and history.

use std::io::{self, Read};

use serde_json::Value;

use super::Stream;
use super::archive::last;
use crate::guard::environment::Held;
use crate::guard::excepted::{Exception, Named, TextPart};
use crate::guard::found::{ArchivedFind, LayerRole, Nesting, PassedOver};
use crate::guard::{SecretKind, environment, what};
use crate::json::{fields, items, strings};

/// Bytes read at a time: enough that most files of a layer lie in one piece and are judged in place.
const PIECE: usize = 1 << 20;

/// One find in an archive.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Located {
    pub kind: SecretKind,
    pub place: String,
    /// The archive entry that is the layer; `None` for the archive itself.
    pub layer: Option<String>,
    /// The line, from 1; `None` if the file has no lines.
    pub line: Option<u32>,
    /// Whether a later layer deletes it; anybody with the image can still read it.
    pub deleted: bool,
    pub exception: Exception,
}

impl From<ArchivedFind> for Located {
    fn from(entry: ArchivedFind) -> Self {
        let ArchivedFind { name, kind, layer, line, exception } = entry;
        Self { kind, place: name, layer, line, deleted: false, exception }
    }
}

/// The result of a scan.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub finds: Vec<Located>,
    pub unverified: Vec<String>,
    /// Published keys that were met.
    pub passed: PassedOver,
    /// Bytes that were read, plus bytes that came out of decompression.
    pub bytes: u64,
}

/// Reads `input` to its end: an archive, an image, compressed data or any other file. A find in the file
/// itself has an empty place.
///
/// # Errors
/// Errors of reading `input`.
pub fn scan(mut input: impl Read) -> io::Result<Report> {
    let mut stream = Stream::of("", Nesting { lines: true, ..Nesting::root(LayerRole::Image) });
    let mut piece = zeroize::Zeroizing::new(vec![0; PIECE]);
    loop {
        match input.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => stream.push_root(&piece[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.end();
    let notes = stream.notes();
    let order: Vec<String> = notes.documents.iter().flat_map(layers).collect();
    let at = |layer: &str| order.iter().position(|name| name == layer);
    let mut finds: Vec<Located> = stream.take_finds().into_iter().map(Located::from).collect();
    for find in &mut finds {
        let Some(layer) = &find.layer else { continue };
        match at(layer) {
            Some(own) => {
                find.deleted = notes.whiteouts.iter().any(|(layer, names)| {
                    at(layer).is_some_and(|later| later > own)
                        && names.iter().any(|name| hides(name, &find.place))
                });
            }
            // An archive that is not an image.
            None if notes.documents.is_empty() => {
                find.place = format!("{layer}!/{}", find.place);
                find.layer = None;
            }
            None => {}
        }
    }
    let passed = stream.take_passed();
    Ok(Report { finds, unverified: stream.take_unverified(), passed, bytes: stream.bytes() })
}

/// The keys in environment, labels and history of an image, their places, and what excepts them.
pub(super) fn config(document: &Value) -> Vec<(SecretKind, String, Exception)> {
    let mut found = vec![];
    let named = |what: &str, part, held: Held<'_>| {
        let exception = match held.plain {
            true => Exception::Named(Named { part, name: held.name.into() }),
            false => Exception::None,
        };
        (held.kind, format!("{what} {}", held.shown), exception)
    };
    for part in ["config", "container_config"] {
        let config = &document[part];
        for entry in strings(&config["Env"]) {
            found
                .extend(environment::variable(entry).map(|held| named("variable", TextPart::Variable, held)));
        }
        for (name, value) in fields(&config["Labels"]) {
            let held = environment::pair(name, value.as_str().unwrap_or_default().as_bytes());
            found.extend(held.map(|held| named("label", TextPart::Label, held)));
        }
    }
    for (index, step) in items(&document["history"]).enumerate() {
        let text = step["created_by"].as_str().unwrap_or_default();
        let assigned =
            || environment::assignments(text).find_map(environment::variable).map(|held| held.kind);
        if let Some(kind) = what(text.as_bytes()).or_else(assigned) {
            found.push((kind, format!("history step {}", index + 1), Exception::Path));
        }
    }
    found
}

/// The document of an image in `bytes`; `None` for any other file.
pub(super) fn document(bytes: &[u8]) -> Option<Value> {
    serde_json::from_slice::<Value>(bytes).ok().filter(is_of_an_image)
}

/// Whether this is a manifest, an index or an image's config, which are judged by their fields instead of as
/// a file.
fn is_of_an_image(value: &Value) -> bool {
    let manifest = value.as_array().is_some_and(|list| list.iter().all(|one| one["Layers"].is_array()));
    manifest
        || value["layers"].is_array()
        || value["rootfs"].is_object()
        || value["container_config"].is_object()
}

/// The archive entries that are layers, lowest first.
fn layers(document: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map(String::from);
    if let Some(images) = document.as_array() {
        return images.iter().flat_map(|image| items(&image["Layers"]).filter_map(text)).collect();
    }
    let digest = |layer: &Value| Some(format!("blobs/{}", layer["digest"].as_str()?.replacen(':', "/", 1)));
    items(&document["layers"]).filter_map(digest).collect()
}

/// Whether the deletion mark `mark` (`a/.wh.b`, `a/.wh..wh..opq`) deletes `place`.
fn hides(mark: &str, place: &str) -> bool {
    let mark = mark.trim_start_matches("./");
    let name = last(mark);
    let folder = mark.strip_suffix(name).unwrap_or_default();
    let Some(below) = place.strip_prefix(folder) else { return false };
    match name.strip_prefix(".wh.") {
        Some(".wh..opq") => true,
        Some(gone) => below.split('/').next() == Some(gone),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_that_holds_the_key_is_not_shown() {
        let (dashes, label) = ("-".repeat(5), ["PRIVATE", "KEY"].join(" "));
        let lines = "MIIEvQIBADANBgkqhkiG9w0BAQEF".repeat(6);
        let pem = format!("{dashes}BEGIN {label}{dashes}\n{lines}A==\n{dashes}END {label}{dashes}\n");
        let set = format!("A={pem}");
        let found = config(&json!({ "config": { "Env": [pem, set], "Labels": { pem.as_str(): "" } } }));
        let named = Exception::Named(Named { part: TextPart::Variable, name: "A".into() });
        let wanted = [
            ("variable (a PEM file, not shown)", Exception::None),
            ("variable A", named),
            ("label (a PEM file, not shown)", Exception::None),
        ];
        assert_eq!(found, wanted.map(|(at, exception)| (SecretKind::PrivateKey, at.to_string(), exception)));
    }
}
