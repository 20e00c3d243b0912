//! A backup that is made and put back while other things go on, and what was moved after it.

use std::sync::Arc;

use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::metadata::{
    BucketId, CannedAcl, Content, ContentPlace, ContentSource, DeleteRequest, ETag, MetadataDirect as _, MetadataStore,
    MetadataUpkeep as _, NewObject, Versioning, samples,
};
use holdfast_node::assemble::cluster_tools::{RebuildOptions, backup_to, dump, from_chunks, load, rebuild, restore};
use holdfast_node::config::Config;
use holdfast_protocol::label::{ChunkLabel, PartLabel};
use holdfast_protocol::{ContentId, Manifest, NodeId, UploadId, VersionId};
use sqlx::{Connection as _, SqliteConnection};

use super::{
    TWO_CHUNKS_BYTES, WRITE, cold_content, cold_content_of_two, label, latest, md5, store, versions, write,
    write_chunk, write_committed_stub,
};

const ADD: RebuildOptions = RebuildOptions { add: true, ..WRITE };

fn copy_of(bucket: BucketId, key: &str, content: ContentId, now_ms: u64) -> NewObject {
    let (version, content) = (VersionId::generate(now_ms), ContentSource::Shared(content));
    NewObject { version, now_ms, content, ..samples::object(bucket, key) }
}

/// What was moved after a backup lies elsewhere than the backup says, though nothing happened to the object.
#[tokio::test]
async fn objects_that_were_moved_since_a_backup_are_found_by_a_rebuild_on_top_of_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let id = |seconds: u8, n: u8| ContentId([0, 0, 0, seconds, n, 0, 0, 0, 0, 0, 0, 0]);
    let etag = ETag { md5: md5(b"bytes"), parts: None };
    let named = |key: &str| label(key, VersionId::NULL, 10, None);
    let [then, since] = [(); 2].map(|()| Arc::new(MemoryChunkStore::default()));
    write(&*then, id(1, 1), &named("moved"), b"bytes").await;
    write_committed_stub(&then, &cold_content(id(1, 2), "OSS", etag), named("back")).await;
    let (version, marker) = (VersionId::generate(1), VersionId::generate(2));
    let hidden = || label("hidden", version, 10, None);
    write(&*then, id(1, 3), &hidden(), b"bytes").await;
    write(&*then, id(1, 4), &named("old name"), b"bytes").await;
    let source = store(&dir, "source").await;
    from_chunks(&*then, &*source, "root", WRITE).await.expect("objects");
    let bucket = source.bucket("bucket").await.expect("the bucket").id;
    let deletion = |key: &str, version| DeleteRequest { version, marker_version: marker, ..samples::deletion(key) };
    // As clients rename.
    source.commit_object(copy_of(bucket, "new name", id(1, 4), 20)).await.expect("a copy");
    let deletions = vec![deletion("hidden", None), deletion("old name", Some(VersionId::NULL))];
    let deleted = source.delete_objects(bucket, deletions, 20).await.expect("deletions");
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    let mut file = Vec::new();
    dump(&*source, &*source, &mut file).await.expect("a backup");
    source.close().await;
    // What they were moved from is deleted by now.
    let cold = cold_content(id(2, 1), "OSS", etag);
    let told = |label: ChunkLabel, attributes: &str| ChunkLabel { attributes: Some(attributes.to_owned()), ..label };
    let bare = told(named("moved"), r#"{"owner":"alice","acl":"private","left_out":"tags and headers"}"#);
    write_committed_stub(&since, &cold, bare).await;
    write(&*since, id(2, 2), &named("back"), b"bytes").await;
    let noncurrent = cold_content(id(2, 3), "OSS", etag);
    let attributes = r#"{"owner":"alice","content_type":"text/html","acl":"public-read","left_out":"tags"}"#;
    write_committed_stub(&since, &noncurrent, told(hidden(), attributes)).await;
    write(&*since, id(1, 4), &named("old name"), b"bytes").await;

    let target = store(&dir, "target").await;
    load(&*target, &*target, &mut file.as_slice()).await.expect("restored");
    assert_eq!(latest(&*target, "moved").await.content.as_ref().expect("content").id, id(1, 1));
    let options = RebuildOptions { moved_only: true, ..ADD };
    let report = from_chunks(&*since, &*target, "nobody", options).await.expect("rebuilt");
    assert_eq!((report.objects, report.cold, report.known), (3, 2, 1));
    let moved = latest(&*target, "moved").await;
    assert_eq!((moved.content.as_deref(), moved.acl), (Some(&cold), CannedAcl::Private));
    // What the label has no room for is as in the backup.
    assert_eq!((moved.tags.len(), moved.attributes.content_type.as_deref()), (1, Some("text/plain")));
    let back = latest(&*target, "back").await;
    let content = back.content.as_ref().expect("content");
    assert_eq!((content.id, content.cold(), content.etag), (id(2, 2), None, etag));
    // What was deleted stays hidden.
    let bucket = target.bucket("bucket").await.expect("the bucket").id;
    let found = target.object(bucket, "hidden", Some(version)).await.expect("the version");
    assert_eq!(found.content.as_deref(), Some(&noncurrent));
    assert_eq!((found.tags.len(), found.attributes.content_type.as_deref()), (1, Some("text/html")));
    let hidden = [("hidden".to_owned(), marker, true, 20), ("hidden".to_owned(), version, false, 10)];
    assert_eq!(
        versions(&*target).await.iter().filter(|(key, ..)| key == "hidden").cloned().collect::<Vec<_>>(),
        hidden
    );
    // And names that objects had are not theirs again, though what they were is still there.
    assert!(versions(&*target).await.iter().all(|(key, ..)| key != "old name"));
    assert_eq!(versions(&*target).await.len(), 5);
    assert_eq!(target.bucket("bucket").await.expect("the bucket").versioning, Versioning::Enabled);
    assert!(target.user("nobody").await.is_err());
    target.close().await;
}

