//! hyper itself answers requests that it cannot parse as HTTP, and no service sees its reply. Every reply of
//! Google's tree must have `Metadata-Flavor: Google`, so our headers are added as hyper's reply is written, unless
//! the request's first line names a path of another cloud.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::cloud::Cloud;

/// The headers of replies of Google's tree, without those that hyper adds itself.
const OURS: &[u8] = b"metadata-flavor: Google\r\ncontent-type: text/html; charset=UTF-8\r\n\
    server: Metadata Server for VM\r\nx-xss-protection: 0\r\nx-frame-options: SAMEORIGIN\r\n\r\n";
/// The maximum length of a head by hyper itself; a longer one belongs to a reply of ours.
const LONGEST: usize = 256;
/// How much of a request is kept: enough for a method and the first segments of a path, or of an absolute target.
const FIRST: usize = 192;

/// A server's connection on which hyper's own refusals carry our headers.
#[derive(Debug)]
pub struct Flavored<S> {
    stream: S,
    /// The rest of a refusal that was accepted but is not written yet.
    left: Vec<u8>,
    /// The first bytes that were read after the last reply, which begin the next request. If two requests came in
    /// one packet this is empty for the second one, which then counts as Google's.
    first: Vec<u8>,
    replied: bool,
}

impl<S> Flavored<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, left: Vec::new(), first: Vec::new(), replied: false }
    }

    fn note(&mut self, read: &[u8]) {
        if read.is_empty() {
            return;
        }
        if std::mem::take(&mut self.replied) {
            self.first.clear();
        }
        let room = FIRST - self.first.len();
        self.first.extend_from_slice(&read[..read.len().min(room)]);
    }
}

/// Whether a request that begins with these bytes is for a path of Google's, as far as they show. On loopback a
/// secret may precede the path.
fn is_for_google(first: &[u8]) -> bool {
    let line = first.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let Some(target) = line.split(|byte| *byte == b' ').nth(1) else { return true };
    let target = target.strip_prefix(b"http://").map_or(target, |rest| {
        rest.iter().position(|byte| *byte == b'/').map_or(&b"/"[..], |path| &rest[path..])
    });
    let inner = target.strip_prefix(b"/").unwrap_or(target);
    let behind = inner.iter().position(|byte| *byte == b'/').map(|end| &inner[end..]);
    let of_google = |path: &[u8]| Cloud::of_path(&String::from_utf8_lossy(path)) == Cloud::Google;
    of_google(target) && behind.is_none_or(of_google)
}

/// Whether `written` ends with a refusal by hyper: an error with an empty body and only the headers that
/// hyper adds. Our own replies have more.
fn ends_in_bare_refusal(written: &[u8]) -> bool {
    if !written.ends_with(b"\r\n\r\n") {
        return false;
    }
    let tail = &written[written.len().saturating_sub(LONGEST)..];
    let Some(start) = tail.windows(7).rposition(|window| window == b"HTTP/1.") else { return false };
    let Ok(head) = str::from_utf8(&tail[start..]) else { return false };
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let bare =
        |line: &str| matches!(line, "connection: close" | "content-length: 0") || line.starts_with("date: ");
    matches!(status, "400" | "414" | "431") && lines.all(bare)
}

