//! The MySQL adapter on a real MariaDB: the port's suite, several nodes, and a server that dies. `HOLDFAST_TEST_MYSQL` names
//! another server for what does not harm it.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/mariadb.rs"]
mod mariadb;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use futures::future::join_all;
use holdfast_actors::ports::metadata::{
    AgePosition, AgedKind, BucketId, CannedAcl, Content, ContentPlace, ContentSource, DeleteRequest, ETag, NewBucket,
    NewObject, ObjectAttributes, ReplicaEvidence, Versioning, WritePrecondition,
};
use holdfast_actors::ports::{AccessLog, Journal, MetadataError, MetadataStore, Outbox, TierLedger};
use holdfast_node::metadata::mysql::OpenError;
use holdfast_node::metadata::{MysqlMetadataStore, MysqlOptions, SqliteMetadataStore, SqliteOptions};
use holdfast_protocol::{ContentId, Manifest, VersionId};
use mariadb::Server;
use sqlx::Connection as _;

/// One server for all tests that do not harm it; each has a database of its own.
static SERVER: LazyLock<Server> = LazyLock::new(Server::shared);

async fn server() -> &'static Server {
    tokio::task::spawn_blocking(|| &*SERVER).await.unwrap()
}

async fn open(options: MysqlOptions) -> Arc<MysqlMetadataStore> {
    Arc::new(MysqlMetadataStore::open(options).await.unwrap())
}

async fn empty_store() -> (Arc<dyn MetadataStore>, ()) {
    let server = server().await;
    (open(server.options(&server.database().await)).await, ())
}

async fn empty_outbox() -> (Arc<dyn MetadataStore>, Arc<dyn Outbox>, ()) {
    let server = server().await;
    let store = open(server.options(&server.database().await)).await;
    (store.clone(), store, ())
}

mod conformance {
    holdfast_actors::metadata_conformance!(super::empty_store);
    holdfast_actors::outbox_conformance!(super::empty_outbox);
}

async fn empty_accesses() -> (Arc<dyn MetadataStore>, Arc<dyn AccessLog>, ()) {
    let server = server().await;
    let store = open(server.options(&server.database().await)).await;
    (store.clone(), store, ())
}

mod accesses {
    holdfast_actors::accesses_conformance!(super::empty_accesses);
}

async fn empty_journal() -> (Arc<dyn Journal>, ()) {
    let server = server().await;
    (open(server.options(&server.database().await)).await, ())
}

mod journal {
    holdfast_actors::journal_conformance!(super::empty_journal);
}

async fn empty_ledger() -> (Arc<dyn MetadataStore>, Arc<dyn TierLedger>, Arc<dyn Outbox>, ()) {
    let server = server().await;
    let store = open(server.options(&server.database().await)).await;
    (store.clone(), store.clone(), store, ())
}

mod tiering {
    holdfast_actors::tiering_conformance!(super::empty_ledger);
}

fn object(bucket: BucketId, key: &str) -> NewObject {
    let id = ContentId::generate(1);
    let content = Content {
        id,
        manifest: Manifest::single(id, 4096),
        etag: ETag { md5: [1; 16], parts: None },
        checksum: None,
        parts: Vec::new(),
        place: ContentPlace::Cluster,
    };
    NewObject {
        bucket,
        key: key.into(),
        version: VersionId::generate(1),
        now_ms: 1,
        owner: "alice".into(),
        content: ContentSource::New(content),
        attributes: ObjectAttributes::default(),
        tags: Vec::new(),
        acl: CannedAcl::Private,
        precondition: WritePrecondition::default(),
        event: None,
        evidence: ReplicaEvidence::default(),
        class: None,
    }
}

async fn bucket(store: &dyn MetadataStore) -> BucketId {
    let new = NewBucket { name: "b".into(), owner: "alice".into(), acl: CannedAcl::Private, now_ms: 1 };
    store.create_bucket(new).await.unwrap().id
}

fn content_of(object: &NewObject) -> ContentId {
    match &object.content {
        ContentSource::New(content) => content.id,
        ContentSource::Shared(id) => *id,
    }
}

