//! The sessions of AWS that were made for containers and may still be used: IAM can deny each by its `aws:userid`.

use std::sync::{Mutex, PoisonError};

use crate::record::Requestor;
use crate::source::aws::AwsRequest;
use crate::token::{AwsSession, Deadline, Now};
use crate::workload::Grant;

/// A session of a container. A renewal has the same `user_id`, so it counts as the same session.
#[derive(Clone, Debug)]
pub struct MadeSession {
    pub grant: Grant,
    /// The ARN.
    pub role: String,
    /// `ROLEID:SESSION-NAME`.
    pub user_id: String,
    /// The expiry of the last renewal.
    pub expires: Deadline,
}

/// The sessions, remembered until they expire, also after their containers ended.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<Vec<MadeSession>>);

/// The container of a session that is being made.
pub(super) fn holder(who: Option<Requestor<'_>>) -> Option<Grant> {
    match who {
        Some(Requestor::Container(grant)) => Some(grant.clone()),
        _ => None,
    }
}

impl Sessions {
    pub(super) fn made(&self, holder: Option<Grant>, ask: &AwsRequest, session: &AwsSession) {
        let role = ask.identity.role.clone();
        let (Some(grant), Some(role), Some(user_id)) = (holder, role, session.user_id.clone()) else {
            return;
        };
        let made = MadeSession { grant, role, user_id, expires: session.expires };
        let now = Now::read();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| !known.expires.is_over(now));
        match all.iter_mut().find(|known| known.user_id == made.user_id && known.role == made.role) {
            Some(known) if known.expires.wall() > made.expires.wall() => {}
            Some(known) => *known = made,
            None => all.push(made),
        }
    }

    /// The sessions that have not expired.
    pub(super) fn alive(&self, now: Now) -> Vec<MadeSession> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|known| !known.expires.is_over(now)).cloned().collect()
    }
}
