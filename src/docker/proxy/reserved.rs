//! Our objects at the engine: the relay, its image, the network. Clients may only inspect them.

use std::sync::{Arc, PoisonError, RwLock};

use crate::workload::ContainerId;

/// The kind of a reserved object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReservedKind {
    /// The relay.
    Container,
    Network,
    /// The relay's image.
    Image,
}

/// The list of our objects; clones share it, because the relay may be replaced during a session.
#[derive(Clone, Debug, Default)]
pub struct Reserved(Arc<RwLock<Vec<ReservedObject>>>);

#[derive(Clone, Debug, Eq, PartialEq)]
struct ReservedObject {
    kind: ReservedKind,
    /// As the engine reports it; an image's with or without `sha256:`.
    id: String,
    name: String,
}

/// Whether a reference means one of our objects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Hit {
    No,
    Sure,
    /// The reference is the beginning of an id of ours, but may also be another object's name: only the
    /// engine knows.
    Prefix,
}

impl Reserved {
    /// Reserves an object by id and name; an entry with the same id is replaced. An empty `id` reserves the
    /// name before the object exists.
    pub fn put(&self, kind: ReservedKind, id: &str, name: &str) {
        let entry = ReservedObject { kind, id: bare(id).into(), name: name.trim_start_matches('/').into() };
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|old| {
            old.kind != kind || (old.id != entry.id || (entry.id.is_empty() && old.name != entry.name))
        });
        all.push(entry);
    }

    /// Removes the entry with this id.
    pub fn release(&self, kind: ReservedKind, id: &str) {
        let id = bare(id);
        self.0.write().unwrap_or_else(PoisonError::into_inner).retain(|old| old.kind != kind || old.id != id);
    }

    pub(super) fn hit(&self, kind: ReservedKind, reference: &str) -> Hit {
        let reference = reference.trim_start_matches('/');
        if reference.is_empty() {
            return Hit::No;
        }
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut hit = Hit::No;
        for entry in all.iter().filter(|entry| entry.kind == kind) {
            let sure = match kind {
                ReservedKind::Image => {
                    bare(reference) == entry.id
                        || familiar(reference) == familiar(&entry.name)
                        || reference.split_once('@').is_some_and(|(_, digest)| bare(digest) == entry.id)
                }
                ReservedKind::Container | ReservedKind::Network => {
                    reference == entry.id || reference == entry.name
                }
            };
            if sure {
                return Hit::Sure;
            }
            if entry.id.starts_with(bare(reference)) {
                hit = Hit::Prefix;
            }
        }
        hit
    }

    /// True when a tag on `repository` could take the place of an image of ours.
    pub(super) fn owns_repository(&self, repository: &str) -> bool {
        let wanted = repository_of(&familiar(repository)).to_string();
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .any(|entry| entry.kind == ReservedKind::Image && repository_of(&familiar(&entry.name)) == wanted)
    }
}

fn bare(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}

/// `name:tag` as the engine shows it: without the default registry, or the one that Podman adds to names
/// without a registry, and with the default tag.
fn familiar(reference: &str) -> String {
    let mut name = reference;
    for prefix in ["index.docker.io/", "docker.io/", "library/", "localhost/"] {
        name = name.strip_prefix(prefix).unwrap_or(name);
    }
    let name = name.split('@').next().unwrap_or(name);
    let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if tagged { name.into() } else { format!("{name}:latest") }
}

fn repository_of(familiar: &str) -> &str {
    familiar.rsplit_once(':').map_or(familiar, |(repository, _)| repository)
}

/// The reason why, on a shared network, other containers would resolve another host's name to a container of
/// this name.
pub(super) fn captures(name: &str, names: &[String]) -> Option<&'static str> {
    let name = name.trim_start_matches('/').trim_end_matches('.');
    if names.iter().any(|ours| ours.eq_ignore_ascii_case(name)) {
        return Some("is a name of the metadata server");
    }
    if name.contains('.') {
        return Some("has a dot, so its neighbours would find it under a host's name");
    }
    if ContainerId::parse(name).is_some() {
        return Some("has the form of a container id");
    }
    None
}

