//! Deleting from tiers what nothing refers to any more: pieces of contents that were reclaimed, and what attempts left
//! that came to no end.
//!
//! The list of those pieces is in the metadata ([`TierLedger`]). Whatever is given out from it is never part of a
//! content again. Every node sweeps, each its own share, since what was given out to one is not given out to another
//! for a while. A piece that could not be deleted comes again after that; one that a process that died may have been
//! writing is deleted twice.
//!
//! Pieces that cannot be deleted hold up no others: where several fail one after the other, the tier is asked whether
//! it works, and only one that does not is left alone. One of its servers may be away, or something else may lie where
//! a piece should.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use holdfast_protocol::TierName;
use tokio::task::JoinSet;

use super::backoff::{Admission, Breakers};
use super::mover::MoverError;
use crate::flow::clocks::Leaps;
use crate::ports::coordination::Ownership;
use crate::ports::tiering::DuePiece;
use crate::ports::tiers::{ColdTier, PieceName, TierError, TierResult, Tiers};
use crate::ports::{Clock, MetadataError, TierLedger};

/// How sweeping is paced.
#[derive(Debug, Clone)]
pub struct SweeperSettings {
    /// Time between passes that found nothing.
    pub interval: Duration,
    /// Pieces given out at once.
    pub batch: u32,
    /// Batches of a pass.
    pub batches_max: u32,
    /// Deletions at once, in one tier.
    pub deletions: usize,
    /// When a piece comes again that could not be deleted, or is to be deleted twice.
    pub again: Duration,
    /// Time for one deletion.
    pub delete_timeout: Duration,
    /// Time for one call of the metadata.
    pub call_timeout: Duration,
    /// For how long a tier that fails is left alone: at first, at most.
    pub breaker: [Duration; 2],
    /// For how long after a leap of the clock nothing is deleted, since graces would be over too early; none: clocks
    /// are not compared.
    pub hold: Duration,
}

impl Default for SweeperSettings {
    /// A pass deletes up to a few thousand pieces; the pause before a second deletion is that of the movers' grace.
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(15),
            batch: 256,
            batches_max: 16,
            deletions: 8,
            again: Duration::from_secs(3600),
            delete_timeout: Duration::from_secs(120),
            call_timeout: Duration::from_secs(30),
            breaker: [Duration::from_secs(15), Duration::from_secs(600)],
            hold: Duration::from_secs(900),
        }
    }
}

/// What sweeping works on. Cheap to clone.
#[derive(Clone)]
pub struct SweeperParts {
    /// The list of pieces.
    pub ledger: Arc<dyn TierLedger>,
    /// The tiers.
    pub tiers: Arc<dyn Tiers>,
    /// Time of day.
    pub clock: Arc<dyn Clock>,
    /// Up to when this node may act as a member of its cluster; `None`: it is alone.
    pub ownership: Option<Ownership>,
    /// Pace.
    pub settings: SweeperSettings,
}

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SweepStats {
    /// Pieces given out.
    pub given: u64,
    /// Pieces deleted; those that are deleted twice count twice.
    pub deleted: u64,
    /// Pieces that come again since their deletion failed.
    pub failed: u64,
    /// Whether the tier as a whole fails.
    pub is_tier_failing: bool,
}

impl SweeperParts {
    /// Deletes what is due in one tier, up to a number of batches.
    ///
    /// # Errors
    /// When metadata fails. A tier that fails is said in what is returned.
    pub async fn pass(&self, name: &TierName) -> Result<SweepStats, MoverError> {
        let mut stats = SweepStats::default();
        let Ok(tier) = self.tiers.tier(name) else {
            return Ok(SweepStats { is_tier_failing: true, ..stats });
        };
        for _ in 0..self.settings.batches_max {
            let Some(term) = self.proven_term().filter(|_| !stats.is_tier_failing) else { break };
            let before = stats.deleted;
            let given = self.batch(name, &*tier, term, &mut stats).await?;
            // Where nothing of a batch could be deleted, the next one has time until the next pass.
            if given < self.settings.batch as usize || stats.deleted == before {
                break;
            }
        }
        Ok(stats)
    }

