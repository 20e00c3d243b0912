//! A database is opened: by several nodes at once, with another schema than is expected, and with a wrong password.

use futures::future::join_all;
use holdfast_actors::ports::MetadataStore;
use holdfast_actors::ports::metadata::{
    AgePosition, AgedKind, DeleteRequest, MetadataUpkeep as _, NewObject, Versioning, WritePrecondition,
};
use holdfast_actors::wait::until;
use holdfast_node::metadata::mysql::OpenError;
use holdfast_node::metadata::{MysqlMetadataStore, MysqlOptions};
use holdfast_protocol::VersionId;
use md5::{Digest as _, Md5};
use sqlx::Connection as _;

use super::mariadb::is_mariadb;
use super::{bucket, object, open, server};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_nodes_start_on_an_empty_database() {
    let server = server().await;
    let database = server.database().await;
    let stores = join_all((0..4).map(|_| MysqlMetadataStore::open(server.options(&database)))).await;
    let stores: Vec<_> = stores.into_iter().map(Result::unwrap).collect();
    let id = bucket(&stores[0]).await;
    for (i, store) in stores.iter().enumerate() {
        store.commit_object(object(id, &format!("k{i}"))).await.unwrap();
    }
}

/// What another node's migration takes is not known: a node that starts meanwhile asks for its turn again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_waits_for_the_migration_of_another_however_long() {
    let server = server().await;
    let database = server.database().await;
    let mut other = server.connect(&database).await;
    let name = format!("holdfast.{}", hex::encode(Md5::digest(&database)));
    let lock = sqlx::query_scalar("SELECT GET_LOCK(?, 0)").bind(name);
    let locked: i64 = lock.fetch_one(&mut other).await.unwrap();
    assert_eq!(locked, 1);
    let starting = MysqlMetadataStore::open(server.options(&database));
    // For how long each statement has waited that asks for the lock: less than before means that it is another one.
    let waits = if is_mariadb(&mut other).await {
        "SELECT CAST(time AS SIGNED) FROM information_schema.processlist \
         WHERE db = DATABASE() AND info LIKE 'SELECT GET_LOCK(%'"
    } else {
        "SELECT CAST(processlist_time AS SIGNED) FROM performance_schema.threads \
         WHERE processlist_db = DATABASE() AND processlist_info LIKE 'SELECT GET_LOCK(%'"
    };
    let seen = async move {
        let mut before = 0;
        let is_another = async || {
            let waited: Option<i64> = sqlx::query_scalar(waits).fetch_optional(&mut other).await.unwrap();
            waited.is_some_and(|waited| waited < std::mem::replace(&mut before, waited))
        };
        until("it waits, and asks again", is_another, |is_another| *is_another).await;
        other.close().await.unwrap();
    };
    let (store, ()) = futures::future::join(starting, seen).await;
    store.unwrap().close().await;
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_both_versions_named() {
    let server = server().await;
    let database = server.database().await;
    open(server.options(&database)).await.close().await;
    sqlx::raw_sql(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (77, 'x', 1, x'00', 1)",
    )
    .execute(&mut server.connect(&database).await)
    .await
    .unwrap();
    let error = MysqlMetadataStore::open(server.options(&database)).await.map(drop).unwrap_err();
    let OpenError::NewerSchema { found: 77, known } = error else { panic!("{error}") };
    let text = error.to_string();
    assert!(known < 77 && text.contains("77") && text.contains(&format!("version {known},")), "{text}");
}

#[tokio::test]
async fn a_wrong_password_is_named_and_not_told() {
    let server = server().await;
    let database = server.database().await;
    sqlx::raw_sql("DROP USER IF EXISTS guest@'127.0.0.1'; CREATE USER guest@'127.0.0.1' IDENTIFIED BY 'right'")
        .execute(&mut server.connect(&database).await)
        .await
        .unwrap();
    let options = server.options(&database);
    let mut url = url::Url::parse(&options.url).unwrap();
    url.set_username("guest").unwrap();
    let options = MysqlOptions { url: url.into(), password: Some("wrong-one".to_owned()), ..options };
    assert!(!format!("{options:?}").contains("wrong-one"));
    let error = MysqlMetadataStore::open(options.clone()).await.map(drop).unwrap_err();
    assert!(matches!(error, OpenError::Denied(_)), "{error:?}");
    assert!(error.to_string().contains("guest") && !format!("{error:?}{error}").contains("wrong-one"), "{error:?}");
    let in_the_url = MysqlOptions { url: options.url.replace("guest@", "guest:secret@"), ..options };
    let error = MysqlMetadataStore::open(in_the_url).await.map(drop).unwrap_err();
    assert!(matches!(error, OpenError::Url(_)) && !error.to_string().contains("secret"), "{error}");
}

