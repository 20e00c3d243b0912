//! Metadata that was saved comes back as it was, and what labels hold is found again on the disks alone (promise D10).

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_actors::flow::cold::stub::write_stub;
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::metadata::{
    BucketConfigKind, BucketId, CannedAcl, Content, ContentPlace, ContentSource, DeleteRequest, ETag,
    ListVersionsQuery, MetadataStore, MetadataUpkeep as _, MoveEnd, NewBucket, NewObject, NewUpload, ObjectAttributes,
    ObjectPart, ObjectVersion, ReplicaEvidence, User, Versioning, WritePrecondition,
};
use holdfast_actors::ports::tiering::{Move, TierRecord};
use holdfast_actors::ports::{ChunkSpec, ChunkStore, TierLedger};
use holdfast_node::assemble::cluster_tools::{RebuildOptions, dump, from_chunks, load, restore, restore_stream};
use holdfast_node::config::Config;
use holdfast_node::metadata::{SqliteMetadataStore, SqliteOptions};
use holdfast_protocol::checksum::Checksum;
use holdfast_protocol::label::{ChunkLabel, PartLabel};
use holdfast_protocol::tiers::BLOCK_BYTES_MIN;
use holdfast_protocol::{
    CHUNK_SIZE_MAX, ChecksumAlgorithm, ChecksumType, ColdPlace, ContentId, Manifest, STUB_INDEX, TierName, UploadId,
    VersionId,
};
use md5::Digest;

#[path = "metadata_tools/broken_off.rs"]
mod broken_off;

const WRITE: RebuildOptions = RebuildOptions { dry_run: false, add: false, complete_uploads: false, alone: false };

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
    let label = Bytes::from(label.encode().expect("a label"));
    let spec = ChunkSpec { id: content.chunk(0), size_bytes: payload.len() as u32, label };
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

#[tokio::test]
async fn objects_and_uploads_are_found_again_by_their_labels() {
    let dir = tempfile::tempdir().expect("a directory");
    let chunks = MemoryChunkStore::default();
    let (first, second) = (VersionId::generate(1), VersionId::generate(2));
    let content = |n: u8| ContentId([n; 12]);
    write(&chunks, content(1), &label("plain", VersionId::NULL, 10, None), b"older").await;
    write(&chunks, content(2), &label("plain", VersionId::NULL, 20, None), b"newer").await;
    write(&chunks, content(3), &label("kept", first, 30, None), b"first").await;
    write(&chunks, content(4), &label("kept", second, 40, None), b"again").await;
    let part = PartLabel { upload: UploadId([7; 16]), number: 1 };
    write(&chunks, content(5), &label("parts", VersionId::NULL, 50, Some(part)), b"parts").await;

    let metadata = store(&dir, "rebuilt").await;
    let counted =
        from_chunks(&chunks, &*metadata, "root", RebuildOptions { dry_run: true, ..WRITE }).await.expect("counted");
    assert_eq!((counted.objects, counted.uploads, counted.parts, counted.superseded), (3, 1, 1, 1));
    assert!(metadata.list_buckets(None, None, 1).await.expect("buckets").is_empty(), "a dry run writes nothing");
    let report = from_chunks(&chunks, &*metadata, "root", WRITE).await.expect("rebuilt");
    assert_eq!((report.objects, report.without_md5, report.bytes), (3, 0, 15));
    assert_eq!(
        versions(&*metadata).await,
        [
            ("kept".into(), second, true, 40),
            ("kept".into(), first, false, 30),
            ("plain".into(), VersionId::NULL, true, 20)
        ]
    );
    let bucket = metadata.bucket("bucket").await.expect("the bucket");
    let plain = metadata.object(bucket.id, "plain", None).await.expect("the object");
    let etag = plain.content.as_ref().expect("content").etag.to_string();
    assert_eq!(etag, "0c10f4a0c12ba89211235026b861263d", "the MD5 of the bytes");
    assert_eq!(plain.attributes.content_type.as_deref(), Some("text/plain"));
    assert_eq!((plain.owner.as_str(), plain.acl, plain.tags.len()), ("alice", CannedAcl::PublicRead, 1));
    // The next node of a cluster finds what is known already.
    let again = from_chunks(&chunks, &*metadata, "root", WRITE).await.expect("rebuilt");
    assert_eq!((again.objects, again.known), (0, 4));
    metadata.close().await;
}

