//! The actors that move and heal shards, and how front ends reach them.
//!
//! ```text
//! LoopsSupervisor ── BackgroundLoop ×6
//! ```
//!
//! Each [`LoopKind`] is one loop of [`crate::flow::shards`] that an actor runs as its tracked task. The loops wait for
//! the coordination service, metadata and peers all the time, which a handler must not do, and decide by the pure
//! functions of [`crate::domain::placement`]; the actors make them die and start again one by one.
//!
//! **Restart rule.** As that of [`super::supervisor`], by [`super::loops`]: one for one after a pause, and too many
//! restarts within a window publish a reason in [`ClusterHandle::failed`]; so does a registration that is refused for
//! good. A loop that is started again finds what it needs in the coordination service, in metadata and on the disks.
//! Commands and status are in [`ClusterShared`], which no restart touches.
//!
//! **Mailboxes** hold one end of a task each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use holdfast_protocol::cluster::{Epoch, ShardState};
use holdfast_protocol::{NodeId, ShardId};
use ractor::SpawnErr;

pub use self::kinds::LoopKind;
use super::loops::{self, LoopsHandle, TooOften};
use crate::domain::placement::danger::{ShardHealth, health};
use crate::domain::restarts::RestartBudget;
use crate::flow::self_report::Proven;
pub use crate::flow::shards::{
    ByteBudget, ClusterParts, ClusterSettings, ClusterShared, ComparisonReport, ComparisonStatus, Context,
    ControllerStatus, CopyPhase, CopyProgress, Findings, MembershipStatus, RebuildStatus, RepairStatus, ReportInbox,
};
use crate::ports::coordination::NodeState;

mod kinds;

/// Nodes asked at once for what they have proven.
const ASKED_AT_ONCE: usize = 32;
/// How long one of them may take.
const ASK_MAX: Duration = Duration::from_secs(2);
/// Why a shard is not proven whose comparer has not heard of it yet, or is too old to know what it means.
const SHORT: &str = "a disk of a member failed, and what it held is not rebuilt";

/// The front ends' way to the actors. Cheap to clone.
#[derive(Clone)]
pub struct ClusterHandle {
    context: Context,
    loops: Arc<LoopsHandle>,
}

/// Starts the actors. The node is registered a moment later: see [`ClusterHandle::registered`].
///
/// # Errors
/// When an actor cannot be started.
pub async fn start(parts: ClusterParts) -> Result<ClusterHandle, SpawnErr> {
    let context = Context::new(parts);
    let specs = LoopKind::ALL.map(|kind| kind.spec(context.clone())).into();
    let window_ms = context.parts.restart_window.as_millis() as u64;
    let shared = context.shared.clone();
    let budget = RestartBudget::new(context.parts.restarts_max, window_ms);
    let loops = loops::start(specs, TooOften::Fail(budget, Arc::new(move |why| shared.fail(why)))).await?;
    Ok(ClusterHandle { context, loops: Arc::new(loops) })
}

impl ClusterHandle {
    /// Waits until this node is registered.
    ///
    /// # Errors
    /// Why it never will be.
    pub async fn registered(&self) -> Result<(), String> {
        let mut membership = self.context.shared.membership.subscribe();
        tokio::select! {
            biased;
            done = membership.wait_for(|m| m.registered) => done.map(drop).map_err(|_| "the actors are gone".into()),
            reason = self.failed() => Err(reason),
        }
    }

