//! Records the outcomes of upstream calls, and the account of Google's source.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Mint;
use super::cache::{Cacheable, Generation};
use crate::cloud::Cloud;
use crate::record::metrics::MintOutcome;
use crate::record::{Making, Recorder};
use crate::source::{Pending, Principal, Source, SourceError};
use crate::token::TokenKind;

/// Recent successes and failures of one cloud's source.
#[derive(Clone, Debug, Default)]
pub struct Health {
    pub minted: Option<SystemTime>,
    /// When it last failed to return a token, and why.
    pub failed: Option<(SystemTime, String)>,
}

/// Records the outcomes of upstream calls.
#[derive(Debug, Default)]
pub(super) struct MintLog {
    pub(super) recorder: Recorder,
    pub(super) health: Mutex<BTreeMap<Cloud, Health>>,
    pub(super) principal: watch::Sender<Arc<Principal>>,
    pub(super) generation: Generation,
}

impl MintLog {
    pub(super) async fn of<T: Cacheable>(
        &self,
        kind: TokenKind,
        making: Making,
        call: Pending<'_, Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        let began = Instant::now();
        let result = call.await;
        let outcome = match &result {
            Ok(_) => MintOutcome::Ok,
            Err(SourceError::Transient(_)) => MintOutcome::Transient,
            Err(_) => MintOutcome::Refused,
        };
        self.recorder.minted(kind, outcome, began.elapsed());
        if let Ok(token) = &result {
            // Only the account of Google's source is known here.
            let own = kind.cloud() == Cloud::Google;
            let email = own.then(|| self.principal.borrow().email.clone()).flatten();
            making.made(email.as_deref(), &token.about());
        }
        let mut all = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let health = all.entry(kind.cloud()).or_default();
        match &result {
            Ok(_) => health.minted = Some(SystemTime::now()),
            Err(error) => health.failed = Some((SystemTime::now(), error.to_string())),
        }
        drop(all);
        result
    }

    pub(super) async fn of_google<T: Cacheable>(
        &self,
        kind: TokenKind,
        making: Making,
        source: &dyn Source,
        call: Pending<'_, Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        // The first answer for a login can contain the user's name.
        let asking = async move {
            let result = call.await;
            self.ask_who(source);
            result
        };
        self.of(kind, making, Box::pin(asking)).await
    }

    pub(super) fn ask_who(&self, source: &dyn Source) {
        let said = source.principal();
        let new = self.principal.send_if_modified(|known| {
            let new = **known != said;
            if new {
                *known = Arc::new(said);
            }
            new
        });
        if new {
            self.generation.next();
        }
    }
}

impl Mint {
    /// Changes with everything but time that can change what [`Mint::cached`] and its like give for a request, or
    /// [`Mint::principal`]: a token that is dropped or replaced, another login, a source that reads its files anew.
    /// Read it before what is to be remembered under it.
    pub fn generation(&self) -> u64 {
        self.generation.now()
    }

    /// The state of the source of `cloud`.
    pub fn health(&self, cloud: Cloud) -> Health {
        let all = self.log.health.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&cloud).cloned().unwrap_or_default()
    }

    /// The source's account as of its last refresh (cheap; read on every request).
    pub fn principal(&self) -> Arc<Principal> {
        self.log.principal.borrow().clone()
    }

    /// Changes when the source's account changes or becomes known.
    pub fn principals(&self) -> watch::Receiver<Arc<Principal>> {
        self.log.principal.subscribe()
    }
}
