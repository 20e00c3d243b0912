//! Deletes chunks of shards in which this node has no part any more: it left, its join was called off, or it was away
//! while others took its place.
//!
//! All chunks here are walked some time after the start, after this node left a shard, and now and then. A node that
//! was away for long is likely to be given its shards back: the first walk waits for a grace, so that what is here need
//! not be copied again. A chunk is deleted only if a write quorum of the shard's members, and of as many as the shard
//! is to have, was asked and has it in the same size (promise D5). One that too few members have is kept, and, if
//! metadata knows it, becomes a repair of each member that lacks it: it may be the last replica of something. Asking
//! tells what is in indexes. A copy for which a repair of its member waits was found damaged there, and does not count.
//! Where that quorum is one (the layout wants one replica), the copy for which all others go is read whole before that:
//! it may have rotted since it was written, and one that has becomes a repair as well.
//!
//! **Not from an old map.** The mirror may not show yet that this node joins again. Deleting is harmless then as long
//! as the copy has not begun, since the copy finds what is missing; a copy and a deletion of one shard therefore
//! exclude each other ([`crate::flow::key_locks`]). The epoch is admitted like that of any write, before the members
//! are asked and again before the deletion, so a node that heard of a newer epoch, or cannot prove its membership,
//! deletes nothing.
//!
//! What cannot be deleted now, as on a disk that does not answer, is kept, and the others go on; after a while all are
//! walked again. That while follows what was asked in vain: where the members lack millions of chunks, each walk asks
//! for all of them, and has metadata look for their repairs, which are to be done meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_protocol::cluster::ShardState;
use holdfast_protocol::{ChunkId, NodeId, ShardId};
use tokio::time::Instant;

use super::transfer::TransferError;
use super::{ClusterSettings, Context, transfer};
use crate::ports::MetadataError;
use crate::ports::chunks::ChunkInfo;
use crate::ports::coordination::ShardMap;
use crate::ports::peers::{Fence, IDS_MAX};

/// Chunks in one page of the walk.
const PAGE: usize = 4_096;
/// Repairs of a member that are looked at. One with more is not counted until some are done.
const REPAIRS_MAX: u32 = 4_096;
/// The pause after a walk is at least so many times as long as that walk asked for what it then kept.
const REST_FACTOR: u32 = 10;

#[derive(Debug, Default)]
struct Walk {
    deleted: u64,
    kept: u64,
    /// Why the last of those that could not be deleted is kept.
    failed: Option<String>,
    /// How long it took to ask for what was kept in the end: all of it is asked for again by the next walk. Neither
    /// waits for others nor for a disk that deletes nothing are among it, as they may be over soon.
    in_vain: Duration,
}

/// Runs until it cannot go on.
pub async fn run(context: Context) -> String {
    let mut membership = context.shared.membership.subscribe();
    let mut shards = context.parts.view.shards();
    if membership.wait_for(|m| m.registered).await.is_err() {
        return "the node is gone".into();
    }
    // Shards are placed one after the other: with the first of them nobody knows yet what need not be here.
    if shards.wait_for(|map| !map.shards.is_empty()).await.is_err() {
        return "the shard map is gone".into();
    }
    tokio::time::sleep(context.parts.settings.leave_grace).await;
    loop {
        let held = parts(&context, &shards.borrow_and_update());
        let mut backoff = context.backoff();
        let mut walk = Walk::default();
        let broken_off = walk_all(&context, &mut walk).await.err();
        let is_broken_off = broken_off.is_some();
        if !is_broken_off {
            if walk.deleted > 0 || walk.kept > 0 {
                tracing::info!(deleted = walk.deleted, kept = walk.kept, "chunks that need not be here");
            }
            context.shared.rebuild.lock().leftovers_kept = walk.kept;
            metrics::gauge!("holdfast_leftovers_kept").set(walk.kept as f64);
        }
        let failed = broken_off.or(walk.failed);
        if let Some(error) = failed {
            tracing::warn!(error, "leftovers are looked at again later");
            context.shared.rebuild.lock().last_error = Some(error);
        }
        // What was kept may be healed soon, and what failed may pass.
        let is_left = is_broken_off || context.shared.rebuild.lock().leftovers_kept > 0;
        let settings = &context.parts.settings;
        let pause = if is_left { rest(walk.in_vain, settings) } else { settings.leftovers_interval };
        let pause = tokio::time::sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                changed = shards.changed() => {
                    if changed.is_err() {
                        return "the shard map is gone".into();
                    }
                    let left = held.difference(&parts(&context, &shards.borrow_and_update())).next().is_some();
                    if left {
                        // Shards are left in groups.
                        backoff.wait().await;
                        break;
                    }
                }
                () = &mut pause => break,
            }
        }
    }
}