    /// Resolves when this node must stop, with the reason.
    pub async fn failed(&self) -> String {
        let mut failed = self.context.shared.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "the supervisor is gone".into(),
        }
    }

    /// Changes what this node says it is doing.
    pub fn set_state(&self, state: NodeState) {
        self.context.shared.state.send_replace(state);
    }

    /// Registration.
    pub fn membership(&self) -> MembershipStatus {
        self.context.shared.membership.borrow().clone()
    }

    /// What the controller does; `None` when another node is it, or nobody.
    pub fn controller(&self) -> Option<ControllerStatus> {
        self.context.shared.controller.borrow().clone()
    }

    /// Whether this node is the controller.
    pub fn is_controller(&self) -> bool {
        self.context.shared.controller.borrow().is_some()
    }

    /// This node's joins.
    pub fn rebuild(&self) -> RebuildStatus {
        self.context.shared.rebuild.lock().clone()
    }

    /// This node's repairs.
    pub fn repairs(&self) -> RepairStatus {
        let mut status = self.context.shared.repair.lock().clone();
        status.paused = self.context.repairs_paused();
        status
    }

    /// Comparisons of the shards of which this node is the first live member.
    pub fn comparison(&self) -> ComparisonStatus {
        self.context.shared.comparison.lock().clone()
    }

    /// The condition of a shard, with every node that is not alive, or has no disk that works, taken as absent.
    /// [`ShardHealth::Healthy`] says that the wanted members are there and nothing moves; that they hold the same is
    /// said by [`Self::comparison`] of the first live member ([`Self::comparer`]) together with an empty backlog of
    /// repairs.
    pub fn health(&self, state: &ShardState) -> ShardHealth {
        health(state, &self.absent(state))
    }

    /// The node whose comparisons cover a shard.
    pub fn comparer(&self, state: &ShardState) -> Option<NodeId> {
        state.members.iter().copied().find(|member| self.context.parts.view.is_alive(*member))
    }

    /// Shards of which this node is the comparer, healthy and proven by their last comparison; the others with why not.
    /// Backlogs of repairs are for the caller to add.
    pub fn verified(&self) -> BTreeMap<ShardId, Result<(), String>> {
        let shards = self.context.parts.view.shards().borrow().clone();
        let compared = self.context.shared.comparison.lock();
        let mine = shards.shards.iter().filter(|(_, s)| self.comparer(&s.value) == Some(self.context.me()));
        mine.map(|(shard, state)| {
            let health = self.health(&state.value);
            let verdict = match compared.shards.get(shard) {
                _ if health != ShardHealth::Healthy => Err(health.as_str().to_owned()),
                _ if self.is_short(&state.value) => Err(SHORT.to_owned()),
                Some(report) if report.proves(state.value.epoch) => Ok(()),
                Some(report) if report.differences > 0 => Err(format!("{} differences", report.differences)),
                _ => Err("not compared since its members changed".into()),
            };
            (*shard, verdict)
        })
        .collect()
    }

    /// Every placed shard, healthy and proven by the last comparison of its comparer, whichever node that is; the
    /// others with why not. Asks each comparer once, all at the same time, for a bounded time. Backlogs of repairs are
    /// for the caller to add.
    pub async fn verified_everywhere(&self) -> BTreeMap<ShardId, Result<(), String>> {
        let view = &self.context.parts.view;
        let map = view.shards().borrow().clone();
        let comparers: BTreeSet<NodeId> = map.shards.values().filter_map(|state| self.comparer(&state.value)).collect();
        let asked = stream::iter(comparers).map(|node| async move {
            if node == view.me() {
                return (node, Ok(self.context.parts.self_report.proven()));
            }
            let health = tokio::time::timeout(ASK_MAX, self.context.parts.peers.health(node)).await;
            let proven = match health {
                Ok(Ok(health)) => Ok(Proven { shards: health.proven.into_iter().collect(), lives: health.lives }),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("node {node} did not answer in time")),
            };
            (node, proven)
        });
        let proven: BTreeMap<NodeId, Result<Proven, String>> = asked.buffer_unordered(ASKED_AT_ONCE).collect().await;
        let lives = view.membership().borrow().lives();
        let verdict = |shard: &ShardId, state: &ShardState| {
            let health = self.health(state);
            if health != ShardHealth::Healthy {
                return Err(health.as_str().to_owned());
            }
            if self.is_short(state) {
                return Err(SHORT.to_owned());
            }
            let said = self.comparer(state).and_then(|comparer| proven.get(&comparer));
            proves(said, *shard, state.epoch, lives)
        };
        map.shards.iter().map(|(shard, state)| (*shard, verdict(shard, &state.value))).collect()
    }

    /// Compares every shard of which this node is the first live member, now.
    pub fn start_comparison(&self) {
        self.context.shared.comparison.lock().running = true;
        self.context.shared.comparison_wanted.send_modify(|wanted| *wanted += 1);
    }

    /// Stops this node's repairs after those at hand, until the process ends, for tests. Joins go on. The operator
    /// pauses those of all nodes, by [`set_repair_pause`](crate::ports::coordination::set_repair_pause).
    pub fn pause_repairs(&self) {
        self.context.shared.repairs_held.send_replace(true);
    }

    /// Goes on with them, at once.
    pub fn resume_repairs(&self) {
        self.context.shared.repairs_held.send_replace(false);
        self.wake_repairs();
    }

    /// Looks for repairs now: some were queued for this node.
    pub fn wake_repairs(&self) {
        self.context.shared.repairs_queued.notify_one();
    }

    /// Bytes a second for joins and repairs, to be read and changed.
    pub fn budget(&self) -> &ByteBudget {
        &self.context.budget
    }

    /// Stops the actors, waiting at most `deadline`; then they are killed. The session is the assembly's to close.
    pub async fn stop(&self, deadline: Duration) {
        self.loops.stop(deadline).await;
    }

    /// Kills an actor as a bug in it would, for tests of supervision.
    pub fn kill_actor(&self, kind: LoopKind) -> bool {
        self.loops.kill_actor(kind.as_str())
    }

    /// Identity of the current actor of a kind; changes with every restart.
    pub fn actor_id(&self, kind: LoopKind) -> Option<String> {
        self.loops.actor_id(kind.as_str())
    }

    /// Whether a member has chunks on a disk that failed and nowhere else, as far as it said.
    fn is_short(&self, state: &ShardState) -> bool {
        state.members.iter().any(|member| self.context.parts.view.is_short(*member))
    }

    fn absent(&self, state: &ShardState) -> BTreeSet<NodeId> {
        let all = state.members.iter().chain(&state.target);
        all.copied().filter(|node| !self.context.parts.view.holds_data(*node)).collect()
    }
}

