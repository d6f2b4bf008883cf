//! Tokens and their lifetimes: deadlines, access and identity tokens.

mod scopes;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::Instant;

use crate::cloud::Cloud;
use crate::secret::Secret;

pub use scopes::{
    AccessCondition, Boundary, BoundaryRule, CLOUD_PLATFORM, OF_GOOGLE_CLOUD, SCOPE_PREFIX, Scopes,
};

/// A moment on both clocks. After a laptop slept, its wall clock is ahead of the monotonic one, so every
/// comparison uses both clocks and the more pessimistic result counts.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub wall: SystemTime,
    pub mono: Instant,
}

impl Now {
    /// Reads both clocks. Under paused test time only the monotonic one stands still.
    pub fn read() -> Self {
        Self { wall: SystemTime::now(), mono: Instant::now() }
    }
}

/// The end of a token's life, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    wall: SystemTime,
    mono: Instant,
}

impl Deadline {
    pub fn after(now: Now, life: Duration) -> Self {
        Self { wall: now.wall + life, mono: now.mono + life }
    }

    /// A deadline from an upstream's wall-clock time (`expireTime` of generateAccessToken).
    pub fn at(now: Now, wall: SystemTime) -> Self {
        Self::after(now, wall.duration_since(now.wall).unwrap_or_default())
    }

    /// The remaining time, never negative or inflated: the smaller value of the two clocks.
    pub fn remaining(&self, now: Now) -> Duration {
        let wall = self.wall.duration_since(now.wall).unwrap_or_default();
        wall.min(self.mono.saturating_duration_since(now.mono))
    }

    /// Whether the deadline has passed, by either clock.
    pub fn is_over(&self, now: Now) -> bool {
        self.wall <= now.wall || self.mono <= now.mono
    }

    pub fn wall(&self) -> SystemTime {
        self.wall
    }
}

/// An OAuth access token (type Bearer) with a known expiry; tokens with an unknown expiry are never created.
#[derive(Debug)]
pub struct AccessToken {
    pub value: Secret<String>,
    pub expires: Deadline,
    /// The scopes requested upstream, in normal form; empty if they are decided elsewhere.
    pub scopes: Scopes,
    pub id: MintId,
    shown: RenderedReply,
}

impl AccessToken {
    /// A new token with a new id.
    pub fn new(value: Secret<String>, expires: Deadline, scopes: Scopes) -> Self {
        Self { value, expires, scopes, id: MintId::random(), shown: RenderedReply::default() }
    }

    pub fn about(&self) -> HandedOut {
        HandedOut { id: self.id, kind: TokenKind::Access, expires: self.expires }
    }

    /// The token as rendered by `render`, for callers with `seconds` of it left. All callers in the same
    /// second share the result: the secret is rendered once, is in memory once, and is overwritten once.
    pub fn shown(&self, seconds: u64, render: impl FnOnce(&str) -> Vec<u8>) -> Rendered {
        self.shown.or_render(seconds, "", || render(self.value.expose()))
    }
}

/// The bytes of a reply that contains a token; overwritten when the last holder drops them.
pub type Rendered = Arc<Secret<Vec<u8>>>;

/// The last rendered reply with a token. It is overwritten with the token.
#[derive(Debug, Default)]
pub struct RenderedReply(Mutex<Option<LastRendered>>);

#[derive(Debug)]
struct LastRendered {
    seconds: u64,
    form: Box<str>,
    bytes: Rendered,
}

impl RenderedReply {
    /// The result of `render`, made once for all callers of the same second (`seconds` of the token are left) and of
    /// the same `form`. Replies with this token that differ must have different forms.
    pub fn or_render(&self, seconds: u64, form: &str, render: impl FnOnce() -> Vec<u8>) -> Rendered {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(last) if last.seconds == seconds && *last.form == *form => last.bytes.clone(),
            _ => {
                let bytes = Arc::new(Secret::new(render()));
                *last = Some(LastRendered { seconds, form: form.into(), bytes: bytes.clone() });
                bytes
            }
        }
    }
}

/// An OpenID Connect ID token (a signed JWT) for one audience.
#[derive(Debug)]
pub struct IdentityToken {
    pub value: Secret<String>,
    pub expires: Deadline,
    pub id: MintId,
}

impl IdentityToken {
    pub fn about(&self) -> HandedOut {
        HandedOut { id: self.id, kind: TokenKind::Identity, expires: self.expires }
    }
}

/// Temporary AWS credentials from STS.
#[derive(Debug)]
pub struct AwsSession {
    /// Begins with `ASIA`: a long-lived key (`AKIA`) never gets here.
    pub access_key_id: Secret<String>,
    pub secret_access_key: Secret<String>,
    pub session_token: Secret<String>,
    pub expires: Deadline,
    /// The twelve digits of the account, if known.
    pub account: Option<String>,
    /// `aws:userid` of the session (`ROLEID:SESSION-NAME`), by which IAM can deny it; `None` if it is not a role's.
    pub user_id: Option<String>,
    pub id: MintId,
    pub shown: RenderedReply,
}

impl AwsSession {
    pub fn about(&self) -> HandedOut {
        HandedOut { id: self.id, kind: TokenKind::AwsSession, expires: self.expires }
    }
}

/// An access token of Microsoft Entra for one resource.
#[derive(Debug)]
pub struct AzureToken {
    pub value: Secret<String>,
    pub expires: Deadline,
    /// As requested.
    pub resource: String,
    /// The principal's client id, if known.
    pub client_id: Option<String>,
    pub id: MintId,
    pub shown: RenderedReply,
}

