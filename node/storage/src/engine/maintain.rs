//! Jobs: holes, index files, removal of dead segments; and the thread that runs them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Inner, small_files, space};
use crate::error::{WriteError, is_full, is_out_of_descriptors};
use crate::format::BLOCK_BYTES;
use crate::format::index_file::{IndexEntry, IndexFile};
use crate::format::record::RecordKind;
use crate::index::Location;
use crate::io::{BlockFile, OpenMode};
use crate::jobs::{Abandoned, Job};
use crate::segment::Segment;

/// How often gauges are published, and segments settled where [`crate::segment::SegmentState::is_worth_settling`] says
/// so; the others wait for [`crate::Engine::settle`], which is called less often.
const TICK: Duration = Duration::from_secs(15);

/// How long a shutdown waits for writers to end.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// Starts the thread that runs an engine's jobs. It ends with the engine.
pub(super) fn start_thread(inner: &Arc<Inner>) -> io::Result<()> {
    let (weak, queue) = (Arc::downgrade(inner), Arc::clone(&inner.jobs));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let run = async move {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let ticked = tokio::select! {
                () = queue.woken() => false,
                _ = ticks.tick() => true,
            };
            let Some(inner) = weak.upgrade().filter(|_| !queue.is_closed()) else { return };
            inner.run_jobs().await;
            if ticked {
                inner.settle_amid_jobs().await;
                inner.publish_gauges();
            }
        }
    };
    std::thread::Builder::new().name("storage-jobs".to_owned()).spawn(move || runtime.block_on(run))?;
    Ok(())
}

impl Inner {
    /// Runs what is queued. On return no job runs either that another caller took.
    pub(super) async fn run_jobs(self: &Arc<Self>) {
        let _one_runner = self.running_jobs.lock().await;
        while let Some(job) = self.jobs.pop() {
            match job {
                Job::Punch { segment, block, len } => self.punch_record(&segment, block, len).await,
                Job::Abandon(abandoned) => self.give_back(abandoned).await,
                Job::Seal(segment) => self.write_index_file(&segment).await,
                Job::EndCompaction(segment) => {
                    segment.state.lock().compacting = false;
                    self.remove_if_dead(&segment).await;
                }
                Job::Prepare => self.prepare_segment().await,
            }
        }
    }

    async fn punch_record(self: &Arc<Self>, segment: &Arc<Segment>, block: u32, len: u64) {
        if segment.is_removed() || self.fenced.load(Ordering::SeqCst) {
            return;
        }
        let offset = u64::from(block) * BLOCK_BYTES as u64;
        if let Err(error) = self.erase(segment, offset, len).await {
            self.fence_off("punch hole", &error);
            return;
        }
        {
            let mut state = segment.state.lock();
            state.unpunched.remove(&block);
            state.punched.insert(block);
            state.hole_bytes += len;
        }
        metrics::counter!("holdfast_storage_punched_bytes_total").increment(len);
        self.remove_if_dead(segment).await;
    }

    /// Gives the blocks of a range back. Where the file system has no holes, or is too full to note one, the first
    /// block is overwritten, so that no scan takes the record for alive; compaction gives the space back later.
    pub(super) async fn erase(&self, segment: &Segment, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        if let Some(mapping) = &segment.mapping {
            mapping.clear_verified(offset..offset + len);
        }
        match segment.file.punch_hole(offset, len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported || is_full(&error) => {
                if !is_full(&error) {
                    self.no_holes.store(true, Ordering::Relaxed);
                }
                small_files::write_block(&self.pool, &segment.file, offset, &[0; BLOCK_BYTES]).await
            }
            other => other,
        }
    }

