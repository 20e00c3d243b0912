//! Where the next record goes: reservations and sequence numbers.
//!
//! Writers append concurrently: each reserves the space of its whole record in the active segment under a short lock,
//! and then writes its own range. When a record does not fit, a new segment becomes active, prepared ahead in the
//! background if possible, and the old one is sealed.
//!
//! **Full disks.** A segment is made only if the file system keeps its reserve ([`super::make`]). The last part of each
//! segment takes tombstones only, and tombstones may make small segments out of the reserve: a full disk can always
//! delete.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::FutureExt;
use holdfast_protocol::ChunkId;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Inner;
use super::make::tombstone_share;
use crate::error::WriteError;
use crate::format::BLOCK_BYTES;
use crate::jobs::{Abandoned, Job, Writes};
use crate::segment::Segment;

/// Tombstones that one segment takes, or a few more: they are kept in memory until its index file is written, and that
/// file, and each start, are to stay small. Without a bound, millions of deletions in a row would be in one segment.
pub(super) const KILLS_MAX: usize = if cfg!(test) { 64 } else { 1 << 19 };

/// What a record is reserved for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A new chunk, or one that compaction moves.
    Chunk,
    /// A deletion: goes into what is kept back for it.
    Tombstones,
}

/// The state of this module.
pub(super) struct Space {
    active: Mutex<Active>,
    /// Held while the active segment is exchanged, and while the next one is made.
    rotation: tokio::sync::Mutex<()>,
    pub(super) next_segment: AtomicU32,
}

#[derive(Default)]
struct Active {
    segment: Option<Arc<Segment>>,
    standby: Option<Arc<Segment>>,
    preparing: bool,
}

impl Space {
    pub(super) fn new(next_segment: u32, resumed: Option<Arc<Segment>>) -> Self {
        Self {
            active: Mutex::new(Active { segment: resumed, ..Active::default() }),
            rotation: tokio::sync::Mutex::new(()),
            next_segment: AtomicU32::new(next_segment),
        }
    }
}

/// Sequence numbers: drawn in the order of reservations, settled in any order.
#[derive(Debug)]
pub(crate) struct Sequences {
    next: u64,
    unsettled: BTreeSet<u64>,
}

impl Sequences {
    pub(crate) fn starting_at(next: u64) -> Self {
        Self { next, unsettled: BTreeSet::new() }
    }

    /// A number that is settled at once: its meaning does not depend on a record of its own.
    pub(crate) fn draw(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn draw_unsettled(&mut self) -> u64 {
        let sequence = self.draw();
        self.unsettled.insert(sequence);
        sequence
    }

    fn settle(&mut self, sequence: u64) {
        self.unsettled.remove(&sequence);
    }

    /// All records up to this number are durable or given up.
    fn stable(&self) -> u64 {
        self.unsettled.first().map_or(self.next, |first| *first) - 1
    }
}

/// Space for one record. Dropped before [`Reservation::settle`], it is given back once `writes` have ended.
pub(crate) struct Reservation {
    inner: Arc<Inner>,
    pub(crate) segment: Arc<Segment>,
    /// Offset of the record in the segment, in bytes.
    pub(crate) offset: u64,
    len: u64,
    pub(crate) sequence: u64,
    /// Writes into the reservation that run.
    pub(crate) writes: Writes,
    /// A header may have been written.
    pub(crate) head_written: bool,
    settled: bool,
}

impl Reservation {
    /// First block of the record.
    pub(crate) fn block(&self) -> u32 {
        (self.offset / BLOCK_BYTES as u64) as u32
    }

    /// Gives the space up, for a caller that wants to await its end.
    pub(super) fn abandon(mut self) -> Abandoned {
        self.settled = true;
        self.abandoned()
    }

    fn abandoned(&mut self) -> Abandoned {
        Abandoned {
            segment: Arc::clone(&self.segment),
            block: self.block(),
            len: self.len,
            sequence: self.sequence,
            writes: std::mem::take(&mut self.writes),
            head_written: self.head_written,
        }
    }

