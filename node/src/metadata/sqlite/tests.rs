//! The conformance suite on SQLite, and what only SQLite can get wrong.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::FutureExt as _;
use holdfast_actors::ports::metadata::{
    AgePosition, AgedKind, CannedAcl, Content, ContentPlace, ContentSource, ETag, ListAfter, ListQuery,
    ListVersionsQuery, MetadataDirect as _, MetadataUpkeep as _, NewBucket, ObjectAttributes, ReplicaEvidence, User,
    Versioning, WritePrecondition,
};
use holdfast_actors::ports::{AccessLog, Journal, MetadataStore, Outbox, TierLedger};
use holdfast_protocol::{ContentId, Manifest, VersionId};
use sqlx::Row as _;

use super::error::refused;
use super::*;
use crate::metadata::sql::store::boxed;
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

mod crash;
mod measure;

fn content(id: ContentId) -> Content {
    Content {
        id,
        manifest: Manifest::single(id, 4096),
        etag: ETag { md5: [1; 16], parts: None },
        checksum: None,
        parts: Vec::new(),
        place: ContentPlace::Cluster,
    }
}

fn object(bucket: BucketId, key: &str) -> NewObject {
    NewObject {
        bucket,
        key: key.into(),
        version: VersionId::generate(1),
        now_ms: 1,
        owner: "alice".into(),
        content: ContentSource::New(content(ContentId::generate(1))),
        attributes: ObjectAttributes::default(),
        tags: Vec::new(),
        acl: CannedAcl::Private,
        precondition: WritePrecondition::default(),
        event: None,
        evidence: ReplicaEvidence::default(),
        class: None,
    }
}

async fn bucket(store: &SqliteMetadataStore) -> BucketId {
    let alice = User { name: "alice".into(), admin: false, enabled: true, created_ms: 1 };
    store.create_user(alice).await.unwrap();
    let new = NewBucket { name: "b".into(), owner: "alice".into(), acl: CannedAcl::Private, now_ms: 1 };
    store.create_bucket(new).await.unwrap().id
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_both_versions_named() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    bucket(&store).await;
    store.close().await;
    let path = directory.path().join("metadata.db");
    let mut conn = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (77, 'x', 1, x'00', 1)",
    )
    .execute(&mut conn)
    .await
    .unwrap();
    let error = SqliteMetadataStore::open(&path, SqliteOptions::default()).await.map(|_| ()).unwrap_err();
    let OpenError::NewerSchema { found: 77, known } = error else { panic!("{error}") };
    let text = error.to_string();
    assert!(known < 77 && text.contains("77") && text.contains(&format!("version {known},")), "{text}");
}

#[tokio::test]
async fn the_log_is_flushed_on_every_commit() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let settings = write(&store, |tx| {
        boxed(async move {
            let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(tx.conn()).await.unwrap();
            let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(tx.conn()).await.unwrap();
            Ok((mode, synchronous))
        })
    })
    .await
    .unwrap();
    assert_eq!(settings, ("wal".to_owned(), 2));
}

/// With `fsync` each commit waits for the file system's journal too, which more than halves the rate of small writes.
#[test]
fn sqlite_is_built_to_flush_with_fdatasync() {
    let flags = option_env!("LIBSQLITE3_FLAGS").unwrap_or_default();
    assert!(flags.contains("-DHAVE_FDATASYNC"), "not built with .cargo/config.toml of the repository: {flags:?}");
}

#[tokio::test]
async fn a_reopened_store_has_everything_and_counts_on() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    let before = store.commit_object(object(id, "k")).await.unwrap().object;
    store.close().await;
    let store = open(directory.path()).await;
    assert_eq!(store.object(id, "k", None).await.unwrap(), before);
    let after = store.commit_object(object(id, "k")).await.unwrap().object;
    assert!(after.sequence > before.sequence);
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
                let deletion = |version: &VersionId| DeleteRequest {
                    key: "k".into(),
                    version: Some(*version),
                    marker_version: VersionId::generate(1),
                    owner: "alice".into(),
                    precondition: WritePrecondition::default(),
                    only_if: None,
                    event: None,
                };
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
        store.set_versioning("b", Versioning::Enabled).await.unwrap();
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