/// Every object has its content, every content is referred to as often as it says, or is queued.
async fn check(server: &Server, database: &str) {
    let wrong: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM contents c WHERE c.refs <> (SELECT COUNT(*) FROM objects o WHERE o.content = c.id) \
         OR (c.refs = 0) <> EXISTS (SELECT 1 FROM reclaims r WHERE r.content = c.id)",
    )
    .fetch_one(&mut server.connect(database).await)
    .await
    .unwrap();
    assert_eq!(wrong, 0);
}

/// Also for who opens the database after that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequence_numbers_are_raised_and_never_lowered() {
    let server = server().await;
    let database = server.database().await;
    let store = open(server.options(&database)).await;
    let id = bucket(&*store).await;
    let put_back_ms = 1_800_000_000_000;
    for ms in [put_back_ms, 1] {
        store.raise_sequences(ms).await.unwrap();
    }
    store.close().await;
    let store = open(server.options(&database)).await;
    let first = store.commit_object(object(id, "a")).await.unwrap().object.sequence;
    let second = store.commit_object(object(id, "a")).await.unwrap().object.sequence;
    assert!(first > put_back_ms << 15 && second > first, "{first}, {second}");
    store.close().await;
}

/// Two nodes write the same keys: numbers are unique, rise for each key, and the highest is the latest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_write_the_same_keys() {
    let server = server().await;
    let database = server.database().await;
    let stores = [open(server.options(&database)).await, open(server.options(&database)).await];
    let id = bucket(&*stores[0]).await;
    let clients = (0..16usize).map(|client| {
        let store = stores[client % 2].clone();
        tokio::spawn(async move {
            let mut made = Vec::new();
            for i in 0..20 {
                let key = format!("k{}", (client + i) % 5);
                let committed = store.commit_object(object(id, &key)).await.unwrap().object;
                // Seen by its own node at once; what another wrote since is later.
                let read = store.object(id, &key, None).await.unwrap();
                assert!(read.sequence >= committed.sequence);
                made.push((key, committed.sequence));
            }
            made
        })
    });
    let mut all: Vec<(String, u64)> = Vec::new();
    for made in join_all(clients).await {
        all.extend(made.unwrap());
    }
    let mut numbers: Vec<u64> = all.iter().map(|(_, sequence)| *sequence).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), all.len(), "each number was given once");
    for store in &stores {
        for key in 0..5 {
            let key = format!("k{key}");
            let highest = all.iter().filter(|(k, _)| *k == key).map(|(_, sequence)| *sequence).max().unwrap();
            assert_eq!(store.object(id, &key, None).await.unwrap().sequence, highest);
        }
    }
    check(server, &database).await;
}

