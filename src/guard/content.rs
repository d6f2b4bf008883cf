//! Classifies bytes: every other part of the guard calls this.
//!
//! Work is linear: each rule reads each byte a bounded number of times; encoded data is decoded once and the
//! result judged the same way, a few levels deep. A test counts the steps.

use std::cell::{Cell, RefCell};

use super::encoded::{base64, inflated, narrowed, narrowed_database, runs, unescaped};
use super::fields::{arguments, fields, flags, spaced, tags};
use super::rules::Marks;
use super::text::{
    has, is_aws_secret, is_azure_key, is_base64, is_entra_secret, is_of_token, is_stand_in, is_strong,
    is_text, places, token,
};
use super::work::Work;
use super::{SecretKind, binary, logins, pem, published};

/// How many bytes are judged at a time.
pub const HEAD: usize = 1 << 20;
/// Overlap of consecutive pieces, so that a key on their border is whole in one of them.
const OVERLAP: usize = 32 << 10;
/// The shortest content that can be a key.
const SHORTEST: usize = 24;
/// Bytes inflated for one file; beyond that nothing is inflated.
const MOST_INFLATED: u64 = 1 << 20;
/// Levels of decoding: base64 of base64 of escaped text, and a few more.
const DEEPEST: usize = 5;

/// The first kind of secret that is found in `bytes` (a file, a value, or the beginning of either). Published
/// keys do not count. Time is linear in the length.
pub fn what(bytes: &[u8]) -> Option<SecretKind> {
    ContentJudge::default().judge(bytes)
}

/// The same, with the digests of published keys that were met, one for each occurrence.
pub fn judged(bytes: &[u8]) -> (Option<SecretKind>, Vec<u64>) {
    let judge = ContentJudge::default();
    let found = judge.judge(bytes);
    (found, judge.published.into_inner())
}

/// Digests of all keys in `bytes`, published or not: the list of published keys is made from them.
pub fn digests(bytes: &[u8]) -> Vec<(SecretKind, u64)> {
    let judge = ContentJudge { collected: Some(RefCell::default()), ..ContentJudge::default() };
    let last = judge.judge(bytes);
    debug_assert!(last.is_none());
    judge.collected.map(RefCell::into_inner).unwrap_or_default()
}

/// The same as [`what`], with the number of steps that it took.
#[cfg(test)]
pub(super) fn steps(bytes: &[u8]) -> (Option<SecretKind>, u64) {
    let judge = ContentJudge::default();
    (judge.judge(bytes), judge.work.steps())
}

#[derive(Debug)]
struct ContentJudge {
    work: Work,
    /// Bytes that may still be inflated from compressed data inside base64.
    inflatable: Cell<u64>,
    published: RefCell<Vec<u64>>,
    /// If set, every key is collected and none is accepted as a find.
    collected: Option<RefCell<Vec<(SecretKind, u64)>>>,
}

impl Default for ContentJudge {
    fn default() -> Self {
        Self {
            work: Work::default(),
            inflatable: Cell::new(MOST_INFLATED),
            published: RefCell::default(),
            collected: None,
        }
    }
}

impl ContentJudge {
    fn judge(&self, bytes: &[u8]) -> Option<SecretKind> {
        let mut at = 0;
        loop {
            let end = bytes.len().min(at + HEAD + OVERLAP);
            let found = self.piece(&bytes[at..end], at == 0, 0, false);
            if found.is_some() || end == bytes.len() {
                return found;
            }
            at += HEAD;
        }
    }

    /// `material` identifies the key: it is the same for the same key in another encoding.
    fn accept(&self, kind: SecretKind, material: &[u8]) -> Option<SecretKind> {
        self.work.add(material.len());
        if let Some(collected) = &self.collected {
            if !material.is_empty() {
                collected.borrow_mut().push((kind, published::digest(material)));
            }
            return None;
        }
        if let Some(digest) = published::known(material) {
            self.published.borrow_mut().push(digest);
            return None;
        }
        Some(kind)
    }

