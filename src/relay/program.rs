//! The relay's command line, the same in this program and in the small one that is only a relay.

use std::ffi::OsString;
use std::fs;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::linux;

/// The commands of the program in a container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ProgramCall {
    /// `relay ADDRESS [ADDRESS] [--cells|--confined]`: carries requests from the network to stdout; see
    /// [`super::run`].
    Relay(RelayCall),
    /// `probe ADDRESS [--port PORT] [--below PATH]`: asks for a token as a container's client does. `below`
    /// is the prefix of the server's paths.
    Probe { at: SocketAddrV4, below: String },
}

/// Where a relay listens, and on which kind of network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RelayCall {
    pub at: Ipv4Addr,
    /// A second address.
    pub more: Option<Ipv4Addr>,
    pub network: RelayNetwork,
}

/// The kind of network on which a relay starts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RelayNetwork {
    /// One without outbound access.
    Internal,
    /// Like `Internal`, and the relay is connected to the networks of single containers later.
    Cells,
    /// One with a default route, which the relay deletes.
    Routed,
}

impl ProgramCall {
    /// `None` if the first word is neither of the two. The error completes `kfp-creds: `.
    pub fn parse(words: &[OsString]) -> Option<Result<Self, &'static str>> {
        let mut words = words.iter().map(|word| word.to_str().unwrap_or_default());
        match words.next()? {
            "relay" => {
                Some(relay(words).ok_or("relay takes one or two IPv4 addresses, and --cells or --confined"))
            }
            "probe" => Some(probe(words).ok_or("probe takes an IPv4 address, --port PORT and --below PATH")),
            _ => None,
        }
    }

    /// Returns the exit code. A probe's is 0 for a token, 1 for another answer, 2 for no answer: its container
    /// has no other output.
    pub fn run(self) -> io::Result<u8> {
        match self {
            Self::Relay(RelayCall { at, more, network }) => {
                if network == RelayNetwork::Routed {
                    confine()?;
                }
                wait_for(super::run(at, more, network == RelayNetwork::Cells))?.map(|()| 0)
            }
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

fn relay<'a>(words: impl Iterator<Item = &'a str>) -> Option<ProgramCall> {
    let mut words = words.peekable();
    let at = words.next()?.parse().ok()?;
    let more = words.peek().and_then(|word| word.parse().ok());
    if more.is_some() {
        words.next();
    }
    let network = match words.next() {
        None => RelayNetwork::Internal,
        Some("--cells") => RelayNetwork::Cells,
        Some("--confined") => RelayNetwork::Routed,
        Some(_) => return None,
    };
    words.next().is_none().then_some(ProgramCall::Relay(RelayCall { at, more, network }))
}

/// Makes sure that the relay cannot reach beyond its network and holds no privilege: the engine started it as
/// root on a network with a route to the internet. Runs before the relay reads the first byte from a
/// container; without certainty the relay does not start.
fn confine() -> io::Result<()> {
    linux::delete_default_routes()?;
    linux::become_nobody()?;
    let routes = fs::read_to_string("/proc/net/route")?;
    let status = fs::read_to_string("/proc/thread-self/status")?;
    match is_confined(&routes, &status) {
        true => Ok(()),
        false => Err(io::Error::other("a default route or a capability is left")),
    }
}

/// Whether the kernel shows no default route (`/proc/net/route`: the destination is the second column) and no
/// capability (`/proc/PID/status`).
fn is_confined(routes: &str, status: &str) -> bool {
    let default = |line: &str| line.split_whitespace().nth(1) == Some("00000000");
    let none = |name: &str| {
        let of_name = status.lines().find_map(|line| line.strip_prefix(name));
        of_name.is_some_and(|mask| !mask.trim().is_empty() && mask.trim().bytes().all(|digit| digit == b'0'))
    };
    !routes.lines().any(default) && none("CapPrm:") && none("CapEff:") && none("CapAmb:")
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
    fn relay_and_probe_are_the_only_commands_that_are_parsed() {
        let asked = |line: &str| ProgramCall::parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        let at = Ipv4Addr::new(169, 254, 169, 254);
        let relay = |more, network| Some(Ok(ProgramCall::Relay(RelayCall { at, more, network })));
        let second = Some(Ipv4Addr::new(169, 254, 170, 2));
        assert_eq!(asked("relay 169.254.169.254"), relay(None, RelayNetwork::Internal));
        assert_eq!(asked("relay 169.254.169.254 --cells"), relay(None, RelayNetwork::Cells));
        assert_eq!(
            asked("relay 169.254.169.254 169.254.170.2 --confined"),
            relay(second, RelayNetwork::Routed)
        );
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
            "relay 1.2.3.4 --confined --cells",
            "relay 1.2.3.4 1.2.3.5 1.2.3.6",
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

    #[test]
    fn a_remaining_route_or_capability_is_detected() {
        let routes = "Iface\tDestination\tGateway\tFlags\neth0\t0000FEA9\t00000000\t0001\n";
        let status =
            "Name:\trelay\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapAmb:\t0000000000000000\n";
        assert!(is_confined(routes, status));
        assert!(!is_confined(&format!("{routes}eth0\t00000000\t010012AC\t0003\n"), status));
        assert!(!is_confined(routes, &status.replace("CapEff:\t0", "CapEff:\t1")));
        assert!(!is_confined(routes, ""), "what the kernel does not show is not known");
    }
}
