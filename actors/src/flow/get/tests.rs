use futures::{StreamExt as _, TryStreamExt as _};
use holdfast_protocol::{ContentId, Extent, Manifest};

use super::*;
use crate::ports::chunks::memory::MemoryChunkStore;
use crate::ports::metadata::{ContentPlace, ETag};

/// A content of the extents given, with bytes that tell where they are.
async fn stored(sizes: &[u64]) -> (Arc<MemoryChunkStore>, Arc<Content>, Vec<u8>) {
    let store = Arc::new(MemoryChunkStore::new());
    let mut all = Vec::new();
    let mut extents = Vec::new();
    for (i, size_bytes) in sizes.iter().enumerate() {
        let content = ContentId([i as u8 + 1; 12]);
        let data: Vec<u8> = (0..*size_bytes).map(|at| (at / 251) as u8 ^ (at % 251) as u8 ^ i as u8).collect();
        for (index, chunk) in data.chunks(CHUNK_SIZE_MAX as usize).enumerate() {
            store.insert(content.chunk(index as u32), Bytes::copy_from_slice(chunk));
        }
        extents.push(Extent { content, size_bytes: *size_bytes });
        all.extend(data);
    }
    let content = Content {
        id: ContentId([0xcc; 12]),
        manifest: Manifest { extents },
        etag: ETag { md5: [0; 16], parts: None },
        checksum: None,
        parts: vec![],
        place: ContentPlace::Cluster,
    };
    (store, Arc::new(content), all)
}

async fn read(store: &Arc<MemoryChunkStore>, content: &Arc<Content>, range: Range<u64>) -> Vec<u8> {
    let mut reader = ContentReader::new(store.clone(), content.clone(), range);
    reader.prefetch().await.unwrap();
    let pieces: Vec<Bytes> = reader.try_collect().await.unwrap();
    pieces.concat()
}

#[tokio::test]
async fn ranges_cross_chunks_and_extents() {
    let (store, content, all) = stored(&[CHUNK_SIZE_MAX + 10, 5, CHUNK_SIZE_MAX]).await;
    let end = all.len() as u64;
    for range in [
        0..end,
        0..1,
        end - 1..end,
        CHUNK_SIZE_MAX - 1..CHUNK_SIZE_MAX + 1,
        CHUNK_SIZE_MAX + 9..CHUNK_SIZE_MAX + 16,
        CHUNK_SIZE_MAX + 10..CHUNK_SIZE_MAX + 15,
        end - 3..end + 100,
        7..7,
    ] {
        let expected = &all[range.start as usize..range.end.min(end) as usize];
        assert!(read(&store, &content, range.clone()).await == expected, "{range:?}");
    }
}

#[tokio::test]
async fn missing_first_chunk_shows_before_the_answer() {
    let (store, content, _) = stored(&[100]).await;
    store.delete(&[content.manifest.extents[0].content.chunk(0)]).await.unwrap();
    let mut reader = ContentReader::new(store, content, 0..100);
    assert!(matches!(reader.prefetch().await, Err(ChunkError::NotFound(_))));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_gives_nothing_is_given_up_and_a_slow_one_is_not() {
    let (store, content, all) = stored(&[100]).await;
    store.slow_reads(PATIENCE * 3 / 2);
    assert!(read(&store, &content, 0..100).await == all);
    store.hang_reads();
    let mut reader = ContentReader::new(store, content, 0..100);
    let hung = tokio::time::timeout(PATIENCE * 10, reader.prefetch()).await;
    assert!(matches!(hung, Ok(Err(ChunkError::Unavailable(_)))), "{hung:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reader_whose_client_is_slow_finds_what_came_meanwhile() {
    let (store, content, all) = stored(&[100]).await;
    store.slow_reads(PATIENCE * 3 / 2);
    let mut reader = ContentReader::new(store, content, 0..100);
    assert!(futures::poll!(reader.next()).is_pending());
    // Nobody asks for a while.
    tokio::time::advance(PATIENCE * 10).await;
    let pieces: Vec<Bytes> = reader.try_collect().await.unwrap();
    assert!(pieces.concat() == all);
}

#[tokio::test]
async fn corrupt_later_chunk_ends_the_stream_with_an_error() {
    let (store, content, _) = stored(&[CHUNK_SIZE_MAX + 10]).await;
    store.corrupt(content.manifest.extents[0].content.chunk(1));
    let mut reader = ContentReader::new(store, content, 0..CHUNK_SIZE_MAX + 10);
    reader.prefetch().await.unwrap();
    let mut bytes = 0;
    let error = loop {
        match reader.try_next().await {
            Ok(Some(piece)) => bytes += piece.len() as u64,
            Ok(None) => panic!("ended without an error"),
            Err(error) => break error,
        }
    };
    assert_eq!(bytes, CHUNK_SIZE_MAX);
    assert!(matches!(error, ChunkError::Corrupt { .. }));
    assert!(reader.try_next().await.unwrap().is_none());
    assert_eq!(reader.remaining_bytes(), 10, "the length that was promised is not taken back");
}
