//! One chunk from another node onto this one's disks: fetched whole and verified, then written, read back and compared.
//!
//! A chunk is at most 16 MiB and is held in memory in between, so that nothing here is touched before all of it has
//! come. The bytes held are those of a permit of [`super::ByteBudget`], which the caller has taken.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use holdfast_protocol::{ChunkId, ChunkLabel, ContentId, NodeId};
use tokio::time::timeout;

use super::Context;
use crate::flow::key_locks::ChunkLock;
use crate::flow::panics::caught;
use crate::ports::chunks::{ChunkInfo, ChunkSpec, ReplicaStore};
use crate::ports::peers::PeerError;
use crate::ports::{ChunkError, MetadataError};

/// How long somebody who writes the chunk for a peer is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// How long a disk that failed may give nothing.
const FAILED_DISK_PATIENCE: Duration = Duration::from_secs(60);
/// What a disk says of a sector that it cannot read (EIO), and a file system of what it knows to be damaged (EBADMSG,
/// EUCLEAN).
const UNREADABLE: [i32; 3] = [5, 74, 117];
/// Contents or repairs in one call of metadata.
pub(super) const METADATA_BATCH: usize = 500;

/// Why a chunk did not come here; each variant asks another thing of the caller.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    /// Every source was asked and none has it: it may have been deleted.
    #[error("chunk {0} is on no node that was asked")]
    Gone(ChunkId),
    /// Every source was asked and none has it whole.
    #[error("chunk {chunk} is whole on no node that was asked: {detail}")]
    Unreadable {
        /// Which chunk.
        chunk: ChunkId,
        /// What the last source said.
        detail: String,
    },
    /// Not every source could be asked: try again.
    #[error("fetch chunk {chunk}: {detail}")]
    Unreachable {
        /// Which chunk.
        chunk: ChunkId,
        /// What happened.
        detail: String,
    },
    /// Somebody is writing the chunk here: try again.
    #[error("chunk {0} is being written here")]
    Busy(ChunkId),
    /// The program fell over it, and may do so each time.
    #[error("chunk {chunk} made the program panic: {detail}")]
    Panicked {
        /// Which chunk.
        chunk: ChunkId,
        /// What it said.
        detail: String,
    },
    /// This node's disks failed or are full.
    #[error("on this node's disks: {0}")]
    Local(#[source] ChunkError),
}

/// A chunk in memory, verified on its way.
pub(super) struct Fetched {
    info: ChunkInfo,
    label: Bytes,
    pieces: Vec<Bytes>,
}

impl Fetched {
    /// What it was written for, as far as its label can be read.
    pub(super) fn label(&self) -> Option<ChunkLabel> {
        ChunkLabel::decode(&self.label).ok()
    }
}

/// Does `work` on a chunk, and makes an error of a panic: one chunk over which the program falls must not keep the work
/// on the others from going on, nor use up the restarts of who does it.
pub(super) async fn guarded<T>(
    chunk: ChunkId,
    work: impl Future<Output = Result<T, TransferError>>,
) -> Result<T, TransferError> {
    caught(work).await.unwrap_or_else(|detail| {
        tracing::error!(%chunk, detail, "the program panicked over a chunk, others go on");
        Err(TransferError::Panicked { chunk, detail })
    })
}

/// Fetches a chunk of a known size from the first of `sources` that has it whole.
pub(super) async fn fetch(context: &Context, info: ChunkInfo, sources: &[NodeId]) -> Result<Fetched, TransferError> {
    // Of a node that is gone nothing is known: it may be back in a moment, with the chunk.
    let membership = context.parts.view.membership();
    let has_given_up = |node: &NodeId| {
        let known = membership.borrow();
        known.nodes.contains_key(node) && !known.holds(*node)
    };
    let (mut unreachable, mut damaged) = (None, None);
    for source in sources {
        match fetch_from(context, info, *source).await {
            Ok(fetched) => return Ok(fetched),
            Err(PeerError::Chunk(ChunkError::NotFound(_))) => {}
            Err(
                error @ PeerError::Chunk(ChunkError::Corrupt { .. } | ChunkError::Invalid(_) | ChunkError::Io { .. }),
            ) => {
                tracing::warn!(%source, %error, "a chunk that is to be copied is damaged there");
                damaged = Some(error.to_string());
            }
            // Its disks are silent, and it says itself that nobody is to wait for them: it is as good as damaged there.
            Err(error) if has_given_up(source) => damaged = Some(error.to_string()),
            Err(error) => unreachable = Some(error.to_string()),
        }
    }
    let chunk = info.id;
    Err(match (unreachable, damaged) {
        (Some(detail), _) => TransferError::Unreachable { chunk, detail },
        (None, Some(detail)) => TransferError::Unreadable { chunk, detail },
        (None, None) => TransferError::Gone(chunk),
    })
}

