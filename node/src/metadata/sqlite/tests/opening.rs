//! Databases that are opened again, by the same program or another one.

use holdfast_protocol::{Epoch, ShardId};

use super::*;

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

/// With `fsync` each commit waits for the file system's journal, too.
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

/// A database of the time before versions were kept in order of age.
#[tokio::test]
async fn what_an_older_program_wrote_is_put_in_order_of_age() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    store.set_versioning("b", id, holdfast_actors::ports::metadata::Versioning::Enabled).await.unwrap();
    let put = async |key: &str, now_ms| {
        store.commit_object(NewObject { now_ms, ..object(id, key) }).await.unwrap();
    };
    let mark = async |key: &str, now_ms| {
        store.delete_objects(id, vec![deletion(key)], now_ms).await.unwrap().remove(0).unwrap();
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

/// Of another number they are another cluster's, or somebody has mistaken himself.
#[tokio::test]
async fn epochs_are_forgotten_of_as_many_shards_as_there_are_only() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let epochs = |epoch| [(ShardId(0), Epoch(epoch)), (ShardId(3), Epoch(epoch))];
    assert_eq!(store.forget_epochs(9).await.unwrap(), None, "nothing says otherwise");
    assert_eq!(store.raise_epochs(&epochs(7)).await.unwrap(), []);
    assert_eq!(store.forget_epochs(9).await.unwrap(), Some(4));
    assert_eq!(store.raise_epochs(&epochs(1)).await.unwrap(), epochs(7));
    assert_eq!(store.forget_epochs(4).await.unwrap(), None);
    assert_eq!(store.raise_epochs(&epochs(1)).await.unwrap(), []);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_takes_no_writes_any_more_says_so_and_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    bucket(&store).await;
    assert_eq!(store.writes_stopped(), None);
    store.backend.stopped.set("a commit failed".to_owned()).unwrap();
    assert_eq!(store.writes_stopped().as_deref(), Some("a commit failed"));
    let refused = store.set_user_enabled("alice", false).await.unwrap_err();
    assert!(matches!(refused, MetadataError::Unavailable(_)), "{refused:?}");
    assert!(store.bucket("b").await.is_ok());
    store.close().await;

    let store = open(directory.path()).await;
    assert_eq!(store.writes_stopped(), None, "it was opened anew");
    let writer = store.backend.writer.lock().await.take().unwrap();
    writer.abort();
    assert!(writer.await.is_err());
    assert!(store.writes_stopped().is_some(), "nobody writes");
    assert!(store.bucket("b").await.is_ok());
}
