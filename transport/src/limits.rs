//! Every limit of the QUIC wire, each with its reason, and the transport settings made of them. PROTOCOL.md §8. `port`: of any port, whoever
//! comes to it.

mod port;

use std::{sync::Arc, time::Duration};

use quinn::{AckFrequencyConfig, IdleTimeout, TransportConfig, VarInt};

pub use self::port::{
    FIRST_REQUEST_TIMEOUT, IDLE_CONNECTION_TIMEOUT, MAX_CONNECTIONS, MAX_CONNECTIONS_PER_ADDRESS, PortLimits,
    REQUEST_TIMEOUT, WRITE_TIMEOUT,
};
use crate::{QuicOptions, congestion::ThinStreamConfig};

/// Payload of a HEADERS or TRAILERS frame. Metadata is a few hundred bytes, a JWT under 2 KiB; HTTP/2 servers commonly allow 16 KiB.
pub const MAX_HEADERS_BYTES: usize = 64 * 1024;
/// Entries of metadata in one frame, so that many empty ones cannot cost more memory than their bytes.
pub const MAX_METADATA_ENTRIES: usize = 256;
/// One gRPC message. Messages pass through without being gathered, and tonic's own limit (4 MiB unless the service says
/// otherwise) refuses larger ones first; this one keeps a nonsensical length from being believed.
pub const MAX_MESSAGE_BYTES: u64 = 256 << 20;
/// Bytes of unknown frames in one stream; a peer that extends the protocol has no reason to send more.
pub const MAX_UNKNOWN_BYTES: u64 = 1 << 20;

/// Calls that a client may open at once as it connects. quinn keeps room for so many in each connection, whether they come or not: 70 KB
/// for [`MAX_CALLS_PER_CONNECTION`]. The server raises it when a second call runs beside the first.
pub const INITIAL_CALLS_PER_CONNECTION: u32 = 8;
/// Calls at once on one connection. More wait in the client for one to end.
pub const MAX_CALLS_PER_CONNECTION: u32 = 1024;
/// Connections that have not finished their handshake. Above it, new ones must first prove their address (Retry).
pub const MAX_HANDSHAKES_BEFORE_RETRY: usize = 256;
/// From the first packet to a complete handshake. A handshake needs 2 round trips; 10 s is 300 ms away with half of all packets lost.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From an opened stream to its complete HEADERS frame.
pub const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection without a packet for so long is dead. Long enough for a lift ride, short enough to free a slot.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The client's keep-alive: under the 30 s after which home routers forget a UDP mapping.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// While it waits for an answer, a client asks a silent server after so long whether it is there: PROTOCOL.md §9. A little more than the
/// time between two tokens of a slow model; with the round trips that follow, a killed server is noticed within half a second.
pub const FIRST_PROBE: Duration = Duration::from_millis(150);
/// The pauses between further questions double up to this.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// A server that has not answered for so long is not there, or not on this way: six questions are lost together on no path worth waiting for.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(3);
/// A response's frames are acknowledged at the latest so long after one came, when another comes: PROTOCOL.md §10.3. At 50 a second,
/// every third or fourth; an acknowledgement of its own for each would double the client's packets.
pub const ACK_DELAY: Duration = Duration::from_millis(60);
/// How long running calls may take to finish when a server shuts down.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// What a reader that stopped reading can make the sender buffer, per stream: minutes of tokens, and bulk messages still move
/// at 20 Mbit/s over 100 ms.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// The same for a whole connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Datagrams that came and are not looked at yet: a few hundred, for a program that is late.
pub const DATAGRAM_BUFFER_BYTES: usize = 16 * 1024;
/// Datagrams that wait to be sent, for all responses of a connection: about two packets. An older repeat is worth nothing beside a newer one.
pub const DATAGRAM_QUEUE_BYTES: usize = 4 * 1024;
/// Assumed of a path that nothing is known of. RFC 9002 §6.2.2 has 333 ms, and a lost first packet then costs a second; at 100 ms a
/// path across an ocean costs a needless packet or two.
pub const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Of a known round trip, what a connection begins with. Its first timeout is three times that (RFC 9002 §6.2.2), for a path that nothing is
/// known of; here two round trips will do.
const OF_KNOWN_RTT: (u32, u32) = (2, 3);
/// What is believed of a path's round trip from an earlier connection: between a data centre's and a satellite's.
pub const BELIEVED_RTT: std::ops::RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_millis(800);
/// QUIC's own acknowledgements travel with those of the messages, which come at least every [`ACK_DELAY`] while messages do; alone only
/// after so long, ...
const QUIC_ACK_DELAY: Duration = Duration::from_millis(75);
/// ... or so many packets, ...
const QUIC_ACK_PACKETS: u32 = 9;
/// ... or at once when a packet is missing (RFC 9000 §13.2.1).
const QUIC_ACK_REORDERED: u32 = 1;
/// Sessions a server keeps for resumption, about 1.5 kB each.
pub const TLS_SESSIONS: usize = 16 * 1024;
/// Servers of which a client keeps sessions, in memory and on disk: as many as the agents that a client stays connected to.
pub const SESSION_SERVERS: usize = 64;
/// TLS sessions kept of one server, each good for one connection. A server gives two with each, so that this many lie ready for
/// processes that start together.
pub const TICKETS_PER_SERVER: usize = 8;
/// Address tokens (NEW_TOKEN) kept of one server, used as the sessions are.
pub const ADDRESS_TOKENS_KEPT: usize = TICKETS_PER_SERVER;
/// Address tokens that a server gives to each connection: one for the next, and one in case that is lost, as with TLS tickets.
pub const ADDRESS_TOKENS_SENT: u32 = 2;
/// Nothing that resumes a connection is used for longer (RFC 8446 §4.6.1); servers here let sessions expire after a day.
pub const SESSION_AGE: Duration = Duration::from_secs(7 * 86_400);
/// Most memory for the address tokens that were used, so that each counts once, and how many uses it is for: a million connections
/// a week, of which fewer than one in a thousand then has its token taken for a used one, which costs nothing but the token.
pub const ADDRESS_TOKEN_LOG_BYTES: usize = 4 << 20;
/// See [`ADDRESS_TOKEN_LOG_BYTES`].
pub const ADDRESS_TOKEN_USES: u64 = 1_000_000;

