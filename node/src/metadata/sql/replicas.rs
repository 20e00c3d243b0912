//! What a cluster keeps about replicas: epochs under which chunks must have been written, repairs that wait, and
//! contents that were condemned as orphans.
//!
//! A content is condemned in the table that commits look into, under the lock that its commit holds: of a condemnation
//! and a commit of the same content the one that comes first stands, and the other learns it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use holdfast_actors::ports::metadata::{Condemned, MetadataError, MetadataResult, Repair, ReplicaEvidence};
use holdfast_protocol::{ChunkId, ClusterId, ContentId, Epoch, NodeId, ShardId};

use super::{Dialect, Fields as _, Reader, Session, Shape, Value, values};
use crate::metadata::rows;

/// Stands among the fences of locks (no lock has such a name) while the database is known to have lost commits that
/// were acknowledged: what it does not know may be what it lost.
pub(in crate::metadata) const SET_BACK: &str = "SET-BACK";
const IS_SET_BACK: &str = "SELECT 1 FROM lock_fences WHERE name = ?";
/// How far the walk of a node's disks is: [`WALKED`] or [`WAITS`].
const HOW_WALKED: &str = "SELECT token FROM lock_fences WHERE name = ?";
const WALKED: i64 = 0;
/// Walked, and to be walked once more.
const WAITS: i64 = 1;

/// The stored epochs of all shards that some evidence names. A shard without one takes all.
pub(super) async fn load_epochs<S: Session>(
    tx: &mut S,
    evidence: &[&ReplicaEvidence],
) -> MetadataResult<HashMap<ShardId, Epoch>> {
    let epochs = evidence.iter().flat_map(|evidence| &evidence.epochs);
    let shards: BTreeSet<ShardId> = epochs.map(|(shard, _)| *shard).collect();
    let shards: Vec<ShardId> = shards.into_iter().collect();
    let found = tx.fetch_many(Shape::LoadEpochs, &shards, |shard| values![i64::from(shard.0)]).await?;
    found.iter().map(|row| rows::epoch(row.number(0)?, row.number(1)?)).collect()
}

/// Whether a content was given up.
pub(super) async fn is_condemned<S: Session>(tx: &mut S, content: ContentId) -> MetadataResult<bool> {
    let sql = "SELECT 1 FROM condemned WHERE content = ?";
    Ok(tx.fetch_optional(sql, values![content.as_bytes()]).await?.is_some())
}

pub(super) async fn condemn<S: Session>(
    tx: &mut S,
    contents: &[ContentId],
    now_ms: u64,
) -> MetadataResult<Vec<ContentId>> {
    if tx.fetch_optional(IS_SET_BACK, values![SET_BACK.as_bytes()]).await?.is_some() {
        let lost = "the database has lost commits, so orphans are kept: see \"A dump of the database's own\" in \
                    docs/operations.md";
        return Err(MetadataError::Unavailable(lost.to_owned()));
    }
    let head = [Value::from(rows::signed(now_ms))];
    tx.execute_many(Shape::Condemn, &head, contents, |id| values![id.as_bytes()]).await?;
    let found = tx.fetch_many(Shape::Condemned, contents, |id| values![id.as_bytes()]).await?;
    found.iter().map(|row| rows::content_id(row.bytes(0)?)).collect()
}

/// Contents condemned before a time, the oldest first.
pub(super) async fn condemned<R: Reader>(reads: &R, before_ms: u64, limit: u32) -> MetadataResult<Vec<Condemned>> {
    let sql = "SELECT content, condemned_ms FROM condemned WHERE condemned_ms < ? ORDER BY condemned_ms LIMIT ?";
    let found = reads.fetch(sql, values![rows::signed(before_ms), i64::from(limit)]).await?;
    let condemned = |row: &R::Row| {
        Ok(Condemned { content: rows::content_id(row.bytes(0)?)?, condemned_ms: rows::unsigned(row.number(1)?)? })
    };
    found.iter().map(condemned).collect()
}

