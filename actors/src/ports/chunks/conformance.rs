//! What every adapter of the `ChunkStore` port must do. An adapter's test calls [`all`] with a function that makes an
//! empty store; each check gets a store of its own and panics with what it found.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;
use holdfast_protocol::{CHUNK_SIZE_MAX, ChunkId, ContentId};

use super::{ChunkError, ChunkSpec, ChunkStore};

pub mod replicas;

/// The store under test.
pub type Store = Arc<dyn ChunkStore>;

/// Runs every check, one after another.
pub async fn all<F: Future<Output = Store>>(make: impl Fn() -> F) {
    written_chunk_is_read_back(make().await).await;
    ranges_are_exact(make().await).await;
    pieces_handed_back_are_the_payload(make().await).await;
    unfinished_chunk_is_invisible(make().await).await;
    dropped_sink_frees_its_name(make().await).await;
    existing_chunk_is_not_overwritten(make().await).await;
    sizes_are_enforced(make().await).await;
    missing_chunk_is_not_found(make().await).await;
    delete_is_idempotent_and_complete(make().await).await;
    open_body_survives_deletion(make().await).await;
    listing_pages_through_everything(make().await).await;
    chunks_are_written_at_the_same_time(make().await).await;
}

fn id(index: u32) -> ChunkId {
    ContentId([0x5a; 12]).chunk(index)
}

