//! The conformance suite on SQLite, and what only SQLite can get wrong.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::FutureExt as _;
use holdfast_actors::ports::metadata::samples::{self, deletion, object};
use holdfast_actors::ports::metadata::{
    AgePosition, AgedKind, CannedAcl, ContentSource, ListAfter, ListQuery, ListUploadsQuery, ListVersionsQuery,
    MetadataDirect as _, MetadataUpkeep as _, NewObject, NewUpload, ObjectAttributes, Versioning,
};
use holdfast_actors::ports::outbox::{Look, OutboxRow};
use holdfast_actors::ports::{AccessLog, Journal, MetadataStore, Outbox, TierLedger};
use holdfast_protocol::{ContentId, UploadId, VersionId};
use sqlx::Row as _;

use super::error::refused;
use super::*;
use crate::metadata::sql::{Dialect, Reader, Value, listing, shapes};

async fn open(directory: &Path) -> SqliteMetadataStore {
    SqliteMetadataStore::open(&directory.join("metadata.db"), SqliteOptions::default()).await.unwrap()
}

/// Runs something on the writer's connection, between the verbs.
async fn write<T, F>(store: &SqliteMetadataStore, run: F) -> MetadataResult<T>
where
    T: Send + 'static,
    F: for<'a> FnOnce(&'a mut Tx) -> BoxFuture<'a, MetadataResult<T>> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    store.backend.submit(writer::verb(run, reply), answer).await
}

async fn empty_store() -> (Arc<dyn MetadataStore>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (Arc::new(open(directory.path()).await), directory)
}

async fn empty_outbox() -> (Arc<dyn MetadataStore>, Arc<dyn Outbox>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(open(directory.path()).await);
    (store.clone(), store, directory)
}

mod conformance {
    holdfast_actors::metadata_conformance!(super::empty_store);
    holdfast_actors::outbox_conformance!(super::empty_outbox);
}

async fn empty_accesses() -> (Arc<dyn MetadataStore>, Arc<dyn AccessLog>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(open(directory.path()).await);
    (store.clone(), store, directory)
}

mod accesses {
    holdfast_actors::accesses_conformance!(super::empty_accesses);
}

async fn empty_journal() -> (Arc<dyn Journal>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (Arc::new(open(directory.path()).await), directory)
}

mod journal {
    holdfast_actors::journal_conformance!(super::empty_journal);
}

async fn empty_ledger() -> (Arc<dyn MetadataStore>, Arc<dyn TierLedger>, Arc<dyn Outbox>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(open(directory.path()).await);
    (store.clone(), store.clone(), store, directory)
}

mod tiering {
    holdfast_actors::tiering_conformance!(super::empty_ledger);
}

mod batches;
mod crash;
mod measure;
mod opening;
mod plans;

async fn bucket(store: &SqliteMetadataStore) -> BucketId {
    samples::bucket(store, "b").await.id
}

#[tokio::test]
async fn pages_end_early_where_headers_are_long() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let bucket = bucket(&store).await;
    let long = || ObjectAttributes { content_disposition: Some("x".repeat(300_000)), ..ObjectAttributes::default() };
    // Of each kind ten megabytes, more than a page may weigh.
    for number in 0..35 {
        let key = format!("{number:02}");
        store.commit_object(NewObject { attributes: long(), ..object(bucket, &key) }).await.unwrap();
        let upload = NewUpload {
            id: UploadId::generate(),
            bucket,
            key,
            owner: samples::OWNER.into(),
            now_ms: 1,
            attributes: long(),
            tags: vec![],
            acl: CannedAcl::Private,
            class: None,
            checksum: None,
        };
        store.create_upload(upload).await.unwrap();
    }
    let (mut versions, mut uploads) = (Vec::new(), Vec::new());
    let mut query = ListVersionsQuery { limit: 1_000, ..ListVersionsQuery::default() };
    loop {
        let page = store.list_versions(bucket, query.clone()).await.unwrap();
        versions.push(page.entries.len());
        let Some(next) = page.next else { break };
        (query.after, query.after_version) = next;
    }
    let mut query = ListUploadsQuery { limit: 1_000, ..ListUploadsQuery::default() };
    loop {
        let page = store.list_uploads(bucket, query.clone()).await.unwrap();
        uploads.push(page.entries.len());
        let Some(next) = page.next else { break };
        (query.after, query.after_upload) = next;
    }
    for pages in [versions, uploads] {
        assert_eq!((pages.len(), pages.iter().sum::<usize>()), (2, 35), "{pages:?}");
    }
}

