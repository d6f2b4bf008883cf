//! Decompresses data as it is pushed: gzip, raw deflate, zstd, bzip2 and xz. Output goes to a sink in pieces
//! of bounded size. A decoder's error text never leaves this file: it can quote the content.

use std::fmt;

use bzip2::{Decompress as Bzip2, Status as Bzip2Status};
use flate2::{Decompress, FlushDecompress, Status};
use lzma_rust2::{Action, Status as XzStatus, XzStream};

use super::zstd::{LARGEST_WINDOW, ROOM, Sink, Why, Zstd};

/// Most bytes of a gzip header's name, comment and extra field (RFC 1952) together.
const LONGEST_HEADER: usize = 256 << 10;

/// A decoder that takes its input in pieces.
pub(super) struct Unpack {
    form: Compression,
    room: Vec<u8>,
}

enum Compression {
    Gzip(Box<Gzip>),
    Deflate {
        inflate: Box<Decompress>,
        done: bool,
    },
    Zstd(Box<Zstd>),
    /// `None` between two streams of a file.
    Bzip2(Option<Bzip2>),
    Xz(Box<XzStream>),
}

impl fmt::Debug for Unpack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unpack")
    }
}

impl Unpack {
    /// The decoder for data that begins with `head`, by the magic numbers of RFC 1952, RFC 8878, bzip2 and
    /// xz; `None` for anything else.
    pub(super) fn of(head: &[u8]) -> Option<Self> {
        let form = match head {
            [0x1f, 0x8b, 8, ..] => Compression::Gzip(Box::default()),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd(Box::default()),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..] => {
                Compression::Bzip2(Some(Bzip2::new(false)))
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::xz_form(),
            _ => return None,
        };
        Some(Self::with(form))
    }

    pub(super) fn deflate() -> Self {
        Self::with(Compression::Deflate { inflate: Box::new(Decompress::new(false)), done: false })
    }

    pub(super) fn zstd() -> Self {
        Self::with(Compression::Zstd(Box::default()))
    }

    pub(super) fn bzip2() -> Self {
        Self::with(Compression::Bzip2(Some(Bzip2::new(false))))
    }

    pub(super) fn xz() -> Self {
        Self::with(Self::xz_form())
    }

    fn xz_form() -> Compression {
        let limit = u32::try_from(LARGEST_WINDOW >> 10).unwrap_or(u32::MAX);
        Compression::Xz(Box::new(XzStream::new_mem_limit(true, limit)))
    }

    fn with(form: Compression) -> Self {
        Self { form, room: vec![0; ROOM] }
    }

    /// Returns how many of `bytes` belong to this stream: all of them, except for raw deflate, which marks
    /// its end.
    pub(super) fn push(&mut self, bytes: &[u8], sink: Sink<'_>) -> Result<usize, Why> {
        let Self { form, room } = self;
        match form {
            Compression::Gzip(gzip) => gzip.push(bytes, room, sink),
            Compression::Deflate { inflate, done } => {
                let (used, ended) = deflate(inflate, bytes, room, sink)?;
                *done = ended;
                return Ok(used);
            }
            Compression::Zstd(zstd) => zstd.push(bytes, sink),
            Compression::Bzip2(bzip2) => bunzip(bzip2, bytes, room, sink),
            Compression::Xz(xz) => unxz(xz, bytes, room, sink, Action::Run).map(drop),
        }
        .map(|()| bytes.len())
    }

    /// Ends the input; returns whether it was complete.
    pub(super) fn end(&mut self, sink: Sink<'_>) -> bool {
        match &mut self.form {
            Compression::Gzip(gzip) => gzip.is_between(),
            Compression::Deflate { done, .. } => *done,
            Compression::Zstd(zstd) => zstd.is_between(),
            Compression::Bzip2(bzip2) => bzip2.is_none(),
            Compression::Xz(xz) => unxz(xz, &[], &mut self.room, sink, Action::Finish) == Ok(true),
        }
    }

    /// Whether raw deflate has reached its end.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.form, Compression::Deflate { done: true, .. })
    }

    /// Whether all output of the pushed bytes is out, except for bits of the last byte.
    pub(super) fn is_immediate(&self) -> bool {
        matches!(self.form, Compression::Gzip(_) | Compression::Deflate { .. })
    }

    /// The most bytes that are decoded but not output yet.
    pub(super) fn lag(&self) -> u64 {
        match &self.form {
            Compression::Zstd(zstd) => zstd.lag(),
            _ => 0,
        }
    }
}

/// Returns how many bytes were used, and whether the stream ended there.
fn deflate(
    inflate: &mut Decompress,
    bytes: &[u8],
    room: &mut [u8],
    sink: Sink<'_>,
) -> Result<(usize, bool), Why> {
    let mut used = 0;
    loop {
        let (read, written) = (inflate.total_in(), inflate.total_out());
        let status = inflate.decompress(&bytes[used..], room, FlushDecompress::None);
        let status = status.map_err(|_| Why::Damaged)?;
        let read = usize::try_from(inflate.total_in() - read).unwrap_or(usize::MAX);
        let written = usize::try_from(inflate.total_out() - written).unwrap_or(usize::MAX);
        used += read;
        if written > 0 && !sink(&room[..written]) {
            return Err(Why::Stopped);
        }
        match status {
            Status::StreamEnd => return Ok((used, true)),
            _ if read == 0 && written == 0 => {
                return if used == bytes.len() { Ok((used, false)) } else { Err(Why::Damaged) };
            }
            _ if used == bytes.len() && written < room.len() => return Ok((used, false)),
            _ => {}
        }
    }
}

