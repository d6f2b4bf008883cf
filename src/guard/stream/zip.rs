//! Reads zip archives as they stream by (APPNOTE 6.3.10), by their local headers, one file after the other.
//! The directory at the end adds nothing, except for deleted files and files stored without their size.

use super::{Packed, Stream};
use crate::guard::found::Nesting;
use crate::guard::unpack::Unpack;
use crate::guard::zstd::Why;

const LOCAL: [u8; 4] = *b"PK\x03\x04";
const HEADER: usize = 30;
/// Signatures that may follow a file: another file, the directory, its end, the records of zip64, data for
/// decryption.
const FOLLOWS: [[u8; 4]; 6] =
    [LOCAL, *b"PK\x01\x02", *b"PK\x05\x06", *b"PK\x06\x06", *b"PK\x06\x08", *b"PK\x06\x07"];
/// A data descriptor with its signature and sizes of 8 bytes.
const LONGEST_DESCRIPTOR: usize = 24;

/// Where a zip archive begins in a file that begins with `head`: zipped programs (`.pyz`, `.pex`) have a line
/// for the shell before it.
pub(super) fn start(head: &[u8]) -> Option<usize> {
    let at = match head {
        [b'#', b'!', ..] => memchr::memchr(b'\n', head)? + 1,
        _ => 0,
    };
    let signature = head.get(at..at + 4)?;
    (signature == LOCAL || (signature == b"PK\x05\x06" && head.len() == at + 22)).then_some(at)
}

/// The reason if this is an archive that is not opened, by its magic number.
pub(super) fn closed(head: &[u8]) -> Option<&'static str> {
    let cpio = |head: &[u8]| head.len() >= 110 && head[6..110].iter().all(u8::is_ascii_hexdigit);
    Some(match head {
        [0x37, 0x7a, 0xbc, 0xaf, 0x27, 0x1c, ..] => "a 7-Zip archive is not opened",
        [b'R', b'a', b'r', b'!', 0x1a, 7, ..] => "a RAR archive is not opened",
        [0x04, 0x22, 0x4d, 0x18, ..] => "what is compressed with lz4 is not opened",
        [b'L', b'Z', b'I', b'P', 1, ..] => "what is compressed with lzip is not opened",
        [0x1f, 0x9d, ..] => "what is compressed with compress is not opened",
        [0x5d, 0, 0, _, _, _, _, _, _, _, _, _, _, 0, ..] => "what is compressed with lzma is not opened",
        [b'M', b'S', b'C', b'F', 0, 0, 0, 0, ..] => "a cabinet is not opened",
        [0xed, 0xab, 0xee, 0xdb, ..] => "an RPM package is not opened",
        [b'h', b's', b'q', b's', ..] => "a squashfs image is not opened",
        _ if head.starts_with(b"!<arch>\ndebian-binary") => "a Debian package is not opened",
        _ if head.starts_with(b"07070") && cpio(head) => "a cpio archive is not opened",
        _ => return None,
    })
}

/// A reader of a zip archive that takes its bytes in pieces.
#[derive(Debug)]
pub(super) struct Zip {
    place: Nesting,
    state: ZipState,
    buffer: Vec<u8>,
    position: u64,
    safe: u64,
}

#[derive(Debug)]
enum ZipState {
    Skip {
        left: u64,
        then_descriptor: bool,
    },
    Header,
    File {
        name: String,
        body: Box<ZipBody>,
        /// Compressed bytes still to come; `None` if only the decoder can tell where they end.
        left: Option<u64>,
        descriptor: bool,
    },
    Descriptor,
    /// After the last file.
    Directory,
    Closed,
}

#[derive(Debug)]
enum ZipBody {
    Stored(Stream),
    Packed(Packed),
    /// It cannot be decompressed; this was reported.
    Shut,
}

impl Zip {
    pub(super) fn new(at: usize, place: Nesting) -> Self {
        let state = match at {
            0 => ZipState::Header,
            at => ZipState::Skip { left: at as u64, then_descriptor: false },
        };
        Self { place, state, buffer: vec![], position: 0, safe: 0 }
    }

