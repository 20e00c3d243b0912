//! What was written to a backup comes back as it was.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;

use holdfast_actors::ports::TierLedger;
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::metadata::samples::{self, deletion};
use holdfast_actors::ports::metadata::{
    BucketConfigKind, BucketId, CannedAcl, Content, ContentPlace, ContentSource, DeleteRequest, ETag,
    MetadataDirect as _, MetadataStore, MetadataUpkeep as _, NewBucket, NewObject, NewUpload, ObjectAttributes,
    Versioning,
};
use holdfast_actors::ports::tiering::{Move, TierRecord};
use holdfast_node::assemble::cluster_tools::{RebuildOptions, dump, from_chunks, load, restore, restore_stream};
use holdfast_node::config::Config;
use holdfast_node::metadata::{SqliteMetadataStore, SqliteOptions};
use holdfast_protocol::label::{ChunkLabel, PartLabel};
use holdfast_protocol::{ContentId, Manifest, ReclaimItem, TierName, UploadId, VersionId};

use super::{WRITE, cold_content, label, latest, store, tier, versions, write};

/// A commit of `content` to the test's bucket.
fn commit_of(bucket: BucketId, key: &str, content: ContentSource, class: Option<TierName>, now_ms: u64) -> NewObject {
    NewObject { version: VersionId::generate(now_ms), now_ms, content, class, ..samples::object(bucket, key) }
}

/// Who compares the sequencers of two events of an object must not take the newer one for the older.
#[tokio::test]
async fn sequence_numbers_go_on_beyond_those_of_the_metadata_that_were_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut last = 0;
    for (name, put_back_ms) in [("first", 1_800_000_000_000), ("second", 1_800_000_060_000)] {
        let empty = store(&dir, name).await;
        let bucket = samples::bucket(&*empty, "bucket").await.id;
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
    target.delete_objects(bucket, vec![deletion("large")], 20).await.expect("an answer");
    let due: Vec<ReclaimItem> =
        target.due_reclaims(1_000, 10, None).await.expect("reclaims").iter().map(|due| due.item).collect();
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
    let other = source.create_bucket(other).await.expect("a bucket").id;
    let config = Some("{}".to_owned());
    source.set_bucket_config("other", other, BucketConfigKind::Policy, config).await.expect("a policy");

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

/// No bucket is left, but what was in it is: it would be met again in the middle.
#[tokio::test]
async fn metadata_of_which_all_was_deleted_is_not_empty_yet() {
    let dir = tempfile::tempdir().expect("a directory");
    let (metadata, chunks) = (store(&dir, "metadata").await, MemoryChunkStore::default());
    write(&chunks, ContentId([1; 12]), &label("key", VersionId::NULL, 10, None), b"bytes").await;
    from_chunks(&chunks, &*metadata, "root", WRITE).await.expect("an object");
    let mut file = Vec::new();
    dump(&*metadata, &*metadata, &mut file).await.expect("a backup");
    let bucket = metadata.bucket("bucket").await.expect("the bucket").id;
    for deleted in metadata.delete_objects(bucket, vec![deletion("key")], 20).await.expect("an answer") {
        deleted.expect("deleted");
    }
    metadata.delete_bucket("bucket", bucket).await.expect("it is empty");
    let refused = load(&*metadata, &*metadata, &mut file.as_slice()).await.expect_err("something is left");
    assert!(refused.to_string().contains("wait to be reclaimed"), "{refused}");
    metadata.close().await;
}

#[tokio::test]
async fn a_backup_brings_tiers_and_cold_objects_back_and_their_moves_are_queued_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = store(&dir, "source").await;
    let bucket = samples::bucket(&*source, "bucket").await.id;
    source.set_versioning("bucket", bucket, Versioning::Enabled).await.expect("versioning");
    let (oss, fastdfs) = (tier("OSS"), tier("FASTDFS"));
    source.add_tier(oss.clone(), r#"{"secret":"sealed"}"#.into(), 5, None).await.expect("a tier");
    source.add_tier(fastdfs.clone(), "{}".into(), 6, None).await.expect("a tier");
    let etag = ETag { md5: [1; 16], parts: Some(5) };
    let (cold, other) = (cold_content(ContentId([1; 12]), "OSS", etag), cold_content(ContentId([2; 12]), "OSS", etag));
    let hot = Content { id: ContentId([3; 12]), place: ContentPlace::Cluster, ..cold.clone() };
    let hot = Content { manifest: Manifest::single(hot.id, 5), ..hot };
    // In place; copies of it, to the same class and to two others; an older version in a tier; one that waits for its
    // move.
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
    let delete = |key: &str, version| DeleteRequest { version: Some(version), ..deletion(key) };
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
    let mode = std::fs::metadata(&config.node.data_dir).expect("a directory").permissions().mode();
    assert_eq!(mode & 0o077, 0, "it is nobody else's");
}
