//! To a tier: bytes are cut into pieces, stored, read back and compared.
//!
//! Piece after piece is named, its name made durable, and stored. Checksums of the blocks are made of the very bytes
//! that go out. When all pieces are there they are read back, in order, and every block is held against its checksum.
//! Then the stub is written (promise D10), and only then the content may take the place of the one before.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use holdfast_protocol::{ColdPlace, ContentId, Manifest, TierName};
use parking_lot::Mutex;

use super::backoff::pause_after;
use super::blocks::BlockSums;
use super::mover::{Mover, MoverSettings};
use super::source::{Source, SourceError};
use super::stub::write_stub;
use super::work::{MoveError, Ready, Subject};
use crate::flow::shards::ByteBudget;
use crate::ports::ChunkError;
use crate::ports::metadata::{Content, ContentPlace};
use crate::ports::tiering::Move;
use crate::ports::tiers::{ColdBody, ColdTier, PieceName, PieceSpec, TierError, TierResult};

/// What is taken from the budget at a time. At a low rate each move waits for all others: for whole buffers of theirs
/// it would wait for so long that a server takes its client for gone.
const SLICE_BYTES: usize = 128 << 10;

/// Makes checksums of what flows by, and keeps why it ended: the tier's own error tells that only as text.
struct Tap {
    seen: Mutex<Seen>,
    budget: Option<Arc<ByteBudget>>,
}

struct Seen {
    sums: BlockSums,
    bytes: u64,
    failure: Option<SourceError>,
}

impl Tap {
    fn new(block_bytes: u32, budget: Option<Arc<ByteBudget>>) -> Arc<Self> {
        let seen = Seen { sums: BlockSums::new(block_bytes), bytes: 0, failure: None };
        Arc::new(Self { seen: Mutex::new(seen), budget })
    }

    fn body(self: &Arc<Self>, source: &Source, range: Range<u64>) -> ColdBody {
        let tap = self.clone();
        let slice_bytes = if tap.budget.is_some() { SLICE_BYTES } else { usize::MAX };
        let slices = source.read(range).flat_map(move |step| stream::iter(in_slices(step, slice_bytes)));
        let steps = slices.then(move |step| {
            let tap = tap.clone();
            async move { tap.pass_on(step).await }
        });
        steps.boxed()
    }

    async fn pass_on(&self, step: Result<Bytes, SourceError>) -> TierResult<Bytes> {
        match step {
            Ok(bytes) => {
                spend(self.budget.as_deref(), bytes.len()).await;
                let mut seen = self.seen.lock();
                seen.sums.update(&bytes);
                seen.bytes += bytes.len() as u64;
                Ok(bytes)
            }
            Err(error) => {
                let text = error.to_string();
                self.seen.lock().failure = Some(error);
                Err(TierError::Invalid(text))
            }
        }
    }

    /// The checksums, if `size_bytes` flowed by and nothing failed.
    fn end(&self, size_bytes: u64) -> Result<Option<Vec<u32>>, SourceError> {
        let mut seen = self.seen.lock();
        if let Some(failure) = seen.failure.take() {
            return Err(failure);
        }
        let sums = std::mem::replace(&mut seen.sums, BlockSums::new(1));
        Ok((seen.bytes == size_bytes).then(|| sums.finish()))
    }
}

/// A step in slices of at most `slice_bytes`.
fn in_slices(
    step: Result<Bytes, SourceError>,
    slice_bytes: usize,
) -> impl Iterator<Item = Result<Bytes, SourceError>> + Send {
    let (mut rest, mut failure) = match step {
        Ok(bytes) => (bytes, None),
        Err(error) => (Bytes::new(), Some(error)),
    };
    std::iter::from_fn(move || match failure.take() {
        Some(error) => Some(Err(error)),
        None if rest.is_empty() => None,
        None => Some(Ok(rest.split_to(rest.len().min(slice_bytes)))),
    })
}

/// Waits until so many bytes may be moved.
pub(super) async fn spend(budget: Option<&ByteBudget>, bytes: usize) {
    if let Some(budget) = budget {
        drop(budget.take(bytes as u64).await);
    }
}

/// Whether it may help to do the same again in a moment.
fn is_passing(error: &MoveError) -> bool {
    match error {
        // A replica that lags does not have a piece yet that another one took.
        MoveError::Tier { error, .. } => {
            matches!(error, TierError::Unavailable(_) | TierError::NotFound(_) | TierError::Corrupt { .. })
        }
        MoveError::ReadBack(SourceError::Tier { error, .. }) => {
            matches!(error, TierError::Unavailable(_) | TierError::NotFound(_))
        }
        MoveError::Source(SourceError::Tier { error, .. }) => matches!(error, TierError::Unavailable(_)),
        MoveError::Source(SourceError::Chunk(error)) => matches!(error, ChunkError::Unavailable(_)),
        _ => false,
    }
}

/// A content on its way to a tier.
struct Parcel<'a> {
    mover: &'a Mover,
    job: &'a Move,
    source: &'a Source,
    name: &'a TierName,
    tier: Arc<dyn ColdTier>,
    content: ContentId,
    place: ColdPlace,
}

