//! The type of secrets, with one accessor: [`Secret::expose`]. `grep -rn 'expose()' src` audits its uses.

use std::fmt;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroize;

/// A value that is overwritten when dropped and that no formatter can print.
///
/// There is no `Clone`, `Display`, `Serialize`, `Deref` or `PartialEq` on purpose: share it in an `Arc`.
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The only accessor. The caller is responsible for where the value goes.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl Secret<String> {
    /// Compares in constant time.
    pub fn is(&self, given: &str) -> bool {
        same(&self.0, given)
    }
}

/// Whether a secret and a given text are the same. Their digests are compared, so that the timing reveals
/// nothing of the secret's own bytes.
pub fn same(secret: &str, given: &str) -> bool {
    let of = |text: &str| digest(&SHA256, text.as_bytes());
    of(secret).as_ref() == of(given).as_ref()
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Deserialises directly into a secret, so that no plain copy exists; there is no `Serialize`.
impl<'de, T: Zeroize + Deserialize<'de>> Deserialize<'de> for Secret<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        T::deserialize(from).map(Self)
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_secret_is_overwritten() {
        struct Watched<'a>(String, &'a std::cell::RefCell<Vec<String>>);
        impl Zeroize for Watched<'_> {
            fn zeroize(&mut self) {
                self.0.zeroize();
                self.1.borrow_mut().push(std::mem::take(&mut self.0));
            }
        }
        let left = std::cell::RefCell::default();
        let shared = std::rc::Rc::new(Secret::new(Watched("canary-value".into(), &left)));
        drop(shared.clone());
        assert!(left.borrow().is_empty(), "somebody still has it");
        drop(shared);
        assert_eq!(*left.borrow(), [""]);
    }

    #[test]
    fn a_secret_is_compared_whole() {
        let secret = Secret::new(String::from("canary-value"));
        assert!(secret.is("canary-value") && same("", ""));
        for other in ["", "canary", "canary-value ", "Canary-value"] {
            assert!(!secret.is(other), "{other}");
        }
    }

    #[test]
    fn debug_output_hides_the_secret() {
        let secret = Secret::new(String::from("canary-value"));
        assert_eq!(format!("{secret:?} {secret:#?}"), "Secret(..) Secret(..)");
        assert_eq!(secret.expose(), "canary-value");
    }
}
