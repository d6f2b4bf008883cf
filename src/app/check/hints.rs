//! Suggested fixes for `check`: for refused tokens, by the refusing party, and for the engine, by its error
//! text. A command that would not help is worse than none.

use crate::failure::Failure;
use crate::mint::MintFailure;

/// A fix for other failures, unless their text has one.
pub(super) fn failure(failure: &Failure) -> Option<String> {
    let hint = match failure {
        Failure::Engine(text) => return Some(engine(text)),
        Failure::Config(_) => "kfp-creds config check",
        Failure::NoCredential(text) if says_it_itself(text) => return None,
        Failure::NoCredential(_) => {
            "gcloud auth application-default login, or name another file with --credentials-file"
        }
        _ => return None,
    };
    Some(hint.into())
}

/// A fix for the text of an engine error. Engines word errors differently, so the fix for unknown texts is to
/// read the engine's own log.
fn engine(text: &str) -> String {
    let text = text.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let hint = match () {
        () if has(&["authorization denied"]) => {
            "docker info --format '{{.Plugins.Authorization}}' names the plugin that forbids it: ask who runs it"
        }
        () if has(&["no space left", "disk quota"]) => "docker system df, then docker system prune",
        () if has(&["address pool", "non-overlapping"]) => "docker network prune",
        () if has(&["iptables", "nftables", "firewalld"]) => {
            "sudo systemctl restart docker, which sets its firewall rules up again"
        }
        () if has(&["no probe came through", "did not reach"]) => {
            "sudo iptables -S DOCKER-USER; sudo nft list ruleset"
        }
        () if has(&["the engine at "]) => {
            "let DOCKER_HOST, or engine in kfp-creds.toml, name an engine on this machine that does"
        }
        () if has(&["timed out", "timeout", "does not answer", "deadline"]) => {
            "docker info: where it does not answer either, sudo systemctl restart docker"
        }
        () if has(&["permission denied", "not permitted", "forbidden"]) => {
            "docker run --rm hello-world: where that is refused too, this engine does not obey you"
        }
        () => "sudo journalctl -u docker --since -10min says why, and docker info whether the engine is well",
    };
    hint.into()
}

fn says_it_itself(text: &str) -> bool {
    text.contains("run `") || text.contains("--impersonate")
}

/// A fix for a failed mint for `account` by a credential of this `kind`. `None` if the refusal itself says
/// what to do, or if no command does it.
pub(super) fn token(account: &str, error: &MintFailure, kind: &str) -> Option<String> {
    let text = error.to_string();
    if !matches!(error, MintFailure::Refused(_)) {
        return Some("is Google reachable? curl -sI https://oauth2.googleapis.com".into());
    }
    if says_it_itself(&text) {
        return None;
    }
    if let Some((before, after)) = text.split_once(" may not impersonate ") {
        let target = after.split(';').next().unwrap_or(account);
        let role = if after.contains("workloadIdentityUser") {
            "roles/iam.workloadIdentityUser"
        } else {
            "roles/iam.serviceAccountTokenCreator"
        };
        return Some(format!(
            "gcloud iam service-accounts add-iam-policy-binding {target} --role={role} --member='{}'",
            member(before)
        ));
    }
    if let Some((_, target)) = text.split_once("there is no service account ") {
        return Some(format!("gcloud iam service-accounts describe {target}"));
    }
    let provider = text.split_whitespace().find_map(|word| word.strip_prefix("//iam.googleapis.com/"));
    if let Some(provider) = provider.filter(|_| !text.contains("expired at ")) {
        let provider = provider.trim_end_matches([':', ',', ';']);
        let pools =
            if provider.contains("/workforcePools/") { "workforce-pools" } else { "workload-identity-pools" };
        return Some(format!("gcloud iam {pools} providers describe {provider}"));
    }
    match kind {
        "service account key" if text.contains("the key of ") || text.contains("cannot sign") => {
            Some(format!("gcloud iam service-accounts keys list --iam-account={account}"))
        }
        "user login" => Some("gcloud auth application-default login".into()),
        _ => None,
    }
}

