//! Movers: they bring the bytes of objects to the tier, or to the cluster's disks, where they are to lie.
//!
//! What is to be moved is a queue in the metadata ([`TierLedger`]), one lane for each tier. Every node runs movers. A
//! mover claims moves for a while, renews its claims while it works, and stops at once when it has lost one; so a move
//! of a node that died goes on elsewhere. What a mover does to the bytes is in [`super::offload`] and
//! [`super::recall`].
//!
//! **Nothing is let go before its successor is proven** (promise D5): what went to a tier is read back and compared,
//! and the exchange is one transaction that compares the version's content and the attempt. An overwrite, a deletion or
//! another mover in between wins by itself.
//!
//! **Nothing is left behind**: names of pieces are on the list of what is to be deleted before their bytes go out,
//! chunks on the cluster belong to [`StoredContent`](crate::flow::put::StoredContent). The loop may be dropped at any
//! await.
//!
//! **An attempt that dies is begun anew**: pieces are named by the attempt, so that the deletion of what one left
//! cannot meet another's, and what a dead one has stored is stored again. Within an attempt a failed piece is repeated
//! on its own, under its name and a few times, so that a large object gets on over a tier that fails now and then.
//!
//! **Clocks** decide when a move is made, never what becomes of it. By a clock that is a year ahead all restores are
//! over, and all claims of others. So nothing is claimed for a while after a leap of the clock, and what was restored
//! stays for a while after the start, too.
//!
//! A tier that fails as a whole is left alone for a while, and lanes do not wait for each other. One that is full is
//! left alone with what is to go there: what lies in it comes back meanwhile, which may be what makes room. What waits
//! in lanes is told to metrics by whoever keeps the registry of tiers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use holdfast_protocol::{NodeId, TierName};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::backoff::{Admission, Breakers};
use crate::flow::clocks::Leaps;
use crate::flow::lifecycle::LifecycleTeller;
use crate::flow::report::Reporter;
use crate::flow::shards::ByteBudget;
use crate::ports::coordination::Ownership;
use crate::ports::tiering::{Claim, Move};
use crate::ports::tiers::Tiers;
use crate::ports::{ChunkStore, Clock, MetadataError, MetadataStore, TierLedger};

mod settings;
mod stats;

pub use settings::MoverSettings;
pub use stats::MoverStats;
pub(super) use stats::Outcome;

/// Bytes that wait at the budget at once; movers are bounded by their number.
const IN_FLIGHT_BYTES_MAX: u64 = 1 << 40;
/// Objects up to this size are small: moving one is waiting for others, in the database and in the tier, more than
/// anything else.
const SMALL_BYTES_MAX: u64 = 1 << 20;
/// How many times as many moves are in work as there are places for those that are not small.
const SMALL_SHARE: usize = 4;
/// So many looks come between two searches for what comes back from a full tier, where the last one found nothing: each
/// passes over all that waits for room.
const FULL_LOOKS: u32 = 6;

