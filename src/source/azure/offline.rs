//! Tokens without Entra: JWTs in the format of Entra's, signed by the session's key; each names its container.
//!
//! Emulators of Azure's services (`azurite --oauth basic`) accept them; Azure does not.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::cloud::NIL_UUID;
use crate::source::azure::AzureRequest;
use crate::source::signer::Signer;
use crate::source::{SourceError, jwt};
use crate::token::{AzureToken, Deadline, MintId, Now, RenderedReply};

const LIFE: u64 = 3600;

#[derive(Debug)]
pub(super) struct OfflineEntra {
    pub(super) signer: Arc<Signer>,
    pub(super) tenant: Option<String>,
}

impl OfflineEntra {
    pub(super) fn token(
        &self,
        ask: &AzureRequest,
        client_id: Option<&str>,
    ) -> Result<AzureToken, SourceError> {
        let now = Now::read();
        let issued = jwt::seconds(now.wall);
        let tenant = self.tenant.as_deref().unwrap_or(NIL_UUID);
        let client_id = client_id.unwrap_or(NIL_UUID);
        let holder = ask.holder.as_ref().map_or(NIL_UUID, |holder| holder.as_str());
        let value = self.signer.token(&json!({
            "iss": format!("https://sts.windows.net/{tenant}/"), "aud": ask.resource, "tid": tenant,
            "appid": client_id, "idtyp": "app", "oid": holder, "sub": holder, "ver": "1.0",
            "iat": issued, "nbf": issued, "exp": issued + LIFE, "uti": MintId::random().to_string(),
        }))?;
        Ok(AzureToken {
            value,
            expires: Deadline::after(now, Duration::from_secs(LIFE)),
            resource: ask.resource.clone(),
            client_id: Some(client_id.to_owned()),
            id: MintId::random(),
            shown: RenderedReply::default(),
        })
    }
}
