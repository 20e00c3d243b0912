//! The engine on a simulated disk that crashes, tears, loses, misdirects, rots, fails and fills up, by seeds.
//!
//! Each seed plans a life of several starts. A model knows what was acknowledged. After each start, and at the end:
//! * every acknowledged chunk reads back byte for byte, or, only if its own record was harmed, is reported corrupt;
//! * no wrong byte is ever handed out, whatever was harmed;
//! * a chunk that was not acknowledged is absent or whole;
//! * a deleted chunk stays deleted, through crashes, compaction and damaged index files;
//! * when all is deleted, the space is back, and no buffer is missing.
//!
//! `HOLDFAST_SIM_SEED=n` replays one seed; `HOLDFAST_SIM_SEEDS=n` runs that many.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use common::{id, payload};
use holdfast_protocol::ChunkId;
use holdfast_storage::buf::BufferPool;
use holdfast_storage::io::sim::{Fault, SimIo};
use holdfast_storage::{Engine, EngineConfig, OpenError, ReadError, WriteError};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

const SEEDS: u64 = 2000;
const DIR: &str = "/disk";

/// What the model knows of a chunk that it has ever tried to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Acknowledged.
    Alive,
    /// A write or a deletion whose outcome nobody was told, or a power loss after a failure.
    Unsure,
    /// Never finished, or deleted with an acknowledgement.
    Gone,
}

#[derive(Debug, Clone, Copy)]
struct Chunk {
    seed: u64,
    len: usize,
    known: Known,
    /// A bit of its record was flipped.
    harmed: bool,
    /// A deletion was begun and not acknowledged: the next start may find its tombstone.
    maybe_deleted: bool,
}

#[derive(Default)]
struct Model {
    chunks: BTreeMap<ChunkId, Chunk>,
    /// What was written under an id before: bytes of a deleted chunk may come back, if its tombstone was among what was
    /// harmed.
    former: BTreeMap<ChunkId, Vec<(u64, usize)>>,
    busy: BTreeSet<ChunkId>,
    next_id: u32,
    /// A write went astray or was lost: any chunk may be harmed, none may read wrong.
    all_harmed: bool,
}

struct World {
    seed: u64,
    rng: RefCell<StdRng>,
    io: SimIo,
    pool: Arc<BufferPool>,
    model: RefCell<Model>,
    config: EngineConfig,
    sizes_max: usize,
    trace: Cell<bool>,
}

impl World {
    fn new(seed: u64, pool: Arc<BufferPool>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let io = SimIo::new(rng.random());
        let mut config = common::config(Path::new(DIR));
        let large = rng.random_ratio(1, 8);
        config.segment_size_bytes =
            if large { 4 << 20 } else { *[128 << 10, 256 << 10, 512 << 10].choose(&mut rng).unwrap() };
        config.reserve_bytes = 512 << 10;
        let sizes_max = if large { 3 << 20 } else { 80 << 10 };
        if rng.random_ratio(1, 5) {
            io.set_capacity(if large { 24 << 20 } else { 3 << 20 });
        }
        let trace = Cell::new(std::env::var_os("HOLDFAST_SIM_TRACE").is_some());
        Self { seed, rng: RefCell::new(rng), io, pool, model: RefCell::default(), config, sizes_max, trace }
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.trace.get() {
            eprintln!("[{} op {}] {}", self.seed, self.io.ops(), what());
        }
    }

