//! A proxy for `https` out of a company's network, configured by `HTTPS_PROXY` and `NO_PROXY`.
//!
//! The proxy opens a tunnel (`CONNECT`, RFC 9110 section 9.3.6) and sees only TLS data, which ends at the
//! real endpoint. Plain `http` never uses it: such requests go to loopback or to the machine's own metadata
//! server.
//!
//! hyper-util's matcher for these variables does not fit: it ignores ports and `*.` in `NO_PROXY`, bypasses a proxy whose
//! address it cannot read, and needs a crate (`ipnet`) that nothing else here needs.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower_service::Service;
use url::Url;

use crate::secret::Secret;
use crate::source::SourceError;

/// Limit on a proxy's answer before the tunnel begins: a status line and some headers.
const LONGEST_REPLY: usize = 8192;

/// The environment's proxy settings as values, read by `main`.
#[derive(Clone, Default)]
pub struct Proxies {
    /// `http://proxy.example:3128`; may contain a user and a password, so there is no `Debug` for it.
    pub https: Option<String>,
    /// Names, addresses and networks to reach directly, in curl's format.
    pub none_for: Option<String>,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxies(https: {})", self.https.is_some())
    }
}

#[derive(Debug)]
struct HttpProxy {
    /// `http://HOST:PORT`.
    at: Uri,
    /// `user:password` in base64.
    login: Option<Secret<String>>,
    /// With the only port that it applies to, if the entry names one.
    none_for: Vec<(NoProxyEntry, Option<u16>)>,
}

/// An entry of `NO_PROXY`.
#[derive(Clone, Debug, Eq, PartialEq)]
enum NoProxyEntry {
    Everything,
    /// Address and prefix, in bits.
    Network(IpAddr, u8),
    /// The domain and its subdomains.
    Domain(String),
}

impl NoProxyEntry {
    fn with_port(text: &str) -> Option<(Self, Option<u16>)> {
        let port = text.trim().rsplit_once(':').and_then(|(host, port)| {
            // The last part of a bare IPv6 address is not a port.
            let whole = !host.contains(':') || host.ends_with(']');
            Some((host, port.parse().ok().filter(|_| whole)?))
        });
        match port {
            Some((host, port)) => Some((Self::read(host)?, Some(port))),
            None => Some((Self::read(text)?, None)),
        }
    }

    fn read(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        // `*.corp.example`, `.corp.example` and `corp.example` mean the same.
        let text = text.strip_prefix("*.").unwrap_or(&text).trim_start_matches('.');
        if text.is_empty() {
            return None;
        }
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        if text == "*" {
            return Some(Self::Everything);
        }
        if let Ok(address) = address.trim_matches(['[', ']']).parse::<IpAddr>() {
            let whole = if address.is_ipv4() { 32 } else { 128 };
            let prefix =
                prefix.map_or(Some(whole), |prefix| prefix.parse().ok().filter(|bits| *bits <= whole));
            return prefix.map(|prefix| Self::Network(address, prefix));
        }
        Some(Self::Domain(text.to_owned()))
    }

    fn covers(&self, host: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Network(network, prefix) => match (network, host.parse::<IpAddr>()) {
                (IpAddr::V4(own), Ok(IpAddr::V4(other))) => {
                    (own.to_bits() ^ other.to_bits()).checked_shr(32 - u32::from(*prefix)).unwrap_or(0) == 0
                }
                (IpAddr::V6(own), Ok(IpAddr::V6(other))) => {
                    (own.to_bits() ^ other.to_bits()).checked_shr(128 - u32::from(*prefix)).unwrap_or(0) == 0
                }
                _ => false,
            },
            Self::Domain(domain) => {
                let below = host.strip_suffix(domain.as_str());
                below.is_some_and(|below| below.is_empty() || below.ends_with('.'))
            }
        }
    }
}

/// Connects directly, or through the proxy.
#[derive(Clone, Debug)]
pub struct ProxyConnector {
    direct: HttpConnector,
    proxy: Option<Arc<HttpProxy>>,
}

