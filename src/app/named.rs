//! Finds the containers that a person names.

use hyper::StatusCode;

use crate::lifecycle::by_hand::JoinedMember;
use crate::quote;
use crate::workload::Grant;

/// The entries of `all` that `wanted` names: an exact name or `pipeline/component`, else the beginning of an id. Several
/// tasks may share a name (iterations, retries), and all of them are selected; the beginning of an id must be unique.
pub(super) fn select<T: Granted + Clone>(all: &[T], wanted: &str) -> Result<Vec<T>, (StatusCode, String)> {
    let named: Vec<T> = all
        .iter()
        .filter(|one| {
            let task = &one.grant().task;
            let name = task.name.as_deref().map(|name| name.trim_start_matches('/'));
            !wanted.is_empty() && (name == Some(wanted) || task.to_string() == wanted)
        })
        .cloned()
        .collect();
    let hex = wanted.len() >= 4 && wanted.bytes().all(|b| b.is_ascii_hexdigit());
    let by_id = all.iter().filter(|one| hex && one.grant().container.as_str().starts_with(wanted));
    let by_id: Vec<T> = by_id.cloned().collect();
    match (named.is_empty(), by_id.as_slice()) {
        (true, []) => Err((
            StatusCode::NOT_FOUND,
            format!("no container {} has an identity in this session\n", quote::name(wanted)),
        )),
        (true, [_]) => Ok(by_id),
        (false, []) => Ok(named),
        _ => {
            let why =
                format!("{} means several containers: give more digits of the id\n", quote::name(wanted));
            Err((StatusCode::CONFLICT, why))
        }
    }
}

/// What belongs to one container.
pub(super) trait Granted {
    fn grant(&self) -> &Grant;
}

impl Granted for JoinedMember {
    fn grant(&self) -> &Grant {
        &self.grant
    }
}

impl Granted for Grant {
    fn grant(&self) -> &Grant {
        self
    }
}
