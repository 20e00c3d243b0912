//! Objects that lie in a tier come back by their stubs.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::metadata::{CannedAcl, ETag, MetadataStore};
use holdfast_actors::ports::{ChunkSpec, ChunkStore};
use holdfast_node::assemble::cluster_tools::{RebuildOptions, from_chunks};
use holdfast_protocol::label::{ChunkLabel, PartLabel};
use holdfast_protocol::{ContentId, STUB_INDEX, UploadId, VersionId};

use super::{WRITE, cold_content, label, latest, md5, store, tier, write, write_committed_stub};

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
