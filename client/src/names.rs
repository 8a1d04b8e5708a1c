//! Hosts whose addresses the program gave, in place of what DNS says.

use std::{collections::HashMap, net::IpAddr};

/// Addresses by host name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(HashMap<String, IpAddr>);

impl Names {
    /// Names are compared as DNS does, without regard to case (RFC 4343).
    pub(crate) fn put(&mut self, host: &str, address: IpAddr) {
        self.0.insert(host.to_ascii_lowercase(), address);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        self.0.iter().map(|(host, address)| (host.as_str(), *address))
    }

    /// `endpoint`, which is `host:port`, with the address of its host if that was given.
    pub(crate) fn resolve(&self, endpoint: String) -> String {
        let given = endpoint.rsplit_once(':').and_then(|(host, port)| {
            let address = self.0.get(&host.to_ascii_lowercase())?;
            Some(match address {
                IpAddr::V4(v4) => format!("{v4}:{port}"),
                IpAddr::V6(v6) => format!("[{v6}]:{port}"),
            })
        });
        given.unwrap_or(endpoint)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_the_hosts_that_were_given_are_replaced() {
        let mut names = Names::default();
        names.put("Gpu.example", "192.0.2.7".parse().unwrap());
        names.put("six.example", "2001:db8::7".parse().unwrap());
        for (endpoint, dialled) in [
            ("gpu.EXAMPLE:50052", "192.0.2.7:50052"),
            ("six.example:1", "[2001:db8::7]:1"),
            ("other.example:50052", "other.example:50052"),
            ("[2001:db8::1]:50052", "[2001:db8::1]:50052"),
            ("gpu.example", "gpu.example"),
        ] {
            assert_eq!(names.resolve(endpoint.to_owned()), dialled);
        }
    }
}
