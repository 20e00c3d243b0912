//! One shard on its way from what is to what is wanted.
//!
//! ```text
//!             Retarget            Verified               GraceElapsed
//!  (nothing) ─────────▶ joining ───────────▶ member ──▶ leaving ─────────▶ (nothing)
//!                          │                             ▲  │
//!                          └──── Retarget, JoinFailed ───┘  └── Retarget: joining again
//! ```
//!
//! # Invariants
//! * **The epoch rises whenever the write set (members and joiners) or the members change**, and only then. Writers of
//!   an older epoch are refused by every node that has seen the newer one; so a joiner that starts to copy from members
//!   *at its epoch* finds everything that writers before it wrote, and is sent everything written since.
//! * **A member leaves only when enough others are verified**: after it left, the members that are not lost are at
//!   least as many as the target asks for. Until then the shard holds more replicas than wanted, never fewer.
//! * A report counts only for the join (or leave) that it is about: both carry the epoch in which it began.
//! * Members are never empty.
//!
//! [`apply`] decides; the controller writes the result by compare-and-set and carries out the effects afterwards. Every
//! effect may be carried out twice or be lost with a controller: [`pending`] lists them anew from a state.
//!
//! No time is stored. A grace is measured by the controller's own monotonic clock from when it first saw the leaver, so
//! clocks that differ between nodes cannot shorten it; a new controller starts it again.

use std::collections::BTreeSet;

use holdfast_protocol::NodeId;
use holdfast_protocol::cluster::{Epoch, Joiner, Leaver, ShardState};

/// What happened to a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardEvent {
    /// The placement wants these nodes. Idempotent; repeated when a joiner failed or a lost node came back.
    Retarget {
        /// Whom it wants; not empty, no node twice.
        target: Vec<NodeId>,
    },
    /// A joiner has copied everything and compared it.
    Verified {
        /// Which node.
        node: NodeId,
        /// The join that it reports about.
        since: Epoch,
    },
    /// A joiner gave up. It is tried again with the next [`ShardEvent::Retarget`].
    JoinFailed {
        /// Which node.
        node: NodeId,
        /// The join that it reports about.
        since: Epoch,
    },
    /// Nobody can still be using a map that names this leaver.
    GraceElapsed {
        /// Which node.
        node: NodeId,
        /// The leave that this is about.
        since: Epoch,
    },
    /// The node is gone for longer than the configured delay. Joins on it end; as a member it stays until it is
    /// replaced, since it may come back with its data.
    NodeLost {
        /// Which node.
        node: NodeId,
    },
    /// The node lives, but what it held of this shard does not (a replaced disk).
    DataLost {
        /// Which node.
        node: NodeId,
    },
}

/// What is to be done once the new state is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardEffect {
    /// `node` copies the shard from `sources` and verifies it.
    StartCopy {
        /// The joiner.
        node: NodeId,
        /// To be repeated in the report.
        since: Epoch,
        /// Members that are not lost, unless all are.
        sources: Vec<NodeId>,
    },
    /// `node` stops copying.
    StopCopy {
        /// The former joiner.
        node: NodeId,
    },
    /// Wait, then send [`ShardEvent::GraceElapsed`].
    StartGrace {
        /// The leaver.
        node: NodeId,
        /// To be repeated in the event.
        since: Epoch,
    },
    /// `node` may delete its replica, each chunk after comparing it with the members' (promise D5).
    DropReplica {
        /// The former leaver.
        node: NodeId,
    },
    /// The last replica is said to be lost. The state is left as it is; somebody has to look.
    LastReplicaLost {
        /// The last member.
        node: NodeId,
    },
}

/// What an event leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The state to store. Equal to the one before when the event changes nothing.
    pub state: ShardState,
    /// To be done after that, in order.
    pub effects: Vec<ShardEffect>,
}

/// Applies one event. `lost` are the nodes that are gone for longer than the configured delay.
///
/// # Panics
/// When a [`ShardEvent::Retarget`] has an empty target.
pub fn apply(state: &ShardState, event: &ShardEvent, lost: &BTreeSet<NodeId>) -> Transition {
    let mut change = Change { state: state.clone(), effects: Vec::new(), next: state.epoch.next() };
    match event {
        ShardEvent::Retarget { target } => change.retarget(target, lost),
        ShardEvent::Verified { node, since } => change.verified(*node, *since),
        ShardEvent::JoinFailed { node, since } => change.end_joins(|j| j.node == *node && j.since == *since),
        ShardEvent::GraceElapsed { node, since } => change.grace_elapsed(*node, *since),
        ShardEvent::NodeLost { node } => change.node_lost(*node),
        ShardEvent::DataLost { node } => change.data_lost(*node, lost),
    }
    change.release_surplus(lost);
    let fence = state.members != change.state.members || !state.joining.iter().eq(&change.state.joining);
    if fence {
        change.state.epoch = change.next;
    }
    debug_assert_eq!(check(&change.state), Ok(()), "after {event:?} on {state:?}");
    Transition { state: change.state, effects: change.effects }
}

/// The effects that a controller that just took over carries out for a state it found.
pub fn pending(state: &ShardState, lost: &BTreeSet<NodeId>) -> Vec<ShardEffect> {
    let copies = state.joining.iter().map(|j| ShardEffect::StartCopy {
        node: j.node,
        since: j.since,
        sources: sources(state, lost),
    });
    let graces = state.leaving.iter().map(|l| ShardEffect::StartGrace { node: l.node, since: l.since });
    copies.chain(graces).collect()
}

