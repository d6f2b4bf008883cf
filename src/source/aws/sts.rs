//! AWS's Security Token Service (API version 2011-06-15): three requests as forms, signed here, and their answers.

use std::time::Duration;

use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::aws::denial::{self, CODES, KeyFailure, What};
use crate::source::aws::endpoint::{self, GLOBAL_REGION};
use crate::source::aws::keys::{CallerIdentity, Keys, is_account_id, moment};
use crate::source::aws::query::{QueryService, not_understood, read};
use crate::source::http::client::Upstream;
use crate::source::http::request::Answer;

const VERSION: &str = "2011-06-15";
/// The lifetime of a session if no `DurationSeconds` is sent.
const USUAL_LIFE: Duration = Duration::from_secs(3600);

/// The service of one region.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sts<'a> {
    pub(super) upstream: &'a Upstream,
    /// Replaces the region's address.
    pub(super) base: Option<&'a str>,
    pub(super) region: Option<&'a str>,
}

/// A role to assume, with the parameters of the request.
#[derive(Clone, Debug, Default)]
pub(super) struct Assume<'a> {
    pub(super) role: &'a str,
    pub(super) session_name: &'a str,
    pub(super) duration: Option<Duration>,
    pub(super) policy: Option<&'a str>,
    pub(super) policy_arns: &'a [String],
    pub(super) tags: &'a [(String, String)],
    pub(super) source_identity: Option<&'a str>,
    pub(super) external_id: Option<&'a str>,
}

impl Assume<'_> {
    fn fields(&self, action: &str) -> Vec<(String, String)> {
        let mut fields = vec![
            ("Action".to_owned(), action.to_owned()),
            ("Version".to_owned(), VERSION.to_owned()),
            ("RoleArn".to_owned(), self.role.to_owned()),
            ("RoleSessionName".to_owned(), self.session_name.to_owned()),
        ];
        let one = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        fields.extend(self.duration.map(|life| one("DurationSeconds", &life.as_secs().to_string())));
        fields.extend(self.policy.map(|policy| one("Policy", policy)));
        for (number, arn) in (1..).zip(self.policy_arns) {
            fields.push((format!("PolicyArns.member.{number}.arn"), arn.clone()));
        }
        for (number, (key, value)) in (1..).zip(self.tags) {
            fields.push((format!("Tags.member.{number}.Key"), key.clone()));
            fields.push((format!("Tags.member.{number}.Value"), value.clone()));
        }
        fields.extend(self.source_identity.map(|person| one("SourceIdentity", person)));
        fields.extend(self.external_id.map(|id| one("ExternalId", id)));
        fields
    }

    fn what(&self) -> What<'_> {
        What::Assume {
            role: self.role,
            tagged: !self.tags.is_empty(),
            person: self.source_identity.is_some(),
            external: self.external_id.is_some(),
        }
    }
}

impl Sts<'_> {
    /// `AssumeRole`, with the host's keys.
    pub(super) async fn assume(&self, keys: &Keys, ask: &Assume<'_>) -> Result<Keys, KeyFailure> {
        let fields = ask.fields("AssumeRole");
        let answer = self.service(&self.url()).signed(keys, &pairs(&fields)).await;
        let answer = answer.map_err(|fault| denial::refusal(fault, &ask.what()))?;
        Ok(granted(&answer, "AssumeRole", ask)?)
    }

    /// `AssumeRoleWithWebIdentity`: `token` is another issuer's, and the request needs no signature.
    pub(super) async fn assume_with(
        &self,
        token: &Secret<String>,
        ask: &Assume<'_>,
    ) -> Result<Keys, SourceError> {
        let fields = ask.fields("AssumeRoleWithWebIdentity");
        let mut pairs = pairs(&fields);
        pairs.push(("WebIdentityToken", token.expose()));
        let answer = self.service(&self.url()).plain(&pairs).await;
        let answer = answer.map_err(|fault| denial::refused(fault, &What::WebIdentity { role: ask.role }))?;
        granted(&answer, "AssumeRoleWithWebIdentity", ask)
    }

    /// `GetCallerIdentity`, which needs no permission.
    pub(super) async fn caller(&self, keys: &Keys) -> Result<CallerIdentity, SourceError> {
        let fields = [("Action", "GetCallerIdentity"), ("Version", VERSION)];
        let answer = self.service(&self.url()).signed(keys, &fields).await;
        let answer = answer.map_err(|fault| denial::refused(fault, &What::Caller))?;
        let document = read(&answer)?;
        let text = |name: &str| {
            let path = format!("GetCallerIdentityResponse/GetCallerIdentityResult/{name}");
            document.text(&path).map(|text| text.expose().clone())
        };
        let fits = |arn: &String| arn.len() <= 2048 && arn.bytes().all(|b| b.is_ascii_graphic());
        match (text("Account").filter(|id| is_account_id(id)), text("Arn").filter(fits)) {
            (Some(account), Some(arn)) => Ok(CallerIdentity { account, arn }),
            _ => Err(not_understood(&answer)),
        }
    }

    fn url(&self) -> String {
        let base =
            self.base.map_or_else(|| endpoint::sts(self.region), |base| base.trim_end_matches('/').into());
        format!("{base}/")
    }

    fn service<'a>(&'a self, url: &'a str) -> QueryService<'a> {
        let region = self.region.unwrap_or(GLOBAL_REGION);
        QueryService { upstream: self.upstream, url, name: "sts", region, codes: CODES }
    }
}

