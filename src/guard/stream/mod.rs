//! Checks one file as it streams by: a plain file, an archive, compressed data, or one nested in another. Its
//! first bytes decide what it is opened as, not its name: engines and programs decide the same way.

mod archive;
pub mod image;
mod zip;

use std::collections::VecDeque;

use zeroize::Zeroize;

use crate::guard::found::{ArchivedFind, LayerRole, Nesting, Notes, PassedOver};
use crate::guard::judge::{self, FileJudge};
use crate::guard::unpack::Unpack;
use crate::guard::zstd::Why;
use archive::{Tar, checksum_fits};
use zip::{Zip, closed};

/// The number of first bytes that decide what a file is.
const ENOUGH: usize = 512;
/// The largest manifest or config of an image; a larger document is judged as a file.
const LARGEST_DOCUMENT: usize = 4 << 20;
const MOST_DOCUMENTS: usize = 4096;

/// A file's reader. It holds at most one window of one file, and what a decoder needs.
#[derive(Debug)]
pub struct Stream {
    name: String,
    place: Nesting,
    pushed: u64,
    state: StreamState,
    /// Whether its bytes come out of a compressed file, whose name it keeps.
    packed: bool,
}

#[derive(Debug)]
enum StreamState {
    Begin(Vec<u8>),
    File(FileJudge),
    /// Possibly a document of an image.
    Document(Vec<u8>),
    Tar(Box<Tar>),
    Zip(Box<Zip>),
    Packed(Box<Packed>),
    /// The rest passes unread; this was reported.
    Closed,
}

/// What a file is, decided by its first bytes.
enum ContentFormat {
    File,
    Document,
    Tar,
    /// The archive begins after this many bytes.
    Zip(usize),
    Packed(Unpack),
    Closed(&'static str),
}

impl ContentFormat {
    fn of(head: &[u8], role: LayerRole) -> Self {
        match head {
            _ if head.len() >= ENOUGH && checksum_fits(&head[..ENOUGH]) => Self::Tar,
            [b'{' | b'[', ..] if role == LayerRole::Image => Self::Document,
            _ => match (Unpack::of(head), zip::start(head), closed(head)) {
                (Some(unpack), _, _) => Self::Packed(unpack),
                (_, Some(at), _) => Self::Zip(at),
                (_, _, Some(why)) => Self::Closed(why),
                _ => Self::File,
            },
        }
    }
}

/// Judges a file whose bytes are all here, without copying it unless it is an archive.
pub(super) fn whole(name: &str, bytes: &[u8], place: &Nesting) {
    if matches!(ContentFormat::of(bytes, place.role), ContentFormat::File) {
        in_file(name, bytes, place);
        return;
    }
    let mut stream = Stream::of(name, place.clone());
    stream.push(bytes);
    stream.end();
}

fn in_file(name: &str, bytes: &[u8], place: &Nesting) {
    let (found, passed) = judge::all(bytes, place.lines);
    if let Some((kind, line)) = found {
        place.find(name, kind, line);
    }
    place.pass(name, &passed);
}

/// Whether a file that begins with `head` is opened: an archive or compressed data.
pub(super) fn is_opened(head: &[u8]) -> bool {
    !matches!(ContentFormat::of(head, LayerRole::Files), ContentFormat::File)
}

impl Stream {
    /// For a request body that is an archive of files: a copy, a build context, an import.
    pub fn files() -> Self {
        Self::of("", Nesting::root(LayerRole::Files))
    }

    /// For a request body that is an image to load.
    pub fn image() -> Self {
        Self::of("", Nesting::root(LayerRole::Image))
    }

    /// For one file, with its name for messages. Archives in it are opened.
    pub fn file(name: &str) -> Self {
        Self::of(name, Nesting { depth: crate::guard::found::NESTED, ..Nesting::root(LayerRole::Files) })
    }

    /// Finds carry line numbers.
    #[must_use]
    pub fn with_lines(mut self) -> Self {
        self.place.lines = true;
        self
    }

    /// Limits the output of decoders to `bytes` plus [`crate::guard::found::UNPACKED_RATIO`] times the input.
    #[must_use]
    pub(super) fn with_allowance(self, bytes: u64) -> Self {
        self.place.found.allow(bytes);
        self
    }

    pub(super) fn of(name: &str, place: Nesting) -> Self {
        Self { name: name.into(), place, pushed: 0, state: StreamState::Begin(vec![]), packed: false }
    }

    /// Takes the next bytes, of any number. One push may decompress to a thousand times as many.
    pub fn push_root(&mut self, bytes: &[u8]) {
        self.place.found.pushed(bytes.len());
        self.push(bytes);
    }

