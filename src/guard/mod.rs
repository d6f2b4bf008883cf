//! Finds keys by content, with bounded work, and without ever keeping what it finds.
//!
//! The guard catches mistakes: a directory that happens to hold a login, a `.env` that goes into a build, a
//! key that was baked into an image. It does not find what somebody hides (`docs/security/guard.md`).
//!
//! * Content: `content` classifies bytes, using `pem`, `binary` (DER, key stores), `fields` of text and the
//!   `rules` for them, and `logins` (files of known tools); `encoded` undoes base64 (wrapped in `lines`) and
//!   escapes, `text` classifies values, `published` lists public test keys, `work` counts steps.
//! * Requests: `environment` checks variables, `excepted` reads the exceptions that `guard.allow` names.
//! * Directories: `walk` and `tree` search them under a budget, `likely` orders the files, `reading` reads
//!   one file, `memory` keeps results of earlier scans, `seen` the result of this one; `host_root` says where the files
//!   of the engine's machine are.
//! * Streams: `stream` checks any file as it passes: `judge` single files, `archive` tar, `zip`, `unpack` and
//!   `zstd` compressed data; `found` is their shared state, `image` reads an image as a whole.

#[cfg(test)]
mod archive_tests;
mod binary;
pub mod content;
mod encoded;
pub mod environment;
pub mod excepted;
mod fields;
pub mod found;
pub mod host_root;
mod judge;
mod likely;
mod lines;
mod logins;
pub mod memory;
mod pem;
mod published;
mod reading;
mod rules;
pub mod seen;
pub mod stream;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;
mod text;
mod tree;
mod unpack;
pub mod walk;
#[cfg(test)]
mod walk_tests;
mod work;
#[cfg(test)]
mod work_tests;
mod zstd;

use std::fmt;
use std::path::{Path, PathBuf};

pub use content::what;
use excepted::{Exception, Named, TextPart};
pub use stream::image;

/// The kind of secret that was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SecretKind {
    ServiceAccountKey,
    AuthorizedUser,
    ExternalAccount,
    ExternalAccountUser,
    ImpersonatedAccount,
    GcloudDatabase,
    PrivateKey,
    AwsKey,
    AzureLogin,
    AzureKey,
    SasToken,
    AwsLogin,
    GoogleHmac,
    OauthToken,
    FederatedToken,
    Netrc,
    Kubeconfig,
    RegistryLogin,
    SecretVariable,
    /// A process that can open it can do everything that the engine can do, regardless of the session's rules.
    EngineSocket,
}

impl SecretKind {
    /// All kinds, for tables.
    pub const ALL: [SecretKind; 20] = [
        SecretKind::ServiceAccountKey,
        SecretKind::AuthorizedUser,
        SecretKind::ExternalAccount,
        SecretKind::ExternalAccountUser,
        SecretKind::ImpersonatedAccount,
        SecretKind::GcloudDatabase,
        SecretKind::PrivateKey,
        SecretKind::AwsKey,
        SecretKind::AzureLogin,
        SecretKind::AzureKey,
        SecretKind::SasToken,
        SecretKind::AwsLogin,
        SecretKind::GoogleHmac,
        SecretKind::OauthToken,
        SecretKind::FederatedToken,
        SecretKind::Netrc,
        SecretKind::Kubeconfig,
        SecretKind::RegistryLogin,
        SecretKind::SecretVariable,
        SecretKind::EngineSocket,
    ];
}

impl fmt::Display for SecretKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SecretKind::ServiceAccountKey => "a Google service-account key",
            SecretKind::AuthorizedUser => "a Google user login",
            SecretKind::ExternalAccount => "a Google external-account credential",
            SecretKind::ExternalAccountUser => "a Google external-account user login",
            SecretKind::ImpersonatedAccount => "a Google impersonation credential",
            SecretKind::GcloudDatabase => "a gcloud login database",
            SecretKind::PrivateKey => "a private key",
            SecretKind::AwsKey => "an AWS secret access key",
            SecretKind::AzureLogin => "an Azure login",
            SecretKind::AzureKey => "an Azure storage key",
            SecretKind::SasToken => "an Azure SAS token",
            SecretKind::AwsLogin => "an AWS login",
            SecretKind::GoogleHmac => "a Google Storage HMAC key",
            SecretKind::OauthToken => "an OAuth token",
            SecretKind::FederatedToken => "a token that a cloud exchanges for its own",
            SecretKind::Netrc => "a netrc password",
            SecretKind::Kubeconfig => "a kubeconfig with a key or token",
            SecretKind::RegistryLogin => "a container registry login",
            SecretKind::SecretVariable => "a secret variable",
            SecretKind::EngineSocket => "the engine's own socket",
        })
    }
}