    /// Deletes one batch, as far as `term` lasts; how many pieces were given out.
    async fn batch(
        &self,
        name: &TierName,
        tier: &dyn ColdTier,
        term: u64,
        stats: &mut SweepStats,
    ) -> Result<usize, MoverError> {
        let (now_ms, again_ms) = self.times_ms();
        let due = self.ledger.due_pieces(name, now_ms, again_ms, self.settings.batch);
        let due = self.timed("list pieces that are to be deleted", due).await?;
        let given = due.len();
        let at_once = self.settings.deletions.max(1);
        let mut deletions = stream::iter(due)
            .map(|piece| async move {
                // Asked before each: metadata that name the piece again may have been put back while this process stood
                // still. Who is a member again since may have been away when that was done.
                let result = if self.proven_term() == Some(term) {
                    self.delete(tier, &piece.name).await
                } else {
                    Err(TierError::Unavailable("this node cannot prove its membership".into()))
                };
                (piece, result)
            })
            .buffer_unordered(at_once);
        let mut done: Vec<DuePiece> = Vec::new();
        let (mut in_a_row, mut is_denied, mut says_that_it_works) = (0, false, false);
        while let Some((piece, result)) = deletions.next().await {
            match result {
                Ok(()) => {
                    in_a_row = 0;
                    done.push(piece);
                }
                Err(error) => {
                    stats.failed += 1;
                    let fails = matches!(error, TierError::Unavailable(_) | TierError::Denied(_) | TierError::Full(_));
                    tracing::debug!(tier = %name, piece = %piece.name, %error, "a piece cannot be deleted, it comes again");
                    in_a_row += usize::from(fails);
                    is_denied = matches!(error, TierError::Denied(_));
                    if in_a_row >= at_once && !says_that_it_works {
                        // A right is missing for all pieces, whatever the tier says.
                        says_that_it_works = !(is_denied && done.is_empty()) && self.works(tier).await;
                        if !says_that_it_works {
                            stats.is_tier_failing = true;
                            // Those that were not begun come again, too.
                            break;
                        }
                    }
                }
            }
        }
        drop(deletions);
        // There were fewer than are deleted at once.
        if done.is_empty() && in_a_row > 0 && !says_that_it_works && !stats.is_tier_failing {
            stats.is_tier_failing = is_denied || !self.works(tier).await;
        }
        if !done.is_empty() {
            let (_, again_ms) = self.times_ms();
            self.timed("forget pieces that are deleted", self.ledger.finish_pieces(&done, again_ms)).await?;
        }
        stats.given += given as u64;
        stats.deleted += done.len() as u64;
        metrics::counter!("holdfast_tier_pieces_deleted_total", "tier" => name.to_string())
            .increment(done.len() as u64);
        Ok(given)
    }

    /// The session in which this node may delete, always the same if it is alone; `None`: it may not.
    fn proven_term(&self) -> Option<u64> {
        let Some(ownership) = &self.ownership else { return Some(0) };
        // In this order: if another session is proven, the next look finds another term.
        let term = ownership.term();
        ownership.is_proven().then_some(term)
    }

    async fn delete(&self, tier: &dyn ColdTier, name: &PieceName) -> TierResult<()> {
        match tokio::time::timeout(self.settings.delete_timeout, tier.delete(name)).await {
            Ok(result) => result,
            Err(_) => Err(TierError::Unavailable("a deletion took too long".into())),
        }
    }

    /// Now, and when what is given out now comes again.
    fn times_ms(&self) -> (u64, u64) {
        let now_ms = self.clock.now_ms();
        (now_ms, now_ms + self.settings.again.as_millis() as u64)
    }

    async fn timed<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, MetadataError>>,
    ) -> Result<T, MoverError> {
        match tokio::time::timeout(self.settings.call_timeout, call).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(MoverError::Timeout(what)),
        }
    }

    /// Sweeps one tier, for ever.
    async fn serve(self, name: TierName) {
        let [min, max] = self.settings.breaker;
        let breakers = Breakers::new(min, max);
        let mut leaps = Leaps::new(&*self.clock, self.settings.hold);
        loop {
            let is_full = match breakers.admission(&name) {
                _ if leaps.hold(&*self.clock, "deletions in tiers") => false,
                Admission::Not => false,
                Admission::Probe if !self.answers(&name).await => {
                    breakers.on_failure(&name);
                    false
                }
                Admission::Probe | Admission::Free => self.turn(&name, &breakers).await,
            };
            let pause = if is_full { Duration::from_millis(20) } else { self.settings.interval };
            // Nodes that were started together do not ask together.
            tokio::time::sleep(pause.mul_f64(rand::random_range(1.0..1.25))).await;
        }
    }

    /// A pass; whether there is more to do.
    async fn turn(&self, name: &TierName, breakers: &Breakers) -> bool {
        match self.pass(name).await {
            Ok(stats) if stats.is_tier_failing => {
                breakers.on_failure(name);
                false
            }
            Ok(stats) => {
                breakers.on_success(name);
                stats.given >= u64::from(self.settings.batch) * u64::from(self.settings.batches_max)
            }
            Err(error) => {
                tracing::warn!(tier = %name, %error, "pieces in a tier could not be deleted, it is tried again");
                false
            }
        }
    }

    /// Whether a tier that failed says that it works again: else nothing is given out from the list.
    async fn answers(&self, name: &TierName) -> bool {
        let Ok(tier) = self.tiers.tier(name) else { return false };
        self.works(&*tier).await
    }

    async fn works(&self, tier: &dyn ColdTier) -> bool {
        matches!(tokio::time::timeout(self.settings.delete_timeout, tier.check()).await, Ok(Ok(_)))
    }

    async fn keep_tiers(&self) {
        let mut all = HashMap::<TierName, JoinSet<()>>::new();
        loop {
            let names = self.tiers.names();
            all.retain(|name, _| names.contains(name));
            for name in names {
                let sweeper = all.entry(name.clone()).or_default();
                while let Some(ended) = sweeper.try_join_next() {
                    tracing::error!(tier = %name, ?ended, "the sweeper of a tier ended, it is started again");
                }
                if sweeper.is_empty() {
                    sweeper.spawn(self.clone().serve(name));
                }
            }
            tokio::time::sleep(self.settings.interval).await;
        }
    }
}

/// Runs for ever; ends only by a bug, and says which.
pub async fn run_sweeper(parts: SweeperParts) -> String {
    parts.keep_tiers().await;
    "the sweepers of tiers ended".to_owned()
}
