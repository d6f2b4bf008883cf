//! Sends one request to a server and reads its answer, byte by byte, without a client library.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::{Host, Url};

use crate::quote;

/// The recursive listing of a whole tree takes some ten KiB.
const LARGEST: u64 = 4 << 20;

/// The addresses of cloud metadata servers.
const MAGIC: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

const NAMES: [&str; 3] = ["metadata", "metadata.google.internal", "metadata.goog"];

/// The server to test, as the user named it.
#[derive(Clone, Debug)]
pub struct TestedServer(Url);

impl TestedServer {
    /// `http://HOST[:PORT][/PATH]`; all requests go below `PATH`, which may be a secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("is no URL: {error}"))?;
        let plain = url.username().is_empty() && url.password().is_none();
        if url.scheme() != "http" || url.host().is_none() || !plain || url.query().is_some() {
            return Err("has to be http://HOST:PORT".into());
        }
        Ok(Self(url))
    }

    /// The URL without its path.
    pub(super) fn shown(&self) -> String {
        let host = quote::name(self.0.host_str().unwrap_or_default());
        self.0.port().map_or_else(|| format!("http://{host}"), |port| format!("http://{host}:{port}"))
    }

    pub(super) fn prefix(&self) -> &str {
        self.0.path().trim_end_matches('/')
    }

    pub(super) async fn resolve(&self) -> Result<SocketAddr, String> {
        let port = self.0.port_or_known_default().unwrap_or(80);
        let name = match self.0.host() {
            Some(Host::Ipv4(ip)) => return Ok((ip, port).into()),
            Some(Host::Ipv6(ip)) => return Ok((ip, port).into()),
            Some(Host::Domain(name)) => name.trim_end_matches('.').to_ascii_lowercase(),
            None => return Err("the target has no host".into()),
        };
        let found = tokio::net::lookup_host((name.as_str(), port)).await;
        let found = found.map_err(|error| format!("{} is not known: {error}", quote::name(&name)))?;
        chosen(&name, found.collect())
    }
}

/// Refuses a name that resolves to a cloud's metadata server, unless it is that server's own name.
fn chosen(name: &str, found: Vec<SocketAddr>) -> Result<SocketAddr, String> {
    if !NAMES.contains(&name) && found.iter().any(|at| MAGIC.contains(&at.ip())) {
        return Err(format!(
            "{} leads to a cloud's metadata server; name that itself if you mean it",
            quote::name(name)
        ));
    }
    found.first().copied().ok_or_else(|| format!("{} has no address", quote::name(name)))
}

#[derive(Debug)]
pub(super) enum AnswerFailure {
    Unreachable(String),
    Unread(String),
}

/// The server's answer.
#[derive(Debug)]
pub(super) struct ServerAnswer {
    pub(super) status: u16,
    /// Names in lower case.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl ServerAnswer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// The request asks for `Connection: close`, so all bytes received belong to the answer.
pub(super) async fn exchange(
    at: SocketAddr,
    request: &str,
    head_only: bool,
) -> Result<ServerAnswer, AnswerFailure> {
    let unreachable = |error: std::io::Error| AnswerFailure::Unreachable(error.to_string());
    let mut stream = TcpStream::connect(at).await.map_err(unreachable)?;
    // A server may answer and close before it has read the whole request.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut bytes = Vec::new();
    let mut piece = [0; 8192];
    loop {
        match stream.read(&mut piece).await {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
            Err(_) if !bytes.is_empty() => break,
            Err(error) => return Err(AnswerFailure::Unread(format!("the connection broke off: {error}"))),
        }
        if bytes.len() as u64 > LARGEST {
            return Err(AnswerFailure::Unread("the answer is larger than 4 MiB".into()));
        }
        if is_whole(&bytes, head_only) {
            break;
        }
    }
    read(&bytes, head_only).map_err(|what| AnswerFailure::Unread(what.into()))
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some((&bytes[..end], &bytes[end + 4..]))
}

/// With a content length, the answer is complete even if the server keeps the connection open.
fn is_whole(bytes: &[u8], head_only: bool) -> bool {
    split(bytes).is_some_and(|(head, body)| {
        let length = length(&headers(head));
        head_only || length.is_some_and(|length| body.len() >= length)
    })
}

fn length(headers: &[(String, String)]) -> Option<usize> {
    headers.iter().find(|(name, _)| name == "content-length")?.1.parse().ok()
}

fn headers(head: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(head);
    let pair = |line: &str| {
        line.split_once(':').map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
    };
    text.split("\r\n").skip(1).filter_map(pair).collect()
}

fn read(bytes: &[u8], head_only: bool) -> Result<ServerAnswer, &'static str> {
    let (head, body) = split(bytes).ok_or("the answer has no end of its head")?;
    let line = String::from_utf8_lossy(head);
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
    let status = status.ok_or("the answer is not HTTP")?;
    let headers = headers(head);
    let chunked =
        headers.iter().any(|(name, value)| name == "transfer-encoding" && value.contains("chunked"));
    let body = match length(&headers) {
        _ if head_only => Vec::new(),
        _ if chunked => joined(body),
        Some(length) if body.len() < length => return Err("the answer is shorter than it says"),
        Some(length) => body[..length].to_vec(),
        None => body.to_vec(),
    };
    Ok(ServerAnswer { status, headers, body })
}

/// The data of the chunks received so far.
fn joined(mut rest: &[u8]) -> Vec<u8> {
    let mut data = vec![];
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size =
            std::str::from_utf8(&rest[..end]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let Some(chunk) = size.filter(|size| *size > 0).and_then(|size| rest.get(end + 2..end + 2 + size))
        else {
            break;
        };
        data.extend_from_slice(chunk);
        rest = rest.get(end + 4 + chunk.len()..).unwrap_or_default();
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clouds_server_is_asked_only_by_its_name() {
        let magic: SocketAddr = "169.254.169.254:80".parse().unwrap();
        let other: SocketAddr = "127.0.0.1:80".parse().unwrap();
        assert!(chosen("innocent.example", vec![other, magic]).unwrap_err().contains("leads to"));
        assert_eq!(chosen("metadata.google.internal", vec![magic]).unwrap(), magic);
        assert_eq!(chosen("localhost", vec![other]).unwrap(), other);
        assert!(chosen("nowhere", vec![]).is_err());
    }

    #[test]
    fn a_target_is_a_plain_place() {
        let target = TestedServer::parse("http://127.0.0.1:8174/s3cret/").unwrap();
        assert_eq!((target.shown().as_str(), target.prefix()), ("http://127.0.0.1:8174", "/s3cret"));
        assert_eq!(TestedServer::parse("http://metadata").unwrap().prefix(), "");
        for bad in ["https://a", "a:80", "http://", "http://u@a", "http://a/?x", "ftp://a", ""] {
            assert!(TestedServer::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn answers_are_read_as_they_are_sent() {
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(read(chunked, false).unwrap().body, b"abcde");
        let sized = b"HTTP/1.1 404 No\r\nContent-Length: 2\r\nX: y\r\n\r\nab";
        let answer = read(sized, false).unwrap();
        assert_eq!((answer.status, answer.header("x"), &answer.body[..]), (404, Some("y"), &b"ab"[..]));
        assert!(is_whole(sized, false) && !is_whole(&sized[..sized.len() - 1], false));
        for bad in [&b""[..], b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"] {
            assert!(read(bad, false).is_err());
        }
    }
}