    fn random<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.rng.borrow_mut())
    }

    fn one_in(&self, n: u32) -> bool {
        self.random(|rng| rng.random_ratio(1, n))
    }

    async fn open(&self) -> Result<Engine, OpenError> {
        let (engine, report) = Engine::open(self.config.clone(), Arc::new(self.io.clone()), self.pool.clone()).await?;
        self.say(|| format!("opened: {report:?}"));
        Ok(engine)
    }

    /// Opens until it works, through crashes while recovering.
    async fn start(&self) -> Engine {
        if self.one_in(4) {
            let at = self.io.ops() + self.random(|rng| rng.random_range(1..40));
            self.io.inject(at, Fault::Crash);
        }
        for _ in 0..3 {
            match self.open().await {
                // A disk that goes while it is scanned counts as one that cannot be read.
                Ok(engine) if self.io.is_down() => drop(engine),
                Ok(engine) => {
                    assert!(engine.fenced().is_none(), "seed {}: {:?}", self.seed, engine.fenced());
                    return engine;
                }
                Err(error) => assert!(self.io.is_down(), "seed {}: open failed: {error:?}", self.seed),
            }
            self.io.recover();
        }
        panic!("seed {}: the engine does not open", self.seed);
    }

    /// One life: from a start to a clean end or a crash.
    async fn live(&self, engine: &Engine) {
        self.plan_fault();
        for _ in 0..self.random(|rng| rng.random_range(1..12)) {
            let width = self.random(|rng| rng.random_range(1..8));
            let ops: Vec<_> = (0..width).map(|_| self.one_op(engine)).collect();
            futures::future::join_all(ops).await;
            if self.io.is_down() {
                return;
            }
        }
    }

    fn plan_fault(&self) {
        let at = self.io.ops() + self.random(|rng| rng.random_range(1..250));
        let fault = match self.random(|rng| rng.random_range(0..20)) {
            0..=8 => Fault::Crash,
            9 | 10 => Fault::FailedSync,
            11 => Fault::Eio,
            12 => Fault::MisdirectedWrite,
            13 => Fault::LostWrite,
            14 => Fault::NoDescriptors,
            _ => return,
        };
        if matches!(fault, Fault::MisdirectedWrite | Fault::LostWrite) {
            self.model.borrow_mut().all_harmed = true;
        }
        self.say(|| format!("plan {fault:?} at {at}"));
        self.io.inject(at, fault);
    }

    async fn one_op(&self, engine: &Engine) {
        match self.random(|rng| rng.random_range(0..20)) {
            0..=9 => self.put(engine).await,
            10..=13 => self.delete(engine).await,
            14..=16 => self.read_some(engine).await,
            17 => engine.run_jobs().await,
            18 => self.rot(engine),
            _ => self.maintain(engine).await,
        }
    }

    async fn maintain(&self, engine: &Engine) {
        let budget = self.random(|rng| rng.random_range(1..400 << 10));
        let report = engine.compact(budget).await;
        self.say(|| format!("compacted: {report:?}"));
        if self.one_in(2) {
            engine.settle().await;
        }
    }

    async fn put(&self, engine: &Engine) {
        let reused = {
            let model = self.model.borrow();
            let gone = model.chunks.iter().filter(|(id, c)| c.known == Known::Gone && !model.busy.contains(*id));
            let gone: Vec<_> = gone.map(|(id, _)| *id).collect();
            self.random(|rng| gone.choose(rng).copied().filter(|_| rng.random_ratio(1, 3)))
        };
        let chunk_id = reused.unwrap_or_else(|| {
            let mut model = self.model.borrow_mut();
            model.next_id += 1;
            id(model.next_id)
        });
        let len = self.random(|rng| {
            let max = *[40, 4000, 5000, self.sizes_max].choose(rng).unwrap();
            rng.random_range(1..=max)
        });
        let seed = self.random(|rng| rng.random());
        {
            let mut model = self.model.borrow_mut();
            model.busy.insert(chunk_id);
            model.former.entry(chunk_id).or_default().push((seed, len));
            model
                .chunks
                .insert(chunk_id, Chunk { seed, len, known: Known::Unsure, harmed: false, maybe_deleted: false });
        }
        let result = self.maybe_cancelled(self.write(engine, chunk_id, &payload(seed, len))).await;
        self.say(|| format!("put {chunk_id} of {len}: {result:?}"));
        let mut model = self.model.borrow_mut();
        model.busy.remove(&chunk_id);
        let chunk = model.chunks.get_mut(&chunk_id).unwrap();
        match result {
            Some(Ok(())) => chunk.known = Known::Alive,
            Some(Err(WriteError::Exists(_))) => panic!("seed {}: {chunk_id} exists", self.seed),
            // Not visible now; a crash may bring it back whole.
            Some(Err(_)) | None => assert!(engine.stat(&chunk_id).is_none(), "seed {}: {chunk_id} visible", self.seed),
        }
    }

    async fn write(&self, engine: &Engine, id: ChunkId, bytes: &[u8]) -> Result<(), WriteError> {
        let label = vec![7; self.random(|rng| rng.random_range(0..300))];
        let mut writer = engine.create(id, bytes.len() as u32, &label).await?;
        for part in bytes.chunks(self.random(|rng| rng.random_range(1000..1 << 20))) {
            writer.write(part).await?;
        }
        writer.finish_input()?;
        writer.finish().await
    }

    /// Drops a future in its middle, sometimes.
    async fn maybe_cancelled<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        if !self.one_in(8) {
            return Some(work.await);
        }
        let mut turns = self.random(|rng| rng.random_range(0..30));
        let mut work = pin!(work);
        std::future::poll_fn(|context| {
            if let Poll::Ready(done) = work.as_mut().poll(context) {
                return Poll::Ready(Some(done));
            }
            if turns == 0 {
                return Poll::Ready(None);
            }
            turns -= 1;
            Poll::Pending
        })
        .await
    }

    async fn delete(&self, engine: &Engine) {
        let mut doomed = vec![];
        {
            let mut model = self.model.borrow_mut();
            let alive: Vec<_> =
                model.chunks.iter().filter(|(_, c)| c.known == Known::Alive).map(|(id, _)| *id).collect();
            for _ in 0..self.random(|rng| rng.random_range(1..4)) {
                let Some(id) = self.random(|rng| alive.choose(rng).copied()) else { return };
                if model.busy.insert(id) {
                    let chunk = model.chunks.get_mut(&id).unwrap();
                    (chunk.known, chunk.maybe_deleted) = (Known::Unsure, true);
                    doomed.push(id);
                }
            }
        }
        let result = self.maybe_cancelled(engine.delete(&doomed)).await;
        self.say(|| format!("delete {doomed:?}: {result:?}"));
        let mut model = self.model.borrow_mut();
        for id in doomed {
            model.busy.remove(&id);
            if let Some(Ok(())) = result {
                assert!(engine.stat(&id).is_none(), "seed {}: {id} still there", self.seed);
                model.chunks.get_mut(&id).unwrap().known = Known::Gone;
            }
        }
    }

    async fn read_some(&self, engine: &Engine) {
        let picked = {
            let model = self.model.borrow();
            let alive: Vec<_> = model
                .chunks
                .iter()
                .filter(|(id, c)| c.known == Known::Alive && !model.busy.contains(*id))
                .map(|(id, c)| (*id, *c))
                .collect();
            self.random(|rng| alive.choose(rng).copied())
        };
        let Some((id, chunk)) = picked else { return };
        let (a, b) = self.random(|rng| (rng.random_range(0..=chunk.len), rng.random_range(0..=chunk.len)));
        let range = a.min(b) as u32..a.max(b) as u32;
        let result = common::get_range(engine, id, range.clone()).await;
        let (now, busy) = {
            let model = self.model.borrow();
            (model.chunks[&id], model.busy.contains(&id))
        };
        match result {
            // It may be one of its former lives, see `check`.
            Ok(_) if self.model.borrow().all_harmed => {}
            Ok(bytes) => {
                // What the chunk was when the read began, though it may be deleted and written anew by now.
                let expected = &payload(chunk.seed, chunk.len)[range.start as usize..range.end as usize];
                assert!(bytes == expected, "seed {}: wrong bytes of {id}", self.seed);
            }
            Err(ReadError::NotFound(_)) if busy || now.known != Known::Alive => {}
            Err(error) => {
                let harmed = chunk.harmed || now.harmed;
                self.check_failure(&id, &Chunk { harmed, ..chunk }, &error);
            }
        }
    }

    fn check_failure(&self, id: &ChunkId, chunk: &Chunk, error: &ReadError) {
        let io_failed = matches!(error, ReadError::Io { .. });
        let harmed = chunk.harmed || self.model.borrow().all_harmed;
        assert!(io_failed || harmed, "seed {}: {id} ({chunk:?}) reads {error:?}", self.seed);
    }

    /// Flips a bit of one chunk's record.
    fn rot(&self, engine: &Engine) {
        let mut model = self.model.borrow_mut();
        if !self.one_in(3) {
            return;
        }
        let alive: Vec<_> = model
            .chunks
            .iter()
            .filter(|(id, c)| c.known == Known::Alive && !model.busy.contains(*id))
            .map(|(id, _)| *id)
            .collect();
        let Some(id) = self.random(|rng| alive.choose(rng).copied()) else { return };
        let Some(place) = engine.locate(&id) else { return };
        let (offset, bit) = self.random(|rng| (rng.random_range(place.record.clone()), rng.random_range(0..8)));
        if self.io.rot(&place.path, offset, bit).is_ok() {
            self.say(|| format!("rot {id} at {offset}"));
            model.chunks.get_mut(&id).unwrap().harmed = true;
        }
    }

    /// Compares everything. After a start, what was unsure is settled.
    async fn check(&self, engine: &Engine, started: bool) {
        let chunks = self.model.borrow().chunks.clone();
        let all_harmed = self.model.borrow().all_harmed;
        let mut listed = BTreeSet::new();
        let mut after = None;
        loop {
            let page = engine.list(after.as_ref(), 5);
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            listed.extend(page.iter().map(|stat| stat.id));
        }
        for (id, chunk) in chunks {
            let context = || format!("seed {}: {id} {chunk:?}", self.seed);
            let there = engine.stat(&id).is_some();
            assert_eq!(there, listed.remove(&id), "{}: list and stat differ", context());
            let read = if there { Some(common::get(engine, id).await) } else { None };
            let known = match (chunk.known, read) {
                (_, Some(Err(ReadError::Io { .. }))) if self.io.is_down() => return,
                (known, Some(Ok(bytes))) => {
                    let former = self.model.borrow().former[&id].clone();
                    let was = |(seed, len): &(u64, usize)| bytes == payload(*seed, *len);
                    let right = bytes == payload(chunk.seed, chunk.len) || all_harmed && former.iter().any(was);
                    assert!(right, "{}: wrong bytes", context());
                    assert!(known != Known::Gone || all_harmed, "{}: deleted chunk is back", context());
                    Known::Alive
                }
                (known, Some(Err(error))) => {
                    assert!(known != Known::Gone || all_harmed, "{}: deleted chunk is back", context());
                    self.check_failure(&id, &chunk, &error);
                    Known::Alive
                }
                (known, None) => {
                    let lost = known == Known::Alive && !chunk.harmed && !chunk.maybe_deleted && !all_harmed;
                    assert!(!lost, "{}: acknowledged chunk lost", context());
                    Known::Gone
                }
            };
            if started {
                let mut model = self.model.borrow_mut();
                let chunk = model.chunks.get_mut(&id).unwrap();
                (chunk.known, chunk.maybe_deleted) = (known, false);
            }
        }
        assert!(listed.is_empty(), "seed {}: chunks that nobody wrote: {listed:?}", self.seed);
    }

    /// Deletes everything and looks whether the space is back.
    async fn check_space(&self) {
        let engine = self.start().await;
        if self.io.is_down() {
            return;
        }
        self.io.clear_faults();
        let ids: Vec<_> = engine.list(None, usize::MAX).into_iter().map(|stat| stat.id).collect();
        engine.delete(&ids).await.unwrap_or_else(|error| panic!("seed {}: delete all: {error:?}", self.seed));
        engine.run_jobs().await;
        engine.settle().await;
        engine.run_jobs().await;
        let stats = engine.stats();
        assert_eq!((stats.chunks, stats.live_bytes, stats.dead_bytes), (0, 0, 0), "seed {}", self.seed);
        if !self.model.borrow().all_harmed {
            assert!(stats.segments <= 1, "seed {}: segments left: {:#?}", self.seed, engine.segments());
            let left = self.io.allocated_bytes();
            let most = self.config.segment_size_bytes + (64 << 10);
            assert!(left <= most, "seed {}: {left} of {most} bytes still allocated", self.seed);
        }
    }
}

