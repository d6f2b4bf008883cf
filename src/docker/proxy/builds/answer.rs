//! The client's answer to one call of the engine, judged while it passes: no message of a file is released
//! before the file is judged.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Polling, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::context::{self, Context, MessageFindings};
use super::message::{Messages, Unread};
use super::upload::Upload;
use crate::docker::proxy::texts::FoundKey;

/// Something to decide on or to report while an answer passes.
#[derive(Debug)]
pub(super) enum GuardReport {
    /// Keys, one text each.
    Found(Vec<FoundKey>),
    /// The answer cannot be judged any further; the reason.
    Unread(&'static str),
    /// Something passes unchecked; what, and why.
    Unverified(String),
    /// Something passes, and a person should know about it.
    Note(String),
}

/// Decides on a [`GuardReport`] and reports it. An error is the text for the engine, and ends the answer.
pub(super) type Decide = Arc<dyn Fn(&str, GuardReport) -> Result<(), String> + Send + Sync>;

/// Decides on everything found in one message.
pub(super) fn decide(decide: &Decide, who: &str, told: MessageFindings) -> Result<(), String> {
    if !told.found.is_empty() {
        decide(who, GuardReport::Found(told.found))?;
    }
    told.unverified.into_iter().try_for_each(|why| decide(who, GuardReport::Unverified(why)))?;
    told.notes.into_iter().try_for_each(|note| decide(who, GuardReport::Note(note)))
}

/// How an answer is parsed.
#[derive(Debug)]
pub(super) enum Reading {
    Context(Box<Context>),
    Upload(Box<Upload>),
}

impl Reading {
    fn push(&mut self, message: Bytes) -> Result<MessageFindings, Unread> {
        match self {
            Reading::Context(context) => context.push(message),
            Reading::Upload(upload) => upload.push(message),
        }
    }

    fn release(&mut self) -> Option<Bytes> {
        match self {
            Reading::Context(context) => context.release(),
            Reading::Upload(upload) => upload.release(),
        }
    }

    /// Called at the end of the answer.
    fn end(&mut self) -> MessageFindings {
        match self {
            Reading::Context(context) => context.end(),
            Reading::Upload(upload) => upload.end(),
        }
    }

    /// Returns the messages that still wait for a judgement; they will not be judged.
    fn give_up(&mut self) -> Vec<Bytes> {
        match self {
            Reading::Context(context) => context.give_up(),
            Reading::Upload(upload) => upload.give_up(),
        }
    }
}

/// The body of a client's answer, judged on its way to the engine.
pub(super) struct JudgedBody<B = Incoming> {
    inner: B,
    /// Names the body in messages.
    who: String,
    messages: Messages,
    /// `None` once the rest passes unjudged.
    reading: Option<Reading>,
    decide: Decide,
    out: VecDeque<Bytes>,
    /// Sent after everything in `out`.
    trailers: Option<HeaderMap>,
    ended: bool,
}

impl<B> JudgedBody<B> {
    pub(super) fn new(inner: B, who: String, reading: Reading, decide: Decide) -> Self {
        Self {
            inner,
            who,
            messages: Messages::default(),
            reading: Some(reading),
            decide,
            out: VecDeque::new(),
            trailers: None,
            ended: false,
        }
    }

    fn take(&mut self, bytes: Bytes) {
        if let Err(why) = self.read(bytes) {
            self.refuse(&why);
        }
    }

    /// Ends the answer. For a context, the engine also gets the reason as a packet: when it receives the
    /// trailers of a failed call, it cancels its work and may then report the cancellation as the cause.
    fn refuse(&mut self, why: &str) {
        self.out.clear();
        if let Some(Reading::Context(_)) = self.reading {
            self.out.extend(context::error(&one_line(why)));
        }
        self.trailers = Some(refused(why));
        self.ended = true;
    }

    fn read(&mut self, bytes: Bytes) -> Result<(), String> {
        if self.reading.is_none() {
            self.out.push_back(bytes);
            return Ok(());
        }
        if let Err(Unread(why)) = self.messages.push(bytes) {
            return self.unread(why, None);
        }
        loop {
            let message = match self.messages.next() {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(Unread(why)) => return self.unread(why, None),
            };
            let Some(reading) = &mut self.reading else { return Ok(()) };
            match reading.push(message.clone()) {
                Ok(told) => {
                    decide(&self.decide, &self.who, told)?;
                    self.out.extend(std::iter::from_fn(|| reading.release()));
                }
                Err(Unread(why)) => return self.unread(why, Some(message)),
            }
        }
    }

