use std::sync::Arc;

use holdfast_protocol::VersionId;

use super::*;
use crate::ports::MetadataError;
use crate::ports::chunks::memory::{Fault, MemoryChunkStore};

const CONTENT: ContentId = ContentId([7; 12]);

fn request(size_bytes: u64) -> StoreRequest {
    StoreRequest {
        content: CONTENT,
        label: ChunkLabel {
            bucket: "b".into(),
            key: "k".into(),
            version: VersionId::NULL,
            part: None,
            content_size_bytes: size_bytes,
            created_ms: 0,
            attributes: Some("{}".into()),
            is_stub: false,
        },
        algorithms: vec![ChecksumAlgorithm::Crc32],
    }
}

fn frames(data: &Bytes, frame_bytes: usize) -> Vec<Result<Bytes, BodyError>> {
    data.chunks(frame_bytes).map(|frame| Ok(data.slice_ref(frame))).collect()
}

fn pattern(len: usize) -> Bytes {
    (0..len).map(|i| (i % 251) as u8 ^ (i >> 12) as u8).collect()
}

async fn run(
    store_in: &Arc<MemoryChunkStore>,
    size_bytes: u64,
    body: Vec<Result<Bytes, BodyError>>,
) -> Result<StoredContent, StoreError> {
    let chunks: Arc<dyn ChunkStore> = store_in.clone();
    store(&chunks, request(size_bytes), futures::stream::iter(body), |_| Ok(())).await
}

#[tokio::test]
async fn stores_every_size_around_the_borders() {
    let max = CHUNK_SIZE_MAX as usize;
    let inline = INLINE_SIZE_MAX as usize;
    for len in [1, 4096, inline, inline + 1, max - 1, max, max + 1, 2 * max + 17] {
        let data = pattern(len);
        for frame_bytes in [9_000, 1 << 20, 40 << 20] {
            let chunks = Arc::new(MemoryChunkStore::new());
            let stored = run(&chunks, len as u64, frames(&data, frame_bytes)).await.unwrap();
            assert_eq!(stored.digests.md5, <[u8; 16]>::from(<md5::Md5 as md5::Digest>::digest(&data)));
            assert_eq!(stored.manifest().size_bytes(), len as u64);
            stored.settle(async { Ok(()) }).await.unwrap();
            let bytes: Vec<u8> =
                (0..len.div_ceil(max)).flat_map(|index| chunks.payload(CONTENT.chunk(index as u32)).unwrap()).collect();
            assert!(bytes == data, "{len} bytes in frames of {frame_bytes}");
            let labels: Vec<_> = (0..len.div_ceil(max) as u32)
                .map(|i| ChunkLabel::decode(&chunks.label(CONTENT.chunk(i)).unwrap()).unwrap())
                .collect();
            assert!(labels[0].attributes.is_some() && labels[1..].iter().all(|l| l.attributes.is_none()));
        }
    }
}

#[tokio::test]
async fn empty_object_has_no_chunk() {
    let chunks = Arc::new(MemoryChunkStore::new());
    let stored = run(&chunks, 0, vec![]).await.unwrap();
    assert!(stored.manifest().extents.is_empty() && chunks.is_empty());
}

#[tokio::test]
async fn disconnect_at_every_stage_leaves_no_chunk() {
    let len = 2 * CHUNK_SIZE_MAX as usize + 100;
    let data = pattern(len);
    for cut in [0, 1, 70_000, CHUNK_SIZE_MAX as usize, CHUNK_SIZE_MAX as usize + 1, len - 1, len] {
        let chunks = Arc::new(MemoryChunkStore::new());
        let mut body = frames(&data.slice(..cut), 1 << 20);
        body.push(Err("connection reset".into()));
        let error = run(&chunks, len as u64, body).await.unwrap_err();
        assert!(matches!(error, StoreError::Body(_)), "cut at {cut}: {error}");
        chunks.until_empty().await;
    }
}