/// Each node of a cluster has some of the parts. Together they are the upload, and an object once that is asked for.
#[tokio::test]
async fn multipart_objects_come_back_from_several_nodes() {
    let dir = tempfile::tempdir().expect("a directory");
    let nodes = [MemoryChunkStore::default(), MemoryChunkStore::default()];
    let content = |n: u8| ContentId([n; 12]);
    let part = |upload: u8, number| Some(PartLabel { upload: UploadId([upload; 16]), number });
    let of = |size: u64, created_ms, part| ChunkLabel {
        content_size_bytes: size,
        ..label("large", VersionId::NULL, created_ms, part)
    };
    let large: &'static [u8] = vec![7; 5 << 20].leak();
    write(&nodes[0], content(1), &of(5 << 20, 10, part(1, 1)), large).await;
    write(&nodes[0], content(2), &of(5, 20, part(1, 3)), b"third").await;
    // The second part was stored twice; only the first node still has the older one.
    write(&nodes[0], content(3), &of(5 << 20, 11, part(1, 2)), large).await;
    write(&nodes[1], content(4), &of(5 << 20, 15, part(1, 2)), large).await;
    // Another one whose beginning is nowhere.
    write(&nodes[1], content(5), &of(5, 30, part(2, 2)), b"alone").await;

    let metadata = store(&dir, "rebuilt").await;
    let first = from_chunks(&nodes[0], &*metadata, "root", WRITE).await.expect("rebuilt");
    assert_eq!((first.uploads, first.parts, first.completed), (1, 3, 0));
    let bucket = metadata.bucket("bucket").await.expect("the bucket");
    assert!(metadata.object(bucket.id, "large", None).await.is_err(), "an upload is no object before that is said");
    let options = RebuildOptions { add: true, complete_uploads: true, ..WRITE };
    let second = from_chunks(&nodes[1], &*metadata, "root", options).await.expect("rebuilt");
    assert_eq!((second.uploads, second.parts, second.completed), (1, 2, 1));
    let object = metadata.object(bucket.id, "large", None).await.expect("the object");
    let made = object.content.as_ref().expect("content");
    let extents: Vec<ContentId> = made.manifest.extents.iter().map(|extent| extent.content).collect();
    assert_eq!(extents, [content(1), content(4), content(2)]);
    assert_eq!((made.etag.parts, object.owner.as_str(), object.last_modified_ms), (Some(3), "alice", 20));
    assert_eq!(object.attributes.content_type.as_deref(), Some("text/plain"));
    // What some object has is not brought back as an upload again.
    let again = from_chunks(&nodes[1], &*metadata, "root", WRITE).await.expect("rebuilt");
    assert_eq!((again.uploads, again.parts), (0, 0));
    metadata.close().await;
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

#[tokio::test]
async fn cold_objects_come_back_by_their_stubs_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let chunks = Arc::new(MemoryChunkStore::default());
    let version = VersionId::generate(1);
    let parts = ETag { md5: [7; 16], parts: Some(5) };
    let whole = cold_content(ContentId([1; 12]), "OSS", parts);
    write_committed_stub(&chunks, &whole, label("cold", version, 10, None)).await;
    // Damaged, of another size than its label says, and not a stub at all.
    let damaged = cold_content(ContentId([2; 12]), "OSS", parts);
    write_committed_stub(&chunks, &damaged, label("damaged", VersionId::NULL, 10, None)).await;
    chunks.corrupt(damaged.id.chunk(STUB_INDEX));
    let (odd, id) = (Bytes::from_static(b"no stub"), ContentId([3; 12]).chunk(STUB_INDEX));
    let told = ChunkLabel { is_stub: true, ..label("odd", VersionId::NULL, 10, None) };
    let spec = ChunkSpec { id, size_bytes: 7, label: told.encode().expect("a label").into() };
    let mut sink = chunks.create(spec).await.expect("a sink");
    sink.write(&odd).await.expect("written");
    sink.finish_input().expect("whole");
    sink.finish().await.expect("durable");

    let metadata = store(&dir, "rebuilt").await;
    let dry = RebuildOptions { dry_run: true, ..WRITE };
    let counted = from_chunks(&*chunks, &*metadata, "root", dry).await.expect("counted");
    let report = from_chunks(&*chunks, &*metadata, "root", WRITE).await.expect("rebuilt");
    for told in [&counted, &report] {
        assert_eq!((told.objects, told.cold, told.bytes, told.unreadable), (1, 1, 5, 2));
        assert_eq!(told.tiers, BTreeSet::from(["OSS".to_owned()]));
    }
    assert!(report.text().contains("holdfast tier add"), "{}", report.text());
    let object = latest(&*metadata, "cold").await;
    assert_eq!(object.content.as_deref(), Some(&whole));
    assert_eq!((object.class.as_ref(), object.version, object.last_modified_ms), (Some(&tier("OSS")), version, 10));
    assert_eq!((object.owner.as_str(), object.acl, object.tags.len()), ("alice", CannedAcl::PublicRead, 1));
    // The next node has a whole replica of what was damaged here.
    let next = Arc::new(MemoryChunkStore::default());
    write_committed_stub(&next, &whole, label("cold", version, 10, None)).await;
    write_committed_stub(&next, &damaged, label("damaged", VersionId::NULL, 10, None)).await;
    let report = from_chunks(&*next, &*metadata, "root", RebuildOptions { add: true, ..WRITE }).await.expect("rebuilt");
    assert_eq!((report.objects, report.known, report.unreadable), (1, 1, 0));
    assert_eq!(latest(&*metadata, "damaged").await.content.as_deref(), Some(&damaged));
    metadata.close().await;
}

