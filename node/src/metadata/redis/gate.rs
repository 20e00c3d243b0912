//! What this node may do with the cache right now.
//!
//! The gate holds the newest state that the node acts by and counts the writes that were begun under each. A write is
//! counted before it asks what it has to do, under one lock with the change of the state, so that "all writes that were
//! begun before warming have ended" is a fact and not a guess.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_actors::ports::coordination::{CacheMode, CacheState, Ownership};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

/// See the module's page.
pub(super) struct Gate {
    ownership: Ownership,
    inner: Mutex<Inner>,
    /// Bumped after every change.
    changed: watch::Sender<()>,
}

struct Inner {
    state: Arc<CacheState>,
    since: Instant,
    /// Since when it is on, or was before it was switched off.
    on_since: Option<Instant>,
    /// The generation that every live node is known to have seen.
    settled: u64,
    /// Term and generation of this node's registration.
    registered: Option<(u64, u64)>,
    /// Writes in progress, by the generation under which they were begun.
    writes: BTreeMap<u64, usize>,
}

/// Why a read goes to the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// The cache is not on.
    Off,
    /// This node cannot prove that the others wait for it.
    Fenced,
}

impl Closed {
    /// For metrics.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Fenced => "fenced",
        }
    }
}

/// What a write has to do before it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Duty {
    /// Mark its keys, under this state.
    Mark(Arc<CacheState>),
    /// Nothing: nobody reads the cache.
    Nothing,
    /// Wait: somebody may still read it.
    Wait,
}

impl Gate {
    pub(super) fn new(ownership: Ownership) -> Self {
        let inner = Inner {
            state: Arc::new(CacheState::default()),
            since: Instant::now(),
            on_since: None,
            settled: 0,
            registered: None,
            writes: BTreeMap::new(),
        };
        Self { ownership, inner: Mutex::new(inner), changed: watch::Sender::default() }
    }

    /// Acts by `state` from now on, if it is newer. Gives back whether it is.
    pub(super) fn apply(&self, state: &CacheState) -> bool {
        {
            let mut inner = self.inner.lock();
            if state.generation <= inner.state.generation {
                return false;
            }
            let now = Instant::now();
            match state.mode {
                CacheMode::On => inner.on_since = Some(now),
                CacheMode::Warming => inner.on_since = None,
                // How long it was on decides how soon it is tried again.
                CacheMode::Off => {}
            }
            inner.state = Arc::new(state.clone());
            inner.since = now;
        }
        self.changed.send_replace(());
        true
    }

    /// Every live node has seen `generation`.
    pub(super) fn settle(&self, generation: u64) {
        {
            let mut inner = self.inner.lock();
            inner.settled = inner.settled.max(generation);
        }
        self.changed.send_replace(());
    }

    pub(super) fn register(&self, term: u64, generation: u64) {
        self.inner.lock().registered = Some((term, generation));
        self.changed.send_replace(());
    }

    /// The state that this node acts by.
    pub(super) fn state(&self) -> Arc<CacheState> {
        self.inner.lock().state.clone()
    }

    /// That state, since when it is so, whether every live node has seen it, and since when the cache is, or was, on.
    pub(super) fn look(&self) -> (Arc<CacheState>, Instant, bool, Option<Instant>) {
        let inner = self.inner.lock();
        (inner.state.clone(), inner.since, inner.is_settled(), inner.on_since)
    }

    /// The term in which this node is waited for by the others and acts by what they rely on.
    pub(super) fn standing(&self) -> Option<u64> {
        let inner = self.inner.lock();
        self.standing_of(&inner)
    }

    fn standing_of(&self, inner: &Inner) -> Option<u64> {
        let (term, generation) = inner.registered?;
        // In this order: a proof of another term would show in what is asked after it.
        let stands = self.ownership.is_proven() && self.ownership.term() == term;
        (stands && inner.state.generation >= generation).then_some(term)
    }

    /// The state under which the cache may be read, if it may, and the term. What was read may be used only if
    /// [`Gate::standing`] gives the same term afterwards: then the others waited for this node all the time.
    pub(super) fn reading(&self) -> Result<(Arc<CacheState>, u64), Closed> {
        let inner = self.inner.lock();
        if inner.state.mode != CacheMode::On {
            return Err(Closed::Off);
        }
        let term = self.standing_of(&inner).ok_or(Closed::Fenced)?;
        Ok((inner.state.clone(), term))
    }

    /// A write begins.
    pub(super) fn begin(self: &Arc<Self>) -> (Ticket, Duty) {
        let mut inner = self.inner.lock();
        let generation = inner.state.generation;
        *inner.writes.entry(generation).or_default() += 1;
        let duty = match inner.state.mode {
            CacheMode::Warming | CacheMode::On => Duty::Mark(inner.state.clone()),
            CacheMode::Off if inner.is_settled() => Duty::Nothing,
            CacheMode::Off => Duty::Wait,
        };
        let term = self.standing_of(&inner);
        drop(inner);
        (Ticket { gate: self.clone(), generation, term }, duty)
    }