    /// Called if the answer cannot be judged any further. Unless `decide` makes that an error, `message` and
    /// everything after it passes.
    fn unread(&mut self, why: &'static str, message: Option<Bytes>) -> Result<(), String> {
        (self.decide)(&self.who, GuardReport::Unread(why))?;
        let waiting = self.reading.take().map(|mut reading| reading.give_up()).unwrap_or_default();
        self.out.extend(waiting.into_iter().chain(message).chain(self.messages.rest()));
        Ok(())
    }

    fn end(&mut self, trailers: Option<HeaderMap>) {
        self.ended = true;
        self.trailers = trailers;
        let Some(reading) = &mut self.reading else { return };
        if let Err(why) = decide(&self.decide, &self.who, reading.end()) {
            self.refuse(&why);
            return;
        }
        self.out.extend(std::iter::from_fn(|| reading.release()));
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for JudgedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        polling: &mut Polling<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        loop {
            if let Some(piece) = self.out.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if self.ended {
                return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
            }
            match ready!(Pin::new(&mut self.inner).poll_frame(polling)) {
                None => self.end(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.take(bytes),
                    Err(frame) => self.end(frame.into_trailers().ok()),
                },
            }
        }
    }
}

/// A file name in a message must not start a new line.
fn one_line(text: &str) -> String {
    text.chars().map(|char| if char < ' ' { '?' } else { char }).collect()
}

/// gRPC's trailers for a call that is not permitted. The engine shows the text to the person who builds.
pub(super) fn refused(why: &str) -> HeaderMap {
    status(7, why)
}

/// `grpc-status` and `grpc-message`, in gRPC's percent encoding.
pub(super) fn status(code: u16, text: &str) -> HeaderMap {
    let mut message = String::with_capacity(text.len());
    for byte in one_line(text).bytes() {
        match byte {
            b'%' | 0x7f.. => message.push_str(&format!("%{byte:02X}")),
            _ => message.push(char::from(byte)),
        }
    }
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from(code));
    if let Ok(message) = HeaderValue::try_from(message) {
        headers.insert(HeaderName::from_static("grpc-message"), message);
    }
    headers
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Mutex;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use futures_util::stream;
    use http_body_util::{BodyExt, StreamBody};
    use ring::rand::{SecureRandom, SystemRandom};

    use super::*;
    use crate::guard::GuardRules;

    /// Recorded from buildx 0.29: eight entries; the content of `key.pem` is `@`, 1 704 times.
    const CONTEXT: &[u8] =
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/buildkit/context.bin"));
    /// The archive that `docker build - <archive` sends; `key.pem` has the same content.
    const UPLOAD: &[u8] =
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/buildkit/upload.bin"));

    /// Puts a key of the same length in place of `key.pem`'s content. It is made when the test runs and
    /// opens nothing.
    fn with_key(recorded: &[u8]) -> Vec<u8> {
        let (dashes, label) = ("-".repeat(5), ["PRIVATE", "KEY"].join(" "));
        // The head of an RSA key in PKCS#8 (RFC 5208), then noise of the length that it declares.
        let mut der = vec![
            0x30, 0x82, 0x04, 0xbe, 2, 1, 0, 0x30, 0x0d, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1,
            5, 0,
        ];
        der.extend([0x04, 0x82, 0x04, 0xa8, 0x30, 0x82, 0x04, 0xa4, 2, 1, 0]);
        let head = der.len();
        der.resize(1_218, 0);
        SystemRandom::new().fill(&mut der[head..]).unwrap();
        let text = STANDARD.encode(der);
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let body = lines.join("\n");
        let key =
            format!("{dashes}BEGIN {label}{dashes}\n{body}\n{dashes}END {label}{dashes}\n").into_bytes();
        assert_eq!(key.len(), 1_704);
        // In the archive a message ends within the key.
        let mut key = key.into_iter();
        let mut bytes = recorded.to_vec();
        for run in bytes.chunk_by_mut(|a, b| a == b).filter(|run| run.len() >= 16 && run[0] == b'@') {
            run.fill_with(|| key.next().unwrap());
        }
        assert_eq!(key.len(), 0);
        bytes
    }

    fn files(allow: &[&str]) -> Reading {
        Reading::Context(Box::new(Context::new(rules(allow))))
    }

