//! How many strangers may be shaking hands with a node at a time.
//!
//! Before its certificate was looked at, whoever dials costs memory and a signature, and may be nobody at all: the
//! source of a packet is whatever its sender wrote. So once more than a few are under way, the rest have to show that
//! they hear what is sent to their address (QUIC's Retry, which costs this node nothing to remember), and one address
//! gets no more than its share. What is beyond the bound is refused at once: a peer tries again after a pause.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::addresses::client_of;

/// Handshakes at a time.
pub const HANDSHAKES_MAX: usize = 64;
/// Of one address, or one IPv6 network of 64 bits: others can still connect while it floods. Nodes behind one address
/// translator fit.
const PER_ADDRESS_MAX: usize = 32;
/// So many are let in without a look at whether their address is theirs.
const UNVALIDATED_MAX: usize = 8;

#[derive(Debug, Default)]
struct State {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Those under way. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Handshakes(Arc<Mutex<State>>);

/// One under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Handshake {
    of: Handshakes,
    address: IpAddr,
}

/// What to do with somebody who dials.
#[derive(Debug)]
pub(super) enum Admission {
    /// Go on.
    Granted(Handshake),
    /// Ask for a proof of the address first.
    Validate,
    /// Refuse.
    Full,
}

impl Handshakes {
    /// Decides about one more of `address`; `validated`: who dials has shown that it hears what is sent there.
    pub(super) fn admit(&self, address: IpAddr, validated: bool) -> Admission {
        let address = client_of(address);
        let mut state = self.0.lock();
        if !validated && state.all >= UNVALIDATED_MAX {
            return Admission::Validate;
        }
        let of_address = state.by_address.get(&address).copied().unwrap_or(0);
        if state.all >= HANDSHAKES_MAX || of_address >= PER_ADDRESS_MAX {
            return Admission::Full;
        }
        state.all += 1;
        state.by_address.insert(address, of_address + 1);
        Admission::Granted(Handshake { of: self.clone(), address })
    }

    pub(super) fn count(&self) -> usize {
        self.0.lock().all
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut state = self.of.0.lock();
        state.all -= 1;
        if let Some(count) = state.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                state.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    fn granted(handshakes: &Handshakes, from: u8, validated: bool) -> Handshake {
        match handshakes.admit(address(from), validated) {
            Admission::Granted(handshake) => handshake,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_few_need_no_proof_of_their_address() {
        let handshakes = Handshakes::default();
        let held: Vec<_> = (0..UNVALIDATED_MAX as u8).map(|n| granted(&handshakes, n, false)).collect();
        assert!(matches!(handshakes.admit(address(99), false), Admission::Validate));
        drop(granted(&handshakes, 99, true));
        drop(held);
        assert_eq!(handshakes.count(), 0);
        drop(granted(&handshakes, 99, false));
    }

    #[test]
    fn one_address_leaves_room_for_others_and_all_together_are_bounded() {
        let handshakes = Handshakes::default();
        let mut held: Vec<_> = (0..PER_ADDRESS_MAX).map(|_| granted(&handshakes, 1, true)).collect();
        assert!(matches!(handshakes.admit(address(1), true), Admission::Full));
        held.extend((0..HANDSHAKES_MAX - PER_ADDRESS_MAX).map(|_| granted(&handshakes, 2, true)));
        assert!(matches!(handshakes.admit(address(3), true), Admission::Full));
        held.remove(0);
        held.push(granted(&handshakes, 3, true));
        drop(held);
        // Whoever has one address of an IPv6 network has all of them.
        let neighbours = (1..=PER_ADDRESS_MAX as u16).map(|n| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, n]));
        let held: Vec<_> = neighbours.map(|address| handshakes.admit(address, true)).collect();
        assert!(held.iter().all(|admission| matches!(admission, Admission::Granted(_))));
        let one_more = IpAddr::from([0x2001, 0xdb8, 0, 1, 0xffff, 0, 0, 0]);
        assert!(matches!(handshakes.admit(one_more, true), Admission::Full));
        drop(held);
        assert!(handshakes.0.lock().by_address.is_empty(), "addresses are forgotten");
    }
}
