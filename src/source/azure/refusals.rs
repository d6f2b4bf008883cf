//! Why Microsoft Entra gives no token, by the number of its error (`AADSTS7000215`), and what to do about it.
//!
//! Only the number is read: descriptions name users and quote what was sent.

use serde_json::Value;

use crate::failure::Reason;
use crate::quote;
use crate::source::SourceError;
use crate::source::http::fault::{Denial, Fault};

/// The refused request.
#[derive(Debug)]
pub(super) struct Requested<'a> {
    pub(super) client_id: &'a str,
    pub(super) tenant: &'a str,
    pub(super) resource: &'a str,
    pub(super) by: ProofKind<'a>,
}

/// The proof that was sent.
#[derive(Debug)]
pub(super) enum ProofKind<'a> {
    /// The login of the Azure CLI, whose principal is a person.
    Az,
    Secret,
    /// The certificate of this file.
    Certificate(String),
    /// Another issuer's token, with its claims as far as they can be read.
    Federated {
        place: String,
        claims: Option<&'a Value>,
    },
}

/// AADSTS90033: the service is busy, with a status that does not say so.
pub(super) const BUSY: u32 = 90033;

/// AADSTS700024: an assertion is not valid yet, or no longer.
pub(super) const OUT_OF_TIME: u32 = 700_024;

impl Requested<'_> {
    pub(super) fn refused(&self, fault: Fault) -> SourceError {
        let Fault::Denied(denial) = &fault else { return fault.into() };
        if passes(denial) {
            return fault.transient(fault.to_string());
        }
        match denial.entra.and_then(|number| self.explained(number)) {
            Some(why) => SourceError::refused(Reason::advice(format!("{denial}: {why}"))),
            None => fault.into(),
        }
    }

    /// The meaning of an error's number; `None` if it is unknown.
    pub(super) fn explained(&self, number: u32) -> Option<String> {
        let (id, tenant, resource) = (self.client_id, self.tenant, self.resource);
        Some(match number {
            7_000_215 => format!(
                "the client secret of {id} is not accepted; it has to be the secret's value, not its id: make a new one \
                 with `az ad app credential reset --id {id}`"
            ),
            7_000_222 => format!(
                "the client secret of {id} has expired; make a new one with `az ad app credential reset --id {id}`"
            ),
            700_016 => {
                format!("the tenant {tenant} has no application {id}; correct the client id or the tenant")
            }
            7_000_112 => {
                format!("the application {id} is disabled in the tenant {tenant}; ask its administrator")
            }
            90_002 | 900_023 => {
                format!("there is no tenant {tenant}; correct azure.tenant or AZURE_TENANT_ID")
            }
            50_105 | 501_051 => {
                format!("{id} has no role that {resource} requires; ask its administrator for one")
            }
            500_011 | 70_011 | 1_002_012 | 650_057 => {
                format!("the tenant {tenant} has no resource {resource}; correct its name")
            }
            53_003 => "a Conditional Access policy blocks this login; ask the tenant's administrator".into(),
            65_001 => self.consent(),
            50_074 | 50_076 | 50_078 | 50_079 => self.second_factor(),
            50_173 | 70_043 | 700_082 | 700_084 | 50_132 | 50_133 => {
                "the login has expired or was withdrawn; run: az login".into()
            }
            OUT_OF_TIME => self.out_of_time(),
            700_027 | 700_030 | 7_000_214 => self.unknown_certificate(),
            70_021 | 700_021 | 700_211..=700_213 | 700_223 | 700_238 => self.unfederated(),
            _ => return None,
        })
    }

    fn consent(&self) -> String {
        let (id, resource) = (self.client_id, self.resource);
        match self.by {
            ProofKind::Az => format!(
                "the Azure CLI has no consent for {resource}; run: az login --scope {resource}/.default"
            ),
            _ => format!(
                "{id} has no consent for {resource}; an administrator gives it with `az ad app permission \
                 admin-consent --id {id}`"
            ),
        }
    }

    fn second_factor(&self) -> String {
        let resource = self.resource;
        match self.by {
            ProofKind::Az => {
                format!("the login needs a second factor; run: az login --scope {resource}/.default")
            }
            _ => format!(
                "{} needs a second factor, which only a person can give; run: az login, and use the credentials `az`",
                self.client_id
            ),
        }
    }

    fn out_of_time(&self) -> String {
        match &self.by {
            ProofKind::Federated { place, .. } => {
                format!(
                    "the token from {place} has expired, or this machine's clock is wrong; it has to be renewed there"
                )
            }
            _ => "this machine's clock is wrong; set it".into(),
        }
    }

    fn unknown_certificate(&self) -> String {
        let id = self.client_id;
        match &self.by {
            ProofKind::Certificate(place) => format!(
                "the certificate of {place} is not one of {id}'s; add it with `az ad app credential reset --id {id} \
                 --append --cert @FILE`"
            ),
            _ => format!("the proof of {id} is not accepted"),
        }
    }

    /// Names issuer, subject and audience, because each has to match exactly.
    fn unfederated(&self) -> String {
        let id = self.client_id;
        let ProofKind::Federated { place, claims } = &self.by else {
            return format!("the assertion of {id} is not accepted");
        };
        let claim = |name: &str| {
            let claim = claims.map(|claims| &claims[name]);
            let text = claim.and_then(|value| value.as_str().or_else(|| value[0].as_str()));
            text.map_or_else(|| "(none)".into(), quote::name)
        };
        format!(
            "{id} has no federated credential for the token from {place}; add one with `az ad app federated-credential \
             create --id {id}`: issuer {}, subject {}, audience {}",
            claim("iss"),
            claim("sub"),
            claim("aud")
        )
    }
}