/// The pause after a walk that kept something.
fn rest(in_vain: Duration, settings: &ClusterSettings) -> Duration {
    in_vain.saturating_mul(REST_FACTOR).min(settings.leftovers_interval).max(settings.retry_max)
}

fn has_part(state: &ShardState, node: NodeId) -> bool {
    state.is_member(node) || state.is_joining(node) || state.is_leaving(node)
}

/// The shards in which this node has a part.
fn parts(context: &Context, map: &ShardMap) -> BTreeSet<ShardId> {
    map.shards.iter().filter(|(_, state)| has_part(&state.value, context.me())).map(|(shard, _)| *shard).collect()
}

async fn walk_all(context: &Context, walk: &mut Walk) -> Result<(), String> {
    let view = &context.parts.view;
    let mut after = None;
    let mut batches: BTreeMap<ShardId, Vec<ChunkInfo>> = BTreeMap::new();
    loop {
        let page = context.parts.chunks.list(after, PAGE);
        after = page.last().map(|info| info.id);
        let last = page.len() < PAGE;
        let map = view.shards().borrow().clone();
        for info in page {
            let shard = view.shard_of(&info.id);
            match map.shards.get(&shard) {
                Some(state) if has_part(&state.value, context.me()) => {}
                Some(_) => batches.entry(shard).or_default().push(info),
                // Whose it is nobody knows yet: it is looked at again soon.
                None => walk.kept += 1,
            }
        }
        let full = batches.iter().filter(|(_, infos)| last || infos.len() >= IDS_MAX).map(|(shard, _)| *shard);
        for shard in full.collect::<Vec<_>>() {
            for batch in batches.remove(&shard).unwrap_or_default().chunks(IDS_MAX) {
                clear(context, shard, batch, walk).await?;
            }
        }
        if last {
            return Ok(());
        }
        tokio::task::yield_now().await;
    }
}