impl ProxyConnector {
    pub(crate) fn new(direct: HttpConnector, proxies: &Proxies) -> Result<Self, SourceError> {
        let Some(text) = proxies.https.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(Self { direct, proxy: None });
        };
        // An unusable proxy is an error: do not bypass it.
        let (at, login) = understand(text).ok_or_else(|| {
            SourceError::refused(
                "HTTPS_PROXY is not the address of an http proxy, such as http://proxy.example:3128; correct or unset it",
            )
        })?;
        let none_for = proxies.none_for.as_deref().unwrap_or_default();
        let none_for = none_for.split(',').filter_map(NoProxyEntry::with_port).collect();
        Ok(Self { direct, proxy: Some(Arc::new(HttpProxy { at, login, none_for })) })
    }

    fn proxy_for(&self, to: &Uri) -> Option<Arc<HttpProxy>> {
        let tls = to.scheme_str() == Some("https");
        let host = to.host()?.trim_matches(['[', ']']).to_ascii_lowercase();
        let proxy = self.proxy.as_ref().filter(|_| tls)?;
        let port = to.port_u16().unwrap_or(443);
        let mut exceptions = proxy.none_for.iter();
        let direct = exceptions.any(|(one, of)| of.is_none_or(|of| of == port) && one.covers(&host));
        (!direct).then(|| proxy.clone())
    }
}

/// The proxy's address, and the login to send to it. Without a scheme it is `http`.
fn understand(text: &str) -> Option<(Uri, Option<Secret<String>>)> {
    let url =
        if text.contains("://") { Url::parse(text) } else { Url::parse(&format!("http://{text}")) }.ok()?;
    if url.scheme() != "http" {
        return None;
    }
    let plain = |text: &str| {
        let field = Secret::new(format!("x={}", text.replace('+', "%2B")));
        let decoded = url::form_urlencoded::parse(field.expose().as_bytes()).next();
        Secret::new(decoded.map(|(_, value)| value.into_owned()).unwrap_or_default())
    };
    let login = (!url.username().is_empty()).then(|| {
        let (user, password) = (plain(url.username()), plain(url.password().unwrap_or_default()));
        let pair = Secret::new(format!("{}:{}", user.expose(), password.expose()));
        Secret::new(STANDARD.encode(pair.expose()))
    });
    let at = format!("http://{}:{}", url.host_str()?, url.port_or_known_default()?).parse().ok()?;
    Some((at, login))
}

type Connection = TokioIo<TcpStream>;
type Failed = Box<dyn Error + Send + Sync>;

/// The message for the user: the proxy and its answer. The text already includes the causes.
#[derive(Debug, thiserror::Error)]
#[error("the proxy {proxy} (HTTPS_PROXY): {why}")]
struct Blocked {
    proxy: String,
    why: String,
}

impl Service<Uri> for ProxyConnector {
    type Response = Connection;
    type Error = Failed;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, Failed>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let Some(proxy) = self.proxy_for(&to) else {
            let connecting = self.direct.call(to);
            return Box::pin(async move { connecting.await.map_err(Into::into) });
        };
        let connecting = self.direct.call(proxy.at.clone());
        Box::pin(async move {
            let tunnel = async {
                let mut stream = connecting.await.map_err(|error| {
                    let error: Failed = error.into();
                    let mut cause = error.as_ref() as &dyn Error;
                    while let Some(inner) = cause.source() {
                        cause = inner;
                    }
                    cause.to_string()
                })?;
                dig(stream.inner_mut(), &to, proxy.login.as_ref()).await.map(|()| stream)
            };
            let name = proxy.at.authority().map(ToString::to_string).unwrap_or_default();
            tunnel.await.map_err(|why| Blocked { proxy: name, why }.into())
        })
    }
}

