//! What every adapter of [`Outbox`] does, as tests: above all that rows and changes are one transaction.
//!
//! An adapter's tests expand it with [`outbox_conformance!`](crate::outbox_conformance), naming a function that makes
//! an empty store: `async fn() -> (Arc<dyn MetadataStore>, Arc<dyn Outbox>, impl Sized)`.

#![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]
#![allow(missing_docs, reason = "the names of the cases say what they check")]

use std::sync::Arc;

use holdfast_protocol::events::{EventName, EventNotification, EventRecord, PARTITIONS, partition_of};

use super::{Look, Outbox, OutboxRow, ReplayFilter};
use crate::domain::events::{EventContext, EventDraft, NotificationRule, NotificationRules, NotificationTarget};
use crate::ports::events::Topic;
use crate::ports::metadata::conformance::{
    T0, bucket_with, change_request, content_of, copy_of, delete_request, latest, object,
};
use crate::ports::metadata::{
    BucketId, CannedAcl, ChangeRequest, DeleteRequest, MetadataStore, NewObject, Tag, Versioning, WritePrecondition,
};

type Store = Arc<dyn MetadataStore>;
type Rows = Arc<dyn Outbox>;

/// Expands the suite as tests of the module where it stands.
#[macro_export]
macro_rules! outbox_conformance {
    ($factory:path) => {
        $crate::outbox_conformance! { @tests $factory;
            every_change_leaves_its_row_in_the_order_of_changes
            versions_and_markers_are_told_as_what_they_are
            what_is_refused_or_changes_nothing_leaves_no_row
            changes_without_an_event_leave_no_row
            rules_of_the_bucket_are_asked_in_the_transaction
            racing_writers_of_one_key_are_told_in_the_order_of_their_commits
            rows_stay_until_they_are_finished
            finished_rows_can_be_replayed_until_they_are_forgotten
            looks_at_several_partitions_leave_out_what_is_known
            backlog_counts_what_waits
        }
    };
    (@tests $factory:path; $($test:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let (store, outbox, guard) = $factory().await;
                $crate::ports::outbox::conformance::$test(store.clone(), outbox).await;
                store.close().await;
                drop(guard);
            }
        )*
    };
}

pub(crate) fn draft(name: EventName) -> Option<EventDraft> {
    draft_by(name, None)
}

fn draft_by(name: EventName, rules: Option<NotificationRules>) -> Option<EventDraft> {
    let context = EventContext {
        bucket: "b".into(),
        bucket_owner: "alice".into(),
        rules: rules.map(Arc::new),
        region: "here".into(),
        principal: "alice".into(),
        source_ip: "127.0.0.1".into(),
        request_id: "R".into(),
        node: "n".into(),
    };
    Some(EventDraft { context: Arc::new(context), name })
}

fn told(object: NewObject) -> NewObject {
    NewObject { event: draft(EventName::CreatedPut), ..object }
}

fn told_delete(request: DeleteRequest) -> DeleteRequest {
    DeleteRequest { event: draft(EventName::RemovedDelete), ..request }
}

fn told_change(bucket: BucketId, key: &str, name: EventName) -> ChangeRequest {
    ChangeRequest { event: draft(name), ..change_request(bucket, key, None, T0) }
}

/// All rows, those of a partition in order.
pub(crate) async fn rows(outbox: &Rows) -> Vec<OutboxRow> {
    let mut all = Vec::new();
    for partition in 0..PARTITIONS {
        let rows = outbox.lowest(partition, 10_000).await.unwrap();
        assert!(rows.iter().all(|row| partition_of(row.message.order_key.as_bytes()) == partition));
        assert!(rows.windows(2).all(|pair| pair[0].message.id.sequence < pair[1].message.id.sequence));
        all.extend(rows);
    }
    all
}

fn of(partition: u16, sequences: &[u64]) -> Vec<(u16, u64)> {
    sequences.iter().map(|sequence| (partition, *sequence)).collect()
}

pub(crate) fn record(row: &OutboxRow) -> EventRecord {
    let mut body: EventNotification = serde_json::from_slice(&row.message.body).unwrap();
    body.records.remove(0)
}

fn tags(rows: &[OutboxRow]) -> Vec<&str> {
    rows.iter().map(|row| row.message.tag.as_str()).collect()
}

