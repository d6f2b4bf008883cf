//! Archives in an archive, as an image has them: tar, plain or gzip, judged while they pass.

use std::io::{self, Write};

use flate2::write::MultiGzDecoder;

use super::archive::{Entry, Tar, checksum_fits};

/// So many bytes of a file tell whether it is an archive of its own.
pub(super) const ENOUGH: usize = 512;

/// One archive inside another. It holds what a [`Tar`] holds: one file's beginning at most.
#[derive(Debug)]
pub(super) struct Layer {
    name: String,
    form: Form,
    /// Bytes since all that came before was judged.
    pending: u64,
}

#[derive(Debug)]
enum Form {
    Plain(Box<Tar>),
    Gzip(Box<MultiGzDecoder<Inside>>),
    /// It passes unread, and why that is said.
    Closed(&'static str),
}

/// A tar archive that is written to.
#[derive(Debug, Default)]
pub struct Inside(pub Tar);

impl Write for Inside {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Layer {
    /// `None` for a file that begins with `head` and is no archive.
    pub(super) fn of(name: &str, head: &[u8]) -> Option<Self> {
        let form = match head {
            [0x1f, 0x8b, ..] => Form::Gzip(Box::new(MultiGzDecoder::new(Inside::default()))),
            [0x28, 0xb5, 0x2f, 0xfd, ..] if !name.ends_with(".zst") => {
                Form::Closed("a layer compressed with zstd is not opened")
            }
            _ if head.len() == ENOUGH && checksum_fits(head) => Form::Plain(Box::default()),
            _ => return None,
        };
        Some(Self { name: name.into(), form, pending: 0 })
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.pending += bytes.len() as u64;
        match &mut self.form {
            Form::Plain(tar) => {
                tar.push(bytes);
                self.pending = tar.unjudged();
            }
            Form::Gzip(decoder) => {
                if decoder.write_all(bytes).and_then(|()| decoder.flush()).is_err() {
                    self.form = Form::Closed("cannot be decompressed");
                } else if decoder.get_ref().0.unjudged() == 0 {
                    self.pending = 0;
                }
            }
            Form::Closed(_) => {}
        }
        if matches!(self.form, Form::Closed(_)) {
            self.pending = 0;
        }
    }

    /// How many of the last bytes are not judged yet.
    pub(super) fn unjudged(&self) -> u64 {
        self.pending
    }

    pub(super) fn take_finds(&mut self) -> Vec<Entry> {
        let mut finds = match &mut self.form {
            Form::Plain(tar) => tar.take_finds(),
            Form::Gzip(decoder) => decoder.get_mut().0.take_finds(),
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
            // A compressed file that is no archive is a file like any other, and says nothing.
            Form::Gzip(decoder) => Some(&decoder.get_ref().0).filter(|tar| tar.began())?,
            Form::Closed(why) => return Some(format!("{}: {why}", self.name)),
        };
        let whole = !tar.broken() && tar.is_between();
        (!whole).then(|| format!("{}: the archive breaks off or is not understood", self.name))
    }
}