/// Deletes what the members of a shard have.
async fn clear(context: &Context, shard: ShardId, infos: &[ChunkInfo], walk: &mut Walk) -> Result<(), String> {
    let view = &context.parts.view;
    let lock = context.shared.shard_locks.lock(shard).await;
    let begun = Instant::now();
    let state = || view.shards().borrow().shards.get(&shard).map(|state| state.value.clone());
    let Some(before) = state().filter(|state| !has_part(state, context.me())) else { return Ok(()) };
    let fence = Fence { shard, epoch: before.epoch };
    if view.admit(fence).is_err() {
        walk.kept += infos.len() as u64;
        return Ok(());
    }
    let ids: Vec<ChunkId> = infos.iter().map(|info| info.id).collect();
    let mut holders: Vec<Vec<NodeId>> = vec![Vec::new(); ids.len()];
    let mut lacking: Vec<(ChunkId, NodeId)> = Vec::new();
    // A member of which a disk failed may have it there only, and one whose disks are silent may never have it again.
    let counted = |member: &&NodeId| view.holds_data(**member) && !view.is_short(**member);
    for member in before.members.iter().filter(counted) {
        let Ok(found) = context.parts.peers.probe(*member, &ids).await else { continue };
        let doubted = doubted(context, *member).await.map_err(|error| format!("look for repairs: {error}"))?;
        let is_sound = |id: &ChunkId| doubted.as_ref().is_some_and(|doubted| !doubted.contains(id));
        for (at, (info, found)) in infos.iter().zip(&found).enumerate() {
            match found {
                Some(there) if there.size_bytes == info.size_bytes && is_sound(&info.id) => holders[at].push(*member),
                Some(_) => {}
                None => lacking.push((info.id, *member)),
            }
        }
    }
    // Members, not joiners: those may give up. Of the wanted number: one member that is left is no quorum of three.
    let needed = before.write_quorum().max(before.target_quorum()) as usize;
    let mut deletable = Vec::with_capacity(ids.len());
    for (info, holders) in infos.iter().zip(&holders).filter(|(_, holders)| holders.len() >= needed) {
        if needed > 1 || is_whole_on_one(context, *info, holders).await {
            deletable.push(info.id);
        } else {
            lacking.extend(holders.iter().map(|holder| (info.id, *holder)));
        }
    }
    let deleted: BTreeSet<&ChunkId> = deletable.iter().collect();
    lacking.retain(|(chunk, _)| !deleted.contains(chunk));
    // At most `IDS_MAX`.
    let (kept, all) = ((ids.len() - deletable.len()) as u32, ids.len() as u32);
    walk.kept += u64::from(kept);
    let asked = begun.elapsed();
    walk.in_vain += asked * kept / all;
    if state().as_ref() != Some(&before) || view.admit(fence).is_err() {
        walk.kept += deletable.len() as u64;
        return Ok(());
    }
    let (chunks, ids) = (context.parts.chunks.clone(), deletable.clone());
    let deletion = async move {
        // To its end, late or not: no copy may count on what is about to go.
        let _lock = lock;
        chunks.delete(&ids).await.map_err(TransferError::Local)
    };
    let count = deletable.len() as u64;
    match context.disk_changes.run(deletion).await {
        Ok(()) => {
            walk.deleted += count;
            context.shared.rebuild.lock().leftovers_deleted += count;
            metrics::counter!("holdfast_leftovers_deleted_total").increment(count);
        }
        // One sick disk does not keep what lies on the others.
        Err(error) => {
            walk.kept += count;
            walk.in_vain += asked * (all - kept) / all;
            walk.failed = Some(format!("delete leftovers: {error}"));
        }
    }
    let begun = Instant::now();
    let healed = heal(context, lacking).await;
    walk.in_vain += begun.elapsed() * kept / all;
    healed.map_err(|error| format!("queue repairs of members: {error}"))
}

/// Which chunks a member is to repair: what its index says of them is not to be relied on. [`None`]: too many.
async fn doubted(context: &Context, member: NodeId) -> Result<Option<BTreeSet<ChunkId>>, MetadataError> {
    let repairs = context.parts.metadata.repairs(member, 0, REPAIRS_MAX).await?;
    let is_all = repairs.len() < REPAIRS_MAX as usize;
    Ok(is_all.then(|| repairs.into_iter().map(|repair| repair.chunk).collect()))
}

/// Whether one of `holders` gives all of a chunk. What is read is verified there.
async fn is_whole_on_one(context: &Context, info: ChunkInfo, holders: &[NodeId]) -> bool {
    let _permit = context.budget.take(u64::from(info.size_bytes)).await;
    match transfer::guarded(info.id, transfer::fetch(context, info, holders)).await {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(chunk = %info.id, %error, "a chunk stays here: the only other copy cannot be read");
            false
        }
    }
}

/// Members are to have what is known and only found here.
async fn heal(context: &Context, mut lacking: Vec<(ChunkId, NodeId)>) -> Result<(), MetadataError> {
    if lacking.is_empty() {
        return Ok(());
    }
    let known = transfer::known(context, lacking.iter().map(|(chunk, _)| *chunk)).await?;
    lacking.retain(|(chunk, _)| known.contains(&chunk.content()));
    for batch in lacking.chunks(transfer::METADATA_BATCH) {
        context.parts.metadata.queue_repairs(batch, context.parts.clock.now_ms()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_follows_what_was_asked_in_vain_within_its_bounds() {
        let settings = ClusterSettings::default();
        let (least, most) = (settings.retry_max, settings.leftovers_interval);
        assert_eq!(rest(Duration::ZERO, &settings), least);
        assert_eq!(rest(least / REST_FACTOR, &settings), least);
        assert_eq!(rest(least, &settings), least * REST_FACTOR);
        assert_eq!(rest(Duration::MAX, &settings), most);
        // Whoever sets the one below the other.
        let seldom = ClusterSettings { leftovers_interval: least / 2, ..settings };
        assert_eq!(rest(most, &seldom), least);
    }
}