/// The writer takes what waits together into one transaction: 64 commits in flight take far fewer flushes.
#[tokio::test]
async fn commits_that_wait_together_share_a_flush() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(open(directory.path()).await);
    let id = bucket(&store).await;
    // While this verb runs the others pile up.
    let (go, gate) = oneshot::channel::<()>();
    let holding = write(&store, |_| boxed(async move { gate.await.map_err(|_| closed()) }));
    let commits = (0..200).map(|i| store.commit_object(object(id, &format!("k{i}"))));
    let piled = futures::future::join_all(commits);
    let before = log_pages(&directory.path().join("metadata.db-wal"));
    let ((), results) = futures::join!(
        async {
            // Both futures below are queued when first polled; then the gate opens.
            tokio::task::yield_now().await;
            go.send(()).unwrap();
        },
        async { futures::join!(holding, piled).1 }
    );
    assert!(results.iter().all(Result::is_ok));
    let frames = log_pages(&directory.path().join("metadata.db-wal")) - before;
    // A commit of its own for each would write three pages or more each.
    assert!(frames < 200, "{frames} pages logged for 200 commits");
}

/// Pages in the log: each commit writes each page that it changed once.
fn log_pages(log: &Path) -> u64 {
    std::fs::metadata(log).unwrap().len() / 4120
}

#[tokio::test]
async fn a_full_queue_answers_busy_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    let (go, gate) = oneshot::channel::<()>();
    let mut holding = Box::pin(write(&store, |_| boxed(async move { gate.await.map_err(|_| closed()) })));
    assert!(futures::poll!(&mut holding).is_pending());
    let mut waiting = Vec::new();
    let mut refused = 0;
    // The queue, and what the writer may have taken from it.
    for i in 0..QUEUE_JOBS_MAX + 300 {
        let mut commit = store.commit_object(object(id, &format!("k{i}")));
        match futures::poll!(&mut commit) {
            std::task::Poll::Pending => waiting.push(commit),
            std::task::Poll::Ready(Err(MetadataError::Busy)) => refused += 1,
            std::task::Poll::Ready(other) => panic!("{other:?}"),
        }
    }
    // The verb that holds the writer has a place too.
    assert!(refused > 0 && waiting.len() >= QUEUE_JOBS_MAX - 1, "{refused} refused");
    go.send(()).unwrap();
    holding.await.unwrap();
    for commit in waiting {
        commit.await.unwrap();
    }
}

/// A content id that exists already is refused; the rest of the batch goes through.
#[tokio::test]
async fn one_failing_commit_does_not_undo_its_neighbours() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    let taken = ContentId::generate(9);
    let with = |key: &str| NewObject { content: ContentSource::New(content(taken)), ..object(id, key) };
    store.commit_object(with("first")).await.unwrap();
    let (go, gate) = oneshot::channel::<()>();
    let mut holding = Box::pin(write(&store, |_| boxed(async move { gate.await.map_err(|_| closed()) })));
    assert!(futures::poll!(&mut holding).is_pending());
    let commits = [object(id, "a"), with("collides"), object(id, "b")].map(|object| store.commit_object(object));
    let mut commits = Box::pin(futures::future::join_all(commits));
    assert!(futures::poll!(&mut commits).is_pending());
    go.send(()).unwrap();
    holding.await.unwrap();
    let results = commits.await;
    assert!(results[0].is_ok() && results[2].is_ok());
    assert!(matches!(results[1], Err(MetadataError::Unavailable(_))), "{:?}", results[1]);
    assert!(store.object(id, "a", None).await.is_ok() && store.object(id, "b", None).await.is_ok());
    assert!(matches!(store.object(id, "collides", None).await, Err(MetadataError::NoSuchKey)));
}

#[tokio::test]
async fn a_verb_that_panics_does_not_end_the_writer() {
    fn falls() -> MetadataResult<()> {
        panic!("a bug")
    }
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let fell = write(&store, |_| boxed(async { falls() })).await;
    assert!(matches!(fell, Err(MetadataError::Unknown(_))), "{fell:?}");
    bucket(&store).await;
}

