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
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::addresses::{AddressBlock, client_of};

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
}
