//! Places of writes for peers, by number and by announced bytes.
//!
//! A write on which nothing comes keeps its place: behind its peer may be a client that is as slow as clients may be,
//! and only the peer knows whether there still is. So does a write that a peer has forgotten. When there is no place
//! for another write, those are taken back that have waited for bytes for [`SILENT_MIN`], the longest first and as few
//! as it takes; where all of them would not be enough, none is.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::ReplicaLimits;
use crate::ports::ChunkError;

/// Announced bytes are counted in units of this, so that they fit a semaphore.
const UNIT_BYTES: u64 = 4_096;
/// Of a client that brings a chunk in the 15 minutes that it has, its node passes on a piece, 1 MiB, in less.
pub(super) const SILENT_MIN: Duration = Duration::from_secs(60);
/// How long a new write waits for the place of one that was taken back: whoever waits there for bytes wakes, and drops
/// it.
const ROOM_MAX: Duration = Duration::from_millis(200);
/// The disk is at work on what came.
const AT_WORK: u64 = u64::MAX;

/// See the module's page.
pub(super) struct Places {
    writes: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    began: Instant,
    /// Those that were not taken back; as many as there are places, at most.
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    last: u64,
    writes: HashMap<u64, Arc<Waiting>>,
}

/// What is known of a write that has a place.
struct Waiting {
    units: usize,
    /// Since when it waits for bytes, from `began` on, or [`AT_WORK`].
    since_ms: AtomicU64,
    taken_back: CancellationToken,
}

/// The place of a write, until this is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    waiting: Arc<Waiting>,
    _permits: [OwnedSemaphorePermit; 2],
}

impl Places {
    /// As many as the limits say.
    pub(super) fn new(limits: &ReplicaLimits) -> Arc<Self> {
        let units = (limits.bytes_max / UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS as u64);
        Arc::new(Self {
            writes: Arc::new(Semaphore::new(limits.writes_max)),
            bytes: Arc::new(Semaphore::new(units as usize)),
            began: Instant::now(),
            held: Mutex::default(),
        })
    }

    /// A place for a write of so many bytes, at work. `None`: there is none. Waits only, and for [`ROOM_MAX`] at most,
    /// where others were taken back for it.
    pub(super) async fn take(self: &Arc<Self>, size_bytes: u32) -> Option<Place> {
        let units = u64::from(size_bytes).div_ceil(UNIT_BYTES) as u32;
        let permits = match self.try_permits(units) {
            Some(permits) => permits,
            None if self.take_back(units as usize) => timeout(ROOM_MAX, self.permits(units)).await.ok()??,
            None => return None,
        };
        let waiting = Arc::new(Waiting {
            units: units as usize,
            since_ms: AtomicU64::new(AT_WORK),
            taken_back: CancellationToken::new(),
        });
        let held = &mut *self.held.lock();
        held.last += 1;
        held.writes.insert(held.last, Arc::clone(&waiting));
        Some(Place { places: Arc::clone(self), number: held.last, waiting, _permits: permits })
    }

    fn try_permits(&self, units: u32) -> Option<[OwnedSemaphorePermit; 2]> {
        let write = Arc::clone(&self.writes).try_acquire_owned().ok()?;
        Some([write, Arc::clone(&self.bytes).try_acquire_many_owned(units).ok()?])
    }

    async fn permits(&self, units: u32) -> Option<[OwnedSemaphorePermit; 2]> {
        let write = Arc::clone(&self.writes).acquire_owned().await.ok()?;
        Some([write, Arc::clone(&self.bytes).acquire_many_owned(units).await.ok()?])
    }

    /// Takes writes back that make room for another one, if there are enough of them.
    fn take_back(&self, units: usize) -> bool {
        let now_ms = self.now_ms();
        let held = &mut *self.held.lock();
        let mut silent: Vec<(u64, u64, usize)> = held
            .writes
            .iter()
            .map(|(number, write)| (write.since_ms.load(Ordering::Relaxed), *number, write.units))
            .filter(|(since_ms, ..)| now_ms.saturating_sub(*since_ms) >= SILENT_MIN.as_millis() as u64)
            .collect();
        silent.sort_unstable_by_key(|(since_ms, ..)| Reverse(*since_ms));
        let (mut writes, mut bytes) = (self.writes.available_permits(), self.bytes.available_permits());
        let mut taken = Vec::new();
        while writes == 0 || bytes < units {
            let Some((_, number, freed)) = silent.pop() else { return false };
            taken.push(number);
            writes += 1;
            bytes += freed;
        }
        for number in taken {
            if let Some(write) = held.writes.remove(&number) {
                write.taken_back.cancel();
                metrics::counter!("holdfast_replica_refused_total", "reason" => "silent").increment(1);
                tracing::debug!(bytes = write.units as u64 * UNIT_BYTES, "a silent write gives its place up");
            }
        }
        true
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}

impl Place {
    /// What came is worked on, so that the write is not silent.
    ///
    /// # Errors
    /// [`ChunkError::Unavailable`] when the place was taken back.
    pub(super) fn works(&self) -> Result<(), ChunkError> {
        self.waiting.since_ms.store(AT_WORK, Ordering::Relaxed);
        if self.waiting.taken_back.is_cancelled() {
            let detail = "nothing came for long, and the place of the write was needed".to_owned();
            return Err(ChunkError::Unavailable(detail));
        }
        Ok(())
    }

    /// Bytes of the peer are waited for.
    pub(super) fn waits(&self) {
        self.waiting.since_ms.store(self.places.now_ms(), Ordering::Relaxed);
    }

    /// Cancelled when the place is taken back.
    pub(super) fn taken_back(&self) -> CancellationToken {
        self.waiting.taken_back.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.held.lock().writes.remove(&self.number);
    }
}
