//! How many connections one client may have at once.
//!
//! Connections are counted by the client's address; those of one IPv6 network of 64 bits count together, since whoever
//! has one has all of them. Who has its share is let in no more: its connection is closed at once, so that it neither
//! waits in the way of others nor holds a descriptor. Addresses behind which there are many clients, such as load
//! balancers, can be left uncounted.
//!
//! Nothing is kept of an address without connections, so what is kept is bounded by the number of connections.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use parking_lot::Mutex;

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

/// What connections of an address are counted as.
pub(crate) fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let network = address.to_bits() & !(u128::MAX >> IPV6_NETWORK_BITS);
            Ipv6Addr::from_bits(network).into()
        }
    }
}

/// The shares of all clients of a server.
pub(crate) struct Shares {
    per_address: usize,
    exempt: Vec<AddressBlock>,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection of a client's share; given back when dropped.
pub(crate) struct Share {
    /// Nothing for clients that are not counted.
    counted: Option<(Arc<Shares>, IpAddr)>,
}

impl Shares {
    pub(crate) fn new(per_address: usize, exempt: Vec<AddressBlock>) -> Arc<Self> {
        Arc::new(Self { per_address, exempt, open: Mutex::default() })
    }

    /// One more connection of an address, unless it has its share.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Share> {
        if self.exempt.iter().any(|block| block.contains(address)) {
            return Some(Share { counted: None });
        }
        let client = client_of(address);
        match self.open.lock().entry(client) {
            Entry::Occupied(open) if *open.get() >= self.per_address => return None,
            Entry::Occupied(mut open) => *open.get_mut() += 1,
            Entry::Vacant(first) => {
                first.insert(1);
            }
        }
        Some(Share { counted: Some((Arc::clone(self), client)) })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Some((shares, client)) = &self.counted else { return };
        if let Entry::Occupied(mut open) = shares.open.lock().entry(*client) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn connections_of_one_address_and_of_one_network_count_together() {
        let shares = Shares::new(2, vec![]);
        for [one, other, stranger] in [
            ["192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"],
            ["2001:db8:0:1::1", "2001:db8:0:1:ffff::", "2001:db8:0:2::1"],
        ] {
            let held = [shares.take(address(one)), shares.take(address(other))];
            assert!(held.iter().all(Option::is_some), "{one}");
            assert!(shares.take(address(one)).is_none(), "{one}");
            assert!(shares.take(address(other)).is_none(), "{other}");
            assert!(shares.take(address(stranger)).is_some(), "{stranger}");
            drop(held);
            assert!(shares.take(address(one)).is_some(), "{one}");
        }
        assert!(shares.open.lock().is_empty(), "addresses without connections are forgotten");
    }

    #[test]
    fn exempt_addresses_are_not_counted() {
        let blocks = ["10.0.0.0/8", "::1", "fd00::/8"].map(|text| text.parse().expect("a block"));
        let shares = Shares::new(1, blocks.to_vec());
        for exempt in ["10.255.0.1", "::ffff:10.0.0.1", "::1", "fdff::1"] {
            let held = [shares.take(address(exempt)), shares.take(address(exempt))];
            assert!(held.iter().all(Option::is_some), "{exempt}");
        }
        for counted in ["11.0.0.1", "::2", "fe00::1"] {
            let held = [shares.take(address(counted)), shares.take(address(counted))];
            assert!(held[0].is_some() && held[1].is_none(), "{counted}");
        }
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
