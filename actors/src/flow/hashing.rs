//! Hashing off the data plane.
//!
//! MD5 runs at half a gigabyte a second, and S3's ETag needs it. A data-plane thread that hashed would stand still for
//! every other connection, so large objects are hashed by a small pool of threads while the disk writes the same bytes.
//! Each object has a [`HashLane`]: its pieces are taken in order by one worker at a time, and at most
//! [`PIECES_IN_FLIGHT_MAX`] batches wait, which bounds memory and pushes back on the sender. A small object is hashed
//! in place: handing it over would cost more than the hash.
//!
//! The pool holds no state of an object beyond its lane, so all nodes of a process share one. A lane that is dropped
//! early is finished by no one: its worker drops the queued pieces and moves on.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use holdfast_protocol::ChecksumAlgorithm;
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use crate::domain::objects::digests::{Digester, Digests};

/// Objects up to this size are hashed where they are.
pub const INLINE_SIZE_MAX: u64 = 64 << 10;

/// Pieces are gathered to at least this size before they are handed over: a wake-up costs as much as hashing 20 KiB.
const BATCH_SIZE_BYTES: usize = 256 << 10;

/// Most batches of one object that wait for a worker.
const PIECES_IN_FLIGHT_MAX: usize = 3;

/// Most threads of the pool. MD5 of one object cannot be split, so more threads than cores serve nobody.
const THREADS_MAX: usize = 16;

/// Threads that hash. Lanes with work wait in `ready`, each at most once.
struct HashPool {
    ready: Mutex<VecDeque<Arc<Lane>>>,
    wake: Condvar,
}

/// The process's pool, started by its first use.
static POOL: LazyLock<Arc<HashPool>> = LazyLock::new(|| {
    let pool = Arc::new(HashPool { ready: Mutex::default(), wake: Condvar::new() });
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(1, THREADS_MAX);
    let mut started = 0;
    for index in 0..threads {
        let worker = Arc::clone(&pool);
        match std::thread::Builder::new().name(format!("hash-{index}")).spawn(move || worker.run()) {
            Ok(_) => started += 1,
            Err(error) => tracing::warn!(%error, "cannot start a hash thread"),
        }
    }
    assert!(started > 0, "the system refuses every thread");
    pool
});

impl HashPool {
    fn schedule(&self, lane: Arc<Lane>) {
        self.ready.lock().push_back(lane);
        self.wake.notify_one();
    }

    fn run(&self) {
        loop {
            let lane = {
                let mut ready = self.ready.lock();
                loop {
                    match ready.pop_front() {
                        Some(lane) => break lane,
                        None => self.wake.wait(&mut ready),
                    }
                }
            };
            if lane.hash_one_batch() {
                self.schedule(lane);
            }
        }
    }
}

/// An object's place in the pool.
struct Lane {
    state: Mutex<LaneState>,
    /// Wakes the one sender: a batch was taken, or all is done.
    progress: Notify,
}

struct LaneState {
    queue: VecDeque<Vec<Bytes>>,
    /// Away while a worker uses it.
    digester: Option<Digester>,
    /// Whether the lane waits in the pool or is with a worker.
    scheduled: bool,
}

impl Lane {
    /// Hashes the oldest batch. Returns whether more wait, in which case the lane goes to the end of the pool's queue.
    fn hash_one_batch(&self) -> bool {
        let (batch, mut digester) = {
            let mut state = self.state.lock();
            match (state.queue.pop_front(), state.digester.take()) {
                (Some(batch), Some(digester)) => (batch, digester),
                (_, digester) => {
                    state.digester = digester;
                    state.scheduled = false;
                    return false;
                }
            }
        };
        for piece in &batch {
            digester.update(piece);
        }
        // The bytes go back to their owner before the sender hears of it.
        drop(batch);
        let mut state = self.state.lock();
        state.digester = Some(digester);
        let more = !state.queue.is_empty();
        state.scheduled = more;
        drop(state);
        self.progress.notify_one();
        more
    }
}

/// The digests of one object, computed in place or by the pool.
pub struct ObjectHasher(Mode);

enum Mode {
    Inline(Digester),
    Pooled(HashLane),
}

/// A large object's way into the pool.
struct HashLane {
    lane: Arc<Lane>,
    batch: Vec<Bytes>,
    batch_bytes: usize,
}

