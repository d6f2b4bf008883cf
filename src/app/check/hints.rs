//! Suggested fixes for `check`: the commands for the remedies that errors carry. A command that would not help
//! is worse than none.

use crate::failure::{Failure, Remedy};
use crate::mint::MintFailure;

/// A fix for other failures, unless their text has one.
pub(super) fn failure(failure: &Failure) -> Option<String> {
    let hint = match failure {
        Failure::Engine(why) => engine(&why.remedy),
        Failure::Config(_) => "kfp-creds config check",
        Failure::NoCredential(why) if why.remedy == Remedy::InText => return None,
        Failure::NoCredential(_) => {
            "gcloud auth application-default login, or name another file with --credentials-file"
        }
        _ => return None,
    };
    Some(hint.into())
}

/// If nothing is known about an engine's failure, its own log is what to read.
fn engine(remedy: &Remedy) -> &'static str {
    match remedy {
        Remedy::AllowInPlugin => {
            "docker info --format '{{.Plugins.Authorization}}' names the plugin that forbids it: ask who runs it"
        }
        Remedy::FreeDisk => "docker system df, then docker system prune",
        Remedy::FreeNetworks => "docker network prune",
        Remedy::RestoreFirewall => "sudo systemctl restart docker, which sets its firewall rules up again",
        Remedy::OpenFirewall => "sudo iptables -S DOCKER-USER; sudo nft list ruleset",
        Remedy::UseAnotherEngine => {
            "set DOCKER_HOST, or engine in kfp-creds.toml, to an engine that kfp-creds supports"
        }
        Remedy::WakeEngine => "docker info: where it does not answer either, sudo systemctl restart docker",
        Remedy::GainRights => {
            "docker run --rm hello-world: if that is refused too, you have no permission to use this engine"
        }
        _ => "sudo journalctl -u docker --since -10min says why, and docker info whether the engine is well",
    }
}

/// A fix for a failed mint by a credential of this `kind`. `None` if the refusal itself says what to do, or if
/// no command does it.
pub(super) fn token(error: &MintFailure, kind: &str) -> Option<String> {
    let MintFailure::Refused(why) = error else {
        return Some("is Google reachable? curl -sI https://oauth2.googleapis.com".into());
    };
    match &why.remedy {
        Remedy::GrantRole { role, account, to } => Some(format!(
            "gcloud iam service-accounts add-iam-policy-binding {account} --role={role} --member='{}'",
            member(to.as_deref())
        )),
        Remedy::InspectAccount(account) => Some(format!("gcloud iam service-accounts describe {account}")),
        Remedy::InspectProvider(provider) => {
            let provider = provider.strip_prefix("//iam.googleapis.com/")?;
            let workforce = provider.contains("/workforcePools/");
            let pools = if workforce { "workforce-pools" } else { "workload-identity-pools" };
            Some(format!("gcloud iam {pools} providers describe {provider}"))
        }
        Remedy::ListKeys(account) => {
            Some(format!("gcloud iam service-accounts keys list --iam-account={account}"))
        }
        Remedy::Unknown if kind == "user login" => Some("gcloud auth application-default login".into()),
        _ => None,
    }
}

/// The form of IAM bindings. Capitals stand for values that only the grantor knows.
fn member(to: Option<&str>) -> String {
    match to {
        Some(provider) if provider.starts_with("//") => {
            // Only the pool: the provider is not part of a principal's name.
            let pool = provider.split("/providers/").next().unwrap_or(provider);
            format!("principal:{pool}/subject/SUBJECT_OF_THE_TOKEN")
        }
        Some(principal) if principal.contains("://") => principal.into(),
        Some(robot) if robot.ends_with(".gserviceaccount.com") => format!("serviceAccount:{robot}"),
        Some(person) if person.contains('@') => format!("user:{person}"),
        _ => "user:WHO_LOGGED_IN".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Reason;

    const POOL: &str = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/ci";

    fn refused(kind: &str, remedy: Remedy) -> Option<String> {
        token(&MintFailure::Refused(Reason::new("x", remedy)), kind)
    }

    #[test]
    fn a_missing_role_is_granted_in_the_form_of_bindings() {
        let provider = format!("{POOL}/providers/p");
        let subject = format!("principal:{POOL}/subject/SUBJECT_OF_THE_TOKEN");
        for (to, member) in [
            (Some("dev@example.com"), "user:dev@example.com"),
            (None, "user:WHO_LOGGED_IN"),
            (Some("key@p.iam.gserviceaccount.com"), "serviceAccount:key@p.iam.gserviceaccount.com"),
            (Some("principal://pool.example/x"), "principal://pool.example/x"),
            (Some(&*provider), &*subject),
        ] {
            let (role, account) = ("roles/iam.workloadIdentityUser", "run@x".to_owned());
            let hint = format!(
                "gcloud iam service-accounts add-iam-policy-binding run@x --role={role} --member='{member}'"
            );
            let remedy = Remedy::GrantRole { role, account, to: to.map(str::to_owned) };
            assert_eq!(refused("", remedy), Some(hint));
        }
    }

    #[test]
    fn every_failure_of_an_engine_has_a_fix() {
        for (remedy, hint) in [
            (Remedy::FreeNetworks, "docker network prune"),
            (Remedy::FreeDisk, "docker system df"),
            (Remedy::RestoreFirewall, "sudo systemctl restart docker"),
            (Remedy::AllowInPlugin, "docker info --format"),
            (Remedy::UseAnotherEngine, "set DOCKER_HOST"),
            (Remedy::WakeEngine, "docker info: where it does not answer either"),
            (Remedy::OpenFirewall, "sudo iptables -S DOCKER-USER"),
            (Remedy::Unknown, "sudo journalctl -u docker"),
        ] {
            let shown = failure(&Failure::Engine(Reason::new("x", remedy))).unwrap();
            assert!(shown.starts_with(hint), "{shown}");
        }
        assert!(failure(&Failure::Config("a.toml: x".into())).is_some());
        let unread = failure(&Failure::NoCredential("f.json: is not JSON".into())).unwrap();
        assert!(unread.contains("--credentials-file"));
        assert!(failure(&Failure::NoCredential(Reason::advice("run `gcloud auth login`"))).is_none());
    }

    #[test]
    fn refusals_have_their_own_fix_or_name_it_themselves() {
        let provider = format!("{POOL}/providers/p");
        let described = format!(
            "gcloud iam workload-identity-pools providers describe {}",
            &provider["//iam.googleapis.com/".len()..]
        );
        assert_eq!(refused("federation", Remedy::InspectProvider(provider)), Some(described));
        assert_eq!(refused("federation", Remedy::InspectProvider("//other.example/p".into())), None);
        let gone = Remedy::InspectAccount("gone@x".into());
        assert_eq!(
            refused("user login", gone).as_deref(),
            Some("gcloud iam service-accounts describe gone@x")
        );
        let keys = "gcloud iam service-accounts keys list --iam-account=own@x";
        assert_eq!(refused("service account key", Remedy::ListKeys("own@x".into())).as_deref(), Some(keys));
        let login = Some("gcloud auth application-default login");
        assert_eq!(refused("user login", Remedy::Unknown).as_deref(), login);
        assert_eq!(refused("user login", Remedy::InText), None);
        assert_eq!(refused("federation", Remedy::Unknown), None);
        assert!(token(&MintFailure::Slow, "user login").unwrap().contains("curl"));
    }
}
