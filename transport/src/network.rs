//! News that this machine's network has changed: Linux' route netlink, rtnetlink(7).

use std::{
    io, mem,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use tokio::{io::unix::AsyncFd, sync::watch};

/// A change is several messages: an address goes, another comes, routes follow. They are taken together.
const SETTLE: Duration = Duration::from_millis(5);
/// Messages are only counted, not read: what is cut off does not matter.
const BUFFER_BYTES: usize = 8192;

/// Counts changes of addresses and routes for as long as somebody looks at the number.
///
/// # Errors
/// Where the system gives no such socket.
pub(crate) fn changes() -> io::Result<watch::Receiver<u64>> {
    // SAFETY: an OwnedFd keeps its descriptor open and the same until it is dropped, and AsyncFd owns it until then.
    let socket = unsafe { AsyncFd::register(open()?)? };
    let (sender, receiver) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = sender.closed() => return,
                ready = socket.readable() => {
                    let Ok(mut ready) = ready else { return };
                    // Those that come until things have settled belong to the same change.
                    tokio::time::sleep(SETTLE).await;
                    while drain(socket.get_ref()) {}
                    ready.clear_ready();
                    sender.send_modify(|changes| *changes += 1);
                }
            }
        }
    });
    Ok(receiver)
}

fn open() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: zeroes are a valid sockaddr_nl.
    let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = (libc::RTMGRP_IPV4_IFADDR
        | libc::RTMGRP_IPV6_IFADDR
        | libc::RTMGRP_IPV4_ROUTE
        | libc::RTMGRP_IPV6_ROUTE
        | libc::RTMGRP_LINK) as u32;
    // SAFETY: `address` is a sockaddr_nl of the length given.
    let bound = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), mem::size_of_val(&address) as libc::socklen_t)
    };
    if bound == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// Takes one message. Whether there was one; that some were lost (ENOBUFS) is news too.
fn drain(socket: &OwnedFd) -> bool {
    let mut buffer = [0_u8; BUFFER_BYTES];
    // SAFETY: the buffer is as long as is said.
    let received =
        unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    received > 0 || received < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS)
}

/// The address from which packets to `peer` leave now; None where there is no way to it.
pub(crate) fn source(peer: SocketAddr) -> Option<std::net::IpAddr> {
    let any: SocketAddr =
        if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    // Nothing is sent: connecting a UDP socket only asks for the route.
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn the_socket_opens_and_nothing_has_changed() {
        let changes = changes().unwrap();
        assert_eq!(*changes.borrow(), 0);
    }

    #[test]
    fn packets_to_this_machine_leave_from_it() {
        let source = source(([127, 0, 0, 1], 9).into()).unwrap();
        assert!(source.is_loopback());
    }
}
