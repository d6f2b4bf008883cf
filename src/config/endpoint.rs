//! The engine's address: a unix socket of this machine, TCP with or without TLS, or another machine by ssh.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::quote;

/// Docker's default ports: without TLS, and with it.
const PLAIN_PORT: u16 = 2375;
const TLS_PORT: u16 = 2376;

/// The engine's address. It is serialised to pass it to a session that runs inside another session.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    Unix(PathBuf),
    Tcp {
        host: String,
        port: u16,
        /// `None`: anyone on the network path can read and change all traffic.
        tls: Option<TlsFiles>,
    },
    Ssh(Ssh),
}

/// PEM files with Docker's usual names. They are read when the session starts.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TlsFiles {
    /// The authority that must have issued the engine's certificate.
    pub ca: PathBuf,
    /// The client certificate and key that we present to the engine.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// An engine reached through the user's own ssh.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Ssh {
    pub user: Option<String>,
    pub host: String,
    pub port: Option<u16>,
    /// The engine's socket on that machine, if it is not the usual one.
    pub socket: Option<String>,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => f.write_str(&quote::path(path)),
            Self::Tcp { host, port, .. } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port, .. } => write!(f, "tcp://{host}:{port}"),
            Self::Ssh(Ssh { user, host, port, socket }) => {
                f.write_str("ssh://")?;
                if let Some(user) = user {
                    write!(f, "{user}@")?;
                }
                let colon = host.contains(':');
                write!(f, "{}{host}{}", if colon { "[" } else { "" }, if colon { "]" } else { "" })?;
                if let Some(port) = port {
                    write!(f, ":{port}")?;
                }
                f.write_str(socket.as_deref().unwrap_or_default())
            }
        }
    }
}

impl Endpoint {
    /// Parses `unix:///path`, `tcp://host[:port]` and `ssh://[user@]host[:port][/socket]`. The error
    /// completes the sentence `"…" …` and quotes nothing, because the text may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = match text.split_once("://") {
            Some(parts) => parts,
            None if text.starts_with('/') => {
                return Err(format!("has to be written unix://{}", quote::path(Path::new(text))));
            }
            None => return Err("has to be unix:///path, tcp://host:port or ssh://user@host".into()),
        };
        match scheme {
            "unix" | "http+unix" if rest.starts_with('/') => Ok(Self::Unix(rest.into())),
            "unix" | "http+unix" => Err("has to name an absolute path, unix:///path".into()),
            "tcp" | "http" => tcp(rest, false),
            "https" => tcp(rest, true),
            "ssh" => ssh(rest).map(Self::Ssh),
            "npipe" => Err("is Docker for Windows; only Linux works so far (inside WSL, too)".into()),
            "fd" => Err("is for the engine itself; use unix:///path".into()),
            _ => Err("has to be unix:///path, tcp://host:port or ssh://user@host".into()),
        }
    }

    /// Checks what parsing would have checked: a serialised endpoint may come from another program.
    pub fn is_sound(&self) -> bool {
        match self {
            Self::Unix(path) => path.is_absolute(),
            Self::Tcp { host, .. } => is_host(host),
            Self::Ssh(Ssh { user, host, socket, .. }) => {
                is_host(host)
                    && user.as_deref().is_none_or(is_user)
                    && socket.as_deref().is_none_or(is_plain_path)
            }
        }
    }

    /// The socket, if on this machine. The engine then shares our files, unless it is in a virtual machine.
    pub fn socket(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp { .. } | Self::Ssh(_) => None,
        }
    }

    /// The endpoint with TLS, using the files in `folder`; unchanged unless it is TCP.
    #[must_use]
    pub fn with_tls(self, folder: &Path, own: bool) -> Self {
        match self {
            Self::Tcp { host, port, .. } => {
                let port = if port == 0 { TLS_PORT } else { port };
                let own = own.then(|| (folder.join("cert.pem"), folder.join("key.pem")));
                Self::Tcp { host, port, tls: Some(TlsFiles { ca: folder.join("ca.pem"), own }) }
            }
            other => other,
        }
    }

    /// The endpoint without TLS.
    #[must_use]
    pub fn plain(self) -> Self {
        match self {
            Self::Tcp { host, port: 0, tls } => Self::Tcp { host, port: PLAIN_PORT, tls },
            other => other,
        }
    }
}

