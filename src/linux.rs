//! What only Linux has, in one place, so that the program that people start type-checks elsewhere too. The relay
//! runs in a Linux container, wherever the engine is.

use std::io;
use std::os::unix::net::UnixDatagram;

use tokio::net::TcpSocket;

#[cfg(target_os = "linux")]
mod here {
    use rustix::net::netlink::SocketAddrNetlink;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};

    use super::{TcpSocket, UnixDatagram, io};

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
}

#[cfg(not(target_os = "linux"))]
mod here {
    use super::{TcpSocket, UnixDatagram, io};

    /// There the limit on core dumps is all there is.
    pub(super) fn forbid_dumps() -> io::Result<()> {
        Ok(())
    }

    pub(super) fn hear_only(_: &TcpSocket, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn addresses() -> io::Result<UnixDatagram> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// This process is not dumped, also where dumps are piped into a program, and not traced by others of its user.
pub fn forbid_dumps() -> io::Result<()> {
    here::forbid_dumps()
}

/// Binds a listener to one interface (`SO_BINDTODEVICE`): it hears nobody who comes through another.
pub fn hear_only(socket: &TcpSocket, interface: &str) -> io::Result<()> {
    here::hear_only(socket, interface)
}

/// The kernel's news of IPv4 addresses (rtnetlink(7)). The socket is of another family than its type says, with
/// the same calls: sent to and received from.
pub fn addresses() -> io::Result<UnixDatagram> {
    here::addresses()
}
