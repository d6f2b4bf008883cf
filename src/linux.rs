//! Everything that only Linux has, in one place, so that the program type-checks on other systems too. The
//! relay runs in a Linux container, wherever the engine is.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use tokio::net::TcpSocket;

#[cfg(target_os = "linux")]
mod here {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    use rustix::net::netlink::SocketAddrNetlink;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
    use rustix::process::{
        DumpableBehavior, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open, set_dumpable_behavior,
    };

    use super::{OwnedFd, TcpSocket, UnixDatagram, io};

    /// `RTMGRP_IPV4_IFADDR`.
    const ADDRESSES: u32 = 0x10;

    pub(super) fn forbid_dumps() -> io::Result<()> {
        Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
    }

    pub(super) fn hear_only(socket: &TcpSocket, interface: &str) -> io::Result<()> {
        socket.bind_device(Some(interface.as_bytes()))
    }

    pub(super) fn addresses() -> io::Result<UnixDatagram> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?; // NETLINK_ROUTE is 0
        bind(&socket, &SocketAddrNetlink::new(0, ADDRESSES))?;
        Ok(socket.into())
    }

    pub(super) fn inherited(number: i32) -> io::Result<OwnedFd> {
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        Ok(pidfd_getfd(own, number, PidfdGetfdFlags::empty())?)
    }

    pub(super) fn send_to_abstract(socket: &UnixDatagram, name: &str, bytes: &[u8]) -> io::Result<usize> {
        socket.send_to_addr(bytes, &SocketAddr::from_abstract_name(name)?)
    }
}

#[cfg(not(target_os = "linux"))]
mod here {
    use super::{OwnedFd, TcpSocket, UnixDatagram, io};

    /// Other systems have only the limit on core dumps.
    pub(super) fn forbid_dumps() -> io::Result<()> {
        Ok(())
    }

    pub(super) fn hear_only(_: &TcpSocket, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn addresses() -> io::Result<UnixDatagram> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn inherited(_: i32) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn send_to_abstract(_: &UnixDatagram, _: &str, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Prevents core dumps of this process, also where dumps are piped into a program, and tracing by the user's
/// other processes.
pub fn forbid_dumps() -> io::Result<()> {
    here::forbid_dumps()
}

/// Binds a listener to one interface (`SO_BINDTODEVICE`): it accepts nothing from other interfaces.
pub fn hear_only(socket: &TcpSocket, interface: &str) -> io::Result<()> {
    here::hear_only(socket, interface)
}

/// The kernel's notifications of IPv4 addresses (rtnetlink(7)). The socket's family differs from its type,
/// but it supports the same calls: send to and receive from.
pub fn addresses() -> io::Result<UnixDatagram> {
    here::addresses()
}

/// Takes a descriptor that this process was started with, by its number, as an owned one (Linux 5.6).
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    here::inherited(number)
}

/// Sends to a socket of the abstract namespace (unix(7)).
pub fn send_to_abstract(socket: &UnixDatagram, name: &str, bytes: &[u8]) -> io::Result<usize> {
    here::send_to_abstract(socket, name, bytes)
}
