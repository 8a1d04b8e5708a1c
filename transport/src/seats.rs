//! Who may have a connection: so many in all, and so many from one address.
//!
//! A port that has its last connection gives new ones the place of those that have not asked for anything yet, the oldest first. Otherwise
//! whoever opens connections and says nothing would keep everybody out.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// The connections of one port.
#[derive(Debug)]
pub(crate) struct Seats {
    in_all: usize,
    per_address: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    by_network: HashMap<IpAddr, usize>,
    /// Connections that have not asked for anything yet, the oldest first.
    unproven: BTreeMap<u64, CancellationToken>,
    next: u64,
}

/// Why there is no seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("this port has as many connections as it bears")]
    Port,
    #[error("this address has as many connections as one may have")]
    Address,
}

impl Seats {
    pub(crate) fn new(in_all: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self { in_all, per_address, state: Mutex::default() })
    }

    /// A seat for a connection from `addr`, for as long as the value lives.
    pub(crate) fn take(self: &Arc<Self>, addr: SocketAddr) -> Result<Seat, Full> {
        let network = network(addr.ip());
        let mut state = self.state.lock();
        let neighbours = network.and_then(|network| state.by_network.get(&network)).copied().unwrap_or(0);
        if neighbours >= self.per_address {
            return Err(Full::Address);
        }
        if state.taken >= self.in_all {
            let (_, oldest) = state.unproven.pop_first().ok_or(Full::Port)?;
            // It ends in a moment; until then there is one more than there should be.
            oldest.cancel();
        }
        let (id, given_up) = (state.next, CancellationToken::new());
        state.next += 1;
        state.taken += 1;
        state.unproven.insert(id, given_up.clone());
        if let Some(network) = network {
            *state.by_network.entry(network).or_default() += 1;
        }
        Ok(Seat { seats: Arc::clone(self), id, network, given_up, proven: AtomicBool::new(false) })
    }

    #[cfg(test)]
    fn taken(&self) -> usize {
        self.state.lock().taken
    }
}

/// The place of one connection.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    id: u64,
    network: Option<IpAddr>,
    given_up: CancellationToken,
    proven: AtomicBool,
}

impl Seat {
    /// The connection has asked for something: nobody else gets its place from now on.
    pub(crate) fn prove(&self) {
        if !self.proven.swap(true, Relaxed) {
            self.seats.state.lock().unproven.remove(&self.id);
        }
    }

    /// Resolves when somebody else has got its place, and it has to end.
    pub(crate) async fn given_up(&self) {
        self.given_up.cancelled().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.seats.state.lock();
        state.taken -= 1;
        state.unproven.remove(&self.id);
        let Some(network) = self.network else { return };
        if let Some(count) = state.by_network.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                state.by_network.remove(&network);
            }
        }
    }
}

/// What counts as one address. None for this machine: its connections may all be those of a proxy that has many clients, and a program
/// that runs here has shorter ways to do harm.
fn network(ip: IpAddr) -> Option<IpAddr> {
    match ip.to_canonical() {
        ip if ip.is_loopback() => None,
        // One subscriber has a whole /64 (RFC 6177) and may take a new address for each connection.
        IpAddr::V6(ip) => Some(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into()),
        ip => Some(ip),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn addr(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), 1)
    }

    #[test]
    fn an_address_gets_no_more_than_its_share_and_gets_it_back() {
        let seats = Seats::new(100, 2);
        let one = seats.take(addr("192.0.2.1")).unwrap();
        let _two = seats.take(addr("::ffff:192.0.2.1")).unwrap();
        assert_eq!(seats.take(addr("192.0.2.1")).unwrap_err(), Full::Address);
        let _other = seats.take(addr("192.0.2.2")).unwrap();
        drop(one);
        let _three = seats.take(addr("192.0.2.1")).unwrap();
    }

    #[test]
    fn a_subscriber_of_ipv6_is_one_address() {
        let seats = Seats::new(100, 1);
        let _one = seats.take(addr("2001:db8::1")).unwrap();
        assert_eq!(seats.take(addr("2001:db8::ffff:2")).unwrap_err(), Full::Address);
        assert!(seats.take(addr("2001:db8:0:1::1")).is_ok());
    }

    #[test]
    fn this_machine_may_be_a_proxy_with_many_clients() {
        let seats = Seats::new(100, 1);
        let held: Vec<_> =
            ["127.0.0.1", "127.0.0.1", "::1", "::1", "::ffff:127.0.0.1"].map(|ip| seats.take(addr(ip)).unwrap()).into();
        assert_eq!(seats.taken(), held.len());
    }

    #[test]
    fn whoever_says_nothing_gives_way_and_whoever_has_asked_does_not() {
        let seats = Seats::new(3, 100);
        let [asked, silent, newer] = [(); 3].map(|()| seats.take(addr("127.0.0.1")).unwrap());
        asked.prove();
        let next = seats.take(addr("192.0.2.1")).unwrap();
        assert!(!asked.given_up.is_cancelled());
        assert!(silent.given_up.is_cancelled() && !newer.given_up.is_cancelled());
        drop(silent);
        newer.prove();
        next.prove();
        assert_eq!(seats.take(addr("127.0.0.1")).unwrap_err(), Full::Port);
        drop(asked);
        assert!(seats.take(addr("127.0.0.1")).is_ok());
    }

    #[test]
    fn nothing_is_left_of_those_that_have_gone() {
        let seats = Seats::new(2, 2);
        for n in 0..1000 {
            let seat = seats.take(addr(&format!("192.0.2.{}", n % 250))).unwrap();
            if n % 2 == 0 {
                seat.prove();
            }
        }
        let state = seats.state.lock();
        assert_eq!((state.taken, state.by_network.len(), state.unproven.len()), (0, 0, 0));
    }
}
