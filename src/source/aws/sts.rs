//! AWS's Security Token Service (API version 2011-06-15): three requests as forms, signed here, and their answers.

use std::time::Duration;

use hyper::Method;
use url::Url;

use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::aws::denial::{self, CODES, Refusal, What};
use crate::source::aws::endpoint::{self, GLOBAL_REGION};
use crate::source::aws::keys::{Keys, is_account, moment};
use crate::source::aws::sigv4::{Unsigned, host, stamp};
use crate::source::http::client::Upstream;
use crate::source::http::fault::Fault;
use crate::source::http::request::{Answer, Call};
use crate::source::xml::Document;

const VERSION: &str = "2011-06-15";
const FORM: &str = "application/x-www-form-urlencoded";
/// What STS gives where no `DurationSeconds` is sent.
const USUAL_LIFE: Duration = Duration::from_secs(3600);

/// The service of one region.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sts<'a> {
    pub(super) upstream: &'a Upstream,
    /// Replaces the region's address.
    pub(super) base: Option<&'a str>,
    pub(super) region: Option<&'a str>,
}

/// A role to assume, and how.
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

/// Who signs: the answer of `GetCallerIdentity`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Caller {
    /// Twelve digits.
    pub account: String,
    /// `arn:aws:sts::123456789012:assumed-role/NAME/SESSION`, or a user's.
    pub arn: String,
}

impl Caller {
    /// Whether it is an assumed role, whose further roles live for an hour at most.
    pub(super) fn is_role(&self) -> bool {
        self.arn.split(':').nth(5).is_some_and(|resource| resource.starts_with("assumed-role/"))
    }
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
    pub(super) async fn assume(&self, keys: &Keys, ask: &Assume<'_>) -> Result<Keys, Refusal> {
        let answer = self.signed(keys, &ask.fields("AssumeRole")).await;
        let answer = answer.map_err(|fault| denial::refusal(fault, &ask.what()))?;
        Ok(granted(&answer, "AssumeRole", ask.duration)?)
    }

    /// `AssumeRoleWithWebIdentity`: `token` is another issuer's, and the request needs no signature.
    pub(super) async fn assume_with(
        &self,
        token: &Secret<String>,
        ask: &Assume<'_>,
    ) -> Result<Keys, SourceError> {
        let fields = ask.fields("AssumeRoleWithWebIdentity");
        let mut pairs: Vec<(&str, &str)> =
            fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        pairs.push(("WebIdentityToken", token.expose()));
        let url = self.url();
        let answer = self.upstream.send(&Self::call(&url, Call::form(&url, &pairs).body)).await;
        let answer = answer.map_err(|fault| denial::refused(fault, &What::WebIdentity { role: ask.role }))?;
        granted(&answer, "AssumeRoleWithWebIdentity", ask.duration)
    }

    /// `GetCallerIdentity`, which needs no permission.
    pub(super) async fn caller(&self, keys: &Keys) -> Result<Caller, SourceError> {
        let fields = [("Action", "GetCallerIdentity"), ("Version", VERSION)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let answer =
            self.signed(keys, &fields).await.map_err(|fault| denial::refused(fault, &What::Caller))?;
        let document = read(&answer)?;
        let text = |name: &str| {
            let path = format!("GetCallerIdentityResponse/GetCallerIdentityResult/{name}");
            document.text(&path).map(|text| text.expose().clone())
        };
        let fits = |arn: &String| arn.len() <= 2048 && arn.bytes().all(|b| b.is_ascii_graphic());
        match (text("Account").filter(|id| is_account(id)), text("Arn").filter(fits)) {
            (Some(account), Some(arn)) => Ok(Caller { account, arn }),
            _ => Err(not_understood(&answer)),
        }
    }

    fn url(&self) -> String {
        let base =
            self.base.map_or_else(|| endpoint::sts(self.region), |base| base.trim_end_matches('/').into());
        format!("{base}/")
    }

    fn call(url: &str, body: Secret<String>) -> Call<'_> {
        let headers = &[("accept", "application/xml")];
        Call { body, headers, codes: CODES, content_type: FORM, ..Call::bare(Method::POST, url) }
    }

