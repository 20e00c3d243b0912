//! What is found out of the other nodes and of the layout, beyond what the shard map and the membership say.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use holdfast_actors::domain::placement::assign;
use holdfast_actors::ports::coordination::ShardMap;
use holdfast_actors::ports::peers::PeerHealth;
use holdfast_protocol::admin::{NodeInfo, Reason};
use holdfast_protocol::{NodeId, ShardId};
use parking_lot::Mutex;

use super::ClusterAdmin;

/// How long a peer is given to answer.
const PEER_PATIENCE: Duration = Duration::from_secs(2);

/// How old an answer about the other nodes may be.
const OTHERS_KEPT: Duration = Duration::from_secs(1);

/// Peers that are asked at once.
const PEERS_AT_ONCE: usize = 64;

/// What the other nodes were like at a moment.
pub type KnownOthers = tokio::sync::Mutex<Option<(Instant, Others)>>;

/// What the other nodes are like, as far as it matters to whoever would stop this one.
#[derive(Debug, Clone, Default)]
pub struct Others {
    /// Nodes that are registered and take no writes: they do not answer, cannot prove their membership, or have no disk
    /// that does.
    pub silent: BTreeSet<NodeId>,
    /// Shards of this node of which no comparison has proven that the other members hold the same.
    pub unproven: Vec<ShardId>,
}

/// For which version of the layout, which shard map and without which nodes something was found out, and what.
pub type Settled = Mutex<Option<(u64, Arc<ShardMap>, BTreeSet<NodeId>, bool)>>;

impl ClusterAdmin {
    /// Whether the shards are to be where the layout in force wants them. Right after it was applied they are not: the
    /// controller has yet to hear of it.
    pub(super) async fn is_taken_up(&self) -> bool {
        let Some(document) = self.coordination.watch_layout().borrow().clone() else { return false };
        let (version, map, replaced) = (document.value.version, self.shards(), self.replaced());
        if let Some((known, of, without, answer)) = &*self.settled.lock()
            && *known == version
            && Arc::ptr_eq(of, &map)
            && *without == replaced
        {
            return *answer;
        }
        let targets: Vec<Vec<NodeId>> = map.shards.values().map(|state| state.value.target.clone()).collect();
        let layout = document.value.applied.clone();
        let without = replaced.clone();
        // What meets the layout already is what the least movement leaves as it is.
        let planned = tokio::task::spawn_blocking(move || {
            assign(&layout, &without, &targets).is_ok_and(|wanted| wanted == targets)
        });
        let answer = planned.await.unwrap_or(false);
        *self.settled.lock() = Some((version, map, replaced, answer));
        answer
    }

    /// Nodes of the layout that are not here, or have no disk that works, and whose shards have other nodes by now: the
    /// controller takes them for lost. Only it keeps count of the delay; the map shows to every node what came of that.
    fn replaced(&self) -> BTreeSet<NodeId> {
        let Some(document) = self.coordination.watch_layout().borrow().clone() else { return BTreeSet::new() };
        let map = self.shards();
        let wanted: BTreeSet<NodeId> =
            map.shards.values().flat_map(|state| state.value.target.iter().copied()).collect();
        let nodes = document.value.applied.nodes.keys().copied();
        nodes.filter(|node| !wanted.contains(node) && !self.view.holds_data(*node)).collect()
    }

    /// Nodes that are registered and do not answer this node, with why not: the coordination service takes the length
    /// of a session to notice that a process is gone.
    pub(super) async fn silent(&self) -> Vec<(NodeId, String)> {
        let answers = self.answers().await.into_iter();
        answers.filter_map(|(node, answer)| Some((node, answer.err()?))).collect()
    }

    /// What the registered nodes say of themselves, or why they do not.
    async fn answers(&self) -> Vec<(NodeId, Result<PeerHealth, String>)> {
        let me = self.me();
        let others =
            self.view.membership().borrow().nodes.keys().copied().filter(|node| *node != me).collect::<Vec<_>>();
        let asked = stream::iter(others).map(|node| async move {
            let answer = match tokio::time::timeout(PEER_PATIENCE, self.peers.health(node)).await {
                Ok(answer) => answer.map_err(|error| error.to_string()),
                Err(_) => Err(format!("no answer within {} s", PEER_PATIENCE.as_secs())),
            };
            (node, answer)
        });
        asked.buffer_unordered(PEERS_AT_ONCE).collect().await
    }

