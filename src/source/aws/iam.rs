//! AWS's Identity and Access Management (API version 2010-05-08): one request, which denies sessions of a role. A
//! session cannot be taken back, but the policies of its role are read at every request that it makes.

use ring::digest::{SHA256, digest};
use serde_json::json;

use crate::failure::Reason;
use crate::quote::{self, hex};
use crate::source::SourceError;
use crate::source::aws::Deny;
use crate::source::aws::denial::{KeyFailure, keys_are_over, may_be_the_clock, passes};
use crate::source::aws::endpoint;
use crate::source::aws::keys::Keys;
use crate::source::aws::query::QueryService;
use crate::source::http::client::Upstream;
use crate::source::http::fault::{Denial, Fault};

const VERSION: &str = "2010-05-08";
/// The sum of all inline policies of a role, in characters (IAM's quotas).
const LARGEST: usize = 10_240;

/// The known codes: those of the common errors, and those of `PutRolePolicy`.
const CODES: &[&str] = &[
    "AccessDenied",
    "AccessDeniedException",
    "ConcurrentModification",
    "ExpiredToken",
    "IncompleteSignature",
    "InternalFailure",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "LimitExceeded",
    "MalformedPolicyDocument",
    "NoSuchEntity",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "ServiceFailure",
    "ServiceUnavailable",
    "SignatureDoesNotMatch",
    "Throttling",
    "UnmodifiableEntity",
    "UnrecognizedClientException",
    "ValidationError",
];

impl Deny {
    /// The policy's name, the same for the same sessions, so that a repetition changes nothing.
    pub fn policy_name(&self) -> String {
        let all = self.user_ids.join("\n");
        let digest = hex(digest(&SHA256, all.as_bytes()).as_ref());
        format!("kfp-creds-cut-off-{}", digest.get(..16).unwrap_or(&digest))
    }

    /// Denies everything to these sessions, and nothing to any other session of the role.
    pub fn policy(&self) -> String {
        json!({ "Version": "2012-10-17", "Statement": [{
            "Effect": "Deny", "Action": "*", "Resource": "*",
            "Condition": { "StringEquals": { "aws:userid": self.user_ids } },
        }]})
        .to_string()
    }

    /// The role's name without its path, as IAM requires.
    pub fn role_name(&self) -> &str {
        self.role.rsplit('/').next().unwrap_or(&self.role)
    }
}

/// `PutRolePolicy`. `base` replaces the address of the partition's service.
pub(super) async fn deny(
    upstream: &Upstream,
    base: Option<&str>,
    keys: &Keys,
    ask: &Deny,
) -> Result<(), KeyFailure> {
    let policy = ask.policy();
    if policy.len() > LARGEST {
        return Err(SourceError::refused(format!(
            "{} sessions do not fit into a policy of a role; name their containers one by one",
            ask.user_ids.len()
        ))
        .into());
    }
    let (usual, region) = endpoint::iam(&ask.role);
    let url = match base.map(str::to_owned).or(usual) {
        Some(base) => format!("{}/", base.trim_end_matches('/')),
        None => {
            return Err(SourceError::refused(Reason::advice(
                "the address of IAM in this partition is unknown; set endpoints.aws_iam",
            ))
            .into());
        }
    };
    let service = QueryService { upstream, url: &url, name: "iam", region, codes: CODES };
    let name = ask.policy_name();
    let fields = [
        ("Action", "PutRolePolicy"),
        ("Version", VERSION),
        ("RoleName", ask.role_name()),
        ("PolicyName", &name),
        ("PolicyDocument", &policy),
    ];
    match service.signed(keys, &fields).await {
        Ok(_) => Ok(()),
        Err(fault) => {
            Err(KeyFailure { keys_are_over: keys_are_over(&fault), error: refused(fault, &ask.role) })
        }
    }
}

