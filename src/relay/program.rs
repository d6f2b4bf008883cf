//! The relay's command line, the same in this program and in the small one that is only a relay.

use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

/// The commands of the program in a container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ProgramCall {
    /// `relay ADDRESS [--cells]`: carries requests from the network to stdout; see [`super::run`].
    Relay { at: Ipv4Addr, cells: bool },
    /// `probe ADDRESS [--port PORT] [--below PATH]`: asks for a token as a container's client does. The
    /// server's own paths begin behind `below`.
    Probe { at: SocketAddrV4, below: String },
}

impl ProgramCall {
    /// `None` if the first word is neither of the two. The error completes `kfp-creds: `.
    pub fn parse(words: &[OsString]) -> Option<Result<Self, &'static str>> {
        let mut words = words.iter().map(|word| word.to_str().unwrap_or_default());
        match words.next()? {
            "relay" => Some(relay(words).ok_or("relay takes an IPv4 address, and --cells")),
            "probe" => Some(probe(words).ok_or("probe takes an IPv4 address, --port PORT and --below PATH")),
            _ => None,
        }
    }

    /// Returns the exit code. A probe's is 0 for a token, 1 for another answer, 2 for no answer: its container
    /// has no other output.
    pub fn run(self) -> io::Result<u8> {
        match self {
            Self::Relay { at, cells } => wait_for(super::run(at, cells))?.map(|()| 0),
            Self::Probe { at, below } => {
                let path = format!("{below}/computeMetadata/v1/instance/service-accounts/default/token");
                Ok(match wait_for(super::ask(at, &path))? {
                    Ok(200) => 0,
                    Ok(_) => 1,
                    Err(_) => 2,
                })
            }
        }
    }
}

fn relay<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<ProgramCall> {
    let at = words.next()?.parse().ok()?;
    let cells = match words.next() {
        None => false,
        Some("--cells") => true,
        Some(_) => return None,
    };
    words.next().is_none().then_some(ProgramCall::Relay { at, cells })
}

fn probe<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<ProgramCall> {
    let (at, mut port, mut below) = (words.next()?.parse().ok()?, 80, String::new());
    while let Some(flag) = words.next() {
        match (flag, words.next()?) {
            ("--port", value) => port = value.parse().ok()?,
            ("--below", value) => below = value.into(),
            _ => return None,
        }
    }
    Some(ProgramCall::Probe { at: SocketAddrV4::new(at, port), below })
}

fn wait_for<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_commands_are_understood_and_nothing_else() {
        let asked = |line: &str| ProgramCall::parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        let at = Ipv4Addr::new(169, 254, 169, 254);
        assert_eq!(asked("relay 169.254.169.254"), Some(Ok(ProgramCall::Relay { at, cells: false })));
        assert_eq!(asked("relay 169.254.169.254 --cells"), Some(Ok(ProgramCall::Relay { at, cells: true })));
        let probe = |port, below: &str| {
            Some(Ok(ProgramCall::Probe { at: SocketAddrV4::new(at, port), below: below.into() }))
        };
        assert_eq!(asked("probe 169.254.169.254"), probe(80, ""));
        assert_eq!(asked("probe 169.254.169.254 --below /x --port 81"), probe(81, "/x"));
        for line in [
            "relay",
            "relay here",
            "relay ::1",
            "relay 1.2.3.4 --cell",
            "relay 1.2.3.4 --cells x",
            "probe",
            "probe 1.2.3.4 --port",
            "probe 1.2.3.4 --port 70000",
            "probe 1.2.3.4 5",
        ] {
            assert!(asked(line).is_some_and(|asked| asked.is_err()), "{line}");
        }
        for line in ["", "run -- relay", "--version"] {
            assert_eq!(asked(line), None, "{line}");
        }
    }
}
