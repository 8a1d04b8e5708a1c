//! What can be switched off, to measure what it is worth, and on.

/// Parts of the QUIC wire that a peer may leave out. All but `post_quantum` are on by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuicOptions {
    /// Response messages of a server-streaming call travel again until they are acknowledged: PROTOCOL.md §10. The client asks for it.
    pub redundancy: bool,
    /// Transport settings for a thin stream: PROTOCOL.md §11.
    pub thin_stream: bool,
    /// Clients only: requests that are safe to repeat travel as early data.
    pub early_data: bool,
    /// Clients only: notice that the network has changed, and move there: PROTOCOL.md §14. Linux only.
    pub migration: bool,
    /// The first packets of a connection and of a request are sent twice: PROTOCOL.md §12.
    pub repeat_first: bool,
    /// Clients only: the handshake begins with the post-quantum hybrid X25519MLKEM768. The ClientHello then takes two packets: PROTOCOL.md §13.
    pub post_quantum: bool,
}

impl Default for QuicOptions {
    fn default() -> Self {
        Self {
            redundancy: true,
            thin_stream: true,
            early_data: true,
            migration: true,
            repeat_first: true,
            post_quantum: false,
        }
    }
}
