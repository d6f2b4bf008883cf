//! `[[identity.NAME.boundary]]`: the access boundary of an identity's tokens.

use std::sync::Arc;

use super::layers::Layers;
use crate::quote;
use crate::token::{AccessCondition, Boundary, BoundaryRule};

/// Limits of the Security Token Service.
const MOST_RULES: usize = 10;
const MOST_PERMISSIONS: usize = 10;
const LONGEST_EXPRESSION: usize = 2048;

pub(super) fn boundary(say: &mut Layers, path: &str) -> Option<Arc<Boundary>> {
    let entries = say.entries(path);
    if entries.is_empty() {
        // An empty boundary would permit nothing, so nobody means it; without one everything is permitted.
        if say.is_set(path) {
            say.problem(path, "has to have at least one rule; leave it out for tokens without a boundary");
        }
        return None;
    }
    if entries.len() > MOST_RULES {
        let what = format!("has {} rules, and a boundary has at most {MOST_RULES}", entries.len());
        say.problem(path, what);
    }
    let rules = entries.iter().map(|entry| rule(say, entry)).collect();
    Some(Arc::new(Boundary(rules)))
}

fn rule(say: &mut Layers, path: &str) -> BoundaryRule {
    let inside = |key: &str| format!("{path}.{key}");
    let bucket = say.text(&inside("bucket")).unwrap_or_default();
    let permissions = say.list(&inside("permissions")).unwrap_or_default();
    if bucket.is_empty() {
        say.problem(path, "has to name a bucket");
    } else if let Err(what) = is_bucket(&bucket) {
        say.problem(&inside("bucket"), format_args!("{} {what}", quote::value(&bucket)));
    }
    if permissions.is_empty() {
        say.problem(path, "has to name permissions, such as \"inRole:roles/storage.objectViewer\"");
    }
    if permissions.len() > MOST_PERMISSIONS {
        say.problem(&inside("permissions"), format_args!("at most {MOST_PERMISSIONS} are allowed"));
    }
    for permission in &permissions {
        let role = permission.strip_prefix("inRole:").unwrap_or_default();
        let named = ["roles/", "projects/", "organizations/"].iter().any(|start| role.starts_with(start));
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"/._-".contains(&b);
        if !named || !role.bytes().all(fits) {
            let what = format_args!(
                "{} has to be a role, such as \"inRole:roles/storage.objectViewer\"",
                quote::value(permission)
            );
            say.problem(&inside("permissions"), what);
        }
    }
    let condition = condition(say, &inside("condition"));
    BoundaryRule { bucket, permissions, condition }
}

fn condition(say: &mut Layers, path: &str) -> Option<AccessCondition> {
    let text = |key: &str| say.text(&format!("{path}.{key}"));
    let (title, description) = (text("title"), text("description"));
    match text("expression") {
        Some(expression) if expression.len() > LONGEST_EXPRESSION => {
            say.problem(&format!("{path}.expression"), "is longer than 2048 characters");
            None
        }
        Some(expression) if !expression.is_empty() => {
            Some(AccessCondition { title, description, expression })
        }
        None if title.is_none() && description.is_none() => None,
        _ => {
            say.problem(path, "has to have an expression");
            None
        }
    }
}

/// Checks a bucket name, which becomes part of a resource name. Only Cloud Storage enforces boundaries.
fn is_bucket(text: &str) -> Result<(), String> {
    if text.contains("://") || text.starts_with("//") {
        return Err(
            "has to be the name of a bucket alone: a boundary is for Cloud Storage, and for nothing else"
                .into(),
        );
    }
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    if (3..=222).contains(&text.len())
        && bytes.iter().all(|b| fits(*b))
        && ends(bytes.first())
        && ends(bytes.last())
    {
        Ok(())
    } else {
        Err("is not a bucket name: lower-case letters, digits, -, _ and dots".into())
    }
}