    pub fn take_finds(&mut self) -> Vec<ArchivedFind> {
        self.place.found.take_finds()
    }

    /// What was not scanned, and why; complete after the end.
    pub fn take_unverified(&mut self) -> Vec<String> {
        self.place.found.take_unverified()
    }

    /// Published keys in the files that have ended.
    pub fn take_passed(&mut self) -> PassedOver {
        self.place.found.take_passed()
    }

    /// Bytes that were pushed, plus bytes that came out of decoders.
    pub fn bytes(&self) -> u64 {
        self.place.found.bytes()
    }

    pub(super) fn notes(&self) -> Notes {
        let mut notes = Notes::default();
        self.place.found.notes(|all| notes = std::mem::take(all));
        notes
    }

    /// Whether this is an archive or compressed data, opened or not.
    pub fn is_archive(&self) -> bool {
        match &self.state {
            StreamState::Begin(head) => !matches!(
                ContentFormat::of(head, self.place.role),
                ContentFormat::File | ContentFormat::Document
            ),
            StreamState::File(_) | StreamState::Document(_) => false,
            StreamState::Tar(_) | StreamState::Zip(_) | StreamState::Closed => true,
            StreamState::Packed(packed) => packed.inner.is_archive(),
        }
    }

    /// How many of the last pushed bytes are not judged yet.
    pub fn unjudged(&self) -> u64 {
        match &self.state {
            StreamState::Begin(head) | StreamState::Document(head) => head.len() as u64,
            StreamState::File(judge) => judge.unjudged(),
            StreamState::Tar(tar) => tar.unjudged(),
            StreamState::Zip(zip) => zip.unjudged(),
            StreamState::Packed(packed) => packed.pushed - packed.judged,
            StreamState::Closed => 0,
        }
    }

    /// How many bytes of the stream may be forwarded: everything before this offset was judged.
    pub fn safe(&self) -> u64 {
        self.pushed - self.unjudged()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.pushed += bytes.len() as u64;
        let Self { name, place, state, .. } = self;
        match state {
            StreamState::Begin(head) => {
                let (now, later) = bytes.split_at((ENOUGH - head.len()).min(bytes.len()));
                head.extend_from_slice(now);
                if head.len() == ENOUGH {
                    self.begin();
                    self.pushed -= later.len() as u64;
                    self.push(later);
                }
            }
            StreamState::File(judge) => judge.push(name, bytes, place),
            StreamState::Document(document) if document.len() + bytes.len() > LARGEST_DOCUMENT => {
                place.doubt(name, "a document larger than is read");
                let mut judge = FileJudge::default();
                judge.push(name, document, place);
                judge.push(name, bytes, place);
                document.zeroize();
                self.state = StreamState::File(judge);
            }
            StreamState::Document(document) => document.extend_from_slice(bytes),
            StreamState::Tar(tar) => tar.push(bytes),
            StreamState::Zip(zip) => zip.push(bytes),
            StreamState::Packed(packed) => {
                if let Err(why) = packed.push(bytes, place) {
                    packed.give_up();
                    place.doubt(name, why.text());
                    self.state = StreamState::Closed;
                }
            }
            StreamState::Closed => {}
        }
    }

    /// Decides by the first bytes what the file is, and judges them.
    fn begin(&mut self) {
        let StreamState::Begin(mut head) = std::mem::replace(&mut self.state, StreamState::Closed) else {
            return;
        };
        self.state = self.opened(ContentFormat::of(&head, self.place.role));
        self.pushed -= head.len() as u64;
        self.push(&head);
        head.zeroize();
    }

    fn opened(&self, form: ContentFormat) -> StreamState {
        let deep = || {
            self.place.doubt(&self.name, "an archive so deep in others is not opened");
            StreamState::Closed
        };
        match form {
            ContentFormat::File => StreamState::File(FileJudge::default()),
            ContentFormat::Document => StreamState::Document(vec![]),
            ContentFormat::Tar => match self.place.inside(&self.name, true) {
                Some(inside) => StreamState::Tar(Box::new(Tar::of(inside))),
                None => deep(),
            },
            ContentFormat::Zip(at) => match self.place.inside(&self.name, false) {
                Some(inside) => StreamState::Zip(Box::new(Zip::new(at, inside))),
                None => deep(),
            },
            // Data compressed twice counts as one archive inside another.
            ContentFormat::Packed(unpack) => {
                let depth = self.place.depth.checked_sub(u8::from(self.packed));
                match depth {
                    Some(depth) if depth > 0 => {
                        let place = Nesting { depth, ..self.place.clone() };
                        let inner = Self { packed: true, ..Self::of(&self.name, place) };
                        StreamState::Packed(Box::new(Packed::new(unpack, inner)))
                    }
                    _ => deep(),
                }
            }
            ContentFormat::Closed(why) => {
                self.place.doubt(&self.name, why);
                StreamState::Closed
            }
        }
    }

