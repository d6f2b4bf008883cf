//! Disables a dedicated service account, after showing what else that breaks. It is the only way to end
//! tokens that were handed out, and it ends all tokens of the account.

use hyper::StatusCode;

use crate::docker::proxy::Rules;

/// What disabling `account` breaks, for the person who decides. 404 if no identity here uses the account:
/// another session may. 409 if an identity uses it and does not allow disabling: no session may.
pub(super) fn consequences(
    rules: &Rules,
    account: &str,
    live: usize,
) -> Result<String, (StatusCode, String)> {
    let uses = |identity: &crate::workload::Identity| {
        identity.service_account.iter().chain(&identity.others).any(|own| own == account)
    };
    let named: Vec<_> = rules.identities.iter().filter(|identity| uses(identity)).collect();
    if named.is_empty() {
        let why = format!("no identity of this session has the service account {account}\n");
        return Err((StatusCode::NOT_FOUND, why));
    }
    if let Some(closed) = named.iter().find(|identity| !identity.kill_switch) {
        let why = format!(
            "identity {} has {account} and does not allow disabling it; if nobody else uses the account, set \
             kill_switch = true in [identity.{}] and start a new session\n",
            closed.name, closed.name
        );
        return Err((StatusCode::CONFLICT, why));
    }
    let names: Vec<&str> = named.iter().map(|identity| identity.name.as_str()).collect();
    Ok(format!(
        "disabling {account} breaks, at once and until it is enabled again:\n\
         \x20 every token of it, wherever it was copied to, on this machine and others\n\
         \x20 every workload in the cloud that runs as it, and every key that was made for it\n\
         \x20 in this session: identity {}; {live} containers with a lease\n\
         to undo it: gcloud iam service-accounts enable {account}\n\
         (tokens that have not expired by then work again)\n",
        names.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::policy::Policy;
    use crate::workload::Identity;

    #[test]
    fn only_an_account_whose_every_identity_allows_it() {
        let identity = |name: &str, account: &str, kill_switch| {
            let service_account = Some(account.to_string());
            Arc::new(Identity { name: name.into(), service_account, kill_switch, ..Identity::default() })
        };
        let rules = Rules {
            policy: Policy { rules: vec![], default: None, choose: vec![], all: false, unknown: None },
            identities: vec![
                identity("a", "own@x", true),
                identity("b", "shared@x", true),
                identity("c", "shared@x", false),
            ],
            mounts: vec![],
            compiled: Arc::default(),
            clear_entrypoint: true,
        };
        let said = consequences(&rules, "own@x", 2).unwrap();
        assert!(
            said.contains("identity a; 2 containers") && said.contains("service-accounts enable own@x"),
            "{said}"
        );
        let refused = |account: &str| {
            let (status, why) = consequences(&rules, account, 0).unwrap_err();
            (status.as_u16(), why)
        };
        let (status, why) = refused("shared@x");
        assert!(status == 409 && why.contains("identity c has shared@x"), "{status} {why}");
        let (status, why) = refused("other@x");
        assert!(status == 404 && why.contains("no identity"), "{status} {why}");
    }
}