#[tokio::test]
async fn between_a_stub_and_chunks_what_is_proven_whole_counts_then_what_is_later() {
    let dir = tempfile::tempdir().expect("a directory");
    let chunks = Arc::new(MemoryChunkStore::default());
    let id = |seconds: u8, n: u8| ContentId([0, 0, 0, seconds, n, 0, 0, 0, 0, 0, 0, 0]);
    let of = |bytes: &[u8]| ETag { md5: md5(bytes), parts: None };
    let plain = |key: &str, created_ms| label(key, VersionId::NULL, created_ms, None);
    // Moved, and the chunks that it was moved from are all here: the move may never have been committed.
    write(&*chunks, id(1, 1), &plain("whole", 10), b"bytes").await;
    write_committed_stub(&chunks, &cold_content(id(2, 1), "OSS", of(b"bytes")), plain("whole", 10)).await;
    // The same in the other order of ids.
    write_committed_stub(&chunks, &cold_content(id(9, 2), "OSS", of(b"bytes")), plain("whole2", 11)).await;
    write(&*chunks, id(1, 2), &plain("whole2", 10), b"bytes").await;
    // Moved, and what is here is not what was moved.
    write(&*chunks, id(1, 3), &plain("other", 10), b"wrong").await;
    write_committed_stub(&chunks, &cold_content(id(2, 3), "OSS", of(b"bytes")), plain("other", 10)).await;
    // Overwritten after it was moved.
    write_committed_stub(&chunks, &cold_content(id(2, 4), "OSS", of(b"bytes")), plain("over", 10)).await;
    write(&*chunks, id(3, 4), &plain("over", 20), b"newer").await;
    // Brought back to the cluster.
    write_committed_stub(&chunks, &cold_content(id(2, 5), "OSS", of(b"bytes")), plain("back", 10)).await;
    write(&*chunks, id(3, 5), &plain("back", 10), b"bytes").await;
    // Moved from tier to tier.
    write_committed_stub(&chunks, &cold_content(id(2, 6), "OSS", of(b"bytes")), plain("between", 10)).await;
    write_committed_stub(&chunks, &cold_content(id(3, 6), "FASTDFS", of(b"bytes")), plain("between", 10)).await;

    let metadata = store(&dir, "rebuilt").await;
    let report = from_chunks(&*chunks, &*metadata, "root", WRITE).await.expect("rebuilt");
    assert_eq!((report.objects, report.cold, report.superseded, report.without_md5), (6, 2, 6, 0));
    for (key, expected, class) in [
        ("whole", id(1, 1), Some("OSS")),
        ("whole2", id(1, 2), Some("OSS")),
        ("other", id(2, 3), Some("OSS")),
        ("over", id(3, 4), None),
        ("back", id(3, 5), None),
        ("between", id(3, 6), Some("FASTDFS")),
    ] {
        let object = latest(&*metadata, key).await;
        let content = object.content.as_ref().expect("content");
        assert_eq!((content.id, object.class.clone()), (expected, class.map(tier)), "{key}");
        assert_eq!(content.cold().is_some(), ["other", "between"].contains(&key), "{key}");
    }
    metadata.close().await;
}

