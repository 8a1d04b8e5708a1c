//! UDP sockets for quinn, and the news that a peer's port is closed.
//!
//! A process that is killed sends no farewell. Its machine does: each further packet is answered with an ICMP port
//! unreachable, which quinn does not look at. Here it is taken as a hint: the connections to that address that then hear
//! nothing for a moment are given up, instead of holding their slots until the idle timeout. As a hint only, because an ICMP
//! message can be forged (RFC 9000 §14.2.1), and the peer may just have moved.

use std::{
    collections::HashMap,
    io,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use quinn::{AsyncUdpSocket, Connection, EndpointConfig, Runtime as _, ServerConfig, TokioRuntime};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::first_packets::FirstPackets;

/// Room for the packets of a thousand streams between two turns of the runtime. The kernel may give less.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// After a hint: how long a peer has to show that it is there, besides two round trips. It need not wait for its `max_ack_delay`, since
/// two packets are sent that want an acknowledgement: what is left is a busy machine's way from the socket to the program and back.
const SIGN_OF_LIFE: Duration = Duration::from_millis(10);
/// Between these two packets. Sent together, they would be one.
const BETWEEN_PROBES: Duration = Duration::from_millis(1);

/// Binds `addr` for QUIC. An IPv6 wildcard takes IPv4 too. With `first`, first packets go twice.
pub(crate) fn endpoint(
    addr: SocketAddr,
    server: Option<ServerConfig>,
    first: Option<&FirstPackets>,
) -> io::Result<(quinn::Endpoint, Unreachable)> {
    let is_server = server.is_some();
    let unreachable = Unreachable::default();
    let socket = bind(addr, &unreachable, first, is_server)?;
    let (config, runtime) = (EndpointConfig::default(), Arc::new(TokioRuntime));
    let endpoint = quinn::Endpoint::new_with_abstract_socket(config, server, socket, runtime)?;
    Ok((endpoint, unreachable))
}

/// A socket for an endpoint: its first one, or one to go on with.
pub(crate) fn bind(
    addr: SocketAddr,
    unreachable: &Unreachable,
    first: Option<&FirstPackets>,
    server: bool,
) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(addr.ip() != Ipv6Addr::UNSPECIFIED)?;
    }
    // Smaller buffers only cost some packets under load.
    let _ = (socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES), socket.set_send_buffer_size(SOCKET_BUFFER_BYTES));
    socket.bind(&addr.into())?;
    let socket: UdpSocket = socket.into();
    #[cfg(target_os = "linux")]
    crate::icmp::listen(&socket, Arc::downgrade(&unreachable.0), unreachable.0.listen_anew())?;
    let socket = TokioRuntime.wrap_udp_socket(socket)?;
    Ok(match first {
        Some(first) => first.socket(socket, server),
        None => socket,
    })
}

/// Tells connections that their peer's port is closed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unreachable(Arc<Watchers>);

/// Whom to tell, by the address that packets are sent to.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    by_addr: Mutex<HashMap<SocketAddr, Weak<Notify>>>,
    /// Cancelled with the last handle, and when another socket takes its place: the listener holds the socket, and so the port.
    stop: Mutex<CancellationToken>,
}

impl Unreachable {
    /// Resolves when the machine of `addr` says that the port is closed. Enough to give up an attempt to connect.
    pub(crate) async fn hint(&self, addr: SocketAddr) {
        let hint = self.0.subscribe(canonical(addr));
        hint.notified().await;
    }

    /// Resolves when the port that `connection` sends to is closed and the peer shows no sign of life.
    pub(crate) async fn watch(&self, connection: &Connection) {
        loop {
            let addr = canonical(connection.remote_address());
            self.hint(addr).await;
            if canonical(connection.remote_address()) != addr {
                continue;
            }
            let heard = connection.stats().udp_rx.datagrams;
            // PROTOCOL.md §9. A second packet that wants an acknowledgement gets it at once: RFC 9000 §13.2.2. What cannot be sent is
            // not needed: the connection has ended.
            let _ = connection.send_datagram(Bytes::new());
            tokio::time::sleep(BETWEEN_PROBES).await;
            let _ = connection.send_datagram(Bytes::new());
            tokio::time::sleep(connection.rtt() * 2 + SIGN_OF_LIFE).await;
            let moved = canonical(connection.remote_address()) != addr;
            if connection.stats().udp_rx.datagrams == heard && !moved {
                return;
            }
        }
    }
}

impl Watchers {
    /// Stops the listener that there is; the next one has until this is cancelled.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "only Linux tells"))]
    fn listen_anew(&self) -> CancellationToken {
        let mut stop = self.stop.lock();
        stop.cancel();
        *stop = CancellationToken::new();
        stop.clone()
    }

    fn subscribe(&self, addr: SocketAddr) -> Arc<Notify> {
        let mut watchers = self.by_addr.lock();
        if let Some(notify) = watchers.get(&addr).and_then(Weak::upgrade) {
            return notify;
        }
        // Addresses without a connection go out when the map would have to grow, so it stays in proportion.
        if watchers.len() == watchers.capacity() {
            watchers.retain(|_, notify| notify.strong_count() > 0);
        }
        let notify = Arc::new(Notify::new());
        watchers.insert(addr, Arc::downgrade(&notify));
        notify
    }

    /// The port at `addr` is closed, says its machine.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "only Linux tells"))]
    pub(crate) fn closed(&self, addr: SocketAddr) {
        if let Some(notify) = self.by_addr.lock().get(&canonical(addr)).and_then(Weak::upgrade) {
            notify.notify_waiters();
        }
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.stop.lock().cancel();
    }
}

/// A dual-stack socket shows IPv4 peers as ::ffff:a.b.c.d.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
