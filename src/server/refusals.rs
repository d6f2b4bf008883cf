//! Shows on the terminal which tokens are refused or delayed, and why: users do not look for "log in again" in a
//! container's log.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::cloud::Cloud;
use crate::console::{Console, Line};

/// How many reasons are shown for one cloud. Some name the resource, which a container chose: one that keeps
/// asking for new resources must fill neither the terminal nor the memory.
const MOST: usize = 32;

/// A line says at most once in this time that a cloud mints no tokens, whatever is minted in between: some of a
/// cloud's tokens may fail for long while others are minted.
const OUTAGE_AGAIN: Duration = Duration::from_secs(300);

/// Shows each reason once, and again only after a token of the same cloud was minted: clients retry.
#[derive(Debug)]
pub(super) struct Refusals {
    console: Console,
    shown: Mutex<BTreeMap<Cloud, Shown>>,
}

/// What was shown for one cloud.
#[derive(Debug, Default)]
struct Shown {
    /// Since its last token.
    reasons: HashSet<String>,
    /// When a line last said that tokens are delayed.
    delayed: Option<Instant>,
    /// No line has said yet that this is over.
    outage: bool,
}

impl Refusals {
    pub(super) fn new(console: Console) -> Self {
        Self { console, shown: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Cloud, Shown>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `why` comes from the source.
    pub(super) fn tell(&self, cloud: Cloud, caller: &str, why: &str) {
        let mut shown = self.lock();
        let reasons = &mut shown.entry(cloud).or_default().reasons;
        if reasons.len() < MOST && reasons.insert(why.to_owned()) {
            self.console.say(Line::Refused { what: &format!("a token for {caller}"), why });
        }
    }

    /// A fault that may pass keeps a caller from its token. `why` comes from the source. While the reason is not known
    /// yet, because a mint takes long, there is nothing to tell.
    pub(super) fn tell_delay(&self, cloud: Cloud, caller: &str, why: &str) {
        let mut all = self.lock();
        let shown = all.entry(cloud).or_default();
        let now = Instant::now();
        if shown.delayed.is_none_or(|last| now.duration_since(last) >= OUTAGE_AGAIN) {
            (shown.delayed, shown.outage) = (Some(now), true);
            self.console.notice(format!("no token for {caller} yet: {why}"));
        }
    }

    /// A token of `cloud` was minted, so every reason for that cloud may be shown again.
    pub(super) fn over(&self, cloud: Cloud) {
        if let Some(shown) = self.lock().get_mut(&cloud) {
            shown.reasons.clear();
        }
        self.delay_over(cloud);
    }

    /// A caller got a token of `cloud`, which may have been minted long ago: it resolves no refusal.
    pub(super) fn delay_over(&self, cloud: Cloud) {
        if self.lock().get_mut(&cloud).is_some_and(|shown| std::mem::take(&mut shown.outage)) {
            self.console.notice(format!("{cloud}: tokens are minted again"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::*;
    use crate::console::OutputForm;

    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<u8>>>);

    impl Write for Heard {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reason_is_printed_once_until_it_is_resolved() {
        let heard = Heard::default();
        let refusals = Refusals::new(Console::new(OutputForm::Quiet, heard.clone()));
        let count = || String::from_utf8(heard.0.lock().unwrap().clone()).unwrap().lines().count();
        refusals.tell(Cloud::Aws, "a", "log in again");
        refusals.tell(Cloud::Aws, "b", "log in again");
        assert_eq!(count(), 1);
        refusals.tell(Cloud::Aws, "b", "not allowed");
        assert_eq!(count(), 2);
        refusals.over(Cloud::Azure);
        refusals.delay_over(Cloud::Aws);
        refusals.tell(Cloud::Aws, "a", "log in again");
        assert_eq!(count(), 2, "neither another cloud nor an old token resolves this");
        refusals.over(Cloud::Aws);
        refusals.tell(Cloud::Aws, "a", "log in again");
        assert_eq!(count(), 3);
        let text = String::from_utf8(heard.0.lock().unwrap().clone()).unwrap();
        assert!(text.starts_with("kfp-creds: refused       a token for a: log in again\n"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_shown_once_and_so_is_its_end() {
        let heard = Heard::default();
        let refusals = Refusals::new(Console::new(OutputForm::Quiet, heard.clone()));
        let lines = || {
            let text = String::from_utf8(std::mem::take(&mut *heard.0.lock().unwrap())).unwrap();
            text.lines().map(String::from).collect::<Vec<_>>()
        };
        refusals.over(Cloud::Google);
        assert_eq!(lines(), [""; 0], "there was no outage");
        refusals.tell_delay(Cloud::Google, "a", "it answered 500");
        refusals.tell_delay(Cloud::Google, "b", "it answered 503");
        assert_eq!(lines(), ["kfp-creds: notice        no token for a yet: it answered 500"]);
        refusals.over(Cloud::Azure);
        assert_eq!(lines(), [""; 0], "another cloud says nothing about this one");
        refusals.over(Cloud::Google);
        refusals.over(Cloud::Google);
        assert_eq!(lines(), ["kfp-creds: notice        Google Cloud: tokens are minted again"]);
        refusals.tell_delay(Cloud::Google, "b", "it answered 503");
        refusals.over(Cloud::Google);
        assert_eq!(lines(), [""; 0], "tokens that come and go do not fill the terminal");
        tokio::time::advance(OUTAGE_AGAIN).await;
        refusals.tell_delay(Cloud::Google, "b", "it answered 503");
        assert_eq!(lines().len(), 1);
    }

    #[test]
    fn container_input_fills_neither_terminal_nor_memory() {
        let heard = Heard::default();
        let refusals = Refusals::new(Console::new(OutputForm::Quiet, heard.clone()));
        for number in 0..1000 {
            refusals.tell(Cloud::Azure, "a", &format!("no resource https://{number}.example"));
        }
        let count = || String::from_utf8(heard.0.lock().unwrap().clone()).unwrap().lines().count();
        assert_eq!((count(), refusals.lock()[&Cloud::Azure].reasons.len()), (MOST, MOST));
        refusals.tell(Cloud::Aws, "a", "log in again");
        assert_eq!(count(), MOST + 1, "another cloud has room of its own");
    }
}
