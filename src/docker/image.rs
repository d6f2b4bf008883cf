//! The relay image, built on this machine: no registry, no builder.
//!
//! It contains the relay's program (`relays`) and, if that is this program and dynamically linked, the loader
//! and the libraries that this process has mapped, at the same paths. Its tag is a hash of its content, so
//! one build has one image.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bollard::query_parameters::{ImportImageOptions, RemoveImageOptions};
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use serde_json::{Value, json};

use super::call::{filtered, segment};
use super::elf::interpreter;
use super::{Engine, EngineError};
use crate::json::{items, strings};

/// Marks our objects at the engine; the value names the kind.
pub const ROLE_LABEL: &str = "kfp-creds.role";
const NAME: &str = "kfp-creds-relay";
const PROGRAM: &str = "kfp-creds";

/// A docker-archive of the relay, and its names at the engine.
#[derive(Debug)]
pub struct RelayImage {
    layer: Vec<u8>,
    diff_id: String,
    libraries: String,
    architecture: String,
}

impl RelayImage {
    /// Reads the running program. Takes some ten milliseconds; call it off the serving thread.
    pub fn of_this_program() -> io::Result<Self> {
        let program = fs::read("/proc/self/exe")?;
        let mut files = vec![(PathBuf::from("/").join(PROGRAM), program)];
        let mut folders = BTreeSet::new();
        for library in mapped_libraries(&fs::read_to_string("/proc/self/maps")?) {
            let bytes = fs::read(&library)?;
            folders.extend(library.parent().map(|folder| folder.to_string_lossy().into_owned()));
            files.push((library, bytes));
        }
        if let Some(loader) = interpreter(&files[0].1) {
            let bytes = fs::read(&loader)?;
            files.push((loader, bytes));
        }
        Self::of_files(files, Vec::from_iter(folders).join(":"), own_architecture())
    }

    /// The first file is the program; `libraries` are folders, separated by colons.
    pub(super) fn of_files(
        files: Vec<(PathBuf, Vec<u8>)>,
        libraries: String,
        architecture: &str,
    ) -> io::Result<Self> {
        let layer = layer(&files)?;
        Ok(Self { diff_id: digest(&layer), layer, libraries, architecture: architecture.into() })
    }

    /// As engines name it: `amd64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// `kfp-creds-relay:<sixteen hex digits of the layer's SHA-256>`.
    pub fn reference(&self) -> String {
        format!("{NAME}:{}", &self.diff_id["sha256:".len()..][..16])
    }

    /// The archive for `docker load`.
    pub fn archive(&self) -> io::Result<Vec<u8>> {
        let mut env = vec![];
        if !self.libraries.is_empty() {
            env.push(format!("LD_LIBRARY_PATH={}", self.libraries));
        }
        let config = json!({
            "architecture": self.architecture,
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Entrypoint": [format!("/{PROGRAM}"), "relay"],
                "User": "65534:65534",
                "Env": env,
                "Labels": { ROLE_LABEL: "relay" },
            },
            "rootfs": { "type": "layers", "diff_ids": [self.diff_id] },
            "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": PROGRAM }],
        });
        let config = config.to_string().into_bytes();
        let config_name = format!("{}.json", &digest(&config)["sha256:".len()..]);
        let manifest =
            json!([{ "Config": config_name, "RepoTags": [self.reference()], "Layers": ["layer.tar"] }]);
        let mut archive = tar::Builder::new(Vec::with_capacity(self.layer.len() + 8192));
        for (name, bytes) in [
            (config_name.as_str(), config.as_slice()),
            ("layer.tar", &self.layer),
            ("manifest.json", manifest.to_string().as_bytes()),
        ] {
            append(&mut archive, Path::new(name), bytes, 0o644)?;
        }
        archive.into_inner()
    }
}

impl Engine {
    /// The image with all its layers, as `docker save` writes it.
    pub fn save(&self, image: &str) -> impl Stream<Item = Result<Bytes, EngineError>> {
        self.docker.export_image(image).map_err(|e| EngineError::of("save the image", e))
    }

    /// Images (at most `most`, the engine's newest first) whose environment sets one of `names` to a value,
    /// each with the first of these names.
    pub async fn images_that_set(
        &self,
        names: &[&str],
        most: usize,
    ) -> Result<Vec<(String, String)>, EngineError> {
        let listed = self.get("list images", "/images/json").await?;
        let mut found = vec![];
        for image in items(&listed).take(most) {
            let id = image["Id"].as_str().unwrap_or_default();
            // The image may have been removed in the meantime.
            let Ok(seen) = self.inspect_image(id).await else { continue };
            let env = strings(&seen["Config"]["Env"]);
            let set = env.filter_map(|entry| entry.split_once('='));
            let set =
                set.filter(|(name, value)| names.contains(name) && !value.is_empty()).map(|(name, _)| name);
            let image_name = tags(image).find(|tag| *tag != "<none>:<none>").unwrap_or(id);
            found.extend(set.take(1).map(|name| (image_name.to_string(), name.to_string())));
        }
        Ok(found)
    }

