//! The controller's decisions over many shards, against nodes that do what the stored states tell them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use holdfast_protocol::cluster::{Layout, LayoutNode, ShardState};
use holdfast_protocol::{NodeId, ShardId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::assign;
use super::controller::{Controller, Pace};
use super::danger::ShardHealth;
use super::shard::ShardEvent;

const PACE: Pace = Pace { rebuild_delay_ms: 1_000, leave_grace_ms: 100, join_retry_ms: 500, joins_per_node_max: 3 };

fn n(i: u64) -> NodeId {
    NodeId::from(i)
}

fn layout(nodes: impl IntoIterator<Item = u64>) -> Layout {
    let entry = |i: u64| (n(i), LayoutNode { zone: format!("z{}", i % 3), weight: 1, draining: false });
    Layout { replication_factor: 3, nodes: nodes.into_iter().map(entry).collect() }
}

struct World {
    controller: Controller,
    stored: BTreeMap<ShardId, ShardState>,
    present: BTreeSet<NodeId>,
    layout: Layout,
    shard_count: u32,
    now_ms: u64,
    writes: usize,
    /// Replicas are said to be lost: those are joined again at once, however many they are.
    lossy: bool,
}

impl World {
    fn new(shard_count: u32, nodes: u64) -> Self {
        Self {
            controller: Controller::new(shard_count, PACE),
            stored: BTreeMap::new(),
            present: (1..=nodes).map(n).collect(),
            layout: layout(1..=nodes),
            shard_count,
            now_ms: 0,
            writes: 0,
            lossy: false,
        }
    }

    /// Another node takes over: all it knows is what is stored.
    fn take_over(&mut self) {
        self.controller = Controller::new(self.shard_count, PACE);
        for (shard, state) in &self.stored {
            self.controller.see_shard(*shard, state);
        }
    }

    fn pass(&mut self) -> usize {
        self.controller.see_layout(&self.layout);
        self.controller.see_present(self.present.clone(), self.now_ms);
        if let Some(problem) = self.controller.problem() {
            self.controller.planned(assign(&problem.layout, &problem.lost, &problem.current).ok());
        }
        let due = self.controller.due(self.now_ms);
        let changed = due.len();
        self.writes += changed;
        for (shard, state) in due {
            assert_ne!(self.stored.get(&shard), Some(&state), "unchanged shards are not written");
            self.stored.insert(shard, state.clone());
            self.controller.stored(shard, state);
        }
        let unraised = self.controller.unraised();
        self.controller.raised(&unraised);
        changed
    }

    /// Every joiner that is here ends its copy.
    fn copy(&mut self) {
        for (shard, state) in &self.stored {
            for joiner in state.joining.iter().filter(|j| self.present.contains(&j.node)) {
                self.controller.report(*shard, ShardEvent::Verified { node: joiner.node, since: joiner.since });
            }
        }
    }

    fn joins_max(&self) -> usize {
        let mut joins: BTreeMap<NodeId, usize> = BTreeMap::new();
        for joiner in self.stored.values().flat_map(|s| &s.joining) {
            *joins.entry(joiner.node).or_default() += 1;
        }
        joins.values().copied().max().unwrap_or(0)
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.now_ms += 50;
            self.copy();
            let changed = self.pass();
            assert!(self.lossy || self.joins_max() <= PACE.joins_per_node_max, "no node joins more than it may");
            let overview = self.controller.overview();
            let done = overview.waiting == 0 && overview.joining == 0 && overview.leaving == 0;
            if changed == 0 && done && self.controller.absent() == *self.controller.lost() {
                return;
            }
        }
        panic!("it does not settle: {:?}", self.controller.overview());
    }

    fn holders(&self, node: NodeId) -> usize {
        self.stored.values().filter(|s| s.is_member(node)).count()
    }
}

#[test]
fn a_layout_places_every_shard_once_and_nothing_is_written_again() {
    let mut world = World::new(64, 4);
    assert_eq!(world.pass(), 64);
    assert_eq!(world.pass(), 0);
    world.take_over();
    assert_eq!(world.controller.unraised().len(), 64, "a new controller tells metadata everything again");
    assert_eq!(world.pass(), 0);
    assert_eq!(world.controller.overview().shards, BTreeMap::from([(ShardHealth::Healthy, 64)]));
}

#[test]
fn a_node_that_comes_back_in_time_moves_nothing() {
    let mut world = World::new(64, 4);
    world.pass();
    world.present.remove(&n(4));
    world.now_ms += 999;
    // It is absent from when it was first seen to be.
    assert_eq!(world.pass(), 0);
    world.now_ms += 999;
    assert_eq!(world.pass(), 0);
    world.present.insert(n(4));
    world.now_ms += 5_000;
    assert_eq!(world.pass(), 0);
}

