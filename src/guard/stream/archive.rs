//! Reads tar streams as they pass: headers are read here, the content of entries by [`Stream`].

use super::{self as stream, Stream};
use crate::guard::found::{LayerRole, Nesting};

const BLOCK: usize = 512;
/// GNU long names and pax records; the engine's own readers take at most this.
const LONGEST_RECORD: usize = 1 << 20;

/// A reader of a tar stream that takes its bytes in pieces.
#[derive(Debug)]
pub(super) struct Tar {
    place: Nesting,
    state: ArchiveState,
    /// An incomplete header.
    block: Vec<u8>,
    /// A GNU or pax record.
    record: Vec<u8>,
    /// From a GNU `L` record or a pax `path`, for the next entry.
    name: Option<String>,
    /// From a pax `size`.
    size: Option<u64>,
    position: u64,
    safe: u64,
    broken: bool,
}

#[derive(Debug)]
enum ArchiveState {
    Header,
    /// A file whose bytes are all to come.
    Fresh {
        name: String,
        left: u64,
        pad: u64,
    },
    File {
        stream: Box<Stream>,
        left: u64,
        pad: u64,
    },
    Record {
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
    Nothing,
    LongName,
    Pax,
}

impl Tar {
    pub(super) fn of(place: Nesting) -> Self {
        Self {
            place,
            state: ArchiveState::Header,
            block: Vec::with_capacity(BLOCK),
            record: vec![],
            name: None,
            size: None,
            position: 0,
            safe: 0,
            broken: false,
        }
    }

    /// How many of the pushed bytes are not judged yet.
    pub(super) fn unjudged(&self) -> u64 {
        if self.broken { 0 } else { self.position - self.safe }
    }

    /// Whether this is not a tar stream, or one that cannot be read to its end.
    pub(super) fn broken(&self) -> bool {
        self.broken
    }

    /// Whether the stream may end here.
    pub(super) fn is_between(&self) -> bool {
        matches!(self.state, ArchiveState::Header) && self.block.is_empty()
    }

    /// Judges the available part of a file that breaks off.
    pub(super) fn give_up(&mut self) {
        if let ArchiveState::File { stream, .. } = &mut self.state {
            stream.give_up();
        }
    }

    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.broken {
            let used = match &self.state {
                ArchiveState::Header => self.header(bytes),
                ArchiveState::Fresh { .. } | ArchiveState::File { .. } => self.file(bytes),
                ArchiveState::Record { .. } => self.record(bytes),
                ArchiveState::Skip { left } => {
                    let used = part(*left, bytes);
                    self.skipped(used);
                    used
                }
            };
            self.position += used as u64;
            bytes = &bytes[used..];
            match &self.state {
                ArchiveState::File { stream, .. } => self.safe = self.position - stream.unjudged(),
                ArchiveState::Skip { .. } => self.safe = self.position,
                _ if self.is_between() && self.name.is_none() && self.size.is_none() => {
                    self.safe = self.position;
                }
                _ => {}
            }
        }
        self.position += bytes.len() as u64;
    }

    fn skipped(&mut self, used: usize) {
        if let ArchiveState::Skip { left } = &mut self.state {
            *left -= used as u64;
            if *left == 0 {
                self.state = ArchiveState::Header;
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
        let kind = block[156];
        let extension = matches!(kind, b'x' | b'g' | b'L' | b'K');
        if !extension {
            size = self.size.take().unwrap_or(size);
        }
        let pad = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        let own = name_of(block);
        let name = if extension { own } else { self.name.take().unwrap_or(own) };
        let name = name.trim_start_matches("./").to_string();
        if self.place.role == LayerRole::Layer && !extension && last(&name).starts_with(".wh.") {
            let layer = self.place.layer.clone().unwrap_or_default();
            self.place.found.notes(|notes| notes.whiteouts.entry(layer).or_default().push(name.clone()));
        }
        let regular = matches!(kind, b'0' | 0 | b'7');
        // Links, devices and directories have no body, whatever their size field says.
        let bodiless = matches!(kind, b'1'..=b'6');
        if extension && size > LONGEST_RECORD as u64 {
            self.broken = true;
            return;
        }
        let use_for = match kind {
            b'L' => Use::LongName,
            b'x' => Use::Pax,
            _ => Use::Nothing,
        };
        self.state = match () {
            () if bodiless || size == 0 => ArchiveState::Header,
            () if regular => ArchiveState::Fresh { name, left: size, pad },
            () if extension => ArchiveState::Record { left: size, pad, use_for },
            () => ArchiveState::Skip { left: size.saturating_add(pad) },
        };
    }

    fn file(&mut self, bytes: &[u8]) -> usize {
        if let ArchiveState::Fresh { name, left, pad } = &mut self.state {
            let (name, left, pad) = (std::mem::take(name), *left, *pad);
            if let Some(all) = usize::try_from(left).ok().and_then(|left| bytes.get(..left)) {
                stream::whole(&name, all, &self.place);
                self.padding(pad);
                return all.len();
            }
            let stream = Box::new(Stream::of(&name, self.place.clone()));
            self.state = ArchiveState::File { stream, left, pad };
        }
        let ArchiveState::File { stream, left, pad } = &mut self.state else { return 0 };
        let used = part(*left, bytes);
        stream.push(&bytes[..used]);
        *left -= used as u64;
        if *left == 0 {
            stream.end();
            let pad = *pad;
            self.padding(pad);
        }
        used
    }

    fn padding(&mut self, pad: u64) {
        self.state = if pad > 0 { ArchiveState::Skip { left: pad } } else { ArchiveState::Header };
    }

    fn record(&mut self, bytes: &[u8]) -> usize {
        let ArchiveState::Record { left, pad, use_for } = &mut self.state else { return 0 };
        let used = part(*left, bytes);
        *left -= used as u64;
        self.record.extend_from_slice(&bytes[..used]);
        if *left == 0 {
            let (pad, use_for) = (*pad, *use_for);
            let record = std::mem::take(&mut self.record);
            match use_for {
                Use::Nothing => {}
                Use::LongName => {
                    let text = record.split(|b| *b == 0).next().unwrap_or_default();
                    self.name = Some(String::from_utf8_lossy(text).into_owned());
                }
                Use::Pax => self.pax(&record),
            }
            self.padding(pad);
        }
        used
    }

    /// Reads pax records, `LENGTH KEY=VALUE\n` (POSIX).
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

/// How many of `bytes` belong to an entry with `left` bytes to come.
fn part(left: u64, bytes: &[u8]) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len())
}

pub(super) fn last(name: &str) -> &str {
    name.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

/// Reads a number: octal, or base 256 if the first bit is set.
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

/// Whether the checksum is the sum of the header's bytes, with the checksum field itself as blanks.
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