async fn fetch_from(context: &Context, info: ChunkInfo, source: NodeId) -> Result<Fetched, PeerError> {
    let peers = &context.parts.peers;
    let label = peers.label(source, info.id).await?;
    let mut body = peers.read(source, info.id, 0..info.size_bytes);
    let mut pieces = Vec::new();
    let mut received = 0;
    while let Some(piece) = body.next().await {
        let piece = piece?;
        received += piece.len() as u64;
        pieces.push(piece);
    }
    if received != u64::from(info.size_bytes) {
        let detail = format!("{received} of {} bytes came", info.size_bytes);
        return Err(PeerError::Unreachable { node: source, detail });
    }
    Ok(Fetched { info, label, pieces })
}

/// Reads a chunk that is stranded here: a disk that failed may still give what nobody else has. It may as well never
/// answer, and must not keep the other repairs waiting then.
pub(super) async fn fetch_here(chunks: &dyn ReplicaStore, info: ChunkInfo) -> Result<Fetched, ChunkError> {
    let late = |_| ChunkError::Unavailable("a disk that failed does not answer".into());
    let label = timeout(FAILED_DISK_PATIENCE, chunks.label(info.id)).await.map_err(late)??;
    let mut body = chunks.read_copied(info.id, 0..info.size_bytes)?;
    let mut pieces = Vec::new();
    while let Some(piece) = timeout(FAILED_DISK_PATIENCE, body.next()).await.map_err(late)? {
        pieces.push(piece?);
    }
    Ok(Fetched { info, label, pieces })
}

/// Sees to it that this node has the chunk: what is here whole is compared only, what is here and damaged is deleted (a
/// whole one is in hand), and what was written is read back and compared (promise D5).
pub(super) async fn store(context: &Context, fetched: Fetched) -> Result<(), TransferError> {
    let here = context.clone();
    context.disk_changes.run(async move { store_here(&here, &fetched).await }).await
}

async fn store_here(context: &Context, fetched: &Fetched) -> Result<(), TransferError> {
    let ChunkInfo { id, size_bytes } = fetched.info;
    let _lock = lock(context, id).await?;
    let chunks = &context.parts.chunks;
    if let Some(here) = chunks.stat(id) {
        if here.size_bytes == size_bytes && verify(context, id).await? {
            return compare(context, fetched).await.map_err(TransferError::Local);
        }
        if here.size_bytes != size_bytes {
            // Never the same content: what is here cannot be read as the chunk that the others hold.
            tracing::error!(chunk = %id, "a chunk here has another size than elsewhere, it is replaced");
        }
        chunks.delete(&[id]).await.map_err(TransferError::Local)?;
    }
    match write(context, fetched).await {
        Ok(()) => {}
        // By a client of this node.
        Err(ChunkError::Exists(_)) => return Err(TransferError::Busy(id)),
        Err(error) => return Err(TransferError::Local(error)),
    }
    let Err(error) = read_back(context, fetched).await else { return Ok(()) };
    // What cannot be read back must not count as a replica.
    chunks.delete(&[id]).await.map_err(TransferError::Local)?;
    Err(TransferError::Local(error))
}

/// Compares what was written. Reads go on with another disk where one gives nothing, and one that failed may have the
/// chunk, too: then the disks that work are asked for themselves.
async fn read_back(context: &Context, fetched: &Fetched) -> Result<(), ChunkError> {
    compare(context, fetched).await?;
    let chunks = &context.parts.chunks;
    if chunks.disk_count().fenced > 0 {
        chunks.verify(fetched.info.id).await?;
    }
    Ok(())
}

async fn lock(context: &Context, id: ChunkId) -> Result<ChunkLock, TransferError> {
    context.parts.chunk_locks.lock_within(id, LOCK_PATIENCE).await.ok_or(TransferError::Busy(id))
}