/// The chunks of an object are on several nodes, and its stub on others: only the last chunk says that all of it came
/// back from the tier. What lies there would be deleted for the rest of a recall that broke off.
#[tokio::test]
async fn what_a_recall_that_broke_off_has_left_takes_the_place_of_no_cold_object() {
    let dir = tempfile::tempdir().expect("a directory");
    let id = |seconds: u8, n: u8| ContentId([0, 0, 0, seconds, n, 0, 0, 0, 0, 0, 0, 0]);
    let etag = ETag { md5: [7; 16], parts: Some(2) };
    let of = |key: &str| ChunkLabel { content_size_bytes: TWO_CHUNKS_BYTES, ..label(key, VersionId::NULL, 10, None) };
    let then = Arc::new(MemoryChunkStore::default());
    let cold = [cold_content_of_two(id(1, 1), "OSS", etag), cold_content_of_two(id(1, 2), "OSS", etag)];
    write_committed_stub(&then, &cold[0], of("broken off")).await;
    write_committed_stub(&then, &cold[1], of("back")).await;
    let source = store(&dir, "source").await;
    from_chunks(&*then, &*source, "root", WRITE).await.expect("objects");
    // Moved to a tier only since.
    let warm = Content { place: ContentPlace::Cluster, ..cold_content_of_two(id(1, 3), "OSS", etag) };
    let bucket = source.bucket("bucket").await.expect("the bucket").id;
    let content = ContentSource::New(warm.clone());
    let version = VersionId::NULL;
    let object = NewObject { version, now_ms: 10, content, ..samples::object(bucket, "there and back") };
    source.commit_object(object).await.expect("an object");
    let mut file = Vec::new();
    dump(&*source, &*source, &mut file).await.expect("a backup");
    source.close().await;

    let nodes = [MemoryChunkStore::default(), MemoryChunkStore::default()];
    write(&nodes[0], id(2, 1), &of("broken off"), b"its first chunk").await;
    write(&nodes[0], id(2, 2), &of("back"), b"its first chunk").await;
    let end = ChunkLabel { attributes: None, ..of("back") };
    write_chunk(&nodes[1], id(2, 2).chunk(1), &end, b"bytes").await;
    write(&nodes[0], id(2, 3), &of("there and back"), b"its first chunk").await;
    let end = ChunkLabel { attributes: None, ..of("there and back") };
    write_chunk(&nodes[1], id(2, 3).chunk(1), &end, b"bytes").await;
    let options = RebuildOptions { moved_only: true, ..ADD };
    for (name, order) in [("forth", [0, 1]), ("back", [1, 0])] {
        let target = store(&dir, name).await;
        load(&*target, &*target, &mut file.as_slice()).await.expect("restored");
        for node in order {
            from_chunks(&nodes[node], &*target, "nobody", options).await.expect("rebuilt");
        }
        let kept = latest(&*target, "broken off").await;
        assert_eq!(kept.content.as_deref(), Some(&cold[0]), "{name}");
        let back = latest(&*target, "back").await;
        let content = back.content.as_ref().expect("content");
        assert_eq!((content.id, content.cold()), (id(2, 2), None), "{name}");
        assert_eq!(content.manifest, Manifest::single(id(2, 2), TWO_CHUNKS_BYTES), "{name}");
        // Though no node has all of the bytes.
        assert_eq!((content.etag, &content.parts), (etag, &cold[1].parts), "{name}");
        assert_eq!((back.owner.as_str(), back.tags.len()), ("alice", 1), "{name}");
        let manifest = Manifest::single(id(2, 3), TWO_CHUNKS_BYTES);
        let expected = Content { id: id(2, 3), manifest, ..warm.clone() };
        assert_eq!(latest(&*target, "there and back").await.content.as_deref(), Some(&expected), "{name}");
        target.close().await;
    }
}

