//! gRPC messages in a stream of bytes, and the protobuf fields of a message. Only needed fields are decoded.
//! Ambiguous data is an error and ends the build.

use bytes::{Bytes, BytesMut};

/// Length of the prefix of every message: a flag (compressed or not) and the message's length.
pub(super) const PREFIX: usize = 5;
/// Longest message that the engine accepts; clients send files in pieces of 32 KiB.
const LONGEST: usize = 16 << 20;

/// The reason why a message cannot be parsed, as a fragment for a person.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Unread(pub(super) &'static str);

/// Splits a stream into messages; keeps an incomplete one until the rest arrives.
#[derive(Debug, Default)]
pub(super) struct Messages {
    partial: BytesMut,
    whole: Bytes,
}

impl Messages {
    /// Adds bytes. Call it only after [`Self::next`] has returned `None`.
    pub(super) fn push(&mut self, bytes: Bytes) -> Result<(), Unread> {
        self.whole = bytes;
        if self.partial.is_empty() {
            return Ok(());
        }
        // Only the message that has begun is copied; the bytes after it are not.
        self.complete(PREFIX);
        if let Some(length) = length(&self.partial)? {
            self.complete(length);
        }
        Ok(())
    }

    fn complete(&mut self, length: usize) {
        let missing = length.saturating_sub(self.partial.len()).min(self.whole.len());
        self.partial.extend_from_slice(&self.whole.split_to(missing));
    }

    /// The next complete message, with its prefix.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Unread> {
        if !self.partial.is_empty() {
            let complete = length(&self.partial)? == Some(self.partial.len());
            return Ok(complete.then(|| std::mem::take(&mut self.partial).freeze()));
        }
        match length(&self.whole)? {
            Some(length) if length <= self.whole.len() => Ok(Some(self.whole.split_to(length))),
            needed => {
                self.partial.reserve(needed.unwrap_or(PREFIX).min(64 << 10));
                self.partial.extend_from_slice(&std::mem::take(&mut self.whole));
                Ok(None)
            }
        }
    }

    /// Bytes that were pushed and not returned.
    pub(super) fn rest(&mut self) -> impl Iterator<Item = Bytes> + use<> {
        let rest = [std::mem::take(&mut self.partial).freeze(), std::mem::take(&mut self.whole)];
        rest.into_iter().filter(|bytes| !bytes.is_empty())
    }
}

/// Length of the first message in `bytes`, prefix included; `None` while it is unknown.
fn length(bytes: &[u8]) -> Result<Option<usize>, Unread> {
    let &[compressed, a, b, c, d, ..] = bytes else { return Ok(None) };
    if compressed != 0 {
        return Err(Unread("a compressed message"));
    }
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > LONGEST {
        return Err(Unread("a message of more than 16 MiB"));
    }
    Ok(Some(PREFIX + length))
}

/// The value of a field. Groups, which nothing here uses, are an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum FieldValue<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message in their order, by number.
#[derive(Debug)]
pub(super) struct Fields<'a>(&'a [u8]);

pub(super) fn fields(message: &[u8]) -> Fields<'_> {
    Fields(message)
}

const BROKEN: Unread = Unread("a message that is not protobuf");

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, FieldValue<'a>), Unread>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.0.is_empty()).then(|| {
            let field = self.field();
            if field.is_none() {
                self.0 = &[];
            }
            field.ok_or(BROKEN)
        })
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, FieldValue<'a>)> {
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => FieldValue::Number(self.number()?),
            1 => FieldValue::Bytes(self.bytes(8)?),
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                FieldValue::Bytes(self.bytes(length)?)
            }
            5 => FieldValue::Bytes(self.bytes(4)?),
            _ => return None,
        };
        Some((tag >> 3, value)).filter(|(number, _)| *number != 0)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            if shift == 63 && *byte > 1 {
                return None;
            }
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }
}

