//! The stub of a content in a tier: written on the cluster's disks before the content is committed, so that metadata
//! can be rebuilt from the disks alone (promise D10). See [`holdfast_protocol::stub`].
//!
//! A stub is a chunk like others: it has replicas, is compared, repaired and swept as they are, since metadata knows
//! its content. It is written under the rules of [`crate::flow::put`]: until the commit begins its owner deletes it,
//! from then on metadata decides.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_protocol::stub::StubPart;
use holdfast_protocol::{ChunkLabel, ColdStub, ContentId, Manifest, STUB_INDEX};

use crate::flow::chunk_guard::ChunkGuard;
use crate::ports::metadata::{Content, ContentPlace, ETag, MetadataResult, MoveEnd, ObjectPart, ReplicaEvidence};
use crate::ports::{ChunkError, ChunkSpec, ChunkStore};

/// A durable stub that nothing refers to yet. Dropped, it is deleted in the background.
pub struct StoredStub {
    /// Under which epoch the replicas took it; for the commit.
    pub evidence: ReplicaEvidence,
    guard: ChunkGuard,
}

impl fmt::Debug for StoredStub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredStub").field("content", &self.guard.content).finish_non_exhaustive()
    }
}

impl StoredStub {
    /// The content that it is of.
    pub fn content(&self) -> ContentId {
        self.guard.content
    }

    /// Runs the commit of the move. If it is known to have failed or was overtaken, the stub is deleted in the
    /// background; if it succeeded, is of unknown outcome or was cut off, it stays.
    ///
    /// # Errors
    /// Those of `commit`.
    pub async fn settle(self, commit: impl Future<Output = MetadataResult<MoveEnd>>) -> MetadataResult<MoveEnd> {
        self.guard.settle_move(commit).await
    }
}

/// Writes the stub of `content`, which lies in a tier, and returns once it is durable. `label` is
/// [`crate::domain::objects::labels::label_of_moved`]; what makes it that of a stub is set here.
///
/// Cancel safe: a dropped future deletes what it wrote.
///
/// # Errors
/// [`ChunkError::Invalid`] when the content lies in no tier, or its stub or label is too long; those of chunks. What
/// was written is deleted in the background.
pub async fn write_stub(
    chunks: &Arc<dyn ChunkStore>,
    content: &Content,
    label: ChunkLabel,
) -> Result<StoredStub, ChunkError> {
    let invalid = |error: &dyn fmt::Display| ChunkError::Invalid(error.to_string());
    let payload = stub_of(content)
        .ok_or_else(|| invalid(&"a content that lies in no tier has no stub"))?
        .encode()
        .map_err(|error| invalid(&error))?;
    let label = ChunkLabel { part: None, content_size_bytes: content.size_bytes(), is_stub: true, ..label };
    let label = Bytes::from(label.encode().map_err(|error| invalid(&error))?);
    let id = content.id.chunk(STUB_INDEX);
    let mut guard = ChunkGuard::begin(chunks, content.id);
    let mut sink = chunks.create(ChunkSpec { id, size_bytes: payload.len() as u32, label }).await?;
    guard.begun.stub = true;
    sink.write(&payload).await?;
    sink.finish_input()?;
    let mut evidence = ReplicaEvidence::default();
    evidence.add(id, sink.finish().await?);
    Ok(StoredStub { evidence, guard })
}

/// What the stub of a content says; `None`: it lies in no tier.
pub fn stub_of(content: &Content) -> Option<ColdStub> {
    let part = |part: &ObjectPart| StubPart {
        number: part.number,
        size_bytes: part.size_bytes,
        checksum: part.checksum.clone(),
    };
    Some(ColdStub {
        place: content.cold()?.as_ref().clone(),
        etag_md5: content.etag.md5,
        etag_parts: content.etag.parts,
        checksum: content.checksum.clone(),
        parts: content.parts.iter().map(part).collect(),
    })
}

