//! The parameters of Google's tree.

use std::borrow::Cow;
use std::time::Duration;

use super::LONGEST_WAIT;
use crate::metadata::target::parameters;

/// The parameters that the protocol knows, decoded. The first of a name counts; unknown names and values that
/// are not UTF-8 are ignored.
#[derive(Debug, Default)]
pub(super) struct Query<'a> {
    recursive: Option<Cow<'a, str>>,
    wait_for_change: Option<Cow<'a, str>>,
    timeout_sec: Option<Cow<'a, str>>,
    scope: Option<Cow<'a, str>>,
    scopes: Option<Cow<'a, str>>,
    enforce_scopes: Option<Cow<'a, str>>,
    format: Option<Cow<'a, str>>,
    licenses: Option<Cow<'a, str>>,
    pub(super) alt: Option<Cow<'a, str>>,
    pub(super) last_etag: Option<Cow<'a, str>>,
    pub(super) audience: Option<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    pub(super) fn parse(raw: Option<&'a str>) -> Self {
        let mut query = Self::default();
        for (name, value) in parameters(raw) {
            let slot = match &*name {
                "alt" => &mut query.alt,
                "audience" => &mut query.audience,
                "enforce_scopes" => &mut query.enforce_scopes,
                "format" => &mut query.format,
                "last_etag" => &mut query.last_etag,
                "licenses" => &mut query.licenses,
                "recursive" => &mut query.recursive,
                "scope" => &mut query.scope,
                "scopes" => &mut query.scopes,
                "timeout_sec" => &mut query.timeout_sec,
                "wait_for_change" => &mut query.wait_for_change,
                _ => continue,
            };
            slot.get_or_insert(value);
        }
        query
    }

    pub(super) fn recursive(&self) -> bool {
        one_of(&self.recursive, &TRUE)
    }

    pub(super) fn waits(&self) -> bool {
        one_of(&self.wait_for_change, &TRUE)
    }

    /// `Err` if it is not a whole number of seconds: waiting for ever would be worse.
    pub(super) fn timeout(&self) -> Result<Option<Duration>, NotSeconds> {
        match self.timeout_sec.as_deref() {
            None | Some("") => Ok(None),
            Some(text) if text.bytes().all(|b| b.is_ascii_digit()) => {
                Ok(Some(text.parse().map_or(LONGEST_WAIT, Duration::from_secs).min(LONGEST_WAIT)))
            }
            Some(_) => Err(NotSeconds),
        }
    }

    pub(super) fn scopes(&self) -> Option<&str> {
        self.scopes.as_deref().or(self.scope.as_deref())
    }

    /// Whether the caller wants a token of exactly the scopes that it lists.
    pub(super) fn enforced(&self) -> bool {
        one_of(&self.enforce_scopes, &["true", "1", "yes", "y"])
    }

    /// Whether the caller requests a token *without* enforcement, which the protocol refuses.
    pub(super) fn unenforced(&self) -> bool {
        one_of(&self.enforce_scopes, &["false", "0", "no", "n"])
    }

    pub(super) fn full(&self) -> bool {
        one_of(&self.format, &["full"])
    }

    pub(super) fn licenses(&self) -> bool {
        one_of(&self.licenses, &TRUE)
    }
}

#[derive(Debug, Eq, PartialEq)]
pub(super) struct NotSeconds;

/// gcloud and cloud-init send `True`; the 2016 emulator accepted `on`, LUCI accepts `yes`.
const TRUE: [&str; 4] = ["true", "1", "yes", "on"];

fn one_of(value: &Option<Cow<'_, str>>, words: &[&str]) -> bool {
    value.as_ref().is_some_and(|value| words.iter().any(|word| value.eq_ignore_ascii_case(word)))
}