/// One find: its kind and its place. No field could carry the secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Find {
    pub kind: SecretKind,
    /// A path, or the name of a variable.
    pub place: String,
}

impl fmt::Display for Find {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.kind, self.place)
    }
}

/// What the guard does with a find.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// The request is refused.
    #[default]
    Deny,
    /// One line is printed; the request passes.
    Warn,
    /// Nothing is scanned.
    Off,
}

/// The operator's settings: how strict the guard is, and where keys may be.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct GuardRules {
    pub mode: Mode,
    /// Files and directories whose content is not judged. Absolute paths are places on the host, relative
    /// ones places inside a build context.
    pub allow: Vec<PathBuf>,
    /// Named texts of requests and images that are not judged.
    pub named: Vec<Named>,
}

impl GuardRules {
    /// Whether the operator has excepted this text.
    pub fn allows_named(&self, part: TextPart, name: &str) -> bool {
        self.named.iter().any(|named| named.part == part && named.name == name)
    }

    /// These rules for a directory that holds objects of `bucket` under their names.
    #[must_use]
    pub fn with_objects_at(mut self, bucket: &str, directory: &Path) -> Self {
        let objects = self.named.iter().filter(|named| named.part == TextPart::Object);
        let inside = objects.filter_map(|named| {
            let name = named.name.strip_prefix("//")?.strip_prefix(bucket)?;
            name.is_empty().then_some("").or_else(|| name.strip_prefix('/'))
        });
        self.allow.extend(inside.map(|name| directory.join(name)));
        self
    }

    /// Whether the operator has excepted this place; links in both paths are resolved where possible.
    pub fn allows(&self, place: &Path) -> bool {
        let resolved = place.canonicalize();
        self.allow.iter().any(|allowed| {
            place.starts_with(allowed)
                || resolved.as_ref().is_ok_and(|place| {
                    place.starts_with(allowed.canonicalize().as_deref().unwrap_or(allowed))
                })
        })
    }

    /// The same without resolving links: cheap enough for every directory of a walk.
    pub fn allows_plainly(&self, place: &Path) -> bool {
        self.allow.iter().any(|allowed| place.starts_with(allowed))
    }

    /// The same for a place that may lie inside an archive (`ARCHIVE!/PATH`): the place itself or any of the
    /// archives around it may be excepted.
    pub fn allows_place(&self, place: &str) -> bool {
        let archive = place.split("!/").next().unwrap_or(place);
        self.allows(Path::new(archive)) || around(place).any(|place| self.allows_plainly(Path::new(place)))
    }

    /// Whether the operator has excepted a find in an archive or an image.
    pub fn allows_find(&self, name: &str, exception: &Exception) -> bool {
        matches!(exception, Exception::Named(named) if self.named.contains(named)) || self.allows_inside(name)
    }

    /// The same for a place inside an archive, by its name there.
    pub fn allows_inside(&self, name: &str) -> bool {
        let name = name.trim_start_matches("./").trim_start_matches('/');
        around(name)
            .map(Path::new)
            .any(|name| self.allow.iter().any(|allowed| allowed.is_relative() && name.starts_with(allowed)))
    }
}

/// A place, and the archives that contain it: `a.tar!/b.zip!/c`, `a.tar`, `a.tar!/b.zip`.
fn around(place: &str) -> impl Iterator<Item = &str> {
    let archives = place.match_indices("!/").map(|(at, _)| &place[..at]);
    std::iter::once(place).chain(archives)
}

/// What the guard knows of the host: the rules, and the places known to hold keys.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    pub rules: GuardRules,
    /// Scanned first: the user's home, and the credential file that the session itself uses.
    pub homes: Vec<PathBuf>,
    pub files: Vec<PathBuf>,
    /// The engine's socket, if it is known.
    pub engine: Option<PathBuf>,
    /// Pipeline roots. It is normal, so not reported, that one does not exist yet or that files of earlier
    /// tasks below it cannot be read.
    pub made: Vec<PathBuf>,
}
