//! Reading cold objects: from the tier through a check of every block to the reader.
//!
//! [`ColdReads`] is one for a node; [`ColdReader`] reads a range of a content. A reader gives out whole blocks that
//! matched their checksums (promise D3), cut to the range. It holds one block, and what the tier's adapter buffers.
//!
//! # Streams and their sharing
//! Blocks come by **flights**. A flight is one request to the tier, from a block on to the last one that its first
//! reader wants, within a piece. A block that it brought goes into the **cache**, which is bounded by bytes. A reader
//! looks for its next block
//!
//! 1. in the cache;
//! 2. at a flight of the same content that is at that block, or little before it: it waits for the flight together with
//!    the others who want that block;
//! 3. and otherwise begins a flight of its own, which others may join.
//!
//! So hundreds of readers who start at once cost one request: all are at the first block, the fastest draws the flight
//! on, and the others find in the cache what it brought. One who falls so far behind that his block is evicted begins a
//! flight of his own.
//!
//! A flight belongs to nobody: the block on its way is a shared future, driven by any of those who wait for it. A
//! reader that is dropped, or whose client does not read, holds nobody up. When the last reader of a flight goes, so
//! does the tier's stream. Nobody waits for ever: a stream in which nothing moves for [`ColdReadSettings::stall_max`]
//! is given up and another one begun.
//!
//! With a cache of 0 bytes, or of fewer than one block has, nothing is shared.
//!
//! # Failures
//! A tier that cannot be reached is asked again a few times with short pauses, in the middle of a read from the first
//! block on that was not given out. Damaged or missing bytes are counted, reported to the error log and asked for
//! again, since tiers may have another copy. What still fails then ends the reader with an error, for all who wait for
//! the same block.
//!
//! # Limits
//! The node has at most [`ColdReadSettings::streams_max`] streams from tiers. Half of them are kept in equal parts for
//! each tier, so that those that stall, however many, leave some to the others. Who needs one more waits for a limited
//! time; while somebody waits, readers that have not read for [`ColdReadSettings::idle_max`] lose their stream, and
//! begin another when they go on.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream};
use holdfast_protocol::journal::ErrorKind;
use holdfast_protocol::{ColdPlace, ContentId, TierName};

use self::cache::BlockCache;
use self::flight::{Flight, Flights, Joined};
use self::streams::Streams;
use crate::flow::report::Reporter;
use crate::ports::metadata::Content;
use crate::ports::tiers::Tiers;

mod cache;
mod fetch;
mod flight;
mod streams;
#[cfg(test)]
mod tests;

/// Limits of reading from tiers.
#[derive(Debug, Clone)]
pub struct ColdReadSettings {
    /// Bytes of verified blocks that are kept; 0: none, and readers share nothing.
    pub cache_bytes_max: u64,
    /// Streams from tiers at a time; each tier that is set up has one at least.
    pub streams_max: usize,
    /// How long a reader waits for one of them.
    pub stream_wait_max: Duration,
    /// A stream in which nothing moves for so long is given up.
    pub stall_max: Duration,
    /// A reader that has not read for so long loses its stream to one that waits.
    pub idle_max: Duration,
}

impl Default for ColdReadSettings {
    /// 16 MiB of cache; 64 streams, for 10 s; 20 s without a byte; idle after 5 s.
    fn default() -> Self {
        Self {
            cache_bytes_max: 16 << 20,
            streams_max: 64,
            stream_wait_max: Duration::from_secs(10),
            stall_max: Duration::from_secs(20),
            idle_max: Duration::from_secs(5),
        }
    }
}

/// Why a cold object cannot be read; each variant asks another thing of the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ColdReadError {
    /// The tier cannot be reached, or too many objects are being read: come back later.
    #[error("tier {tier} cannot be reached: {detail}")]
    Unavailable {
        /// Which tier.
        tier: TierName,
        /// Why.
        detail: String,
    },
    /// The tier is not set up on this node, or refuses: an operator has to act, and then it can be read again.
    #[error("tier {tier} cannot be used: {detail}")]
    Denied {
        /// Which tier.
        tier: TierName,
        /// Why.
        detail: String,
    },
    /// The tier does not have the bytes: they are lost, or the content was deleted and its grace is over.
    #[error("tier {tier} does not have {piece}")]
    Missing {
        /// Which tier.
        tier: TierName,
        /// Which piece.
        piece: String,
    },
    /// The tier gives other bytes than were stored, again and again.
    #[error("the copy in tier {tier} is damaged: {detail}")]
    Corrupt {
        /// Which tier.
        tier: TierName,
        /// What did not match.
        detail: String,
    },
    /// The content is not in a tier, or what is known of its place does not add up.
    #[error("no readable place in a tier: {0}")]
    Invalid(String),
}