/// Why a pass ended early. What it did before stays done.
#[derive(Debug, thiserror::Error)]
pub enum MoverError {
    /// Metadata failed.
    #[error("metadata: {0}")]
    Metadata(#[from] MetadataError),
    /// The store did not answer in time.
    #[error("{0} took too long")]
    Timeout(&'static str),
}

/// What it works on. Cheap to clone.
#[derive(Clone)]
pub struct MoverParts {
    /// Metadata, through whatever caches it.
    pub metadata: Arc<dyn MetadataStore>,
    /// The queue of moves.
    pub ledger: Arc<dyn TierLedger>,
    /// Chunks; in a cluster those of all nodes.
    pub chunks: Arc<dyn ChunkStore>,
    /// The tiers.
    pub tiers: Arc<dyn Tiers>,
    /// Time of day.
    pub clock: Arc<dyn Clock>,
    /// Who claims.
    pub node: NodeId,
    /// Up to when this node may act as a member of its cluster; `None`: it is alone.
    pub ownership: Option<Ownership>,
    /// `None`: nobody is told of moves.
    pub teller: Option<LifecycleTeller>,
    /// Where damage is reported.
    pub reporter: Option<Reporter>,
    /// Pace.
    pub settings: MoverSettings,
}

/// The parts, and what movers share.
pub(super) struct Mover {
    pub(super) parts: MoverParts,
    pub(super) budget: Option<Arc<ByteBudget>>,
    pub(super) breakers: Breakers,
    /// Tiers that take nothing more.
    pub(super) full: Breakers,
    leaps: Mutex<Leaps>,
    started: Instant,
    /// Places of each lane for what is not small.
    places: Mutex<HashMap<TierName, Arc<Semaphore>>>,
}

/// Runs for ever; ends only by a bug, and says which.
pub async fn run(parts: MoverParts) -> String {
    let mover = Arc::new(Mover::new(parts));
    mover.keep_lanes().await;
    "the movers ended".to_owned()
}

impl MoverParts {
    /// Claims moves of one lane that are due, as many as are made at once, and makes them.
    ///
    /// # Errors
    /// When nothing can be claimed. A move that fails is counted.
    pub async fn pass(&self, lane: &TierName) -> Result<MoverStats, MoverError> {
        let mover = Mover::new(self.clone());
        let moves = mover.claim(lane, self.settings.moves_per_tier, false).await?;
        let mut stats = MoverStats { claimed: moves.len() as u64, ..MoverStats::default() };
        let mut under_way: FuturesUnordered<_> = moves.iter().map(|job| mover.carry_out(job)).collect();
        while let Some(outcome) = under_way.next().await {
            stats.count(outcome);
        }
        Ok(stats)
    }
}

impl Mover {
    fn new(parts: MoverParts) -> Self {
        let settings = &parts.settings;
        let budget = settings.bytes_per_second.map(|rate| Arc::new(ByteBudget::new(rate, IN_FLIGHT_BYTES_MAX)));
        let breaker = || Breakers::new(settings.breaker_min, settings.breaker_max);
        let (breakers, full) = (breaker(), breaker());
        let leaps = Mutex::new(Leaps::new(&*parts.clock, settings.hold));
        Self { parts, budget, breakers, full, leaps, started: Instant::now(), places: Mutex::default() }
    }

    /// Waits for a place for an object of so many bytes. Small ones need none: their number is that of the claims.
    pub(super) async fn place(&self, lane: &TierName, size_bytes: u64) -> Option<OwnedSemaphorePermit> {
        if size_bytes <= SMALL_BYTES_MAX {
            return None;
        }
        let places = {
            let mut all = self.places.lock();
            let new = || Arc::new(Semaphore::new(self.parts.settings.moves_per_tier.max(1)));
            all.entry(lane.clone()).or_insert_with(new).clone()
        };
        // It is never closed.
        places.acquire_owned().await.ok()
    }

    /// Whether this node may work.
    pub(super) fn is_member(&self) -> bool {
        self.parts.ownership.as_ref().is_none_or(Ownership::is_proven)
    }

    /// When a claim that is made or renewed now ends, and when what it reserved may be deleted.
    pub(super) fn claim_ends_ms(&self) -> (u64, u64) {
        let settings = &self.parts.settings;
        let until_ms = self.parts.clock.now_ms() + settings.claim.as_millis() as u64;
        (until_ms, until_ms + settings.piece_grace.as_millis() as u64)
    }

    /// Nodes that were started together do not ask together.
    async fn pause(&self, pause: Duration) {
        tokio::time::sleep(pause.mul_f64(rand::random_range(1.0..1.25))).await;
    }

    pub(super) async fn timed<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, MetadataError>>,
    ) -> Result<T, MoverError> {
        match tokio::time::timeout(self.parts.settings.call_timeout, call).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(MoverError::Timeout(what)),
        }
    }

    async fn claim(&self, lane: &TierName, limit: usize, to_cluster_only: bool) -> Result<Vec<Move>, MoverError> {
        if limit == 0 || !self.is_member() {
            return Ok(Vec::new());
        }
        let (until_ms, _) = self.claim_ends_ms();
        let spares_restored = self.started.elapsed() < self.parts.settings.hold;
        let now_ms = self.parts.clock.now_ms();
        let claim = Claim { owner: self.parts.node, now_ms, until_ms, spares_restored, to_cluster_only };
        self.timed("claim moves", self.parts.ledger.claim_moves(lane, claim, limit as u32)).await
    }

