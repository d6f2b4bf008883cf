//! What AWS's refusals mean, by their codes alone: the text beside a code may repeat the request.

use crate::failure::Reason;
use crate::quote;
use crate::source::SourceError;
use crate::source::http::fault::{Denial, Fault};

/// The known codes: those of the common errors, and those of the three requests. No other text of an answer is used.
pub(super) const CODES: &[&str] = &[
    "AccessDenied",
    "AccessDeniedException",
    "ExpiredToken",
    "ExpiredTokenException",
    "IDPCommunicationError",
    "IDPRejectedClaim",
    "IncompleteSignature",
    "InternalFailure",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidIdentityToken",
    "InvalidParameterValue",
    "InvalidSignatureException",
    "InvalidToken",
    "MalformedPolicyDocument",
    "MissingAuthenticationToken",
    "OptInRequired",
    "PackedPolicyTooLarge",
    "RegionDisabledException",
    "RequestExpired",
    "RequestLimitExceeded",
    "RequestTimeTooSkewed",
    "ServiceUnavailable",
    "SignatureDoesNotMatch",
    "Throttling",
    "ThrottlingException",
    "UnrecognizedClientException",
    "ValidationError",
];

/// What was refused.
#[derive(Clone, Copy, Debug)]
pub(super) enum What<'a> {
    Assume { role: &'a str, tagged: bool, person: bool, external: bool },
    WebIdentity { role: &'a str },
    Caller,
}

/// Whether a wrong clock is among the reasons.
pub(super) fn may_be_the_clock(denial: &Denial) -> bool {
    let codes =
        ["SignatureDoesNotMatch", "RequestExpired", "RequestTimeTooSkewed", "InvalidSignatureException"];
    codes.iter().any(|code| denial.is(code))
}

/// Why a request with the host's keys failed.
#[derive(Debug)]
pub(super) struct KeyFailure {
    pub(super) error: SourceError,
    /// AWS no longer accepts the keys; other keys may work.
    pub(super) keys_are_over: bool,
}

impl From<SourceError> for KeyFailure {
    fn from(error: SourceError) -> Self {
        Self { error, keys_are_over: false }
    }
}

impl From<KeyFailure> for SourceError {
    fn from(refusal: KeyFailure) -> Self {
        refusal.error
    }
}

/// The same, with what the code says about the keys.
pub(super) fn refusal(fault: Fault, what: &What<'_>) -> KeyFailure {
    KeyFailure { keys_are_over: keys_are_over(&fault), error: refused(fault, what) }
}

/// Whether AWS no longer accepts the keys.
pub(super) fn keys_are_over(fault: &Fault) -> bool {
    let over =
        ["ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException"];
    matches!(fault, Fault::Denied(denial) if over.iter().any(|code| denial.is(code)))
}

/// Whether the cause of a refusal with this code is temporary.
pub(super) fn passes(code: &str) -> bool {
    matches!(
        code,
        "Throttling"
            | "ThrottlingException"
            | "RequestLimitExceeded"
            | "ServiceUnavailable"
            | "InternalFailure"
            | "IDPCommunicationError"
    )
}

pub(super) fn refused(fault: Fault, what: &What<'_>) -> SourceError {
    let Fault::Denied(denial) = &fault else { return fault.into() };
    let code = denial.code.as_deref().unwrap_or_default();
    if passes(code) || fault.is_transient() {
        let request = match what {
            What::Assume { role, .. } | What::WebIdentity { role } => {
                format!("assume the role {}", quote::name(role))
            }
            What::Caller => "say whose the host's keys are".into(),
        };
        return fault.transient(format!(
            "AWS could not handle the request to {request} ({denial}); try again in a moment"
        ));
    }
    let lead = match what {
        What::Assume { role, .. } | What::WebIdentity { role } => {
            format!("AWS does not let the host assume the role {} ({denial})", quote::name(role))
        }
        What::Caller => format!("AWS does not accept the host's keys ({denial})"),
    };
    SourceError::refused(Reason::advice(format!("{lead}: {}", advice(code, what))))
}

fn advice(code: &str, what: &What<'_>) -> String {
    match code {
        "AccessDenied" | "AccessDeniedException" => denied(what),
        "ExpiredToken" | "ExpiredTokenException" => match what {
            What::WebIdentity { .. } => "the token of the other issuer has expired; renew it".into(),
            _ => "the host's own AWS session has expired; log in again".into(),
        },
        "InvalidClientTokenId" | "UnrecognizedClientException" | "InvalidAccessKeyId" | "InvalidToken" => {
            "AWS does not know the host's keys; renew them, and compare the region and the partition (aws, aws-cn, \
             aws-us-gov)"
                .into()
        }
        "SignatureDoesNotMatch" | "IncompleteSignature" | "InvalidSignatureException" => {
            "the secret access key does not belong to the key id, or this machine's clock is wrong".into()
        }
        "MissingAuthenticationToken" => {
            "the request arrived without its signature; a proxy on the way must not change headers".into()
        }
        "RequestExpired" | "RequestTimeTooSkewed" => "set this machine's clock".into(),
        "MalformedPolicyDocument" => "the session policy is not a valid policy; correct policy or policy_arns".into(),
        "PackedPolicyTooLarge" => {
            "the session policy, policy_arns and tags are too large together; make them shorter".into()
        }
        "RegionDisabledException" | "OptInRequired" => {
            "the region's token service is switched off in this account; switch it on, or name another region in [aws]"
                .into()
        }
        "InvalidIdentityToken" | "IDPRejectedClaim" => {
            "AWS does not accept the other issuer's token; compare its issuer and audience with the identity provider in IAM"
                .into()
        }
        "ValidationError" | "InvalidParameterValue" => {
            "AWS does not accept a part of the request; compare the role's ARN, and lifetime with the role's maximum session \
             duration"
                .into()
        }
        _ => "CloudTrail has the details of the refusal".into(),
    }
}

/// AWS does not say which permission is missing; these are the ones that the request needs.
fn denied(what: &What<'_>) -> String {
    let (tagged, person, external) = match what {
        What::Assume { tagged, person, external, .. } => (*tagged, *person, *external),
        What::WebIdentity { .. } => {
            return "the role's trust policy has to allow sts:AssumeRoleWithWebIdentity for this issuer, audience and subject"
                .into();
        }
        What::Caller => return "a policy denies sts:GetCallerIdentity".into(),
    };
    let mut actions = vec!["sts:AssumeRole"];
    actions.extend(tagged.then_some("sts:TagSession"));
    actions.extend(person.then_some("sts:SetSourceIdentity"));
    let (last, rest) = actions.split_last().map_or(("", vec![]), |(last, rest)| (*last, rest.to_vec()));
    let list = if rest.is_empty() { last.to_owned() } else { format!("{} and {last}", rest.join(", ")) };
    let external = if external { "; its condition on sts:ExternalId has to be met" } else { "" };
    format!(
        "the role's trust policy has to allow {list} to the host's user or role, and so has the policy of that user or role{external}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: u16, code: &str, what: &What<'_>) -> SourceError {
        let mut denial = Denial::read("https://sts.amazonaws.com/", status, b"");
        denial.foreign = false;
        denial.code = (!code.is_empty()).then(|| code.to_owned());
        refused(Fault::Denied(denial), what)
    }

    fn assume(tagged: bool, person: bool) -> What<'static> {
        What::Assume { role: "arn:aws:iam::123456789012:role/a", tagged, person, external: false }
    }

    #[test]
    fn every_code_has_a_next_step() {
        for code in CODES {
            let error = told(400, code, &assume(false, false));
            assert!(error.to_string().contains(code) && error.to_string().contains("role/a"), "{error}");
            assert!(!error.to_string().contains("CloudTrail"), "{code} has advice of its own");
        }
        assert!(told(400, "", &assume(false, false)).to_string().contains("CloudTrail"));
    }

    #[test]
    fn a_denial_names_what_the_request_needs() {
        let why = |tagged, person| told(403, "AccessDenied", &assume(tagged, person)).to_string();
        assert!(why(true, true).contains("sts:AssumeRole, sts:TagSession and sts:SetSourceIdentity"));
        assert!(why(true, false).contains("sts:AssumeRole and sts:TagSession"));
        assert!(!why(false, false).contains("sts:TagSession") && !why(false, false).contains("SetSource"));
        assert!(told(403, "AccessDenied", &What::WebIdentity { role: "r" }).to_string().contains("issuer"));
    }

    #[test]
    fn temporary_denials_are_transient() {
        for (status, code) in
            [(400, "Throttling"), (400, "IDPCommunicationError"), (503, ""), (500, "InternalFailure")]
        {
            let error = told(status, code, &assume(false, false));
            assert!(matches!(error, SourceError::Transient(_)), "{error:?}");
        }
    }
}
