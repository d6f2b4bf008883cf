//! All of an archive: plain tar, `docker save` and OCI layouts, with every layer, what later layers delete,
//! and the image's own environment, labels and history.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use serde_json::Value;

use super::archive::{Tar, checksum_fits, last};
use super::content::HEAD;
use super::layer::{CLOSED, is_closed};
use super::{Kind, environment, what};

/// Bytes at a time: large enough that most files of a layer lie in one piece and are judged in place.
const PIECE: usize = 1 << 20;
/// Manifests and image configs are kept to be read at the end; larger documents are files.
const LARGEST_DOCUMENT: usize = 4 << 20;
const MOST_DOCUMENTS: usize = 4096;

/// One find in an archive.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Located {
    pub kind: Kind,
    pub place: String,
    /// The archive entry that is the layer; `None` for the archive itself.
    pub layer: Option<String>,
    /// A later layer deletes it; whoever has the image still has it.
    pub deleted: bool,
}

/// What a scan came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub finds: Vec<Located>,
    pub unverified: Vec<String>,
    /// Bytes of tar that were read, after decompression.
    pub bytes: u64,
}

#[derive(Default)]
struct Scan {
    report: Report,
    /// Deletions by layer.
    whiteouts: BTreeMap<String, Vec<String>>,
    documents: Vec<Value>,
    piece: Vec<u8>,
}

/// Reads `input` to its end.
pub fn scan(input: impl Read) -> io::Result<Report> {
    let mut input = BufReader::with_capacity(PIECE, input);
    let start = input.fill_buf()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        return plain(BufReader::with_capacity(PIECE, MultiGzDecoder::new(input)));
    }
    if start.len() < 512 || !checksum_fits(&start[..512]) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no tar archive"));
    }
    plain(input)
}

fn plain(input: impl BufRead) -> io::Result<Report> {
    let mut scan = Scan { piece: vec![0; PIECE], ..Scan::default() };
    let mut archive = tar::Archive::new(input);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_string();
        scan.entry(&name, &mut entry)?;
    }
    scan.finish()
}

impl Scan {
    fn entry(&mut self, name: &str, entry: &mut dyn Read) -> io::Result<()> {
        let mut entry = BufReader::with_capacity(64 << 10, entry);
        let start = entry.fill_buf()?;
        if start.starts_with(&[0x1f, 0x8b]) {
            // A compressed file that is no tar is a file like any other, and says nothing.
            let mut inside = BufReader::with_capacity(PIECE, MultiGzDecoder::new(entry));
            return match inside.fill_buf() {
                Ok(start) if start.len() >= 512 && checksum_fits(&start[..512]) => {
                    self.layer(name, &mut inside)
                }
                Ok(_) => Ok(()),
                Err(_) => {
                    self.report.unverified.push(format!("{name}: cannot be decompressed"));
                    Ok(())
                }
            };
        }
        if is_closed(start) {
            self.report.unverified.push(format!("{name}: {CLOSED}"));
            return Ok(());
        }
        if start.len() >= 512 && checksum_fits(&start[..512]) {
            return self.layer(name, &mut entry);
        }
        self.file(name, &mut entry)
    }

    fn file(&mut self, name: &str, entry: &mut dyn Read) -> io::Result<()> {
        let mut bytes = zeroize::Zeroizing::new(vec![]);
        entry.take(LARGEST_DOCUMENT as u64 + 1).read_to_end(&mut bytes)?;
        self.report.bytes += bytes.len() as u64;
        let document = matches!(bytes.first(), Some(b'{' | b'[')) && bytes.len() <= LARGEST_DOCUMENT;
        if document
            && self.documents.len() < MOST_DOCUMENTS
            && let Ok(value) = serde_json::from_slice::<Value>(&bytes)
            && is_of_an_image(&value)
        {
            self.documents.push(value);
        } else if let Some(kind) = what(&bytes[..bytes.len().min(HEAD)]) {
            self.find(kind, name.into(), None);
        }
        Ok(())
    }

    fn layer(&mut self, name: &str, input: &mut dyn Read) -> io::Result<()> {
        let mut tar = Tar::new().with_whiteouts();
        loop {
            let read = match input.read(&mut self.piece) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.report.unverified.push(format!("{name}: cannot be read to its end: {error}"));
                    break;
                }
            };
            tar.push(&self.piece[..read]);
            self.report.bytes += read as u64;
        }
        if tar.broken() || !tar.is_between() {
            self.report.unverified.push(format!("{name}: the archive breaks off or is not understood"));
        }
        for entry in tar.take_finds() {
            self.find(entry.kind, entry.name.trim_start_matches("./").into(), Some(name.into()));
        }
        self.whiteouts.insert(name.into(), tar.take_whiteouts());
        Ok(())
    }

    fn find(&mut self, kind: Kind, place: String, layer: Option<String>) {
        let find = Located { kind, place, layer, deleted: false };
        if !self.report.finds.contains(&find) {
            self.report.finds.push(find);
        }
    }

    fn finish(mut self) -> io::Result<Report> {
        let documents = std::mem::take(&mut self.documents);
        for (kind, place) in documents.iter().flat_map(config) {
            self.find(kind, place, None);
        }
        let order: Vec<String> = documents.iter().flat_map(layers).collect();
        let at = |layer: &str| order.iter().position(|name| name == layer);
        for find in &mut self.report.finds {
            let Some(own) = find.layer.as_deref().and_then(at) else { continue };
            find.deleted = self.whiteouts.iter().any(|(layer, names)| {
                at(layer).is_some_and(|later| later > own)
                    && names.iter().any(|name| hides(name, &find.place))
            });
        }
        Ok(self.report)
    }
}

/// Environment, labels and history of an image: what is a key, and where.
fn config(document: &Value) -> Vec<(Kind, String)> {
    let mut found = vec![];
    for part in ["config", "container_config"] {
        let config = &document[part];
        for entry in config["Env"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if let Some(find) = environment::variable(entry) {
                found.push((find.kind, format!("variable {}", find.place)));
            }
        }
        for (name, value) in config["Labels"].as_object().into_iter().flatten() {
            if let Some(kind) = environment::named(name, value.as_str().unwrap_or_default().as_bytes()) {
                found.push((kind, format!("label {name}")));
            }
        }
    }
    for (index, step) in document["history"].as_array().into_iter().flatten().enumerate() {
        let text = step["created_by"].as_str().unwrap_or_default();
        let assigned = || text.split_whitespace().find_map(environment::variable).map(|find| find.kind);
        if let Some(kind) = what(text.as_bytes()).or_else(assigned) {
            found.push((kind, format!("history step {}", index + 1)));
        }
    }
    found
}

/// The same of a document as it stands in an archive; `None` for any other file.
pub(super) fn told(bytes: &[u8]) -> Option<Vec<(Kind, String)>> {
    let document = matches!(bytes.first(), Some(b'{' | b'['));
    let value = document.then(|| serde_json::from_slice::<Value>(bytes).ok()).flatten()?;
    is_of_an_image(&value).then(|| config(&value))
}

/// A manifest, an index or an image's config; judged by their fields instead of as a file.
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
        return images
            .iter()
            .flat_map(|image| image["Layers"].as_array().into_iter().flatten().filter_map(text))
            .collect();
    }
    let digest = |layer: &Value| Some(format!("blobs/{}", layer["digest"].as_str()?.replacen(':', "/", 1)));
    document["layers"].as_array().into_iter().flatten().filter_map(digest).collect()
}

/// Whether the deletion mark `mark` (`a/.wh.b`, `a/.wh..wh..opq`) takes `place` away.
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
