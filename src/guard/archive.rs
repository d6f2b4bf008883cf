//! Tar streams, judged while they pass: bytes go in, finds come out, and [`Tar::safe`] says up to where the
//! stream may be let through because every file before that point was judged.

use super::content::HEAD;
use super::layer::{ENOUGH, Layer};
use super::{Kind, image, what};

const BLOCK: usize = 512;
/// GNU long names and pax records; the engine's own readers take at most this.
const LONGEST_RECORD: usize = 1 << 20;
/// Most places that are named of those that could not be looked at.
const MOST_UNVERIFIED: usize = 16;

/// What stands in an archive.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    pub name: String,
    pub kind: Kind,
    /// The archive in this archive that holds it, where it is one of an image.
    pub layer: Option<String>,
}

/// A reader that is pushed. It holds one file's beginning at most.
#[derive(Debug)]
pub struct Tar {
    state: State,
    /// A header that is not complete yet.
    block: Vec<u8>,
    /// The beginning of the current file, up to [`HEAD`].
    head: Vec<u8>,
    /// From a GNU `L` record or a pax `path`, for the next entry.
    name: Option<String>,
    /// From a pax `size`.
    size: Option<u64>,
    position: u64,
    safe: u64,
    finds: Vec<Entry>,
    names: bool,
    whiteouts: Vec<String>,
    /// Files may be archives of their own, and documents of an image.
    of_image: bool,
    unverified: Vec<String>,
    began: bool,
    broken: bool,
}

#[derive(Debug)]
enum State {
    Header,
    /// The beginning of what may be an archive of its own.
    Peek {
        name: String,
        left: u64,
        pad: u64,
    },
    Layer {
        layer: Layer,
        left: u64,
        pad: u64,
    },
    Body {
        name: String,
        left: u64,
        pad: u64,
        use_for: Use,
    },
    Skip {
        left: u64,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Use {
    File,
    LongName,
    Pax,
}

impl Default for Tar {
    fn default() -> Self {
        Self::new()
    }
}

impl Tar {
    pub fn new() -> Self {
        Self {
            state: State::Header,
            block: Vec::with_capacity(BLOCK),
            head: vec![],
            name: None,
            size: None,
            position: 0,
            safe: 0,
            finds: vec![],
            names: false,
            whiteouts: vec![],
            of_image: false,
            unverified: vec![],
            began: false,
            broken: false,
        }
    }

    /// Keeps the names of deletions (`.wh.NAME` of image layers).
    pub fn with_whiteouts(self) -> Self {
        Self { names: true, ..self }
    }

    /// Reads an image: archives in the archive, and what its documents say of environment, labels and history.
    pub fn of_image(self) -> Self {
        Self { of_image: true, ..self }
    }

    pub fn is_of_image(&self) -> bool {
        self.of_image
    }

    /// What of an image could not be looked at.
    pub fn take_unverified(&mut self) -> Vec<String> {
        std::mem::take(&mut self.unverified)
    }

    pub fn take_finds(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.finds)
    }

    pub fn take_whiteouts(&mut self) -> Vec<String> {
        std::mem::take(&mut self.whiteouts)
    }

    /// How many bytes of the stream belong to entries that are judged.
    pub fn safe(&self) -> u64 {
        if self.broken { self.position } else { self.safe }
    }

    /// How many of the bytes that were pushed are not judged yet.
    pub fn unjudged(&self) -> u64 {
        self.position - self.safe()
    }

    /// Whether it has an entry that could be read.
    pub fn began(&self) -> bool {
        self.began
    }

    /// Not a tar stream, or one that cannot be read to its end.
    pub fn broken(&self) -> bool {
        self.broken
    }

    /// Whether the stream may end here.
    pub fn is_between(&self) -> bool {
        matches!(self.state, State::Header) && self.block.is_empty()
    }

    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.broken {
            let used = match &self.state {
                State::Header => self.header(bytes),
                State::Body { .. } => self.body(bytes),
                State::Peek { .. } => self.peek(bytes),
                State::Layer { .. } => self.layered(bytes),
                State::Skip { left } => {
                    let used = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    self.skipped(used);
                    used
                }
            };
            self.position += used as u64;
            bytes = &bytes[used..];
            if matches!(self.state, State::Skip { .. })
                || (self.is_between() && self.name.is_none() && self.size.is_none())
            {
                self.safe = self.position;
            }
            if let State::Layer { layer, .. } = &self.state {
                self.safe = self.position - layer.unjudged();
            }
        }
        self.position += bytes.len() as u64;
    }

