//! One segment while the engine runs: its files, who writes into it, who reads from it, and what of it is alive.
//!
//! A segment is *open* (takes reservations), then *sealed* (takes none), then *indexed* (has no writer left, and its
//! index file is on the disk). Its life ends when nothing in it is alive and no tombstone in it is needed, or when
//! compaction moved what was.
//!
//! **Pins.** A reader pins the record that it reads, under the lock of the index shard that it was looked up in. A
//! record that dies while pinned gets its hole when the last pin drops. So no byte that a reader may still send changes
//! under it. The file itself may be unlinked at any time: mapping and descriptor keep it alive.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::buf::BufferPool;
use crate::commit::GroupCommit;
use crate::format::index_file::IndexEntry;
use crate::format::record::{Kill, RecordPlace};
use crate::format::segment::SegmentHeader;
use crate::io::BlockFile;
use crate::jobs::{Job, JobQueue};
use crate::mapping::Mapping;
use crate::watch::Watch;

/// A segment file of this disk.
pub(crate) struct Segment {
    pub(crate) header: SegmentHeader,
    pub(crate) path: PathBuf,
    pub(crate) index_path: PathBuf,
    /// Buffered, for reads, holes and the mapping.
    pub(crate) file: Arc<dyn BlockFile>,
    /// `O_DIRECT`, for writes and their sync; gone once the segment is indexed.
    direct: Mutex<Option<Arc<dyn BlockFile>>>,
    /// None where files cannot be mapped (the simulation); reads then come from buffers.
    pub(crate) mapping: Option<Arc<Mapping>>,
    pub(crate) commit: GroupCommit,
    pub(crate) state: Mutex<SegmentState>,
    /// Set for good once the file is unlinked.
    pub(crate) removed: AtomicBool,
    pins: Mutex<BTreeMap<u32, Pinned>>,
    jobs: Arc<JobQueue>,
}

/// What changes in a segment's life.
#[derive(Debug, Default)]
pub(crate) struct SegmentState {
    /// Where the next record goes, in bytes.
    pub(crate) cursor: u64,
    /// Takes no more reservations.
    pub(crate) sealed: bool,
    /// Reservations that are neither finished nor given up and punched.
    pub(crate) writers: u32,
    /// Chunks by block, until the index file is written.
    pub(crate) entries: Vec<IndexEntry>,
    /// Tombstones, until the index file is written.
    pub(crate) kills: Vec<Kill>,
    /// Highest sequence number of the segment's records.
    pub(crate) sequence_max: u64,
    /// The index file is on the disk.
    pub(crate) indexed: bool,
    /// Live chunk records and the bytes that they occupy, heads and padding included.
    pub(crate) live_count: u64,
    pub(crate) live_bytes: u64,
    /// Live payload bytes.
    pub(crate) payload_bytes: u64,
    /// Bytes of tombstone records.
    pub(crate) tombstone_bytes: u64,
    /// Tombstones, for as long as the segment lives.
    pub(crate) kill_count: usize,
    /// Dead records whose hole is still to be punched: block → bytes.
    pub(crate) unpunched: BTreeMap<u32, u64>,
    /// Dead records that were punched and that the index file still lists.
    pub(crate) punched: BTreeSet<u32>,
    /// Bytes given back to the file system.
    pub(crate) hole_bytes: u64,
    /// Dead records may be listed in the index file or found by a scan: tombstones for them are still needed.
    pub(crate) unsettled: bool,
    /// How often settling was put off since it was last done: see [`SegmentState::is_worth_settling`].
    pub(crate) put_off: u32,
    /// Compaction met a record here that it could not verify: the segment stays until that record is deleted.
    pub(crate) unmovable: bool,
    /// Records are being copied out: the file must not go before the last copy is either named by the index or erased.
    pub(crate) compacting: bool,
}

/// A segment of whose listed records one in so many is gone is settled at once.
const SETTLED_SHARE: u64 = 8;

/// A segment is settled at the latest when that was put off so often.
pub(crate) const PUT_OFF_MAX: u32 = 240;

impl SegmentState {
    /// Whether enough of what the index file lists is gone for it to be written anew already; if not, that is put off.
    ///
    /// All of the file is written, however little changed in it. With deletions all over a large disk each of its
    /// segments always has something to settle, and settled at each look, every death would cost a whole file and three
    /// flushes. What is put off costs little: the tombstones of these deaths are kept for longer, and a start after a
    /// crash finds the deaths by them and punches the holes once more.
    pub(crate) fn is_worth_settling(&mut self) -> bool {
        let gone = self.punched.len() as u64;
        let listed = self.live_count + self.kill_count as u64 + gone;
        if gone * SETTLED_SHARE >= listed || self.put_off >= PUT_OFF_MAX {
            return true;
        }
        self.put_off += 1;
        false
    }
}

#[derive(Default)]
struct Pinned {
    readers: u32,
    /// Bytes of the record, once it is dead and waits for its readers.
    dead_len: Option<u64>,
}

