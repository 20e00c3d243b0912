//! One run of blocks out of one piece of a tier, each verified before it is given out.
//!
//! The run is one request, begun when the first block is asked for. Should it break off, another one begins at the
//! first block that was not given out; how often, and for how long, has limits, which start anew with each block that
//! comes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_protocol::journal::ErrorKind;
use holdfast_protocol::{ColdPlace, ContentId};
use tokio::time::{Instant, sleep, timeout};

use super::streams::Permit;
use super::{ColdReadError, Shared};
use crate::flow::cold::run::{Run, RunError};
use crate::ports::tiers::{ColdTier, PieceName, TierError};

/// How often a block is asked for when the tier cannot be reached.
const UNAVAILABLE_MAX: u32 = 4;
/// Nothing is asked for again when the first failure is so long ago.
const RETRY_FOR: Duration = Duration::from_secs(15);
/// How often a block is asked for when damaged bytes come.
const DAMAGED_MAX: u32 = 4;
/// Before the second request; four times as long before each further one.
const PAUSE: Duration = Duration::from_millis(100);
/// While one waits for a stream, those that stand still are looked for in these steps.
const PERMIT_STEP: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub(super) struct Fetch {
    shared: Arc<Shared>,
    content: ContentId,
    place: Arc<ColdPlace>,
    /// The block that comes next.
    next: usize,
    /// The one behind the last.
    end: usize,
    stream: Option<Stream>,
    /// Failures since the last block.
    failures: Failures,
}

#[derive(Default)]
struct Failures {
    unavailable: u32,
    damaged: u32,
    first: Option<Instant>,
}

/// What a tier is sending.
struct Stream {
    run: Run,
    place: Arc<ColdPlace>,
    /// How it ended, for the metrics.
    outcome: &'static str,
    _permit: Permit,
}

/// Why a stream ended early.
enum Fault {
    /// Another try may help.
    Unavailable(String),
    /// Another try may help, at another copy.
    Damaged(String),
    /// No try helps now.
    Final(ColdReadError),
}

impl Fault {
    fn of(place: &ColdPlace, error: TierError) -> Self {
        let tier = place.tier.clone();
        match error {
            TierError::Unavailable(detail) | TierError::Full(detail) => Self::Unavailable(detail),
            TierError::Corrupt { .. } => Self::Damaged(error.to_string()),
            TierError::NotFound(piece) => Self::Final(ColdReadError::Missing { tier, piece: piece.to_string() }),
            TierError::Denied(detail) => Self::Final(ColdReadError::Denied { tier, detail }),
            TierError::Invalid(detail) => Self::Final(ColdReadError::Invalid(detail)),
        }
    }

    fn of_run(place: &ColdPlace, error: RunError, stall_max: Duration) -> Self {
        match error {
            RunError::Tier(error) => Self::of(place, error),
            RunError::Damaged(mismatch) => Self::Damaged(mismatch.to_string()),
            RunError::Short { block, .. } => Self::Damaged(format!("the data ends in block {block}")),
            RunError::Stalled => Self::Unavailable(format!("nothing came for {stall_max:?}")),
        }
    }

    fn outcome(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Damaged(_) => "damaged",
            Self::Final(error) => error.outcome(),
        }
    }
}

impl Fetch {
    /// The blocks from `first` up to `end`, all of one piece.
    pub(super) fn new(
        shared: Arc<Shared>,
        content: ContentId,
        place: Arc<ColdPlace>,
        first: usize,
        end: usize,
    ) -> Self {
        Self { shared, content, place, next: first, end, stream: None, failures: Failures::default() }
    }

    /// Lets go of the tier's stream; the next block begins another one.
    pub(super) fn pause(&mut self) {
        if let Some(mut stream) = self.stream.take() {
            stream.outcome = "idle";
        }
    }

    /// The next block, alone in its buffer if it is one that is to be cached. A call that is dropped has lost nothing.
    ///
    /// # Errors
    /// When all tries failed.
    pub(super) async fn next_block(&mut self) -> Result<Bytes, ColdReadError> {
        loop {
            match self.try_next().await {
                Ok(block) => {
                    self.failures = Failures::default();
                    return Ok(block);
                }
                Err(fault) => self.after(fault).await?,
            }
        }
    }

