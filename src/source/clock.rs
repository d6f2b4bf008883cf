//! Google's clock, learnt from its answers. Signatures made here carry a timestamp, so they use Google's
//! clock if this machine's is some minutes off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

/// The clock difference, in seconds, from which a message and a correction are worthwhile.
pub const NOTABLE: i64 = 30;

/// Beyond this difference the clock is not corrected: the user has to set it.
pub const RECONCILED: Duration = Duration::from_secs(600);

/// Seconds by which the upstream's clock is ahead of this machine's, by its last answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Skew(Arc<AtomicI64>);

impl Skew {
    /// Records an answer's time `there` to a request sent at `here`. The difference is reported once.
    pub(crate) fn note(&self, here: SystemTime, there: SystemTime) {
        static SAID: AtomicBool = AtomicBool::new(false);
        let ahead = -apart(here, there);
        self.0.store(ahead, Ordering::Relaxed);
        if ahead.abs() >= NOTABLE && !SAID.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                seconds = ahead.abs(),
                "this machine's clock and the upstream's differ; set the clock"
            );
        }
    }

    /// Seconds to add to our time for signing; 0 if the clocks agree or differ too much to correct.
    pub(crate) fn ahead(&self) -> i64 {
        let ahead = self.0.load(Ordering::Relaxed);
        let reason = NOTABLE..=i64::try_from(RECONCILED.as_secs()).unwrap_or(i64::MAX);
        if reason.contains(&ahead.abs()) { ahead } else { 0 }
    }

    /// Whether a signature made with the correction `ahead` used a clock now known to be wrong.
    pub(crate) fn moved_from(&self, ahead: i64) -> bool {
        (self.ahead() - ahead).abs() >= NOTABLE
    }

    /// The time to use for signing.
    pub(crate) fn now(&self) -> SystemTime {
        let (now, ahead) = (SystemTime::now(), self.ahead());
        let by = Duration::from_secs(ahead.unsigned_abs());
        let moved = if ahead < 0 { now.checked_sub(by) } else { now.checked_add(by) };
        moved.unwrap_or(now)
    }
}

/// Seconds by which `here` is ahead of `there`.
pub(crate) fn apart(here: SystemTime, there: SystemTime) -> i64 {
    let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    match here.duration_since(there) {
        Ok(ahead) => seconds(ahead),
        Err(behind) => -seconds(behind.duration()),
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7); other forms are obsolete.
pub(crate) fn http_date(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc2822).ok().map(SystemTime::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_answers_are_read() {
        let at = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 784_111_777);
        assert_eq!(http_date("yesterday"), None);
    }

    #[test]
    fn a_clock_skew_of_minutes_is_corrected_one_of_hours_not() {
        let skew = Skew::default();
        for (there, ahead) in
            [(0, 0), (29, 0), (-29, 0), (31, 31), (-590, -590), (600, 600), (601, 0), (-7200, 0)]
        {
            let here = SystemTime::now();
            let by = Duration::from_secs(i64::unsigned_abs(there));
            skew.note(here, if there < 0 { here - by } else { here + by });
            assert_eq!(skew.ahead(), ahead, "{there}");
            assert!((apart(skew.now(), SystemTime::now()) - ahead).abs() <= 1, "{there}");
        }
        assert!(!skew.moved_from(0) && skew.moved_from(-590));
    }
}