async fn write(context: &Context, fetched: &Fetched) -> Result<(), ChunkError> {
    let ChunkInfo { id, size_bytes } = fetched.info;
    let spec = ChunkSpec { id, size_bytes, label: fetched.label.clone() };
    let mut sink = context.parts.chunks.create(spec).await?;
    for piece in &fetched.pieces {
        sink.write(piece).await?;
    }
    sink.finish_input()?;
    sink.finish().await?;
    Ok(())
}

async fn compare(context: &Context, fetched: &Fetched) -> Result<(), ChunkError> {
    let ChunkInfo { id, size_bytes } = fetched.info;
    let mut body = context.parts.chunks.read_copied(id, 0..size_bytes)?;
    let mut expected = fetched.pieces.iter().map(|piece| &piece[..]);
    let mut left: &[u8] = &[];
    while let Some(piece) = body.next().await {
        let piece = piece?;
        let mut read = &piece[..];
        while !read.is_empty() {
            if left.is_empty() {
                left = expected.next().unwrap_or_default();
            }
            let length = left.len().min(read.len());
            if length == 0 || left[..length] != read[..length] {
                return Err(ChunkError::Corrupt {
                    chunk: id,
                    detail: "it reads back other than it was written".into(),
                });
            }
            (left, read) = (&left[length..], &read[length..]);
        }
    }
    if left.is_empty() && expected.all(<[u8]>::is_empty) {
        return Ok(());
    }
    Err(ChunkError::Corrupt { chunk: id, detail: "less reads back than was written".into() })
}

/// Whether a chunk is here, whole on the disk itself, and nobody is about to delete it; what keeps it from being read
/// at all is an error.
pub(super) async fn is_whole(context: &Context, id: ChunkId) -> Result<bool, TransferError> {
    if context.parts.chunks.stat(id).is_none() {
        return Ok(false);
    }
    let here = context.clone();
    let look = async move {
        let _lock = lock(&here, id).await?;
        verify(&here, id).await
    };
    context.disk_looks.run(look).await
}

async fn verify(context: &Context, id: ChunkId) -> Result<bool, TransferError> {
    match context.parts.chunks.verify(id).await {
        Ok(_) => Ok(true),
        // A sector that cannot be read is as lost as one that reads back wrong. A dead disk shows when the chunk is
        // deleted.
        Err(ChunkError::Corrupt { .. } | ChunkError::NotFound(_)) => Ok(false),
        Err(ChunkError::Io { source, .. }) if source.raw_os_error().is_some_and(|no| UNREADABLE.contains(&no)) => {
            Ok(false)
        }
        // Anything else (no file handles, no memory) says nothing about the chunk.
        Err(error) => Err(TransferError::Local(error)),
    }
}

/// Which of `chunks` metadata knows, asked in bounded batches.
pub(super) async fn known(
    context: &Context,
    chunks: impl IntoIterator<Item = ChunkId>,
) -> Result<BTreeSet<ContentId>, MetadataError> {
    let contents: BTreeSet<_> = chunks.into_iter().map(|chunk| chunk.content()).collect();
    let contents: Vec<_> = contents.into_iter().collect();
    let mut known = BTreeSet::new();
    for batch in contents.chunks(METADATA_BATCH) {
        known.extend(context.parts.metadata.known_contents(batch).await?);
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::chunks::memory::MemoryChunkStore;

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_failed_and_never_answers_is_not_waited_for_without_end() {
        let store = MemoryChunkStore::new();
        let id = ContentId([1; 12]).chunk(0);
        store.insert(id, Bytes::from_static(b"the last replica"));
        store.fail_disk_of(&[id]);
        let info = ChunkInfo { id, size_bytes: 16 };
        let fetched = fetch_here(&store, info).await.map(|fetched| fetched.pieces.concat());
        assert_eq!(fetched.ok().as_deref(), Some(&b"the last replica"[..]));
        store.slow_reads(FAILED_DISK_PATIENCE / 2);
        assert!(fetch_here(&store, info).await.is_ok(), "it may be slow");
        store.hang_reads();
        let hung = timeout(FAILED_DISK_PATIENCE * 10, fetch_here(&store, info)).await;
        assert!(matches!(hung, Ok(Err(ChunkError::Unavailable(_)))));
    }
}