    fn upload(allow: &[&str]) -> Reading {
        Reading::Upload(Box::new(Upload::new(rules(allow))))
    }

    fn rules(allow: &[&str]) -> GuardRules {
        GuardRules { allow: allow.iter().map(Into::into).collect(), ..GuardRules::default() }
    }

    #[derive(Debug, Default)]
    struct Passed {
        bytes: Vec<u8>,
        trailers: Option<HeaderMap>,
        matters: Vec<String>,
    }

    impl Passed {
        fn message(&self) -> &str {
            self.trailers
                .as_ref()
                .and_then(|trailers| trailers.get("grpc-message")?.to_str().ok())
                .unwrap_or("")
        }
    }

    /// Passes `bytes` through in pieces of `size`.
    async fn pass(reading: Reading, bytes: &[u8], size: usize, deny: bool) -> Passed {
        let matters = Arc::new(Mutex::new(vec![]));
        let kept = matters.clone();
        let decide: Decide = Arc::new(move |who, matter| {
            let text = format!("{who}: {matter:?}");
            kept.lock().unwrap().push(text.clone());
            if deny && !matches!(matter, GuardReport::Unverified(_) | GuardReport::Note(_)) {
                Err(text)
            } else {
                Ok(())
            }
        });
        let pieces = bytes.chunks(size).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))));
        let mut end = HeaderMap::new();
        end.insert("grpc-status", HeaderValue::from(0));
        let frames: Vec<Result<_, Infallible>> = pieces.chain([Ok(Frame::trailers(end))]).collect();
        let inner = StreamBody::new(stream::iter(frames));
        let mut answer = JudgedBody::new(inner, "build context".into(), reading, decide);
        let mut passed = Passed::default();
        while let Some(frame) = answer.frame().await {
            match frame.unwrap().into_data() {
                Ok(bytes) => passed.bytes.extend_from_slice(&bytes),
                Err(frame) => passed.trailers = frame.into_trailers().ok(),
            }
        }
        passed.matters = matters.lock().unwrap().clone();
        passed
    }

    const SIZES: [usize; 5] = [1, 7, 1_000, 16_384, 1 << 20];

    /// The messages in sorted order: those of a file wait for its end, so their order may differ from the
    /// recording's.
    fn sorted(bytes: &[u8]) -> Vec<Bytes> {
        let mut messages = Messages::default();
        messages.push(Bytes::copy_from_slice(bytes)).unwrap();
        let mut all: Vec<Bytes> = std::iter::from_fn(|| messages.next().unwrap()).collect();
        assert_eq!(messages.rest().count(), 0);
        all.sort();
        all
    }

    #[tokio::test]
    async fn contexts_without_a_key_pass_unchanged() {
        for size in SIZES {
            for (reading, bytes) in [(files(&[]), CONTEXT), (upload(&[]), UPLOAD)] {
                let passed = pass(reading, bytes, size, true).await;
                assert_eq!(passed.matters, Vec::<String>::new());
                assert_eq!(passed.trailers.as_ref().unwrap()["grpc-status"], "0");
                assert_eq!(sorted(&passed.bytes), sorted(bytes), "pieces of {size}");
            }
        }
    }

    #[tokio::test]
    async fn a_key_is_withheld_and_the_engine_gets_its_file_name() {
        for size in SIZES {
            for (reading, recorded) in [(files(&[]), CONTEXT), (upload(&[]), UPLOAD)] {
                let passed = pass(reading, &with_key(recorded), size, true).await;
                assert_eq!(passed.trailers.as_ref().unwrap()["grpc-status"], "7");
                assert!(passed.message().contains("a private key at key.pem"), "{:?}", passed.message());
                let parts = passed.bytes.windows(16).any(|part| part == b"MIIEvgIBADANBgkq");
                assert!(!parts, "a part of the key went on, in pieces of {size}");
                let mut messages = Messages::default();
                messages.push(passed.bytes.into()).unwrap();
                let last = std::iter::from_fn(|| messages.next().unwrap()).last().unwrap_or_default();
                let told = last.windows(24).any(|part| part == b"a private key at key.pem");
                assert_eq!(told, recorded == CONTEXT, "{last:?}");
            }
        }
    }

    #[tokio::test]
    async fn warned_and_allowed_keys_pass() {
        for (reading, recorded) in [(files(&[]), CONTEXT), (upload(&[]), UPLOAD)] {
            let bytes = with_key(recorded);
            let passed = pass(reading, &bytes, 1_000, false).await;
            assert_eq!(passed.matters.len(), 1, "{:?}", passed.matters);
            assert_eq!(sorted(&passed.bytes), sorted(&bytes));
        }
        for (reading, recorded) in [(files(&["key.pem"]), CONTEXT), (upload(&["key.pem"]), UPLOAD)] {
            let bytes = with_key(recorded);
            let passed = pass(reading, &bytes, 1_000, true).await;
            assert_eq!(passed.matters, Vec::<String>::new());
            assert_eq!(sorted(&passed.bytes), sorted(&bytes));
        }
    }

    fn message(packet: &[u8]) -> Vec<u8> {
        [&[0, 0, 0, 0, u8::try_from(packet.len()).unwrap()], packet].concat()
    }

    /// Where keys are refused, unparsable data ends the build; otherwise it passes, with everything after it.
    #[tokio::test]
    async fn unparsable_data_ends_the_build() {
        let named = message(&[0x12, 5, 0x0a, 1, b'a', 0x10, 4]);
        for (what, why) in [
            (vec![1, 0, 0, 0, 0], "a compressed message"),
            (vec![0, 0xff, 0, 0, 0], "a message of more than 16 MiB"),
            (message(&[0x08, 5]), "a packet of an unknown type"),
            (message(&[0x2a, 1, 0]), "a packet with an unknown field"),
            (message(&[0x08, 2, 0x18, 9, 0x22, 1, b'x']), "data of a file that was not named"),
            (message(&[0x08, 3, 0x22, 1, b'x']), "a packet of an unknown type"),
            (message(&[0x08, 2, 0x08, 3]), "a message with a field that is there twice"),
            (message(&[0x08]), "a message that is not protobuf"),
        ] {
            // The last message ends the file, so that the file is judged.
            let bytes = [&named[..], &what, &message(&[0x08, 2, 0x18, 9])].concat();
            let denied = pass(files(&[]), &bytes, 3, true).await;
            assert_eq!(denied.trailers.as_ref().unwrap()["grpc-status"], "7", "{why}");
            assert!(denied.message().contains(why), "{why}: {}", denied.message());
            let warned = pass(files(&[]), &bytes, 3, false).await;
            assert_eq!(warned.bytes.len(), bytes.len(), "{why}");
            assert_eq!(warned.matters.len(), 1, "{why}: {:?}", warned.matters);
        }
    }

    /// The packets of two files interleave; of a long file, only the beginning waits.
    #[tokio::test]
    async fn a_long_file_passes_once_its_beginning_is_judged() {
        let data = |id: u8, bytes: &[u8]| {
            let length = bytes.len();
            let varint =
                [(length & 0x7f) as u8 | 0x80, (length >> 7 & 0x7f) as u8 | 0x80, (length >> 14) as u8];
            let packet = [&[0x08, 2, 0x18, id, 0x22], &varint[..], bytes].concat();
            [&[0][..], &u32::try_from(packet.len()).unwrap().to_be_bytes(), &packet].concat()
        };
        let piece = vec![b'z'; 32 << 10];
        let mut context = Context::new(GuardRules::default());
        let mut push = |bytes: &[u8]| {
            assert_eq!(context.push(Bytes::copy_from_slice(bytes)), Ok(MessageFindings::default()));
            std::iter::from_fn(|| context.release()).count()
        };
        assert_eq!(push(&message(&[0x12, 3, 0x0a, 1, b'a'])), 1);
        assert_eq!(push(&message(&[0x12, 3, 0x0a, 1, b'b'])), 1);
        for _ in 0..31 {
            assert_eq!(push(&data(0, &piece)), 0);
            assert_eq!(push(&data(1, &piece)), 0);
        }
        // All but the bytes that the next window shares with this one.
        assert_eq!(push(&data(0, &piece)), 30, "the beginning is whole");
        assert_eq!(push(&data(0, &piece)), 0);
        assert_eq!(push(&message(&[0x08, 2, 0x18, 1])), 32, "the other one has ended");
        assert_eq!(push(&message(&[0x08, 2])), 4);
    }

    #[test]
    fn a_grpc_message_is_one_percent_encoded_line() {
        let headers = refused("100% of «a\nb»");
        assert_eq!(headers["grpc-message"], "100%25 of %C2%ABa?b%C2%BB");
    }
}