#[test]
fn a_lost_node_is_replaced_a_few_shards_at_a_time_and_the_most_endangered_first() {
    let mut world = World::new(64, 6);
    world.pass();
    let held: BTreeSet<ShardId> =
        world.stored.iter().filter(|(_, s)| s.is_member(n(6)) && s.is_member(n(5))).map(|(s, _)| *s).collect();
    world.present.remove(&n(5));
    world.present.remove(&n(6));
    world.pass();
    world.now_ms += 1_000;
    world.pass();
    assert_eq!(world.joins_max(), 3);
    assert!(world.controller.overview().waiting > 0);
    let joining: BTreeSet<ShardId> =
        world.stored.iter().filter(|(_, s)| !s.joining.is_empty()).map(|(s, _)| *s).collect();
    let endangered = joining.iter().filter(|s| held.contains(s)).count();
    assert_eq!(endangered, held.len().min(joining.len()), "{joining:?} are joining, {held:?} have one replica left");
    world.settle();
    assert_eq!(world.holders(n(6)), 0);
    assert!(world.stored.values().all(|s| s.members.len() == 3));
}

#[test]
fn a_drained_node_ends_with_nothing_and_the_others_with_their_replicas() {
    let mut world = World::new(64, 5);
    world.pass();
    world.layout.nodes.get_mut(&n(2)).unwrap().draining = true;
    let mut least = usize::MAX;
    for _ in 0..1_000 {
        world.now_ms += 50;
        world.copy();
        world.pass();
        least = least.min(world.stored.values().map(|s| s.members.len()).min().unwrap());
    }
    assert_eq!(world.holders(n(2)), 0);
    assert_eq!(least, 3, "no shard ever had fewer members than wanted");
    assert_eq!(world.controller.overview().shards, BTreeMap::from([(ShardHealth::Healthy, 64)]));
}

#[test]
fn a_join_counts_only_once_metadata_knows_the_epoch() {
    let mut world = World::new(1, 3);
    world.pass();
    world.layout = layout([1, 2, 4]);
    world.present.insert(n(4));
    world.controller.see_layout(&world.layout);
    world.controller.see_present(world.present.clone(), 0);
    let problem = world.controller.problem().unwrap();
    world.controller.planned(assign(&problem.layout, &problem.lost, &problem.current).ok());
    let due = world.controller.due(0);
    let (shard, state) = due[0].clone();
    world.controller.stored(shard, state.clone());
    let joiner = state.joining[0];
    let verified = ShardEvent::Verified { node: joiner.node, since: joiner.since };
    world.controller.report(shard, verified.clone());
    assert!(world.controller.due(0).is_empty(), "metadata does not refuse older epochs yet");
    world.controller.raised(&[(shard, state.epoch)]);
    assert!(world.controller.due(0).is_empty(), "the report was used up");
    world.controller.report(shard, verified);
    assert_eq!(world.controller.due(0).len(), 1);
}

#[test]
fn a_node_that_gave_up_a_join_is_left_alone_for_a_while() {
    let mut world = World::new(8, 3);
    world.pass();
    world.layout = layout([1, 2, 3, 4]);
    world.present.insert(n(4));
    world.pass();
    let (shard, joiner) = world.stored.iter().find_map(|(s, st)| Some((*s, *st.joining.first()?))).unwrap();
    world.controller.report(shard, ShardEvent::JoinFailed { node: joiner.node, since: joiner.since });
    world.pass();
    assert!(world.stored[&shard].joining.is_empty());
    assert!(world.controller.overview().waiting > 0);
    world.now_ms += 499;
    world.pass();
    assert!(world.stored[&shard].joining.is_empty());
    world.now_ms += 1;
    world.pass();
    assert!(!world.stored[&shard].joining.is_empty());
}

#[test]
fn joins_that_do_not_end_keep_others_waiting_only_for_a_while() {
    let mut world = World::new(64, 4);
    world.pass();
    world.present.insert(n(5));
    world.layout = layout(1..=5);
    world.pass();
    let max = PACE.joins_per_node_max;
    assert_eq!(world.joins_max(), max);
    world.now_ms += 60_000;
    world.pass();
    assert_eq!(world.joins_max(), max, "they may be slow");
    world.now_ms += 600_000;
    world.pass();
    assert_eq!(world.joins_max(), 2 * max, "they may never end");
    world.now_ms += 600_000;
    world.pass();
    assert_eq!(world.joins_max(), 2 * max, "no more than as many again");
}