    pub fn end(&mut self) {
        if matches!(self.state, StreamState::Begin(_)) {
            self.begin();
        }
        let Self { name, place, state, .. } = self;
        match state {
            StreamState::Begin(_) | StreamState::Closed => {}
            StreamState::File(judge) => judge.end(name, place),
            StreamState::Document(document) => {
                match image::document(document) {
                    Some(value) => {
                        for (kind, at, exception) in image::config(&value) {
                            place.find_as(&at, kind, None, exception);
                        }
                        place.found.notes(|notes| {
                            if notes.documents.len() < MOST_DOCUMENTS {
                                notes.documents.push(value);
                            }
                        });
                    }
                    None => whole(name, document, &Nesting { role: LayerRole::Files, ..place.clone() }),
                }
                document.zeroize();
            }
            StreamState::Tar(tar) => {
                if tar.broken() || !tar.is_between() {
                    tar.give_up();
                    place.doubt(name, "the archive breaks off or is not understood");
                }
            }
            StreamState::Zip(zip) => {
                if let Some(why) = zip.end() {
                    place.doubt(name, why);
                }
            }
            StreamState::Packed(packed) => {
                if !packed.end(place) {
                    place.doubt(name, Why::Damaged.text());
                }
            }
        }
    }

    /// Judges what came before the damage. The caller reports the damage itself, once.
    pub(super) fn give_up(&mut self) {
        let Self { name, place, state, .. } = self;
        match state {
            StreamState::Begin(head) => in_file(name, head, place),
            StreamState::File(judge) => judge.end(name, place),
            StreamState::Packed(packed) => packed.give_up(),
            StreamState::Tar(tar) => tar.give_up(),
            StreamState::Zip(zip) => zip.give_up(),
            StreamState::Document(_) | StreamState::Closed => {}
        }
    }
}

/// A compressed file, and the reader of its content.
#[derive(Debug)]
pub(super) struct Packed {
    unpack: Unpack,
    inner: Stream,
    pushed: u64,
    judged: u64,
    /// For each pushed piece that is not judged yet: its end in the input, and its end in the output once
    /// known. It is not known where a file begins in the compressed data, but a piece is judged once all its
    /// output is. Some decoders emit a piece's output only with a later piece.
    reached: VecDeque<(u64, Option<u64>)>,
}

impl Packed {
    pub(super) fn new(unpack: Unpack, inner: Stream) -> Self {
        Self { unpack, inner, pushed: 0, judged: 0, reached: VecDeque::new() }
    }

    /// Returns how many of `bytes` belong to the compressed data.
    pub(super) fn push(&mut self, bytes: &[u8], place: &Nesting) -> Result<usize, Why> {
        let Self { unpack, inner, .. } = self;
        let before = inner.pushed;
        let used = unpack.push(bytes, &mut |piece| {
            let more = place.found.unpacked(piece.len());
            inner.push(piece);
            more
        })?;
        self.pushed += used as u64;
        let out = self.inner.pushed + self.unpack.lag();
        if self.unpack.is_immediate() {
            self.reached.push_back((self.pushed, Some(out)));
        } else {
            if self.inner.pushed > before {
                self.reached.iter_mut().for_each(|(_, reached)| {
                    reached.get_or_insert(out);
                });
            }
            self.reached.push_back((self.pushed, None));
        }
        let safe = self.inner.safe();
        while let Some((pushed, _)) = self.reached.pop_front_if(|(_, out)| out.is_some_and(|out| out <= safe))
        {
            self.judged = pushed;
        }
        Ok(used)
    }

    /// False if the compressed data is incomplete.
    pub(super) fn end(&mut self, place: &Nesting) -> bool {
        let Self { unpack, inner, .. } = self;
        let whole = unpack.end(&mut |piece| {
            let more = place.found.unpacked(piece.len());
            inner.push(piece);
            more
        });
        if whole {
            self.inner.end()
        } else {
            self.inner.give_up()
        }
        self.judged = self.pushed;
        whole
    }

    pub(super) fn is_done(&self) -> bool {
        self.unpack.is_done()
    }

    pub(super) fn unjudged(&self) -> u64 {
        self.pushed - self.judged
    }

    /// Judges what came before the damage.
    pub(super) fn give_up(&mut self) {
        self.inner.give_up();
    }
}