pub async fn every_change_leaves_its_row_in_the_order_of_changes(store: Store, outbox: Rows) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    let written = outbox.written();
    let first = store.commit_object(told(object(id, "k", 1))).await.unwrap();
    assert!(written.has_changed().unwrap(), "whoever publishes is told");
    let copy = NewObject { event: draft(EventName::CreatedCopy), ..copy_of(id, "k", content_of(&first.object)) };
    store.commit_object(copy).await.unwrap();
    let tag = Tag { key: "a".into(), value: "b".into() };
    store.set_object_tags(told_change(id, "k", EventName::TaggingPut), vec![tag]).await.unwrap();
    store.set_object_acl(told_change(id, "k", EventName::AclPut), CannedAcl::PublicRead).await.unwrap();
    store.delete_objects(id, vec![told_delete(delete_request("k", None))], T0 + 9).await.unwrap().remove(0).unwrap();
    let rows = rows(&outbox).await;
    let expected =
        ["ObjectCreated:Put", "ObjectCreated:Copy", "ObjectTagging:Put", "ObjectAcl:Put", "ObjectRemoved:Delete"];
    assert_eq!(tags(&rows), expected);
    let records: Vec<EventRecord> = rows.iter().map(record).collect();
    assert!(records.windows(2).all(|pair| pair[0].s3.object.sequencer < pair[1].s3.object.sequencer));
    assert_eq!((records[0].s3.object.size, records[0].s3.object.version_id.as_deref()), (Some(1001), None));
    assert_eq!(records[0].s3.object.e_tag, Some(first.object.content.as_ref().unwrap().etag.to_string()));
    assert_eq!(records[0].event_time.unix_ms, T0 + 1);
    assert_eq!((rows[0].topic, rows[4].queued_ms), (Topic::Objects, T0 + 9));
    assert_eq!(rows[0].message.keys, ["k".to_owned(), rows[0].message.id.to_string()]);
}

pub async fn versions_and_markers_are_told_as_what_they_are(store: Store, outbox: Rows) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    let first = store.commit_object(told(object(id, "k", 1))).await.unwrap().object.version;
    let delete = |version| store.delete_objects(id, vec![told_delete(delete_request("k", version))], T0);
    let marker = delete(None).await.unwrap().remove(0).unwrap().version.unwrap();
    delete(Some(marker)).await.unwrap().remove(0).unwrap();
    delete(Some(first)).await.unwrap().remove(0).unwrap();
    let rows = rows(&outbox).await;
    let expected =
        ["ObjectCreated:Put", "ObjectRemoved:DeleteMarkerCreated", "ObjectRemoved:Delete", "ObjectRemoved:Delete"];
    assert_eq!(tags(&rows), expected);
    let versions: Vec<Option<String>> = rows.iter().map(|row| record(row).s3.object.version_id).collect();
    assert_eq!(versions, [first, marker, marker, first].map(|version| Some(version.to_string())));
}

pub async fn what_is_refused_or_changes_nothing_leaves_no_row(store: Store, outbox: Rows) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    store.commit_object(told(object(id, "k", 1))).await.unwrap();
    let before = rows(&outbox).await.len();
    let condition = WritePrecondition { must_not_exist: true, must_match: None };
    store.commit_object(told(NewObject { precondition: condition, ..object(id, "k", 2) })).await.unwrap_err();
    let nothing = told_delete(delete_request("nothing", None));
    store.delete_objects(id, vec![nothing], T0).await.unwrap().remove(0).unwrap();
    store.set_object_tags(told_change(id, "nothing", EventName::TaggingPut), vec![]).await.unwrap_err();
    assert_eq!(rows(&outbox).await.len(), before);
    // Among many, those that happen are told and the others not.
    let requests = ["k", "nothing", "nothing-else"].map(|key| told_delete(delete_request(key, None)));
    store.delete_objects(id, requests.into(), T0).await.unwrap();
    let after = rows(&outbox).await;
    assert_eq!(after.len(), before + 1, "{:?}", tags(&after));
}

pub async fn changes_without_an_event_leave_no_row(store: Store, outbox: Rows) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    store.commit_object(object(id, "k", 1)).await.unwrap();
    store.delete_objects(id, vec![delete_request("k", None)], T0).await.unwrap().remove(0).unwrap();
    assert!(rows(&outbox).await.is_empty());
}