impl ColdReadError {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "unavailable",
            Self::Denied { .. } => "denied",
            Self::Missing { .. } => "missing",
            Self::Corrupt { .. } => "damaged",
            Self::Invalid(_) => "invalid",
        }
    }
}

/// Reads cold objects. Cheap to clone; the clones share cache and limits.
#[derive(Clone)]
pub struct ColdReads {
    shared: Arc<Shared>,
}

/// What all readers of a node share.
struct Shared {
    tiers: Arc<dyn Tiers>,
    settings: ColdReadSettings,
    reporter: Option<Reporter>,
    cache: BlockCache,
    flights: Flights,
    streams: Arc<Streams>,
}

impl Shared {
    /// Whether blocks of this content are cached, and so shared.
    fn caches(&self, place: &ColdPlace) -> bool {
        self.cache.takes(u64::from(place.block_bytes).min(place.size_bytes))
    }

    fn report(&self, kind: ErrorKind, subject: String, detail: &str) {
        if let Some(reporter) = &self.reporter {
            reporter.report(kind, subject, detail);
        }
    }
}

impl ColdReads {
    /// Reads from these tiers.
    pub fn new(tiers: Arc<dyn Tiers>, settings: ColdReadSettings) -> Self {
        Self::with_reporter(tiers, settings, None)
    }

    /// Reads from these tiers, and reports failures and damage to the error log.
    pub fn with_reporter(tiers: Arc<dyn Tiers>, settings: ColdReadSettings, reporter: Option<Reporter>) -> Self {
        let cache = BlockCache::new(settings.cache_bytes_max);
        let streams = Streams::new(settings.streams_max);
        let shared = Shared { tiers, settings, reporter, cache, flights: Flights::default(), streams };
        Self { shared: Arc::new(shared) }
    }

    /// Reads `range` of a content that lies in a tier; the part of it beyond the end is left out. Nothing is asked of
    /// the tier before the reader is polled.
    pub fn open(&self, content: Arc<Content>, range: Range<u64>) -> ColdReader {
        let end = range.end.min(content.size_bytes());
        let range = range.start.min(end)..end;
        ColdReader {
            shared: Arc::clone(&self.shared),
            content,
            remaining: range.end - range.start,
            unread: range,
            first: None,
            flight: None,
            step: None,
        }
    }

    /// Bytes in the cache.
    pub fn cached_bytes(&self) -> u64 {
        self.shared.cache.bytes()
    }
}

/// A block on its way, and the flight that brings it.
type Step = BoxFuture<'static, (Result<Bytes, ColdReadError>, Option<Arc<Flight>>)>;

/// A range of a cold content's bytes, as a stream of verified pieces. After an error it ends.
pub struct ColdReader {
    shared: Arc<Shared>,
    content: Arc<Content>,
    /// What has not been read.
    unread: Range<u64>,
    /// Bytes not yet handed out.
    remaining: u64,
    /// What [`Self::prefetch`] read.
    first: Option<Bytes>,
    /// Kept while it may bring the next block too.
    flight: Option<Arc<Flight>>,
    step: Option<Step>,
}

impl ColdReader {
    /// Bytes still to come.
    pub fn remaining_bytes(&self) -> u64 {
        self.remaining
    }

    /// Reads the first block and keeps it, so that a tier that cannot be reached shows before an answer has begun.
    ///
    /// # Errors
    /// Those of the stream.
    pub async fn prefetch(&mut self) -> Result<(), ColdReadError> {
        if self.remaining == 0 || self.first.is_some() {
            return Ok(());
        }
        match std::future::poll_fn(|cx| self.poll_piece(cx)).await {
            Some(Ok(piece)) => {
                self.first = Some(piece);
                Ok(())
            }
            Some(Err(error)) => Err(error),
            None => Ok(()),
        }
    }

