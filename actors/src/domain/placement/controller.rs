//! What the controller remembers and decides, for all shards together.
//!
//! It is fed with what is seen (layout, who is here, stored shards, reports) and asked what is [due](Controller::due):
//! the shards to store anew, each with its next state. What was stored is fed back. It forgets nothing that a new
//! controller would not find again: absences and graces are measured from when it first saw them.
//!
//! # Moving a few shards at a time
//! The wanted placement of all shards is computed at once, but a shard's target is changed only when its turn comes
//! (`turns`): a joiner is sent every write, so too many at once would cost writers, and the copies of all would end
//! late instead of those of the most endangered early. A node is given at most [`Pace::joins_per_node_max`] joins; the
//! most endangered shards are asked first. As many again that last longer than [`turns::JOIN_OLD_MS`] are not counted:
//! what keeps some from being copied must not keep all of them. What waits is nowhere stored: it is the difference
//! between the placement and the targets.
//!
//! # Epochs in metadata
//! [`Controller::unraised`] lists what metadata has to be told. A controller that took over tells everything again. A
//! join is accepted as verified only when the shard's present epoch was told, since until then a write under an older
//! epoch may still be committed.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_protocol::cluster::{Epoch, Layout, ShardState};
use holdfast_protocol::{NodeId, ShardId};

use super::assign::Assignment;
use super::danger::{ShardHealth, health};
use super::shard::{ShardEffect, ShardEvent, apply};

mod turns;

/// How fast shards may change.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How long a node may be gone before it counts as lost.
    pub rebuild_delay_ms: u64,
    /// How long a leaver stays.
    pub leave_grace_ms: u64,
    /// How long a node that gave up a join gets none.
    pub join_retry_ms: u64,
    /// Joins on one node at once.
    pub joins_per_node_max: usize,
}

/// What a placement is computed from; see [`super::assign()`].
#[derive(Debug, Clone)]
pub struct PlacementProblem {
    /// The applied layout.
    pub layout: Layout,
    /// Nodes that get nothing.
    pub lost: BTreeSet<NodeId>,
    /// Present targets, by shard.
    pub current: Assignment,
}

/// Counts for those who watch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overview {
    /// Shards by health, with every absent node taken as not here. Shards that are not placed yet are left out.
    pub shards: BTreeMap<ShardHealth, u64>,
    /// Shards that are not placed yet.
    pub unplaced: u64,
    /// Joins under way.
    pub joining: u64,
    /// Replicas that leave.
    pub leaving: u64,
    /// Shards that are to move and wait for their turn.
    pub waiting: u64,
    /// Shards whose epoch metadata does not have yet.
    pub unraised: u64,
    /// Shards whose last replica says that it lost its data. Somebody has to look.
    pub last_replica_lost: BTreeSet<ShardId>,
}

#[derive(Debug, Clone)]
struct Known {
    state: ShardState,
    /// The highest epoch that metadata was told under this controller.
    raised: Option<Epoch>,
}

/// See the module's page.
#[derive(Debug)]
pub struct Controller {
    pace: Pace,
    layout: Option<Layout>,
    present: BTreeSet<NodeId>,
    absent_since_ms: BTreeMap<NodeId, u64>,
    lost: BTreeSet<NodeId>,
    shards: Vec<Option<Known>>,
    /// The placement that is worked towards, while one is known.
    wanted: Option<Assignment>,
    /// Whether the placement has to be computed anew.
    replan: bool,
    /// When a leaver's grace is over, with the leave that this is about.
    graces: BTreeMap<(ShardId, NodeId), (Epoch, u64)>,
    /// Joins, with when they were first seen.
    joins: BTreeMap<(NodeId, ShardId), (Epoch, u64)>,
    /// Until when a node gets no joins.
    refused_until_ms: BTreeMap<NodeId, u64>,
    reports: BTreeMap<ShardId, Vec<ShardEvent>>,
    last_replica_lost: BTreeSet<ShardId>,
    waiting: u64,
}

impl Controller {
    /// One that knows nothing of its `shard_count` shards yet.
    pub fn new(shard_count: u32, pace: Pace) -> Self {
        Self {
            pace,
            layout: None,
            present: BTreeSet::new(),
            absent_since_ms: BTreeMap::new(),
            lost: BTreeSet::new(),
            shards: vec![None; shard_count as usize],
            wanted: None,
            replan: false,
            graces: BTreeMap::new(),
            joins: BTreeMap::new(),
            refused_until_ms: BTreeMap::new(),
            reports: BTreeMap::new(),
            last_replica_lost: BTreeSet::new(),
            waiting: 0,
        }
    }

