//! Hosts, in addresses and in the headers of HTTP: which are this machine, and which pages of a browser may ask what runs on it.

use std::{fmt, net::IpAddr};

/// The host in `host:port`, or in a URL or an origin of it, without the brackets of IPv6.
pub fn host_of(address: &str) -> &str {
    let authority = address.split_once("://").map_or(address, |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or_default();
    if let Some(bracketed) = authority.strip_prefix('[') {
        return bracketed.split(']').next().unwrap_or_default();
    }
    if authority.parse::<IpAddr>().is_ok() {
        return authority;
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Whether a host is this machine by the name or an address that only it has.
pub fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(is_loopback_ip)
}

/// Whether an address is this machine's own. A dual-stack socket shows 127.0.0.1 as ::ffff:127.0.0.1.
pub fn is_loopback_ip(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// A request of a page that has no business here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageRefused {
    /// A name of the page's own that leads to this machine (DNS rebinding).
    Host(String),
    /// Another site's page.
    Origin(String),
}

impl PageRefused {
    /// For programs.
    pub fn code_word(&self) -> &'static str {
        match self {
            Self::Host(_) => "host_refused",
            Self::Origin(_) => "origin_refused",
        }
    }
}

impl fmt::Display for PageRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => write!(
                f,
                "the header Host names {host:?}, which is no name of this machine: dial localhost or an address, or let the name in (--allow-host)"
            ),
            Self::Origin(origin) => write!(
                f,
                "the header Origin names {origin:?}: a page of another site may not ask what runs on this machine, unless it is let in (--cors-origin)"
            ),
        }
    }
}

/// What a page in a browser may ask a server that trusts all that runs on its own machine. The page's site is no part of this machine, and names
/// itself in headers that it cannot change (Fetch §3.2, RFC 9110 §7.2): in `Host`, where a name of its own leads here, or else in `Origin`.
/// Programs send no `Origin`, and the `Host` that they dialled.
///
/// `reads_only`: GET, HEAD and OPTIONS, whose answers the browser keeps from other sites' pages unless the server lets them. `hosts`: names
/// that the operator has let in. `origins`: sites that the operator has let in.
pub fn check_page<S: AsRef<str>>(
    reads_only: bool,
    host: Option<&str>,
    origin: Option<&str>,
    hosts: &[S],
    origins: &[S],
) -> Result<(), PageRefused> {
    let named = host.map(host_of).unwrap_or_default();
    if !is_ours(named) && !hosts.iter().any(|allowed| allowed.as_ref().eq_ignore_ascii_case(named)) {
        return Err(PageRefused::Host(named.to_owned()));
    }
    let Some(origin) = origin.filter(|_| !reads_only) else { return Ok(()) };
    let site = host_of(origin);
    // A page in a frame without a name, or from a file, says `null`.
    let has_host = origin.contains("://") && !site.is_empty();
    let same = has_host && (is_loopback(site) || site.eq_ignore_ascii_case(named));
    if same || origins.iter().any(|allowed| allowed.as_ref().eq_ignore_ascii_case(origin)) {
        return Ok(());
    }
    Err(PageRefused::Origin(origin.to_owned()))
}

/// Names that nobody can register and point here: addresses, names without a dot, and the domains that are kept for private use (RFC 6761 §6.3,
/// and `.internal`, set aside by ICANN in 2024; `host.docker.internal` is one).
fn is_ours(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let kept = |domain: &str| host.len() > domain.len() && host.to_ascii_lowercase().ends_with(domain);
    host.parse::<IpAddr>().is_ok() || !host.contains('.') || kept(".localhost") || kept(".internal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_found_in_whatever_names_it() {
        for (address, host) in [
            ("localhost:50051", "localhost"),
            ("http://127.0.0.1:1/path", "127.0.0.1"),
            ("[::1]:1", "::1"),
            ("https://[2001:db8::1]", "2001:db8::1"),
            ("::1", "::1"),
            ("gpu.example", "gpu.example"),
            ("null", "null"),
            ("", ""),
        ] {
            assert_eq!(host_of(address), host, "{address}");
        }
    }

    #[test]
    fn this_machine_is_told_apart() {
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["example.org", "192.0.2.1", "127.0.0.1.example.org", "localhost.example", "2001:db8::1", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    fn check(reads_only: bool, host: Option<&str>, origin: Option<&str>) -> Result<(), PageRefused> {
        check_page(reads_only, host, origin, &["gpu.example"], &["https://chat.example"])
    }

    #[test]
    fn programs_are_never_refused() {
        for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "192.0.2.1:8787", "coordinator:8080", "x"] {
            assert_eq!(check(false, Some(host), None), Ok(()), "{host}");
        }
        for host in ["host.docker.internal:8080", "a.localhost:1", "localhost.:8080", "GPU.example:1"] {
            assert_eq!(check(false, Some(host), None), Ok(()), "{host}");
        }
        assert_eq!(check(false, None, None), Ok(()), "HTTP/1.0");
    }

    #[test]
    fn a_name_that_leads_here_is_refused_whatever_it_asks() {
        for host in ["evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example:8080", "evil.example."] {
            for (reads_only, origin) in [(true, None), (false, None), (false, Some("http://evil.example:8080"))] {
                let refused = check(reads_only, Some(host), origin);
                assert!(matches!(refused, Err(PageRefused::Host(_))), "{host} {origin:?}: {refused:?}");
            }
        }
    }

    #[test]
    fn a_page_of_another_site_may_read_what_is_for_everyone_and_change_nothing() {
        let host = Some("127.0.0.1:8080");
        for origin in ["https://evil.example", "null", "", "file://", "https://chat.example.evil.example"] {
            assert_eq!(check(false, host, Some(origin)), Err(PageRefused::Origin(origin.to_owned())), "{origin}");
            assert_eq!(check(true, host, Some(origin)), Ok(()), "{origin}");
        }
        for origin in ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:5173", "https://chat.example"] {
            assert_eq!(check(false, host, Some(origin)), Ok(()), "{origin}");
        }
        assert_eq!(check(false, Some("box:8080"), Some("http://box:8080")), Ok(()), "the same site");
    }
}
