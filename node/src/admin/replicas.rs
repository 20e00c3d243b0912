//! Who has a chunk: every node that should is asked.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use holdfast_actors::ports::chunks::ChunkInfo;
use holdfast_protocol::admin::ChunkReplica;
use holdfast_protocol::{ChunkId, NodeId};

use super::AdminState;
use super::cluster::ClusterAdmin;

/// A node that was asked for a chunk, and what it said.
pub(super) struct Replica {
    /// How the node is called.
    pub(super) node: String,
    /// The node, if it is another one than this.
    pub(super) peer: Option<NodeId>,
    role: &'static str,
    pub(super) answer: Answer,
}

/// What a node says of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It has so many bytes of payload under that id.
    Has(u32),
    /// It has no such chunk.
    Lacks,
    /// Nothing.
    Silent,
}

impl Answer {
    fn of(found: Option<ChunkInfo>) -> Self {
        found.map_or(Self::Lacks, |info| Self::Has(info.size_bytes))
    }
}

impl Replica {
    /// A member of a shard that answered so.
    #[cfg(test)]
    pub(super) fn answering(answer: Answer) -> Self {
        Self { node: "5f3a".into(), peer: None, role: "member", answer }
    }

    /// For an answer, of a chunk that is to have `size_bytes`.
    pub(super) fn told(self, size_bytes: u32) -> ChunkReplica {
        let state = match self.answer {
            Answer::Has(found) if found == size_bytes => "present",
            Answer::Has(_) => "wrong_size",
            Answer::Lacks => "missing",
            Answer::Silent => "unreachable",
        };
        ChunkReplica { node: self.node, role: self.role.into(), state: state.into() }
    }
}

/// The shard of a chunk, where there are shards.
pub(super) fn shard_of(state: &AdminState, chunk: &ChunkId) -> Option<u32> {
    state.cluster.as_ref().map(|cluster| cluster.view.shard_of(chunk).0)
}

/// Asks the nodes that should have these chunks, as many as one question to a peer may name; in the order of the
/// chunks.
pub(super) async fn named(state: &AdminState, chunks: &[ChunkId]) -> Vec<Vec<Replica>> {
    let Some(cluster) = &state.cluster else {
        let alone = |chunk: &ChunkId| Replica {
            node: state.node_id.clone(),
            peer: None,
            role: "alone",
            answer: Answer::of(state.local.stat(*chunk)),
        };
        return chunks.iter().map(|chunk| vec![alone(chunk)]).collect();
    };
    let roles: Vec<Vec<(NodeId, &'static str)>> = chunks.iter().map(|chunk| holders(cluster, chunk)).collect();
    let mut questions: BTreeMap<NodeId, Vec<ChunkId>> = BTreeMap::new();
    for (chunk, holders) in chunks.iter().zip(&roles) {
        for (node, _) in holders {
            questions.entry(*node).or_default().push(*chunk);
        }
    }
    let asked = questions.iter().map(|(node, chunks)| async move { (*node, probe(cluster, *node, chunks).await) });
    let answers: BTreeMap<_, _> = join_all(asked).await.into_iter().collect();
    let replica = |chunk: &ChunkId, node: NodeId, role: &'static str| {
        let answer = match answers.get(&node) {
            Some(Some(found)) => Answer::of(found.get(chunk).copied().flatten()),
            _ => Answer::Silent,
        };
        of_node(cluster, node, role, answer)
    };
    let all = chunks.iter().zip(roles).map(|(chunk, holders)| {
        let replicas: Vec<Replica> = holders.into_iter().map(|(node, role)| replica(chunk, node, role)).collect();
        replicas
    });
    all.collect()
}

/// Asks all other live nodes for a chunk, and gives those that have it: the last copy of what was lost may be on a node
/// that left its shard.
pub(super) async fn others(state: &AdminState, chunk: ChunkId, named: &[Replica]) -> Vec<Replica> {
    let Some(cluster) = &state.cluster else { return Vec::new() };
    let mut live: BTreeSet<NodeId> = cluster.view.membership().borrow().nodes.keys().copied().collect();
    live.insert(cluster.me());
    live.retain(|node| {
        let name = node.to_string();
        named.iter().all(|replica| replica.node != name)
    });
    let asked = live.into_iter().map(|node| async move { (node, probe(cluster, node, &[chunk]).await) });
    let found = join_all(asked).await.into_iter().filter_map(|(node, found)| {
        let info = found?.get(&chunk).copied().flatten()?;
        Some(of_node(cluster, node, "other", Answer::Has(info.size_bytes)))
    });
    found.collect()
}

fn of_node(cluster: &ClusterAdmin, node: NodeId, role: &'static str, answer: Answer) -> Replica {
    Replica { node: node.to_string(), peer: (node != cluster.me()).then_some(node), role, answer }
}

fn holders(cluster: &ClusterAdmin, chunk: &ChunkId) -> Vec<(NodeId, &'static str)> {
    let Some(placement) = cluster.view.placement(chunk) else { return Vec::new() };
    let state = placement.state;
    let members = state.members.iter().map(|node| (*node, "member"));
    let joining = state.joining.iter().map(|joiner| (joiner.node, "joining"));
    let leaving = state.leaving.iter().map(|leaver| (leaver.node, "leaving"));
    members.chain(joining).chain(leaving).collect()
}

/// What a node has of these chunks; `None` if it gave no answer that can be one.
async fn probe(
    cluster: &ClusterAdmin,
    node: NodeId,
    chunks: &[ChunkId],
) -> Option<BTreeMap<ChunkId, Option<ChunkInfo>>> {
    let found: Vec<Option<ChunkInfo>> = if node == cluster.me() {
        chunks.iter().map(|chunk| cluster.local.stat(*chunk)).collect()
    } else {
        cluster.peers.probe(node, chunks).await.ok().filter(|found| found.len() == chunks.len())?
    };
    Some(chunks.iter().copied().zip(found).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_has_is_held_against_what_the_chunk_is() {
        let id = ChunkId([7; 16]);
        let states =
            [Answer::of(Some(ChunkInfo { id, size_bytes: 5 })), Answer::Has(4), Answer::of(None), Answer::Silent]
                .map(|answer| Replica::answering(answer).told(5).state);
        assert_eq!(states, ["present", "wrong_size", "missing", "unreachable"]);
    }
}
