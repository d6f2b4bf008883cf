//! Token lifetimes, safe against wrong claims of the issuer and a wrong local clock.

use std::time::{Duration, SystemTime};

use crate::source::clock::RECONCILED;
use crate::source::{SourceError, jwt};
use crate::token::{Deadline, Now};

/// The longest life that Google gives an access token (12 h, by organisation policy). Claims beyond it are
/// cut to it, which also keeps clock arithmetic in range.
pub(super) const LONGEST_LIFE: Duration = Duration::from_secs(43_200);

/// Lifetime of Google's ID tokens.
const ID_TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// Checks a claimed lifetime: zero is an error, and more than Google's maximum is cut.
pub(super) fn life(claimed: Duration) -> Result<Duration, SourceError> {
    if claimed.is_zero() {
        return Err(SourceError::transient(
            "the token that came has already expired; check this machine's clock",
        ));
    }
    Ok(claimed.min(LONGEST_LIFE))
}

/// The expiry of an ID token, from its `exp`. The signature is not checked: the token came over TLS from its
/// issuer, in answer to a request sent at `sent`. `date` is the time by the issuer's clock.
pub(super) fn id_token_expiry(
    token: &str,
    sent: Now,
    date: Option<SystemTime>,
) -> Result<Deadline, SourceError> {
    let end = jwt::unverified_claims(token).and_then(|claims| jwt::expiry(&claims)).ok_or_else(|| {
        SourceError::transient("what came as an ID token has no readable expiry; try again")
    })?;
    let left = remaining(end, sent.wall, date, ID_TOKEN_LIFE);
    Ok(Deadline::after(sent, life(left)?))
}

/// Remaining life of a token that expires at `end` by the server's clock, when our clock shows `here` and the
/// server's `there`. Differences up to [`RECONCILED`] are corrected. The result never exceeds `asked`, so
/// neither a forged expiry nor a slow clock can inflate it.
pub(super) fn remaining(
    end: SystemTime,
    here: SystemTime,
    there: Option<SystemTime>,
    asked: Duration,
) -> Duration {
    let apart = |there: SystemTime| there.duration_since(here).unwrap_or_else(|behind| behind.duration());
    let off = there.map(apart).unwrap_or_default();
    let clock = there.filter(|_| off <= RECONCILED).unwrap_or(here);
    end.duration_since(clock).unwrap_or_default().min(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    #[test]
    fn clocks_are_reconciled_and_no_lifetime_grows() {
        let left = |end, here, there: Option<u64>, asked| {
            remaining(at(end), at(here), there.map(at), Duration::from_secs(asked)).as_secs()
        };
        assert_eq!(left(4600, 1000, Some(1000), 3600), 3600, "clocks agree");
        assert_eq!(left(4600, 1590, Some(1000), 3600), 3600, "ours is ahead: the server's counts");
        assert_eq!(left(4600, 410, Some(1000), 3600), 3600, "ours is behind: the server's counts");
        assert_eq!(left(1300, 1305, Some(1000), 300), 300, "past by our clock, not by the server's");
        assert_eq!(left(4600, 410, None, 3600), 3600, "behind, no date: never more than was asked");
        assert_eq!(left(4600, 1590, None, 3600), 3010, "ahead, no date: what our clock leaves");
        assert_eq!(left(4600, 9000, Some(1000), 3600), 0, "hours apart: no token");
        assert_eq!(left(900, 1000, Some(1000), 3600), 0, "expired when it came");
        assert_eq!(left(90_000_000, 1000, Some(1000), 3600), 3600, "forged into the future");
        assert!(remaining(SystemTime::UNIX_EPOCH, at(0), None, HOUR).is_zero());
    }
}