/// Parts of a multipart object that was moved are completed over it only if all of them are proven to be whole.
#[tokio::test]
async fn an_upload_whose_object_lies_in_a_tier_is_completed_only_if_it_is_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let part = |upload: u8| Some(PartLabel { upload: UploadId([upload; 16]), number: 1 });
    for (name, etag, completed) in [("whole", md5(&md5(b"parts")), 1), ("another", [9; 16], 0)] {
        let chunks = Arc::new(MemoryChunkStore::default());
        write(&*chunks, ContentId([1; 12]), &label("large", VersionId::NULL, 10, part(1)), b"parts").await;
        let cold = cold_content(ContentId([2; 12]), "OSS", ETag { md5: etag, parts: Some(1) });
        write_committed_stub(&chunks, &cold, label("large", VersionId::NULL, 20, None)).await;
        let metadata = store(&dir, name).await;
        let options = RebuildOptions { complete_uploads: true, ..WRITE };
        let report = from_chunks(&*chunks, &*metadata, "root", options).await.expect("rebuilt");
        assert_eq!((report.uploads, report.completed), (1, completed), "{name}");
        let is_cold = latest(&*metadata, "large").await.content.as_ref().expect("content").cold().is_some();
        assert_eq!(is_cold, completed == 0, "{name}");
        metadata.close().await;
    }
}

const ADD: RebuildOptions = RebuildOptions { add: true, ..WRITE };

/// The disks of the nodes of a cluster are read one after the other, in any order: what counts is what would count on one node.
#[tokio::test]
async fn of_several_nodes_the_later_content_of_a_version_counts_whichever_comes_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let id = |seconds: u8, n: u8| ContentId([0, 0, 0, seconds, n, 0, 0, 0, 0, 0, 0, 0]);
    let of = |bytes: &[u8]| ETag { md5: md5(bytes), parts: None };
    let version = VersionId::generate(1);
    let plain = |key: &str, created_ms| label(key, VersionId::NULL, created_ms, None);
    let sized = |label: ChunkLabel| ChunkLabel { content_size_bytes: CHUNK_SIZE_MAX + 5, ..label };
    let nodes = [Arc::new(MemoryChunkStore::default()), Arc::new(MemoryChunkStore::default())];
    // Overwritten, by a content of another shard.
    write(&*nodes[0], id(1, 1), &plain("over", 10), b"older").await;
    write(&*nodes[1], id(3, 1), &plain("over", 20), b"newer").await;
    // Moved; of what it was moved from the other chunks are reclaimed.
    let rest = sized(label("moved", version, 10, None));
    write(&*nodes[0], id(1, 2), &rest, vec![7; CHUNK_SIZE_MAX as usize].leak()).await;
    let mut cold = cold_content(id(2, 2), "OSS", of(b"all of it"));
    if let ContentPlace::Tier(place) = &mut cold.place {
        let blocks = (CHUNK_SIZE_MAX + 5).div_ceil(u64::from(BLOCK_BYTES_MIN)) as usize;
        let piece_bytes = (CHUNK_SIZE_MAX + 5).next_multiple_of(u64::from(BLOCK_BYTES_MIN));
        let place = Arc::make_mut(place);
        (place.size_bytes, place.piece_bytes, place.sums) = (CHUNK_SIZE_MAX + 5, piece_bytes, vec![1; blocks]);
    }
    cold.manifest = Manifest::single(cold.id, CHUNK_SIZE_MAX + 5);
    write_committed_stub(&nodes[1], &cold, label("moved", version, 10, None)).await;
    // Moved, and whole on one node.
    write(&*nodes[0], id(1, 3), &label("whole", version, 10, None), b"bytes").await;
    write_committed_stub(&nodes[1], &cold_content(id(2, 3), "OSS", of(b"bytes")), label("whole", version, 10, None))
        .await;
    // Brought back.
    write(&*nodes[0], id(3, 4), &label("back", version, 10, None), b"bytes").await;
    write_committed_stub(&nodes[1], &cold_content(id(2, 4), "OSS", of(b"bytes")), label("back", version, 10, None))
        .await;

    for (name, order) in [("forth", [0, 1]), ("back", [1, 0])] {
        let metadata = store(&dir, name).await;
        from_chunks(&*nodes[order[0]], &*metadata, "root", WRITE).await.expect("rebuilt");
        for _ in 0..2 {
            from_chunks(&*nodes[order[1]], &*metadata, "root", ADD).await.expect("rebuilt");
            from_chunks(&*nodes[order[0]], &*metadata, "root", ADD).await.expect("rebuilt");
        }
        for (key, expected) in [("over", id(3, 1)), ("moved", id(2, 2)), ("whole", id(1, 3)), ("back", id(3, 4))] {
            let object = latest(&*metadata, key).await;
            let content = object.content.as_ref().expect("content");
            assert_eq!(content.id, expected, "{name}: {key}");
            // So that it is moved once more, if need be.
            assert_eq!(object.class.is_some(), ["moved", "whole"].contains(&key), "{name}: {key}");
        }
        assert_eq!(versions(&*metadata).await.len(), 4, "{name}");
        metadata.close().await;
    }
}

