//! Reads a UDP socket's error queue: Linux' `IP_RECVERR`, ip(7).

use std::{
    io,
    mem::{self, MaybeUninit},
    net::{SocketAddr, UdpSocket},
    os::fd::{AsRawFd, RawFd},
    sync::Weak,
};

use socket2::SockAddr;
use tokio::io::{Interest, unix::AsyncFd};
use tokio_util::sync::CancellationToken;

use crate::socket::Watchers;

/// ICMP destination unreachable, port unreachable (RFC 792), and the same for IPv6 (RFC 4443 §3.1).
const PORT_UNREACHABLE: [(u8, u8, u8); 2] = [(libc::SO_EE_ORIGIN_ICMP, 3, 3), (libc::SO_EE_ORIGIN_ICMP6, 1, 4)];

/// Control messages of one queued error take far less.
const CONTROL_BYTES: usize = 512;

/// Reports the closed ports that ICMP messages to `socket` tell of, until `stop`. quinn goes on reading and writing: it takes the
/// errors that the socket then returns as lost packets.
pub(crate) fn listen(socket: &UdpSocket, watchers: Weak<Watchers>, stop: CancellationToken) -> io::Result<()> {
    enable(socket)?;
    // SAFETY: a UdpSocket keeps its descriptor open and the same until it is dropped, and AsyncFd owns it until then.
    // Registered for nothing: epoll always tells of errors, and ordinary packets must not wake this task.
    let errors = unsafe { AsyncFd::register_with_interest(socket.try_clone()?, Interest::PRIORITY)? };
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        while let Ok(mut ready) = errors.ready(Interest::ERROR).await {
            while let Some(error) = next_error(errors.as_raw_fd()) {
                if let (Some(addr), Some(watchers)) = (error, watchers.upgrade()) {
                    tracing::debug!(%addr, "the peer's port is closed");
                    watchers.closed(addr);
                }
            }
            ready.clear_ready();
        }
    }));
    Ok(())
}

fn enable(socket: &UdpSocket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let set = |level, option| {
        // SAFETY: the descriptor is open, and the value is a c_int of the size given.
        let result = unsafe {
            libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), mem::size_of_val(&on) as u32)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    if socket.local_addr()?.is_ipv6() {
        set(libc::IPPROTO_IPV6, libc::IPV6_RECVERR)?;
    }
    // On an IPv6 socket too: it may carry IPv4, and where it cannot, the option is refused.
    set(libc::IPPROTO_IP, libc::IP_RECVERR)
        .or_else(|error| if socket.local_addr()?.is_ipv6() { Ok(()) } else { Err(error) })
}

/// The next queued error: the address it is about, if it says that a port is closed. None when the queue is empty.
fn next_error(fd: RawFd) -> Option<Option<SocketAddr>> {
    #[repr(align(8))]
    struct Control([MaybeUninit<u8>; CONTROL_BYTES]);
    let mut control = Control([MaybeUninit::uninit(); CONTROL_BYTES]);
    // SAFETY: zeroes are a valid msghdr: null pointers and no lengths.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_BYTES as _;
    let mut received = 0;
    // SAFETY: `try_init` gives storage of the length it says; recvmsg writes the address there and its length into msg_namelen.
    let (_, addr) = unsafe {
        SockAddr::try_init(|storage, len| {
            message.msg_name = storage.cast();
            message.msg_namelen = *len;
            received = libc::recvmsg(fd, &mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT);
            *len = message.msg_namelen;
            Ok(())
        })
    }
    .ok()?;
    if received < 0 {
        return None;
    }
    let mut closed = false;
    // SAFETY: the kernel filled `control` with well-formed messages; the CMSG functions stay inside msg_controllen.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while let Some(cmsg) = header.as_ref() {
            let kind = (cmsg.cmsg_level, cmsg.cmsg_type);
            if kind == (libc::IPPROTO_IP, libc::IP_RECVERR) || kind == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) {
                let error = libc::CMSG_DATA(header).cast::<libc::sock_extended_err>().read_unaligned();
                closed |= PORT_UNREACHABLE.contains(&(error.ee_origin, error.ee_type, error.ee_code));
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    Some(addr.as_socket().filter(|_| closed))
}
