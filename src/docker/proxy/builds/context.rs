//! A build context as a client sends it: fsutil's packets in `FileSync/DiffCopy` (known from the source of
//! fsutil's sender and from recordings with buildx 0.29 and Engine 28.5).
//!
//! The client announces every entry in a STAT packet; entries are numbered in that order. The engine asks for
//! the files that it lacks, and each comes as DATA packets with its number, the last one empty. Packets of
//! several files interleave.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::message::{FieldValue, PREFIX, Unread, delimited, fields, framed, once};
use crate::docker::proxy::texts::FoundKey;
use crate::docker::proxy::upload::SCAN_CHUNK;
use crate::guard::GuardRules;
use crate::guard::found::PassedOver;
use crate::guard::stream::Stream;

/// Bits of Go's `fs.FileMode`: directory, symbolic link, device, pipe, socket, character device, irregular.
/// Entries without any of these are files, and only files have data.
const NO_FILE: u64 = 0x8f28_0000;
/// Most bytes held of files whose beginning is incomplete; clients send four files at once.
const MOST_HELD: usize = 64 << 20;
/// Most bytes of names; enough for several million files.
const MOST_NAMES: usize = 512 << 20;

/// What the proxy found in one message, for a person.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct MessageFindings {
    /// Keys, one text each.
    pub(super) found: Vec<FoundKey>,
    /// Files that were not checked, and why.
    pub(super) unverified: Vec<String>,
    /// Reports on files that pass.
    pub(super) notes: Vec<String>,
}

/// The message with which a sender of fsutil reports an error: type 4, with the reason as its data.
pub(super) fn error(why: &str) -> Option<Bytes> {
    framed(&[&[0x08, 4], &delimited(4, why.as_bytes())[..]].concat())
}

/// Judges the files of one context as they pass.
#[derive(Debug)]
pub(super) struct Context {
    rules: GuardRules,
    names: Names,
    files: HashMap<u64, File>,
    held: usize,
    out: VecDeque<Bytes>,
    /// Published keys in files that have passed.
    passed: PassedOver,
}

/// A file in transfer; `None` for one in which the config allows keys.
#[derive(Debug, Default)]
struct File(Option<JudgedTransfer>);

#[derive(Debug)]
struct JudgedTransfer {
    stream: Stream,
    /// Messages held until judged, each with the offset in the file at which it ends.
    waiting: VecDeque<(u64, Bytes)>,
    received: u64,
}

#[derive(Debug, Default)]
struct Packet<'a> {
    kind: Option<u64>,
    stat: Option<&'a [u8]>,
    id: Option<u64>,
    data: Option<&'a [u8]>,
}

impl Context {
    pub(super) fn new(rules: GuardRules) -> Self {
        let (files, passed) = (HashMap::new(), PassedOver::default());
        Self { rules, names: Names::default(), files, held: 0, out: VecDeque::new(), passed }
    }

    /// Takes one message of the client, prefix included. The caller decides on the result before it calls
    /// [`Self::release`], which returns the file's messages.
    pub(super) fn push(&mut self, message: Bytes) -> Result<MessageFindings, Unread> {
        let packet = Packet::read(&message[PREFIX..])?;
        match packet.kind.unwrap_or(0) {
            0 => {
                if let Some(stat) = packet.stat {
                    self.names.push(stat)?;
                }
            }
            2 => {
                let id = packet.id.unwrap_or(0);
                let data = message.slice_ref(packet.data.unwrap_or_default());
                return self.data(id, message, &data);
            }
            // Type 1 asks for a file, 3 ends the exchange, 4 reports why it failed.
            1 | 3 | 4 if packet.data.is_none_or(<[u8]>::is_empty) || packet.kind == Some(4) => {}
            _ => return Err(Unread("a packet of an unknown type")),
        }
        self.out.push_back(message);
        Ok(MessageFindings::default())
    }

    /// The next message that may be sent on.
    pub(super) fn release(&mut self) -> Option<Bytes> {
        self.out.pop_front()
    }

    /// Called at the end of the context.
    pub(super) fn end(&mut self) -> MessageFindings {
        let notes = std::mem::take(&mut self.passed).told();
        MessageFindings { notes: notes.into_iter().collect(), ..MessageFindings::default() }
    }