#[tokio::test]
async fn of_several_nodes_the_latest_version_is_the_latest_again_whichever_comes_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let content = |n: u8| ContentId([n; 12]);
    let ids: Vec<VersionId> = (1..=3).map(VersionId::generate).collect();
    let nodes = [MemoryChunkStore::default(), MemoryChunkStore::default()];
    write(&nodes[0], content(1), &label("key", ids[0], 10, None), b"first").await;
    write(&nodes[1], content(2), &label("key", VersionId::NULL, 20, None), b"null.").await;
    write(&nodes[0], content(3), &label("key", ids[1], 30, None), b"third").await;
    write(&nodes[1], content(4), &label("key", ids[2], 5, None), b"zero.").await;
    write(&nodes[1], content(5), &label("key2", VersionId::NULL, 40, None), b"other").await;
    let expected: Vec<(String, VersionId, bool, u64)> = vec![
        ("key".into(), ids[1], true, 30),
        ("key".into(), VersionId::NULL, false, 20),
        ("key".into(), ids[0], false, 10),
        ("key".into(), ids[2], false, 5),
        ("key2".into(), VersionId::NULL, true, 40),
    ];
    for (name, order) in [("forth", [0, 1]), ("back", [1, 0])] {
        let metadata = store(&dir, name).await;
        from_chunks(&nodes[order[0]], &*metadata, "root", WRITE).await.expect("rebuilt");
        from_chunks(&nodes[order[1]], &*metadata, "root", ADD).await.expect("rebuilt");
        assert_eq!(versions(&*metadata).await, expected, "{name}");
        // Off, the next write would go over the version without an id.
        assert_eq!(metadata.bucket("bucket").await.expect("it").versioning, Versioning::Enabled, "{name}");
        assert_eq!(metadata.due_reclaims(u64::MAX >> 1, 10, None).await.expect("reclaims").len(), 0, "{name}");
        metadata.close().await;
    }
}

#[tokio::test]
async fn an_upload_is_not_completed_over_what_is_newer() {
    let dir = tempfile::tempdir().expect("a directory");
    let part = Some(PartLabel { upload: UploadId([1; 16]), number: 1 });
    let options = RebuildOptions { complete_uploads: true, ..WRITE };
    for (name, version, stored_ms, latest_ms) in [
        ("unversioned", VersionId::NULL, 10, 20),
        ("unversioned-later", VersionId::NULL, 30, 30),
        ("versioned", VersionId::generate(1), 10, 20),
        ("versioned-later", VersionId::generate(1), 30, 30),
    ] {
        let chunks = MemoryChunkStore::default();
        write(&chunks, ContentId([1; 12]), &label("large", VersionId::NULL, stored_ms, part), b"parts").await;
        write(&chunks, ContentId([2; 12]), &label("large", version, 20, None), b"whole").await;
        let metadata = store(&dir, name).await;
        from_chunks(&chunks, &*metadata, "root", options).await.expect("rebuilt");
        assert_eq!(latest(&*metadata, "large").await.last_modified_ms, latest_ms, "{name}");
        let expected = if version == VersionId::NULL { 1 } else { 2 };
        assert_eq!(versions(&*metadata).await.len(), expected, "{name}");
        metadata.close().await;
    }
}

/// A client had begun to overwrite an object when the metadata were lost.
#[tokio::test]
async fn a_write_that_broke_off_does_not_come_back_over_the_object_that_it_would_have_replaced() {
    let dir = tempfile::tempdir().expect("a directory");
    let chunks = MemoryChunkStore::default();
    write(&chunks, ContentId([1; 12]), &label("key", VersionId::NULL, 10, None), b"whole").await;
    let torn = ChunkLabel { content_size_bytes: CHUNK_SIZE_MAX + 1, ..label("key", VersionId::NULL, 20, None) };
    write(&chunks, ContentId([2; 12]), &torn, vec![7; CHUNK_SIZE_MAX as usize].leak()).await;
    let metadata = store(&dir, "rebuilt").await;
    from_chunks(&chunks, &*metadata, "root", RebuildOptions { alone: true, ..WRITE }).await.expect("rebuilt");
    let object = latest(&*metadata, "key").await;
    assert_eq!(object.content.as_ref().expect("content").id, ContentId([1; 12]));
    metadata.close().await;
}

