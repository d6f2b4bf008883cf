//! Archives in an archive, as an image has them: tar, plain or gzip, judged while they pass.

use std::collections::VecDeque;
use std::io::{self, Write};

use flate2::write::MultiGzDecoder;

use super::archive::{Entry, Tar, checksum_fits};

/// So many bytes of a file tell whether it is an archive of its own.
pub(super) const ENOUGH: usize = 512;

/// Why what begins like that is not looked at.
pub(super) const CLOSED: &str = "a layer compressed with zstd, bzip2 or xz is not opened";

/// Engines open these by what they begin with, whatever they are called.
pub(super) fn is_closed(head: &[u8]) -> bool {
    matches!(head, [0x28, 0xb5, 0x2f, 0xfd, ..] | [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', b'X', b'Z', ..])
}

/// One archive inside another. It holds what a [`Tar`] holds: one file's beginning at most.
#[derive(Debug)]
pub(super) struct Layer {
    name: String,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Plain(Box<Tar>),
    Gzip(Box<Gzip>),
    /// It passes unread, and why that is said.
    Closed(&'static str),
}

/// A compressed tar archive that is pushed. To be pushed in small pieces: one may become a thousand times as much.
#[derive(Debug)]
pub struct Gzip {
    decoder: MultiGzDecoder<Inside>,
    pushed: u64,
    judged: u64,
    /// How far each piece reached, as it was pushed and as it came out, until that is judged. Where a file begins
    /// in what is compressed is not known; that all that came out of a piece is judged, is.
    reached: VecDeque<(u64, u64)>,
    broken: bool,
}

#[derive(Debug)]
struct Inside(Tar);

impl Write for Inside {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Gzip {
    pub fn new(tar: Tar) -> Self {
        let decoder = MultiGzDecoder::new(Inside(tar));
        Self { decoder, pushed: 0, judged: 0, reached: VecDeque::new(), broken: false }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.pushed += bytes.len() as u64;
        self.broken =
            self.broken || self.decoder.write_all(bytes).and_then(|()| self.decoder.flush()).is_err();
        if self.broken {
            // Nothing comes out any more; what did is judged as far as it can be.
            self.judged = self.pushed;
            return;
        }
        let tar = &self.decoder.get_ref().0;
        let safe = tar.safe();
        self.reached.push_back((self.pushed, safe + tar.unjudged()));
        while let Some((pushed, _)) = self.reached.pop_front_if(|(_, came)| *came <= safe) {
            self.judged = pushed;
        }
    }

    /// It cannot be decompressed, from some place on.
    pub fn broken(&self) -> bool {
        self.broken
    }

    /// How many of the bytes that were pushed are judged.
    pub fn judged(&self) -> u64 {
        self.judged
    }

    pub fn tar(&self) -> &Tar {
        &self.decoder.get_ref().0
    }

    pub fn tar_mut(&mut self) -> &mut Tar {
        &mut self.decoder.get_mut().0
    }
}

impl Layer {
    /// `None` for a file that begins with `head` and is no archive.
    pub(super) fn of(name: &str, head: &[u8]) -> Option<Self> {
        let form = match head {
            [0x1f, 0x8b, ..] => Form::Gzip(Box::new(Gzip::new(Tar::new()))),
            _ if is_closed(head) => Form::Closed(CLOSED),
            _ if head.len() == ENOUGH && checksum_fits(head) => Form::Plain(Box::default()),
            _ => return None,
        };
        Some(Self { name: name.into(), form })
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        match &mut self.form {
            Form::Plain(tar) => tar.push(bytes),
            Form::Gzip(gzip) => gzip.push(bytes),
            Form::Closed(_) => {}
        }
    }

    /// How many of the last bytes are not judged yet.
    pub(super) fn unjudged(&self) -> u64 {
        match &self.form {
            Form::Plain(tar) => tar.unjudged(),
            Form::Gzip(gzip) => gzip.pushed - gzip.judged,
            Form::Closed(_) => 0,
        }
    }

    pub(super) fn take_finds(&mut self) -> Vec<Entry> {
        let mut finds = match &mut self.form {
            Form::Plain(tar) => tar.take_finds(),
            Form::Gzip(gzip) => gzip.tar_mut().take_finds(),
            Form::Closed(_) => vec![],
        };
        for find in &mut finds {
            find.layer = Some(self.name.clone());
        }
        finds
    }

    /// At its end: what of it was not looked at.
    pub(super) fn unverified(&self) -> Option<String> {
        let tar = match &self.form {
            Form::Plain(tar) => tar,
            Form::Gzip(gzip) if gzip.broken() => {
                return Some(format!("{}: cannot be decompressed", self.name));
            }
            // A compressed file that is no archive is a file like any other, and says nothing.
            Form::Gzip(gzip) => Some(gzip.tar()).filter(|tar| tar.began())?,
            Form::Closed(why) => return Some(format!("{}: {why}", self.name)),
        };
        let whole = !tar.broken() && tar.is_between();
        (!whole).then(|| format!("{}: the archive breaks off or is not understood", self.name))
    }
}