/// Bytes that differ from place to place and from salt to salt.
pub fn pattern(len: usize, salt: u32) -> Bytes {
    (0..len as u32).map(|i| (i.wrapping_add(salt).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn spec(id: ChunkId, size_bytes: usize) -> ChunkSpec {
    ChunkSpec { id, size_bytes: size_bytes as u32, label: Bytes::from_static(b"{}") }
}

/// Writes a chunk in slices of `step` bytes.
async fn put(store: &Store, id: ChunkId, data: &[u8], step: usize) {
    let mut sink = store.create(spec(id, data.len())).await.expect("create");
    for slice in data.chunks(step) {
        sink.write(slice).await.expect("write");
    }
    sink.finish_input().expect("finish input");
    sink.finish().await.expect("finish");
}

async fn get(store: &Store, id: ChunkId, range: std::ops::Range<u32>) -> Result<Vec<u8>, ChunkError> {
    let pieces: Vec<Bytes> = store.read(id, range)?.try_collect().await?;
    Ok(pieces.concat())
}

/// Sizes around the borders of blocks, buffers and chunks come back byte for byte.
pub async fn written_chunk_is_read_back(store: Store) {
    let sizes =
        [1, 511, 512, 4095, 4096, 4097, 65_535, 65_536, 65_537, 1 << 20, (1 << 20) + 1, CHUNK_SIZE_MAX as usize];
    for (index, size) in sizes.into_iter().enumerate() {
        let (id, data) = (id(index as u32), pattern(size, index as u32));
        put(&store, id, &data, 100_000).await;
        assert!(get(&store, id, 0..size as u32).await.expect("read") == data, "chunk of {size} bytes differs");
        let info = store.stat(id).expect("stat");
        assert_eq!((info.id, info.size_bytes), (id, size as u32));
    }
}

/// A range yields exactly its bytes; one beyond the end is refused.
pub async fn ranges_are_exact(store: Store) {
    let data = pattern(300_000, 1);
    put(&store, id(0), &data, 70_000).await;
    for range in [0..1, 0..65_536, 65_535..65_537, 65_536..131_072, 1..299_999, 299_999..300_000, 5..5] {
        let expected = &data[range.start as usize..range.end as usize];
        assert!(get(&store, id(0), range.clone()).await.expect("read") == expected, "range {range:?} differs");
    }
    for range in [0..300_001, 300_001..300_002] {
        let error = get(&store, id(0), range.clone()).await.expect_err("range beyond the end");
        assert!(matches!(error, ChunkError::Invalid(_)), "{range:?}: {error}");
    }
}

/// What `write` and `finish_input` hand back is the payload, whatever the slices.
pub async fn pieces_handed_back_are_the_payload(store: Store) {
    for (index, (size, step)) in
        [(10, 3), (5_000_000, 333_333), (3 << 20, 1 << 20), (2_500_000, 8192)].into_iter().enumerate()
    {
        let data = pattern(size, index as u32);
        let mut sink = store.create(spec(id(index as u32), size)).await.expect("create");
        let mut pieces = Vec::new();
        for slice in data.chunks(step) {
            pieces.extend(sink.write(slice).await.expect("write"));
        }
        pieces.extend(sink.finish_input().expect("finish input"));
        assert!(pieces.concat() == data, "pieces of {size} bytes in steps of {step} differ");
        sink.finish().await.expect("finish");
    }
}

/// Nothing is seen of a chunk before `finish` returns.
pub async fn unfinished_chunk_is_invisible(store: Store) {
    let mut sink = store.create(spec(id(0), 10)).await.expect("create");
    sink.write(&[1; 10]).await.expect("write");
    sink.finish_input().expect("finish input");
    assert!(store.stat(id(0)).is_none());
    assert!(matches!(store.read(id(0), 0..1).err(), Some(ChunkError::NotFound(_))));
    assert!(store.list(None, 10).is_empty());
    sink.finish().await.expect("finish");
    assert!(store.stat(id(0)).is_some());
}

/// A sink that is dropped leaves nothing, and its name can be used again.
pub async fn dropped_sink_frees_its_name(store: Store) {
    for written in [0, 5, 10] {
        let mut sink = store.create(spec(id(0), 10)).await.expect("create");
        sink.write(&vec![1; written]).await.expect("write");
        drop(sink);
        assert!(store.stat(id(0)).is_none());
    }
    put(&store, id(0), &[2; 10], 10).await;
    assert_eq!(get(&store, id(0), 0..10).await.expect("read"), [2; 10]);
}

/// A chunk's name is taken once.
pub async fn existing_chunk_is_not_overwritten(store: Store) {
    put(&store, id(0), b"first", 5).await;
    let refused = match store.create(spec(id(0), 6)).await {
        Err(error) => error,
        Ok(mut sink) => {
            sink.write(b"second").await.expect("write");
            sink.finish_input().expect("finish input");
            sink.finish().await.expect_err("a second chunk of one name")
        }
    };
    assert!(matches!(refused, ChunkError::Exists(_)), "{refused}");
    assert_eq!(get(&store, id(0), 0..5).await.expect("read"), b"first");
}

/// More or fewer bytes than announced, and impossible sizes, are refused and leave nothing.
pub async fn sizes_are_enforced(store: Store) {
    for size in [0, CHUNK_SIZE_MAX as usize + 1] {
        let error = store.create(spec(id(0), size)).await.err().expect("impossible size");
        assert!(matches!(error, ChunkError::Invalid(_)), "{size}: {error}");
    }
    let mut sink = store.create(spec(id(1), 10)).await.expect("create");
    sink.write(&[0; 9]).await.expect("write");
    assert!(matches!(sink.write(&[0; 2]).await, Err(ChunkError::Invalid(_))));
    drop(sink);
    let mut sink = store.create(spec(id(2), 10)).await.expect("create");
    sink.write(&[0; 9]).await.expect("write");
    assert!(matches!(sink.finish_input(), Err(ChunkError::Invalid(_))));
    drop(sink);
    assert!(store.list(None, 10).is_empty());
}

/// Reads of what is not there say so.
pub async fn missing_chunk_is_not_found(store: Store) {
    assert!(store.stat(id(9)).is_none());
    assert!(matches!(store.read(id(9), 0..1).err(), Some(ChunkError::NotFound(chunk)) if chunk == id(9)));
}

/// Deletion removes what is there and skips what is not.
pub async fn delete_is_idempotent_and_complete(store: Store) {
    for index in 0..3 {
        put(&store, id(index), &pattern(100, index), 100).await;
    }
    store.delete(&[id(0), id(7), id(2)]).await.expect("delete");
    store.delete(&[id(0)]).await.expect("delete again");
    store.delete(&[]).await.expect("delete nothing");
    assert!(store.stat(id(0)).is_none() && store.stat(id(2)).is_none());
    assert!(matches!(store.read(id(0), 0..1).err(), Some(ChunkError::NotFound(_))));
    assert_eq!(get(&store, id(1), 0..100).await.expect("read"), pattern(100, 1));
    put(&store, id(0), b"again", 5).await;
    assert_eq!(get(&store, id(0), 0..5).await.expect("read"), b"again");
}

/// A reader keeps its bytes although the chunk is deleted under it.
pub async fn open_body_survives_deletion(store: Store) {
    let data = pattern(3_000_000, 3);
    put(&store, id(0), &data, 1 << 20).await;
    let mut body = store.read(id(0), 0..data.len() as u32).expect("read");
    let first = body.try_next().await.expect("first piece").expect("not empty");
    store.delete(&[id(0)]).await.expect("delete");
    for index in 1..4 {
        put(&store, id(index), &pattern(3_000_000, 100 + index), 1 << 20).await;
    }
    let mut bytes = first.to_vec();
    while let Some(piece) = body.try_next().await.expect("piece after deletion") {
        bytes.extend_from_slice(&piece);
    }
    assert!(bytes == data, "the reader saw other bytes");
}

/// Pages of any size together hold every chunk once.
pub async fn listing_pages_through_everything(store: Store) {
    for index in 0..25 {
        put(&store, id(index), &pattern(10 + index as usize, index), 100).await;
    }
    for limit in [1, 7, 25, 100] {
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let page = store.list(after, limit);
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            seen.extend(page);
        }
        seen.sort_by_key(|info| info.id);
        let expected: Vec<_> = (0..25).map(|index| (id(index), 10 + index)).collect();
        assert_eq!(seen.iter().map(|info| (info.id, info.size_bytes)).collect::<Vec<_>>(), expected);
    }
}

/// Many chunks under way at once do not mix.
pub async fn chunks_are_written_at_the_same_time(store: Store) {
    let write = |index: u32| {
        let store = store.clone();
        async move { put(&store, id(index), &pattern(200_000 + index as usize, index), 65_536).await }
    };
    futures::future::join_all((0..16).map(write)).await;
    for index in 0..16 {
        let size = 200_000 + index;
        assert!(get(&store, id(index), 0..size).await.expect("read") == pattern(size as usize, index));
    }
}
