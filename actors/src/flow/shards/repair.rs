//! Carries out the repairs that metadata has queued for this node.
//!
//! They come from writes whose acknowledgement was missed, from comparisons, from reads, from damage that the disks
//! find themselves ([`super::Findings`]), and from disks that failed ([`super::stranded`]). A chunk needs nothing
//! * that metadata does not know and that is not here,
//! * that this node need not hold, or
//! * that is here, whole on the disk itself and not only in the page cache, in the size that most have.
//!
//! Any other is fetched, whole and verified: from a node that is to have it, else from one that left, else from a disk
//! of this node that failed. Only then is what is damaged here deleted, and the chunk written, read back and compared
//! (promise D5); then the repair is forgotten. Each step may be done twice, so nothing is lost with the process. A
//! repair that is noticed again while it runs is done again.
//!
//! Repairs of a node that is lost, or that is gone and was removed from the layout, are nobody's: it was replaced. The
//! controller's node forgets those of shards in which such a node has no part any more. If it comes back it joins what
//! it is to hold anew, and a join compares everything.
//!
//! A repair that fails waits, longer each time, while others go on. Bytes are fetched within the budget that joins
//! share.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, stream};
use holdfast_protocol::{ChunkId, NodeId};
use tokio::time::Instant;

use super::stranded::Stranded;
use super::transfer::{self, TransferError};
use super::{Backoff, Context, RepairStatus};
use crate::ports::MetadataError;
use crate::ports::metadata::Repair;

mod heal;

use heal::Outcome;
pub(super) use heal::heal;

/// Repairs in one page.
const PAGE: u32 = 256;
/// Repairs under way at once. Most of a small one is waiting for answers; large ones are bounded by the budget's bytes.
const REPAIRS_AT_ONCE: usize = 8;
/// Failed repairs whose pauses are remembered; further ones are tried again with every look.
const FAILED_MAX: usize = 10_000;
/// How many times as long as a count of all that waits took the next one waits. Every node counts, and of a disk that
/// failed there may be millions.
const COUNT_SHARE: u32 = 100;
/// So many times [`super::ClusterSettings::retry_max`] at most.
const COUNT_REST_MAX: u32 = 20;
/// How many of the last errors are shown.
const ERRORS_SHOWN: usize = 8;

/// Runs until it cannot go on.
pub async fn run(context: Context) -> String {
    let mut membership = context.shared.membership.subscribe();
    let mut held = context.shared.repairs_held.subscribe();
    let mut pauses = context.parts.coordination.watch_pauses();
    let mut shards = context.parts.view.shards();
    if membership.wait_for(|m| m.registered).await.is_err() {
        return "the node is gone".into();
    }
    let mut repairs = Repairs {
        context: context.clone(),
        failed: BTreeMap::new(),
        stranded: Stranded::default(),
        count_due: Instant::now(),
        counted_all: false,
    };
    let mut backoff = context.backoff();
    loop {
        // Without a map nobody knows who holds what.
        if shards.wait_for(|map| !map.shards.is_empty()).await.is_err() {
            return "the shard map is gone".into();
        }
        // A change after this is looked at again below.
        held.mark_unchanged();
        pauses.mark_unchanged();
        let paused = context.repairs_paused();
        metrics::gauge!("holdfast_repairs_paused").set(f64::from(u8::from(paused)));
        let outcome = async {
            repairs.take_findings().await?;
            if repairs.stranded.look(&context).await? {
                // When it looks again goes by what waits.
                repairs.count_due = Instant::now();
            }
            let done = if paused { 0 } else { repairs.pass().await? };
            repairs.count_backlog().await?;
            repairs.forget_lost().await?;
            Ok::<u64, MetadataError>(done)
        };
        match outcome.await {
            Ok(0) => backoff.reset(),
            Ok(_) => {
                backoff.reset();
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "repairs are held up by metadata");
                fail(&mut context.shared.repair.lock(), format!("metadata: {error}"));
                backoff.wait().await;
                continue;
            }
        }
        tokio::select! {
            () = context.parts.findings.arrived() => {}
            () = context.shared.repairs_queued.notified() => {}
            changed = held.changed() => if changed.is_err() { return "the node is gone".into() },
            changed = pauses.changed() => if changed.is_err() { return "the node is gone".into() },
            () = tokio::time::sleep(context.parts.settings.repair_interval) => {}
        }
    }
}