/// On two nodes one condemns what the other commits: exactly one wins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_condemns_what_another_commits() {
    let server = server().await;
    let database = server.database().await;
    let stores = [open(server.options(&database)).await, open(server.options(&database)).await];
    let id = bucket(&*stores[0]).await;
    let (mut won, mut lost) = (0, 0);
    for round in 0..40 {
        let object = object(id, &format!("k{round}"));
        let content = content_of(&object);
        let (committed, condemned) =
            tokio::join!(stores[0].commit_object(object), stores[1].condemn(std::slice::from_ref(&content), 1));
        match committed {
            Ok(_) => {
                assert!(condemned.unwrap().is_empty());
                won += 1;
            }
            Err(MetadataError::Condemned) => {
                assert_eq!(condemned.unwrap(), [content]);
                lost += 1;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    println!("{won} commits, {lost} condemned");
}

/// A claim that found a content due waits for its lock; whoever has that lock takes the content and drops it again. The claim
/// must not go by what it read before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_looks_again_at_the_time_under_the_lock() {
    const NOW: i64 = 1_000_000;
    let server = server().await;
    let database = server.database().await;
    let store = open(server.options(&database)).await;
    let id = bucket(&*store).await;
    let first = object(id, "k");
    let content = content_of(&first);
    store.commit_object(first).await.unwrap();
    store.commit_object(object(id, "k")).await.unwrap();
    let mut other = server.connect(&database).await;
    let mut copy = other.begin().await.unwrap();
    let lock = "SELECT refs FROM contents WHERE id = ? FOR UPDATE";
    let refs: i64 = sqlx::query_scalar(lock).bind(&content.0[..]).fetch_one(&mut *copy).await.unwrap();
    assert_eq!(refs, 0);
    let claim = {
        let store = store.clone();
        tokio::spawn(async move { store.due_reclaims(100, 10, None).await.unwrap() })
    };
    // The claim waits for the row that is locked here.
    let mut watcher = server.connect(&database).await;
    let waiting = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'";
    let begun = Instant::now();
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut watcher).await.unwrap() == 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "the claim does not come to the lock");
        // The table is made anew only after it was not looked at for a tenth of a second.
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    // Taken, and dropped again: the row in the queue is another one.
    sqlx::query("DELETE FROM reclaims WHERE content = ?").bind(&content.0[..]).execute(&mut *copy).await.unwrap();
    let queue = "INSERT INTO reclaims (content, manifest, queued_ms) SELECT id, manifest, ? FROM contents WHERE id = ?";
    sqlx::query(queue).bind(NOW).bind(&content.0[..]).execute(&mut *copy).await.unwrap();
    copy.commit().await.unwrap();
    assert_eq!(claim.await.unwrap(), [], "its grace began just now");
    check(server, &database).await;
    assert_eq!(store.due_reclaims(NOW as u64 + 1, 10, None).await.unwrap().len(), 1);
}

/// kill -9 under load: what was acknowledged is there, and what was refused with a definite error is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_acknowledged_and_no_error_lies() {
    let mut server = tokio::task::spawn_blocking(Server::start).await.unwrap();
    let database = server.database().await;
    let options = MysqlOptions { settle_timeout: Duration::from_secs(30), ..server.options(&database) };
    let store = open(options).await;
    let id = bucket(&*store).await;
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let (store, stop, acknowledged) = (store.clone(), stop.clone(), acknowledged.clone());
            tokio::spawn(async move {
                let mut results = Vec::new();
                for i in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let object = object(id, &format!("{client}-{i}"));
                    let (key, content) = (object.key.clone(), content_of(&object));
                    let result = store.commit_object(object).await.map(drop);
                    if result.is_ok() {
                        acknowledged.fetch_add(1, Ordering::SeqCst);
                    }
                    results.push((key, content, result));
                }
                results
            })
        })
        .collect();
    let until = async |count: usize| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while acknowledged.load(Ordering::SeqCst) < count {
            assert!(Instant::now() < deadline, "commits go on");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    for round in 0..3 {
        until(acknowledged.load(Ordering::SeqCst) + 50 + 37 * round).await;
        server = tokio::task::spawn_blocking(move || {
            server.kill();
            server.run();
            server
        })
        .await
        .unwrap();
    }
    until(acknowledged.load(Ordering::SeqCst) + 50).await;
    stop.store(true, Ordering::SeqCst);
    let mut outcomes: HashMap<&str, usize> = HashMap::new();
    for results in join_all(clients).await {
        for (key, content, result) in results.unwrap() {
            let read = store.object(id, &key, None).await;
            match result {
                Ok(()) => {
                    assert_eq!(read.unwrap().content.as_ref().unwrap().id, content, "{key} was acknowledged");
                    *outcomes.entry("acknowledged").or_default() += 1;
                }
                Err(MetadataError::Unknown(_)) => *outcomes.entry("unknown").or_default() += 1,
                Err(error) => {
                    assert!(matches!(read, Err(MetadataError::NoSuchKey)), "{key}: {error:?}, but it is there");
                    *outcomes.entry("refused").or_default() += 1;
                }
            }
        }
    }
    println!("{outcomes:?}");
    assert_eq!(outcomes.get("unknown"), None, "the server came back in time to be asked");
    check(&server, &database).await;
}