pub async fn rules_of_the_bucket_are_asked_in_the_transaction(store: Store, outbox: Rows) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    let rules = NotificationRules {
        everything: false,
        rules: vec![NotificationRule {
            id: "markers".into(),
            target: NotificationTarget::Topic,
            arn: String::new(),
            events: vec!["s3:ObjectRemoved:DeleteMarkerCreated".into()],
            prefix: Some("in/".into()),
            suffix: None,
        }],
    };
    for key in ["in/k", "out/k"] {
        let event = draft_by(EventName::CreatedPut, Some(rules.clone()));
        store.commit_object(NewObject { event, ..object(id, key, 1) }).await.unwrap();
        let event = draft_by(EventName::RemovedDelete, Some(rules.clone()));
        let request = DeleteRequest { event, ..delete_request(key, None) };
        store.delete_objects(id, vec![request], T0).await.unwrap().remove(0).unwrap();
    }
    let rows = rows(&outbox).await;
    assert_eq!(tags(&rows), ["ObjectRemoved:DeleteMarkerCreated"]);
    assert_eq!(record(&rows[0]).s3.configuration_id, "markers");
}

pub async fn racing_writers_of_one_key_are_told_in_the_order_of_their_commits(store: Store, outbox: Rows) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    let writers = (0..6_u8).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for turn in 0..10_u8 {
                store.commit_object(told(object(id, "k", writer * 10 + turn))).await.unwrap();
            }
        })
    });
    for writer in futures::future::join_all(writers).await {
        writer.unwrap();
    }
    let rows = rows(&outbox).await;
    assert_eq!(rows.len(), 60);
    let last = record(rows.last().unwrap()).s3.object.e_tag.unwrap();
    assert_eq!(last, latest(&store, id, "k").await.unwrap().content.as_ref().unwrap().etag.to_string());
}

pub async fn rows_stay_until_they_are_finished(store: Store, outbox: Rows) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    for seed in 0..5 {
        store.commit_object(told(object(id, "k", seed))).await.unwrap();
    }
    let partition = partition_of(b"b/k");
    let all = outbox.lowest(partition, 100).await.unwrap();
    let sequences: Vec<u64> = all.iter().map(|row| row.message.id.sequence).collect();
    assert_eq!(outbox.lowest(partition, 2).await.unwrap(), all[..2]);
    outbox.finish(&of(partition, &[sequences[1], sequences[3], 1]), None).await.unwrap();
    let left = outbox.lowest(partition, 100).await.unwrap();
    assert_eq!(left, [all[0].clone(), all[2].clone(), all[4].clone()]);
    // Of another partition: nothing happens.
    outbox.finish(&of((partition + 1) % PARTITIONS, &sequences), None).await.unwrap();
    assert_eq!(outbox.lowest(partition, 100).await.unwrap(), left);
    assert_eq!(outbox.backlog(partition).await.unwrap().published, 0, "nothing was to be kept");
}

pub async fn finished_rows_can_be_replayed_until_they_are_forgotten(store: Store, outbox: Rows) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    for seed in 0..6 {
        store.commit_object(told(object(id, "k", seed))).await.unwrap();
    }
    let partition = partition_of(b"b/k");
    let all = outbox.lowest(partition, 100).await.unwrap();
    let sequences: Vec<u64> = all.iter().map(|row| row.message.id.sequence).collect();
    outbox.finish(&of(partition, &sequences), Some(T0 + 100)).await.unwrap();
    assert!(outbox.lowest(partition, 100).await.unwrap().is_empty());
    assert_eq!(outbox.backlog(partition).await.unwrap().published, 6);
    assert_eq!(outbox.waiting(partition).await.unwrap(), super::OutboxBacklog::default());

    let filter = |prefix: &str| ReplayFilter {
        topic: Topic::Objects,
        from_ms: T0 + 1,
        to_ms: T0 + 5,
        order_key_prefix: prefix.into(),
    };
    assert_eq!(outbox.replay(partition, &filter("c/"), 0, 100).await.unwrap(), (0, None));
    let (moved, last) = outbox.replay(partition, &filter("b/"), 0, 3).await.unwrap();
    assert_eq!((moved, last), (3, Some(sequences[3])));
    let (moved, last) = outbox.replay(partition, &filter("b/k"), last.unwrap(), 3).await.unwrap();
    assert_eq!((moved, last), (1, Some(sequences[4])));
    assert_eq!(outbox.lowest(partition, 100).await.unwrap(), all[1..5], "with the ids that they had");
    outbox.finish(&of(partition, &sequences), Some(T0 + 200)).await.unwrap();

    assert_eq!(outbox.forget_published(partition, T0 + 100, 100, 100).await.unwrap(), 0, "all are too young");
    assert_eq!(outbox.forget_published(partition, T0 + 101, 100, 100).await.unwrap(), 1, "one is old enough");
    assert_eq!(outbox.forget_published(partition, 0, 2, 2).await.unwrap(), 2, "at most so many at once");
    assert_eq!(outbox.forget_published(partition, 0, 2, 100).await.unwrap(), 1, "down to so many");
    assert_eq!(outbox.backlog(partition).await.unwrap().published, 2);
}