    async fn try_next(&mut self) -> Result<Bytes, Fault> {
        if self.next >= self.end {
            return Err(Fault::Final(ColdReadError::Invalid("read beyond the end of a run of blocks".into())));
        }
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let begun = self.begin().await;
                if let Err(fault) = &begun {
                    count_read(&self.place, fault.outcome());
                }
                self.stream.insert(begun?)
            }
        };
        let stall_max = self.shared.settings.stall_max;
        match stream.run.next_block(stall_max).await {
            Ok(mut block) => {
                if stream.run.shares_buffer(&block) && self.shared.caches(&self.place) {
                    block = Bytes::copy_from_slice(&block);
                }
                self.next += 1;
                if stream.run.is_over() {
                    stream.outcome = "complete";
                    self.stream = None;
                }
                Ok(block)
            }
            Err(error) => {
                let fault = Fault::of_run(&self.place, error, stall_max);
                stream.outcome = fault.outcome();
                self.stream = None;
                Err(fault)
            }
        }
    }

    /// Asks the tier for what is left of the run.
    async fn begin(&mut self) -> Result<Stream, Fault> {
        let permit = self.permit().await?;
        let place = &self.place;
        let tier = self.shared.tiers.tier(&place.tier).map_err(|error| Fault::of(place, error))?;
        let received = metrics::counter!("holdfast_tier_read_bytes_total", "tier" => place.tier.to_string());
        let stall_max = self.shared.settings.stall_max;
        // Adapters wait for longer, as movers can: they try again by themselves, and other copies after that.
        let opening = Run::open_any(Arc::clone(&tier), place, self.next..self.end, received);
        let Ok(opened) = timeout(stall_max, opening).await else {
            doubt(&*tier, place, self.next);
            return Err(Fault::Unavailable(format!("no answer for {stall_max:?}")));
        };
        let run = opened.map_err(|error| Fault::of(place, error))?;
        if run.is_other_copy() {
            metrics::counter!("holdfast_tier_corrupt_total", "tier" => place.tier.to_string()).increment(1);
            self.report_damage(&format!("one copy of {} is missing, another one is read", run.name()));
        }
        Ok(Stream { run, place: Arc::clone(place), outcome: "dropped", _permit: permit })
    }

    /// Waits for one of the node's streams.
    async fn permit(&mut self) -> Result<Permit, Fault> {
        let settings = &self.shared.settings;
        let deadline = Instant::now() + settings.stream_wait_max;
        let mut granted = self.shared.streams.ask(&self.place.tier, self.shared.tiers.names().len());
        let mut step = Duration::ZERO;
        loop {
            match timeout(step, &mut granted).await {
                Ok(Ok(permit)) => return Ok(permit),
                Ok(Err(_)) => return Err(self.no_stream("the node ends")),
                Err(_) if Instant::now() >= deadline => {
                    return Err(self.no_stream("as many objects as the node may read at once are being read"));
                }
                Err(_) => self.shared.flights.drop_idle(settings.idle_max),
            }
            step = PERMIT_STEP.min(deadline.saturating_duration_since(Instant::now()));
        }
    }

    fn no_stream(&self, why: &str) -> Fault {
        Fault::Final(ColdReadError::Unavailable { tier: self.place.tier.clone(), detail: why.into() })
    }

    /// Waits before the next try, if there is to be one.
    async fn after(&mut self, fault: Fault) -> Result<(), ColdReadError> {
        let tier = self.place.tier.clone();
        let first = *self.failures.first.get_or_insert_with(Instant::now);
        let tries = match fault {
            Fault::Final(error) => return Err(self.give_up(error)),
            Fault::Unavailable(detail) => {
                self.failures.unavailable += 1;
                if self.failures.unavailable >= UNAVAILABLE_MAX || first.elapsed() >= RETRY_FOR {
                    return Err(self.give_up(ColdReadError::Unavailable { tier, detail }));
                }
                tracing::debug!(%tier, detail, "a cold object is read again");
                self.failures.unavailable
            }
            Fault::Damaged(detail) => {
                metrics::counter!("holdfast_tier_corrupt_total", "tier" => tier.to_string()).increment(1);
                tracing::warn!(%tier, content = %self.content, block = self.next, detail, "a tier gives damaged bytes");
                self.failures.damaged += 1;
                if self.failures.damaged >= DAMAGED_MAX {
                    let detail = format!("content {}, block {}: {detail}", self.content, self.next);
                    return Err(self.give_up(ColdReadError::Corrupt { tier, detail }));
                }
                self.report_damage(&format!("read again: {detail}"));
                self.failures.damaged
            }
        };
        sleep(PAUSE * 4u32.pow(tries - 1)).await;
        Ok(())
    }

    /// Reports an error that ends the run.
    fn give_up(&self, error: ColdReadError) -> ColdReadError {
        match &error {
            ColdReadError::Unavailable { tier, detail } | ColdReadError::Denied { tier, detail } => {
                self.shared.report(ErrorKind::TierFailed, format!("tier {tier}"), detail);
            }
            ColdReadError::Missing { .. } | ColdReadError::Corrupt { .. } | ColdReadError::Invalid(_) => {
                self.report_damage(&error.to_string());
            }
        }
        error
    }

    fn report_damage(&self, detail: &str) {
        let subject = format!("content {} in tier {}", self.content, self.place.tier);
        self.shared.report(ErrorKind::Corruption, subject, detail);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        count_read(&self.place, self.outcome);
    }
}

/// The tier is to take another copy of the piece that a block lies in.
fn doubt(tier: &dyn ColdTier, place: &ColdPlace, block: usize) {
    let index = place.locate(place.block(block).start, place.size_bytes).index;
    let name = place.names.get(index as usize).map(|name| PieceName::new(name.as_str()));
    if let Some(Ok(name)) = name {
        tier.doubt(&name);
    }
}

fn count_read(place: &ColdPlace, outcome: &'static str) {
    metrics::counter!("holdfast_tier_reads_total", "tier" => place.tier.to_string(), "outcome" => outcome).increment(1);
}