    /// The record is durable and accounted for: the segment may be sealed without it.
    pub(crate) fn settle(mut self) {
        self.settled = true;
        self.inner.sequences.lock().settle(self.sequence);
        self.inner.writer_left(&self.segment);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let abandoned = self.abandoned();
        self.inner.jobs.push(Job::Abandon(abandoned));
    }
}

impl Inner {
    /// Reserves `len` bytes (whole blocks) at the end of the active segment.
    ///
    /// # Errors
    /// [`WriteError::NoSpace`], and what making a segment brings.
    pub(crate) async fn reserve(self: &Arc<Self>, len: u64, purpose: Purpose) -> Result<Reservation, WriteError> {
        debug_assert!(len.is_multiple_of(BLOCK_BYTES as u64));
        if len > self.record_len_max() {
            return Err(WriteError::Invalid(format!("a record of {len} bytes is larger than a segment takes")));
        }
        loop {
            self.check_writable()?;
            if let Some(reservation) = self.try_reserve(len, purpose, KILLS_MAX) {
                return Ok(reservation);
            }
            let _rotating = self.space.rotation.lock().await;
            if let Some(reservation) = self.try_reserve(len, purpose, KILLS_MAX) {
                return Ok(reservation);
            }
            let standby = self.space.active.lock().standby.take();
            let segment = match standby {
                Some(segment) => segment,
                None => match self.make_segment(len, purpose).await {
                    // Deletions are what makes room: what is left in the segment at hand is for them.
                    Err(WriteError::NoSpace) if purpose == Purpose::Tombstones => {
                        return self.try_reserve(len, purpose, usize::MAX).ok_or(WriteError::NoSpace);
                    }
                    made => made?,
                },
            };
            self.activate(segment);
            if purpose == Purpose::Chunk {
                self.set_full(false);
            }
        }
    }

    /// The longest record that a segment of configured length takes.
    fn record_len_max(&self) -> u64 {
        let len = self.config.segment_size_bytes;
        len - BLOCK_BYTES as u64 - tombstone_share(len)
    }

    fn try_reserve(self: &Arc<Self>, len: u64, purpose: Purpose, kills_max: usize) -> Option<Reservation> {
        let mut active = self.space.active.lock();
        let segment = Arc::clone(active.segment.as_ref()?);
        let mut state = segment.state.lock();
        let limit = match purpose {
            Purpose::Chunk => segment.header.len_bytes - tombstone_share(segment.header.len_bytes),
            Purpose::Tombstones => segment.header.len_bytes,
        };
        let is_full_of_kills = purpose == Purpose::Tombstones && state.kills.len() >= kills_max;
        if state.sealed || is_full_of_kills || state.cursor + len > limit {
            return None;
        }
        let offset = state.cursor;
        state.cursor += len;
        state.writers += 1;
        let nearly_full = state.cursor > limit / 4 * 3;
        drop(state);
        // Drawn under the lock of the active segment: numbers rise with places.
        let sequence = self.sequences.lock().draw_unsettled();
        self.open_writes.fetch_add(1, Ordering::SeqCst);
        if nearly_full && self.config.background && active.standby.is_none() && !active.preparing {
            active.preparing = true;
            self.jobs.push(Job::Prepare);
        }
        drop(active);
        Some(Reservation {
            inner: Arc::clone(self),
            segment,
            offset,
            len,
            sequence,
            writes: Writes::new(),
            head_written: false,
            settled: false,
        })
    }

    /// What a header that is built now may say to be stable.
    pub(crate) fn stable_sequence(&self) -> u64 {
        self.sequences.lock().stable()
    }

    /// A number for a tombstone's entry; see [`Sequences::draw`].
    pub(super) fn draw_sequence(&self) -> u64 {
        self.sequences.lock().draw()
    }

    pub(super) fn settle_sequence(&self, sequence: u64) {
        self.sequences.lock().settle(sequence);
    }

    /// Counts a settled reservation; the last one of a sealed segment lets its index file be written.
    pub(super) fn writer_left(&self, segment: &Arc<Segment>) {
        let ready = {
            let mut state = segment.state.lock();
            state.writers -= 1;
            state.sealed && state.writers == 0
        };
        if ready {
            self.jobs.push(Job::Seal(Arc::clone(segment)));
        }
        if self.open_writes.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.writes_settled.notify_waiters();
        }
    }

