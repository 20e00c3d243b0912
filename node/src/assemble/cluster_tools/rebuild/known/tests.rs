use holdfast_actors::ports::metadata::{MetadataUpkeep as _, samples};
use holdfast_protocol::ContentId;

use super::*;
use crate::metadata::{SqliteMetadataStore, SqliteOptions};

async fn store(dir: &tempfile::TempDir) -> (SqliteMetadataStore, std::sync::Arc<Bucket>) {
    let store = SqliteMetadataStore::open(&dir.path().join("metadata"), SqliteOptions::default()).await.unwrap();
    let id = samples::bucket(&store, "bucket").await.id;
    store.set_versioning("bucket", id, Versioning::Enabled).await.unwrap();
    let bucket = store.bucket("bucket").await.unwrap();
    (store, bucket)
}

fn object(bucket: &Bucket, at_ms: u64) -> NewObject {
    NewObject {
        version: VersionId::generate(at_ms),
        now_ms: at_ms,
        content: ContentSource::New(samples::content(ContentId([at_ms as u8; 12]), 5)),
        ..samples::object(bucket.id, "key")
    }
}

async fn commit(store: &SqliteMetadataStore, bucket: &Bucket, at_ms: u64) -> VersionId {
    store.commit_object(object(bucket, at_ms)).await.unwrap().object.version
}

async fn times(store: &SqliteMetadataStore, bucket: &Bucket) -> Vec<u64> {
    let mut times = Vec::new();
    each_version(store, bucket.id, "key", |entry| times.push(entry.last_modified_ms)).await.unwrap();
    let latest = store.object(bucket.id, "key", None).await.unwrap();
    assert_eq!(Some(&latest.last_modified_ms), times.first());
    times
}

#[tokio::test]
async fn however_many_newer_versions_there_are_few_are_remembered_and_all_come_over_the_older_one() {
    let dir = tempfile::tempdir().unwrap();
    let (store, bucket) = store(&dir).await;
    let mut versions = Vec::new();
    // More than a page of them.
    for at_ms in (2..5).chain(10..140) {
        versions.push(commit(&store, &bucket, at_ms).await);
    }
    let place = (commit(&store, &bucket, 7).await, 7);
    for most in [1, 50] {
        let oldest = oldest_newer_below(&store, bucket.id, "key", place, most).await.unwrap();
        assert_eq!(oldest, versions[3..3 + most]);
    }
    put_over(&store, &bucket, "key", place, 50).await.unwrap();
    let expected: Vec<u64> = (10..140).rev().chain([7, 4, 3, 2]).collect();
    assert_eq!(times(&store, &bucket).await, expected);
    assert_eq!(oldest_newer_below(&store, bucket.id, "key", place, 50).await.unwrap(), []);
    store.close().await;
}

#[tokio::test]
async fn what_was_given_up_as_left_over_takes_nothings_place_and_stops_no_run() {
    let dir = tempfile::tempdir().unwrap();
    let (store, bucket) = store(&dir).await;
    for at_ms in [5, 6] {
        commit(&store, &bucket, at_ms).await;
    }
    let before = store.object(bucket.id, "key", None).await.unwrap();
    let left_over = object(&bucket, 9);
    let ContentSource::New(content) = &left_over.content else { panic!("it brings one") };
    assert_eq!(store.condemn(&[content.id], 1).await.unwrap(), [content.id]);
    let instead = NewObject { version: before.version, now_ms: 6, ..left_over };
    assert!(!put(&store, "bucket", Some(&*before), instead).await.unwrap());
    assert_eq!(times(&store, &bucket).await, [6, 5]);
    assert_eq!(store.object(bucket.id, "key", None).await.unwrap().content, before.content);
    store.close().await;
}

#[tokio::test]
async fn what_a_run_left_in_the_wrong_order_is_put_right_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let (store, bucket) = store(&dir).await;
    put_in_order(&store, "bucket", "key").await.unwrap();
    // It broke off when two of the newer ones had been put over the one of 7.
    for at_ms in [3, 12, 13, 14, 7, 10, 11] {
        commit(&store, &bucket, at_ms).await;
    }
    put_in_order(&store, "bucket", "key").await.unwrap();
    let ordered = times(&store, &bucket).await;
    assert_eq!(ordered, [14, 13, 12, 11, 10, 7, 3]);
    let latest = store.object(bucket.id, "key", None).await.unwrap().sequence;
    put_in_order(&store, "bucket", "key").await.unwrap();
    let again = store.object(bucket.id, "key", None).await.unwrap().sequence;
    assert_eq!(again, latest, "what is in order is left alone");
    store.close().await;
}