/// Whether it is proven that the members of a shard hold the same, by what its comparer said, to a node that knows
/// these `lives` of nodes. One that knows others may not have heard yet that a member came back.
fn proves(said: Option<&Result<Proven, String>>, shard: ShardId, epoch: Epoch, lives: u64) -> Result<(), String> {
    match said {
        Some(Ok(proven)) if proven.lives.is_some_and(|known| known != lives) => {
            Err("who is here changed just now, and the node that compares it has yet to look at that".into())
        }
        Some(Ok(proven)) if proven.shards.get(&shard) == Some(&epoch) => Ok(()),
        Some(Ok(_)) => Err("its members are not proven to hold the same".into()),
        Some(Err(error)) => Err(format!("the node that compares it cannot be asked: {error}")),
        None => Err("who compares it changed just now".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_proven_before_a_member_came_back_proves_nothing() {
        let (shard, epoch) = (ShardId(3), Epoch(7));
        let said = |lives| Ok(Proven { shards: [(shard, epoch)].into(), lives });
        assert_eq!(proves(Some(&said(Some(1))), shard, epoch, 1), Ok(()));
        assert!(proves(Some(&said(Some(1))), shard, epoch, 2).is_err(), "it knows nothing of who came back");
        assert_eq!(proves(Some(&said(None)), shard, epoch, 2), Ok(()), "a node of an older version");
        assert!(proves(Some(&said(Some(1))), shard, Epoch(8), 1).is_err());
        assert!(proves(Some(&said(Some(1))), ShardId(4), epoch, 1).is_err());
        assert!(proves(Some(&Err("gone".into())), shard, epoch, 1).unwrap_err().contains("gone"));
        assert!(proves(None, shard, epoch, 1).is_err());
    }
}
