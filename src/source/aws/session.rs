//! A container's session: its name, and AWS's limits on a request for it.

use std::time::Duration;

use crate::cloud::AwsIdentity;
use crate::cloud::sts::{LIFETIMES, LONGEST_POLICY, MOST_POLICIES};
use crate::source::SourceError;
use crate::source::aws::AwsRequest;
use crate::workload::ContainerId;

/// Limits of `AssumeRole` (STS API reference), besides those of [`crate::cloud::sts`].
const LONGEST_NAME: usize = 64;
const SHORTEST_NAME: usize = 2;
const MOST_TAGS: usize = 50;
const LONGEST_TAG: usize = 256;

/// The longest life of a role that another role assumes ("role chaining").
pub(super) const LONGEST_CHAINED: Duration = Duration::from_secs(3600);

/// `RoleSessionName` of a container: `kfp-<component>-<12 digits>`. CloudTrail shows it, and a policy can deny it.
/// A component's name that is too long loses its middle; characters that a session name cannot have become `-`.
pub fn session_name(component: &str, container: &ContainerId) -> String {
    const BEFORE: &str = "kfp-";
    let digits = container.short();
    let clean: String = component.chars().map(|c| if is_of_name(c) { c } else { '-' }).collect();
    if clean.is_empty() {
        return format!("{BEFORE}{digits}");
    }
    let room = LONGEST_NAME - BEFORE.len() - 1 - digits.len();
    format!("{BEFORE}{}-{digits}", fitted(clean, room))
}

/// The value of a session tag: the name of a pipeline or a component, which may be any text. Characters that a tag
/// cannot have become `-`, and so do letters outside ASCII: which of them STS accepts depends on its Unicode version.
pub fn tag_value(text: &str) -> String {
    fitted(text.chars().map(|c| if is_of_tag(c) { c } else { '-' }).collect(), LONGEST_TAG)
}

/// ASCII text without its middle, if it is longer than `room`.
fn fitted(text: String, room: usize) -> String {
    const CUT: &str = "..";
    if text.len() <= room {
        return text;
    }
    let kept = room - CUT.len();
    let (head, tail) = (kept / 2, text.len() - (kept - kept / 2));
    let part = |range: std::ops::Range<usize>| text.get(range).unwrap_or_default();
    format!("{}{CUT}{}", part(0..head), part(tail..text.len()))
}

fn is_of_tag(c: char) -> bool {
    c.is_ascii_alphanumeric() || " _.:/=+-@".contains(c)
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_+=,.@-".contains(c)
}

/// Refuses what AWS would refuse anyway, with a text that names the limit.
pub(super) fn check(ask: &AwsRequest) -> Result<(), SourceError> {
    let AwsIdentity { policy, policy_arns, lifetime, .. } = &*ask.identity;
    let name = &ask.session_name;
    let too = |what: &str| Err(SourceError::refused(what));
    if !(SHORTEST_NAME..=LONGEST_NAME).contains(&name.len()) || !name.chars().all(is_of_name) {
        return too("the name of an AWS session has 2 to 64 letters, digits and _+=,.@-");
    }
    if policy.as_ref().is_some_and(|policy| policy.chars().count() > LONGEST_POLICY) {
        return too(
            "the session policy is longer than the 2048 characters that AWS accepts; make it shorter",
        );
    }
    if policy_arns.len() > MOST_POLICIES {
        return too("AWS accepts at most 10 policy_arns; name fewer");
    }
    if ask.tags.len() > MOST_TAGS {
        return too("AWS accepts at most 50 session tags");
    }
    if ask.tags.iter().any(|(_, value)| value.len() > LONGEST_TAG || !value.chars().all(is_of_tag)) {
        return too("the value of an AWS session tag has at most 256 letters, digits, blanks and _.:/=+-@");
    }
    if !LIFETIMES.contains(&lifetime.as_secs()) {
        return too("the lifetime of an AWS session is from 15m to 12h; correct lifetime");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn container() -> ContainerId {
        ContainerId::parse(&"0123456789abcdef".repeat(4)).unwrap()
    }

    #[test]
    fn a_session_is_named_after_its_container() {
        let of = |component: &str| session_name(component, &container());
        assert_eq!(of("load-data"), "kfp-load-data-0123456789ab");
        assert_eq!(of("Lädt Daten/1"), "kfp-L-dt-Daten-1-0123456789ab");
        assert_eq!(of(""), "kfp-0123456789ab");
        assert_eq!(of("a_+=,.@-b"), "kfp-a_+=,.@-b-0123456789ab");
        let longest = "a".repeat(47);
        assert_eq!(of(&longest), format!("kfp-{longest}-0123456789ab"));
        let long = format!("begin{}end", "-".repeat(200));
        let name = of(&long);
        assert_eq!(name.len(), 64);
        assert!(name.starts_with("kfp-begin-") && name.ends_with("-end-0123456789ab"), "{name}");
        assert_eq!(of(&"é".repeat(100)).len(), 64);
    }

    #[test]
    fn a_tag_has_only_characters_that_aws_accepts() {
        for (given, value) in [
            ("load data: a+b=c@d.e/f_g-h", "load data: a+b=c@d.e/f_g-h"),
            ("a & b; \"c\"\n", "a - b- -c--"),
            ("Lädt", "L-dt"),
            ("", ""),
        ] {
            assert_eq!(tag_value(given), value);
        }
        let long = tag_value(&format!("begin{}end", "é".repeat(300)));
        assert_eq!(long.len(), 256);
        assert!(long.starts_with("begin") && long.ends_with("end") && long.contains(".."), "{long}");
    }

    #[test]
    fn limits_are_named_before_aws_is_asked() {
        let ask = |change: fn(&mut AwsIdentity, &mut AwsRequest)| {
            let mut identity = AwsIdentity::default();
            let name = session_name("a", &container());
            let mut ask = AwsRequest {
                identity: Arc::new(AwsIdentity::default()),
                session_name: name,
                tags: vec![],
                holder: None,
            };
            change(&mut identity, &mut ask);
            ask.identity = Arc::new(identity);
            check(&ask).map_err(|error| error.to_string())
        };
        assert_eq!(ask(|_, _| {}), Ok(()));
        assert_eq!(ask(|identity, _| identity.policy = Some("ä".repeat(2048))), Ok(()));
        for (change, word) in [
            (
                (|identity, _| identity.policy = Some("ä".repeat(2049)))
                    as fn(&mut AwsIdentity, &mut AwsRequest),
                "2048",
            ),
            (|identity, _| identity.policy_arns = vec![String::new(); 11], "policy_arns"),
            (|identity, _| identity.lifetime = Duration::from_secs(899), "15m"),
            (|identity, _| identity.lifetime = Duration::from_secs(43_201), "12h"),
            (|_, ask| ask.session_name = "a".into(), "name"),
            (|_, ask| ask.session_name = "a b".into(), "name"),
            (|_, ask| ask.session_name = "a".repeat(65), "name"),
            (|_, ask| ask.tags = vec![(String::new(), String::new()); 51], "tags"),
            (|_, ask| ask.tags = vec![("a".into(), "b&c".into())], "tag"),
            (|_, ask| ask.tags = vec![("a".into(), "b".repeat(257))], "tag"),
        ] {
            assert!(ask(change).unwrap_err().contains(word), "{word}");
        }
    }
}
