//! Verified reading of what is moved: from the cluster's chunks, whose store verifies them, or from a tier, whose bytes are held
//! against the content's own checksums before they are handed out.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use holdfast_protocol::{ColdPlace, TierName};

use super::backoff::pause_after;
use super::blocks::{BlockCheck, BlockMismatch};
use crate::flow::get::ContentReader;
use crate::ports::metadata::Content;
use crate::ports::tiers::{ColdBody, ColdTier, PieceName, TierError};
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
    /// Reads a range, which must lie within the content. Holds one block of a tier, or what the chunk store gives at once.
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
    /// The next block.
    block: usize,
    /// The piece that is being read, and what of it is still to come.
    open: Option<Open>,
}

struct Open {
    body: ColdBody,
    name: PieceName,
    left: u64,
    /// What came and belongs to the next block.
    rest: Bytes,
}

impl TierReader {
    fn new(tier: Arc<dyn ColdTier>, place: Arc<ColdPlace>, tries: u32, range: Range<u64>) -> Self {
        let block = place.blocks(&range).start;
        Self { tier, place, range, tries, block, open: None }
    }

    fn failed(&self, error: TierError) -> SourceError {
        SourceError::Tier { tier: self.place.tier.clone(), error }
    }

    /// The next block, or as much of it as was asked for; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        if self.range.start >= self.range.end.min(self.place.size_bytes) {
            return Ok(None);
        }
        let block = self.place.block(self.block);
        let mut failures = 0;
        let bytes = loop {
            match self.next_block(&block).await {
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
        self.block += 1;
        let from = (self.range.start - block.start) as usize;
        let to = (self.range.end.min(block.end) - block.start) as usize;
        self.range.start = block.end.min(self.range.end);
        Ok(Some(bytes.slice(from..to)))
    }

    async fn next_block(&mut self, block: &Range<u64>) -> Result<Bytes, SourceError> {
        let mut open = match self.open.take() {
            Some(open) if open.left > 0 => open,
            _ => self.open_at(block.start).await?,
        };
        let mut check = BlockCheck::new(self.place.clone(), self.block);
        let mut wanted = block.end - block.start;
        while wanted > 0 {
            if open.rest.is_empty() {
                let step = tokio::time::timeout(STEP_MAX, open.body.next()).await;
                open.rest = match step.map_err(|_| SourceError::Stalled)? {
                    Some(Ok(bytes)) => bytes,
                    Some(Err(error)) => return Err(self.failed(error)),
                    None => {
                        self.tier.doubt(&open.name);
                        let (tier, piece) = (self.place.tier.clone(), open.name.to_string());
                        return Err(SourceError::Short { tier, piece, missing: open.left });
                    }
                };
                continue;
            }
            let take = wanted.min(open.rest.len() as u64);
            let taken = open.rest.split_to(take as usize);
            wanted -= take;
            open.left -= take;
            if let Err(mismatch) = check.push(taken) {
                self.tier.doubt(&open.name);
                let (tier, piece) = (self.place.tier.clone(), open.name.to_string());
                return Err(SourceError::Damaged { tier, piece, mismatch });
            }
        }
        let Some(bytes) = check.next_block() else {
            return Err(self.failed(TierError::Invalid("a block that is none".into())));
        };
        self.open = Some(open);
        Ok(bytes)
    }

    /// Opens the piece that `offset` is in, from there to its end or to that of the block that ends the range.
    async fn open_at(&mut self, offset: u64) -> Result<Open, SourceError> {
        let last = self.place.block(self.place.blocks(&self.range).end.saturating_sub(1));
        let run = self.place.locate(offset, last.end);
        let name = self.place.names.get(run.index as usize).cloned().unwrap_or_default();
        let name = PieceName::new(name).map_err(|error| self.failed(error))?;
        let body = self.tier.get(&name, run.start..run.end).await.map_err(|error| self.failed(error))?;
        Ok(Open { body, name, left: run.end - run.start, rest: Bytes::new() })
    }
}

#[cfg(test)]
mod tests;