/// Requests a tunnel to `to`. No data follows a successful answer's head: the server waits for us.
async fn dig(stream: &mut TcpStream, to: &Uri, login: Option<&Secret<String>>) -> Result<(), String> {
    let place = format!("{}:{}", to.host().unwrap_or_default(), to.port_u16().unwrap_or(443));
    let login = login.map(|login| format!("Proxy-Authorization: Basic {}\r\n", login.expose()));
    let head = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{}\r\n", login.unwrap_or_default());
    let head = Secret::new(head);
    let lost = |error: std::io::Error| format!("the connection broke off: {error}");
    stream.write_all(head.expose().as_bytes()).await.map_err(lost)?;
    let mut reply = Vec::new();
    while !reply.ends_with(b"\r\n\r\n") {
        if reply.len() >= LONGEST_REPLY {
            return Err("its answer is too long".into());
        }
        // Reads byte by byte: everything after the head belongs to TLS.
        let byte = stream.read_u8().await.map_err(lost)?;
        reply.push(byte);
    }
    let status = reply.strip_prefix(b"HTTP/1.").and_then(|rest| std::str::from_utf8(rest.get(2..5)?).ok());
    match status {
        Some(good) if good.starts_with('2') => Ok(()),
        Some("407") => Err("it asks for a user and a password (407): http://USER:PASSWORD@HOST:PORT".into()),
        Some(status) if status.bytes().all(|b| b.is_ascii_digit()) => {
            Err(format!("it does not connect to {place} ({status})"))
        }
        _ => Err("it does not speak HTTP".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn road(https: &str, none_for: &str) -> Result<ProxyConnector, SourceError> {
        let proxies = Proxies { https: Some(https.into()), none_for: Some(none_for.into()) };
        ProxyConnector::new(HttpConnector::new(), &proxies)
    }

    #[test]
    fn a_proxy_is_for_https_and_for_what_is_not_excepted() {
        let road =
            road("http://user:s3cret@proxy.example:3128", "googleapis.cn, .internal,10.0.0.0/8,fd00::/8,,")
                .unwrap();
        let through = |to: &str| road.proxy_for(&to.parse().unwrap()).is_some();
        for far in [
            "https://oauth2.googleapis.com/token",
            "https://evilgoogleapis.cn/",
            "https://11.1.2.3/",
            "https://[fe80::1]/",
        ] {
            assert!(through(far), "{far}");
        }
        for direct in [
            "http://169.254.169.254/computeMetadata/v1/",
            "http://127.0.0.1:80/",
            "https://oauth2.googleapis.cn/",
            "https://iam.corp.internal/",
            "https://10.1.2.3/",
            "https://[fd12::1]/",
        ] {
            assert!(!through(direct), "{direct}");
        }
        assert!(!format!("{road:?}").contains("s3cret"));
    }

    #[test]
    fn an_exception_may_have_a_port_or_a_star() {
        for (none_for, to, through) in [
            ("oauth2.googleapis.com:443", "https://oauth2.googleapis.com/token", false),
            ("oauth2.googleapis.com:443", "https://oauth2.googleapis.com:443/token", false),
            ("oauth2.googleapis.com:8443", "https://oauth2.googleapis.com/token", true),
            ("*.corp.example", "https://iam.corp.example/", false),
            ("*.corp.example", "https://corp.example/", false),
            ("*.corp.example", "https://evilcorp.example/", true),
            (" *.corp.example:443 ", "https://iam.corp.example/", false),
            ("10.1.2.3:443", "https://10.1.2.3/", false),
            ("10.1.2.3:444", "https://10.1.2.3/", true),
            ("[fd12::1]:443", "https://[fd12::1]/", false),
            ("fd12::443", "https://[fd12::443]/", false),
            ("fd12::443", "https://[fd12::]/", true),
        ] {
            let road = road("http://proxy.example:3128", none_for).unwrap();
            assert_eq!(road.proxy_for(&to.parse().unwrap()).is_some(), through, "{none_for} {to}");
        }
    }

    #[test]
    fn a_proxy_that_is_not_http_is_refused_not_bypassed() {
        for bad in
            ["socks5://proxy.example:1080", "https://proxy.example", "ftp://x", "http://", "http://a b"]
        {
            assert!(matches!(road(bad, ""), Err(SourceError::Refused(_))), "{bad}");
        }
        let plain = road("proxy.example:3128", "").unwrap();
        assert!(plain.proxy_for(&Uri::from_static("https://a.example/")).is_some());
        assert!(road("", "").unwrap().proxy.is_none());
        assert!(road("http://a", "*").unwrap().proxy_for(&Uri::from_static("https://a.example/")).is_none());
        let (at, login) = understand("http://us%40er:p%3Aa+ss@[::1]:1/x").unwrap();
        assert_eq!(at.to_string(), "http://[::1]:1/");
        assert_eq!(*login.unwrap().expose(), STANDARD.encode("us@er:p:a+ss"));
    }
}