async fn run_seed(seed: u64, pool: Arc<BufferPool>) {
    let world = World::new(seed, pool);
    for _ in 0..world.random(|rng| rng.random_range(2..6)) {
        let engine = world.start().await;
        world.check(&engine, true).await;
        world.live(&engine).await;
        if !world.io.is_down() && world.one_in(2) {
            let ended = engine.shutdown().await;
            world.say(|| format!("shutdown: {ended:?}"));
            if !world.io.is_down() {
                world.check(&engine, false).await;
            }
        } else if !world.io.is_down() && world.one_in(2) {
            // The process dies and the machine goes on: what was written stays.
            drop(engine);
            world.io.clear_faults();
            continue;
        }
        drop(engine);
        world.io.clear_faults();
        world.io.crash();
        world.io.recover();
        world.say(|| "power loss".to_owned());
    }
    let engine = world.start().await;
    world.check(&engine, true).await;
    drop(engine);
    world.io.clear_faults();
    if world.io.is_down() {
        world.io.recover();
    }
    world.check_space().await;
}

fn run_guarded(seed: u64, pool: &Arc<BufferPool>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let run = AssertUnwindSafe(|| runtime.block_on(run_seed(seed, Arc::clone(pool))));
    std::panic::catch_unwind(run).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })?;
    drop(runtime);
    if pool.is_idle() { Ok(()) } else { Err(format!("seed {seed}: buffers are missing")) }
}

#[test]
fn no_fault_loses_or_falsifies_what_was_acknowledged() {
    if let Ok(seed) = std::env::var("HOLDFAST_SIM_SEED") {
        let seed = seed.parse().expect("HOLDFAST_SIM_SEED is a number");
        run_guarded(seed, &common::pool()).unwrap_or_else(|failure| panic!("{failure}"));
        return;
    }
    let count = std::env::var("HOLDFAST_SIM_SEEDS").map_or(SEEDS, |count| count.parse().expect("a number"));
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let pool = common::pool();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        return;
                    }
                    if let Err(failure) = run_guarded(seed, &pool) {
                        next.store(count, Ordering::Relaxed);
                        panic!("{failure}\nreplay with HOLDFAST_SIM_SEED={seed}");
                    }
                }
            });
        }
    });
}
