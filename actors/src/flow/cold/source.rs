//! Verified reading of what is moved: from the cluster's chunks, whose store verifies them, or from a tier, whose bytes
//! are held against the content's own checksums before they are handed out.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use holdfast_protocol::{ColdPlace, TierName};
use metrics::Counter;

use super::backoff::pause_after;
use super::blocks::BlockMismatch;
use super::run::{Run, RunError};
use crate::flow::get::ContentReader;
use crate::ports::metadata::Content;
use crate::ports::tiers::{ColdTier, TierError};
use crate::ports::{ChunkError, ChunkStore};

/// Time for the next bytes. Every store has limits of its own; this one is for a bug in one of them.
const STEP_MAX: Duration = Duration::from_secs(600);

/// Before a block is asked for again: at first, at most.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Why bytes cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    /// The cluster's chunks fail.
    #[error("on the cluster: {0}")]
    Chunk(#[from] ChunkError),
    /// A tier fails.
    #[error("tier {tier}: {error}")]
    Tier {
        /// Which one.
        tier: TierName,
        /// How.
        error: TierError,
    },
    /// A tier gives bytes that are not those that were stored.
    #[error("tier {tier}, piece {piece}: {mismatch}")]
    Damaged {
        /// Which one.
        tier: TierName,
        /// What it calls the piece.
        piece: String,
        /// What does not match.
        mismatch: BlockMismatch,
    },
    /// A tier ends a piece early.
    #[error("tier {tier}, piece {piece}: it ended {missing} bytes early")]
    Short {
        /// Which one.
        tier: TierName,
        /// What it calls the piece.
        piece: String,
        /// How many bytes did not come.
        missing: u64,
    },
    /// Nothing comes, and no error either.
    #[error("no bytes came for {} s", STEP_MAX.as_secs())]
    Stalled,
}

impl SourceError {
    /// Whether the bytes themselves are damaged or lost where they lie.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Chunk(error) => matches!(error, ChunkError::Corrupt { .. } | ChunkError::NotFound(_)),
            Self::Tier { error, .. } => matches!(error, TierError::Corrupt { .. } | TierError::NotFound(_)),
            Self::Damaged { .. } | Self::Short { .. } => true,
            Self::Stalled => false,
        }
    }

    /// Whether the tier may give it at another try, or from another copy.
    fn may_pass(&self) -> bool {
        match self {
            Self::Tier { error, .. } => matches!(error, TierError::Unavailable(_) | TierError::Corrupt { .. }),
            Self::Damaged { .. } | Self::Short { .. } => true,
            Self::Chunk(_) | Self::Stalled => false,
        }
    }
}

/// Verified bytes, in order.
pub(super) type SourceBody = Pin<Box<dyn Stream<Item = Result<Bytes, SourceError>> + Send>>;

/// Bytes that are there.
#[derive(Clone)]
pub(super) enum Source {
    /// On the cluster's disks.
    Cluster {
        /// Where its chunks are.
        chunks: Arc<dyn ChunkStore>,
        /// Which.
        content: Arc<Content>,
    },
    /// In a tier.
    Tier {
        /// That tier.
        tier: Arc<dyn ColdTier>,
        /// Where in it.
        place: Arc<ColdPlace>,
        /// How often one block is asked for: other copies of it may be whole.
        tries: u32,
    },
}

impl Source {
    /// Reads a range, which must lie within the content. Holds what the chunk store gives at once, or what a [`Run`]
    /// does.
    pub(super) fn read(&self, range: Range<u64>) -> SourceBody {
        match self {
            Self::Cluster { chunks, content } => {
                let reader = ContentReader::new(chunks.clone(), content.clone(), range).copied();
                let steps = stream::try_unfold(reader, |mut reader| async move {
                    let step = tokio::time::timeout(STEP_MAX, reader.next()).await;
                    let bytes = step.map_err(|_| SourceError::Stalled)?.transpose()?;
                    Ok(bytes.map(|bytes| (bytes, reader)))
                });
                steps.boxed()
            }
            Self::Tier { tier, place, tries } => {
                let reader = TierReader::new(tier.clone(), place.clone(), *tries, range);
                stream::try_unfold(reader, |mut reader| async move {
                    let bytes = reader.next().await?;
                    Ok(bytes.map(|bytes| (bytes, reader)))
                })
                .boxed()
            }
        }
    }
}

/// Reads blocks of a content in a tier, piece by piece.
struct TierReader {
    tier: Arc<dyn ColdTier>,
    place: Arc<ColdPlace>,
    /// What is still to be handed out.
    range: Range<u64>,
    tries: u32,
    /// The piece that is being read.
    run: Option<Run>,
}

impl TierReader {
    fn new(tier: Arc<dyn ColdTier>, place: Arc<ColdPlace>, tries: u32, range: Range<u64>) -> Self {
        Self { tier, place, range, tries, run: None }
    }

    /// The next block, or as much of it as was asked for; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let blocks = self.place.blocks(&self.range);
        if blocks.is_empty() {
            return Ok(None);
        }
        let block = self.place.block(blocks.start);
        let mut failures = 0;
        let bytes = loop {
            match self.next_block(&blocks).await {
                Ok(bytes) => break bytes,
                Err(error) => {
                    failures += 1;
                    if failures >= self.tries || !error.may_pass() {
                        return Err(error);
                    }
                    tracing::debug!(%error, failures, "a block is asked for again");
                    tokio::time::sleep(pause_after(failures, PAUSE_MIN, PAUSE_MAX)).await;
                }
            }
        };
        let from = (self.range.start - block.start) as usize;
        let to = (self.range.end.min(block.end) - block.start) as usize;
        self.range.start = block.end.min(self.range.end);
        Ok(Some(bytes.slice(from..to)))
    }

    /// The first of `blocks`, which are all that are still to come.
    async fn next_block(&mut self, blocks: &Range<usize>) -> Result<Bytes, SourceError> {
        let mut run = match self.run.take() {
            Some(run) if !run.is_over() => run,
            _ => {
                let (tier, blocks) = (self.tier.clone(), blocks.clone());
                // Who tries once wants to know whether what was stored is there, where it was stored.
                let opened = match self.tries {
                    0 | 1 => Run::open(tier, &self.place, blocks, Counter::noop()).await,
                    _ => Run::open_any(tier, &self.place, blocks, Counter::noop()).await,
                };
                opened.map_err(|error| self.failed(error))?
            }
        };
        let bytes = run.next_block(STEP_MAX).await.map_err(|error| self.broke_off(&run, error))?;
        self.run = Some(run);
        Ok(bytes)
    }

    fn failed(&self, error: TierError) -> SourceError {
        SourceError::Tier { tier: self.place.tier.clone(), error }
    }

    fn broke_off(&self, run: &Run, error: RunError) -> SourceError {
        let (tier, piece) = (self.place.tier.clone(), run.name().to_string());
        match error {
            RunError::Tier(error) => self.failed(error),
            RunError::Damaged(mismatch) => SourceError::Damaged { tier, piece, mismatch },
            RunError::Short { missing, .. } => SourceError::Short { tier, piece, missing },
            RunError::Stalled => SourceError::Stalled,
        }
    }
}

#[cfg(test)]
mod tests;
