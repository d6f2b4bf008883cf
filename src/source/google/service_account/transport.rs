//! The transport for yup-oauth2: its requests go out through our own client, with the same time and size
//! limits and the same handling of status and body as every other call.
//!
//! yup-oauth2 reads bodies without a limit, drops the status and trusts any `expires_in` in an answer. So its
//! connection ends here: the request is read from it and sent by [`Upstream::once`], and yup gets either a
//! plain grant or the number under which [`Carrier::fault`] keeps the failure.

use std::collections::BTreeMap;
use std::future::{Future, Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use serde_json::json;
use tower_service::Service;
use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::expiry::LONGEST_LIFE;
use crate::source::google::service_account::assertion::Redeemed;
use crate::source::http::client::Upstream;
use crate::source::http::request::Call;

/// Limit on kept faults, since abandoned exchanges never collect theirs; the oldest are dropped.
const MOST_FAULTS: usize = 16;

/// Carries the requests of one key's exchanges to its token endpoint.
#[derive(Debug)]
pub(crate) struct Carrier {
    upstream: Arc<Upstream>,
    url: String,
    faults: Mutex<(u64, BTreeMap<u64, Redeemed>)>,
}

impl Carrier {
    pub(crate) fn new(upstream: Arc<Upstream>, url: String) -> Arc<Self> {
        Arc::new(Self { upstream, url, faults: Mutex::default() })
    }

    /// The fault stored under the number that yup received as an error code.
    pub(crate) fn fault(&self, number: &str) -> Option<Redeemed> {
        let number = number.parse().ok()?;
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&number)
    }

    /// Sends a form and answers in a format that yup understands.
    async fn carry(self: Arc<Self>, body: Secret<String>) -> Zeroizing<Vec<u8>> {
        let said = match self.exchange(body).await {
            Ok(grant) => Secret::new(grant),
            Err(why) => {
                let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
                let (last, kept) = &mut *faults;
                *last += 1;
                kept.insert(*last, why);
                if kept.len() > MOST_FAULTS {
                    kept.pop_first();
                }
                Secret::new(json!({"error": last.to_string()}).to_string())
            }
        };
        let said = said.expose();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            said.len()
        );
        Zeroizing::new([head.as_bytes(), said.as_bytes()].concat())
    }

    async fn exchange(&self, body: Secret<String>) -> Result<String, Redeemed> {
        let call = Call { body, ..Call::form(&self.url, &[]) };
        let answer = self.upstream.once(&call).await.map_err(Redeemed::Fault)?;
        let granted = answer.granted()?;
        let life = granted.life.ok_or_else(|| {
            SourceError::transient(format!("{} gave no token with an expiry; try again", answer.host))
        })?;
        let life = life.min(LONGEST_LIFE).as_secs();
        Ok(json!({"access_token": granted.token.expose(), "expires_in": life, "token_type": "Bearer"})
            .to_string())
    }
}

/// The connector for yup's client. It opens no connection: each one is a [`Wire`].
#[derive(Clone, Debug)]
pub(crate) struct Transport(pub(crate) Arc<Carrier>);

impl Service<Uri> for Transport {
    type Response = Wire;
    type Error = io::Error;
    type Future = Ready<io::Result<Wire>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(Ok(Wire { carrier: self.0.clone(), asked: Zeroizing::default(), state: State::Asking(None) }))
    }
}

/// The server side of a connection, for one request.
pub(crate) struct Wire {
    carrier: Arc<Carrier>,
    asked: Zeroizing<Vec<u8>>,
    state: State,
}

enum State {
    /// The waker of a task that already waits for the answer.
    Asking(Option<Waker>),
    Carrying(Pin<Box<dyn Future<Output = Zeroizing<Vec<u8>>> + Send>>),
    /// The answer and the number of bytes read so far.
    Answering(Zeroizing<Vec<u8>>, usize),
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let next = match &mut this.state {
                State::Answering(answer, read) => {
                    let rest = answer.get(*read..).unwrap_or_default();
                    let piece = rest.get(..rest.len().min(into.remaining())).unwrap_or_default();
                    into.put_slice(piece);
                    *read += piece.len();
                    return Poll::Ready(Ok(()));
                }
                State::Carrying(answer) => match answer.as_mut().poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(answer) => State::Answering(answer, 0),
                },
                State::Asking(_) => match body_of(&this.asked) {
                    Some(body) => State::Carrying(Box::pin(this.carrier.clone().carry(body))),
                    None => {
                        this.state = State::Asking(Some(context.waker().clone()));
                        return Poll::Pending;
                    }
                },
            };
            this.state = next;
        }
    }
}

impl Write for Wire {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.asked.extend_from_slice(from);
        if let State::Asking(waiting) = &mut self.state
            && let Some(waiting) = waiting.take()
        {
            waiting.wake();
        }
        Poll::Ready(Ok(from.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The body of a complete request; hyper sets its Content-Length.
fn body_of(asked: &[u8]) -> Option<Secret<String>> {
    let end = asked.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(asked.get(..end)?).ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    let body = asked.get(end + 4..)?;
    (body.len() >= length).then(|| Secret::new(String::from_utf8_lossy(body).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_whole_when_its_body_is() {
        let body = |text: &str| body_of(text.as_bytes()).map(|body| body.expose().clone());
        assert_eq!(body("POST /t HTTP/1.1\r\nContent-Length: 3\r\n\r\na=b").as_deref(), Some("a=b"));
        for part in [
            "",
            "POST /t HTTP/1.1\r\ncontent-length: 3\r\n",
            "POST /t HTTP/1.1\r\ncontent-length: 3\r\n\r\na=",
        ] {
            assert_eq!(body(part), None, "{part}");
        }
    }
}