    /// `first`: whether `bytes` begin what is judged; `decoded`: whether they were decoded from base64.
    fn piece(&self, bytes: &[u8], first: bool, depth: usize, decoded: bool) -> Option<SecretKind> {
        if bytes.len() < SHORTEST || depth > DEEPEST {
            return None;
        }
        let database = first && (bytes.starts_with(b"SQLite format 3\0") || is_journal(bytes));
        let pickle = first && matches!(bytes, [0x80, 2..=5, ..]);
        if first && binary::is_key(bytes) {
            return self.accept(SecretKind::PrivateKey, bytes);
        }
        if let Some(narrow) = narrowed(bytes, &self.work) {
            return self.piece(&narrow, first, depth + 1, decoded);
        }
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        self.work.add(bytes.len().min(1024));
        if database {
            if let found @ Some(_) = logins::database(bytes, &self.work) {
                return found;
            }
            if let Some(narrow) = narrowed_database(bytes, &self.work) {
                return self.piece(&narrow, false, depth + 1, decoded);
            }
        }
        let found = self
            .private_keys(bytes)
            .or_else(|| self.google_tokens(bytes))
            .or_else(|| self.entra_secrets(bytes));
        if found.is_some() || !(is_text(bytes) || database || pickle) {
            return found;
        }
        self.text(bytes, first, decoded).or_else(|| {
            let plain = unescaped(bytes, &self.work);
            plain.and_then(|plain| self.piece(&plain, first, depth + 1, decoded)).or_else(|| {
                runs(bytes, &self.work).find_map(|plain| {
                    let open = inflated(&plain, &self.inflatable, &self.work);
                    self.piece(open.as_ref().unwrap_or(&plain), true, depth + 1, true)
                })
            })
        })
    }

    fn text(&self, bytes: &[u8], first: bool, decoded: bool) -> Option<SecretKind> {
        let mut marks = Marks::new(decoded);
        let accept = |kind, material: &[u8]| self.accept(kind, material);
        let found = fields(bytes, &self.work).find_map(|field| {
            self.work.add(field.value.len().min(256) * 4);
            marks.add(field, &accept)
        });
        let mut others = Marks::new(decoded);
        found
            .map(|kind| if kind == SecretKind::AuthorizedUser { user(bytes) } else { kind })
            .or_else(|| {
                let others_of = flags(bytes, &self.work).chain(tags(bytes, &self.work));
                others_of.chain(spaced(bytes, &self.work)).find_map(|field| {
                    self.work.add(field.value.len().min(256) * 4);
                    others.add(field, &accept)
                })
            })
            .or_else(|| {
                let mut given = Marks::new(decoded);
                arguments(bytes, &self.work).find_map(|field| {
                    self.work.add(field.value.len().min(256) * 4);
                    given.add(field, &accept)
                })
            })
            .or_else(|| {
                (first && marks.kubeconfig).then(|| logins::kubeconfig(bytes, &self.work, &accept)).flatten()
            })
            .or_else(|| marks.registry.then(|| logins::registry(bytes, &self.work, &accept)).flatten())
            .or_else(|| first.then(|| logins::netrc(bytes, &self.work, &accept)).flatten())
            .or_else(|| self.pairs(bytes))
    }

    /// Private keys in PEM; with a service account's fields in the same text, a Google key.
    fn private_keys(&self, bytes: &[u8]) -> Option<SecretKind> {
        let kind = pem::bodies(bytes, &self.work)
            .find_map(|body| self.accept(SecretKind::PrivateKey, &base64(&body)))?;
        self.work.add(bytes.len() * 3);
        let google = has(bytes, "service_account") || (has(bytes, "client_email") && has(bytes, "token_uri"));
        Some(if google { SecretKind::ServiceAccountKey } else { kind })
    }