#[tokio::test]
async fn a_dropped_caller_loses_the_answer_not_the_write() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    let mut abandoned = store.commit_object(object(id, "k"));
    assert!(futures::poll!(&mut abandoned).is_pending());
    drop(abandoned);
    // Verbs are done in order, so that this one's answer comes after.
    store.commit_object(object(id, "other")).await.unwrap();
    assert!(store.object(id, "k", None).await.is_ok());
}

/// A database that may not grow: writes are refused, nothing is lost, reads go on, and room makes writes work again.
#[tokio::test]
async fn a_full_database_refuses_writes_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    store.commit_object(object(id, "kept")).await.unwrap();
    let limit = |pages: &'static str| {
        write(&store, move |tx| {
            boxed(async move { sqlx::query(pages).execute(tx.conn()).await.map(drop).map_err(refused) })
        })
    };
    limit("PRAGMA max_page_count = 1").await.unwrap();
    let mut failed = 0;
    for i in 0..2000 {
        match store.commit_object(object(id, &format!("{i:01000}"))).await {
            Ok(_) => {}
            Err(MetadataError::Unavailable(_) | MetadataError::Unknown(_)) => {
                failed += 1;
                break;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(failed, 1, "the limit was reached");
    assert!(store.object(id, "kept", None).await.is_ok());
    limit("PRAGMA max_page_count = 1000000").await.unwrap();
    store.commit_object(object(id, "again")).await.unwrap();
    assert!(store.object(id, "again", None).await.is_ok());
}

/// No hot statement scans a table or sorts.
#[tokio::test]
async fn hot_statements_go_by_index() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let statements = [
        shapes::Shape::LoadKeys.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::Archive.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::RemoveObjects.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::Dereference.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::QueueUnreferenced.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::Known.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::Condemn.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::LoadEpochs.text(shapes::Dialect::Sqlite, 3),
        "SELECT id, chunk, queued_ms FROM repairs WHERE node = ? AND id > ? ORDER BY id LIMIT ?".to_owned(),
        shapes::Shape::ClaimPieces.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::ForgetReads.text(shapes::Dialect::Sqlite, 3),
        "SELECT a.key FROM accesses a INDEXED BY accesses_by_day LEFT JOIN objects o ON o.bucket = a.bucket AND o.key = a.key \
         WHERE a.bucket = ? AND a.day_ms >= ? AND a.day_ms <= ? AND (a.day_ms > ? OR a.key > ?) \
         ORDER BY a.day_ms, a.key LIMIT ?"
            .to_owned(),
        "SELECT bucket FROM accesses WHERE bucket > ? ORDER BY bucket LIMIT 1".to_owned(),
        shapes::Shape::NotePieces.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::RemovePieces.text(shapes::Dialect::Sqlite, 3),
        "SELECT id FROM moves INDEXED BY moves_by_due WHERE lane = ? AND due_ms <= ? ORDER BY due_ms, id LIMIT ?".to_owned(),
        "SELECT id FROM moves WHERE bucket = ? AND key = ? AND version = ?".to_owned(),
        "SELECT id FROM tier_pieces INDEXED BY tier_pieces_by_due WHERE tier = ? AND due_ms <= ? ORDER BY due_ms, id LIMIT ?"
            .to_owned(),
        "SELECT name FROM tier_pieces WHERE attempt = ?".to_owned(),
        "SELECT cold FROM contents INDEXED BY contents_by_tier WHERE tier = ? AND id > ? ORDER BY id LIMIT ?".to_owned(),
        listing::LIST_OBJECTS.to_owned(),
        "SELECT sequence FROM history WHERE bucket = ? AND key = ? AND version = ?".to_owned(),
        "SELECT sequence FROM history WHERE bucket = ? AND key >= ? AND key < ? ORDER BY key, sequence DESC LIMIT ?"
            .to_owned(),
    ];
    for statement in statements {
        let parameters = statement.matches('?').count();
        let mut query = sqlx::query(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}")));
        for _ in 0..parameters {
            query = query.bind(1_i64);
        }
        for row in query.fetch_all(&store.backend.readers.0).await.unwrap() {
            let step: String = row.get(3);
            // The rows that the statement itself brings may be scanned.
            let brought = matches!(&*step, "SCAN k" | "SCAN t" | "SCAN w")
                || step.contains("CONSTANT ROW")
                || step.contains("VALUES");
            let scans_rows = step.starts_with("SCAN") && !brought;
            assert!(!scans_rows && !step.contains("TEMP B-TREE"), "{statement}: {step}");
        }
    }
}

/// Rows fetched for a page follow what the page returns, not what lies under its common prefixes.
#[tokio::test]
async fn listing_with_a_delimiter_seeks_past_prefixes() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    measure::fill(&store, id, 5, 2_000).await;
    let recorder = metrics_util::debugging::DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let query = ListQuery { delimiter: Some("/".into()), after: ListAfter::Start, limit: 1000, ..Default::default() };
    let page = {
        // Everything below runs on this thread.
        let _guard = metrics::set_default_local_recorder(&recorder);
        store.list_objects(id, query).await.unwrap()
    };
    assert_eq!(page.common_prefixes.len(), 5);
    let fetches = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .find(|(key, ..)| key.key().name() == "holdfast_metadata_list_fetches_total")
        .map(|(.., value)| value);
    // One for each prefix, and one that finds the end.
    assert_eq!(fetches, Some(metrics_util::debugging::DebugValue::Counter(6)));
}