    pub(super) fn unjudged(&self) -> u64 {
        self.position - self.safe
    }

    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        loop {
            let used = match &self.state {
                ZipState::Skip { .. } => self.skip(bytes),
                ZipState::Header => self.header(bytes),
                ZipState::File { .. } => self.file(bytes),
                ZipState::Descriptor => self.descriptor(bytes),
                ZipState::Directory | ZipState::Closed => bytes.len(),
            };
            self.position += used as u64;
            bytes = &bytes[used..];
            let held = match &self.state {
                ZipState::File { body, .. } => body.unjudged(),
                ZipState::Header | ZipState::Descriptor => self.buffer.len() as u64,
                ZipState::Skip { .. } | ZipState::Directory | ZipState::Closed => 0,
            };
            self.safe = self.position - held;
            // A state may end without consuming a byte.
            if bytes.is_empty() && !matches!(self.state, ZipState::Skip { left: 0, .. }) {
                return;
            }
        }
    }

    /// Ends the archive; returns what is wrong with it.
    pub(super) fn end(&mut self) -> Option<&'static str> {
        match &mut self.state {
            ZipState::Directory | ZipState::Closed => return None,
            ZipState::File { body, .. } => body.give_up(),
            _ => {}
        }
        Some("the archive breaks off or is not understood")
    }

    /// Judges the available part of a file that breaks off.
    pub(super) fn give_up(&mut self) {
        if let ZipState::File { body, .. } = &mut self.state {
            body.give_up();
        }
    }

    fn skip(&mut self, bytes: &[u8]) -> usize {
        let ZipState::Skip { left, then_descriptor } = &mut self.state else { return 0 };
        let used = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
        *left -= used as u64;
        if *left == 0 {
            self.state = if *then_descriptor { ZipState::Descriptor } else { ZipState::Header };
        }
        used
    }

    /// Collects a header in the buffer and acts on it once it is complete. Returns how many of `bytes` it
    /// consumed.
    fn header(&mut self, bytes: &[u8]) -> usize {
        let wanted = |buffer: &[u8]| match (buffer.get(..4), buffer.get(26..HEADER)) {
            (None, _) => 4,
            (Some(signature), _) if signature != LOCAL => 4,
            (_, None) => HEADER,
            (_, Some(of)) => HEADER + number(&of[..2]) + number(&of[2..]),
        };
        let mut used = 0;
        loop {
            let length = wanted(&self.buffer);
            if self.buffer.len() == length {
                break;
            }
            let more = (length - self.buffer.len()).min(bytes.len() - used);
            if more == 0 {
                return used;
            }
            self.buffer.extend_from_slice(&bytes[used..used + more]);
            used += more;
        }
        let header = std::mem::take(&mut self.buffer);
        self.state = match header.first_chunk() {
            Some(&LOCAL) => self.entry(&header),
            Some(signature) if FOLLOWS.contains(signature) => ZipState::Directory,
            _ => self.closed("the archive breaks off or is not understood"),
        };
        used
    }

    fn closed(&self, why: &str) -> ZipState {
        // The archive's own name is in the prefix.
        let name = self.place.prefix.strip_suffix("!/").unwrap_or(&self.place.prefix);
        Nesting { prefix: String::new(), ..self.place.clone() }.doubt(name, why);
        ZipState::Closed
    }

    fn entry(&mut self, header: &[u8]) -> ZipState {
        let (flags, method) = (number(&header[6..8]), number(&header[8..10]));
        let (name, extra) = header[HEADER..].split_at(number(&header[26..28]));
        let name = String::from_utf8_lossy(name).into_owned();
        let size = match number(&header[18..22]) {
            0xffff_ffff => zip64(extra, number(&header[22..26]) == 0xffff_ffff),
            size => Some(size as u64),
        };
        let descriptor = flags & 8 != 0;
        let unknown = descriptor && size.is_none_or(|size| size == 0);
        let left = if unknown { None } else { size };
        if left.is_none() && !unknown {
            return self.closed("the archive breaks off or is not understood");
        }
        let shut = match method {
            _ if flags & 0x41 != 0 => Some("it is encrypted"),
            0 if unknown && !name.ends_with('/') => Some("it is stored without its size"),
            0 | 8 => None,
            12 | 93 | 95 if !unknown => None,
            _ => Some("its compression is not one that is opened"),
        };
        if let Some(why) = shut {
            self.place.doubt(&name, why);
            return match left {
                Some(left) => ZipState::Skip { left, then_descriptor: descriptor },
                None => self.closed("what follows in the archive cannot be read"),
            };
        }
        if left == Some(0) || (method == 0 && unknown) {
            return ZipState::Skip { left: 0, then_descriptor: descriptor };
        }
        let packed = |unpack| ZipBody::Packed(Packed::new(unpack, Stream::of(&name, self.place.clone())));
        let body = match method {
            0 => ZipBody::Stored(Stream::of(&name, self.place.clone())),
            12 => packed(Unpack::bzip2()),
            93 => packed(Unpack::zstd()),
            95 => packed(Unpack::xz()),
            _ => packed(Unpack::deflate()),
        };
        ZipState::File { name, body: Box::new(body), left, descriptor }
    }

    fn file(&mut self, bytes: &[u8]) -> usize {
        let Self { place, state, .. } = self;
        let ZipState::File { name, body, left, descriptor } = state else { return 0 };
        let most =
            left.map_or(bytes.len(), |left| usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()));
        let mut used = most;
        match &mut **body {
            ZipBody::Stored(stream) => stream.push(&bytes[..most]),
            ZipBody::Packed(packed) => match packed.push(&bytes[..most], place) {
                Ok(_) if left.is_some() => {}
                Ok(belongs) => used = belongs,
                Err(why) => {
                    packed.give_up();
                    place.doubt(name, why.text());
                    **body = ZipBody::Shut;
                }
            },
            ZipBody::Shut => {}
        }
        let done = match (&mut *left, &**body) {
            (Some(left), _) => {
                *left -= used as u64;
                *left == 0
            }
            (None, ZipBody::Packed(packed)) => packed.is_done(),
            (None, _) => {
                self.state = self.closed("what follows in the archive cannot be read");
                return bytes.len();
            }
        };
        if done {
            let whole = match &mut **body {
                ZipBody::Stored(stream) => {
                    stream.end();
                    true
                }
                ZipBody::Packed(packed) => packed.end(place),
                ZipBody::Shut => true,
            };
            if !whole {
                place.doubt(name, Why::Damaged.text());
            }
            self.state = if *descriptor { ZipState::Descriptor } else { ZipState::Header };
        }
        used
    }

    /// Skips a data descriptor: checksum and sizes, with or without a signature; the signature that follows
    /// shows where it ends.
    fn descriptor(&mut self, bytes: &[u8]) -> usize {
        let before = self.buffer.len();
        let most = (LONGEST_DESCRIPTOR + 4 - before).min(bytes.len());
        self.buffer.extend_from_slice(&bytes[..most]);
        let follows = |at: &usize| {
            let next = self.buffer.get(*at..at + 4);
            next.is_some_and(|next| FOLLOWS.iter().any(|signature| signature == next))
        };
        let Some(end) = [12, 16, 20, LONGEST_DESCRIPTOR].into_iter().find(follows) else {
            if self.buffer.len() == LONGEST_DESCRIPTOR + 4 {
                self.state = self.closed("the archive breaks off or is not understood");
            }
            return most;
        };
        // The signature belongs to the next header; it may have come before these bytes.
        let next: Vec<u8> = self.buffer[end..].to_vec();
        let used = (end + 4).saturating_sub(before);
        self.buffer = next[..4].to_vec();
        self.state = ZipState::Header;
        used
    }
}

impl ZipBody {
    fn unjudged(&self) -> u64 {
        match self {
            Self::Stored(stream) => stream.unjudged(),
            Self::Packed(packed) => packed.unjudged(),
            Self::Shut => 0,
        }
    }

    fn give_up(&mut self) {
        match self {
            Self::Stored(stream) => stream.give_up(),
            Self::Packed(packed) => packed.give_up(),
            Self::Shut => {}
        }
    }
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
}

/// The compressed size in the extra field of zip64, after the uncompressed size if that is there (`both`).
fn zip64(mut extra: &[u8], both: bool) -> Option<u64> {
    while let [a, b, c, d, rest @ ..] = extra {
        let field = rest.get(..number(&[*c, *d]))?;
        if [*a, *b] == [1, 0] {
            let at = if both { 8 } else { 0 };
            return Some(u64::from_le_bytes(*field.get(at..)?.first_chunk()?));
        }
        extra = &rest[field.len()..];
    }
    None
}