impl ObjectHasher {
    /// A hasher of MD5 and `algorithms` for an object of `size_bytes`.
    pub fn new(size_bytes: u64, algorithms: &[ChecksumAlgorithm]) -> Self {
        let digester = Digester::new(algorithms);
        if size_bytes <= INLINE_SIZE_MAX {
            return Self(Mode::Inline(digester));
        }
        let state = LaneState { queue: VecDeque::new(), digester: Some(digester), scheduled: false };
        let lane = Arc::new(Lane { state: Mutex::new(state), progress: Notify::new() });
        Self(Mode::Pooled(HashLane { lane, batch: Vec::new(), batch_bytes: 0 }))
    }

    /// Takes the next pieces, and waits while too many are under way. Not cancel safe: a hasher whose `update` was
    /// dropped has lost pieces and must be dropped too.
    pub async fn update(&mut self, pieces: impl IntoIterator<Item = Bytes>) {
        match &mut self.0 {
            Mode::Inline(digester) => pieces.into_iter().for_each(|piece| digester.update(&piece)),
            Mode::Pooled(lane) => {
                for piece in pieces {
                    lane.batch_bytes += piece.len();
                    lane.batch.push(piece);
                    if lane.batch_bytes >= BATCH_SIZE_BYTES {
                        lane.hand_over().await;
                    }
                }
            }
        }
    }

    /// The digests of everything taken.
    pub async fn finish(self) -> Digests {
        match self.0 {
            Mode::Inline(digester) => digester.finish(),
            Mode::Pooled(mut lane) => {
                if !lane.batch.is_empty() {
                    lane.hand_over().await;
                }
                lane.drained().await
            }
        }
    }
}

impl HashLane {
    async fn hand_over(&mut self) {
        loop {
            {
                let mut state = self.lane.state.lock();
                if state.queue.len() < PIECES_IN_FLIGHT_MAX {
                    state.queue.push_back(mem::take(&mut self.batch));
                    self.batch_bytes = 0;
                    if !mem::replace(&mut state.scheduled, true) {
                        drop(state);
                        POOL.schedule(Arc::clone(&self.lane));
                    }
                    return;
                }
            }
            self.lane.progress.notified().await;
        }
    }

    async fn drained(self) -> Digests {
        loop {
            {
                let mut state = self.lane.state.lock();
                if state.queue.is_empty()
                    && let Some(digester) = state.digester.take()
                {
                    return digester.finish();
                }
            }
            self.lane.progress.notified().await;
        }
    }
}

impl Drop for HashLane {
    fn drop(&mut self) {
        self.lane.state.lock().queue.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(data: &[u8]) -> Digests {
        let mut digester = Digester::new(&ChecksumAlgorithm::ALL);
        digester.update(data);
        digester.finish()
    }

    async fn hash(data: &Bytes, piece_bytes: usize) -> Digests {
        let mut hasher = ObjectHasher::new(data.len() as u64, &ChecksumAlgorithm::ALL);
        for start in (0..data.len()).step_by(piece_bytes) {
            hasher.update([data.slice(start..(start + piece_bytes).min(data.len()))]).await;
        }
        hasher.finish().await
    }

    #[tokio::test]
    async fn pool_and_place_agree_for_every_piece_size() {
        let data: Bytes = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let expected = reference(&data);
        for piece_bytes in [1000, 100_000, 1 << 20, 10 << 20] {
            assert_eq!(hash(&data, piece_bytes).await, expected, "pieces of {piece_bytes}");
        }
        let small = data.slice(..INLINE_SIZE_MAX as usize);
        assert_eq!(hash(&small, 1000).await, reference(&small));
        assert_eq!(hash(&Bytes::new(), 1).await, reference(b""));
    }

    #[tokio::test]
    async fn many_objects_hash_at_once_without_mixing() {
        let objects: Vec<Bytes> = (0..32u8).map(|i| Bytes::from(vec![i; 1_500_000])).collect();
        let digests = futures::future::join_all(objects.iter().map(|data| hash(data, 300_000))).await;
        for (data, got) in objects.iter().zip(digests) {
            assert_eq!(got, reference(data));
        }
    }

    #[tokio::test]
    async fn dropped_hasher_does_not_stop_the_pool() {
        for _ in 0..50 {
            let mut hasher = ObjectHasher::new(u64::MAX, &[]);
            hasher.update([Bytes::from(vec![1; 1 << 20]), Bytes::from(vec![1; 1 << 20])]).await;
        }
        let data = Bytes::from(vec![2; 1 << 20]);
        assert_eq!(hash(&data, 1 << 18).await, reference(&data));
    }
}
