//! Which shards are moved now: a few at a time, the most endangered first.

use std::collections::BTreeMap;

use holdfast_protocol::cluster::ShardState;
use holdfast_protocol::{NodeId, ShardId};

use super::super::danger::endangered;
use super::super::shard::{ShardEvent, apply};
use super::Controller;

/// After this a join may be one that cannot go on.
pub(super) const JOIN_OLD_MS: u64 = 10 * 60_000;

impl Controller {
    /// Remembers since when each join of a stored state is seen.
    pub(super) fn see_joins(&mut self, now_ms: u64) {
        let mut seen = BTreeMap::new();
        for (index, known) in self.shards.iter().enumerate() {
            for joiner in known.iter().flat_map(|known| &known.state.joining) {
                let key = (joiner.node, ShardId(index as u32));
                let before = self.joins.get(&key).filter(|(since, _)| *since == joiner.since);
                seen.insert(key, before.copied().unwrap_or((joiner.since, now_ms)));
            }
        }
        self.joins = seen;
    }

    /// How many joins of each node have lasted for so long that others need not wait for them any more.
    fn old_joins(&self, now_ms: u64) -> BTreeMap<NodeId, usize> {
        let mut old: BTreeMap<NodeId, usize> = BTreeMap::new();
        for ((node, _), _) in self.joins.iter().filter(|(_, (_, seen))| now_ms.saturating_sub(*seen) >= JOIN_OLD_MS) {
            let count = old.entry(*node).or_default();
            *count = (*count + 1).min(self.pace.joins_per_node_max);
        }
        old
    }

    /// Adds the moves whose turn has come.
    pub(super) fn retarget(&mut self, changes: &mut BTreeMap<ShardId, ShardState>, now_ms: u64) {
        self.waiting = 0;
        let old = self.old_joins(now_ms);
        let Some(wanted) = &self.wanted else { return };
        let mut joins: BTreeMap<NodeId, usize> = BTreeMap::new();
        let mut candidates = Vec::new();
        for (index, known) in self.shards.iter().enumerate() {
            let shard = ShardId(index as u32);
            let Some(known) = known else { continue };
            let state = changes.get(&shard).unwrap_or(&known.state);
            for joiner in &state.joining {
                *joins.entry(joiner.node).or_default() += 1;
            }
            if self.is_as_wanted(state, &wanted[index]) {
                continue;
            }
            let event = ShardEvent::Retarget { target: wanted[index].clone() };
            let next = apply(state, &event, &self.lost).state;
            if next != *state {
                let new = next.joining.iter().map(|j| j.node).filter(|n| !state.is_joining(*n)).collect::<Vec<_>>();
                candidates.push((shard, next, new));
            }
        }
        if candidates.is_empty() {
            return;
        }
        let order = self.order(&candidates.iter().map(|(shard, ..)| *shard).collect::<Vec<_>>());
        candidates.sort_by_key(|(shard, ..)| (order.get(shard).copied().unwrap_or(usize::MAX), *shard));
        let usable = |n: &NodeId| self.present.contains(n) && !self.refused_until_ms.contains_key(n);
        for (shard, next, new) in candidates {
            let places = |n: &NodeId| self.pace.joins_per_node_max + old.get(n).copied().unwrap_or(0);
            let room = |n: &NodeId| joins.get(n).copied().unwrap_or(0) < places(n);
            // Whoever cannot copy now does not keep the others from it.
            if new.is_empty() || (new.iter().any(usable) && new.iter().all(|n| room(n) || !usable(n))) {
                for node in new {
                    *joins.entry(node).or_default() += 1;
                }
                changes.insert(shard, next);
            } else {
                self.waiting += 1;
            }
        }
    }

    /// Whether a new target would change nothing. Cheap, since nearly all shards are so nearly always.
    fn is_as_wanted(&self, state: &ShardState, wanted: &[NodeId]) -> bool {
        state.target == wanted
            && state.members.iter().all(|member| wanted.contains(member))
            && state.joining.iter().all(|joiner| wanted.contains(&joiner.node))
            && wanted.iter().all(|n| state.is_member(*n) || state.is_joining(*n) || self.lost.contains(n))
    }

    /// The place of each endangered shard in the order of rebuilding.
    fn order(&self, shards: &[ShardId]) -> BTreeMap<ShardId, usize> {
        let zones =
            self.layout.iter().flat_map(|l| &l.nodes).map(|(node, entry)| (*node, entry.zone.clone())).collect();
        let states = shards.iter().filter_map(|shard| Some((*shard, &self.shards[shard.index()].as_ref()?.state)));
        let list = endangered(states, &self.absent(), &zones);
        list.into_iter().enumerate().map(|(place, danger)| (danger.shard, place)).collect()
    }
}
