//! The kill switch of a dedicated service account: it is disabled, which ends every token of it at once.
//!
//! `projects.serviceAccounts.disable` of
//! <https://cloud.google.com/iam/docs/reference/rest/v1/projects.serviceAccounts/disable>. There is no other way
//! to end a service account's token; taking back the token of a user would end the login of this machine, so
//! nothing here ever does that (`docs/THREATS.md`).

use serde_json::json;

use crate::source::SourceError;
use crate::source::impersonate::Iam;
use crate::source::upstream::Fault;

/// `iam.endpoint` is that of the IAM API, not of the IAM Credentials API.
pub(super) async fn disable(iam: &Iam<'_>) -> Result<(), SourceError> {
    let account = iam.account;
    match iam.ask("disable", &json!({})).await? {
        Ok(_) => Ok(()),
        Err(Fault::Denied(denial)) if denial.status == 403 => Err(SourceError::refused(format!(
            "{denial}: {} may not disable {account}; grant it roles/iam.serviceAccountAdmin there, or disable it \
             yourself: gcloud iam service-accounts disable {account}",
            iam.base.email().as_deref().unwrap_or("the host's account"),
        ))),
        Err(Fault::Denied(denial)) if denial.status == 404 => {
            Err(SourceError::refused(format!("{denial}: there is no service account {account}")))
        }
        Err(fault) => Err(fault.into()),
    }
}