/// Connections that a restart made stale cost the next verbs nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_between_verbs_is_not_noticed() {
    let mut server = tokio::task::spawn_blocking(Server::start).await.unwrap();
    let store = open(server.options(&server.database().await)).await;
    let id = bucket(&*store).await;
    let before = join_all((0..16).map(|i| store.commit_object(object(id, &format!("k{i}"))))).await;
    assert!(before.iter().all(Result::is_ok));
    join_all((0..16).map(|_| store.bucket("b"))).await;
    server = tokio::task::spawn_blocking(move || {
        server.kill();
        server.run();
        server
    })
    .await
    .unwrap();
    for read in join_all((0..16).map(|i| store.object(id, Box::leak(format!("k{i}").into_boxed_str()), None))).await {
        read.unwrap();
    }
    store.commit_object(object(id, "after")).await.unwrap();
    store.set_versioning("b", holdfast_actors::ports::metadata::Versioning::Enabled).await.unwrap();
    store.close().await;
    drop(server);
}

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
    let lock = "SELECT GET_LOCK(CONCAT('holdfast.', MD5(DATABASE())), 0)";
    let locked: i64 = sqlx::query_scalar(lock).fetch_one(&mut other).await.unwrap();
    assert_eq!(locked, 1);
    let starting = MysqlMetadataStore::open(server.options(&database));
    // For how long each statement has waited that asks for the lock: less than before means that it is another one.
    let waits = "SELECT CAST(time AS SIGNED) FROM information_schema.processlist \
                 WHERE db = DATABASE() AND info LIKE 'SELECT GET_LOCK(%'";
    let seen = async move {
        let (begun, mut before) = (Instant::now(), 0);
        loop {
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not wait, or does not ask again");
            let waited: Option<i64> = sqlx::query_scalar(waits).fetch_optional(&mut other).await.unwrap();
            match waited {
                Some(waited) if waited < before => break,
                Some(waited) => before = waited,
                None => {}
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
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
    sqlx::raw_sql("CREATE OR REPLACE USER guest@'127.0.0.1' IDENTIFIED BY 'right'")
        .execute(&mut server.connect(&database).await)
        .await
        .unwrap();
    let options = MysqlOptions {
        url: format!("mysql://guest@{}/{database}", server.address()),
        password: Some("wrong-one".to_owned()),
        ..server.options(&database)
    };
    assert!(!format!("{options:?}").contains("wrong-one"));
    let error = MysqlMetadataStore::open(options.clone()).await.map(drop).unwrap_err();
    assert!(matches!(error, OpenError::Denied(_)), "{error:?}");
    assert!(error.to_string().contains("guest") && !format!("{error:?}{error}").contains("wrong-one"), "{error:?}");
    let in_the_url = MysqlOptions { url: options.url.replace("guest@", "guest:secret@"), ..options };
    let error = MysqlMetadataStore::open(in_the_url).await.map(drop).unwrap_err();
    assert!(matches!(error, OpenError::Url(_)) && !error.to_string().contains("secret"), "{error}");
}

/// All connections wait for a lock that somebody else holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_without_a_free_connection_answers_busy_in_time() {
    let server = server().await;
    let database = server.database().await;
    let options = MysqlOptions {
        connections: 2,
        acquire_timeout: Duration::from_secs(3),
        lock_timeout: Duration::from_secs(30),
        query_timeout: Duration::from_secs(60),
        ..server.options(&database)
    };
    let store = open(options).await;
    let id = bucket(&*store).await;
    let mut holder = server.connect(&database).await;
    sqlx::raw_sql("BEGIN; SELECT slot FROM lock_slots FOR UPDATE").execute(&mut holder).await.unwrap();
    let waiting = ["a", "b"].map(|key| {
        let store = store.clone();
        tokio::spawn(async move { store.set_object_acl(id, key, None, CannedAcl::Private, None, 5).await })
    });
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let started = Instant::now();
        match store.bucket("b").await {
            Err(MetadataError::Busy) => {
                assert!(started.elapsed() < Duration::from_secs(15));
                break;
            }
            Ok(_) => assert!(Instant::now() < deadline, "the connections are taken"),
            Err(error) => panic!("{error:?}"),
        }
    }
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
    for verb in waiting {
        assert!(matches!(verb.await.unwrap(), Err(MetadataError::NoSuchKey)));
    }
    store.bucket("b").await.unwrap();
}

