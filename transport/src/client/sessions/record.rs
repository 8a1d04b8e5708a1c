//! What is kept of one server on disk, and its bytes: PROTOCOL.md §13. No I/O and no clock.
//!
//! All numbers are big-endian:
//!
//! ```text
//! magic (16)  binding (32)  rtt_us u32, 0 for none
//! address: 0 | 4, IPv4 (4), port u16 | 6, IPv6 (16), port u16
//! tickets: count u8, then each: expires_at u64, length u16, bytes
//! tokens:  the same
//! SHA-256 of everything before it (32)
//! ```

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};

use crate::limits::{ADDRESS_TOKENS_KEPT, SESSION_AGE, TICKETS_PER_SERVER};

/// One session as the patched rustls writes it: its secret and the server's certificates, 1 to 2 kB with a small CA.
pub(crate) const MAX_TICKET_BYTES: usize = 8 * 1024;
/// One address token; quinn's have some 60 bytes.
pub(crate) const MAX_TOKEN_BYTES: usize = 1024;
/// Everything: a file that is longer is not read.
pub(crate) const MAX_RECORD_BYTES: usize = MAGIC.len()
    + BINDING_BYTES
    + 4
    + 19
    + 2
    + TICKETS_PER_SERVER * (10 + MAX_TICKET_BYTES)
    + ADDRESS_TOKENS_KEPT * (10 + MAX_TOKEN_BYTES)
    + CHECKSUM_BYTES;

/// With the version of the format, and of the sessions in it: whoever changes either changes this.
const MAGIC: &[u8; 16] = b"titan-sessions 1";
const BINDING_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 32;

/// Whose sessions, with whom: a digest of the CA, the client's certificate and the server's name.
pub(crate) type Binding = [u8; BINDING_BYTES];

/// What is kept of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// TLS sessions, the newest last.
    pub(crate) tickets: Vec<Item>,
    /// Address tokens (NEW_TOKEN), the newest last.
    pub(crate) tokens: Vec<Item>,
    /// The last round-trip time.
    pub(crate) rtt: Option<Duration>,
    /// The address that answered last.
    pub(crate) address: Option<SocketAddr>,
}

/// Something to be used once.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// Seconds since 1970.
    pub(crate) expires_at: u64,
    pub(crate) bytes: Vec<u8>,
}

/// Why bytes are not a record that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    /// Something else, or of another version.
    #[error("it is no file of sessions, or one of another version")]
    Foreign,
    /// Of another CA, client or server.
    #[error("it is of another CA, client or server")]
    OtherBinding,
    /// The checksum, or what it guards, is wrong.
    #[error("it is damaged")]
    Damaged,
}

impl Record {
    /// Adds what is newer. Of what is one too many, the oldest goes; what is too large was never there.
    pub(crate) fn add(&mut self, newer: Self) {
        self.tickets.extend(newer.tickets);
        self.tokens.extend(newer.tokens);
        self.rtt = newer.rtt.or(self.rtt);
        self.address = newer.address.or(self.address);
        bound(&mut self.tickets, TICKETS_PER_SERVER, MAX_TICKET_BYTES);
        bound(&mut self.tokens, ADDRESS_TOKENS_KEPT, MAX_TOKEN_BYTES);
    }

    /// Drops what has expired at `now`, and what claims to be good for longer than anything can be.
    pub(crate) fn expire(&mut self, now: u64) {
        let good = now.saturating_add(1)..=now.saturating_add(SESSION_AGE.as_secs());
        self.tickets.retain(|item| good.contains(&item.expires_at));
        self.tokens.retain(|item| good.contains(&item.expires_at));
    }

    /// Removes what one connection uses: the newest ticket and token, and the address, which is put back when it has answered.
    /// The round-trip time stays.
    pub(crate) fn take(&mut self) -> Self {
        Self {
            tickets: self.tickets.pop().into_iter().collect(),
            tokens: self.tokens.pop().into_iter().collect(),
            rtt: self.rtt,
            address: self.address.take(),
        }
    }