/// Who compares the sequencers of two events of an object must not take the newer one for the older.
#[tokio::test]
async fn sequence_numbers_go_on_beyond_those_of_the_metadata_that_were_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut last = 0;
    for (name, put_back_ms) in [("first", 1_800_000_000_000), ("second", 1_800_000_060_000)] {
        let empty = store(&dir, name).await;
        empty
            .create_user(User { name: "root".into(), admin: true, enabled: true, created_ms: 1 })
            .await
            .expect("a user");
        let new = NewBucket { name: "bucket".into(), owner: "root".into(), acl: CannedAcl::Private, now_ms: 1 };
        let bucket = empty.create_bucket(new).await.expect("a bucket").id;
        for ms in [put_back_ms, 1] {
            empty.raise_sequences(ms).await.expect("raised");
        }
        empty.close().await;
        let metadata = store(&dir, name).await;
        let hot = cold_content(ContentId([1; 12]), "OSS", ETag { md5: [1; 16], parts: None });
        let hot = ContentSource::New(Content { place: ContentPlace::Cluster, ..hot });
        let sequence =
            metadata.commit_object(commit_of(bucket, "key", hot, None, 10)).await.expect("committed").object.sequence;
        assert!(sequence > last, "{sequence} after {last}");
        last = sequence + 1_000_000;
        metadata.close().await;
    }
}

/// The walk for orphans deletes what metadata does not know.
#[tokio::test]
async fn parts_of_multipart_objects_are_known_after_a_backup_was_put_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let (source, target) = (store(&dir, "source").await, store(&dir, "target").await);
    let chunks = MemoryChunkStore::default();
    let parts: Vec<ContentId> = (1..=2).map(|n| ContentId([n; 12])).collect();
    for (content, (number, bytes)) in parts.iter().zip([(1, &*vec![7; 5 << 20].leak()), (2, &b"parts"[..])]) {
        let part = PartLabel { upload: UploadId([7; 16]), number };
        let label =
            ChunkLabel { content_size_bytes: bytes.len() as u64, ..label("large", VersionId::NULL, 10, Some(part)) };
        write(&chunks, *content, &label, bytes).await;
    }
    let options = RebuildOptions { complete_uploads: true, ..WRITE };
    from_chunks(&chunks, &*source, "root", options).await.expect("rebuilt");
    assert_eq!(source.known_contents(&parts).await.expect("an answer").len(), 2);
    let mut file = Vec::new();
    dump(&*source, &*source, &mut file).await.expect("a backup");
    load(&*target, &*target, &mut file.as_slice()).await.expect("restored");
    assert_eq!(target.known_contents(&parts).await.expect("an answer").len(), 2);
    // And no longer when the object is gone and its chunks are reclaimed.
    let bucket = target.bucket("bucket").await.expect("the bucket").id;
    let gone = DeleteRequest {
        key: "large".into(),
        version: None,
        marker_version: VersionId::generate(1),
        owner: "root".into(),
        precondition: WritePrecondition::default(),
        only_if: None,
        event: None,
    };
    target.delete_objects(bucket, vec![gone], 20).await.expect("an answer");
    let due: Vec<u64> =
        target.due_reclaims(1_000, 10, None).await.expect("reclaims").iter().map(|due| due.id).collect();
    assert_eq!(due.len(), 1);
    target.finish_reclaims(&due, None).await.expect("finished");
    assert_eq!(target.known_contents(&parts).await.expect("an answer"), []);
    source.close().await;
    target.close().await;
}

#[tokio::test]
async fn a_backup_comes_back_as_it_was_and_one_that_was_cut_off_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = store(&dir, "source").await;
    let chunks = MemoryChunkStore::default();
    let (first, second) = (VersionId::generate(1), VersionId::generate(2));
    write(&chunks, ContentId([1; 12]), &label("key", VersionId::NULL, 10, None), b"plain").await;
    write(&chunks, ContentId([2; 12]), &label("key", first, 20, None), b"first").await;
    write(&chunks, ContentId([3; 12]), &label("key", second, 30, None), b"again").await;
    from_chunks(&chunks, &*source, "root", WRITE).await.expect("objects");
    let other = NewBucket { name: "other".into(), owner: "root".into(), acl: CannedAcl::PublicRead, now_ms: 5 };
    source.create_bucket(other).await.expect("a bucket");
    let config = Some("{}".to_owned());
    source.set_bucket_config("other", BucketConfigKind::Policy, config).await.expect("a policy");

    let mut file = Vec::new();
    let counts = dump(&*source, &*source, &mut file).await.expect("a backup");
    assert_eq!((counts.users, counts.buckets, counts.versions), (2, 2, 3));
    let target = store(&dir, "target").await;
    assert_eq!(load(&*target, &*target, &mut file.as_slice()).await.expect("restored"), counts);
    assert_eq!(versions(&*target).await, versions(&*source).await);
    let (before, after) = (source.bucket("other").await.expect("it"), target.bucket("other").await.expect("it"));
    assert_eq!((&after.configs, after.versioning), (&before.configs, Versioning::Unversioned));
    let before = source.bucket("bucket").await.expect("it").versioning;
    assert_eq!(target.bucket("bucket").await.expect("it").versioning, before);
    let refused = load(&*target, &*target, &mut file.as_slice()).await.expect_err("metadata that is in use");
    assert!(refused.to_string().contains("holds buckets already"), "{refused}");

    let empty = store(&dir, "empty").await;
    let lines: Vec<&[u8]> = file.split_inclusive(|byte| *byte == b'\n').collect();
    let cut = lines[..lines.len() - 1].concat();
    let refused = load(&*empty, &*empty, &mut cut.as_slice()).await.expect_err("a backup that was cut off");
    assert!(refused.to_string().contains("cut off"), "{refused}");
    for metadata in [source, target, empty] {
        metadata.close().await;
    }
}