/// After a COMMIT that failed nobody knows what is on the disk until the log has been read anew. Above all the reaper must not
/// take the contents of that commit for orphans: the next start may find it done.
#[tokio::test]
async fn a_commit_of_unknown_outcome_stops_writes_and_the_search_for_orphans_until_the_next_start() {
    use std::sync::atomic::{AtomicBool, Ordering};

    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    let before = store.commit_object(object(id, "before")).await.unwrap().object.content.clone().unwrap().id;
    let failing = Arc::new(AtomicBool::new(false));
    let hook = failing.clone();
    write(&store, move |tx| {
        boxed(async move {
            let mut handle = tx.conn().lock_handle().await.unwrap();
            handle.set_commit_hook(move || !hook.load(Ordering::SeqCst));
            Ok(())
        })
    })
    .await
    .unwrap();
    failing.store(true, Ordering::SeqCst);
    let unknown = object(id, "unknown");
    let ContentSource::New(content) = unknown.content.clone() else { unreachable!("object() makes a new content") };
    assert!(matches!(store.commit_object(unknown).await, Err(MetadataError::Unknown(_))));
    failing.store(false, Ordering::SeqCst);
    assert!(matches!(store.commit_object(object(id, "after")).await, Err(MetadataError::Unavailable(_))));
    assert!(matches!(store.due_reclaims(u64::MAX >> 1, 10, None).await, Err(MetadataError::Unavailable(_))));
    assert!(matches!(store.known_contents(&[content.id]).await, Err(MetadataError::Unavailable(_))));
    assert_eq!(store.known_contents(&[before]).await.unwrap(), [before]);
    assert!(store.object(id, "before", None).await.is_ok(), "reads go on");
    store.close().await;
    let store = open(directory.path()).await;
    store.commit_object(object(id, "after")).await.unwrap();
    assert_eq!(store.known_contents(&[before, content.id]).await.unwrap(), [before]);
}