    pub(crate) fn encode(&self, binding: &Binding) -> Vec<u8> {
        let mut bytes = Vec::new();
        let rtt = self.rtt.map_or(0, |rtt| u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX).max(1));
        bytes.extend(rtt.to_be_bytes());
        match self.address.map(|address| (address.ip(), address.port())) {
            None => bytes.push(0),
            Some((IpAddr::V4(ip), port)) => {
                bytes.push(4);
                bytes.extend(ip.octets());
                bytes.extend(port.to_be_bytes());
            }
            Some((IpAddr::V6(ip), port)) => {
                bytes.push(6);
                bytes.extend(ip.octets());
                bytes.extend(port.to_be_bytes());
            }
        }
        encode_items(&mut bytes, &self.tickets, TICKETS_PER_SERVER, MAX_TICKET_BYTES);
        encode_items(&mut bytes, &self.tokens, ADDRESS_TOKENS_KEPT, MAX_TOKEN_BYTES);
        Self::sealed(binding, &bytes)
    }

    /// `body` with what stands before and after it.
    pub(crate) fn sealed(binding: &Binding, body: &[u8]) -> Vec<u8> {
        let mut bytes = [MAGIC.as_slice(), binding, body].concat();
        bytes.extend(digest(&SHA256, &bytes).as_ref());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8], binding: &Binding) -> Result<Self, RecordError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(RecordError::Foreign)?;
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(RecordError::Damaged);
        }
        let rest = rest.strip_prefix(binding).ok_or(RecordError::OtherBinding)?;
        let body_len = rest.len().checked_sub(CHECKSUM_BYTES).ok_or(RecordError::Damaged)?;
        let (body, checksum) = rest.split_at(body_len);
        // A session with one wrong bit would not be refused by the server: it would end the handshake (RFC 8446 §4.2.11).
        if digest(&SHA256, &bytes[..bytes.len() - CHECKSUM_BYTES]).as_ref() != checksum {
            return Err(RecordError::Damaged);
        }
        Reader(body).record().ok_or(RecordError::Damaged)
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the secret.
        f.debug_struct("Item").field("expires_at", &self.expires_at).field("len", &self.bytes.len()).finish()
    }
}

fn bound(items: &mut Vec<Item>, count: usize, bytes: usize) {
    items.retain(|item| (1..=bytes).contains(&item.bytes.len()));
    items.drain(..items.len().saturating_sub(count));
}

