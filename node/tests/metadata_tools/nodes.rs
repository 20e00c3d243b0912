//! The disks of the nodes of a cluster are read one after the other, in any order.

use std::sync::Arc;

use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::metadata::{DeleteRequest, ETag, MetadataStore, MetadataUpkeep as _, Versioning, samples};
use holdfast_node::assemble::cluster_tools::{RebuildOptions, from_chunks};
use holdfast_protocol::label::{ChunkLabel, PartLabel};
use holdfast_protocol::{CHUNK_SIZE_MAX, ContentId, UploadId, VersionId};

use super::{
    WRITE, cold_content, cold_content_of_two, label, latest, md5, store, versions, write, write_chunk,
    write_committed_stub,
};

const ADD: RebuildOptions = RebuildOptions { add: true, ..WRITE };

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

/// A disk that could not be read whole takes no writes, and what is there belongs to objects all the same: left out, it
/// would be deleted when that disk is back.
#[tokio::test]
async fn what_lies_on_fenced_disks_only_comes_back_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let chunks = MemoryChunkStore::default();
    for n in 1..=3 {
        write(&chunks, ContentId([n; 12]), &label(&format!("key-{n}"), VersionId::NULL, 10, None), b"bytes").await;
    }
    chunks.fail_disk_of(&[ContentId([2; 12]).chunk(0)]);
    for name in ["one", "all"] {
        let metadata = store(&dir, name).await;
        let report = from_chunks(&chunks, &*metadata, "root", WRITE).await.expect("rebuilt");
        assert_eq!((report.chunks, report.objects, report.superseded), (3, 3, 0), "{name}");
        assert_eq!(versions(&*metadata).await.len(), 3, "{name}");
        metadata.close().await;
        chunks.fail_all_disks();
    }
}

/// The disks of the nodes of a cluster are read one after the other, in any order: what counts is what would count on
/// one node.
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
    let cold = cold_content_of_two(id(2, 2), "OSS", of(b"all of it"));
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

/// Of an object of several chunks one node has the beginning and another one the end.
#[tokio::test]
async fn what_ends_on_another_node_comes_back_and_what_ends_nowhere_takes_no_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let content = |n: u8| ContentId([n; 12]);
    let large = |key: &str, created_ms| ChunkLabel {
        content_size_bytes: CHUNK_SIZE_MAX + 5,
        ..label(key, VersionId::NULL, created_ms, None)
    };
    let rest = |key: &str, created_ms| ChunkLabel { attributes: None, ..large(key, created_ms) };
    let full: &'static [u8] = vec![7; CHUNK_SIZE_MAX as usize].leak();
    let nodes = [MemoryChunkStore::default(), MemoryChunkStore::default()];
    write(&nodes[0], content(1), &large("large", 10), full).await;
    write_chunk(&nodes[1], content(1).chunk(1), &rest("large", 10), b"bytes").await;
    // A client had begun to overwrite it when the metadata were lost; and to write another one.
    write(&nodes[1], content(2), &label("kept", VersionId::NULL, 10, None), b"whole").await;
    write(&nodes[0], content(3), &large("kept", 20), full).await;
    write(&nodes[0], content(4), &large("torn", 10), full).await;
    // Overwritten to the end.
    write(&nodes[0], content(5), &label("over", VersionId::NULL, 10, None), b"older").await;
    write(&nodes[0], content(6), &large("over", 20), full).await;
    write_chunk(&nodes[1], content(6).chunk(1), &rest("over", 20), b"newer").await;

    for (name, order) in [("forth", [0, 1]), ("back", [1, 0])] {
        let metadata = store(&dir, name).await;
        from_chunks(&nodes[order[0]], &*metadata, "root", WRITE).await.expect("rebuilt");
        from_chunks(&nodes[order[1]], &*metadata, "root", ADD).await.expect("rebuilt");
        for at in order {
            from_chunks(&nodes[at], &*metadata, "root", ADD).await.expect("rebuilt");
        }
        let objects = async |expected: &[(&str, u8)]| {
            for (key, id) in expected {
                let object = latest(&*metadata, key).await;
                assert_eq!(object.content.as_ref().expect("content").id, content(*id), "{name}: {key}");
                assert_eq!(object.owner, "alice", "{name}: {key}");
                let told = (object.attributes.content_type.as_deref(), object.tags.len());
                assert_eq!(told, (Some("text/plain"), 1), "{name}: {key}");
            }
            assert_eq!(versions(&*metadata).await.len(), expected.len(), "{name}");
        };
        objects(&[("large", 1), ("kept", 2), ("over", 6)]).await;
        let third = from_chunks(&nodes[0], &*metadata, "root", ADD).await.expect("rebuilt");
        assert_eq!((third.objects, third.without_head, third.unended), (0, 0, 2), "{name}: two rounds are enough");
        assert!(third.text().contains("--unended"), "{}", third.text());
        // The operator wants what there is of it.
        let options = RebuildOptions { unended: true, ..ADD };
        from_chunks(&nodes[0], &*metadata, "root", options).await.expect("rebuilt");
        objects(&[("large", 1), ("kept", 2), ("over", 6), ("torn", 4)]).await;
        metadata.close().await;
    }
}

