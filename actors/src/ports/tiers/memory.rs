//! A cold tier in memory, for tests: it fails, stalls, damages and cuts short what it gives when told to, and counts
//! what is asked of it. And [`MemoryTiers`], the tiers of a node made of such.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_protocol::TierName;
use parking_lot::Mutex;

use super::{ColdBody, ColdTier, PieceName, PieceSpec, TierError, TierHealth, TierResult, Tiers};

/// What bodies come in, unless told otherwise.
const STEP_BYTES: usize = 60_001;

/// What goes wrong with a `get`. Offsets are those of the body, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GetFault {
    /// It cannot be reached.
    Unavailable,
    /// It refuses.
    Denied,
    /// It does not have the piece.
    Missing,
    /// It takes the request, and does not answer.
    Silent,
    /// The connection breaks before this byte.
    BreakAt(u64),
    /// The body ends before this byte, as if that were all.
    EndAt(u64),
    /// One bit of this byte is wrong.
    FlipAt(u64),
    /// Nothing comes from this byte on.
    StallAt(u64),
}

#[derive(Default)]
struct State {
    pieces: BTreeMap<PieceName, Bytes>,
    /// By the number of the call.
    faults: HashMap<usize, GetFault>,
    /// Of all calls without a fault of their own.
    always: Option<GetFault>,
    /// How long before each step of a body.
    pause: Duration,
    step_bytes: usize,
    /// What was asked for.
    gets: Vec<(PieceName, Range<u64>)>,
    doubts: usize,
}

/// Counts the bodies that are held.
struct OpenBody(Arc<AtomicUsize>);

impl OpenBody {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for OpenBody {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A buffer of the tier that somebody holds, or a slice of it.
struct HeldBuffer(Vec<u8>, Arc<AtomicU64>);

impl AsRef<[u8]> for HeldBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for HeldBuffer {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0.len() as u64, Ordering::Relaxed);
    }
}

/// The tier. See the module's documentation.
pub struct MemoryTier {
    piece_bytes_max: u64,
    state: Mutex<State>,
    open: Arc<AtomicUsize>,
    sent_bytes: Arc<AtomicU64>,
    held_bytes: Arc<AtomicU64>,
}

impl MemoryTier {
    /// An empty tier that takes pieces of at most so many bytes.
    pub fn new(piece_bytes_max: u64) -> Self {
        let state = State { step_bytes: STEP_BYTES, ..State::default() };
        Self {
            piece_bytes_max,
            state: Mutex::new(state),
            open: Arc::default(),
            sent_bytes: Arc::default(),
            held_bytes: Arc::default(),
        }
    }

    /// Puts a piece there.
    pub fn insert(&self, name: &str, bytes: Bytes) {
        if let Ok(name) = PieceName::new(name) {
            self.state.lock().pieces.insert(name, bytes);
        }
    }

    /// The `get` of this number, from 0 on in the order of the calls, has a fault.
    pub fn fail_get(&self, number: usize, fault: GetFault) {
        self.state.lock().faults.insert(number, fault);
    }

    /// Each `get` without a fault of its own has this one from now on; `None`: none.
    pub fn fail_all_gets(&self, fault: Option<GetFault>) {
        self.state.lock().always = fault;
    }

    /// How long the tier takes before each step of a body.
    pub fn be_slow(&self, pause: Duration) {
        self.state.lock().pause = pause;
    }

    /// How many bytes bodies give at once.
    pub fn set_step_bytes(&self, step_bytes: usize) {
        self.state.lock().step_bytes = step_bytes;
    }

    /// What was asked for, in order.
    pub fn gets(&self) -> Vec<(PieceName, Range<u64>)> {
        self.state.lock().gets.clone()
    }

    /// How often a piece was doubted.
    pub fn doubts(&self) -> usize {
        self.state.lock().doubts
    }

    /// Bodies of `get` that are held by somebody.
    pub fn bodies_open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Bytes given out by all `get`s.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of buffers that were given out and are held, be it for a slice of them.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// The names of the pieces.
    pub fn names(&self) -> Vec<PieceName> {
        self.state.lock().pieces.keys().cloned().collect()
    }

    /// The bytes of a piece.
    pub fn piece(&self, name: &PieceName) -> Option<Bytes> {
        self.state.lock().pieces.get(name).cloned()
    }
}

/// The steps of a body with what goes wrong in it.
fn body_of(bytes: &Bytes, fault: Option<GetFault>, step_bytes: usize) -> Vec<TierResult<Bytes>> {
    let (mut bytes, mut end) = (bytes.clone(), None);
    match fault {
        Some(GetFault::BreakAt(at)) => {
            bytes.truncate(at as usize);
            end = Some(Err(TierError::Unavailable("the connection broke".into())));
        }
        Some(GetFault::EndAt(at) | GetFault::StallAt(at)) => bytes.truncate(at as usize),
        Some(GetFault::FlipAt(at)) => {
            let mut damaged = bytes.to_vec();
            if let Some(byte) = damaged.get_mut(at as usize) {
                *byte ^= 1;
            }
            bytes = damaged.into();
        }
        Some(GetFault::Unavailable | GetFault::Denied | GetFault::Missing | GetFault::Silent) | None => {}
    }
    let steps = bytes.chunks(step_bytes).map(|step| Ok(bytes.slice_ref(step)));
    steps.chain(end).collect()
}