    /// The nodes of the layout that are not here, each with what becomes of what it held.
    pub(super) fn absent(&self, nodes: &[NodeInfo]) -> Vec<Reason> {
        let replaced: BTreeSet<String> = self.replaced().iter().map(ToString::to_string).collect();
        let absent = nodes.iter().filter(|node| node.in_layout && node.state == "absent");
        let message = |node: &NodeInfo| match (node.draining, replaced.contains(&node.id)) {
            (false, false) => format!(
                "not here: {}. What it held is rebuilt on other nodes after cluster.rebuild_delay, if there are enough",
                node.id
            ),
            (false, true) => format!(
                "not here: {0}. Its shards have other nodes; if it will never come back, run `holdfast node remove {0} --force`",
                node.id
            ),
            (true, _) => format!("not here: {}, which is being drained", node.id),
        };
        absent.map(|node| Reason { code: "absent".into(), message: message(node) }).collect()
    }

    /// The live nodes of which disks failed or no disk answers, each with what becomes of what was on them.
    pub(super) fn short(&self) -> Vec<Reason> {
        let membership = self.view.membership().borrow().clone();
        let failed = |message: String| Reason { code: "disk_failed".into(), message };
        let reason = |node: &NodeId| {
            let said = &membership.nodes.get(node)?.announcement;
            match (said.disks_working, said.disks_unrebuilt) {
                (Some(0), 0) => Some(Reason {
                    code: "disk_unresponsive".into(),
                    message: format!(
                        "no disk of node {node} answers. What it held is rebuilt on other nodes after cluster.rebuild_delay, if there \
                         are enough; it takes part again when a disk answers"
                    ),
                }),
                (Some(0), _) => Some(failed(format!(
                    "every disk of node {node} failed. What it held is rebuilt on other nodes after cluster.rebuild_delay, if there \
                     are enough; replace the disks and start it again"
                ))),
                (_, 0) => None,
                (_, count) => Some(failed(format!(
                    "disks of node {node} failed ({count}), and what was only there is being put on its others"
                ))),
            }
        };
        membership.nodes.keys().filter_map(reason).collect()
    }

    /// Shards that no comparison has proven, wherever it was made, with why not.
    pub(super) async fn unproven(&self) -> Vec<(ShardId, String)> {
        let verdicts = self.actors.verified_everywhere().await;
        verdicts.into_iter().filter_map(|(shard, verdict)| Some((shard, verdict.err()?))).collect()
    }

    /// What the other nodes are like, asked for at most once in [`OTHERS_KEPT`], whoever asks: `/health/maintenance`
    /// needs no token.
    pub(in crate::admin) async fn others_of_late(&self) -> Others {
        let mut kept = self.others.lock().await;
        if let Some((asked, others)) = &*kept
            && asked.elapsed() < OTHERS_KEPT
        {
            return others.clone();
        }
        let (answers, unproven) = tokio::join!(self.answers(), self.unproven());
        let (map, me) = (self.shards(), self.me());
        let mine = |shard: &ShardId| map.shards.get(shard).is_some_and(|state| state.value.is_member(me));
        let others = Others {
            silent: answers.into_iter().filter(|(_, answer)| !takes_writes(answer)).map(|(node, _)| node).collect(),
            unproven: unproven.into_iter().map(|(shard, _)| shard).filter(mine).collect(),
        };
        // From the answer on, so that those who waited for it need not ask.
        *kept = Some((Instant::now(), others.clone()));
        others
    }
}

/// Whether a node that answers so can be counted on for a write quorum.
fn takes_writes(answer: &Result<PeerHealth, String>) -> bool {
    answer.as_ref().is_ok_and(|health| health.owner && health.writable)
}

/// What moves, in words.
pub(super) fn movement(nodes: &[NodeInfo]) -> Option<Reason> {
    let (joins, leaves) = nodes.iter().fold((0, 0), |(joins, leaves), node| {
        (joins + u64::from(node.shards.joining), leaves + u64::from(node.shards.leaving))
    });
    let copied = (joins > 0).then(|| format!("{joins} replicas are being copied"));
    let left = (leaves > 0).then(|| format!("{leaves} that moved away are deleted after cluster.leave_grace"));
    let parts: Vec<String> = copied.into_iter().chain(left).collect();
    (!parts.is_empty()).then(|| Reason { code: "moving".into(), message: parts.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answers_but_takes_no_writes_is_not_counted_on() {
        let answer = |owner, writable| {
            let node = NodeId::from(1);
            Ok(PeerHealth { node, owner, writable, oldest_write_seconds: None, proven: vec![], lives: None })
        };
        assert!(takes_writes(&answer(true, true)));
        assert!(!takes_writes(&answer(false, true)) && !takes_writes(&answer(true, false)));
        assert!(!takes_writes(&Err("no answer".into())));
    }
}