/// A node that died in the middle of the first migration leaves some of its tables, and a row that says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migration_that_was_cut_off_is_run_again_and_spares_what_is_not_its_own() {
    let server = server().await;
    let database = server.database().await;
    open(server.options(&database)).await.close().await;
    let mut conn = server.connect(&database).await;
    let tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() ORDER BY table_name";
    let whole: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut conn).await.unwrap();
    let half = [
        "UPDATE _sqlx_migrations SET success = FALSE WHERE version = 1",
        "DELETE FROM _sqlx_migrations WHERE version > 1",
        "DELETE FROM lock_slots WHERE slot > 100",
    ];
    for sql in half {
        sqlx::raw_sql(sql).execute(&mut conn).await.unwrap();
    }
    let made = ["_sqlx_migrations", "commits", "lock_slots", "buckets", "bucket_configs", "contents"];
    for table in whole.iter().filter(|table| !made.contains(&table.as_str())) {
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("DROP TABLE `{table}`"))).execute(&mut conn).await.unwrap();
    }
    // Several nodes of the cluster start again at once.
    let stores = join_all((0..3).map(|_| open(server.options(&database)))).await;
    let found: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut conn).await.unwrap();
    assert_eq!(found, whole);
    let slots: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM lock_slots").fetch_one(&mut conn).await.unwrap();
    assert_eq!(slots, 32_769);
    let id = bucket(&*stores[0]).await;
    stores[1].commit_object(object(id, "key")).await.unwrap();
    for store in stores {
        store.close().await;
    }

    // A table of the same name with rows in it: whoever they belong to, they stay.
    sqlx::raw_sql(half[0]).execute(&mut conn).await.unwrap();
    let refused = MysqlMetadataStore::open(server.options(&database)).await.err().unwrap();
    assert!(matches!(&refused, OpenError::HalfMigrated { version: 1, .. }), "{refused}");
    assert!(refused.to_string().contains("DELETE FROM _sqlx_migrations"), "{refused}");
    let kept: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM objects").fetch_one(&mut conn).await.unwrap();
    assert_eq!(kept, 1);
}

/// What a migration adds to tables that were there is taken away again and made anew, and filled from what they hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migration_that_adds_to_tables_is_run_again_wherever_it_was_cut_off() {
    let server = server().await;
    let database = server.database().await;
    let store = open(server.options(&database)).await;
    let id = bucket(&*store).await;
    store.set_versioning("b", id, Versioning::Enabled).await.unwrap();
    for now_ms in [10, 20] {
        store.commit_object(NewObject { now_ms, ..object(id, "k") }).await.unwrap();
    }
    for (key, now_ms) in [("k", 30), ("marker", 40)] {
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
    }
    store.commit_object(NewObject { now_ms: 50, ..object(id, "current") }).await.unwrap();
    store.close().await;
    let mut conn = server.connect(&database).await;
    let undone: [&[&str]; 4] = [
        &[],
        &["DROP TABLE lifecycle_rechecks"],
        &["DROP TABLE lifecycle_rechecks, lifecycle_cursors", "ALTER TABLE history DROP KEY history_by_age"],
        &[
            "DROP TABLE lifecycle_rechecks, lifecycle_cursors",
            "ALTER TABLE history DROP KEY history_by_age",
            "ALTER TABLE history DROP COLUMN since_ms",
            "ALTER TABLE history DROP COLUMN latest",
            "ALTER TABLE uploads DROP KEY uploads_by_bucket_age",
        ],
    ];
    for undo in undone {
        for sql in undo {
            sqlx::raw_sql(sqlx::AssertSqlSafe(*sql)).execute(&mut conn).await.unwrap();
        }
        sqlx::raw_sql("UPDATE _sqlx_migrations SET success = FALSE WHERE version = 5")
            .execute(&mut conn)
            .await
            .unwrap();
        let store = open(server.options(&database)).await;
        let aged = async |kind| {
            let found = store.aged_versions(id, kind, &AgePosition::default(), 99, 10).await.unwrap();
            found.into_iter().map(|v| (v.key, v.last_modified_ms, v.since_ms)).collect::<Vec<_>>()
        };
        let row = |key: &str, modified_ms, since_ms| (key.to_owned(), modified_ms, since_ms);
        assert_eq!(aged(AgedKind::Noncurrent).await, [row("k", 10, 20), row("k", 20, 30)], "{undo:?}");
        assert_eq!(aged(AgedKind::Markers).await, [row("k", 30, 30), row("marker", 40, 40)], "{undo:?}");
        assert_eq!(aged(AgedKind::Current).await, [row("current", 50, 50)], "{undo:?}");
        store.close().await;
    }
}
