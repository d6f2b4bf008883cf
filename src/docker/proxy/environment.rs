//! The environment that a container will have: its create request's variables override those of its image.

use serde_json::Value;

use crate::json::strings;

/// The request's entry takes precedence over the image's.
pub(super) struct ContainerEnvironment<'a> {
    pub(super) request: &'a Value,
    pub(super) image: &'a [String],
}

impl<'a> ContainerEnvironment<'a> {
    /// The last entry for `name`; an entry without `=` unsets the variable.
    fn entry(&self, name: &str) -> Option<&'a str> {
        let is = |entry: &&str| entry.split('=').next() == Some(name);
        let request = strings(self.request).rfind(is);
        request.or_else(|| self.image.iter().map(String::as_str).rfind(is))
    }

    /// True if the request or the image sets or unsets `name`.
    pub(super) fn says(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    pub(super) fn value(&self, name: &str) -> Option<&'a str> {
        self.entry(name)?.split_once('=').map(|(_, value)| value)
    }

    /// The value, unless it is empty: clients of AWS and Azure count an empty variable as unset.
    pub(super) fn filled(&self, name: &str) -> Option<&'a str> {
        self.value(name).map(str::trim).filter(|value| !value.is_empty())
    }
}
