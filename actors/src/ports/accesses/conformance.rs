//! What every adapter of [`AccessLog`] does, as tests; [`crate::accesses_conformance!`] expands them.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(missing_docs, reason = "the names of the cases say what they check")]

use std::sync::Arc;

use holdfast_protocol::TierName;

use super::{AccessLog, ReadKey, ReadNote};
use crate::ports::metadata::conformance::{T0, bucket_with, delete_request, object};
use crate::ports::metadata::{AgePosition, BucketId, MetadataStore, NewObject, Standing, Versioning};

type Store = Arc<dyn MetadataStore>;
type Log = Arc<dyn AccessLog>;

/// Expands the suite. `$factory` is an `async fn() -> (Arc<dyn MetadataStore>, Arc<dyn AccessLog>, impl Sized)`; the
/// last value is kept until the test is over.
#[macro_export]
macro_rules! accesses_conformance {
    ($factory:path) => {
        $crate::accesses_conformance! { @tests $factory;
            a_key_has_one_note_whose_day_only_rises
            keys_are_walked_in_order_of_their_day_with_their_latest_version
            notes_are_forgotten_if_they_are_still_of_their_day
            notes_of_a_bucket_are_forgotten_in_steps
        }
    };
    (@tests $factory:path; $($test:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let (store, log, guard) = $factory().await;
                $crate::ports::accesses::conformance::$test(store.clone(), log).await;
                store.close().await;
                drop(guard);
            }
        )*
    };
}

fn note(bucket: BucketId, key: &str, day_ms: u64) -> ReadNote {
    ReadNote { bucket, key: key.into(), day_ms }
}

async fn walk(log: &Log, bucket: BucketId, until_ms: u64, limit: u32) -> Vec<ReadKey> {
    let (mut found, mut at) = (Vec::new(), AgePosition::default());
    loop {
        let page = log.read_keys(bucket, &at, until_ms, limit).await.unwrap();
        let Some(last) = page.last() else { return found };
        assert!(page.len() <= limit as usize);
        at = last.position();
        found.extend(page);
    }
}

async fn days(log: &Log, bucket: BucketId) -> Vec<(String, u64)> {
    walk(log, bucket, u64::MAX / 4, 100).await.into_iter().map(|read| (read.key, read.day_ms)).collect()
}

pub async fn a_key_has_one_note_whose_day_only_rises(store: Store, log: Log) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    let other = bucket_with(&store, "c", Versioning::Unversioned).await;
    log.note_reads(&[]).await.unwrap();
    log.note_reads(&[note(id, "b", 20), note(id, "a", 10), note(other, "a", 5)]).await.unwrap();
    log.note_reads(&[note(id, "b", 10), note(id, "a", 30), note(id, "a\u{e9}", 30)]).await.unwrap();
    let mut reads = log.last_reads(id, &["a", "b", "none", "A"]).await.unwrap();
    reads.sort();
    assert_eq!(reads, [("a".to_owned(), 30), ("b".to_owned(), 20)]);
    assert_eq!(days(&log, id).await, [("b".into(), 20), ("a".into(), 30), ("a\u{e9}".into(), 30)]);
    assert_eq!(log.last_reads(other, &["a"]).await.unwrap(), [("a".to_owned(), 5)]);
    let many: Vec<ReadNote> = (0..1_000).map(|number| note(other, &format!("{number:04}"), 7)).collect();
    log.note_reads(&many).await.unwrap();
    let keys: Vec<&str> = many.iter().map(|note| note.key.as_str()).collect();
    assert_eq!(log.last_reads(other, &keys).await.unwrap().len(), 1_000);
}

pub async fn keys_are_walked_in_order_of_their_day_with_their_latest_version(store: Store, log: Log) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    let tier: TierName = "OSS".parse().unwrap();
    for (key, now_ms) in [("a", T0), ("b", T0 + 1), ("marked", T0), ("gone", T0)] {
        let new = NewObject { now_ms, class: Some(tier.clone()), ..object(id, key, 5) };
        store.commit_object(new).await.unwrap();
    }
    for deleted in store.delete_objects(id, vec![delete_request("marked", None)], T0 + 5).await.unwrap() {
        deleted.unwrap();
    }
    let notes = [("b", 10), ("a", 20), ("marked", 20), ("never", 20), ("c", 30)];
    log.note_reads(&notes.map(|(key, day_ms)| note(id, key, day_ms))).await.unwrap();
    for limit in [1, 2, 100] {
        let read = walk(&log, id, 29, limit).await;
        let told: Vec<(&str, u64, bool)> =
            read.iter().map(|read| (read.key.as_str(), read.day_ms, read.version.is_some())).collect();
        assert_eq!(told, [("b", 10, true), ("a", 20, true), ("marked", 20, false), ("never", 20, false)]);
        let version = read[0].version.as_ref().unwrap();
        assert_eq!((version.key.as_str(), version.standing), ("b", Standing::Current));
        assert_eq!((version.last_modified_ms, version.since_ms), (T0 + 1, T0 + 1));
        assert_eq!(version.class.as_ref(), Some(&tier));
        let latest = store.object(id, "b", None).await.unwrap();
        assert_eq!((version.version, version.sequence), (latest.version, latest.sequence));
        assert_eq!(version.size_bytes, latest.content.as_ref().map(|content| content.size_bytes()));
    }
}

pub async fn notes_are_forgotten_if_they_are_still_of_their_day(store: Store, log: Log) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    log.note_reads(&[note(id, "a", 10), note(id, "b", 10)]).await.unwrap();
    log.note_reads(&[note(id, "b", 20)]).await.unwrap();
    log.forget_reads(&[note(id, "a", 10), note(id, "b", 10), note(id, "c", 10)]).await.unwrap();
    assert_eq!(days(&log, id).await, [("b".to_owned(), 20)]);
    log.forget_reads(&[]).await.unwrap();
}

pub async fn notes_of_a_bucket_are_forgotten_in_steps(store: Store, log: Log) {
    let first = bucket_with(&store, "b", Versioning::Unversioned).await;
    let second = bucket_with(&store, "c", Versioning::Unversioned).await;
    assert_eq!(log.next_read_bucket(None).await.unwrap(), None);
    let (low, high) = (first.0.min(second.0), first.0.max(second.0));
    let (low, high) = (BucketId(low), BucketId(high));
    let notes: Vec<ReadNote> = (0..5).map(|number| note(low, &number.to_string(), number)).collect();
    log.note_reads(&notes).await.unwrap();
    log.note_reads(&[note(high, "k", 1)]).await.unwrap();
    assert_eq!(log.next_read_bucket(None).await.unwrap(), Some(low));
    assert_eq!(log.next_read_bucket(Some(low)).await.unwrap(), Some(high));
    assert_eq!(log.next_read_bucket(Some(high)).await.unwrap(), None);
    assert_eq!(log.forget_bucket_reads(low, 3).await.unwrap(), 3);
    assert_eq!(log.forget_bucket_reads(low, 3).await.unwrap(), 2);
    assert_eq!(log.forget_bucket_reads(low, 3).await.unwrap(), 0);
    assert_eq!(log.next_read_bucket(None).await.unwrap(), Some(high));
}