    /// Whether the engine has the image with this id.
    pub async fn has_image(&self, id: &str) -> Result<bool, EngineError> {
        match self.inspect_image(id).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_gone() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn inspect_image(&self, reference: &str) -> Result<Value, EngineError> {
        self.get("inspect image", &format!("/images/{}/json", segment(reference))).await
    }

    /// Finds an image by a name with its digest, which the engine has verified. Returns its id, and whether
    /// it is the same as `relay`; `None` if the engine does not have it.
    pub async fn find_pinned_image(
        &self,
        reference: &str,
        relay: Option<&RelayImage>,
    ) -> Result<Option<(String, bool)>, EngineError> {
        let image = match self.inspect_image(reference).await {
            Ok(image) => image,
            Err(error) if error.is_gone() => return Ok(None),
            Err(error) => return Err(error),
        };
        let same = relay.is_none_or(|relay| image["RootFS"]["Layers"] == json!([relay.diff_id]));
        Ok(image["Id"].as_str().map(|id| (id.into(), same)))
    }

    /// The image's id at the engine, or `None` if it has to be loaded. A name proves nothing (anybody may
    /// tag), so the image's only layer is compared with ours by digest.
    pub async fn find_relay_image(&self, relay: &RelayImage) -> Result<Option<String>, EngineError> {
        match self.inspect_image(&relay.reference()).await {
            Ok(image) => {
                let id = image["Id"].as_str().filter(|_| image["RootFS"]["Layers"] == json!([relay.diff_id]));
                Ok(id.map(Into::into))
            }
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Loads the image and removes our older ones; images in use stay.
    pub async fn load_relay_image(&self, relay: &RelayImage) -> Result<String, EngineError> {
        const WHAT: &str = "load the relay image";
        let archive = relay.archive().map_err(|e| EngineError::Broken(WHAT, e.to_string().into()))?;
        let options = ImportImageOptions { quiet: true, ..Default::default() };
        let answers = self.docker.import_image(options, bollard::body_full(archive.into()), None);
        let loaded = answers.try_for_each(|_| async { Ok(()) }).await.map_err(|e| EngineError::of(WHAT, e));
        // Docker Desktop's message for this differs from version to version.
        loaded.map_err(|error| match error {
            EngineError::Refused { status: 400..500, .. } if self.desktop => EngineError::Broken(
                WHAT,
                "Docker Desktop refuses docker load, by which the relay comes: where its administrator has set \
                 blockDockerLoad, use --relay-image"
                    .into(),
            ),
            other => other,
        })?;
        let id = self.find_relay_image(relay).await?;
        let id =
            id.ok_or_else(|| EngineError::Broken(WHAT, "the engine does not show what it loaded".into()))?;
        self.remove_older_relay_images(&id).await;
        Ok(id)
    }

    async fn remove_older_relay_images(&self, current: &str) {
        let path = filtered("/images/json", "label", &format!("{ROLE_LABEL}=relay"));
        let listed = self.get("list relay images", &path).await.unwrap_or_default();
        for image in items(&listed) {
            // Podman puts names without a registry under `localhost/`.
            let ours = tags(image).any(|tag| tag.strip_prefix("localhost/").unwrap_or(tag).starts_with(NAME));
            let id = image["Id"].as_str().unwrap_or_default();
            if !same_image(id, current) && ours {
                // In use by a session of another build: the image stays, and the end of that session does not
                // remove it either.
                let removed = self.docker.remove_image(id, None::<RemoveImageOptions>, None).await;
                tracing::debug!(image = id, ok = removed.is_ok(), "removed an older relay image");
            }
        }
    }
}

/// This program's architecture, as engines name it.
pub fn own_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The image's tags. An untagged image has an empty list, or null.
fn tags(image: &Value) -> impl Iterator<Item = &str> {
    strings(&image["RepoTags"])
}

/// Compares ids with or without the name of the hash.
fn same_image(one: &str, other: &str) -> bool {
    let bare = |id: &str| id.strip_prefix("sha256:").unwrap_or(id).to_string();
    bare(one) == bare(other)
}

fn digest(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    format!("sha256:{}", crate::quote::hex(hash.as_ref()))
}

/// Writes files in a fixed order with fixed times and owners, so that the same program gives the same layer.
fn layer(files: &[(PathBuf, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut written = BTreeSet::new();
    for (path, bytes) in files {
        let inside = path.strip_prefix("/").unwrap_or(path);
        if written.insert(inside) {
            append(&mut layer, inside, bytes, 0o755)?;
        }
    }
    layer.into_inner()
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes)
}

/// Shared objects in a `/proc/self/maps`: files mapped as executable, except the program.
fn mapped_libraries(maps: &str) -> Vec<PathBuf> {
    let mut found = BTreeSet::new();
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let rights = fields.nth(1).unwrap_or_default();
        let Some(path) = fields.nth(3).filter(|path| path.starts_with('/')) else { continue };
        let name = path.rsplit('/').next().unwrap_or_default();
        if rights.contains('x') && name.contains(".so") {
            found.insert(PathBuf::from(path));
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_executable_mappings_of_shared_objects() {
        let maps = "55d0-55d1 r-xp 00000000 fd:01 12 /home/user/kfp-creds\n\
                    7f00-7f01 r--p 00000000 fd:01 13 /usr/lib/libc.so.6\n\
                    7f01-7f02 r-xp 00001000 fd:01 13 /usr/lib/libc.so.6\n\
                    7ffe-7fff r-xp 00000000 00:00 0 [vdso]\n";
        assert_eq!(mapped_libraries(maps), [PathBuf::from("/usr/lib/libc.so.6")]);
    }

    #[test]
    fn the_same_program_gives_the_same_image() {
        let (one, two) = (RelayImage::of_this_program().unwrap(), RelayImage::of_this_program().unwrap());
        assert_eq!(one.archive().unwrap(), two.archive().unwrap());
        assert!(one.reference().starts_with("kfp-creds-relay:"));
    }
}