impl AzureToken {
    pub fn about(&self) -> HandedOut {
        HandedOut { id: self.id, kind: TokenKind::AzureToken, expires: self.expires }
    }
}

/// Identifies a token in the audit log and the status; never sent upstream. Random, so it reveals nothing
/// about the token. Containers that share a token see the same id.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct MintId(u64);

impl MintId {
    /// All zeros if the machine has no randomness; then signing and TLS do not work either.
    pub fn random() -> Self {
        let mut bytes = [0; 8];
        let _ = SystemRandom::new().fill(&mut bytes);
        Self(u64::from_be_bytes(bytes))
    }
}

/// Prints sixteen hex digits.
impl fmt::Display for MintId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The kinds of token that are handed out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenKind {
    Access,
    Identity,
    AwsSession,
    AzureToken,
}

impl TokenKind {
    pub const ALL: [Self; 4] = [Self::Access, Self::Identity, Self::AwsSession, Self::AzureToken];

    pub fn cloud(self) -> Cloud {
        match self {
            Self::Access | Self::Identity => Cloud::Google,
            Self::AwsSession => Cloud::Aws,
            Self::AzureToken => Cloud::Azure,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Identity => "identity",
            Self::AwsSession => "aws-session",
            Self::AzureToken => "azure-token",
        }
    }
}

/// A record of an issued token, without the token itself.
#[derive(Clone, Copy, Debug)]
pub struct HandedOut {
    pub id: MintId,
    pub kind: TokenKind,
    pub expires: Deadline,
}

/// A caller's tokens that may still be valid. A caller can request ID tokens without limit (audiences);
/// beyond this number the one that expires first is dropped, so that the last expiry stays right.
#[derive(Debug, Default)]
pub struct Issued(Mutex<Vec<HandedOut>>);

const REMEMBERED: usize = 256;

impl Issued {
    fn lock(&self) -> MutexGuard<'_, Vec<HandedOut>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if this caller did not have this token yet.
    pub fn add(&self, token: HandedOut) -> bool {
        let mut all = self.lock();
        if all.iter().rev().any(|known| known.id == token.id) {
            return false;
        }
        let now = Now::read();
        all.retain(|known| !known.expires.is_over(now));
        if all.len() >= REMEMBERED {
            let first = all.iter().enumerate().min_by_key(|(_, known)| known.expires.wall());
            if let Some((first, _)) = first {
                all.swap_remove(first);
            }
        }
        all.push(token);
        true
    }

    /// The tokens that have not expired.
    pub fn alive(&self, now: Now) -> Vec<HandedOut> {
        self.lock().iter().filter(|token| !token.expires.is_over(now)).copied().collect()
    }

    pub fn last_expiry(&self) -> Option<Deadline> {
        self.lock().iter().map(|token| token.expires).max_by_key(Deadline::wall)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn callers_of_the_same_second_share_what_is_made_of_a_token() {
        let end = Deadline::after(Now::read(), Duration::from_secs(9));
        let token = AccessToken::new(Secret::new("canary".into()), end, Scopes::default());
        let made = Cell::new(0);
        let shown = |seconds| {
            token.shown(seconds, |value| {
                made.set(made.get() + 1);
                format!("{value} {seconds}").into_bytes()
            })
        };
        let (first, again, next) = (shown(9), shown(9), shown(8));
        assert!(Arc::ptr_eq(&first, &again));
        assert_eq!(
            (first.expose().as_slice(), next.expose().as_slice()),
            (&b"canary 9"[..], &b"canary 8"[..])
        );
        assert_eq!(made.get(), 2);
        assert!(!format!("{token:?}").contains("canary") && !format!("{token:?}").contains("99, 97"));
    }

    #[test]
    fn callers_of_another_form_share_nothing() {
        let shown = RenderedReply::default();
        let rendered = |form: &str| shown.or_render(9, form, || form.as_bytes().to_vec());
        let (one, same) = (rendered("https://vault"), rendered("https://vault"));
        assert!(Arc::ptr_eq(&one, &same));
        assert_eq!(rendered("https://vault/").expose(), b"https://vault/");
        assert_eq!(rendered("https://vault").expose(), b"https://vault");
    }

    #[test]
    fn a_token_is_new_to_a_caller_once_and_memory_is_bounded() {
        let issued = Issued::default();
        let token = |life| {
            let expires = Deadline::after(Now::read(), Duration::from_secs(life));
            HandedOut { id: MintId::random(), kind: TokenKind::Access, expires }
        };
        let longest = token(9000);
        assert!(issued.add(longest) && !issued.add(longest));
        for life in 1000..1000 + 2 * REMEMBERED as u64 {
            assert!(issued.add(token(life)));
        }
        assert_eq!(issued.alive(Now::read()).len(), REMEMBERED);
        assert_eq!(issued.last_expiry().unwrap().wall(), longest.expires.wall());
        assert_eq!(longest.id.to_string().len(), 16);
    }

    #[test]
    fn the_clock_that_ran_further_counts() {
        let now = Now::read();
        let end = Deadline::after(now, Duration::from_secs(100));
        let slept = Now { wall: now.wall + Duration::from_secs(70), mono: now.mono };
        let set_back =
            Now { wall: now.wall - Duration::from_secs(500), mono: now.mono + Duration::from_secs(40) };
        assert_eq!(end.remaining(slept), Duration::from_secs(30));
        assert_eq!(end.remaining(set_back), Duration::from_secs(60));
        let late = Now { wall: now.wall + Duration::from_secs(700), mono: now.mono };
        assert_eq!(end.remaining(late), Duration::ZERO);
        assert!(end.is_over(late) && !end.is_over(slept) && !end.is_over(set_back));
    }
}