    /// Returns the messages that wait for the rest of their file.
    pub(super) fn give_up(&mut self) -> Vec<Bytes> {
        let judged = self.files.drain().filter_map(|(_, file)| file.0);
        let waiting = judged.flat_map(|judged| judged.waiting).map(|(_, message)| message);
        self.out.drain(..).chain(waiting).collect()
    }

    fn data(&mut self, id: u64, message: Bytes, part: &Bytes) -> Result<MessageFindings, Unread> {
        if self.held + message.len() > MOST_HELD {
            return Err(Unread("more files at once than any client sends"));
        }
        if !self.files.contains_key(&id) {
            let file = self.begin(id)?;
            self.files.insert(id, file);
        }
        let mut told = MessageFindings::default();
        match self.files.get_mut(&id) {
            Some(File(Some(judged))) => {
                self.held += message.len();
                judged.push(message, part, &mut told);
                while let Some(message) = judged.release(part.is_empty()) {
                    self.held -= message.len();
                    self.out.push_back(message);
                }
            }
            _ => self.out.push_back(message),
        }
        if part.is_empty()
            && let Some(File(Some(mut judged))) = self.files.remove(&id)
        {
            self.passed.add(judged.stream.take_passed());
        }
        Ok(told)
    }

    fn begin(&self, id: u64) -> Result<File, Unread> {
        let name = self.names.get(id).ok_or(Unread("data of a file that was not named"))?;
        if self.rules.allows_inside(&name) {
            return Ok(File(None));
        }
        Ok(File(Some(JudgedTransfer { stream: Stream::file(&name), waiting: VecDeque::new(), received: 0 })))
    }
}

impl JudgedTransfer {
    fn push(&mut self, message: Bytes, part: &Bytes, told: &mut MessageFindings) {
        self.received += part.len() as u64;
        self.waiting.push_back((self.received, message));
        part.chunks(SCAN_CHUNK).for_each(|chunk| self.stream.push_root(chunk));
        if part.is_empty() {
            self.stream.end();
            told.unverified = self.stream.take_unverified();
        }
        let finds = self.stream.take_finds().into_iter();
        told.found.extend(
            finds.map(|find| FoundKey::inside(format!("it holds {} at {}", find.kind, find.name), &find)),
        );
    }

    fn release(&mut self, end: bool) -> Option<Bytes> {
        let judged = if end { u64::MAX } else { self.stream.safe() };
        self.waiting.pop_front_if(|(end, _)| *end <= judged).map(|(_, message)| message)
    }
}

impl<'a> Packet<'a> {
    fn read(message: &'a [u8]) -> Result<Self, Unread> {
        let mut packet = Self::default();
        for field in fields(message) {
            match field? {
                (1, FieldValue::Number(kind)) => once(&mut packet.kind, kind)?,
                (2, FieldValue::Bytes(stat)) => once(&mut packet.stat, stat)?,
                (3, FieldValue::Number(id)) => once(&mut packet.id, id)?,
                (4, FieldValue::Bytes(data)) => once(&mut packet.data, data)?,
                _ => return Err(Unread("a packet with an unknown field")),
            }
        }
        Ok(packet)
    }
}

/// The names of the files, concatenated: a context may have a million.
#[derive(Debug, Default)]
struct Names {
    text: Vec<u8>,
    /// The end offset of each entry's name; the name of an entry other than a file is empty.
    ends: Vec<u32>,
}

impl Names {
    fn push(&mut self, stat: &[u8]) -> Result<(), Unread> {
        let (mut path, mut mode) = (None, None);
        for field in fields(stat) {
            match field? {
                (1, FieldValue::Bytes(bytes)) => once(&mut path, bytes)?,
                (2, FieldValue::Number(bits)) => once(&mut mode, bits)?,
                _ => {}
            }
        }
        if mode.unwrap_or(0) & NO_FILE == 0 {
            self.text.extend_from_slice(path.unwrap_or_default());
        }
        if self.text.len() > MOST_NAMES {
            return Err(Unread("more names than a context can have"));
        }
        self.ends.push(u32::try_from(self.text.len()).unwrap_or(u32::MAX));
        Ok(())
    }

    fn get(&self, id: u64) -> Option<String> {
        let id = usize::try_from(id).ok().filter(|id| *id < self.ends.len())?;
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        let name = &self.text[start..self.ends[id] as usize];
        (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
    }
}