/// What a server offers: PROTOCOL.md §2.3.
pub(crate) fn server_transport(options: QuicOptions) -> TransportConfig {
    let mut config = common(options);
    config.max_concurrent_bidi_streams(VarInt::from_u32(INITIAL_CALLS_PER_CONNECTION));
    config
}

/// What a client offers: no stream may be opened towards it.
/// `rtt` is what is known of the path.
pub(crate) fn client_transport(options: QuicOptions, rtt: Option<Duration>) -> TransportConfig {
    let mut config = common(options);
    if let Some(rtt) = rtt.filter(|_| options.thin_stream) {
        let rtt = rtt.clamp(*BELIEVED_RTT.start(), *BELIEVED_RTT.end());
        config.initial_rtt(rtt * OF_KNOWN_RTT.0 / OF_KNOWN_RTT.1);
    }
    config.max_concurrent_bidi_streams(VarInt::from_u32(0));
    config.keep_alive_interval(Some(KEEP_ALIVE));
    config
}

fn common(options: QuicOptions) -> TransportConfig {
    let mut config = TransportConfig::default();
    config.max_concurrent_uni_streams(VarInt::from_u32(0));
    config.stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES));
    config.receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES));
    config.send_window(u64::from(CONNECTION_WINDOW_BYTES));
    config.datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES));
    config.max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok());
    if options.thin_stream {
        config.initial_rtt(INITIAL_RTT);
        config.datagram_send_buffer_size(DATAGRAM_QUEUE_BYTES);
        config.congestion_controller_factory(Arc::new(ThinStreamConfig::default()));
        let mut acks = AckFrequencyConfig::default();
        acks.ack_eliciting_threshold(VarInt::from_u32(QUIC_ACK_PACKETS));
        acks.max_ack_delay(Some(QUIC_ACK_DELAY));
        acks.reordering_threshold(VarInt::from_u32(QUIC_ACK_REORDERED));
        config.ack_frequency_config(Some(acks));
    }
    config
}
