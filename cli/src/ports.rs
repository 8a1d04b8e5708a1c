//! Whether ports are free, before anything expensive begins: loading a model for a minute only to find that it cannot be
//! served is worse than a check that another process could, in theory, outrun. Binding itself reports the same later.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
};

use anyhow::bail;

/// A port that will be bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) protocol: Protocol,
    /// What will listen there.
    pub(crate) what: &'static str,
    /// What chooses another port: flag and environment variable.
    pub(crate) setting: &'static str,
    /// 0 is always free.
    pub(crate) port: u16,
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    #[cfg_attr(not(feature = "engines"), allow(dead_code, reason = "only what serves a model listens for QUIC"))]
    Udp,
}

/// Checks each.
pub(crate) fn check(ip: IpAddr, wanted: &[Wanted]) -> anyhow::Result<()> {
    for (at, Wanted { protocol, what, setting, port }) in wanted.iter().enumerate() {
        if *port == 0 {
            continue;
        }
        if let Some(other) = wanted[..at].iter().find(|other| other.port == *port && other.protocol == *protocol) {
            bail!("port {port} is wanted twice, for {what} and for {}: choose another with {setting}", other.what);
        }
        let addr = SocketAddr::new(ip, *port);
        let bound = match protocol {
            Protocol::Tcp => TcpListener::bind(addr).map(drop),
            Protocol::Udp => UdpSocket::bind(addr).map(drop),
        };
        let name = if *protocol == Protocol::Tcp { "TCP" } else { "UDP" };
        match bound {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => bail!(
                "{name} port {port} ({what}) is in use on {ip}: is titan running already? Stop it, or choose another port with {setting}"
            ),
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                bail!("{ip} is no address of this machine: choose another with --bind")
            }
            Err(error) => {
                bail!("cannot listen on {name} port {port} ({what}) of {ip}: {error}; {setting} chooses another")
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const LOCALHOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn wanted(port: u16, protocol: Protocol, what: &'static str) -> Wanted {
        Wanted { protocol, what, setting: "--some-port (SOME_PORT)", port }
    }

    #[test]
    fn a_port_in_use_is_named_with_what_chooses_another() {
        let taken = TcpListener::bind((LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let message = check(LOCALHOST, &[wanted(port, Protocol::Tcp, "REST")]).unwrap_err().to_string();
        for part in [&port.to_string(), "REST", "--some-port", "SOME_PORT"] {
            assert!(message.contains(part), "{message}");
        }
        check(LOCALHOST, &[wanted(port, Protocol::Udp, "QUIC")]).unwrap();
    }

    #[test]
    fn a_port_wanted_twice_is_refused_and_any_port_is_not() {
        let any = wanted(0, Protocol::Tcp, "REST");
        check(LOCALHOST, &[any, any]).unwrap();
        let port = TcpListener::bind((LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let both = [wanted(port, Protocol::Tcp, "REST"), wanted(port, Protocol::Tcp, "gRPC")];
        let message = check(LOCALHOST, &both).unwrap_err().to_string();
        assert!(message.contains("REST") && message.contains("gRPC"), "{message}");
        check(LOCALHOST, &[both[0], wanted(port, Protocol::Udp, "QUIC")]).unwrap();
    }
}