    /// Gives the space of an abandoned reservation back. Cancelled, it queues what is left to do.
    pub(super) async fn give_back(self: &Arc<Self>, abandoned: Abandoned) {
        let mut unfinished = Unfinished { inner: self, abandoned: Some(abandoned) };
        let Some(abandoned) = &mut unfinished.abandoned else { return };
        space::drain(&mut abandoned.writes).await;
        let (block, len, sequence, head_written) =
            (abandoned.block, abandoned.len, abandoned.sequence, abandoned.head_written);
        let segment = Arc::clone(&abandoned.segment);
        let erased = if self.fenced.load(Ordering::SeqCst) {
            Err(io::Error::other("the disk is fenced"))
        } else {
            self.erase_durably(&segment, u64::from(block) * BLOCK_BYTES as u64, len, head_written).await
        };
        match erased {
            Ok(()) => {
                segment.state.lock().hole_bytes += len;
                self.settle_sequence(sequence);
            }
            // The number stays unsettled: no later header calls the torn record stable.
            Err(error) => self.fence_off("give abandoned space back", &error),
        }
        unfinished.abandoned = None;
        self.writer_left(&segment);
    }

    async fn erase_durably(self: &Arc<Self>, segment: &Segment, offset: u64, len: u64, sync: bool) -> io::Result<()> {
        self.erase(segment, offset, len).await?;
        if sync {
            // With the writers of the segment: a sync beside theirs might fail, and theirs succeed without what it
            // lost.
            self.sync_segment(segment).await.map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Writes the index file of a sealed segment that has none.
    async fn write_index_file(self: &Arc<Self>, segment: &Arc<Segment>) {
        let tail = {
            let state = segment.state.lock();
            if !state.sealed || state.writers > 0 || state.indexed {
                return;
            }
            state.cursor
        };
        if self.fenced.load(Ordering::SeqCst) || segment.is_removed() {
            return;
        }
        // At a clean end the unused rest stays allocated: the next start goes on there.
        let rest = segment.header.len_bytes.saturating_sub(tail);
        if !self.closing.load(Ordering::SeqCst)
            && let Err(error) = segment.file.punch_hole(tail, rest)
            && error.kind() != io::ErrorKind::Unsupported
            && !is_full(&error)
        {
            self.fence_off("punch the unused end of a segment", &error);
            return;
        }
        self.settle(segment).await;
        self.remove_if_dead(segment).await;
    }

    /// Settles all segments that have something to settle, and removes those that are dead; see [`super::retention`].
    pub(super) async fn settle_all(self: &Arc<Self>) {
        for segment in self.segments_sorted() {
            self.settle_if_due(&segment, true).await;
        }
    }

    /// The same for the thread that runs the jobs, of segments where it is worth it. It does what is queued meanwhile
    /// before each further segment: after many deletions all segments of a large disk may have something to settle.
    /// That takes minutes, and nobody else gives space back or makes the next segment. Where the engine ends, what is
    /// left is settled by its end.
    async fn settle_amid_jobs(self: &Arc<Self>) {
        // On a full disk room is made as soon as there is some to be made.
        let at_once = self.full.load(Ordering::SeqCst);
        for segment in self.segments_sorted() {
            if self.closing.load(Ordering::SeqCst) {
                return;
            }
            self.settle_if_due(&segment, at_once).await;
            self.run_jobs().await;
        }
    }

    async fn settle_if_due(self: &Arc<Self>, segment: &Arc<Segment>, at_once: bool) {
        let (indexed, due) = {
            let mut state = segment.state.lock();
            let idle = state.sealed && state.writers == 0 && state.unsettled && state.unpunched.is_empty();
            (state.indexed, idle && (at_once || !state.indexed || state.is_worth_settling()))
        };
        if due && !segment.is_removed() {
            if indexed {
                self.settle(segment).await;
            } else {
                // Its index file failed for want of space.
                self.write_index_file(segment).await;
            }
        }
        // Also those that were dead already when the directory was opened.
        self.remove_if_dead(segment).await;
    }

    /// Writes the segment's index file anew without the dead records whose holes are durable, and lets go of the
    /// tombstones that this makes unneeded.
    async fn settle(self: &Arc<Self>, segment: &Arc<Segment>) {
        let _one_at_a_time = self.settling.lock().await;
        if self.fenced.load(Ordering::SeqCst) {
            return;
        }
        match self.try_settle(segment).await {
            Ok(released) => {
                for number in released {
                    if let Some(segment) = self.segment(number) {
                        self.remove_if_dead(&segment).await;
                    }
                }
            }
            Err(error) if is_full(&error) => {
                tracing::warn!(segment = segment.number(), "no space for an index file: it is tried again");
            }
            Err(error) => self.fence_off("write index file", &error),
        }
    }

    async fn try_settle(self: &Arc<Self>, segment: &Arc<Segment>) -> io::Result<Vec<u32>> {
        let number = segment.number();
        let deaths = self.retention.lock().deaths(number);
        let (indexed, punched, tail, sequence_max, entries, kills) = {
            let mut state = segment.state.lock();
            state.unsettled = false;
            state.put_off = 0;
            // What is known to be punched, not what is dead and not known to wait for it: a record that dies from here
            // on must stay listed, or after a crash nobody would punch it, nor keep its tombstone.
            let punched = state.punched.clone();
            let (entries, kills) =
                if state.indexed { (vec![], vec![]) } else { (state.entries.clone(), state.kills.clone()) };
            (state.indexed, punched, state.cursor, state.sequence_max, entries, kills)
        };
        let mut settling = Settling { segment, done: false };
        let (entries, kills) = if indexed { self.listed(segment).await? } else { (entries, kills) };
        // The holes before the list that omits what was there.
        segment.file.sync_data().await?;
        let mut clean = true;
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries {
            let location = Location { segment: number, block: entry.block, extent: entry.extent };
            let dead = self.index.get(&entry.id) != Some(location);
            if !dead || !punched.contains(&entry.block) {
                clean &= !dead;
                kept.push(entry);
            }
        }
        kept.sort_unstable_by_key(|entry| entry.block);
        let file = IndexFile { segment: number, salt: segment.header.salt, tail, sequence_max, entries: kept, kills };
        self.replace_file(&segment.index_path, &file.encode()).await?;
        {
            let mut state = segment.state.lock();
            state.unsettled |= !clean;
            state.indexed = true;
            settling.done = true;
            state.punched.retain(|block| !punched.contains(block));
            state.entries = vec![];
            state.kills = vec![];
        }
        segment.close_direct();
        if !clean {
            return Ok(vec![]);
        }
        let released = self.retention.lock().settled(number, deaths);
        if released.is_none() {
            segment.state.lock().unsettled = true;
        }
        Ok(released.unwrap_or_default())
    }

    /// What the index file of a segment lists. A damaged one is made anew from the index in memory and a scan.
    ///
    /// # Errors
    /// When the scan cannot read the segment whole, or finds tombstones damaged: who goes on without them forgets
    /// deletions. And when there are no descriptors.
    pub(crate) async fn listed(
        &self,
        segment: &Segment,
    ) -> io::Result<(Vec<IndexEntry>, Vec<crate::format::record::Kill>)> {
        let bytes = match small_files::read_file(&self.io, &self.pool, &segment.index_path).await {
            Err(error) if is_out_of_descriptors(&error) => return Err(error),
            read => read.ok(),
        };
        if let Some(bytes) = bytes
            && let Ok(file) = IndexFile::decode(&bytes)
            && (file.segment, file.salt) == (segment.number(), segment.header.salt)
        {
            return Ok((file.entries, file.kills));
        }
        tracing::warn!(segment = segment.number(), "index file damaged: scanning the segment");
        crate::read::clear_verified(segment, 0..segment.header.len_bytes);
        let scan = super::scan::scan(&self.pool, &segment.file, &segment.header).await?;
        let lost = scan.suspects.iter().any(|suspect| suspect.header.kind == RecordKind::Tombstones);
        if lost || !scan.unread.is_empty() {
            let detail =
                format!("neither the index file of segment {} is readable nor all of its records", segment.number());
            return Err(io::Error::other(detail));
        }
        Ok((scan.entries(), scan.kills))
    }

    /// Writes a small file whole and puts it in the place of an old one, durably.
    pub(crate) async fn replace_file(&self, path: &std::path::Path, bytes: &[u8]) -> io::Result<()> {
        small_files::replace_file(&self.io, &self.pool, &self.config.dir, path, bytes).await
    }

    /// Unlinks a segment in which nothing is alive and no tombstone needed, and then those that only waited for it.
    pub(crate) async fn remove_if_dead(self: &Arc<Self>, segment: &Arc<Segment>) {
        let mut candidates = vec![Arc::clone(segment)];
        while let Some(segment) = candidates.pop() {
            if !self.is_dead(&segment) || segment.removed.swap(true, Ordering::SeqCst) {
                continue;
            }
            match self.unlink_segment(&segment) {
                Ok(released) => candidates.extend(released.into_iter().filter_map(|number| self.segment(number))),
                Err(error) => {
                    self.fence_off("remove segment", &error);
                    return;
                }
            }
        }
    }

    fn is_dead(&self, segment: &Segment) -> bool {
        if self.fenced.load(Ordering::SeqCst) || self.is_active(segment) {
            return false;
        }
        let dead = {
            let state = segment.state.lock();
            state.sealed && state.indexed && state.writers == 0 && state.live_count == 0 && !state.compacting
        };
        dead && !self.retention.lock().is_needed(segment.number())
    }

    fn unlink_segment(&self, segment: &Segment) -> io::Result<Vec<u32>> {
        match self.io.unlink(&segment.index_path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.io.unlink(&segment.path)?;
        // Taken before the sync, which covers them then.
        let mut gone = std::mem::take(&mut *self.unsynced_removals.lock());
        gone.push(segment.number());
        let synced = self.io.sync_dir(&self.config.dir);
        let is_durable = match synced {
            Err(error) if !is_out_of_descriptors(&error) => return Err(error),
            synced => synced.is_ok(),
        };
        self.segments.write().remove(&segment.number());
        metrics::counter!("holdfast_storage_segments_removed_total").increment(1);
        tracing::debug!(disk = %self.config.dir.display(), segment = segment.number(), "dead segment removed");
        if !is_durable {
            // A crash may bring it back: what says that it is dead stays, until a later removal syncs the directory.
            self.unsynced_removals.lock().extend(gone);
            return Ok(vec![]);
        }
        let mut retention = self.retention.lock();
        Ok(gone.into_iter().flat_map(|number| retention.removed(number)).collect())
    }

    pub(super) async fn shutdown(self: &Arc<Self>) -> Result<(), WriteError> {
        self.closing.store(true, Ordering::SeqCst);
        let inner = Arc::clone(self);
        let closed = self.apart(async move { inner.close().await });
        // A disk that does not answer is left as it is. The jobs thread may wait for it, and would be waited for.
        self.watch.while_responsive(async { closed.await.unwrap_or(Err(WriteError::Closed)) }).await
    }

    async fn close(self: &Arc<Self>) -> Result<(), WriteError> {
        let drained = self.drain();
        if !self.config.background {
            drained.await;
        } else if tokio::time::timeout(DRAIN_MAX, drained).await.is_err() {
            tracing::warn!(disk = %self.config.dir.display(), "writers still run: closing without them");
        }
        self.seal_active();
        self.run_jobs().await;
        if !self.fenced.load(Ordering::SeqCst) {
            self.settle_all().await;
            // What the background thread settles counts as settled already: wait until it is.
            drop(self.settling.lock().await);
        }
        self.publish_gauges();
        match self.fence.lock().clone() {
            Some(reason) => Err(WriteError::Fenced(reason)),
            None => Ok(()),
        }
    }

    /// Waits until no reservation is open.
    async fn drain(self: &Arc<Self>) {
        loop {
            let settled = self.writes_settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            self.run_jobs().await;
            if self.open_writes.load(Ordering::SeqCst) == 0 {
                return;
            }
            // A writer that is dropped makes a job, one that finishes settles.
            tokio::select! {
                () = settled => {}
                () = self.jobs.woken() => {}
            }
        }
    }
}

/// Space that is being given back.
struct Unfinished<'a> {
    inner: &'a Inner,
    abandoned: Option<Abandoned>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(abandoned) = self.abandoned.take() {
            self.inner.jobs.push(Job::Abandon(abandoned));
        }
    }
}

/// Settling that has not come to its end: the segment stays due.
struct Settling<'a> {
    segment: &'a Segment,
    done: bool,
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.segment.state.lock().unsettled = true;
        }
    }
}

/// Opens for writing what may be left from an interrupted attempt.
pub(super) fn create_anew(io: &Arc<dyn crate::io::BlockIo>, path: &std::path::Path) -> io::Result<Arc<dyn BlockFile>> {
    match io.create(path, OpenMode::Buffered) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            io.unlink(path)?;
            io.create(path, OpenMode::Buffered)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests;
