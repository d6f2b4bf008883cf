//! Recognises a repetition of a caller's last request, and answers it with the same token without reading it
//! again.
//!
//! A request that is the same in every byte, under the same lease, leads to the same token as long as the
//! mint's generation and the second of the clock stay the same; the protocol has no other input. So a
//! repetition skips only what those determine. As for any request, the server finds the caller by its
//! address, applies its rate, records its tokens, counts the request in the metrics and checks the lease at
//! the end.

use std::fmt;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, UNIX_EPOCH};

use super::Server;
use super::caller::Caller;
use crate::metadata::{AccessAsk, AwsAsk, AzureAsk, Entered, Reply, RequestHead};
use crate::secret::Secret;
use crate::token::{AccessToken, AwsSession, AzureToken, Deadline, Now, Scopes};

/// Longer heads are read each time. The heads of client libraries have 200 to 700 bytes.
const LONGEST: usize = 1024;

/// The answer to a request for a token.
#[derive(Debug)]
pub(super) struct TokenReply {
    pub(super) reply: Reply,
    /// For [`Server::remember`]; `None` if the token did not come from the cache.
    pub(super) again: Option<(ServedToken, Deadline)>,
}

impl From<Reply> for TokenReply {
    fn from(reply: Reply) -> Self {
        Self { reply, again: None }
    }
}

/// Which token answered a request, and in which form. Does not keep the token alive: it is overwritten when
/// the mint forgets it.
#[derive(Debug)]
pub(super) enum ServedToken {
    Access(AccessAsk, Scopes, Weak<AccessToken>),
    Aws(AwsAsk, Weak<AwsSession>),
    /// The resource without a trailing slash.
    Azure(AzureAsk, String, Weak<AzureToken>),
}

/// A caller's last request that was answered with a token from the cache.
#[derive(Debug)]
pub(super) struct LastRequest {
    head: SeenHead,
    generation: u64,
    at: Now,
    /// From then on a renewal may be due.
    calm: Deadline,
    given: Arc<ServedToken>,
}

impl LastRequest {
    fn is(&self, head: &RequestHead<'_>, generation: u64) -> bool {
        let now = head.now;
        // The wall clock may later be set back to the same second.
        let same_second = seconds(now) == seconds(self.at)
            && now.mono.saturating_duration_since(self.at.mono) < Duration::from_secs(1);
        same_second && generation == self.generation && !self.calm.is_over(now) && self.head.is(head)
    }
}

