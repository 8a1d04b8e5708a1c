//! What the emulator reads of an IP packet.

use std::net::Ipv4Addr;

/// From the header of an IPv4 packet, RFC 791 §3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    pub(super) is_udp: bool,
}

const HEADER_BYTES: usize = 20;
const VERSION: u8 = 4;
/// <https://www.iana.org/assignments/protocol-numbers>
const UDP: u8 = 17;

/// `None`: not IPv4, or cut off.
pub(super) fn parse(packet: &[u8]) -> Option<Header> {
    let header: &[u8; HEADER_BYTES] = packet.first_chunk()?;
    let [first, .., protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    (first >> 4 == VERSION).then_some(Header {
        source: Ipv4Addr::new(s0, s1, s2, s3),
        destination: Ipv4Addr::new(d0, d1, d2, d3),
        is_udp: protocol == UDP,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UDP_PACKET: [u8; 28] = [
        0x45, 0, 0, 28, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0, 10, 77, 0, 1, 10, 78, 0, 3, 0x30, 0x39, 0x1f, 0x90, 0, 8, 0,
        0,
    ];

    #[test]
    fn addresses_and_protocol_are_read() {
        let expected =
            Header { source: Ipv4Addr::new(10, 77, 0, 1), destination: Ipv4Addr::new(10, 78, 0, 3), is_udp: true };
        assert_eq!(parse(&UDP_PACKET), Some(expected));
        let mut tcp = UDP_PACKET;
        tcp[9] = 6;
        assert_eq!(parse(&tcp), Some(Header { is_udp: false, ..expected }));
    }

    #[test]
    fn what_is_not_ipv4_is_not_read() {
        let mut ipv6 = UDP_PACKET;
        ipv6[0] = 0x60;
        assert_eq!(parse(&ipv6), None);
        assert_eq!(parse(&UDP_PACKET[..HEADER_BYTES - 1]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
        }
    }
}