#[tokio::test]
async fn a_part_that_ends_on_another_node_waits_for_what_its_beginning_tells() {
    let dir = tempfile::tempdir().expect("a directory");
    let nodes = [MemoryChunkStore::default(), MemoryChunkStore::default()];
    let part = Some(PartLabel { upload: UploadId([1; 16]), number: 1 });
    let first = ChunkLabel { content_size_bytes: CHUNK_SIZE_MAX + 5, ..label("large", VersionId::NULL, 10, part) };
    let rest = ChunkLabel { attributes: None, ..first.clone() };
    let id = ContentId([1; 12]);
    write(&nodes[0], id, &first, vec![7; CHUNK_SIZE_MAX as usize].leak()).await;
    write_chunk(&nodes[1], id.chunk(1), &rest, b"bytes").await;

    let metadata = store(&dir, "rebuilt").await;
    let options = RebuildOptions { complete_uploads: true, ..ADD };
    let told = from_chunks(&nodes[1], &*metadata, "root", options).await.expect("rebuilt");
    assert_eq!((told.uploads, told.parts, told.waiting, told.completed), (0, 0, 1, 0));
    let told = from_chunks(&nodes[0], &*metadata, "root", options).await.expect("rebuilt");
    assert_eq!((told.uploads, told.parts, told.unended, told.completed), (1, 0, 1, 0));
    let told = from_chunks(&nodes[1], &*metadata, "root", options).await.expect("rebuilt");
    assert_eq!((told.uploads, told.parts, told.waiting, told.completed), (0, 1, 0, 1));
    let object = latest(&*metadata, "large").await;
    assert_eq!((object.owner.as_str(), object.attributes.content_type.as_deref()), ("alice", Some("text/plain")));
    let told = from_chunks(&nodes[0], &*metadata, "root", options).await.expect("rebuilt");
    assert_eq!((told.uploads, told.unended, told.completed), (0, 0, 0), "it has nothing to add");
    metadata.close().await;
}

/// A version is taken out to be put back with what its beginning tells, and the run was killed in between.
#[tokio::test]
async fn a_version_that_a_killed_run_had_taken_out_comes_back_where_it_begins() {
    let dir = tempfile::tempdir().expect("a directory");
    let nodes = [MemoryChunkStore::default(), MemoryChunkStore::default()];
    let (id, version) = (ContentId([1; 12]), VersionId::generate(1));
    let first = ChunkLabel { content_size_bytes: CHUNK_SIZE_MAX + 5, ..label("large", version, 10, None) };
    let rest = ChunkLabel { attributes: None, ..first.clone() };
    write(&nodes[0], id, &first, vec![7; CHUNK_SIZE_MAX as usize].leak()).await;
    write_chunk(&nodes[1], id.chunk(1), &rest, b"bytes").await;

    let metadata = store(&dir, "rebuilt").await;
    from_chunks(&nodes[1], &*metadata, "root", WRITE).await.expect("rebuilt");
    let bucket = metadata.bucket("bucket").await.expect("the bucket").id;
    let taken_out = DeleteRequest { version: Some(version), ..samples::deletion("large") };
    let deleted = metadata.delete_objects(bucket, vec![taken_out], 20).await.expect("an answer");
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    assert!(versions(&*metadata).await.is_empty());

    let told = from_chunks(&nodes[0], &*metadata, "root", ADD).await.expect("rebuilt");
    assert_eq!((told.objects, told.unended), (1, 0), "it is not taken for a write that broke off");
    let object = latest(&*metadata, "large").await;
    assert_eq!((object.version, object.owner.as_str(), object.last_modified_ms), (version, "alice", 10));
    assert_eq!(metadata.due_reclaims(u64::MAX >> 1, 10, None).await.expect("reclaims").len(), 0);
    metadata.close().await;
}

/// One node has both ends of an object.
#[tokio::test]
async fn a_first_chunk_whose_label_cannot_be_read_does_not_hide_the_last_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let chunks = MemoryChunkStore::default();
    let id = ContentId([1; 12]);
    let first = ChunkLabel { content_size_bytes: CHUNK_SIZE_MAX + 5, ..label("large", VersionId::NULL, 10, None) };
    let rest = ChunkLabel { attributes: None, ..first.clone() };
    write(&chunks, id, &first, vec![7; CHUNK_SIZE_MAX as usize].leak()).await;
    write_chunk(&chunks, id.chunk(1), &rest, b"bytes").await;
    chunks.corrupt(id.chunk(0));

    let metadata = store(&dir, "rebuilt").await;
    let told = from_chunks(&chunks, &*metadata, "root", WRITE).await.expect("rebuilt");
    assert_eq!((told.objects, told.unreadable, told.without_head, told.chunks), (1, 1, 1, 2));
    let object = latest(&*metadata, "large").await;
    let content = object.content.as_ref().expect("content");
    assert_eq!((content.id, content.size_bytes()), (id, CHUNK_SIZE_MAX + 5));
    metadata.close().await;
}