fn seconds(at: Now) -> u64 {
    at.wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Server {
    /// Remembers what answered `head`. `generation` must be from before the answer was made.
    pub(super) fn remember(
        &self,
        caller: &Caller,
        head: &RequestHead<'_>,
        generation: u64,
        (given, calm): (ServedToken, Deadline),
    ) {
        let (Some(key), Some(seen)) = (caller.key(), SeenHead::of(head)) else { return };
        let last = LastRequest { head: seen, generation, at: head.now, calm, given: Arc::new(given) };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.get_mut(&key) {
            made.last = Some(last);
        }
    }

    /// The reply to a request that repeats the caller's last one; `None` if the request has to be read.
    pub(super) fn answer_repeat(
        &self,
        caller: &Caller,
        head: &RequestHead<'_>,
        generation: u64,
    ) -> Option<Reply> {
        let given = {
            let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            let last = made.get(&caller.key()?)?.last.as_ref()?;
            last.is(head, generation).then(|| last.given.clone())?
        };
        let now = head.now;
        match &*given {
            ServedToken::Access(ask, scopes, token) => {
                let token = token.upgrade()?;
                self.count_request(caller, now)?;
                Some(self.give_access(caller, ask, scopes, &token, now))
            }
            ServedToken::Aws(ask, session) => {
                let session = session.upgrade()?;
                self.count_request(caller, now)?;
                Some(self.give_aws(caller, ask, &session, now))
            }
            ServedToken::Azure(ask, resource, token) => {
                let token = token.upgrade()?;
                self.count_request(caller, now)?;
                Some(self.give_azure(caller, ask, resource, &token, now))
            }
        }
    }

    /// Counts the request. `None` if it exceeds the rate: it is then read and refused like any other. This
    /// counts it twice, which no longer makes a difference.
    fn count_request(&self, caller: &Caller, now: Now) -> Option<()> {
        let (identity, _) = caller.granted()?;
        self.rates.admit(identity, now.mono).ok()
    }
}

/// The bytes of a request head, each part preceded by its length: entrance, method, target, host, headers in
/// order.
struct SeenHead(Secret<Vec<u8>>);

impl SeenHead {
    /// `None` if it is too long to be kept.
    fn of(head: &RequestHead<'_>) -> Option<Self> {
        let mut length = 0;
        each_part(head, |part| length += size_of::<u16>() + part.len());
        if length > LONGEST {
            return None;
        }
        // Allocated at full size, because a vector that grows leaves a copy of its bytes in memory.
        let mut bytes = Vec::with_capacity(length);
        each_part(head, |part| {
            bytes.extend(length_of(part));
            bytes.extend(part);
        });
        Some(Self(Secret::new(bytes)))
    }

    /// Whether this is the same head. The time it takes does not tell where heads differ, which may be in a
    /// secret.
    fn is(&self, head: &RequestHead<'_>) -> bool {
        let mut rest = Some(self.0.expose().as_slice());
        let mut differences = 0;
        each_part(head, |part| {
            rest = rest.take().and_then(|seen| {
                let seen = seen.strip_prefix(&length_of(part))?;
                let (seen, rest) = seen.split_at_checked(part.len())?;
                differences |= difference(seen, part);
                Some(rest)
            });
        });
        rest.is_some_and(<[u8]>::is_empty) && differences == 0
    }
}

impl fmt::Debug for SeenHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SeenHead(..)")
    }
}

/// If a part's length does not fit into two bytes, its head is too long to be kept.
fn length_of(part: &[u8]) -> [u8; 2] {
    u16::try_from(part.len()).unwrap_or(u16::MAX).to_ne_bytes()
}

fn each_part<'a>(head: &RequestHead<'a>, mut see: impl FnMut(&'a [u8])) {
    let (kind, secret) = match head.entered {
        Entered::Address => ("address", ""),
        Entered::Secret(secret) => ("secret", secret),
        Entered::Open => ("open", ""),
    };
    see(kind.as_bytes());
    see(secret.as_bytes());
    see(head.method.as_str().as_bytes());
    see(head.target.as_bytes());
    // A request without a host differs from one with an empty host.
    see(if head.host.is_some() { b"host" } else { b"" });
    see(head.host.unwrap_or_default().as_bytes());
    for (name, value) in head.headers {
        see(name.as_str().as_bytes());
        see(value.as_bytes());
    }
}