impl Mover {
    /// Stores what is to be moved as a new content in a tier, and proves that it is there.
    pub(super) async fn offload(&self, job: &Move, subject: &Subject, name: &TierName) -> Result<Ready, MoveError> {
        // By the settings of a moment after the claim: who changes them takes the claims away that were made before.
        let tier = self.parts.tiers.fresh(name).await.map_err(|error| MoveError::Tier { tier: name.clone(), error })?;
        let content = ContentId::generate(self.parts.clock.now_seconds());
        let size_bytes = subject.content.size_bytes();
        let block_bytes = ColdPlace::block_bytes_for(size_bytes);
        let piece_bytes = ColdPlace::piece_bytes_for(block_bytes, tier.piece_bytes_max());
        let place =
            ColdPlace { tier: name.clone(), size_bytes, piece_bytes, block_bytes, names: Vec::new(), sums: Vec::new() };
        let mut parcel = Parcel { mover: self, job, source: &subject.source, name, tier: tier.clone(), content, place };
        for index in 0..parcel.place.piece_count() as u32 {
            parcel.store(index).await?;
        }
        let place = Arc::new(parcel.place);
        self.read_back(&place, tier).await?;
        let content = Content {
            id: content,
            manifest: Manifest::single(content, size_bytes),
            place: ContentPlace::Tier(place),
            ..Content::clone(&subject.content)
        };
        let stub = write_stub(&self.parts.chunks, &content, subject.label(job)?).await.map_err(MoveError::Stub)?;
        Ok(Ready::Tier(content, stub))
    }

    /// Reads all pieces and compares them with the checksums that were made of what went out (promise D5).
    async fn read_back(&self, place: &Arc<ColdPlace>, tier: Arc<dyn ColdTier>) -> Result<(), MoveError> {
        // What came back damaged once is not asked for again: a tier that damages is not to have the only copy.
        let stored = Source::Tier { tier, place: place.clone(), tries: 1 };
        for index in 0..place.piece_count() as u32 {
            let mut retries = Retries::new(&self.parts.settings);
            while let Err(error) = self.read_back_piece(&stored, place.piece(index)).await {
                retries.wait_after(error).await?;
            }
        }
        Ok(())
    }

    async fn read_back_piece(&self, stored: &Source, range: Range<u64>) -> Result<(), MoveError> {
        let mut body = stored.read(range);
        while let Some(step) = body.next().await {
            spend(self.budget.as_deref(), step.map_err(MoveError::ReadBack)?.len()).await;
        }
        Ok(())
    }
}

/// Tries of one step of one piece: not as many as never to end.
struct Retries<'a> {
    settings: &'a MoverSettings,
    failures: u32,
}

impl<'a> Retries<'a> {
    fn new(settings: &'a MoverSettings) -> Self {
        Self { settings, failures: 0 }
    }

    /// Waits for the next try, if there is one and it may help; else the error comes back.
    async fn wait_after(&mut self, error: MoveError) -> Result<(), MoveError> {
        self.failures += 1;
        if !is_passing(&error) || self.failures >= self.settings.piece_tries {
            return Err(error);
        }
        tracing::debug!(%error, failures = self.failures, "a piece failed, it is tried again");
        let pause = self.settings.piece_pause;
        tokio::time::sleep(pause_after(self.failures, pause, pause.saturating_mul(64))).await;
        Ok(())
    }
}

impl Parcel<'_> {
    fn failed(&self, error: TierError) -> MoveError {
        MoveError::Tier { tier: self.name.clone(), error }
    }

    /// Names and stores the next piece.
    async fn store(&mut self, index: u32) -> Result<(), MoveError> {
        let range = self.place.piece(index);
        let (content, attempt, size_bytes) = (self.content, self.job.attempt, range.end - range.start);
        let spec = PieceSpec { content, index, attempt, size_bytes };
        let name = self.reserve(&spec).await?;
        // Durable before the first byte goes out: from now on somebody deletes it, whatever happens here.
        let (_, due_ms) = self.mover.claim_ends_ms();
        let names = std::slice::from_ref(&name);
        let reserve = self.mover.parts.ledger.reserve_pieces(self.job.id, attempt, self.name, names, due_ms);
        self.mover.timed("reserve a piece", reserve).await?;
        let mut retries = Retries::new(&self.mover.parts.settings);
        let sums = loop {
            match self.put(&name, &spec, range.clone()).await {
                Ok(sums) => break sums,
                Err(error) => retries.wait_after(error).await?,
            }
        };
        self.place.names.push(name.as_str().to_owned());
        self.place.sums.extend(sums);
        Ok(())
    }

    async fn reserve(&self, spec: &PieceSpec) -> Result<PieceName, MoveError> {
        let mut retries = Retries::new(&self.mover.parts.settings);
        loop {
            match self.tier.reserve(spec).await {
                Ok(name) => return Ok(name),
                Err(error) => retries.wait_after(self.failed(error)).await?,
            }
        }
    }

    /// Sends a piece; its checksums. A repeated one takes the place of what came of it before.
    async fn put(&self, name: &PieceName, spec: &PieceSpec, range: Range<u64>) -> Result<Vec<u32>, MoveError> {
        let tap = Tap::new(self.place.block_bytes, self.mover.budget.clone());
        let stored = self.tier.put(name, spec, tap.body(self.source, range)).await;
        // Where the source failed, the tier says only that it did.
        let sums = tap.end(spec.size_bytes).map_err(MoveError::Source)?;
        stored.map_err(|error| self.failed(error))?;
        sums.ok_or_else(|| self.failed(TierError::Invalid(format!("{name} was taken before all of it had come"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_is_shared_in_small_slices() {
        let step = Bytes::from(vec![7; 2 * SLICE_BYTES + 1]);
        let slices: Vec<usize> =
            in_slices(Ok(step.clone()), SLICE_BYTES).map(|slice| slice.map_or(0, |slice| slice.len())).collect();
        assert_eq!(slices, [SLICE_BYTES, SLICE_BYTES, 1]);
        assert_eq!(in_slices(Ok(step), usize::MAX).count(), 1, "where there is none, nothing is cut");
        let failed: Vec<_> = in_slices(Err(SourceError::Stalled), SLICE_BYTES).collect();
        assert!(matches!(failed[..], [Err(SourceError::Stalled)]), "{failed:?}");
    }
}
