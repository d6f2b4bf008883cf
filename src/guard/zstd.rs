//! Decodes Zstandard frames as they are pushed (RFC 8878); also holds what all decoders share. A decoder's
//! error text never leaves these files: it can quote the content.

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Size of one piece of output.
pub(super) const ROOM: usize = 64 << 10;
/// The most memory that a stream may ask for: the window of `zstd --long` and the dictionary of `xz -9e` fit.
pub(super) const LARGEST_WINDOW: u64 = 128 << 20;
/// Why a stream is not read any further.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Why {
    /// The data is not of the format that its beginning announces, or is damaged.
    Damaged,
    /// It needs more memory than a decoder gets.
    Window,
    /// The sink takes no more.
    Stopped,
}

impl Why {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Damaged => "cannot be decompressed",
            Self::Window => "needs more memory to be decompressed than it gets",
            Self::Stopped => "becomes larger when decompressed than is looked at",
        }
    }
}

/// Takes a piece of output; returns false to stop.
pub(super) type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> bool;

/// Frames in sequence (RFC 8878), some of them skippable. A block is decoded once it is complete.
#[derive(Default)]
pub(super) struct Zstd {
    decoder: FrameDecoder,
    buffer: Vec<u8>,
    /// How many bytes the decoder keeps back, once a frame's header was read.
    window: Option<u64>,
    checksum: bool,
    skip: usize,
    out: Vec<u8>,
}

impl Zstd {
    pub(super) fn push(&mut self, bytes: &[u8], sink: Sink<'_>) -> Result<(), Why> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        self.buffer.extend_from_slice(&bytes[skipped..]);
        let mut at = 0;
        loop {
            let used = match self.window {
                None => self.header(at)?,
                Some(_) => self.block(at, sink)?,
            };
            match used {
                0 => break,
                used => at += used,
            }
        }
        self.skip += at.saturating_sub(self.buffer.len());
        self.buffer.drain(..at.min(self.buffer.len()));
        Ok(())
    }

    /// Reads a frame's header at `at` and returns its length; 0 as long as it is incomplete.
    fn header(&mut self, at: usize) -> Result<usize, Why> {
        let rest = self.buffer.get(at..).unwrap_or_default();
        let [a, b, c, d, rest @ ..] = rest else { return Ok(0) };
        if [*b, *c, *d] == [0x2a, 0x4d, 0x18] && *a & 0xf0 == 0x50 {
            let Some(size) = rest.first_chunk() else { return Ok(0) };
            return usize::try_from(u32::from_le_bytes(*size)).map(|size| 8 + size).map_err(|_| Why::Damaged);
        }
        if [*a, *b, *c, *d] != [0x28, 0xb5, 0x2f, 0xfd] {
            return Err(Why::Damaged);
        }
        let Some(flags) = rest.first() else { return Ok(0) };
        let single = flags & 0x20 != 0;
        let size = match (flags >> 6, single) {
            (0, false) => 0,
            (0, true) => 1,
            (more, _) => 1_usize << more,
        };
        let dictionary = [0, 1, 2, 4][usize::from(flags & 3)];
        let length = 5 + usize::from(!single) + dictionary + size;
        let Some(header) = self.buffer.get(at..at + length) else { return Ok(0) };
        let window = if single {
            let field = &header[length - size..];
            let number = field.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
            number + if size == 2 { 256 } else { 0 }
        } else {
            let base = 1_u64 << (10 + (header[5] >> 3));
            base + base / 8 * u64::from(header[5] & 7)
        };
        if window > LARGEST_WINDOW {
            return Err(Why::Window);
        }
        self.decoder.init(header).map_err(|_| Why::Damaged)?;
        self.window = Some(window);
        self.checksum = flags & 4 != 0;
        Ok(length)
    }

    /// Decodes a block, and returns its length with the checksum after the last block; 0 as long as it is
    /// incomplete.
    fn block(&mut self, at: usize, sink: Sink<'_>) -> Result<usize, Why> {
        let rest = self.buffer.get(at..).unwrap_or_default();
        let Some([a, b, c]) = rest.first_chunk() else { return Ok(0) };
        let header = u32::from_le_bytes([*a, *b, *c, 0]);
        let size = match header >> 1 & 3 {
            1 => 1,
            3 => return Err(Why::Damaged),
            _ => usize::try_from(header >> 3).unwrap_or(usize::MAX),
        };
        let last = header & 1 != 0;
        let length = 3 + size + if last && self.checksum { 4 } else { 0 };
        let Some(block) = rest.get(..length) else { return Ok(0) };
        self.decoder.decode_blocks(block, BlockDecodingStrategy::UptoBlocks(1)).map_err(|_| Why::Damaged)?;
        self.out.clear();
        self.decoder.collect_to_writer(&mut self.out).map_err(|_| Why::Damaged)?;
        if last {
            self.window = None;
        }
        for piece in self.out.chunks(ROOM) {
            if !sink(piece) {
                return Err(Why::Stopped);
            }
        }
        Ok(length)
    }

    pub(super) fn lag(&self) -> u64 {
        self.window.unwrap_or(0)
    }

    pub(super) fn is_between(&self) -> bool {
        self.window.is_none() && self.buffer.is_empty() && self.skip == 0
    }
}