pub async fn looks_at_several_partitions_leave_out_what_is_known(store: Store, outbox: Rows) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    // More than any statement takes at once, in partitions of their own.
    let is_in = |key: &str, part: u16| partition_of(format!("b/{key}").as_bytes()) == part;
    let keys: Vec<String> =
        (0..PARTITIONS).map(|part| (0..).map(|n| format!("{n}")).find(|key| is_in(key, part)).unwrap()).collect();
    for seed in 0..100 {
        let commits = keys.iter().map(|key| store.commit_object(told(object(id, key, seed))));
        futures::future::try_join_all(commits).await.unwrap();
    }
    assert_eq!(outbox.look(&[]).await.unwrap(), Vec::<Vec<OutboxRow>>::new());
    let all = rows(&outbox).await;
    let in_partition = |part: u16| {
        let rows = all.iter().filter(|row| partition_of(row.message.order_key.as_bytes()) == part);
        rows.map(|row| row.message.id.sequence).collect::<Vec<_>>()
    };
    for known in [0, 1, 17, 90] {
        // Backwards, and each with another number of rows to know and to read.
        let look = |partition: u16| {
            let mut except = in_partition(partition);
            except.truncate(known + usize::from(partition % 3));
            except.reverse();
            Look { partition, limit: 3 + u32::from(partition), except }
        };
        let looks: Vec<Look> = (0..PARTITIONS).rev().map(look).collect();
        let found = outbox.look(&looks).await.unwrap();
        assert_eq!(found.len(), looks.len());
        for (look, found) in looks.iter().zip(found) {
            let found: Vec<u64> = found.iter().map(|row| row.message.id.sequence).collect();
            let expected = in_partition(look.partition).into_iter().skip(look.except.len());
            assert_eq!(found, expected.take(look.limit as usize).collect::<Vec<_>>(), "{look:?}");
        }
    }
    // As many as the relay ever knows, in all partitions at once, of which most are long gone.
    let except: Vec<u64> = (1..2_048).map(|n| n << 40).chain(in_partition(3).into_iter().take(1)).collect();
    let looks: Vec<Look> =
        (0..PARTITIONS).map(|partition| Look { partition, limit: 1, except: except.clone() }).collect();
    let found = outbox.look(&looks).await.unwrap();
    let found: Vec<u64> = found.iter().map(|rows| rows[0].message.id.sequence).collect();
    let expected = (0..PARTITIONS).map(|part| in_partition(part)[usize::from(part == 3)]);
    assert_eq!(found, expected.collect::<Vec<_>>());
    // All of it goes at once.
    let all: Vec<(u16, u64)> = (0..PARTITIONS).flat_map(|part| of(part, &in_partition(part))).collect();
    outbox.finish(&all, Some(T0 + 1)).await.unwrap();
    assert!(rows(&outbox).await.is_empty());
    assert_eq!(outbox.backlog(7).await.unwrap().published, 100);
}

pub async fn backlog_counts_what_waits(store: Store, outbox: Rows) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    for now_ms in [T0 + 5, T0 + 9] {
        store.commit_object(told(NewObject { now_ms, ..object(id, "k", 1) })).await.unwrap();
    }
    let partition = partition_of(b"b/k");
    let other = (partition + 1) % PARTITIONS;
    let backlog = outbox.backlog(partition).await.unwrap();
    assert_eq!((backlog.rows, backlog.oldest_ms, backlog.published), (2, Some(T0 + 5), 0));
    assert_eq!(outbox.waiting(partition).await.unwrap(), backlog);
    assert_eq!(outbox.backlog(other).await.unwrap(), super::OutboxBacklog::default());
}
