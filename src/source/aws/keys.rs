//! The host's AWS keys: the formats in which they are read, and their lifetime.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::expiry::{LONGEST_LIFE, remaining};
use crate::source::variables::Variables;
use crate::token::{AwsSession, Deadline, MintId, Now, RenderedReply};

/// Keys, temporary if they have a session token.
pub(crate) struct Keys {
    pub(crate) id: Secret<String>,
    pub(crate) secret: Secret<String>,
    pub(crate) session_token: Option<Secret<String>>,
    /// `None` if they do not expire, or if the expiry is unknown.
    pub(crate) expires: Option<Deadline>,
    /// The twelve digits of the account, if known.
    pub(crate) account: Option<String>,
    /// Whether they belong to an assumed role, once that is known: AWS then limits further roles to an hour.
    pub(crate) of_role: OnceLock<bool>,
    /// The owner of the keys as AWS reports it, once it was asked.
    pub(super) identity: OnceLock<CallerIdentity>,
    /// `aws:userid` of a role's session, if known.
    pub(crate) user_id: Option<String>,
}

/// The owner of keys: the answer of `GetCallerIdentity`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CallerIdentity {
    /// Twelve digits.
    pub account: String,
    /// `arn:aws:sts::123456789012:assumed-role/NAME/SESSION`, or a user's.
    pub arn: String,
}

impl CallerIdentity {
    /// Whether it is an assumed role, whose further roles live for an hour at most.
    pub(super) fn is_role(&self) -> bool {
        self.arn.split(':').nth(5).is_some_and(|resource| resource.starts_with("assumed-role/"))
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys(temporary: {}, expires: {:?})", self.session_token.is_some(), self.expires)
    }
}

/// The JSON of metadata services, of a container's agent, and of `credential_process`. Times are RFC 3339.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct KeysJson {
    pub(super) version: Option<u64>,
    /// `Success`, of the machine's metadata service.
    pub(super) code: Option<String>,
    access_key_id: Option<Secret<String>>,
    secret_access_key: Option<Secret<String>>,
    /// The session token of metadata services.
    token: Option<Secret<String>>,
    /// The session token of commands.
    session_token: Option<Secret<String>>,
    expiration: Option<String>,
    account_id: Option<String>,
}

impl KeysJson {
    /// The keys; `place` is their origin for messages, `now` the time before they were requested.
    pub(super) fn keys(self, place: &str, now: Now) -> Result<Keys, SourceError> {
        let session_token = self.token.or(self.session_token);
        let mut keys = Keys::new(self.access_key_id, self.secret_access_key, session_token, place)?;
        keys.account = self.account_id.filter(|id| is_account_id(id));
        if let Some(end) = self.expiration.filter(|end| !end.is_empty()) {
            let end = moment(&end).ok_or_else(|| {
                SourceError::refused(format!("{place} gave AWS keys whose Expiration is not a time"))
            })?;
            keys = keys.until(end, now, None, LONGEST_LIFE, place)?;
        }
        Ok(keys)
    }
}

impl Keys {
    /// Checks that the parts are there, and that they fit into a request.
    pub(in crate::source) fn new(
        id: Option<Secret<String>>,
        secret: Option<Secret<String>>,
        session_token: Option<Secret<String>>,
        place: &str,
    ) -> Result<Self, SourceError> {
        let full = |part: Option<Secret<String>>| part.filter(|part| !part.expose().is_empty());
        let is_id = |id: &Secret<String>| {
            id.expose().len() <= 128 && id.expose().bytes().all(|b| b.is_ascii_alphanumeric())
        };
        let (Some(id), Some(secret)) = (full(id).filter(is_id), full(secret)) else {
            return Err(SourceError::refused(format!(
                "{place} gave no AWS access key id and secret access key that are understood"
            )));
        };
        let (expires, account, user_id) = (None, None, None);
        let (of_role, identity, session_token) = (OnceLock::new(), OnceLock::new(), full(session_token));
        Ok(Self { id, secret, session_token, expires, account, of_role, identity, user_id })
    }

    /// `AWS_ACCESS_KEY_ID` and the related variables. `aws configure export-credentials` sets
    /// `AWS_CREDENTIAL_EXPIRATION`.
    pub(super) fn of_variables(variables: &Variables) -> Option<Result<Self, SourceError>> {
        let id = variables.secret("AWS_ACCESS_KEY_ID")?;
        let secret = variables.secret("AWS_SECRET_ACCESS_KEY")?;
        let place = "the environment";
        let session = variables.secret("AWS_SESSION_TOKEN");
        let keys = Self::new(Some(id), Some(secret), session, place);
        let end = variables.text("AWS_CREDENTIAL_EXPIRATION").and_then(moment);
        Some(keys.and_then(|keys| match end {
            Some(end) => keys.until(end, Now::read(), None, LONGEST_LIFE, place),
            None => Ok(keys),
        }))
    }

