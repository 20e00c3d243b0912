//! Metadata that was saved comes back as it was, and what labels hold is found again on the disks alone (promise D10).

mod backup;
mod broken_off;
mod labels;
mod nodes;
mod since_backup;
mod stubs;

use std::sync::Arc;

use bytes::Bytes;
use holdfast_actors::flow::cold::stub::write_stub;
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::metadata::{
    Content, ContentPlace, ETag, ListVersionsQuery, MetadataStore, MoveEnd, ObjectPart, ObjectVersion,
};
use holdfast_actors::ports::{ChunkSpec, ChunkStore};
use holdfast_node::assemble::cluster_tools::RebuildOptions;
use holdfast_node::metadata::{SqliteMetadataStore, SqliteOptions};
use holdfast_protocol::checksum::Checksum;
use holdfast_protocol::label::{ChunkLabel, PartLabel};
use holdfast_protocol::tiers::BLOCK_BYTES_MIN;
use holdfast_protocol::{
    CHUNK_SIZE_MAX, ChecksumAlgorithm, ChecksumType, ChunkId, ColdPlace, ContentId, Manifest, TierName, VersionId,
};
use md5::Digest;

const WRITE: RebuildOptions = RebuildOptions {
    dry_run: false,
    add: false,
    complete_uploads: false,
    moved_only: false,
    unended: false,
    alone: false,
};

async fn store(dir: &tempfile::TempDir, name: &str) -> Arc<SqliteMetadataStore> {
    let opened = SqliteMetadataStore::open(&dir.path().join(name), SqliteOptions::default()).await;
    Arc::new(opened.expect("metadata opens"))
}

fn label(key: &str, version: VersionId, created_ms: u64, part: Option<PartLabel>) -> ChunkLabel {
    ChunkLabel {
        bucket: "bucket".into(),
        key: key.into(),
        version,
        part,
        content_size_bytes: 5,
        created_ms,
        attributes: Some(
            r#"{"owner":"alice","content_type":"text/plain","tags":[{"key":"a","value":"b"}],"acl":"public-read"}"#
                .into(),
        ),
        is_stub: false,
    }
}

async fn write(chunks: &dyn ChunkStore, content: ContentId, label: &ChunkLabel, payload: &'static [u8]) {
    write_chunk(chunks, content.chunk(0), label, payload).await;
}

async fn write_chunk(chunks: &dyn ChunkStore, id: ChunkId, label: &ChunkLabel, payload: &'static [u8]) {
    let label = Bytes::from(label.encode().expect("a label"));
    let spec = ChunkSpec { id, size_bytes: payload.len() as u32, label };
    let mut sink = chunks.create(spec).await.expect("a sink");
    sink.write(payload).await.expect("written");
    sink.finish_input().expect("whole");
    sink.finish().await.expect("durable");
}

async fn versions(metadata: &dyn MetadataStore) -> Vec<(String, VersionId, bool, u64)> {
    let bucket = metadata.bucket("bucket").await.expect("the bucket");
    let query = ListVersionsQuery { limit: 1_000, ..ListVersionsQuery::default() };
    let page = metadata.list_versions(bucket.id, query).await.expect("a page");
    page.entries.iter().map(|v| (v.key.clone(), v.version, v.is_latest, v.last_modified_ms)).collect()
}

fn tier(name: &str) -> TierName {
    name.parse().expect("a tier")
}

/// A content of the five bytes of all tests, in a tier.
fn cold_content(id: ContentId, tier_name: &str, etag: ETag) -> Content {
    let place = ColdPlace {
        tier: tier(tier_name),
        size_bytes: 5,
        piece_bytes: u64::from(BLOCK_BYTES_MIN),
        block_bytes: BLOCK_BYTES_MIN,
        names: vec![format!("piece/{id}")],
        sums: vec![0x1234_5678],
    };
    let part = |number| ObjectPart { number, size_bytes: 1, checksum: None };
    Content {
        id,
        manifest: Manifest::single(id, 5),
        place: ContentPlace::Tier(Arc::new(place)),
        etag,
        checksum: Some(Checksum {
            algorithm: ChecksumAlgorithm::Crc32c,
            checksum_type: ChecksumType::FullObject,
            value: vec![1, 2, 3, 4],
            parts: None,
        }),
        parts: (1..=etag.parts.unwrap_or(0) as u16).map(part).collect(),
    }
}

/// The size of a content of two chunks.
const TWO_CHUNKS_BYTES: u64 = CHUNK_SIZE_MAX + 5;

/// A content of that size, in a tier.
fn cold_content_of_two(id: ContentId, tier_name: &str, etag: ETag) -> Content {
    let mut cold = cold_content(id, tier_name, etag);
    if let ContentPlace::Tier(place) = &mut cold.place {
        let block_bytes = u64::from(BLOCK_BYTES_MIN);
        let place = Arc::make_mut(place);
        place.size_bytes = TWO_CHUNKS_BYTES;
        place.piece_bytes = TWO_CHUNKS_BYTES.next_multiple_of(block_bytes);
        place.sums = vec![1; TWO_CHUNKS_BYTES.div_ceil(block_bytes) as usize];
    }
    cold.manifest = Manifest::single(id, TWO_CHUNKS_BYTES);
    cold
}

fn md5(bytes: &[u8]) -> [u8; 16] {
    md5::Md5::digest(bytes).into()
}

async fn write_committed_stub(chunks: &Arc<MemoryChunkStore>, content: &Content, label: ChunkLabel) {
    let port: Arc<dyn ChunkStore> = chunks.clone();
    let stub = write_stub(&port, content, label).await.expect("a stub");
    stub.settle(async { Ok(MoveEnd::Done) }).await.expect("committed");
}

async fn latest(metadata: &dyn MetadataStore, key: &str) -> Arc<ObjectVersion> {
    let bucket = metadata.bucket("bucket").await.expect("the bucket");
    metadata.object(bucket.id, key, None).await.expect("the object")
}