/// Whether a stored state can be believed.
///
/// # Errors
/// What is wrong with it.
pub fn check(state: &ShardState) -> Result<(), String> {
    if state.members.is_empty() || state.target.is_empty() {
        return Err("a shard has at least one member and a target".into());
    }
    if state.epoch > Epoch::MAX {
        return Err(format!("epoch {} is past the last one, {}", state.epoch, Epoch::MAX));
    }
    let mut seen = BTreeSet::new();
    let joining = state.joining.iter().map(|j| (j.node, j.since));
    let leaving = state.leaving.iter().map(|l| (l.node, l.since));
    for (node, since) in state.members.iter().map(|n| (*n, Epoch(0))).chain(joining).chain(leaving) {
        if !seen.insert(node) {
            return Err(format!("node {node} has two roles"));
        }
        if since > state.epoch {
            return Err(format!("node {node} changed in epoch {since}, after the present epoch {}", state.epoch));
        }
    }
    let target: BTreeSet<_> = state.target.iter().collect();
    if target.len() != state.target.len() {
        return Err("a node is wanted twice".into());
    }
    Ok(())
}

fn sources(state: &ShardState, lost: &BTreeSet<NodeId>) -> Vec<NodeId> {
    let live: Vec<NodeId> = state.members.iter().copied().filter(|m| !lost.contains(m)).collect();
    if live.is_empty() { state.members.clone() } else { live }
}

struct Change {
    state: ShardState,
    effects: Vec<ShardEffect>,
    /// The epoch of whatever begins with this event.
    next: Epoch,
}

impl Change {
    fn retarget(&mut self, target: &[NodeId], lost: &BTreeSet<NodeId>) {
        assert!(!target.is_empty(), "a placement names at least one node a shard");
        self.state.target = target.to_vec();
        self.end_joins(|j| !target.contains(&j.node));
        let sources = sources(&self.state, lost);
        for &node in target {
            if self.state.is_member(node) || self.state.is_joining(node) || lost.contains(&node) {
                continue;
            }
            // A leaver missed writes since it left: it joins like anyone else, though it has little to copy.
            self.state.leaving.retain(|l| l.node != node);
            self.state.joining.push(Joiner { node, since: self.next });
            self.effects.push(ShardEffect::StartCopy { node, since: self.next, sources: sources.clone() });
        }
    }

    fn verified(&mut self, node: NodeId, since: Epoch) {
        let Some(place) = self.state.joining.iter().position(|j| j.node == node && j.since == since) else { return };
        self.state.joining.remove(place);
        self.state.members.push(node);
    }

    /// Joiners hold a part of the data: they leave like members do, so that somebody sees to its deletion.
    fn end_joins(&mut self, ends: impl Fn(&Joiner) -> bool) {
        let (ended, kept) = self.state.joining.iter().partition(|j| ends(j));
        self.state.joining = kept;
        let ended: Vec<Joiner> = ended;
        for joiner in ended {
            self.effects.push(ShardEffect::StopCopy { node: joiner.node });
            self.leave(joiner.node);
        }
    }

    fn leave(&mut self, node: NodeId) {
        self.state.leaving.push(Leaver { node, since: self.next });
        self.effects.push(ShardEffect::StartGrace { node, since: self.next });
    }

    fn grace_elapsed(&mut self, node: NodeId, since: Epoch) {
        let before = self.state.leaving.len();
        self.state.leaving.retain(|l| !(l.node == node && l.since == since));
        if self.state.leaving.len() < before {
            self.effects.push(ShardEffect::DropReplica { node });
        }
    }

    fn node_lost(&mut self, node: NodeId) {
        // If it comes back it finds itself named nowhere and sees to its leftovers by itself.
        self.state.joining.retain(|j| j.node != node);
        self.state.leaving.retain(|l| l.node != node);
    }

    fn data_lost(&mut self, node: NodeId, lost: &BTreeSet<NodeId>) {
        self.state.leaving.retain(|l| l.node != node);
        let member = self.state.members.iter().position(|m| *m == node);
        if let Some(place) = member {
            if self.state.members.len() == 1 {
                self.effects.push(ShardEffect::LastReplicaLost { node });
                return;
            }
            self.state.members.remove(place);
        }
        let joiner = self.state.is_joining(node);
        self.state.joining.retain(|j| j.node != node);
        // Not joined again when it is not wanted: its replacement, if one is needed, is on the way already.
        if (member.is_some() || joiner) && self.state.target.contains(&node) {
            self.state.joining.push(Joiner { node, since: self.next });
            let sources = sources(&self.state, lost);
            self.effects.push(ShardEffect::StartCopy { node, since: self.next, sources });
        }
    }

    /// Lets members go that are not wanted, as long as enough verified ones stay. Those that are lost go first.
    fn release_surplus(&mut self, lost: &BTreeSet<NodeId>) {
        loop {
            let live = self.state.members.iter().filter(|m| !lost.contains(m)).count();
            let wanted = self.state.target.len();
            let unwanted = |m: &NodeId| !self.state.target.contains(m);
            let gone = self.state.members.iter().position(|m| unwanted(m) && lost.contains(m) && live >= wanted);
            let spare = self.state.members.iter().position(|m| unwanted(m) && !lost.contains(m) && live > wanted);
            let Some(place) = gone.or(spare) else { return };
            let node = self.state.members.remove(place);
            if !lost.contains(&node) {
                self.leave(node);
            }
        }
    }
}

#[cfg(test)]
mod tests;
