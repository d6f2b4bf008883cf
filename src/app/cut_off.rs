//! `kfp-creds cut-off`: from now on a container gets no token, although it runs. Tokens that it already holds
//! stay valid until they expire, unless the whole account is disabled (Google) or the session denied (AWS).

use serde_json::Value;

use super::held::{HeldToken, held};
use super::sessions::{self, Peer};
use crate::config::Environment;
use crate::failure::{Ended, Failure};
use crate::quote;

/// What to cut off.
#[derive(Clone, Copy, Debug)]
pub struct CutOff<'a> {
    /// Limits the cut-off to this session.
    pub session: Option<&'a str>,
    /// An id or the beginning of one, a name, or `pipeline/component`; `None` means all containers.
    pub container: Option<&'a str>,
    /// A service account to disable as well.
    pub account: Option<&'a str>,
    /// Denies the sessions of AWS at IAM as well.
    pub deny_aws: bool,
    /// Without it, only prints what disabling the account, or denying the sessions, would break.
    pub yes: bool,
}

/// Cuts off first, because that is urgent; prints what disabling an account or denying sessions breaks before doing it.
pub async fn cut_off(env: &Environment, ask: CutOff<'_>, print: impl Fn(&str)) -> Result<Ended, Failure> {
    let peers = sessions::find(env, ask.session).await?;
    if peers.is_empty() {
        return Err(Failure::Engine("no session runs".into()));
    }
    let which = ask.container.map_or_else(|| "all".into(), |container| query("container", container));
    let cut = everywhere(&peers, "POST", &format!("/cut-off?{which}"), |text| tell(text, &print)).await;
    let further = further(ask, &which);
    if further.is_empty() {
        return cut;
    }
    if let Err(failure) = &cut {
        print(&failure.to_string());
    }
    for (target, _) in &further {
        everywhere(&peers, "GET", target, |text| print(&plain(text))).await?;
    }
    if !ask.yes {
        let kept: Vec<String> = further.into_iter().map(|(_, kept)| kept).collect();
        return Err(Failure::Usage(kept.join("; ")));
    }
    for (target, _) in &further {
        everywhere(&peers, "POST", target, |text| print(&plain(text))).await?;
    }
    Ok(Ended::Done)
}

/// What to do beyond the cut-off: the request's path, and the line to print without consent.
fn further(ask: CutOff<'_>, which: &str) -> Vec<(String, String)> {
    let disable = ask.account.map(|account| {
        let kept = format!("{} is as it was: add --yes to disable it", quote::name(account));
        (format!("/kill-switch?{}", query("account", account)), kept)
    });
    let deny = ask.deny_aws.then(|| {
        let kept = "the AWS sessions are as they were: add --yes to deny them".to_owned();
        (format!("/deny-aws?{which}"), kept)
    });
    disable.into_iter().chain(deny).collect()
}

/// Asks every session. One that knows the target is enough; one that refuses ends the search.
async fn everywhere(
    peers: &[Peer],
    method: &str,
    target: &str,
    tell: impl Fn(&str),
) -> Result<Ended, Failure> {
    let (mut any, mut last) = (false, None);
    for peer in peers {
        match peer.call(method, target).await {
            Ok(text) => {
                any = true;
                tell(&text);
            }
            // Another session may know it.
            Err(Failure::NotFound(why)) => last = Some(why),
            Err(failure) => return Err(failure),
        }
    }
    match last {
        Some(why) if !any => Err(Failure::Usage(why)),
        _ => Ok(Ended::Done),
    }
}

fn plain(text: &str) -> String {
    text.trim_end().chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

fn tell(text: &str, print: &impl Fn(&str)) {
    let done: Value = serde_json::from_str(text).unwrap_or_default();
    let done = done["cut_off"].as_array().cloned().unwrap_or_default();
    if done.is_empty() {
        print("nothing to cut off: it was cut off before, or no container has an identity");
    }
    for one in done {
        let word = |key: &str| one[key].as_str().unwrap_or_default();
        let (container, task) = (word("container"), word("task"));
        let container = container.get(..12).unwrap_or(container);
        let holds = match serde_json::from_value::<Vec<HeldToken>>(one["tokens"].clone()) {
            Ok(none) if none.is_empty() => "it holds no token".into(),
            Ok(tokens) => format!("tokens that it holds: {}", held(&tokens)),
            Err(_) => "its session is of another version: status says what it holds".into(),
        };
        print(&plain(&format!("cut off {task} ({container}); {holds}")));
    }
}

/// `name=value`, escaped.
pub(super) fn query(name: &str, value: &str) -> String {
    url::form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn what_it_holds_is_told_by_cloud() {
        let said = |tokens: Value| {
            let one = serde_json::json!({ "container": "ab".repeat(32), "task": "etl/load\u{1b}[2J", "tokens": tokens });
            let lines = RefCell::new(Vec::new());
            let print = |line: &str| lines.borrow_mut().push(line.to_owned());
            tell(&serde_json::json!({ "cut_off": [one] }).to_string(), &print);
            lines.into_inner().join("\n")
        };
        let token = |kind: &str, hour: u64| {
            let expires = format!("2026-11-23T{hour}:00:00Z");
            serde_json::json!({ "mint": "00", "kind": kind, "expires": expires, "left": hour })
        };
        let begin = "cut off etl/load?[2J (abababababab); ";
        assert_eq!(said(serde_json::json!([])), format!("{begin}it holds no token"));
        assert_eq!(
            said(serde_json::json!([token("access", 13), token("identity", 12)])),
            format!("{begin}tokens that it holds: 2, the last until 2026-11-23T13:00:00Z (in 13 s)")
        );
        assert_eq!(
            said(serde_json::json!([token("azure-token", 13), token("aws-session", 12)])),
            format!(
                "{begin}tokens that it holds: AWS: 1, the last until 2026-11-23T12:00:00Z (in 12 s); \
                 Azure: 1, the last until 2026-11-23T13:00:00Z (in 13 s)"
            )
        );
        assert!(said(Value::Null).contains("another version"));
    }
}