/// A database of the time before versions were kept in order of age.
#[tokio::test]
async fn what_an_older_program_wrote_is_put_in_order_of_age() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    store.set_versioning("b", holdfast_actors::ports::metadata::Versioning::Enabled).await.unwrap();
    let put = async |key: &str, now_ms| {
        store.commit_object(NewObject { now_ms, ..object(id, key) }).await.unwrap();
    };
    let mark = async |key: &str, now_ms| {
        let gone = DeleteRequest {
            key: key.into(),
            version: None,
            marker_version: VersionId::generate(2),
            owner: "alice".into(),
            precondition: WritePrecondition::default(),
            only_if: None,
            event: None,
        };
        store.delete_objects(id, vec![gone], now_ms).await.unwrap().remove(0).unwrap();
    };
    put("k", 10).await;
    put("k", 20).await;
    mark("k", 30).await;
    mark("marker", 40).await;
    put("over", 50).await;
    put("over", 60).await;
    store.close().await;
    let path = directory.path().join("metadata.db");
    let mut conn = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    for sql in [
        "DROP INDEX history_by_age",
        "ALTER TABLE history DROP COLUMN latest",
        "ALTER TABLE history DROP COLUMN since_ms",
        "DROP INDEX objects_by_age",
        "DROP INDEX uploads_by_bucket_age",
        "DROP TABLE lifecycle_cursors",
        "DROP TABLE lifecycle_rechecks",
        "DELETE FROM _sqlx_migrations WHERE version = 6",
    ] {
        sqlx::query(sql).execute(&mut conn).await.unwrap();
    }
    sqlx::Connection::close(conn).await.unwrap();
    let store = open(directory.path()).await;
    let aged = async |kind| {
        let found = store.aged_versions(id, kind, &AgePosition::default(), 99, 10).await.unwrap();
        found.into_iter().map(|v| (v.key, v.last_modified_ms, v.since_ms)).collect::<Vec<_>>()
    };
    let row = |key: &str, modified_ms, since_ms| (key.to_owned(), modified_ms, since_ms);
    assert_eq!(aged(AgedKind::Noncurrent).await, [row("k", 10, 20), row("k", 20, 30), row("over", 50, 60)]);
    assert_eq!(aged(AgedKind::Markers).await, [row("k", 30, 30), row("marker", 40, 40)]);
    assert_eq!(aged(AgedKind::Current).await, [row("over", 60, 60)]);
}

/// What is due is found by the index alone, however much is stored.
#[tokio::test]
async fn pages_in_order_of_age_are_scans_of_an_index() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    measure::fill(&store, id, 1, 10).await;
    let bucket = rows_signed(id);
    let plans = write(&store, move |tx| {
        boxed(async move {
            let mut plans = Vec::new();
            for sql in [
                "SELECT o.key FROM objects o INDEXED BY objects_by_age WHERE o.bucket = ?1 AND o.modified_ms >= 1 \
                 AND o.modified_ms <= 9 AND (o.modified_ms > 1 OR o.key > x'') ORDER BY o.modified_ms, o.key LIMIT 5",
                "SELECT o.key FROM history o INDEXED BY history_by_age WHERE o.bucket = ?1 AND o.latest = 0 \
                 AND o.since_ms >= 1 AND o.since_ms <= 9 AND (o.since_ms > 1 OR o.key > x'' OR (o.key = x'' AND \
                 o.sequence > 1)) ORDER BY o.since_ms, o.key, o.sequence LIMIT 5",
                "UPDATE history SET latest = 0, since_ms = 1 WHERE latest + 0 = 1 AND ((bucket, key) IN (VALUES (?1, x'61')))",
            ] {
                let plan = sqlx::query(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}")));
                let steps = plan.bind(bucket).fetch_all(tx.conn()).await.map_err(refused)?;
                let text: Vec<String> = steps.iter().map(|row| row.get::<String, _>("detail")).collect();
                plans.push(text.join("; "));
            }
            Ok(plans)
        })
    });
    let plans = plans.await.unwrap();
    assert!(plans[0].contains("objects_by_age (bucket=? AND modified_ms>? AND modified_ms<?)"), "{}", plans[0]);
    assert!(plans[1].contains("history_by_age (bucket=? AND latest=? AND since_ms>? AND since_ms<?)"), "{}", plans[1]);
    assert!(plans[2].contains("(bucket=? AND key=?)"), "{}", plans[2]);
    for plan in &plans[..2] {
        assert!(!plan.contains("TEMP B-TREE"), "{plan}");
    }
}

fn rows_signed(id: BucketId) -> i64 {
    i64::try_from(id.0).unwrap()
}