    /// Whether no write is in progress that was begun before `generation`.
    pub(super) fn is_drained(&self, generation: u64) -> bool {
        self.inner.lock().writes.keys().next().is_none_or(|oldest| *oldest >= generation)
    }

    /// Writes in progress.
    pub(super) fn writes(&self) -> usize {
        self.inner.lock().writes.values().sum()
    }

    /// Whether nobody reads the entries of `keyspace` any more, nor ever will.
    pub(super) fn has_left(&self, keyspace: u64) -> bool {
        let inner = self.inner.lock();
        match inner.state.mode {
            CacheMode::Off => inner.is_settled(),
            // It is warmed only after everybody saw that it was off.
            CacheMode::Warming | CacheMode::On => inner.state.keyspace != keyspace,
        }
    }

    /// Whether a write that is begun now need not wait.
    pub(super) fn is_decided(&self) -> bool {
        let inner = self.inner.lock();
        inner.state.mode != CacheMode::Off || inner.is_settled()
    }

    /// Waits until something is so.
    pub(super) async fn until(&self, is: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if is(self) {
                return;
            }
            // The sender is in `self`.
            let _alive = changed.changed().await;
        }
    }

    /// Woken after every change.
    pub(super) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

impl Inner {
    fn is_settled(&self) -> bool {
        self.settled >= self.state.generation
    }
}

/// A write in progress, until it is dropped.
pub(super) struct Ticket {
    gate: Arc<Gate>,
    generation: u64,
    /// See [`Gate::standing`].
    term: Option<u64>,
}

impl Ticket {
    /// Whether this node was waited for all the time since the write began, so that no change that matters to it can
    /// have been made without it.
    pub(super) fn was_watched(&self) -> bool {
        self.term.is_some() && self.gate.standing() == self.term
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let is_waited_for = {
            let mut inner = self.gate.inner.lock();
            if let Some(count) = inner.writes.get_mut(&self.generation) {
                *count -= 1;
                if *count == 0 {
                    inner.writes.remove(&self.generation);
                }
            }
            inner.state.mode == CacheMode::Warming && self.generation < inner.state.generation
        };
        if is_waited_for {
            self.gate.changed.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn gate() -> (Arc<Gate>, Ownership) {
        let ownership = Ownership::default();
        ownership.extend(Instant::now(), Duration::from_secs(100));
        (Arc::new(Gate::new(ownership.clone())), ownership)
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_is_counted_under_the_state_that_it_was_begun_under() {
        let (gate, _) = gate();
        let off = CacheState::initial();
        gate.apply(&off);
        let (first, duty) = gate.begin();
        assert_eq!(duty, Duty::Wait, "nobody said that all have seen it");
        gate.settle(off.generation);
        assert_eq!(gate.begin().1, Duty::Nothing);
        let warming = off.warming(None, "s");
        gate.apply(&warming);
        assert!(!gate.is_drained(warming.generation));
        let (second, duty) = gate.begin();
        assert_eq!(duty, Duty::Mark(Arc::new(warming.clone())));
        drop(first);
        assert!(gate.is_drained(warming.generation));
        assert_eq!(gate.writes(), 1);
        drop(second);
        assert!(!gate.apply(&off), "states do not go back");
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_node_that_is_registered_in_this_term_and_up_to_date_reads() {
        let (gate, ownership) = gate();
        let on = CacheState::initial().warming(None, "s").on(None);
        gate.apply(&on);
        assert_eq!(gate.reading(), Err(Closed::Fenced), "not registered");
        gate.register(ownership.term(), on.generation + 1);
        assert_eq!(gate.reading(), Err(Closed::Fenced), "the others count on something newer");
        gate.register(ownership.term(), on.generation);
        assert!(gate.reading().is_ok());
        let (ticket, _) = gate.begin();
        assert!(ticket.was_watched());
        // The session ended, and another one was proven before anybody looked.
        ownership.revoke();
        ownership.extend(Instant::now(), Duration::from_secs(100));
        assert_eq!(gate.reading(), Err(Closed::Fenced));
        gate.register(ownership.term(), on.generation);
        assert!(gate.reading().is_ok());
        assert!(!ticket.was_watched());
        tokio::time::advance(Duration::from_secs(101)).await;
        assert_eq!(gate.reading(), Err(Closed::Fenced), "the proof is over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_keyspace_is_left_when_everybody_saw_that() {
        let (gate, _) = gate();
        let warming = CacheState::initial().warming(None, "s");
        gate.apply(&warming);
        let on = warming.on(None);
        gate.apply(&on);
        assert!(!gate.has_left(warming.keyspace), "what was marked while warming counts when it is on");
        let off = on.off(None, "why", 0);
        gate.apply(&off);
        assert!(!gate.has_left(on.keyspace) && !gate.is_decided());
        gate.settle(off.generation);
        assert!(gate.has_left(on.keyspace) && gate.is_decided());
        gate.apply(&off.warming(None, "t"));
        assert!(gate.has_left(on.keyspace));
    }
}