/// Domains under which clients resolve Google's services.
const GOOGLE: [&str; 3] = ["googleapis.com", "google.internal", "goog"];

/// Like [`captures`], for a host name or domain. A dot is harmless there: only the part before the first one
/// becomes a name on our network (`wiring::shorten_host_name`).
pub(super) fn captures_as_host(name: &str, names: &[String]) -> Option<&'static str> {
    let whole = name.trim_end_matches('.').to_ascii_lowercase();
    let under = |domain: &str| {
        whole.strip_suffix(domain).is_some_and(|before| before.is_empty() || before.ends_with('.'))
    };
    if GOOGLE.iter().any(|domain| under(domain)) {
        return Some("is a name of Google's services");
    }
    captures(whole.split('.').next().unwrap_or_default(), names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_to_our_objects_is_recognised() {
        let ours = Reserved::default();
        let id = "ab12".repeat(16);
        ours.put(ReservedKind::Container, &id, "kfp-creds-relay");
        ours.put(ReservedKind::Network, &id, "kfp-creds");
        ours.put(ReservedKind::Image, &format!("sha256:{id}"), "kfp-creds-relay:0123");
        for (kind, reference, hit) in [
            (ReservedKind::Container, id.as_str(), Hit::Sure),
            (ReservedKind::Container, "kfp-creds-relay", Hit::Sure),
            (ReservedKind::Container, "/kfp-creds-relay", Hit::Sure),
            (ReservedKind::Container, "ab12", Hit::Prefix),
            (ReservedKind::Container, "kfp-creds", Hit::No),
            (ReservedKind::Container, "", Hit::No),
            (ReservedKind::Network, "kfp-creds", Hit::Sure),
            (ReservedKind::Network, "a", Hit::Prefix),
            (ReservedKind::Image, "kfp-creds-relay:0123", Hit::Sure),
            (ReservedKind::Image, "docker.io/library/kfp-creds-relay:0123", Hit::Sure),
            (ReservedKind::Image, "localhost/kfp-creds-relay:0123", Hit::Sure),
            (ReservedKind::Image, "sha256:ab12", Hit::Prefix),
            (ReservedKind::Image, "kfp-creds-relay", Hit::No),
        ] {
            assert_eq!(ours.hit(kind, reference), hit, "{kind:?} {reference}");
        }
        assert!(ours.owns_repository("library/kfp-creds-relay"));
        assert!(ours.owns_repository("kfp-creds-relay:other"));
        assert!(ours.owns_repository("localhost/kfp-creds-relay"));
        assert!(!ours.owns_repository("localhost:5000/kfp-creds-relay"));
        ours.release(ReservedKind::Container, &id);
        assert_eq!(ours.hit(ReservedKind::Container, "kfp-creds-relay"), Hit::No);
        assert_eq!(ours.hit(ReservedKind::Network, "kfp-creds"), Hit::Sure);
    }

    #[test]
    fn names_that_would_capture_other_hosts_are_recognised() {
        let names = ["metadata.google.internal".to_string(), "metadata".into()];
        for bad in ["metadata", "METADATA.", "/metadata", "storage.googleapis.com", &"a1".repeat(32)] {
            assert!(captures(bad, &names).is_some(), "{bad}");
        }
        for good in ["", "plain", "my_task-2", "."] {
            assert!(captures(good, &names).is_none(), "{good}");
        }
        let id = "a1".repeat(32);
        for bad in
            ["metadata", "metadata.corp.example", "storage.GoogleAPIs.com.", "google.internal", "x.goog", &id]
        {
            assert!(captures_as_host(bad, &names).is_some(), "{bad}");
        }
        for good in ["", "dev", "dev.corp.example", "corp.example", "notgoogleapis.com", "goog.example"] {
            assert!(captures_as_host(good, &names).is_none(), "{good}");
        }
    }
}