#[async_trait]
impl ColdTier for MemoryTier {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn piece_bytes_max(&self) -> u64 {
        self.piece_bytes_max
    }

    async fn reserve(&self, piece: &PieceSpec) -> TierResult<PieceName> {
        PieceName::new(format!("{}-{}-{}", piece.content, piece.index, piece.attempt))
    }

    async fn put(&self, name: &PieceName, piece: &PieceSpec, body: ColdBody) -> TierResult<()> {
        let steps: Vec<Bytes> = body.try_collect().await?;
        let bytes = Bytes::from(steps.concat());
        if bytes.len() as u64 != piece.size_bytes || !(1..=self.piece_bytes_max).contains(&piece.size_bytes) {
            return Err(TierError::Invalid(format!("{} bytes where {} were announced", bytes.len(), piece.size_bytes)));
        }
        self.state.lock().pieces.insert(name.clone(), bytes);
        Ok(())
    }

    async fn get(&self, name: &PieceName, range: Range<u64>) -> TierResult<ColdBody> {
        let (steps, fault, pause) = {
            let mut state = self.state.lock();
            let number = state.gets.len();
            state.gets.push((name.clone(), range.clone()));
            let fault = state.faults.get(&number).copied().or(state.always);
            match fault {
                Some(GetFault::Unavailable) => return Err(TierError::Unavailable("it is away".into())),
                Some(GetFault::Denied) => return Err(TierError::Denied("wrong credentials".into())),
                Some(GetFault::Missing) => return Err(TierError::NotFound(name.clone())),
                _ => {}
            }
            let piece = state.pieces.get(name).ok_or_else(|| TierError::NotFound(name.clone()))?;
            if range.is_empty() || range.end > piece.len() as u64 {
                return Err(TierError::Invalid(format!("{range:?} of the {} bytes of {name}", piece.len())));
            }
            let bytes = piece.slice(range.start as usize..range.end as usize);
            (body_of(&bytes, fault, state.step_bytes), fault, state.pause)
        };
        if fault == Some(GetFault::Silent) {
            std::future::pending::<()>().await;
        }
        let open = OpenBody::new(&self.open);
        let (sent, held) = (Arc::clone(&self.sent_bytes), Arc::clone(&self.held_bytes));
        let steps = match fault {
            Some(GetFault::StallAt(_)) => stream::iter(steps).chain(stream::pending()).left_stream(),
            _ => stream::iter(steps).right_stream(),
        };
        let body = steps.then(move |step| {
            let _open = &open;
            let step = step.map(|bytes| {
                sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                held.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Bytes::from_owner(HeldBuffer(bytes.to_vec(), Arc::clone(&held)))
            });
            async move {
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
                step
            }
        });
        Ok(body.boxed())
    }

    fn doubt(&self, _: &PieceName) {
        self.state.lock().doubts += 1;
    }

    async fn size_bytes(&self, name: &PieceName) -> TierResult<u64> {
        self.piece(name).map(|piece| piece.len() as u64).ok_or_else(|| TierError::NotFound(name.clone()))
    }

    async fn delete(&self, name: &PieceName) -> TierResult<()> {
        self.state.lock().pieces.remove(name);
        Ok(())
    }

    async fn check(&self) -> TierResult<TierHealth> {
        Ok(TierHealth::default())
    }
}

/// Tiers of a node, which can be set up and taken away.
#[derive(Default)]
pub struct MemoryTiers(Mutex<BTreeMap<TierName, Arc<dyn ColdTier>>>);

impl MemoryTiers {
    /// Those given.
    pub fn of(tiers: impl IntoIterator<Item = (TierName, Arc<dyn ColdTier>)>) -> Self {
        Self(Mutex::new(tiers.into_iter().collect()))
    }

    /// Sets one up.
    pub fn set(&self, name: TierName, tier: Arc<dyn ColdTier>) {
        self.0.lock().insert(name, tier);
    }

    /// Takes one away.
    pub fn remove(&self, name: &TierName) {
        self.0.lock().remove(name);
    }
}

impl Tiers for MemoryTiers {
    fn tier(&self, name: &TierName) -> TierResult<Arc<dyn ColdTier>> {
        self.0.lock().get(name).cloned().ok_or_else(|| TierError::Denied(format!("no tier {name} is set up")))
    }

    fn names(&self) -> Vec<TierName> {
        self.0.lock().keys().cloned().collect()
    }
}