impl<S: AsyncWrite + Unpin> Flavored<S> {
    fn write_left(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.left.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.left))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.left.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Flavored<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.write_left(context))?;
        let ours = ends_in_bare_refusal(bytes) && (self.replied || is_for_google(&self.first));
        self.replied = true;
        if !ours {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        }
        self.left = [&bytes[..bytes.len() - 2], OURS].concat();
        // Report all bytes as accepted; the flush that follows writes the rest.
        match self.write_left(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A refusal has no body, so it is a single part.
        if let [only] = parts {
            return self.poll_write(context, only);
        }
        ready!(self.write_left(context))?;
        self.replied = true;
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_left(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_left(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Flavored<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, into))?;
        self.note(&into.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const BARE: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\
        date: Mon, 23 Nov 2026 12:00:00 GMT\r\n\r\n";

    /// What a caller that sends `first` gets for the second of two parts that are written.
    async fn refused_after(first: &str, before: &str) -> String {
        let (near, mut far) = tokio::io::duplex(4096);
        let mut near = Flavored::new(near);
        far.write_all(first.as_bytes()).await.unwrap();
        let _ = near.read(&mut [0; 4096]).await.unwrap();
        if !before.is_empty() {
            near.write_all(before.as_bytes()).await.unwrap();
            far.write_all(first.as_bytes()).await.unwrap();
            // A head may come in pieces.
            for _ in first.bytes() {
                let _ = near.read(&mut [0]).await.unwrap();
            }
        }
        near.write_all(BARE.as_bytes()).await.unwrap();
        near.shutdown().await.unwrap();
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        text[before.len()..].to_string()
    }

    #[tokio::test]
    async fn only_paths_of_googles_get_headers_of_googles() {
        let reply = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        for before in ["", reply] {
            let secret = "s".repeat(43);
            for of_others in [
                "PUT /latest/api/token HTTP/7.3\r\n",
                "GET /metadata/<b> HTTP/1.1\r\n",
                "GET /v2/\r\n",
                "GET /msi/token?resource=\u{e4} HTTP/1.1\r\n",
                "GET http://169.254.169.254/latest/<b> HTTP/1.1\r\n",
                &format!("GET /{secret}/v2/credentials HTTP/7.3\r\n"),
                &format!("GET /{secret}/msi/token?<b> HTTP/1.1\r\n"),
            ] {
                assert_eq!(refused_after(of_others, before).await, BARE, "{of_others}");
            }
            for of_google in [
                "GET /<b> HTTP/1.1\r\n",
                "GET / HTTP/7.3\r\n",
                "GET http://metadata.google.internal HTTP/7.3\r\n",
                "GET /computeMetadata/v1/latest/<b> HTTP/1.1\r\n",
                &format!("GET /{secret}/computeMetadata/<b> HTTP/1.1\r\n"),
                "GET /x HTTP/1.1\r\nX: /latest/ /latest/\r\n",
                "\x16\x03",
                "no HTTP at all",
                "GET /lat",
            ] {
                let got = refused_after(of_google, before).await;
                assert!(got.contains("\r\nmetadata-flavor: Google\r\n"), "{of_google}: {got}");
            }
        }
    }

    /// The bytes written for `parts`, through a pipe that takes only a few bytes at a time.
    async fn written(parts: &[&str]) -> String {
        let (near, mut far) = tokio::io::duplex(7);
        let reader = async move {
            let mut text = String::new();
            far.read_to_string(&mut text).await.map(|_| text)
        };
        let writer = async {
            let mut near = Flavored::new(near);
            for part in parts {
                near.write_all(part.as_bytes()).await?;
            }
            near.shutdown().await
        };
        let (text, done) = tokio::join!(reader, writer);
        done.unwrap();
        text.unwrap()
    }

    #[tokio::test]
    async fn a_refusal_of_hypers_own_gets_our_headers() {
        let ours = format!("{}{}", BARE.trim_end_matches("\r\n"), "\r\n") + str::from_utf8(OURS).unwrap();
        assert_eq!(written(&[BARE]).await, ours);
        let before = "HTTP/1.1 301 Moved Permanently\r\nmetadata-flavor: Google\r\n\r\n";
        assert_eq!(written(&[before, BARE]).await, format!("{before}{ours}"));
        assert!(ends_in_bare_refusal(format!("{before}{BARE}").as_bytes()));
    }

    #[tokio::test]
    async fn other_bytes_pass_unchanged() {
        let flavored = BARE.replace("content-length", "metadata-flavor: Google\r\ncontent-length");
        let found = BARE.replace("400 Bad Request", "200 OK");
        let body = format!("{BARE}tail");
        for text in [flavored.as_str(), &found, &body, "", "\r\n\r\n", "HTTP/1.", "HTTP/1.1\r\n\r\n"] {
            assert_eq!(written(&[text]).await, text);
        }
    }
}
