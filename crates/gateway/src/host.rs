//! Under which names a browser may ask for this node, and on whose behalf. Pure.
//!
//! A web page can make its reader's browser talk to loopback and to the home network, and can let its own name resolve
//! there. What it cannot do is forge the `Host` and `Origin` of what the browser sends; so these are looked at before
//! anything else, whatever the node is bound to.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, Uri, header};

use crate::error::Error;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

#[derive(Debug)]
pub(crate) struct Hosts {
    /// Lower case.
    names: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Foreign {
    Host,
    Origin,
}

impl Hosts {
    /// Loopback by its usual names, and what else was configured.
    pub(crate) fn new(allowed: &[String]) -> Result<Self, Error> {
        let mut hosts = Self {
            names: BTreeSet::from(["localhost".to_owned()]),
            addresses: BTreeSet::from([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]),
        };
        for host in allowed {
            match address(host) {
                Some(address) => _ = hosts.addresses.insert(address),
                None if is_name(host) => hosts.allow(host),
                None => return Err(Error::Host(host.clone())),
            }
        }
        Ok(hosts)
    }

    pub(crate) fn allow(&mut self, name: &str) {
        self.names.insert(name.to_ascii_lowercase());
    }

    /// `local` is the address the connection came in on: a literal of it cannot have been made to resolve there.
    pub(crate) fn judge(&self, uri: &Uri, headers: &HeaderMap, local: IpAddr) -> Result<(), Foreign> {
        let host = one(headers, &header::HOST).ok_or(Foreign::Host)?;
        let named = [Some(host), uri.authority().map(Authority::as_str)];
        if !named.into_iter().flatten().all(|host| self.ours(host, local)) {
            return Err(Foreign::Host);
        }
        let same_origin = match headers.contains_key(header::ORIGIN) {
            false => true,
            true => one(headers, &header::ORIGIN).is_some_and(|origin| {
                let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
                rest.is_some_and(|origin| origin.eq_ignore_ascii_case(host))
            }),
        };
        // Another port of the same host is `same-site`: it may be anybody's page.
        let own_page = match headers.contains_key(SEC_FETCH_SITE) {
            false => true,
            true => matches!(one(headers, &SEC_FETCH_SITE), Some("same-origin" | "none")),
        };
        if same_origin && own_page { Ok(()) } else { Err(Foreign::Origin) }
    }

    fn ours(&self, host: &str, local: IpAddr) -> bool {
        let Some(host) = without_port(host) else { return false };
        match address(host) {
            Some(address) => address == local.to_canonical() || self.addresses.contains(&address),
            None => self.names.contains(&host.to_ascii_lowercase()),
        }
    }
}

/// A header's value, where it is there once and is text.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// An address alone, v6 in brackets or not.
fn address(host: &str) -> Option<IpAddr> {
    let v6 = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let parsed = match v6 {
        Some(inner) => inner.parse::<Ipv6Addr>().map(IpAddr::V6),
        None => host.parse(),
    };
    parsed.ok().map(|address: IpAddr| address.to_canonical())
}

fn without_port(host: &str) -> Option<&str> {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    let good_port = port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
    (good_port && !name.is_empty()).then_some(name)
}

fn is_name(host: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    !host.is_empty() && host.len() <= 253 && host.bytes().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Hosts {
        let mut hosts = Hosts::new(&["OMX.example".to_owned(), "192.0.2.9".to_owned()]).unwrap();
        hosts.allow("tower");
        hosts
    }

    fn judge(headers: &[(&str, &str)], uri: &str) -> Result<(), Foreign> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        hosts().judge(&uri.parse().unwrap(), &map, "10.0.0.7".parse().unwrap())
    }

    #[test]
    fn a_node_answers_to_its_own_names_only() {
        for host in [
            "localhost",
            "LOCALHOST:11435",
            "127.0.0.1",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:11435",
            "10.0.0.7:11435",
            "omx.example",
            "omx.Example:443",
            "192.0.2.9",
            "tower",
            "tower:11435",
            "[::ffff:10.0.0.7]",
        ] {
            assert_eq!(judge(&[("host", host)], "/"), Ok(()), "{host}");
        }
        for host in [
            "",
            ":80",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.8",
            "0.0.0.0",
            "localhost:",
            "localhost:x",
            "localhost:99999",
            "localhost:+80",
            "[::1",
            "tower.",
            "a@localhost",
        ] {
            assert_eq!(judge(&[("host", host)], "/"), Err(Foreign::Host), "{host:?}");
        }
        assert_eq!(judge(&[], "/"), Err(Foreign::Host));
        assert_eq!(judge(&[("host", "localhost"), ("host", "localhost")], "/"), Err(Foreign::Host));
    }

    #[test]
    fn a_name_in_the_request_line_counts_as_much_as_the_header() {
        assert_eq!(judge(&[("host", "localhost")], "http://localhost/x"), Ok(()));
        assert_eq!(judge(&[("host", "localhost")], "http://evil.example/x"), Err(Foreign::Host));
        assert_eq!(judge(&[("host", "evil.example")], "http://localhost/x"), Err(Foreign::Host));
    }

    #[test]
    fn a_page_of_another_origin_is_refused_whatever_the_method() {
        let host = ("host", "localhost:11435");
        for good in [
            vec![host, ("origin", "http://localhost:11435")],
            vec![host, ("origin", "https://localhost:11435"), ("sec-fetch-site", "same-origin")],
            vec![host, ("sec-fetch-site", "none")],
        ] {
            assert_eq!(judge(&good, "/"), Ok(()), "{good:?}");
        }
        for foreign in [
            ("origin", "null"),
            ("origin", ""),
            ("origin", "http://localhost"),
            ("origin", "http://localhost:3000"),
            ("origin", "http://evil.example"),
            ("origin", "file://localhost:11435"),
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", ""),
        ] {
            assert_eq!(judge(&[host, foreign], "/"), Err(Foreign::Origin), "{foreign:?}");
        }
    }

    #[test]
    fn a_configured_host_with_more_than_a_name_in_it_is_an_error() {
        for host in ["", "http://a", "a:80", "a/b", "a b", "ü"] {
            assert!(Hosts::new(&[host.to_owned()]).is_err(), "{host}");
        }
        assert!(Hosts::new(&["[fd00::1]".to_owned(), "fd00::2".to_owned()]).is_ok());
    }
}