    fn skipped(&mut self, used: usize) {
        if let State::Skip { left } = &mut self.state {
            *left -= used as u64;
            if *left == 0 {
                self.state = State::Header;
            }
        }
    }

    fn header(&mut self, bytes: &[u8]) -> usize {
        let used = (BLOCK - self.block.len()).min(bytes.len());
        if self.block.is_empty() && used == BLOCK {
            self.start(&bytes[..BLOCK]);
            return used;
        }
        self.block.extend_from_slice(&bytes[..used]);
        if self.block.len() == BLOCK {
            let block = std::mem::take(&mut self.block);
            self.start(&block);
        }
        used
    }

    fn start(&mut self, block: &[u8]) {
        if block.iter().all(|b| *b == 0) {
            return;
        }
        let Some(mut size) = number(&block[124..136]).filter(|_| checksum_fits(block)) else {
            self.broken = true;
            return;
        };
        self.began = true;
        let kind = block[156];
        let extension = matches!(kind, b'x' | b'g' | b'L' | b'K');
        if !extension {
            size = self.size.take().unwrap_or(size);
        }
        let pad = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        let own = name_of(block);
        let (name, use_for) = match kind {
            b'L' => (own, Use::LongName),
            b'x' => (own, Use::Pax),
            b'g' | b'K' => (own, Use::File),
            _ => (self.name.take().unwrap_or(own), Use::File),
        };
        if self.names && !extension && last(&name).starts_with(".wh.") {
            self.whiteouts.push(name.clone());
        }
        let regular = matches!(kind, b'0' | 0 | b'7');
        // Links, devices and directories have no body, whatever their size field says.
        let bodiless = matches!(kind, b'1'..=b'6');
        if extension && size > LONGEST_RECORD as u64 {
            self.broken = true;
            return;
        }
        self.state = match () {
            () if bodiless || size == 0 => State::Header,
            () if regular && self.of_image => State::Peek { name, left: size, pad },
            () if regular || extension => State::Body { name, left: size, pad, use_for },
            () => State::Skip { left: size + pad },
        };
    }

    fn body(&mut self, bytes: &[u8]) -> usize {
        let State::Body { left, use_for, .. } = &mut self.state else { return 0 };
        let used = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
        *left -= used as u64;
        let (done, use_for) = (*left == 0, *use_for);
        if done && self.head.is_empty() {
            // All of it is here: no copy.
            self.judge(&bytes[..used], use_for);
            return used;
        }
        let room = HEAD - self.head.len();
        self.head.extend_from_slice(&bytes[..used.min(room)]);
        if done || self.head.len() >= HEAD {
            let mut head = std::mem::take(&mut self.head);
            self.judge(&head, use_for);
            zeroize::Zeroize::zeroize(&mut head);
            // Cleared by that; the allocation stays for the next file.
            self.head = head;
        }
        used
    }