/// Port 0 is replaced by Docker's default once TLS is decided; `https` implies TLS.
fn tcp(rest: &str, tls: bool) -> Result<Endpoint, String> {
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('/') {
        return Err("has to be tcp://host:port, without a path".into());
    }
    let (user, host, port) = authority(rest)?;
    if user.is_some() {
        return Err("names a user, which an engine on TCP does not know".into());
    }
    if !is_host(&host) {
        return Err("has to be tcp://host:port, without a path".into());
    }
    let port = port.unwrap_or(if tls { TLS_PORT } else { 0 });
    Ok(Endpoint::Tcp { host, port, tls: None })
}

fn ssh(rest: &str) -> Result<Ssh, String> {
    let (rest, socket) = match rest.find('/') {
        Some(at) if rest[at..].len() > 1 => (&rest[..at], Some(rest[at..].to_string())),
        Some(at) => (&rest[..at], None),
        None => (rest, None),
    };
    let (user, host, port) = authority(rest)?;
    if !is_host(&host) || !user.as_deref().is_none_or(is_user) {
        return Err("has to be ssh://user@host:port; names begin with a letter or a digit".into());
    }
    if !socket.as_deref().is_none_or(is_plain_path) {
        return Err("names a socket whose path has other characters than letters, digits and ._-/".into());
    }
    Ok(Ssh { user, host, port, socket })
}

fn authority(text: &str) -> Result<(Option<String>, String, Option<u16>), String> {
    let (user, place) = match text.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, text),
    };
    if user.is_some_and(|user| user.contains(':')) {
        return Err("contains a password, which is not accepted: use keys or an agent".into());
    }
    let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':').or_else(|| (!rest.is_empty()).then_some(rest))),
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let port = port.map(|port| port.parse().ok().filter(|port| *port > 0).ok_or("has an invalid port"));
    Ok((user.map(String::from), host.into(), port.transpose()?))
}

/// A host name or address; never a text that ssh would take for an option.
fn is_host(host: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte);
    host.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b':')
        && host.bytes().all(plain)
}

fn is_user(user: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_+\\@".contains(&byte);
    user.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b'_')
        && user.bytes().all(plain)
}

/// A path without special characters, because the remote shell parses it.
fn is_plain_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parsed_endpoint_prints_as_it_was_written() {
        for text in [
            "tcp://10.0.0.1:2376",
            "tcp://[fd00::1]:2376",
            "ssh://me@build.example:2222",
            "ssh://build",
            "ssh://build/run/user/1000/docker.sock",
        ] {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!(endpoint.to_string(), text);
            assert!(endpoint.is_sound());
        }
        assert_eq!(Endpoint::parse("unix:///a/b"), Ok(Endpoint::Unix("/a/b".into())));
        let port = |endpoint: Endpoint| endpoint.to_string();
        assert_eq!(port(Endpoint::parse("tcp://x").unwrap().plain()), "tcp://x:2375");
        assert_eq!(port(Endpoint::parse("tcp://x").unwrap().with_tls(Path::new("/c"), true)), "tcp://x:2376");
        assert_eq!(port(Endpoint::parse("https://x/").unwrap()), "tcp://x:2376");
    }

    #[test]
    fn ssh_hosts_that_look_like_options_are_refused() {
        for text in [
            "ssh://-oProxyCommand=touch%20x",
            "ssh://-oProxyCommand=x@host",
            "ssh://me@-host",
            "ssh://me:hunter2@host",
            "ssh://host:0",
            "ssh://host:x",
            "ssh://",
            "ssh://me@",
            "ssh://ho st",
            "ssh://host/run/$(id).sock",
            "ssh://host/run/a b",
            "tcp://",
            "tcp://me@host:1",
            "tcp://host:1/v1",
            "tcp://host;x",
            "tcp://host:99999",
            "npipe:////./pipe/docker_engine",
            "fd://",
            "10.0.0.1:2375",
        ] {
            let said = Endpoint::parse(text).unwrap_err();
            assert!(!said.contains("hunter2") && !said.contains('\n'), "{text}: {said}");
        }
        let ssh = |host: &str| Ssh { user: None, host: host.into(), port: None, socket: None };
        assert!(!Endpoint::Ssh(ssh("-oProxyCommand=x")).is_sound());
        assert!(!Endpoint::Ssh(Ssh { socket: Some("/a;b".into()), ..ssh("x") }).is_sound());
    }
}