fn fail(status: &mut RepairStatus, error: String) {
    status.failures += 1;
    status.last_errors.insert(0, error);
    status.last_errors.truncate(ERRORS_SHOWN);
}

struct Repairs {
    context: Context,
    /// When a repair that failed is tried again.
    failed: BTreeMap<u64, (Backoff, Instant)>,
    stranded: Stranded,
    /// When what waits is counted again.
    count_due: Instant,
    /// Whether what waits for all nodes was counted last.
    counted_all: bool,
}

/// What became of a page of repairs.
struct PageDone {
    ended: u64,
    /// Fetched for it.
    bytes: u64,
}

impl Repairs {
    /// Queues what the disks found. A batch that cannot be queued is put back.
    async fn take_findings(&self) -> Result<(), MetadataError> {
        let parts = &self.context.parts;
        loop {
            let found = parts.findings.take(transfer::METADATA_BATCH);
            if found.is_empty() {
                return Ok(());
            }
            let rows: Vec<(ChunkId, NodeId)> = found.iter().map(|chunk| (*chunk, self.context.me())).collect();
            if let Err(error) = parts.metadata.queue_repairs(&rows, parts.clock.now_ms()).await {
                found.into_iter().for_each(|chunk| parts.findings.push(chunk));
                return Err(error);
            }
        }
    }

    /// Counts what waits: the controller, which forgets some of it, that of all nodes, every other node its own.
    async fn count_backlog(&mut self) -> Result<(), MetadataError> {
        let (begun, of_all) = (Instant::now(), self.context.shared.controller.borrow().is_some());
        if begun < self.count_due && of_all == self.counted_all {
            return Ok(());
        }
        let (metadata, me) = (&self.context.parts.metadata, self.context.me());
        let backlog: BTreeMap<NodeId, u64> = match of_all {
            true => metadata.repair_backlog().await?.into_iter().collect(),
            false => BTreeMap::from([(me, metadata.repairs_waiting(me).await?)]),
        };
        self.counted_all = of_all;
        let rest_max = self.context.parts.settings.retry_max * COUNT_REST_MAX;
        self.count_due = Instant::now() + (begun.elapsed() * COUNT_SHARE).min(rest_max);
        let mine = backlog.get(&me).copied().unwrap_or(0);
        metrics::gauge!("holdfast_repairs_waiting").set(mine as f64);
        self.context.shared.repair.lock().backlog = backlog;
        Ok(())
    }

