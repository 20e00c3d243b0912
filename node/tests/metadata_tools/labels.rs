//! What labels of chunks hold becomes objects and uploads again.

use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::metadata::{CannedAcl, MetadataDirect as _, MetadataStore};
use holdfast_node::assemble::cluster_tools::{RebuildOptions, from_chunks};
use holdfast_protocol::label::{ChunkLabel, PartLabel};
use holdfast_protocol::{CHUNK_SIZE_MAX, ContentId, UploadId, VersionId};

use super::{WRITE, label, latest, store, versions, write};

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
