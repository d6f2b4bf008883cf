//! gcloud's own configuration: the last place where account and project are looked up (decision 19).

use std::fs;
use std::path::{Path, PathBuf};

/// `[core]` of the active configuration.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Defaults {
    pub(super) account: Option<String>,
    pub(super) project: Option<String>,
}

impl Defaults {
    /// Reads `active_config` and `configurations/config_<active>`. What is missing or unreadable is absent:
    /// this is a fallback for names, never a credential.
    pub(super) fn read(directory: &Path) -> Self {
        let active = fs::read_to_string(directory.join("active_config")).unwrap_or_default();
        let active = match active.trim() {
            "" => "default",
            // The name becomes part of a path.
            name if name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') => name,
            _ => return Self::default(),
        };
        let file = directory.join("configurations").join(format!("config_{active}"));
        fs::read_to_string(file).map(|text| Self::parse(&text)).unwrap_or_default()
    }

    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        let mut section = "";
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = name.trim();
            } else if let Some((key, value)) = line.split_once('=')
                && section == "core"
            {
                let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
                match key.trim() {
                    "account" => found.account = value,
                    "project" => found.project = value,
                    _ => {}
                }
            }
        }
        found
    }
}

/// `$CLOUDSDK_CONFIG`, else `~/.config/gcloud`.
pub(super) fn directory(cloudsdk_config: Option<&Path>, home: Option<&Path>) -> Option<PathBuf> {
    let set = cloudsdk_config.filter(|path| !path.as_os_str().is_empty());
    set.map(Path::to_owned).or_else(|| Some(home?.join(".config").join("gcloud")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_core_counts() {
        let text = "[compute]\nproject = wrong\n# project = no\n[core]\n account = dev@example.com\nproject=my-project\ndisable_prompts = True\n[x]\naccount = wrong\n";
        let found = Defaults::parse(text);
        assert_eq!(found.account.as_deref(), Some("dev@example.com"));
        assert_eq!(found.project.as_deref(), Some("my-project"));
        assert_eq!(Defaults::parse("project = x\nnonsense"), Defaults::default());
    }
}
