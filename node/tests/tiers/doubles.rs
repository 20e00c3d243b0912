//! Tiers that do what tiers do, and stop or fail when a test says so.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use holdfast_actors::ports::tiers::{
    ColdBody, ColdTier, PieceName, PieceSpec, TierError, TierHealth, TierResult, Tiers,
};
use holdfast_protocol::TierName;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::yield_now;

/// How long a gate waits, and is waited for: a mover that never comes to it, or that nobody lets go on, is a failure
/// and no test that hangs.
const GATE_MAX: Duration = Duration::from_secs(60);

/// How a tier fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does not.
    None,
    /// It gives back another bit than it took.
    Damages,
    /// It gives fewer bytes than it was asked for, and no error.
    Short,
    /// It takes nothing, for want of space.
    Full,
    /// It refuses its credentials.
    Denied,
    /// It is not there.
    Down,
    /// So many times a piece that was asked for is not there yet.
    Lags(u32),
    /// So many times it breaks off in the middle of a piece.
    BreaksOff(u32),
}

/// What holds a call up until it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Nothing.
    Open,
    /// The first piece that is stored.
    AtPut,
    /// The first piece that is read.
    AtGet,
    /// The first piece that is deleted.
    AtDelete,
}

/// A tier in front of another one. It waits around each call and between the steps of a body, so that a caller can be
/// dropped there.
pub struct Double {
    inner: Arc<dyn ColdTier>,
    fault: Mutex<Fault>,
    /// What a server of it has that is away.
    away: Mutex<Option<String>>,
    gate: watch::Sender<Gate>,
    /// Whether a call has come to the gate.
    waiting: watch::Sender<bool>,
}

impl Double {
    pub fn new(inner: Arc<dyn ColdTier>) -> Arc<Self> {
        let (gate, waiting) = (watch::Sender::new(Gate::Open), watch::Sender::new(false));
        Arc::new(Self { inner, fault: Mutex::new(Fault::None), away: Mutex::default(), gate, waiting })
    }

    pub fn set(&self, fault: Fault) {
        *self.fault.lock() = fault;
    }

    /// Reading and deleting this piece fail from now on; `None`: none.
    pub fn send_away(&self, name: Option<String>) {
        *self.away.lock() = name;
    }

    fn find(&self, name: &PieceName) -> TierResult<()> {
        match self.away.lock().as_deref() {
            Some(away) if away == name.as_str() => Err(TierError::Unavailable("the server that has it is away".into())),
            _ => Ok(()),
        }
    }

    pub fn close(&self, gate: Gate) {
        self.waiting.send_replace(false);
        self.gate.send_replace(gate);
    }

    pub fn open(&self) {
        self.gate.send_replace(Gate::Open);
    }

    /// Waits until a call has come to the gate.
    pub async fn reached(&self) {
        let mut waiting = self.waiting.subscribe();
        let reached = tokio::time::timeout(GATE_MAX, waiting.wait_for(|is_waiting| *is_waiting)).await;
        let gate = *self.gate.borrow();
        reached.unwrap_or_else(|_| panic!("no call has come to the gate {gate:?} in {GATE_MAX:?}")).unwrap();
    }

    /// Only the first call is held up.
    async fn pass_gate(&self, gate: Gate) {
        let mut state = self.gate.subscribe();
        let is_closed = *state.borrow() == gate;
        let is_first = is_closed && self.waiting.send_if_modified(|is_waiting| !std::mem::replace(is_waiting, true));
        if is_first {
            let opened = tokio::time::timeout(GATE_MAX, state.wait_for(|state| *state != gate)).await;
            opened.unwrap_or_else(|_| panic!("a call waited at the gate {gate:?} for {GATE_MAX:?}")).unwrap();
        }
    }

    fn fault(&self) -> Fault {
        *self.fault.lock()
    }

    /// Whether one of the few times is left.
    fn spend(&self, of: impl Fn(u32) -> Fault) -> bool {
        let mut fault = self.fault.lock();
        let left = match *fault {
            Fault::Lags(left) | Fault::BreaksOff(left) => left,
            _ => 0,
        };
        if left == 0 || *fault != of(left) {
            return false;
        }
        *fault = of(left - 1);
        true
    }

