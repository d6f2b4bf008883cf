//! Shows refused tokens on the terminal: users do not look for "log in again" in a container's log.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::console::{Console, Line};

/// Shows each reason once, and again only after a token was minted in between: clients retry.
#[derive(Debug)]
pub(super) struct Refusals {
    console: Console,
    said: Mutex<HashSet<String>>,
}

impl Refusals {
    pub(super) fn new(console: Console) -> Self {
        Self { console, said: Mutex::default() }
    }

    /// `why` comes from the source, which words its few texts itself: a caller cannot add new ones and so
    /// cannot flood the terminal.
    pub(super) fn tell(&self, whom: &str, why: &str) {
        let new = self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(why.to_owned());
        if new {
            self.console.say(Line::Refused { what: &format!("a token for {whom}"), why });
        }
    }

    /// A token was minted: every reason may be shown again.
    pub(super) fn over(&self) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::*;
    use crate::console::Form;

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
    fn a_reason_is_said_once_until_it_is_over() {
        let heard = Heard::default();
        let refusals = Refusals::new(Console::new(Form::Quiet, heard.clone()));
        let count = || String::from_utf8(heard.0.lock().unwrap().clone()).unwrap().lines().count();
        refusals.tell("a", "log in again");
        refusals.tell("b", "log in again");
        assert_eq!(count(), 1);
        refusals.tell("b", "not allowed");
        assert_eq!(count(), 2);
        refusals.over();
        refusals.tell("a", "log in again");
        assert_eq!(count(), 3);
        let text = String::from_utf8(heard.0.lock().unwrap().clone()).unwrap();
        assert!(text.starts_with("kfp-creds: refused       a token for a: log in again\n"), "{text}");
    }
}