/// A commit of `content` to the test's bucket.
fn commit_of(bucket: BucketId, key: &str, content: ContentSource, class: Option<TierName>, now_ms: u64) -> NewObject {
    NewObject {
        bucket,
        key: key.into(),
        version: VersionId::generate(now_ms),
        now_ms,
        owner: "root".into(),
        content,
        attributes: ObjectAttributes::default(),
        tags: vec![],
        acl: CannedAcl::Private,
        class,
        precondition: WritePrecondition::default(),
        evidence: ReplicaEvidence::default(),
        event: None,
    }
}

#[tokio::test]
async fn a_backup_brings_tiers_and_cold_objects_back_and_their_moves_are_queued_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = store(&dir, "source").await;
    source.create_user(User { name: "root".into(), admin: true, enabled: true, created_ms: 1 }).await.expect("a user");
    let new = NewBucket { name: "bucket".into(), owner: "root".into(), acl: CannedAcl::Private, now_ms: 1 };
    let bucket = source.create_bucket(new).await.expect("a bucket").id;
    source.set_versioning("bucket", Versioning::Enabled).await.expect("versioning");
    let (oss, fastdfs) = (tier("OSS"), tier("FASTDFS"));
    source.add_tier(oss.clone(), r#"{"secret":"sealed"}"#.into(), 5).await.expect("a tier");
    source.add_tier(fastdfs.clone(), "{}".into(), 6).await.expect("a tier");
    let etag = ETag { md5: [1; 16], parts: Some(5) };
    let (cold, other) = (cold_content(ContentId([1; 12]), "OSS", etag), cold_content(ContentId([2; 12]), "OSS", etag));
    let hot = Content { id: ContentId([3; 12]), place: ContentPlace::Cluster, ..cold.clone() };
    let hot = Content { manifest: Manifest::single(hot.id, 5), ..hot };
    // In place; copies of it, to the same class and to two others; an older version in a tier; one that waits for its move.
    for (key, content, class, now_ms) in [
        ("cold", ContentSource::New(cold.clone()), Some(&oss), 10),
        ("copy", ContentSource::Shared(cold.id), Some(&oss), 20),
        ("copy-to-cluster", ContentSource::Shared(cold.id), None, 30),
        ("copy-to-fastdfs", ContentSource::Shared(cold.id), Some(&fastdfs), 40),
        ("history", ContentSource::New(other.clone()), Some(&oss), 50),
        ("history", ContentSource::New(hot.clone()), Some(&oss), 60),
    ] {
        let object = commit_of(bucket, key, content, class.cloned(), now_ms);
        source.commit_object(object).await.unwrap_or_else(|error| panic!("{key}: {error}"));
    }
    let upload = NewUpload {
        id: UploadId([9; 16]),
        bucket,
        key: "upload".into(),
        owner: "root".into(),
        now_ms: 70,
        attributes: ObjectAttributes::default(),
        tags: vec![],
        acl: CannedAcl::Private,
        class: Some(oss.clone()),
        checksum: None,
    };
    source.create_upload(upload).await.expect("an upload");

    let mut file = Vec::new();
    let counts = dump(&*source, &*source, &mut file).await.expect("a backup");
    assert_eq!((counts.tiers, counts.versions, counts.uploads), (2, 6, 1));
    let target = store(&dir, "target").await;
    assert_eq!(load(&*target, &*target, &mut file.as_slice()).await.expect("restored"), counts);

    let told = |tiers: Vec<TierRecord>| -> Vec<_> {
        tiers.into_iter().map(|tier| (tier.name, tier.settings, tier.created_ms)).collect()
    };
    assert_eq!(told(target.tiers().await.expect("tiers")), told(source.tiers().await.expect("tiers")));
    let restored = target.bucket("bucket").await.expect("the bucket").id;
    for (key, version, ..) in versions(&*source).await {
        let before = source.object(bucket, &key, Some(version)).await.expect("the version");
        let after = target.object(restored, &key, Some(version)).await.expect("the version");
        assert_eq!((&after.content, &after.class), (&before.content, &before.class), "{key}");
    }
    assert_eq!(latest(&*target, "copy").await.content.as_deref(), Some(&cold));
    let upload = target.upload(restored, "upload", UploadId([9; 16])).await.expect("the upload");
    assert_eq!(upload.new.class, Some(oss.clone()));
    let waiting = |moves: Vec<Move>| -> BTreeSet<_> {
        moves.into_iter().map(|it| (it.key, it.content, it.lane, it.to)).collect()
    };
    let expected = BTreeSet::from([
        ("copy-to-cluster".to_owned(), cold.id, oss.clone(), None),
        ("copy-to-fastdfs".to_owned(), cold.id, fastdfs.clone(), Some(fastdfs)),
        ("history".to_owned(), hot.id, oss.clone(), Some(oss)),
    ]);
    assert_eq!(waiting(source.moves(None, 0, 100).await.expect("moves")), expected);
    assert_eq!(waiting(target.moves(None, 0, 100).await.expect("moves")), expected);

    // Copies count as references: only after the last one is gone the content goes, and its stub with it.
    let delete = |key: &str, version| DeleteRequest {
        key: key.into(),
        version: Some(version),
        marker_version: VersionId::generate(1),
        owner: "root".into(),
        precondition: WritePrecondition::default(),
        only_if: None,
        event: None,
    };
    let mut due = vec![];
    for (key, version, ..) in versions(&*target).await.into_iter().filter(|(key, ..)| key.starts_with("co")) {
        assert_eq!(due, [], "{key} is still there");
        for deleted in target.delete_objects(restored, vec![delete(&key, version)], 100).await.expect("an answer") {
            deleted.expect("deleted");
        }
        due = target.due_reclaims(1_000, 10, None).await.expect("reclaims");
    }
    let stubs: Vec<_> = due.iter().map(|reclaim| reclaim.stub).collect();
    assert_eq!(stubs, [Some(cold.id)]);
    for metadata in [source, target] {
        metadata.close().await;
    }
}