    /// Sends a signed request. One that was signed by a clock that the answer shows to be wrong is signed again.
    async fn signed(&self, keys: &Keys, fields: &[(String, String)]) -> Result<Answer, Fault> {
        let ahead = self.upstream.skew().ahead();
        match self.signed_now(keys, fields).await {
            Err(Fault::Denied(denial))
                if denial::may_be_the_clock(&denial) && self.upstream.skew().moved_from(ahead) =>
            {
                self.signed_now(keys, fields).await
            }
            outcome => outcome,
        }
    }

    async fn signed_now(&self, keys: &Keys, fields: &[(String, String)]) -> Result<Answer, Fault> {
        let url = self.url();
        let unfit = || Fault::unfit(&url, "this endpoint or these keys do not fit into a request");
        let parsed = Url::parse(&url).map_err(|_| unfit())?;
        let host = host(&parsed).ok_or_else(unfit)?;
        let stamp = Secret::new(stamp(self.upstream.skew().now()));
        let pairs: Vec<(&str, &str)> =
            fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut call = Self::call(&url, Call::form(&url, &pairs).body);
        // Sorted by name, as signing requires.
        let mut headers = vec![("content-type", FORM), ("host", &host), ("x-amz-date", stamp.expose())];
        let session = keys.session_token.as_ref().map(|token| ("x-amz-security-token", token));
        headers.extend(session.map(|(name, token)| (name, token.expose().as_str())));
        let request = Unsigned {
            method: "POST",
            service: "sts",
            region: self.region.unwrap_or(GLOBAL_REGION),
            url: &parsed,
            headers: &headers,
            body: call.body.expose().as_bytes(),
        };
        let authorization = request.authorization(stamp.expose(), keys);
        call = call.named("authorization", &authorization).map_err(|_| unfit())?;
        call = call.named("x-amz-date", &stamp).map_err(|_| unfit())?;
        if let Some((name, token)) = session {
            call = call.named(name, token).map_err(|_| unfit())?;
        }
        self.upstream.send(&call).await
    }
}

fn read(answer: &Answer) -> Result<Document, SourceError> {
    Document::read(answer.bytes().expose()).ok_or_else(|| not_understood(answer))
}

fn not_understood(answer: &Answer) -> SourceError {
    let page = answer.text().is_some_and(|text| text.to_ascii_lowercase().contains("<html"));
    let hint = if page { ", but a web page: does this network want a login?" } else { "" };
    SourceError::transient(format!("{} gave an answer that is not understood{hint}", answer.host))
}

/// The session in an answer, which is a role's.
fn granted(answer: &Answer, action: &str, asked: Option<Duration>) -> Result<Keys, SourceError> {
    let document = read(answer)?;
    let path = |name: &str| format!("{action}Response/{action}Result/{name}");
    let credential = |name: &str| document.text(&path(&format!("Credentials/{name}")));
    let copy = |name: &str| credential(name).map(|text| Secret::new(text.expose().clone()));
    let end = credential("Expiration").and_then(|end| moment(end.expose()));
    let end = end.ok_or_else(|| not_understood(answer))?;
    let keys = Keys::new(copy("AccessKeyId"), copy("SecretAccessKey"), copy("SessionToken"), &answer.host)?;
    let mut keys =
        keys.until(end, answer.sent, answer.date, asked.unwrap_or(USUAL_LIFE), &answer.host)?.of_role();
    if !keys.is_temporary() {
        return Err(not_understood(answer));
    }
    let arn = document.text(&path("AssumedRoleUser/Arn"));
    let account = arn.and_then(|arn| arn.expose().split(':').nth(4)).filter(|id| is_account(id));
    keys.account = account.map(str::to_owned);
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_has_what_was_asked_and_no_more() {
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
    fn a_caller_is_a_role_by_its_arn() {
        let of = |arn: &str| Caller { account: "123456789012".into(), arn: arn.into() }.is_role();
        assert!(of("arn:aws:sts::123456789012:assumed-role/a/b"));
        assert!(
            !of("arn:aws:iam::123456789012:user/assumed-role/b") && !of("") && !of("arn:aws:iam::1:root")
        );
    }
}
