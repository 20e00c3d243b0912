//! What every adapter of `ReplicaStore` must do beside [`super::all`].

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_protocol::{ChunkId, ContentId, ShardId, chunk_order};

use super::super::{ChunkError, ChunkInfo, ChunkSpec, ReplicaStore};
use crate::ports::peers::ShardDigest;

/// The store under test.
pub type Store = Arc<dyn ReplicaStore>;

/// Shards in these tests.
const SHARDS: u32 = 4;

/// Runs every check, one after another.
pub async fn all<F: Future<Output = Store>>(make: impl Fn() -> F) {
    label_is_what_was_written(make().await).await;
    what_was_written_is_whole(make().await).await;
    shards_page_through_everything_once(make().await).await;
    digest_follows_ids_and_sizes_alone(make().await, make().await).await;
}

fn id(index: u32) -> ChunkId {
    ContentId([0x5a; 12]).chunk(index)
}

async fn put(store: &Store, id: ChunkId, size: usize, label: &Bytes) {
    let spec = ChunkSpec { id, size_bytes: size as u32, label: label.clone() };
    let mut sink = store.create(spec).await.expect("create");
    sink.write(&vec![7; size]).await.expect("write");
    sink.finish_input().expect("finish input");
    sink.finish().await.expect("finish");
}

/// A label comes back byte for byte, whatever its length and the payload's.
pub async fn label_is_what_was_written(store: Store) {
    let mut index = 0;
    for size in [1, 3000, 100_000, 2_000_000] {
        for len in [0, 2, 3500, 20_000] {
            let label = Bytes::from(vec![b'a' + index as u8; len]);
            put(&store, id(index), size, &label).await;
            assert!(store.label(id(index)).await.expect("label") == label, "label of {len} bytes before {size}");
            index += 1;
        }
    }
    assert!(matches!(store.label(id(999)).await, Err(ChunkError::NotFound(chunk)) if chunk == id(999)));
    store.delete(&[id(0)]).await.expect("delete");
    assert!(matches!(store.label(id(0)).await, Err(ChunkError::NotFound(_))));
}

/// Chunks of all forms (beside their header, behind it, of several blocks) are whole once they are written, and unknown
/// once they are deleted.
pub async fn what_was_written_is_whole(store: Store) {
    let sizes = [1, 3_000, 4_096, 65_536, 65_537, 2_000_000, 5_000_001];
    for (index, size) in sizes.into_iter().enumerate() {
        put(&store, id(index as u32), size, &Bytes::from(vec![b'l'; size % 20_000])).await;
    }
    for (index, size) in sizes.into_iter().enumerate() {
        let id = id(index as u32);
        assert_eq!(store.verify(id).await.expect("whole"), ChunkInfo { id, size_bytes: size as u32 });
    }
    assert!(matches!(store.verify(id(999)).await, Err(ChunkError::NotFound(chunk)) if chunk == id(999)));
    store.delete(&[id(0)]).await.expect("delete");
    assert!(matches!(store.verify(id(0)).await, Err(ChunkError::NotFound(_))));
}

fn walk(store: &Store, shard: ShardId, limit: usize) -> Vec<ChunkInfo> {
    let (mut seen, mut after) = (vec![], None);
    loop {
        let page = store.list_shard(shard, SHARDS, after, limit);
        assert!(page.len() <= limit);
        let last_page = page.len() < limit;
        after = page.last().map(|info| info.id).or(after);
        seen.extend(page);
        if last_page {
            return seen;
        }
    }
}

/// The shards' lists are sorted by the order of all nodes, and together hold every chunk once.
pub async fn shards_page_through_everything_once(store: Store) {
    for index in 0..60 {
        put(&store, id(index), 10 + index as usize, &Bytes::new()).await;
    }
    let mut all = vec![];
    for shard in (0..SHARDS).map(ShardId) {
        let expected = walk(&store, shard, usize::MAX);
        assert!(expected.iter().all(|info| ShardId::of_chunk(&info.id, SHARDS) == shard));
        assert!(expected.is_sorted_by_key(|info| (chunk_order::place(&info.id), info.id)));
        for limit in [1, 3, 1000] {
            assert_eq!(walk(&store, shard, limit), expected, "pages of {limit}");
        }
        all.extend(expected);
    }
    all.sort_by_key(|info| info.id);
    let expected: Vec<_> = (0..60).map(|index| (id(index), 10 + index)).collect();
    assert_eq!(all.iter().map(|info| (info.id, info.size_bytes)).collect::<Vec<_>>(), expected);
}

/// Two stores with the same chunks have the same digests, however they came by them; a difference shows in its part.
pub async fn digest_follows_ids_and_sizes_alone(store: Store, other: Store) {
    let digests = |store: &Store| (0..SHARDS).map(|n| store.digest(ShardId(n), SHARDS)).collect::<Vec<_>>();
    assert_eq!(digests(&store), vec![ShardDigest::default(); SHARDS as usize]);
    for index in 0..40 {
        put(&store, id(index), 10 + index as usize, &Bytes::new()).await;
        put(&other, id(39 - index), 49 - index as usize, &Bytes::from_static(b"other")).await;
    }
    assert_eq!(digests(&store), digests(&other));
    let mut expected = vec![ShardDigest::default(); SHARDS as usize];
    for index in 0..40 {
        expected[ShardId::of_chunk(&id(index), SHARDS).index()].add(&id(index), 10 + index);
    }
    assert_eq!(digests(&store), expected);
    other.delete(&[id(5)]).await.expect("delete");
    put(&other, id(5), 99, &Bytes::new()).await;
    let shard = ShardId::of_chunk(&id(5), SHARDS);
    let (mine, theirs) = (store.digest(shard, SHARDS), other.digest(shard, SHARDS));
    assert_eq!(mine.chunks, theirs.chunks);
    let differ: Vec<_> = (0..mine.parts.len()).filter(|part| mine.parts[*part] != theirs.parts[*part]).collect();
    assert_eq!(differ, [ShardDigest::part_of(&id(5))]);
}
