//! Limits how many tokens all containers of an identity together may request per minute.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::workload::Identity;

const MINUTE: Duration = Duration::from_secs(60);

/// Requests of the current minute, by identity. A minute begins with its first request.
#[derive(Debug, Default)]
pub(super) struct Rates(Mutex<HashMap<String, (Instant, u32)>>);

impl Rates {
    /// Counts one request. If the identity's limit for this minute is exceeded, returns how long the minute
    /// still lasts.
    pub(super) fn admit(&self, identity: &Identity, now: Instant) -> Result<(), Duration> {
        let Some(rate) = identity.rate else { return Ok(()) };
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (began, count) = counts.entry(identity.name.clone()).or_insert((now, 0));
        if now.duration_since(*began) >= MINUTE {
            (*began, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        if *count <= rate { Ok(()) } else { Err(MINUTE.saturating_sub(now.duration_since(*began))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_identity_has_a_rate_limit_of_its_own() {
        let rates = Rates::default();
        let admit = |identity| rates.admit(identity, Instant::now());
        let two = Identity { rate: Some(2), ..Identity::default() };
        let other = Identity { name: "other".into(), rate: Some(1), ..Identity::default() };
        let free = Identity { name: "free".into(), ..Identity::default() };
        assert_eq!([(); 3].map(|()| admit(&two)), [Ok(()), Ok(()), Err(MINUTE)]);
        assert!(admit(&other).is_ok() && admit(&other).is_err());
        assert!((0..1000).all(|_| admit(&free).is_ok()));
        tokio::time::advance(MINUTE - Duration::from_secs(7)).await;
        assert_eq!(admit(&two), Err(Duration::from_secs(7)));
        tokio::time::advance(Duration::from_secs(7)).await;
        assert!(admit(&two).is_ok());
    }
}
