//! Which addresses may be connected to on behalf of somebody else's words. Pure.
//!
//! A registry's answer may send us anywhere. Whoever follows it into the local network does there what the registry
//! wants: reads a router's pages, or the secrets a cloud tells its machines at a link-local address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether an address belongs to the internet at large: not to this machine, its networks, or no one.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && (b & 0xc0) == 64;
    let protocols = a == 192 && b == 0 && c == 0;
    let benchmark = a == 198 && (b & 0xfe) == 18;
    let relay = a == 192 && b == 88 && c == 99;
    !(a == 0
        || a >= 240
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || shared
        || protocols
        || benchmark
        || relay)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let [first, second, ..] = segments;
    let inside = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    if let Some(mapped) = address.to_ipv4_mapped() {
        return is_public_v4(mapped);
    }
    match (first, second) {
        // Through a translator or a tunnel it is the IPv4 address inside that is reached.
        (0x64, 0xff9b) if segments[2..6] == [0; 4] => inside(segments[6], segments[7]),
        (0x2002, _) => inside(segments[1], segments[2]),
        // Teredo, benchmarks, documentation, and what else protocols keep for themselves.
        (0x2001, 0..=0x1ff | 0xdb8) => false,
        (0x3fff, 0..=0x0fff) => false,
        // All that is given out for the internet begins with 001.
        _ => (first & 0xe000) == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_internet_is_public() {
        for text in ["1.1.1.1", "104.21.75.227", "172.32.0.1", "100.128.0.1", "198.20.0.1", "2606:4700::6810:84e5"] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
        assert!(is_public("::ffff:1.1.1.1".parse().unwrap()) && is_public("64:ff9b::101:101".parse().unwrap()));
    }

    #[test]
    fn this_machine_and_its_networks_are_not() {
        for text in [
            "0.0.0.0",
            "127.0.0.1",
            "127.8.9.10",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.170",
            "192.0.2.1",
            "198.18.0.1",
            "192.88.99.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:c0a8:101::",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "100::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }
}