/// Gzip members in sequence (RFC 1952), and zeros after the last.
struct Gzip {
    inflate: Decompress,
    at: GzipMember,
    header: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum GzipMember {
    /// The header of the first member; `Header` is that of a later one.
    First,
    Header,
    Body,
    /// Checksum and size, with this many bytes left.
    Trailer(usize),
    Padding,
}

impl Default for Gzip {
    fn default() -> Self {
        Self { inflate: Decompress::new(false), at: GzipMember::First, header: vec![] }
    }
}

impl Gzip {
    fn push(&mut self, mut bytes: &[u8], room: &mut [u8], sink: Sink<'_>) -> Result<(), Why> {
        while let Some(first) = bytes.first() {
            match self.at {
                GzipMember::Header if self.header.is_empty() && *first == 0 => self.at = GzipMember::Padding,
                GzipMember::Padding => {
                    return if bytes.iter().all(|b| *b == 0) { Ok(()) } else { Err(Why::Damaged) };
                }
                GzipMember::First | GzipMember::Header => {
                    let before = self.header.len();
                    self.header.extend_from_slice(&bytes[..bytes.len().min(LONGEST_HEADER)]);
                    match header_length(&self.header)? {
                        None if self.header.len() > LONGEST_HEADER => return Err(Why::Damaged),
                        None => return Ok(()),
                        Some(length) => {
                            bytes = &bytes[length - before..];
                            self.header.clear();
                            self.inflate.reset(false);
                            self.at = GzipMember::Body;
                        }
                    }
                }
                GzipMember::Body => {
                    let (used, ended) = deflate(&mut self.inflate, bytes, room, sink)?;
                    bytes = &bytes[used..];
                    if ended {
                        self.at = GzipMember::Trailer(8);
                    }
                }
                GzipMember::Trailer(left) => {
                    let used = left.min(bytes.len());
                    bytes = &bytes[used..];
                    self.at =
                        if left == used { GzipMember::Header } else { GzipMember::Trailer(left - used) };
                }
            }
        }
        Ok(())
    }

    fn is_between(&self) -> bool {
        matches!(self.at, GzipMember::Header | GzipMember::Padding) && self.header.is_empty()
    }
}

/// The length of the header; `None` as long as it is incomplete.
fn header_length(header: &[u8]) -> Result<Option<usize>, Why> {
    let magic = [0x1f, 0x8b, 8];
    if header.iter().zip(magic).any(|(is, should)| *is != should) {
        return Err(Why::Damaged);
    }
    let Some(flags) = header.get(3) else { return Ok(None) };
    let mut length = 10;
    if flags & 4 != 0 {
        let Some(size) = header.get(length..length + 2) else { return Ok(None) };
        length += 2 + usize::from(u16::from_le_bytes([size[0], size[1]]));
    }
    for text in [8, 16] {
        if flags & text != 0 {
            let end = header.get(length..).and_then(|rest| memchr::memchr(0, rest));
            let Some(end) = end else { return Ok(None) };
            length += end + 1;
        }
    }
    length += if flags & 2 != 0 { 2 } else { 0 };
    Ok((header.len() >= length).then_some(length))
}

fn bunzip(decoder: &mut Option<Bzip2>, mut bytes: &[u8], room: &mut [u8], sink: Sink<'_>) -> Result<(), Why> {
    while !bytes.is_empty() {
        let bzip2 = decoder.get_or_insert_with(|| Bzip2::new(false));
        loop {
            let (read, written) = (bzip2.total_in(), bzip2.total_out());
            let status = bzip2.decompress(bytes, room).map_err(|_| Why::Damaged)?;
            let read = usize::try_from(bzip2.total_in() - read).unwrap_or(usize::MAX);
            let written = usize::try_from(bzip2.total_out() - written).unwrap_or(usize::MAX);
            bytes = &bytes[read..];
            if written > 0 && !sink(&room[..written]) {
                return Err(Why::Stopped);
            }
            match status {
                Bzip2Status::StreamEnd => {
                    *decoder = None;
                    break;
                }
                Bzip2Status::MemNeeded => return Err(Why::Window),
                _ if bytes.is_empty() && written < room.len() => break,
                _ if read == 0 && written == 0 => return Err(Why::Damaged),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether the stream has ended.
fn unxz(
    xz: &mut XzStream,
    mut bytes: &[u8],
    room: &mut [u8],
    sink: Sink<'_>,
    action: Action,
) -> Result<bool, Why> {
    loop {
        let step = xz.process(bytes, room, action).map_err(|error| match error.kind() {
            std::io::ErrorKind::OutOfMemory => Why::Window,
            _ => Why::Damaged,
        })?;
        bytes = &bytes[step.bytes_consumed..];
        if step.bytes_produced > 0 && !sink(&room[..step.bytes_produced]) {
            return Err(Why::Stopped);
        }
        match step.status {
            XzStatus::StreamEnd => return if bytes.is_empty() { Ok(true) } else { Err(Why::Damaged) },
            XzStatus::Ok if step.bytes_consumed == 0 && step.bytes_produced == 0 => {
                return if bytes.is_empty() { Ok(false) } else { Err(Why::Damaged) };
            }
            XzStatus::Ok => {}
        }
    }
}