    /// Google's refresh and access tokens, which have prefixes of their own, at any position.
    fn google_tokens(&self, bytes: &[u8]) -> Option<SecretKind> {
        self.work.add(bytes.len() * 2);
        let tokens = |start: &'static str| {
            let mut next = 0;
            places(bytes, start).filter_map(move |at| {
                if at < next {
                    return None;
                }
                let token = token(&bytes[at..]);
                self.work.add(token.len() * 5);
                next = at + token.len();
                Some(token)
            })
        };
        let refresh = tokens("1//0").find_map(|token| {
            let made = token.len() >= 40 && is_strong(&token[4..], 36) && !token[4..].contains(&b'/');
            made.then(|| self.accept(SecretKind::AuthorizedUser, token)).flatten().map(|_| user(bytes))
        });
        refresh.or_else(|| {
            tokens("ya29.").find_map(|token| {
                let made = token.len() >= 60 && is_strong(&token[5..], 50);
                made.then(|| self.accept(SecretKind::OauthToken, token)).flatten()
            })
        })
    }

    /// Application secrets of Entra ID, which have a sign of their own at a fixed place, at any position: also in
    /// pickles, where no sign stands between a name and its value.
    fn entra_secrets(&self, bytes: &[u8]) -> Option<SecretKind> {
        const BEFORE: usize = 4;
        const LONGEST: usize = 48;
        self.work.add(bytes.len());
        places(bytes, "Q~").find_map(|at| {
            self.work.add(2 * LONGEST);
            let start = at.checked_sub(BEFORE)?;
            let rest = &bytes[start..bytes.len().min(start + LONGEST)];
            let secret = &rest[..rest.iter().take_while(|b| is_of_token(**b)).count()];
            is_entra_secret(secret).then(|| self.accept(SecretKind::AzureLogin, secret)).flatten()
        })
    }

    /// The id of an AWS or Google storage key with a secret near it, as in the CSV of the console.
    fn pairs(&self, bytes: &[u8]) -> Option<SecretKind> {
        const NEAR: usize = 200;
        let found = |kind, start: &'static str| {
            self.work.add(bytes.len());
            places(bytes, start).find_map(|at| {
                let id = &bytes[at..bytes.len().min(at + 64)];
                let length = id.iter().take_while(|b| b.is_ascii_uppercase() || b.is_ascii_digit()).count();
                self.work.add(length + 8);
                if !matches!(length, 20 | 24 | 61) || is_stand_in(&id[..length]) {
                    return None;
                }
                self.work.add(2 * NEAR);
                let near = &bytes[at.saturating_sub(NEAR)..bytes.len().min(at + NEAR)];
                let secret = near.split(|b| !is_base64(*b)).find(|word| is_aws_secret(word))?;
                self.accept(kind, secret)
            })
        };
        found(SecretKind::AwsKey, "AKIA")
            .or_else(|| found(SecretKind::AwsKey, "ASIA"))
            .or_else(|| found(SecretKind::GoogleHmac, "GOOG"))
            .or_else(|| self.listed(bytes))
    }

    /// The keys of a storage account, as `az storage account keys list` prints them in a table.
    fn listed(&self, bytes: &[u8]) -> Option<SecretKind> {
        const NEAR: usize = 160;
        self.work.add(bytes.len() * 2);
        ["key1", "key2"].into_iter().flat_map(|name| places(bytes, name)).find_map(|at| {
            self.work.add(NEAR);
            let rest = &bytes[at + 4..bytes.len().min(at + NEAR)];
            let key = rest
                .split(u8::is_ascii_whitespace)
                .take_while(|word| word.len() <= 88)
                .find(|word| is_azure_key(word))?;
            self.accept(SecretKind::AzureKey, key)
        })
    }
}

/// Whether this is SQLite's write-ahead log, which holds rows before the database does.
fn is_journal(bytes: &[u8]) -> bool {
    matches!(bytes, [0x37, 0x7f, 0x06, 0x82 | 0x83, ..])
}

/// The kind of Google login that a refresh token belongs to.
fn user(bytes: &[u8]) -> SecretKind {
    match () {
        () if has(bytes, "external_account_authorized_user") => SecretKind::ExternalAccountUser,
        () if has(bytes, "impersonated_service_account") => SecretKind::ImpersonatedAccount,
        () => SecretKind::AuthorizedUser,
    }
}
