//! Copies the shards that this node joins, a few at a time, the most endangered first, and tells the controller of each
//! until the shard map shows that it was heard.
//!
//! What is to be done is read from the shard map alone: a process that starts again goes on by itself, and what is on the
//! disks is not fetched again. A copy ends at once when the map no longer shows its join.
//!
//! **Data lost.** Once after the start, every shard of which this node is a member is compared in size with another member:
//! a disk that was replaced shows as a replica that lacks more than half. Such a shard is reported as lost and joined anew,
//! which is quicker than one repair a chunk and lets the quorum count without it meanwhile. Whatever lacks less is found and
//! healed by [`super::compare`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::ShardId;
use holdfast_protocol::cluster::{Epoch, ShardState};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use super::copy_shard::{CopyError, ShardCopy};
use super::{Context, CopyPhase, CopyProgress};
use crate::domain::placement::danger::endangered;
use crate::ports::coordination::ShardMap;
use crate::ports::peers::{Fence, ShardReport};

/// The longest time between two reports of the same.
const REPORT_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Chunks that another member must have more for a replica to count as lost; fewer may be writes under way.
const LOST_CHUNKS_MIN: u64 = 16;
/// How often a loss is reported: a shard whose last replica this is stays as it is.
const LOSS_REPORTS_MAX: u32 = 10;

/// Runs until it cannot go on.
pub async fn run(context: Context) -> String {
    let mut membership = context.shared.membership.subscribe();
    let mut shards = context.parts.view.shards();
    let mut alive = context.parts.view.membership();
    let moved_on = Arc::new(Notify::new());
    let mut tasks = JoinSet::new();
    let mut running: BTreeMap<ShardId, (Epoch, AbortHandle)> = BTreeMap::new();
    context.shared.rebuild.lock().copies.clear();
    if membership.wait_for(|m| m.registered).await.is_err() {
        return "the node is gone".into();
    }
    tasks.spawn(report_losses(context.clone()));
    loop {
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                return "a copy panicked".into();
            }
        }
        let map = shards.borrow_and_update().clone();
        alive.mark_unchanged();
        let joins = joins(&context, &map);
        running.retain(|shard, (since, task)| {
            let stays = joins.get(shard) == Some(since);
            if !stays {
                task.abort();
                end(&context, *shard, *since, &map);
            }
            stays
        });
        show_waiting(&context, &joins);
        for shard in order(&context, &map, &joins) {
            if copying(&context) >= context.parts.settings.copies_max {
                break;
            }
            let Some(&since) = joins.get(&shard).filter(|_| !running.contains_key(&shard)) else { continue };
            set_phase(&context, shard, CopyPhase::Copying);
            let task = tasks.spawn(join(context.clone(), shard, since, moved_on.clone()));
            running.insert(shard, (since, task));
        }
        tokio::select! {
            changed = shards.changed() => if changed.is_err() { return "the shard map is gone".into() },
            changed = alive.changed() => if changed.is_err() { return "the membership is gone".into() },
            () = moved_on.notified() => {}
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                if ended.is_err_and(|error| error.is_panic()) {
                    return "a copy panicked".into();
                }
            }
        }
    }
}

fn joins(context: &Context, map: &ShardMap) -> BTreeMap<ShardId, Epoch> {
    let me = context.me();
    let mine = |state: &ShardState| state.joining.iter().find(|joiner| joiner.node == me).map(|joiner| joiner.since);
    map.shards.iter().filter_map(|(shard, state)| Some((*shard, mine(&state.value)?))).collect()
}

/// Shards to be joined, the most endangered first.
fn order(context: &Context, map: &ShardMap, joins: &BTreeMap<ShardId, Epoch>) -> Vec<ShardId> {
    let states: Vec<_> = joins.keys().filter_map(|s| Some((*s, &map.shards.get(s)?.value))).collect();
    let absent = states.iter().flat_map(|(_, state)| &state.members).copied();
    let absent = absent.filter(|node| !context.parts.view.is_alive(*node)).collect();
    // Zones are the controller's to look at: it chose what joins now.
    let mut order: Vec<_> =
        endangered(states.iter().copied(), &absent, &BTreeMap::new()).into_iter().map(|d| d.shard).collect();
    order.extend(joins.keys().filter(|shard| !order.contains(shard)).copied().collect::<Vec<_>>());
    order
}