    /// Limits their life: they end at `end` by the issuer's clock, which showed `there` when ours showed `now`, and
    /// live for at most `longest`.
    pub(super) fn until(
        mut self,
        end: SystemTime,
        now: Now,
        there: Option<SystemTime>,
        longest: Duration,
        place: &str,
    ) -> Result<Self, SourceError> {
        let left = remaining(end, now.wall, there, longest);
        if left.is_zero() {
            return Err(SourceError::refused(format!(
                "the AWS keys of {place} have expired; renew them there, or check this machine's clock"
            )));
        }
        self.expires = Some(Deadline::after(now, left));
        Ok(self)
    }

    /// Marks the keys as those of an assumed role.
    pub(super) fn of_role(self) -> Self {
        // Set once for each set of keys; an existing value is the same.
        let _ = self.of_role.set(true);
        self
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        let (one, two) = (self.session_token.as_ref(), other.session_token.as_ref());
        self.id.expose() == other.id.expose() && one.map(Secret::expose) == two.map(Secret::expose)
    }

    /// Whether the keys are temporary: such keys have a session token and an id of this form.
    pub(super) fn is_temporary(&self) -> bool {
        self.session_token.is_some() && self.id.expose().starts_with("ASIA")
    }

    /// The session for a container. `None` unless the keys are temporary and their end is known.
    pub(super) fn session(&self) -> Option<AwsSession> {
        let copy = |text: &Secret<String>| Secret::new(text.expose().clone());
        let expires = self.expires.filter(|_| self.is_temporary())?;
        Some(AwsSession {
            access_key_id: copy(&self.id),
            secret_access_key: copy(&self.secret),
            session_token: copy(self.session_token.as_ref()?),
            expires,
            account: self.account.clone(),
            user_id: self.user_id.clone(),
            id: MintId::random(),
            shown: RenderedReply::default(),
        })
    }
}

/// Whether `text` is an AWS account id: twelve digits.
pub(super) fn is_account_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// A time as AWS's tools write it: RFC 3339, with fractions or without; older ones end in `UTC` or `+0000`.
pub(super) fn moment(text: &str) -> Option<SystemTime> {
    let text = text.trim();
    let usual =
        text.strip_suffix("UTC").or_else(|| text.strip_suffix("+0000")).map(|head| format!("{head}Z"));
    let at = OffsetDateTime::parse(usual.as_deref().unwrap_or(text), &Rfc3339).ok()?;
    (at.unix_timestamp() >= 0).then(|| SystemTime::from(at))
}

/// Milliseconds since the epoch.
pub(super) fn of_millis(millis: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(json: &str) -> Result<Keys, SourceError> {
        serde_json::from_str::<KeysJson>(json).unwrap().keys("the test", Now::read())
    }

    #[test]
    fn times_come_in_several_forms() {
        let wanted = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        for text in [
            "2027-01-15T08:00:00Z",
            "2027-01-15T08:00:00UTC",
            "2027-01-15T08:00:00+0000",
            "2027-01-15T08:00:00+00:00",
            "2027-01-15T09:00:00+01:00",
            "2027-01-15T08:00:00.000Z",
        ] {
            assert_eq!(moment(text), Some(wanted), "{text}");
        }
        for bad in ["", "tomorrow", "2027-01-15", "2027-13-15T08:00:00Z", "1900-01-01T00:00:00Z"] {
            assert_eq!(moment(bad), None, "{bad}");
        }
    }

    #[test]
    fn keys_without_an_end_are_no_session() {
        let session = r#"{"AccessKeyId":"ASIAEXAMPLE","SecretAccessKey":"canary","SessionToken":"canary""#;
        let open = written(&format!("{session}}}")).unwrap();
        assert!(open.is_temporary() && open.session().is_none());
        let whole = written(&format!(r#"{session},"Expiration":"2999-01-01T00:00:00+00:00"}}"#)).unwrap();
        assert!(
            whole.session().is_some_and(|session| session.expires.remaining(Now::read()) <= LONGEST_LIFE)
        );
        assert!(!format!("{whole:?}").contains("canary") && !format!("{whole:?}").contains("ASIA"));
        let lasting = r#"{"AccessKeyId":"AKIDEXAMPLE","SecretAccessKey":"canary","Token":"canary","#;
        let lasting = written(&format!(r#"{lasting}"Expiration":"2999-01-01T00:00:00Z"}}"#)).unwrap();
        assert!(lasting.session().is_none(), "its id is not that of a session");
    }

    #[test]
    fn broken_keys_are_refused_and_not_quoted() {
        for bad in [
            r#"{}"#,
            r#"{"AccessKeyId":"canary"}"#,
            r#"{"AccessKeyId":"","SecretAccessKey":"canary"}"#,
            r#"{"AccessKeyId":"canary\n","SecretAccessKey":"canary"}"#,
            r#"{"AccessKeyId":"canary","SecretAccessKey":"canary","Expiration":"canary"}"#,
            r#"{"AccessKeyId":"canary","SecretAccessKey":"canary","Expiration":"2001-01-01T00:00:00Z"}"#,
        ] {
            let why = written(bad).unwrap_err().to_string();
            assert!(!why.contains("canary"), "{why}");
        }
    }
}
