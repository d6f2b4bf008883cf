//! The process's environment variables.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::secret::Secret;

/// The process's variables. They may hold secrets (`AWS_SECRET_ACCESS_KEY`), so `Debug` prints none of them.
#[derive(Clone, Default)]
pub struct Variables(Arc<BTreeMap<String, String>>);

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Variables(..)")
    }
}

impl FromIterator<(String, String)> for Variables {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(all: I) -> Self {
        Self(Arc::new(all.into_iter().collect()))
    }
}

impl Variables {
    /// A variable's value; an empty one counts as unset.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn secret(&self, name: &str) -> Option<Secret<String>> {
        self.text(name).map(|value| Secret::new(value.to_owned()))
    }

    /// The first executable file of this name in `PATH`.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        let executable = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
        };
        // A relative entry would run programs of the current directory.
        let places = std::env::split_paths(self.text("PATH")?).filter(|folder| folder.is_absolute());
        places.map(|folder| folder.join(name)).find(executable)
    }

    /// All variables, the empty ones too.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}