/// The account at the end of `said`, in the form of IAM bindings. Capitals stand for values that only the
/// grantor knows.
fn member(said: &str) -> String {
    let last = said.rsplit(' ').next().unwrap_or_default();
    if let Some(provider) = last.strip_prefix("//") {
        // Only the pool: the provider is not part of a principal's name.
        let pool = provider.split("/providers/").next().unwrap_or(provider);
        return format!("principal://{pool}/subject/SUBJECT_OF_THE_TOKEN");
    }
    match last {
        principal if principal.contains("://") => principal.into(),
        robot if robot.ends_with(".gserviceaccount.com") => format!("serviceAccount:{robot}"),
        person if person.contains('@') => format!("user:{person}"),
        _ => "user:WHO_LOGGED_IN".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: &str = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/ci";

    fn refused(kind: &str, text: &str) -> Option<String> {
        token("own@x", &MintFailure::Refused(text.into()), kind)
    }

    #[test]
    fn who_may_not_impersonate_is_named_as_bindings_do() {
        let pool = format!("the principal of {POOL}/providers/p");
        let subject = format!("principal:{POOL}/subject/SUBJECT_OF_THE_TOKEN");
        for (who, role, member) in [
            ("dev@example.com", "serviceAccountTokenCreator", "user:dev@example.com"),
            ("the host's account", "serviceAccountTokenCreator", "user:WHO_LOGGED_IN"),
            (
                "key@p.iam.gserviceaccount.com",
                "serviceAccountTokenCreator",
                "serviceAccount:key@p.iam.gserviceaccount.com",
            ),
            ("principal://pool.example/x", "workloadIdentityUser", "principal://pool.example/x"),
            (&pool, "workloadIdentityUser", &subject),
        ] {
            let text =
                format!("x answered 403: {who} may not impersonate run@x; grant it roles/iam.{role} there");
            let hint = format!(
                "gcloud iam service-accounts add-iam-policy-binding run@x --role=roles/iam.{role} --member='{member}'"
            );
            assert_eq!(refused("", &text), Some(hint), "{text}");
        }
    }

    #[test]
    fn an_engine_that_fails_has_a_fix_whatever_it_says() {
        for (text, hint) in [
            (
                "make a network: could not find an available, non-overlapping IPv4 address pool",
                "docker network prune",
            ),
            ("load the relay image: write /layer.tar: no space left on device", "docker system df"),
            ("make a network: Failed to Setup IP tables: iptables failed", "sudo systemctl restart docker"),
            ("list images: authorization denied by plugin x: no", "docker info --format"),
            ("the engine at /x is for windows containers", "let DOCKER_HOST"),
            ("list networks: Timeout error", "docker info: where it does not answer either"),
            ("wait for the relay: no probe came through in 20 s", "sudo iptables -S DOCKER-USER"),
            ("connect it: could not find plugin bridge in v1 plugin registry", "sudo journalctl -u docker"),
            ("list networks: something new", "sudo journalctl -u docker"),
        ] {
            let told = failure(&Failure::Engine(text.into())).unwrap();
            assert!(told.starts_with(hint), "{text}: {told}");
        }
        assert!(failure(&Failure::Config("a.toml: x".into())).is_some());
        assert!(
            failure(&Failure::NoCredential("f.json: is not JSON".into()))
                .unwrap()
                .contains("--credentials-file")
        );
        assert!(failure(&Failure::NoCredential("none; run `gcloud auth login`".into())).is_none());
    }

    #[test]
    fn every_other_refusal_has_its_own_fix_or_says_it_itself() {
        let provider = format!("{POOL}/providers/p");
        let describe = format!(
            "gcloud iam workload-identity-pools providers describe {}",
            &provider["//iam.googleapis.com/".len()..]
        );
        for text in [
            format!("the attribute condition of {provider} does not let the token from f in"),
            format!("sts answered 400: there is no provider {provider}, or it is disabled"),
            format!("the token from f is not accepted by {provider}: its issuer"),
        ] {
            assert_eq!(refused("federation", &text), Some(describe.clone()), "{text}");
        }
        for (kind, text, hint) in [
            (
                "user login",
                "there is no service account gone@x",
                "gcloud iam service-accounts describe gone@x",
            ),
            ("user login", "something else", "gcloud auth application-default login"),
            (
                "service account key",
                "the key of own@x is not accepted (invalid_grant): it was deleted",
                "gcloud iam service-accounts keys list --iam-account=own@x",
            ),
        ] {
            assert_eq!(refused(kind, text).as_deref(), Some(hint), "{text}");
        }
        for (kind, text) in [
            ("user login", "the login has expired; run `gcloud auth application-default login` on the host"),
            ("user login", "a user login cannot make ID tokens; name a service account with --impersonate"),
            ("service account key", "own@x may not stand in for a@b.example with these scopes"),
            ("service account key", "the boundary is not accepted"),
            ("federation", "the token from f expired at 2026-01-01T00:00:00Z; it has to be renewed there"),
            ("command", "the command x is not there"),
        ] {
            assert_eq!(refused(kind, text), None, "{text}");
        }
        assert!(token("own@x", &MintFailure::Slow, "user login").unwrap().contains("curl"));
    }
}
