//! What one port bears: TCP and QUIC alike, unless a limit says otherwise.

use std::time::Duration;

use super::HANDSHAKE_TIMEOUT;

/// Connections of one port. One that has begun a request takes 14 to 18 KB (SECURITY.md), all of them some 300 MB. Ten thousand agents keep one each.
pub const MAX_CONNECTIONS: usize = 16 * 1024;
/// Of these, so many from one address, which may be an office or a mobile network behind one; no single one gets the whole port. IPv6
/// addresses of one /64 count as one, and this machine's are not counted: a proxy that runs here has many clients.
pub const MAX_CONNECTIONS_PER_ADDRESS: usize = MAX_CONNECTIONS / 4;
/// Files that a process needs beside its connections: models, logs, sockets of its own. The rest is shared by two ports.
pub(crate) const OTHER_FILES: u64 = 128;
/// From an accepted connection to the complete head of its first request, TLS included; on QUIC, to the complete handshake.
pub const FIRST_REQUEST_TIMEOUT: Duration = HANDSHAKE_TIMEOUT;
/// For a request to arrive: the largest prompt, a megabyte, at 140 kbit/s. With gRPC, for its first message.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// A response of which the peer takes nothing for so long ends, and what it holds is free. Peers tell what they took in steps of up to
/// 32 KiB (half of HTTP/2's first window, an eighth of [`STREAM_WINDOW_BYTES`](super::STREAM_WINDOW_BYTES)), so whoever reads half a kilobyte
/// in a second goes on for ever; nobody reads aloud more slowly.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// A TCP connection on which no request runs is closed after so long. Google's load balancers keep theirs for 10 minutes and want servers
/// to keep them for longer, or requests meet a connection that is being closed; no other is known to keep them for longer still.
pub const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(11 * 60);

/// What one port bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortLimits {
    /// Connections in all. Defaults to [`MAX_CONNECTIONS`], or to what the process may have open where that is less.
    pub connections: usize,
    /// From one address. Defaults to [`MAX_CONNECTIONS_PER_ADDRESS`], and a quarter of `connections` where that is less.
    pub connections_per_address: usize,
    /// Defaults to [`FIRST_REQUEST_TIMEOUT`].
    pub first_request: Duration,
    /// Defaults to [`REQUEST_TIMEOUT`].
    pub request: Duration,
    /// Defaults to [`WRITE_TIMEOUT`].
    pub write: Duration,
    /// TCP only. Defaults to [`IDLE_CONNECTION_TIMEOUT`].
    pub idle: Duration,
}

impl Default for PortLimits {
    fn default() -> Self {
        let files = crate::open_files::open_files().unwrap_or(u64::MAX);
        let connections = files.saturating_sub(OTHER_FILES) / 2;
        let connections = usize::try_from(connections).unwrap_or(usize::MAX).clamp(1, MAX_CONNECTIONS);
        Self {
            connections,
            connections_per_address: (connections / 4).max(1),
            first_request: FIRST_REQUEST_TIMEOUT,
            request: REQUEST_TIMEOUT,
            write: WRITE_TIMEOUT,
            idle: IDLE_CONNECTION_TIMEOUT,
        }
    }
}