#[test]
fn data_said_to_be_lost_is_joined_again_once_and_a_last_replica_is_told_of() {
    let mut world = World::new(1, 3);
    world.pass();
    let node = world.stored[&ShardId(0)].members[0];
    for _ in 0..3 {
        world.controller.report(ShardId(0), ShardEvent::DataLost { node });
        world.pass();
    }
    let state = world.stored[&ShardId(0)].clone();
    assert!(state.is_joining(node) && state.members.len() == 2);
    assert_eq!(world.writes, 2, "a repeated report changes nothing");
    let mut alone = World::new(1, 1);
    alone.layout.replication_factor = 1;
    alone.pass();
    alone.controller.report(ShardId(0), ShardEvent::DataLost { node: n(1) });
    assert_eq!(alone.pass(), 0);
    assert_eq!(alone.controller.overview().last_replica_lost, BTreeSet::from([ShardId(0)]));
}

#[test]
fn the_last_replica_that_is_here_is_not_given_up_with_the_others() {
    let mut world = World::new(1, 3);
    world.pass();
    let members = world.stored[&ShardId(0)].members.clone();
    // One is away, the two others report in one pass: the second is the last one that is here.
    world.present.remove(&members[2]);
    for node in &members[..2] {
        world.controller.report(ShardId(0), ShardEvent::DataLost { node: *node });
    }
    world.pass();
    let state = world.stored[&ShardId(0)].clone();
    assert_eq!(state.members, members[1..], "what is left of it is better than a replica that is not here");
    assert!(state.is_joining(members[0]));
    // All at once: the last one stays, and is told of.
    let mut world = World::new(1, 3);
    world.pass();
    let members = world.stored[&ShardId(0)].members.clone();
    for node in &members {
        world.controller.report(ShardId(0), ShardEvent::DataLost { node: *node });
    }
    world.pass();
    let state = &world.stored[&ShardId(0)];
    assert_eq!(state.members, members[2..]);
    assert_eq!(state.target_quorum(), 2, "it takes no write alone");
    assert_eq!(world.controller.overview().last_replica_lost, BTreeSet::from([ShardId(0)]));
}

#[test]
fn a_second_join_counts_only_once_metadata_knows_of_the_first() {
    let mut world = World::new(1, 5);
    world.layout = layout([1, 2, 3]);
    world.pass();
    world.layout = layout([1, 2, 3, 4, 5]);
    world.layout.replication_factor = 5;
    world.pass();
    assert_eq!(world.stored[&ShardId(0)].joining.len(), 2);
    world.copy();
    world.pass();
    assert_eq!(world.stored[&ShardId(0)].members.len(), 4, "the epoch of the first was not raised yet");
    world.copy();
    world.pass();
    assert_eq!(world.stored[&ShardId(0)].members.len(), 5);
}

#[test]
fn a_hundred_nodes_and_4096_shards_cost_little() {
    let mut world = World::new(4_096, 100);
    world.pass();
    world.present.remove(&n(7));
    world.pass();
    world.now_ms += 1_000;
    let begun = Instant::now();
    world.pass();
    println!("loss of a node decided in {:?}", begun.elapsed());
    let before = world.writes;
    let begun = Instant::now();
    assert!(world.controller.due(world.now_ms).is_empty());
    println!("an idle pass in {:?}", begun.elapsed());
    world.settle();
    let moved = world.writes - before;
    // 123 replicas: a join, a verification each. Nobody leaves, as the only unwanted holder is gone.
    assert!(moved <= 2 * 4_096 * 3 / 100 + 10, "{moved} writes");
}

/// Nodes come, go, are drained and weighed anew, controllers die; in the end every shard is where it is wanted.
#[test]
fn whatever_happens_shards_end_where_they_are_wanted() {
    let seeds = match std::env::var("HOLDFAST_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("HOLDFAST_TEST_SEED is a number")],
        Err(_) => (0..40_u64).collect(),
    };
    for seed in seeds {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new(32, 6);
        world.lossy = true;
        for _ in 0..200 {
            world.now_ms += rng.random_range(0..300);
            let node = n(rng.random_range(1..=8));
            match rng.random_range(0..12) {
                0 if world.present.len() > 4 => drop(world.present.remove(&node)),
                1..=3 => drop(world.present.insert(node)),
                4 => world.take_over(),
                5 => {
                    if let Some(entry) = world.layout.nodes.get_mut(&node) {
                        entry.draining = !entry.draining;
                    }
                }
                6 => {
                    let weight = rng.random_range(1..5);
                    let entry = LayoutNode { zone: format!("z{}", rng.random_range(0..3)), weight, draining: false };
                    world.layout.nodes.insert(node, entry);
                }
                7 => world.copy(),
                8 => {
                    let shard = ShardId(rng.random_range(0..32));
                    world.controller.report(shard, ShardEvent::DataLost { node });
                }
                _ => drop(world.pass()),
            }
        }
        world.present = (1..=8).map(n).collect();
        world.layout.nodes.values_mut().for_each(|e| e.draining = false);
        world.settle();
        let overview = world.controller.overview();
        assert_eq!(overview.shards, BTreeMap::from([(ShardHealth::Healthy, 32)]), "seed {seed}");
    }
}