/// Of keys that wait there may be more rows than a look reads.
#[tokio::test]
async fn a_key_that_waits_for_a_row_that_cannot_be_read_holds_up_no_other() {
    const INSERT: &str = "INSERT INTO outbox (part, id, nonce, topic, queued_ms, order_key, tag, words, body) \
                          VALUES (3, ?, 1, ?, 1, ?, '', '', x'00')";
    const UNKNOWN: i64 = 99;
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let topics = [UNKNOWN, 0, 0, 0, UNKNOWN, 0, 0, 0, 0, 0];
    for ((id, topic), key) in (1_i64..).zip(topics).zip(["a", "a", "a", "b", "c", "c", "c", "d", "b", "a"]) {
        let insertion = write(&store, move |tx| {
            boxed(async move {
                let query = sqlx::query(INSERT).bind(id).bind(topic).bind(key.as_bytes());
                query.execute(tx.conn()).await.map(drop).map_err(refused)
            })
        });
        insertion.await.unwrap();
    }
    let look = |except: Vec<u64>| [Look { partition: 3, limit: 3, except }];
    let ids = |found: Vec<Vec<OutboxRow>>| -> Vec<u64> {
        found.into_iter().flatten().map(|row| row.message.id.sequence).collect()
    };
    assert_eq!(ids(store.look(&look(vec![])).await.unwrap()), [4, 8, 9]);
    assert_eq!(ids(store.look(&look(vec![4, 8])).await.unwrap()), [9]);
    // It goes on where it stood, and what comes before a row that cannot be read does not wait for it.
    for (id, topic, expected) in [(1_i64, 0, [1_u64, 2, 3]), (3, UNKNOWN, [1, 2, 4])] {
        let change = write(&store, move |tx| {
            boxed(async move {
                let query = sqlx::query("UPDATE outbox SET topic = ? WHERE id = ?").bind(topic).bind(id);
                query.execute(tx.conn()).await.map(drop).map_err(refused)
            })
        });
        change.await.unwrap();
        assert_eq!(ids(store.look(&look(vec![])).await.unwrap()), expected, "{id}");
    }
}

/// Reads, and deletes versions of the key `k` before the second read.
struct Interrupted {
    store: Arc<SqliteMetadataStore>,
    bucket: BucketId,
    reads: AtomicU32,
    gone: Vec<VersionId>,
}

impl Reader for Interrupted {
    type Row = sqlx::sqlite::SqliteRow;
    const DIALECT: Dialect = Dialect::Sqlite;

    fn run_fetch(&self, sql: sqlx::SqlStr, values: Vec<Value>) -> BoxFuture<'_, MetadataResult<Vec<Self::Row>>> {
        async move {
            if self.reads.fetch_add(1, Ordering::SeqCst) == 1 {
                let deletion =
                    |version: &VersionId| DeleteRequest { version: Some(*version), ..samples::deletion("k") };
                let requests = self.gone.iter().map(deletion).collect();
                for deleted in self.store.delete_objects(self.bucket, requests, 1).await? {
                    deleted?;
                }
            }
            self.store.backend.reads().run_fetch(sql, values).await
        }
        .boxed()
    }
}

/// With a delimiter a listing reads four rows at first. All of them are deleted before it reads on, or one of them is.
#[tokio::test]
async fn a_version_that_becomes_the_latest_between_two_reads_is_listed_once() {
    for gone in [2..6, 2..3, 5..6, 0..0] {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(open(directory.path()).await);
        let id = bucket(&store).await;
        store.set_versioning("b", id, Versioning::Enabled).await.unwrap();
        let mut versions = Vec::new();
        for _ in 0..6 {
            versions.push(store.commit_object(object(id, "k")).await.unwrap().object.version);
        }
        let gone = versions[gone].iter().rev().copied().collect();
        let reads = Interrupted { store: Arc::clone(&store), bucket: id, reads: AtomicU32::new(0), gone };
        let query = ListVersionsQuery { delimiter: Some("/".into()), limit: 100, ..Default::default() };
        let page = listing::versions(&reads, id, query).await.unwrap();
        assert!(reads.reads.load(Ordering::SeqCst) > 1, "the key was read at once");
        versions.reverse();
        assert_eq!(page.entries.iter().map(|entry| entry.version).collect::<Vec<_>>(), versions);
        assert_eq!(page.entries.iter().filter(|entry| entry.is_latest).count(), 1);
    }
}

/// Pages in the log: each commit writes each page that it changed once.
fn log_pages(log: &Path) -> u64 {
    std::fs::metadata(log).unwrap().len() / 4120
}