fn pairs(fields: &[(String, String)]) -> Vec<(&str, &str)> {
    fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// The role's session in an answer.
fn granted(answer: &Answer, action: &str, ask: &Assume<'_>) -> Result<Keys, SourceError> {
    let document = read(answer)?;
    let path = |name: &str| format!("{action}Response/{action}Result/{name}");
    let credential = |name: &str| document.text(&path(&format!("Credentials/{name}")));
    let copy = |name: &str| credential(name).map(|text| Secret::new(text.expose().clone()));
    let end = credential("Expiration").and_then(|end| moment(end.expose()));
    let end = end.ok_or_else(|| not_understood(answer))?;
    let keys = Keys::new(copy("AccessKeyId"), copy("SecretAccessKey"), copy("SessionToken"), &answer.host)?;
    let mut keys = keys
        .until(end, answer.sent, answer.date, ask.duration.unwrap_or(USUAL_LIFE), &answer.host)?
        .of_role();
    if !keys.is_temporary() {
        return Err(not_understood(answer));
    }
    let arn = document.text(&path("AssumedRoleUser/Arn"));
    let account = arn.and_then(|arn| arn.expose().split(':').nth(4)).filter(|id| is_account_id(id));
    keys.account = account.map(str::to_owned);
    let user = document.text(&path("AssumedRoleUser/AssumedRoleId")).map(|id| id.expose().clone());
    keys.user_id = user.filter(|id| is_user_id(id, ask.session_name));
    Ok(keys)
}

/// `aws:userid` of a role's session: the role's id, a colon, and the session's name.
fn is_user_id(text: &str, session_name: &str) -> bool {
    let role = text.strip_suffix(session_name).and_then(|head| head.strip_suffix(':'));
    role.is_some_and(|id| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_form_has_only_the_requested_fields() {
        let ask = Assume { role: "r", session_name: "n", ..Assume::default() };
        let names: Vec<_> = ask.fields("AssumeRole").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["Action", "Version", "RoleArn", "RoleSessionName"]);
        let (arns, tags) = (["a".to_owned(), "b".to_owned()], [("k".to_owned(), "v".to_owned())]);
        let full = Assume {
            duration: Some(Duration::from_secs(900)),
            policy: Some("{}"),
            policy_arns: &arns,
            tags: &tags,
            source_identity: Some("me"),
            external_id: Some("id"),
            ..ask
        };
        let fields = full.fields("AssumeRole");
        for (name, value) in [
            ("DurationSeconds", "900"),
            ("Policy", "{}"),
            ("PolicyArns.member.2.arn", "b"),
            ("Tags.member.1.Key", "k"),
            ("Tags.member.1.Value", "v"),
            ("SourceIdentity", "me"),
            ("ExternalId", "id"),
        ] {
            assert!(fields.contains(&(name.to_owned(), value.to_owned())), "{name}");
        }
    }

    #[test]
    fn a_session_s_user_id_ends_in_its_name() {
        assert!(is_user_id("AROAEXAMPLE:kfp-load-1", "kfp-load-1"));
        for other in
            ["AROAEXAMPLE:kfp-load-2", "kfp-load-1", ":kfp-load-1", "A*:kfp-load-1", "A:B:kfp-load-1"]
        {
            assert!(!is_user_id(other, "kfp-load-1"), "{other}");
        }
    }

    #[test]
    fn a_caller_is_a_role_by_its_arn() {
        let of = |arn: &str| CallerIdentity { account: "123456789012".into(), arn: arn.into() }.is_role();
        assert!(of("arn:aws:sts::123456789012:assumed-role/a/b"));
        assert!(
            !of("arn:aws:iam::123456789012:user/assumed-role/b") && !of("") && !of("arn:aws:iam::1:root")
        );
    }
}