#[tokio::test]
async fn cancelled_in_every_disk_operation_leaves_no_chunk() {
    for len in [1000, CHUNK_SIZE_MAX as usize + 100_000] {
        let data = pattern(len);
        let mut operations = 0;
        loop {
            let chunks = Arc::new(MemoryChunkStore::stalling_at(operations));
            let port: Arc<dyn ChunkStore> = chunks.clone();
            let body = futures::stream::iter(frames(&data, 5 << 20));
            let mut future = Box::pin(store(&port, request(len as u64), body, |_| Ok(())));
            let finished = tokio::select! {
                result = future.as_mut() => Some(result.unwrap()),
                () = chunks.stalled() => None,
            };
            let done = finished.is_some();
            drop(future);
            drop(finished);
            // The deletion itself is an operation, and the last that can stall.
            if !done {
                chunks.until_empty().await;
                operations += 1;
                continue;
            }
            // create, write, finish, and for the large object more of each.
            assert!(operations >= if len == 1000 { 3 } else { 8 }, "cut at {operations} places only");
            break;
        }
    }
}

#[tokio::test]
async fn wrong_length_leaves_nothing() {
    for (announced, sent) in [(100, 99), (100, 101), (200_000, 199_999), (200_000, 200_001), (0, 1), (1, 0)] {
        let chunks = Arc::new(MemoryChunkStore::new());
        let error = run(&chunks, announced, frames(&pattern(sent), 64)).await.unwrap_err();
        match error {
            StoreError::TooShort { .. } => assert!((sent as u64) < announced),
            StoreError::TooLong { .. } => assert!(sent as u64 > announced),
            other => panic!("{other}"),
        }
        chunks.until_empty().await;
    }
}

#[tokio::test]
async fn wrong_digest_leaves_nothing() {
    for len in [100, 200_000] {
        let chunks = Arc::new(MemoryChunkStore::new());
        let port: Arc<dyn ChunkStore> = chunks.clone();
        let body = futures::stream::iter(frames(&pattern(len), 50_000));
        let error = store(&port, request(len as u64), body, |_| Err(DigestMismatch::Md5)).await.unwrap_err();
        assert!(matches!(error, StoreError::Digest(DigestMismatch::Md5)));
        chunks.until_empty().await;
    }
}

#[tokio::test]
async fn disk_faults_leave_nothing() {
    let len = 2 * CHUNK_SIZE_MAX as usize + 5;
    for fault in [Fault::Create, Fault::Write, Fault::Finish] {
        for nth in 0..3 {
            let chunks = Arc::new(MemoryChunkStore::new());
            chunks.fail(fault, nth);
            let error = run(&chunks, len as u64, frames(&pattern(len), 20 << 20)).await.unwrap_err();
            assert!(matches!(error, StoreError::Chunk(_)), "{fault:?} {nth}: {error}");
            chunks.until_empty().await;
        }
    }
}

#[tokio::test]
async fn existing_chunk_of_the_same_name_survives_the_refusal() {
    let chunks = Arc::new(MemoryChunkStore::new());
    chunks.insert(CONTENT.chunk(0), Bytes::from_static(b"other"));
    let error = run(&chunks, 3, vec![Ok(Bytes::from_static(b"abc"))]).await.unwrap_err();
    assert!(matches!(error, StoreError::Chunk(ChunkError::Exists(_))));
    tokio::task::yield_now().await;
    assert_eq!(chunks.payload(CONTENT.chunk(0)).unwrap(), Bytes::from_static(b"other"));
}

#[tokio::test]
async fn failed_commit_deletes_unknown_commit_keeps() {
    for (error, kept) in [
        (MetadataError::NoSuchBucket, false),
        (MetadataError::PreconditionFailed, false),
        (MetadataError::Unknown("connection lost".into()), true),
    ] {
        let chunks = Arc::new(MemoryChunkStore::new());
        let stored = run(&chunks, 3, vec![Ok(Bytes::from_static(b"abc"))]).await.unwrap();
        stored.settle(async { Err::<(), _>(error) }).await.unwrap_err();
        if kept {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            assert!(chunks.stat(CONTENT.chunk(0)).is_some());
        } else {
            chunks.until_empty().await;
        }
    }
}

#[tokio::test]
async fn commit_cut_off_keeps_the_chunks() {
    let chunks = Arc::new(MemoryChunkStore::new());
    let stored = run(&chunks, 3, vec![Ok(Bytes::from_static(b"abc"))]).await.unwrap();
    let mut commit = Box::pin(stored.settle(std::future::pending::<MetadataResult<()>>()));
    assert!(futures::poll!(commit.as_mut()).is_pending());
    drop(commit);
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    assert!(chunks.stat(CONTENT.chunk(0)).is_some(), "it may have been committed");
}
