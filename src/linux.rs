//! Everything that only Linux has, in one place, so that the program type-checks on other systems too. The
//! relay runs in a Linux container, wherever the engine is.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use tokio::net::TcpSocket;

/// The user and the group `nobody`.
pub const NOBODY: u32 = 65_534;

#[cfg(target_os = "linux")]
mod here {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    use rustix::io::Errno;
    use rustix::net::netlink::SocketAddrNetlink;
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
    };
    use rustix::process::{
        DumpableBehavior, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open, set_dumpable_behavior,
    };

    use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

    use super::{NOBODY, OwnedFd, TcpSocket, UnixDatagram, io};

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

    /// A request of rtnetlink(7) to delete an IPv4 default route of the main table, whatever its gateway. The
    /// numbers are of this machine's byte order: `nlmsghdr` (16 bytes), then `rtmsg` (12 bytes).
    fn delete_default_route() -> Vec<u8> {
        const LENGTH: u32 = 28;
        const RTM_DELROUTE: u16 = 25;
        const REQUEST_AND_ACKNOWLEDGE: u16 = 0x1 | 0x4;
        const AF_INET: u8 = 2;
        const RT_TABLE_MAIN: u8 = 254;
        const ANY_SCOPE: u8 = 255; // RT_SCOPE_NOWHERE, which a deletion reads as any
        let mut message = LENGTH.to_ne_bytes().to_vec();
        message.extend(RTM_DELROUTE.to_ne_bytes());
        message.extend(REQUEST_AND_ACKNOWLEDGE.to_ne_bytes());
        message.extend([0; 8]); // sequence and port: one request at a time
        message.extend([AF_INET, 0, 0, 0, RT_TABLE_MAIN, 0, ANY_SCOPE, 0]);
        message.extend([0; 4]); // flags
        message
    }

    pub(super) fn delete_default_routes() -> io::Result<()> {
        /// A container has one; a loop that never ends would keep the relay from starting without a reason.
        const MOST: usize = 16;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        for _ in 0..MOST {
            send(&socket, &delete_default_route(), SendFlags::empty())?;
            let mut answer = [0_u8; 256];
            let (read, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
            // An acknowledgement is an `nlmsgerr`: its number, 0 or a negative errno, follows the header.
            let number = answer[..read].get(16..20).and_then(|number| number.try_into().ok());
            match number.map(i32::from_ne_bytes) {
                Some(0) => {}
                Some(number) if number == -Errno::SRCH.raw_os_error() => return Ok(()),
                Some(number) => return Err(io::Error::from_raw_os_error(-number)),
                None => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        Err(io::Error::other("a default route cannot be deleted"))
    }

    pub(super) fn become_nobody() -> io::Result<()> {
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
        Ok(())
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

    pub(super) fn delete_default_routes() -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn become_nobody() -> io::Result<()> {
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

/// Deletes every IPv4 default route of this network namespace; needs `CAP_NET_ADMIN` in it.
pub fn delete_default_routes() -> io::Result<()> {
    here::delete_default_routes()
}

/// Makes the calling thread, and the threads that it starts from now on, run as the unprivileged user
/// [`NOBODY`], without further groups. The kernel takes every capability from a thread that leaves the user 0
/// (capabilities(7)).
pub fn become_nobody() -> io::Result<()> {
    here::become_nobody()
}

/// Takes a descriptor that this process was started with, by its number, as an owned one (Linux 5.6).
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    here::inherited(number)
}

/// Sends to a socket of the abstract namespace (unix(7)).
pub fn send_to_abstract(socket: &UnixDatagram, name: &str, bytes: &[u8]) -> io::Result<usize> {
    here::send_to_abstract(socket, name, bytes)
}