    fn peek(&mut self, bytes: &[u8]) -> usize {
        let State::Peek { left, .. } = &mut self.state else { return 0 };
        let used =
            usize::try_from(*left).unwrap_or(usize::MAX).min(ENOUGH - self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..used]);
        *left -= used as u64;
        if self.head.len() < ENOUGH && *left > 0 {
            return used;
        }
        let State::Peek { name, left, pad } = std::mem::replace(&mut self.state, State::Header) else {
            return used;
        };
        let mut head = std::mem::take(&mut self.head);
        if let Some(layer) = Layer::of(&name, &head) {
            self.state = State::Layer { layer, left: left + head.len() as u64, pad };
            self.layered(&head);
        } else {
            self.state = State::Body { name, left, pad, use_for: Use::File };
            if left > 0 {
                self.head = head;
                return used;
            }
            self.judge(&head, Use::File);
        }
        zeroize::Zeroize::zeroize(&mut head);
        self.head = head;
        used
    }

    fn layered(&mut self, bytes: &[u8]) -> usize {
        let State::Layer { layer, left, pad } = &mut self.state else { return 0 };
        let used = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
        layer.push(&bytes[..used]);
        self.finds.extend(layer.take_finds());
        *left -= used as u64;
        if *left == 0 {
            let (why, pad) = (layer.unverified(), *pad);
            why.into_iter().for_each(|why| self.doubt(why));
            self.state = if pad > 0 { State::Skip { left: pad } } else { State::Header };
        }
        used
    }

    fn doubt(&mut self, why: String) {
        if self.unverified.len() < MOST_UNVERIFIED {
            self.unverified.push(why);
        }
    }

    fn judge(&mut self, bytes: &[u8], use_for: Use) {
        let State::Body { name, left, pad, .. } = std::mem::replace(&mut self.state, State::Header) else {
            return;
        };
        match use_for {
            Use::File => {
                let document = if self.of_image { image::told(bytes) } else { None };
                if let Some(told) = document {
                    let found = told.into_iter().map(|(kind, name)| Entry { name, kind, layer: None });
                    self.finds.extend(found);
                } else if let Some(kind) = what(bytes) {
                    self.finds.push(Entry { name, kind, layer: None });
                } else if self.of_image && left > 0 && bytes.first() == Some(&b'{') {
                    self.doubt(format!("{name}: a document larger than is read"));
                }
            }
            Use::LongName => {
                let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
                self.name = Some(String::from_utf8_lossy(text).into_owned());
            }
            Use::Pax => self.pax(bytes),
        }
        if left + pad > 0 {
            self.state = State::Skip { left: left + pad };
        }
    }

    /// `LENGTH KEY=VALUE\n`, as POSIX has it.
    fn pax(&mut self, mut records: &[u8]) {
        while let Some(space) = records.iter().position(|b| *b == b' ') {
            let length =
                std::str::from_utf8(&records[..space]).ok().and_then(|text| text.parse::<usize>().ok());
            let Some(record) = length.and_then(|length| records.get(space + 1..length)) else { break };
            let record = record.strip_suffix(b"\n").unwrap_or(record);
            if let Some(path) = record.strip_prefix(b"path=") {
                self.name = Some(String::from_utf8_lossy(path).into_owned());
            } else if let Some(size) = record.strip_prefix(b"size=") {
                self.size = std::str::from_utf8(size).ok().and_then(|text| text.parse().ok());
            }
            records = &records[length.unwrap_or(records.len())..];
        }
    }
}

pub(super) fn last(name: &str) -> &str {
    name.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

/// Octal, or base 256 where the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (first, rest) = field.split_first()?;
        return rest.iter().try_fold(u64::from(first & 0x7f), |sum, byte| {
            sum.checked_mul(256)?.checked_add(u64::from(*byte))
        });
    }
    let digits = field.split(|b| matches!(b, 0 | b' ')).find(|part| !part.is_empty()).unwrap_or(b"0");
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// Sum of the header's bytes with the field itself as blanks.
pub(super) fn checksum_fits(block: &[u8]) -> bool {
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    let field: u64 = block[148..156].iter().map(|b| u64::from(*b)).sum();
    number(&block[148..156]) == Some(sum - field + 8 * u64::from(b' '))
}

fn name_of(block: &[u8]) -> String {
    let text = |field: &[u8]| {
        String::from_utf8_lossy(field.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
    };
    let name = text(&block[..100]);
    // Old GNU headers use the prefix field for times.
    let prefix = if &block[257..263] == b"ustar\0" { text(&block[345..500]) } else { String::new() };
    if prefix.is_empty() { name } else { format!("{prefix}/{name}") }
}
