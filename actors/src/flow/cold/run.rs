//! A run: what one request to a tier brings, blocks that follow each other within a piece. Each is held against its
//! checksum before it is given out.
//!
//! Movers, readers and verification walk over runs; whether another one is begun when one breaks off, and when, is
//! their matter. A run holds one block and what the tier gives at once; a block that the tier gives in one buffer stays
//! where it is.
//!
//! Whoever wants the bytes has the tier told of damage and of silence at once, so that it takes another copy. Whoever
//! wants to know whether a copy is damaged reads it again first, and tells the tier himself.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use holdfast_protocol::ColdPlace;
use metrics::Counter;
use tokio::time::timeout;

use super::blocks::{BlockCheck, BlockMismatch};
use crate::ports::tiers::{ColdBody, ColdTier, PieceName, TierError, TierResult};

/// Why a run broke off.
#[derive(Debug)]
pub enum RunError {
    /// The tier fails.
    Tier(TierError),
    /// The tier gives bytes that are not those that were stored.
    Damaged(BlockMismatch),
    /// The tier ends the piece early.
    Short {
        /// In which block of the content.
        block: usize,
        /// How many bytes did not come.
        missing: u64,
    },
    /// Nothing comes, and no error either.
    Stalled,
}

/// Blocks of one request. See the module's documentation.
pub struct Run {
    tier: Arc<dyn ColdTier>,
    name: PieceName,
    body: ColdBody,
    check: BlockCheck<Arc<ColdPlace>>,
    /// Blocks of the content that are still to be given out.
    blocks: Range<usize>,
    /// Bytes that are still to come.
    left: u64,
    /// Bytes of what was received last.
    received_bytes: usize,
    /// Counts the bytes that come.
    received: Counter,
    /// Comes after the blocks that were received before it.
    fault: Option<RunError>,
    /// Whether the tier is told of damage.
    tells: bool,
    /// Whether the copy that was asked first has lost the piece.
    is_other_copy: bool,
}

impl Run {
    /// Asks for the first of `blocks` and those behind it, as far as the piece that the first one lies in reaches.
    /// `received` counts the bytes that come.
    ///
    /// # Errors
    /// Those of the tier; [`TierError::Invalid`] for a piece without a name.
    pub async fn open(
        tier: Arc<dyn ColdTier>,
        place: &Arc<ColdPlace>,
        blocks: Range<usize>,
        received: Counter,
    ) -> TierResult<Self> {
        Self::begin(tier, place, blocks, received, true).await
    }

    /// The same, for who is content with any copy: where the tier keeps several, that one has nothing is not the last
    /// word.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_any(
        tier: Arc<dyn ColdTier>,
        place: &Arc<ColdPlace>,
        blocks: Range<usize>,
        received: Counter,
    ) -> TierResult<Self> {
        match Self::open(tier.clone(), place, blocks.clone(), received.clone()).await {
            Err(TierError::NotFound(piece)) if tier.keeps_copies() => {
                tracing::warn!(tier = %place.tier, %piece, "a piece is missing, another copy is asked for");
                tier.doubt(&piece);
                let other = Self::open(tier, place, blocks, received).await?;
                Ok(Self { is_other_copy: true, ..other })
            }
            opened => opened,
        }
    }

    /// The same as [`Self::open`], but the tier is not told of damage.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_to_verify(
        tier: Arc<dyn ColdTier>,
        place: &Arc<ColdPlace>,
        blocks: Range<usize>,
    ) -> TierResult<Self> {
        Self::begin(tier, place, blocks, Counter::noop(), false).await
    }

    async fn begin(
        tier: Arc<dyn ColdTier>,
        place: &Arc<ColdPlace>,
        blocks: Range<usize>,
        received: Counter,
        tells: bool,
    ) -> TierResult<Self> {
        let run = place.locate(place.block(blocks.start).start, place.block(blocks.end - 1).end);
        let left = run.end - run.start;
        let end = blocks.start + left.div_ceil(u64::from(place.block_bytes)) as usize;
        let name = place.names.get(run.index as usize);
        let name = name.ok_or_else(|| TierError::Invalid(format!("piece {} has no name", run.index)))?;
        let name = PieceName::new(name.as_str())?;
        let body = match tier.get(&name, run.start..run.end).await {
            Ok(body) => body,
            Err(error) => {
                if tells {
                    doubt(&*tier, &name, &error);
                }
                return Err(error);
            }
        };
        let check = BlockCheck::new(Arc::clone(place), blocks.start);
        let blocks = blocks.start..end;
        Ok(Self {
            tier,
            name,
            body,
            check,
            blocks,
            left,
            received_bytes: 0,
            received,
            fault: None,
            tells,
            is_other_copy: false,
        })
    }

    /// What the tier calls the piece.
    pub fn name(&self) -> &PieceName {
        &self.name
    }

    /// Whether the piece comes from another copy, as the one that was asked first has lost it.
    pub fn is_other_copy(&self) -> bool {
        self.is_other_copy
    }

    /// Whether all blocks were given out.
    pub fn is_over(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The next block; only while there is one. Nothing may be asked for after an error.
    ///
    /// # Errors
    /// When it breaks off before that block is whole, or nothing comes for `step_max`. Unless it was opened to verify,
    /// the tier was told of damage or silence, so that it takes another copy.
    pub async fn next_block(&mut self, step_max: Duration) -> Result<Bytes, RunError> {
        let block = self.receive_block(step_max).await;
        match &block {
            Ok(_) => self.blocks.start += 1,
            Err(_) if !self.tells => {}
            // Of a server that stalls the tier knows nothing yet: it waits for longer than readers do.
            Err(RunError::Damaged(_) | RunError::Short { .. } | RunError::Stalled) => self.tier.doubt(&self.name),
            Err(RunError::Tier(error)) => doubt(&*self.tier, &self.name, error),
        }
        block
    }

    async fn receive_block(&mut self, step_max: Duration) -> Result<Bytes, RunError> {
        loop {
            if let Some(block) = self.check.next_block() {
                return Ok(block);
            }
            if let Some(fault) = self.fault.take() {
                return Err(fault);
            }
            let received = match timeout(step_max, self.body.next()).await {
                Ok(Some(Ok(received))) => received,
                Ok(Some(Err(error))) => return Err(RunError::Tier(error)),
                Ok(None) => return Err(RunError::Short { block: self.check.block(), missing: self.left }),
                Err(_) => return Err(RunError::Stalled),
            };
            self.received.increment(received.len() as u64);
            self.received_bytes = received.len();
            self.left = self.left.saturating_sub(received.len() as u64);
            if let Err(mismatch) = self.check.push(received) {
                self.fault = Some(RunError::Damaged(mismatch));
            }
        }
    }

    /// Whether the block that was given out last may be a slice of a larger buffer, which would be held with it.
    pub(super) fn shares_buffer(&self, block: &Bytes) -> bool {
        match self.received_bytes.cmp(&block.len()) {
            // It was put together from several.
            Ordering::Less => false,
            Ordering::Equal => !self.tier.parts_own_their_buffers(),
            Ordering::Greater => true,
        }
    }
}

/// Tells the tier of damage that it found by itself.
fn doubt(tier: &dyn ColdTier, name: &PieceName, error: &TierError) {
    if matches!(error, TierError::Corrupt { .. }) {
        tier.doubt(name);
    }
}
