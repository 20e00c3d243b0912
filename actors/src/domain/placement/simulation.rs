//! A small cluster in memory: a controller that forgets everything, nodes that fail and return, messages that come late
//! and twice. Safety is checked at each step against what the nodes really hold; liveness once the faults end.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_protocol::NodeId;
use holdfast_protocol::cluster::{Epoch, Layout, LayoutNode, ShardState};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::danger::{ShardHealth, health};
use super::shard::{ShardEffect, ShardEvent, apply, check, pending};
use super::{Assignment, assign};

const SHARDS: usize = 16;

struct World {
    rng: StdRng,
    layout: Layout,
    shards: Vec<ShardState>,
    /// Who really has a complete copy of each shard, and since which join. Known to the test only.
    complete: Vec<BTreeMap<NodeId, Epoch>>,
    /// Nodes that are down; their data is still on their disks.
    down: BTreeSet<NodeId>,
    /// Nodes that the controller counts as lost: a subset of those that are or were down.
    lost: BTreeSet<NodeId>,
    mail: Vec<(usize, ShardEvent)>,
    epochs_seen: Vec<Epoch>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut layout = Layout::empty(rng.random_range(1..=3));
        for i in 1..=rng.random_range(5..=8) {
            let zone = format!("z{}", rng.random_range(0..4));
            let weight = rng.random_range(1..10);
            layout.nodes.insert(NodeId::from(i), LayoutNode { zone, weight, draining: false });
        }
        let start = assign(&layout, &BTreeSet::new(), &vec![Vec::new(); SHARDS]).expect("enough nodes");
        let complete = start.iter().map(|s| s.iter().map(|n| (*n, Epoch(0))).collect()).collect();
        let shards = start.into_iter().map(ShardState::founding).collect();
        let epochs_seen = vec![Epoch::FIRST; SHARDS];
        let (down, lost, mail) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        Self { rng, layout, shards, complete, down, lost, mail, epochs_seen }
    }

    fn step(&mut self, shard: usize, event: &ShardEvent) {
        let before = self.shards[shard].clone();
        let transition = apply(&before, event, &self.lost);
        let after = &transition.state;
        assert_eq!(check(after), Ok(()));
        assert!(after.epoch >= self.epochs_seen[shard], "the epoch never falls");
        let write_set = |s: &ShardState| s.write_set().collect::<BTreeSet<_>>();
        if write_set(&before) != write_set(after) || before.members != after.members {
            assert!(after.epoch > before.epoch, "writers are fenced when the write set or the members change");
        }
        self.epochs_seen[shard] = after.epoch;
        let live = |s: &ShardState| s.members.iter().filter(|m| !self.lost.contains(m)).count();
        if !matches!(event, ShardEvent::DataLost { .. }) {
            assert!(live(after) >= live(&before).min(after.target.len()), "{event:?}: {before:?} became {after:?}");
        }
        for member in &after.members {
            assert!(
                self.complete[shard].contains_key(member),
                "{member} is a member of shard {shard} without its data after {event:?} on {before:?}"
            );
        }
        self.shards[shard] = transition.state;
        for effect in transition.effects {
            self.carry_out(shard, effect);
        }
    }

    /// What nodes do about effects. Everything but the deletion may be lost, or answered later and more than once.
    fn carry_out(&mut self, shard: usize, effect: ShardEffect) {
        match effect {
            ShardEffect::StartCopy { node, since, sources } => {
                assert!(!sources.is_empty());
                let source_here = sources.iter().any(|s| !self.down.contains(s));
                if self.down.contains(&node) || !source_here || self.rng.random_bool(0.1) {
                    return;
                }
                let event = if self.rng.random_bool(0.15) {
                    ShardEvent::JoinFailed { node, since }
                } else {
                    self.complete[shard].insert(node, since);
                    ShardEvent::Verified { node, since }
                };
                for _ in 0..self.rng.random_range(1..=2) {
                    self.mail.push((shard, event.clone()));
                }
            }
            ShardEffect::StartGrace { node, since } => {
                // It stopped being written to: what it holds is out of date from now on.
                self.complete[shard].remove(&node);
                self.mail.push((shard, ShardEvent::GraceElapsed { node, since }));
            }
            ShardEffect::DropReplica { node } => {
                assert!(!self.shards[shard].is_member(node), "the data of a member is not deleted");
                self.complete[shard].remove(&node);
            }
            ShardEffect::StopCopy { .. } | ShardEffect::LastReplicaLost { .. } => {}
        }
    }

    fn deliver(&mut self) {
        if !self.mail.is_empty() {
            let place = self.rng.random_range(0..self.mail.len());
            let (shard, event) = self.mail.swap_remove(place);
            self.step(shard, &event);
        }
    }

    /// A controller without memory looks at everything.
    fn controller_pass(&mut self) {
        let current: Vec<Vec<NodeId>> = self.shards.iter().map(|s| s.target.clone()).collect();
        // Too few nodes: everything stays as it is.
        let Ok(wanted) = assign(&self.layout, &self.lost, &current) else { return };
        for (shard, target) in wanted.into_iter().enumerate() {
            for effect in pending(&self.shards[shard], &self.lost) {
                self.carry_out(shard, effect);
            }
            self.step(shard, &ShardEvent::Retarget { target });
        }
    }

    fn fault(&mut self) {
        let nodes: Vec<NodeId> = self.layout.nodes.keys().copied().collect();
        let Some(&node) = nodes.choose(&mut self.rng) else { return };
        match self.rng.random_range(0..8) {
            0 | 1 if self.down.len() < 2 => drop(self.down.insert(node)),
            2 | 3 => {
                // A node that comes back has missed what was written meanwhile; its repair rows see to that.
                self.down.remove(&node);
                self.lost.remove(&node);
            }
            4 if self.down.contains(&node) => {
                self.lost.insert(node);
                for shard in 0..SHARDS {
                    self.step(shard, &ShardEvent::NodeLost { node });
                }
            }
            5 => {
                let entry = self.layout.nodes.get_mut(&node).expect("chosen from the layout");
                entry.draining = !entry.draining;
            }
            6 => {
                let id = NodeId::from(self.rng.random_range(9..14));
                let zone = format!("z{}", self.rng.random_range(0..4));
                let weight = self.rng.random_range(1..10);
                self.layout.nodes.insert(id, LayoutNode { zone, weight, draining: false });
            }
            7 if self.rng.random_bool(0.3) => {
                let shard = self.rng.random_range(0..SHARDS);
                if self.shards[shard].members.len() > 1 {
                    self.complete[shard].remove(&node);
                    self.mail.retain(|(s, e)| {
                        !(*s == shard && matches!(e, ShardEvent::Verified { node: n, .. } if *n == node))
                    });
                    self.step(shard, &ShardEvent::DataLost { node });
                }
            }
            _ => {}
        }
    }

    fn settle(&mut self) -> usize {
        self.down.clear();
        self.lost.clear();
        let mut usable = 0;
        for node in self.layout.nodes.values_mut() {
            usable += usize::from(node.takes_data());
            if usable < self.layout.replication_factor as usize {
                usable += usize::from(node.draining);
                node.draining = false;
            }
        }
        for pass in 0..200 {
            self.controller_pass();
            while !self.mail.is_empty() {
                self.deliver();
            }
            if self.shards.iter().all(|s| health(s, &self.lost) == ShardHealth::Healthy) {
                return pass;
            }
        }
        panic!("the cluster does not become healthy: {:?}", self.shards);
    }
}