fn refused(fault: Fault, role: &str) -> SourceError {
    let Fault::Denied(denial) = &fault else { return fault.into() };
    let code = denial.code.as_deref().unwrap_or_default();
    let role = quote::name(role);
    if passes(code) || matches!(code, "ServiceFailure" | "ConcurrentModification") || denial.is_transient() {
        return fault.transient(format!(
            "AWS could not handle the request to put a policy on the role {role} ({denial}); try again in a moment"
        ));
    }
    let why = advice(denial, code);
    SourceError::refused(Reason::advice(format!(
        "AWS does not let the host put a policy on the role {role} ({denial}): {why}"
    )))
}

fn advice(denial: &Denial, code: &str) -> &'static str {
    match code {
        "AccessDenied" | "AccessDeniedException" => {
            "the host's user or role needs the permission iam:PutRolePolicy on that role, and no boundary or policy of \
             the organisation may deny it"
        }
        "NoSuchEntity" => {
            "the host's account has no such role; if it was deleted, its sessions ended with it"
        }
        "LimitExceeded" => {
            "the role's inline policies are at their limit of 10 240 characters; delete those named kfp-creds-cut-off-… \
             whose sessions have ended"
        }
        "UnmodifiableEntity" => {
            "an AWS service owns this role, and nobody else changes it; end the sessions where the role is managed (such \
             as IAM Identity Center)"
        }
        "ExpiredToken" => "the host's own AWS session has expired; log in again",
        "InvalidClientTokenId" | "UnrecognizedClientException" => {
            "AWS does not know the host's keys; renew them, and compare the partition (aws, aws-cn, aws-us-gov)"
        }
        _ if may_be_the_clock(denial) || code == "IncompleteSignature" => {
            "the secret access key does not belong to the key id, or this machine's clock is wrong"
        }
        _ => "CloudTrail has the details of the refusal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(user_ids: &[&str]) -> Deny {
        let role = "arn:aws:iam::123456789012:role/team/loader".into();
        Deny { role, user_ids: user_ids.iter().map(|id| (*id).to_owned()).collect() }
    }

    #[test]
    fn a_policy_denies_only_the_named_sessions() {
        let deny = of(&["AROAEXAMPLE:kfp-a-1", "AROAEXAMPLE:kfp-b-2"]);
        let policy: serde_json::Value = serde_json::from_str(&deny.policy()).unwrap();
        let statement = &policy["Statement"][0];
        assert_eq!(policy["Statement"].as_array().unwrap().len(), 1);
        assert_eq!((&statement["Effect"], &statement["Action"]), (&json!("Deny"), &json!("*")));
        let named =
            json!({ "StringEquals": { "aws:userid": ["AROAEXAMPLE:kfp-a-1", "AROAEXAMPLE:kfp-b-2"] } });
        assert_eq!(statement["Condition"], named);
        assert_eq!(deny.role_name(), "loader");
    }

    #[test]
    fn another_cut_off_never_replaces_a_policy() {
        let (one, other) = (of(&["A:kfp-a-1"]), of(&["A:kfp-a-2"]));
        assert_eq!(one.policy_name(), of(&["A:kfp-a-1"]).policy_name());
        assert_ne!(one.policy_name(), other.policy_name());
        assert!(one.policy_name().len() <= 128);
    }

    #[test]
    fn every_code_has_a_next_step() {
        for code in CODES {
            let mut denial = Denial::read("https://iam.amazonaws.com/", 400, b"");
            denial.foreign = false;
            denial.code = Some((*code).to_owned());
            let error = refused(Fault::Denied(denial), "arn:aws:iam::123456789012:role/a");
            assert!(error.to_string().contains(code) && error.to_string().contains("role/a"), "{error}");
            let unexplained = error.to_string().contains("CloudTrail");
            assert_eq!(
                unexplained,
                matches!(*code, "ValidationError" | "MalformedPolicyDocument"),
                "{error}"
            );
        }
    }
}
