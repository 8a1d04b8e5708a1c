//! Who asks, and how long it is willing to wait: read once from what came with a request, for REST, gRPC and the front door alike.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use http::{Extensions, HeaderMap};
use titan_transport::{PeerInfo, grpc_timeout};

use crate::{
    access::{Access, Caller},
    routing::RouteError,
};

/// Header and metadata that say how many milliseconds a request may wait for an agent with room.
pub(crate) const QUEUE_TIMEOUT: &str = "x-titan-queue-timeout-ms";

/// What is known of a request beside what it says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asker {
    pub(crate) caller: Caller,
    pub(crate) address: Option<IpAddr>,
    /// How long it may wait for room; `None` where it does not say.
    pub(crate) patience: Option<Duration>,
}

impl Asker {
    /// # Errors
    /// [`RouteError::InvalidParameter`] when [`QUEUE_TIMEOUT`] is no number of milliseconds.
    /// [`RouteError::Access`] when no good key is shown where one is asked for.
    pub(crate) fn of(access: &Access, headers: &HeaderMap, extensions: &Extensions) -> Result<Self, RouteError> {
        let caller = access.caller(headers, extensions)?;
        let stated = headers.get(QUEUE_TIMEOUT).map(|value| {
            let milliseconds = value.to_str().ok().and_then(|text| text.trim().parse().ok());
            milliseconds.map(Duration::from_millis).ok_or_else(|| RouteError::InvalidParameter {
                name: QUEUE_TIMEOUT,
                must: "must be a whole number of milliseconds, 0 for no wait at all".to_owned(),
            })
        });
        // A deadline that is none is refused before a request comes here.
        let deadline = grpc_timeout(headers).ok().flatten().map(|deadline| deadline.saturating_sub(ANSWER_TIME));
        let stated = stated.transpose()?;
        Ok(Self { caller, address: address(extensions), patience: stated.into_iter().chain(deadline).min() })
    }

    /// The same where another proof is asked for than a key; who shows a good one counts as its owner all the same.
    pub(crate) fn without_key(access: &Access, headers: &HeaderMap, extensions: &Extensions) -> Self {
        Self {
            caller: access.caller(headers, extensions).unwrap_or_default(),
            address: address(extensions),
            patience: None,
        }
    }

    /// Whom a request counts for that gives this name for itself.
    pub(crate) fn who(&self, client_id: &str) -> Who {
        match (self.caller.key_id(), self.address) {
            (Some(key), _) => Who::Key(key.into()),
            (None, Some(IpAddr::V6(address))) if !address.is_loopback() => Who::Address(network(address).into()),
            (None, Some(address)) if !address.is_loopback() => Who::Address(address),
            _ => Who::Name(client_id.into()),
        }
    }
}

fn address(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<PeerInfo>().map(|peer| peer.addr.ip().to_canonical())
}

/// What is left of a gRPC deadline for the answer: whoever waits until the last moment learns no reason.
const ANSWER_TIME: Duration = Duration::from_millis(200);

/// Whom requests and reports count for: the best that is known of who sent them, so that nobody is several by saying so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// The owner of an API key.
    Key(Arc<str>),
    /// Without a key, the address: a client gives itself as many names as it likes.
    Address(IpAddr),
    /// On this machine all have one address, and are trusted with the names that they give themselves.
    Name(Arc<str>),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(id) => write!(f, "key {id}"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Name(name) => write!(f, "client {name:?}"),
        }
    }
}

/// A host has 2^64 addresses of its own in IPv6 (RFC 4291 §2.5.4); the network is what it cannot choose.
fn network(address: Ipv6Addr) -> Ipv6Addr {
    const HOST_BITS: u32 = 64;
    Ipv6Addr::from_bits(address.to_bits() >> HOST_BITS << HOST_BITS)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn asker(key: Option<&str>, address: Option<&str>) -> Asker {
        let caller = key.map(Caller::with_key).unwrap_or_default();
        Asker { caller, address: address.map(|address| address.parse().unwrap()), patience: None }
    }

    #[test]
    fn names_that_clients_give_themselves_count_on_this_machine_alone() {
        let who = |key, address, name: &str| asker(key, address).who(name);
        assert_eq!(who(None, Some("192.0.2.1"), "a"), who(None, Some("192.0.2.1"), "b"));
        assert_ne!(who(None, Some("192.0.2.1"), "a"), who(None, Some("192.0.2.2"), "a"));
        assert_eq!(who(None, Some("2001:db8::1"), "a"), who(None, Some("2001:db8::ffff:1"), "a"), "one network");
        assert_ne!(who(None, Some("2001:db8::1"), "a"), who(None, Some("2001:db8:0:1::1"), "a"));
        assert_ne!(who(None, Some("127.0.0.1"), "a"), who(None, Some("127.0.0.1"), "b"));
        assert_eq!(
            who(Some("k"), Some("192.0.2.1"), "a"),
            who(Some("k"), Some("192.0.2.2"), "b"),
            "a key is who it is"
        );
    }

    #[test]
    fn the_shorter_of_header_and_deadline_is_how_long_it_waits() {
        let patience = |pairs: &[(&'static str, &'static str)]| {
            let headers = pairs.iter().map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            Asker::of(&Access::open(), &headers, &Extensions::new()).map(|asker| asker.patience)
        };
        assert_eq!(patience(&[]).unwrap(), None);
        assert_eq!(patience(&[(QUEUE_TIMEOUT, "0")]).unwrap(), Some(Duration::ZERO));
        assert_eq!(patience(&[(QUEUE_TIMEOUT, "1500")]).unwrap(), Some(Duration::from_millis(1500)));
        let deadline = Some(Duration::from_secs(2) - ANSWER_TIME);
        assert_eq!(patience(&[("grpc-timeout", "2S")]).unwrap(), deadline);
        assert_eq!(patience(&[("grpc-timeout", "2S"), (QUEUE_TIMEOUT, "60000")]).unwrap(), deadline);
        for wrong in ["-1", "1.5", "soon", ""] {
            let refused = patience(&[(QUEUE_TIMEOUT, wrong)]).unwrap_err();
            assert_eq!(refused.code_word(), "invalid_parameter", "{wrong}");
            assert!(refused.to_string().starts_with(QUEUE_TIMEOUT), "{refused}");
        }
    }
}