/// Orphans that were given up while their node was away lie on its disks still.
#[tokio::test]
async fn chunks_that_were_given_up_come_back_in_no_rebuild_and_stop_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let id = |n: u8| ContentId([0, 0, 0, 9, n, 0, 0, 0, 0, 0, 0, 0]);
    let chunks = Arc::new(MemoryChunkStore::default());
    write(&*chunks, id(1), &label("kept", VersionId::NULL, 10, None), b"bytes").await;
    let metadata = store(&dir, "metadata").await;
    from_chunks(&*chunks, &*metadata, "root", WRITE).await.expect("an object");
    let upload = UploadId::generate();
    let part = |number| label("parts", VersionId::NULL, 20, Some(PartLabel { upload, number }));
    write(&*chunks, id(2), &label("given up", VersionId::NULL, 20, None), b"bytes").await;
    write(&*chunks, id(3), &part(1), b"bytes").await;
    write(&*chunks, id(4), &part(2), b"bytes").await;
    let given_up = [id(2), id(3)];
    assert_eq!(metadata.condemn(&given_up, 1).await.expect("given up"), given_up);
    let report = from_chunks(&*chunks, &*metadata, "root", ADD).await.expect("rebuilt");
    assert_eq!((report.objects, report.uploads, report.parts), (0, 1, 1));
    assert_eq!(versions(&*metadata).await, [("kept".to_owned(), VersionId::NULL, true, 10)]);
    let parts = metadata.list_parts(upload, 0, 10).await.expect("parts");
    assert_eq!(parts.iter().map(|part| part.content).collect::<Vec<_>>(), [id(4)]);
    metadata.close().await;
}

/// It may have taken a version out of the metadata that it was to put back.
#[tokio::test]
async fn what_was_moved_is_not_looked_for_where_a_run_broke_off() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = Config::default();
    config.node.data_dir = dir.path().join("node");
    std::fs::create_dir(&config.node.data_dir).expect("a directory");
    let mark = config.node.data_dir.join("metadata.unfinished");
    std::fs::write(&mark, "").expect("a file");
    let options = RebuildOptions { moved_only: true, ..ADD };
    let refused = rebuild(&config, "root", options).await.expect_err("it broke off");
    assert!(format!("{refused:#}").contains("put the backup back again"), "{refused:#}");
    rebuild(&config, "root", ADD).await.expect("all that there is");
    rebuild(&config, "root", options).await.expect("it is whole");
    let mut file = Vec::new();
    let source = store(&dir, "source").await;
    dump(&*source, &*source, &mut file).await.expect("a backup");
    source.close().await;
    std::fs::write(&mark, "").expect("a file");
    restore(&config, &mut std::io::Cursor::new(file)).await.expect("restored");
    assert!(!mark.exists());
}

/// Names of backups often end in their dates, which look like extensions.
#[tokio::test]
async fn a_backup_does_not_write_into_another_one_that_is_under_way() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = Config::default();
    config.node.data_dir = dir.path().join("node");
    let (other, path) = (dir.path().join("metadata.partial"), dir.path().join("metadata.2026-11-30"));
    std::fs::write(&other, "half of it").expect("a file");
    std::fs::create_dir(&config.node.data_dir).expect("a directory");
    store(&dir, "node/metadata.sqlite").await.close().await;
    let counts = backup_to(&config, &path).await.expect("a backup");
    assert_eq!(std::fs::read_to_string(&other).expect("a file"), "half of it");
    let mut file = std::fs::File::open(&path).expect("the backup");
    config.node.data_dir = dir.path().join("another");
    assert_eq!(restore(&config, &mut file).await.expect("restored"), counts);
}

