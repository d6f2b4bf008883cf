//! Denies AWS sessions at IAM, after showing which. This invalidates a container's AWS credentials before they expire,
//! and no other session.

use std::collections::BTreeMap;

use hyper::StatusCode;

use crate::docker::proxy::Rules;
use crate::mint::MadeSession;
use crate::source::aws::Deny;

/// Why nothing is denied, with the status of the answer.
pub(super) type NotDenied = (StatusCode, String);

/// The sessions to deny, with one policy for each role.
#[derive(Debug)]
pub(super) struct Denied {
    pub(super) deny: Deny,
    pub(super) sessions: Vec<MadeSession>,
}

/// The sessions that are chosen, if every identity among them allows it: 404 if there are none (another session may
/// know them), 409 if one does not allow it. Nothing is denied then.
pub(super) fn chosen(
    rules: &Rules,
    all: Vec<MadeSession>,
    is_chosen: impl Fn(&MadeSession) -> bool,
    wanted: &str,
) -> Result<Vec<Denied>, NotDenied> {
    let mut by_role: BTreeMap<String, Vec<MadeSession>> = BTreeMap::new();
    for made in all.into_iter().filter(|made| is_chosen(made)) {
        let name = &made.grant.identity.name;
        let own = rules.identities.iter().find(|identity| identity.name == *name);
        let aws = own.and_then(|identity| identity.aws.as_ref());
        let allows = aws.is_some_and(|aws| aws.kill_switch && aws.role.as_ref() == Some(&made.role));
        if !allows {
            let why = format!(
                "identity {name} does not allow denying its AWS sessions; set kill_switch = true in [identity.{name}.aws] \
                 and start a new session, or put a policy on the role yourself: it denies aws:userid {}\n",
                made.user_id
            );
            return Err((StatusCode::CONFLICT, why));
        }
        by_role.entry(made.role.clone()).or_default().push(made);
    }
    if by_role.is_empty() {
        let why = format!("this session made no AWS session for {wanted} that has not expired\n");
        return Err((StatusCode::NOT_FOUND, why));
    }
    let of_role = |(role, sessions): (String, Vec<MadeSession>)| {
        let mut user_ids: Vec<String> = sessions.iter().map(|made| made.user_id.clone()).collect();
        user_ids.sort();
        Denied { deny: Deny { role, user_ids }, sessions }
    };
    Ok(by_role.into_iter().map(of_role).collect())
}

impl Denied {
    /// The effects of denying the sessions, for the person who decides.
    pub(super) fn consequences(&self) -> String {
        let mut text = format!(
            "denying AWS sessions puts the inline policy {} on {}:\n",
            self.deny.policy_name(),
            self.deny.role
        );
        for made in &self.sessions {
            let end = crate::console::rfc3339(made.expires.wall());
            let (task, id) = (&made.grant.task, made.grant.container.short());
            text.push_str(&format!(
                "  {} of {task} ({id}) loses all permissions; it expires {end}\n",
                made.user_id
            ));
        }
        text.push_str("  all other sessions of the role keep their permissions\n");
        text + &self.undo()
    }

    /// The sessions that were denied, as text.
    pub(super) fn done(&self) -> String {
        let mut text = String::new();
        for made in &self.sessions {
            let (task, id) = (&made.grant.task, made.grant.container.short());
            text.push_str(&format!(
                "denied {} of {task} ({id}) on {}; AWS applies it within seconds to minutes\n",
                made.user_id, self.deny.role
            ));
        }
        text + &self.undo()
    }

    /// The sessions that could not be denied, as text.
    pub(super) fn failed(&self, why: &str) -> String {
        let named: Vec<&str> = self.sessions.iter().map(|made| made.user_id.as_str()).collect();
        format!("not denied: {}: {why}\n", named.join(" "))
    }

    fn undo(&self) -> String {
        let last = self.sessions.iter().map(|made| made.expires.wall()).max();
        let end = last.map(crate::console::rfc3339).unwrap_or_default();
        format!(
            "to undo it, and to tidy up after {end}: aws iam delete-role-policy --role-name {} --policy-name {}\n",
            self.deny.role_name(),
            self.deny.policy_name()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::cloud::AwsIdentity;
    use crate::policy::Policy;
    use crate::token::{Deadline, Now};
    use crate::workload::{By, ContainerId, Grant, Identity, Task};

    const ROLE: &str = "arn:aws:iam::123456789012:role/team/loader";

    fn identity(name: &str, kill_switch: bool) -> Arc<Identity> {
        let aws = AwsIdentity { role: Some(ROLE.into()), kill_switch, ..AwsIdentity::default() };
        Arc::new(Identity { name: name.into(), aws: Some(Arc::new(aws)), ..Identity::default() })
    }

    fn made(digit: &str, identity: &Arc<Identity>) -> MadeSession {
        let task = Task { pipeline: Some("etl".into()), component: Some("load".into()), ..Task::default() };
        let grant = Grant {
            container: ContainerId::parse(&digit.repeat(64)).unwrap(),
            identity: identity.clone(),
            by: By::Default,
            task: Arc::new(task),
            secret: None,
        };
        let expires = Deadline::after(Now::read(), Duration::from_secs(900));
        MadeSession { grant, role: ROLE.into(), user_id: format!("AROAEXAMPLE:kfp-load-{digit}"), expires }
    }

    #[test]
    fn only_sessions_whose_every_identity_allows_it_are_denied() {
        let (open, closed) = (identity("open", true), identity("closed", false));
        let rules = Rules {
            policy: Policy { rules: vec![], default: None, choose: vec![], all: false, unknown: None },
            identities: vec![open.clone(), closed.clone()],
            mounts: vec![],
            compiled: Arc::default(),
            clear_entrypoint: true,
        };
        let all = || vec![made("b", &open), made("a", &open), made("c", &closed)];
        let of = |digits: &'static [&str]| {
            chosen(&rules, all(), |one| digits.contains(&&one.grant.container.as_str()[..1]), "x")
        };
        let found = of(&["a", "b"]).unwrap();
        assert_eq!(found.len(), 1, "one policy for one role: all of its sessions or none");
        assert_eq!(found[0].deny.user_ids, ["AROAEXAMPLE:kfp-load-a", "AROAEXAMPLE:kfp-load-b"]);
        let said = found[0].consequences();
        for word in [
            ROLE,
            "AROAEXAMPLE:kfp-load-a of etl/load",
            "all other sessions",
            "delete-role-policy --role-name loader",
        ] {
            assert!(said.contains(word), "{word}\n{said}");
        }
        let (status, why) = of(&["a", "c"]).unwrap_err();
        assert!(status == 409 && why.contains("[identity.closed.aws]"), "{status} {why}");
        let (status, why) = of(&["d"]).unwrap_err();
        assert!(status == 404 && why.contains("no AWS session"), "{status} {why}");
    }

    #[test]
    fn consent_is_that_of_the_config_as_it_is_now_and_for_this_role() {
        let before = identity("loader", true);
        let mut now = (*before).clone();
        let other = AwsIdentity {
            role: Some("arn:aws:iam::123456789012:role/b".into()),
            kill_switch: true,
            ..AwsIdentity::default()
        };
        now.aws = Some(Arc::new(other));
        let rules = Rules {
            policy: Policy { rules: vec![], default: None, choose: vec![], all: false, unknown: None },
            identities: vec![Arc::new(now)],
            mounts: vec![],
            compiled: Arc::default(),
            clear_entrypoint: true,
        };
        assert_eq!(chosen(&rules, vec![made("a", &before)], |_| true, "x").unwrap_err().0, 409);
    }
}