    fn reach(&self) -> TierResult<()> {
        match self.fault() {
            Fault::Down => Err(TierError::Unavailable("it is down".into())),
            Fault::Denied => Err(TierError::Denied("the key is wrong".into())),
            _ => Ok(()),
        }
    }
}

/// A body that waits before each step.
fn in_steps(body: ColdBody) -> ColdBody {
    let step = |step| async move {
        yield_now().await;
        step
    };
    body.then(step).boxed()
}

/// The bytes of a body, changed by `change` when all have come.
async fn changed(body: ColdBody, change: impl FnOnce(BytesMut) -> BytesMut) -> TierResult<ColdBody> {
    let parts: Vec<TierResult<Bytes>> = body.collect().await;
    let mut all = BytesMut::new();
    for part in parts {
        all.extend_from_slice(&part?);
    }
    let all = change(all).freeze();
    Ok(stream::iter([Ok(all)]).boxed())
}

#[async_trait]
impl ColdTier for Double {
    fn kind(&self) -> &'static str {
        "double"
    }

    fn piece_bytes_max(&self) -> u64 {
        self.inner.piece_bytes_max()
    }

    async fn reserve(&self, piece: &PieceSpec) -> TierResult<PieceName> {
        self.reach()?;
        let name = self.inner.reserve(piece).await;
        yield_now().await;
        name
    }

    async fn put(&self, name: &PieceName, piece: &PieceSpec, body: ColdBody) -> TierResult<()> {
        self.pass_gate(Gate::AtPut).await;
        self.reach()?;
        if self.fault() == Fault::Full {
            return Err(TierError::Full("not a byte is left".into()));
        }
        if self.spend(Fault::BreaksOff) {
            let broken = body.take(1).chain(stream::iter([Err(TierError::Unavailable("it broke off".into()))]));
            drop(self.inner.put(name, piece, broken.boxed()).await);
            return Err(TierError::Unavailable("it broke off".into()));
        }
        let put = self.inner.put(name, piece, in_steps(body)).await;
        yield_now().await;
        put
    }

    async fn get(&self, name: &PieceName, range: Range<u64>) -> TierResult<ColdBody> {
        self.pass_gate(Gate::AtGet).await;
        self.reach()?;
        self.find(name)?;
        if self.spend(Fault::Lags) {
            return Err(TierError::NotFound(name.clone()));
        }
        let body = in_steps(self.inner.get(name, range).await?);
        match self.fault() {
            Fault::Damages => {
                changed(body, |mut all| {
                    let middle = all.len() / 2;
                    all[middle] ^= 1;
                    all
                })
                .await
            }
            Fault::Short => changed(body, |mut all| all.split_to(all.len() - 1)).await,
            _ => Ok(body),
        }
    }

    async fn size_bytes(&self, name: &PieceName) -> TierResult<u64> {
        self.reach()?;
        self.inner.size_bytes(name).await
    }

    async fn delete(&self, name: &PieceName) -> TierResult<()> {
        self.pass_gate(Gate::AtDelete).await;
        self.reach()?;
        self.find(name)?;
        self.inner.delete(name).await
    }

    async fn check(&self) -> TierResult<TierHealth> {
        self.reach()?;
        self.inner.check().await
    }
}

/// Tiers by name.
#[derive(Default)]
pub struct Registry(Mutex<BTreeMap<TierName, Arc<dyn ColdTier>>>);

impl Registry {
    pub fn add(&self, name: TierName, tier: Arc<dyn ColdTier>) {
        self.0.lock().insert(name, tier);
    }

    pub fn remove(&self, name: &TierName) {
        self.0.lock().remove(name);
    }
}

impl Tiers for Registry {
    fn tier(&self, name: &TierName) -> TierResult<Arc<dyn ColdTier>> {
        let tier = self.0.lock().get(name).cloned();
        tier.ok_or_else(|| TierError::Denied(format!("no tier {name} is set up")))
    }

    fn names(&self) -> Vec<TierName> {
        self.0.lock().keys().cloned().collect()
    }
}