fn show_waiting(context: &Context, joins: &BTreeMap<ShardId, Epoch>) {
    let mut status = context.shared.rebuild.lock();
    status.copies.retain(|shard, copy| joins.get(shard) == Some(&copy.since));
    for (shard, since) in joins {
        status.copies.entry(*shard).or_insert_with(|| CopyProgress::new(*since));
    }
}

fn copying(context: &Context) -> usize {
    let status = context.shared.rebuild.lock();
    status.copies.values().filter(|copy| copy.phase == CopyPhase::Copying).count()
}

fn set_phase(context: &Context, shard: ShardId, phase: CopyPhase) {
    if let Some(copy) = context.shared.rebuild.lock().copies.get_mut(&shard) {
        copy.phase = phase;
    }
}

fn end(context: &Context, shard: ShardId, since: Epoch, map: &ShardMap) {
    let joined = map.shards.get(&shard).is_some_and(|state| state.value.is_member(context.me()));
    tracing::info!(%shard, %since, joined, "join ended");
    context.shared.rebuild.lock().shards_joined += u64::from(joined);
}

/// Copies a shard, then tells the controller until it is aborted.
async fn join(context: Context, shard: ShardId, since: Epoch, moved_on: Arc<Notify>) {
    tracing::info!(%shard, %since, "join begins");
    let mut copy = ShardCopy::new(context.clone(), shard, since);
    let mut backoff = context.backoff();
    let (phase, report) = loop {
        match copy.run().await {
            Ok(()) => break (CopyPhase::Reporting, ShardReport::Verified { shard, since }),
            Err(CopyError::Over) => return,
            Err(CopyError::GivenUp(reason)) => {
                note(&context, shard, &reason);
                break (CopyPhase::Failed, ShardReport::JoinFailed { shard, since, reason });
            }
            Err(CopyError::Retry(reason)) => {
                tracing::debug!(%shard, reason, "copy is tried again");
                note(&context, shard, &reason);
                backoff.wait().await;
            }
        }
    };
    set_phase(&context, shard, phase);
    // Another shard may take its turn.
    moved_on.notify_one();
    let mut backoff = context.backoff();
    loop {
        if let Err(error) = context.report(report.clone()).await {
            tracing::debug!(%shard, %error, "the controller does not hear");
        }
        tokio::time::sleep(backoff.pause().min(REPORT_PAUSE_MAX)).await;
    }
}

fn note(context: &Context, shard: ShardId, reason: &str) {
    let mut status = context.shared.rebuild.lock();
    status.last_error = Some(format!("shard {shard}: {reason}"));
    if let Some(copy) = status.copies.get_mut(&shard) {
        copy.last_error = Some(reason.to_owned());
    }
}

/// Looks for replicas of this node whose data is gone.
async fn report_losses(context: Context) {
    let mut shards = context.parts.view.shards();
    let Ok(map) = shards.wait_for(|map| !map.shards.is_empty()).await.map(|map| map.clone()) else { return };
    let mut lost = Vec::new();
    for (shard, state) in map.shards.iter().filter(|(_, state)| state.value.is_member(context.me())) {
        let fence = Fence { shard: *shard, epoch: state.value.epoch };
        let here = context.digest_here(*shard).await.chunks;
        for other in state.value.members.iter().filter(|m| **m != context.me() && context.parts.view.is_alive(**m)) {
            let Ok(there) = context.parts.peers.digest(*other, fence).await else { continue };
            if there.chunks >= here + LOST_CHUNKS_MIN && there.chunks > 2 * here {
                tracing::error!(%shard, here, there = there.chunks, "most of a replica is gone, it is joined anew");
                lost.push(fence);
                break;
            }
        }
        tokio::task::yield_now().await;
    }
    for _ in 0..LOSS_REPORTS_MAX {
        let map = shards.borrow_and_update().clone();
        // A member of a later epoch may be one that has joined anew since. What else changed there is compared then.
        lost.retain(|fence| {
            let state = map.shards.get(&fence.shard);
            state.is_some_and(|state| state.value.epoch == fence.epoch && state.value.is_member(context.me()))
        });
        if lost.is_empty() {
            return;
        }
        for Fence { shard, .. } in &lost {
            if let Err(error) = context.report(ShardReport::DataLost { shard: *shard }).await {
                tracing::debug!(%shard, %error, "the controller does not hear");
            }
        }
        tokio::time::sleep(REPORT_PAUSE_MAX).await;
    }
}