    /// The next piece, not counted as handed out.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ColdReadError>>> {
        if self.unread.is_empty() {
            return Poll::Ready(None);
        }
        let place = match place_of(&self.content) {
            Ok(place) => Arc::clone(place),
            Err(error) => return self.fail(error),
        };
        let blocks = place.blocks(&self.unread);
        let step = match &mut self.step {
            Some(step) => step,
            None => {
                if let Some(block) = self.cached(blocks.start) {
                    return Poll::Ready(Some(Ok(self.cut(&place, blocks.start, &block))));
                }
                let flight = self.flight.take();
                let bring =
                    bring(Arc::clone(&self.shared), self.content.id, Arc::clone(&place), blocks.clone(), flight);
                self.step.insert(bring.boxed())
            }
        };
        let (result, flight) = ready!(step.poll_unpin(cx));
        self.step = None;
        self.flight = flight;
        match result {
            Ok(block) => Poll::Ready(Some(Ok(self.cut(&place, blocks.start, &block)))),
            Err(error) => self.fail(error),
        }
    }

    /// A block from the cache.
    fn cached(&mut self, block: usize) -> Option<Bytes> {
        let Some(cached) = self.shared.cache.get(&(self.content.id, block)) else {
            metrics::counter!("holdfast_tier_cache_misses_total").increment(1);
            return None;
        };
        metrics::counter!("holdfast_tier_cache_hits_total").increment(1);
        // A stream that was left far behind is of no use any more.
        self.flight = self.flight.take().filter(|flight| flight.may_bring(block + 1));
        Some(cached)
    }

    /// The part of a block that is wanted.
    fn cut(&mut self, place: &ColdPlace, block: usize, bytes: &Bytes) -> Bytes {
        let held = place.block(block);
        let end = held.end.min(self.unread.end);
        let piece = bytes.slice((self.unread.start - held.start) as usize..(end - held.start) as usize);
        self.unread.start = end;
        if self.unread.is_empty() {
            self.flight = None;
        }
        piece
    }

    fn fail(&mut self, error: ColdReadError) -> Poll<Option<Result<Bytes, ColdReadError>>> {
        self.unread.start = self.unread.end;
        self.flight = None;
        self.step = None;
        Poll::Ready(Some(Err(error)))
    }
}

impl Stream for ColdReader {
    type Item = Result<Bytes, ColdReadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let piece = match self.first.take() {
            Some(first) => Some(Ok(first)),
            None => ready!(self.poll_piece(cx)),
        };
        if let Some(Ok(piece)) = &piece {
            self.remaining -= piece.len() as u64;
        }
        Poll::Ready(piece)
    }
}

/// Where a content lies, if that adds up.
fn place_of(content: &Content) -> Result<&Arc<ColdPlace>, ColdReadError> {
    let place = content
        .cold()
        .ok_or_else(|| ColdReadError::Invalid(format!("content {} is not known to lie in a tier", content.id)))?;
    if place.size_bytes != content.size_bytes() {
        let (size, other) = (content.size_bytes(), place.size_bytes);
        return Err(ColdReadError::Invalid(format!("content {} has {size} bytes, in its tier {other}", content.id)));
    }
    Ok(place)
}

/// Brings the first of `blocks`, on the flight given if that reaches it.
async fn bring(
    shared: Arc<Shared>,
    content: ContentId,
    place: Arc<ColdPlace>,
    blocks: Range<usize>,
    mut flight: Option<Arc<Flight>>,
) -> (Result<Bytes, ColdReadError>, Option<Arc<Flight>>) {
    let wanted = blocks.start;
    loop {
        let on = match flight.take() {
            Some(flight) if flight.reaches(wanted) => flight,
            ahead => match shared.flights.join(&shared, content, &place, wanted, blocks.end) {
                Joined::Cached(block) => return (Ok(block), ahead.filter(|flight| flight.may_bring(wanted + 1))),
                Joined::Flight(flight) => flight,
            },
        };
        match on.block(wanted).await {
            Some(result) => {
                let flight = result.is_ok().then_some(on);
                return (result, flight);
            }
            // Another reader drew it on; what it brought is in the cache.
            None => flight = Some(on),
        }
    }
}
