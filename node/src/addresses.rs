//! What the address of a machine says of it: whether it is this one, whether it is in a block of addresses, and with
//! which others it is one client.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Bits of an IPv6 address that name a network: providers give each customer at least one such.
const IPV6_NETWORK_BITS: u32 = 64;

/// Bits that come before an IPv4 address in its form of IPv6.
const MAPPED_BITS: u32 = 96;

/// A block of addresses: `10.1.2.3`, `10.0.0.0/8`, `fd00::/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressBlock {
    base: IpAddr,
    prefix_bits: u32,
}

impl AddressBlock {
    /// Whether an address lies in the block.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let differing = base.to_bits() ^ address.to_bits();
                differing.checked_shr(u32::BITS - self.prefix_bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let differing = base.to_bits() ^ address.to_bits();
                differing.checked_shr(u128::BITS - self.prefix_bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for AddressBlock {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let explain = || {
            format!(
                "{text:?} is no block of addresses: write an IP address, or one with the length of its prefix, \
                     such as \"10.0.0.0/8\""
            )
        };
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let base: IpAddr = address.parse().map_err(|_| explain())?;
        let bits_max = if base.is_ipv4() { u32::BITS } else { u128::BITS };
        let prefix_bits: u32 = match bits {
            None => bits_max,
            Some(bits) if !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) => {
                bits.parse().ok().filter(|bits| *bits <= bits_max).ok_or_else(explain)?
            }
            Some(_) => return Err(explain()),
        };
        // Clients of IPv4 are known by its addresses, so a block of these in IPv6's form would hold nobody.
        match (base.to_canonical(), prefix_bits.checked_sub(MAPPED_BITS)) {
            (mapped @ IpAddr::V4(_), Some(prefix_bits)) if base.is_ipv6() => Ok(Self { base: mapped, prefix_bits }),
            _ => Ok(Self { base, prefix_bits }),
        }
    }
}

impl fmt::Display for AddressBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix_bits)
    }
}

/// What connections of an address are counted as: its IPv6 network, if it has one.
pub(crate) fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let network = address.to_bits() & !(u128::MAX >> IPV6_NETWORK_BITS);
            Ipv6Addr::from_bits(network).into()
        }
    }
}

/// Whether a host, as URLs name it, is this machine: nobody stands on the way to it.
pub(crate) fn is_this_machine(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn blocks_are_addresses_with_a_prefix_that_fits() {
        assert_eq!("0.0.0.0/0".parse::<AddressBlock>().map(|b| b.contains(address("8.8.8.8"))), Ok(true));
        assert_eq!("::/0".parse::<AddressBlock>().map(|b| b.contains(address("8.8.8.8"))), Ok(false));
        assert_eq!("10.1.2.3".parse::<AddressBlock>().map(|b| b.to_string()), Ok("10.1.2.3/32".to_owned()));
        let mapped = "::ffff:10.0.0.0/104".parse::<AddressBlock>().expect("a block of IPv4 in IPv6's form");
        assert_eq!(mapped.to_string(), "10.0.0.0/8");
        assert!(mapped.contains(address("10.1.2.3")) && mapped.contains(address("::ffff:10.1.2.3")));
        for wrong in ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/+8", "localhost", "10.0.0/8", "1.2.3.4:80"] {
            let error = wrong.parse::<AddressBlock>().expect_err(wrong);
            assert!(error.contains(&format!("{wrong:?}")), "{error}");
        }
    }
}
