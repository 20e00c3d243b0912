//! How well a shard is, and which shard to rebuild first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use holdfast_protocol::cluster::ShardState;
use holdfast_protocol::{NodeId, ShardId};

/// A shard's condition, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShardHealth {
    /// Exactly the wanted members, all of them here and verified, nothing under way.
    Healthy,
    /// As many verified replicas as wanted, but some are to move.
    Moving,
    /// Fewer replicas than wanted; reads and writes work.
    Degraded,
    /// Reads work, but writes find no quorum.
    NoQuorum,
    /// No replica is here: neither reads nor writes, and nothing to rebuild from.
    Unavailable,
}

impl ShardHealth {
    /// From best to worst.
    pub const ALL: [Self; 5] = [Self::Healthy, Self::Moving, Self::Degraded, Self::NoQuorum, Self::Unavailable];

    /// For metrics and the admin API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Moving => "moving",
            Self::Degraded => "degraded",
            Self::NoQuorum => "no_quorum",
            Self::Unavailable => "unavailable",
        }
    }
}

/// The condition of a shard while the nodes of `absent` cannot be reached.
pub fn health(state: &ShardState, absent: &BTreeSet<NodeId>) -> ShardHealth {
    let live = state.members.iter().filter(|m| !absent.contains(m)).count();
    let writable = state.write_set().filter(|m| !absent.contains(m)).count() >= state.target_quorum() as usize;
    let wanted = state.target.len();
    let quorum = state.write_quorum() as usize;
    let settled = state.joining.is_empty() && state.leaving.is_empty();
    let as_wanted = state.members.len() == wanted && state.target.iter().all(|t| state.is_member(*t));
    match live {
        0 => ShardHealth::Unavailable,
        _ if live < quorum || !writable => ShardHealth::NoQuorum,
        _ if live < wanted => ShardHealth::Degraded,
        _ if settled && as_wanted && live == state.members.len() => ShardHealth::Healthy,
        _ => ShardHealth::Moving,
    }
}

/// How close a shard is to losing data. Sorted, the most endangered comes first.
///
/// What can still be rebuilt comes before what cannot; among those, fewest replicas first; then fewest zones, since a
/// zone fails as one; then the most replicas missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Danger {
    hopeless: bool,
    live: usize,
    zones: usize,
    missing: Reverse<usize>,
    /// The shard.
    pub shard: ShardId,
}

impl Danger {
    /// Verified replicas on nodes that are here.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Replicas that are wanted but not there.
    pub fn missing(&self) -> usize {
        self.missing.0
    }
}

/// The shards that have fewer verified replicas than wanted, most endangered first.
pub fn endangered<'a>(
    shards: impl IntoIterator<Item = (ShardId, &'a ShardState)>,
    absent: &BTreeSet<NodeId>,
    zones: &BTreeMap<NodeId, String>,
) -> Vec<Danger> {
    let mut list: Vec<Danger> = shards
        .into_iter()
        .filter_map(|(shard, state)| {
            let live: Vec<&NodeId> = state.members.iter().filter(|m| !absent.contains(m)).collect();
            let missing = state.target.len().saturating_sub(live.len());
            let spread: BTreeSet<Option<&String>> = live.iter().map(|n| zones.get(n)).collect();
            (missing > 0).then_some(Danger {
                hopeless: live.is_empty(),
                live: live.len(),
                zones: spread.len(),
                missing: Reverse(missing),
                shard,
            })
        })
        .collect();
    list.sort();
    list
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::cluster::{Epoch, Joiner};

    use super::*;

    fn n(i: u64) -> NodeId {
        NodeId::from(i)
    }

    fn shard(members: &[u64]) -> ShardState {
        ShardState::founding(members.iter().map(|i| n(*i)).collect())
    }

    #[test]
    fn shards_with_one_replica_left_come_first_and_hopeless_ones_last() {
        let states = [shard(&[1, 2, 3]), shard(&[1, 2, 4]), shard(&[7, 8, 9]), shard(&[1, 7, 8]), shard(&[5, 6, 1])];
        let absent = BTreeSet::from([n(1), n(2), n(3), n(9)]);
        let zones = [(5, "a"), (6, "a"), (7, "a"), (8, "b"), (4, "c")];
        let zones = zones.into_iter().map(|(i, z)| (n(i), z.to_owned())).collect();
        let list = endangered(states.iter().enumerate().map(|(i, s)| (ShardId(i as u32), s)), &absent, &zones);
        let order: Vec<u32> = list.iter().map(|d| d.shard.0).collect();
        // 1: one replica. 4: two in one zone. 2 and 3: two in two zones. 0: none left.
        assert_eq!(order, [1, 4, 2, 3, 0]);
        assert_eq!((list[0].live(), list[0].missing()), (1, 2));
    }

    #[test]
    fn healthy_is_said_only_when_nothing_is_left_to_do() {
        let absent = BTreeSet::new();
        let mut state = shard(&[1, 2, 3]);
        assert_eq!(health(&state, &absent), ShardHealth::Healthy);
        assert_eq!(health(&state, &BTreeSet::from([n(1)])), ShardHealth::Degraded);
        assert_eq!(health(&state, &BTreeSet::from([n(1), n(2)])), ShardHealth::NoQuorum);
        assert_eq!(health(&state, &BTreeSet::from([n(1), n(2), n(3)])), ShardHealth::Unavailable);
        state.target = vec![n(1), n(2), n(4)];
        assert_eq!(health(&state, &absent), ShardHealth::Moving);
    }

    #[test]
    fn a_last_member_takes_writes_only_together_with_a_joiner() {
        let mut state = shard(&[1]);
        state.target = vec![n(1), n(2), n(3)];
        assert_eq!(health(&state, &BTreeSet::new()), ShardHealth::NoQuorum);
        state.joining = [2, 3].map(|node| Joiner { node: n(node), since: Epoch(1) }).to_vec();
        assert_eq!(health(&state, &BTreeSet::new()), ShardHealth::Degraded);
        assert_eq!(health(&state, &BTreeSet::from([n(2)])), ShardHealth::Degraded);
        assert_eq!(health(&state, &BTreeSet::from([n(2), n(3)])), ShardHealth::NoQuorum);
        assert_eq!(health(&state, &BTreeSet::from([n(1)])), ShardHealth::Unavailable);
    }
}