    /// Has each lane worked off in a task of its own, for ever.
    async fn keep_lanes(self: &Arc<Self>) {
        let mut lanes = HashMap::<TierName, JoinSet<()>>::new();
        loop {
            let names = self.parts.tiers.names();
            lanes.retain(|name, _| names.contains(name));
            self.breakers.retain(&names);
            self.full.retain(&names);
            for name in names {
                let lane = lanes.entry(name.clone()).or_default();
                while let Some(ended) = lane.try_join_next() {
                    tracing::error!(tier = %name, ?ended, "a lane of movers ended, it is started again");
                }
                if lane.is_empty() {
                    lane.spawn(self.clone().serve(name));
                }
            }
            self.pause(self.parts.settings.poll).await;
        }
    }

    /// Works off one lane, for ever.
    async fn serve(self: Arc<Self>, lane: TierName) {
        let mut moves = JoinSet::new();
        let mut searched_until = Instant::now();
        loop {
            let free = self.free_places(&lane, moves.len()).await;
            let (free, to_cluster_only) = match self.full.admission(&lane) {
                Admission::Free => (free, false),
                // One, to see whether there is room again.
                Admission::Probe => (free.min(1), false),
                Admission::Not if searched_until > Instant::now() => (0, true),
                Admission::Not => (free, true),
            };
            match self.claim(&lane, free, to_cluster_only).await {
                // There is nothing to try a tier by that says that it works again.
                Ok(claimed) if claimed.is_empty() && free > 0 => {
                    self.forgive(&lane, to_cluster_only);
                    if to_cluster_only {
                        searched_until = Instant::now() + self.parts.settings.poll.saturating_mul(FULL_LOOKS);
                    }
                }
                Ok(claimed) => {
                    for job in claimed {
                        let mover = self.clone();
                        moves.spawn(async move { mover.carry_out(&job).await });
                    }
                }
                Err(error) => {
                    tracing::warn!(tier = %lane, %error, "moves cannot be claimed, it is tried again");
                }
            }
            // Several are claimed at a time, which is one transaction.
            let enough = moves.len().saturating_sub(self.moves_max() / 4);
            tokio::select! {
                () = end_until(&mut moves, enough, &lane) => {}
                () = self.pause(self.parts.settings.poll) => {}
            }
        }
    }

    /// Moves of one lane that are claimed at once.
    fn moves_max(&self) -> usize {
        self.parts.settings.moves_per_tier * SMALL_SHARE
    }

    /// How many more moves of a lane may be begun.
    async fn free_places(&self, lane: &TierName, under_way: usize) -> usize {
        if self.leaps.lock().hold(&*self.parts.clock, "movers") {
            return 0;
        }
        match self.breakers.admission(lane) {
            Admission::Not => 0,
            Admission::Free => self.moves_max().saturating_sub(under_way),
            Admission::Probe if under_way > 0 => 0,
            Admission::Probe => usize::from(self.answers(lane).await),
        }
    }

    /// Whether a tier that failed says that it works; if not, it is left alone.
    async fn answers(&self, lane: &TierName) -> bool {
        let Ok(tier) = self.parts.tiers.tier(lane) else {
            self.breakers.on_failure(lane);
            return false;
        };
        let checked = tokio::time::timeout(self.parts.settings.call_timeout, tier.check()).await;
        let answers = matches!(checked, Ok(Ok(_)));
        if !answers {
            self.breakers.on_failure(lane);
        }
        answers
    }

    /// A tier that did not give what lies there is left alone if it does not say that it works: one of its servers may
    /// be away, or an object be kept from everybody, and the rest goes on. Such a move waits longer each time.
    pub(super) async fn suspect(&self, tier: &TierName) {
        if self.breakers.admission(tier) != Admission::Not {
            self.answers(tier).await;
        }
    }

    fn forgive(&self, lane: &TierName, is_full: bool) {
        for breakers in [Some(&self.breakers), (!is_full).then_some(&self.full)].into_iter().flatten() {
            if breakers.admission(lane) == Admission::Probe {
                breakers.on_success(lane);
            }
        }
    }
}

/// Waits until no more moves than so many are under way, and for the end of one at least, or for ever if none is.
async fn end_until(moves: &mut JoinSet<Outcome>, enough: usize, lane: &TierName) {
    if moves.is_empty() {
        return std::future::pending().await;
    }
    while let Some(ended) = moves.join_next().await {
        if let Err(error) = ended {
            // It is tried again when its claim ends.
            tracing::error!(tier = %lane, %error, "a mover ended in the middle of a move");
        }
        if moves.len() <= enough {
            break;
        }
    }
}
