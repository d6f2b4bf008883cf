//! The frames of a stream without a terminal, read from pieces of any size: a header of eight bytes gives the
//! stream and the length, and as many bytes follow (Docker Engine API, "Attach to a container", stream
//! format).

/// The number of the stream for the engine's own messages in a container's logs (`Systemerr` of its
/// `stdcopy`).
pub(super) const ENGINE: u8 = 3;

/// A piece of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) enum FramePart<'a> {
    /// The complete header of eight bytes.
    Head(&'a [u8]),
    /// A part of the frame's content.
    Payload(&'a [u8]),
}

/// Reads frames from pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: Vec<u8>,
    left: usize,
    /// Data arrived that is no frame: it and everything after it is a message of the engine. Podman sends its
    /// error as JSON, after a status of 200, if a container is removed while a client asks for its logs.
    message: bool,
}

impl Frames {
    /// Calls `each` with the stream's number on the wire (1: standard output, 2: standard error) and a part.
    pub(super) fn read(&mut self, mut bytes: &[u8], mut each: impl FnMut(u8, FramePart<'_>)) {
        while !bytes.is_empty() {
            if self.message {
                return each(ENGINE, FramePart::Payload(bytes));
            }
            if self.left == 0 {
                let (head, rest) = bytes.split_at(bytes.len().min(8 - self.head.len()));
                self.head.extend_from_slice(head);
                bytes = rest;
                match *self.head.as_slice() {
                    [stream @ 0..=ENGINE, 0, 0, 0, a, b, c, d] => {
                        each(stream, FramePart::Head(&self.head));
                        self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                        if self.left == 0 {
                            self.head.clear();
                        }
                    }
                    [_, _, _, _, _, _, _, _] => {
                        self.message = true;
                        each(ENGINE, FramePart::Payload(&self.head));
                        self.head.clear();
                    }
                    _ => {}
                }
                continue;
            }
            let (payload, rest) = bytes.split_at(bytes.len().min(self.left));
            each(self.head.first().copied().unwrap_or_default(), FramePart::Payload(payload));
            self.left -= payload.len();
            bytes = rest;
            if self.left == 0 {
                self.head.clear();
            }
        }
    }

    /// Whether the position is between two frames, where another can follow.
    pub(super) fn is_whole(&self) -> bool {
        self.left == 0 && self.head.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_from_pieces_of_any_size() {
        let bytes = b"\x01\0\0\0\0\0\0\x03one\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x03err\x03\0\0\0\0\0\0\x01!";
        for size in 1..=bytes.len() {
            let (mut frames, mut streams, mut whole) = (Frames::default(), vec![vec![]; 4], vec![]);
            for piece in bytes.chunks(size) {
                frames.read(piece, |stream, part| match part {
                    FramePart::Head(head) => whole.extend_from_slice(head),
                    FramePart::Payload(payload) => {
                        streams[usize::from(stream)].extend_from_slice(payload);
                        whole.extend_from_slice(payload);
                    }
                });
            }
            assert_eq!(streams, [&b""[..], b"one", b"err", b"!"], "{size}");
            assert_eq!(whole, bytes);
            assert!(frames.is_whole());
        }
    }

    #[test]
    fn an_error_that_is_no_frame_is_a_message_of_the_engine() {
        let (whole, error) = (b"\x01\0\0\0\0\0\0\x03one", br#"{"cause":"no such container"}"#);
        for before in [&b""[..], whole] {
            let bytes = [before, error].concat();
            for size in 1..=bytes.len() {
                let (mut frames, mut message) = (Frames::default(), vec![]);
                for piece in bytes.chunks(size) {
                    frames.read(piece, |stream, part| match part {
                        FramePart::Payload(payload) if stream == ENGINE => message.extend_from_slice(payload),
                        FramePart::Head(_) | FramePart::Payload(_) => assert_eq!(stream, 1),
                    });
                }
                assert_eq!(message, error, "{size}");
                assert!(frames.is_whole());
            }
        }
    }
}