/// The content that a stub tells of: the inverse of [`stub_of`].
pub fn content_of(id: ContentId, stub: ColdStub) -> Content {
    let part =
        |part: StubPart| ObjectPart { number: part.number, size_bytes: part.size_bytes, checksum: part.checksum };
    Content {
        id,
        manifest: Manifest::single(id, stub.place.size_bytes),
        place: ContentPlace::Tier(Arc::new(stub.place)),
        etag: ETag { md5: stub.etag_md5, parts: stub.etag_parts },
        checksum: stub.checksum,
        parts: stub.parts.into_iter().map(part).collect(),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::tiers::BLOCK_BYTES_MIN;
    use holdfast_protocol::{ColdPlace, VersionId};

    use super::*;
    use crate::ports::MetadataError;
    use crate::ports::chunks::memory::{Fault, MemoryChunkStore};

    const ID: ContentId = ContentId([7; 12]);

    fn content() -> Content {
        let place = ColdPlace {
            tier: "OSS".parse().unwrap(),
            size_bytes: 5,
            piece_bytes: u64::from(BLOCK_BYTES_MIN),
            block_bytes: BLOCK_BYTES_MIN,
            names: vec!["a/b".into()],
            sums: vec![1],
        };
        Content {
            id: ID,
            manifest: Manifest::single(ID, 5),
            place: ContentPlace::Tier(Arc::new(place)),
            etag: ETag { md5: [3; 16], parts: Some(1) },
            checksum: None,
            parts: vec![ObjectPart { number: 1, size_bytes: 5, checksum: None }],
        }
    }

    fn label() -> ChunkLabel {
        ChunkLabel {
            bucket: "b".into(),
            key: "k".into(),
            version: VersionId::NULL,
            part: None,
            content_size_bytes: 0,
            created_ms: 9,
            attributes: Some("{}".into()),
            is_stub: false,
        }
    }

    async fn written(memory: &Arc<MemoryChunkStore>) -> StoredStub {
        let chunks: Arc<dyn ChunkStore> = memory.clone();
        write_stub(&chunks, &content(), label()).await.unwrap()
    }

    #[tokio::test]
    async fn a_stub_is_one_labelled_chunk_that_tells_of_the_content() {
        let memory = Arc::new(MemoryChunkStore::new());
        let stub = written(&memory).await;
        assert_eq!(stub.content(), ID);
        assert_eq!(stub.settle(async { Ok(MoveEnd::Done) }).await.unwrap(), MoveEnd::Done);
        let ids: Vec<_> = memory.list(None, 10).into_iter().map(|info| info.id).collect();
        assert_eq!(ids, [ID.chunk(u32::MAX)]);
        let told = ChunkLabel::decode(&memory.label(ids[0]).unwrap()).unwrap();
        assert_eq!(told, ChunkLabel { content_size_bytes: 5, is_stub: true, ..label() });
        let stub = ColdStub::decode(&memory.payload(ids[0]).unwrap()).unwrap();
        assert_eq!(content_of(ID, stub), content());
    }

    #[tokio::test]
    async fn a_stub_whose_content_was_not_taken_is_deleted() {
        let unknown = || MetadataError::Unknown("connection lost".into());
        for (result, stays) in [
            (Ok(MoveEnd::Done), true),
            (Ok(MoveEnd::Overtaken), false),
            (Err(MetadataError::Superseded), false),
            (Err(unknown()), true),
        ] {
            let memory = Arc::new(MemoryChunkStore::new());
            let _ = written(&memory).await.settle(async { result }).await;
            if stays {
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
                assert!(memory.stat(ID.chunk(STUB_INDEX)).is_some());
            } else {
                memory.until_empty().await;
            }
        }
        let memory = Arc::new(MemoryChunkStore::new());
        drop(written(&memory).await);
        memory.until_empty().await;
    }

    #[tokio::test]
    async fn cancelled_or_failed_in_every_disk_operation_leaves_nothing() {
        for at in 0..3 {
            let memory = Arc::new(MemoryChunkStore::stalling_at(at));
            let chunks: Arc<dyn ChunkStore> = memory.clone();
            let content = content();
            let mut write = Box::pin(write_stub(&chunks, &content, label()));
            tokio::select! {
                _ = write.as_mut() => panic!("operation {at} does not stall"),
                () = memory.stalled() => {}
            }
            drop(write);
            memory.until_empty().await;
        }
        for fault in [Fault::Create, Fault::Write, Fault::Finish] {
            let memory = Arc::new(MemoryChunkStore::new());
            memory.fail(fault, 0);
            let chunks: Arc<dyn ChunkStore> = memory.clone();
            write_stub(&chunks, &content(), label()).await.unwrap_err();
            memory.until_empty().await;
        }
    }

    #[tokio::test]
    async fn a_content_on_the_clusters_disks_has_no_stub() {
        let chunks: Arc<dyn ChunkStore> = Arc::new(MemoryChunkStore::new());
        let hot = Content { place: ContentPlace::Cluster, ..content() };
        assert!(matches!(write_stub(&chunks, &hot, label()).await, Err(ChunkError::Invalid(_))));
    }
}
