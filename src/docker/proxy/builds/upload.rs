//! A context sent as one stream: `docker build - <context.tar`, in `Upload/Pull`.

use std::collections::VecDeque;

use bytes::Bytes;

use super::context::MessageFindings;
use super::message::{FieldValue, PREFIX, Unread, fields, once};
use crate::docker::proxy::texts::FoundKey;
use crate::docker::proxy::upload::{SCAN_CHUNK, in_archive};
use crate::guard::GuardRules;
use crate::guard::stream::Stream;

/// Judges the stream, an archive or a single file, as it passes.
#[derive(Debug)]
pub(super) struct Upload {
    rules: GuardRules,
    stream: Stream,
    /// Messages held until judged, each with the offset in the stream at which it ends.
    waiting: VecDeque<(u64, Bytes)>,
    received: u64,
    ended: bool,
}

impl Upload {
    pub(super) fn new(rules: GuardRules) -> Self {
        Self { rules, stream: Stream::files(), waiting: VecDeque::new(), received: 0, ended: false }
    }

    /// The caller decides on the result before it calls [`Self::release`].
    pub(super) fn push(&mut self, message: Bytes) -> Result<MessageFindings, Unread> {
        let mut data = None;
        for field in fields(&message[PREFIX..]) {
            match field? {
                (1, FieldValue::Bytes(bytes)) => once(&mut data, bytes)?,
                _ => return Err(Unread("an upload with an unknown field")),
            }
        }
        let data = message.slice_ref(data.unwrap_or_default());
        self.received += data.len() as u64;
        self.waiting.push_back((self.received, message));
        data.chunks(SCAN_CHUNK).for_each(|chunk| self.stream.push_root(chunk));
        Ok(MessageFindings { found: self.found(), ..MessageFindings::default() })
    }

    fn found(&mut self) -> Vec<FoundKey> {
        in_archive(self.stream.take_finds(), &self.rules).collect()
    }

    pub(super) fn release(&mut self) -> Option<Bytes> {
        let judged = if self.ended { u64::MAX } else { self.stream.safe() };
        self.waiting.pop_front_if(|(end, _)| *end <= judged).map(|(_, message)| message)
    }

    /// Called at the end of the stream; every held message may be sent on afterwards.
    pub(super) fn end(&mut self) -> MessageFindings {
        self.stream.end();
        self.ended = true;
        let (unverified, notes) = (self.stream.take_unverified(), self.stream.take_passed().told());
        MessageFindings { found: self.found(), unverified, notes: notes.into_iter().collect() }
    }

    pub(super) fn give_up(&mut self) -> Vec<Bytes> {
        self.waiting.drain(..).map(|(_, message)| message).collect()
    }
}