    /// The applied layout, as it is now.
    pub fn see_layout(&mut self, layout: &Layout) {
        if self.layout.as_ref() != Some(layout) {
            self.layout = Some(layout.clone());
            self.replan = true;
        }
    }

    /// Who is here at `now_ms` (monotonic). To be called before [`Self::due`] also when nothing changed, since time
    /// passes.
    pub fn see_present(&mut self, present: BTreeSet<NodeId>, now_ms: u64) {
        self.present = present;
        let mut expected: BTreeSet<NodeId> = self.layout.iter().flat_map(|l| l.nodes.keys().copied()).collect();
        for known in self.shards.iter().flatten() {
            expected.extend(known.state.write_set().chain(known.state.leaving.iter().map(|l| l.node)));
            expected.extend(&known.state.target);
        }
        self.absent_since_ms.retain(|node, _| expected.contains(node) && !self.present.contains(node));
        for node in expected.difference(&self.present) {
            self.absent_since_ms.entry(*node).or_insert(now_ms);
        }
        let gone = |since: u64| now_ms.saturating_sub(since) >= self.pace.rebuild_delay_ms;
        let lost = self.absent_since_ms.iter().filter(|(_, since)| gone(**since)).map(|(node, _)| *node).collect();
        if self.lost != lost {
            self.lost = lost;
            self.replan = true;
        }
        self.refused_until_ms.retain(|_, until| *until > now_ms);
    }

    /// A shard as it is stored, found or read again.
    pub fn see_shard(&mut self, shard: ShardId, state: &ShardState) {
        let Some(slot) = self.shards.get_mut(shard.index()) else { return };
        if slot.as_ref().is_none_or(|known| known.state.target != state.target) {
            self.replan = true;
        }
        self.stored(shard, state.clone());
    }

    /// A state of [`Self::due`] was stored.
    pub fn stored(&mut self, shard: ShardId, state: ShardState) {
        let Some(slot) = self.shards.get_mut(shard.index()) else { return };
        let raised = slot.take().and_then(|known| known.raised);
        *slot = Some(Known { state, raised });
    }

    /// A node says something about a shard.
    pub fn report(&mut self, shard: ShardId, event: ShardEvent) {
        let events = self.reports.entry(shard).or_default();
        if !events.contains(&event) {
            events.push(event);
        }
    }

    /// What a new placement is to be computed from, when one is needed.
    pub fn problem(&self) -> Option<PlacementProblem> {
        let layout = self.layout.as_ref().filter(|_| self.replan)?.clone();
        let current =
            self.shards.iter().map(|s| s.as_ref().map_or_else(Vec::new, |k| k.state.target.clone())).collect();
        Some(PlacementProblem { layout, lost: self.lost.clone(), current })
    }

    /// The placement that follows from the problem; `None` when there is none: everything stays as it is.
    pub fn planned(&mut self, wanted: Option<Assignment>) {
        self.wanted = wanted;
        self.replan = false;
    }

    /// Epochs that metadata has to be told.
    pub fn unraised(&self) -> Vec<(ShardId, Epoch)> {
        let known = self.shards.iter().enumerate().filter_map(|(i, known)| Some((ShardId(i as u32), known.as_ref()?)));
        known.filter(|(_, k)| k.raised < Some(k.state.epoch)).map(|(shard, k)| (shard, k.state.epoch)).collect()
    }

    /// Metadata was told.
    pub fn raised(&mut self, epochs: &[(ShardId, Epoch)]) {
        for (shard, epoch) in epochs {
            if let Some(known) = self.shards.get_mut(shard.index()).and_then(Option::as_mut) {
                known.raised = known.raised.max(Some(*epoch));
            }
        }
    }