/// A field of bytes in protobuf's encoding.
pub(super) fn delimited(number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    for mut part in [number << 3 | 2, bytes.len() as u64] {
        while part >= 0x80 {
            out.push(u8::try_from(part & 0x7f).unwrap_or_default() | 0x80);
            part >>= 7;
        }
        out.push(u8::try_from(part).unwrap_or_default());
    }
    out.extend_from_slice(bytes);
    out
}

/// A message with its prefix; `None` for one that is too long for it.
pub(super) fn framed(message: &[u8]) -> Option<Bytes> {
    let length = u32::try_from(message.len()).ok()?;
    Some([&[0][..], &length.to_be_bytes(), message].concat().into())
}

/// Stores the value of a field that may occur only once.
pub(super) fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Unread> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Unread("a message with a field that is there twice")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[0], &length[..], payload].concat()
    }

    /// For pieces of any size, the stream gives the same messages, and each of them only when it is complete.
    #[test]
    fn messages_are_assembled_from_pieces_of_any_size() {
        let payloads: Vec<Vec<u8>> = [0, 1, 4, 5, 6, 300].map(|length| vec![7; length]).to_vec();
        let stream: Vec<u8> = payloads.iter().flat_map(|payload| message(payload)).collect();
        for size in (1..=stream.len()).chain([usize::MAX]) {
            let (mut messages, mut out, mut pushed) = (Messages::default(), vec![], 0);
            for piece in stream.chunks(size.min(stream.len())) {
                messages.push(Bytes::copy_from_slice(piece)).unwrap();
                pushed += piece.len();
                while let Some(message) = messages.next().unwrap() {
                    out.extend_from_slice(&message);
                    assert!(out.len() <= pushed);
                }
            }
            assert_eq!(messages.rest().count(), 0);
            assert_eq!(out, stream, "pieces of {size}");
        }
        let mut cut = Messages::default();
        cut.push(Bytes::from(message(b"abc")).slice(..6)).unwrap();
        assert_eq!(cut.next(), Ok(None));
        assert_eq!(cut.rest().collect::<Vec<_>>(), [Bytes::from(message(b"abc")).slice(..6)]);
    }

    #[test]
    fn compressed_or_too_long_messages_are_errors() {
        for (prefix, why) in [
            (&[1, 0, 0, 0, 1, 7][..], "a compressed message"),
            (&[2, 0, 0, 0, 0], "a compressed message"),
            (&[0, 1, 0, 0, 1], "a message of more than 16 MiB"),
        ] {
            let mut whole = Messages::default();
            whole.push(Bytes::copy_from_slice(prefix)).unwrap();
            assert_eq!(whole.next(), Err(Unread(why)));
            let mut pieces = Messages::default();
            let found = prefix.iter().try_for_each(|byte| {
                pieces.push(Bytes::copy_from_slice(&[*byte]))?;
                pieces.next().map(|_| ())
            });
            assert_eq!(found, Err(Unread(why)));
        }
    }

    #[test]
    fn fields_are_decoded_and_malformed_ones_are_errors() {
        let read =
            |bytes: &[u8]| fields(bytes).map(|field| field.map(|(n, v)| (n, format!("{v:?}")))).collect();
        let good: Result<Vec<(u64, String)>, Unread> =
            read(&[0x08, 0x96, 0x01, 0x12, 2, b'h', b'i', 0x1d, 1, 2, 3, 4]);
        assert_eq!(
            good,
            Ok(vec![
                (1, "Number(150)".into()),
                (2, "Bytes([104, 105])".into()),
                (3, "Bytes([1, 2, 3, 4])".into())
            ])
        );
        for broken in [
            &[0x08][..],                                                               // no value
            &[0x12, 3, 1],                                                             // shorter than it says
            &[0x0b],                                                                   // a group
            &[0x02, 0],                                                                // field 0
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],       // 65 bits
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], // eleven bytes
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],       // a huge length
        ] {
            let found: Result<Vec<(u64, String)>, Unread> = read(broken);
            assert_eq!(found, Err(BROKEN), "{broken:?}");
        }
    }
}