fn passes(denial: &Denial) -> bool {
    denial.is_transient() || denial.entra == Some(BUSY) || denial.is("temporarily_unavailable")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(by: ProofKind<'_>, number: u32) -> String {
        let requested =
            Requested { client_id: "app-1", tenant: "tenant-1", resource: "https://storage.azure.com", by };
        let body = json!({
            "error": "invalid_client", "error_codes": [number],
            "error_description": format!("AADSTS{number}: canary"),
        });
        let denial = Denial::read("https://login.example/t", 401, body.to_string().as_bytes());
        match requested.refused(Fault::Denied(denial)) {
            SourceError::Refused(why) => why.to_string(),
            other => panic!("{number}: {other:?}"),
        }
    }

    #[test]
    fn frequent_errors_say_what_to_do() {
        let claims = json!({"iss": "https://tokens.example", "sub": "repo:o/r:ref:x", "aud": ["api://x"]});
        let federated = || ProofKind::Federated { place: "the variable T".into(), claims: Some(&claims) };
        for (by, number, words) in [
            (ProofKind::Secret, 7_000_215, "reset --id app-1"),
            (ProofKind::Secret, 7_000_222, "has expired; make a new one"),
            (ProofKind::Secret, 700_016, "tenant tenant-1 has no application app-1"),
            (ProofKind::Secret, 90_002, "no tenant tenant-1"),
            (ProofKind::Secret, 65_001, "admin-consent --id app-1"),
            (ProofKind::Az, 65_001, "az login --scope https://storage.azure.com/.default"),
            (ProofKind::Az, 50_076, "az login --scope https://storage.azure.com/.default"),
            (ProofKind::Az, 50_079, "second factor"),
            (ProofKind::Az, 700_082, "run: az login"),
            (ProofKind::Secret, 500_011, "no resource https://storage.azure.com"),
            (ProofKind::Certificate("c.pem".into()), 700_027, "certificate of c.pem"),
            (ProofKind::Certificate("c.pem".into()), 700_024, "clock is wrong"),
            (federated(), 700_024, "token from the variable T has expired"),
            (federated(), 70_021, "issuer https://tokens.example, subject repo:o/r:ref:x, audience api://x"),
            (federated(), 700_213, "federated-credential create --id app-1"),
            (ProofKind::Secret, 123_456, "login.example answered 401 invalid_client AADSTS123456"),
        ] {
            let said = said(by, number);
            assert!(said.contains(words) && said.contains(&format!("AADSTS{number}")), "{number}: {said}");
            assert!(!said.contains("canary"), "{said}");
        }
        let unread = said(ProofKind::Federated { place: "f".into(), claims: None }, 700_021);
        assert!(unread.contains("issuer (none)"), "{unread}");
    }

    #[test]
    fn a_busy_service_is_asked_again() {
        let requested = Requested { client_id: "a", tenant: "t", resource: "r", by: ProofKind::Secret };
        for (status, body) in [
            (429, json!({})),
            (503, json!({})),
            (400, json!({"error_codes": [90033]})),
            (400, json!({"error": "temporarily_unavailable"})),
        ] {
            let denial = Denial::read("https://login.example/t", status, body.to_string().as_bytes());
            let outcome = requested.refused(Fault::Denied(denial));
            assert!(matches!(outcome, SourceError::Transient(_)), "{status}: {outcome:?}");
        }
    }
}