fn encode_items(bytes: &mut Vec<u8>, items: &[Item], count: usize, max_bytes: usize) {
    let mut items = items.to_vec();
    bound(&mut items, count, max_bytes);
    bytes.push(u8::try_from(items.len()).unwrap_or(u8::MAX));
    for item in items {
        bytes.extend(item.expires_at.to_be_bytes());
        bytes.extend(u16::try_from(item.bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend(&item.bytes);
    }
}

/// What is left to read. Every method is None where too little is left, or what is there cannot be.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn record(mut self) -> Option<Record> {
        let rtt = Some(u32::from_be_bytes(self.array()?)).filter(|&rtt| rtt > 0);
        let address = match self.array()? {
            [0] => None,
            [4] => Some((IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)), u16::from_be_bytes(self.array()?)).into()),
            [6] => Some((IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)), u16::from_be_bytes(self.array()?)).into()),
            _ => return None,
        };
        let tickets = self.items(TICKETS_PER_SERVER, MAX_TICKET_BYTES)?;
        let tokens = self.items(ADDRESS_TOKENS_KEPT, MAX_TOKEN_BYTES)?;
        let rtt = rtt.map(|rtt| Duration::from_micros(rtt.into()));
        self.0.is_empty().then_some(Record { tickets, tokens, rtt, address })
    }

    fn items(&mut self, max_count: usize, max_bytes: usize) -> Option<Vec<Item>> {
        let [count] = self.array()?;
        if usize::from(count) > max_count {
            return None;
        }
        (0..count)
            .map(|_| {
                let expires_at = u64::from_be_bytes(self.array()?);
                let len = usize::from(u16::from_be_bytes(self.array()?));
                if !(1..=max_bytes).contains(&len) {
                    return None;
                }
                Some(Item { expires_at, bytes: self.bytes(len)?.to_vec() })
            })
            .collect()
    }

    fn bytes(&mut self, len: usize) -> Option<&[u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    const BINDING: Binding = [7; 32];

    fn items(count: usize, bytes: usize) -> impl Strategy<Value = Vec<Item>> {
        let item = (any::<u64>(), vec(any::<u8>(), 1..=bytes));
        vec(item.prop_map(|(expires_at, bytes)| Item { expires_at, bytes }), 0..=count)
    }

    fn record() -> impl Strategy<Value = Record> {
        let rtt = option::of((1..u32::MAX).prop_map(|rtt| Duration::from_micros(rtt.into())));
        // Without flow label and scope, which mean nothing to another process.
        let address = option::of(any::<(IpAddr, u16)>().prop_map(SocketAddr::from));
        let tickets = items(TICKETS_PER_SERVER, 200);
        (tickets, items(ADDRESS_TOKENS_KEPT, 100), rtt, address).prop_map(|(tickets, tokens, rtt, address)| Record {
            tickets,
            tokens,
            rtt,
            address,
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(record in record()) {
            let bytes = record.encode(&BINDING);
            prop_assert!(bytes.len() <= MAX_RECORD_BYTES);
            prop_assert_eq!(Record::decode(&bytes, &BINDING), Ok(record));
        }

        #[test]
        fn damage_anywhere_is_noticed(record in record(), at in any::<prop::sample::Index>(), bit in 0..8u32) {
            let mut bytes = record.encode(&BINDING);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Record::decode(&bytes, &BINDING).is_err());
            bytes[at] ^= 1 << bit;
            bytes.truncate(at);
            prop_assert!(Record::decode(&bytes, &BINDING).is_err());
        }

        #[test]
        fn a_body_with_a_right_checksum_and_any_content_is_read_or_refused(body in vec(any::<u8>(), 0..200)) {
            let bytes = Record::sealed(&BINDING, &body);
            match Record::decode(&bytes, &BINDING) {
                Ok(record) => prop_assert_eq!(record.encode(&BINDING), bytes),
                Err(error) => prop_assert_eq!(error, RecordError::Damaged),
            }
        }

        #[test]
        fn nothing_is_kept_past_its_time_or_its_number(mut old in record(), new in record(), now in 0..u64::MAX) {
            old.add(new);
            prop_assert!(old.tickets.len() <= TICKETS_PER_SERVER && old.tokens.len() <= ADDRESS_TOKENS_KEPT);
            old.expire(now);
            for item in old.tickets.iter().chain(&old.tokens) {
                prop_assert!(item.expires_at > now && item.expires_at - now <= SESSION_AGE.as_secs());
            }
        }
    }

    fn item(expires_at: u64, byte: u8) -> Item {
        Item { expires_at, bytes: vec![byte] }
    }

    #[test]
    fn the_newest_are_taken_first_and_the_oldest_go_first() {
        let mut record = Record::default();
        for n in 0..=TICKETS_PER_SERVER as u8 {
            record.add(Record { tickets: vec![item(1, n)], ..Record::default() });
        }
        let order: Vec<u8> = std::iter::from_fn(|| record.take().tickets.pop()).map(|item| item.bytes[0]).collect();
        assert_eq!(order, (1..=TICKETS_PER_SERVER as u8).rev().collect::<Vec<_>>());
    }

    #[test]
    fn a_record_is_one_servers_and_one_clients() {
        let bytes = Record::default().encode(&BINDING);
        assert_eq!(Record::decode(&bytes, &[8; 32]), Err(RecordError::OtherBinding));
        assert_eq!(Record::decode(b"# a text", &BINDING), Err(RecordError::Foreign));
        assert_eq!(Record::decode(b"", &BINDING), Err(RecordError::Foreign));
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let large = Item { expires_at: 1, bytes: vec![0; MAX_TICKET_BYTES + 1] };
        let record = Record { tickets: vec![large.clone(), item(1, 1)], tokens: vec![large], ..Record::default() };
        let read = Record::decode(&record.encode(&BINDING), &BINDING).unwrap();
        assert_eq!((read.tickets, read.tokens), (vec![item(1, 1)], vec![]));
    }
}