fn simulate(seed: u64) {
    println!("seed {seed}");
    let mut world = World::new(seed);
    for _ in 0..400 {
        match world.rng.random_range(0..10) {
            0 => world.controller_pass(),
            1 => world.fault(),
            _ => world.deliver(),
        }
    }
    world.settle();
    let current: Assignment = world.shards.iter().map(|s| s.target.clone()).collect();
    let wanted = assign(&world.layout, &BTreeSet::new(), &current).expect("made possible by settle");
    for (shard, state) in world.shards.iter().enumerate() {
        let members: BTreeSet<NodeId> = state.members.iter().copied().collect();
        assert_eq!(members, wanted[shard].iter().copied().collect(), "seed {seed}, shard {shard}");
    }
}

#[test]
fn shards_stay_safe_under_faults_and_become_healthy_after_them() {
    let seeds = match std::env::var("HOLDFAST_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("HOLDFAST_TEST_SEED is a number")],
        Err(_) => (0..150).collect(),
    };
    seeds.into_iter().for_each(simulate);
}

fn node_strategy() -> impl Strategy<Value = NodeId> {
    (1_u64..7).prop_map(NodeId::from)
}

fn event_strategy() -> impl Strategy<Value = ShardEvent> {
    let since = (1_u64..12).prop_map(Epoch);
    prop_oneof![
        prop::collection::btree_set(1_u64..7, 1..4)
            .prop_map(|s| ShardEvent::Retarget { target: s.into_iter().map(NodeId::from).collect() }),
        (node_strategy(), since.clone()).prop_map(|(node, since)| ShardEvent::Verified { node, since }),
        (node_strategy(), since.clone()).prop_map(|(node, since)| ShardEvent::JoinFailed { node, since }),
        (node_strategy(), since).prop_map(|(node, since)| ShardEvent::GraceElapsed { node, since }),
        node_strategy().prop_map(|node| ShardEvent::NodeLost { node }),
        node_strategy().prop_map(|node| ShardEvent::DataLost { node }),
    ]
}

proptest! {
    /// Events in any order, meaningful or not.
    #[test]
    fn no_order_of_events_breaks_a_shard(
        events in prop::collection::vec((event_strategy(), prop::collection::btree_set(1_u64..7, 0..3)), 0..60),
    ) {
        let mut state = ShardState::founding(vec![NodeId::from(1), NodeId::from(2), NodeId::from(3)]);
        for (event, lost) in events {
            let lost: BTreeSet<NodeId> = lost.into_iter().map(NodeId::from).collect();
            let next = apply(&state, &event, &lost).state;
            prop_assert_eq!(check(&next), Ok(()));
            prop_assert!(next.epoch >= state.epoch);
            let live = |s: &ShardState| s.members.iter().filter(|m| !lost.contains(m)).count();
            if !matches!(event, ShardEvent::DataLost { .. }) {
                prop_assert!(live(&next) >= live(&state).min(next.target.len()), "{:?}: {:?} {:?}", event, state, next);
            }
            if next.members != state.members || next.joining != state.joining {
                prop_assert_eq!(next.epoch, state.epoch.next());
            } else {
                prop_assert_eq!(next.epoch, state.epoch);
            }
            state = next;
        }
    }
}