    /// Forgets, as the controller, what nodes that are lost or removed no longer have to repair. Only what was queued
    /// so long ago that no writer can have had a newer shard map than this node has.
    async fn forget_lost(&self) -> Result<(), MetadataError> {
        let parts = &self.context.parts;
        let Some(lost) = self.context.shared.controller.borrow().as_ref().map(|status| status.lost.clone()) else {
            return Ok(());
        };
        let backlog = self.context.shared.repair.lock().backlog.clone();
        let Some(layout) = parts.coordination.watch_layout().borrow().clone() else { return Ok(()) };
        let removed = |node: &NodeId| !layout.value.applied.nodes.contains_key(node) && !parts.view.is_alive(*node);
        let before_ms = parts.clock.now_ms().saturating_sub(parts.settings.leave_grace.as_millis() as u64);
        for node in backlog.keys().filter(|node| lost.contains(node) || removed(node)) {
            let mut after = 0;
            loop {
                let rows = parts.metadata.repairs(*node, after, PAGE).await?;
                after = rows.last().map_or(after, |row| row.id);
                let has_part = |row: &Repair| {
                    let placement = parts.view.placement(&row.chunk);
                    placement.is_none_or(|p| p.state.write_set().any(|holder| holder == *node))
                };
                let needless: Vec<Repair> =
                    rows.iter().filter(|row| row.queued_ms < before_ms && !has_part(row)).cloned().collect();
                if !needless.is_empty() && parts.view.is_owner() {
                    parts.metadata.finish_repairs(&needless).await?;
                }
                if rows.len() < PAGE as usize {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Goes once over all that waits; returns how many repairs ended.
    async fn pass(&mut self) -> Result<u64, MetadataError> {
        let (begun, mut bytes, mut done, mut after) = (Instant::now(), 0, 0, 0);
        let mut seen = BTreeSet::new();
        loop {
            let rows = self.context.parts.metadata.repairs(self.context.me(), after, PAGE).await?;
            after = rows.last().map_or(after, |row| row.id);
            let last = rows.len() < PAGE as usize;
            let page = self.page(rows, &mut seen).await?;
            done += page.ended;
            bytes += page.bytes;
            if last {
                break;
            }
        }
        // Rows that somebody else forgot.
        self.failed.retain(|id, _| seen.contains(id));
        let mut status = self.context.shared.repair.lock();
        status.bytes += bytes;
        status.rate_bytes = (bytes as f64 / begun.elapsed().as_secs_f64().max(0.001)) as u64;
        metrics::counter!("holdfast_repair_bytes_total").increment(bytes);
        Ok(done)
    }

    /// Makes the repairs of a page that are due. Notes in `seen` those whose failures are remembered.
    async fn page(&mut self, rows: Vec<Repair>, seen: &mut BTreeSet<u64>) -> Result<PageDone, MetadataError> {
        let (context, now) = (self.context.clone(), Instant::now());
        // Those alone that are remembered: of a disk that failed there may be millions.
        seen.extend(rows.iter().map(|row| row.id).filter(|id| self.failed.contains_key(id)));
        let due: Vec<Repair> =
            rows.into_iter().filter(|row| self.failed.get(&row.id).is_none_or(|(_, due)| *due <= now)).collect();
        let known = transfer::known(&context, due.iter().map(|row| row.chunk)).await?;
        // A chunk that is here may belong to a write that is not committed yet. If it never is, it goes as an
        // orphan; on a disk that failed it stays, and is looked for again once it is committed.
        let chunks = &context.parts.chunks;
        let is_here = |chunk: ChunkId| chunks.stat(chunk).is_some() && !chunks.is_stranded(chunk);
        let may_matter = |chunk: ChunkId| known.contains(&chunk.content()) || is_here(chunk);
        let (due, mut finished): (Vec<Repair>, Vec<Repair>) = due.into_iter().partition(|row| may_matter(row.chunk));
        let (mut needless, mut bytes) = (finished.len() as u64, 0);
        let repairs = stream::iter(due).map(|row| {
            let context = &context;
            async move {
                if context.repairs_paused() {
                    return (row, None);
                }
                (row, Some(heal(context, row.chunk).await))
            }
        });
        let mut repairs = repairs.buffer_unordered(REPAIRS_AT_ONCE);
        while let Some((row, outcome)) = repairs.next().await {
            match outcome {
                None => {}
                Some(Ok(outcome)) => {
                    finished.push(row);
                    match outcome {
                        Outcome::Healed(size) => bytes += size,
                        Outcome::Needless => needless += 1,
                    }
                }
                Some(Err(error)) => {
                    let is_remembered = self.note_failure(&row, &error);
                    if is_remembered {
                        seen.insert(row.id);
                    }
                }
            }
        }
        drop(repairs);
        if !finished.is_empty() {
            // One that was noticed again meanwhile stays: it may be about what came after the look.
            context.parts.metadata.finish_repairs(&finished).await?;
        }
        let ids: BTreeSet<u64> = finished.iter().map(|row| row.id).collect();
        self.failed.retain(|id, _| !ids.contains(id));
        let ended = ids.len() as u64;
        metrics::counter!("holdfast_repairs_total", "outcome" => "done").increment(ended);
        let mut status = context.shared.repair.lock();
        status.done += ended;
        status.needless += needless;
        Ok(PageDone { ended, bytes })
    }

    /// Tells of a repair that failed, and gives back whether its pause is remembered.
    fn note_failure(&mut self, row: &Repair, error: &TransferError) -> bool {
        tracing::warn!(chunk = %row.chunk, %error, "a repair failed, it is tried again");
        metrics::counter!("holdfast_repairs_total", "outcome" => "failed").increment(1);
        fail(&mut self.context.shared.repair.lock(), format!("chunk {}: {error}", row.chunk));
        self.postpone(row.id)
    }

    /// Gives a repair that failed a pause, and back whether that is remembered.
    fn postpone(&mut self, id: u64) -> bool {
        let is_remembered = self.failed.len() < FAILED_MAX || self.failed.contains_key(&id);
        if is_remembered {
            let (backoff, due) = self.failed.entry(id).or_insert_with(|| (self.context.backoff(), Instant::now()));
            *due = Instant::now() + backoff.pause();
        }
        is_remembered
    }
}