impl Segment {
    #[expect(clippy::too_many_arguments, reason = "a constructor with one argument a field")]
    pub(crate) fn new(
        header: SegmentHeader,
        path: PathBuf,
        index_path: PathBuf,
        file: Arc<dyn BlockFile>,
        direct: Option<Arc<dyn BlockFile>>,
        mapping: Option<Arc<Mapping>>,
        state: SegmentState,
        jobs: Arc<JobQueue>,
    ) -> Arc<Self> {
        Arc::new(Self {
            header,
            path,
            index_path,
            file,
            direct: Mutex::new(direct),
            mapping,
            commit: GroupCommit::default(),
            state: Mutex::new(state),
            removed: AtomicBool::new(false),
            pins: Mutex::default(),
            jobs,
        })
    }

    /// The segment's number.
    pub(crate) fn number(&self) -> u32 {
        self.header.number
    }

    /// Where a record is bound to.
    pub(crate) fn place(&self, offset: u64) -> RecordPlace {
        RecordPlace { salt: self.header.salt, segment: self.header.number, offset }
    }

    /// The file that writes go to.
    pub(crate) fn direct(&self) -> Option<Arc<dyn BlockFile>> {
        self.direct.lock().clone()
    }

    /// Lets go of the descriptor for writes.
    pub(crate) fn close_direct(&self) {
        *self.direct.lock() = None;
    }

    /// Takes the descriptor for writes of a segment that goes on.
    pub(crate) fn reopen_direct(&self, direct: Arc<dyn BlockFile>) {
        *self.direct.lock() = Some(direct);
    }

    /// Teaches the mapping to bring evicted pages back verified, while the disk answers.
    pub(crate) fn set_refresh(self: &Arc<Self>, pool: &Arc<BufferPool>, watch: &Arc<Watch>) {
        let Some(mapping) = &self.mapping else { return };
        let (segment, pool, watch) = (Arc::downgrade(self), Arc::clone(pool), Arc::clone(watch));
        mapping.set_refresh(Box::new(move |range| {
            let (segment, pool, watch) = (segment.clone(), Arc::clone(&pool), Arc::clone(&watch));
            Box::pin(async move {
                let segment = segment.upgrade().ok_or_else(|| io::Error::other("the disk engine is gone"))?;
                let silent = || io::Error::new(io::ErrorKind::TimedOut, "the disk does not answer");
                if watch.is_unresponsive() {
                    // Each such read would keep its buffer for as long as the disk is silent.
                    return Err(silent());
                }
                tokio::select! {
                    biased;
                    done = crate::read::refresh(&segment, &pool, range) => done,
                    () = watch.found_unresponsive() => Err(silent()),
                }
            })
        }));
    }

    /// The pinned record that an offset lies in or behind: a slice that is being sent pins its record.
    pub(crate) fn pinned_before(&self, offset: u64) -> Option<u32> {
        let block = u32::try_from(offset / crate::format::BLOCK_BYTES as u64).unwrap_or(u32::MAX);
        self.pins.lock().range(..=block).next_back().map(|(block, _)| *block)
    }

    /// Keeps the record at `block` from being punched.
    pub(crate) fn pin(self: &Arc<Self>, block: u32) -> Pin {
        self.pins.lock().entry(block).or_default().readers += 1;
        Pin { segment: Arc::clone(self), block }
    }

    /// Accounts for the death of a record that the index does not name any more, and gives its space back once no
    /// reader has it.
    pub(crate) fn bury(self: &Arc<Self>, block: u32, record_len: u64, payload_len: u64) {
        {
            let mut state = self.state.lock();
            state.live_count -= 1;
            state.live_bytes -= record_len;
            state.payload_bytes -= payload_len;
            state.unmovable = false;
        }
        self.release(block, record_len);
    }

    /// Gives the space of a record back that is not accounted as alive.
    pub(crate) fn release(self: &Arc<Self>, block: u32, record_len: u64) {
        {
            let mut state = self.state.lock();
            state.unpunched.insert(block, record_len);
            state.unsettled = true;
        }
        let mut pins = self.pins.lock();
        if let Some(pinned) = pins.get_mut(&block) {
            pinned.dead_len = Some(record_len);
            return;
        }
        drop(pins);
        self.jobs.push(Job::Punch { segment: Arc::clone(self), block, len: record_len });
    }

    /// Whether the file was unlinked.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }
}

/// A reader's hold on one record.
pub(crate) struct Pin {
    pub(crate) segment: Arc<Segment>,
    block: u32,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.segment.pins.lock();
        let Some(pinned) = pins.get_mut(&self.block) else { return };
        pinned.readers -= 1;
        if pinned.readers > 0 {
            return;
        }
        let dead_len = pinned.dead_len;
        pins.remove(&self.block);
        drop(pins);
        if let Some(len) = dead_len {
            let segment = Arc::clone(&self.segment);
            self.segment.jobs.push(Job::Punch { segment, block: self.block, len });
        }
    }
}
