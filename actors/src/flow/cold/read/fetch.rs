//! One run of blocks out of one piece of a tier, each verified before it is given out.
//!
//! The run is one request, begun when the first block is asked for. Should it break off, another one begins at the first block
//! that was not given out; how often, and for how long, has limits, which start anew with each block that comes.

use std::cmp::Ordering;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use holdfast_protocol::journal::ErrorKind;
use holdfast_protocol::{ColdPlace, ContentId};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout};

use super::{ColdReadError, Shared};
use crate::flow::cold::blocks::BlockCheck;
use crate::ports::tiers::{ColdBody, PieceName, TierError};

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
    body: ColdBody,
    check: BlockCheck<Arc<ColdPlace>>,
    /// Of what was received last.
    received_bytes: usize,
    /// Whether what is received is never a slice of a larger buffer.
    owns_buffers: bool,
    /// Comes after the blocks that were received before it.
    fault: Option<Fault>,
    place: Arc<ColdPlace>,
    /// How it ended, for the metrics.
    outcome: &'static str,
    _permit: OwnedSemaphorePermit,
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
        match stream.next_block(self.shared.settings.stall_max).await {
            Ok(mut block) => {
                if stream.shares_buffer(&block) && self.shared.caches(&self.place) {
                    block = Bytes::copy_from_slice(&block);
                }
                self.next += 1;
                if self.next == self.end {
                    stream.outcome = "complete";
                    self.stream = None;
                }
                Ok(block)
            }
            Err(fault) => {
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
        let run = place.locate(place.block(self.next).start, place.block(self.end - 1).end);
        let name = self.piece_name(run.index).map_err(Fault::Final)?;
        let body = tier.get(&name, run.start..run.end).await.map_err(|error| Fault::of(place, error))?;
        Ok(Stream {
            body,
            check: BlockCheck::new(Arc::clone(place), self.next),
            received_bytes: 0,
            owns_buffers: tier.parts_own_their_buffers(),
            fault: None,
            place: Arc::clone(place),
            outcome: "dropped",
            _permit: permit,
        })
    }

    fn piece_name(&self, index: u32) -> Result<PieceName, ColdReadError> {
        let name = self.place.names.get(index as usize).and_then(|name| PieceName::new(name.as_str()).ok());
        name.ok_or_else(|| ColdReadError::Invalid(format!("content {} has no piece {index}", self.content)))
    }

    /// Waits for one of the node's streams.
    async fn permit(&mut self) -> Result<OwnedSemaphorePermit, Fault> {
        let settings = &self.shared.settings;
        let deadline = Instant::now() + settings.stream_wait_max;
        let mut acquire = pin!(Arc::clone(&self.shared.streams).acquire_owned());
        let mut step = Duration::ZERO;
        loop {
            match timeout(step, &mut acquire).await {
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
                self.doubt();
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

    /// Tells the tier, which may have another copy.
    fn doubt(&self) {
        let run = self.place.locate(self.place.block(self.next).start, self.place.block(self.end - 1).end);
        if let (Ok(tier), Ok(name)) = (self.shared.tiers.tier(&self.place.tier), self.piece_name(run.index)) {
            tier.doubt(&name);
        }
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

impl Stream {
    /// Whether a block may be a slice of a larger buffer, which would be held with it.
    fn shares_buffer(&self, block: &Bytes) -> bool {
        match self.received_bytes.cmp(&block.len()) {
            // It was put together from several.
            Ordering::Less => false,
            Ordering::Equal => !self.owns_buffers,
            Ordering::Greater => true,
        }
    }

    async fn next_block(&mut self, stall_max: Duration) -> Result<Bytes, Fault> {
        loop {
            if let Some(block) = self.check.next_block() {
                return Ok(block);
            }
            if let Some(fault) = self.fault.take() {
                return Err(fault);
            }
            let received = match timeout(stall_max, self.body.next()).await {
                Ok(Some(Ok(received))) => received,
                Ok(Some(Err(error))) => return Err(Fault::of(&self.place, error)),
                Ok(None) => return Err(Fault::Damaged(format!("the data ends in block {}", self.check.block()))),
                Err(_) => return Err(Fault::Unavailable(format!("nothing came for {stall_max:?}"))),
            };
            metrics::counter!("holdfast_tier_read_bytes_total", "tier" => self.place.tier.to_string())
                .increment(received.len() as u64);
            self.received_bytes = received.len();
            if let Err(mismatch) = self.check.push(received) {
                self.fault = Some(Fault::Damaged(mismatch.to_string()));
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        count_read(&self.place, self.outcome);
    }
}

fn count_read(place: &ColdPlace, outcome: &'static str) {
    metrics::counter!("holdfast_tier_reads_total", "tier" => place.tier.to_string(), "outcome" => outcome).increment(1);
}