fn url_of(dir: &tempfile::TempDir) -> String {
    format!("sqlite:{}", dir.path().join("metadata").display())
}

/// The database is back without its last commits.
async fn lose_commits(dir: &tempfile::TempDir) {
    let mut conn = SqliteConnection::connect(&url_of(dir)).await.expect("opened");
    let lost = "INSERT INTO lock_fences (name, token) VALUES (CAST('SET-BACK' AS BLOB), 1)";
    sqlx::raw_sql(lost).execute(&mut conn).await.expect("written");
    conn.close().await.expect("closed");
}

/// A part that ends on one node and begins on another one comes back when the first is walked after the second.
#[tokio::test]
async fn a_node_on_which_parts_wait_for_others_is_to_be_walked_after_them() {
    let dir = tempfile::tempdir().expect("a directory");
    store(&dir, "metadata").await.close().await;
    lose_commits(&dir).await;
    let metadata = store(&dir, "metadata").await;
    let nodes = [1_u64, 2, 3].map(NodeId::from);
    let [first, second, third] = nodes;
    let orphan = [ContentId([2; 12])];
    let noted = async |walked: NodeId, waits: bool| metadata.note_walked(walked, waits, &nodes).await.expect("noted");
    assert_eq!(metadata.note_walked(first, true, &[]).await.expect("noted"), [first], "nobody knows of the others");
    assert_eq!(noted(first, true).await, [second, third, first]);
    assert_eq!(noted(second, true).await, [first, third, second]);
    // Whatever waits here still is told of by nobody.
    assert_eq!(noted(third, true).await, [first, second]);
    assert!(metadata.condemn(&orphan, 1).await.is_err(), "parts of the others are not back yet");
    assert_eq!(noted(second, false).await, [first]);
    assert_eq!(noted(first, true).await, []);
    assert_eq!(metadata.condemn(&orphan, 1).await.expect("given up"), orphan);
    metadata.close().await;
}

/// The bytes of what the database lost are on the disks alone, until a walk has brought back what it can.
#[tokio::test]
async fn orphans_are_kept_until_what_the_database_lost_was_brought_back() {
    let dir = tempfile::tempdir().expect("a directory");
    store(&dir, "metadata").await.close().await;
    lose_commits(&dir).await;
    let metadata = store(&dir, "metadata").await;
    let chunks = MemoryChunkStore::default();
    write(&chunks, ContentId([1; 12]), &label("lost", VersionId::NULL, 10, None), b"bytes").await;
    let orphan = [ContentId([2; 12])];
    for options in [RebuildOptions { dry_run: true, ..ADD }, RebuildOptions { moved_only: true, ..ADD }] {
        from_chunks(&chunks, &*metadata, "root", options).await.expect("walked");
        assert!(metadata.lost_commits().await.expect("an answer"));
        assert!(metadata.condemn(&orphan, 1).await.is_err());
    }
    // Of a cluster all nodes have to be walked.
    let (first, second) = (NodeId::from(1), NodeId::from(2));
    from_chunks(&chunks, &*metadata, "root", ADD).await.expect("rebuilt");
    assert_eq!(metadata.note_walked(first, false, &[]).await.expect("noted"), []);
    assert!(metadata.lost_commits().await.expect("an answer"), "nobody knows which nodes there are");
    for _ in 0..2 {
        assert_eq!(metadata.note_walked(first, false, &[first, second]).await.expect("noted"), [second]);
        assert!(metadata.condemn(&orphan, 1).await.is_err(), "what the other node has may be what was lost");
    }
    assert_eq!(metadata.note_walked(second, false, &[first, second]).await.expect("noted"), []);
    assert!(!metadata.lost_commits().await.expect("an answer"));
    // Nothing is left of it for the next time.
    let mut conn = SqliteConnection::connect(&url_of(&dir)).await.expect("opened");
    let left: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM lock_fences").fetch_one(&mut conn).await.expect("counted");
    assert_eq!(left, 0);
    conn.close().await.expect("closed");
    lose_commits(&dir).await;
    let alone = RebuildOptions { alone: true, ..ADD };
    from_chunks(&chunks, &*metadata, "root", alone).await.expect("rebuilt");
    assert!(!metadata.lost_commits().await.expect("an answer"));
    assert_eq!(metadata.condemn(&orphan, 1).await.expect("given up"), orphan);
    assert_eq!(versions(&*metadata).await.len(), 1);
    metadata.close().await;
}