/// `cargo test -p holdfast-node --test metadata_mysql measure -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_commits_of_64_clients() {
    let server = server().await;
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let sqlite = SqliteMetadataStore::open(&directory.path().join("metadata.db"), SqliteOptions::default()).await;
    let stores: [(&str, Arc<dyn MetadataStore>); 2] =
        [("SQLite", Arc::new(sqlite.unwrap())), ("MariaDB", empty_store().await.0)];
    println!("MariaDB at {}", server.address());
    for (name, store) in stores {
        let id = bucket(&*store).await;
        for clients in [1u32, 64] {
            let per_client = 6_400 / clients / if clients == 1 { 10 } else { 1 };
            let started = Instant::now();
            let running = (0..clients).map(|client| {
                let store = store.clone();
                tokio::spawn(async move {
                    for i in 0..per_client {
                        store.commit_object(object(id, &format!("{clients}/{client}/{i:08}.bin"))).await.unwrap();
                    }
                })
            });
            for client in join_all(running).await {
                client.unwrap();
            }
            let commits = f64::from(clients * per_client);
            println!("{name}, {clients} at once: {:.0} commits/s", commits / started.elapsed().as_secs_f64());
        }
        store.close().await;
    }
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
    store.set_versioning("b", Versioning::Enabled).await.unwrap();
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

/// A backup holds what was there at one moment, whatever is written while it is read page by page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_is_of_one_moment() {
    use holdfast_node::assemble::cluster_tools::dump;

    let server = server().await;
    let store = open(server.options(&server.database().await)).await;
    let id = bucket(&*store).await;
    // A writer that swaps: `z` is made before `a` is removed, and the other way round. At no moment are both absent. Whoever
    // pages through the keys while that goes on may miss both.
    let moving = object(id, "a");
    store.commit_object(moving).await.unwrap();
    for n in 0..2_500 {
        store.commit_object(object(id, &format!("m{n:05}"))).await.unwrap();
    }
    let (stop, swaps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writer = tokio::spawn({
        let (store, stop, swaps) = (store.clone(), stop.clone(), swaps.clone());
        async move {
            let mut keys = ["a", "z"];
            while !stop.load(Ordering::Relaxed) {
                store.commit_object(object(id, keys[1])).await.unwrap();
                let gone = DeleteRequest {
                    key: keys[0].into(),
                    version: None,
                    marker_version: VersionId::generate(2),
                    owner: "alice".into(),
                    precondition: WritePrecondition::default(),
                    only_if: None,
                    event: None,
                };
                for deleted in store.delete_objects(id, vec![gone], 2).await.unwrap() {
                    deleted.unwrap();
                }
                keys.swap(0, 1);
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    // On a busy machine the writer may stand still for many of them.
    let deadline = Instant::now() + Duration::from_secs(120);
    let (mut rounds, mut beside) = (0, 0);
    while rounds < 10 || (beside <= 10 && Instant::now() < deadline) {
        rounds += 1;
        let before = swaps.load(Ordering::Relaxed);
        let snapshot = store.snapshot().await.unwrap();
        let mut file = Vec::new();
        let counts = dump(&snapshot, &snapshot, &mut file).await.unwrap();
        beside += swaps.load(Ordering::Relaxed) - before;
        let refused = snapshot.commit_object(object(id, "x")).await.unwrap_err();
        assert!(refused.to_string().contains("snapshot"), "{refused}");
        snapshot.close().await;
        assert!(snapshot.ping().await.is_err(), "a snapshot that was closed answers");
        let text = String::from_utf8(file).unwrap();
        let has = |key: &str| text.contains(&format!("\"key\":\"{key}\""));
        assert!(has("a") || has("z"), "the backup has neither");
        assert_eq!(counts.versions, 2_500 + u64::from(has("a")) + u64::from(has("z")));
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    assert!(beside > 10, "the writer swapped only {beside} times while backups were written");
    store.close().await;
}