#[tokio::test]
async fn a_backup_that_was_cut_off_leaves_metadata_as_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let (source, chunks) = (store(&dir, "source").await, MemoryChunkStore::default());
    write(&chunks, ContentId([1; 12]), &label("key", VersionId::NULL, 10, None), b"bytes").await;
    from_chunks(&chunks, &*source, "root", WRITE).await.expect("an object");
    let mut file = Vec::new();
    let counts = dump(&*source, &*source, &mut file).await.expect("a backup");
    source.close().await;

    let mut config = Config::default();
    config.node.data_dir = dir.path().join("node");
    // Whatever is missing: the last line, a part of it, nearly all, all.
    let last = file[..file.len() - 1].iter().rposition(|byte| *byte == b'\n').expect("a line before the last") + 1;
    for cut in [last, last + 5, 40, 0] {
        let refused = restore(&config, &mut std::io::Cursor::new(&file[..cut])).await.expect_err("it was cut off");
        let text = format!("{refused:#}");
        assert!(text.contains("nothing was restored"), "{cut} bytes: {text}");
        let refused = restore_stream(&config, &mut &file[..cut]).await.expect_err("it was cut off");
        assert!(format!("{refused:#}").contains("nothing was restored"), "{cut} bytes: {refused:#}");
    }
    // So the whole one finds empty metadata.
    assert_eq!(restore_stream(&config, &mut file.as_slice()).await.expect("restored"), counts);
    let path = config.node.data_dir.join("metadata.sqlite");
    let restored = SqliteMetadataStore::open(&path, SqliteOptions::default()).await.expect("metadata opens");
    assert_eq!(versions(&restored).await.len(), 1);
    restored.close().await;
    let left: Vec<_> = std::fs::read_dir(&config.node.data_dir).expect("a directory").flatten().collect();
    assert!(left.iter().all(|entry| entry.file_name() != "restore.partial"), "{left:?}");
}