pub(super) async fn forget_condemned<S: Session>(tx: &mut S, condemned: &[Condemned]) -> MetadataResult<()> {
    let bind = |one: &Condemned| values![one.content.as_bytes(), rows::signed(one.condemned_ms)];
    tx.execute_many(Shape::ForgetCondemned, &[], condemned, bind).await
}

/// The cluster that claimed this metadata.
pub(super) async fn claimant<R: Reader>(reads: &R) -> MetadataResult<Option<ClusterId>> {
    let row = reads.fetch_optional("SELECT cluster FROM claims WHERE place = 1", values![]).await?;
    row.map(|row| rows::cluster_id(row.bytes(0)?)).transpose()
}

/// Claims this metadata unless somebody did before.
pub(super) async fn claim<S: Session>(tx: &mut S, cluster: ClusterId) -> MetadataResult<()> {
    let sql = match S::DIALECT {
        Dialect::Sqlite => "INSERT OR IGNORE INTO claims (place, cluster) VALUES (1, ?)",
        Dialect::Mysql => "INSERT IGNORE INTO claims (place, cluster) VALUES (1, ?)",
    };
    tx.execute(sql, values![cluster.as_bytes()]).await.map(drop)
}

/// Makes this metadata nobody's.
pub(super) async fn disclaim<S: Session>(tx: &mut S) -> MetadataResult<()> {
    tx.execute("DELETE FROM claims WHERE place = 1", values![]).await.map(drop)
}

/// Raises epochs; gives back those that are higher already.
pub(super) async fn raise_epochs<S: Session>(
    tx: &mut S,
    epochs: &[(ShardId, Epoch)],
) -> MetadataResult<Vec<(ShardId, Epoch)>> {
    // In the order of their numbers, each once: what locks rows should lock them in one order.
    let mut highest: BTreeMap<ShardId, Epoch> = BTreeMap::new();
    for (shard, epoch) in epochs {
        let highest = highest.entry(*shard).or_insert(*epoch);
        *highest = (*highest).max(*epoch);
    }
    let highest: Vec<_> = highest.into_iter().collect();
    tx.execute_many(Shape::RaiseEpochs, &[], &highest, |(shard, epoch)| {
        values![i64::from(shard.0), rows::signed(epoch.0)]
    })
    .await?;
    let stored = tx.fetch_many(Shape::LoadEpochs, &highest, |(shard, _)| values![i64::from(shard.0)]).await?;
    let stored: MetadataResult<HashMap<ShardId, Epoch>> =
        stored.iter().map(|row| rows::epoch(row.number(0)?, row.number(1)?)).collect();
    let stored = stored?;
    let higher = highest.into_iter().filter_map(|(shard, epoch)| {
        let found = *stored.get(&shard)?;
        (found > epoch).then_some((shard, found))
    });
    Ok(higher.collect())
}

/// Forgets the epochs of all shards, unless they are those of another number of shards: gives that back then.
pub(super) async fn forget_epochs<S: Session>(tx: &mut S, shard_count: u32) -> MetadataResult<Option<u64>> {
    let sql = "SELECT shard FROM shard_epochs ORDER BY shard DESC LIMIT 1";
    if let Some(last) = tx.fetch_optional(sql, values![]).await? {
        let known = rows::unsigned(last.number(0)?)? + 1;
        if known != u64::from(shard_count) {
            return Ok(Some(known));
        }
    }
    tx.execute("DELETE FROM shard_epochs", values![]).await?;
    Ok(None)
}

/// Queues repairs; those queued already are noticed anew.
pub(super) async fn queue_repairs<S: Session>(tx: &mut S, repairs: &[(ChunkId, NodeId, u64)]) -> MetadataResult<()> {
    tx.execute_many(Shape::QueueRepairs, &[], repairs, |(chunk, node, now_ms)| {
        values![node.as_bytes(), chunk.as_bytes(), rows::signed(*now_ms)]
    })
    .await
}

pub(super) async fn finish_repairs<S: Session>(tx: &mut S, repairs: &[Repair]) -> MetadataResult<()> {
    let bind = |repair: &Repair| values![rows::signed(repair.id), rows::signed(repair.queued_ms)];
    tx.execute_many(Shape::RemoveRepairs, &[], repairs, bind).await
}