    fn activate(&self, segment: Arc<Segment>) {
        let old = self.space.active.lock().segment.replace(segment);
        if let Some(old) = old {
            self.seal(&old);
        }
        self.seal_if_closing();
    }

    /// Takes no more reservations in `segment`.
    fn seal(&self, segment: &Arc<Segment>) {
        let ready = {
            let mut state = segment.state.lock();
            state.sealed = true;
            state.writers == 0
        };
        if ready {
            self.jobs.push(Job::Seal(Arc::clone(segment)));
        }
    }

    /// Seals the active segment and drops the standby one: the engine is closing.
    pub(super) fn seal_active(&self) -> Option<Arc<Segment>> {
        let mut active = self.space.active.lock();
        let (old, standby) = (active.segment.take(), active.standby.take());
        drop(active);
        if let Some(standby) = standby {
            self.seal(&standby);
        }
        if let Some(old) = &old {
            self.seal(old);
        }
        old
    }

    /// Seals what became active or ready after the engine had begun to close, or the next start would have to scan it.
    fn seal_if_closing(&self) {
        if self.closing.load(Ordering::SeqCst) {
            self.seal_active();
        }
    }

    /// Whether new records go there, now or next.
    pub(super) fn is_active(&self, segment: &Segment) -> bool {
        let active = self.space.active.lock();
        let is = |other: &Option<Arc<Segment>>| other.as_ref().is_some_and(|o| o.number() == segment.number());
        is(&active.segment) || is(&active.standby)
    }

    /// Makes the next segment before it is needed.
    pub(super) async fn prepare_segment(self: &Arc<Self>) {
        // Numbers must rise with use: of two copies of a chunk, the start takes that in the higher segment for the one
        // that stands. A writer that needed a segment meanwhile would use one with a higher number first.
        let _rotating = self.space.rotation.lock().await;
        let wanted = self.check_writable().is_ok();
        let made = if wanted { self.make_segment(0, Purpose::Chunk).await.ok() } else { None };
        {
            let mut active = self.space.active.lock();
            active.preparing = false;
            if let Some(segment) = made {
                active.standby = Some(segment);
            }
        }
        self.seal_if_closing();
    }

    /// Runs blocking control operations off the data plane's threads.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if !self.config.background {
            return work();
        }
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => runtime.spawn_blocking(work).await.map_err(io::Error::other)?,
            Err(_) => work(),
        }
    }

    /// Does `work`, which blocks now and then, on a thread of its own: where the disk hangs, that thread hangs with it,
    /// and not one that serves others. Dropped, it drops `work`, as soon as the disk lets it. `None` when the runtime
    /// ends.
    pub(super) async fn apart<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let runtime = match tokio::runtime::Handle::try_current() {
            Ok(runtime) if self.config.background => runtime,
            _ => return Some(work.await),
        };
        // Closed when this future is dropped.
        let (_caller, mut left) = oneshot::channel::<()>();
        let here = runtime.clone();
        let done = runtime.spawn_blocking(move || {
            here.block_on(async move {
                tokio::select! {
                    biased;
                    _ = &mut left => None,
                    done = work => Some(done),
                }
            })
        });
        match done.await {
            Ok(done) => done,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => None,
        }
    }

    /// Takes an id for a new chunk.
    pub(crate) fn begin_create(&self, id: ChunkId) -> Result<(), WriteError> {
        if !self.creating.lock().insert(id) {
            return Err(WriteError::Exists(id));
        }
        // After the insert: of two writers, the later one sees the first one's mark or its chunk.
        if self.index.get(&id).is_some() {
            self.end_create(&id);
            return Err(WriteError::Exists(id));
        }
        Ok(())
    }

    pub(crate) fn end_create(&self, id: &ChunkId) {
        self.creating.lock().remove(id);
    }
}

/// Waits for the writes of an abandoned reservation; their errors matter to nobody.
pub(super) async fn drain(writes: &mut Writes) {
    use futures::StreamExt;
    while writes.next().await.is_some() {}
}

/// Starts a write without waiting for it.
pub(crate) fn start(writes: &mut Writes, mut write: crate::io::IoFuture<io::Result<()>>) -> io::Result<()> {
    // Polled once, it runs to its end whether or not anybody waits.
    match (&mut write).now_or_never() {
        Some(done) => done,
        None => {
            writes.push(write);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
