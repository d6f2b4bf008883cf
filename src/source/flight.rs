//! One upstream call, shared by all callers that request the same thing meanwhile.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{FutureExt, Shared};

use crate::source::SourceError;
use crate::token::{AccessToken, Now};

pub(crate) type Outcome<T> = Result<Arc<T>, SourceError>;

/// A call with a shared outcome. Clones wait for the same call, and any clone that is polled drives it, so a
/// waiter that leaves does not cancel it for the others.
pub(crate) struct Flight<T>(Shared<Pin<Box<dyn Future<Output = Outcome<T>> + Send>>>);

impl<T> Flight<T> {
    /// The call starts at the first poll. A panic in it becomes a transient failure: a bug in one exchange
    /// must not poison the key for the rest of the session.
    pub(crate) fn new(work: impl Future<Output = Outcome<T>> + Send + 'static) -> Self
    where
        T: Send + Sync + 'static,
    {
        let guarded = AssertUnwindSafe(work).catch_unwind().map(|ended| {
            ended.unwrap_or_else(|_| {
                tracing::error!("an exchange panicked; please report this");
                Err(SourceError::transient("the exchange broke off inside kfp-creds; please report this"))
            })
        });
        let boxed: Pin<Box<dyn Future<Output = Outcome<T>> + Send>> = Box::pin(guarded);
        Self(boxed.shared())
    }

    /// The outcome, if the call has finished.
    pub(crate) fn finished(&self) -> Option<&Outcome<T>> {
        self.0.peek()
    }

    pub(crate) async fn outcome(self) -> Outcome<T> {
        self.0.await
    }
}

impl<T> Clone for Flight<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for Flight<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flight(finished: {})", self.0.peek().is_some())
    }
}

/// Minimum remaining life for a base token to be used in another upstream call: the call may take as long as
/// a whole mint, and the two clocks may differ a little.
const BASE_FLOOR: Duration = Duration::from_secs(120);

/// The token with which a source itself calls upstream (impersonation). Its last flight serves as the cache.
#[derive(Debug, Default)]
pub(crate) struct BaseToken(Mutex<Option<Flight<AccessToken>>>);

impl BaseToken {
    /// The cached token if it is fresh, else the flight under way, else a new flight from `start`.
    pub(crate) async fn token<F>(&self, start: impl FnOnce() -> F) -> Outcome<AccessToken>
    where
        F: Future<Output = Result<AccessToken, SourceError>> + Send + 'static,
    {
        let flight = {
            let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let usable = last.clone().filter(|flight| match flight.finished() {
                None => true,
                Some(Ok(token)) => token.expires.remaining(Now::read()) >= BASE_FLOOR,
                Some(Err(_)) => false,
            });
            usable.unwrap_or_else(|| {
                let work = start();
                last.insert(Flight::new(async move { work.await.map(Arc::new) })).clone()
            })
        };
        flight.outcome().await
    }

    /// Drops the cached token and any flight under way: they belong to another account.
    pub(crate) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Drops `token` after upstream refused it; keeps a newer one.
    pub(crate) fn forget(&self, token: &Arc<AccessToken>) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = last
            .as_ref()
            .and_then(Flight::finished)
            .is_some_and(|outcome| matches!(outcome, Ok(kept) if Arc::ptr_eq(kept, token)));
        if same {
            *last = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::secret::Secret;
    use crate::token::{Deadline, Scopes};

    fn token(life: u64) -> AccessToken {
        let expires = Deadline::after(Now::read(), Duration::from_secs(life));
        AccessToken::new(Secret::new("base".into()), expires, Scopes::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_base_token_is_fetched_once_and_again_when_it_runs_out() {
        let kept = BaseToken::default();
        let calls = Arc::new(AtomicUsize::new(0));
        let fetch = |calls: &Arc<AtomicUsize>| {
            let calls = calls.clone();
            async move {
                calls.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100)).await;
                Ok(token(3600))
            }
        };
        let (one, two) = tokio::join!(kept.token(|| fetch(&calls)), kept.token(|| fetch(&calls)));
        assert!(Arc::ptr_eq(&one.unwrap(), &two.unwrap()));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        tokio::time::advance(Duration::from_secs(3500)).await;
        let third = kept.token(|| fetch(&calls)).await.unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), 2);
        kept.forget(&third);
        kept.token(|| fetch(&calls)).await.unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_and_a_panic_are_not_kept() {
        let kept = BaseToken::default();
        let failed = kept.token(|| async { Err(SourceError::transient("down")) }).await;
        assert!(matches!(failed, Err(SourceError::Transient(_))));
        let broke = kept.token(|| async { panic!("on purpose") }).await;
        assert!(matches!(broke, Err(SourceError::Transient(_))));
        assert!(kept.token(|| async { Ok(token(3600)) }).await.is_ok());
    }
}