pub(super) async fn repairs<R: Reader>(reads: &R, node: NodeId, after: u64, limit: u32) -> MetadataResult<Vec<Repair>> {
    let sql = "SELECT id, chunk, queued_ms FROM repairs WHERE node = ? AND id > ? ORDER BY id LIMIT ?";
    let found = reads.fetch(sql, values![node.as_bytes(), rows::signed(after), i64::from(limit)]).await?;
    let repair = |row: &R::Row| {
        Ok(Repair {
            id: rows::unsigned(row.number(0)?)?,
            chunk: rows::chunk_id(row.bytes(1)?)?,
            node,
            queued_ms: rows::unsigned(row.number(2)?)?,
        })
    };
    found.iter().map(repair).collect()
}

pub(super) async fn repair_backlog<R: Reader>(reads: &R) -> MetadataResult<Vec<(NodeId, u64)>> {
    let found = reads.fetch("SELECT node, COUNT(*) FROM repairs GROUP BY node ORDER BY node", Vec::new()).await?;
    found.iter().map(|row| Ok((rows::node_id(row.bytes(0)?)?, rows::unsigned(row.number(1)?)?))).collect()
}

pub(super) async fn repairs_waiting<R: Reader>(reads: &R, node: NodeId) -> MetadataResult<u64> {
    let found = reads.fetch("SELECT COUNT(*) FROM repairs WHERE node = ?", values![node.as_bytes()]).await?;
    found.first().map_or(Ok(0), |row| rows::unsigned(row.number(0)?))
}

/// Whether [`SET_BACK`] is there.
pub(super) async fn lost_commits<R: Reader>(reads: &R) -> MetadataResult<bool> {
    Ok(reads.fetch_optional(IS_SET_BACK, values![SET_BACK.as_bytes()]).await?.is_some())
}

/// Takes [`SET_BACK`] away, with the names of nodes that were walked: no other name begins so.
pub(super) async fn forget_lost_commits<S: Session>(tx: &mut S) -> MetadataResult<()> {
    let end = format!("{SET_BACK}.");
    let sql = "DELETE FROM lock_fences WHERE name >= ? AND name < ?";
    tx.execute(sql, values![SET_BACK.as_bytes(), end.as_bytes()]).await.map(drop)
}

/// Stands beside [`SET_BACK`] for a node whose disks were walked since.
fn walked_name(node: NodeId) -> Vec<u8> {
    format!("{SET_BACK}-{node}").into_bytes()
}

/// Notes that the disks of a node were walked; takes [`SET_BACK`] away when those of all were. Gives back the nodes
/// whose disks are still to be walked. Without `nodes` nobody knows which those are, and [`SET_BACK`] stays.
///
/// Where something `waits` for what other disks tell, it can come back once those were walked, and not before: the node
/// is done only if all others have been, as far as they are known.
pub(super) async fn note_walked<S: Session>(
    tx: &mut S,
    walked: NodeId,
    waits: bool,
    nodes: &[NodeId],
) -> MetadataResult<Vec<NodeId>> {
    if tx.fetch_optional(IS_SET_BACK, values![SET_BACK.as_bytes()]).await?.is_none() {
        return Ok(Vec::new());
    }
    let (mut left, mut is_last) = (Vec::new(), !nodes.is_empty());
    for node in nodes.iter().filter(|node| **node != walked) {
        let row = tx.fetch_optional(HOW_WALKED, values![walked_name(*node)]).await?;
        let how = row.map(|row| row.number(0)).transpose()?;
        is_last &= how.is_some();
        if how != Some(WALKED) {
            left.push(*node);
        }
    }
    let how = if waits && !is_last { WAITS } else { WALKED };
    tx.execute("REPLACE INTO lock_fences (name, token) VALUES (?, ?)", values![walked_name(walked), how]).await?;
    if how == WAITS {
        left.push(walked);
    }
    if left.is_empty() && !nodes.is_empty() {
        forget_lost_commits(tx).await?;
    }
    Ok(left)
}