/// Zero if the two are the same; they must have the same length.
fn difference(one: &[u8], other: &[u8]) -> u64 {
    let ((ones, one), (others, other)) = (one.as_chunks::<8>(), other.as_chunks::<8>());
    let mut found = 0;
    for (one, other) in ones.iter().zip(others) {
        found |= u64::from_ne_bytes(*one) ^ u64::from_ne_bytes(*other);
    }
    for (one, other) in one.iter().zip(other) {
        found |= u64::from(one ^ other);
    }
    found
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};
    use hyper::{HeaderMap, Method};

    use super::*;

    struct Asked {
        entered: Entered<'static>,
        method: Method,
        target: &'static str,
        host: Option<&'static str>,
        headers: HeaderMap,
    }

    impl Asked {
        fn head(&self, now: Now) -> RequestHead<'_> {
            let Self { entered, method, target, host, headers } = self;
            RequestHead { method, target, host: *host, headers, entered: *entered, now }
        }
    }

    fn asked(change: impl FnOnce(&mut Asked)) -> Asked {
        let pairs = [("metadata-flavor", "Google"), ("user-agent", "client of twenty-nine bytes/1")];
        let pairs =
            pairs.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut asked = Asked {
            entered: Entered::Address,
            method: Method::GET,
            target: "/computeMetadata/v1/instance/service-accounts/default/token",
            host: Some("metadata.google.internal"),
            headers: HeaderMap::from_iter(pairs),
        };
        change(&mut asked);
        asked
    }

    #[test]
    fn a_head_matches_only_if_every_byte_is_the_same() {
        let now = Now::read();
        let seen = asked(|_| {});
        let seen = SeenHead::of(&seen.head(now)).unwrap();
        assert!(seen.is(&asked(|_| {}).head(now)));
        let flavor = |value| move |asked: &mut Asked| drop(asked.headers.insert("metadata-flavor", value));
        let others = [
            asked(|asked| asked.entered = Entered::Open),
            asked(|asked| asked.entered = Entered::Secret("address")),
            asked(|asked| asked.method = Method::POST),
            asked(|asked| asked.target = "/computeMetadata/v1/instance/service-accounts/default/tokem"),
            asked(|asked| asked.target = "/computeMetadata/v1/instance/service-accounts/default/token?"),
            asked(|asked| asked.host = None),
            asked(|asked| asked.host = Some("")),
            asked(|asked| asked.host = Some("metadata.google.internal.")),
            asked(flavor(HeaderValue::from_static("google"))),
            asked(flavor(HeaderValue::from_static("Googlf"))),
            asked(|asked| drop(asked.headers.remove("metadata-flavor"))),
            asked(|asked| {
                assert!(asked.headers.append("metadata-flavor", HeaderValue::from_static("Google")))
            }),
            asked(|asked| drop(asked.headers.insert("x-forwarded-for", HeaderValue::from_static("")))),
            asked(|asked| drop(asked.headers.insert("user-agent", HeaderValue::from_static("")))),
        ];
        for (number, other) in others.iter().enumerate() {
            assert!(!seen.is(&other.head(now)), "{number}");
            assert!(SeenHead::of(&other.head(now)).unwrap().is(&other.head(now)), "{number}");
        }
        // Without the lengths, these two heads would be the same bytes.
        let two = |one: &'static str, other: &'static str| {
            asked(|asked| {
                asked.headers.clear();
                asked.headers.insert("x-a", HeaderValue::from_static(one));
                asked.headers.insert("x-b", HeaderValue::from_static(other));
            })
        };
        let apart = SeenHead::of(&two("x-b", "").head(now)).unwrap();
        assert!(!apart.is(&two("", "x-b").head(now)));
    }

    #[test]
    fn a_long_head_is_not_kept() {
        let long = |length: usize| {
            asked(|asked| {
                asked.headers.insert("x-long", HeaderValue::from_str(&"a".repeat(length)).unwrap());
            })
        };
        assert!(SeenHead::of(&long(LONGEST).head(Now::read())).is_none());
        assert!(SeenHead::of(&long(200).head(Now::read())).is_some());
    }

    #[test]
    fn a_request_counts_as_repeated_only_within_its_second() {
        let wall = UNIX_EPOCH + Duration::from_millis(1_800_000_000_400);
        let at = Now { wall, mono: Now::read().mono };
        let ask = asked(|_| {});
        let last = |calm: u64| LastRequest {
            head: SeenHead::of(&ask.head(at)).unwrap(),
            generation: 7,
            at,
            calm: Deadline::after(at, Duration::from_millis(calm)),
            given: Arc::new(ServedToken::Aws(
                AwsAsk { service: crate::metadata::Service::AwsImds, role_arn: None, account: None },
                Weak::new(),
            )),
        };
        let later = |wall: u64, mono: u64| Now {
            wall: at.wall + Duration::from_millis(wall),
            mono: at.mono + Duration::from_millis(mono),
        };
        let is = |calm, wall, mono, generation| last(calm).is(&ask.head(later(wall, mono)), generation);
        assert!(is(10_000, 0, 0, 7) && is(10_000, 599, 599, 7));
        assert!(!is(10_000, 600, 600, 7), "the next second");
        assert!(!is(10_000, 0, 1000, 7), "the wall clock was set back");
        assert!(!is(10_000, 100, 100, 8), "something changed");
        assert!(!is(100, 100, 100, 7), "a renewal is due");
    }
}
