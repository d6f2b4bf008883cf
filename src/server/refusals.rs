//! Shows refused tokens on the terminal: users do not look for "log in again" in a container's log.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

use crate::cloud::Cloud;
use crate::console::{Console, Line};

/// How many reasons are shown for one cloud. Some name the resource, which a container chose: one that keeps
/// asking for new resources must fill neither the terminal nor the memory.
const MOST: usize = 32;

/// Shows each reason once, and again only after a token of the same cloud was minted: clients retry.
#[derive(Debug)]
pub(super) struct Refusals {
    console: Console,
    said: Mutex<BTreeMap<Cloud, HashSet<String>>>,
}

impl Refusals {
    pub(super) fn new(console: Console) -> Self {
        Self { console, said: Mutex::default() }
    }

    /// `why` comes from the source.
    pub(super) fn tell(&self, cloud: Cloud, caller: &str, why: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let said = said.entry(cloud).or_default();
        if said.len() < MOST && said.insert(why.to_owned()) {
            self.console.say(Line::Refused { what: &format!("a token for {caller}"), why });
        }
    }

    /// A token of `cloud` was minted, so every reason for that cloud may be shown again.
    pub(super) fn over(&self, cloud: Cloud) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).remove(&cloud);
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
        refusals.tell(Cloud::Aws, "a", "log in again");
        assert_eq!(count(), 2, "another cloud says nothing about this one");
        refusals.over(Cloud::Aws);
        refusals.tell(Cloud::Aws, "a", "log in again");
        assert_eq!(count(), 3);
        let text = String::from_utf8(heard.0.lock().unwrap().clone()).unwrap();
        assert!(text.starts_with("kfp-creds: refused       a token for a: log in again\n"), "{text}");
    }

    #[test]
    fn container_input_fills_neither_terminal_nor_memory() {
        let heard = Heard::default();
        let refusals = Refusals::new(Console::new(OutputForm::Quiet, heard.clone()));
        for number in 0..1000 {
            refusals.tell(Cloud::Azure, "a", &format!("no resource https://{number}.example"));
        }
        let count = || String::from_utf8(heard.0.lock().unwrap().clone()).unwrap().lines().count();
        assert_eq!((count(), refusals.said.lock().unwrap()[&Cloud::Azure].len()), (MOST, MOST));
        refusals.tell(Cloud::Aws, "a", "log in again");
        assert_eq!(count(), MOST + 1, "another cloud has room of its own");
    }
}