    /// The shards to store now, with their next states. Reports are used up by it: those who made them repeat them.
    pub fn due(&mut self, now_ms: u64) -> Vec<(ShardId, ShardState)> {
        let mut changes = BTreeMap::new();
        let mut graces = BTreeMap::new();
        let mut reports = std::mem::take(&mut self.reports);
        for index in 0..self.shards.len() {
            let shard = ShardId(index as u32);
            let Some(known) = self.shards[index].clone() else {
                if let Some(nodes) = self.wanted.as_ref().and_then(|w| w.get(index)) {
                    changes.insert(shard, ShardState::founding(nodes.clone()));
                }
                continue;
            };
            // Each event is judged by the state that the one before it left: of two replicas that are said to be lost,
            // the second may be the last one that is here.
            let mut state = known.state.clone();
            for event in reports.remove(&shard).unwrap_or_default() {
                if self.counts(&state, known.raised, &event, now_ms) {
                    state = self.applied(shard, &state, &event);
                }
            }
            let moving = state.joining.iter().map(|j| j.node).chain(state.leaving.iter().map(|l| l.node));
            for node in moving.filter(|n| self.lost.contains(n)).collect::<Vec<_>>() {
                state = self.applied(shard, &state, &ShardEvent::NodeLost { node });
            }
            // A leave that began just now is timed from the next pass on, when it is stored.
            for leaver in &known.state.leaving {
                let fresh = (leaver.since, now_ms + self.pace.leave_grace_ms);
                let timer = self.graces.get(&(shard, leaver.node)).filter(|t| t.0 == leaver.since).copied();
                let timer = timer.unwrap_or(fresh);
                graces.insert((shard, leaver.node), timer);
                if timer.1 <= now_ms {
                    let event = ShardEvent::GraceElapsed { node: leaver.node, since: leaver.since };
                    state = self.applied(shard, &state, &event);
                }
            }
            if state != known.state {
                changes.insert(shard, state);
            }
        }
        self.graces = graces;
        self.see_joins(now_ms);
        self.retarget(&mut changes, now_ms);
        changes.into_iter().collect()
    }

    fn applied(&mut self, shard: ShardId, state: &ShardState, event: &ShardEvent) -> ShardState {
        let transition = apply(state, event, &self.lost);
        if transition.effects.iter().any(|e| matches!(e, ShardEffect::LastReplicaLost { .. })) {
            self.last_replica_lost.insert(shard);
        }
        transition.state
    }

    /// Whether a report counts for a shard that is in `state`, and of whose epochs metadata was told `raised`.
    fn counts(&mut self, state: &ShardState, raised: Option<Epoch>, event: &ShardEvent, now_ms: u64) -> bool {
        let joins = |node: &NodeId, since: &Epoch| state.joining.iter().any(|j| j.node == *node && j.since == *since);
        match event {
            // After another change in this pass the epoch is not told yet: whoever reports repeats it.
            ShardEvent::Verified { node, since } => {
                joins(node, since) && raised >= Some(state.epoch) && self.present.contains(node)
            }
            ShardEvent::JoinFailed { node, since } => {
                let counts = joins(node, since);
                if counts {
                    self.refused_until_ms.insert(*node, now_ms + self.pace.join_retry_ms);
                }
                counts
            }
            // A joiner compares everything anyway. A member with a part of the data is better than none that is here.
            ShardEvent::DataLost { node } => {
                let mut others = state.members.iter().filter(|member| *member != node);
                let left = others.any(|member| self.present.contains(member));
                state.is_member(*node) && (left || state.members.len() == 1)
            }
            ShardEvent::Retarget { .. } | ShardEvent::GraceElapsed { .. } | ShardEvent::NodeLost { .. } => false,
        }
    }

    /// When something is due though nothing is seen until then.
    pub fn wakes_at_ms(&self) -> Option<u64> {
        let delays = self.absent_since_ms.iter().filter(|(node, _)| !self.lost.contains(node));
        let delays = delays.map(|(_, since)| since + self.pace.rebuild_delay_ms);
        let graces = self.graces.values().map(|(_, due)| *due);
        delays.chain(graces).chain(self.refused_until_ms.values().copied()).min()
    }

    /// Nodes that should be here and are not.
    pub fn absent(&self) -> BTreeSet<NodeId> {
        self.absent_since_ms.keys().copied().collect()
    }

    /// Of them those that are replaced.
    pub fn lost(&self) -> &BTreeSet<NodeId> {
        &self.lost
    }

    /// Counts for those who watch.
    pub fn overview(&self) -> Overview {
        let absent = self.absent();
        let mut overview = Overview { waiting: self.waiting, ..Overview::default() };
        for (index, known) in self.shards.iter().enumerate() {
            let Some(known) = known else {
                overview.unplaced += 1;
                continue;
            };
            *overview.shards.entry(health(&known.state, &absent)).or_default() += 1;
            overview.joining += known.state.joining.len() as u64;
            overview.leaving += known.state.leaving.len() as u64;
            overview.unraised += u64::from(known.raised < Some(known.state.epoch));
            let shard = ShardId(index as u32);
            if self.last_replica_lost.contains(&shard) && known.state.members.len() == 1 {
                overview.last_replica_lost.insert(shard);
            }
        }
        overview
    }
}
