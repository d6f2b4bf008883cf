//! What a token may be used for: its scopes, and the access boundary that narrows it further.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// The scope for everything that an identity may do (decision 15).
pub const CLOUD_PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";

/// The prefix of every scope in [`OF_GOOGLE_CLOUD`].
pub const SCOPE_PREFIX: &str = "https://www.googleapis.com/auth/";

/// Scopes that allow a part of what `cloud-platform` allows: each is documented as an alternative to it for
/// the services that accept it. <https://developers.google.com/identity/protocols/oauth2/scopes>. Listed by
/// full name, so that no invented scope is accepted.
pub const OF_GOOGLE_CLOUD: [&str; 48] = [
    "appengine.admin",
    "bigquery",
    "bigquery.insertdata",
    "bigquery.readonly",
    "bigtable.admin",
    "bigtable.admin.cluster",
    "bigtable.admin.instance",
    "bigtable.admin.table",
    "bigtable.data",
    "bigtable.data.readonly",
    "cloud-bigtable.admin",
    "cloud-bigtable.admin.cluster",
    "cloud-bigtable.admin.table",
    "cloud-bigtable.data",
    "cloud-bigtable.data.readonly",
    "cloud-language",
    "cloud-platform.read-only",
    "cloud-translation",
    "cloud-vision",
    "cloud.useraccounts",
    "cloud.useraccounts.readonly",
    "cloudkms",
    "compute",
    "compute.readonly",
    "datastore",
    "devstorage.full_control",
    "devstorage.read_only",
    "devstorage.read_write",
    "logging.admin",
    "logging.read",
    "logging.write",
    "monitoring",
    "monitoring.read",
    "monitoring.write",
    "ndev.clouddns.readonly",
    "ndev.clouddns.readwrite",
    "pubsub",
    "service.management",
    "service.management.readonly",
    "servicecontrol",
    "source.full_control",
    "source.read_only",
    "source.read_write",
    "spanner.admin",
    "spanner.data",
    "sqlservice.admin",
    "trace.append",
    "trace.readonly",
];

/// A set of OAuth scopes in normal form: trimmed, without blanks and duplicates, sorted. The normal form is
/// the cache key and is sent upstream.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Scopes {
    list: Arc<[String]>,
    /// Hash of the list, computed once: the set is part of the cache key of every token request.
    hash: u64,
}

impl Scopes {
    /// Parses the comma-separated list of the metadata protocol and the space-separated list of OAuth.
    pub fn parse(list: &str) -> Self {
        list.split([',', ' ', '\n', '\t']).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(String::as_str)
    }

    pub fn contains(&self, scope: &str) -> bool {
        self.list.iter().any(|own| own == scope)
    }

    /// Whether a token of `scope` allows no more than one of these scopes does.
    pub fn allow(&self, scope: &str) -> bool {
        self.contains(scope) || (self.contains(CLOUD_PLATFORM) && is_of_google_cloud(scope))
    }

    /// The same set without the scopes that `cloud-platform` includes, if the set has `cloud-platform`.
    pub fn least(&self) -> Self {
        let all = self.contains(CLOUD_PLATFORM);
        self.iter().filter(|scope| !(all && is_of_google_cloud(scope))).collect()
    }

    pub fn intersection(&self, other: &Self) -> Self {
        self.iter().filter(|scope| other.contains(scope)).collect()
    }
}

fn is_of_google_cloud(scope: &str) -> bool {
    scope.strip_prefix(SCOPE_PREFIX).is_some_and(|name| OF_GOOGLE_CLOUD.contains(&name))
}

impl<'a> FromIterator<&'a str> for Scopes {
    fn from_iter<I: IntoIterator<Item = &'a str>>(scopes: I) -> Self {
        let set: BTreeSet<&str> = scopes.into_iter().map(str::trim).filter(|s| !s.is_empty()).collect();
        let mut hasher = DefaultHasher::new();
        set.hash(&mut hasher);
        Self { list: set.into_iter().map(String::from).collect(), hash: hasher.finish() }
    }
}

impl Default for Scopes {
    fn default() -> Self {
        [].into_iter().collect()
    }
}

impl Hash for Scopes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Prints them separated by spaces, as in the scope parameter of RFC 6749 section 3.3.
impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.list.join(" "))
    }
}

/// A Credential Access Boundary: the only permissions of a narrowed token, on Cloud Storage alone.
/// <https://cloud.google.com/iam/docs/downscoping-short-lived-credentials>
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Boundary(pub Vec<BoundaryRule>);

/// One of at most ten rules; access that no rule allows is denied.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct BoundaryRule {
    /// The bucket's name, without `gs://`.
    pub bucket: String,
    /// Permissions such as `inRole:roles/storage.objectViewer`.
    pub permissions: Vec<String>,
    pub condition: Option<AccessCondition>,
}

/// An expression in the Common Expression Language that must be true for a requested object.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct AccessCondition {
    pub title: Option<String>,
    pub description: Option<String>,
    pub expression: String,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn scopes_are_normalised() {
        let scopes = Scopes::parse(" b , a,,b  c");
        assert_eq!(scopes.to_string(), "a b c");
        assert_eq!(scopes, Scopes::from_iter(["c", "a", "b", "a"]));
        assert_eq!(scopes.intersection(&Scopes::parse("c,d,a")).to_string(), "a c");
        assert!(Scopes::parse(" ,").is_empty());
        assert_eq!(Scopes::parse(" ,"), Scopes::default());
        let places = HashSet::from(["a b", "b a", "ab", "a", ""].map(Scopes::parse));
        assert_eq!(places.len(), 4);
    }

    #[test]
    fn cloud_platform_includes_only_the_scopes_of_google_cloud() {
        let scope = |name: &str| format!("{SCOPE_PREFIX}{name}");
        let all = Scopes::parse(CLOUD_PLATFORM);
        for name in OF_GOOGLE_CLOUD {
            assert!(all.allow(&scope(name)), "{name}");
            assert!(!Scopes::parse("a").allow(&scope(name)), "{name}");
        }
        for outside in
            ["drive", "bigquery.made-up", "sqlservice.login", "cloud-identity", "", "userinfo.email"]
        {
            assert!(!all.allow(&scope(outside)), "{outside}");
        }
        assert!(all.allow(CLOUD_PLATFORM) && !all.allow("bigquery"));
        assert!(OF_GOOGLE_CLOUD.is_sorted(), "for whoever looks one up");
        let (bigquery, drive) = (scope("bigquery"), scope("drive"));
        let least = |list: &[&str]| list.iter().copied().collect::<Scopes>().least();
        assert_eq!(least(&[CLOUD_PLATFORM, &bigquery, &drive]), Scopes::from_iter([CLOUD_PLATFORM, &drive]));
        assert_eq!(least(&[&bigquery, &drive]), Scopes::from_iter([bigquery.as_str(), &drive]));
    }
}
